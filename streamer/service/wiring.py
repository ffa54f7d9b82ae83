"""From settings to a service that is ready to run: loads models, prepares topics, connects the parts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

from streamer.engine.processor import Limits, Processor
from streamer.errors import ConfigurationError
from streamer.generate.rollout import RolloutLimits
from streamer.kafka.client import Connection
from streamer.kafka.commit import CommitOptions, Committer, CommitTopics
from streamer.kafka.group import Group
from streamer.kafka.input import Input
from streamer.kafka.topics import InputTopic, TopicNeed, Topics
from streamer.modelfile.model import Model
from streamer.observe.http import HttpServer
from streamer.observe.telemetry import Telemetry
from streamer.records.changelog import Identity
from streamer.records.decode import Codec
from streamer.service.clock import Clock
from streamer.service.loop import Observer, Service, ServiceOptions
from streamer.service.recovery import Recovery, Rules
from streamer.settings import Settings, WindowSection, security
from streamer.windows import WindowRule

log = logging.getLogger("streamer")

ANSWER_OVERHEAD_BYTES = 8_192
"""Key, headers and framing beside a generated sequence"""


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
            None if section.window is None else window_rule(name, section.window),
        )
        for name, section in settings.model.items()
    ]


def window_rule(name: str, section: WindowSection) -> WindowRule:
    rule = WindowRule(**section.model_dump())
    problems = rule.validate()
    if problems:
        raise ConfigurationError(f"model.{name}.window: " + "; ".join(problems))
    return rule


def connection(settings: Settings) -> Connection:
    kafka = settings.kafka
    if kafka.security_protocol == "SASL_PLAINTEXT" and kafka.sasl_mechanism == "PLAIN":
        log.warning("kafka.security_protocol = SASL_PLAINTEXT sends the password in the clear: use SASL_SSL or SCRAM")
    return Connection(
        bootstrap=kafka.bootstrap,
        client_id=kafka.client_id,
        request_timeout_ms=kafka.request_timeout_ms,
        retry_backoff_ms=kafka.retry_backoff_ms,
        connect_timeout_ms=kafka.connect_timeout_ms,
        metadata_max_age_ms=kafka.metadata_max_age_ms,
        options=security(kafka),
    )


async def prepare(
    settings: Settings, models: list[tuple[str, Model, WindowRule | None]], *, mock: bool = False
) -> Parts:
    """Connects, verifies or creates topics. ``mock``: the in-process broker, which has no topic administration."""
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
    decide.append(str(settings.input.max_future_ms))
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
    settings, link = parts.settings, parts.connection
    kafka, delivery = settings.kafka, settings.delivery
    codec = _codec(parts)
    processor = Processor(
        parts.models,
        _limits(settings),
        identity=Identity(kafka.group, parts.input.topic_id, fingerprint(settings, parts.models)),
        durable=delivery.mode != "ephemeral",
        reset_changed_models=delivery.model_changed == "reset",
        keys=codec.keys,
    )
    reader = Input(
        link,
        settings.input.topic,
        fetch_min_bytes=kafka.fetch_min_bytes,
        fetch_max_wait_ms=settings.fetch_max_wait_ms,
        fetch_max_bytes=kafka.fetch_max_bytes,
        max_partition_fetch_bytes=kafka.max_partition_fetch_bytes,
        check_crcs=kafka.check_crcs,
        isolation_level="read_uncommitted" if delivery.mode == "ephemeral" else "read_committed",
    )
    static = instance if kafka.static_membership else None

    def make_group(service: Service) -> Group:
        return Group(
            link,
            kafka.group,
            settings.input.topic,
            len(parts.input.partitions),
            on_revoked=service.on_revoked,
            on_assigned=service.on_assigned,
            owned=service.owned,
            instance=static,
            session_timeout_ms=kafka.session_timeout_ms,
            heartbeat_interval_ms=kafka.heartbeat_interval_ms,
            rebalance_timeout_ms=kafka.rebalance_timeout_ms,
        )

    def make_committer(group: Group) -> Committer:
        return Committer(
            link,
            CommitTopics(
                settings.input.topic,
                settings.output.topic,
                settings.dead_letter_topic,
                settings.changelog_topic,
                parts.input.limits.get(settings.dead_letter_topic or "", 1_048_588),
            ),
            CommitOptions(
                delivery=delivery.mode,
                group=kafka.group,
                instance=static,
                compression=None if settings.output.compression == "none" else settings.output.compression,
                max_batch_bytes=settings.output.max_batch_bytes,
                max_request_bytes=max(settings.output.max_batch_bytes, 1_048_576),
                transaction_timeout_ms=delivery.transaction_timeout_ms,
                commit_timeout_ms=delivery.commit_timeout_ms,
            ),
            group=group,
            new_id=new_id or (lambda: f"{kafka.group}-{instance}-{uuid.uuid4().hex[:12]}"),
        )

    def make_recovery(service: Service, group: Group, committer: Committer) -> Recovery:
        return Recovery(
            link,
            Rules(
                settings.input.topic,
                settings.changelog_topic,
                settings.input.start_position(),
                delivery.model_changed,
            ),
            processor,
            reader,
            group,
            own_ids=lambda: committer.used_ids,
            on_progress=observer.restoring,
        )

    return Service(
        _service_options(settings),
        processor,
        codec,
        make_group=make_group,
        reader=reader,
        make_committer=make_committer,
        make_recovery=make_recovery,
        observer=observer,
        clock=clock,
    )


def _limits(settings: Settings) -> Limits:
    return Limits(
        max_rows=settings.batch.max_rows,
        max_steps=settings.batch.max_steps,
        max_ingest_rows=settings.batch.max_poll_records,
        max_state_bytes=settings.state.max_bytes,
        idle_ttl_ms=settings.state.idle_ttl_ms,
        checkpoint_interval_ms=settings.delivery.checkpoint_interval_ms,
        late_to_dead_letter=settings.input.late == "dead-letter",
        rollouts=_rollout_limits(settings),
    )


def _rollout_limits(settings: Settings) -> RolloutLimits:
    """An answer has to fit a record batch with its key and headers: one that does not could never be committed."""
    limits = RolloutLimits(**settings.generate.model_dump())
    room = settings.output.max_batch_bytes - ANSWER_OVERHEAD_BYTES
    return replace(limits, max_answer_bytes=max(min(limits.max_answer_bytes, room), 0))


def _codec(parts: Parts) -> Codec:
    section = parts.settings.input
    return Codec(
        parts.models[0][1].contract,
        section.format,
        missing=None if section.missing == "reject" else float(section.missing),
        max_record_bytes=section.max_record_bytes,
        max_future_ms=section.max_future_ms,
        generates=any(model.contract.feedback is not None for _, model, rule in parts.models if rule is None),
    )


def _service_options(settings: Settings) -> ServiceOptions:
    delivery, kafka = settings.delivery, settings.kafka
    return ServiceOptions(
        delivery=delivery.mode,
        commit_interval_ms=settings.commit_interval_ms,
        commit_min_gap_ms=delivery.commit_min_gap_ms,
        checkpoint_bytes_per_second=delivery.checkpoint_bytes_per_second,
        checkpoint_interval_ms=delivery.checkpoint_interval_ms,
        max_poll_records=settings.batch.max_poll_records,
        fetch_max_wait_ms=settings.fetch_max_wait_ms,
        fetch_min_bytes=kafka.fetch_min_bytes,
        drain_timeout_ms=delivery.drain_timeout_ms,
        idle_ms=delivery.idle_ms,
    )


@contextlib.asynccontextmanager
async def observed(settings: Settings, telemetry: Telemetry, service: Service) -> AsyncIterator[str | None]:
    """Metrics, health and status while the service runs; the URL, None when switched off. Called on the service's loop."""
    loop = asyncio.get_running_loop()

    async def look(key: bytes) -> dict[str, Any] | None:
        return service.processor.describe(key)

    def stream(key: bytes) -> dict[str, Any] | None:
        return asyncio.run_coroutine_threadsafe(look(key), loop).result(2)

    beating = asyncio.create_task(_beat(telemetry))
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
        beating.cancel()


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
    }


async def _beat(telemetry: Telemetry, interval_s: float = 0.25) -> None:
    """A sign of life that does not depend on Kafka, and how late the loop's timers are."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + interval_s
        await asyncio.sleep(interval_s)
        telemetry.beat(loop.time() - due)
