"""From what was prepared to a service that is ready to run: connects the parts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

from streamer.engine.describe import describe
from streamer.kafka.commit import Committer
from streamer.kafka.group import Group
from streamer.kafka.input import Input
from streamer.kafka.policies import OUTPUT
from streamer.kafka.registry import Registry
from streamer.modelfile.machine import machine
from streamer.observe.http import HttpServer
from streamer.observe.telemetry import Telemetry
from streamer.service.answerschemas import choices_of, encoders_of
from streamer.service.clock import Clock, SystemClock
from streamer.service.commits import Commits
from streamer.service.loop import Service
from streamer.service.membership import Membership
from streamer.service.observer import Observer
from streamer.service.prepare import Models, Parts, codec_of, connection, load_models, prepare, processor_of
from streamer.service.schemas import Schemas
from streamer.service.siblings import watch_siblings
from streamer.service.sink import Sink
from streamer.service.takeover import Takeover
from streamer.settings import Settings

__all__ = ["Parts", "build", "connection", "facts", "instance_id", "load_models", "observed", "prepare"]

log = logging.getLogger("streamer")


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
    group_id, codec = settings.kafka.group, codec_of(settings, parts.models)
    processor = processor_of(settings, parts.models, codec, parts.input.topic_id)
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
        now_ms=clock.now_ms,
    )
    sink = Sink(
        [(name, model) for name, model, _ in parts.models],
        codec.keys,
        max_bytes=min(settings.output.max_batch_bytes, parts.input.max_bytes(OUTPUT)),
        encoders=encoders_of(settings, parts.models, codec.keys, parts.schema_ids, link.native),
        choices=choices_of(settings, parts.models, parts.schema_ids),
    )
    schemas = None
    if codec.schemas is not None:
        schemas = Schemas(codec.schemas, Registry(settings.registry), reader, observer, clock)
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
        schemas=schemas,
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
    watching = asyncio.create_task(watch_siblings(service.group, every_s, telemetry))
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


def facts(settings: Settings, instance: str, models: Models) -> dict[str, str]:
    """What people want to know of an instance on the status page. Chosen by name: no setting gets there by itself."""
    return {
        "group": settings.kafka.group,
        "instance": instance,
        "input": settings.input.topic,
        "output": settings.output.topic,
        "delivery": settings.delivery.mode,
        "machine": machine(),
        "decoder": codec_of(settings, models).decoder,
    }


async def _beat(telemetry: Telemetry, interval_s: float = 0.25) -> None:
    """A sign of life that does not depend on Kafka, and how late the loop's timers are."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + interval_s
        await asyncio.sleep(interval_s)
        telemetry.beat(loop.time() - due)
