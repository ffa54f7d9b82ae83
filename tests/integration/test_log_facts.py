"""What the input tells of its log, against a real broker: markers, aborted records, open transactions, recreated topics."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from administration import administrator
from aiokafka import AIOKafkaProducer
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.structs import TopicPartition
from serving import make_settings, open_transaction, produce

from streamer.core import LogFacts
from streamer.errors import DataLossError
from streamer.kafka.input import Input
from streamer.kafka.tails import read_span
from streamer.service.wiring import connection


@contextlib.asynccontextmanager
async def reading(kafka: str, topic: str, isolation: str = "read_committed") -> AsyncIterator[Input]:
    link = connection(make_settings(kafka, topic, "nobody"))
    reader = Input.of_log(link, topic, fetch_bytes=1_000_000, isolation_level=isolation)
    await reader.start()
    try:
        yield reader
    finally:
        await reader.stop()


async def read_until(reader: Input, partition: int, position: int, *, looking: bool = False) -> list[int]:
    """Offsets of what is read until the position is there."""
    poll = reader.poll_what_is_left if looking else reader.poll
    found: list[int] = []
    async with asyncio.timeout(30):
        while reader.next_fetch_offset(partition) < position:
            for batch in await poll(1_000, 50):
                found += batch.offsets
    return found


async def transaction(kafka: str, topic: str, values: list[bytes], *, commit: bool, name: str) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=name)
    await producer.start()
    try:
        await producer.begin_transaction()
        for value in values:
            await producer.send_and_wait(topic, value, partition=0)
        await (producer.commit_transaction() if commit else producer.abort_transaction())
    finally:
        await producer.stop()


async def test_the_position_passes_trailing_markers_and_aborted_records(kafka, topic_name, create_topics) -> None:
    """Caught up is position = high watermark, though the last record lies before a marker, or is an aborted one."""
    topic = topic_name("in")
    await create_topics(kafka, {topic: 2})
    await transaction(kafka, topic, [b"0", b"1"], commit=True, name=topic_name("id"))
    async with reading(kafka, topic) as reader:
        reader.assign({0: 0, 1: 0})
        assert reader.high_watermark(0) is reader.stable_end(0) is None
        assert reader.blocked(0) is None
        assert await read_until(reader, 0, 3) == [0, 1]
        assert reader.high_watermark(0) == reader.stable_end(0) == reader.next_fetch_offset(0) == 3
        # with nothing after it and while we look on
        await transaction(kafka, topic, [b"3", b"4"], commit=False, name=topic_name("id"))
        assert await read_until(reader, 0, 6) == []
        assert reader.high_watermark(0) == reader.stable_end(0) == 6
        assert reader.blocked(0) is None
        facts = await reader.facts([0, 1])
        topic_id = await reader.identity()
        assert topic_id
        assert facts == {0: LogFacts(topic_id, 0, 6, 6), 1: LogFacts(topic_id, 0, 0, 0)}


async def test_an_open_transaction_of_somebody_else_is_seen(kafka, topic_name, create_topics) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    await produce(kafka, topic, [(0, b"a", b"before", [])])
    async with reading(kafka, topic) as reader, reading(kafka, topic, "read_uncommitted") as raw:
        reader.assign({0: 0})
        raw.assign({0: 0})
        async with open_transaction(kafka, topic_name("id"), topic, 0, named=False) as foreign:
            await produce(kafka, topic, [(0, b"a", b"behind", [])])
            assert await read_until(reader, 0, 1) == [0]
            async with asyncio.timeout(30):
                while reader.blocked(0) is None:
                    await reader.poll(10, 20)
            assert reader.blocked(0) == 1
            assert (reader.high_watermark(0), reader.stable_end(0)) == (3, 1)
            (facts,) = (await reader.facts([0])).values()
            assert (facts.begin, facts.end, facts.stable) == (0, 3, 1)
            assert await read_until(raw, 0, 3) == [0, 1, 2]
            assert raw.blocked(0) is None, "who reads uncommitted records is held by nobody"
            assert raw.stable_end(0) == 1
            await foreign.abort_transaction()
        assert await read_until(reader, 0, 4) == [2]
        assert reader.blocked(0) is None


async def test_the_begin_is_where_the_log_starts(kafka, topic_name, create_topics) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    await produce(kafka, topic, [(0, b"a", b"%d" % number, []) for number in range(5)])
    async with administrator(kafka) as admin:
        await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=3)})
    async with reading(kafka, topic) as reader:
        (facts,) = (await reader.facts([0])).values()
        assert (facts.begin, facts.end, facts.stable) == (3, 5, 5)
        assert await reader.facts([]) == {}


async def test_who_only_looks_passes_what_retention_deletes_meanwhile(kafka, topic_name, create_topics) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 3})
    await produce(kafka, topic, [(number % 3, b"a", b"v", []) for number in range(15)])
    async with reading(kafka, topic) as reader, administrator(kafka) as admin:
        begins, ends = await reader.beginnings(range(3)), await reader.ends(range(3))
        gone = {TopicPartition(topic, 0): RecordsToDelete(3), TopicPartition(topic, 1): RecordsToDelete(5)}
        await admin.delete_records(gone)
        found: dict[int, list[int]] = {}
        async for batch in read_span(reader, {part: (begins[part], ends[part]) for part in range(3)}):
            found.setdefault(batch.partition, []).extend(batch.offsets)
        assert found == {0: [3, 4], 2: [0, 1, 2, 3, 4]}
        reader.assign({0: 0})
        with pytest.raises(DataLossError, match="a position is no longer in the log"):
            await read_until(reader, 0, 5)
        reader.assign({0: 9})  # as of another topic of this name
        with pytest.raises(DataLossError, match="a position is no longer in the log"):
            await read_until(reader, 0, 10, looking=True)


async def test_a_topic_that_is_made_again_has_another_identity(kafka, topic_name, create_topics) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 2})
    async with reading(kafka, topic) as reader, administrator(kafka) as admin:
        reader.assign({0: 0, 1: 0})
        first = await reader.identity([0, 1])
        assert first == await reader.identity()
        assert first
        await admin.delete_topics([topic])
        assert await reader.identity() is None
        with pytest.raises(DataLossError, match="was deleted while the service runs"):
            await reader.facts([0])
        await create_topics(kafka, {topic: 2})
        second = await reader.identity([0, 1])
        assert second
        assert second != first
