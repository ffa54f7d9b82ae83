"""The table of open windows of one partition: their events, their neighbours, and when each is due."""

from __future__ import annotations

from array import array
from heapq import heapify, heappop, heappush, heapreplace

import numpy as np
from numpy.typing import NDArray

from streamer.core import ClosedWindow
from streamer.windows.events import BLOCK_ROWS, Events
from streamer.windows.rule import WindowRule
from streamer.words import Closed

NEVER = 2**62
"""Due at no watermark."""
_SPARE_ROWS = 4_096  # rows of memory that are kept when nothing is buffered
_ID_BITS = 32
_ID_MASK = (1 << _ID_BITS) - 1


class WindowTable:
    """Windows by id, in columns: 72 bytes each; an object per window would take several hundred.

    It keeps what is open; which window an event belongs to and why one closes is decided by ``Windows``. Who closes
    windows builds them (``built``), takes them out of the lists of their streams, and removes them."""

    def __init__(self, rule: WindowRule, events: Events, *, replaying: bool) -> None:
        """``events``: where the events of the windows lie. ``replaying``: then only time makes a window due, no span."""
        self._rule, self.events, self.replaying = rule, events, replaying
        self.timed = rule.kind in ("tumbling", "hopping")
        self.endless = rule.kind in ("count", "end")
        self.used = 0
        """Open windows"""
        self.open: dict[bytes, int] = {}
        """Stream -> the first of its windows; ``sibling`` is the next"""
        self.streams: list[bytes] = []
        self.least = array("q")  # smallest event time
        self.high = array("q")  # end (tumbling, hopping), last + gap (session), last (count, end)
        self.first = array("q")  # offset of the first event
        self._mark = array("q")  # the watermark just before it
        self._check = array("q")  # when the window's valid entry in the heap is due
        self.count = array("i")
        self.head = array("i")  # chain of events; hopping: only those whose last window this is
        self.tail = array("i")
        self.sibling = array("i")  # next of the stream (tumbling, hopping: ends earlier), or next free id
        self._older = array("i")  # neighbours in order of the first event
        self._newer = array("i")
        self._free_id = self._oldest = self._newest = -1
        # (due << 32 | id), never later than the window closes: a session that grew is pushed again when it is popped.
        self._heap: list[int] = []
        self.next_check = NEVER
        """No window is due before this watermark"""

    @property
    def nbytes(self) -> int:
        """Memory held for buffered events and the table, without the stream ids."""
        return self.events.nbytes + 72 * len(self.streams) + 56 * len(self._heap)

    def oldest(self) -> tuple[int, int] | None:
        """(offset, watermark just before it) of the oldest event in an open window."""
        return None if self._oldest < 0 else (self.first[self._oldest], self._mark[self._oldest])

    @property
    def oldest_stream(self) -> bytes:
        """Stream of the window with the oldest event; some window must be open."""
        return self.streams[self._oldest]

    # windows

    def new(self, stream: bytes, least: int, high: int, offset: int, watermark: int) -> int:
        """A window without events, linked to nothing of its stream. ``offset``: of its first event, ``watermark`` just before."""
        window = self._free_id
        if window < 0:
            window = len(self.streams)
            self.streams.append(stream)
            for long in (self.least, self.high, self.first, self._mark, self._check):
                long.append(0)
            for short in (self.count, self.head, self.tail, self.sibling, self._older, self._newer):
                short.append(-1)
        else:
            self._free_id = self.sibling[window]
            self.streams[window] = stream
        self.least[window], self.high[window] = least, high
        self.first[window], self._mark[window] = offset, watermark
        self.count[window], self.head[window], self.tail[window], self.sibling[window] = 0, -1, -1, -1
        self._older[window], self._newer[window] = self._newest, -1
        if self._newest < 0:
            self._oldest = window
        else:
            self._newer[self._newest] = window
        self._newest = window
        self.used += 1
        self._check[window] = NEVER
        self.arm(window)
        return window

    def append(self, window: int, time_ms: int, slot: int, weight: int) -> None:
        """``slot`` -1: the event is stored with a later window of its stream. ``weight``: its steps."""
        self.count[window] += weight
        if slot >= 0:
            if self.head[window] < 0:
                self.head[window] = slot
            else:
                self.events.after[self.tail[window]] = slot
            self.tail[window] = slot
        if time_ms < self.least[window]:
            self.least[window] = time_ms
            self.arm(window)

    def merge(self, stream: bytes, one: int, other: int) -> int:
        """The window with the older first event stays, the other is added to it."""
        kept, gone = (one, other) if self.first[one] < self.first[other] else (other, one)
        self.events.after[self.tail[kept]] = self.head[gone]
        self.tail[kept] = self.tail[gone]
        self.count[kept] += self.count[gone]
        self.high[kept] = max(self.high[kept], self.high[gone])
        self.least[kept] = min(self.least[kept], self.least[gone])
        self.unlink(stream, gone)
        self.forget(gone)
        self.arm(kept)
        return kept

    def unlink(self, stream: bytes, window: int) -> None:
        """Takes a window from the list of its stream's windows."""
        following, before = self.sibling[window], self.open[stream]
        if before != window:
            while self.sibling[before] != window:
                before = self.sibling[before]
            self.sibling[before] = following
        elif following >= 0:
            self.open[stream] = following
        else:
            del self.open[stream]

    def forget(self, window: int) -> None:
        """Takes a window from the table. Its events were passed on or released, its stream's list does without it."""
        older, newer = self._older[window], self._newer[window]
        if older < 0:
            self._oldest = newer
        else:
            self._newer[older] = newer
        if newer < 0:
            self._newest = older
        else:
            self._older[newer] = older
        self._check[window] = NEVER
        self.streams[window] = b""
        self.sibling[window] = self._free_id
        self._free_id = window
        self.used -= 1

    def of(self, stream: bytes) -> list[int]:
        """The windows of a stream, as they are linked."""
        windows, window = list[int](), self.open.get(stream, -1)
        while window >= 0:
            windows.append(window)
            window = self.sibling[window]
        return windows

    # when each is due

    def due(self, window: int) -> int:
        """The watermark at which the window closes if nothing comes."""
        by_time = NEVER if self.endless else self.high[window]
        return by_time if self.replaying else min(by_time, self.least[window] + self._rule.max_span_ms)

    def arm(self, window: int) -> None:
        """The window is due earlier than was known, perhaps."""
        due = self.due(window)
        if due >= self._check[window]:
            return
        self._check[window] = due
        heappush(self._heap, (due << _ID_BITS) | window)
        self.next_check = min(self.next_check, due)
        if len(self._heap) > 2 * self.used + BLOCK_ROWS:
            self.rebuild()

    def rebuild(self) -> None:
        """Drops entries of windows that closed otherwise, which would stay until they are due."""
        self._heap.clear()
        window = self._oldest
        while window >= 0:
            due = self._check[window] = self.due(window)
            if due < NEVER:
                self._heap.append((due << _ID_BITS) | window)
            window = self._newer[window]
        heapify(self._heap)
        self.next_check = self._heap[0] >> _ID_BITS if self._heap else NEVER

    def next_due_ms(self) -> int | None:
        """The smallest watermark at which a window closes by time or span; None when none ever does."""
        while self._heap:
            due, window = self._heap[0] >> _ID_BITS, self._heap[0] & _ID_MASK
            if self._check[window] != due:
                heappop(self._heap)
                continue
            actual = self.due(window)
            if actual == due:
                return due
            self._check[window] = actual
            heapreplace(self._heap, (actual << _ID_BITS) | window)
        return None

    def is_due(self, watermark: int) -> bool:
        """Whether a window closes at ``watermark``."""
        due = self.next_due_ms()
        return due is not None and due <= watermark

    def pop_due(self, watermark: int) -> list[int]:
        """Takes the windows that are due out of the heap; they stay in the table until ``remove``."""
        found: list[int] = []
        while (due := self.next_due_ms()) is not None and due <= watermark:
            window = heappop(self._heap) & _ID_MASK
            self._check[window] = NEVER
            found.append(window)
        self.next_check = NEVER if due is None else due
        return found

    # what closes

    def built(self, window: int, reason: Closed) -> tuple[ClosedWindow, int]:
        """A copy of the window's events, in order, and how many of them are stored with it. It is still in the list of its
        stream, and so are the later ones that may store events of it: who closes several builds all, then removes."""
        events, stream, high = self.events, self.streams[window], self.high[window]
        slots = events.chain(self.head[window], self.tail[window])
        stored = len(slots)
        if self._rule.kind == "hopping":
            later = self.open[stream]
            while later != window:
                if self.high[later] - self._rule.size_ms < high:
                    slots += events.chain(self.head[later], self.tail[later])
                later = self.sibling[later]
        index: NDArray[np.intp] = np.array(slots, np.intp)
        times_ms = events.times_ms[index]
        if stored < len(slots):
            inside = times_ms < high
            index, times_ms = index[inside], times_ms[inside]
        offsets = events.offsets[index]
        if bool((times_ms[1:] <= times_ms[:-1]).any()):
            order = np.lexsort((offsets, times_ms))
            index, times_ms, offsets = index[order], times_ms[order], offsets[order]
        start = high - self._rule.size_ms if self.timed else self.least[window]
        x, offsets, times_ms = events.rows(index, offsets, times_ms)
        assert len(x) == self.count[window], "invariant 6: every event is in its windows"
        first, mark = self.first[window], self._mark[window]
        return ClosedWindow(stream, start, high, reason, first, x, offsets, times_ms, mark), stored

    def remove(self, window: int, stored: int) -> None:
        """Releases the events of a window that is in no list of its stream any more. ``stored``: as ``built`` said."""
        self.events.release(self.head[window], self.tail[window], stored)
        self.forget(window)

    def shrink(self) -> None:
        """After a burst: packs the buffered events, and gives the rest of their memory back."""
        if self.events.capacity <= 4 * max(self.events.used, _SPARE_ROWS):
            return
        slots: list[int] = []
        window = self._oldest
        while window >= 0:
            chain = self.events.chain(self.head[window], self.tail[window])
            if chain:
                self.head[window], self.tail[window] = len(slots), len(slots) + len(chain) - 1
                slots += chain
            window = self._newer[window]
        self.events.pack(slots, len(slots) + max(len(slots) // 16, BLOCK_ROWS))
