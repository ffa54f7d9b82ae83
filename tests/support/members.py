"""Services as processes of one group, events that flow to them, and the oracle: a reader of committed records sees exactly
one prediction per event, in order per stream, bit-equal to the run of each stream alone."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from aiokafka import AIOKafkaProducer
from serving import Read, Row, event, read_all

from streamer.modelfile.model import Model
from streamer.tools.bench import MODEL

PARTITIONS, STREAMS, FEATURES = 4, 40, 16


def features(index: int) -> list[float]:
    return np.random.default_rng(index).normal(size=FEATURES).astype(np.float32).tolist()


def rows(first: int, count: int) -> Iterable[Row]:
    """Events ``first`` and following; event i belongs to stream i % STREAMS."""
    for index in range(first, first + count):
        stream = index % STREAMS
        yield stream % PARTITIONS, b"s%d" % stream, event(features(index)), []


class Load:
    """Events that flow until they are stopped."""

    def __init__(self, bootstrap: str, topic: str, per_second: int) -> None:
        self._bootstrap, self._topic, self._per_second = bootstrap, topic, per_second
        self._stop = asyncio.Event()
        self.sent = 0

    async def some(self, producer: AIOKafkaProducer, count: int) -> None:
        """Sends about ``count`` events."""
        for partition, key, value, headers in rows(self.sent, count):
            await producer.send(self._topic, value, key=key, partition=partition, headers=headers)
            self.sent += 1

    async def last(self, producer: AIOKafkaProducer) -> None:
        """What is sent when the flow ends."""

    async def _run(self) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self._bootstrap, enable_idempotence=True)
        await producer.start()
        try:
            while not self._stop.is_set():
                await self.some(producer, self._per_second // 20)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), 0.05)
            await self.last(producer)
        finally:
            await producer.stop()

    @contextlib.asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            self._stop.set()
            await task


class Member:
    """One ``streamer run`` with its log in a file; ``settings`` are further ones, ``section.key=value``."""

    def __init__(self, bootstrap: str, topic: str, folder: Path, number: int, *settings: str) -> None:
        self.log = folder / f"member-{number}.log"
        command = [sys.executable, "-m", "streamer.cli", "run"]
        for setting in (
            f"kafka.bootstrap={bootstrap}", f"kafka.group={topic}.group", "kafka.session_timeout_ms=6000",
            "kafka.heartbeat_interval_ms=500", f"input.topic={topic}", f"output.topic={topic}.out",
            "delivery.checkpoint_interval_ms=500", "http.port=0", "log.format=json", *settings,
        ):  # fmt: skip
            command += ["--set", setting]
        with self.log.open("wb") as file:
            self.child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)

    def signal(self, number: signal.Signals) -> None:
        self.child.send_signal(number)

    def alive(self) -> None:
        assert self.child.poll() is None, self.log.read_text()

    async def says(self, text: str, times: int = 1) -> None:
        async with asyncio.timeout(90):
            while self.log.read_text().count(text) < times:
                self.alive()
                await asyncio.sleep(0.05)


def step_member(bootstrap: str, topic: str, delivery: str, folder: Path, number: int) -> Member:
    """A member that answers each event with the model that the oracle runs."""
    return Member(bootstrap, topic, folder, number, f"delivery.mode={delivery}", f"model.lstm.path={MODEL}")


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


async def grown(bootstrap: str, topic: str, than: int | None = None) -> None:
    """Returns when there are more answers than ``than``; without it: than now."""
    than = await count_committed(bootstrap, topic) if than is None else than
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
