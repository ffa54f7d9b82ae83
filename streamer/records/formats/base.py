"""What a format of values is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from streamer.core import Headers
from streamer.records.exact import Numbers
from streamer.records.times import Given
from streamer.records.unusable import Unusable

Row = tuple[Sequence[int | float] | Numbers, object]
"""F numbers as the contract's dtype holds them, or [T, F] of them, and the time as given (None: not given)"""

NO_HEADERS: Mapping[int, Headers] = MappingProxyType({})


@dataclass(slots=True)
class Columns:
    """Many values, in columns of length N."""

    x: Numbers
    """[N, F], or of several steps [N] of arrays [T, F]; rows of ``doubtful`` and ``bad`` mean nothing"""
    times: Sequence[object] | None
    """[N] as given, None where not; None: no value has one"""
    doubtful: list[int] = field(default_factory=list)
    """Rows that ``Format.row`` has to decide"""
    bad: dict[int, Unusable] = field(default_factory=dict)
    """Rows that are decided: not usable"""
    given: Given | None = None
    """Times that native code has read; ``times`` is None then"""


class ReadsOne(Protocol):
    """Finds what is asked for in one value."""

    def read(self, value: bytes, found: list[Any]) -> None:
        """Puts what is there into ``found``, which begins with nulls. Unusable: it is no such value."""
        ...


class Format(Protocol):
    """How a value is read. Whatever ``columns`` or ``row`` raises besides Unusable is told as what nobody foresaw."""

    def row(self, value: bytes, headers: Headers = ()) -> Row:
        """What one value, and the headers of its record, mean. Unusable: it is no event."""
        ...

    def columns(self, values: Sequence[bytes], headers: Mapping[int, Headers] = NO_HEADERS) -> Columns:
        """The same for many values (N >= 1). ``headers``: row -> its record's, where there are any."""
        ...
