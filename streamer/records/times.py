"""When an event happened: one rule, and the same rule for a column.

Absent or null is "not given": the record's own timestamp counts. Anything else is a time in ``time_unit`` and lies between
``min_time`` and ``max_future_ms`` after the record's timestamp, or the record is rejected. A record's timestamp of -1 or 0
is none: then there is nothing to be in the future of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from streamer.core import I64
from streamer.records.unusable import Unusable, plain
from streamer.words import Reason, TimeUnit

YEAR_2000_MS = 946_684_800_000
MAX_TIME_MS = 253_402_300_799_000
"""9999-12-31: what is later is a mistake, whatever the record's timestamp is."""
_YEAR_2100_MS = 4_102_444_800_000
_PER_SECOND = {TimeUnit.S: 1, TimeUnit.MS: 1_000, TimeUnit.US: 1_000_000, TimeUnit.NS: 1_000_000_000}
_NAMES = {TimeUnit.S: "seconds", TimeUnit.MS: "milliseconds", TimeUnit.US: "microseconds", TimeUnit.NS: "nanoseconds"}
_ISO_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Moment(int):
    """An event's time that says its own unit, as typed formats have them: the number as it was written, and ``ms``."""

    ms: int

    @classmethod
    def of(cls, number: int, unit: TimeUnit) -> Moment:
        made = cls(number)
        made.ms = number * 1_000 // _PER_SECOND[unit]
        return made


@dataclass(slots=True)
class Given:
    """Times that are in milliseconds already."""

    times_ms: I64
    """[N]"""
    there: NDArray[np.bool_] | None
    """[N] The record itself says when it was; None: all do."""


class TimeRule:
    """``event_time`` is the definition. ``max_future_ms`` None: no bound but the year 9999."""

    def __init__(
        self,
        unit: TimeUnit = TimeUnit.MS,
        min_time_ms: int = YEAR_2000_MS,
        max_future_ms: int | None = None,
    ) -> None:
        self.unit = unit
        self._min_ms = min_time_ms
        self._max_future_ms = max_future_ms

    def event_time(self, given: object, stamp_ms: int) -> int:
        """Milliseconds since 1970 of a record whose value says ``given`` and whose timestamp is ``stamp_ms``.

        Unusable (bad_time): no time at all, not a time, or out of bounds."""
        if given is None:
            if stamp_ms <= 0:
                raise Unusable(Reason.BAD_TIME, "neither the value (ts) nor the record says when it was")
            if self._min_ms <= stamp_ms <= MAX_TIME_MS:
                return stamp_ms
            raise Unusable(
                Reason.BAD_TIME,
                f"there is no ts, and the record's timestamp {_told(stamp_ms)} is not between input.min_time "
                f"{_told(self._min_ms)} and the year 9999",
            )
        time_ms = self._milliseconds(given)
        if time_ms is None:
            raise Unusable(Reason.BAD_TIME, plain(f"ts is {_short(given)}{self._wanted(given, stamp_ms)}"))
        if self._min_ms <= time_ms <= self._latest(stamp_ms):
            return time_ms
        if time_ms < self._min_ms:
            bound = f"before input.min_time {_told(self._min_ms)}"
        elif time_ms > MAX_TIME_MS:
            bound = "after the year 9999"
        else:
            bound = f"more than input.max_future_ms after the record's timestamp {_told(stamp_ms)}"
        told = f" ({_told(time_ms)})" if abs(time_ms) <= MAX_TIME_MS else ""
        raise Unusable(Reason.BAD_TIME, plain(f"ts {_short(given)}{told} is {bound}{self._hint(given, stamp_ms)}"))

    def column(self, given: Sequence[object] | None, stamps_ms: I64) -> tuple[I64, list[int]]:
        """Event times [N] of many records, and the rows that ``event_time`` has to decide (their times mean nothing)."""
        kinds = {type(None)} if given is None else set(map(type, given))
        if given is None or kinds == {type(None)}:
            first = max(self._min_ms, 1)
            if np.minimum.reduce(stamps_ms) >= first and np.maximum.reduce(stamps_ms) <= MAX_TIME_MS:
                return stamps_ms, []
            return stamps_ms, np.flatnonzero((stamps_ms < first) | (stamps_ms > MAX_TIME_MS)).tolist()
        times = self._column(given) if kinds in ({int}, {float}) else None
        if times is None:
            return self._each(given, stamps_ms)
        if self._all_good(times, stamps_ms):
            return times, []
        return times, np.flatnonzero(~self._bounded(times, stamps_ms)).tolist()

    def judged(self, given: Given, stamps_ms: I64) -> tuple[I64, list[int]]:
        """As ``column``."""
        times, there = given.times_ms, given.there
        if there is None and self._all_good(times, stamps_ms):
            return times, []
        good = self._bounded(times, stamps_ms)
        if there is not None:
            times = np.where(there, times, stamps_ms)
            good = self._bounded(times, stamps_ms) & (there | (stamps_ms > 0))
        return times, np.flatnonzero(~good).tolist()

    def _bounded(self, times: I64, stamps_ms: I64) -> NDArray[np.bool_]:
        latest: I64 | int = MAX_TIME_MS
        if self._max_future_ms is not None:
            latest = np.minimum(np.where(stamps_ms > 0, stamps_ms + self._max_future_ms, MAX_TIME_MS), MAX_TIME_MS)
        return (times >= self._min_ms) & (times <= latest)

    def _all_good(self, times: I64, stamps_ms: I64) -> bool:
        """The common case in few passes: all records have a timestamp, and all times are in bounds."""
        lowest, highest = np.minimum.reduce, np.maximum.reduce
        if lowest(times) < self._min_ms or highest(times) > MAX_TIME_MS:
            return False
        if self._max_future_ms is None:
            return True
        return bool(lowest(stamps_ms) > 0 and highest(times - stamps_ms) <= self._max_future_ms)

    def _each(self, given: Sequence[object], stamps_ms: I64) -> tuple[I64, list[int]]:
        times, bad = np.zeros(len(given), np.int64), []
        for row, (value, stamp) in enumerate(zip(given, stamps_ms.tolist(), strict=True)):
            try:
                times[row] = self.event_time(value, stamp)
            except Unusable:
                bad.append(row)
        return times, bad

    def _column(self, given: Sequence[object]) -> I64 | None:
        """Numbers of one type in milliseconds; None if that cannot be said at once."""
        scale = _PER_SECOND.get(self.unit)
        if scale is None:
            return None
        try:
            numbers = np.array(given, np.int64 if type(given[0]) is int else np.float64)
        except OverflowError:
            return None
        if numbers.dtype == np.float64:
            with np.errstate(over="ignore", invalid="ignore"):
                micros = np.rint(numbers * (1_000_000 / scale))
                if not (np.abs(micros) < 2.0**62).all():  # NaN, too
                    return None
            return np.asarray(micros.astype(np.int64) // 1_000)
        if scale == 1_000:
            return np.asarray(numbers, np.int64)
        if scale > 1_000:
            return np.asarray(numbers // (scale // 1_000), np.int64)
        return (
            None
            if (np.abs(numbers.astype(np.float64)) > MAX_TIME_MS).any()
            else np.asarray(numbers * (1_000 // scale), np.int64)
        )

    def _milliseconds(self, given: object) -> int | None:
        """``given`` in the unit that is set or its own, None if it is not a time in it."""
        if isinstance(given, Moment):
            return given.ms
        if self.unit is TimeUnit.ISO8601:
            return _iso(given) if isinstance(given, str) else None
        return _scaled(given, self.unit)

    def _latest(self, stamp_ms: int) -> int:
        if self._max_future_ms is None or stamp_ms <= 0:
            return MAX_TIME_MS
        return min(stamp_ms + self._max_future_ms, MAX_TIME_MS)

    def _wanted(self, given: object, stamp_ms: int) -> str:
        if self.unit is TimeUnit.ISO8601:
            wanted = '; input.time_unit = "iso8601" wants text like 2026-01-31T12:00:00Z'
        else:
            wanted = f'; input.time_unit = "{self.unit}" wants a number of {_NAMES[self.unit]} since 1970'
        return wanted + self._hint(given, stamp_ms)

    def _hint(self, given: object, stamp_ms: int) -> str:
        """The unit that a time looks like: of those that make a sensible date of it, the one nearest to the record's."""
        near = stamp_ms if stamp_ms > 0 else None
        found: list[tuple[int, TimeUnit]] = []
        for unit in TimeUnit:
            if unit is not self.unit:
                ms = _iso(given) if unit is TimeUnit.ISO8601 and isinstance(given, str) else _scaled(given, unit)
                if ms is not None and YEAR_2000_MS <= ms <= _YEAR_2100_MS:
                    found.append((abs(ms - near) if near is not None else 0, unit))
        if found:
            unit = min(found, key=lambda each: each[0])[1]
            return f'; it looks like {_NAMES.get(unit, "ISO 8601")}: set input.time_unit = "{unit}"'
        ms = self._milliseconds(given)
        if ms is not None and 0 <= ms < min(self._min_ms, YEAR_2000_MS):
            return '; if times are meant to begin at 0, set input.min_time = "1970-01-01T00:00:00Z"'
        return ""


def _scaled(given: object, unit: TimeUnit) -> int | None:
    """A number of ``unit`` in milliseconds: a fraction is read to the microsecond, and the millisecond counts that began."""
    scale = _PER_SECOND.get(unit)
    if scale is None or isinstance(given, bool) or not isinstance(given, int | float):
        return None
    if isinstance(given, int):
        return given * 1_000 // scale
    micros = given * (1_000_000 / scale)
    return round(micros) // 1_000 if isfinite(micros) else None


def _iso(text: str) -> int | None:
    """ISO 8601 with its zone; without one it is UTC."""
    try:
        moment = datetime.fromisoformat(text)
        since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _ISO_EPOCH
    except (ValueError, OverflowError):
        return None
    return (since.days * 86_400 + since.seconds) * 1_000 + since.microseconds // 1_000


def _told(ms: int) -> str:
    try:
        return datetime.fromtimestamp(ms / 1_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{ms} ms"


def _short(given: object) -> str:
    if isinstance(given, int) and not isinstance(given, bool) and abs(given) >= 10**30:
        return "an integer of more than 30 digits"
    told = repr(given)
    return told if len(told) <= 80 else told[:80] + "..."
