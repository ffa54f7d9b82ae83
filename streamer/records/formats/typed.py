"""Many values at once: native parsing into typed objects, packed into columns. What does not fit the types is doubtful."""

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
from streamer.records.formats.wire import Wire
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


class Packed(Generic[Typed]):
    """Numbers of typed objects as a column. ``get``: those of one object, in a tuple."""

    def __init__(
        self, get: Callable[[Typed], tuple[Any, ...]], exact: Exact, missing: Sequence[int | float | None]
    ) -> None:
        """``missing``: what stands for a null, of each number."""
        self._get, self._exact, self._missing = get, exact, missing
        self._some_may_be_missing = any(each is not None for each in missing)
        self._pack = struct.Struct(f"{len(missing)}{'q' if exact.integral else 'd'}").pack
        self._type: Any = np.int64 if exact.integral else np.float64

    def column(self, rows: Sequence[Typed]) -> tuple[Numbers, list[int]]:
        """[N, numbers], and the rows that the definition has to decide."""
        get, pack = self._get, self._pack
        numbers = [get(row) for row in rows]
        if self._some_may_be_missing:
            missing = self._missing
            numbers = [
                tuple([other if each is None else each for each, other in zip(row, missing, strict=True)])
                if None in row
                else row
                for row in numbers
            ]
        packed = np.frombuffer(b"".join([pack(*row) for row in numbers]), self._type)
        return self._exact.column(packed.reshape(len(numbers), len(self._missing)), floats_may_be_integers=True)


class TypedRows(Generic[Typed]):
    """Values as objects of a type, and columns of them."""

    def __init__(
        self,
        wire: Wire,
        kind: type[Typed],
        column: Callable[[Sequence[Typed]], tuple[Numbers, list[int]]],
        time: Callable[[Typed], object] | None,
        whole: Callable[[Typed], bool] | None = None,
    ) -> None:
        """``time``: as given; None: a value has none. ``whole``: what ``column`` and ``time`` ask for is there; None: always."""
        self._wire, self._decoder = wire, wire.decoder(kind)
        self._column, self._time, self._whole = column, time, whole

    def columns(self, values: Sequence[bytes]) -> Columns:
        """N values; those that are not of the type are doubtful."""
        rows, doubtful = self._rows(values)
        try:
            x, unsure, times = self._read(rows)
        except IndexError:  # a list is shorter than a path asks
            rows, doubtful = self._without_gaps(rows, doubtful, len(values))
            x, unsure, times = self._read(rows)
        if not doubtful:
            return Columns(x, times, unsure)
        index = _others(doubtful, len(values))
        every = np.zeros((len(values), x.shape[1]), x.dtype)
        every[index] = x
        all_times: list[object] | None = None
        if times is not None:
            all_times = [times[0] if times else None] * len(values)  # what is doubtful is of the kind of the others
            for place, time in zip(index.tolist(), times, strict=True):
                all_times[place] = time
        return Columns(every, all_times, sorted([*doubtful, *index[unsure].tolist()]))

    def _read(self, rows: Sequence[Typed]) -> tuple[Numbers, list[int], list[object] | None]:
        x, unsure = self._column(rows)
        return x, unsure, None if self._time is None else list(map(self._time, rows))

    def _without_gaps(self, rows: list[Typed], doubtful: list[int], count: int) -> tuple[list[Typed], list[int]]:
        whole = [self._whole is None or self._whole(row) for row in rows]
        index = _others(doubtful, count).tolist()
        gaps = [place for place, good in zip(index, whole, strict=True) if not good]
        return [row for row, good in zip(rows, whole, strict=True) if good], [*doubtful, *gaps]

    def _rows(self, values: Sequence[bytes]) -> tuple[list[Typed], list[int]]:
        """The values that are of the type, and the rows of those that are not."""
        rows: list[Typed] = []
        doubtful: list[int] = []
        for first in range(0, len(values), _CHUNK):
            chunk = values[first : first + _CHUNK]
            found = self._lines(chunk) if self._wire.lines and len(chunk) > _FEW and b"" not in chunk else None
            if found is not None:
                rows += found
                continue
            for row, value in enumerate(chunk, first):
                try:
                    if self._wire.too_deep(value):
                        doubtful.append(row)
                    else:
                        rows.append(self._decoder.decode(value))
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    doubtful.append(row)
        return rows, doubtful

    def _lines(self, values: Sequence[bytes]) -> list[Typed] | None:
        """The values as lines in one call, None unless each of them is good.

        That every value begins with { and ends with } makes it impossible for two values to merge across the line break,
        so an equal count proves that each line is one value."""
        if set(map(_FIRST, values)) != _OPENED or set(map(_LAST, values)) != _CLOSED:
            return None
        if max(map(len, values)) > json_tokens.MAX_DEPTH and any(map(self._wire.too_deep, values)):
            return None
        try:
            rows = self._decoder.decode_lines(b"\n".join(values))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        return rows if len(rows) == len(values) else None


def each_get(gets: Iterable[str | int | Callable[[Any], Any]]) -> Callable[[Any], tuple[Any, ...]]:
    """What attributes (dotted names), places in a list or functions find in an object, always in a tuple."""
    listed = list(gets)
    if not listed:
        return lambda row: ()
    places = [each for each in listed if isinstance(each, int)]
    if len(places) == len(listed) > 1:
        return itemgetter(*places)
    names = [each for each in listed if isinstance(each, str)]
    if len(names) < len(listed):
        functions = [one_get(each) for each in listed]
        return lambda row: tuple([each(row) for each in functions])
    if len(names) == 1:
        one = attrgetter(names[0])
        return lambda row: (one(row),)
    return attrgetter(*names)


def one_get(get: str | int | Callable[[Any], Any]) -> Callable[[Any], Any]:
    if isinstance(get, int):
        return itemgetter(get)
    return attrgetter(get) if isinstance(get, str) else get


def _others(doubtful: Sequence[int], count: int) -> Numbers:
    good = np.ones(count, bool)
    good[list(doubtful)] = False
    return np.flatnonzero(good)
