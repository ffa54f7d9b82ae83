"""Times of any kind as nanoseconds since 1970: ISO 8601 with or without a zone, epoch numbers, datetime64."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.errors import ConfigurationError

from .table import Cells, FileOptions, Table

UNITS = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
"""Name -> nanoseconds."""
_EPOCH_S = (300_000_000, 10_000_000_000)
"""Seconds since 1970 from 1979 to 2286: numbers that all lie here, times a power of 1000, are epoch times."""
_FRACTION = re.compile(r"[.,](\d+)")
_ZONE = re.compile(r"(Z|z|[+-]\d\d(:?\d\d)?(:?\d\d)?)$")
_ZERO = datetime(1970, 1, 1, tzinfo=UTC)
_LIMIT_NS = 2**63 - 1
_BEYOND = Decimal(2**63)


def nanoseconds(table: Table, name: str, options: FileOptions) -> NDArray[np.int64]:
    """The column as int64 [N]. ConfigurationError with the place of a cell that is no time.

    The unit of numbers: ``data.time_unit``, else the end of the column's name (``_ms``), else what makes epoch times of
    all of them, else milliseconds.
    """
    column = table.columns[name]
    if isinstance(column, np.ndarray) and column.dtype.kind == "M":
        return _from_datetimes(table, name, column)
    if (
        isinstance(column, np.ndarray)
        and column.dtype.kind in "iuf"
        and bool((np.isfinite(column) & (column == np.trunc(column))).all())
    ):
        unit = _unit(table, name, options, float(column.min()), float(column.max()))
        return _bounded(table, name, [int(value) * UNITS[unit] for value in column.tolist()])
    numbers = [_number(cell) for cell in column]
    known = [number for number in numbers if number is not None]
    if not known:
        if any(isinstance(cell, str) and not _ZONE.search(cell.strip()) for cell in column):
            table.note(f"column {name!r} has times without a zone, which are taken as UTC")
        return _bounded(table, name, [_iso(cell, table, row, name) for row, cell in enumerate(column)])
    if len(known) < len(numbers):
        row = numbers.index(None)
        raise ConfigurationError(f"{table.place(row, name)}: {column[row]!r} is no time, other rows have numbers")
    unit = _unit(table, name, options, min(known), max(known))
    return _bounded(table, name, [int((number * UNITS[unit]).to_integral_value()) for number in known])


def _number(cell: Any) -> Decimal | None:
    """Exact, so that no fraction of a second is rounded away; None for what is no finite number. A larger one than any time
    of any unit is as good as the smallest of these: a product with it may be beyond what decimals hold."""
    try:
        number = Decimal(str(cell).replace(",", ".")) if not isinstance(cell, bool) else None
    except InvalidOperation:
        return None
    return max(-_BEYOND, min(number, _BEYOND)) if number is not None and number.is_finite() else None


def _unit(table: Table, name: str, options: FileOptions, low: float | Decimal, high: float | Decimal) -> str:
    if options.time_unit not in (None, "iso"):
        return str(options.time_unit)
    suffix = name.rpartition("_")[2].lower()
    if suffix in UNITS and suffix != name.lower():
        return suffix
    for power, unit in enumerate(("s", "ms", "us", "ns")):
        if _EPOCH_S[0] * 1000**power <= low and high < _EPOCH_S[1] * 1000**power:
            if unit != "ms":
                table.note(f"column {name!r} has times in {unit} since 1970")
            return unit
    return "ms"


def _iso(cell: Any, table: Table, row: int, name: str) -> int:
    if isinstance(cell, datetime):
        moment = cell
        fraction = f"{cell.microsecond:06}"
    else:
        text = str(cell).strip() if cell is not None else ""
        found = _FRACTION.search(text)
        fraction = found.group(1) if found else ""
        try:
            moment = datetime.fromisoformat(text.replace(found.group(0), "", 1) if found else text)
        except ValueError:
            what = f"{text!r} is no time" if text else "there is no time"
            raise ConfigurationError(
                f"{table.place(row, name)}: {what}: write ISO 8601 (2026-03-01T00:00:00+02:00) or a number"
                " (data.time_unit = s, ms, us or ns)"
            ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)  # as databases write it; a local time would depend on this machine
    return (moment - _ZERO) // timedelta(seconds=1) * UNITS["s"] + int(fraction[:9].ljust(9, "0"))


def _from_datetimes(table: Table, name: str, column: NDArray[Any]) -> NDArray[np.int64]:
    if bool(np.isnat(column).any()):
        row = int(np.argmax(np.isnat(column)))
        raise ConfigurationError(f"{table.place(row, name)}: there is no time")
    exact = column.astype("datetime64[ns]")
    if not bool((exact.astype(column.dtype) == column).all()):
        raise ConfigurationError(f"{table.where}, column {name!r}: times must lie between 1678 and 2262")
    return exact.astype(np.int64)


def _bounded(table: Table, name: str, values: Cells) -> NDArray[np.int64]:
    for row, value in enumerate(values):
        if not -_LIMIT_NS <= value <= _LIMIT_NS:
            raise ConfigurationError(
                f"{table.place(row, name)}: this time lies beyond the year 2262: is data.time_unit right?"
            )
    return np.array(values, np.int64)
