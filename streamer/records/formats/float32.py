"""F little-endian float32 per value; there is no time in it, the record's timestamp counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from streamer.records.exact import Exact
from streamer.records.formats.base import Columns, Row
from streamer.records.unusable import Unusable
from streamer.words import Reason


class Float32:
    """Features by place."""

    def __init__(self, features: Sequence[str], exact: Exact) -> None:
        self._features, self._exact = len(features), exact
        self._width = 4 * len(features)

    def row(self, value: bytes) -> Row:
        if len(value) != self._width:
            raise Unusable(Reason.WRONG_WIDTH, f"value has {len(value)} bytes, the model takes {self._width}")
        return [self._exact.number(each, name) for name, each in enumerate(np.frombuffer(value, "<f4").tolist())], None

    def columns(self, values: Sequence[bytes]) -> Columns:
        wrong: list[int] = []
        if set(map(len, values)) != {self._width}:
            wrong = [row for row, value in enumerate(values) if len(value) != self._width]
            nothing, odd = bytes(self._width), set(wrong)
            values = [nothing if row in odd else value for row, value in enumerate(values)]
        joined = np.frombuffer(b"".join(values), "<f4").reshape(len(values), self._features)
        x, unsure = self._exact.column(joined)
        return Columns(x, None, sorted([*wrong, *unsure]))
