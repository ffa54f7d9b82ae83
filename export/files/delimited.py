"""CSV and its relatives. Python's own ``csv`` splits the lines: it is exact about quotes and tells the line of a row.

pandas and pyarrow.csv were left out on purpose: the one renames columns of the same name and reads "NA" of a category
as missing without a word, the other needs the encoding, delimiter and decimal mark beforehand; and every cell has to be
looked at here anyway, since messages name its line and column.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from streamer.errors import ConfigurationError

from .table import FileOptions, Table, leave_out_indexes, refuse_doubles
from .text import read_text

DELIMITERS = (",", ";", "\t", "|")


def read(path: Path, options: FileOptions) -> Table:
    """A header, one event per line. ConfigurationError names the line."""
    text, note = read_text(path, options.encoding)
    delimiter = _delimiter(text, options, str(path))
    with _long_fields():
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header: list[str] | None = None
        rows: list[list[str]] = []
        lines: list[int] = []
        try:
            for row in reader:
                if not row:
                    continue
                if header is None:
                    header = [name.strip() for name in row]
                    continue
                if len(row) != len(header):
                    raise ConfigurationError(
                        f"{path}, line {reader.line_num}: {len(row)} columns, the header has {len(header)}"
                    )
                rows.append(row)
                lines.append(reader.line_num)
        except csv.Error as error:
            raise ConfigurationError(f"{path}, line {reader.line_num}: not CSV: {error}") from error
    if header is None:
        raise ConfigurationError(f"{path}: empty file")
    while header and not header[-1] and all(not row[len(header) - 1].strip() for row in rows):
        header.pop()  # lines that end in a delimiter
    refuse_doubles(header, str(path))
    columns = {name: [row[at].strip() for row in rows] for at, name in enumerate(header)}
    table = Table(str(path), dict(columns), lines)
    if note is not None:
        table.note(note)
    leave_out_indexes(table, (options.stream, options.time, *(options.features or ())))
    return table


def _delimiter(text: str, options: FileOptions, where: str) -> str:
    """The one by which the header has the columns that are asked for; a header is what delimiters are exact in."""
    if options.delimiter is not None:
        if len(options.delimiter) != 1:
            raise ConfigurationError(f"data.delimiter must be one character, not {options.delimiter!r}")
        return options.delimiter
    first = "\n".join(islice((line for line in text.splitlines() if line.strip()), 1))
    wanted = {options.stream, options.time, *(options.features or ())}
    headers = {mark: [name.strip() for name in next(csv.reader([first], delimiter=mark), [])] for mark in DELIMITERS}
    fitting = [mark for mark, names in headers.items() if wanted <= set(names)]
    if fitting:
        return max(fitting, key=lambda mark: len(headers[mark]))
    best = max(DELIMITERS, key=lambda mark: len(headers[mark]))
    missing = sorted(wanted - set(headers[best]))
    if first and missing:
        raise ConfigurationError(f"{where}: no column {missing[0]!r}, there are {', '.join(headers[best])}")
    return best


@contextmanager
def _long_fields() -> Iterator[None]:
    """The csv module's bound of 128 KB is a guard against wrong quoting; here that is found by ``strict``."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)
