"""Reading records in columns: the input topic, and the changelog during a restore."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.consumer import fetcher as _fetcher

from streamer.core import Headers, RecordBatch
from streamer.errors import DataLossError
from streamer.kafka import foreign
from streamer.kafka.client import Connection, KafkaError, close

_TURNS = 4
"""Of the event loop, until the client has sent the next fetch: it then waits at the broker while we process this one."""


class _Records(_fetcher.PartitionRecords):
    """Hands on the parsed record itself instead of building an eleven-field object per record (1.4 us each).

    Also reads on where compaction left an empty control batch: the marker is gone, so there is no abort to note."""

    def _consumer_record(self, tp: TopicPartition, record: Any) -> Any:
        return record

    def _contains_abort_marker(self, next_batch: Any) -> bool:
        try:
            return bool(super()._contains_abort_marker(next_batch))
        except kafka_errors.KafkaError as error:
            if "did not contain any records" in str(error):
                return False
            raise


def columnar(consumer: AIOKafkaConsumer) -> AIOKafkaConsumer:
    """Makes the consumer's fetcher use ``_Records``. Call before ``start``; other consumers are not touched."""
    # the class is looked up in the module by the fetcher's response handling, so it is chosen there per process:
    # consumers without our columns (membership) fetch nothing
    _fetcher.PartitionRecords = _Records
    _fetcher.MemoryRecords = foreign.Records
    return consumer


def to_columns(partition: int, records: list[Any]) -> RecordBatch:
    headers: dict[int, Headers] = {row: tuple(record.headers) for row, record in enumerate(records) if record.headers}
    return RecordBatch(
        partition=partition,
        offsets=[record.offset for record in records],
        timestamps_ms=[record.timestamp for record in records],
        keys=[record.key for record in records],
        values=[record.value for record in records],
        headers=headers,
    )


class Input:
    """Fetches the assigned partitions of one topic from positions that we set; positions are never looked up."""

    def __init__(
        self,
        connection: Connection,
        topic: str,
        *,
        fetch_min_bytes: int,
        fetch_max_wait_ms: int,
        fetch_max_bytes: int,
        max_partition_fetch_bytes: int,
        check_crcs: bool = True,
        isolation_level: str = "read_committed",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self.topic = topic
        self._clock = clock
        self._consumer = columnar(
            connection.consumer(
                group_id=None,
                auto_offset_reset="none",
                fetch_min_bytes=fetch_min_bytes,
                fetch_max_wait_ms=fetch_max_wait_ms,
                fetch_max_bytes=fetch_max_bytes,
                max_partition_fetch_bytes=max_partition_fetch_bytes,
                check_crcs=check_crcs,
                isolation_level=isolation_level,
            )
        )

    async def start(self) -> None:
        await self._connection.started(self._consumer)

    async def stop(self) -> None:
        await close(self._consumer)

    def assign(self, positions: Mapping[int, int]) -> None:
        """Replaces the set of partitions and seeks each one; what was prefetched is dropped."""
        self._consumer.assign([self._tp(partition) for partition in positions])
        for partition, position in positions.items():
            self._consumer.seek(self._tp(partition), position)

    def pause(self, partitions: Iterable[int]) -> None:
        self._consumer.pause(*(self._tp(partition) for partition in partitions))

    def resume(self, partitions: Iterable[int]) -> None:
        self._consumer.resume(*(self._tp(partition) for partition in partitions))

    async def poll(self, max_records: int, timeout_ms: int) -> list[RecordBatch]:
        """At most ``max_records`` records, by partition; empty after ``timeout_ms``.

        Raises DataLossError when a position is no longer in the log."""
        try:
            fetched = await self._consumer.getmany(timeout_ms=timeout_ms, max_records=max_records)
        except kafka_errors.OffsetOutOfRangeError as error:
            raise DataLossError(
                f"topic {self.topic!r}: a position is no longer in the log ({error}). Retention deleted records that were "
                "not processed: raise the topic's retention, and start a new group to go on without them."
            ) from error
        except kafka_errors.RecordTooLargeError as error:
            raise self._connection.explain(error, "a record is larger than kafka.max_partition_fetch_bytes") from error
        except KafkaError as error:
            raise self._connection.explain(error, f"reading {self.topic!r}") from error
        if fetched:
            for _ in range(_TURNS):
                await asyncio.sleep(0)
        return [to_columns(tp.partition, records) for tp, records in fetched.items() if records]

    async def position(self, partition: int) -> int:
        return int(await self._consumer.position(self._tp(partition)))

    def log_end(self, partition: int) -> int | None:
        """End of the readable log as the last successful fetch said, None before the first."""
        end = self._consumer.last_stable_offset(self._tp(partition))
        if end is None or end < 0:
            end = self._consumer.highwater(self._tp(partition))
        return end if end is None or end >= 0 else None

    def next_fetch_offset(self, partition: int) -> int:
        """Offset of the next fetch: beyond markers and aborted records that were passed over."""
        state = self._consumer._subscription.subscription.assignment.state_value(self._tp(partition))
        return int(state.position)

    def confirmed_at_ms(self, partition: int) -> int:
        """Wall-clock time of the last successful fetch response for the partition, 0 before the first."""
        return int(self._consumer.last_poll_timestamp(self._tp(partition)) or 0)

    async def beginnings(self, partitions: Iterable[int]) -> dict[int, int]:
        return await self._offsets(self._consumer.beginning_offsets, partitions)

    async def ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """Ends of the log as this consumer's isolation level sees them."""
        return await self._offsets(self._consumer.end_offsets, partitions)

    async def at_time(self, partitions: Iterable[int], timestamp_ms: int) -> dict[int, int]:
        """First offsets at or after a time; the end where there is none."""
        parts = list(partitions)
        found = await self._consumer.offsets_for_times({self._tp(partition): timestamp_ms for partition in parts})
        ends = await self.ends(parts)
        return {
            partition: found[self._tp(partition)].offset if found.get(self._tp(partition)) else ends[partition]
            for partition in parts
        }

    async def _offsets(self, ask: Callable[[list[TopicPartition]], Any], partitions: Iterable[int]) -> dict[int, int]:
        for attempt in range(20):
            try:
                found = await ask([self._tp(partition) for partition in partitions])
                return {tp.partition: offset for tp, offset in found.items()}
            except (TimeoutError, KafkaError) as error:
                if attempt == 19 or not getattr(error, "retriable", True):
                    raise self._connection.explain(error, f"offsets of {self.topic!r}") from error
                await asyncio.sleep(0.25)
        raise AssertionError("unreachable")

    def _tp(self, partition: int) -> TopicPartition:
        return TopicPartition(self.topic, partition)
