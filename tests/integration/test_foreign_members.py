"""Members of another kind in our group, real ones of librdkafka: found when they or we join, and told with a remedy."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator

import pytest
from serving import make_service, make_settings, running, wait_for

from streamer.errors import ConfigurationError
from streamer.tools.broker import require_confluent_kafka


@contextlib.asynccontextmanager
async def foreign_member(kafka: str, group: str, topic: str, protocol: str) -> AsyncIterator[None]:
    """From when it owns partitions, or has been refused them."""
    require_confluent_kafka()
    from confluent_kafka import Consumer

    settled, stop = threading.Event(), threading.Event()

    def consume() -> None:
        consumer = Consumer({"bootstrap.servers": kafka, "group.id": group, "group.protocol": protocol})
        consumer.subscribe([topic])
        while not stop.is_set():
            message = consumer.poll(0.05)
            if consumer.assignment() or (message is not None and message.error()):
                settled.set()
        consumer.close()

    consuming = asyncio.create_task(asyncio.to_thread(consume))
    try:
        assert await asyncio.to_thread(settled.wait, 60)
        yield
    finally:
        stop.set()
        await consuming


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
async def test_a_group_that_others_share_out_is_not_joined(kafka, topic_name, create_topics, protocol: str) -> None:
    topic, group = topic_name("in"), topic_name("group")
    await create_topics(kafka, {topic: 2})
    async with foreign_member(kafka, group, topic, protocol), asyncio.timeout(60):
        service, _ = await make_service(make_settings(kafka, topic, group))
        with pytest.raises(ConfigurationError, match=r"members of another kind.*kafka\.group of its own"):
            await service.run()


async def test_a_member_of_the_new_protocol_that_joins_us_is_noticed(kafka, topic_name, create_topics) -> None:
    """The broker converts the group, and shares out our partitions from then on."""
    topic, group = topic_name("in"), topic_name("group")
    await create_topics(kafka, {topic: 2})
    service, recorder = await make_service(make_settings(kafka, topic, group))

    async def while_it_runs() -> None:
        async with running(service) as task:
            await wait_for(lambda: bool(recorder.recoveries), recorder)
            async with foreign_member(kafka, group, topic, "consumer"):
                await asyncio.wait_for(asyncio.shield(task), 60)

    with pytest.raises(ConfigurationError, match="members of another kind"):
        await while_it_runs()


async def test_a_classic_member_of_another_kind_does_not_disturb_us(kafka, topic_name, create_topics) -> None:
    """The broker refuses it, since no assignor is common."""
    topic, group = topic_name("in"), topic_name("group")
    await create_topics(kafka, {topic: 2})
    service, recorder = await make_service(make_settings(kafka, topic, group))
    async with running(service):
        await wait_for(lambda: bool(recorder.recoveries), recorder)
        async with foreign_member(kafka, group, topic, "classic"):
            service._group.check()
            assert service.owned() == {0, 1}
    assert recorder.errors == []
