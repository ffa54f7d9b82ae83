"""What ``check`` shows of the input's format: where each feature is found, and by which schemas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from streamer.core import RecordBatch
from streamer.kafka.registry import Registry
from streamer.modelfile.feature import Feature
from streamer.records.decode import Codec
from streamer.records.formats import FIELDED
from streamer.settings import Settings

_SHOWN = 20
"""Features and schemas that people are shown; ``--json`` has all."""


def mapping(settings: Settings, features: Sequence[Feature]) -> dict[str, Any]:
    """Of what is known before a record is read."""
    section = settings.input
    found: dict[str, Any] = {"name": section.format}
    if section.format in FIELDED:
        found["features"] = {
            each.name: section.fields.get(each.name, section.fields.get(each.field, each.field)) for each in features
        }
        found["time"] = section.time or "ts"
    if section.schema_file is not None:
        found["schema_file"] = str(section.schema_file)
    return found


async def learn(settings: Settings, codec: Codec, batches: Sequence[RecordBatch], found: dict[str, Any]) -> None:
    """Looks up the schemas of records. RegistryUnavailableError: they cannot be looked up."""
    if codec.schemas is None:
        return
    found["registry"] = settings.registry.url
    registry = Registry(settings.registry)
    try:
        known = await registry.schemas(codec.schemas.wanted(value for batch in batches for value in batch.values))
    finally:
        registry.close()
    codec.schemas.learn(known)
    found["schemas"] = {number: None if each is None else str(each.kind) for number, each in known.items()}


def format_lines(found: dict[str, Any]) -> Iterator[str]:
    """For people."""
    by = f", schemas of {found['registry']}" if "registry" in found else ""
    by += f", read as {found['schema_file']}" if "schema_file" in found else ""
    yield f"input.format {found['name']}{by}"
    features = list(found.get("features", {}).items())
    for name, place in features[:_SHOWN]:
        yield f"  {name} <- {place}"
    if len(features) > _SHOWN:
        yield f"  ... and {len(features) - _SHOWN} more"
    if "time" in found:
        yield f"  event time <- {found['time']}"
    for number, kind in list(found.get("schemas", {}).items())[:_SHOWN]:
        yield f"  schema id {number}: {kind or 'the registry does not have it'}"
