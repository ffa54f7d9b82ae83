"""What reads values of one schema, whatever the schema is written in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from streamer.records.meaning import Cell
from streamer.words import TimeUnit

Kinds = str
"""null, bool, int, float, str; other: what is no cell that a table or a number has, or a time with a unit of its own"""

FlatKind = str | int | tuple[str, ...]
"""How a plain value lies in bytes: an Avro primitive, the size of a fixed, or the symbols of an enum"""


@dataclass(frozen=True)
class FlatField:
    branches: tuple[FlatKind, ...]
    """One, or those of a union"""
    union: bool
    """Which branch it is stands in front of the value"""
    leaf: int | None
    """Which of the paths it is; None: it is passed over"""


@dataclass(frozen=True)
class Flat:
    """A value that is nothing but these fields, one after the other."""

    fields: Sequence[FlatField]
    unit: TimeUnit
    """Of the event's time"""


@dataclass(frozen=True)
class Reader:
    """``cells``: of the paths that were asked for, from a value and where it begins in it. Unusable: it is no such value."""

    cells: Callable[[bytes, int], list[Cell]]
    kinds: Sequence[frozenset[Kinds]]
    """Per path what its cells may be"""
    moments: bool = False
    """The event's time says its own unit"""
    flat: Flat | None = None
    """The same for native code, where it can be said so"""
