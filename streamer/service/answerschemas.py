"""The schemas of predictions: one for each model, registered before the group is joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from streamer.errors import ConfigurationError
from streamer.kafka.registry import Registry
from streamer.modelfile.model import Model
from streamer.records.answers import AnswerEncoder, answer_encoder, answer_schema
from streamer.records.keys import Keys
from streamer.records.schemas.book import Schema
from streamer.settings import Settings
from streamer.windows import WindowRule
from streamer.words import AnswerFormat

Served = Sequence[tuple[str, Model, WindowRule | None]]


def answer_schemas(settings: Settings, models: Served) -> dict[str, tuple[str, Schema]]:
    """Model -> subject and schema of its answers; none for formats without. ConfigurationError: answers cannot be so."""
    written = settings.output.format
    if written is AnswerFormat.JSON:
        return {}
    if written is AnswerFormat.JSON_SCHEMA and not settings.registry.url:
        raise ConfigurationError('output.format = "json-schema" needs registry.url; without a registry it is "json"')
    for name, model, rule in models:
        contract = model.contract
        what = "generates sequences" if rule is None and contract.feedback is not None else ""
        what = "answers records of several steps" if contract.many_steps else what
        what = "writes symbols" if contract.emitting is not None or contract.decoder is not None else what
        if what:
            raise ConfigurationError(
                f'output.format = "{written}": model {name!r} {what}, which is told in JSON: set output.format = "json"'
            )
    found = {}
    for name, model, rule in models:
        schema = answer_schema(written, model.contract, name, window=rule is not None)
        if schema is not None:
            own = (
                f"-{name}" if len(models) > 1 else ""
            )  # two models have two schemas, and neither is the other's next version
            found[name] = f"{settings.output.topic}{own}-value", schema
    return found


async def registered(settings: Settings, schemas: Mapping[str, tuple[str, Schema]]) -> dict[str, int]:
    """Model -> id. RegistryUnavailableError: nobody says; empty without a registry."""
    if not schemas or not settings.registry.url:
        return {}
    registry = Registry(settings.registry)
    try:
        return {name: await registry.register(*each) for name, each in schemas.items()}
    finally:
        registry.close()


def encoders_of(
    settings: Settings, models: Served, keys: Keys, schema_ids: Mapping[str, int]
) -> dict[str, AnswerEncoder] | None:
    """None: plain JSON. ``schema_ids``: of ``registered``; a model without one has no frame."""
    written = settings.output.format
    if written is AnswerFormat.JSON:
        return None
    return {
        name: answer_encoder(
            written, model.contract, name, keys, window=rule is not None, schema_id=schema_ids.get(name)
        )
        for name, model, rule in models
    }
