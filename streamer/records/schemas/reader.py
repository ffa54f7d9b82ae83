"""What reads values of one schema, whatever the schema is written in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from streamer.records.meaning import Cell

Kinds = str
"""null, bool, int, float, str; other: what is no cell that a table or a number has, or a time with a unit of its own"""


@dataclass(frozen=True)
class Reader:
    """``cells``: of the paths that were asked for, from a value and where it begins in it. Unusable: it is no such value."""

    cells: Callable[[bytes, int], list[Cell]]
    kinds: Sequence[frozenset[Kinds]]
    """Per path what its cells may be"""
    moments: bool = False
    """The event's time says its own unit"""
