"""Cells as numbers, words or labels; what a cell means depends on its whole column, and bad ones are named."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.errors import ConfigurationError

from .table import FileOptions, Table

_COMMA = re.compile(r"[+-]?(\d+,\d*|,\d+)([eE][+-]?\d+)?")
_POINT = re.compile(r"[+-]?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?")
_WHOLE = re.compile(r"(-?\d+)(\.0+)?")
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
    present = _present(table, name, options)
    values = np.full(len(column), np.nan)
    if present and all(isinstance(cell, (bool, str)) and str(cell) in _TRUTHS for _, cell in present):
        for row, cell in present:
            values[row] = _TRUTHS[str(cell)]
        return values, True
    bad = _fill(values, present, _decimal(table, name, present, options.decimal) == ",")
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


def first_word(table: Table, name: str, options: FileOptions) -> int:
    """The row of the first cell that is there and no number, of a column for which ``numbers`` is None."""
    present = _present(table, name, options)
    return _fill(np.empty(len(table)), present, _decimal(table, name, present, options.decimal) == ",")[0]


def is_number(text: str) -> bool:
    """Whether ``numbers`` would take it for one, and a finite one."""
    try:
        return bool(np.isfinite(_number(text, comma=False)))
    except ValueError:
        return False


def decode(table: Table, names: Iterable[str | None]) -> None:
    """Bytes in these columns become the text that they are in UTF-8. ConfigurationError with the place of others."""
    for name in names:
        column = table.columns.get(name or "", [])
        if isinstance(column, np.ndarray) and column.dtype.kind != "S":
            continue
        if any(isinstance(cell, bytes) for cell in column):
            table.columns[str(name)] = [_text(cell, table.place(row, name)) for row, cell in enumerate(column)]


def words(table: Table, name: str, options: FileOptions) -> list[str | None]:
    """The column's cells as text; None where missing. Whole numbers have no decimal point."""
    missing = set(() if table.typed and options.missing_words is None else options.gaps)
    return [None if is_missing(cell, missing) else as_word(cell) for cell in _plain(table.columns[name])]


def categories(table: Table, name: str, options: FileOptions) -> list[str | None]:
    """The words of a category, as the service makes them of a record: a column of whole numbers that has gaps is often
    written as 7.0, and is that of the words 7."""
    found = words(table, name, options)
    wholes = [None if word is None else _WHOLE.fullmatch(word) for word in found]
    if table.typed or any(word is not None and whole is None for word, whole in zip(found, wholes, strict=True)):
        return found
    plain = [None if whole is None else whole.group(1) for whole in wholes]
    if plain != found:
        row = next(row for row, word in enumerate(found) if word != plain[row])
        table.note(f"column {name!r} holds whole numbers: {found[row]} is the word {plain[row]}")
    return plain


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


def _present(table: Table, name: str, options: FileOptions) -> list[tuple[int, Any]]:
    missing = set(options.gaps)
    return [(row, cell) for row, cell in enumerate(table.columns[name]) if not is_missing(cell, missing)]


def _fill(values: NDArray[np.float64], present: list[tuple[int, Any]], comma: bool) -> list[int]:
    """Puts the numbers among the cells into ``values``; the rows of the others."""
    bad: list[int] = []
    for row, cell in present:
        try:
            values[row] = _number(cell, comma) if isinstance(cell, str) else float(cell)
        except (ValueError, TypeError, OverflowError):
            bad.append(row)
    return bad


def _text(cell: Any, place: str) -> Any:
    try:
        return cell.decode() if isinstance(cell, bytes) else cell
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{place}: these bytes are no text in UTF-8: write the column as text, or leave it out of data.features"
        ) from error


def _number(cell: str, comma: bool) -> float:
    """ValueError for what only Python takes for a number, or the other decimal mark does."""
    if "_" in cell or (comma and "." in cell):
        raise ValueError
    return float(cell.replace(",", ".") if comma else cell)


def _plain(column: Any) -> list[Any]:
    if not isinstance(column, np.ndarray):
        return list(column)
    if column.dtype.kind == "f" and column.dtype.itemsize < 8:  # 0.1 of 32 bits is the word 0.1, not its expansion
        return [float(str(value)) for value in column]
    return list(column.tolist())


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
