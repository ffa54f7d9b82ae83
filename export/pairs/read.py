"""Pairs from files: two columns of text, or frames of streams beside a file of their transcripts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from streamer.errors import ConfigurationError

from ..config import DataSection, TrainConfig
from ..files import read
from ..files.cells import decode, words
from ..files.text import read_text
from ..readers import load
from .data import UNITS, Pair, PairSplit, Symbols, merge, split_pairs
from .sections import PairsSection

MAX_SYMBOLS = 10_000
"""Of one source or target; a longer one is a whole document, and no step of training would fit into memory."""


def read_split(config: TrainConfig, base: Path, notes: list[str]) -> PairSplit:
    """The three parts. Files of their own take the place of held-back shares."""
    data, section = config.data, config.pairs or PairsSection()
    pairs, features = _read(base / data.path, base, config, notes)
    own: dict[str, list[Pair]] = {}
    for part, path in (("validation", data.validation_path), ("test", data.test_path)):
        if path:
            own[part], names = _read(base / path, base, config, notes)
            if names != features:
                raise ConfigurationError(
                    f"{base / path}: its columns are {', '.join(names)}, not {', '.join(features)}"
                )
    if not own.get("validation") and data.validation == 0:
        raise ConfigurationError("data.validation must be above 0, or data.validation_path name a file")
    split = divide(
        pairs,
        section,
        validation=0.0 if "validation" in own else data.validation,
        test=0.0 if "test" in own else data.test,
        seed=config.seeds[0],
        features=features,
    )
    return replace(split, validation=own.get("validation", split.validation), test=own.get("test", split.test))


def divide(
    pairs: list[Pair],
    section: PairsSection,
    *,
    validation: float,
    test: float,
    seed: int,
    features: tuple[str, ...] = (),
) -> PairSplit:
    """A split by ``pairs.split_by``; frames are all different, so that they are split one by one."""

    def kind(pair: Pair) -> object:
        return pair.targets[0] if section.split_by == "target" else pair.source

    parts = split_pairs(pairs, validation=validation, test=test, seed=seed, by=kind)
    return PairSplit(*parts, section.target_units, None if features else section.source_units, features)


def read_texts(path: Path, section: PairsSection, data: DataSection, notes: list[str]) -> list[Pair]:
    """Pairs of a file with a source and a target in every row."""
    source_units, target_units = UNITS[section.source_units], UNITS[section.target_units]

    def rows() -> Iterator[tuple[Symbols, Symbols]]:
        for place, source, target in rows_of(path, section.source, section.target, data, notes):
            pair = source_units(source), target_units(target)
            if not all(pair):
                raise ConfigurationError(f"{place}: wants a source and a target, one of them is empty")
            if max(map(len, pair)) > MAX_SYMBOLS:
                raise ConfigurationError(f"{place}: longer than {MAX_SYMBOLS} symbols: cut it into sentences")
            yield pair

    return merge(rows())


def _read(path: Path, base: Path, config: TrainConfig, notes: list[str]) -> tuple[list[Pair], tuple[str, ...]]:
    """(pairs, names of the frames' features: () for texts)."""
    section = config.pairs or PairsSection()
    if section.transcripts is None:
        return read_texts(path, section, config.data, notes), ()
    return _read_frames(path, base / section.transcripts, section, config.data, notes)


def _read_frames(
    path: Path, transcripts: Path, section: PairsSection, data: DataSection, notes: list[str]
) -> tuple[list[Pair], tuple[str, ...]]:
    """Frames by stream, each with the transcript of its stream; ConfigurationError for a stream without one."""
    streams = load(
        path,
        stream=data.stream,
        time=data.time,
        label=None,
        features=data.features,
        labels="none",
        options=data.file_options(),
        notes=notes,
    )
    wordy = [table.name for table in streams.feature_tables if table.kind == "category"]
    if wordy or any(np.isnan(x).any() for x in streams.x):
        what = f"column {wordy[0]!r} holds words" if wordy else "there are cells without a value"
        raise ConfigurationError(f"{path}: frames are numbers without gaps, but {what}: choose data.features")
    units = UNITS[section.target_units]
    told = {name: units(text) for _, name, text in rows_of(transcripts, data.stream, section.target, data, notes)}
    without = [name for name in streams.names if not told.get(name)]
    if without:
        raise ConfigurationError(
            f"{transcripts}: no transcript of stream {without[0]!r} ({len(without)} of {len(streams)} streams have none)"
        )
    return [Pair(x, (told[name],)) for name, x in zip(streams.names, streams.x, strict=True)], streams.features


def rows_of(path: Path, first: str, second: str, data: DataSection, notes: list[str]) -> Iterator[tuple[str, str, str]]:
    """(place for messages, cell of the first column, cell of the second) of every row."""
    if not path.is_file():
        raise ConfigurationError(f"no such data file: {path}")
    if path.suffix.lower() == ".txt" or (path.suffix.lower() == ".tsv" and not _has_header(path, first, second, data)):
        text, note = read_text(path, data.encoding)
        notes += [f"{path}: {note}"] if note else []
        for number, line in enumerate(text.splitlines(), 1):
            cells = line.split("\t")
            if not line.strip():
                continue
            if len(cells) != 2:
                raise ConfigurationError(f"{path}, line {number}: {len(cells)} columns, wants SOURCE, a tab and TARGET")
            yield f"{path}, line {number}", cells[0].strip(), cells[1].strip()
        return
    options = replace(data.file_options(), stream=first, time=second, label=None)
    options = replace(options, categories=(first, second), missing_words=("",))  # a word may be "null" or "NA"
    table = read(path, options)
    table.require((first, second))
    decode(table, (first, second))
    notes += table.notes
    columns = (words(table, first, options), words(table, second, options))
    for row, (source, target) in enumerate(zip(*columns, strict=True)):
        yield table.place(row), source or "", target or ""


def _has_header(path: Path, first: str, second: str, data: DataSection) -> bool:
    lines = read_text(path, data.encoding)[0].splitlines()[:1]
    return bool(lines) and {first, second} <= {name.strip() for name in lines[0].split("\t")}
