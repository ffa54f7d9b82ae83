"""A text in a record: each of its characters or pieces is a step of one number, its place in the vocabulary.

In ``json`` the text is ``x``; in the formats with names it is the field of the feature's name, or where [input.fields] says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from streamer.core import Headers
from streamer.errors import ConfigurationError
from streamer.modelfile.feature import Feature
from streamer.records.exact import Exact, Numbers
from streamer.records.formats.base import NO_HEADERS, Columns, Row
from streamer.records.formats.layout import Written, tree
from streamer.records.formats.named import TIME, Fields, header_cell, last_header
from streamer.records.formats.wire import Json, Msgpack
from streamer.records.meaning import Cell
from streamer.records.spelling import Spelling
from streamer.records.unusable import Unusable, plain
from streamer.settings.fields import FieldConstant, FieldHeader, FieldPath, Place
from streamer.words import Reason, TimeUnit


class TextRecords:
    """The only feature of the contract is a text. Every record is read by the definition: spelling takes longer anyway."""

    def __init__(self, name: str, feature: Feature, exact: Exact, unit: TimeUnit, fields: Fields, most: int) -> None:
        """``most``: steps of a record. ConfigurationError: [input.fields] names what is not there, or is a constant."""
        if name == "json" and fields.given:
            raise ConfigurationError(
                'input.format = "json" has no fields with names: leave out [input.fields] and input.time, or set '
                'input.format to "json-named"'
            )
        for each in (*fields.places, *fields.missing):
            if each not in (feature.name, feature.field):
                raise ConfigurationError(
                    f"input.fields.{each}: the contract has no such feature, it has {feature.name}"
                )
        for each, rule in fields.missing.items():
            if rule != "reject":
                raise ConfigurationError(
                    f"input.fields.{each}: missing = {rule!r}: nothing stands for a missing text; leave the rule out, and "
                    "such a record is rejected"
                )
        default = FieldPath(("x" if name == "json" else feature.field,))
        self._place: Place = fields.places.get(feature.name, fields.places.get(feature.field, default))
        self._time: Place = fields.time or TIME
        if isinstance(self._place, FieldConstant):
            raise ConfigurationError(
                f"input.fields.{feature.name}: a text that is the same in every record says nothing"
            )
        self._wire = Msgpack() if name == "msgpack" else Json()
        paths = [each.steps for each in (self._place, self._time) if isinstance(each, FieldPath)]
        self._paths = list(dict.fromkeys(paths))
        self._written = Written(tree(self._paths), self._wire)
        self._spelling = Spelling(feature.vocabulary, feature.unknown, words=feature.split == "words")
        self._name = "x" if name == "json" else feature.name
        self._dtype, self._unit, self._most = exact.dtype, unit, most

    def row(self, value: bytes, headers: Headers = ()) -> Row:
        if self._wire.too_deep(value):
            raise Unusable(Reason.UNDECODABLE, self._wire.deep)
        found = [self._wire.null] * len(self._paths)
        self._written.read(value, found)
        if isinstance(self._place, FieldPath):
            cell = self._wire.cell(found[self._paths.index(self._place.steps)])
        else:
            assert isinstance(self._place, FieldHeader)
            cell = header_cell(last_header(headers, self._place.name), "category")
        places = self._places(cell)
        if isinstance(self._time, FieldPath):
            return places, self._wire.time(found[self._paths.index(self._time.steps)])
        assert isinstance(self._time, FieldHeader)
        kind = "category" if self._unit is TimeUnit.ISO8601 else "number"
        return places, header_cell(last_header(headers, self._time.name), kind)

    def columns(self, values: Sequence[bytes], headers: Mapping[int, Headers] = NO_HEADERS) -> Columns:
        return Columns(np.full(len(values), None, object), None, list(range(len(values))))

    def _places(self, cell: Cell) -> Numbers:
        if cell is None:
            raise Unusable(Reason.MISSING_FEATURE, plain(f"feature {self._name!r} is null or missing"))
        if not isinstance(cell, str):
            raise Unusable(Reason.UNDECODABLE, plain(f"feature {self._name!r} is not a text"))
        try:
            places = self._spelling.places(cell, self._most)
        except KeyError as unknown:
            raise Unusable(
                Reason.UNKNOWN_CATEGORY,
                plain(
                    f"feature {self._name!r} has {unknown.args[0]!r}, which is not in the contract's "
                    "vocabulary, and no place is declared for others (unknown)"
                ),
            ) from None
        if not places:
            raise Unusable(Reason.MISSING_FEATURE, plain(f"feature {self._name!r} is an empty text: it has no step"))
        if len(places) > self._most:
            raise Unusable(
                Reason.TOO_LARGE,
                plain(f"feature {self._name!r} has more steps than input.max_record_steps, {self._most}"),
            )
        return np.array(places, self._dtype)[:, None]  # a place is far below what any dtype holds exactly
