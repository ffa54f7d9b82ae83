"""From a value to the reader of its schema: which one it names, and what is made of a document once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from streamer.errors import ConfigurationError
from streamer.records.formats.layout import Steps
from streamer.records.schemas.avro import avro_reader
from streamer.records.schemas.avro_flat import flat
from streamer.records.schemas.avro_types import BadSchema, Type, parse
from streamer.records.schemas.book import (
    FRAME_BYTES,
    GUID_FRAME_BYTES,
    Book,
    SchemaId,
    SchemaKind,
    frame_bytes,
    framed_id,
    message_indexes,
)
from streamer.records.schemas.protobuf import Messages, protobuf_reader, require_library
from streamer.records.schemas.reader import Reader
from streamer.records.unusable import Unusable, plain
from streamer.words import Reason, TimeUnit


@dataclass(frozen=True)
class Source:
    """Where schemas come from. At least one of ``book`` and ``document`` is there."""

    book: Book | None = None
    """Of a registry; None: values have no frame, and all are written by ``document``"""
    document: bytes | None = None
    """With a registry: what values are read as, whoever wrote them. Avro: a schema; Protobuf: a set of descriptors"""
    message: str = ""
    """Protobuf: full name of the message in ``document``"""


class Values:
    """Readers of the paths that are asked for, by what values say of their schema."""

    MAX_READERS = 4_096
    """Kept at a time; they are made again."""

    def __init__(
        self, kind: SchemaKind, source: Source, paths: Sequence[Steps], time: int | None, unit: TimeUnit
    ) -> None:
        """``time``: which of ``paths`` is the event's time. ConfigurationError: the document of the settings cannot be used."""
        self._kind, self._book, self._paths, self._time, self._unit = kind, source.book, paths, time, unit
        more = 1 if kind is SchemaKind.PROTOBUF else 0
        self.frame_bytes, self.guid_frame_bytes = 0, 0
        """Before nearly every value: nothing, an id, or an id and that it is of the file's first message"""
        if source.book is not None:
            self.frame_bytes, self.guid_frame_bytes = FRAME_BYTES + more, GUID_FRAME_BYTES + more
        self._known: dict[bytes, tuple[Reader, int]] = {}
        """Beginning of a value -> its reader, and where the value itself begins"""
        self._misfits: dict[tuple[SchemaId, tuple[int, ...]], str] = {}
        self._as: Type | None = None
        self._own: Reader | None = None
        if kind is SchemaKind.PROTOBUF:
            require_library()
        if source.document is not None:
            try:
                self._take(source.document, source.message)
            except BadSchema as why:
                raise ConfigurationError(f"input.schema_file: {why}") from None

    def _take(self, document: bytes, message: str) -> None:
        if self._kind is SchemaKind.PROTOBUF:
            self._own = protobuf_reader(Messages.of_set(document).named(message), self._paths, self._time, self._unit)
            return
        self._as = parse(document.decode("utf-8-sig", "backslashreplace"))
        own = self._avro(self._as, None)
        if self._book is None:
            self._own = own

    def _avro(self, writer: Type, reader: Type | None) -> Reader:
        made = avro_reader(writer, reader, self._paths, self._time, self._unit)
        return made if reader else replace(made, flat=flat(writer, self._paths, self._time, self._unit))

    @property
    def never_flat(self) -> str:
        """Why native code can read none of the values; empty: it reads those whose schema is flat."""
        if self._kind is not SchemaKind.AVRO:
            return f"{self._kind.capitalize()} is read in Python"
        if self._book is not None:
            return "" if self._as is None else "values are read as input.schema_file says, and that is done in Python"
        assert self._own is not None
        return "" if self._own.flat else "records that are not flat (input.schema_file) are read in Python"

    def read(self, value: bytes, found: list[Any]) -> None:
        """Puts the cells of the paths into ``found``. Unusable: the value is not what its schema says, or has none."""
        reader, at = self.find(value)
        try:
            found[:] = reader.cells(value, at)
        except Unusable as why:
            if self._book is None:
                raise
            raise Unusable(why.reason, plain(f"schema id {framed_id(value)}: {why.detail}")) from None

    def find(self, value: bytes) -> tuple[Reader, int]:
        """The reader of a value's schema, and where the value itself begins."""
        if self._book is None:
            assert self._own is not None
            return self._own, 0
        begin = frame_bytes(value)
        if self._kind is SchemaKind.PROTOBUF:
            first = value[begin : begin + 1] == b"\x00"  # the file's first message, in one byte
            begin = begin + 1 if first else message_indexes(value, begin)[1] if framed_id(value) else 0
        known = self._known.get(value[:begin])
        if known is None:
            known = self._reader(value), begin
            if len(self._known) >= self.MAX_READERS:
                self._known.clear()
            self._known[value[:begin]] = known
        return known

    def _reader(self, value: bytes) -> Reader:
        """Unusable: the value names no schema, or one that is none, or that leads nowhere for what is asked."""
        assert self._book is not None
        number = framed_id(value)
        schema = self._book.schema_of(number, self._kind)
        if self._own is not None:
            return self._own
        indexes = message_indexes(value, frame_bytes(value))[0] if self._kind is SchemaKind.PROTOBUF else ()
        why = self._misfits.get((number, indexes))
        if why is None:
            try:
                if self._kind is SchemaKind.AVRO:
                    writer = parse(schema.text, schema.references)
                    return self._avro(writer, self._as)
                return protobuf_reader(Messages.of(schema).at(indexes), self._paths, self._time, self._unit)
            except BadSchema as misfit:
                if len(self._misfits) >= self.MAX_READERS:
                    self._misfits.clear()
                why = plain(f"schema id {number} does not fit what is read (input.fields): {misfit}")
                self._misfits[number, indexes] = why
        raise Unusable(Reason.UNDECODABLE, why)
