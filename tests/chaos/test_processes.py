"""Processes that die, freeze and come back while events flow. The oracle: a reader of committed records sees exactly one
prediction per event, in order per stream, bit-equal to the run of each stream alone."""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path

import pytest
from members import PARTITIONS, Load, check_oracle, count_committed, grown, members, step_member

pytestmark = pytest.mark.chaos

DELIVERIES = pytest.mark.parametrize(
    "delivery", ["exactly-once", pytest.param("at-least-once", marks=pytest.mark.accept)]
)


@DELIVERIES
async def test_a_frozen_member_is_fenced_when_it_wakes(
    kafka, topic_name, create_topics, tmp_path: Path, delivery: str
) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: PARTITIONS})
    load = Load(kafka, topic, 400)
    with members() as group:
        async with load.flowing():
            group.append(step_member(kafka, topic, delivery, tmp_path, 0))
            await group[0].says('"live"')
            group.append(step_member(kafka, topic, delivery, tmp_path, 1))
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
                group.append(step_member(kafka, topic, delivery, tmp_path, number))
                await group[-1].says('"live"')
                await asyncio.sleep(rng.uniform(0.0, 0.6))  # when it dies is the point of the test
                group[-1].signal(signal.SIGKILL)
                group[-1].child.wait()
            group.append(step_member(kafka, topic, delivery, tmp_path, kills))
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
            group.append(step_member(kafka, topic, "exactly-once", tmp_path, 0))
            await group[0].says('"live"')
            for number in range(1, rounds + 1):
                group.append(step_member(kafka, topic, "exactly-once", tmp_path, number))
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
                group.append(step_member(kafka, topic, delivery, tmp_path, number))
                await group[-1].says('"live"')
            for number in range(2):
                group[number].signal(signal.SIGTERM)
                assert await asyncio.to_thread(group[number].child.wait, 60) == 0
                group.append(step_member(kafka, topic, delivery, tmp_path, 2 + number))
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
                group.append(step_member(kafka, topic, delivery, tmp_path, number))
                await group[number].says('"live"')
                await grown(kafka, topic, await count_committed(kafka, topic))
                group[number].signal(signal.SIGTERM)
                assert await asyncio.to_thread(group[number].child.wait, 60) == 0
            group.append(step_member(kafka, topic, delivery, tmp_path, 3))
            await group[3].says('"live"')
        await check_oracle(kafka, topic, load.sent, exactly=True)
