"""Where state lives: one table of streams, and per model an arena with one row (slot) per stream.

Arrays are reserved at full capacity as untouched virtual memory and touched chunk by chunk when slots are first used, so
growth copies nothing and a first use never faults (a cold first batch would take up to hundreds of milliseconds).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from streamer.contract import State
from streamer.core import F32, I64
from streamer.errors import ConfigurationError


class Arena:
    """State of all streams for one model: per state tensor the declared shape with slots in place of the batch."""

    def __init__(self, states: Sequence[State], initial: Sequence[F32], capacity: int) -> None:
        """``initial``: one row per state tensor as the model gives it (batch size 1)."""
        self._axes = [state.batch_axis for state in states]
        self._initial = [np.ascontiguousarray(value, np.float32) for value in initial]
        self._tensors = []
        for axis, value in zip(self._axes, self._initial, strict=True):
            shape = list(value.shape)
            shape[axis] = capacity
            self._tensors.append(np.zeros(shape, np.float32))
        self.bytes_per_stream = sum(value.nbytes for value in self._initial)
        self.through = np.zeros(capacity, np.int64)
        """[S] last input offset that each slot's state reflects; -1: none."""
        self.changed = np.zeros(capacity, bool)
        """[S] changed since the stream's last stream record."""

    def touch(self, begin: int, end: int) -> None:
        """Fault the pages of slots [begin, end) in, once, before any batch needs them."""
        for axis, tensor in zip(self._axes, self._tensors, strict=True):
            tensor[_at(axis, slice(begin, end))] = 0
        self.through[begin:end] = -1
        self.changed[begin:end] = False

    def take(self, slots: I64) -> list[F32]:
        """Copies of the states of ``slots`` [B], each in the shape that the model declares."""
        return [tensor.take(slots, axis=axis) for axis, tensor in zip(self._axes, self._tensors, strict=True)]

    def put(self, slots: I64, states: Iterable[F32]) -> None:
        for axis, tensor, value in zip(self._axes, self._tensors, states, strict=True):
            tensor[_at(axis, slots)] = value

    def reset(self, slots: I64) -> None:
        """Back to the initial state."""
        for axis, tensor, value in zip(self._axes, self._tensors, self._initial, strict=True):
            tensor[_at(axis, slots)] = value

    def rows(self, slots: I64) -> list[bytes]:
        """The states of ``slots`` as raw little-endian float32, tensors one after the other: the bytes of stream records."""
        parts = [
            np.moveaxis(value, axis, 0).reshape(len(slots), -1)
            for axis, value in zip(self._axes, self.take(slots), strict=True)
        ]
        table = np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
        width = table.shape[1] * 4
        raw = np.ascontiguousarray(table, "<f4").tobytes()
        return [raw[begin : begin + width] for begin in range(0, len(raw), width)]

    def load(self, slots: I64, rows: Sequence[bytes]) -> None:
        """Inverse of ``rows``. The caller has checked that each row has ``bytes_per_stream`` bytes."""
        table = np.frombuffer(b"".join(rows), "<f4").reshape(len(slots), -1)
        begin = 0
        for axis, value, tensor in zip(self._axes, self._initial, self._tensors, strict=True):
            shape = [size for index, size in enumerate(value.shape) if index != axis]
            part = table[:, begin : begin + value.size].reshape([len(slots), *shape])
            tensor[_at(axis, slots)] = np.moveaxis(part, 0, axis)
            begin += value.size


def _at(axis: int, index: slice | NDArray[np.int64]) -> tuple[slice | NDArray[np.int64], ...]:
    return (slice(None),) * axis + (index,)


class _Index(dict[bytes, int]):
    """Stream -> slot of one partition; a new stream gets a slot on first look-up."""

    __slots__ = ("_allocate",)

    def __init__(self, table: StreamTable) -> None:
        super().__init__()
        self._allocate = table._allocate

    def __missing__(self, key: bytes) -> int:
        slot = self._allocate(key)
        self[key] = slot
        return slot


class StreamTable:
    """Slots of all streams of this process. Invariant 7: slots used + free = capacity, none of a revoked partition remains."""

    def __init__(self, arenas: Sequence[Arena], capacity: int, chunk: int = 4096) -> None:
        if capacity < 1:
            raise ConfigurationError("state.max_bytes is too small for the state of one stream: raise it")
        self.capacity = capacity
        self._arenas = list(arenas)
        self._chunk = chunk
        self._ready = 0
        self._free: list[int] = []
        self._fresh: list[int] = []
        self._indexes: dict[int, _Index] = {}
        self._keys: list[bytes | None] = []
        self.last_ms = np.zeros(capacity, np.int64)
        """[S] event time of the stream's last event."""
        self.used_at = np.zeros(capacity, np.int64)
        """[S] number of the epoch that last used the slot: what least recently used means."""

    @property
    def used(self) -> int:
        return len(self._keys) - len(self._free)

    @property
    def free(self) -> int:
        return self.capacity - self.used

    @property
    def partitions(self) -> Iterable[int]:
        return self._indexes.keys()

    def open(self, partition: int) -> None:
        self._indexes[partition] = _Index(self)

    def drop(self, partition: int) -> None:
        index = self._indexes.pop(partition, None)
        if index:
            self._release(list(index.values()))

    def count(self, partition: int) -> int:
        return len(self._indexes[partition])

    def slots(self, partition: int, keys: Sequence[bytes]) -> I64:
        """[N] slots of ``keys``; streams seen for the first time start from the initial state."""
        slots = np.fromiter(map(self._indexes[partition].__getitem__, keys), np.int64, len(keys))
        if self._fresh:
            fresh = np.array(self._fresh, np.int64)
            self._fresh.clear()
            for arena in self._arenas:
                arena.reset(fresh)
                arena.through[fresh] = -1
                arena.changed[fresh] = False
            self.last_ms[fresh] = 0
        return slots

    def find(self, partition: int, key: bytes) -> int | None:
        """The slot of a stream, or None: never allocates."""
        index = self._indexes.get(partition)
        return None if index is None else index.get(key)

    def streams(self, partition: int) -> Iterable[bytes]:
        return self._indexes[partition].keys()

    def slots_of(self, partition: int) -> I64:
        index = self._indexes[partition]
        return np.fromiter(index.values(), np.int64, len(index))

    def key(self, slot: int) -> bytes:
        key = self._keys[slot]
        assert key is not None, f"slot {slot} is free"
        return key

    def keys(self, slots: I64) -> list[bytes]:
        return [self.key(slot) for slot in slots.tolist()]

    def forget(self, partition: int, slots: I64) -> None:
        index = self._indexes[partition]
        for key in self.keys(slots):
            del index[key]
        self._release(slots.tolist())

    def _allocate(self, key: bytes) -> int:
        if self._free:
            slot = self._free.pop()
            self._keys[slot] = key
        else:
            slot = len(self._keys)
            if slot >= self.capacity:
                raise MemoryError(f"all {self.capacity} slots are used")
            if slot >= self._ready:
                end = min(self._ready + self._chunk, self.capacity)
                for arena in self._arenas:
                    arena.touch(self._ready, end)
                self._ready = end
            self._keys.append(key)
        self._fresh.append(slot)
        return slot

    def _release(self, slots: list[int]) -> None:
        for slot in slots:
            self._keys[slot] = None
        self._free.extend(slots)
        released = np.array(slots, np.int64)
        for arena in self._arenas:
            arena.changed[released] = False
