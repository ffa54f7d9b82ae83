"""Three brokers, of which one that matters stops hard: the group's coordinator, the transactions' coordinator, a leader."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.coordination import FindCoordinatorRequest
from local_kafka import LocalKafka
from members import PARTITIONS, Load, check_oracle, grown, members, step_member

pytestmark = [pytest.mark.chaos, pytest.mark.accept]


async def coordinator(bootstrap: str, key: str, kind: int) -> int:
    """Node id of the group's (kind 0) or the transactional id's (kind 1) coordinator."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        client = admin._client
        while True:
            answer = await client.send(client.get_random_node(), FindCoordinatorRequest(key, kind))  # all run here
            if answer.error_code == 0:
                return int(answer.coordinator_id)
            await asyncio.sleep(0.1)
    finally:
        await admin.close()


async def leader(bootstrap: str, topic: str, partition: int) -> int:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        (described,) = await admin.describe_topics([topic])
        return next(int(part["leader"]) for part in described["partitions"] if part["partition"] == partition)
    finally:
        await admin.close()


async def whole(bootstrap: str) -> None:
    """Returns when every partition has all its replicas in sync: the broker that an earlier test stopped is back in each."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        async with asyncio.timeout(120):
            while True:
                topics = await admin.describe_topics(await admin.list_topics())
                parts = [part for topic in topics for part in topic["partitions"]]
                if all(len(part["isr"]) == len(part["replicas"]) for part in parts):
                    return
                await asyncio.sleep(0.2)
    finally:
        await admin.close()


@pytest.mark.parametrize("what", ["group coordinator", "transaction coordinator", "leader of a changelog partition"])
@pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once"])
async def test_a_broker_that_matters_stops_hard(
    kafka_cluster: LocalKafka, topic_name, create_topics, tmp_path: Path, what: str, delivery: str
) -> None:
    topic = topic_name("in")
    bootstrap = kafka_cluster.bootstrap
    await create_topics(bootstrap, {topic: PARTITIONS}, {"min.insync.replicas": "2"})
    await whole(bootstrap)
    load = Load(bootstrap, topic, 200)
    with members() as group:
        async with load.flowing():
            group.append(step_member(bootstrap, topic, delivery, tmp_path, 0))
            await group[0].says('"live"')
            await grown(bootstrap, topic, load.sent)
            if what == "group coordinator":
                node = await coordinator(bootstrap, f"{topic}.group", 0)
            elif what == "transaction coordinator":
                node = await coordinator(
                    bootstrap, await transactional_id(bootstrap, f"{topic}.group.{topic}.changelog"), 1
                )
            else:
                node = await leader(bootstrap, f"{topic}.group.{topic}.changelog", 0)
            await asyncio.to_thread(kafka_cluster.kill_node, node)
            await grown(bootstrap, topic, load.sent)
            await asyncio.to_thread(kafka_cluster.start_node, node)
            await grown(bootstrap, topic, load.sent)
            assert group[0].child.poll() is None, group[0].log.read_text()[-3000:]
        await check_oracle(bootstrap, topic, load.sent, exactly=delivery == "exactly-once")


async def transactional_id(bootstrap: str, changelog: str) -> str:
    """As the newest transaction in the changelog names it."""
    consumer = AIOKafkaConsumer(changelog, bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        async with asyncio.timeout(30):
            async for record in consumer:
                named = dict(record.headers).get("streamer-txn")
                if named:
                    return str(named.decode())
    finally:
        await consumer.stop()
    raise AssertionError("unreachable")
