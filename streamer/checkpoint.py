"""The changelog: its records, and per partition the ledger that decides what each transaction must write.

The input topic is the write-ahead log; the changelog only makes recovery short. A round lists the streams changed since
their last record and writes them slice by slice; when the list is done the replay point moves to where the round began.
So a changed stream is written once per round, not once per commit.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum

import msgspec

from streamer.core import I64
from streamer.errors import DataLossError

VERSION = 1
NO_WATERMARK = -(2**62)
"""Before the first event."""
_HEADER = struct.Struct("<BBqq8sI")
_LENGTH = struct.Struct("<B")
_PROGRESS_HEADER = struct.Struct("<BI")
RECORD_OVERHEAD_BYTES = 96
"""Estimate of key, header and Kafka framing per stream record, for the byte budget."""


class Kind(IntEnum):
    PROGRESS = 0
    STATE = 1
    WINDOW = 2
    ROLLOUT = 3


@dataclass(frozen=True, slots=True)
class StreamRecord:
    """State of one stream in one model up to ``through`` (a state of None: forgotten there), or a window lane's ``through``,
    or a rollout that was asked for at ``through``, whose ``stream`` begins with that offset."""

    kind: Kind
    model: str
    stream: bytes
    through: int
    last_ms: int
    """Event time of the stream's last event."""
    model_id: bytes
    state: bytes | None


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """What recovery must know about one partition."""

    position: int
    replay_point: int
    watermark: int
    """At the replay point."""
    idle: tuple[tuple[int, int], ...]
    """Idle advances of the watermark since the replay point: (before offset, watermark)."""
    decisions: tuple[tuple[int, str], ...]
    """Rejects that replay could not repeat: (offset, reason)."""
    models: dict[str, str]
    fingerprint: str
    group: str
    topic_id: str
    checksum: int
    """CRC-32 of key and value of the input record at position - 1."""
    rollouts: tuple[tuple[int, int], ...] = ()
    """Open rollouts that answer per step: (offset of the request, answers committed)."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a changelog must agree with before a process goes on from it."""

    group: str = ""
    topic_id: str = ""
    fingerprint: str = ""


def progress_key() -> bytes:
    return bytes([Kind.PROGRESS])


def stream_key(kind: Kind, model: str, stream: bytes) -> bytes:
    name = model.encode()
    return bytes([kind]) + _LENGTH.pack(len(name)) + name + stream


def encode_progress(progress: Progress) -> bytes:
    body = msgspec.msgpack.encode(progress)
    return _PROGRESS_HEADER.pack(VERSION, zlib.crc32(body)) + body


def encode_stream(key: bytes, through: int, last_ms: int, model_id: bytes, state: bytes | None) -> bytes:
    head = _HEADER.pack(VERSION, state is not None, through, last_ms, model_id, 0)
    checksum = zlib.crc32(state or b"", zlib.crc32(head, zlib.crc32(key)))
    return _HEADER.pack(VERSION, state is not None, through, last_ms, model_id, checksum) + (state or b"")


def decode_progress(value: bytes) -> Progress:
    try:
        version, checksum = _PROGRESS_HEADER.unpack_from(value)
        body = value[_PROGRESS_HEADER.size :]
        if version != VERSION or zlib.crc32(body) != checksum:
            raise _corrupt("progress record", f"version {version}, checksum does not match")
        return msgspec.msgpack.decode(body, type=Progress)
    except (struct.error, msgspec.DecodeError) as error:
        raise _corrupt("progress record", str(error)) from error


def decode_stream(key: bytes, value: bytes) -> StreamRecord:
    """Raises DataLossError for records that are corrupt or not ours."""
    try:
        kind = Kind(key[0])
        length = key[1]
        model = key[2 : 2 + length].decode()
        stream = key[2 + length :]
        version, has_state, through, last_ms, model_id, checksum = _HEADER.unpack_from(value)
    except (ValueError, IndexError, struct.error) as error:
        raise _corrupt(f"record with key {key[:64]!r}", str(error)) from error
    state = value[_HEADER.size :]
    head = _HEADER.pack(version, has_state, through, last_ms, model_id, 0)
    if version != VERSION or kind is Kind.PROGRESS:
        raise _corrupt(f"record with key {key[:64]!r}", f"version {version} is not {VERSION}")
    if zlib.crc32(state, zlib.crc32(head, zlib.crc32(key))) != checksum:
        raise _corrupt(f"record of stream {stream[:64]!r}", "checksum does not match")
    return StreamRecord(kind, model, stream, through, last_ms, model_id, state if has_state else None)


def _corrupt(what: str, why: str) -> DataLossError:
    return DataLossError(
        f"changelog: {what} cannot be used ({why}). The topic holds foreign or damaged records: restore it from a backup, "
        "or delete it and start a new group to begin from the initial state."
    )


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
