"""The edges of a log: markers at its end, transactions of others that stay open, a topic that is another one now."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete
from serving import Recorder, event, make_service, make_settings, produce, read_all, running, serve, wait_for
from simulated import advance
from windowing import FoldModel

from streamer.errors import DataLossError
from streamer.service.loop import Service
from streamer.service.wiring import build, prepare
from streamer.windows import WindowRule


async def transactional(kafka: str, name: str) -> AIOKafkaProducer:
    producer = AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=name)
    await producer.start()
    return producer


async def delete_before(kafka: str, topic: str, offset: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=offset)})
    finally:
        await admin.close()


async def until(condition) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - what is looked at tells nobody
            await asyncio.sleep(0.02)


async def test_a_position_follows_markers_so_retention_takes_nothing_that_is_needed(
    kafka, topic_name, create_topics
) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    settings = make_settings(kafka, topic, topic_name("group"))
    upstream = await transactional(kafka, topic_name("upstream"))
    service, recorder = await make_service(settings)
    async with running(service):
        async with upstream.transaction():
            for _ in range(3):
                await upstream.send_and_wait(topic, event([1.0]), key=b"a", partition=0)
        await wait_for(lambda: recorder.committed_events >= 3, recorder)
        await until(lambda: service.view().partitions[0].position == 4)  # the marker is the fourth
        assert service.view().partitions[0].lag == 0
        # the replay point follows with the next round
        await until(lambda: service.view().partitions[0].replay_point == 4)
    await upstream.stop()
    await delete_before(kafka, topic, 4)
    await serve(settings, [(0, b"a", event([2.0]), [])], instance="b")
    found = [read.document["y"] for read in await read_all(kafka, f"{topic}.out", at_least=4)]
    third = advance(advance(advance(0, 1), 1), 1)
    assert found[2:] == [third, advance(third, 2)]


async def window_service(settings) -> tuple[Service, Recorder]:
    rule = WindowRule("tumbling", size_ms=1_000)
    parts = await prepare(settings, [("fold", FoldModel(), rule)])  # type: ignore[list-item]
    recorder = Recorder()
    return build(parts, recorder, instance="a"), recorder


async def test_an_open_transaction_of_the_input_is_no_idleness_and_is_told(kafka, topic_name, create_topics) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    settings = make_settings(
        kafka, topic, topic_name("group"), delivery={"idle_ms": 300}, model={"chain": {"path": "unused.onnx"}}
    )
    upstream = await transactional(kafka, topic_name("upstream"))
    service, recorder = await window_service(settings)
    now_ms = 1_700_000_000_000
    async with running(service):
        await upstream.begin_transaction()
        first = await upstream.send_and_wait(topic, event([1.0], ts=now_ms), key=b"a", partition=0)
        await upstream.commit_transaction()
        await wait_for(lambda: recorder.committed_events >= 1, recorder)
        await upstream.begin_transaction()
        await upstream.send_and_wait(topic, event([2.0], ts=now_ms + 1), key=b"a", partition=0)
        assert first.offset == 0
        # three times as long as would be idle, as the service itself measures it
        await until(lambda: service.view().partitions[0].blocked_s > 1.0)
        assert service.view().windows_open == 1, "a window was closed while its events were held up"
        await upstream.commit_transaction()
        await wait_for(lambda: recorder.committed_events >= 2, recorder)
        (read,) = await read_all(kafka, f"{topic}.out", at_least=1)
        assert read.document["window"]["count"] == 2
        await until(lambda: service.view().partitions[0].blocked_s == 0)
    await upstream.stop()


async def made_anew(kafka: str, topic: str, create_topics, **config: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        await admin.delete_topics([topic])
        while topic in await admin.list_topics():  # noqa: ASYNC110 - the broker says nothing by itself
            await asyncio.sleep(0.05)
    finally:
        await admin.close()
    await create_topics(kafka, {topic: 1}, config=config)


async def test_a_topic_made_anew_under_a_running_service_ends_it_before_anything_is_skipped(
    kafka, topic_name, create_topics
) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    settings = make_settings(kafka, topic, topic_name("group"), kafka={"metadata_max_age_ms": 500})
    service, recorder = await make_service(settings)
    task = asyncio.create_task(service.run())
    await produce(kafka, topic, [(0, b"a", event([1.0]), [])] * 10)
    await wait_for(lambda: recorder.committed_events >= 10, recorder)
    await made_anew(kafka, topic, create_topics)
    await produce(kafka, topic, [(0, b"a", event([2.0]), [])] * 15)
    with pytest.raises(DataLossError, match=r"deleted|created again"):
        await asyncio.wait_for(task, 60)
    assert len(await read_all(kafka, f"{topic}.out", at_least=10)) == 10


async def test_a_changelog_made_anew_under_a_running_service_ends_it_before_states_are_forgotten(
    kafka, topic_name, create_topics
) -> None:
    """The states of silent streams are gone: to go on would give them a new beginning after the next restart, silently."""
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    settings = make_settings(kafka, topic, topic_name("group"))
    service, recorder = await make_service(settings)
    task = asyncio.create_task(service.run())
    await produce(kafka, topic, [(0, b"silent", event([1.0]), [])] * 10)
    await wait_for(lambda: recorder.committed_events >= 10, recorder)
    await made_anew(kafka, settings.changelog_topic, create_topics, **{"cleanup.policy": "compact"})
    await produce(kafka, topic, [(0, b"a", event([2.0]), [])])
    with pytest.raises(DataLossError, match=r"changelog .* deleted"):
        await asyncio.wait_for(task, 60)
    assert len(await read_all(kafka, f"{topic}.out", at_least=10)) == 10
    again, _ = await make_service(settings)
    with pytest.raises(DataLossError, match=r"kafka\.group"):
        await asyncio.wait_for(again.run(), 60)
