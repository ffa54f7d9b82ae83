"""Which schema a value was written by, and what is known of schemas: the registry's ids, and the documents behind them.

What the core does not know it says (``Book.wanted``), and the shell fetches it. An id's document never changes, so a value
means the same today and in a replay. That an id has no document is told to be true of one moment only, so it is asked anew
each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from streamer.core import Headers
from streamer.records.unusable import Unusable, plain
from streamer.words import Reason

MAX_KNOWN = 4_096
"""Documents that are kept; beyond it those that were learned first go, and are asked for again."""
FRAME_BYTES = 5
"""Magic byte 0 and the id, big-endian"""
MAX_ID = 2**31 - 1
_ID_HEADERS = ("__value_schema_id", "value.schema.id")
_GUID_BYTES = 17


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
        self._known: dict[int, Schema | None] = {}

    def wanted(self, values: Iterable[bytes | None]) -> set[int]:
        """Ids of ``values`` whose schemas have to be learned before they are decoded."""
        frames = {value[:FRAME_BYTES] for value in values if value}
        ids = {int.from_bytes(each[1:]) for each in frames if each[0] == 0 and len(each) == FRAME_BYTES}
        return {each for each in ids if self._known.get(each) is None and 0 < each <= MAX_ID}

    def learn(self, found: Mapping[int, Schema | None]) -> None:
        """What the registry says of ids; None: it has none."""
        self._known |= found
        for old in list(self._known)[: max(len(self._known) - MAX_KNOWN, 0)]:
            if old not in found:
                del self._known[old]

    def schema(self, number: int) -> Schema:
        """Unusable: the registry has no such id. KeyError: nobody asked it, which ``wanted`` says before decoding."""
        found = self._known[number] if 0 < number <= MAX_ID else None
        if found is None:
            raise Unusable(
                Reason.UNKNOWN_SCHEMA,
                f"the value was written by schema id {number}, which the registry does not have: was it written for "
                "another registry (registry.url), or is the schema deleted?",
            )
        return found

    def schema_of(self, number: int, kind: SchemaKind) -> Schema:
        """Unusable: there is none, or it is of another kind."""
        found = self.schema(number)
        if found.kind != kind:
            raise Unusable(Reason.UNDECODABLE, plain(f"schema id {number} is {found.kind}, not {kind} (input.format)"))
        return found

    @property
    def ids(self) -> list[int]:
        """That have a schema."""
        return sorted(number for number, schema in self._known.items() if schema is not None)


def framed_id(value: bytes) -> int:
    """The id of the schema that a value was written by. Unusable: it is not framed so."""
    if value[:1] == b"\x00" and len(value) >= FRAME_BYTES:
        return int.from_bytes(value[1:FRAME_BYTES])
    if value[:1] == b"\x01" and len(value) >= _GUID_BYTES:
        raise Unusable(
            Reason.UNDECODABLE,
            "the value begins with byte 1, as those do that name their schema by a GUID: let the producer write the id "
            "into the value (magic byte 0 and 4 bytes)",
        )
    told = "is empty" if not value else f"begins with byte {value[0]}" if value[0] else "ends within the schema's id"
    raise Unusable(
        Reason.UNDECODABLE,
        f"the value {told}, but one of a registry's serializer begins with byte 0 and a schema id of 4 bytes: set "
        "input.schema_file for values without it",
    )


def refuse_header_ids(headers: Headers) -> None:
    """Unusable: the record names its schema in a header, and its value is not framed."""
    for name, value in headers:
        if name in _ID_HEADERS and value:
            raise Unusable(
                Reason.UNDECODABLE,
                f"the record names its schema in the header {name}: let the producer write the id into the value "
                "(magic byte 0 and 4 bytes)",
            )


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


def header_ids(headers: Mapping[int, Headers]) -> list[int]:
    """Rows that name their schema in a header."""
    return [row for row, found in headers.items() if any(name in _ID_HEADERS and value for name, value in found)]
