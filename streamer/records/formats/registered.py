"""Values that were written by a schema: Avro, Protobuf, and JSON with a schema; in a registry's frame, or plain.

Where features are is said by the same paths as in JSON, and what a cell means by the same rules (``meaning.py``); a
schema only says how cells lie in bytes. Which schema that is, a value says by its id (``schemas/book.py``), or all are
written by one that a file holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from streamer.core import Headers
from streamer.records.exact import Exact
from streamer.records.formats.base import NO_HEADERS, Columns, Row
from streamer.records.formats.named import Named, _Column, is_number
from streamer.records.formats.native import Layout, Native, Path, Rows
from streamer.records.formats.typed import Packed, each_get
from streamer.records.meaning import NO_CELL, Cell, Meaning, is_nan
from streamer.records.schemas.book import GUID_FRAME, Book, SchemaKind, frame_bytes, framed, framed_id, with_frames
from streamer.records.schemas.reader import Reader
from streamer.records.schemas.values import Source, Values
from streamer.records.unusable import Unusable
from streamer.settings.fields import FieldPath, Place
from streamer.words import TimeUnit

_LOOKED_UP = {"category": {"null", "int", "float", "str"}, "flag": {"null", "bool", "int", "float", "str"}}
"""Kinds of feature whose numbers stand in a table, and the cells for which the table says what the definition does"""


class Cells:
    """The wire of values that are cells already, so that the rules for JSON are those for them."""

    null: Any = None
    lines = False
    deep = ""  # nothing is

    def decoder(self, kind: Any) -> Any:
        raise AssertionError("each schema has a reader of its own")

    def too_deep(self, value: bytes) -> bool:
        return False  # each reader bounds it

    def is_list(self, token: Any) -> bool:
        return False  # only records of several steps are asked

    def is_null(self, token: Any) -> bool:
        return token is None

    def is_nothing(self, token: Any) -> bool:
        return token is None or is_nan(token)

    def cell(self, token: Any) -> Cell:
        found: Cell = token
        return found

    def time(self, token: Any) -> object:
        return "a list, an object or bytes" if token is NO_CELL else token


class Registered(Named):
    """Avro and Protobuf. ``row`` is the definition, as in ``Named``: cells come from the reader of the value's schema."""

    def __init__(
        self,
        kind: SchemaKind,
        source: Source,
        wanted: Sequence[Meaning],
        places: Sequence[Place],
        time: Place,
        exact: Exact,
        unit: TimeUnit,
        native: Native,
    ) -> None:
        """ConfigurationError: a document of the settings is no schema, or has not what is asked for."""
        self._kind, self._source = kind, source
        super().__init__(Cells(), wanted, places, time, exact, unit, native)

    def _open(self, exact: Exact, native: Native) -> None:
        time = self._paths.index(self._time.steps) if isinstance(self._time, FieldPath) else None
        values = Values(self._kind, self._source, self._paths, time, self._unit)
        numbers = [(meaning, leaf) for meaning, _, leaf in self._plan if leaf is not None and is_number(meaning)]
        packed: Packed[Any] | None = None
        if numbers:
            missing = [meaning.missing for meaning, _ in numbers]
            packed = Packed(each_get([leaf for _, leaf in numbers]), exact, missing)
        leaves = [leaf for _, _, leaf in self._plan]
        column = _Column(self._wire, self._meanings, leaves, self._constants, packed, exact)
        users = [(meaning, leaf) for meaning, _, leaf in self._plan if leaf is not None]
        self._written = values
        self._rows = _Rows(values, column, users, time, exact)
        if native.module is not None and (why := values.never_flat):
            native.without(why)
        if native.module is not None:
            self._rows = _Flat(values, native, self._layout(exact), self._paths, self._rows)

    @property
    def schemas(self) -> Book | None:
        return self._source.book

    def row(self, value: bytes, headers: Headers = ()) -> Row:
        if self._source.book is not None:
            value = framed(value, headers, self._kind)
        return super().row(value, headers)

    def columns(self, values: Sequence[bytes], headers: Mapping[int, Headers] = NO_HEADERS) -> Columns:
        odd: list[int] = []
        if self._source.book is not None:
            values, odd = with_frames(values, headers, self._kind)
        found = super().columns(values, headers)
        found.doubtful += odd
        return found


class _Rows:
    """Many values at once: cells by the reader of each, numbers column by column."""

    def __init__(
        self,
        values: Values,
        column: _Column,
        users: Sequence[tuple[Meaning, int]],
        time: int | None,
        exact: Exact,
    ) -> None:
        self._values, self._column, self._users, self._time, self._exact = values, column, users, time, exact
        self._width = column._features

    def columns(self, values: Sequence[bytes]) -> Columns:
        rows: list[list[Cell]] = []
        kept: list[int] = []
        doubtful: list[int] = []
        number, guid = self._values.frame_bytes, self._values.guid_frame_bytes
        plain: dict[bytes, Callable[[bytes, int], list[Cell]] | None] = {}
        """Beginning of a value -> what reads it, None: the definition has to"""
        for row, value in enumerate(values):
            frame = guid if value[:1] == GUID_FRAME else number
            begin = value[:frame]
            try:
                if begin not in plain:
                    reader, at = self._values.find(value)
                    plain[begin] = reader.cells if at == frame and self._all_plain(reader) else None
                cells = plain[begin]
                if cells is not None:
                    rows.append(cells(value, frame))
                    kept.append(row)
                    continue
            except Unusable:
                pass
            doubtful.append(row)
        x, unsure = np.zeros((0, self._width), self._exact.dtype), list[int]()
        if rows:
            x, unsure = self._column.column([self._column.piece(rows)])
        times = None if self._time is None else [cells[self._time] for cells in rows]
        if not doubtful:
            return Columns(x, times, unsure)
        every = np.zeros((len(values), self._width), self._exact.dtype)
        every[kept] = x
        all_times: list[object] | None = None
        if times is not None:
            all_times = [times[0] if times else None] * len(values)  # what is doubtful is of the kind of the others
            for place, time in zip(kept, times, strict=True):
                all_times[place] = time
        return Columns(every, all_times, sorted([*doubtful, *(kept[row] for row in unsure)]))

    def _all_plain(self, reader: Reader) -> bool:
        if self._time is not None and "other" in reader.kinds[self._time] and not reader.moments:
            return False
        numbers = {"null", "int"} if self._exact.integral else {"null", "int", "float"}
        return all(
            meaning.kind == "present" or reader.kinds[leaf] <= _LOOKED_UP.get(meaning.kind, numbers)
            for meaning, leaf in self._users
        )


class _Flat:
    """Native code first, where the schema of a fetch's first value is one that it reads; it decides values of that schema."""

    def __init__(self, values: Values, native: Native, layout: Layout, paths: Sequence[Path], pure: Rows) -> None:
        self._values, self._native, self._layout, self._paths, self._pure = values, native, layout, paths, pure
        self._known: dict[bytes, Rows] = {}
        """Frame of a value -> what reads a fetch that begins with it"""
        native.used = True

    def columns(self, values: Sequence[bytes]) -> Columns:
        try:
            reader, begin = self._values.find(values[0])
        except Unusable:
            return self._pure.columns(values)
        frame = values[0][:begin]
        if frame not in self._known:
            if len(self._known) >= Values.MAX_READERS:
                self._known.clear()
            self._known[frame] = self._rows(reader, frame)
        return self._known[frame].columns(values)

    def _rows(self, reader: Reader, frame: bytes) -> Rows:
        if reader.flat is None:
            return self._pure
        return self._native.flat(self._layout, self._paths, reader.flat, frame, self._pure)


class JsonSchema:
    """JSON in a registry's frame. The schema has to be there and is not asked further: a value says what it is itself."""

    def __init__(self, inner: Named, book: Book) -> None:
        self._inner, self.schemas = inner, book

    def row(self, value: bytes, headers: Headers = ()) -> Row:
        value = framed(value, headers, SchemaKind.JSON)
        self.schemas.schema_of(framed_id(value), SchemaKind.JSON)
        return self._inner.row(value[frame_bytes(value) :], headers)

    def columns(self, values: Sequence[bytes], headers: Mapping[int, Headers] = NO_HEADERS) -> Columns:
        good: dict[bytes, bool] = {}
        inner: list[bytes] = []
        values, unsure = with_frames(values, headers, SchemaKind.JSON)
        for row, value in enumerate(values):
            at = frame_bytes(value)
            frame = value[:at]
            if frame not in good:
                good[frame] = self._known(value)
            inner.append(value[at:] if good[frame] else b"{}")
            if not good[frame]:
                unsure.append(row)
        found = self._inner.columns(inner, headers)
        found.doubtful = sorted({*found.doubtful, *unsure})
        return found

    def _known(self, value: bytes) -> bool:
        try:
            self.schemas.schema_of(framed_id(value), SchemaKind.JSON)
        except Unusable:
            return False
        return True
