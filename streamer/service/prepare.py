"""From settings to what a service is built of: models, the codec, the processor, and topics that were looked at."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from streamer.emission.kept import layout
from streamer.engine.lanes import check_models
from streamer.engine.processor import Processor
from streamer.errors import ConfigurationError
from streamer.kafka import clocks
from streamer.kafka.client import Connection
from streamer.kafka.policies import Judgement, judge, topic_needs
from streamer.kafka.security import security
from streamer.kafka.topics import InputTopic, Topics
from streamer.modelfile.carried import Carried
from streamer.modelfile.machine import machine
from streamer.modelfile.model import Model
from streamer.modelfile.past import Past
from streamer.records.changelog import Identity
from streamer.records.decode import MAX_KEY_BYTES, Codec
from streamer.records.exact import Exact
from streamer.records.formats import FIELDED, SCHEMAS, Fields, Native, Source, as_found
from streamer.records.meaning import refuse_different
from streamer.records.passing import Passing
from streamer.records.schemas.book import Book
from streamer.service.answerschemas import answer_schemas, registered
from streamer.service.clock import Clock, SystemClock
from streamer.settings import Settings, UtteranceSection
from streamer.windows import WindowRule
from streamer.words import Decoder

log = logging.getLogger("streamer")

Models = list[tuple[str, Model, WindowRule | None]]
"""Name, model, and the window rule; None: step mode"""


@dataclass(frozen=True)
class Parts:
    """What ``check`` verifies and ``run`` needs."""

    settings: Settings
    models: Models
    connection: Connection
    input: InputTopic
    schema_ids: Mapping[str, int] = field(default_factory=dict)
    """Model -> id of the schema of its answers, where the registry has one"""


def load_models(settings: Settings) -> Models:
    """One after the other: creating sessions concurrently is not safe everywhere. Raises ModelError."""
    return [(name, load_model(settings, name), section.window) for name, section in settings.model.items()]


def load_model(settings: Settings, name: str) -> Model:
    section = settings.model[name]
    return Model.load(section.path, sha256=section.sha256, threads=settings.batch.threads)


def connection(settings: Settings) -> Connection:
    kafka = settings.kafka
    if kafka.security_protocol == "SASL_PLAINTEXT" and kafka.sasl_mechanism == "PLAIN":
        log.warning("kafka.security_protocol = SASL_PLAINTEXT sends the password in the clear: use SASL_SSL or SCRAM")
    return Connection(kafka, security(kafka), Native.load(Decoder(settings.input.decoder)).module)


async def prepare(settings: Settings, models: Models, *, mock: bool = False, clock: Clock | None = None) -> Parts:
    """Connects, verifies or creates topics. ``mock``: the in-process broker, which has no topic administration."""
    codec_of(settings, models)  # what can be said without a cluster is said first
    check_models(models)
    answers = answer_schemas(settings, models)
    utterances(settings, models)
    link, clock = connection(settings), clock or SystemClock()
    async with Topics(link) as topics:
        found = await topics.prepare(
            settings.input.topic,
            topic_needs(settings, state_bytes(settings, models)),
            create=settings.topics.create,
            plain_broker=mock,
            now_ms=clock.now_ms,
        )
    judgement = judged(settings, models, found)
    for warning in judgement.warnings:
        log.warning("%s", warning)
    if judgement.errors:
        raise ConfigurationError("\n  ".join(judgement.errors))
    return Parts(settings, models, link, found, await registered(settings, answers))


def judged(settings: Settings, models: Models, found: InputTopic) -> Judgement:
    """What was found out about topics and clocks, as sentences."""
    windows = {name: rule.longest_ms for name, _, rule in models if rule is not None and rule.longest_ms}
    judgement = judge(settings, found.configs, windows, state_bytes(settings, models), found.replicas)
    clock = clocks.told(found.clock_ahead_ms)
    return Judgement(judgement.errors, (*judgement.warnings, *([clock] if clock else [])))


def state_bytes(settings: Settings, models: Models) -> int:
    """Kept per stream and record of the changelog, of the model that keeps most."""
    kept = {name: layout(rule.max_symbols) for name, rule in utterances(settings, models).items()}
    known = pasts(settings, models)
    carried = [Carried(model, known.get(name), kept.get(name)) for name, model, rule in models if rule is None]
    return max((each.bytes_per_stream for each in carried), default=0)


def pasts(settings: Settings, models: Models) -> dict[str, Past]:
    """By model the features that the stream's past makes, where there are any."""
    section, found = settings.input, {}
    for name, model, _ in models:
        declared = model.contract.input.dtype
        features = as_found(
            section.format, model.contract.feature_tables, Exact(declared), fields_of(settings),
            several=model.contract.many_steps,
        )  # fmt: skip
        if (past := Past.of(features, declared)) is not None:
            found[name] = past
    return found


def fields_of(settings: Settings) -> Fields:
    return Fields(settings.input.places, settings.input.time_place, settings.input.missing_rules)


def utterances(settings: Settings, models: Models) -> dict[str, UtteranceSection]:
    """The rule of each model that answers in symbols. Raises ConfigurationError for rules that cannot be followed."""
    found = {}
    for name, model, window in models:
        section = settings.model.get(name)
        declared = None if section is None else section.utterance
        if window is None and model.contract.emitting is not None:
            found[name] = rule = declared or UtteranceSection()
            ttl_ms = settings.state.idle_ttl_ms
            if 0 < ttl_ms <= rule.gap_ms:
                raise ConfigurationError(
                    f"state.idle_ttl_ms is {ttl_ms}, so streams would be forgotten before model.{name}.utterance.gap_ms = "
                    f"{rule.gap_ms} ends their utterances: make it longer"
                )
        elif declared is not None:
            raise ConfigurationError(
                f"[model.{name}.utterance] belongs to a step model with emit in its contract: leave it out"
            )
    return found


def fingerprint(settings: Settings, models: Models) -> str:
    """What decides how a replayed record is judged: must not change while events are in flight."""
    decide = [settings.input.format, str(settings.input.missing), str(settings.input.max_record_bytes)]
    decide += [str(settings.input.max_future_ms), settings.input.time_unit, str(settings.input.min_time_ms)]
    decide += [settings.input.key, str(_max_key_bytes(settings))]
    if settings.input.fields or settings.input.time:
        decide.append(json.dumps([settings.input.fields, settings.input.time], sort_keys=True))
    if (source := _source(settings)) is not None and source.document is not None:
        decide.append(f"{hashlib.sha256(source.document).hexdigest()} {source.message}")
    if any(model.contract.many_steps for _, model, _ in models):
        decide.append(f"steps:{settings.input.max_record_steps}")
    decide += [f"{name}:{rule.fingerprint()}" for name, _, rule in models if rule is not None]
    decide += [f"{name}:utterance:{rule.fingerprint()}" for name, rule in utterances(settings, models).items()]
    return "|".join(decide)


def _max_key_bytes(settings: Settings) -> int:
    """A key is told in the answer's key and, each byte escaped six-fold at worst, in its value: both fit a batch."""
    return min(MAX_KEY_BYTES, settings.output.max_batch_bytes // 8)


def codec_of(settings: Settings, models: Sequence[tuple[str, Model, WindowRule | None]]) -> Codec:
    """Raises ConfigurationError for a format that is not there, and for models that read the same record differently."""
    section = settings.input
    if section.format in ("json", *FIELDED):
        refuse_different([(name, model.contract.feature_tables) for name, model, _ in models])
    source, passed = _source(settings), settings.output.passed
    return Codec(
        models[0][1].contract,
        section.format,
        missing=None if section.missing == "reject" else float(section.missing),
        max_record_bytes=section.max_record_bytes,
        max_record_steps=section.max_record_steps,
        max_key_bytes=_max_key_bytes(settings),
        max_future_ms=section.max_future_ms,
        min_time_ms=section.min_time_ms,
        time_unit=section.time_unit,
        key=section.key,
        fields=fields_of(settings),
        source=source,
        decoder=section.decoder,
        generates=any(model.contract.feedback is not None for _, model, rule in models if rule is None),
        passing=Passing(passed, section.format, source) if passed else None,
    )


def _source(settings: Settings) -> Source | None:
    """Where schemas come from. ConfigurationError: a file cannot be read, or is not used."""
    section = settings.input
    if section.format not in SCHEMAS:
        if section.schema_file is not None or section.message:
            raise ConfigurationError(
                f"input.schema_file and input.message are not used with input.format = {section.format!r}"
            )
        return None
    document = None
    if section.schema_file is not None:
        try:
            document = section.schema_file.read_bytes()
        except OSError as error:
            raise ConfigurationError(f"input.schema_file = {section.schema_file}: {error.strerror}") from error
    return Source(Book() if settings.registry.url else None, document, section.message)


def processor_of(settings: Settings, models: Models, codec: Codec, topic_id: str) -> Processor:
    """Raises ConfigurationError for models that cannot be served together or need a window."""
    return Processor(
        models,
        batch=settings.batch,
        state=settings.state,
        generate=settings.rollouts,
        decode=settings.decode,
        delivery=settings.delivery,
        late=settings.input.late,
        identity=Identity(settings.kafka.group, topic_id, fingerprint(settings, models), machine()),
        keys=codec.keys,
        pasts=pasts(settings, models),
        utterances=utterances(settings, models),
    )
