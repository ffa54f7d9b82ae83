"""A file as it was read: named columns of cells, and where each row stands in the file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from streamer.errors import ConfigurationError

Cells = NDArray[Any] | list[Any]
"""One column: an array of numbers, times or texts, or a list of text, numbers, booleans and None."""

MISSING = ("", "NA", "N/A", "#N/A", "nan", "NaN", "NAN", "null", "NULL")
"""Cells that mean that there is no value."""


@dataclass(frozen=True)
class FileOptions:
    """What a file cannot say about itself, or says in more than one way; None is found out."""

    stream: str = "stream"
    time: str = "time"
    label: str | None = "label"
    features: Sequence[str] | None = None
    encoding: str | None = None
    delimiter: str | None = None
    decimal: str | None = None
    time_unit: str | None = None
    missing_words: Sequence[str] | None = None
    """None: those of ``MISSING``; but words of a typed table are what they are there."""
    categories: Sequence[str] = ()
    """Columns whose cells are words, numbers or not."""
    complete: Sequence[str] | None = ()
    """Columns in which nothing may be missing; None: all."""

    @property
    def gaps(self) -> Sequence[str]:
        """Cells that mean that there is no number, or no label."""
        return MISSING if self.missing_words is None else self.missing_words


@dataclass
class Table:
    """N rows. ``lines``: the line of each row in its file; None: rows are counted from 1."""

    where: str
    columns: dict[str, Cells]
    lines: Sequence[int] | None = None
    typed: bool = False
    """The format has a null, and tells texts from numbers: "NA" and "7.0" are words, as the service takes them."""
    row_word: str = "row"
    notes: list[str] = field(default_factory=list)
    decimal: str | None = None
    """Which decimal mark the file has, once it is known."""
    time_column: str | None = None
    """The column of times where it does not have the name that was asked for."""
    classes: tuple[str, ...] | None = None
    """Names of the classes where the file declares them."""
    label_column: str | None = None
    """The column of labels where the format has its own place for it."""

    def __len__(self) -> int:
        return max((len(column) for column in self.columns.values()), default=0)

    def place(self, row: int, column: str | None = None) -> str:
        """FILE, line N, column NAME: the beginning of every message about a cell."""
        word = "line" if self.lines is not None else self.row_word
        number = self.lines[row] if self.lines is not None else row + 1
        return f"{self.where}, {word} {number}" + (f", column {column!r}" if column is not None else "")

    def note(self, text: str) -> None:
        """Something that was found out or decided, for the screen."""
        self.notes.append(f"{self.where}: {text}")

    def require(self, names: Iterable[str]) -> None:
        """ConfigurationError for a column that is not there."""
        for name in names:
            if name not in self.columns:
                there = ", ".join(map(str, self.columns))
                raise ConfigurationError(f"{self.where}: no column {name!r}, there are {there}")


def refuse_doubles(names: Sequence[str], where: str) -> None:
    """ConfigurationError for two columns of one name: which of them is meant, nobody can know."""
    for at, name in enumerate(names):
        if name in names[:at]:
            first = names.index(name) + 1
            raise ConfigurationError(
                f"{where}: columns {first} and {at + 1} are both called {name!r}: rename one of them"
            )


def leave_out_indexes(table: Table, wanted: Iterable[str]) -> None:
    """Drops columns that a data frame's index left behind: they number rows, and tell a model the order of the file."""
    for name in list(table.columns):
        unnamed = not name or name.startswith(("Unnamed: ", "__index_level_"))
        if unnamed and name not in wanted:
            del table.columns[name]
            table.note(f"column {name!r} has no name of its own, and is left out as an index")
