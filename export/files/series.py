"""TS: the format of the UEA and UCR archives. Every case is a stream, its class the label of all of its events."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from streamer.errors import ConfigurationError

from .table import FileOptions, Table
from .text import read_text

_STAMPED = re.compile(r"\(([^()]*),([^(),]*)\)")


class _Header:
    """The lines that begin with @: what they say, lower-case, and the names of the classes."""

    def __init__(self) -> None:
        self.flags: dict[str, str] = {}
        self.classes: tuple[str, ...] | None = None

    def take(self, line: str) -> None:
        name, *values = line[1:].split()
        self.flags[name.lower()] = values[0].lower() if values else ""
        if name.lower() == "classlabel" and len(values) > 1 and values[0].lower() == "true":
            self.classes = tuple(values[1:])

    @property
    def stamped(self) -> bool:
        return self.flags.get("timestamps") == "true"

    @property
    def labelled(self) -> bool:
        """The last part of a case is its class or target; without a header that says so, it is."""
        kinds = [self.flags[name] for name in ("classlabel", "targetlabel") if name in self.flags]
        return not kinds or "true" in kinds


def read(path: Path, options: FileOptions) -> Table:
    """Dimensions x0, x1, ...; "?" is missing; times are the places in a case, or what @timeStamps true gives."""
    header, text = _Header(), read_text(path, options.encoding)[0]
    values: list[list[list[str]]] = []
    times: list[Any] = []
    labels: list[str] = []
    lines: list[int] = []
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        if line.startswith("@"):
            header.take(line)
            continue
        where = f"{path}, line {number}"
        dimensions, stamps, label = _case(line, header, where)
        if values and len(dimensions) != len(values[0]):
            raise ConfigurationError(f"{where}: {len(dimensions)} dimensions, the first case has {len(values[0])}")
        values.append(dimensions)
        times += stamps
        labels += [label] * len(dimensions[0])
        lines += [number] * len(dimensions[0])
    if not values:
        raise ConfigurationError(f"{path}: no cases")
    sizes = [len(dimensions[0]) for dimensions in values]
    names = np.repeat(np.array([f"case-{i:05d}" for i in range(len(values))]), sizes)
    columns: dict[str, Any] = {options.stream: names, options.time: times}
    if options.label is not None and header.labelled:
        columns[options.label] = labels
    for at in range(len(values[0])):
        columns[f"x{at}"] = [None if cell == "?" else cell for case in values for cell in case[at]]
    classes = header.classes if header.labelled else None
    return Table(str(path), columns, lines, classes=classes)


def _case(line: str, header: _Header, where: str) -> tuple[list[list[str]], list[Any], str]:
    """(cells of each dimension, times, label) of one line."""
    label = ""
    if header.labelled:
        line, _, label = line.rpartition(":")
    dimensions: list[list[str]]
    if header.stamped:
        pairs = [_STAMPED.findall(part) for part in re.split(r"(?<=\)):(?=\()", line)]
        dimensions = [[cell.strip() for _, cell in part] for part in pairs]
        stamps: list[Any] = [stamp.strip() for stamp, _ in pairs[0]] if pairs else []
        if any([stamp.strip() for stamp, _ in part] != stamps for part in pairs):
            raise ConfigurationError(f"{where}: the dimensions have different times")
    else:
        dimensions = [[cell.strip() for cell in part.split(",")] for part in line.split(":")]
        stamps = list(range(len(dimensions[0])))
    if not stamps or any(len(part) != len(stamps) for part in dimensions):
        lengths = ", ".join(str(len(part)) for part in dimensions)
        raise ConfigurationError(f"{where}: the dimensions have different lengths ({lengths}), or none")
    return dimensions, stamps, label.strip()
