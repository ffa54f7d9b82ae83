"""Streams from CSV, NPZ and TS files.

Every reader ends in the same ``Streams``: per stream the events in order of time, features [T, F] and, where there
are any, labels. Bad data is a ConfigurationError that names the place, because training would hide it.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamer.errors import ConfigurationError

from .data import F32, I64, UNLABELLED, Streams


def load(
    path: Path,
    *,
    stream: str = "stream",
    time: str = "time",
    label: str | None = "label",
    features: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    labels: str = "classes",
) -> Streams:
    """Read a CSV, NPZ or TS file by its suffix.

    CSV: a header, one event per line; ``features`` default to all columns that are not stream, time or label.
    NPZ: ``stream`` [N], ``time_ms`` [N], ``x`` [N, F], optionally ``label`` [N] and ``features`` [F].
    TS: the format of the UEA archive; every case is a stream, its class the label of all of its events.
    ``labels``: classes | values | none. With ``classes`` given, labels are their names or numbers.
    """
    if not path.is_file():
        raise ConfigurationError(f"no such data file: {path}")
    readers = {".csv": _read_csv, ".npz": _read_npz, ".ts": _read_ts}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ConfigurationError(f"{path}: unknown format, expected one of {', '.join(readers)}")
    columns = reader(path, stream, time, label if labels != "none" else None, features)
    if len(columns.streams) == 0:
        raise ConfigurationError(f"{path}: no events")
    return group(columns, classes=classes, labels=labels, where=str(path))


@dataclass
class Columns:
    """A file as it was read: N events in any order."""

    streams: NDArray[np.str_]
    times_ms: I64
    x: F32
    features: tuple[str, ...]
    labels: NDArray[np.generic] | None


def group(columns: Columns, *, classes: Sequence[str] | None, labels: str, where: str) -> Streams:
    """Check the columns and group them by stream; events are put in order of time, stable for equal times."""
    finite = np.isfinite(columns.x)
    if not finite.all():
        row, feature = (int(i) for i in np.argwhere(~finite)[0])
        raise ConfigurationError(
            f"{where}: event {row} of {len(finite)} (stream {str(columns.streams[row])!r}) has no finite value for "
            f"{columns.features[feature]!r} ({int((~finite).sum())} such values in all); fill or drop them first"
        )
    names, inverse = np.unique(columns.streams, return_inverse=True)
    order = np.lexsort((np.arange(len(inverse)), columns.times_ms, inverse))
    borders = np.searchsorted(inverse[order], np.arange(1, len(names)))
    numbers, class_names = _number_labels(columns.labels, classes, labels, where)
    return Streams(
        columns.features,
        [str(name) for name in names],
        np.split(columns.x[order], borders),
        np.split(columns.times_ms[order], borders),
        None if numbers is None else np.split(numbers[order], borders),
        class_names,
    )


def _number_labels(
    values: NDArray[np.generic] | None, classes: Sequence[str] | None, labels: str, where: str
) -> tuple[NDArray[np.generic] | None, tuple[str, ...] | None]:
    """Labels as class numbers with their names, or as values."""
    if values is None or labels == "none":
        return None, None
    if labels == "values":
        try:
            numbers = values.astype(np.float32)
        except ValueError as error:
            raise ConfigurationError(f"{where}: labels are not numbers: {error}") from error
        if not np.isfinite(numbers).all():
            raise ConfigurationError(f"{where}: event {int(np.argmin(np.isfinite(numbers)))} has no finite label")
        return numbers, None
    texts = values.astype(str)
    if np.issubdtype(values.dtype, np.floating):
        texts = values.astype(np.int64).astype(str)
        if not (values.astype(np.float64) == values.astype(np.int64)).all():
            raise ConfigurationError(f"{where}: labels of classes must be whole numbers or names")
    known = [str(name) for name in classes] if classes is not None else _class_names(texts)
    numbered = {str(i): i for i in range(len(known))} | {name: i for i, name in enumerate(known)}
    numbered |= {"": UNLABELLED, str(UNLABELLED): UNLABELLED}
    unknown = sorted(set(texts.tolist()) - set(numbered))
    if unknown:
        raise ConfigurationError(f"{where}: label {unknown[0]!r} is not one of the classes {', '.join(known)}")
    return np.array([numbered[text] for text in texts.tolist()], np.int64), tuple(known)


def _class_names(texts: NDArray[np.str_]) -> list[str]:
    found = sorted(set(texts.tolist()) - {"", str(UNLABELLED)})
    if found and all(text.isdigit() for text in found):
        return [str(i) for i in range(max(int(text) for text in found) + 1)]
    return found


def _read_csv(path: Path, stream: str, time: str, label: str | None, features: Sequence[str] | None) -> Columns:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = next(reader, None)
        if header is None:
            raise ConfigurationError(f"{path}: empty file")
        missing = [name for name in (stream, time, *(features or ())) if name not in header]
        if missing:
            raise ConfigurationError(f"{path}: no column {missing[0]!r}, there are {', '.join(header)}")
        chosen = list(features) if features else [name for name in header if name not in (stream, time, label)]
        if not chosen:
            raise ConfigurationError(f"{path}: no feature columns")
        places = [header.index(name) for name in chosen]
        rows = [row for row in reader if row]
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise ConfigurationError(f"{path}: event {number} has {len(row)} columns, the header {len(header)}")
    try:
        x = np.array([[float(row[place] or "nan") for place in places] for row in rows], np.float32)
        times = np.array([round(float(row[header.index(time)])) for row in rows], np.int64)
    except (ValueError, OverflowError) as error:
        raise ConfigurationError(f"{path}: not a number: {error}") from error
    labels = None
    if label is not None and label in header:
        labels = np.array([row[header.index(label)] for row in rows], str)
    names = np.array([row[header.index(stream)] for row in rows], str)
    return Columns(names, times, x.reshape(len(rows), len(chosen)), tuple(chosen), labels)


def _read_npz(path: Path, stream: str, time: str, label: str | None, features: Sequence[str] | None) -> Columns:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: not an NPZ file of plain arrays: {error}") from error
    times = arrays.get(time, arrays.get("time_ms"))
    if stream not in arrays or times is None or "x" not in arrays:
        raise ConfigurationError(f"{path}: needs arrays {stream}, time_ms and x, there are {', '.join(arrays)}")
    x = arrays["x"]
    labels = arrays.get(label) if label is not None else None
    rows = len(x)
    if x.ndim != 2 or any(len(a) != rows for a in (arrays[stream], times, *([] if labels is None else [labels]))):
        raise ConfigurationError(f"{path}: x must be [N, F], and all other columns [N]")
    names = tuple(str(f) for f in arrays["features"]) if "features" in arrays else _default_names(x.shape[1])
    if len(names) != x.shape[1]:
        raise ConfigurationError(f"{path}: {len(names)} feature names for {x.shape[1]} features")
    if features:
        missing = [name for name in features if name not in names]
        if missing:
            raise ConfigurationError(f"{path}: no feature {missing[0]!r}, there are {', '.join(names)}")
        x, names = x[:, [names.index(name) for name in features]], tuple(features)
    return Columns(arrays[stream].astype(str), times.astype(np.int64), x.astype(np.float32), names, labels)


def _read_ts(path: Path, stream: str, time: str, label: str | None, features: Sequence[str] | None) -> Columns:
    del stream, time, features
    pieces: list[F32] = []
    classes: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.strip() or line[0] in "#@":
            continue
        *dimensions, kind = line.strip().split(":")
        try:
            pieces.append(np.array([[float(v) for v in d.split(",")] for d in dimensions], np.float32).T)
        except ValueError as error:
            raise ConfigurationError(f"{path}: case {len(pieces)}: {error}") from error
        classes.append(kind)
    if not pieces:
        raise ConfigurationError(f"{path}: no cases")
    sizes = [len(piece) for piece in pieces]
    names = np.repeat(np.array([f"case-{i:05d}" for i in range(len(pieces))]), sizes)
    times = np.concatenate([np.arange(size, dtype=np.int64) for size in sizes])
    labels = np.repeat(np.array(classes), sizes) if label is not None else None
    return Columns(names, times, np.concatenate(pieces), _default_names(pieces[0].shape[1]), labels)


def _default_names(count: int) -> tuple[str, ...]:
    return tuple(f"x{i}" for i in range(count))
