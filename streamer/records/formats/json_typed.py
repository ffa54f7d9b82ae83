"""Many JSON values at once: native parsing into typed objects, packed into columns. What does not fit the types is doubtful."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter, itemgetter
from typing import Annotated, Any, Generic, TypeVar

import msgspec
import numpy as np

from streamer.records.exact import Exact, Numbers
from streamer.records.formats import json_tokens
from streamer.records.formats.base import Columns
from streamer.words import TimeUnit

_CHUNK = 128
"""Values of one native call. Of a chunk with a bad value each is read alone, so that one costs little more."""
_FEW = 32
"""Up to this many, reading one by one beats the checks of the one call over all."""
_FIRST, _LAST = itemgetter(0), itemgetter(-1)
_OPENED, _CLOSED = {0x7B}, {0x7D}
_INT64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]

Typed = TypeVar("Typed")


def number_type(exact: Exact, *, optional: bool) -> Any:
    """A feature: integers for an integer input, floats else; null where it may be missing."""
    kind: Any = _INT64 if exact.integral else float
    return kind | None if optional else kind


def time_type(unit: TimeUnit) -> Any:
    return str | None if unit is TimeUnit.ISO8601 else int | float | None


class TypedRows(Generic[Typed]):
    """Values as objects of a typed struct with a field ``ts``. ``get``: the F features of one, in a tuple."""

    def __init__(
        self,
        kind: type[Typed],
        get: Callable[[Typed], tuple[Any, ...]],
        time: Callable[[Typed], object],
        features: int,
        exact: Exact,
        missing: int | float | None,
    ) -> None:
        self._decoder = msgspec.json.Decoder(kind)
        self._get, self._time = get, time
        self._exact, self._missing, self._features = exact, missing, features
        self._pack = struct.Struct(f"{features}{'q' if exact.integral else 'd'}").pack
        self._packed: Any = np.int64 if exact.integral else np.float64

    def columns(self, values: Sequence[bytes]) -> Columns:
        """N values; those that are not of the type are doubtful."""
        rows, doubtful = self._rows(values)
        x, unsure = self._column([self._get(row) for row in rows])
        times: list[object] = list(map(self._time, rows))
        if not doubtful:
            return Columns(x, times, unsure)
        good = np.ones(len(values), bool)
        good[doubtful] = False
        index = np.flatnonzero(good)
        every = np.zeros((len(values), self._features), self._exact.dtype)
        every[index] = x
        all_times = [times[0] if times else None] * len(values)  # what is doubtful is of the kind of the others
        for place, time in zip(index.tolist(), times, strict=True):
            all_times[place] = time
        return Columns(every, all_times, sorted([*doubtful, *index[unsure].tolist()]))

    def _column(self, numbers: Sequence[tuple[Any, ...]]) -> tuple[Numbers, list[int]]:
        if self._missing is not None:
            missing = self._missing
            numbers = [
                tuple([missing if each is None else each for each in row]) if None in row else row for row in numbers
            ]
        pack = self._pack
        packed = np.frombuffer(b"".join([pack(*row) for row in numbers]), self._packed)
        return self._exact.column(packed.reshape(len(numbers), self._features), floats_may_be_integers=True)

    def _rows(self, values: Sequence[bytes]) -> tuple[list[Typed], list[int]]:
        """The values that are of the type, and the rows of those that are not."""
        rows: list[Typed] = []
        doubtful: list[int] = []
        for first in range(0, len(values), _CHUNK):
            chunk = values[first : first + _CHUNK]
            found = self._lines(chunk) if len(chunk) > _FEW and b"" not in chunk else None
            if found is not None:
                rows += found
                continue
            for row, value in enumerate(chunk, first):
                try:
                    if json_tokens.too_deep(value):
                        doubtful.append(row)
                    else:
                        rows.append(self._decoder.decode(value))
                except (msgspec.DecodeError, UnicodeDecodeError):
                    doubtful.append(row)
        return rows, doubtful

    def _lines(self, values: Sequence[bytes]) -> list[Typed] | None:
        """The values as lines in one call, None unless each of them is good.

        That every value begins with { and ends with } makes it impossible for two values to merge across the line break,
        so an equal count proves that each line is one value."""
        if set(map(_FIRST, values)) != _OPENED or set(map(_LAST, values)) != _CLOSED:
            return None
        if max(map(len, values)) > json_tokens.MAX_DEPTH and any(map(json_tokens.too_deep, values)):
            return None
        try:
            rows = self._decoder.decode_lines(b"\n".join(values))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        return rows if len(rows) == len(values) else None


def each_get(names: Iterable[str]) -> Callable[[Any], tuple[Any, ...]]:
    """The attributes ``names`` of an object, always in a tuple."""
    listed = list(names)
    if len(listed) == 1:
        one = attrgetter(listed[0])
        return lambda row: (one(row),)
    return attrgetter(*listed)
