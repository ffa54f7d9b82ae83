"""Every codec that Kafka has, from the producer and from the topic, both ways, and what is said of one that cannot be read."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import cramjam
import pytest
from administration import administrator
from aiokafka import AIOKafkaProducer
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c
from local_kafka import LocalKafka
from serving import event, make_service, make_settings, produce, read_all, running, serve
from tooling import require_tool

from streamer.errors import ConfigurationError

CODECS = ["gzip", "snappy", "lz4", "zstd"]
ROWS = [(0, b"a", event([float(number % 11)]), []) for number in range(20)]


async def codecs_in(kafka: str, topic: str) -> set[str]:
    """Codecs of the record batches in partition 0, as they lie in the log; markers aside."""
    async with administrator(kafka) as admin:
        client = admin._client
        request = FetchRequest(500, 1, 1_000_000, 0, [(topic, [(0, 0, 1_000_000)])], rack_id="")
        answer = await client.send(client.get_random_node(), request)
    data: bytes = answer.topics[0][1][0][-1]
    found, at = set(), 0
    while at < len(data):
        (length,) = struct.unpack_from(">i", data, at + 8)
        (attributes,) = struct.unpack_from(">h", data, at + 21)
        if not attributes & 0x20:
            found.add(["none", *CODECS][attributes & 7])
        at += 12 + length
    return found


async def answered(kafka: str, topic: str) -> list[int]:
    return [read.source[1] for read in await read_all(kafka, f"{topic}.out", at_least=len(ROWS))]


@pytest.mark.parametrize("codec", CODECS)
async def test_a_codec_of_the_producer(kafka, topic_name, create_topics, codec: str) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    producer = AIOKafkaProducer(bootstrap_servers=kafka, compression_type=codec, linger_ms=50)
    await producer.start()
    try:
        sent = [await producer.send(topic, value, key=key, partition=0) for _, key, value, _ in ROWS]
        for each in sent:
            await each
    finally:
        await producer.stop()
    assert await codecs_in(kafka, topic) == {codec}
    settings = make_settings(kafka, topic, topic_name("group"), output={"compression": codec})
    await serve_what_is_there(settings)
    assert await answered(kafka, topic) == list(range(20))
    assert settings.changelog_topic
    assert await codecs_in(kafka, f"{topic}.out") == await codecs_in(kafka, settings.changelog_topic) == {codec}


async def serve_what_is_there(settings) -> None:
    service, recorder = await make_service(settings)
    async with running(service):
        while recorder.committed_events < len(ROWS):
            recorder.changed.clear()
            await recorder.changed.wait()
    assert recorder.errors == []


@pytest.mark.parametrize("codec", CODECS)
async def test_a_codec_of_the_topic(kafka, topic_name, create_topics, codec: str) -> None:
    """Of the input and of all that we write, whatever the producers say: also of a changelog that is read again."""
    topic = topic_name("in")
    settings = make_settings(kafka, topic, topic_name("group"))
    config = {"compression.type": codec}
    await create_topics(kafka, {topic: 1, f"{topic}.out": 1, f"{topic}.dlq": 1}, config=config)
    assert settings.changelog_topic
    await create_topics(kafka, {settings.changelog_topic: 1}, config={**config, "cleanup.policy": "compact"})
    await serve(settings, ROWS[:10])
    await serve(settings, ROWS[10:], instance="b")
    assert await answered(kafka, topic) == list(range(20))
    for each in (topic, f"{topic}.out", settings.changelog_topic):
        assert await codecs_in(kafka, each) == {codec}


@pytest.fixture(scope="module")
def compressing() -> Iterator[str]:
    require_tool("java", "mvn")
    with LocalKafka(properties={"compression.type": "zstd"}) as local:
        yield local.bootstrap


async def test_a_codec_of_the_broker_reaches_our_changelog(compressing, topic_name, create_topics) -> None:
    topic = topic_name("in")
    await create_topics(compressing, {topic: 1})
    settings = make_settings(compressing, topic, topic_name("group"))
    await serve(settings, ROWS[:10])
    await serve(settings, ROWS[10:], instance="b")
    assert await answered(compressing, topic) == list(range(20))
    assert settings.changelog_topic
    assert await codecs_in(compressing, settings.changelog_topic) == {"zstd"}


async def test_a_codec_that_cannot_be_read_is_told_by_name(kafka, topic_name, create_topics, monkeypatch) -> None:
    """And it ends the service: no retry brings a library."""
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1}, config={"compression.type": "zstd"})
    await produce(kafka, topic, ROWS)
    monkeypatch.setattr("aiokafka.codec.has_zstd", lambda: False)
    service, _ = await make_service(make_settings(kafka, topic, topic_name("group")))
    with pytest.raises(ConfigurationError, match=r"zstd.*cramjam"):
        await service.run()


async def send_raw(kafka: str, topic: str, batch: bytes) -> int:
    """Error code of the broker for a batch that no client would make."""
    async with administrator(kafka) as admin:
        client = admin._client
        request = ProduceRequest(
            transactional_id=None, required_acks=-1, timeout=10_000, topics=[(topic, [(0, batch)])]
        )
        answer = await client.send(client.get_random_node(), request)
    return int(answer.topics[0][1][0][1])


def batch_of(values: list[bytes], offsets: list[int], pack: Callable[[bytes], bytes] | None) -> bytes:
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 28)
    for offset, value in zip(offsets, values, strict=True):
        builder.append(offset, 1_760_000_000_000, b"k", value, [])
    made = bytes(builder.build())
    data = bytearray(made[:61] + (made[61:] if pack is None else pack(made[61:])))
    data[8:12] = (len(data) - 12).to_bytes(4, "big")
    data[21:23] = (0 if pack is None else 4).to_bytes(2, "big")
    data[23:27] = (len(values) - 1).to_bytes(4, "big")
    data[17:21] = calc_crc32c(bytes(data[21:])).to_bytes(4, "big")
    return bytes(data)


async def test_what_a_broker_takes_and_nobody_reads_is_one_reject(
    kafka, topic_name, create_topics, monkeypatch
) -> None:
    """A batch that unpacks to more than fits, and one whose records claim offsets that are not theirs."""
    monkeypatch.setattr("streamer.kafka.compressed.MAX_BATCH_BYTES", 1 << 22)
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    await produce(kafka, topic, ROWS[:2])
    bomb = batch_of([bytes(1 << 23)] * 2, [0, 1], lambda data: bytes(cramjam.zstd.compress(data)))
    assert len(bomb) < 10_000
    assert await send_raw(kafka, topic, bomb) == 0
    assert await send_raw(kafka, topic, batch_of([event([1.0])] * 3, [0, 7, 2], None)) == 0
    await produce(kafka, topic, ROWS[2:4])
    service, recorder = await make_service(make_settings(kafka, topic, topic_name("group")))
    async with running(service):
        while recorder.committed_events < 5:
            recorder.changed.clear()
            await recorder.changed.wait()
    assert recorder.errors == []
    assert [read.source[1] for read in await read_all(kafka, f"{topic}.out", at_least=5)] == [0, 1, 4, 7, 8]
    letters = await read_all(kafka, f"{topic}.dlq", at_least=2)
    assert [read.source[1] for read in letters] == [3, 6]
    details = [dict(read.headers)["streamer-error-detail"].decode() for read in letters]
    assert details[0].startswith(
        "offsets 2 to 3: the record batch cannot be read (TooLarge: unpacked it is larger than"
    )
    assert details[1].startswith(
        "offsets 5 to 6: the record batch cannot be read (ValueError: record 1 of the batch claims"
    )
