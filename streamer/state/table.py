"""Which stream has which slot, in all arenas of this process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from streamer.core import I64
from streamer.errors import ConfigurationError
from streamer.state.arena import Arena


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
