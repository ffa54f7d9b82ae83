"""Assigns the records of one partition to windows, in order, and closes the windows."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace

import numpy as np
from numpy.typing import NDArray

from streamer.core import ClosedWindow, EventBatch, Op
from streamer.windows.events import BLOCK_ROWS, Events
from streamer.windows.rule import WindowRule
from streamer.windows.several import StepEvents, arrays
from streamer.words import Closed

START = -(2**62)
"""The watermark before the first event."""

_NEVER = 2**62
_SPARE_ROWS = 4_096  # rows of memory that are kept when nothing is buffered
_ID_BITS = 32
_ID_MASK = (1 << _ID_BITS) - 1


@dataclass(slots=True)
class Added:
    """What some records, or an idle advance, brought about. During replay all of it was published before.

    Windows closed by one record are in order of (end, start, stream, part), so the windows of a stream that time
    closes come in order of their ends. ``part``: see ``Windows``."""

    closed: list[ClosedWindow] = field(default_factory=list)
    closed_at: list[int] = field(default_factory=list)
    """Offset of the record at which each of ``closed`` closed."""
    short: list[ClosedWindow] = field(default_factory=list)
    """Closed, but with fewer than ``min_events`` events: no prediction is due."""
    late: list[int] = field(default_factory=list)
    """Row of the batch, once for every window that it came too late for (hopping: it may be in other windows)."""
    closed_through: dict[bytes, int] = field(default_factory=dict)
    """Stream -> offset, for windows closed by arrival or a bound: committed with them; see ``add``."""
    trimmed: int = 0
    """Events of ``closed`` that were left out for ``length_multiple``."""


def settled(added: Added, window: ClosedWindow, offset: int, min_events: int, length_multiple: int) -> None:
    """A window that the record at ``offset`` closed: too short, or due for an answer, without what is beyond a multiple."""
    beyond = len(window.x) % length_multiple
    if len(window.x) < min_events or beyond == len(window.x):
        added.short.append(window)
        return
    if beyond:
        added.trimmed += beyond
        window.x, window.offsets, window.times_ms = (
            window.x[beyond:],
            window.offsets[beyond:],
            window.times_ms[beyond:],
        )
    added.closed.append(window)
    added.closed_at.append(offset)


class Windows:
    """Open windows of one partition and one model.

    ``part`` of a closed window is the offset of its first event in the log. Windows of a stream with the same bounds
    have no event in common, so stream, bounds and part name a window, later parts are larger, and a crash does not
    change them: a running number would need a durable counter per stream for as long as its bounds could come again.

    A late event of a session is one that belongs to no open window and whose own window would be closed already."""

    def __init__(
        self,
        rule: WindowRule,
        features: int,
        *,
        dtype: str = "float32",
        several: bool = False,
        length_multiple: int = 1,
        watermark: int = START,
        replaying: bool = False,
    ) -> None:
        """``features``: F, values per step, of ``dtype``. ``several``: a record holds several steps, which stay
        together; all counts and bounds are of steps then. ``length_multiple``: of models that take only such lengths; the oldest
        events beyond a multiple are left out, and counted. ``watermark``: at the replay point."""
        if not 1 <= length_multiple <= rule.max_events:
            raise ValueError(f"length_multiple is {length_multiple}, must be 1 to max_events = {rule.max_events}")
        self.rule = rule
        self._length_multiple = length_multiple
        self.watermark = watermark
        self.open_windows = 0
        self._replaying = replaying
        self._events = StepEvents(features, dtype) if several else Events(features, dtype)
        self._weight = 1
        """Steps of the event that is placed"""
        self._last_offset = -1
        self._timed = rule.kind in ("tumbling", "hopping")
        self._endless = rule.kind in ("count", "end")
        self._full_count = rule.count if rule.kind == "count" else 0
        self._hop_ms = rule.hop_ms if rule.kind == "hopping" else rule.size_ms
        self._place = self._place_timed if self._timed else self._place_single if self._endless else self._place_session
        # The table of windows, by id. 72 bytes each; an object per window would take several hundred.
        self._streams: list[bytes] = []
        self._least = array("q")  # smallest event time
        self._high = array("q")  # end (tumbling, hopping), last + gap (session), last (count, end)
        self._first = array("q")  # offset of the first event
        self._mark = array("q")  # the watermark just before it
        self._check = array("q")  # when the window's valid entry in the heap is due
        self._count = array("i")
        self._head = array("i")  # chain of events; hopping: only those whose last window this is
        self._tail = array("i")
        self._sibling = array("i")  # next of the stream (tumbling, hopping: ends earlier), or next free id
        self._older = array("i")  # neighbours in order of the first event
        self._newer = array("i")
        self._open: dict[bytes, int] = {}
        self._free_id = self._oldest = self._newest = -1
        # (due << 32 | id), never later than the window closes: a session that grew is pushed again when it is popped.
        self._heap: list[int] = []
        self._next_check = _NEVER
        self._closing: list[ClosedWindow] = []
        self._through: dict[bytes, int] = {}
        self._unused: list[int] = []

    @property
    def buffered_events(self) -> int:
        """An event in several hopping windows counts once."""
        return self._events.used

    @property
    def buffered_bytes(self) -> int:
        """Memory held for buffered events and the table of windows, without the stream ids."""
        return self._events.nbytes + 72 * len(self._streams) + 56 * len(self._heap)

    @property
    def replaying(self) -> bool:
        """Bounds (full, span, limit) do not act during replay: what they closed is known by ``through``."""
        return self._replaying

    @replaying.setter
    def replaying(self, value: bool) -> None:
        self._replaying = value
        self._rebuild_heap()

    def add(
        self, batch: EventBatch, first: int = 0, last: int | None = None, through: Mapping[bytes, int] | None = None
    ) -> Added:
        """Takes rows [first, last) of ``batch`` in order; offsets must grow from call to call.

        ``through``: stream -> offset, up to which its windows are closed and committed. Such rows are skipped, yet an
        event among them moves the watermark."""
        last = len(batch) if last is None else last
        added = Added()
        for begin in range(first, last, BLOCK_ROWS):
            self._add_block(batch, begin, min(begin + BLOCK_ROWS, last), through or {}, added)
        if self._events.capacity > 4 * max(self._events.used, _SPARE_ROWS):
            self._shrink()
        return added

    def advance(self, watermark: int) -> Added:
        """The partition is idle: closes what is due at ``watermark``. Moves the watermark only when that closes a
        window, except in replay: there the advance once closed one, of which perhaps nothing is replayed."""
        added = Added()
        if watermark <= self.watermark:
            return added
        if not self._replaying:
            due = self.next_close_ms()
            if due is None or due > watermark:
                return added
        self.watermark = watermark
        self._close_due(self._last_offset)
        self._settle(self._last_offset, added)
        return added

    def next_close_ms(self) -> int | None:
        """The smallest watermark at which a window closes by time or span; None when none ever does."""
        while self._heap:
            due, window = self._heap[0] >> _ID_BITS, self._heap[0] & _ID_MASK
            if self._check[window] != due:
                heappop(self._heap)
                continue
            actual = self._due(window)
            if actual == due:
                return due
            self._check[window] = actual
            heapreplace(self._heap, (actual << _ID_BITS) | window)
        return None

    def oldest(self) -> tuple[int, int] | None:
        """(offset, watermark just before it) of the oldest event in an open window: a replay has to begin there."""
        return None if self._oldest < 0 else (self._first[self._oldest], self._mark[self._oldest])

    # one record

    def _add_block(self, batch: EventBatch, first: int, last: int, through: Mapping[bytes, int], added: Added) -> None:
        offset_column, time_column = batch.offsets[first:last], batch.times_ms[first:last]
        assert offset_column[0] > self._last_offset, "offsets must grow"
        assert bool((offset_column[1:] > offset_column[:-1]).all()), "offsets must grow"
        events, place, disorder_ms = self._events, self._place, self.rule.disorder_ms
        max_open = _NEVER if self._replaying else self.rule.max_open_windows
        weights: list[int] | None = None
        if batch.steps is None:
            slots = events.put(batch.x[first:last], offset_column, time_column)
        else:
            x, weights = arrays(batch, first, last)
            slots = events.put(x, offset_column, time_column)
        ops: Iterable[int] = bytes(last - first) if batch.ops is None else batch.ops[first:last].tolist()
        rows = zip(batch.keys[first:last], time_column.tolist(), offset_column.tolist(), slots, ops, strict=True)
        for row, (stream, time_ms, offset, slot, op) in enumerate(rows, first):
            skipped = through and through.get(stream, -1) >= offset
            if weights is not None:
                self._weight = weights[row - first]
            if op:
                self._unused.append(slot)
                if op == Op.END and not skipped:
                    self._close_stream(stream, "end", offset)
                    self._settle(offset, added)
                continue
            if skipped:
                self._unused.append(slot)
            elif late := place(stream, time_ms, offset, slot):
                added.late += [row] * late
            while self.open_windows > max_open:
                self._close_stream(self._streams[self._oldest], "limit", offset)
            if time_ms - disorder_ms > self.watermark:  # noqa: PLR1730 - max() costs more than the whole comparison
                self.watermark = time_ms - disorder_ms
            if self._next_check <= self.watermark:
                self._close_due(offset)
            if self._closing:
                self._settle(offset, added)
        self._last_offset = int(offset_column[-1])
        for slot in self._unused:
            events.release(slot, slot, 1)
        self._unused.clear()

    def _place_session(self, stream: bytes, time_ms: int, offset: int, slot: int) -> int:
        gap_ms = self.rule.gap_ms
        window = self._open.get(stream, -1)
        first = second = -1  # an event reaches at most two sessions: others would have been merged before
        while window >= 0:
            if self._least[window] - gap_ms <= time_ms <= self._high[window]:
                first, second = window, first
            window = self._sibling[window]
        if second >= 0:
            if self._count[first] + self._count[second] >= self.rule.max_events and not self._replaying:
                # The merged window would be too long. The event itself is judged as if it came after the closing.
                self._close_stream(stream, "full", offset - 1)
                first = -1
            else:
                first = self._merge(stream, first, second)
        if first < 0:
            if time_ms + gap_ms <= self.watermark:
                self._unused.append(slot)
                return 1
            first = self._new(stream, time_ms, time_ms + gap_ms, offset)
            self._sibling[first] = self._open.get(stream, -1)
            self._open[stream] = first
        elif time_ms + gap_ms > self._high[first]:
            self._high[first] = time_ms + gap_ms
        self._append(first, time_ms, slot)
        if self._count[first] >= self.rule.max_events and not self._replaying:
            self._close_stream(stream, "full", offset)
        return 0

    def _place_single(self, stream: bytes, time_ms: int, offset: int, slot: int) -> int:
        """Count and end: one window per stream, nothing is late."""
        window = self._open.get(stream, -1)
        if window < 0:
            window = self._open[stream] = self._new(stream, time_ms, time_ms, offset)
        elif time_ms > self._high[window]:
            self._high[window] = time_ms
        self._append(window, time_ms, slot)
        if 0 < self._full_count <= self._count[window]:
            self._close_stream(stream, "count", offset)
        elif self._count[window] >= self.rule.max_events and not self._replaying:
            self._close_stream(stream, "full", offset)
        return 0

    def _place_timed(self, stream: bytes, time_ms: int, offset: int, slot: int) -> int:
        """Tumbling and hopping: the event's windows from the last to the first, as they are linked."""
        hop_ms, max_events = self._hop_ms, self.rule.max_events
        end = time_ms - time_ms % hop_ms + self.rule.size_ms
        if end <= self.watermark:
            self._unused.append(slot)
            return (end - time_ms - 1) // hop_ms + 1
        before, window, full, late = -1, self._open.get(stream, -1), False, 0
        while end > time_ms:
            if end <= self.watermark:
                late = (end - time_ms - 1) // hop_ms + 1
                break
            while window >= 0 and self._high[window] > end:
                before, window = window, self._sibling[window]
            if window < 0 or self._high[window] != end:
                after, window = window, self._new(stream, time_ms, end, offset)
                self._sibling[window] = after
                if before < 0:
                    self._open[stream] = window
                else:
                    self._sibling[before] = window
            self._append(window, time_ms, slot)
            slot = -1  # its place is the chain of the last of its windows, which closes last
            full = full or self._count[window] >= max_events
            end -= hop_ms
        if full and not self._replaying:
            self._close_stream(stream, "full", offset)
        return late

    # the table of windows

    def _new(self, stream: bytes, least: int, high: int, offset: int) -> int:
        window = self._free_id
        if window < 0:
            window = len(self._streams)
            self._streams.append(stream)
            for long in (self._least, self._high, self._first, self._mark, self._check):
                long.append(0)
            for short in (self._count, self._head, self._tail, self._sibling, self._older, self._newer):
                short.append(-1)
        else:
            self._free_id = self._sibling[window]
            self._streams[window] = stream
        self._least[window], self._high[window] = least, high
        self._first[window], self._mark[window] = offset, self.watermark
        self._count[window], self._head[window], self._tail[window], self._sibling[window] = 0, -1, -1, -1
        self._older[window], self._newer[window] = self._newest, -1
        if self._newest < 0:
            self._oldest = window
        else:
            self._newer[self._newest] = window
        self._newest = window
        self.open_windows += 1
        self._check[window] = _NEVER
        self._arm(window)
        return window

    def _append(self, window: int, time_ms: int, slot: int) -> None:
        """``slot`` -1: the event is stored with a later window of its stream."""
        self._count[window] += self._weight
        if slot >= 0:
            if self._head[window] < 0:
                self._head[window] = slot
            else:
                self._events.after[self._tail[window]] = slot
            self._tail[window] = slot
        if time_ms < self._least[window]:
            self._least[window] = time_ms
            self._arm(window)

    def _merge(self, stream: bytes, one: int, other: int) -> int:
        """The window with the older first event stays, the other is added to it."""
        kept, gone = (one, other) if self._first[one] < self._first[other] else (other, one)
        self._events.after[self._tail[kept]] = self._head[gone]
        self._tail[kept] = self._tail[gone]
        self._count[kept] += self._count[gone]
        self._high[kept] = max(self._high[kept], self._high[gone])
        self._least[kept] = min(self._least[kept], self._least[gone])
        self._unlink(stream, gone)
        self._forget(gone)
        self._arm(kept)
        return kept

    def _unlink(self, stream: bytes, window: int) -> None:
        """Takes a window from the list of its stream's windows."""
        following, before = self._sibling[window], self._open[stream]
        if before != window:
            while self._sibling[before] != window:
                before = self._sibling[before]
            self._sibling[before] = following
        elif following >= 0:
            self._open[stream] = following
        else:
            del self._open[stream]

    def _forget(self, window: int) -> None:
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
        self._check[window] = _NEVER
        self._streams[window] = b""
        self._sibling[window] = self._free_id
        self._free_id = window
        self.open_windows -= 1

    # closing

    def _due(self, window: int) -> int:
        """The watermark at which the window closes if nothing comes."""
        by_time = _NEVER if self._endless else self._high[window]
        return by_time if self._replaying else min(by_time, self._least[window] + self.rule.max_span_ms)

    def _arm(self, window: int) -> None:
        due = self._due(window)
        if due >= self._check[window]:
            return
        self._check[window] = due
        heappush(self._heap, (due << _ID_BITS) | window)
        self._next_check = min(self._next_check, due)
        if len(self._heap) > 2 * self.open_windows + BLOCK_ROWS:
            self._rebuild_heap()

    def _rebuild_heap(self) -> None:
        """Drops entries of windows that closed otherwise, which would stay until they are due."""
        self._heap.clear()
        window = self._oldest
        while window >= 0:
            due = self._check[window] = self._due(window)
            if due < _NEVER:
                self._heap.append((due << _ID_BITS) | window)
            window = self._newer[window]
        heapify(self._heap)
        self._next_check = self._heap[0] >> _ID_BITS if self._heap else _NEVER

    def _close_due(self, offset: int) -> None:
        """Closes by time what is due, then by span all windows of streams where one is too long."""
        by_time: list[int] = []
        by_span: list[int] = []
        while (due := self.next_close_ms()) is not None and due <= self.watermark:
            window = heappop(self._heap) & _ID_MASK
            self._check[window] = _NEVER
            timely = not self._endless and self._high[window] <= self.watermark
            (by_time if timely else by_span).append(window)
        self._next_check = _NEVER if due is None else due
        by_time.sort(key=self._high.__getitem__)  # a hopping window's events may be stored with a later one
        streams = dict.fromkeys(self._streams[window] for window in by_span)
        for window in by_time:
            stream = self._streams[window]
            stored = self._build(window, "time")
            self._unlink(stream, window)
            self._events.release(self._head[window], self._tail[window], stored)
            self._forget(window)
        for stream in streams:
            self._close_stream(stream, "span", offset)

    def _close_stream(self, stream: bytes, reason: str, through: int) -> None:
        """Closes every window of a stream, if there is one."""
        window = self._open.pop(stream, -1)
        if window < 0:
            return
        windows = []
        while window >= 0:
            windows.append(window)
            window = self._sibling[window]
        self._open[stream] = windows[0]
        stored = [self._build(window, reason) for window in windows]
        del self._open[stream]
        for window, count in zip(windows, stored, strict=True):
            self._events.release(self._head[window], self._tail[window], count)
            self._forget(window)
        self._through[stream] = through

    def _build(self, window: int, reason: str) -> int:
        """Copies the window's events out, in order. Returns how many are stored with it."""
        events, stream, high = self._events, self._streams[window], self._high[window]
        slots = events.chain(self._head[window], self._tail[window])
        stored = len(slots)
        if self.rule.kind == "hopping":
            later = self._open[stream]
            while later != window:
                if self._high[later] - self.rule.size_ms < high:
                    slots += events.chain(self._head[later], self._tail[later])
                later = self._sibling[later]
        index: NDArray[np.intp] = np.array(slots, np.intp)
        times_ms = events.times_ms[index]
        if stored < len(slots):
            inside = times_ms < high
            index, times_ms = index[inside], times_ms[inside]
        offsets = events.offsets[index]
        if bool((times_ms[1:] <= times_ms[:-1]).any()):
            order = np.lexsort((offsets, times_ms))
            index, times_ms, offsets = index[order], times_ms[order], offsets[order]
        start = high - self.rule.size_ms if self._timed else self._least[window]
        x, offsets, times_ms = events.rows(index, offsets, times_ms)
        assert len(x) == self._count[window], "invariant 6: every event is in its windows"
        self._closing.append(
            ClosedWindow(
                stream,
                start,
                high,
                Closed(reason),
                self._first[window],
                x,
                offsets,
                times_ms,
                self._mark[window],
            )
        )
        return stored

    def _settle(self, offset: int, added: Added) -> None:
        """What one record, or one idle advance, closed."""
        self._closing.sort(key=lambda window: (window.end_ms, window.start_ms, window.stream, window.part))
        for window in self._closing:
            settled(added, window, offset, self.rule.min_events, self._length_multiple)
        added.closed_through.update(self._through)
        self._closing.clear()
        self._through.clear()

    def _shrink(self) -> None:
        """After a burst: packs the buffered events, and gives the rest of their memory back."""
        slots: list[int] = []
        window = self._oldest
        while window >= 0:
            chain = self._events.chain(self._head[window], self._tail[window])
            if chain:
                self._head[window], self._tail[window] = len(slots), len(slots) + len(chain) - 1
                slots += chain
            window = self._newer[window]
        self._events.pack(slots, len(slots) + max(len(slots) // 16, BLOCK_ROWS))
