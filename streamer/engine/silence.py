"""Utterances of streams that went silent, in one partition: its clock ends them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from streamer.core import EmittedAnswers
from streamer.emission.eventclock import EventClock
from streamer.engine.emitting import Gathered
from streamer.engine.lane import StepLane
from streamer.engine.truth import LaneTruth
from streamer.state.table import Slots, Streams


class Silence:
    """Looks at all streams of the partition, but only when the clock has passed what the look before it found."""

    def __init__(self, number: int, clock: EventClock, lanes: Sequence[tuple[StepLane, LaneTruth]]) -> None:
        """``lanes``: of all step models"""
        self.clock = clock
        self._number = number
        self._lanes = [(lane, truth) for lane, truth in lanes if lane.emitting is not None]

    def end(self, streams: Streams, slots: Slots, live_from: int) -> list[EmittedAnswers]:
        """What the clock ended with the last fetch. What it ended before ``live_from`` was told before."""
        return self._end(streams, slots, live_from, self.clock.value_ms)

    def idle(self, streams: Streams, slots: Slots, elapsed_ms: int, next_offset: int) -> list[EmittedAnswers]:
        """What ``elapsed_ms`` without a record end. The clock moves only if they end something; transcripts then have the
        timestamps of their last events and the time that passed."""
        value_ms = self.clock.idle_at(elapsed_ms)
        if value_ms is None:
            return []
        found = self._end(streams, slots, next_offset, value_ms, (next_offset, elapsed_ms))
        if found:
            self.clock.advance(value_ms, next_offset)
        return found

    def _end(
        self, streams: Streams, slots: Slots, live_from: int, value_ms: int, idle: tuple[int, int] | None = None
    ) -> list[EmittedAnswers]:
        found = []
        for lane, truth in self._lanes:
            if lane.emitting is None or value_ms <= truth.quiet_ms:
                continue
            over, truth.quiet_ms = lane.emitting.silent(streams.every(), value_ms)
            gathered = Gathered(self._number, lane.name, live_from)
            for slot, final in over:
                ended = final.ended
                assert ended is not None
                assert ended.limit_ms is not None
                if idle is None:
                    at, stamp_ms = self.clock.passed(ended.limit_ms)
                else:
                    at, stamp_ms = idle[0], ended.stamp_ms + idle[1]
                gathered.add(at, slots.key(slot), stamp_ms, ended.last, final.symbols(ended))
            emptied = np.array([slot for slot, _ in over], np.int64)
            lane.arena.reset(emptied)
            lane.arena.changed[emptied] = True
            if len(gathered.answers):
                found.append(gathered.answers)
        return found
