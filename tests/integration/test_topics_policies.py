"""Topics as people have them: old times, compacted inputs, small limits, clocks that are wrong. On a real broker."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import pytest
from administration import administrator
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import UnknownTopicOrPartitionError
from serving import event, make_service, make_settings, produce, running, wait_for
from simulated import ChainModel

from streamer.errors import ConfigurationError
from streamer.kafka.topics import Topics
from streamer.service.clock import SystemClock
from streamer.service.wiring import connection, prepare
from streamer.settings import Settings

GOOD, BAD = event([1.0]), b"{"
DAY_MS = 86_400_000
OLD_MS = 1_600_000_000_000


class WrongClock(SystemClock):
    """Two hours ahead."""

    def now_ms(self) -> int:
        return super().now_ms() + 7_200_000


async def started(settings: Settings, clock: SystemClock | None = None) -> Any:
    return await prepare(settings, [("chain", ChainModel(), None)], clock=clock)  # type: ignore[list-item]


async def produce_at(kafka: str, topic: str, values: list[bytes], timestamp_ms: int) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()
    try:
        for value in values:
            await producer.send_and_wait(topic, value, key=b"s", partition=0, timestamp_ms=timestamp_ms)
    finally:
        await producer.stop()


async def times_of(kafka: str, topic: str, count: int) -> list[int]:
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka, auto_offset_reset="earliest", isolation_level="read_committed")
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, 0)])
        await consumer.seek_to_beginning()
        async with asyncio.timeout(60):
            return [(await consumer.getone()).timestamp for _ in range(count)]
    finally:
        await consumer.stop()


async def configs(settings: Settings, *names: str) -> list[dict[str, str]]:
    async with Topics(connection(settings)) as topics:
        return [await topics.config(name) for name in names]


@pytest.mark.parametrize("mode", ["exactly-once", "at-least-once"])
@pytest.mark.parametrize("stamp", ["record", "now"])
async def test_answers_to_old_records_stay_as_long_as_these(
    kafka, topic_name, create_topics, stamp: str, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1}, config={"retention.ms": "-1"})
    await produce_at(kafka, topic, [GOOD, BAD, GOOD], OLD_MS)
    settings = make_settings(kafka, topic, topic_name("group"), output={"timestamp": stamp}, delivery={"mode": mode})
    before_ms = time.time() * 1000
    service, recorder = await make_service(settings)
    async with running(service):
        await wait_for(lambda: recorder.committed_events >= 2, recorder)
    assert not [line for line in caplog.messages if "retention" in line or "clock" in line]
    written = [*await times_of(kafka, f"{topic}.out", 2), *await times_of(kafka, f"{topic}.dlq", 1)]
    if stamp == "record":
        assert written == [OLD_MS] * 3
    else:
        assert all(before_ms - 1_000 < found for found in written)
    out, dead, changelog = await configs(settings, f"{topic}.out", f"{topic}.dlq", str(settings.changelog_topic))
    assert out["retention.ms"] == dead["retention.ms"] == "-1"
    assert changelog["message.timestamp.type"] == "LogAppendTime"


async def test_an_output_that_forgets_old_answers_is_told_at_start(
    kafka, topic_name, create_topics, caplog: pytest.LogCaptureFixture
) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1}, config={"retention.ms": "-1"})
    await create_topics(kafka, {f"{topic}.out": 1})
    await started(make_settings(kafka, topic, topic_name("group")))
    (told,) = caplog.messages
    assert re.search(
        rf"output topic '{topic}.out' \(output.topic\) keeps records for 604800000 ms \(retention.ms\), the input for ever",
        told,
    )
    caplog.clear()
    await started(make_settings(kafka, topic, topic_name("group"), output={"timestamp": "now"}))
    assert caplog.messages == []


@pytest.mark.parametrize("mode", ["exactly-once", "at-least-once", "ephemeral"])
async def test_a_compacted_input_is_refused_where_it_is_read_again(kafka, topic_name, create_topics, mode: str) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1}, config={"cleanup.policy": "compact"})
    settings = make_settings(kafka, topic, topic_name("group"), delivery={"mode": mode})
    if mode == "ephemeral":
        await started(settings)
        return
    with pytest.raises(
        ConfigurationError, match=rf"input topic '{topic}' \(input.topic\) is compacted \(cleanup.policy = compact\)"
    ):
        await started(settings)


async def test_all_that_is_wrong_with_topics_is_said_at_once(kafka, topic_name, create_topics) -> None:
    topic = topic_name("in")
    settings = make_settings(kafka, topic, topic_name("group"))
    await create_topics(kafka, {topic: 1, f"{topic}.dlq": 1})
    await create_topics(kafka, {f"{topic}.out": 1}, config={"max.message.bytes": "300000"})
    await create_topics(kafka, {str(settings.changelog_topic): 1}, config={"cleanup.policy": "compact,delete"})
    with pytest.raises(ConfigurationError) as refused:
        await started(settings)
    told = str(refused.value)
    assert (
        f"output topic '{topic}.out' (output.topic) takes batches of at most 300000 bytes (max.message.bytes)" in told
    )
    assert f"changelog '{settings.changelog_topic}' (changelog.topic) has cleanup.policy = compact,delete" in told


async def test_a_clock_that_is_wrong_is_told_at_start(
    kafka, topic_name, create_topics, caplog: pytest.LogCaptureFixture
) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    parts = await started(make_settings(kafka, topic, topic_name("group")))
    assert abs(parts.input.clock_ahead_ms) < 60_000
    assert caplog.messages == []
    await started(make_settings(kafka, topic, topic_name("group")), WrongClock())
    (told,) = caplog.messages
    assert re.search(r"the clock of this machine is (2:00:0|1:59:5)\d .* ahead of the cluster's: correct it", told)


async def test_a_clock_that_goes_wrong_is_told_by_what_is_written(
    kafka, topic_name, create_topics, caplog: pytest.LogCaptureFixture
) -> None:
    """The changelog's brokers stamp what we write, and answer with their time."""
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    service, recorder = await make_service(make_settings(kafka, topic, topic_name("group")), clock=WrongClock())
    async with running(service):
        await produce(kafka, topic, [(0, b"s", GOOD, [])])
        await wait_for(lambda: recorder.committed_events >= 1, recorder)
    ahead_ms = service._committer.clock.ahead_ms
    assert ahead_ms is not None
    assert abs(ahead_ms - 7_200_000) < 60_000
    assert len([line for line in caplog.messages if "ahead of the cluster's" in line]) == 1


async def test_a_topic_that_refuses_our_own_time_is_the_clocks_fault(kafka, topic_name, create_topics) -> None:
    """Where a topic takes no time that is before its own, ours never fits: what we stamp was made before it came there."""
    topic = topic_name("in")
    settings = make_settings(kafka, topic, topic_name("group"))
    await create_topics(kafka, {topic: 1})
    strict = {"cleanup.policy": "compact", "message.timestamp.before.max.ms": "0"}
    await create_topics(kafka, {str(settings.changelog_topic): 1}, config=strict)
    service, _ = await make_service(settings)

    async def until_it_ends() -> None:
        async with running(service) as task:
            while not task.done():
                await produce(kafka, topic, [(0, b"s", GOOD, [])])
                await asyncio.wait({task}, timeout=0.1)

    with pytest.raises(ConfigurationError) as refused:
        async with asyncio.timeout(60):
            await until_it_ends()
    assert f"topic '{settings.changelog_topic}' refuses records of this moment: the clock of this machine" in str(
        refused.value
    )


@pytest.mark.slow
async def test_three_replicas_are_two_in_sync(kafka_cluster, topic_name, create_topics) -> None:
    kafka, topic = kafka_cluster.bootstrap, topic_name("in")
    await create_topics(kafka, {topic: 1})
    settings = make_settings(
        kafka, topic, topic_name("group"), topics={"replication_factor": 1}, changelog={"replication_factor": 3}
    )
    await started(settings)

    async def own(name: str) -> dict[str, str]:
        """What the topic itself says, not the cluster for it."""
        async with administrator(kafka) as admin:
            (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
            return {entry[0]: entry[1] for entry in answer.resources[0][4] if entry[3] == 1}

    assert "min.insync.replicas" not in await own(f"{topic}.out")
    assert (await own(str(settings.changelog_topic)))["min.insync.replicas"] == "2"


async def test_a_broker_that_has_not_heard_of_a_topic_yet_is_asked_again(
    kafka, topic_name, create_topics, monkeypatch
) -> None:
    """Each answer comes from any broker of a cluster: a topic that one has made, another one hears of a moment later."""
    topic = topic_name("in")
    await create_topics(kafka, {topic: 2}, config={"retention.ms": "123456789"})
    late: dict[tuple[str, str], int] = {}

    def knows(question: str, name: str) -> bool:
        late[question, name] = late.get((question, name), 0) + 1
        return late[question, name] > 2

    describe, configs_of = AIOKafkaAdminClient.describe_topics, AIOKafkaAdminClient.describe_configs

    async def described(self: AIOKafkaAdminClient, names: list[str]) -> Any:
        found = await describe(self, names)
        return [
            each
            if knows("topic", each["topic"])
            else {**each, "error_code": UnknownTopicOrPartitionError.errno, "partitions": []}
            for each in found
        ]

    async def configured(self: AIOKafkaAdminClient, resources: list[ConfigResource]) -> Any:
        found = await configs_of(self, resources)
        for response in found:
            response.resources = [
                each if knows("config", each[3]) else (UnknownTopicOrPartitionError.errno, None, each[2], each[3], [])
                for each in response.resources
            ]
        return found

    monkeypatch.setattr(AIOKafkaAdminClient, "describe_topics", described)
    monkeypatch.setattr(AIOKafkaAdminClient, "describe_configs", configured)
    parts = await started(make_settings(kafka, topic, topic_name("group")))
    assert parts.input.configs["input.topic"]["retention.ms"] == "123456789"
    assert parts.input.partitions == (0, 1)
