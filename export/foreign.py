"""The user's own data for the worked examples: any words, any labels, any columns, with vocabularies of their own."""

from __future__ import annotations

from pathlib import Path

from streamer.errors import ConfigurationError
from streamer.modelfile.feature import Feature

from .config import DataSection
from .data import Split, Streams, sequences, split_by_stream
from .files.text import read_text
from .prepare import divide, normal_class, prepare
from .readers import load

SEED = 0
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


def split(data: Streams) -> Split:
    """A recipe's usual split by stream: 15 % for validation, 15 % for the test."""
    return split_by_stream(data, validation=_SHARE, test=_SHARE, seed=SEED)
