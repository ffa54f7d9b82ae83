"""A recogniser that is killed while events flow: a reader of committed records sees every new symbol and every transcript
exactly once and in order, as of a run that nobody disturbed (``emitting.Reference`` over the log, with the model itself)."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx_models
import pytest
from bursts import PARTITIONS, Bursts, decoded, read_log
from emitting import Came, Reference
from members import FEATURES, Member, members
from serving import Read, read_all

from streamer.modelfile.model import Model
from streamer.settings import UtteranceSection

pytestmark = pytest.mark.chaos

LABELS = ("-", *"abcdef")
RULE = UtteranceSection(gap_ms=400, max_span_ms=3_000, max_symbols=12)
IDLE_MS = 60_000
"""Longer than the load ever pauses: the reference knows the log, not when it was silent."""


def save(folder: Path) -> Path:
    model = onnx_models.recogniser(FEATURES, len(LABELS))
    return onnx_models.save(model, folder / "recogniser.onnx", onnx_models.recogniser_fields(FEATURES, LABELS))


def member(bootstrap: str, topic: str, folder: Path, number: int, model: Path) -> Member:
    utterance = [f"model.r.utterance.{name}={getattr(RULE, name)}" for name in ("gap_ms", "max_span_ms", "max_symbols")]
    return Member(
        bootstrap, topic, folder, number, f"delivery.idle_ms={IDLE_MS}", "input.min_time=1970-01-01T00:00:00Z",
        f"model.r.path={model}", *utterance,
    )  # fmt: skip


def expected(model: Model, rows: list[tuple[int, str, int, Any]]) -> list[Came]:
    def step(states: Any, x: Any) -> tuple[Any, int, Any]:
        [p], nexts = model.run(np.array([[x]], np.float32), np.ones(1, np.int32), states)
        label = int(p[0, 0].argmax())
        return nexts, label, p[0, 0, label]

    reference = Reference(RULE, step, initial=model.initial_states(1), refused=())
    for offset, stream, time_ms, what in rows:
        reference.record(offset, stream, time_ms, what)
    return reference.came


def told(read: Read) -> Came:
    document = read.document
    utterance = document["utterance"]
    labels = tuple(LABELS.index(letter) for letter in document["text"])
    came = Came(document["stream"], labels, read.source[1], document["ts"], utterance["start"], utterance["offsets"][0])
    if not document["final"]:
        return came
    score = document["score"]
    return came._replace(reason=utterance["reason"], part=utterance["part"], steps=utterance["count"], score=score)


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.accept)])
async def test_transcripts_of_a_killed_service_are_those_of_an_undisturbed_one(
    kafka, topic_name, create_topics, tmp_path: Path, kills: int
) -> None:
    topic, rng, path = topic_name("in"), random.Random(kills), save(tmp_path)
    await create_topics(kafka, {topic: PARTITIONS})
    with members() as group:
        async with Bursts(kafka, topic, 200).flowing():
            for number in range(kills + 1):
                group.append(member(kafka, topic, tmp_path, number, path))
                await group[-1].says('"live"')
                if number < kills:
                    await asyncio.sleep(rng.uniform(0.0, 1.5))  # when it dies is the point of the test
                    group[-1].signal(signal.SIGKILL)
                    group[-1].child.wait()
        model = Model.load(path)
        log = {partition: decoded(records) for partition, records in (await read_log(kafka, topic)).items()}
        wanted = {partition: expected(model, rows) for partition, rows in log.items()}
        reads = await read_all(kafka, f"{topic}.out", at_least=sum(map(len, wanted.values())), alive=group[-1].alive)
    reasons = {came.reason for each in wanted.values() for came in each}
    assert reasons == {"", "time", "end", "full", "span"}, "the load did not reach everything"
    found: dict[tuple[int, str], list[Came]] = defaultdict(list)
    for read in sorted(reads, key=lambda read: (read.partition, read.offset)):
        found[read.partition, read.key.decode()].append(told(read))  # type: ignore[union-attr]
    right: dict[tuple[int, str], list[Came]] = defaultdict(list)
    for partition, each in wanted.items():
        for came in each:
            right[partition, came.stream].append(came._replace(score=float(f"{came.score:.9g}")))
    assert found == right
