"""JSON lines: one object per line; nested fields become columns by their path (``readings.cpu``, ``tags[0]``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from streamer.errors import ConfigurationError

from .table import FileOptions, Table
from .text import read_text


def read(path: Path, options: FileOptions) -> Table:
    """A field that an object does not have is missing there. ConfigurationError names the line."""
    text, note = read_text(path, options.encoding)
    found: list[dict[str, Any]] = []
    lines: list[int] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        cells: dict[str, Any] = {}
        try:
            value = msgspec.json.decode(line)
            if not isinstance(value, dict):
                raise ConfigurationError(f"{path}, line {number}: not an object with fields")
            _flatten(value, "", cells, f"{path}, line {number}")
        except msgspec.DecodeError as error:
            raise ConfigurationError(f"{path}, line {number}: not JSON: {error}") from error
        except RecursionError:
            raise ConfigurationError(f"{path}, line {number}: nested too deeply for fields with a path") from None
        found.append(cells)
        lines.append(number)
    names = list(dict.fromkeys(name for cells in found for name in cells))
    table = Table(str(path), {name: [cells.get(name) for cells in found] for name in names}, lines, typed=True)
    if note is not None:
        table.note(note)
    return table


def _flatten(value: Any, prefix: str, cells: dict[str, Any], where: str) -> None:
    if isinstance(value, dict):
        for name, each in value.items():
            _flatten(each, f"{prefix}.{name}" if prefix else name, cells, where)
    elif isinstance(value, list):
        for at, each in enumerate(value):
            _flatten(each, f"{prefix}[{at}]", cells, where)
    elif prefix in cells:
        raise ConfigurationError(f"{where}: two fields are called {prefix!r}: rename one of them")
    else:
        cells[prefix] = value
