"""Characters: one-to-many text. Predict the next character; sampling and feeding back writes text.

Data: sentences of a small grammar, or any text file. Characters that only the held-out text has become U+FFFD.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from streamer.errors import ConfigurationError

from ..data import Split, sequences, split_by_time
from ..files.text import read_text as decoded
from ..generate import rollout, sampled
from ..model import SequenceModel
from ..train import ModelSection, TrainSection
from . import Recipe

UNKNOWN = "\ufffd"
VOCABULARY = 2_000
"""Of a text with more characters than that the rarest are unknown; a model gets as many as its text has."""


def read_text(text: str) -> Split:
    """One stream of characters, split by time; the vocabulary comes from the training part alone."""
    counts = Counter(text[: int(len(text) * 0.9)])
    known = sorted(sorted(counts.keys() - {UNKNOWN}, key=lambda each: (-counts[each], each))[:VOCABULARY])
    number = {character: i + 1 for i, character in enumerate(known)}
    tokens = [number.get(character, 0) for character in text]
    stream = sequences(["character"], [tokens], None, vocabulary=[UNKNOWN, *known])
    return split_by_time(stream, validation=0.05, test=0.05)


def make(quick: bool) -> Split:
    rng = np.random.default_rng(14)
    who, does = ["the king", "a fool", "my lord", "the queen"], ["speaks", "weeps", "laughs", "sleeps"]
    where, when = ["in the hall", "by the sea", "at court"], ["tonight", "again", "no more"]
    lines = []
    for _ in range(1500 if quick else 6000):
        words = [str(rng.choice(options)) for options in (who, does, where, when)]
        lines.append(" ".join(words).capitalize() + ".\n")
    return read_text("".join(lines))


def read(path: Path) -> Split:
    """A text file; ConfigurationError if it is too short to learn from."""
    text = decoded(path)[0].replace("\r\n", "\n")
    if len(text) < 2000:
        raise ConfigurationError(f"{path}: {len(text)} characters are too few, 2000 are the least")
    return read_text(text)


def generate(model: SequenceModel, names: Sequence[str], prompt: str, count: int, *, seed: int = 0) -> str:
    """Continue the prompt by sampling ``count`` characters."""
    tokens = [names.index(character) if character in names else 0 for character in prompt] or [0]
    picked = rollout(model, np.array(tokens)[:, None], count, sampled(seed), lambda token: token)
    return prompt + "".join(names[int(token)] for token in picked)


RECIPE = Recipe(
    summary="text, character by character (causal, one-to-many)",
    task="next_category",
    make=make,
    read=read,
    model=ModelSection(hidden=256, kind="lstm", embedding=48),
    training=TrainSection(
        epochs=4, segment_steps=4000, optimiser="adamw", weight_decay=0.05, learning_rate=6e-3, schedule="cosine"
    ),
    quick_model=ModelSection(hidden=64, kind="gru", embedding=16),
    quick_training=TrainSection(epochs=6, rows=16, steps=32, segment_steps=600, learning_rate=1e-2, schedule="cosine"),
    metric="loss",
    limit=0.25,
    quick_limit=0.35,
    baseline="baseline_loss",
    baseline_name="nats per character of the unigram",
    feedback={"output": "y", "mode": "sample", "encoding": "index"},
    show=lambda model, data: generate(model, model.labels or (), "The ", 120),
)
