"""The broker goes away under load and comes back: nothing is lost, nothing is counted twice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from local_kafka import LocalKafka
from members import PARTITIONS, check_answers, members, rows, step_member
from serving import produce, read_all
from tooling import require_tool

pytestmark = pytest.mark.chaos


@pytest.mark.parametrize(
    "outage_s",
    [
        pytest.param(5, id="short"),
        pytest.param(20, marks=pytest.mark.accept),
        pytest.param(60, marks=pytest.mark.accept),
    ],
)
async def test_an_outage_of_the_broker_loses_nothing(create_topics, tmp_path: Path, outage_s: int) -> None:
    require_tool("java", "mvn")
    with LocalKafka() as local, members() as group:
        await create_topics(local.bootstrap, {"in": PARTITIONS})
        group.append(step_member(local.bootstrap, "in", "exactly-once", tmp_path, 0))
        await produce(local.bootstrap, "in", rows(0, 400))
        await read_all(local.bootstrap, "in.out", at_least=400, alive=group[0].alive)
        # records that are taken in while the broker goes: whatever was in flight is done again
        await produce(local.bootstrap, "in", rows(400, 4_000))
        await asyncio.to_thread(local.stop_node, 1)
        await asyncio.sleep(outage_s)  # its length is the point of the test
        await asyncio.to_thread(local.start_node, 1)
        await produce(local.bootstrap, "in", rows(4_400, 400))
        found = await read_all(local.bootstrap, "in.out", at_least=4_800, alive=group[0].alive)
        group[0].child.terminate()
        assert await asyncio.to_thread(group[0].child.wait, 60) == 0
    check_answers(found, 4_800, exactly=True)
