"""Pairs: a source (a text, or frames of numbers) and the sequences of symbols that are right for it.

A pair has one or more right targets (a word may be pronounced in several ways): all are trained on, and any of them is
right when a model is judged. What is learnt from data (vocabularies, scaling) comes from the training part only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from streamer.errors import ConfigurationError
from streamer.modelfile.feature import Feature
from streamer.records.spelling import Spelling

from ..data import F32, I64

UNITS: dict[str, Callable[[str], tuple[str, ...]]] = {"characters": tuple, "words": lambda text: tuple(text.split())}
"""What a text is made of: each of its characters, or what stands between its blanks."""
END, BLANK = "<end>", "<blank>"
UNKNOWN = {"characters": "\N{REPLACEMENT CHARACTER}", "words": "<unknown>"}
"""What place 0 of a source's vocabulary is called, by what the text is made of."""

Symbols = tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """``source``: units of a text, or frames [T, F]. ``targets``: one or more sequences of symbols, all of them right."""

    source: Symbols | F32
    targets: tuple[Symbols, ...]
    ends_s: tuple[float, ...] = ()
    """Where it is known: when each symbol of the first target has been said, in seconds from the source's begin."""


@dataclass(frozen=True)
class PairSplit:
    """Three parts, and what texts are made of; ``source_units`` None: frames, whose numbers ``features`` names."""

    train: list[Pair]
    validation: list[Pair]
    test: list[Pair]
    target_units: str = "characters"
    source_units: str | None = "characters"
    features: tuple[str, ...] = ()
    packed: bool = False
    """A record holds several frames: some of a sound, all of a picture."""

    def text(self, symbols: Sequence[str]) -> str:
        """Symbols of a target as people read them."""
        return self.separator.join(symbols)

    def text_of_source(self, pair: Pair) -> str:
        """The source as people read it."""
        if not isinstance(pair.source, tuple):
            return f"{len(pair.source)} frames"
        return ("" if self.source_units == "characters" else " ").join(pair.source)

    @property
    def separator(self) -> str:
        return "" if self.target_units == "characters" else " "

    @property
    def steps(self) -> str:
        """Of a record, as the contract has it: a text of characters comes whole, a picture too; sound in parts."""
        return "many" if self.source_units == "characters" or self.packed else "one"


@dataclass(frozen=True)
class Sample:
    """One training example: x[T, F] and the numbers of its target's symbols y[U]."""

    x: F32
    y: I64


@dataclass(frozen=True)
class Alphabet:
    """What numbers mean on both sides: of a text's units (0 is unknown), and of the target's symbols.

    Symbol 0 is what no target has: the end of a decoder's sequence, or the blank of CTC.
    """

    source: tuple[str, ...]
    """() for frames."""
    symbols: tuple[str, ...]

    @classmethod
    def of(cls, split: PairSplit, *, first: str, min_count: int = 1) -> Alphabet:
        """From the training part. Source units rarer than ``min_count`` are unknown."""
        counts: Counter[str] = Counter()
        for pair in split.train:
            if isinstance(pair.source, tuple):
                counts.update(pair.source)
        unknown = () if split.source_units is None else (UNKNOWN[split.source_units],)
        known = sorted(unit for unit, count in counts.items() if count >= min_count and unit not in unknown)
        symbols = {symbol for pair in split.train for target in pair.targets for symbol in target}
        if not symbols:
            raise ConfigurationError("too little data: no target of the training part has a symbol")
        if first in symbols:
            raise ConfigurationError(f"{first!r} is the name of a symbol that a target must not have: rename it")
        return cls((*unknown, *known) if unknown else (), (first, *sorted(symbols)))

    def encode(self, source: Symbols | F32) -> F32:
        """x[T, F]: the numbers of a text's units, F = 1, or the frames as they are."""
        if not isinstance(source, tuple):
            return np.asarray(source, np.float32)
        if self.source[0] == UNKNOWN["characters"]:
            places = _spelling(self.source).places("".join(source))
        else:
            known = self._places(self.source)
            places = [known.get(unit, 0) for unit in source]
        return np.array(places, np.float32).reshape(len(source), 1)

    def number(self, target: Symbols) -> I64:
        """y[U]; KeyError for a symbol that the training part does not have."""
        place = self._places(self.symbols)
        return np.array([place[symbol] for symbol in target], np.int64)

    def names(self, numbers: Iterable[int]) -> Symbols:
        return tuple(self.symbols[number] for number in numbers)

    def samples(self, pairs: Iterable[Pair]) -> list[Sample]:
        """Every target of every pair, but those with symbols that no training pair has."""
        known, found = set(self.symbols), []
        for pair in pairs:
            x = self.encode(pair.source)
            found += [Sample(x, self.number(target)) for target in pair.targets if known.issuperset(target)]
        return found

    def features(self, split: PairSplit) -> tuple[Feature, ...]:
        """What the contract says about an event of the source."""
        if self.source:
            text = split.source_units == "characters"
            return (Feature("text" if text else "word", "text" if text else "category", self.source, unknown=0),)
        return tuple(Feature(name) for name in split.features)

    @staticmethod
    def _places(names: tuple[str, ...]) -> dict[str, int]:
        """Name -> number; made once for each alphabet."""
        if names not in _PLACES:
            _PLACES[names] = {name: number for number, name in enumerate(names)}
        return _PLACES[names]


_PLACES: dict[tuple[str, ...], dict[str, int]] = {}


@lru_cache(maxsize=4)
def _spelling(vocabulary: tuple[str, ...]) -> Spelling:
    """The very code by which the service reads a text."""
    return Spelling(vocabulary, 0)


def split_pairs(
    pairs: Sequence[Pair],
    *,
    validation: float,
    test: float,
    seed: int,
    by: Callable[[Pair], object] = lambda pair: pair.source,
) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Training, validation and test part; what ``by`` says is alike stays together, so that nothing judged was seen."""
    groups: dict[object, list[Pair]] = {}
    for number, pair in enumerate(pairs):
        key = by(pair)
        groups.setdefault(number if isinstance(key, np.ndarray) else key, []).append(pair)
    order = [list(groups.values())[i] for i in np.random.default_rng([seed, 7]).permutation(len(groups))]
    held, judged = round(len(order) * validation), round(len(order) * test)
    parts = order[held + judged :], order[:held], order[held : held + judged]
    for name, part, share in zip(("training", "validation", "test"), parts, (1.0, validation, test), strict=True):
        if share and not part:
            raise ConfigurationError(f"too little data to split: {len(order)} different pairs leave none for {name}")
    train, first, second = ([pair for group in part for pair in group] for part in parts)
    return train, first, second


def merge(rows: Iterable[tuple[Symbols, Symbols]]) -> list[Pair]:
    """Pairs of (source, target), those of one source as one pair with several right targets."""
    found: dict[Symbols, dict[Symbols, None]] = {}
    for source, target in rows:
        found.setdefault(source, {})[target] = None
    return [Pair(source, tuple(targets)) for source, targets in found.items()]
