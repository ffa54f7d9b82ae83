"""The open windows of one partition, with what a replay needs to rebuild them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from streamer.core import ClosedWindow, EventBatch, Headers
from streamer.engine.tally import Tally
from streamer.records.changelog import NO_WATERMARK
from streamer.windows import Added, EachRecord, Traces, Windows


@dataclass(slots=True)
class Closing:
    """A window that closed and waits for its prediction."""

    window: ClosedWindow
    timestamp_ms: int
    """Timestamp of the record that closed it; of an idle advance: the last record's and the time that passed. Never the
    window's own end, which may lie further ahead than a broker accepts."""
    headers: Headers
    """The trace of its last event in the log, which the prediction names as its source."""

    @property
    def source(self) -> int:
        return int(self.window.offsets.max())


class OpenWindows:
    """Windows of one partition. ``through`` and ``idle`` are what a replay could not know by itself."""

    def __init__(
        self, windows: Windows | EachRecord, through: dict[bytes, int], idle: Sequence[tuple[int, int]], since: int = 0
    ) -> None:
        self.windows = windows
        self.since = since
        """Where the model's present regime began: events below are in no window of its own."""
        self.through = through
        """Streams with windows closed by arrival or a bound: stream -> through, until the replay point passes it."""
        self.fresh_through: dict[bytes, int] = {}
        """Those of the open epoch"""
        self.idle = list(idle)
        """Idle advances that closed a window: (before offset, watermark). One per offset, the largest."""
        self.fresh_idle: dict[int, int] = {}
        self._traces = Traces()
        self._data_watermark: int | None = None
        """Where the last event left the watermark: idle advances count from there."""
        self._last_stamp_ms = 0

    def take(self, batch: EventBatch, live_from: int, tally: Tally) -> tuple[list[Closing], list[int]]:
        """Assigns rows to windows; in replay in pieces, cut where the watermark once moved by idleness and at go-live.

        Returns what closed, and the rows that came too late, once per window that they missed."""
        windows, first = self.windows, 0
        self._traces.note(batch.offsets, batch.headers)
        if windows.replaying:
            first = int(np.searchsorted(batch.offsets, self.since))
        while windows.replaying:
            reached = int(batch.offsets[first]) if first < len(batch) else batch.next_offset
            self._repeat_idle(reached, live_from)
            if first == len(batch) or not windows.replaying:
                break
            ends = [before for before, _ in self.idle if before > reached]
            last = int(np.searchsorted(batch.offsets, min([*ends, live_from])))
            windows.add(batch, first, last, self.through)
            first = last
        closed: list[Closing] = []
        late: list[int] = []
        if first < len(batch):
            added = windows.add(batch, first)
            rows = np.searchsorted(batch.offsets, np.array(added.closed_at, np.int64)).tolist()
            closed = self._closings(added, [batch.timestamps_ms[row] for row in rows], tally)
            late = added.late
            self.fresh_through.update(added.closed_through)
        self._traces.bound()
        if len(batch):
            self._last_stamp_ms = batch.timestamps_ms[-1]
        if windows.watermark != NO_WATERMARK:
            self._data_watermark = windows.watermark
        return closed, late

    def _repeat_idle(self, reached: int, live_from: int) -> None:
        """Idle advances that were decided before ``reached``; then, at the end of the replay, life is normal."""
        for before, watermark in self.idle:
            if before <= reached:
                self.windows.advance(watermark)
        if reached >= live_from:
            self.windows.replaying = False

    def advance(self, elapsed_ms: int, next_offset: int, tally: Tally) -> list[Closing]:
        """What ``elapsed_ms`` without a record closes. The watermark moves only when it closes a window, from where the
        last event left it."""
        if self._data_watermark is None:
            return []
        watermark = self._data_watermark + elapsed_ms
        due = self.windows.next_close_ms()
        if due is None or due > watermark:
            return []
        added = self.windows.advance(watermark)
        if self.idle and self.idle[-1][0] == next_offset:
            self.idle.pop()
        self.idle.append((next_offset, self.windows.watermark))
        self.fresh_idle[next_offset] = self.windows.watermark
        self.fresh_through.update(added.closed_through)
        stamp = self._last_stamp_ms + elapsed_ms
        return self._closings(added, [stamp] * len(added.closed), tally)

    def _closings(self, added: Added, stamps_ms: Sequence[int], tally: Tally) -> list[Closing]:
        for window in added.closed:
            tally.closed[window.reason] += 1
        tally.short += len(added.short)
        tally.trimmed += added.trimmed
        traces = self._traces
        closings = [
            Closing(window, stamp, traces.of(int(window.offsets.max())) if traces else ())
            for window, stamp in zip(added.closed, stamps_ms, strict=True)
        ]
        oldest = self.windows.oldest()
        traces.drop_before(oldest[0] if oldest else None)
        return closings
