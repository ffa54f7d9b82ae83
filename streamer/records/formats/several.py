"""Records of several steps: ``{"x": [[F numbers], ...], "ts": time}`` in JSON or MessagePack, T*F float32, or the user's.

Where F is 1, a step may be the number alone. T is 1 to ``input.max_record_steps``; a record of more, or of none, is no
event. Here ``x`` is a column of arrays [T, F]; ``joined`` puts them one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np

from streamer.core import I64, Headers
from streamer.errors import ConfigurationError
from streamer.modelfile.feature import Feature
from streamer.records.exact import Exact, Numbers
from streamer.records.formats.base import NO_HEADERS, Columns, Format, Row
from streamer.records.formats.named import Fields
from streamer.records.formats.text import TextRecords
from streamer.records.formats.typed import Packed, TypedRows, number_type, time_type
from streamer.records.formats.user import User
from streamer.records.formats.wire import Json, Msgpack, Wire
from streamer.records.meaning import Meaning, as_listed, meanings
from streamer.records.unusable import Unusable, unforeseen
from streamer.words import Reason, TimeUnit

_WIRES: dict[str, type[Wire]] = {"json": Json, "msgpack": Msgpack}


def several(
    name: str,
    features: Sequence[Feature],
    exact: Exact,
    missing: int | float | None,
    unit: TimeUnit,
    fields: Fields,
    most: int,
) -> Format:
    """The format ``name`` of records that hold up to ``most`` steps. ConfigurationError: it has none."""
    if features[0].kind == "text" and name in ("json", "json-named", "msgpack"):
        return TextRecords(name, features[0], exact, unit, fields, most)
    if fields.given:
        raise ConfigurationError(
            "a record of the model's input holds several steps of numbers, which have no fields of their own: leave out "
            "[input.fields] and input.time"
        )
    if name in _WIRES:
        return Steps(_WIRES[name](), meanings(as_listed(features, exact), exact, missing), exact, unit, most)
    if name == "json-named":
        raise ConfigurationError(
            'input.format = "json-named": a record of the model\'s input holds several steps, which are a list of lists of '
            'numbers: set input.format to "json", "msgpack" or "float32"'
        )
    names = [feature.name for feature in features]
    return Float32Steps(names, exact, most) if name == "float32" else UserSteps(name, names, exact, most)


class Steps:
    """Features by place, in lists."""

    def __init__(self, wire: Wire, wanted: Sequence[Meaning], exact: Exact, unit: TimeUnit, most: int) -> None:
        self._wire, self._exact, self._most = wire, exact, most
        self._missing = [meaning.missing for meaning in wanted]
        self._features = len(wanted)
        absent: list[Any] = [("x", list[msgspec.Raw]), ("ts", msgspec.Raw, wire.null)]
        self._written = wire.decoder(msgspec.defstruct("Written", absent))
        self._listed = wire.decoder(list[msgspec.Raw])
        items = tuple(number_type(exact, optional=each is not None) for each in self._missing)
        step: Any = tuple.__class_getitem__(items)
        if self._features == 1:
            step = step | items[0]
        kind = msgspec.defstruct("Value", [("x", list[step]), ("ts", time_type(unit), None)], gc=False)
        self._typed: TypedRows[Any] = TypedRows(wire, kind, _Steps(exact, self._missing, most), attrgetter("ts"))

    def row(self, value: bytes, headers: Headers = ()) -> Row:
        if self._wire.too_deep(value):
            raise Unusable(Reason.UNDECODABLE, self._wire.deep)
        try:
            written = self._written.decode(value)
            check_steps(len(written.x), self._most)
            x = [self._step(token, place) for place, token in enumerate(written.x)]
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Unusable(Reason.UNDECODABLE, str(error)) from None
        return np.array(x, self._exact.dtype), self._wire.time(written.ts)

    def columns(self, values: Sequence[bytes], headers: Mapping[int, Headers] = NO_HEADERS) -> Columns:
        return self._typed.columns(values)

    def _step(self, token: msgspec.Raw, place: int) -> list[int | float]:
        alone = self._features == 1 and not self._wire.is_list(token)
        tokens = [token] if alone else self._listed.decode(token)
        if len(tokens) != self._features:
            raise Unusable(
                Reason.WRONG_WIDTH, f"step {place} of x has {len(tokens)} values, the model takes {self._features}"
            )
        numbers: list[int | float] = []
        for feature, (each, stands) in enumerate(zip(tokens, self._missing, strict=True)):
            cell, name = self._wire.cell(each), f"{feature} of step {place}"
            if cell is None and stands is not None:
                numbers.append(stands)
            elif cell is None:
                raise Unusable(Reason.MISSING_FEATURE, f"feature {name!r} is null or missing")
            elif isinstance(cell, bool) or not isinstance(cell, int | float):
                raise Unusable(Reason.UNDECODABLE, f"feature {name!r} is not a number")
            else:
                numbers.append(self._exact.number(cell, name))
        return numbers


class _Steps:
    """Typed objects as a column of arrays [T, F]."""

    def __init__(self, exact: Exact, missing: Sequence[int | float | None], most: int) -> None:
        self._packed: Packed[Any] = Packed(lambda step: step, exact, missing)
        self._alone, self._most = len(missing) == 1, most

    def piece(self, rows: Sequence[Any]) -> tuple[list[int], Any]:
        steps: list[Any] = list(chain.from_iterable([row.x for row in rows]))
        if self._alone:
            steps = [step if type(step) is tuple else (step,) for step in steps]
        return [len(row.x) for row in rows], self._packed.piece(steps)

    def column(self, pieces: Sequence[tuple[list[int], Any]]) -> tuple[Numbers, list[int]]:
        counts = np.fromiter(chain.from_iterable([each for each, _ in pieces]), np.int64)
        unsure = set(np.flatnonzero((counts < 1) | (counts > self._most)).tolist())
        table, bad = self._packed.column([packed for _, packed in pieces])
        ends = np.cumsum(counts)
        unsure.update(np.searchsorted(ends, bad, "right").tolist())
        return _cut(table, ends), sorted(unsure)


class Float32Steps:
    """T*F little-endian float32 per value, step by step; the record's timestamp counts."""

    def __init__(self, features: Sequence[str], exact: Exact, most: int) -> None:
        self._features, self._exact, self._most = len(features), exact, most
        self._width = 4 * len(features)

    def row(self, value: bytes, headers: Headers = ()) -> Row:
        steps, rest = divmod(len(value), self._width)
        if rest:
            raise Unusable(
                Reason.WRONG_WIDTH,
                f"value has {len(value)} bytes, a step of the model has {self._width}: no whole steps",
            )
        check_steps(steps, self._most)
        numbers = np.frombuffer(value, "<f4").tolist()
        x = [
            self._exact.number(each, f"{at % self._features} of step {at // self._features}")
            for at, each in enumerate(numbers)
        ]
        return np.array(x, self._exact.dtype).reshape(steps, self._features), None

    def columns(self, values: Sequence[bytes], headers: Mapping[int, Headers] = NO_HEADERS) -> Columns:
        sizes = np.fromiter(map(len, values), np.int64, len(values))
        wrong = (sizes % self._width != 0) | (sizes < self._width) | (sizes > self._most * self._width)
        doubtful = set(np.flatnonzero(wrong).tolist())
        if doubtful:
            values = [b"" if row in doubtful else value for row, value in enumerate(values)]
        ends = np.cumsum(np.where(wrong, 0, sizes // self._width))
        column, bad = self._exact.column(np.frombuffer(b"".join(values), "<f4").reshape(-1, self._features))
        doubtful.update(np.searchsorted(ends, bad, "right").tolist())
        return Columns(_cut(column, ends), None, sorted(doubtful))


class UserSteps(User):
    """The user's own, whose ``x`` is a list of N arrays [T, F], one for each value."""

    def __init__(self, target: str, features: Sequence[str], exact: Exact, most: int) -> None:
        super().__init__(target, features, exact)
        self._most = most

    def row(self, value: bytes, headers: Headers = ()) -> Row:
        found = self._call([value])
        if isinstance(found, BaseException):
            raise unforeseen(found)
        x, times, bad = found
        if bad:
            raise bad[0]
        check_steps(len(x[0]), self._most)
        steps = [
            [self._exact.number(each, f"{name} of step {at}") for each, name in zip(step, self._names, strict=True)]
            for at, step in enumerate(x[0].tolist())
        ]
        return np.array(steps, self._exact.dtype), None if times is None else times[0]

    def columns(self, values: Sequence[bytes], headers: Mapping[int, Headers] = NO_HEADERS) -> Columns:
        """Each value by the definition, in a call of its own: a decoder of arrays has its work in each of them."""
        return Columns(no_steps(len(values)), None, list(range(len(values))))

    def _numbers(self, x: Any, count: int) -> np.ndarray[Any, Any]:
        if len(x) != count:
            raise ValueError(f"x has {len(x)} arrays, one for each of {count} values are needed")
        found = no_steps(count)
        for row, each in enumerate(x):
            steps = np.array(each)  # a copy: the decoder may use its memory again
            if steps.size and (steps.dtype.kind not in "fiu" or steps.dtype.itemsize > 8):
                raise TypeError(f"x is of dtype {steps.dtype}, not of numbers")
            if steps.ndim == 1 and len(self._names) == 1:
                steps = steps[:, None]
            if steps.size and (steps.ndim != 2 or steps.shape[1] != len(self._names)):
                raise ValueError(f"x has an array of shape {steps.shape}, not (T, {len(self._names)})")
            found[row] = steps
        return found


def check_steps(count: int, most: int) -> None:
    """Unusable: a record has no step, or more than ``most``."""
    if not count:
        raise Unusable(Reason.WRONG_WIDTH, "the record has no step, at least one is needed")
    if count > most:
        raise Unusable(Reason.TOO_LARGE, f"the record has {count} steps, input.max_record_steps is {most}")


def no_steps(rows: int) -> Numbers:
    """[N] of nothing yet."""
    return np.full(rows, None, object)


def joined(x: Numbers, features: int, dtype: np.dtype[Any]) -> tuple[Numbers, I64]:
    """Arrays [T, F], or None for what has no steps, one after the other: [sum of T, F], and T of each."""
    parts = [np.empty((0, features), dtype), *(each for each in x.tolist() if each is not None)]
    steps = np.fromiter((0 if each is None else len(each) for each in x.tolist()), np.int64, len(x))
    return np.concatenate(parts), steps


def _cut(table: Numbers, ends: I64) -> Numbers:
    """[sum of T, F] as [N] of arrays [T, F]."""
    found, begin = no_steps(len(ends)), 0
    for row, end in enumerate(ends.tolist()):
        found[row] = table[begin:end]
        begin = end
    return found
