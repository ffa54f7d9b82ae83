"""Streams from files: every format ends in the same ``Streams``.

Per stream the events in order of time, features [T, F] and, where there are any, labels. What is missing is NaN in x,
and words are numbered as the file has them: ``export.prepare`` fills and numbers them by the training part. Bad data
is a ConfigurationError that names file, row and column, because training would hide it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.errors import ConfigurationError
from streamer.modelfile.feature import Feature
from streamer.settings.fields import FieldConstant, Place, written_as

from .data import F32, I64, UNLABELLED, Streams
from .files import FileOptions, Table, read
from .files.cells import categories, decode, first_word, is_number, numbers, words
from .files.times import nanoseconds

MAX_CLASSES = 10_000
"""More different labels are numbers to be learnt by regression, or ids."""


def load(
    path: Path,
    *,
    stream: str = "stream",
    time: str = "time",
    label: str | None = "label",
    features: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    labels: str = "classes",
    options: FileOptions | None = None,
    places: Mapping[str, Place] = MappingProxyType({}),
    notes: list[str] | None = None,
) -> Streams:
    """Read a file by its suffix (see ``export.files.FORMATS``).

    ``features`` default to all columns that are not stream, time or label. ``labels``: classes | values | none. With
    ``classes`` given, labels are their names or numbers. ``options``: what else ``[data]`` says about the file.
    ``places``: where features are that are not in the column of their name. ``notes`` takes sentences about what was
    found out.
    """
    wanted = label if labels != "none" else None
    options = replace(options or FileOptions(), stream=stream, time=time, label=label, features=features)
    # features that are elsewhere have no column of their name
    own = None if features is None else [name for name in features if name not in places]
    table = read(path, replace(options, features=own))
    _name(table, places)
    time = table.time_column or time
    table.require((stream, time, *(features or ())))
    chosen = list(features) if features else [name for name in table.columns if name not in (stream, time, label)]
    if not chosen:
        raise ConfigurationError(f"{table.where}: no feature columns")
    decode(table, (stream, time, label, *chosen))
    names = _stream_names(table, stream, options)
    times_ns = nanoseconds(table, time, options)
    x, tables = _features(table, chosen, options)
    found: NDArray[Any] | None = None
    class_names: tuple[str, ...] | None = None
    if wanted is not None and wanted in table.columns:
        found, class_names = _labels(table, wanted, classes or table.classes, labels, options)
    if notes is not None:
        notes += table.notes
    return _group(names, times_ns, x, tables, found, class_names)


def _name(table: Table, places: Mapping[str, Place]) -> None:
    """Columns get the names of the features that are made of them, as the service's ``[input.fields]`` has it."""
    found: dict[str, Any] = {}
    taken = set()
    for feature, place in places.items():
        if isinstance(place, FieldConstant):
            found[feature] = [place.value] * len(table)
            continue
        column = next((name for name in written_as(place) if name in table.columns), written_as(place)[0])
        table.require((column,))
        found[feature] = table.columns[column]
        taken.add(column)
    table.columns = {name: cells for name, cells in table.columns.items() if name not in taken} | found


def _group(
    names: list[str],
    times_ns: I64,
    x: F32,
    tables: list[Feature],
    labels: NDArray[Any] | None,
    classes: tuple[str, ...] | None,
) -> Streams:
    """Events by stream, in order of time, stable for equal times; finer than milliseconds where the file is."""
    unique, inverse = np.unique(np.array(names), return_inverse=True)
    order = np.lexsort((np.arange(len(inverse)), times_ns, inverse))
    borders = np.searchsorted(inverse[order], np.arange(1, len(unique)))
    return Streams(
        tuple(feature.name for feature in tables),
        [str(name) for name in unique],
        np.split(x[order], borders),
        np.split(times_ns[order] // 1_000_000, borders),
        None if labels is None else np.split(labels[order], borders),
        classes,
        tables=tuple(tables),
    )


def _stream_names(table: Table, stream: str, options: FileOptions) -> list[str]:
    names = words(table, stream, replace(options, missing_words=("",)))  # a stream may be called NA
    if None in names:
        raise ConfigurationError(f"{table.place(names.index(None), stream)}: the event has no stream")
    return [name for name in names if name is not None]


def _features(table: Table, chosen: Sequence[str], options: FileOptions) -> tuple[F32, list[Feature]]:
    """x[N, F] with NaN where missing, and what each column is."""
    columns, tables = [], []
    for name in chosen:
        found = None if name in options.categories else numbers(table, name, options)
        if found is not None:
            gaps = np.isnan(found[0])
            if (options.complete is None or name in options.complete) and bool(gaps.any()):
                raise ConfigurationError(
                    f"{table.place(int(np.argmax(gaps)), name)}: no value ({int(gaps.sum())} such cells), and"
                    " data.missing is reject"
                )
            if gaps.all():
                _without_values(table, name, options)
                continue
            columns.append(found[0])
            tables.append(Feature(name, "flag" if found[1] else "number"))
            continue
        cells = categories(table, name, options)
        known = sorted({word for word in cells if word is not None})
        if not known:
            _without_values(table, name, options)
            continue
        place = {word: number for number, word in enumerate(known)}
        columns.append(np.array([np.nan if word is None else place[word] for word in cells]))
        tables.append(Feature(name, "category", tuple(known)))
        if name not in options.categories:
            table.note(f"column {name!r} holds words ({len(known)} different ones) and becomes a category")
    if not columns:
        raise ConfigurationError(f"{table.where}: no feature columns")
    return np.stack(columns, axis=1).astype(np.float32), tables


def _without_values(table: Table, name: str, options: FileOptions) -> None:
    """A column of which every cell is missing says nothing; it is only wrong to ask for it."""
    if options.features or name in options.categories:
        raise ConfigurationError(
            f"{table.where}, column {name!r}: every cell is missing: leave it out of data.features"
        )
    table.note(f"column {name!r} has no value at all, and is left out")


def _labels(
    table: Table, name: str, classes: Sequence[str] | None, labels: str, options: FileOptions
) -> tuple[NDArray[Any], tuple[str, ...] | None]:
    """Class numbers with their names, UNLABELLED where there is none; or values, NaN where there is none."""
    if labels == "values":
        found = numbers(table, name, options)
        if found is None:
            row = first_word(table, name, options)
            raise ConfigurationError(
                f"{table.place(row, name)}: {table.columns[name][row]!r} is not a number: regress needs numbers, classify takes words"
            )
        return found[0].astype(np.float32), None
    texts = _label_words(table, name, options)
    if classes is None:
        known = _class_names(texts)
        if len(known) > MAX_CLASSES:
            raise ConfigurationError(
                f"{table.where}, column {name!r}: {len(known)} different labels, at most {MAX_CLASSES} are classes:"
                " is it a value (task regress), or an id?"
            )
    else:
        known = [str(each) for each in classes]
    place = {word: number for number, word in enumerate(known)}
    if not any(is_number(word) for word in known):
        place = {str(number): number for number in range(len(known))} | place
    place.setdefault(str(UNLABELLED), UNLABELLED)
    for row, text in enumerate(texts):
        if text is not None and text not in place:
            raise ConfigurationError(
                f"{table.place(row, name)}: label {text!r} is not one of the classes {', '.join(known[:20])}"
            )
    numbered = np.array([UNLABELLED if text is None else place[text] for text in texts], np.int64)
    return numbered, tuple(known)


def _label_words(table: Table, name: str, options: FileOptions) -> list[str | None]:
    """The labels as words; where all are whole numbers, 1.0 is 1 (a column with gaps is written so)."""
    texts = words(table, name, replace(options, missing_words=options.gaps))  # no service reads labels
    for row, text in enumerate(texts):
        if text is not None and not is_number(text):
            return texts
        if text is not None and not float(text).is_integer():
            raise ConfigurationError(
                f"{table.place(row, name)}: label {text!r} is a fraction: classes are whole numbers or names,"
                " values belong to task regress"
            )
    return [text if text is None or text.lstrip("+-").isdigit() else str(int(float(text))) for text in texts]


def _class_names(texts: Sequence[str | None]) -> list[str]:
    """The labels that occur, numbers in order of size: large and sparse ones are names like any other."""
    found = {text for text in texts if text is not None} - {str(UNLABELLED)}
    if all(is_number(text) for text in found):
        return sorted(found, key=lambda text: (float(text), text))  # 1 and +1 in one order, whatever the hashes
    return sorted(found)
