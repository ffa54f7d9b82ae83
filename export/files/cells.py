"""Cells as numbers, words or labels; what a cell means depends on its whole column, and bad ones are named."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.errors import ConfigurationError

from .table import FileOptions, Table

_COMMA = re.compile(r"[+-]?(\d+,\d*|,\d+)([eE][+-]?\d+)?")
_POINT = re.compile(r"[+-]?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?")
_TRUTHS = {"true": 1.0, "false": 0.0, "True": 1.0, "False": 0.0, "TRUE": 1.0, "FALSE": 0.0}
_NUMBERS_WITH_SLIPS = 0.5
"""A column of which at least this share are numbers has slips, not words."""


def numbers(table: Table, name: str, options: FileOptions) -> tuple[NDArray[np.float64], bool] | None:
    """(values, NaN where missing; whether they are truths), or None for a column of words.

    ConfigurationError names the cell that is not a finite number in a column of numbers.
    """
    column = table.columns[name]
    if isinstance(column, np.ndarray) and column.dtype.kind in "biuf":
        values = column.astype(np.float64)
        _refuse_infinite(table, name, values)
        return values, column.dtype.kind == "b"
    if isinstance(column, np.ndarray) and column.dtype.kind == "M":
        raise ConfigurationError(f"{table.where}, column {name!r} holds times: leave it out of data.features")
    missing = set(options.missing_words)
    present = [(row, cell) for row, cell in enumerate(column) if not is_missing(cell, missing)]
    values = np.full(len(column), np.nan)
    if present and all(isinstance(cell, (bool, str)) and str(cell) in _TRUTHS for _, cell in present):
        for row, cell in present:
            values[row] = _TRUTHS[str(cell)]
        return values, True
    comma = _decimal(table, name, present, options.decimal) == ","
    bad: list[int] = []
    for row, cell in present:
        try:
            values[row] = _number(cell, comma) if isinstance(cell, str) else float(cell)
        except (ValueError, TypeError, OverflowError):
            bad.append(row)
    if bad and len(bad) > _NUMBERS_WITH_SLIPS * len(present) and all(isinstance(column[row], str) for row in bad):
        return None
    if bad:
        row = bad[0]
        raise ConfigurationError(
            f"{table.place(row, name)}: {column[row]!r} is not a number ({len(bad)} such cells of {len(present)}):"
            " correct it, add it to data.missing_words, or name the column in data.categories if it holds words"
        )
    _refuse_infinite(table, name, values)
    return values, False


def words(table: Table, name: str, options: FileOptions) -> list[str | None]:
    """The column's cells as text; None where missing. Whole numbers have no decimal point."""
    missing = set(options.missing_words)
    return [None if is_missing(cell, missing) else as_word(cell) for cell in _plain(table.columns[name])]


def as_word(cell: Any) -> str:
    """1.0 and 1 are the same word."""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell)


def is_missing(cell: Any, missing_words: set[str]) -> bool:
    """None, NaN, or one of the words for it."""
    if cell is None:
        return True
    if isinstance(cell, str):
        return cell in missing_words
    return isinstance(cell, float) and cell != cell  # noqa: PLR0124 - NaN


def most_common(found: list[str | None], limit: int) -> list[str]:
    """The ``limit`` most common words, in order of the alphabet."""
    counts = Counter(word for word in found if word is not None)
    kept = sorted(counts, key=lambda word: (-counts[word], word))[:limit]
    return sorted(kept)


def _number(cell: str, comma: bool) -> float:
    """ValueError for what only Python takes for a number, or the other decimal mark does."""
    if "_" in cell or (comma and "." in cell):
        raise ValueError
    return float(cell.replace(",", ".") if comma else cell)


def _plain(column: Any) -> list[Any]:
    return list(column.tolist() if isinstance(column, np.ndarray) else column)


def _decimal(table: Table, name: str, present: list[tuple[int, Any]], given: str | None) -> str:
    """The decimal mark: given, or what the cells show; a file has one."""
    if given is not None:
        return given
    texts = [(row, cell) for row, cell in present if isinstance(cell, str)]
    commas = next((row for row, cell in texts if "," in cell and _COMMA.fullmatch(cell)), None)
    points = next((row for row, cell in texts if "." in cell and _POINT.fullmatch(cell)), None)
    if commas is not None and (points is not None or table.decimal == "."):
        raise ConfigurationError(
            f"{table.place(commas, name)}: a decimal comma, but other cells of the file have decimal points:"
            ' say data.decimal = "," or "."'
        )
    if points is not None and table.decimal == ",":
        raise ConfigurationError(
            f"{table.place(points, name)}: a decimal point, but other cells of the file have decimal commas:"
            ' say data.decimal = "," or "."'
        )
    if commas is not None and table.decimal is None:
        table.note("decimal commas")
    table.decimal = table.decimal or ("," if commas is not None else "." if points is not None else None)
    return table.decimal or "."


def _refuse_infinite(table: Table, name: str, values: NDArray[np.float64]) -> None:
    with np.errstate(over="ignore"):
        infinite = np.isinf(values.astype(np.float32))
    if bool(infinite.any()):
        row = int(np.argmax(infinite))
        raise ConfigurationError(
            f"{table.place(row, name)}: {float(values[row])!r} is no finite value that 32 bits hold"
            f" ({int(infinite.sum())} such cells): correct or drop them"
        )
