"""Memory of the events in open windows."""

from __future__ import annotations

from array import array

import numpy as np

from streamer.core import I64, X

BLOCK_ROWS = 1_024
"""Rows that are put at a time, so that few slots are taken before they are needed; the least growth."""


class Events:
    """Buffered events in columns of C slots, chained per window: F numbers + 20 bytes each. Free slots are a chain too.

    One array per column, grown in place: a copy per window would cost an object header and a growth reserve for each,
    and a view into a fetched batch would keep the whole batch alive."""

    __slots__ = ("_free", "after", "offsets", "times_ms", "used", "x")

    def __init__(self, features: int, dtype: str = "float32") -> None:
        self.x: X = np.empty((0, features), dtype)
        self.offsets: I64 = np.empty(0, np.int64)
        self.times_ms: I64 = np.empty(0, np.int64)
        self.after = array("i")
        self._free = -1
        self.used = 0

    @property
    def capacity(self) -> int:
        return len(self.after)

    @property
    def nbytes(self) -> int:
        return self.x.nbytes + self.offsets.nbytes + self.times_ms.nbytes + self.after.itemsize * len(self.after)

    def put(self, x: X, offsets: I64, times_ms: I64) -> list[int]:
        """Copies rows into free slots, each a chain of its own."""
        count = len(offsets)
        if self.used + count > self.capacity:
            self._resize(self.used + count + max(self.used // 16, BLOCK_ROWS))
        slots, slot, after = [], self._free, self.after
        for _ in range(count):
            slots.append(slot)
            slot = after[slot]
        self._free = slot
        self.used += count
        index = np.array(slots, np.intp)
        self.x[index] = x
        self.offsets[index] = offsets
        self.times_ms[index] = times_ms
        return slots

    def rows(self, index: I64, offsets: I64, times_ms: I64) -> tuple[X, I64, I64]:
        """The steps of events, in order, with offset and time of each. ``offsets``, ``times_ms``: of the events."""
        return self.x[index], offsets, times_ms

    def chain(self, head: int, tail: int) -> list[int]:
        if head < 0:
            return []
        slots, after = [head], self.after
        while head != tail:
            head = after[head]
            slots.append(head)
        return slots

    def release(self, head: int, tail: int, count: int) -> None:
        if count:
            self.after[tail] = self._free
            self._free = head
            self.used -= count

    def pack(self, slots: list[int], capacity: int) -> None:
        """Moves ``slots`` to 0, 1, ... and gives the rest of the memory back; all other slots must be free."""
        index = np.array(slots, np.intp)
        assert len(slots) == self.used, "invariant 7: every slot is in a chain or free"
        self.x, self.offsets, self.times_ms = self.x[index], self.offsets[index], self.times_ms[index]
        self.after = array("i", range(1, len(slots) + 1))
        self._free = -1
        self._resize(capacity)

    def _resize(self, capacity: int) -> None:
        old = self.capacity
        # refcheck: no view of these arrays ever leaves this class, rows are copied in and out.
        self.x.resize((capacity, self.x.shape[1]), refcheck=False)
        self.offsets.resize(capacity, refcheck=False)
        self.times_ms.resize(capacity, refcheck=False)
        self.after.extend(range(old + 1, capacity + 1))
        if capacity > old:
            self.after[capacity - 1] = self._free
            self._free = old
