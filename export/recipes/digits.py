"""Digits: speech recognition. Samples in, the digits that are said out; while they are said, or when all of them are.

Data: 3 to 7 digits, spoken by espeak-ng in many voices, speeds and pitches, with noise. No voice of the test part was
ever heard in training. Of your own: a folder of WAV files with ``transcripts.tsv`` (file, words).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np

from ..files.sound import as_steps
from ..frontend import FrontEnd
from ..pairs.data import Pair, PairSplit
from ..pairs.espeak import speak, voices
from ..pairs.recipe import SEED, SHARE, PairRecipe
from ..pairs.sections import PairsSection
from ..pairs.sound import delay, measure, names, read_folder
from ..pairs.train import train_seed
from ..train import DataSection, ModelSection, TrainConfig, TrainSection

FRONT = FrontEnd()
SAMPLES = 320
"""Of a step: 40 ms, two frames."""
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PAIRS = PairsSection(source="file", target="words", target_units="words", metric="symbol_error", mask_steps=2)
MODEL = ModelSection(hidden=96, kind="lstm", directions=2, dropout=0.2, frontend=FRONT)
TRAINING = TrainSection(epochs=10, rows=16, learning_rate=4e-3, schedule="cosine")


def utterance(voice: str, seed: int, timed: bool) -> Pair:
    """One utterance, all of it by chance; ``timed``: and when each digit has been said."""
    rng = np.random.default_rng([SEED, seed])
    digits = tuple(str(each) for each in rng.choice(DIGITS, rng.integers(3, 8)))
    samples, ends_s = speak(" ".join(digits), voice, FRONT.rate_hz, rng, timed=timed)
    return Pair(as_steps(samples, SAMPLES), (digits,), ends_s)


def make(quick: bool) -> PairSplit:
    accents, speakers = voices()
    rng = np.random.default_rng(SEED)
    order = [str(each) for each in rng.permutation(speakers)]
    held = max(1, round(len(order) * SHARE))
    parts, first = [], 0
    sizes = (400, 40, 66) if quick else (3_600, 240, 400)
    for own, count in zip((order[2 * held :], order[:held], order[held : 2 * held]), sizes, strict=True):
        chosen = [(f"{rng.choice(accents)}+{rng.choice(own)}", first + at) for at in range(count)]
        with ThreadPoolExecutor(2) as pool:  # they wait for other processes
            judged = repeat(own == order[held : 2 * held])  # of the test part the delay is measured
            parts.append(list(pool.map(utterance, *zip(*chosen, strict=True), judged)))
        first += count
    return PairSplit(parts[0], parts[1], parts[2], "words", None, names(SAMPLES), packed=True)


def without_recurrence(split: PairSplit) -> dict[str, float]:
    """Exact match of networks that hear the last 0.08 s only (a sound of a word), or 0.32 s (most of a word)."""
    found = {}
    for steps in (2, 8):
        model = ModelSection(hidden=MODEL.hidden, kind="mlp", window=steps, frontend=FRONT)
        config = TrainConfig("digits", "recognise", DataSection(path="generated"), model, TRAINING, pairs=PAIRS)
        heard = f"hears {steps * SAMPLES / FRONT.rate_hz:.2f} s"
        found[heard] = train_seed(config, split, SEED, out=None).figures["test"]["exact_match"]
    return found


def read(path: Path) -> PairSplit:
    return read_folder(path, PAIRS, FRONT, SAMPLES, share=SHARE, seed=SEED, notes=[])


RECIPE = PairRecipe(
    summary="spoken digits from samples (bidirectional, and causal, CTC)",
    task="recognise",
    make=make,
    read=read,
    model=MODEL,
    beside={"causal": {"directions": 1, "hidden": 128, "layers": 2}},
    within=0.05,
    pairs=PAIRS,
    training=TRAINING,
    quick_model=ModelSection(hidden=64, kind="lstm", directions=2, frontend=FRONT),
    quick_training=TrainSection(epochs=16, rows=16, learning_rate=1.5e-2, schedule="cosine"),
    limits={"exact_match": 0.90},
    quick_limits={"exact_match": 0.3},
    baseline=without_recurrence,
    further=lambda trained, split: delay(trained, split, FRONT.rate_hz),
    measure=lambda folder, split: measure(folder, split, FRONT),
)
