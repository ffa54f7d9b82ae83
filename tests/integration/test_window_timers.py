"""Windows close by time without traffic, and never early: on a real broker, with a clock that the test moves.

Event times all lie in one window, so only the clock can close it. The windows are ten minutes long: no test takes that
much real time, so nothing closes unless the clock was moved. The answer of a window that time closed is stamped with
that time, and a broker refuses stamps more than an hour ahead: here the topic of the answers puts its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from local_kafka import LocalKafka
from serving import Read, Recorder, event, make_settings, produce, read_all, running
from tooling import require_tool
from windowing import FoldModel, fold

from streamer.service.loop import Service
from streamer.service.wiring import Parts, build, prepare
from streamer.windows import WindowRule

OWN_STAMPS = {"message.timestamp.type": "LogAppendTime"}
RULE = WindowRule("tumbling", size_ms=600_000)
STEP_S = 700.0


class Clock:
    """Real time, and what the test adds to it. ``per_look_s`` is added with every reading."""

    def __init__(self, per_look_s: float = 0.0) -> None:
        self.ahead_s, self.per_look_s = 0.0, per_look_s

    def monotonic(self) -> float:
        self.ahead_s += self.per_look_s
        return time.monotonic() + self.ahead_s

    def now_ms(self) -> int:
        return int(time.time() * 1000)


async def start(settings: Any, clock: Clock, *, instance: str = "a") -> tuple[Service, Recorder]:
    recorder = Recorder()
    parts = await prepare(settings, [("fold", FoldModel(), RULE)])  # type: ignore[list-item]
    built = build(
        Parts(settings, parts.models, parts.connection, parts.input), recorder, instance=instance, clock=clock
    )
    return built, recorder


@contextlib.asynccontextmanager
async def serving(settings: Any, clock: Clock, *, instance: str = "a") -> AsyncIterator[tuple[Service, Recorder]]:
    service, recorder = await start(settings, clock, instance=instance)
    async with running(service) as task:
        until = asyncio.create_task(until_live(recorder))
        await asyncio.wait({task, until}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        assert recorder.recoveries, recorder.errors
        yield service, recorder


async def until_live(recorder: Recorder, times: int = 1) -> None:
    while len(recorder.recoveries) < times:
        recorder.changed.clear()
        await recorder.changed.wait()


async def committed(recorder: Recorder, events: int) -> None:
    async with asyncio.timeout(60):
        while recorder.committed_events < events:
            recorder.changed.clear()
            await recorder.changed.wait()


async def time_passes(bootstrap: str, topic: str, clock: Clock, *, at_least: int) -> list[Read]:
    """Idleness, until there are so many answers."""
    found: list[Read] = []
    async with asyncio.timeout(60):
        while len(found) < at_least:
            clock.ahead_s += STEP_S
            found = await read_all(bootstrap, f"{topic}.out")
    return found


def rows(values: Sequence[float], stream: str = "a", partition: int = 0) -> list[Any]:
    return [(partition, stream.encode(), event([value], ts=1_000 + at), []) for at, value in enumerate(values)]


def answers(found: Sequence[Read]) -> dict[str, float]:
    assert len({read.key for read in found}) == len(found), "a window was closed twice"
    return {read.document["stream"]: read.document["y"] for read in found}


def config(kafka: str, topic: str, group: str, **more: Any) -> Any:
    # a commit outlives an outage: what was closed too early would not be taken back by its failure
    patient = {"commit_timeout_ms": 60_000, "transaction_timeout_ms": 90_000}
    return make_settings(kafka, topic, group, delivery={"idle_ms": 1_000, **patient}, **more)


async def test_a_silent_topic_closes_once_and_only_when_its_time_has_come(kafka, topic_name, create_topics) -> None:
    topic, clock = topic_name("in"), Clock()
    await create_topics(kafka, {topic: 1, f"{topic}.out": 1}, OWN_STAMPS)
    async with serving(config(kafka, topic, topic_name("group")), clock) as (_, recorder):
        await produce(kafka, topic, rows([1.0, 2.0]))
        await committed(recorder, 2)
        clock.ahead_s += 500.0  # idle, but the window is longer
        await produce(kafka, topic, rows([3.0], "b"))
        await committed(recorder, 3)
        assert await read_all(kafka, f"{topic}.out") == []
        found = await time_passes(kafka, topic, clock, at_least=2)
    assert answers(found) == {"a": fold([1.0, 2.0]), "b": fold([3.0])}
    assert {read.document["window"]["reason"] for read in found} == {"time"}


async def test_a_window_closes_after_a_restart_although_nothing_comes(kafka, topic_name, create_topics) -> None:
    topic, group = topic_name("in"), topic_name("group")
    await create_topics(kafka, {topic: 1, f"{topic}.out": 1}, OWN_STAMPS)
    async with serving(config(kafka, topic, group), Clock()) as (_, recorder):
        await produce(kafka, topic, rows([1.0, 2.0]))
        await committed(recorder, 2)
    clock = Clock()
    clock.ahead_s = STEP_S  # the time that the service was away is nobody's idleness
    async with serving(config(kafka, topic, group), clock) as (_, recorder):
        await produce(kafka, topic, rows([3.0]))
        await committed(recorder, 1)
        assert await read_all(kafka, f"{topic}.out") == []
        found = await time_passes(kafka, topic, clock, at_least=1)
    async with serving(config(kafka, topic, group), Clock()) as (_, recorder):
        await produce(kafka, topic, rows([4.0]))  # too late: its window was closed by the time before
        await committed(recorder, 1)
        found = await read_all(kafka, f"{topic}.out")
    # both events of stream a at 1000 ms keep their order of arrival
    assert answers(found) == {"a": fold([1.0, 3.0, 2.0])}


async def test_windows_close_after_a_rebalance_wherever_they_are(kafka, topic_name, create_topics) -> None:
    topic, clock = topic_name("in"), Clock()
    await create_topics(kafka, {topic: 2, f"{topic}.out": 2}, OWN_STAMPS)
    settings = config(kafka, topic, topic_name("group"))
    async with serving(settings, clock) as (one, recorder):
        await produce(kafka, topic, [*rows([1.0, 2.0], "a", 0), *rows([3.0, 4.0], "b", 1)])
        await committed(recorder, 4)
        async with serving(settings, clock, instance="b") as (two, _):
            async with asyncio.timeout(60):
                await until_live(recorder, 2)
            assert len(one.processor.partitions) == len(two.processor.partitions) == 1
            found = await time_passes(kafka, topic, clock, at_least=2)
    assert answers(found) == {"a": fold([1.0, 2.0]), "b": fold([3.0, 4.0])}


async def test_an_idle_partition_among_busy_ones_closes_its_windows(kafka, topic_name, create_topics) -> None:
    topic, clock, stop = topic_name("in"), Clock(), asyncio.Event()
    await create_topics(kafka, {topic: 2, f"{topic}.out": 2}, OWN_STAMPS)

    async def keep_busy() -> None:
        while not stop.is_set():
            await produce(kafka, topic, rows([7.0] * 50, "busy", 1))

    async with serving(config(kafka, topic, topic_name("group")), clock) as (_, recorder):
        await produce(kafka, topic, rows([1.0, 2.0]))
        await committed(recorder, 2)
        busy = asyncio.create_task(keep_busy())
        try:
            await committed(recorder, 200)
            found: list[Read] = []
            async with asyncio.timeout(60):
                while not any(read.key == b"a" for read in found):
                    clock.ahead_s += STEP_S
                    found = await read_all(kafka, f"{topic}.out")
        finally:
            stop.set()
            await busy
    assert [read.document["y"] for read in found if read.key == b"a"] == [fold([1.0, 2.0])]


async def test_nothing_closes_while_the_service_is_behind(kafka, topic_name, create_topics) -> None:
    """Every look at the clock finds a minute gone, yet an event that lies unread in the log is in its window."""
    topic, clock, count = topic_name("in"), Clock(per_look_s=60.0), 3_000
    await create_topics(kafka, {topic: 2, f"{topic}.out": 2}, OWN_STAMPS)
    values = [float(at % 10) for at in range(count)]
    await produce(kafka, topic, rows(values, "a", 0) + rows(values, "b", 1))
    settings = config(kafka, topic, topic_name("group"), batch={"max_poll_records": 100})
    async with serving(settings, clock):
        found = await read_all(kafka, f"{topic}.out", at_least=2)
    assert answers(found) == {"a": fold(values), "b": fold(values)}
    assert {read.document["window"]["count"] for read in found} == {count}


async def test_nothing_closes_because_the_broker_was_away(create_topics) -> None:
    require_tool("java", "mvn")
    clock = Clock()
    with LocalKafka() as local:
        await create_topics(local.bootstrap, {"in": 1, "in.out": 1}, OWN_STAMPS)
        async with serving(config(local.bootstrap, "in", "group"), clock) as (service, recorder):
            await produce(local.bootstrap, "in", rows([1.0, 2.0]))
            await committed(recorder, 2)
            await asyncio.to_thread(local.stop_node, 1)
            async with asyncio.timeout(60):
                while time.time() * 1000 - service._reader.confirmed_at_ms(0) < 2_000:  # noqa: ASYNC110 - silence has no event
                    await asyncio.sleep(0.1)
            clock.ahead_s += STEP_S
            await asyncio.to_thread(local.start_node, 1)
            await produce(local.bootstrap, "in", rows([3.0]))
            await committed(recorder, 3)
            assert await read_all(local.bootstrap, "in.out") == []
            found = await time_passes(local.bootstrap, "in", clock, at_least=1)
    assert answers(found) == {"a": fold([1.0, 3.0, 2.0])}
