"""Moments as people write them in settings, and which unit a number looks like that is no moment in its own."""

from __future__ import annotations

import datetime

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MS = datetime.timedelta(milliseconds=1)
_FIRST_MS = -(1 << 62)
"""Before all that can be written"""
_LAST_MS = 4_102_444_800_000
"""2100-01-01: what is later than this in one unit was meant in a finer one."""
_MS_PER_UNIT = {"s": 1_000.0, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}


def parse_moment(text: str, key: str) -> int:
    """Milliseconds since 1970, from such a number or from ISO 8601 with a zone. ValueError says how to write it."""
    if text.isascii() and text.isdecimal():
        return int(text.lstrip("0")[:30] or "0")  # far beyond any bound, whatever comes behind
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{key} = {text[:80]!r} is not a time: write it like 2025-10-09T00:00:00Z") from None
    if moment.tzinfo is None:
        raise ValueError(f"{key} = {text!r} needs a time zone, for example {moment.isoformat()}Z")
    return (moment - _EPOCH) // _MS


def moment_text(ms: int) -> str:
    """ISO 8601 in UTC; the number itself where no calendar reaches."""
    try:
        moment = _EPOCH + ms * _MS
    except OverflowError:
        return f"{ms} ms since 1970"
    return moment.isoformat(timespec="milliseconds" if ms % 1000 else "seconds").replace("+00:00", "Z")


def likely_unit(number: float, min_ms: int) -> str | None:
    """s | ms | us | ns: in which ``number`` is a moment from ``min_ms`` up to the year 2100; None: in none of them."""
    return next((unit for unit, ms in _MS_PER_UNIT.items() if min_ms <= number * ms < _LAST_MS), None)


def check_moment(text: str, key: str, min_ms: int = _FIRST_MS) -> int:
    """Milliseconds since 1970 of a setting that must be a moment people live in: from ``min_ms`` up to 2100.

    ValueError names the unit that a number looks like, and the moment in milliseconds."""
    ms = parse_moment(text, key)
    if min_ms <= ms < _LAST_MS:
        return ms
    where = f"before input.min_time = {moment_text(min_ms)}" if ms < min_ms else "after the year 2100"
    problem = f"{key} = {text[:80]!r} is {moment_text(ms)}, {where}"
    unit = likely_unit(ms, min_ms) if text.isdecimal() else None
    if unit is not None:
        right = int(ms * _MS_PER_UNIT[unit])
        problem += f": the number looks like {_NAMES[unit]}, write milliseconds ({right}) or {moment_text(right)}"
    elif len(text) == 8 and text.isdecimal():  # ISO 8601 without dashes
        problem += f": for a date write {text[:4]}-{text[4:6]}-{text[6:]}T00:00:00Z"
    raise ValueError(problem)
