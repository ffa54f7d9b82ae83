"""What ``check`` finds out of the schemas that records were written by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from streamer.core import RecordBatch
from streamer.kafka.registry import Registry
from streamer.records.decode import Codec
from streamer.records.schemas.book import Schema, SchemaId, telling
from streamer.settings import Settings

_SHOWN = 20
"""Schemas that people are shown; ``--json`` has all."""


async def learned(settings: Settings, codec: Codec, batches: Sequence[RecordBatch]) -> dict[SchemaId, Schema | None]:
    """Looks up the schemas of records, and lets the codec know. RegistryUnavailableError: they cannot be looked up."""
    if codec.schemas is None:
        return {}
    registry = Registry(settings.registry)
    try:
        known = await registry.schemas(codec.schemas.wanted(telling(batches)))
    finally:
        registry.close()
    codec.schemas.learn(known)
    return known


def format_told(settings: Settings, known: Mapping[SchemaId, Schema | None]) -> dict[str, Any]:
    """For programs."""
    found: dict[str, Any] = {"name": settings.input.format}
    if settings.input.schema_file is not None:
        found["schema_file"] = str(settings.input.schema_file)
    if known:
        found["registry"] = settings.registry.url
        found["schemas"] = {number: None if each is None else str(each.kind) for number, each in known.items()}
    return found


def format_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """For people."""
    if "schema_file" in found:
        yield f"values are read as {found['schema_file']}"
    if "registry" in found:
        yield f"schemas of {found['registry']}:"
        for number, kind in list(found["schemas"].items())[:_SHOWN]:
            yield f"  schema id {number}: {kind or 'the registry does not have it'}"
