"""Many values at once: native parsing into typed objects, packed into columns. What does not fit the types is doubtful."""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter, itemgetter
from typing import Annotated, Any, Generic, Protocol, TypeVar

import msgspec
import numpy as np

from streamer.records.exact import Exact, Numbers
from streamer.records.formats import json_tokens
from streamer.records.formats.base import Columns
from streamer.records.formats.wire import Wire
from streamer.words import TimeUnit

_CHUNK = 128
"""Values of one native call: their objects fit the processor's cache."""
_FEW = 32
"""Up to this many, reading one by one beats the checks of the one call over all; and of so many each is read alone when
one of them is bad, so that it costs its neighbours little."""
_RESTLESS = 5 * _CHUNK
"""Where one value was bad others follow: for so many values a native call reads ``_FEW`` of them."""
_OPEN, _CLOSE = b"{}"
_INT64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]

Typed = TypeVar("Typed")
Typed_contra = TypeVar("Typed_contra", contravariant=True)


def number_type(exact: Exact, *, optional: bool) -> Any:
    """A feature: integers for an integer input, floats else; null where it may be missing."""
    kind: Any = _INT64 if exact.integral else float
    return kind | None if optional else kind


def time_type(unit: TimeUnit) -> Any:
    return str | None if unit is TimeUnit.ISO8601 else int | float | None


class Reader(Protocol[Typed_contra]):
    """Typed objects as a column, some at a time: while they are in the processor's cache, and no longer."""

    def piece(self, rows: Sequence[Typed_contra]) -> Any:
        """What the column needs of some objects. IndexError: a list of one of them is shorter than a path asks."""
        ...

    def column(self, pieces: Sequence[Any]) -> tuple[Numbers, list[int]]:
        """[N, F] of all pieces in their order, and the rows that the definition has to decide."""
        ...


class Packed(Generic[Typed]):
    """Numbers of typed objects. ``get``: those of one object, in a tuple."""

    def __init__(
        self, get: Callable[[Typed], tuple[Any, ...]], exact: Exact, missing: Sequence[int | float | None]
    ) -> None:
        """``missing``: what stands for a null, of each number; NaN: the column has it there, too."""
        self._get, self._exact = get, exact
        self._missing = [0 if each is not None and each != each else each for each in missing]  # noqa: PLR0124 (NaN)
        self._open = [at for at, each in enumerate(missing) if each is not None and each != each]  # noqa: PLR0124
        self._some_may_be_missing = any(each is not None for each in missing)
        self._pack = struct.Struct(f"{len(missing)}{'q' if exact.integral else 'd'}").pack
        self._type: Any = np.int64 if exact.integral else np.float64

    def piece(self, rows: Sequence[Typed]) -> tuple[int, bytes, list[tuple[int, int]]]:
        """How many rows, their numbers, and where (row, number) a null is to be NaN."""
        get, pack = self._get, self._pack
        if not self._some_may_be_missing:
            return len(rows), b"".join([pack(*get(row)) for row in rows]), []
        missing = self._missing
        numbers = list(map(get, rows))
        gaps: list[tuple[int, int]] = []
        if self._open:
            gaps = [(n, at) for n, row in enumerate(numbers) if None in row for at in self._open if row[at] is None]
        packed = [
            pack(*[other if each is None else each for each, other in zip(row, missing, strict=True)])
            if None in row
            else pack(*row)
            for row in numbers
        ]
        return len(rows), b"".join(packed), gaps

    def column(self, pieces: Sequence[tuple[int, bytes, list[tuple[int, int]]]]) -> tuple[Numbers, list[int]]:
        packed = np.frombuffer(b"".join([each for _, each, _ in pieces]), self._type).reshape(-1, len(self._missing))
        x, bad = self._exact.column(packed, floats_may_be_integers=True)
        if any(gaps for *_, gaps in pieces):
            x = x if x.flags.writeable else x.copy()
            begin = 0
            for count, _, gaps in pieces:
                for row, at in gaps:
                    x[begin + row, at] = np.nan
                begin += count
        return x, bad


class TypedRows(Generic[Typed]):
    """Values as objects of a type, and columns of them."""

    def __init__(
        self,
        wire: Wire,
        kind: type[Typed],
        reader: Reader[Typed],
        time: Callable[[Typed], object] | None,
        whole: Callable[[Typed], bool] | None = None,
    ) -> None:
        """``time``: as given; None: a value has none. ``whole``: what ``reader`` and ``time`` ask for is there; None: always."""
        self._wire, self._decoder = wire, wire.decoder(kind)
        self._reader, self._time, self._whole = reader, time, whole

    def columns(self, values: Sequence[bytes]) -> Columns:
        """N values; those that are not of the type are doubtful."""
        count = len(values)
        pieces: list[Any] = []
        times: list[object] | None = None if self._time is None else []
        doubtful: list[int] = []
        for places, rows in self._rows(values, doubtful):
            try:
                self._take(rows, pieces, times)
            except IndexError:  # a list is shorter than a path asks
                assert self._whole is not None
                whole = list(map(self._whole, rows))
                doubtful += [place for place, good in zip(places, whole, strict=True) if not good]
                self._take([row for row, good in zip(rows, whole, strict=True) if good], pieces, times)
        if times is not None and times.count(None) == len(times):
            times = None
        x, unsure = self._reader.column(pieces)
        if not doubtful:
            return Columns(x, times, unsure)
        index = _others(doubtful, count)
        every = np.zeros((count, *x.shape[1:]), x.dtype)
        every[index] = x
        if times is not None:
            given, times = times, [times[0] if times else None] * count  # doubtful ones are of the kind of the others
            for place, time in zip(index.tolist(), given, strict=True):
                times[place] = time
        return Columns(every, times, sorted([*doubtful, *index[unsure].tolist()]))

    def _take(self, rows: Sequence[Typed], pieces: list[Any], times: list[object] | None) -> None:
        """All of ``rows``, or none with IndexError."""
        given = [] if times is None or self._time is None else list(map(self._time, rows))
        pieces.append(self._reader.piece(rows))
        if times is not None:
            times += given

    def _rows(self, values: Sequence[bytes], doubtful: list[int]) -> Iterator[tuple[Sequence[int], list[Typed]]]:
        """Values that are of the type, with their places, some at a time; the places of others go to ``doubtful``."""
        if not self._wire.lines or len(values) <= _FEW:
            yield self._alone(range(len(values)), values, doubtful)
            return
        lines = _Lines(values, self._wire)
        at = calm = 0
        while at < len(values):
            stop = lines.stop(at, _FEW if at < calm else _CHUNK)
            rows = self._together(lines.text(at, stop), stop - at) if stop > at + 1 else None
            if rows is not None:
                yield range(at, stop), rows
            elif stop - at > _FEW:
                calm = at + _RESTLESS
                continue
            else:
                calm = max(calm, at + _RESTLESS)
                yield self._alone(range(at, stop), values, doubtful)
            at = stop

    def _together(self, text: memoryview, count: int) -> list[Typed] | None:
        """Lines in one call, None unless each of them is a good value."""
        try:
            rows: list[Typed] = self._decoder.decode_lines(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        return rows if len(rows) == count else None

    def _alone(
        self, places: Sequence[int], values: Sequence[bytes], doubtful: list[int]
    ) -> tuple[Sequence[int], list[Typed]]:
        rows: list[Typed] = []
        found: list[int] = []
        decode, too_deep = self._decoder.decode, self._wire.too_deep
        for place in places:
            value = values[place]
            try:
                if len(value) > json_tokens.MAX_DEPTH and too_deep(value):
                    doubtful.append(place)
                    continue
                rows.append(decode(value))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                doubtful.append(place)
            else:
                found.append(place)
        return found, rows


class _Lines:
    """Values joined by line breaks. Some of them are read together where each begins with { and ends with }: then two
    values cannot merge across the line break, so as many objects as lines prove that each line is one value."""

    def __init__(self, values: Sequence[bytes], wire: Wire) -> None:
        sizes = np.fromiter(map(len, values), np.int64, len(values))
        joined = b"\n".join(values)
        self._text = memoryview(joined)
        self._ends = ends = np.cumsum(sizes + 1) - 1  # of each value: where its line break is
        letters = np.frombuffer(joined + b"\n", np.uint8)
        # an empty value has a line break at its place
        fit = (letters[ends - sizes] == _OPEN) & (letters[ends - 1] == _CLOSE)
        if int(sizes.max()) > json_tokens.MAX_DEPTH:
            for row in np.flatnonzero(sizes > json_tokens.MAX_DEPTH).tolist():
                fit[row] = fit[row] and not wire.too_deep(values[row])
        self._odd = [] if fit.all() else np.flatnonzero(~fit).tolist()
        self._count = len(values)

    def stop(self, at: int, most: int) -> int:
        """How far values from ``at`` can be read together: at least one."""
        stop = min(at + most, self._count)
        if self._odd:
            odd = bisect_left(self._odd, at)
            if odd < len(self._odd):
                stop = min(stop, max(self._odd[odd], at + 1))
        return stop

    def text(self, at: int, stop: int) -> memoryview:
        return self._text[int(self._ends[at - 1]) + 1 if at else 0 : int(self._ends[stop - 1])]


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


def fields_get(kind: Any, gets: Sequence[str | Callable[[Any], Any]]) -> Callable[[Any], tuple[Any, ...]]:
    """The same of an object of type ``kind``: all its fields at once where they are its first ones, or else one by one."""
    if list(gets) == list(kind.__struct_fields__[: len(gets)]):
        count, all_fields = len(gets), msgspec.structs.astuple
        return lambda row: all_fields(row)[:count]
    return each_get(gets)


def one_get(get: str | int | Callable[[Any], Any]) -> Callable[[Any], Any]:
    if isinstance(get, int):
        return itemgetter(get)
    return attrgetter(get) if isinstance(get, str) else get


def _others(doubtful: Sequence[int], count: int) -> Numbers:
    good = np.ones(count, bool)
    good[list(doubtful)] = False
    return np.flatnonzero(good)
