"""Figures of recovery and memory, printed: how long a fail-over takes and where, how fast states come back, what an idle
stream costs."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from aiokafka import AIOKafkaProducer
from members import FEATURES, PARTITIONS, Load, check_oracle, grown, members, step_member
from serving import Recorder, make_settings, running, wait_for

from streamer.engine.partition import Partition
from streamer.service.loop import Service
from streamer.service.wiring import Parts, build, load_models, prepare
from streamer.settings import Settings
from streamer.tools.bench import MODEL

pytestmark = [pytest.mark.chaos, pytest.mark.accept]


async def lstm_service(settings: Settings) -> tuple[Service, Recorder]:
    models = load_models(settings)
    parts = await prepare(settings, models)
    recorder = Recorder()
    return build(Parts(settings, models, parts.connection, parts.input), recorder, instance="survivor"), recorder


def report(name: str, **figures: float) -> None:
    print(json.dumps({"figures": name, **{key: round(value, 3) for key, value in figures.items()}}))


@pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once"])
async def test_where_the_time_of_a_fail_over_goes(
    kafka, topic_name, create_topics, tmp_path: Path, delivery: str
) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: PARTITIONS})
    load = Load(kafka, topic, 400)
    settings = make_settings(
        kafka, topic, f"{topic}.group", delivery={"mode": delivery, "checkpoint_interval_ms": 2_000},
        input={"min_time": "2000-01-01T00:00:00Z"},  # as the other member has it
        model={"chain": {"path": str(MODEL)}},
    )  # fmt: skip
    settings = settings.model_copy(update={"model": {"lstm": settings.model["chain"]}})
    with members() as group:
        async with load.flowing():
            group.append(step_member(kafka, topic, delivery, tmp_path, 0))
            await group[0].says('"live"')
            service, recorder = await lstm_service(settings)
            async with running(service):
                await wait_for(lambda: bool(recorder.recoveries), recorder, seconds=60)
                await grown(kafka, topic, load.sent)
                before = service._membership.ownership
                group[0].child.kill()
                killed = time.monotonic()
                async with asyncio.timeout(60):
                    while service._membership.ownership is before:  # noqa: ASYNC110 - looked at from outside, as fine as it gets
                        await asyncio.sleep(0.005)
                detected = time.monotonic()
                await wait_for(lambda: service.ready, recorder, seconds=60)
                report(f"fail-over, {delivery}, seconds", detection=detected - killed, **service.holding.recovery_s)
                await grown(kafka, topic, load.sent)
                sent_while_it_runs = load.sent
            group.append(step_member(kafka, topic, delivery, tmp_path, 1))
            await group[1].says('"live"')
        assert load.sent >= sent_while_it_runs
        await check_oracle(kafka, topic, load.sent, exactly=delivery == "exactly-once")


async def test_how_fast_states_come_back(kafka, topic_name, create_topics) -> None:
    topic, streams = topic_name("in"), 200_000
    await create_topics(kafka, {topic: PARTITIONS})
    settings = make_settings(
        kafka, topic, topic_name("group"), state={"max_bytes": 400_000_000}, input={"format": "float32"},
        delivery={"checkpoint_interval_ms": 1_000, "checkpoint_bytes_per_second": 200_000_000},
        model={"chain": {"path": str(MODEL)}},
    )  # fmt: skip
    producer = AIOKafkaProducer(bootstrap_servers=kafka, linger_ms=20)
    await producer.start()
    value = np.linspace(-1, 1, FEATURES, dtype="<f4").tobytes()
    for stream in range(streams):
        await producer.send(topic, value, key=b"stream-%08d" % stream, partition=stream % PARTITIONS)
    await producer.stop()
    service, recorder = await lstm_service(settings)
    async with running(service):
        await wait_for(lambda: recorder.committed_events >= streams, recorder, seconds=120)
        # a round that began after the last event has written every state
        await wait_for(
            lambda: all(each.checkpoint.replay_point.offset == each.position for each in parts(service)),
            recorder, seconds=120,
        )  # fmt: skip
    service, recorder = await lstm_service(settings)
    async with running(service):
        await wait_for(lambda: service.ready, recorder, seconds=120)
        assert service.processor.lanes.slots.used == streams
        seconds = service.holding.recovery_s["restore"]
    size = sum(lane.arena.bytes_per_stream for lane in service.processor.lanes.stepping)
    report(
        "restore", streams_per_second=streams / seconds, state_bytes_per_second=streams * size / seconds,
        seconds_per_million_streams=seconds / streams * 1e6,
    )  # fmt: skip


def parts(service: Service) -> list[Partition]:
    return list(service.processor.partitions.values())


MEMORY = """
import os, sys
import numpy as np
from streamer.core import EventBatch, RecordBatch
from streamer.modelfile.model import Model
from durable import begin, make_processor, settle

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

model = Model.load(sys.argv[1])
count, each = int(sys.argv[2]), 10_000
per_stream = model.state_bytes_per_stream
most = count * (per_stream + 200 + 15)
processor = make_processor([("lstm", model, None)], max_bytes=most, checkpoint_interval_ms=1 << 40)
begin(processor)
x = np.zeros((each, model.contract.features), np.float32)
def ingest(first):
    keys = [b"stream-%08d" % (first + index) for index in range(each)]
    offsets = np.arange(first, first + each)
    stamps = offsets.tolist()
    batch = EventBatch(
        partition=0, offsets=offsets, times_ms=offsets, timestamps_ms=stamps, keys=keys, x=x, ops=None,
        records=RecordBatch(0, stamps, stamps, keys, [b""] * each), next_offset=first + each, checksum=0,
    )
    settle(processor, batch)
    processor.committed(processor.seal(0), {})
ingest(0)
before = resident()
for first in range(each, count, each):
    ingest(first)
print((resident() - before) / (count - each) - per_stream)
"""


def test_what_an_idle_stream_costs_beside_its_state() -> None:
    path = os.pathsep.join([str(Path(__file__).parents[1] / "support"), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(MODEL), "1000000"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    overhead = float(done.stdout)
    report("memory at one million streams", bytes_per_stream_beyond_state=overhead)
    assert overhead <= 200
