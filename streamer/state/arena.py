"""The states of all streams for one model, one row (slot) per stream.

Arrays are reserved at full capacity as untouched virtual memory and touched chunk by chunk when slots are first used, so
growth copies nothing and a first use never faults (a cold first batch would take up to hundreds of milliseconds).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.core import I64, X
from streamer.modelfile.parts import State
from streamer.modelfile.past import NO_EVENT_MS

__all__ = ["NO_EVENT_MS", "Arena"]


class Arena:
    """State of all streams for one model: per state tensor the declared shape with slots in place of the batch."""

    def __init__(
        self, states: Sequence[State], initial: Sequence[X], capacity: int, beside: np.dtype[Any] | None = None
    ) -> None:
        """``initial``: one row per state tensor as the model gives it (batch size 1), float32 or bytes (uint8). ``beside``: a
        record that the model does not see, kept and forgotten with its states; at first all zero."""
        self._axes = [state.batch_axis for state in states]
        self._initial = [np.ascontiguousarray(value) for value in initial]
        self._tensors = []
        for axis, value in zip(self._axes, self._initial, strict=True):
            shape = list(value.shape)
            shape[axis] = capacity
            self._tensors.append(np.zeros(shape, value.dtype))
        self.beside = np.zeros(capacity, np.dtype([]) if beside is None else beside)
        """[S] records"""
        self._raw = (
            self.beside.view(np.uint8).reshape(capacity, -1)
            if beside is not None
            else np.empty((capacity, 0), np.uint8)
        )
        self.bytes_per_stream = sum(value.nbytes for value in self._initial) + self._raw.shape[1]
        self.through = np.zeros(capacity, np.int64)
        """[S] last input offset that each slot's state reflects; -1: none."""
        self.changed = np.zeros(capacity, bool)
        """[S] changed since the stream's last stream record."""
        self.newest_ms = np.zeros(capacity, np.int64)
        """[S] largest event time that each slot's state reflects; ``renew`` says that there is none."""

    def touch(self, begin: int, end: int) -> None:
        """Fault the pages of slots [begin, end) in, once, before any batch needs them."""
        for axis, tensor in zip(self._axes, self._tensors, strict=True):
            tensor[_at(axis, slice(begin, end))] = 0
        self._raw[begin:end] = 0

    def renew(self, slots: I64) -> None:
        """Slots pass to new streams: the initial state, which reflects nothing."""
        self.reset(slots)
        self.through[slots] = -1
        self.changed[slots] = False
        self.newest_ms[slots] = NO_EVENT_MS

    def take(self, slots: I64) -> list[X]:
        """Copies of the states of ``slots`` [B], each in the shape that the model declares."""
        return [tensor.take(slots, axis=axis) for axis, tensor in zip(self._axes, self._tensors, strict=True)]

    def put(self, slots: I64, states: Iterable[X]) -> None:
        for axis, tensor, value in zip(self._axes, self._tensors, states, strict=True):
            tensor[_at(axis, slots)] = value

    def reset(self, slots: I64) -> None:
        """Back to the initial state."""
        for axis, tensor, value in zip(self._axes, self._tensors, self._initial, strict=True):
            tensor[_at(axis, slots)] = value
        if self._raw.size:
            self._raw[slots] = 0

    def rows(self, slots: I64) -> list[bytes]:
        """The states of ``slots`` as raw little-endian values, tensors one after the other, then what is beside them: the bytes
        of stream records."""
        if self._raw.size:
            return [state + each.tobytes() for state, each in zip(self._states(slots), self._raw[slots], strict=True)]
        return self._states(slots)

    def _states(self, slots: I64) -> list[bytes]:
        if not self._axes:  # a model without state still knows how far it came
            return [b""] * len(slots)
        parts = [
            _bytes(np.moveaxis(value, axis, 0), len(slots))
            for axis, value in zip(self._axes, self.take(slots), strict=True)
        ]
        table = np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
        width = table.shape[1]
        raw = table.tobytes()
        return [raw[begin : begin + width] for begin in range(0, len(raw), width)]

    def load(self, slots: I64, rows: Sequence[bytes]) -> None:
        """Inverse of ``rows``. The caller has checked that each row has ``bytes_per_stream`` bytes."""
        whole = np.frombuffer(b"".join(rows), np.uint8).reshape(len(slots), -1)
        width = whole.shape[1] - self._raw.shape[1]
        self._raw[slots] = whole[:, width:]
        table = whole[:, :width]
        begin = 0
        for axis, value, tensor in zip(self._axes, self._initial, self._tensors, strict=True):
            shape = [size for index, size in enumerate(value.shape) if index != axis]
            part = np.ascontiguousarray(table[:, begin : begin + value.nbytes]).view(value.dtype.newbyteorder("<"))
            tensor[_at(axis, slots)] = np.moveaxis(part.reshape([len(slots), *shape]), 0, axis)
            begin += value.nbytes


def _bytes(value: X, rows: int) -> X:
    """[rows, bytes] of [rows, ...]."""
    return np.ascontiguousarray(value, value.dtype.newbyteorder("<")).view(np.uint8).reshape(rows, -1)


def _at(axis: int, index: slice | NDArray[np.int64]) -> tuple[slice | NDArray[np.int64], ...]:
    return (slice(None),) * axis + (index,)
