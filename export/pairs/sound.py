"""Utterances as pairs: WAV files with their transcripts, what hearing them costs, and how late a symbol is told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from rapidfuzz.distance import Levenshtein

from streamer.emission.ctc import spelled
from streamer.errors import ConfigurationError
from streamer.modelfile.model import Model

from ..config import DataSection
from ..data import F32
from ..files.sound import as_steps, read_wav
from ..frontend import FrontEnd
from .data import UNITS, Pair, PairSplit, split_pairs
from .learners import CtcLearner, appearing, padded
from .read import rows_of
from .sections import PairsSection
from .train import Trained

TRANSCRIPTS = ("transcripts.tsv", "transcripts.txt", "transcripts.csv")
_MEASURED = 100
_TOGETHER = 200


def names(samples: int) -> tuple[str, ...]:
    """Of the features of a step."""
    return tuple(f"s{at}" for at in range(samples))


def read_folder(
    folder: Path, section: PairsSection, front: FrontEnd, samples: int, *, share: float, seed: int, notes: list[str]
) -> PairSplit:
    """WAV files of a folder, and a file of two columns beside them: name of the WAV file (in the folder) and its words.

    Files of one sub-folder are of one speaker, and go to the same part; where there are none, every file by itself.
    """
    found: list[tuple[str, Pair]] = []
    for place, name, text in _told(folder, section, notes):
        path = folder / name
        if path.suffix.lower() != ".wav":
            path = path.with_name(path.name + ".wav")
        target = UNITS[section.target_units](text)
        x = as_steps(read_wav(path, front.rate_hz), samples)
        if not target or not len(x):
            raise ConfigurationError(f"{place}: wants a sound and what is said in it, one of them is empty")
        found.append((str(path.parent), Pair(x, (target,))))
    speakers = {id(pair): speaker for speaker, pair in found}
    several = len(set(speakers.values())) > 1
    parts = split_pairs(
        [pair for _, pair in found],
        validation=share,
        test=share,
        seed=seed,
        by=lambda pair: speakers[id(pair)] if several else id(pair),
    )
    return PairSplit(*parts, section.target_units, None, names(samples), packed=True)


def _told(folder: Path, section: PairsSection, notes: list[str]) -> Iterator[tuple[str, str, str]]:
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is no folder: WAV files and their transcripts are wanted")
    for name in TRANSCRIPTS:
        if (folder / name).is_file():
            yield from rows_of(folder / name, section.source, section.target, DataSection(path=name), notes)
            return
    raise ConfigurationError(f"{folder} has no transcripts: one of {', '.join(TRANSCRIPTS)}, two columns: file, words")


def measure(folder: Path, split: PairSplit, front: FrontEnd) -> dict[str, float]:
    """What the published models take, on one core, of utterances of the test part; all in seconds, or per second of sound.

    ``model.onnx`` hears whole utterances, ``causal.onnx`` one step after the other, or so of many streams together.
    ``wait_s``: how long after the causal model writes a symbol its utterance ends, on average, which is when the other
    can begin.
    """
    whole, causal = Model.load(folder / "model.onnx"), Model.load(folder / "causal.onnx")
    xs = [pair.source for pair in split.test[:_MEASURED] if isinstance(pair.source, np.ndarray)]
    step_s = xs[0].shape[1] / front.rate_hz
    sound_s = step_s * sum(map(len, xs))
    return {
        "rtf_whole": round(_whole(whole, xs) / sound_s, 5),
        "rtf_step_by_step": round(_stepwise(causal, xs, 1) / sound_s, 5),
        f"rtf_{_TOGETHER}_streams": round(_stepwise(causal, xs, _TOGETHER) / sound_s, 5),
        "wait_s": round(_wait(causal, xs) * step_s, 3),
        "utterance_s": round(sound_s / len(xs), 3),
    }


def delay(trained: Trained, split: PairSplit, rate_hz: int) -> dict[str, float]:
    """Seconds from the end of a spoken symbol to the event time of the record that tells it: mean, and 95th percentile.

    A causal model tells it with the step in which it appears; one that hears the whole utterance with its last step, at
    which a client marks the end (where none does, the gap that tells it comes on top). A step is there with its last
    sample. So this is a property of the model and of the log, which no faster machine makes shorter; below zero where a
    word is told before it is over. It is of symbols of the test part that are told rightly; {} where nobody knows when
    they were said.
    """
    learner, waits = trained.learner, []
    assert isinstance(learner, CtcLearner)
    whole = learner.module.mode == "window"
    for pair in split.test:
        if not pair.ends_s or not isinstance(pair.source, np.ndarray) or not len(pair.source):
            continue
        labels = learner.likeliest(*padded([pair.source]))[0]
        steps = appearing(labels)
        written, step_s = trained.alphabet.names(labels[steps]), pair.source.shape[1] / rate_hz
        for block in Levenshtein.editops(pair.targets[0], written).as_matching_blocks():
            for place in range(block.size):
                told = len(pair.source) if whole else int(steps[block.b + place]) + 1
                waits.append(told * step_s - pair.ends_s[block.a + place])
    if not waits:
        return {}
    return {"delay_s": round(float(np.mean(waits)), 3), "delay_p95_s": round(float(np.percentile(waits, 95)), 3)}


def _whole(model: Model, xs: Sequence[F32]) -> float:
    began = perf_counter()
    for x in xs:
        model.run(x[None], np.array([len(x)], np.int32), model.initial_states(1))
    return perf_counter() - began


def _stepwise(model: Model, xs: Sequence[F32], rows: int) -> float:
    """Seconds per row for all of ``xs``, each by itself, or so many copies beside each other."""
    one = np.ones(rows, np.int32)
    began = perf_counter()
    for x in xs[: len(xs) if rows == 1 else len(xs) // 10]:
        states = model.initial_states(rows)
        for step in x:
            _, states = model.run(np.broadcast_to(step, (rows, 1, len(step))), one, states)
    seconds = perf_counter() - began
    return seconds if rows == 1 else seconds * sum(map(len, xs)) / sum(map(len, xs[: len(xs) // 10])) / rows


def _wait(model: Model, xs: Sequence[F32]) -> float:
    """Steps from a symbol to the end of its utterance, on average."""
    emit: Any = model.contract.outputs[0].emit
    waits = []
    for x in xs:
        (y,), _ = model.run(x[None], np.array([len(x)], np.int32), model.initial_states(1))
        waits += [len(x) - 1 - step for step in spelled(emit, y[0]).steps]
    return float(np.mean(waits)) if waits else 0.0
