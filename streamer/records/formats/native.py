"""Columns by native code, where the wheel ``streamer-rnn-native`` is installed (its sources: ``streamer/native/``).

It decides only rows that it is sure about: plain good records. Every other row is doubtful, and the definition decides it,
so the meaning of a record and the reasons of rejects have one home, and it is Python.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from math import isfinite
from typing import Any, Protocol

import numpy as np

from streamer.errors import ConfigurationError
from streamer.records.exact import Exact
from streamer.records.formats.base import Columns
from streamer.records.meaning import Cell, Meaning
from streamer.records.schemas.reader import Flat, FlatKind
from streamer.records.times import Given
from streamer.records.unusable import Unusable
from streamer.words import Decoder, TimeUnit

MODULE = "streamer_native"
WHEEL = "streamer-rnn-native"
PROTOCOL = 3
"""Of what both sides say to each other."""
_CAREFUL, _TIMED = 1, 2
"""Marks of a row"""
_ONE_OF = 4
"""Where more than one row of so many is doubtful, the records are of a kind that typed Python reads faster."""

_INSTALL = "install the wheel of this version (make native), or "

Path = tuple[str | int, ...]
Number = int | float


class Rows(Protocol):
    """What reads many values at once."""

    def columns(self, values: Sequence[bytes]) -> Columns: ...


@dataclass
class Layout:
    """What is read of a value: for the places of the columns, the number that stands there, or the path that says it."""

    exact: Exact
    unit: TimeUnit
    columns: int
    constants: Mapping[int, Number] = field(default_factory=dict)
    fields: dict[Path, list[tuple[int, Meaning]]] = field(default_factory=dict)
    numbers: tuple[Path, Sequence[Number | None]] | None = None
    """A list of exactly so many numbers, and what stands for a null in each place"""
    time: Path | None = None


@dataclass
class Native:
    """The native code, or why there is none."""

    wanted: Decoder
    module: Any = None
    why_not: str = ""
    used: bool = False
    """A layout is read by it"""

    @classmethod
    def load(cls, wanted: Decoder) -> Native:
        """ConfigurationError: it is wanted, and cannot be loaded."""
        if wanted is Decoder.PYTHON:
            return cls(wanted, why_not=f'input.decoder = "{wanted}"')
        try:
            module = importlib.import_module(MODULE)
        except ModuleNotFoundError:
            return cls(wanted).without(f"{WHEEL} is not installed", _INSTALL)
        except ImportError as error:
            return cls(wanted).without(f"{WHEEL} cannot be loaded: {error}", _INSTALL)
        protocol = getattr(module, "PROTOCOL", None)
        if protocol != PROTOCOL:
            why = f"{WHEEL} speaks protocol {protocol}, this version {PROTOCOL}"
            return cls(wanted).without(why, _INSTALL)
        return cls(wanted, module)

    def without(self, why_not: str, instead: str = "") -> Native:
        """Goes on in Python. ConfigurationError: native code is wanted."""
        if self.wanted is Decoder.NATIVE:
            raise ConfigurationError(f'input.decoder = "native", but {why_not}: {instead}set input.decoder = "auto"')
        self.module, self.why_not = None, why_not
        return self

    def first(self, layout: Layout, pure: Rows) -> Rows:
        """Native code that reads ``layout``, with ``pure`` behind it; without it ``pure`` alone.

        ConfigurationError: native code is wanted, and cannot read this layout."""
        if self.module is None:
            return pure
        try:
            decoder = self.module.Decoder(*_head(layout, layout.unit), _fields(layout))
        except (ValueError, OverflowError) as error:
            self.without(f"it does not read these fields: {error}")
            return pure
        self.used = True
        return NativeRows(decoder, pure, layout)

    def flat(self, layout: Layout, paths: Sequence[Path], written: Flat, frame: bytes, pure: Rows) -> Rows:
        """As ``first``, for Avro values that are ``written`` so behind ``frame``. ``paths``: those of its leaves."""
        try:
            fields = [
                (
                    [_kind(each) for each in field.branches],
                    field.union,
                    [] if field.leaf is None else _actions(layout, paths[field.leaf]),
                )
                for field in written.fields
            ]
            decoder = self.module.Decoder.avro(*_head(layout, written.unit), fields, frame)
        except (ValueError, OverflowError):
            return pure  # a symbol that no record can have, a kind of feature that only Python knows
        return NativeRows(decoder, pure, layout)

    @property
    def told(self) -> str:
        """Which code reads records, for people."""
        if self.used:
            return f"native ({WHEEL} {_version()})"
        return f"python ({self.why_not})"


class NativeRows:
    """Native code first."""

    def __init__(self, decoder: Any, pure: Rows, layout: Layout) -> None:
        self._decode, self._pure = decoder.decode, pure
        self._dtype, self._columns = layout.exact.dtype, layout.columns

    def columns(self, values: Sequence[bytes]) -> Columns:
        count = len(values)
        found, times, marks, careful, timed = self._decode(values if type(values) is list else list(values))
        if careful * _ONE_OF > count:
            return self._pure.columns(values)
        x = np.frombuffer(found, self._dtype).reshape(count, self._columns)
        doubtful: list[int] = []
        flags = np.frombuffer(marks, np.uint8)
        if careful:
            doubtful = np.flatnonzero(flags & _CAREFUL).tolist()
        if not timed:
            return Columns(x, None, doubtful)
        there = None if timed == count else (flags & _TIMED) != 0
        return Columns(x, None, doubtful, given=Given(np.frombuffer(times, np.int64), there))


def _fields(layout: Layout) -> list[tuple[list[bytes | int], list[tuple[Any, ...]]]]:
    """As the native side takes them. UnicodeEncodeError: a name that no record can have."""
    found: list[tuple[list[bytes | int], list[tuple[Any, ...]]]] = []
    if layout.numbers is not None:
        path, nulls = layout.numbers
        found.append((_steps(path), [("numbers", 0, [_plain(null) for null in nulls])]))
    paths = dict.fromkeys([*layout.fields, *([] if layout.time is None else [layout.time])])
    return found + [(_steps(path), _actions(layout, path)) for path in paths]


def _head(layout: Layout, unit: TimeUnit) -> tuple[str, str, int, list[tuple[int, Number]]]:
    return str(layout.exact.dtype), str(unit), layout.columns, list(layout.constants.items())


def _kind(written: FlatKind) -> str | int | list[bytes]:
    return [each.encode() for each in written] if isinstance(written, tuple) else written


def _actions(layout: Layout, path: Path) -> list[tuple[Any, ...]]:
    """What becomes of the field at ``path``."""
    found = [_action(at, meaning) for at, meaning in layout.fields.get(path, ())]
    return [*found, ("time",)] if path == layout.time else found


def _steps(path: Path) -> list[bytes | int]:
    return [step if isinstance(step, int) else step.encode() for step in path]


def _action(at: int, meaning: Meaning) -> tuple[Any, ...]:
    """What the definition makes of cells of few kinds is asked of it here, once."""
    if meaning.kind == "present":
        return "present", at, _sure(meaning, None), _sure(meaning, True)
    null = _sure(meaning, None)
    if meaning.kind == "flag":
        return "flag", at, null, _sure(meaning, False), _sure(meaning, True)
    if meaning.kind == "category":
        words = {word.encode(): place for word, place in meaning.words.items() if _is_text(word)}
        return "category", at, null, _sure(meaning, False), _sure(meaning, True), words, meaning.unknown
    if meaning.kind == "text":
        raise ValueError(f"feature {meaning.name!r} is text")
    return "number", at, null


def _sure(meaning: Meaning, cell: Cell) -> Number | None:
    """None: the definition has to say it each time."""
    try:
        return _plain(meaning.number(cell))
    except Unusable:
        return None


def _plain(number: Number | None) -> Number | None:
    return number if number is not None and isfinite(number) else None


def _is_text(word: str) -> bool:
    """A word with half a surrogate is only ever written with escapes, which Python reads."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _version() -> str:
    try:
        return metadata.version(WHEEL)
    except metadata.PackageNotFoundError:
        return "of unknown version"
