"""``{"x": [F numbers], "ts": time}``"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import msgspec

from streamer.core import Headers
from streamer.records.exact import Exact
from streamer.records.formats import json_tokens
from streamer.records.formats.base import NO_HEADERS, Columns, Row
from streamer.records.formats.native import Layout, Native
from streamer.records.formats.typed import Packed, TypedRows, number_type, time_type
from streamer.records.formats.wire import Json
from streamer.records.meaning import Meaning
from streamer.records.unusable import Unusable
from streamer.words import Reason, TimeUnit


class _Written(msgspec.Struct):
    """A value as it was written."""

    x: list[msgspec.Raw]
    ts: msgspec.Raw = msgspec.Raw(b"null")


_WRITTEN = msgspec.json.Decoder(_Written)


class JsonList:
    """Features by place: the numbers that the graph gets, whatever kind they are of."""

    def __init__(self, meanings: Sequence[Meaning], exact: Exact, unit: TimeUnit, native: Native) -> None:
        self._exact, self._missing = exact, [meaning.missing for meaning in meanings]
        self._names = range(len(meanings))
        items = tuple(number_type(exact, optional=missing is not None) for missing in self._missing)
        numbers: Any = tuple.__class_getitem__(items)  # a tuple of known size is read without growing
        kind = msgspec.defstruct("Value", [("x", numbers), ("ts", time_type(unit), None)], gc=False)
        packed: Packed[Any] = Packed(attrgetter("x"), exact, self._missing)
        typed: TypedRows[Any] = TypedRows(Json(), kind, packed, attrgetter("ts"))
        layout = Layout(exact, unit, len(meanings), numbers=(("x",), self._missing), time=("ts",))
        self._rows = native.first(layout, typed)

    def row(self, value: bytes, headers: Headers = ()) -> Row:
        json_tokens.refuse_deep(value)
        try:
            written = _WRITTEN.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Unusable(Reason.UNDECODABLE, str(error)) from None
        if len(written.x) != len(self._names):
            found, wanted = len(written.x), len(self._names)
            raise Unusable(Reason.WRONG_WIDTH, f"x has {found} values, the model takes {wanted}")
        names: Sequence[Any] = self._names
        return json_tokens.row(written.x, names, self._exact, self._missing), json_tokens.time(written.ts)

    def columns(self, values: Sequence[bytes], headers: Mapping[int, Headers] = NO_HEADERS) -> Columns:
        return self._rows.columns(values)
