"""The newest records of a log, for those who only look: nothing is committed, no group is joined."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping

from streamer.core import RecordBatch
from streamer.errors import KafkaUnavailableError
from streamer.kafka.input import Input

_STUCK_S = 30.0
_FIRST_LOOK = 2_000
"""Offsets from the end of a changelog: a progress record is among the last of every commit."""


async def read_span(reader: Input, spans: Mapping[int, tuple[int, int]]) -> AsyncIterator[RecordBatch]:
    """The records of each partition from its first offset up to, without, its second; gaps are passed over,
    and what retention deletes meanwhile.

    KafkaUnavailableError when nothing comes."""
    open_ends = {partition: end for partition, (begin, end) in spans.items() if begin < end}
    reader.assign({partition: spans[partition][0] for partition in open_ends})
    loop = asyncio.get_running_loop()
    moved_at, reached = loop.time(), 0
    while open_ends:
        for batch in await reader.poll_what_is_left(2_000, 100):
            rows = [row for row, offset in enumerate(batch.offsets) if offset < spans[batch.partition][1]]
            if rows:
                yield batch if len(rows) == len(batch) else chosen(batch, rows)
        positions = {partition: reader.next_fetch_offset(partition) for partition in spans if partition in open_ends}
        if done := [partition for partition, position in positions.items() if position >= open_ends[partition]]:
            reader.pause(done)
            for partition in done:
                del open_ends[partition]
        if sum(positions.values()) != reached or done:
            moved_at, reached = loop.time(), sum(positions.values())
        elif loop.time() - moved_at > _STUCK_S:
            raise KafkaUnavailableError(f"topic {reader.topic!r}: nothing could be read for {_STUCK_S:.0f} s")


def chosen(batch: RecordBatch, rows: Iterable[int]) -> RecordBatch:
    """Some rows of a fetch, in that order."""
    rows = list(rows)
    return RecordBatch(
        batch.partition,
        [batch.offsets[row] for row in rows],
        [batch.timestamps_ms[row] for row in rows],
        [batch.keys[row] for row in rows],
        [batch.values[row] for row in rows],
        {at: batch.headers[row] for at, row in enumerate(rows) if row in batch.headers},
    )


async def newest_values(reader: Input, partitions: Iterable[int], key: bytes) -> dict[int, bytes]:
    """The newest value of ``key`` in each partition that has one: near the end as a rule, else from the beginning."""
    ends = await reader.ends(partitions)
    begins = await reader.beginnings(ends)
    found: dict[int, bytes] = {}
    spans = {partition: (max(begins[partition], end - _FIRST_LOOK), end) for partition, end in ends.items()}
    while spans:
        async for batch in read_span(reader, spans):
            for read, value in zip(batch.keys, batch.values, strict=True):
                if read == key and value is not None:
                    found[batch.partition] = value
        spans = {
            partition: (begins[partition], begin)
            for partition, (begin, _) in spans.items()
            if partition not in found and begin > begins[partition]
        }
    return found
