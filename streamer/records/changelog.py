"""The changelog's records: stream records, and per partition one progress record. Bytes to values and back.

Every record is judged by the regime it was written under: the progress record tells per model since which offset its
present regime holds, and a stream record that reaches less far was written before.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import msgspec
import numpy as np

from streamer.core import I64
from streamer.errors import DataLossError

VERSION = 2
NO_MODEL = ""
"""In the key of what is true for all models of a partition"""
NO_WATERMARK = -(2**62)
"""Before the first event."""
_HEADER = struct.Struct("<BBqq8sI")
_LENGTH = struct.Struct("<B")
_OFFSET = struct.Struct(">q")
_PROGRESS_HEADER = struct.Struct("<BI")
RECORD_OVERHEAD_BYTES = 96
"""Estimate of key, header and Kafka framing per stream record, for the byte budget."""
DECISIONS_PER_RECORD = 10_000


class Kind(IntEnum):
    PROGRESS = 0
    STATE = 1
    WINDOW = 2
    ROLLOUT = 3
    DECISIONS = 4
    IDLE = 5
    CLOCK = 6
    DECODING = 7


@dataclass(frozen=True, slots=True)
class StreamRecord:
    """What the changelog knows of one model, mostly of one stream in it, up to ``through``.

    ========== ======================= ============================ =================================================
    kind       ``stream``              ``last_ms``                  ``state``
    ========== ======================= ============================ =================================================
    STATE      the stream              its newest event time        its state; None: forgotten at ``through``
    WINDOW     the stream              -                            -; its windows up to ``through`` are closed
    ROLLOUT    offset of the request,  event time of the request    the request and the forked state
               then the stream
    DECISIONS  first offset            -                            offsets that the model refused; without a model's
                                                                    name: rejects that a replay could judge otherwise
    DECODING   offset of the first     the window's end             which events the window has, by their offsets
               event, bounds, stream
    IDLE       offset ``before`` which the watermark                -
               the partition was idle
    CLOCK      as IDLE                 the clock of utterances      -
    ========== ======================= ============================ =================================================
    """

    kind: Kind
    model: str
    stream: bytes
    through: int
    last_ms: int
    model_id: bytes
    state: bytes | None

    @property
    def offset(self) -> int:
        """That ``stream`` begins with."""
        return int(_OFFSET.unpack_from(self.stream)[0])


class Regime(msgspec.Struct, frozen=True, array_like=True):
    """Under what a model's records are written."""

    model_id: str
    """First 8 bytes of the file's sha256, hex"""
    since: int
    """Events below this offset are none of the model's; stream records that reach less far are of an earlier regime."""
    states: str
    """Names and shapes of what is kept per stream: states pass to another file only if these agree."""


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """What recovery must know about one partition. Its size does not depend on how much happened."""

    position: int
    replay_point: int
    watermark: int
    """At the replay point."""
    models: dict[str, Regime]
    fingerprint: str
    group: str
    topic_id: str
    machine: str
    """Processor features and version of the runtime: another one may round differently."""
    last_offset: int
    """Of the last record below the position that was seen; -1: none. Markers may lie between."""
    checksum: int
    """CRC-32 of key and value of that record."""
    rollouts: tuple[tuple[int, int], ...] = ()
    """Open rollouts that answer per step: (offset of the request, answers committed)."""
    clock_ms: int = NO_WATERMARK
    """The clock of utterances at the last complete round."""
    idle_ttls: tuple[tuple[int, int], ...] = ()
    """(from which offset on, state.idle_ttl_ms): what judged the events that a replay repeats. None: written before it was."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a changelog must agree with before a process goes on from it."""

    group: str = ""
    topic_id: str = ""
    fingerprint: str = ""
    machine: str = ""


def progress_key() -> bytes:
    return bytes([Kind.PROGRESS])


def stream_key(kind: Kind, model: str, stream: bytes) -> bytes:
    name = model.encode()
    return bytes([kind]) + _LENGTH.pack(len(name)) + name + stream


def offset_key(kind: Kind, model: str, offset: int, stream: bytes = b"") -> bytes:
    return stream_key(kind, model, _OFFSET.pack(offset) + stream)


def encode_progress(progress: Progress) -> bytes:
    body = msgspec.msgpack.encode(progress)
    return _PROGRESS_HEADER.pack(VERSION, zlib.crc32(body)) + body


def encode_stream(key: bytes, through: int, last_ms: int, model_id: bytes, state: bytes | None) -> bytes:
    head = _HEADER.pack(VERSION, state is not None, through, last_ms, model_id, 0)
    checksum = zlib.crc32(state or b"", zlib.crc32(head, zlib.crc32(key)))
    return _HEADER.pack(VERSION, state is not None, through, last_ms, model_id, checksum) + (state or b"")


def encode_offsets(offsets: Sequence[int]) -> bytes:
    return np.array(offsets, "<i8").tobytes()


def decode_offsets(state: bytes | None) -> I64:
    if state is None or len(state) % 8:
        raise _corrupt("record of decisions", "its length is wrong")
    return np.frombuffer(state, "<i8").astype(np.int64)


def decode_progress(value: bytes) -> Progress:
    try:
        version, checksum = _PROGRESS_HEADER.unpack_from(value)
        body = value[_PROGRESS_HEADER.size :]
        if version != VERSION:
            raise _older("progress record", version)
        if zlib.crc32(body) != checksum:
            raise _corrupt("progress record", "checksum does not match")
        return msgspec.msgpack.decode(body, type=Progress)
    except (struct.error, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _corrupt("progress record", str(error)) from error


def decode_stream(key: bytes, value: bytes) -> StreamRecord:
    """Raises DataLossError for records that are corrupt or not ours."""
    try:
        kind, model, stream = split_key(key)
        version, has_state, through, last_ms, model_id, checksum = _HEADER.unpack_from(value)
    except struct.error as error:
        raise _corrupt(f"record with key {key[:64]!r}", str(error)) from error
    state = value[_HEADER.size :]
    head = _HEADER.pack(version, has_state, through, last_ms, model_id, 0)
    if version != VERSION:
        raise _older(f"record with key {key[:64]!r}", version)
    if kind is Kind.PROGRESS or (kind in _WITH_OFFSET and len(stream) < _OFFSET.size):
        raise _corrupt(f"record with key {key[:64]!r}", "no stream record has such a key")
    if zlib.crc32(state, zlib.crc32(head, zlib.crc32(key))) != checksum:
        raise _corrupt(f"record of stream {stream[:64]!r}", "checksum does not match")
    return StreamRecord(kind, model, stream, through, last_ms, model_id, state if has_state else None)


_WITH_OFFSET = (Kind.ROLLOUT, Kind.DECISIONS, Kind.IDLE, Kind.CLOCK, Kind.DECODING)


def split_key(key: bytes) -> tuple[Kind, str, bytes]:
    """Kind, model and stream of a stream record's key. Raises DataLossError for keys that are not ours."""
    try:
        kind, length = Kind(key[0]), key[1]
        return kind, key[2 : 2 + length].decode(), key[2 + length :]
    except (ValueError, IndexError) as error:
        raise _corrupt(f"record with key {key[:64]!r}", str(error)) from error


def _older(what: str, version: int) -> DataLossError:
    return DataLossError(
        f"changelog: {what} has format {version}, this version of streamer reads format {VERSION}. Go on with the version that "
        "wrote it, or use a new kafka.group to begin from the initial state."
    )


def _corrupt(what: str, why: str) -> DataLossError:
    return DataLossError(
        f"changelog: {what} cannot be used ({why}). The topic holds foreign or damaged records: restore it from a backup, "
        "or delete it and start a new group to begin from the initial state."
    )
