"""Pictures as pairs: their patches are the steps that a decoder looks at, and captions are what it writes."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from pathlib import Path

import numpy as np
import torch

from streamer.errors import ConfigurationError

from ..data import F32, Split, Streams, sequences
from ..generate import rollout
from ..model import SequenceModel
from ..readers import load
from .data import END, Pair, PairSplit, split_pairs
from .learners import NOTHING, Batch, PairLearner
from .train import Trained

MOST = 7
"""Patches along a side, at most."""
_ROWS = 256


def patches(picture: F32) -> F32:
    """[T, F]: the P numbers of a square picture, given row by row, as a grid of square patches, the finest that fits.

    Numbers that are no square picture (features of one, say), or whose side has no divisor up to MOST, are one step.
    """
    side = isqrt(len(picture))
    grid = 1
    if side * side == len(picture):
        grid = max(count for count in range(1, min(MOST, side) + 1) if side % count == 0)
    if grid == 1:
        return picture[None]
    width = side // grid
    return picture.reshape(grid, width, grid, width).swapaxes(1, 2).reshape(grid * grid, width * width)


def read_captions(path: Path, *, share: float, seed: int) -> PairSplit:
    """A table with one word per event in the column ``label``, and the picture's numbers in a stream's first event.

    Pictures of later events are not read. A last word ``<end>`` may be there or not.
    """
    data = load(path)
    if data.labels is None or data.classes is None or any(t.kind == "category" for t in data.feature_tables):
        raise ConfigurationError(f"{path}: wants columns of numbers (the picture) and a column label (the words)")
    pairs = []
    for name, x, label in zip(data.names, data.x, data.labels, strict=True):
        if np.less(label, 0).any() or np.isnan(x[0]).any():
            raise ConfigurationError(f"{path}: stream {name!r} has an event without a word, or no whole picture")
        words = tuple(data.classes[int(each)] for each in label)
        words = words[:-1] if words[-1] == END else words
        if not words:
            raise ConfigurationError(f"{path}: stream {name!r} has no word")
        pairs.append(Pair(patches(np.asarray(x[0], np.float32)), (words,)))
    return of_pictures(split_pairs(pairs, validation=share, test=share, seed=seed))


def of_pictures(parts: tuple[list[Pair], list[Pair], list[Pair]]) -> PairSplit:
    """Training, validation and test part, whose sources are patches [T, F] of as many numbers each."""
    first = parts[0][0].source
    assert isinstance(first, np.ndarray)
    names = tuple(f"p{at}" for at in range(first.shape[1]))
    return PairSplit(*parts, "words", None, names, packed=True)


def word_accuracy(trained: Trained, split: PairSplit) -> dict[str, float]:
    """accuracy: share of the test part's words, ends included, that are right when all words before them are given."""
    learner, right, count = trained.learner, 0, 0
    assert isinstance(learner, PairLearner)
    samples = trained.alphabet.samples(split.test)
    for first in range(0, len(samples), _ROWS):
        batch = Batch.of(samples[first : first + _ROWS])
        rows = len(batch.y)
        wanted = torch.cat((batch.y, torch.full((rows, 1), NOTHING)), dim=1)
        wanted[torch.arange(rows), batch.widths] = 0
        given = torch.cat((torch.zeros((rows, 1), dtype=torch.int64), batch.y.clamp(min=0)), dim=1)
        with torch.no_grad():
            best = learner.module(batch.x, batch.lengths, given).argmax(dim=-1)
        right += int((best == wanted).sum())
        count += int((wanted != NOTHING).sum())
    return {"accuracy": right / max(1, count)}


def as_events(split: PairSplit) -> Split:
    """The same captions for a causal model with one state: the first event of a stream has the whole picture.

    Each later one has the word before, as a one-hot beside the picture's place; so an event is P + V numbers.
    """
    words = sorted(
        {word for part in (split.train, split.validation, split.test) for p in part for word in p.targets[0]}
    )
    classes = (END, *words)
    place = {word: at for at, word in enumerate(classes)}

    def part(pairs: Sequence[Pair]) -> Streams:
        xs, labels = [], []
        for pair in pairs:
            picture = np.asarray(pair.source, np.float32).ravel()
            tokens = [*(place[word] for word in pair.targets[0]), 0]
            x = np.zeros((len(tokens), len(picture) + len(classes)), np.float32)
            x[0, : len(picture)] = picture
            x[np.arange(1, len(tokens)), len(picture) + np.array(tokens[:-1])] = 1
            xs.append(x)
            labels.append(tokens)
        names = [f"f{at}" for at in range(xs[0].shape[1])]
        return sequences(names, xs, labels, classes)

    return Split(part(split.train), part(split.validation), part(split.test))


def rolled(model: SequenceModel, first: F32, steps: int) -> tuple[str, ...]:
    """The words that a model of ``as_events`` writes by itself about the event with the picture [P + V]."""
    words = model.labels or []
    one_hot = torch.eye(model.features)[model.features - len(words) :]
    picked = [
        int(word) for word in rollout(model, first[None], steps, lambda y: y.argmax(), lambda word: one_hot[word])
    ]
    return tuple(words[word] for word in (picked[: picked.index(0)] if 0 in picked else picked))
