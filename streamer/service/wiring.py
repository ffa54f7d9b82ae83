"""From settings to a service that is ready to run: loads models, prepares topics, connects the parts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from streamer.engine.describe import describe
from streamer.engine.processor import Processor
from streamer.errors import ConfigurationError
from streamer.kafka.client import Connection
from streamer.kafka.commit import Committer
from streamer.kafka.group import Group
from streamer.kafka.input import Input
from streamer.kafka.security import security
from streamer.kafka.topics import InputTopic, TopicNeed, Topics
from streamer.modelfile.machine import machine
from streamer.modelfile.model import Model
from streamer.observe.http import HttpServer
from streamer.observe.telemetry import Telemetry
from streamer.records.changelog import Identity
from streamer.records.decode import MAX_KEY_BYTES, Codec
from streamer.records.formats import NAMED, Fields
from streamer.records.meaning import refuse_different
from streamer.service.clock import Clock, SystemClock
from streamer.service.commits import Commits
from streamer.service.loop import Observer, Service
from streamer.service.membership import Membership
from streamer.service.siblings import watch_siblings
from streamer.service.sink import Sink
from streamer.service.takeover import Takeover
from streamer.settings import Settings
from streamer.windows import WindowRule

log = logging.getLogger("streamer")


@dataclass(frozen=True)
class Parts:
    """What ``check`` verifies and ``run`` needs."""

    settings: Settings
    models: list[tuple[str, Model, WindowRule | None]]
    connection: Connection
    input: InputTopic


def load_models(settings: Settings) -> list[tuple[str, Model, WindowRule | None]]:
    """One after the other: creating sessions concurrently is not safe everywhere. Raises ModelError."""
    return [
        (
            name,
            Model.load(section.path, sha256=section.sha256, threads=settings.batch.threads),
            section.window,
        )
        for name, section in settings.model.items()
    ]


def connection(settings: Settings) -> Connection:
    kafka = settings.kafka
    if kafka.security_protocol == "SASL_PLAINTEXT" and kafka.sasl_mechanism == "PLAIN":
        log.warning("kafka.security_protocol = SASL_PLAINTEXT sends the password in the clear: use SASL_SSL or SCRAM")
    return Connection(kafka, security(kafka))


async def prepare(
    settings: Settings, models: list[tuple[str, Model, WindowRule | None]], *, mock: bool = False
) -> Parts:
    """Connects, verifies or creates topics. ``mock``: the in-process broker, which has no topic administration."""
    if models:
        _codec(settings, models)  # what cannot be decoded is refused before any topic is made
    link = connection(settings)
    async with Topics(link) as topics:
        found = await topics.prepare(
            settings.input.topic,
            topic_needs(settings),
            create=settings.topics.create,
            replication_factor=settings.topics.replication_factor,
            plain_broker=mock,
        )
    for name, _, rule in models:
        if rule is not None and settings.changelog_topic:
            _check_retention(name, rule, settings.delivery.idle_ms, found)
    return Parts(settings, models, link, found)


def _check_retention(name: str, rule: WindowRule, idle_ms: int, topic: InputTopic) -> None:
    """Open windows are kept nowhere but in the input, so it must keep each event for as long as its window can be open."""
    needs_ms = rule.longest_ms + idle_ms
    where, window = f"input topic {topic.name!r}", f"model.{name}.window"
    if "compact" in topic.config.get("cleanup.policy", "delete"):
        raise ConfigurationError(
            f"{where} is compacted (cleanup.policy): events of open windows would be lost. Set cleanup.policy = delete."
        )
    keeps_ms = int(topic.config.get("retention.ms", -1))
    if 0 <= keeps_ms < needs_ms:
        raise ConfigurationError(
            f"{where} keeps records for {keeps_ms} ms (retention.ms), a window may be open for {needs_ms} ms ({window}: "
            f"{rule.longest_ms}, and delivery.idle_ms): a restart could not rebuild it. Set retention.ms to at least "
            f"{needs_ms}, or lower {window}.max_span_ms."
        )
    if "retention.ms" not in topic.config:
        log.warning(
            "%s: its retention.ms cannot be read; it must be at least %d, or windows may be lost", where, needs_ms
        )
    if int(topic.config.get("retention.bytes", -1)) >= 0:
        log.warning(
            "%s keeps %s bytes per partition (retention.bytes): make sure that they last for %d ms, or windows may be lost",
            where, topic.config["retention.bytes"], needs_ms,
        )  # fmt: skip


def topic_needs(settings: Settings) -> list[TopicNeed]:
    needs = [TopicNeed(settings.output.topic, "output.topic")]
    if settings.dead_letter_topic:
        keyless = {"cleanup.policy": "delete"}  # a compacted topic refuses records without a key, and those are rejects
        needs.append(TopicNeed(settings.dead_letter_topic, "dead_letter.topic", verify=keyless))
    if settings.changelog_topic:
        log = settings.changelog
        config = {
            "cleanup.policy": "compact",
            "segment.ms": str(log.segment_ms),
            "segment.bytes": str(log.segment_bytes),
            "min.cleanable.dirty.ratio": str(log.min_cleanable_dirty_ratio),
            "max.compaction.lag.ms": str(log.max_compaction_lag_ms),
            "delete.retention.ms": str(log.delete_retention_ms),
        }
        needs.append(TopicNeed(settings.changelog_topic, "changelog.topic", config, {"cleanup.policy": "compact"}))
    return needs


def fingerprint(settings: Settings, models: list[tuple[str, Model, WindowRule | None]]) -> str:
    """What decides how a replayed record is judged: must not change while events are in flight."""
    decide = [settings.input.format, str(settings.input.missing), str(settings.input.max_record_bytes)]
    decide += [str(settings.input.max_future_ms), settings.input.time_unit, str(settings.input.min_time_ms)]
    decide += [settings.input.key, str(_max_key_bytes(settings))]
    if settings.input.fields or settings.input.time:
        decide.append(json.dumps([settings.input.fields, settings.input.time], sort_keys=True))
    decide += [f"{name}:{rule.fingerprint()}" for name, _, rule in models if rule is not None]
    return "|".join(decide)


def build(
    parts: Parts,
    observer: Observer,
    *,
    instance: str,
    clock: Clock | None = None,
    new_id: Callable[[], str] | None = None,
) -> Service:
    """``new_id``: makes transactional ids, a new one each time; they begin with the group's name, for ACLs."""
    settings, link, clock = parts.settings, parts.connection, clock or SystemClock()
    group_id, codec = settings.kafka.group, _codec(parts.settings, parts.models)
    processor = Processor(
        parts.models,
        batch=settings.batch,
        state=settings.state,
        generate=settings.rollouts,
        delivery=settings.delivery,
        late=settings.input.late,
        identity=Identity(group_id, parts.input.topic_id, fingerprint(settings, parts.models), machine()),
        keys=codec.keys,
    )
    membership = Membership(settings.delivery.drain_timeout_ms, clock.monotonic)
    reader = Input.of_settings(link, settings)
    group = Group(
        link,
        settings,
        parts.input,
        instance=instance,
        on_revoked=membership.on_revoked,
        on_assigned=membership.on_assigned,
        owned=membership.owned,
    )
    committer = Committer(
        link,
        settings,
        parts.input,
        group=group,
        reader=reader,
        new_id=new_id or (lambda: f"{group_id}-{instance}-{uuid.uuid4().hex[:12]}"),
    )
    sink = Sink([(name, model) for name, model, _ in parts.models], codec.keys)
    return Service(
        settings,
        processor,
        codec,
        connection=link,
        membership=membership,
        group=group,
        reader=reader,
        committer=committer,
        commits=Commits(settings, processor, sink, committer, observer, clock),
        takeover=Takeover(link, settings, processor, reader, group, committer, observer.restoring),
        observer=observer,
        clock=clock,
    )


def _max_key_bytes(settings: Settings) -> int:
    """A key is told in the answer's key and, each byte escaped six-fold at worst, in its value: both fit a batch."""
    return min(MAX_KEY_BYTES, settings.output.max_batch_bytes // 8)


def _codec(settings: Settings, models: list[tuple[str, Model, WindowRule | None]]) -> Codec:
    section = settings.input
    if section.format in ("json", *NAMED):
        refuse_different([(name, model.contract.feature_tables) for name, model, _ in models])
    return Codec(
        models[0][1].contract,
        section.format,
        missing=None if section.missing == "reject" else float(section.missing),
        max_record_bytes=section.max_record_bytes,
        max_key_bytes=_max_key_bytes(settings),
        max_future_ms=section.max_future_ms,
        min_time_ms=section.min_time_ms,
        time_unit=section.time_unit,
        key=section.key,
        fields=Fields(section.places, section.time_place),
        generates=any(model.contract.feedback is not None for _, model, rule in models if rule is None),
    )


@contextlib.asynccontextmanager
async def observed(settings: Settings, telemetry: Telemetry, service: Service) -> AsyncIterator[str | None]:
    """Metrics, health and status while the service runs; the URL, None when switched off. Called on the service's loop."""
    loop = asyncio.get_running_loop()

    async def look(key: bytes) -> dict[str, Any] | None:
        return describe(service.processor, key)

    def stream(key: bytes) -> dict[str, Any] | None:
        return asyncio.run_coroutine_threadsafe(look(key), loop).result(2)

    beating = asyncio.create_task(_beat(telemetry))
    every_s = settings.kafka.metadata_max_age_ms / 1000
    watching = asyncio.create_task(watch_siblings(service.group, every_s, telemetry.siblings))
    section = settings.http
    try:
        if not section.enabled:
            yield None
            return
        server = HttpServer(section.host, section.port, telemetry, stuck_after_s=section.stuck_after_s, stream=stream)
        with server:
            log.info("http on %s", server.url)
            yield server.url
    finally:
        for task in (beating, watching):
            task.cancel()


def instance_id(settings: Settings) -> str:
    return settings.kafka.instance or uuid.uuid4().hex[:12]


def facts(settings: Settings, instance: str) -> dict[str, str]:
    """What people want to know of an instance on the status page. Chosen by name: no setting gets there by itself."""
    return {
        "group": settings.kafka.group,
        "instance": instance,
        "input": settings.input.topic,
        "output": settings.output.topic,
        "delivery": settings.delivery.mode,
        "machine": machine(),
    }


async def _beat(telemetry: Telemetry, interval_s: float = 0.25) -> None:
    """A sign of life that does not depend on Kafka, and how late the loop's timers are."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + interval_s
        await asyncio.sleep(interval_s)
        telemetry.beat(loop.time() - due)
