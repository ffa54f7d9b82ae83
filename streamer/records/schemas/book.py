"""Which schema a value was written by, and what is known of schemas: the registry's ids, and the documents behind them.

What the core does not know it says (``Book.wanted``), and the shell fetches it. An id's document never changes, so a value
means the same today and in a replay. That an id has no document is told to be true of one moment only, so it is asked anew
each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from streamer.core import Headers, RecordBatch
from streamer.records.unusable import Unusable, plain
from streamer.words import Reason

MAX_KNOWN = 4_096
"""Documents that are kept; beyond it those that were learned first go, and are asked for again."""
FRAME_BYTES = 5
"""Magic byte 0 and the id, big-endian"""
GUID_FRAME_BYTES = 17
"""Magic byte 1 and the GUID"""
GUID_FRAME = b"\x01"
MAX_ID = 2**31 - 1
ID_HEADER = "__value_schema_id"
"""Holds the frame, where a serializer does not put it in front of the value"""
_ODD_HEADER = "value.schema.id"
"""Of serializers whose ids are not those of Confluent's API"""

SchemaId = int | str
"""A number, or a GUID as text"""


class SchemaKind(StrEnum):
    """In what a schema is written, in the registry's words."""

    AVRO = "AVRO"
    PROTOBUF = "PROTOBUF"
    JSON = "JSON"


@dataclass(frozen=True)
class Schema:
    """One document, with those that it refers to."""

    kind: str
    """A ``SchemaKind``, or a word that a registry has for something else"""
    text: str
    references: tuple[tuple[str, str], ...] = ()
    """(name that it is referred to by, its document), each after those that it needs itself"""


class Book:
    """What is known of the ids of one registry: id -> schema, or that the registry has none."""

    def __init__(self) -> None:
        self._known: dict[SchemaId, Schema | None] = {}

    def wanted(self, values: Iterable[bytes | None]) -> set[SchemaId]:
        """Ids of ``values`` whose schemas have to be learned before they are decoded: of framed ones, or of frames alone."""
        framed = [value for value in values if value]
        frames = {value[:FRAME_BYTES] for value in framed}
        ids: set[SchemaId] = {
            number
            for each in frames
            if each[0] == 0 and len(each) == FRAME_BYTES and 0 < (number := int.from_bytes(each[1:])) <= MAX_ID
        }
        if any(each[:1] == GUID_FRAME for each in frames):
            ids |= {_guid(value) for value in framed if value[:1] == GUID_FRAME and len(value) >= GUID_FRAME_BYTES}
        return {each for each in ids if self._known.get(each) is None}

    def learn(self, found: Mapping[SchemaId, Schema | None]) -> None:
        """What the registry says of ids; None: it has none."""
        self._known |= found
        for old in list(self._known)[: max(len(self._known) - MAX_KNOWN, 0)]:
            if old not in found:
                del self._known[old]

    def schema(self, number: SchemaId) -> Schema:
        """Unusable: the registry has no such id. KeyError: nobody asked it, which ``wanted`` says before decoding."""
        found = self._known[number] if isinstance(number, str) or 0 < number <= MAX_ID else None
        if found is None:
            raise Unusable(
                Reason.UNKNOWN_SCHEMA,
                f"the value was written by schema id {number}, which the registry does not have: was it written for "
                "another registry (registry.url), or is the schema deleted?"
                + (" Not every registry looks up GUIDs." if isinstance(number, str) else ""),
            )
        return found

    def schema_of(self, number: SchemaId, kind: SchemaKind) -> Schema:
        """Unusable: there is none, or it is of another kind."""
        found = self.schema(number)
        if found.kind != kind:
            raise Unusable(Reason.UNDECODABLE, plain(f"schema id {number} is {found.kind}, not {kind} (input.format)"))
        return found

    @property
    def ids(self) -> list[SchemaId]:
        """That have a schema."""
        return sorted((number for number, schema in self._known.items() if schema is not None), key=str)


def frame_bytes(value: bytes) -> int:
    """How long the frame of a value is; of one that is not framed, how long it would be."""
    return GUID_FRAME_BYTES if value[:1] == GUID_FRAME else FRAME_BYTES


def framed_id(value: bytes, what: str = "value") -> SchemaId:
    """The id of the schema that a value was written by. Unusable: it is not framed so."""
    if value[:1] == b"\x00" and len(value) >= FRAME_BYTES:
        return int.from_bytes(value[1:FRAME_BYTES])
    if value[:1] == GUID_FRAME and len(value) >= GUID_FRAME_BYTES:
        return _guid(value)
    told = (
        "is empty" if not value else f"begins with byte {value[0]}" if value[0] > 1 else "ends within the schema's id"
    )
    raise Unusable(
        Reason.UNDECODABLE,
        f"the {what} {told}, but one of a registry's serializer begins with byte 0 and a schema id of 4 bytes, or with byte 1 "
        "and a GUID of 16: set input.schema_file for values without it",
    )


def _guid(frame: bytes) -> str:
    digits = frame[1:GUID_FRAME_BYTES].hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def framed(value: bytes, headers: Headers, kind: SchemaKind) -> bytes:
    """The value behind its frame, which stands in front of it already, or in a header; then what is in front is of the value.

    Unusable: the header is no frame."""
    frame = _header(headers)
    if frame is None:
        return value
    framed_id(frame, f"header {ID_HEADER}")
    end = frame_bytes(frame)
    if kind is SchemaKind.PROTOBUF:
        end = message_indexes(frame, end)[1]
    if end != len(frame):
        raise Unusable(Reason.UNDECODABLE, f"the header {ID_HEADER} goes on after the schema's id")
    return frame + value


def with_frames(
    values: Sequence[bytes], headers: Mapping[int, Headers], kind: SchemaKind
) -> tuple[Sequence[bytes], list[int]]:
    """Each of ``values`` as ``framed`` has it, and rows whose headers are no frames. ``headers``: by row."""
    if not headers:
        return values, []
    found, odd = list(values), []
    for row, mine in headers.items():
        try:
            found[row] = framed(values[row], mine, kind)
        except Unusable:
            odd.append(row)
    return found, odd


def telling(batches: Iterable[RecordBatch]) -> Iterator[bytes | None]:
    """Of each record what says its schema: a frame in a header, else the value."""
    for batch in batches:
        if not batch.headers:
            yield from batch.values
            continue
        for row, value in enumerate(batch.values):
            found = next((each for name, each in batch.headers.get(row, ()) if name == ID_HEADER and each), None)
            yield value if found is None else found


def _header(headers: Headers) -> bytes | None:
    """The first frame, as Confluent's own deserializers take it. Unusable: ids of another kind."""
    for name, value in headers:
        if name == ID_HEADER and value:
            return value
        if name == _ODD_HEADER and value:
            raise Unusable(
                Reason.UNDECODABLE,
                f"the record names its schema in the header {name}, which is not read: let the producer write the id into "
                f"the value (magic byte 0 and 4 bytes) or into the header {ID_HEADER}",
            )
    return None


def message_indexes(value: bytes, at: int) -> tuple[tuple[int, ...], int]:
    """Which message of a Protobuf file a value is, from the outside in, and where it begins. Unusable: no such list."""
    indexes: list[int] = []
    left, at = _zigzag(value, at)
    if left == 0:
        return (0,), at
    if not 0 < left <= 32:
        raise Unusable(Reason.UNDECODABLE, f"the list of message indexes has {left} places")
    while len(indexes) < left:
        index, at = _zigzag(value, at)
        indexes.append(index)
    return tuple(indexes), at


def _zigzag(value: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while shift < 35:
        if at >= len(value):
            raise Unusable(Reason.UNDECODABLE, "the value ends within its message indexes")
        byte = value[at]
        at, number, shift = at + 1, number | (byte & 0x7F) << shift, shift + 7
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), at
    raise Unusable(Reason.UNDECODABLE, "a message index has more than 5 bytes")
