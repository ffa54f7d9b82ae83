"""Events in bursts with silences and end marks, for services that are killed meanwhile, and the log that they made."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from broken import json_records
from members import FEATURES, Load, features
from serving import Read, event

from streamer.core import Op

PARTITIONS, STREAMS = 2, 12


BROKEN = json_records(FEATURES)


class Bursts(Load):
    """Events in bursts, out of order by up to 80 ms, with end marks. What was sent says the log itself.
    ``broken_every``: one record more after so many, which is no event."""

    def __init__(self, bootstrap: str, topic: str, per_second: int, broken_every: int = 0) -> None:
        super().__init__(bootstrap, topic, per_second)
        self._broken_every, self._sent_broken = broken_every, 0
        self.broken: dict[tuple[int, int], str] = {}
        """(partition, offset) -> reason"""
        self._rng = random.Random(per_second)
        self._silent_until = [0] * STREAMS
        self._now_ms = 1_000_000

    async def some(self, producer: AIOKafkaProducer, count: int) -> None:
        rng = self._rng
        self._now_ms += 50
        for _ in range(count):
            stream = rng.randrange(STREAMS)
            if self._silent_until[stream] > self._now_ms:
                continue
            if rng.random() < 0.03:
                self._silent_until[stream] = self._now_ms + rng.choice([200, 1_000])
            key, partition = b"s%d" % stream, stream % PARTITIONS
            if rng.random() < 0.02:
                mark = [("streamer-op", b"end")]
                await producer.send(self._topic, b"", key=key, partition=partition, headers=mark)
            else:
                value = event(features(self.sent), ts=self._now_ms - rng.randrange(80))
                await producer.send(self._topic, value, key=key, partition=partition)
            self.sent += 1
            if self._broken_every and self.sent % self._broken_every == 0:
                await self._break(producer, key, partition)

    async def _break(self, producer: AIOKafkaProducer, key: bytes, partition: int) -> None:
        broken = BROKEN[self._sent_broken % len(BROKEN)]
        self._sent_broken += 1
        key_ = key if broken.key == b"" else broken.key
        headers = list(broken.headers)
        sent = await producer.send_and_wait(self._topic, broken.value, key=key_, partition=partition, headers=headers)
        self.broken[partition, sent.offset] = broken.reason

    async def last(self, producer: AIOKafkaProducer) -> None:
        for partition in range(PARTITIONS):  # what time can close is closed
            value = event(features(0), ts=self._now_ms + 100_000)
            await producer.send(self._topic, value, key=b"last-%d" % partition, partition=partition)


async def read_log(bootstrap: str, topic: str) -> dict[int, list[Any]]:
    """Partition -> its input records, in order."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    found: dict[int, list[Any]] = {partition: [] for partition in range(PARTITIONS)}
    try:
        parts = [TopicPartition(topic, partition) for partition in found]
        consumer.assign(parts)
        ends = await consumer.end_offsets(parts)
        while any([await consumer.position(part) < ends[part] for part in parts]):
            for part, records in (await consumer.getmany(timeout_ms=100)).items():
                found[part.partition] += records
    finally:
        await consumer.stop()
    return found


def decoded(
    records: Sequence[Any], broken: Mapping[tuple[int, int], str] = MappingProxyType({})
) -> list[tuple[int, str, int, Any]]:
    """(offset, stream, event time, row of features or a command). ``broken``: where records are no events."""
    rows = []
    for record in records:
        if (record.partition, record.offset) in broken:
            continue
        if record.headers:
            rows.append((record.offset, record.key.decode(), 0, Op.END))
        else:
            document = Read(0, 0, None, record.value, {}).document
            rows.append((record.offset, record.key.decode(), document["ts"], document["x"]))
    return rows
