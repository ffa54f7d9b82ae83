"""Streams of events; splits that leak no future; scaling; batches for training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamer.errors import ConfigurationError
from streamer.modelfile.feature import Feature

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

UNLABELLED = -1
"""The label of an event that has none: it is neither trained on nor judged."""


@dataclass
class Streams:
    """Events grouped by stream, each stream in order of time; lists are parallel, of length = number of streams."""

    features: tuple[str, ...]
    names: list[str]
    x: list[F32]
    """[T, F] each"""
    times_ms: list[I64]
    labels: list[NDArray[np.generic]] | None = None
    """[T] each: class numbers (int64) or values (float32)"""
    classes: tuple[str, ...] | None = None
    counted_from: list[int] = field(default_factory=list)
    """First row of each stream that belongs to this part; the rows before it only warm the state up."""
    tables: tuple[Feature, ...] = ()
    """What the features mean; () where all are numbers. As read from a file, x is NaN where a cell is missing."""
    normal: int | None = None
    """forecast: the class of events that are no anomalies, and that alone are trained on; None: class 0, and all are."""

    def __post_init__(self) -> None:
        self.counted_from = self.counted_from or [0] * len(self.names)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def events(self) -> int:
        """Number of events that count."""
        return sum(len(x) - start for x, start in zip(self.x, self.counted_from, strict=True))

    def take(self, indices: Sequence[int]) -> Streams:
        """The streams of these indices."""
        return replace(
            self,
            names=[self.names[i] for i in indices],
            x=[self.x[i] for i in indices],
            times_ms=[self.times_ms[i] for i in indices],
            labels=None if self.labels is None else [self.labels[i] for i in indices],
            counted_from=[self.counted_from[i] for i in indices],
        )

    @property
    def feature_tables(self) -> tuple[Feature, ...]:
        """One per feature."""
        return self.tables or tuple(Feature(name) for name in self.features)


def sequences(
    features: Sequence[str],
    xs: Iterable[ArrayLike],
    labels: Iterable[ArrayLike] | None = None,
    classes: Sequence[str] | None = None,
    *,
    vocabulary: Sequence[str] = (),
) -> Streams:
    """Streams from arrays (or token lists) made in memory: x [T, F] or [T], labels [T] or one number each.

    ``vocabulary``: the words of the one feature; the first stands for all others.
    """
    arrays = [np.asarray(x, np.float32) for x in xs]
    arrays = [x if x.ndim == 2 else x[:, None] for x in arrays]
    numbers = None
    if labels is not None:
        numbers = [np.broadcast_to(np.asarray(y, np.int64), len(x)) for x, y in zip(arrays, labels, strict=True)]
    count = len(arrays)
    return Streams(
        tuple(features),
        [f"{i:06d}" for i in range(count)],
        arrays,
        [np.arange(len(x), dtype=np.int64) for x in arrays],
        None if numbers is None else list(numbers),
        None if classes is None else tuple(classes),
        tables=(Feature(features[0], "category", tuple(vocabulary), unknown=0),) if vocabulary else (),
    )


@dataclass(frozen=True)
class Split:
    """Three parts of the data. What scaling, weights and early stopping see is ``train`` and ``validation`` only."""

    train: Streams
    validation: Streams
    test: Streams


def split_by_stream(data: Streams, *, validation: float, test: float, seed: int) -> Split:
    """Whole streams go to one part; streams of one class (that of their last event) are spread over all parts."""
    _check_fractions(validation, test)
    rng = np.random.default_rng([seed, 7])
    kinds = [0] * len(data) if data.classes is None or data.labels is None else [int(y[-1]) for y in data.labels]
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    carried = np.zeros(2)
    for kind in sorted(set(kinds)):
        members = rng.permutation([i for i, other in enumerate(kinds) if other == kind])
        wanted = np.array([validation, test]) * len(members) + carried  # fractions left over go to the next class
        counts = np.floor(wanted + 1e-9).astype(int)
        carried = wanted - counts
        a, b = int(counts[0]), int(counts[0] + counts[1])
        for part, chosen in zip(parts, (members[b:], members[:a], members[a:b]), strict=True):
            part.extend(int(i) for i in chosen)
    for part, fraction in zip(parts[1:], (validation, test), strict=True):
        if fraction and not part and len(parts[0]) > 1:  # a share of a few streams is less than one
            part.append(parts[0].pop())
    train, held, judged = (data.take(sorted(part)) for part in parts)
    return checked_split(train, held, judged, validation, test)


def split_by_time(data: Streams, *, validation: float, test: float) -> Split:
    """One moment for all streams divides the parts: nothing of what is judged later was seen in training.

    Later parts keep the earlier events to warm up the state; only rows from ``counted_from`` on count.
    """
    first, second = time_borders(data, validation=validation, test=test)
    return checked_split(
        _between(data, None, first), _between(data, first, second), _between(data, second, None), validation, test
    )


def time_borders(data: Streams, *, validation: float, test: float) -> tuple[int, int]:
    """The moments at which the validation and the test part begin (ms)."""
    _check_fractions(validation, test)
    times = np.sort(np.concatenate(data.times_ms))
    count = len(times)
    first = times[min(int(count * (1 - validation - test)), count - 1)]
    second = times[min(int(count * (1 - test)), count - 1)]
    return int(first), int(second if test else times[-1] + 1)


def fit_scaling(train: Streams) -> tuple[F32, F32]:
    """Mean and standard deviation per feature over the training events; a constant feature gets 1 (it becomes 0)."""
    rows = np.concatenate(train.x).astype(np.float64)
    mean, std = rows.mean(axis=0), rows.std(axis=0)
    constant = std <= 1e-6 * np.maximum(1.0, np.abs(mean))
    words = np.array(
        [feature.kind == "category" for feature in train.feature_tables]
    )  # numbers of words stay as they are
    return np.where(words, 0.0, mean).astype(np.float32), np.where(constant | words, 1.0, std).astype(np.float32)


@dataclass(slots=True)
class Example:
    """One sequence to learn from: inputs x[T,F], target [T] or [T,F] per event, or one number for the whole."""

    x: F32
    target: NDArray[np.generic]
    counted_from: int = 0
    counted: NDArray[np.bool_] | None = None
    """[T]: the events whose target counts; None: all from ``counted_from`` on."""


@dataclass(slots=True)
class Chunk:
    """A ragged piece of a batch; the state of row b is that of lane ``lanes[b]``, initial where ``fresh[b]``."""

    lanes: I64
    fresh: NDArray[np.bool_]
    x: F32
    """[B, T, F], zero beyond a row's length"""
    lengths: I64
    target: NDArray[np.generic]
    """[B, T, ...] or [B]"""
    counted: NDArray[np.bool_]
    """[B, T]: the step is inside the row and belongs to the part that is judged"""
    examples: I64
    starts: I64
    """Example and first row of each piece"""


def chunks(
    examples: Sequence[Example], *, rows: int, steps: int, order: Sequence[int] | None = None
) -> Iterator[Chunk]:
    """Long streams in pieces of at most ``steps``, ``rows`` streams beside each other, for carried state.

    A lane takes the next stream when its stream has ended; so a lane's pieces of one stream follow each other.
    """
    waiting = list(reversed(range(len(examples)) if order is None else order))
    lanes: list[tuple[int, int] | None] = [None] * min(rows, len(waiting))
    while True:
        for lane, current in enumerate(lanes):
            if current is None and waiting:
                lanes[lane] = (waiting.pop(), 0)
        active = [(lane, *current) for lane, current in enumerate(lanes) if current is not None]
        if not active:
            return
        yield _cut(examples, active, steps)
        for lane, index, start in active:
            end = start + steps
            lanes[lane] = (index, end) if end < len(examples[index].x) else None


def buckets(
    examples: Sequence[Example], *, rows: int, rng: np.random.Generator | None, max_steps: int = 0
) -> Iterator[Chunk]:
    """Whole sequences in batches of similar length, in random order of batches (in order of length without ``rng``).

    ``max_steps`` bounds rows x longest length of a batch (0: only ``rows`` does), and with it the memory of a step.
    """
    lengths = np.array([len(example.x) for example in examples])
    groups = by_length(lengths, rows=rows, rng=rng, max_steps=max_steps)
    for members in groups:
        active = [(lane, index, 0) for lane, index in enumerate(members)]
        yield _cut(examples, active, max(len(examples[i].x) for i in members))


def by_length(lengths: I64, *, rows: int, rng: np.random.Generator | None, max_steps: int = 0) -> list[list[int]]:
    """Places in ``lengths`` in groups of similar length, in random order of groups (in order of length without ``rng``).

    ``max_steps`` bounds a group's size x its longest length (0: only ``rows`` bounds it).
    """
    noise = np.zeros(len(lengths)) if rng is None else rng.random(len(lengths)) * 0.1 * lengths
    order = np.argsort(lengths + noise, kind="stable")
    groups: list[list[int]] = [[]]
    longest = 0
    for index in order:
        longest = max(longest, int(lengths[index]))
        full = len(groups[-1]) == rows or (max_steps and groups[-1] and (len(groups[-1]) + 1) * longest > max_steps)
        if full:
            groups.append([])
            longest = int(lengths[index])
        groups[-1].append(int(index))
    if rng is not None:
        rng.shuffle(groups)
    return groups


def segments(examples: Sequence[Example], steps: int, rng: np.random.Generator) -> list[Example]:
    """Streams longer than ``steps`` in pieces, cut at a new offset each time; few long streams then fill a batch."""
    if steps <= 0:
        return list(examples)
    pieces = []
    for example in examples:
        size = len(example.x)
        offset = int(rng.integers(steps)) if size > steps else 0
        cuts = [0, *range(offset, size, steps), size] if size > steps else [0, size]
        for a, b in pairwise(cuts):
            if b > a:
                counted = None if example.counted is None else example.counted[a:b]
                pieces.append(Example(example.x[a:b], example.target[a:b], counted=counted))
    return pieces


def _cut(examples: Sequence[Example], active: list[tuple[int, int, int]], steps: int) -> Chunk:
    ends = [min(start + steps, len(examples[index].x)) for _, index, start in active]
    lengths = np.array([end - start for (_, _, start), end in zip(active, ends, strict=True)], np.int64)
    longest = int(lengths.max())
    first = examples[active[0][1]]
    per_event = first.target.ndim > 0
    x = np.zeros((len(active), longest, first.x.shape[1]), np.float32)
    counted = np.zeros((len(active), longest), bool)
    shape = (len(active), longest, *first.target.shape[1:]) if per_event else (len(active),)
    target = np.zeros(shape, first.target.dtype)
    for row, ((_, index, start), end) in enumerate(zip(active, ends, strict=True)):
        example = examples[index]
        x[row, : end - start] = example.x[start:end]
        target[row, ...] = 0
        if per_event:
            target[row, : end - start] = example.target[start:end]
        else:
            target[row] = example.target
        counted[row, max(0, example.counted_from - start) : end - start] = True
        if example.counted is not None:
            counted[row, : end - start] &= example.counted[start:end]
    lanes = np.array([lane for lane, _, _ in active], np.int64)
    starts = np.array([start for _, _, start in active], np.int64)
    indices = np.array([index for _, index, _ in active], np.int64)
    return Chunk(lanes, starts == 0, x, lengths, target, counted, indices, starts)


def _between(data: Streams, start: int | None, end: int | None) -> Streams:
    """Events before ``end``; those from ``start`` on count. Streams without any that count are left out."""
    part = data.take([])
    for i, times in enumerate(data.times_ms):
        a = 0 if start is None else int(np.searchsorted(times, start))
        b = len(times) if end is None else int(np.searchsorted(times, end))
        if b > a:
            part.names.append(data.names[i])
            part.x.append(data.x[i][:b])
            part.times_ms.append(times[:b])
            part.counted_from.append(a)
            if part.labels is not None and data.labels is not None:
                part.labels.append(data.labels[i][:b])
    return part


def _check_fractions(validation: float, test: float) -> None:
    if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
        raise ConfigurationError("validation and test must be at least 0, and their sum below 1")


def checked_split(train: Streams, held: Streams, judged: Streams, validation: float, test: float) -> Split:
    """ConfigurationError if nothing is left for a part that is wanted."""
    for name, part, fraction in (("training", train, 1.0), ("validation", held, validation), ("test", judged, test)):
        if fraction and part.events == 0:
            raise ConfigurationError(
                f"too little data to split: nothing is left for {name}; there are {len(train)} streams to train on"
                ' (data.split = "time" divides streams, data.validation_path and data.test_path name files)'
            )
    return Split(train, held, judged)
