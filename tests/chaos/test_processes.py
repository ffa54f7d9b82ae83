"""Processes that die, freeze and come back while events flow. The oracle: a reader of committed records sees exactly one
prediction per event, in order per stream, bit-equal to the run of each stream alone."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from aiokafka import AIOKafkaProducer
from serving import Read, event, read_all

from streamer.model import Model
from streamer.tools.bench import MODEL

pytestmark = pytest.mark.chaos

PARTITIONS, STREAMS, FEATURES = 4, 40, 16
DELIVERIES = pytest.mark.parametrize(
    "delivery", ["exactly-once", pytest.param("at-least-once", marks=pytest.mark.accept)]
)


def features(index: int) -> list[float]:
    return np.random.default_rng(index).normal(size=FEATURES).astype(np.float32).tolist()


class Load:
    """Events that flow until they are stopped; event i belongs to stream i % STREAMS."""

    def __init__(self, bootstrap: str, topic: str, per_second: int) -> None:
        self._bootstrap, self._topic, self._per_second = bootstrap, topic, per_second
        self._stop = asyncio.Event()
        self.sent = 0

    async def run(self) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self._bootstrap, enable_idempotence=True)
        await producer.start()
        try:
            while not self._stop.is_set():
                for _ in range(self._per_second // 20):
                    stream = self.sent % STREAMS
                    value = event(features(self.sent))
                    await producer.send(self._topic, value, key=b"s%d" % stream, partition=stream % PARTITIONS)
                    self.sent += 1
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), 0.05)
        finally:
            await producer.stop()

    @contextlib.asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.run())
        try:
            yield
        finally:
            self._stop.set()
            await task


class Member:
    """One ``streamer run`` with its log in a file."""

    def __init__(self, bootstrap: str, topic: str, delivery: str, folder: Path, number: int) -> None:
        self.log = folder / f"member-{number}.log"
        command = [sys.executable, "-m", "streamer.cli", "run"]
        for setting in (
            f"kafka.bootstrap={bootstrap}", f"kafka.group={topic}.group", "kafka.session_timeout_ms=6000",
            "kafka.heartbeat_interval_ms=500", f"input.topic={topic}", f"output.topic={topic}.out",
            f"delivery.mode={delivery}", "delivery.checkpoint_interval_ms=500", f"model.lstm.path={MODEL}",
            "http.port=0", "log.format=json",
        ):  # fmt: skip
            command += ["--set", setting]
        with self.log.open("wb") as file:
            self.child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)

    def signal(self, number: signal.Signals) -> None:
        self.child.send_signal(number)

    async def says(self, text: str) -> None:
        async with asyncio.timeout(90):
            while text not in self.log.read_text():
                assert self.child.poll() is None, self.log.read_text()
                await asyncio.sleep(0.05)


@contextlib.contextmanager
def members() -> Iterator[list[Member]]:
    """Every member appended here is gone at the end, however the test ended."""
    found: list[Member] = []
    try:
        yield found
    finally:
        for member in found:
            if member.child.poll() is None:
                member.child.kill()
            member.child.wait()


async def count_committed(bootstrap: str, topic: str) -> int:
    return len(await read_all(bootstrap, f"{topic}.out"))


async def grown(bootstrap: str, topic: str, than: int) -> None:
    async with asyncio.timeout(90):
        while await count_committed(bootstrap, topic) <= than:  # noqa: ASYNC110 - another process writes
            await asyncio.sleep(0.2)


async def check_oracle(bootstrap: str, topic: str, sent: int, *, exactly: bool) -> None:
    check_answers(await read_all(bootstrap, f"{topic}.out", at_least=sent, distinct=True), sent, exactly=exactly)


def check_answers(found: Sequence[Read], sent: int, *, exactly: bool) -> None:
    counts = Counter(read.source for read in found)
    assert len(counts) == sent, "predictions are lost"
    if exactly:
        repeated = sorted(source for source, count in counts.items() if count > 1)
        where = [(read.source, read.offset) for read in found if read.source in repeated[:3]]
        assert not repeated, (
            f"{len(repeated)} of {sent} answers are repeated, {repeated[:3]} to {repeated[-1]}: {where}"
        )
    model = Model.load(MODEL)
    answers: dict[bytes, dict[int, float]] = defaultdict(dict)
    for read in sorted(found, key=lambda read: (read.partition, read.offset)):
        y = read.document["y"]
        before = answers[read.key or b""].setdefault(read.source[1], y)
        assert before == y, "a repeated prediction differs: an event was counted twice in the state"
    for stream in range(STREAMS):
        x = np.array([[features(index) for index in range(stream, sent, STREAMS)]], np.float32)
        (y, *_), _ = model.run(x, np.array([x.shape[1]], np.int32), model.initial_states(1))
        got = answers[b"s%d" % stream]
        assert np.float32([got[offset] for offset in sorted(got)]).tolist() == y[0, :, 0].tolist()
        if exactly:
            assert list(got) == sorted(got), "order within a stream"


@DELIVERIES
async def test_a_frozen_member_is_fenced_when_it_wakes(
    kafka, topic_name, create_topics, tmp_path: Path, delivery: str
) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: PARTITIONS})
    load = Load(kafka, topic, 400)
    with members() as group:
        async with load.flowing():
            group.append(Member(kafka, topic, delivery, tmp_path, 0))
            await group[0].says('"live"')
            group.append(Member(kafka, topic, delivery, tmp_path, 1))
            await group[1].says('"live"')
            await grown(kafka, topic, load.sent)
            group[0].signal(signal.SIGSTOP)
            # the other owns everything once it reports a recovery of the frozen member's partitions
            before = group[1].log.read_text().count('"live"')
            async with asyncio.timeout(90):
                while group[1].log.read_text().count('"live"') == before:  # noqa: ASYNC110 - another process writes
                    await asyncio.sleep(0.1)
            await grown(kafka, topic, await count_committed(kafka, topic))
            group[0].signal(signal.SIGCONT)
            await group[0].says("commit_not_done")  # it did try, and was refused
            await grown(kafka, topic, load.sent)
        await check_oracle(kafka, topic, load.sent, exactly=delivery == "exactly-once")


@pytest.mark.parametrize(
    ("delivery", "kills"),
    [
        ("exactly-once", 4),
        pytest.param("exactly-once", 50, marks=pytest.mark.accept),
        pytest.param("at-least-once", 50, marks=pytest.mark.accept),
    ],
)
async def test_kills_at_random_times(
    kafka, topic_name, create_topics, tmp_path: Path, delivery: str, kills: int
) -> None:
    rng = random.Random(kills)
    topic = topic_name("in")
    await create_topics(kafka, {topic: PARTITIONS})
    load = Load(kafka, topic, 200)
    with members() as group:
        async with load.flowing():
            for number in range(kills):
                group.append(Member(kafka, topic, delivery, tmp_path, number))
                await group[-1].says('"live"')
                await asyncio.sleep(rng.uniform(0.0, 0.6))  # when it dies is the point of the test
                group[-1].signal(signal.SIGKILL)
                group[-1].child.wait()
            group.append(Member(kafka, topic, delivery, tmp_path, kills))
            await group[-1].says('"live"')
        await check_oracle(kafka, topic, load.sent, exactly=delivery == "exactly-once")
        group[-1].signal(signal.SIGTERM)
        assert group[-1].child.wait(60) == 0


@pytest.mark.parametrize("rounds", [3, pytest.param(20, marks=pytest.mark.accept)])
async def test_members_come_and_go(kafka, topic_name, create_topics, tmp_path: Path, rounds: int) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: PARTITIONS})
    load = Load(kafka, topic, 200)
    with members() as group:
        async with load.flowing():
            group.append(Member(kafka, topic, "exactly-once", tmp_path, 0))
            await group[0].says('"live"')
            for number in range(1, rounds + 1):
                group.append(Member(kafka, topic, "exactly-once", tmp_path, number))
                await asyncio.sleep(2)  # the storm's rhythm: it may leave before, while or after it restores
                group[-1].signal(signal.SIGTERM)
                assert await asyncio.to_thread(group[-1].child.wait, 60) in (0, -signal.SIGTERM)
        await check_oracle(kafka, topic, load.sent, exactly=True)
        assert group[0].child.poll() is None


@DELIVERIES
async def test_a_rolling_restart_loses_nothing(kafka, topic_name, create_topics, tmp_path: Path, delivery: str) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: PARTITIONS})
    load = Load(kafka, topic, 200)
    with members() as group:
        async with load.flowing():
            for number in range(2):
                group.append(Member(kafka, topic, delivery, tmp_path, number))
                await group[-1].says('"live"')
            for number in range(2):
                group[number].signal(signal.SIGTERM)
                assert await asyncio.to_thread(group[number].child.wait, 60) == 0
                group.append(Member(kafka, topic, delivery, tmp_path, 2 + number))
                await group[-1].says('"live"')
        # an orderly stop repeats nothing, in either delivery
        await check_oracle(kafka, topic, load.sent, exactly=True)


@DELIVERIES
async def test_a_signal_under_load_drains_within_its_deadline(
    kafka, topic_name, create_topics, tmp_path: Path, delivery: str
) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: PARTITIONS})
    load = Load(kafka, topic, 2_000)
    with members() as group:
        async with load.flowing():
            for number in range(3):
                group.append(Member(kafka, topic, delivery, tmp_path, number))
                await group[number].says('"live"')
                await grown(kafka, topic, await count_committed(kafka, topic))
                group[number].signal(signal.SIGTERM)
                assert await asyncio.to_thread(group[number].child.wait, 60) == 0
            group.append(Member(kafka, topic, delivery, tmp_path, 3))
            await group[3].says('"live"')
        await check_oracle(kafka, topic, load.sent, exactly=True)
