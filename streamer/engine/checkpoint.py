"""Checkpoint rounds of one partition: which streams are still to be written, and where a replay has to begin.

A round lists the streams changed since their last record and writes them slice by slice; when the list is done the replay
point moves to where the round began. So a changed stream is written once per round, not once per commit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from streamer.core import I64
from streamer.emission.eventclock import NO_TIME_MS
from streamer.engine.lane import StepLane
from streamer.records.changelog import RECORD_OVERHEAD_BYTES, Kind, encode_stream, stream_key

ChangelogRecord = tuple[bytes, bytes | None]
"""Key and value; None: a tombstone"""


@dataclass(frozen=True, slots=True)
class ReplayPoint:
    """Where a replay begins, and the watermark there."""

    offset: int
    watermark: int
    clock_ms: int = NO_TIME_MS
    """The clock of utterances at the last complete round: every state reflects what it ended until there."""


@dataclass(slots=True)
class _Round:
    start: ReplayPoint
    pending: list[tuple[int, I64]]
    """(lane, slots) still to be written"""


class Checkpoint:
    """Invariant 4: the replay point only grows and is never beyond the position."""

    def __init__(self, begin: ReplayPoint) -> None:
        self.replay_point = begin
        self.complete = begin
        """Where the last complete round began: every state up to here is in the changelog."""
        self.round_bytes = 0
        """Of the current or last round, about: what its stream records take."""
        self._round: _Round | None = None
        self._began_ms: int | None = None

    @property
    def open(self) -> bool:
        return self._round is not None

    def due(self, next_offset: int, now_ms: int, interval_ms: int) -> bool:
        """Whether a round begins now. ``now_ms``: of a clock that never goes back."""
        waited = self._began_ms is None or now_ms - self._began_ms >= interval_ms
        return not self.open and waited and next_offset > self.complete.offset

    def begin(self, start: ReplayPoint, lanes: Sequence[StepLane], slots: I64, now_ms: int) -> None:
        assert self._round is None, "a round is open"
        changed = [slots[lane.arena.changed[slots]] for lane in lanes]
        self.round_bytes = sum(
            len(part) * (lane.arena.bytes_per_stream + RECORD_OVERHEAD_BYTES)
            for lane, part in zip(lanes, changed, strict=True)
        )
        self._round = _Round(start, [(number, part) for number, part in enumerate(changed) if len(part)])
        self._began_ms = now_ms

    def slice(
        self, lanes: Sequence[StepLane], mine: Callable[[I64], tuple[I64, list[bytes]]], budget_bytes: int
    ) -> tuple[list[ChangelogRecord], int]:
        """Stream records of an open round and their size, at least one per call so that a round always ends.

        ``mine``: of some slots those that are still of this partition, and their streams: a slot may have passed on since
        the round began."""
        records: list[ChangelogRecord] = []
        spent = 0
        if self._round is None:
            return records, spent
        pending = self._round.pending
        while pending and (spent < budget_bytes or not records):
            number, slots = pending.pop()
            lane = lanes[number]
            each = lane.arena.bytes_per_stream + RECORD_OVERHEAD_BYTES
            fit = max(int((budget_bytes - spent) // each), 1)
            if fit < len(slots):
                pending.append((number, slots[fit:]))
                slots = slots[:fit]
            chosen, streams = mine(slots[lane.arena.changed[slots]])
            records += _states(lane, chosen, streams)
            spent += len(chosen) * each
        if not pending:
            self.complete, self._round = self._round.start, None
        return records, spent

    def move(self, position: int, oldest: tuple[int, int] | None) -> None:
        """The replay point follows the last complete round, but stays at the oldest event of an open window.

        ``oldest``: (offset, watermark before it) of that event."""
        point = self.complete
        if oldest is not None and oldest[0] < point.offset:
            point = ReplayPoint(*oldest, point.clock_ms)
        assert self.replay_point.offset <= point.offset <= position, (self.replay_point, point, position)
        self.replay_point = point

    def note_idle(self, offset: int, watermark: int) -> None:
        """An idle advance at ``offset``: a replay that begins there has it behind it."""
        if self._round is not None and self._round.start.offset == offset:
            self._round.start = replace(self._round.start, watermark=watermark)
        if self.complete.offset == offset:
            self.complete = replace(self.complete, watermark=watermark)

    def note_clock(self, offset: int, clock_ms: int) -> None:
        """The same of the clock that ends utterances."""
        if self._round is not None and self._round.start.offset == offset:
            self._round.start = replace(self._round.start, clock_ms=clock_ms)
        if self.complete.offset == offset:
            self.complete = replace(self.complete, clock_ms=clock_ms)

    def pass_gap(self, first: int, end: int) -> None:
        """No record lies between ``first`` and ``end``: markers, aborted records, what compaction removed. A replay from
        ``first`` is one from ``end``, and retention may delete up to there."""
        if self._round is not None and self._round.start.offset == first:
            self._round.start = replace(self._round.start, offset=end)
        if self.complete.offset == first:
            self.complete = replace(self.complete, offset=end)

    def skip_to(self, position: int) -> None:
        """Without a changelog nothing is ever replayed."""
        self.replay_point = self.complete = replace(self.complete, offset=position)


def _states(lane: StepLane, slots: I64, streams: Sequence[bytes]) -> list[ChangelogRecord]:
    if not len(slots):
        return []
    arena = lane.arena
    arena.changed[slots] = False
    columns = zip(
        streams, arena.through[slots].tolist(), arena.newest_ms[slots].tolist(), arena.rows(slots), strict=True
    )
    keys = ((stream_key(Kind.STATE, lane.name, stream), *rest) for stream, *rest in columns)
    return [(key, encode_stream(key, through, last, lane.model_id, state)) for key, through, last, state in keys]
