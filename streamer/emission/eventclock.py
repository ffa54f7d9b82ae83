"""The clock of a partition: its largest event time, and what idle time added to it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from streamer.core import I64, EventBatch, Op

NO_TIME_MS = -(2**62)
"""Before the first event."""


class EventClock:
    """Moves with every event in log order and never goes back, so a replay that begins with its value there repeats it.

    Idle advances are what a replay could not know by itself: they are kept, as (before offset, value)."""

    def __init__(self, value_ms: int, idle: Iterable[tuple[int, int]] = ()) -> None:
        self.value_ms = value_ms
        self.idle = sorted(idle)
        """Idle advances that ended an utterance, until no replay needs them"""
        self.fresh: dict[int, int] = {}
        """Those of the open epoch"""
        self._coming = list(self.idle)
        """Those that a replay has not met yet"""
        self._event_ms = value_ms
        """Where the last event left it: idle advances count from there"""
        self._begin_ms = value_ms
        self._records = self._values = self._offsets = self._stamps = self._rows = np.empty(0, np.int64)

    def take(self, batch: EventBatch) -> None:
        """A fetch, with the idle advances that a replay meets in it."""
        times = batch.times_ms if batch.ops is None else np.where(batch.ops == Op.EVENT, batch.times_ms, NO_TIME_MS)
        offsets, stamps = batch.offsets, np.array(batch.timestamps_ms, np.int64)
        rows = np.arange(len(offsets))
        while self._coming and self._coming[0][0] <= batch.next_offset:
            before, value_ms = self._coming.pop(0)
            at = int(np.searchsorted(offsets, before))
            times, offsets = np.insert(times, at, value_ms), np.insert(offsets, at, before - 1)
            stamps, rows = np.insert(stamps, at, 0), np.where(rows >= at, rows + 1, rows)
        self._begin_ms = self.value_ms
        self._values = np.maximum.accumulate(np.maximum(times, self.value_ms))
        self._records, self._offsets, self._stamps, self._rows = batch.offsets, offsets, stamps, rows
        if len(times):
            self.value_ms = self._event_ms = int(self._values[-1])

    def around(self, offsets: I64) -> tuple[I64, I64]:
        """The clock before and with the records of the last fetch at ``offsets``."""
        at = self._rows[np.searchsorted(self._records, offsets)]
        before = np.concatenate([np.array([self._begin_ms], np.int64), self._values])
        return before[at], self._values[at]

    def passed(self, limit_ms: int) -> tuple[int, int]:
        """(offset, timestamp) of the record of the last fetch with which the clock passed ``limit_ms``; before all of them:
        (-1, 0)."""
        if self._begin_ms > limit_ms or not len(self._values):
            return -1, 0
        at = min(int(np.searchsorted(self._values, limit_ms, side="right")), len(self._values) - 1)
        return int(self._offsets[at]), int(self._stamps[at])

    def idle_at(self, elapsed_ms: int) -> int | None:
        """What the clock would be ``elapsed_ms`` after the last event; None: there was none."""
        value_ms = self._event_ms + elapsed_ms
        return value_ms if self._event_ms != NO_TIME_MS and value_ms > self.value_ms else None

    def advance(self, value_ms: int, next_offset: int) -> None:
        """No record came for so long that an utterance ends."""
        self.value_ms = value_ms
        if self.idle and self.idle[-1][0] == next_offset:
            self.idle.pop()
        self.idle.append((next_offset, value_ms))
        self.fresh[next_offset] = value_ms

    def forget_idle(self) -> None:
        """Nothing is ever replayed."""
        self.idle.clear()
        self.fresh.clear()
