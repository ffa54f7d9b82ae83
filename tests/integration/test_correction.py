"""Correction as a service on a real Kafka: a query per record in, what the model writes about it out, each exactly once also
when the service is killed meanwhile; what is no query is a dead letter that says why."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

pytest.importorskip("torch")
pytest.importorskip("onnx")

import queries
from members import Member, members
from queries import PARTITIONS, STREAMS
from serving import Row, produce, read_all

from export import recipes
from export.encdec.module import load_pair
from export.pairs.data import END, Alphabet, PairSplit
from export.pairs.learners import PairLearner, write_all
from streamer.records.changelog import Kind

pytestmark = pytest.mark.torch

COUNT, BY_TORCH = 160, 16


async def test_queries_are_answered_once_and_equal_through_kills(
    kafka: str, topic_name: Any, create_topics: Any, tmp_path: Path
) -> None:
    """One at a time and at length, so that some are open whenever it is killed."""
    topic, module = topic_name("in"), queries.corrector(restraint=9)
    path = queries.save(module, tmp_path / "pair.onnx", max_steps=200)
    await create_topics(kafka, {topic: PARTITIONS})
    texts = queries.queries(COUNT, seed=1)
    rows: list[Row] = []
    sent: dict[tuple[int, int], str] = {}
    broken: dict[tuple[int, int], str] = {}
    ends = [0] * PARTITIONS
    for number, text in enumerate(texts):
        stream = number % STREAMS
        partition = stream % PARTITIONS
        values = [(queries.asked(text), sent, text)]
        if number % 20 == 7:
            value, reason = queries.BROKEN[number // 20 % len(queries.BROKEN)]
            values.append((value, broken, reason))
        for value, into, what in values:
            rows.append((partition, b"s%d" % stream, value, []))
            into[partition, ends[partition]] = what
            ends[partition] += 1
    assert set(broken.values()) == {"undecodable", "missing_feature", "unknown_category", "too_large"}
    await produce(kafka, topic, rows)
    settings = ("decode.max_rows=1", "delivery.checkpoint_interval_ms=100")
    with members() as running:
        count = 0
        for kill in range(2):
            running.append(queries.member(kafka, topic, path, tmp_path, kill, *settings))
            count = len(await read_all(kafka, f"{topic}.out", at_least=count + 8, alive=running[-1].alive))
            running[-1].signal(signal.SIGKILL)
            running[-1].child.wait()
            assert count < COUNT, "killed too late to prove anything"
        kept = {read.key: read.value for read in await read_all(kafka, f"{topic}.group.{topic}.changelog")}
        was_open = [key for key, value in kept.items() if key and key[0] == Kind.DECODING and value is not None]
        assert was_open, "nothing was open when it was killed"
        running.append(queries.member(kafka, topic, path, tmp_path, 9, *settings))
        found = await read_all(kafka, f"{topic}.out", at_least=COUNT, alive=running[-1].alive)
        running[-1].signal(signal.SIGTERM)
        assert running[-1].child.wait(30) == 0
    queries.check_answers(found, sent, path)
    by_torch = queries.corrections(path, texts[:BY_TORCH], module)
    assert [each.symbols for each in by_torch] == [
        each.symbols for each in queries.corrections(path, texts[:BY_TORCH])
    ], "the file does not write what PyTorch writes"
    letters = await read_all(kafka, f"{topic}.dlq", at_least=len(broken))
    assert {read.source: read.headers["streamer-error"].decode() for read in letters} == broken
    assert all(read.headers["streamer-error-detail"] for read in letters)


@pytest.mark.accept
@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize(("rate", "seconds"), [(200, 30)])
async def test_two_hundred_queries_a_second(
    kafka: str, topic_name: Any, create_topics: Any, tmp_path: Path, rate: int, seconds: int
) -> None:
    """The recipe's own model and its own misspellings; prints how long an answer took, by when its query was due."""
    result = await asyncio.to_thread(recipes.run, "correction", tmp_path, quick=True)
    assert result["verification"]["passed"]
    split: PairSplit = recipes.get("correction").make(True)  # type: ignore[assignment]
    pairs = [pair for pair in split.test if pair.source][:500]
    learner = PairLearner(load_pair(tmp_path / "model.pt"))
    alphabet = Alphabet.of(split, first=END)
    wanted = write_all(learner, [alphabet.encode(pair.source) for pair in pairs])
    topic = topic_name("in")
    await create_topics(kafka, {topic: 4, f"{topic}.out": 4})
    values = [json.dumps({"x": split.text_of_source(pair)}).encode() for pair in pairs]
    settings = ("model.correction.window.kind=record", "input.format=json", "delivery.checkpoint_interval_ms=20")
    with members() as running:
        running.append(Member(kafka, topic, tmp_path, 0, f"model.correction.path={tmp_path / 'model.onnx'}", *settings))
        await running[0].says('"live"')
        asking = asyncio.create_task(ask(kafka, topic, values, rate, rate * seconds))
        try:
            arrived = await arrivals(kafka, f"{topic}.out", rate * seconds, running[0])
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
    assert len({source for source, _, _ in arrived}) == len(arrived) == rate * seconds
    for _, document, _ in arrived:
        number = int(document["stream"][1:])
        assert document["y"] == wanted[number], "the service writes what PyTorch does not"
    settled = np.array([latency for _, _, latency in arrived[rate * 2 :]])
    figures = {f"p{q}": round(float(np.percentile(settled, q)), 1) for q in (50, 95, 99)}
    steps = np.mean([len(document["y"]) + 1 for _, document, _ in arrived])
    print(f"corrections at {rate} queries/s: {figures} ms from due to read, {steps:.1f} decoder steps each")


async def ask(kafka: str, topic: str, values: Sequence[bytes], rate: int, count: int) -> None:
    """Open loop: a query is sent when it is due, whatever became of those before; its timestamp says when that was."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka, linger_ms=0)
    await producer.start()
    try:
        began = time.time() + 0.2
        for number in range(count):
            due = began + number / rate
            if (wait := due - time.time()) > 0:
                await asyncio.sleep(wait)
            which = number % len(values)
            await producer.send(
                topic, values[which], key=b"q%d" % which, partition=which % 4, timestamp_ms=int(due * 1000)
            )
        await producer.flush()
        await asyncio.Event().wait()  # the reader says when it is over
    finally:
        await producer.stop()


async def arrivals(kafka: str, topic: str, count: int, member: Member) -> list[tuple[bytes, Any, float]]:
    """(source, document, latency in ms) of each answer, as it is read."""
    options: dict[str, Any] = {"isolation_level": "read_committed", "auto_offset_reset": "earliest"}
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=kafka, fetch_max_wait_ms=5, **options)
    await consumer.start()
    found: list[tuple[bytes, Any, float]] = []
    try:
        async with asyncio.timeout(180):
            while len(found) < count:
                member.alive()
                batches = await consumer.getmany(timeout_ms=100)
                now_ms = time.time() * 1000
                for record in (record for batch in batches.values() for record in batch):
                    source = dict(record.headers)["streamer-source"]
                    found.append((source, json.loads(record.value), now_ms - record.timestamp))
    finally:
        await consumer.stop()
    return found
