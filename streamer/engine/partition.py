"""The one home of what is true of a partition.

::

                restored              position reached            revoked
    RESTORING ───────────> REPLAYING ─────────────────> LIVE ───────────────> HANDING_OVER
        │                     │  │                       │  ^                     │
        │                     │  └───────────────────────┼──┼─ revoked ──────────>│
        │                     │                          │  └─ kept: nobody wrote ─┤ (or back to REPLAYING)
        └── refused ──────────┴── an epoch failed, or ───┴───── given up ──────────┴──> GONE
                                  the partition went away

A partition that is GONE is never used again: whoever needs it restores a new one. So after an epoch that failed there is
nothing that could be kept by mistake.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum

import numpy as np

from streamer.core import I64, Answers, EventBatch, Op, Reject, Source
from streamer.emission.eventclock import EventClock
from streamer.engine.begin import Begin
from streamer.engine.checkpoint import Checkpoint, ReplayPoint
from streamer.engine.idlettl import IdleTtls
from streamer.engine.lanes import Lanes
from streamer.engine.silence import Silence
from streamer.engine.tally import Tally
from streamer.engine.truth import Decisions, LaneTruth
from streamer.engine.windowing import Closing, OpenWindows
from streamer.errors import DataLossError
from streamer.generate.decodings import Decodings
from streamer.generate.rollouts import Rollouts
from streamer.records.changelog import NO_WATERMARK
from streamer.state.arena import NO_EVENT_MS
from streamer.state.table import Streams
from streamer.words import FLEETING, Forgotten, Reason


class Phase(StrEnum):
    """Where a partition is in its life."""

    RESTORING = "restoring"
    REPLAYING = "replaying"
    LIVE = "live"
    HANDING_OVER = "handing over"
    GONE = "gone"


_NEXT = {
    Phase.RESTORING: {Phase.REPLAYING, Phase.LIVE, Phase.GONE},
    Phase.REPLAYING: {Phase.LIVE, Phase.HANDING_OVER, Phase.GONE},
    Phase.LIVE: {Phase.HANDING_OVER, Phase.GONE},
    Phase.HANDING_OVER: {Phase.REPLAYING, Phase.LIVE, Phase.GONE},
    Phase.GONE: set(),
}


class Partition:
    """Positions, streams, windows and open sequences of one partition, and what of them is not committed yet.

    Long: nothing else changes a partition; its parts (windows, rollouts, truths, ...) have their own modules, and what is
    left moves in step with the phase and the positions, so pieces of it would scatter the truth again."""

    def __init__(self, number: int, lanes: Lanes) -> None:
        self.number = number
        self.lanes = lanes
        self.phase = Phase.RESTORING
        self.streams = Streams(lanes.slots)
        self.rollouts = Rollouts(number, lanes.generators)
        self.decodings = Decodings(number, lanes.decoder, lanes.keys)
        self.windows: OpenWindows | None = None
        self.silence: Silence | None = None
        """What ends utterances of models that emit"""
        self.truths: list[LaneTruth] = []
        self.idle_ttls = IdleTtls([(0, 0)])
        self.fleeting = Decisions()
        """Records that were rejected for what was true then, whatever is true in a replay"""
        self.stranded: list[bytes] = []
        """Keys of records of models that are not served any more: their tombstones are still to be written"""
        self.checkpoint = Checkpoint(ReplayPoint(0, NO_WATERMARK))
        self.position = 0
        """Sealed: everything below is predicted, rejected, or in an open window."""
        self.next_offset = 0
        """Ingested: the next offset that is news."""
        self.live_from = 0
        """Offsets below were committed before: they are replayed without predictions."""
        self.last_offset, self.checksum = -1, 0
        self.newest_ms = NO_EVENT_MS
        self.changelog_end: int | None = None
        """Where its changelog ended with our last commit: who finds it there knows that nobody else wrote."""
        self.moved = False
        """Something is due for the next transaction even if the position did not move."""
        self.answers: list[Answers] = []
        self.rejects: list[Reject] = []
        self.tally = Tally()
        self.gone: list[tuple[bytes, int, int]] = []
        """Forgotten in the open epoch: (stream, through, newest event time), each time that it was"""
        self._dropped: dict[bytes, int] = {}
        """Streams that memory did not hold while they were restored, and their newest event times"""

    # life

    def _to(self, phase: Phase) -> None:
        assert phase in _NEXT[self.phase], f"partition {self.number}: {self.phase} cannot become {phase}"
        self.phase = phase

    @property
    def replaying(self) -> bool:
        return self.next_offset < self.live_from

    @property
    def restoring(self) -> bool:
        return self.phase is Phase.RESTORING

    @property
    def running(self) -> bool:
        return self.phase in (Phase.REPLAYING, Phase.LIVE)

    @property
    def sealable(self) -> bool:
        """What is replayed could not be committed yet."""
        return self.phase in (Phase.LIVE, Phase.HANDING_OVER) and not self.replaying

    def begin(self, found: Begin) -> None:
        """Restored: from here on it takes records, from its replay point."""
        point = found.replay_point
        assert 0 <= point.offset <= found.position, (point, found.position)
        self.position = self.live_from = found.position
        self.next_offset = point.offset
        self.last_offset, self.checksum = found.last_offset, found.checksum
        self.truths, self.moved = found.truths, found.unwritten
        self.idle_ttls = found.idle_ttls
        self.fleeting, self.stranded = found.fleeting, found.stranded
        self.checkpoint = Checkpoint(point)
        if self.lanes.windowing is not None:
            self.windows = self.lanes.windowing.opened(
                point.watermark,
                replaying=self.replaying,
                through=found.window_through,
                idle=found.idle,
                since=found.window_since,
            )
        if any(lane.emitting for lane in self.lanes.stepping):
            clock = EventClock(point.clock_ms, found.clock_idle)
            self.silence = Silence(self.number, clock, list(zip(self.lanes.stepping, self.truths, strict=True)))
        dropped, self._dropped = self._dropped, {}
        self._to(Phase.REPLAYING if self.replaying else Phase.LIVE)
        self._note_forgotten(dropped, Forgotten.MEMORY)
        self._end_silent()

    def hand_over(self) -> None:
        """No more records: what is open is sealed once more."""
        if self.running:
            self._to(Phase.HANDING_OVER)

    def keep(self) -> None:
        """It came back and nobody else wrote: life goes on where it was."""
        self._to(Phase.REPLAYING if self.replaying else Phase.LIVE)

    def drop(self) -> None:
        """Given up, with what of it was not committed. Invariant 7: nothing of it remains."""
        self._to(Phase.GONE)
        self.streams.release_all()
        self.rollouts.drop()
        self.decodings.drop()
        self.windows = self.silence = None
        self.answers, self.rejects, self.gone, self.tally = [], [], [], Tally()

    # records

    def take(self, fetched: EventBatch) -> tuple[EventBatch, list[Closing]] | None:
        """What is news of a fetch, in log order, and the windows that it closes; positions move. None: nothing is news."""
        assert self.running, f"partition {self.number} is {self.phase}"
        batch = fetched.since(self.next_offset)
        if batch is None:
            return None
        if (begin := batch.begins(self.next_offset)) > self.next_offset:
            self.checkpoint.pass_gap(self.next_offset, begin)
        news = [reject for reject in batch.rejects if reject.offset >= self.live_from]
        self.refuse(news)
        self.tally.records += len(news)
        for reject in news:
            if reject.reason in FLEETING:
                self.fleeting.note(reject.offset)
        if self.replaying:
            batch = self._as_decided(batch)
            self.decodings.gather(batch)
        closed: list[Closing] = []
        if self.windows is not None:
            closed, late = self.windows.take(batch, self.live_from, self.tally)
            self._late(batch, late)
        if self.silence is not None:
            self.silence.clock.take(batch)
        if self.replaying:
            batch = self._without_forgotten(batch)
        self.next_offset = batch.next_offset
        if len(batch.records):
            self.last_offset, self.checksum = batch.records.offsets[-1], batch.checksum
        if len(batch):
            times = batch.times_ms if batch.ops is None else batch.times_ms[batch.ops == Op.EVENT]
            self.newest_ms = max(self.newest_ms, int(times.max(initial=NO_EVENT_MS)))
        return batch, closed

    def idle(self, elapsed_ms: int) -> list[Closing]:
        """What closes because no record came for ``elapsed_ms``."""
        self._end_idle(elapsed_ms)
        if self.windows is None or self.phase is not Phase.LIVE:
            return []
        before = self.windows.windows.watermark
        closed = self.windows.advance(elapsed_ms, self.next_offset, self.tally)
        if self.windows.windows.watermark != before:
            self.checkpoint.note_idle(self.next_offset, self.windows.windows.watermark)
            self.moved = True
        return closed

    def _end_silent(self) -> None:
        """Utterances that the clock ended with the last fetch."""
        if self.silence is not None:
            self.answers += self.silence.end(self.streams, self.lanes.slots, self.live_from)

    def _end_idle(self, elapsed_ms: int) -> None:
        if self.silence is None or self.phase is not Phase.LIVE:
            return
        if found := self.silence.idle(self.streams, self.lanes.slots, elapsed_ms, self.next_offset):
            self.answers += found
            self.checkpoint.note_clock(self.next_offset, self.silence.clock.value_ms)
            self.moved = True

    def _late(self, batch: EventBatch, rows: Sequence[int]) -> None:
        self.tally.late += len(rows)
        if self.lanes.late_to_dead_letter:
            text = "event time {} ms is behind the watermark"
            self.refuse(batch.reject(row, Reason.LATE, text.format(batch.times_ms[row])) for row in sorted(set(rows)))

    def _as_decided(self, batch: EventBatch) -> EventBatch:
        """In a replay: without what was rejected for what was true then. DataLossError: what was an event is none now."""
        lost = [each for each in batch.rejects if each.reason in FLEETING and each.offset < self.live_from]
        if lost:
            offsets = np.array([reject.offset for reject in lost], np.int64)
            decided = self.fleeting.among(offsets)
            gone = [reject for row, reject in enumerate(lost) if decided is None or not decided[row]]
            if gone:
                raise DataLossError(
                    f"partition {self.number}: the record at offset {gone[0].offset} was an event, and states depend on it, but now "
                    f"it is none: {gone[0].detail}. Bring that back, or start a new kafka.group to begin from the initial state."
                )
        decided = self.fleeting.among(batch.offsets) if len(batch) else None
        return batch if decided is None else batch.select(np.flatnonzero(~decided))

    def _without_forgotten(self, batch: EventBatch) -> EventBatch:
        """Drops rows that were forgotten later by every step model: their streams need no slot."""
        known = [truth.forgotten for truth in self.truths]
        if not known or not all(known):
            return batch
        pairs = zip(batch.keys, batch.offsets.tolist(), strict=True)
        kept = [row for row, (key, at) in enumerate(pairs) if any(each.get(key, -1) < at for each in known)]
        return batch if len(kept) == len(batch) else batch.select(np.array(kept, np.int64))

    def refuse(self, rejects: Iterable[Reject]) -> None:
        for reject in rejects:
            self.rejects.append(reject)
            self.tally.rejects[reject.reason] += 1
            self.tally.examples[reject.reason] = Source(reject.partition, reject.offset, reject.detail)

    def settled(self, batch: EventBatch) -> None:
        """All models have run over the rows that ``take`` gave out."""
        replayed = 0 if batch.offsets[0] >= self.live_from else int(np.searchsorted(batch.offsets, self.live_from))
        live = len(batch) - replayed
        self.tally.records += live
        self.tally.events += live
        self.tally.replayed += replayed
        if batch.ops is not None:
            self._end(batch)

    def caught_up(self) -> None:
        """After a run: utterances of silent streams end, and the replay may be over."""
        self._end_silent()
        if self.phase is Phase.REPLAYING and not self.replaying:
            self._to(Phase.LIVE)

    # forgetting

    def _end(self, batch: EventBatch) -> None:
        """Streams whose sequence ended with their last record of ``batch`` are forgotten."""
        assert batch.ops is not None
        ended = {
            batch.keys[row]: int(batch.offsets[row])
            for row in np.flatnonzero(batch.ops == Op.END).tolist()
            if batch.offsets[row] >= self.live_from
        }
        lanes = self.lanes.stepping
        self.forget(
            [
                stream
                for stream, at in ended.items()
                if (slot := self.streams.find(stream)) is not None
                and all(lane.arena.through[slot] == at for lane in lanes)
            ],
            Forgotten.END,
        )

    def forget(self, streams: Sequence[bytes], reason: Forgotten) -> None:
        """Streams begin anew with their next event. No event of theirs may be pending."""
        if not streams:
            return
        found = [slot for stream in streams if (slot := self.streams.find(stream)) is not None]
        newest = self.newest_of(np.array(found, np.int64)).tolist()
        self.streams.release(streams)
        self._note_forgotten(dict(zip(streams, newest, strict=True)), reason)

    def newest_of(self, slots: I64) -> I64:
        """[N] newest event times of streams, over all models."""
        newest: I64 = np.max([lane.arena.newest_ms[slots] for lane in self.lanes.stepping], axis=0)
        return newest

    def _note_forgotten(self, streams: dict[bytes, int], reason: Forgotten) -> None:
        """``streams``: and their newest event times."""
        if self.phase is Phase.RESTORING:
            self._dropped |= streams
            return
        # what is still to be replayed of them was predicted before, from a state that is not here any more
        through = max(self.next_offset, self.live_from) - 1
        for stream, newest_ms in streams.items():
            self.gone.append((stream, through, newest_ms))
            for truth in self.truths:
                truth.forgotten[stream] = through
        self.tally.forgotten[reason] += len(streams)

    def was_dropped(self, stream: bytes) -> bool:
        """While it is restored: memory did not hold the stream, further records of it are not wanted."""
        return stream in self._dropped

    # epochs

    def results(self) -> tuple[list[Answers], list[Reject]]:
        """Takes answers and rejects out of the open epoch."""
        answers, rejects = self.answers, sorted(self.rejects, key=lambda reject: reject.offset)
        self.answers, self.rejects = [], []
        return answers, rejects

    def counted(self) -> Tally:
        """Takes what was counted for the open epoch."""
        tally, self.tally = self.tally, Tally()
        return tally

    def due(self, now_ms: int, interval_ms: int) -> bool:
        """Whether the next transaction has anything of this partition."""
        if not self.sealable:
            return False
        if self._settled_position() > self.position or self.moved or self.gone:
            return True
        checkpoint = self.checkpoint
        return self.lanes.durable and (checkpoint.open or checkpoint.due(self.next_offset, now_ms, interval_ms))

    def _settled_position(self) -> int:
        """Without a changelog the position waits for the oldest open rollout or decoding: where it is, if it has passed
        first events of a window that was open then."""
        if self.lanes.durable:
            return self.next_offset
        oldest = self.decodings.oldest()
        due = min(self.rollouts.oldest(self.next_offset), self.next_offset if oldest is None else oldest[0])
        return max(self.position, due)

    def advance(self) -> None:
        """The position of the transaction that is being sealed."""
        position = self._settled_position()
        assert position >= self.position, "invariant 4: a position only grows"
        self.position, self.moved = position, False

    def forget_history(self) -> None:
        """Without a changelog nothing is ever replayed, so nothing is kept for it."""
        self.checkpoint.skip_to(self.position)
        self.gone.clear()
        for truth in self.truths:
            truth.forgotten.clear()
            truth.decisions.take()
        self.fleeting.take()
        if self.silence is not None:
            self.silence.clock.forget_idle()
        if self.windows is not None:
            self.windows.idle.clear()
            self.windows.fresh_idle.clear()
            self.windows.fresh_through.clear()

    def still_mine(self, slots: I64) -> tuple[I64, list[bytes]]:
        """Those of ``slots`` that are still of this partition's streams, and the streams."""
        found = [(slot, key) for slot in slots.tolist() if self.streams.find(key := self.lanes.slots.key(slot)) == slot]
        return np.array([slot for slot, _ in found], np.int64), [key for _, key in found]

    @property
    def oldest_open(self) -> tuple[int, int] | None:
        """(offset, watermark before it) of the oldest event in an open window, or in one that is being written about."""
        window = None if self.windows is None else self.windows.windows.oldest()
        decoding = self.decodings.oldest()
        return decoding if window is None else window if decoding is None else min(window, decoding)
