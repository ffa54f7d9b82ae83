"""``{"x": [F numbers], "ts": time}``"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import msgspec

from streamer.records.exact import Exact
from streamer.records.formats import json_tokens
from streamer.records.formats.base import Columns, Row
from streamer.records.formats.json_typed import TypedRows, number_type, time_type
from streamer.records.unusable import Unusable
from streamer.words import Reason, TimeUnit


class _Written(msgspec.Struct):
    """A value as it was written."""

    x: list[msgspec.Raw]
    ts: msgspec.Raw = msgspec.Raw(b"null")


_WRITTEN = msgspec.json.Decoder(_Written)


class JsonList:
    """Features by place."""

    def __init__(self, features: Sequence[str], exact: Exact, missing: int | float | None, unit: TimeUnit) -> None:
        self._exact, self._missing = exact, missing
        self._names = range(len(features))
        item = number_type(exact, optional=missing is not None)
        numbers: Any = tuple.__class_getitem__((item,) * len(features))  # a tuple of known size is read without growing
        kind = msgspec.defstruct("Value", [("x", numbers), ("ts", time_type(unit), None)], gc=False)
        self._typed: TypedRows[Any] = TypedRows(kind, attrgetter("x"), attrgetter("ts"), len(features), exact, missing)

    def row(self, value: bytes) -> Row:
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

    def columns(self, values: Sequence[bytes]) -> Columns:
        return self._typed.columns(values)
