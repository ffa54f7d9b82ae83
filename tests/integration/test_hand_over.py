"""Hand-overs that take longer than they may: an epoch has two ends, committed or failed, and nothing is kept of one that
failed. Whatever the model costs, the group does not wait for long."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import pytest
from chain import PARTITIONS, check, rows
from serving import make_service, make_settings, produce, read_all, running, wait_for
from simulated import ChainModel


class SlowModel(ChainModel):
    """One row per call, and each takes its time."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def run(self, x: Any, lengths: Any, states: Any) -> Any:
        time.sleep(self.seconds)
        return super().run(x, lengths, states)


@pytest.mark.parametrize("drain_timeout_ms", [500, 20_000])
async def test_a_run_that_outlasts_the_hand_over_loses_nothing(
    kafka, topic_name, create_topics, drain_timeout_ms: int
) -> None:
    """The backlog is worked off at 8 ms per call of one row while a second member joins, and leaves again."""
    topic, count = topic_name("in"), 1_200
    await create_topics(kafka, {topic: PARTITIONS})
    await produce(kafka, topic, rows(0, count))
    settings = make_settings(
        kafka, topic, topic_name("group"), batch={"max_rows": 1, "max_steps": 1},
        delivery={"drain_timeout_ms": drain_timeout_ms},
    )  # fmt: skip
    first, one = await make_service(settings, SlowModel(0.008), instance="one")
    second, two = await make_service(settings, SlowModel(0.008), instance="two")
    async with running(first):
        await wait_for(lambda: one.committed_events > 0, one, seconds=60)
        async with running(second):
            await wait_for(lambda: bool(two.recoveries), two, seconds=60)
            await wait_for(lambda: two.committed_events > 0, two, seconds=60)
        await _committed(lambda: one.committed_events + two.committed_events, count)
    found = await read_all(kafka, f"{topic}.out", at_least=count)
    assert max(Counter(read.source for read in found).values()) == 1
    check(found, count)


async def _committed(count: Any, at_least: int) -> None:
    async with asyncio.timeout(120):
        while count() < at_least:  # noqa: ASYNC110 - two recorders, either may have failed and gone on
            await asyncio.sleep(0.05)


async def test_a_commit_that_fails_while_a_slice_is_written_gives_its_partitions_up(
    kafka, topic_name, create_topics, monkeypatch
) -> None:
    """What was sealed counts as written in memory only: kept, the stream records would be missing for ever."""
    topic, count = topic_name("in"), 400
    await create_topics(kafka, {topic: PARTITIONS})
    settings = make_settings(kafka, topic, topic_name("group"), delivery={"checkpoint_interval_ms": 20})
    service, recorder = await make_service(settings)
    real, failing = service._committer.commit, iter([False, True, False, True, True])

    async def commit(transaction: Any, ownership: Any) -> dict[int, int]:
        if next(failing, False):
            raise TimeoutError
        return await real(transaction, ownership)

    async def refused(transaction: Any, ownership: Any) -> dict[int, int]:
        try:
            return await commit(transaction, ownership)
        except TimeoutError as error:
            raise service._committer._connection.explain(error, "commit") from error

    monkeypatch.setattr(service._committer, "commit", refused)
    async with running(service):
        for part in range(8):
            await produce(kafka, topic, rows(part * 50, 50))
            await _committed(lambda: recorder.committed_events, (part + 1) * 50)
        assert recorder.outcomes.count("failed") == 3
    again, recorder = await make_service(settings, instance="b")
    async with running(again):
        await produce(kafka, topic, rows(count, 50))
        await wait_for(lambda: recorder.committed_events >= 50, recorder)
    check(await read_all(kafka, f"{topic}.out", at_least=count + 50), count + 50)
