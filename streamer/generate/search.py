"""Decoder steps of many windows in one call: the rows of all searches that are under way, packed.

A window takes ``width`` rows from begin to end. Rows lie without gaps, so a call needs no copy of the memory; when a window
is done the last one takes its place. Shapes: K rows of a window, T steps of its memory, O values of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from streamer.core import F32, I64, Written, X
from streamer.errors import ModelRunError
from streamer.generate.beam import Beam
from streamer.modelfile.decoder import Decoder
from streamer.modelfile.model import Model

_SPARE = 2
"""The steps that memory has room for shrink when the longest window needs less than this part of them."""
_ENCODED_ROWS = 64


class Steps(Protocol):
    """What makes a step: the decoder's graph, or in ``verify`` the module that it came from."""

    def step(
        self, symbols: I64, states: Sequence[F32], memory: Sequence[F32], lengths: I64
    ) -> tuple[F32, list[F32]]: ...


@dataclass(slots=True, eq=False)
class Searching:
    """One window that is being written about."""

    length: int
    """T of its memory"""
    beam: Beam
    failure: str | None = None
    """Why the decoder does not take it"""


class Searches:
    """All searches of one decoder that are under way, in packed rows."""

    def __init__(self, declared: Decoder, steps: Steps) -> None:
        self.declared, self._steps = declared, steps
        self._width = declared.width
        self._under_way: list[Searching] = []
        self._memory: list[F32] = []
        self._states: list[F32] = []
        self._lengths: I64 = np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self._under_way)

    @property
    def longest(self) -> int:
        """T of the longest that is under way."""
        return max((each.length for each in self._under_way), default=0)

    def begin(self, memory: Sequence[F32], states: Sequence[F32], length: int) -> Searching:
        """A further window. ``memory``: each [T, O] or [O]; ``states``: each [O]."""
        searching = Searching(length, Beam(self.declared))
        place, width = len(self._under_way) * self._width, self._width
        self._memory = [
            _room(kept, place + width, each.shape)
            for kept, each in zip(self._kept(self._memory, memory), memory, strict=True)
        ]
        self._states = [
            _room(kept, place + width, each.shape)
            for kept, each in zip(self._kept(self._states, states), states, strict=True)
        ]
        if len(self._lengths) < place + width:
            self._lengths = np.concatenate((self._lengths, np.zeros(max(place, width), np.int64)))
        for kept, each in zip(self._memory, memory, strict=True):
            if each.ndim == 2:
                kept[place : place + width, : len(each)] = each
                kept[place : place + width, len(each) :] = 0
            else:
                kept[place : place + width] = each
        for kept, each in zip(self._states, states, strict=True):
            kept[place : place + width] = each
        self._lengths[place : place + width] = length
        self._under_way.append(searching)
        return searching

    @staticmethod
    def _kept(arrays: list[F32], like: Sequence[F32]) -> list[F32]:
        return arrays or [np.empty((0, *each.shape), np.float32) for each in like]

    def advance(self) -> list[tuple[Searching, Written | None]]:
        """One step of all of them; those that are done, or (None) that the decoder does not take. They leave.

        A call that fails changed nothing and is halved until the window is found."""
        if not self._under_way:
            return []
        found: dict[int, tuple[Searching, Written | None]] = {}
        self._advance(0, len(self._under_way), found)
        for place in sorted(found, reverse=True):
            self._leave(place)
        return [found[place] for place in sorted(found)]

    def _advance(self, first: int, last: int, found: dict[int, tuple[Searching, Written | None]]) -> None:
        """One call over the windows [first, last)."""
        width, mine = self._width, self._under_way[first:last]
        rows = slice(first * width, last * width)
        symbols = np.concatenate([each.beam.symbols for each in mine])
        try:
            log_probabilities, nexts = self._steps.step(
                symbols,
                [each[rows] for each in self._states],
                [each[rows] for each in self._memory],
                self._lengths[rows],
            )
            if np.isnan(log_probabilities).any() or not all(np.isfinite(each).all() for each in nexts):
                raise ModelRunError("a log-probability or a next state is not a number")
        except ModelRunError as error:
            if last - first == 1:
                mine[0].failure = f"after {mine[0].beam.steps} steps: {error}"
                found[first] = mine[0], None
                return
            half = (first + last) // 2
            self._advance(first, half, found)
            self._advance(half, last, found)
            return
        parents = np.arange(len(symbols))
        for number, each in enumerate(mine):
            at = number * width
            try:
                written = each.beam.advance(log_probabilities[at : at + width])
            except ValueError as error:
                each.failure = f"after {each.beam.steps} steps: {error}"
                found[first + number] = each, None
                continue
            parents[at : at + width] = at + each.beam.parents
            if written is not None:
                found[first + number] = each, written
        for kept, value in zip(self._states, nexts, strict=True):
            kept[rows] = value[parents] if width > 1 else value

    def drop(self, searching: Searching) -> None:
        """Its window is given up."""
        self._leave(next(place for place, each in enumerate(self._under_way) if each is searching))

    def _leave(self, place: int) -> None:
        """The last window takes the place of the one that leaves; room that is not needed any more is given back."""
        width, end = self._width, len(self._under_way) - 1
        if place != end:
            self._under_way[place] = self._under_way[end]
            to, of = slice(place * width, (place + 1) * width), slice(end * width, (end + 1) * width)
            for kept in (*self._memory, *self._states):
                kept[to] = kept[of]
            self._lengths[to] = self._lengths[of]
        self._under_way.pop()
        longest = self.longest
        for at, kept in enumerate(self._memory):
            if kept.ndim == 3 and longest * _SPARE < kept.shape[1]:
                self._memory[at] = kept[: len(self._under_way) * width, :longest].copy()
        if not self._under_way:
            self._memory, self._states, self._lengths = [], [], np.empty(0, np.int64)


def _room(kept: F32, rows: int, shape: tuple[int, ...]) -> F32:
    """``kept`` with at least ``rows`` rows and, of memory with a time axis, the steps of ``shape``; zeros where it grew."""
    steps = max(kept.shape[1], shape[0]) if len(shape) == 2 else 0
    if rows <= len(kept) and (not steps or steps == kept.shape[1]):
        return kept
    count = len(kept) if rows <= len(kept) else max(rows, 2 * len(kept))
    grown = np.zeros((count, steps, shape[1]) if steps else (count, *shape), np.float32)
    if steps:
        grown[: len(kept), : kept.shape[1]] = kept
    else:
        grown[: len(kept)] = kept
    return grown


def decode(model: Model, windows: Sequence[X], steps: Steps | None = None) -> list[Written]:
    """What the model writes about windows [T, F] each, as it is served. ``steps``: in place of the decoder's graph.

    ModelRunError where the model does not take one."""
    graph = model.decoder
    assert graph is not None, "the model has no decoder"
    written: list[Written] = []
    for begin in range(0, len(windows), _ENCODED_ROWS):
        chosen = windows[begin : begin + _ENCODED_ROWS]
        searches = Searches(graph.declared, steps or graph)
        under_way = [searches.begin(*parts) for parts in encoded(model, chosen)]
        answers: dict[int, Written] = {}
        while len(searches):
            for searching, found in searches.advance():
                if found is None:
                    raise ModelRunError(str(searching.failure))
                answers[id(searching)] = found
        written += [answers[id(each)] for each in under_way]
    return written


def encoded(model: Model, windows: Sequence[X]) -> list[tuple[list[F32], list[F32], int]]:
    """One call of the encoder: per window memory, each [T, O] or [O], initial states, each [O], and T."""
    graph = model.decoder
    assert graph is not None, "the model has no decoder"
    lengths = np.array([len(each) for each in windows], np.int32)
    x = np.zeros((len(windows), int(lengths.max()), model.contract.features), windows[0].dtype)
    for row, window in zip(x, windows, strict=True):
        row[: len(window)] = window
    memory, states = graph.given(model.run(x, lengths, model.initial_states(len(windows)))[0])
    return [
        (
            [each[row, :length] if each.ndim == 3 else each[row] for each in memory],
            [each[row] for each in states],
            length,
        )
        for row, length in enumerate(lengths.tolist())
    ]
