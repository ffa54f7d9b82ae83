"""``{"cpu": 0.3, ..., "ts": time}``: a field per feature, named as in the contract."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import msgspec

from streamer.records.exact import Exact
from streamer.records.formats import json_tokens
from streamer.records.formats.base import Columns, Row
from streamer.records.formats.json_typed import TypedRows, each_get, number_type, time_type
from streamer.records.unusable import Unusable
from streamer.words import Reason, TimeUnit

_ABSENT = msgspec.Raw(b"null")


class JsonNamed:
    """Features by name; one that is absent is the same as one that is null. A feature named ``ts`` is the time as well."""

    def __init__(self, features: Sequence[str], exact: Exact, missing: int | float | None, unit: TimeUnit) -> None:
        self._names, self._exact, self._missing = tuple(features), exact, missing
        fields = [f"f{index}" for index in range(len(features))]
        time = f"f{features.index('ts')}" if "ts" in features else "ts"
        self._read, self._time = each_get(fields), attrgetter(time)
        item = number_type(exact, optional=missing is not None)
        typed = [(name, item, None) if missing is not None else (name, item) for name in fields]
        written: list[Any] = [(name, msgspec.Raw, _ABSENT) for name in fields]
        if time == "ts":
            typed.append(("ts", time_type(unit), None))
            written.append(("ts", msgspec.Raw, _ABSENT))
        rename = dict(zip(fields, features, strict=True))
        self._written = msgspec.json.Decoder(msgspec.defstruct("Written", written, rename=rename))
        kind = msgspec.defstruct("Value", typed, rename=rename, gc=False)
        self._typed: TypedRows[Any] = TypedRows(kind, self._read, self._time, len(features), exact, missing)

    def row(self, value: bytes) -> Row:
        json_tokens.refuse_deep(value)
        try:
            written = self._written.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Unusable(Reason.UNDECODABLE, str(error)) from None
        numbers = json_tokens.row(self._read(written), self._names, self._exact, self._missing)
        return numbers, json_tokens.time(self._time(written))

    def columns(self, values: Sequence[bytes]) -> Columns:
        return self._typed.columns(values)
