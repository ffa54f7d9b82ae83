"""The user's own data for the worked examples: any words, any labels, any columns, with vocabularies of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from streamer.errors import ConfigurationError
from streamer.modelfile.feature import Feature

from .config import DataSection
from .data import Split, Streams, sequences, split_by_stream
from .files.text import read_text
from .prepare import divide, normal_class, prepare
from .readers import load

SEED = 0
END = "<end>"
"""The label of the last event of a caption."""
_SHARE = 0.15


def table(path: Path, task: str, *, label: str = "label", normal: str | None = None) -> Split:
    """A table of events as ``train`` reads it, with its defaults: words become categories, gaps are filled."""
    labels = "none" if task.startswith("next_") else "classes"
    data = load(path, labels=labels, label=label)
    if task == "forecast":
        data.normal = normal_class(data, normal)
    section = DataSection(path=str(path))
    return prepare(divide(data, section, seed=SEED, rule=None, held=None, judged=None, notes=[]), section)


def sentences(path: Path) -> Split:
    """Lines "label<TAB>sentence" (.tsv, .txt), or a table with one word per event; any labels, any words."""
    if path.suffix.lower() not in (".tsv", ".txt"):
        return table(path, "classify")
    words, labels = [], []
    for number, line in enumerate(read_text(path)[0].splitlines(), 1):
        if not line.strip():
            continue
        label, tab, text = line.partition("\t")
        if not tab or not label.strip() or not text.split():
            raise ConfigurationError(f"{path}, line {number}: wants a label, a tab and a sentence")
        words.append(text.lower().split())
        labels.append(label.strip())
    known = sorted({word for sentence in words for word in sentence})
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise ConfigurationError(f"{path}: {len(classes)} label(s), at least 2 are wanted: LABEL<TAB>SENTENCE per line")
    place, number_of = ({word: at for at, word in enumerate(names)} for names in (known, classes))
    data = sequences(
        ["word"],
        [[place[word] for word in sentence] for sentence in words],
        [number_of[label] for label in labels],
        classes,
    )
    data.tables = (Feature("word", "category", tuple(known)),)
    return prepare(split(data), DataSection(path=str(path)))


def captions(path: Path) -> Split:
    """A table with one word per event in the column ``label``, and the picture's numbers in a stream's first event.

    An event is the picture beside the word before, as in the recipe's own data; pictures of later events are not read.
    """
    data = load(path)
    if data.labels is None or data.classes is None or any(t.kind == "category" for t in data.feature_tables):
        raise ConfigurationError(f"{path}: wants columns of numbers (the picture) and a column label (the words)")
    classes = (END, *(name for name in data.classes if name != END))
    place = np.array([classes.index(name) for name in data.classes])
    pixels, xs, labels = len(data.features), [], []
    for name, x, label in zip(data.names, data.x, data.labels, strict=True):
        if np.less(label, 0).any() or np.isnan(x[0]).any():
            raise ConfigurationError(f"{path}: stream {name!r} has an event without a word, or no whole picture")
        tokens = place[label].tolist()
        tokens = tokens if tokens[-1] == 0 else [*tokens, 0]
        made = np.zeros((len(tokens), pixels + len(classes)), np.float32)
        made[0, :pixels] = x[0]
        made[np.arange(1, len(tokens)), pixels + np.array(tokens[:-1])] = 1
        xs.append(made)
        labels.append(tokens)
    return split(sequences((*data.features, *(f"word-{word}" for word in classes)), xs, labels, classes))


def pixels_of(data: Split) -> int:
    """Features of a caption's event that are no words."""
    return len(data.train.features) - len(data.train.classes or ())


def split(data: Streams) -> Split:
    """A recipe's usual split by stream: 15 % for validation, 15 % for the test."""
    return split_by_stream(data, validation=_SHARE, test=_SHARE, seed=SEED)
