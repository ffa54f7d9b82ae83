"""The simulated cluster answers as Apache Kafka does, scenario by scenario."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from tests.simulation.broker import Cluster
from tests.simulation.conformance import scenarios_groups as _groups
from tests.simulation.conformance.scenarios import SCENARIOS, SLOW, Told
from tests.simulation.conformance.talk import Talk
from tests.simulation.loop import simulated
from tests.simulation.network import Network

assert _groups, "importing it enters its scenarios"


async def tell(name: str, bootstrap: str, unique: str) -> Told:
    async with Talk(bootstrap, unique) as talk:
        return await SCENARIOS[name](talk)


def tell_simulated(name: str, seed: int) -> Told:
    with simulated(seed, max_turns=300_000) as loop:
        cluster = Cluster(loop, Network(loop), 1)
        if name == "compaction":
            clean_often(cluster)
        return loop.run_until_complete(loop.spawn("talk", tell(name, cluster.bootstrap, "simulated")))


def clean_often(cluster: Cluster) -> None:
    def clean() -> None:
        for topic in cluster.topics.values():
            for log in topic.logs:
                log.roll()
                log.compact(cluster.now_ms())
        cluster.loop.after(2.0, clean)

    cluster.loop.after(2.0, clean)


def plain(told: Any) -> Any:
    """Lists and tuples alike."""
    if isinstance(told, list | tuple):
        return [plain(each) for each in told]
    return {key: plain(value) for key, value in told.items()} if isinstance(told, dict) else told


@pytest.mark.parametrize("name", sorted(set(SCENARIOS) - SLOW))
def test_both_answer_alike(name: str, kafka: str) -> None:
    real = asyncio.run(asyncio.wait_for(tell(name, kafka, uuid.uuid4().hex[:8]), 60))
    assert plain(tell_simulated(name, 1)) == plain(real)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SLOW))
def test_both_answer_alike_after_a_while(name: str, kafka: str) -> None:
    real = asyncio.run(asyncio.wait_for(tell(name, kafka, uuid.uuid4().hex[:8]), 200))
    assert plain(tell_simulated(name, 1)) == plain(real)


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_the_order_of_things_does_not_change_the_answers(name: str) -> None:
    told = plain(tell_simulated(name, 1))
    assert told == plain(tell_simulated(name, 2)) == plain(tell_simulated(name, 3))
