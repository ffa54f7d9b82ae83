"""Values with fields that have names, ``{"cpu": 0.3, ..., "ts": time}``: what each feature of the contract is made of.

A feature is where ``[input.fields]`` says, else in the field of its own name. A field that is absent is the same as one
that is null. A field may be read by several features, and as the time as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from streamer.core import Headers
from streamer.errors import ConfigurationError
from streamer.modelfile.feature import Feature
from streamer.records.exact import Exact, Numbers
from streamer.records.formats import json_tokens
from streamer.records.formats.base import NO_HEADERS, Columns, ReadsOne, Row
from streamer.records.formats.layout import NoFastPath, Steps, Written, getter, tree, typed
from streamer.records.formats.native import Layout, Native, Rows
from streamer.records.formats.typed import Packed, Reader, TypedRows, fields_get, number_type, one_get, time_type
from streamer.records.formats.wire import Wire
from streamer.records.meaning import Cell, Meaning, MissingRule, as_read, is_nan, meanings, refuse_past, rule_of
from streamer.records.unusable import Unusable
from streamer.settings.fields import FieldConstant, FieldHeader, FieldPath, Place
from streamer.words import Reason, TimeUnit

TIME = FieldPath(("ts",))
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_ODD = re.compile(r'["\\\x00-\x1f\ud800-\udfff]')
_TRUTHS = {"true": True, "false": False}
_LOOKED_UP: dict[str, Any] = {"category": str | int | float | None, "flag": bool | int | float | None}
"""Kinds whose numbers stand in a table, and what their cells are read as"""


@dataclass(frozen=True)
class Fields:
    """Where a record has what is wanted: feature -> place, and the place of the time (None: the field ``ts``)."""

    places: Mapping[str, Place] = field(default_factory=dict)
    time: Place | None = None
    missing: Mapping[str, MissingRule] = field(default_factory=dict)
    """Feature or field -> what stands for a missing one, instead of what the contract says"""

    @property
    def given(self) -> bool:
        return bool(self.places or self.missing) or self.time is not None


def named(
    name: str,
    wire: Wire,
    features: Sequence[Feature],
    exact: Exact,
    missing: int | float | None,
    unit: TimeUnit,
    fields: Fields,
    native: Native,
) -> Named:
    """The format ``name``. ConfigurationError: as of ``as_placed``."""
    wanted, places = as_placed(name, features, exact, missing, fields)
    return Named(wire, wanted, places, fields.time or TIME, exact, unit, native)


def as_placed(
    name: str, features: Sequence[Feature], exact: Exact, missing: int | float | None, fields: Fields
) -> tuple[list[Meaning], list[Place]]:
    """What each feature is made of, and where that is found. ConfigurationError: a feature that no record of format
    ``name`` has, a field of no feature, or a field whose name is not read."""
    known = {each for feature in features for each in (feature.name, feature.field)}
    for each in (*fields.places, *fields.missing):
        if each not in known:
            raise ConfigurationError(
                f"input.fields.{each}: the contract has no such feature, it has {', '.join(f.name for f in features)}"
            )
    complete = {each.name for each in features if rule_of(each, fields.missing) == "reject"}
    features = as_read(features, fields.places, fields.missing)
    refuse_past(features, exact, name)
    places = places_of(features, fields)
    for place in (*places, *([] if fields.time is None else [fields.time])):
        _refuse_odd(name, place)
    return meanings(features, exact, missing, complete), places


def _refuse_odd(name: str, place: Place) -> None:
    """ConfigurationError: a field's name is written with escapes, in several ways: no parser here looks for it."""
    for step in place.steps if isinstance(place, FieldPath) else ():
        if isinstance(step, str) and _ODD.search(step):
            raise ConfigurationError(
                f"no field of a {name} record can be named {step!r}: quotes, backslashes, control characters and halves of "
                "surrogates are not read. Rename it in the records, or name another field in input.fields or input.time"
            )


def places_of(features: Sequence[Feature], fields: Fields) -> list[Place]:
    """Where each of ``features``, as read, is found."""
    by_name = {feature.name: feature for feature in features if feature.kind != "present"}
    return [_place(feature, by_name, fields.places) for feature in features]


def _place(feature: Feature, by_name: Mapping[str, Feature], given: Mapping[str, Place]) -> Place:
    if feature.name in given:
        return given[feature.name]
    if feature.kind == "since_last":  # the past makes it
        return FieldConstant(0)
    if feature.kind == "present" and feature.field in by_name:
        return _place(by_name[feature.field], {}, given)
    return given.get(feature.field, FieldPath((feature.field,)))


class Named:
    """``row`` is the definition; ``columns`` reads natively, or typed objects as far as one type is all that is read of a field."""

    def __init__(
        self,
        wire: Wire,
        wanted: Sequence[Meaning],
        places: Sequence[Place],
        time: Place,
        exact: Exact,
        unit: TimeUnit,
        native: Native,
    ) -> None:
        self._wire, self._meanings, self._places, self._time, self._unit = wire, wanted, places, time, unit
        self._dtype = exact.dtype
        self._paths: list[Steps] = []
        for each in (*places, time):
            if isinstance(each, FieldPath) and each.steps not in self._paths:
                self._paths.append(each.steps)
        self._plan = [
            (meaning, place, self._paths.index(place.steps) if isinstance(place, FieldPath) else None)
            for meaning, place in zip(wanted, places, strict=True)
        ]
        self._constants = {
            at: _constant(meaning, place.value)
            for at, (meaning, place) in enumerate(zip(wanted, places, strict=True))
            if isinstance(place, FieldConstant)
        }
        self._headers = [
            (at, meaning, place.name)
            for at, (meaning, place) in enumerate(zip(wanted, places, strict=True))
            if isinstance(place, FieldHeader)
        ]
        self._written: ReadsOne
        self._rows: Rows
        self._open(exact, native)

    def _open(self, exact: Exact, native: Native) -> None:
        """What reads values: the definition, and what is faster."""
        self._written = Written(tree(self._paths), self._wire)
        try:
            pure: Rows = self._fast(exact)
        except NoFastPath:
            pure = _OneByOne(len(self._meanings), self._dtype)
        self._rows = native.first(self._layout(exact), pure)

    def row(self, value: bytes, headers: Headers = ()) -> Row:
        if self._wire.too_deep(value):
            raise Unusable(Reason.UNDECODABLE, self._wire.deep)
        found = [self._wire.null] * len(self._paths)
        self._written.read(value, found)
        numbers: list[int | float] = []
        for meaning, place, leaf in self._plan:
            if leaf is not None:
                numbers.append(meaning.number(self._cell(meaning, found[leaf])))
            elif isinstance(place, FieldHeader):
                numbers.append(meaning.number(header_cell(last_header(headers, place.name), meaning.kind)))
            else:
                numbers.append(self._constants[len(numbers)])
        if isinstance(self._time, FieldPath):
            return numbers, self._wire.time(found[self._paths.index(self._time.steps)])
        return numbers, self._header_time(headers)

    def columns(self, values: Sequence[bytes], headers: Mapping[int, Headers] = NO_HEADERS) -> Columns:
        found = self._rows.columns(values)
        if isinstance(self._time, FieldHeader):
            found.times = [self._header_time(headers.get(row, ()), careful=False) for row in range(len(values))]
        for at, meaning, name in self._headers:
            known: dict[bytes | None, int | float | None] = {}
            for row in range(len(values)):
                raw = last_header(headers.get(row, ()), name)
                if raw not in known:
                    known[raw] = _number_or_none(meaning, raw)
                number = known[raw]
                if number is None:
                    found.doubtful.append(row)
                else:
                    found.x[row, at] = number
        return found

    def _cell(self, meaning: Meaning, token: msgspec.Raw) -> Cell:
        if meaning.kind == "present":  # whatever it is
            return None if self._wire.is_nothing(token) else True
        return self._wire.cell(token)

    def _header_time(self, headers: Headers, *, careful: bool = True) -> object:
        assert isinstance(self._time, FieldHeader)
        try:
            kind = "category" if self._unit is TimeUnit.ISO8601 else "number"
            return header_cell(last_header(headers, self._time.name), kind)
        except Unusable:
            if careful:
                raise
            return False  # which is no time: the definition decides

    def _layout(self, exact: Exact) -> Layout:
        """What the native path has to know. Headers are read in Python."""
        layout = Layout(exact, self._unit, len(self._meanings), self._constants)
        for at, (meaning, place) in enumerate(zip(self._meanings, self._places, strict=True)):
            if isinstance(place, FieldPath):
                layout.fields.setdefault(place.steps, []).append((at, meaning))
        if isinstance(self._time, FieldPath):
            layout.time = self._time.steps
        return layout

    def _fast(self, exact: Exact) -> TypedRows[Any]:
        """The typed path. NoFastPath: a field is read as several kinds of thing."""
        root = tree(self._paths)
        users: dict[Steps, list[Meaning]] = {path: [] for path in self._paths}
        for meaning, place in zip(self._meanings, self._places, strict=True):
            if isinstance(place, FieldPath):
                users[place.steps].append(meaning)
        time = self._time.steps if isinstance(self._time, FieldPath) else None
        kinds = [_kind(users[path], path == time, exact, self._unit) for path in self._paths]
        kind, _ = typed(root, [kind for kind, _ in kinds], [optional for _, optional in kinds])
        gets = [getter(root, place.steps) if isinstance(place, FieldPath) else None for place in self._places]
        numbers = [
            (meaning, get)
            for meaning, get in zip(self._meanings, gets, strict=True)
            if get is not None and is_number(meaning)
        ]
        packed: Packed[Any] | None = None
        if numbers:
            missing = [meaning.missing for meaning, _ in numbers]
            packed = Packed(fields_get(kind, [get for _, get in numbers]), exact, missing)
        reader: Reader[Any] = _Column(self._wire, self._meanings, gets, self._constants, packed, exact)
        if packed is not None and len(numbers) == len(self._meanings):
            reader = packed
        time_get = None if time is None else getter(root, time)
        listed = [get for get in (*gets, time_get) if get is not None and not isinstance(get, str)]
        return TypedRows(self._wire, kind, reader, None if time_get is None else one_get(time_get), _whole(listed))


class _OneByOne:
    """No one type is all that is read of a field: the definition decides every value."""

    def __init__(self, columns: int, dtype: np.dtype[Any]) -> None:
        self._columns, self._dtype = columns, dtype

    def columns(self, values: Sequence[bytes]) -> Columns:
        return Columns(np.zeros((len(values), self._columns), self._dtype), None, list(range(len(values))))


class _Column:
    """Typed objects as features [N, F]: numbers packed together, the others column by column."""

    def __init__(
        self,
        wire: Wire,
        wanted: Sequence[Meaning],
        gets: Sequence[str | int | Callable[[Any], Any] | None],
        constants: Mapping[int, int | float],
        packed: Packed[Any] | None,
        exact: Exact,
    ) -> None:
        """``packed``: of the features that are plain numbers; None: there are none."""
        read = [
            (at, meaning, get) for at, (meaning, get) in enumerate(zip(wanted, gets, strict=True)) if get is not None
        ]
        self._packed, self._numbers = packed, [at for at, meaning, _ in read if is_number(meaning)]
        self._tables = [(at, one_get(get), m.table, m.other) for at, m, get in read if m.table is not None]
        self._present = [(at, one_get(get)) for at, meaning, get in read if meaning.kind == "present"]
        self._wire, self._constants, self._features, self._dtype = wire, constants, len(wanted), exact.dtype

    def piece(self, rows: Sequence[Any]) -> tuple[int, Any, list[list[int | float | None]], list[list[bool]]]:
        return (
            len(rows),
            None if self._packed is None else self._packed.piece(rows),
            [[table.get(get(row), other) for row in rows] for _, get, table, other in self._tables],
            [[not self._nothing(get(row)) for row in rows] for _, get in self._present],
        )

    def column(self, pieces: Sequence[Any]) -> tuple[Numbers, list[int]]:
        count = sum(rows for rows, *_ in pieces)
        x = np.zeros((count, self._features), self._dtype)
        unsure: set[int] = set()
        if self._packed is not None:
            x[:, self._numbers], bad = self._packed.column([numbers for _, numbers, *_ in pieces])
            unsure.update(bad)
        for place, (at, *_) in enumerate(self._tables):
            found = [number for _, _, tables, _ in pieces for number in tables[place]]
            if None in found:
                unsure.update(row for row, number in enumerate(found) if number is None)
                found = [number or 0 for number in found]
            x[:, at] = found
        for place, (at, _) in enumerate(self._present):
            x[:, at] = [there for *_, present in pieces for there in present[place]]
        for at, number in self._constants.items():
            x[:, at] = number
        return x, sorted(unsure)

    def _nothing(self, cell: Any) -> bool:
        return cell is None or is_nan(cell) or (isinstance(cell, msgspec.Raw) and self._wire.is_nothing(cell))


def is_number(meaning: Meaning) -> bool:
    return meaning.table is None and meaning.kind != "present"


def _kind(users: Sequence[Meaning], is_time: bool, exact: Exact, unit: TimeUnit) -> tuple[Any, bool]:
    """The type of a field, and whether it may be null. NoFastPath: two types are wanted."""
    kinds = {meaning.kind if meaning.kind in _LOOKED_UP else "number" for meaning in users if meaning.kind != "present"}
    if len(kinds) > 1 or (is_time and kinds & _LOOKED_UP.keys()):
        raise NoFastPath
    if "number" in kinds:
        optional = all(meaning.missing is not None for meaning in users if meaning.kind != "present")
        return number_type(exact, optional=optional), optional
    if kinds:
        return _LOOKED_UP[kinds.pop()], True
    return (time_type(unit) if is_time else msgspec.Raw), True


def _whole(gets: Sequence[Callable[[Any], Any]]) -> Callable[[Any], bool] | None:
    if not gets:
        return None

    def whole(row: Any) -> bool:
        try:
            for get in gets:
                get(row)
        except IndexError:
            return False
        return True

    return whole


def last_header(headers: Headers, name: str) -> bytes | None:
    """The last header of that name."""
    found = None
    for each, value in headers:
        if each == name:
            found = value
    return found


def header_cell(raw: bytes | None, kind: str) -> Cell:
    """A header is text: as it is for a word, else a number or a truth as JSON writes them. Unusable: no UTF-8."""
    if raw is None:
        return None
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise Unusable(Reason.UNDECODABLE, f"a header: {error}") from None
    return _text_cell(text, kind)


def _text_cell(text: str, kind: str) -> Cell:
    """As ``header_cell``, of what is a text already."""
    if kind in ("category", "present"):
        return text
    if _NUMBER.fullmatch(text):
        return json_tokens.digits(text.encode())
    return _TRUTHS.get(text, text)


def _number_or_none(meaning: Meaning, raw: bytes | None) -> int | float | None:
    try:
        return meaning.number(header_cell(raw, meaning.kind))
    except Unusable:
        return None


def _constant(meaning: Meaning, value: float | int | bool | str) -> int | float:
    """A text, which is what a flag or the environment gives, is read as a header's."""
    try:
        return meaning.number(_text_cell(value, meaning.kind) if isinstance(value, str) else value)
    except Unusable as why:
        told = f"input.fields.{meaning.name}: the constant {str(value)[:80]!r} cannot be used: {why.detail}"
        raise ConfigurationError(told) from None
