"""Per partition the ledger that decides what each transaction must write.

The input topic is the write-ahead log; the changelog only makes recovery short. A round lists the streams changed since
their last record and writes them slice by slice; when the list is done the replay point moves to where the round began.
So a changed stream is written once per round, not once per commit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from streamer.core import I64
from streamer.records.changelog import NO_WATERMARK, Progress, StreamRecord


@dataclass(slots=True)
class Ledger:
    """Positions and round of one partition. Invariant 4: position and replay point only grow, replay point <= position."""

    position: int = 0
    """Sealed: everything below is predicted, rejected, or in an open window."""
    replay_point: int = 0
    next_offset: int = 0
    """Ingested: the next offset that is news."""
    live_from: int = 0
    """Offsets below were committed before this process owned the partition: they are replayed without predictions."""
    checksum: int = 0
    moved: bool = False
    """Something is due for the next transaction even if the position did not move."""
    round_start: int | None = None
    round_watermark: int = NO_WATERMARK
    round_at_ms: int = 0
    """When the current or last round began."""
    pending: list[tuple[int, I64]] = field(default_factory=list)
    """(lane, slots) still to be written in this round."""
    round_bytes: int = 0
    """Of the current or last round, about: what its stream records take."""
    checkpointed: int = 0
    """Where the last complete round began: every state up to here is in the changelog."""
    checkpointed_watermark: int = NO_WATERMARK
    watermark: int = NO_WATERMARK
    """At the replay point."""
    forgotten: dict[bytes, int] = field(default_factory=dict)
    """Streams without state whose record waits for its tombstone: stream -> through."""
    window_through: dict[bytes, int] = field(default_factory=dict)
    """Streams with windows closed by arrival or a bound: stream -> through, until the replay point passes it."""
    new_window_through: dict[bytes, int] = field(default_factory=dict)
    idle: list[tuple[int, int]] = field(default_factory=list)
    decisions: dict[int, str] = field(default_factory=dict)
    rollouts: list[StreamRecord] = field(default_factory=list)
    """Open when the changelog was written"""
    emitted: dict[int, int] = field(default_factory=dict)
    """Answers committed of those, by offset"""

    @classmethod
    def restored(
        cls,
        progress: Progress,
        forgotten: dict[bytes, int],
        window_through: dict[bytes, int],
        rollouts: Iterable[StreamRecord] = (),
    ) -> Ledger:
        return cls(
            position=progress.position,
            replay_point=progress.replay_point,
            next_offset=progress.replay_point,
            live_from=progress.position,
            checksum=progress.checksum,
            checkpointed=progress.replay_point,
            checkpointed_watermark=progress.watermark,
            watermark=progress.watermark,
            forgotten=forgotten,
            window_through=window_through,
            idle=list(progress.idle),
            decisions=dict(progress.decisions),
            rollouts=list(rollouts),
            emitted=dict(progress.rollouts),
        )

    @classmethod
    def fresh(cls, start: int) -> Ledger:
        return cls(position=start, replay_point=start, next_offset=start, live_from=start, checkpointed=start)

    @property
    def replaying(self) -> bool:
        return self.next_offset < self.live_from

    @property
    def round_open(self) -> bool:
        return self.round_start is not None

    def begin_round(self, changed: Iterable[tuple[int, I64, int]], watermark: int, now_ms: int) -> None:
        """``changed``: (lane, slots, bytes of each slot's record)."""
        assert self.round_start is None, "a round is open"
        parts = [part for part in changed if len(part[1])]
        self.pending = [(lane, slots) for lane, slots, _ in parts]
        self.round_bytes = sum(len(slots) * each for _, slots, each in parts)
        self.round_start, self.round_watermark, self.round_at_ms = self.position, watermark, now_ms

    def end_round(self) -> None:
        assert self.round_start is not None
        assert not self.pending, "the round is not written yet"
        self.checkpointed, self.checkpointed_watermark = self.round_start, self.round_watermark
        self.round_start = None

    def move_replay_point(self, oldest: tuple[int, int] | None) -> None:
        """``oldest``: (offset, watermark before it) of the oldest event in an open window."""
        point, watermark = self.checkpointed, self.checkpointed_watermark
        if oldest is not None and oldest[0] < point:
            point, watermark = oldest
        assert self.replay_point <= point <= self.position, (self.replay_point, point, self.position)
        self.replay_point, self.watermark = point, watermark
        self.idle = [(before, mark) for before, mark in self.idle if before > point]
        self.decisions = {offset: reason for offset, reason in self.decisions.items() if offset >= point}

    def replay_from_position(self) -> None:
        """Without a changelog nothing is ever replayed, so nothing need be kept for it."""
        self.replay_point = self.position
        self.idle.clear()
        self.decisions.clear()
        self.new_window_through.clear()

    def note_idle(self, watermark: int) -> None:
        """An idle advance that closed a window, at the current end of what was ingested."""
        if self.idle and self.idle[-1][0] == self.next_offset:
            self.idle[-1] = (self.next_offset, max(watermark, self.idle[-1][1]))
        else:
            self.idle.append((self.next_offset, watermark))
        if self.round_start == self.next_offset:
            self.round_watermark = watermark
        if self.checkpointed == self.next_offset:
            self.checkpointed_watermark = watermark
        self.moved = True

    def due_tombstones(self, through: dict[bytes, int]) -> list[bytes]:
        """Streams whose old events no replay can see any more."""
        return [stream for stream, offset in through.items() if offset < self.replay_point]
