"""The changelog: its records, and per partition the ledger that decides what each transaction must write.

The input topic is the write-ahead log; the changelog only makes recovery short. A round lists the streams changed since
their last record and writes them slice by slice; when the list is done the replay point moves to where the round began.
So a changed stream is written once per round, not once per commit.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum

import msgspec

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
