"""What one value of an event means: a feature of the contract, by name or as a table of its own.

A plain name is what it always was: a number by that name. A table says more, and is what ``train`` writes:

========== ===========================================================================================
kind       the number that the graph gets
========== ===========================================================================================
number     the value of the field
category   the place of the field's word in ``vocabulary``; ``unknown`` for any other word
flag       1 for true, 0 for false
present    1 if the field ``source`` was there with a value, else 0
since_last seconds since the stream's newest event before this one, by event time (``modelfile.past``)
text       places of characters, pieces or words in ``vocabulary``: one record becomes several steps
========== ===========================================================================================

The graph gets numbers only; scaling and embeddings stay in it. In formats with names a category's cell is a word: 7, 7.0
and "7" are the word "7". In formats without (a list of numbers, float32) it is the word's place already.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from streamer.errors import ModelError

_NAMED = ("category", "text")
_FROM_A_FIELD = ("number", "category", "flag")
MAX_LAG = 1_000
"""Events; so many values are kept per stream."""


class Feature(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One value of an event."""

    name: str
    kind: Literal["number", "category", "flag", "present", "since_last", "text"] = "number"
    vocabulary: tuple[str, ...] = ()
    """category, text: all words; the place of a word is its number."""
    unknown: int | None = None
    """category, text: the place that stands for every other word; None: such an event is refused."""
    source: str | None = None
    """The field that the value comes from; None: the field of the feature's own name."""
    lag: int = 0
    """number, category, flag: the value of so many events of the stream before this one; ``fallback`` until then."""
    missing: float | Literal["last"] | None = None
    """What training put where the field had no value: a number, or the stream's last value ("last"; before the first
    one the ``fallback``). None: such an event is refused, or ``unknown`` where that is declared."""
    fallback: float = 0.0
    """With missing = "last", a lag or since_last: the number for a stream that has had no value yet."""
    split: Literal["pieces", "words"] = "pieces"
    """text: its characters or pieces are steps, the longest that fits first, or what is between its blanks."""
    unit: str | None = None
    bounds: tuple[float, float] | None = None
    """number: the smallest and the largest value that is plausible."""

    @property
    def field(self) -> str:
        """Name of the field that the value comes from."""
        return self.source or self.name

    def problem(self) -> str | None:
        """What is wrong with it, as the end of a sentence; None if nothing is."""
        if not self.name:
            return "has no name: name each value of an event"
        if (self.kind in _NAMED) != bool(self.vocabulary):
            return f"is of kind {self.kind}: a vocabulary belongs to category and text, and they need one"
        if len(set(self.vocabulary)) != len(self.vocabulary):
            double = next(word for i, word in enumerate(self.vocabulary) if word in self.vocabulary[:i])
            return f"has {double!r} in its vocabulary twice: give each word one place"
        if self.unknown is not None and not 0 <= self.unknown < len(self.vocabulary):
            return f"has unknown {self.unknown}, but its vocabulary has the places 0 to {len(self.vocabulary) - 1}"
        if not 0 <= self.lag <= MAX_LAG or (self.lag and self.kind not in _FROM_A_FIELD):
            return f"has a lag, which must be 0 to {MAX_LAG} events, and belongs to number, category and flag"
        if self.split != "pieces" and self.kind != "text":
            return f"is of kind {self.kind}: split belongs to text"
        if self.missing is not None and self.kind not in _FROM_A_FIELD:
            return f"is of kind {self.kind}, which is never missing: leave missing out"
        if self.kind == "category" and isinstance(self.missing, float):
            return 'is a category: missing is "last" or left out (then it is unknown)'
        kept = self.kind == "category" and (self.lag or self.missing == "last")
        if kept and self.fallback not in range(len(self.vocabulary)):
            return f"has fallback {self.fallback}, but its vocabulary has the places 0 to {len(self.vocabulary) - 1}"
        numbers = (self.fallback, *(self.bounds or ()), *([self.missing] if isinstance(self.missing, float) else []))
        if not all(math.isfinite(number) for number in numbers):
            return "has a missing, fallback or bound that is not finite: give a number"
        if self.bounds is not None and (self.kind != "number" or self.bounds[0] >= self.bounds[1]):
            return "has bounds, which belong to numbers and are [smallest, largest]"
        return None


def as_feature(declared: str | Feature) -> Feature:
    """A plain name is a number."""
    return Feature(declared) if isinstance(declared, str) else declared


def check_features(declared: Sequence[str | Feature], count: int, what: str) -> None:
    """ModelError for features that contradict themselves, or that are not ``count`` of different names."""
    if declared and len(declared) != count:
        raise ModelError(
            f"{what}: {len(declared)} feature names for {count} features: name each value of an event once"
        )
    features = [as_feature(each) for each in declared]
    if len({feature.name for feature in features}) != len(features):
        raise ModelError(f"{what}: feature names are not unique: name each value of an event once")
    for each, feature in zip(declared, features, strict=True):
        if isinstance(each, Feature) and (problem := feature.problem()) is not None:
            raise ModelError(f"{what}: feature {feature.name!r} {problem}")
        if feature.kind == "text" and len(features) > 1:
            raise ModelError(f"{what}: feature {feature.name!r} is text, which must be the only feature of an event")
