"""Events in bursts with silences and end marks, for services that are killed meanwhile, and the log that they made."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from members import Load, features
from serving import Read, event

from streamer.core import Op

PARTITIONS, STREAMS = 2, 12


class Bursts(Load):
    """Events in bursts, out of order by up to 80 ms, with end marks. What was sent says the log itself."""

    def __init__(self, bootstrap: str, topic: str, per_second: int) -> None:
        super().__init__(bootstrap, topic, per_second)
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


def decoded(records: Sequence[Any]) -> list[tuple[int, str, int, Any]]:
    """(offset, stream, event time, row of features or a command)."""
    rows = []
    for record in records:
        if record.headers:
            rows.append((record.offset, record.key.decode(), 0, Op.END))
        else:
            document = Read(0, 0, None, record.value, {}).document
            rows.append((record.offset, record.key.decode(), document["ts"], document["x"]))
    return rows
