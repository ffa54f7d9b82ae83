"""Assigns the records of one partition to windows, in order, and closes the windows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter

from streamer.core import ClosedWindow, EventBatch, Op, X
from streamer.windows.events import BLOCK_ROWS, Events
from streamer.windows.rule import WindowRule
from streamer.windows.several import StepEvents, arrays
from streamer.windows.table import NEVER, WindowTable
from streamer.words import Closed

START = -(2**62)
"""The watermark before the first event."""


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
        self._events = StepEvents(features, dtype) if several else Events(features, dtype)
        self._table = WindowTable(rule, self._events, replaying=replaying)
        self._weight = 1  # steps of the event that is placed
        self._last_offset = -1
        self._full_count = rule.count if rule.kind == "count" else 0
        self._hop_ms = rule.hop_ms if rule.kind == "hopping" else rule.size_ms
        timed, endless = self._table.timed, self._table.endless
        self._place = self._place_timed if timed else self._place_single if endless else self._place_session
        self._closing: list[ClosedWindow] = []
        self._through: dict[bytes, int] = {}
        self._unused: list[int] = []

    @property
    def open_windows(self) -> int:
        return self._table.used

    @property
    def buffered_events(self) -> int:
        """An event in several hopping windows counts once."""
        return self._events.used

    @property
    def buffered_bytes(self) -> int:
        """Memory held for buffered events and the table of windows, without the stream ids."""
        return self._table.nbytes

    @property
    def replaying(self) -> bool:
        """Bounds (full, span, limit) do not act during replay: what they closed is known by ``through``."""
        return self._table.replaying

    @replaying.setter
    def replaying(self, value: bool) -> None:
        self._table.replaying = value
        self._table.rebuild()

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
        self._table.shrink()
        return added

    def advance(self, watermark: int) -> Added:
        """The partition is idle: closes what is due at ``watermark``. Moves the watermark only when that closes a
        window, except in replay: there the advance once closed one, of which perhaps nothing is replayed."""
        added = Added()
        if watermark <= self.watermark or not (self.replaying or self._table.is_due(watermark)):
            return added
        self.watermark = watermark
        self._close_due(self._last_offset)
        self._settle(self._last_offset, added)
        return added

    def next_close_ms(self) -> int | None:
        """The smallest watermark at which a window closes by time or span; None when none ever does."""
        return self._table.next_due_ms()

    def oldest(self) -> tuple[int, int] | None:
        """(offset, watermark just before it) of the oldest event in an open window: a replay has to begin there."""
        return self._table.oldest()

    # one record

    def _add_block(self, batch: EventBatch, first: int, last: int, through: Mapping[bytes, int], added: Added) -> None:
        offset_column, time_column = batch.offsets[first:last], batch.times_ms[first:last]
        assert offset_column[0] > self._last_offset, "offsets must grow"
        assert bool((offset_column[1:] > offset_column[:-1]).all()), "offsets must grow"
        events, table, place, disorder_ms = self._events, self._table, self._place, self.rule.disorder_ms
        max_open = NEVER if table.replaying else self.rule.max_open_windows
        x: X = batch.x[first:last]
        weights: list[int] | None = None
        if batch.steps is not None:
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
                    self._close_stream(stream, Closed.END, offset)
                    self._settle(offset, added)
                continue
            if skipped:
                self._unused.append(slot)
            elif late := place(stream, time_ms, offset, slot):
                added.late += [row] * late
            while table.used > max_open:
                self._close_stream(table.oldest_stream, Closed.LIMIT, offset)
            if time_ms - disorder_ms > self.watermark:  # noqa: PLR1730 - max() costs more than the whole comparison
                self.watermark = time_ms - disorder_ms
            if table.next_check <= self.watermark:
                self._close_due(offset)
            if self._closing:
                self._settle(offset, added)
        self._last_offset = int(offset_column[-1])
        for slot in self._unused:
            events.release(slot, slot, 1)
        self._unused.clear()

    def _place_session(self, stream: bytes, time_ms: int, offset: int, slot: int) -> int:
        table, gap_ms = self._table, self.rule.gap_ms
        window = table.open.get(stream, -1)
        first = second = -1  # an event reaches at most two sessions: others would have been merged before
        while window >= 0:
            if table.least[window] - gap_ms <= time_ms <= table.high[window]:
                first, second = window, first
            window = table.sibling[window]
        if second >= 0:
            if table.count[first] + table.count[second] >= self.rule.max_events and not table.replaying:
                # The merged window would be too long. The event itself is judged as if it came after the closing.
                self._close_stream(stream, Closed.FULL, offset - 1)
                first = -1
            else:
                first = table.merge(stream, first, second)
        if first < 0:
            if time_ms + gap_ms <= self.watermark:
                self._unused.append(slot)
                return 1
            first = table.new(stream, time_ms, time_ms + gap_ms, offset, self.watermark)
            table.sibling[first], table.open[stream] = table.open.get(stream, -1), first
        elif time_ms + gap_ms > table.high[first]:
            table.high[first] = time_ms + gap_ms
        table.append(first, time_ms, slot, self._weight)
        if table.count[first] >= self.rule.max_events and not table.replaying:
            self._close_stream(stream, Closed.FULL, offset)
        return 0

    def _place_single(self, stream: bytes, time_ms: int, offset: int, slot: int) -> int:
        """Count and end: one window per stream, nothing is late."""
        table = self._table
        window = table.open.get(stream, -1)
        if window < 0:
            window = table.open[stream] = table.new(stream, time_ms, time_ms, offset, self.watermark)
        elif time_ms > table.high[window]:
            table.high[window] = time_ms
        table.append(window, time_ms, slot, self._weight)
        if 0 < self._full_count <= table.count[window]:
            self._close_stream(stream, Closed.COUNT, offset)
        elif table.count[window] >= self.rule.max_events and not table.replaying:
            self._close_stream(stream, Closed.FULL, offset)
        return 0

    def _place_timed(self, stream: bytes, time_ms: int, offset: int, slot: int) -> int:
        """Tumbling and hopping: the event's windows from the last to the first, as they are linked."""
        table, hop_ms, max_events = self._table, self._hop_ms, self.rule.max_events
        end = time_ms - time_ms % hop_ms + self.rule.size_ms
        if end <= self.watermark:
            self._unused.append(slot)
            return (end - time_ms - 1) // hop_ms + 1
        before, window, full, late = -1, table.open.get(stream, -1), False, 0
        while end > time_ms:
            if end <= self.watermark:
                late = (end - time_ms - 1) // hop_ms + 1
                break
            while window >= 0 and table.high[window] > end:
                before, window = window, table.sibling[window]
            if window < 0 or table.high[window] != end:
                after, window = window, table.new(stream, time_ms, end, offset, self.watermark)
                table.sibling[window] = after
                if before < 0:
                    table.open[stream] = window
                else:
                    table.sibling[before] = window
            table.append(window, time_ms, slot, self._weight)
            slot = -1  # its place is the chain of the last of its windows, which closes last
            full = full or table.count[window] >= max_events
            end -= hop_ms
        if full and not table.replaying:
            self._close_stream(stream, Closed.FULL, offset)
        return late

    # closing

    def _close_due(self, offset: int) -> None:
        """Closes by time what is due, then by span all windows of streams where one is too long."""
        table, by_time, by_span = self._table, list[int](), list[int]()
        for window in table.pop_due(self.watermark):
            timely = not table.endless and table.high[window] <= self.watermark
            (by_time if timely else by_span).append(window)
        by_time.sort(key=table.high.__getitem__)  # a hopping window's events may be stored with a later one
        streams = dict.fromkeys(table.streams[window] for window in by_span)
        for window in by_time:
            closed, stored = table.built(window, Closed.TIME)
            self._closing.append(closed)
            table.unlink(closed.stream, window)
            table.remove(window, stored)
        for stream in streams:
            self._close_stream(stream, Closed.SPAN, offset)

    def _close_stream(self, stream: bytes, reason: Closed, through: int) -> None:
        """Closes every window of a stream, if there is one."""
        table = self._table
        windows = table.of(stream)
        if not windows:
            return
        built = [table.built(window, reason) for window in windows]
        del table.open[stream]
        for window, (closed, stored) in zip(windows, built, strict=True):
            self._closing.append(closed)
            table.remove(window, stored)
        self._through[stream] = through

    def _settle(self, offset: int, added: Added) -> None:
        """What one record, or one idle advance, closed."""
        self._closing.sort(key=attrgetter("end_ms", "start_ms", "stream", "part"))
        for window in self._closing:
            settled(added, window, offset, self.rule.min_events, self._length_multiple)
        added.closed_through.update(self._through)
        self._closing.clear()
        self._through.clear()
