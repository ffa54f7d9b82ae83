"""Which stream has which slot. ``Slots`` are those of the process, ``Streams`` those of one partition."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from streamer.core import I64
from streamer.errors import ConfigurationError
from streamer.state.arena import Arena

STREAM_OVERHEAD_BYTES = 200
"""Memory per stream beside its raw state and its key."""


class Slots:
    """Slots of all arenas of a process. Invariant 7: used + free = capacity."""

    def __init__(self, arenas: Sequence[Arena], capacity: int, chunk: int = 4096) -> None:
        if capacity < 1:
            raise ConfigurationError("state.max_bytes is too small for the state of one stream: raise it")
        self.capacity = capacity
        self.arenas = list(arenas)
        self.bytes_per_stream = sum(arena.bytes_per_stream for arena in arenas) + STREAM_OVERHEAD_BYTES
        self.key_bytes = 0
        self.used_at = np.zeros(capacity, np.int64)
        """[S] clock reading in ms when the slot was last used: what least recently used means."""
        self._chunk = chunk
        self._ready = 0
        self._free: list[int] = []
        self._keys: list[bytes | None] = []

    @property
    def used(self) -> int:
        return len(self._keys) - len(self._free)

    @property
    def free(self) -> int:
        return self.capacity - self.used

    @property
    def used_bytes(self) -> int:
        """States, keys, and what a stream costs beside them."""
        return self.used * self.bytes_per_stream + self.key_bytes

    def key(self, slot: int) -> bytes:
        key = self._keys[slot]
        assert key is not None, f"slot {slot} is free"
        return key

    def keys(self, slots: I64) -> list[bytes]:
        return [self.key(slot) for slot in slots.tolist()]

    def allocate(self, key: bytes) -> int:
        """A slot for ``key``. The caller has made room: none is left only by mistake."""
        self.key_bytes += len(key)
        if self._free:
            slot = self._free.pop()
            self._keys[slot] = key
            return slot
        slot = len(self._keys)
        assert slot < self.capacity, f"all {self.capacity} slots are used"
        if slot >= self._ready:
            end = min(self._ready + self._chunk, self.capacity)
            for arena in self.arenas:
                arena.touch(self._ready, end)
            self._ready = end
        self._keys.append(key)
        return slot

    def release(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self.key_bytes -= len(self.key(slot))
            self._keys[slot] = None
        self._free.extend(slots)
        released = np.array(slots, np.int64)
        for arena in self.arenas:
            arena.changed[released] = False


class Streams:
    """Streams of one partition: which slot each has."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._index = _Index(slots)

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: bytes) -> bool:
        return key in self._index

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._index)

    def find(self, key: bytes) -> int | None:
        """The slot of a stream, or None: never allocates."""
        return self._index.get(key)

    def new_among(self, keys: Iterable[bytes]) -> set[bytes]:
        return set(keys).difference(self._index)

    def of(self, keys: Sequence[bytes]) -> I64:
        """[N] slots of ``keys``; a stream that is seen for the first time begins with the initial state."""
        slots = np.fromiter(map(self._index.__getitem__, keys), np.int64, len(keys))
        if self._index.fresh:
            fresh = np.array(self._index.fresh, np.int64)
            self._index.fresh.clear()
            for arena in self._slots.arenas:
                arena.renew(fresh)
        return slots

    def every(self) -> I64:
        """[N] all slots."""
        return np.fromiter(self._index.values(), np.int64, len(self._index))

    def release(self, keys: Iterable[bytes]) -> None:
        self._slots.release([self._index.pop(key) for key in keys])

    def release_all(self) -> None:
        self._slots.release(list(self._index.values()))
        self._index.clear()


class _Index(dict[bytes, int]):
    """Stream -> slot; a new stream gets a slot on first look-up."""

    __slots__ = ("_allocate", "fresh")

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self._allocate = slots.allocate
        self.fresh: list[int] = []

    def __missing__(self, key: bytes) -> int:
        slot = self[key] = self._allocate(key)
        self.fresh.append(slot)
        return slot
