"""From files to the parts that are trained on and judged: missing values filled, words numbered, windows cut.

What is learnt from data (means, vocabularies) is learnt from the training part only. What was done is declared in
``Streams.tables``, so that the contract says it and the service does the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from streamer.errors import ConfigurationError, ModelError
from streamer.modelfile.feature import Feature, check_features
from streamer.modelfile.past import Past
from streamer.windows import WindowRule

from . import windowing
from .config import DataSection, TrainConfig
from .data import Split, Streams, split_by_stream, split_by_time
from .files.table import refuse_doubles
from .readers import load

UNKNOWN = "<unknown>"
"""The first word of every vocabulary that is made here: all words that training does not know."""
NORMAL = ("normal", "0")
"""Labels that need no ``data.normal`` to be taken for normal."""
_KIND_OF_LABELS = {"regress": "values", "classify": "classes", "forecast": "classes"}


def read_split(config: TrainConfig, base: Path, notes: list[str] | None = None) -> Split:
    """The parts, ready for training. Files of their own take the place of held-back shares.

    ``notes`` takes sentences about what was found out and decided, for the screen.
    """
    notes = [] if notes is None else notes
    section = config.data
    data = _load(config, base / section.path, None, notes)
    own_test = _load(config, base / section.test_path, data, notes) if section.test_path else None
    own_held = _load(config, base / section.validation_path, data, notes) if section.validation_path else None
    split = divide(
        data,
        section,
        seed=config.seeds[0],
        rule=config.rule,
        held=own_held,
        judged=own_test,
        notes=notes,
    )
    return prepare(split, section, words=config.model.vocabulary, notes=notes)


def divide(
    data: Streams,
    section: DataSection,
    *,
    seed: int,
    rule: WindowRule | None,
    held: Streams | None,
    judged: Streams | None,
    notes: list[str],
) -> Split:
    """Training, validation and test part, cut into windows if there is a rule."""
    validation = 0.0 if held is not None else section.validation
    test = 0.0 if judged is not None else section.test
    if held is None and validation == 0:
        raise ConfigurationError("data.validation must be above 0, or data.validation_path name a file")
    if section.split == "time" and rule is not None:
        split, across = windowing.split_by_time(data, rule, validation=validation, test=test)
        if across:
            notes.append(f"{across} windows lie across a border between the parts, and belong to none")
    elif section.split == "time":
        split = split_by_time(data, validation=validation, test=test)
    else:
        split = split_by_stream(data, validation=validation, test=test, seed=seed)
    if rule is not None and section.split != "time":
        split = windowing.cut_split(split, rule)
    for name, own in (("validation", held), ("test", judged)):
        if own is not None:
            split = replace(split, **{name: windowing.cut(own, rule) if rule is not None else own})
    if rule is not None:
        notes.append(
            f"[window] {rule.kind}: {len(split.train)} windows to train on, {len(split.validation)} for validation,"
            f" {len(split.test)} for the test, cut as the service cuts them"
        )
    return split


def prepare(split: Split, section: DataSection, *, words: int = 0, notes: list[str] | None = None) -> Split:
    """Missing numbers filled and words numbered, by the training part. ``words``: at most so many are kept; 0: all."""
    notes = [] if notes is None else notes
    parts = (split.train, split.validation, split.test)
    tables, vocabularies = [], []
    for at, feature in enumerate(split.train.feature_tables):
        own = section.own_rule(feature.field)
        if feature.kind == "category" and feature.unknown is None:
            kept = _vocabulary(split.train, at, section.min_count, words)
            vocabularies.append(kept)
            missing: Any = "last" if own == "last" else None
            tables.append(
                msgspec.structs.replace(feature, vocabulary=(UNKNOWN, *kept), unknown=0, missing=missing, fallback=0.0)
            )
            if not feature.lag:
                lost = _unknown_share(split.test if len(split.test) else split.validation, at, kept)
                notes.append(
                    f"column {feature.name!r}: {len(kept)} words are known, {lost:.1%} of those judged are not"
                )
            continue
        vocabularies.append([])
        gaps = sum(int(np.isnan(x[:, at]).sum()) for part in parts for x in part.x)
        rule = section.missing_rule(feature.field)
        made_of_a_cell = feature.kind in ("number", "flag")
        filled = _filled(feature, rule, split.train, at) if made_of_a_cell and (gaps or rule == "last") else feature
        if gaps and filled is not feature and not feature.lag:
            what = "the stream's last value stands" if filled.missing == "last" else f"{filled.missing:g} stands"
            notes.append(f"column {feature.name!r}: {what} for {gaps} missing cells (data.missing)")
        if feature.lag and filled.missing != "last":
            filled = msgspec.structs.replace(filled, fallback=_mean(filled, split.train, at))
        tables.append(filled)
    try:
        check_features(tables, len(tables), "[data]")
    except ModelError as error:  # which the contract would say after the training
        raise ConfigurationError(str(error)) from error
    made = [_apply(part, tables, vocabularies) for part in parts]
    return Split(*made)


def derive(data: Streams, section: DataSection) -> Streams:
    """Columns that say what was there, and those that the stream's past will make (``_apply``): they hold what a record has."""
    rules = {**(section.missing if isinstance(section.missing, dict) else {}), **section.places[1]}
    named = {"present": section.present, "lags": section.lags, "categories": section.categories, "missing": rules}
    for key, names in named.items():
        for name in names:
            if name not in data.features:
                raise ConfigurationError(
                    f"data.{key}: there is no feature {name!r}, there are {', '.join(data.features)}"
                )
    shown = [data.features.index(name) for name in section.present]
    tables = [*data.feature_tables, *(Feature(f"{n} present", "present", source=n) for n in section.present)]
    if section.since_last:
        tables.append(Feature("since_last", "since_last", unit="s"))
    lagged = [(data.features.index(name), lag) for name, lags in section.lags.items() for lag in lags]
    for at, lag in lagged:
        of = data.feature_tables[at]
        tables.append(msgspec.structs.replace(of, name=f"{of.name} lag {lag}", source=of.field, lag=lag))
    refuse_doubles([table.name for table in tables], "with data.present, data.since_last and data.lags")
    xs = []
    for x in data.x:
        gap = np.zeros((len(x), int(section.since_last)), np.float32)
        xs.append(
            np.concatenate([x, ~np.isnan(x[:, shown]), gap, x[:, [at for at, _ in lagged]]], axis=1, dtype=np.float32)
        )
    return replace(data, features=tuple(table.name for table in tables), x=xs, tables=tuple(tables))


def _derived(section: DataSection) -> int:
    """Columns that ``derive`` adds."""
    return len(section.present) + int(section.since_last) + sum(map(len, section.lags.values()))


def _load(config: TrainConfig, path: Path, like: Streams | None, notes: list[str]) -> Streams:
    """One file; ``like``: the training file, by which columns and classes are what they are there."""
    section = config.data
    options = section.file_options()
    classes = [str(each) for each in section.classes] if section.classes and config.task != "next_category" else None
    features = section.features
    if like is not None:
        tables = like.feature_tables[: len(like.features) - _derived(section)]
        options = replace(options, categories=[table.name for table in tables if table.kind == "category"])
        features = [table.name for table in tables]
        classes = classes or (list(like.classes) if like.classes is not None else None)
    data = load(
        path,
        stream=section.stream,
        time=section.time,
        label=section.label,
        features=features,
        classes=classes,
        labels=_KIND_OF_LABELS.get(config.task, "none"),
        options=options,
        places=section.places[0],
        notes=notes,
    )
    if like is not None and [t.kind for t in data.feature_tables] != [t.kind for t in tables]:
        name = next(a.name for a, b in zip(data.feature_tables, tables, strict=True) if a.kind != b.kind)
        raise ConfigurationError(f"{path}: column {name!r} holds words, but {section.path} has numbers there")
    if data.labels is None and config.task in ("classify", "regress"):
        raise ConfigurationError(
            f"{path}: no column {section.label!r} of labels, which task {config.task} needs (data.label)"
        )
    if config.task == "forecast":
        data.normal = normal_class(data, None if section.normal is None else str(section.normal))
    return derive(data, section)


def normal_class(data: Streams, named: str | None) -> int | None:
    """The class that is no anomaly. ConfigurationError if it cannot be known; None where nothing has a label."""
    if data.classes is None or data.labels is None:
        if named is not None:
            raise ConfigurationError(f"data.normal is {named!r}, but the data has no column of labels")
        return None
    if not data.classes:
        return None
    for name in (named,) if named is not None else NORMAL:
        if name in data.classes:
            return data.classes.index(name)
    there = ", ".join(data.classes[:20])
    if named is not None:
        raise ConfigurationError(f"data.normal is {named!r}, but the labels are {there}")
    raise ConfigurationError(
        f"which of the labels {there} is that of normal events? say data.normal = {data.classes[0]!r}"
    )


def _vocabulary(train: Streams, column: int, min_count: int, limit: int) -> list[str]:
    """Words of the training part, the most common first."""
    names = train.feature_tables[column].vocabulary
    codes = np.concatenate([x[:, column] for x in train.x])
    counts = Counter(codes[~np.isnan(codes)].astype(int).tolist())
    found = {names[code]: count for code, count in counts.items() if count >= min_count and names[code] != UNKNOWN}
    kept = sorted(found, key=lambda word: (-found[word], word))
    if not kept:
        raise ConfigurationError(
            f"column {train.features[column]!r}: no word occurs {min_count} times in the training part (data.min_count)"
        )
    return kept[: limit or None]


def _unknown_share(part: Streams, column: int, kept: Sequence[str]) -> float:
    names, known = part.feature_tables[column].vocabulary, set(kept)
    codes = np.concatenate([x[:, column] for x in part.x])
    is_known = np.array([word in known for word in names])
    return float(np.mean([not np.isnan(code) and not is_known[int(code)] for code in codes]))


def _filled(feature: Feature, rule: float | str, train: Streams, column: int) -> Feature:
    """The feature with what stands for its missing values."""
    if not isinstance(rule, str):
        return msgspec.structs.replace(feature, missing=float(np.float32(rule)))
    if rule == "last":
        kept = msgspec.structs.replace(feature, missing="last")
        return msgspec.structs.replace(kept, fallback=_mean(kept, train, column))
    return msgspec.structs.replace(feature, missing=_mean(feature, train, column))


def _mean(feature: Feature, train: Streams, column: int) -> float:
    """Of a column, as the model sees it: with the last values where these stand for missing ones."""
    alone = Past.of([Feature("", missing="last", fallback=np.nan)], "float32") if feature.missing == "last" else None
    columns = [(x[:, [column]], times) for x, times in zip(train.x, train.times_ms, strict=True)]
    values = np.concatenate([x if alone is None else alone.whole(x, times) for x, times in columns])
    known = values[~np.isnan(values)].astype(np.float64)
    if isinstance(feature.missing, float):
        known = np.where(np.isnan(values), feature.missing, values).astype(np.float64)
    if not len(known):
        raise ConfigurationError(f"column {feature.name!r} has no value at all in the training part: leave it out")
    return float(np.float32(known.mean()))


def _apply(part: Streams, tables: Sequence[Feature], vocabularies: Sequence[list[str]]) -> Streams:
    """Words become their places, gaps what stands for them, and the rest is made by the stream's past, as in the service."""
    xs = [x.copy() for x in part.x]
    for at, (feature, kept) in enumerate(zip(tables, vocabularies, strict=True)):
        missing = np.nan if feature.missing == "last" else feature.unknown if kept else feature.missing
        places: NDArray[np.float32] | None = None
        if kept:
            known = {word: number + 1 for number, word in enumerate(kept)}
            # one entry more for cells that are missing
            names = part.feature_tables[at].vocabulary
            places = np.array([*(known.get(word, 0) for word in names), missing], np.float32)
        for x in xs:
            gaps = np.isnan(x[:, at])
            if places is not None:
                x[:, at] = places[np.where(gaps, len(places) - 1, x[:, at]).astype(int)]
            elif gaps.any():
                x[gaps, at] = missing
    past = Past.of(tables, "float32")
    if past is not None:
        xs = [past.whole(x, times) for x, times in zip(xs, part.times_ms, strict=True)]
    return replace(part, x=xs, tables=tuple(tables))
