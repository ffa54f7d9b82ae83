"""Taking partitions over: what is open is decided, ready partitions do not wait, and bad changelogs are refused."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.structs import TopicPartition
from chain import PARTITIONS, check, rows
from serving import event, make_service, make_settings, open_transaction, produce, read_all, running, serve, wait_for
from simulated import POISON, advance

from streamer.errors import ConfigurationError, DataLossError, KafkaUnavailableError, StreamerError
from streamer.records.changelog import (
    Kind,
    Progress,
    decode_progress,
    encode_progress,
    encode_stream,
    progress_key,
    stream_key,
)


async def test_partitions_that_are_ready_run_while_another_waits(kafka, topic_name, create_topics) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: PARTITIONS})
    settings = make_settings(kafka, topic, topic_name("group"))
    await serve(settings, list(rows(0, 400)))
    await produce(kafka, topic, rows(400, 400))
    assert settings.changelog_topic
    async with open_transaction(kafka, topic_name("foreign"), settings.changelog_topic, 0, named=False) as foreign:
        service, recorder = await make_service(settings, instance="b")
        async with running(service):
            await wait_for(lambda: recorder.committed_events >= 300, recorder)
            assert sorted(service.processor.partitions) == [1, 2, 3]
            assert not service.ready
            assert not recorder.recoveries
            await foreign.abort_transaction()
            await wait_for(lambda: recorder.committed_events >= 400, recorder)
            assert recorder.recoveries == [([0, 1, 2, 3], [])]
            assert service.ready
    check(await read_all(kafka, f"{topic}.out", at_least=800), 800)


async def test_a_transaction_left_open_by_a_dead_process_is_ended(kafka, topic_name, create_topics) -> None:
    """Its own time-out is two minutes: the service is live long before, since it initialises the dead owner's id."""
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    settings = make_settings(kafka, topic, topic_name("group"))
    await serve(settings, ONE)
    assert settings.changelog_topic
    async with open_transaction(kafka, topic_name("dead"), settings.changelog_topic, 0, named=True) as dead:
        service, recorder = await make_service(settings, instance="b")
        async with running(service):
            await wait_for(lambda: bool(recorder.recoveries), recorder)
            with pytest.raises((kafka_errors.KafkaError, AssertionError)):
                await dead.commit_transaction()
            await produce(kafka, topic, [(0, b"a", event([2.0]), [])])
            await wait_for(lambda: recorder.committed_events >= 1, recorder)
    found = await read_all(kafka, f"{topic}.out", at_least=2)
    assert [read.document["y"] for read in found] == [advance(0, 1), advance(advance(0, 1), 2)]


ONE = [(0, b"a", event([1.0]), [])]


async def test_a_transaction_that_nobody_ends_is_told(kafka, topic_name, create_topics, monkeypatch) -> None:
    """And the service goes on by itself when an operator has ended it."""
    monkeypatch.setattr("streamer.kafka.restore._HANGING_S", 0.5)
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    settings = make_settings(kafka, topic, topic_name("group"))
    await serve(settings, ONE)
    assert settings.changelog_topic
    async with open_transaction(kafka, topic_name("foreign"), settings.changelog_topic, 0, named=False) as foreign:
        service, recorder = await make_service(settings, instance="b")
        async with running(service):
            async with asyncio.timeout(30):
                while not recorder.errors:
                    recorder.changed.clear()
                    await recorder.changed.wait()
            assert isinstance(recorder.errors[0], KafkaUnavailableError)
            assert "kafka-transactions.sh" in str(recorder.errors[0])
            await foreign.abort_transaction()
            async with asyncio.timeout(30):
                while not recorder.recoveries:
                    recorder.changed.clear()
                    await recorder.changed.wait()
            assert service.ready


async def _changelog_record(kafka, topic: str, key: bytes, value: bytes | None) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()
    try:
        await producer.send_and_wait(topic, value, key=key, partition=0)
    finally:
        await producer.stop()


KEY = stream_key(Kind.STATE, "chain", b"a")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        (KEY, b"foreign", "cannot be used"),
        (KEY, encode_stream(KEY, 0, 0, b"12345678", b"1234")[:-1] + b"x", "checksum"),
        (KEY, encode_stream(KEY, 0, 0, b"12345678", b"12345678"), "has another size"),
        (progress_key(), b"\x01\x00\x00\x00\x00x", "progress record"),
        (progress_key(), None, "has no progress"),
    ],
)
async def test_a_damaged_or_foreign_changelog_is_refused(
    kafka, topic_name, create_topics, key: bytes, value: bytes | None, says: str
) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    settings = make_settings(kafka, topic, topic_name("group"))
    await serve(settings, ONE)
    assert settings.changelog_topic
    await _changelog_record(kafka, settings.changelog_topic, key, value)
    service, _ = await make_service(settings)
    with pytest.raises(DataLossError, match=says):
        await asyncio.wait_for(service.run(), 60)
    assert len(await read_all(kafka, f"{topic}.out", at_least=1)) == 1


async def _delete_topic(kafka, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        await admin.delete_topics([topic])
        while topic in await admin.list_topics():  # noqa: ASYNC110 - the broker says nothing by itself
            await asyncio.sleep(0.05)
    finally:
        await admin.close()


async def test_a_lost_changelog_is_refused_and_a_new_group_goes_on(kafka, topic_name, create_topics) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    settings = make_settings(kafka, topic, topic_name("group"))
    await serve(settings, ONE)
    assert settings.changelog_topic
    await _delete_topic(kafka, settings.changelog_topic)
    service, _ = await make_service(settings)
    with pytest.raises(DataLossError, match="it was lost, belongs to another group"):
        await asyncio.wait_for(service.run(), 60)
    service, recorder = await make_service(make_settings(kafka, topic, topic_name("new-group")))
    async with running(service):
        await wait_for(lambda: recorder.committed_events >= 1, recorder)


async def test_an_input_topic_that_was_created_again_is_refused(kafka, topic_name, create_topics) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    settings = make_settings(kafka, topic, topic_name("group"))
    await serve(settings, ONE)
    await _delete_topic(kafka, topic)
    await create_topics(kafka, {topic: 1})
    await produce(kafka, topic, [(0, b"a", event([1.0]), [])] * 3)
    service, _ = await make_service(settings)
    with pytest.raises(DataLossError, match="deleted and created again"):
        await asyncio.wait_for(service.run(), 60)


async def test_input_that_expired_before_it_was_needed_again_is_refused(kafka, topic_name, create_topics) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    settings = make_settings(kafka, topic, topic_name("group"), delivery={"checkpoint_interval_ms": 600_000})
    await serve(settings, ONE)
    await produce(kafka, topic, [(0, b"a", event([1.0]), [])] * 3)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=2)})
    finally:
        await admin.close()
    service, _ = await make_service(settings)
    with pytest.raises(DataLossError, match="retention"):
        await asyncio.wait_for(service.run(), 60)


async def test_changed_settings_that_decide_are_refused(kafka, topic_name, create_topics) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    group = topic_name("group")
    await serve(make_settings(kafka, topic, group), ONE)
    changed = make_settings(kafka, topic, group, input={"missing": "0.0"})
    service, _ = await make_service(changed)
    with pytest.raises(DataLossError, match="settings that decide"):
        await asyncio.wait_for(service.run(), 60)


async def test_partition_counts_that_changed_are_refused(kafka, topic_name, create_topics) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    settings = make_settings(kafka, topic, topic_name("group"))
    await serve(settings, ONE)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        await admin.create_partitions({topic: NewPartitions(total_count=2)})
        while len((await admin.describe_topics([topic]))[0]["partitions"]) != 2:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    finally:
        await admin.close()
    with pytest.raises(ConfigurationError, match="has 1 partitions, the input has 2"):
        await make_service(settings)


async def test_an_input_that_gains_partitions_while_we_run_ends_the_service(kafka, topic_name, create_topics) -> None:
    """A stream's new events could hash to another partition than its state."""
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    settings = make_settings(kafka, topic, topic_name("group"), kafka={"metadata_max_age_ms": 500})
    service, recorder = await make_service(settings)
    task = asyncio.create_task(service.run())
    await produce(kafka, topic, [(0, b"a", event([1.0]), [])])
    await wait_for(lambda: recorder.committed_events >= 1, recorder)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        await admin.create_partitions({topic: NewPartitions(total_count=3)})
    finally:
        await admin.close()
    with pytest.raises(StreamerError, match="partitions"):
        await asyncio.wait_for(task, 60)


async def test_a_clock_that_jumps_loses_and_repeats_nothing(kafka, topic_name, create_topics) -> None:
    class JumpingClock:
        def __init__(self) -> None:
            self.calls = 0

        def monotonic(self) -> float:
            return asyncio.get_running_loop().time()

        def now_ms(self) -> int:
            self.calls += 1
            return 1_700_000_000_000 + (self.calls % 3 - 1) * 86_400_000 * (self.calls % 7)

    topic = topic_name("in")
    await create_topics(kafka, {topic: PARTITIONS})
    settings = make_settings(kafka, topic, topic_name("group"), state={"idle_ttl_ms": 3_600_000})
    for part in range(2):
        service, recorder = await make_service(settings, instance=f"run{part}", clock=JumpingClock())
        async with running(service):
            await produce(kafka, topic, rows(part * 500, 500))
            await wait_for(lambda r=recorder: r.committed_events >= 500, recorder)
    check(await read_all(kafka, f"{topic}.out", at_least=1000), 1000)


async def test_a_poisoned_record_is_found_and_the_rest_goes_on_after_a_restart(
    kafka, topic_name, create_topics
) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    settings = make_settings(kafka, topic, topic_name("group"), delivery={"checkpoint_interval_ms": 600_000})
    first = [(0, b"a", event([value]), []) for value in (1.0, POISON, 2.0)]
    await serve(settings, [*first, (0, b"b", event([3.0]), [])])
    await serve(settings, [(0, b"a", event([4.0]), [])])
    found = [read.document["y"] for read in await read_all(kafka, f"{topic}.out", at_least=4) if read.key == b"a"]
    first = advance(0, 1)
    assert found == [first, advance(first, 2), advance(advance(first, 2), 4)]
    assert len(await read_all(kafka, f"{topic}.dlq", at_least=1)) == 1


def test_progress_of_another_version_is_refused() -> None:
    value = encode_progress(Progress(0, 0, 0, {}, "", "", "", "", -1, 0))
    assert decode_progress(value).position == 0
    with pytest.raises(DataLossError, match="has format 9"):
        decode_progress(b"\x09" + value[1:])
