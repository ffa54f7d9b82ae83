"""Where each feature of the contract comes from, as people see it: what ``check`` tells, and tries on records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from streamer.core import RecordBatch
from streamer.modelfile.feature import Feature
from streamer.records.decode import Codec
from streamer.records.exact import Exact
from streamer.records.formats import FIELDED, TIME, as_found, places_of
from streamer.records.schemas.book import Schema, SchemaId
from streamer.service.prepare import Models, codec_of, fields_of
from streamer.settings import Settings
from streamer.settings.fields import told


@dataclass
class Mapped:
    """One feature. ``found`` and ``missing``: of the events that were tried; None where no record has its value."""

    name: str
    kind: str
    place: str
    missing_is: str
    found: int | None = None
    missing: int | None = None

    def as_dict(self) -> dict[str, Any]:
        told = {"feature": self.name, "kind": self.kind, "from": self.place, "missing": self.missing_is}
        return told if self.found is None else told | {"found_in": self.found, "missing_in": self.missing}

    def line(self) -> str:
        if not self.missing_is:
            return f"{self.name}: {self.kind} {self.place}"
        if self.found is None:
            return f"{self.name}: {self.kind} from {self.place}, missing: {self.missing_is}"
        return f"{self.name}: {self.kind} from {self.place}, found in {self.found} and missing in {self.missing}: {self.missing_is}"


def mapping(settings: Settings, models: Models) -> list[Mapped]:
    """One entry per feature, in order; none where records have no names."""
    section, fields = settings.input, fields_of(settings)
    if section.format not in FIELDED:
        return []
    contract = models[0][1].contract
    features = as_found(
        section.format, contract.feature_tables, Exact(contract.input.dtype), fields, several=contract.many_steps
    )
    places = zip(features, places_of(features, fields), strict=True)
    return [_mapped(settings, feature, told(place)) for feature, place in places]


def try_on(
    settings: Settings,
    models: Models,
    batches: Sequence[RecordBatch],
    mapped: Sequence[Mapped],
    schemas: Mapping[SchemaId, Schema | None],
) -> None:
    """Counts in how many records, of those that can be read, each feature's value is there. ``schemas``: by their ids."""
    contract = models[0][1].contract
    shown = [Feature(each.name, "present", source=each.field) for each in contract.feature_tables]
    asked = msgspec.structs.replace(contract.input, features=tuple(shown))
    (_, model, rule) = models[0]
    counting = [("", _Asked(msgspec.structs.replace(contract, input=asked)), rule)]
    codec: Codec = codec_of(settings, counting)  # type: ignore[arg-type]
    if codec.schemas is not None:
        codec.schemas.learn(schemas)
    decoded = [codec.decode(batch) for batch in batches]
    events = [batch.x if batch.ops is None else batch.x[batch.ops == 0] for batch in decoded]
    there = np.concatenate([np.zeros((0, len(shown)), model.contract.input.dtype), *events])
    for at, each in enumerate(mapped):
        if each.missing_is:
            each.found = int(there[:, at].sum())
            each.missing = len(there) - each.found


@dataclass(frozen=True)
class _Asked:
    contract: Any


def _mapped(settings: Settings, feature: Feature, place: str) -> Mapped:
    if feature.kind == "since_last":
        return Mapped(
            feature.name, "seconds", f"since the stream's newest event before, {feature.fallback:g} at first", ""
        )
    kind = f"{feature.kind} {feature.lag} events ago" if feature.lag else feature.kind
    if place.startswith("constant"):
        return Mapped(feature.name, kind, place, "")
    return Mapped(feature.name, kind, place, _missing(settings, feature))


def _missing(settings: Settings, feature: Feature) -> str:
    rule = settings.input.missing_rules.get(feature.name, settings.input.missing_rules.get(feature.field))
    if feature.kind == "present":
        return "0"
    if feature.missing == "last":
        return f"the stream's last value, {feature.fallback:g} before the first"
    if feature.missing is not None:
        return f"{feature.missing:g}"
    if rule == "reject":
        return "rejected"
    if feature.kind == "category":
        return "rejected" if feature.unknown is None else f"unknown ({feature.vocabulary[feature.unknown]})"
    return "rejected" if settings.input.missing == "reject" else f"{settings.input.missing:g} (input.missing)"


def time(settings: Settings) -> str:
    """Where the time of an event comes from."""
    section = settings.input
    return f"{section.format}: time from {told(section.time_place or TIME)} ({section.time_unit}), else the record's"


def lines(time: str, mapped: Sequence[Mapped]) -> Iterator[str]:
    if mapped:
        yield f"an event of {time}"
        yield from (f"  {each.line()}" for each in mapped)


def answer_lines(fields: Mapping[str, str]) -> Iterator[str]:
    """``fields``: as settings have them (``output.fields``)."""
    if fields:
        yield "a prediction carries"
        yield from (f"  {name}: {place}" for name, place in fields.items())
