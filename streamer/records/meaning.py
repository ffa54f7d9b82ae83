"""What the cell of a record means to a feature of the contract: the number that the graph gets, or why there is none.

A cell is what a format found: None (absent and null are the same), true or false, a number, a text, or ``NO_CELL`` for
what can be none of them (a list, an object, bytes).
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from math import isfinite, nan
from typing import Literal

import msgspec

from streamer.errors import ConfigurationError
from streamer.modelfile.feature import Feature
from streamer.records.exact import Exact
from streamer.records.unusable import Unusable, plain
from streamer.words import Reason


class NoCell:
    """A list, an object or bytes."""


NO_CELL = NoCell()
Cell = None | bool | int | float | str | NoCell
Number = int | float
MissingRule = float | Literal["last", "reject"]
_CELLS = ("number", "category", "flag")
"""Kinds that are made of one cell"""

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,398}")
_MOST = 10**399
"""A larger integer is no word: its digits were not all read."""


class Meaning:
    """One feature: ``number`` is the definition. ``table``, where there is one, has the same for most cells."""

    def __init__(self, feature: Feature, exact: Exact, missing: Number | None, *, complete: bool = False) -> None:
        """``missing``: what stands for a missing number or flag that the contract has no rule for; None: nothing does.
        ``complete``: nothing stands for a missing one, whatever it is.

        ConfigurationError: what the contract has for a missing one is no number of its dtype."""
        self.name, self.kind, self._exact = feature.name, feature.kind, exact
        self.missing = None if complete else _stand_in(feature, exact, missing)
        """NaN: the stream's last value, which only its past knows (``modelfile.past``)"""
        self._unknown = feature.unknown
        self._measured = feature.kind not in ("category", "flag", "present")
        self._places: dict[str, Number] = {word: place for place, word in enumerate(feature.vocabulary)}
        self.table: dict[object, Number | None] | None = None
        """Cell -> number, for cells of few kinds; what is not in it ``number`` has to decide, or is ``other``."""
        self.other: Number | None = None
        if feature.kind == "category":
            self.table = dict[object, Number | None](self._places) | _numbers(self._places)
            # a NaN among cells is a missing one, and no table finds it: it may be another word only where both are the same
            self.other = feature.unknown if self.missing == feature.unknown else None
        elif feature.kind == "flag":
            self.table = {0: 0, 1: 1}
        if self.table is not None:
            self.table[None] = self.missing

    @property
    def words(self) -> Mapping[str, Number]:
        """category: word -> its place."""
        return self._places

    @property
    def unknown(self) -> Number | None:
        """category: what stands for every other word."""
        return self._unknown

    def number(self, cell: Cell) -> Number:
        """What the graph gets. Unusable: nothing that the contract allows."""
        if self._measured and type(cell) in (float, int):  # what nearly every cell is
            return self._exact.number(cell, self.name)  # type: ignore[arg-type]
        if self.kind in ("category", "present") and is_nan(cell):
            cell = None
        if self.kind == "present":
            return self._exact.number(int(cell is not None), self.name)
        if cell is None:
            if self.missing is None:
                raise Unusable(Reason.MISSING_FEATURE, plain(f"feature {self.name!r} is null or missing"))
            return self.missing
        if self.kind == "category":
            return self._place(cell)
        if self.kind == "flag":
            if isinstance(cell, int | float) and cell in (0, 1):
                return int(cell)
            raise Unusable(Reason.UNDECODABLE, plain(f"feature {self.name!r} is not a flag: true, false, 0 or 1"))
        if isinstance(cell, bool) or not isinstance(cell, int | float):
            raise Unusable(Reason.UNDECODABLE, plain(f"feature {self.name!r} is not a number"))
        return self._exact.number(cell, self.name)

    def _place(self, cell: Cell) -> Number:
        if isinstance(cell, NoCell):
            raise Unusable(
                Reason.UNDECODABLE, plain(f"feature {self.name!r} is a list, an object or bytes, not a word")
            )
        words = [str(cell), str(cell).lower()] if isinstance(cell, bool) else [as_word(cell)]
        for word in words:
            if word in self._places:
                return self._places[word]
        if self._unknown is None:
            raise Unusable(
                Reason.UNKNOWN_CATEGORY,
                plain(
                    f"feature {self.name!r} is {words[0][:80]!r}, which is not among the {len(self._places)} words of "
                    "the contract, and no place is declared for others (unknown)"
                ),
            )
        return self._unknown


def is_nan(cell: object) -> bool:
    """NaN is no value, as in training."""
    return isinstance(cell, float) and cell != cell  # noqa: PLR0124


def as_word(cell: Cell) -> str:
    """7, 7.0 and "7" are the same word, as in training."""
    if isinstance(cell, float):
        return str(int(cell)) if cell.is_integer() else str(cell)
    if isinstance(cell, int) and abs(cell) >= _MOST:
        return "a number of 400 digits or more"
    return str(cell)


def meanings(
    features: Sequence[Feature], exact: Exact, missing: Number | None, complete: Container[str] = ()
) -> list[Meaning]:
    """``complete``: names of features for which nothing may stand."""
    return [Meaning(each, exact, missing, complete=each.name in complete) for each in features]


def as_read(
    features: Sequence[Feature], mapped: Container[str], rules: Mapping[str, MissingRule]
) -> tuple[Feature, ...]:
    """The features of a contract as a format with names makes them of records.

    ``mapped``: those whose place ``input.fields`` says: what a record has, no past makes. ``rules``: feature or field
    -> what stands for a missing one, instead of what the contract says. ConfigurationError: a rule that cannot be."""
    found = []
    for declared in features:
        feature = declared
        if feature.name in mapped and feature.kind == "since_last":
            feature = msgspec.structs.replace(feature, kind="number")
        elif feature.name in mapped and feature.kind in _CELLS:
            feature = msgspec.structs.replace(feature, lag=0, source=None)
        rule = rule_of(declared, rules)
        if rule is not None and feature.kind in _CELLS:
            feature = msgspec.structs.replace(feature, missing=None if rule == "reject" else rule)
            if (problem := feature.problem()) is not None:
                raise ConfigurationError(f"input.fields.{feature.name}: missing = {rule!r}: the feature {problem}")
        found.append(feature)
    return tuple(found)


def rule_of(feature: Feature, rules: Mapping[str, MissingRule]) -> MissingRule | None:
    """What the settings say of a missing one: of the feature itself, else of its field. ``feature``: as declared."""
    return rules.get(feature.name, rules.get(feature.field))


def as_listed(features: Sequence[Feature], exact: Exact) -> tuple[Feature, ...]:
    """The features of a contract where a record has the numbers that the graph gets, by their place. A null among them is
    the stream's last value where the contract says so, and x can say that it is missing."""
    listed = as_read(features, {feature.name for feature in features}, {})
    if not exact.integral:
        return listed
    return tuple(msgspec.structs.replace(f, missing=None) if f.missing == "last" else f for f in listed)


def refuse_past(features: Sequence[Feature], exact: Exact, value_format: str) -> None:
    """ConfigurationError for the first feature that no record with names can be made into. ``features``: as read."""
    for feature in features:
        if feature.kind == "text":
            why = "is text, of which one record is several steps"
        elif exact.integral and feature.missing == "last":
            why = f'has missing = "last", but in {exact.dtype} nothing says that a value is missing'
        elif exact.integral and feature.kind == "since_last":
            why = f"is a time in seconds, which {exact.dtype} cannot hold exactly"
        else:
            continue
        raise ConfigurationError(
            f"input.format = {value_format!r}: the contract's feature {feature.name!r} {why}, so it is not made from records "
            'with names: set input.format = "json" and send the numbers that the graph gets, or train without it'
        )


def refuse_different(models: Sequence[tuple[str, Sequence[Feature]]]) -> None:
    """ConfigurationError for two models of which one would read the words or gaps of the other as its own."""
    (first, wanted), *others = models
    for name, features in others:
        for one, two in zip(wanted, features, strict=False):
            plainly = one.kind == two.kind == "number" and (one.missing, one.lag) == (two.missing, two.lag)
            if not plainly and _decides(one) != _decides(two):
                raise ConfigurationError(
                    f"models {first!r} and {name!r} are served on one input, but mean different things by the features "
                    f"{one.name!r} and {two.name!r} (kind, vocabulary, unknown, lag, missing): export them from the same data"
                )


def _decides(feature: Feature) -> tuple[object, ...]:
    return feature.field, feature.kind, feature.vocabulary, feature.unknown, feature.lag, feature.missing


def _stand_in(feature: Feature, exact: Exact, missing: Number | None) -> Number | None:
    if feature.missing == "last":
        return nan
    if feature.kind == "category":
        return feature.unknown
    if not isinstance(feature.missing, float):
        return missing
    try:
        return exact.number(feature.missing, feature.name)
    except Unusable as error:
        raise ConfigurationError(
            f"feature {feature.name!r} has missing = {feature.missing!r}, which is no {exact.dtype}: write a number that it "
            f"holds to input.fields.{feature.name}, as missing, or export the model again with one"
        ) from error


def _numbers(places: Mapping[str, Number]) -> dict[object, Number | None]:
    """Numbers that are one of the words."""
    found: dict[object, Number | None] = {}
    for word, place in places.items():
        if _INTEGER.fullmatch(word):
            found[int(word)] = place
            continue
        try:
            number = float(word)
        except ValueError:
            continue
        if as_word(number) == word if isfinite(number) else word in ("inf", "-inf"):
            found[number] = place
    return found
