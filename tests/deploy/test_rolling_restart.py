"""Two replicas as the manifests run them, static members with stable names, are restarted one after the other under load."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from observing import Process, eventually, get, process, serving

from streamer.tools.demo import MODEL

pytestmark = pytest.mark.slow

PARTITIONS, STREAMS, RATE = 4, 40, 200


@dataclass
class Reader:
    """What a consumer of the predictions sees, and when."""

    sources: Counter[tuple[int, bytes]] = field(default_factory=Counter)
    arrived: dict[bytes, list[float]] = field(default_factory=lambda: defaultdict(list))
    latencies_ms: list[float] = field(default_factory=list)

    async def read(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            for tp, records in (await consumer.getmany(timeout_ms=200)).items():
                now = time.time()
                for record in records:
                    self.sources[tp.partition, dict(record.headers)["streamer-source"]] += 1
                    self.arrived[record.key].append(now)
                    self.latencies_ms.append(now * 1000 - record.timestamp)

    def longest_gap_s(self) -> float:
        return max(float(np.diff(times).max()) for times in self.arrived.values() if len(times) > 1)


@contextlib.asynccontextmanager
async def reading(bootstrap: str, topic: str) -> AsyncIterator[Reader]:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, isolation_level="read_committed", auto_offset_reset="earliest"
    )
    await consumer.start()
    reader = Reader()
    consumer.assign([TopicPartition(topic, part) for part in range(PARTITIONS)])
    task = asyncio.create_task(reader.read(consumer))
    try:
        yield reader
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await consumer.stop()


def rebalances(service: Process) -> float:
    _, body = get(f"{service.url}/metrics")
    return next(float(line.split()[1]) for line in body.splitlines() if line.startswith("streamer_rebalances_total "))


def partitions(service: Process) -> set[str]:
    return set(json.loads(get(f"{service.url}/status")[1])["partitions"])


async def test_a_rolling_restart_moves_no_partition_and_loses_nothing(
    kafka: str, topic_name, create_topics, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: PARTITIONS, f"{topic}.out": PARTITIONS})
    settings = tmp_path / "settings.toml"
    settings.write_text(f"""
[kafka]
bootstrap = "{kafka}"
group = "{topic}.group"
static_membership = true
[input]
topic = "{topic}"
[output]
topic = "{topic}.out"
[delivery]
checkpoint_interval_ms = 1000
[model.anomaly]
path = "{MODEL}"
""")

    def replica(number: int, run: int) -> contextlib.AbstractContextManager[Process]:
        return serving(settings, tmp_path / f"streamer-{number}.{run}.log", f"kafka.instance=streamer-{number}")

    command = [
        sys.executable, "-m", "streamer.cli", "produce", "--bootstrap", kafka, "--topic", topic, "--json",
        "--rate", str(RATE), "--streams", str(STREAMS), "--duration-s", "30",
    ]  # fmt: skip

    def restart(stack: contextlib.ExitStack, replicas: list[Process], number: int) -> None:
        other, owned = replicas[1 - number], partitions(replicas[number])
        before = rebalances(other)
        assert replicas[number].stop() == 0
        replicas[number] = stack.enter_context(replica(number, 1))
        replicas[number].answers("/readyz")
        eventually("it has its partitions again", lambda: partitions(replicas[number]) == owned)
        assert rebalances(other) == before, "the other one was disturbed"

    with contextlib.ExitStack() as stack:
        replicas = [stack.enter_context(replica(number, 0)) for number in range(2)]

        def settle() -> None:
            for each in replicas:
                each.answers("/readyz")
            eventually("each has half", lambda: [len(partitions(each)) for each in replicas] == [2, 2])

        await asyncio.to_thread(settle)
        async with reading(kafka, f"{topic}.out") as reader:
            with process(command, tmp_path / "load.log") as load:
                while len(reader.sources) < 5 * RATE:  # noqa: ASYNC110 - the reader is told nothing else
                    await asyncio.sleep(0.05)
                calm_ms = np.percentile(reader.latencies_ms[-2 * RATE :], 99)
                for number in range(2):
                    await asyncio.to_thread(restart, stack, replicas, number)
                assert await asyncio.to_thread(load.child.wait, 90) == 0
                sent = json.loads(load.log.read_text().splitlines()[-1])["events"]
            async with asyncio.timeout(60):
                while len(reader.sources) < sent:  # noqa: ASYNC110 - the same
                    await asyncio.sleep(0.05)
        for each in replicas:
            assert each.stop() == 0
    report = {
        "events": sent,
        "p99_ms_before": round(float(calm_ms)),
        "p99_ms": round(float(np.percentile(reader.latencies_ms, 99))),
        "longest_gap_s": round(reader.longest_gap_s(), 2),
    }
    with capsys.disabled():
        print(f"\nrolling restart of two: {json.dumps(report)}")
    assert len(reader.sources) == sent
    assert max(reader.sources.values()) == 1
    assert reader.longest_gap_s() < 30
