"""Window services that die, freeze and come and go while events flow, alone and with a step model beside.

The oracle: a reader of committed records sees each window exactly once, with the contents, bounds and reason that the
log's order gives it by definition (``windowing.Reference``), and the answer of the model run on that window alone; of the
step model exactly one answer per event, equal to its stream run alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from broken import MAX_RECORD_BYTES
from bursts import BROKEN, PARTITIONS, Bursts, decoded, read_log
from members import Load, Member, features, grown, members
from serving import Read, event, produce, read_all
from windowing import Reference

from streamer.core import Op
from streamer.modelfile.model import Model
from streamer.tools.bench import MODEL as STEP_MODEL
from streamer.tools.bench import windows as bench
from streamer.windows import WindowRule

pytestmark = pytest.mark.chaos

IDLE_MS = 60_000
"""Longer than the load ever pauses: the reference knows the log, not when it was silent."""
RULES = {
    "session": WindowRule("session", gap_ms=400, max_events=30, disorder_ms=50),
    "hopping": WindowRule("hopping", size_ms=1_000, hop_ms=500, disorder_ms=50),
    "end": WindowRule("end", max_events=40),
}
SETTINGS = ("size_ms", "hop_ms", "gap_ms", "max_events", "disorder_ms")


def window_member(
    bootstrap: str, topic: str, kind: str, folder: Path, number: int, *, both: bool, further: Sequence[str] = ()
) -> Member:
    rule = RULES[kind]
    return Member(
        bootstrap, topic, folder, number, "input.late=dead-letter", f"delivery.idle_ms={IDLE_MS}",
        "input.min_time=1970-01-01T00:00:00Z",  # times of the load begin at 0
        f"model.final.path={bench.MODEL}", f"model.final.window.kind={kind}",
        *(f"model.final.window.{name}={getattr(rule, name)}" for name in SETTINGS),
        *([f"model.early.path={STEP_MODEL}"] if both else []), *further,
    )  # fmt: skip


# the oracle


async def check_oracle(
    bootstrap: str, topic: str, kind: str, broken: Mapping[tuple[int, int], str], *, both: bool
) -> None:
    log = {partition: decoded(records, broken) for partition, records in (await read_log(bootstrap, topic)).items()}
    expected: dict[tuple[Any, ...], list[int]] = {}
    late: list[tuple[int, int]] = []
    for partition, rows in log.items():
        reference = Reference(RULES[kind])
        for row in rows:
            step = reference.record(*row)
            late += [(partition, row[0])] if step.late else []
            for closed in step.closed:
                name = (partition, closed.stream, closed.start, closed.end, closed.reason, closed.part)
                expected[name] = [offset for _, offset in closed.events]
    events = [(partition, row) for partition, rows in log.items() for row in rows if not isinstance(row[3], Op)]
    due = len(expected) + (len(events) if both else 0)
    assert len(expected) > 20, "the load closed too little to prove anything"
    found = await read_all(bootstrap, f"{topic}.out", at_least=due)
    check_windows([read for read in found if "window" in read.document], expected, log)
    steps = [read for read in found if "window" not in read.document]
    if both:
        check_steps(steps, log)
    else:
        assert not steps
    dead = {**dict.fromkeys(late, "late"), **broken}
    rejects = await read_all(bootstrap, f"{topic}.dlq", at_least=len(dead))
    told = [(read.source, read.headers["streamer-error"].decode()) for read in rejects]
    assert sorted(told) == sorted(dead.items()), "a reject is told once, with its reason"


def check_windows(found: Sequence[Read], expected: dict[tuple[Any, ...], list[int]], log: dict[int, Any]) -> None:
    names = Counter(
        (read.partition, read.document["stream"], *(read.document["window"][n] for n in ("start", "end", "reason", "part")))
        for read in found
    )  # fmt: skip
    assert [name for name, count in names.items() if count > 1] == [], "windows are predicted twice"
    assert set(names) == set(expected), "other windows than by definition"
    model = Model.load(bench.MODEL)
    x_of = {(partition, row[0]): row[3] for partition, rows in log.items() for row in rows}
    for read in found:
        window = read.document["window"]
        offsets = expected[
            read.partition, read.document["stream"], *(window[n] for n in ("start", "end", "reason", "part"))
        ]
        assert window["count"] == len(offsets)
        x = np.array([[x_of[read.partition, offset] for offset in offsets]], np.float32)
        (y, *_), _ = model.run(x, np.array([len(offsets)], np.int32), model.initial_states(1))
        assert np.float32(read.document["y"]) == y[0, 0], "the window was answered from other contents"


def check_steps(found: Sequence[Read], log: dict[int, Any]) -> None:
    """One answer per event, from the state since the stream's last end mark."""
    sequences: dict[tuple[int, str, int], list[Any]] = {}
    marks: Counter[tuple[int, str]] = Counter()
    for partition, rows in log.items():
        for row in rows:
            stream = (partition, row[1])
            if isinstance(row[3], Op):
                marks[stream] += 1
            else:
                sequences.setdefault((*stream, marks[stream]), []).append(row)
    counts = Counter(read.source for read in found)
    assert set(counts) == {(partition, row[0]) for (partition, *_), rows in sequences.items() for row in rows}
    assert set(counts.values()) == {1}, "an event was answered twice"
    answers = {read.source: np.float32(read.document["y"]) for read in found}
    model = Model.load(STEP_MODEL)
    for (partition, _, _), rows in sequences.items():
        x = np.array([[row[3] for row in rows]], np.float32)
        outputs = model.run(x, np.array([len(rows)], np.int32), model.initial_states(1))[0]
        assert [answers[partition, row[0]] for row in rows] == outputs[0][0, :, 0].tolist()


@contextlib.asynccontextmanager
async def scene(
    bootstrap: str,
    topic_name: Any,
    create_topics: Any,
    kind: str,
    *,
    both: bool,
    per_second: int = 200,
    broken_every: int = 0,
) -> AsyncIterator[tuple[str, list[Member], Load]]:
    """A topic, no member yet, and events that flow until the block ends; then the oracle speaks."""
    topic = topic_name("in")
    await create_topics(bootstrap, {topic: PARTITIONS})
    load = Bursts(bootstrap, topic, per_second, broken_every)
    with members() as group:
        async with load.flowing():
            yield topic, group, load
        await check_oracle(bootstrap, topic, kind, load.broken, both=both)


@pytest.mark.parametrize(
    ("kind", "both", "kills"),
    [
        ("session", True, 3),
        ("hopping", False, 3),
        pytest.param("end", True, 3, marks=pytest.mark.accept),
        pytest.param("session", False, 30, marks=pytest.mark.accept),
        pytest.param("hopping", True, 30, marks=pytest.mark.accept),
        pytest.param("end", True, 30, marks=pytest.mark.accept),
    ],
)
async def test_kills_at_random_times(
    kafka, topic_name, create_topics, tmp_path: Path, kind: str, both: bool, kills: int
) -> None:
    rng = random.Random(kills)
    async with scene(kafka, topic_name, create_topics, kind, both=both) as (topic, group, _):
        for number in range(kills + 1):
            group.append(window_member(kafka, topic, kind, tmp_path, number, both=both))
            await group[-1].says('"live"')
            if number < kills:
                await asyncio.sleep(rng.uniform(0.0, 1.5))  # when it dies is the point of the test
                group[-1].signal(signal.SIGKILL)
                group[-1].child.wait()


@pytest.mark.parametrize(("kills", "every"), [(3, 20), pytest.param(20, 200, marks=pytest.mark.accept)])
async def test_records_broken_in_every_way_are_told_once_and_harm_nobody(
    kafka, topic_name, create_topics, tmp_path: Path, kills: int, every: int
) -> None:
    """Two models, and processes that are killed meanwhile, until every kind of broken record was there."""
    rng = random.Random(every)
    assert len(set(BROKEN)) >= 25
    further = (f"input.max_record_bytes={MAX_RECORD_BYTES}",)
    async with scene(kafka, topic_name, create_topics, "session", both=True, per_second=400, broken_every=every) as (
        topic,
        group,
        load,
    ):
        for number in range(kills + 1):
            group.append(window_member(kafka, topic, "session", tmp_path, number, both=True, further=further))
            await group[-1].says('"live"')
            if number < kills:
                await asyncio.sleep(rng.uniform(0.0, 1.5))  # when it dies is the point of the test
                group[-1].signal(signal.SIGKILL)
                group[-1].child.wait()
        async with asyncio.timeout(300):
            while len(load.broken) < len(BROKEN):  # noqa: ASYNC110 - the load goes at its own pace
                await asyncio.sleep(0.1)


@pytest.mark.parametrize(("kind", "both"), [("end", True), pytest.param("session", False, marks=pytest.mark.accept)])
async def test_a_frozen_member_is_fenced_when_it_wakes(
    kafka, topic_name, create_topics, tmp_path: Path, kind: str, both: bool
) -> None:
    async with scene(kafka, topic_name, create_topics, kind, both=both) as (topic, group, _):
        for number in range(2):
            group.append(window_member(kafka, topic, kind, tmp_path, number, both=both))
            await group[number].says('"live"')
        await grown(kafka, topic)
        group[0].signal(signal.SIGSTOP)
        # the other owns everything once it reports a recovery of the frozen member's partitions
        await group[1].says('"live"', group[1].log.read_text().count('"live"') + 1)
        await grown(kafka, topic)
        group[0].signal(signal.SIGCONT)
        await grown(kafka, topic)


@pytest.mark.parametrize("rounds", [2, pytest.param(15, marks=pytest.mark.accept)])
async def test_members_come_and_go(kafka, topic_name, create_topics, tmp_path: Path, rounds: int) -> None:
    async with scene(kafka, topic_name, create_topics, "session", both=True) as (topic, group, _):
        group.append(window_member(kafka, topic, "session", tmp_path, 0, both=True))
        await group[0].says('"live"')
        for number in range(1, rounds + 1):
            group.append(window_member(kafka, topic, "session", tmp_path, number, both=True))
            await asyncio.sleep(2)  # the storm's rhythm: it may leave before, while or after it restores
            group[-1].signal(signal.SIGTERM)
            assert await asyncio.to_thread(group[-1].child.wait, 60) in (0, -signal.SIGTERM)
        assert group[0].child.poll() is None


async def test_what_came_while_the_process_stood_still_is_in_its_window(
    kafka, topic_name, create_topics, tmp_path: Path
) -> None:
    """Frozen for longer than its window is, but not for so long that the group goes on without it."""
    topic = topic_name("in")
    await create_topics(kafka, {topic: PARTITIONS})
    with members() as group:
        further = ("kafka.session_timeout_ms=45000", "delivery.idle_ms=500", "model.final.window.size_ms=3000")
        group.append(window_member(kafka, topic, "hopping", tmp_path, 0, both=False, further=further))
        await group[0].says('"live"')
        await send(kafka, topic, range(5))
        async with asyncio.timeout(60):
            while await position(kafka, topic) < 5:  # noqa: ASYNC110 - another process commits
                await asyncio.sleep(0.1)
        group[0].signal(signal.SIGSTOP)
        await send(kafka, topic, range(5, 10))
        await asyncio.sleep(5)  # longer than the window: only then would it close early
        group[0].signal(signal.SIGCONT)
        found = await read_all(kafka, f"{topic}.out", at_least=6)
    assert {read.document["window"]["count"] for read in found} == {10}
    assert not await read_all(kafka, f"{topic}.dlq")


async def send(bootstrap: str, topic: str, indexes: Sequence[int]) -> None:
    rows = [(0, b"s", event(features(index), ts=10_000 + index), []) for index in indexes]
    await produce(bootstrap, topic, rows)


async def position(bootstrap: str, topic: str) -> int:
    """What the service committed of partition 0."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=f"{topic}.group", enable_auto_commit=False)
    await consumer.start()
    try:
        return await consumer.committed(TopicPartition(topic, 0)) or 0
    finally:
        await consumer.stop()
