"""Files of events as ``produce --file`` sends them: CSV and NPZ, with columns named as in the [data] of a train.toml."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.errors import ConfigurationError
from streamer.toml import parse_toml
from streamer.tools.telemetry_data import F32, I64

_MS_PER_UNIT = {"s": 1_000.0, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
_EPOCH_MS = (300_000_000_000, 10_000_000_000_000)
"""1979 to 2286: numbers that all lie here in one unit are times since 1970 in it, as in training."""
_ZERO = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_MISSING = ("", "NA", "N/A", "#N/A", "nan", "NaN", "NAN", "null", "NULL")

Events = tuple[NDArray[np.str_], I64, F32, list[str], tuple[str, ...]]


@dataclass(frozen=True)
class Columns:
    """What the columns of a file mean, by the names and defaults that training has for it."""

    stream: str = "stream"
    time: str = "time"
    label: str = "label"
    features: Sequence[str] | None = None
    """None: all others"""
    time_unit: str | None = None
    """s, ms, us or ns of times that are numbers; None: by the column's name (``_s``) or by size"""
    delimiter: str | None = None
    decimal: str | None = None
    encoding: str | None = None
    missing_words: Sequence[str] = _MISSING

    @classmethod
    def of_training(cls, path: Path) -> Columns:
        """From the [data] of a train.toml. ConfigurationError if there is none."""
        try:
            document = parse_toml(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{path}: cannot be read as TOML: {error}") from None
        data = document.get("data")
        if not isinstance(data, dict):
            raise ConfigurationError(
                f"{path}: has no [data], which names the columns: give the file that training took"
            )
        found = {each.name: data[each.name] for each in fields(cls) if each.name in data}
        for name, value in found.items():
            right = isinstance(value, list) if name in ("features", "missing_words") else isinstance(value, str)
            if not right:
                raise ConfigurationError(
                    f"{path}: data.{name} = {value!r} is no {'list' if name[-1] == 's' else 'text'}"
                )
        if found.get("time_unit", "ms") not in _MS_PER_UNIT:
            raise ConfigurationError(f"{path}: data.time_unit is one of {', '.join(_MS_PER_UNIT)}")
        return cls(**found)


def read_events(path: Path, columns: Columns | None = None) -> Events:
    """Streams [N], times [N] in ms, x [N, F], labels [N] and feature names of a CSV or NPZ file, in order of time.

    CSV: a column for the stream, one for the time (ISO 8601, without a zone UTC; or a number), features, optionally the
    label; a feature that is missing is NaN, which JSON tells as null. NPZ: arrays ``stream``, ``time_ms``, ``x``, optionally
    ``label`` and ``features``. ConfigurationError for anything else, with the line.
    """
    columns = columns or Columns()
    try:
        streams, times, x, labels, names = (_npz if path.suffix.lower() == ".npz" else _csv)(path, columns)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or error}") from error
    except (KeyError, ValueError, TypeError, LookupError) as error:
        what = "stream, time, features, label"
        raise ConfigurationError(f"{path}: not a file of events ({what}): {error}") from error
    if not len(streams) or not names:
        raise ConfigurationError(f"{path}: no events")
    order = np.argsort(times, kind="stable")
    return streams[order], times[order].astype(np.int64), x[order].astype(np.float32), labels[order].tolist(), names


def _npz(path: Path, columns: Columns) -> tuple[Any, Any, Any, Any, tuple[str, ...]]:
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    streams, times, x = arrays["stream"].astype(str), arrays["time_ms"], arrays["x"]
    names = tuple(map(str, arrays.get("features", [f"x{i}" for i in range(x.shape[1])])))
    labels = arrays["label"].astype(str) if "label" in arrays else np.full(len(streams), "")
    if columns.features is not None:
        chosen = [names.index(name) for name in columns.features]
        x, names = x[:, chosen], tuple(columns.features)
    return streams, times, x, labels, names


def _csv(path: Path, columns: Columns) -> tuple[Any, Any, Any, Any, tuple[str, ...]]:
    with path.open(newline="", encoding=columns.encoding or "utf-8-sig") as file:
        delimiter = columns.delimiter or _delimiter(file.readline())
        file.seek(0)
        reader = csv.DictReader(file, delimiter=delimiter)
        rows = list(reader)
        header = list(reader.fieldnames or ())
    for role, name in (("stream", columns.stream), ("time", columns.time)):
        if name not in header:
            raise ConfigurationError(
                f"{path}: there is no column {name!r} for the {role}, the file has {', '.join(header)}. Where training had other "
                "names, give its train.toml with --train."
            )
    special = (columns.stream, columns.time, columns.label)
    names = tuple(columns.features) if columns.features is not None else tuple(n for n in header if n not in special)
    missing = [name for name in names if name not in header]
    if missing:
        raise ConfigurationError(f"{path}: there is no column {missing[0]!r}, the file has {', '.join(header)}")
    for line, row in enumerate(rows, 2):
        if None in row.values():
            raise ValueError(f"line {line} has fewer cells than the header")
    x = np.array(
        [[_number(row[name], line, name, delimiter, columns) for name in names] for line, row in enumerate(rows, 2)]
    ).reshape(len(rows), len(names))
    times = _times([row[columns.time] for row in rows], columns)
    return (
        np.array([row[columns.stream] for row in rows], str),
        times,
        x,
        np.array([row.get(columns.label) or "" for row in rows], str),
        names,
    )


def _delimiter(header: str) -> str:
    return max(",;\t|", key=header.count)


def _number(cell: str, line: int, name: str, delimiter: str, columns: Columns) -> float:
    text = cell.strip()
    if text in columns.missing_words:
        return float("nan")
    if columns.decimal == "," or (columns.decimal is None and delimiter != "," and text.count(",") == 1):
        text = text.replace(",", ".")
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"line {line}, column {name!r}: {cell!r} is not a number: produce sends numbers, choose data.features"
        ) from None


def _times(cells: list[str], columns: Columns) -> I64:
    """In ms; ValueError with the line of what is no time."""
    try:
        numbers = np.array([float(cell.replace(",", ".")) for cell in cells])
    except ValueError:
        return np.array([_moment(cell, line) for line, cell in enumerate(cells, 2)], np.int64)
    return np.round(numbers * _MS_PER_UNIT[_unit(numbers, columns)]).astype(np.int64)


def _unit(numbers: NDArray[np.float64], columns: Columns) -> str:
    suffix = columns.time.rpartition("_")[2].lower()
    if columns.time_unit is not None:
        return columns.time_unit
    if suffix in _MS_PER_UNIT and suffix != columns.time.lower():
        return suffix
    for unit, factor in _MS_PER_UNIT.items():
        if len(numbers) and _EPOCH_MS[0] <= numbers.min() * factor and numbers.max() * factor < _EPOCH_MS[1]:
            return unit
    return "ms"


def _moment(cell: str, line: int) -> int:
    try:
        moment = datetime.fromisoformat(cell.strip())
    except ValueError:
        raise ValueError(f"line {line}: {cell!r} is no time: write ISO 8601, or a number in all lines") from None
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _ZERO) // _MS
