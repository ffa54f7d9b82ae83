"""Tables of events from files, one module per format; all of them end in a ``Table`` of named columns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from streamer.errors import ConfigurationError

from . import arrays, delimited, jsonlines, parquet, series
from .table import FileOptions, Table

__all__ = ["FORMATS", "FileOptions", "Table", "read"]

FORMATS: dict[str, Callable[[Path, FileOptions], Table]] = {
    ".csv": delimited.read,
    ".tsv": delimited.read,
    ".parquet": parquet.read,
    ".npz": arrays.read,
    ".jsonl": jsonlines.read,
    ".ndjson": jsonlines.read,
    ".ts": series.read,
}
"""Suffix -> reader."""


def read(path: Path, options: FileOptions) -> Table:
    """The table of a file, by its suffix. ConfigurationError names file, row and column of what is wrong."""
    if not path.is_file():
        raise ConfigurationError(f"no such data file: {path}")
    reader = FORMATS.get(path.suffix.lower())
    if reader is None:
        raise ConfigurationError(f"{path}: unknown format {path.suffix!r}, expected one of {', '.join(FORMATS)}")
    table = reader(path, options)
    if not len(table):
        raise ConfigurationError(f"{path}: no events")
    return table
