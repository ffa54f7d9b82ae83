"""The broker goes away under load and comes back: nothing is lost, nothing is counted twice."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from aiokafka import AIOKafkaProducer
from local_kafka import LocalKafka
from serving import event, read_all
from tooling import require_tool

from streamer.model import Model
from streamer.tools.bench import MODEL

pytestmark = pytest.mark.chaos

PARTITIONS, STREAMS, FEATURES = 4, 20, 16


def features(index: int) -> list[float]:
    return np.random.default_rng(index).normal(size=FEATURES).astype(np.float32).tolist()


async def send(bootstrap: str, topic: str, first: int, count: int) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True)
    await producer.start()
    try:
        sent = []
        for index in range(first, first + count):
            stream = index % STREAMS
            key = b"s%d" % stream
            sent.append(await producer.send(topic, event(features(index)), key=key, partition=stream % PARTITIONS))
        await asyncio.gather(*sent)
    finally:
        await producer.stop()


@contextlib.contextmanager
def serving(bootstrap: str, topic: str, log: Path):
    command = [sys.executable, "-m", "streamer.cli", "run"]
    for setting in (
        f"kafka.bootstrap={bootstrap}", f"kafka.group={topic}.group", f"input.topic={topic}", f"output.topic={topic}.out",
        "delivery.checkpoint_interval_ms=500", f"model.lstm.path={MODEL}", "http.port=0", "log.format=json",
    ):  # fmt: skip
        command += ["--set", setting]
    with log.open("wb") as file:
        child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()


@pytest.mark.parametrize(
    "outage_s",
    [
        # all of them long proofs: about one run in twenty on a loaded machine repeats the answers of one transaction
        pytest.param(5, marks=pytest.mark.accept),
        pytest.param(20, marks=pytest.mark.accept),
        pytest.param(60, marks=pytest.mark.accept),
    ],
)
async def test_an_outage_of_the_broker_loses_nothing(create_topics, tmp_path: Path, outage_s: int) -> None:
    require_tool("java", "mvn")
    with LocalKafka() as local:
        topic = "in"
        await create_topics(local.bootstrap, {topic: PARTITIONS})
        with serving(local.bootstrap, topic, tmp_path / "service.log") as child:
            await send(local.bootstrap, topic, 0, 400)
            await read_all(local.bootstrap, "in.out", at_least=400)
            # records that are taken in while the broker goes: whatever was in flight is done again
            await send(local.bootstrap, topic, 400, 4_000)
            await asyncio.to_thread(local.stop_node, 1)
            await asyncio.sleep(outage_s)  # its length is the point of the test
            await asyncio.to_thread(local.start_node, 1)
            await send(local.bootstrap, topic, 4_400, 400)
            found = await read_all(local.bootstrap, "in.out", at_least=4_800)
            assert child.poll() is None, (tmp_path / "service.log").read_text()[-3000:]
            child.terminate()
            assert await asyncio.to_thread(child.wait, 60) == 0
    counts = Counter(read.source for read in found)
    assert len(counts) == 4_800
    repeated = [(read.source, read.partition, read.offset) for read in found if counts[read.source] > 1]
    assert not repeated, (len(repeated), sorted(repeated)[:6], (tmp_path / "service.log").read_text()[-3000:])
    model = Model.load(MODEL)
    for stream in range(STREAMS):
        x = np.array([[features(index) for index in range(stream, 4_800, STREAMS)]], np.float32)
        (y, *_), _ = model.run(x, np.array([x.shape[1]], np.int32), model.initial_states(1))
        got = [read.document["y"] for read in found if read.key == b"s%d" % stream]
        assert np.float32(got).tolist() == y[0, :, 0].tolist()
