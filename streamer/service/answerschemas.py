"""The schemas of predictions: one for each model, registered before the group is joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from streamer.errors import ConfigurationError
from streamer.kafka.registry import Registry
from streamer.modelfile.model import Model
from streamer.records.answers import AnswerEncoder, answer_encoder, answer_schema, framing
from streamer.records.chosen import Chosen, own_places, refuse_unknown
from streamer.records.keys import Keys
from streamer.records.schemas.book import Schema
from streamer.settings import Settings
from streamer.windows import WindowRule
from streamer.words import AnswerFormat

Served = Sequence[tuple[str, Model, WindowRule | None]]


def answer_schemas(settings: Settings, models: Served) -> dict[str, tuple[str, Schema]]:
    """Model -> subject and schema of its answers; none for formats without. ConfigurationError: answers cannot be so."""
    written = settings.output.format
    _refuse_choices(settings, models)
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
        if schema is not None and settings.output.fields:
            schema = _chosen(settings, model, schema, window=rule is not None).schema
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
    settings: Settings, models: Served, keys: Keys, schema_ids: Mapping[str, int], native: Any = None
) -> dict[str, AnswerEncoder]:
    """Of each model. Plain JSON where ``choices_of`` makes of it what is wanted. ``schema_ids``: of ``registered``; a model
    without one has no frame. ``native``: the native module, if it is used."""
    chosen = bool(settings.output.fields)
    written, ids = (AnswerFormat.JSON, {}) if chosen else (settings.output.format, schema_ids)
    return {
        name: answer_encoder(
            written, model.contract, name, keys, window=rule is not None, schema_id=ids.get(name), native=native
        )
        for name, model, rule in models
    }


def choices_of(settings: Settings, models: Served, schema_ids: Mapping[str, int]) -> dict[str, Chosen]:
    """Model -> how ``output.fields`` has its answers; none where all is called as it is."""
    found = {}
    for name, model, rule in models if settings.output.fields else ():
        window = rule is not None
        schema = answer_schema(settings.output.format, model.contract, name, window=window)
        found[name] = _chosen(settings, model, schema, window=window).framed(framing(schema_ids.get(name)))
    return found


def _chosen(settings: Settings, model: Model, schema: Schema | None, *, window: bool) -> Chosen:
    return Chosen(settings.output.places, own_places(model.contract, window=window), schema)


def _refuse_choices(settings: Settings, models: Served) -> None:
    """ConfigurationError: answers cannot carry what ``output.fields`` wants."""
    section = settings.output
    if not section.fields:
        return
    if section.format is AnswerFormat.FLOAT32:
        raise ConfigurationError(
            'output.fields: with output.format = "float32" predictions are numbers without names: leave it out, or set '
            'output.format to "json", "avro" or "json-schema"'
        )
    refuse_unknown(section.places, [(name, model.contract, rule is not None) for name, model, rule in models])
    for name, model, rule in models if section.passed else ():
        what = "answers windows of several records" if rule is not None and rule.kind != "record" else ""
        what = "answers with transcripts" if rule is None and model.contract.emitting is not None else what
        if what:
            raise ConfigurationError(
                f"output.fields: model {name!r} {what}, and input. and header: are of one record: leave them out"
            )
