"""Every record is a window: it is closed by its own arrival, so nothing is ever open.

Therefore a replay has nothing to rebuild, and no stream needs a ``through``: what lies below the position was published,
what lies above is judged anew, each record by itself. The watermark moves as it does for other kinds; nothing is late.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from streamer.core import ClosedWindow, EventBatch, Op
from streamer.windows.assign import START, Added, settled
from streamer.windows.rule import WindowRule
from streamer.words import Closed


class EachRecord:
    """Called as ``Windows`` is."""

    open_windows = 0
    buffered_events = 0
    buffered_bytes = 0

    def __init__(
        self, rule: WindowRule, *, length_multiple: int = 1, watermark: int = START, replaying: bool = False
    ) -> None:
        """``length_multiple``: of models that take only such lengths; the first steps beyond a multiple are left out."""
        self.rule, self.watermark, self.replaying = rule, watermark, replaying
        self._length_multiple = length_multiple

    def add(
        self, batch: EventBatch, first: int = 0, last: int | None = None, through: Mapping[bytes, int] | None = None
    ) -> Added:
        """A window for each event among the rows [first, last); in a replay they were published before."""
        last = len(batch) if last is None else last
        added = Added()
        events = np.arange(first, last)
        if batch.ops is not None:
            events = events[batch.ops[first:last] == Op.EVENT]
        if len(events):
            self.watermark = max(self.watermark, int(batch.times_ms[events].max()) - self.rule.disorder_ms)
        if self.replaying:
            return added
        ends = np.arange(1, len(batch) + 1) if batch.steps is None else np.cumsum(batch.steps)
        for row in events.tolist():
            count = 1 if batch.steps is None else int(batch.steps[row])
            time_ms, offset = int(batch.times_ms[row]), int(batch.offsets[row])
            x = batch.x[ends[row] - count : ends[row]]
            where, when = np.full(count, offset, np.int64), np.full(count, time_ms, np.int64)
            window = ClosedWindow(batch.keys[row], time_ms, time_ms, Closed.RECORD, offset, x, where, when)
            settled(added, window, offset, self.rule.min_events, self._length_multiple)
        return added

    def advance(self, watermark: int) -> Added:
        """No record came: nothing is open that could close."""
        return Added()

    def next_close_ms(self) -> int | None:
        return None

    def oldest(self) -> tuple[int, int] | None:
        return None
