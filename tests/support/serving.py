"""Services on a real broker for tests: built as ``streamer run`` builds them, with a model that tests can predict."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from simulated import ChainModel

from streamer.kafka.writes import TRANSACTION_HEADER
from streamer.service.clock import Clock
from streamer.service.loop import Service
from streamer.service.wiring import Parts, build, prepare
from streamer.settings import Settings


@dataclass
class Recorder:
    """An observer that keeps what it is told."""

    committed_events: int = 0
    outcomes: list[str] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    recoveries: list[tuple[list[int], list[int]]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def _tell(self) -> None:
        self.changed.set()

    def ran(self, *_: object) -> None: ...

    def published(self, *_: object) -> None: ...

    def assigned(self, *_: object) -> None: ...

    def restoring(self, *_: object) -> None: ...

    def tick(self, *_: object) -> None: ...

    def committed(self, outcome: str, epoch: Any, *_: object) -> None:
        self.outcomes.append(outcome)
        if outcome == "committed":
            self.committed_events += epoch.events
        self._tell()

    def recovered(self, cold: Sequence[int], kept: Sequence[int], seconds: float) -> None:
        del seconds
        self.recoveries.append((list(cold), list(kept)))
        self._tell()

    def failed(self, error: BaseException) -> None:
        self.errors.append(error)
        self._tell()


def make_settings(bootstrap: str, topic: str, group: str, **sections: dict[str, Any]) -> Settings:
    document: dict[str, Any] = {
        "kafka": {"bootstrap": bootstrap, "group": group, "session_timeout_ms": 6000, "heartbeat_interval_ms": 500},
        "input": {"topic": topic, "min_time": "1970-01-01T00:00:00Z"},  # times of tests begin at 0
        "output": {"topic": f"{topic}.out"},
        "delivery": {"checkpoint_interval_ms": 200},
        "state": {"max_bytes": 16_000_000},
        "model": {"chain": {"path": "unused.onnx"}},
    }
    for name, values in sections.items():
        document.setdefault(name, {}).update(values)
    return Settings(**document)


async def make_service(
    settings: Settings, model: Any = None, *, instance: str = "a", clock: Clock | None = None
) -> tuple[Service, Recorder]:
    parts = await prepare(settings, [("chain", model or ChainModel(), None)])
    recorder = Recorder()
    parts = Parts(settings, parts.models, parts.connection, parts.input)
    return build(parts, recorder, instance=instance, clock=clock), recorder


@contextlib.asynccontextmanager
async def running(service: Service) -> AsyncIterator[asyncio.Task[None]]:
    """Runs a service beside the test, and drains it at the end. What ended it before is raised, or told beside what the
    test found wrong."""
    task = asyncio.create_task(service.run())
    try:
        yield task
    except BaseException as error:
        error.add_note(f"the service reported: {getattr(service._observer, 'errors', None)}")
        raise
    finally:
        service.stopping.set()
        async with asyncio.timeout(60):
            await asyncio.gather(task, return_exceptions=True)
    task.result()


Row = tuple[int | None, bytes | None, bytes | None, list[tuple[str, bytes]]]
"""partition (None: where Kafka's clients put the key), key, value, headers"""


async def wait_for(condition: Callable[[], Any], *recorders: Recorder, seconds: float = 30) -> None:
    """Until what the recorders are told makes the condition true; fails at once when a service has failed."""
    async with asyncio.timeout(seconds):
        while not condition():
            for recorder in recorders:
                if recorder.errors:
                    raise recorder.errors[0]
                recorder.changed.clear()
            waits = [asyncio.ensure_future(recorder.changed.wait()) for recorder in recorders]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()


async def serve(settings: Settings, rows: Sequence[Row], *, instance: str = "a", model: Any = None) -> None:
    """Sends ``rows`` to a service of its own, and drains it when all of them are committed."""
    service, recorder = await make_service(settings, model, instance=instance)
    async with running(service):
        await produce(settings.kafka.bootstrap, settings.input.topic, rows)
        await wait_for(lambda: recorder.committed_events >= len(rows), recorder)


@contextlib.asynccontextmanager
async def open_transaction(
    bootstrap: str, transactional_id: str, topic: str, partition: int, *, named: bool
) -> AsyncIterator[AIOKafkaProducer]:
    """A transaction with a record in it that nobody ends, as a process leaves it that died inside a commit."""
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, transactional_id=transactional_id, transaction_timeout_ms=120_000
    )
    await producer.start()
    try:
        await producer.begin_transaction()
        headers = [(TRANSACTION_HEADER, transactional_id.encode())] if named else []
        await producer.send_and_wait(topic, b"\x07unfinished", key=b"\x07x", partition=partition, headers=headers)
        yield producer
    finally:
        with contextlib.suppress(AssertionError, KafkaError):
            await producer.stop()


async def produce(bootstrap: str, topic: str, rows: Iterable[Row]) -> None:
    """Rows in order, each once, and acknowledged."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True, max_request_size=20_000_000)
    await producer.start()
    try:
        sent = [
            await producer.send(topic, value, key=key, partition=partition, headers=headers)
            for partition, key, value, headers in rows
        ]
        await asyncio.gather(*sent)
    finally:
        await producer.stop()


def event(x: Sequence[float], **fields: Any) -> bytes:
    return msgspec.json.encode({"x": list(x), **fields})


@dataclass(frozen=True)
class Read:
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]

    @property
    def source(self) -> tuple[int, int]:
        _, partition, offset = self.headers["streamer-source"].decode().rsplit("/", 2)
        return int(partition), int(offset)

    @property
    def document(self) -> dict[str, Any]:
        return msgspec.json.decode(self.value or b"{}")


async def _partitions(bootstrap: str, topic: str) -> list[int]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        while True:  # the service under test may not have created it yet
            with contextlib.suppress(KafkaError):  # the client may ask a broker that a test has stopped
                (described,) = await admin.describe_topics([topic])
                if described["partitions"]:
                    return [partition["partition"] for partition in described["partitions"]]
            await asyncio.sleep(0.1)
    finally:
        await admin.close()


async def read_all(
    bootstrap: str,
    topic: str,
    *,
    at_least: int = 0,
    distinct: bool = False,
    isolation: str = "read_committed",
    alive: Callable[[], None] = lambda: None,
) -> list[Read]:
    """All records of a topic up to its end; waits until there are ``at_least`` (bounded by a deadline), or, ``distinct``,
    records of so many different events. ``alive`` raises when there is nobody left to wait for."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, isolation_level=isolation, auto_offset_reset="earliest")
    await consumer.start()
    found: list[Read] = []
    try:
        async with asyncio.timeout(240):
            partitions = await _partitions(bootstrap, topic)
            tps = [TopicPartition(topic, partition) for partition in sorted(partitions)]
            consumer.assign(tps)
            await consumer.seek_to_beginning()
            while True:
                alive()
                for tp, records in (await consumer.getmany(timeout_ms=100)).items():
                    found += [Read(tp.partition, r.offset, r.key, r.value, dict(r.headers)) for r in records]
                try:
                    ends = await consumer.end_offsets(tps)
                except KafkaError:  # no leader at the moment
                    continue
                done = all([await consumer.position(tp) >= ends[tp] for tp in tps])
                if done and (len({read.source for read in found}) if distinct else len(found)) >= at_least:
                    return found
    finally:
        await consumer.stop()


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What became of a record batch is known before the next one is handed over: the slowest that a producer can be."""
    send_batch = AIOKafkaProducer.send_batch

    async def sent(self: AIOKafkaProducer, batch: Any, topic: str, *, partition: int) -> Any:
        future = await send_batch(self, batch, topic, partition=partition)
        await asyncio.wait([future])
        return future

    monkeypatch.setattr(AIOKafkaProducer, "send_batch", sent)
