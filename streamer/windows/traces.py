"""Trace headers of events in open windows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice, takewhile

from streamer.core import I64, Headers

_MAX_TRACES = 65_536
"""Per partition; beyond it the oldest are left out: a trace is for people, and most events have none."""


class Traces:
    """Offset -> headers that a window's prediction keeps: those of the record that it names as its source."""

    __slots__ = ("_by_offset",)

    def __init__(self) -> None:
        self._by_offset: dict[int, Headers] = {}

    def __len__(self) -> int:
        return len(self._by_offset)

    def note(self, offsets: I64, headers: Mapping[int, Headers]) -> None:
        """``headers``: row of ``offsets`` -> headers, for the rows that have any. Offsets grow from call to call."""
        for row, found in headers.items():
            self._by_offset[int(offsets[row])] = found

    def bound(self) -> None:
        """After windows took what they close: of one fetch all are there until then."""
        self._drop(islice(self._by_offset, max(len(self._by_offset) - _MAX_TRACES, 0)))

    def of(self, offset: int) -> Headers:
        return self._by_offset.get(offset, ())

    def drop_before(self, offset: int | None) -> None:
        """``offset``: of the oldest event in an open window; None: no window is open."""
        if offset is None:
            self._by_offset.clear()
        else:
            self._drop(takewhile(lambda at: at < offset, self._by_offset))

    def _drop(self, oldest: Iterable[int]) -> None:
        # in one pass: looking for the first entry again after each deletion would pass over all that were deleted
        for offset in list(oldest):
            del self._by_offset[offset]
