"""Reading records in columns: the input topic, and the changelog during a restore."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any, TypeVar

from aiokafka import TopicPartition
from aiokafka import errors as kafka_errors

from streamer.core import LogFacts, RecordBatch
from streamer.errors import DataLossError
from streamer.kafka.client import Connection, KafkaError, close
from streamer.kafka.identity import gone, topic_identity
from streamer.settings import Settings

T = TypeVar("T")

_TURNS = 4
"""Of the event loop, until the client has sent the next fetch: it then waits at the broker while we process this one."""
_LOOK_S = 5.0


class Input:
    """Fetches the assigned partitions of one topic from positions that we set; positions are never looked up."""

    def __init__(
        self, connection: Connection, topic: str, *, isolation_level: str = "read_committed", **fetch: int
    ) -> None:
        """``fetch``: the client's own bounds on a fetch, where they shall differ from its defaults."""
        self._connection = connection
        self.topic = topic
        self._tp: Callable[[int], TopicPartition] = cache(partial(TopicPartition, topic))
        """Asked for several times in every poll"""
        self._committed_only = isolation_level == "read_committed"
        self._consumer = connection.consumer(
            columns=True, group_id=None, auto_offset_reset="none", isolation_level=isolation_level, **fetch
        )

    @classmethod
    def of_settings(cls, connection: Connection, settings: Settings) -> Input:
        """The input topic of a service."""
        kafka = settings.kafka
        return cls(
            connection,
            settings.input.topic,
            fetch_min_bytes=kafka.fetch_min_bytes,
            fetch_max_wait_ms=settings.fetch_max_wait_ms,
            fetch_max_bytes=kafka.fetch_max_bytes,
            max_partition_fetch_bytes=kafka.max_partition_fetch_bytes,
            check_crcs=kafka.check_crcs,
            isolation_level="read_uncommitted" if settings.delivery.mode == "ephemeral" else "read_committed",
        )

    @classmethod
    def of_log(
        cls, connection: Connection, topic: str, *, fetch_bytes: int, isolation_level: str = "read_committed"
    ) -> Input:
        """A log that is read to its end, as fast as it comes."""
        return cls(
            connection,
            topic,
            fetch_min_bytes=1,
            fetch_max_wait_ms=20,
            fetch_max_bytes=fetch_bytes,
            max_partition_fetch_bytes=fetch_bytes,
            isolation_level=isolation_level,
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
        return list(fetched.values())

    async def poll_what_is_left(self, max_records: int, timeout_ms: int) -> list[RecordBatch]:
        """As ``poll``, for those who only look: what retention deletes meanwhile is passed over."""
        try:
            return await self.poll(max_records, timeout_ms)
        except DataLossError:
            at = {tp.partition: self.next_fetch_offset(tp.partition) for tp in self._consumer.assignment()}
            begins = {number: begin for number, begin in (await self.beginnings(at)).items() if begin > at[number]}
            if not begins:
                raise
            for number, begin in begins.items():
                self._consumer.seek(self._tp(number), begin)
            return []

    async def position(self, partition: int) -> int:
        return int(await self._consumer.position(self._tp(partition)))

    def high_watermark(self, partition: int) -> int | None:
        """End of the log as the last successful fetch said, None before the first: what idleness and lag are judged by.
        Records of transactions that are still open lie before it."""
        return _known(self._consumer.highwater(self._tp(partition)))

    def stable_end(self, partition: int) -> int | None:
        """Last stable offset as the last successful fetch said: how far committed records can be read. None before the
        first fetch."""
        return _known(self._consumer.last_stable_offset(self._tp(partition)))

    def next_fetch_offset(self, partition: int) -> int:
        """Offset of the next fetch: beyond markers and aborted records that were passed over, also when nothing came after
        them. At the high watermark everything is read."""
        return self._consumer.fetch_position(self._tp(partition))

    def blocked(self, partition: int) -> int | None:
        """Offset at which an open transaction of somebody else holds us: all before it is read, and something lies behind.
        None where nothing does. As the last successful fetch said, so ordinary transactions are seen for a moment too."""
        if not self._committed_only:
            return None
        stable, end = self.stable_end(partition), self.high_watermark(partition)
        held = stable is not None and end is not None and stable < end and self.next_fetch_offset(partition) == stable
        return stable if held else None

    def confirmed_at_ms(self, partition: int) -> int:
        """Wall-clock time of the last successful fetch response for the partition, 0 before the first."""
        return int(self._consumer.last_poll_timestamp(self._tp(partition)) or 0)

    async def beginnings(self, partitions: Iterable[int]) -> dict[int, int]:
        return await self._offsets(self._consumer.beginning_offsets, partitions)

    async def ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """Ends of the log as this consumer's isolation level sees them."""
        return await self._offsets(self._consumer.end_offsets, partitions)

    async def facts(self, partitions: Iterable[int]) -> dict[int, LogFacts]:
        """What is true of the log of each partition now.

        Raises DataLossError when the topic is gone, KafkaUnavailableError when nobody answers."""
        parts = list(partitions)
        if not parts:
            return {}
        topic_id = await self.identity(parts)
        if topic_id is None:
            raise DataLossError(gone(self.topic))
        ask = self._consumer.offsets
        begins, stables, ends = await asyncio.gather(
            self._offsets(lambda tps: ask(tps, end=False), parts),
            self._offsets(lambda tps: ask(tps, end=True, committed=True), parts),
            self._offsets(lambda tps: ask(tps, end=True), parts),
        )
        # asked for at the same time: where the last stable offset is newer, the end has reached it too
        return {part: LogFacts(topic_id, begins[part], max(ends[part], stables[part]), stables[part]) for part in parts}

    async def identity(self, partitions: Iterable[int] = ()) -> str | None:
        """Id of the topic, "" on a broker without topic ids, None when there is no such topic any more. The leaders of
        ``partitions`` are asked: who has sent us records of a new topic of this name knows its id. Else any broker."""
        tps = [self._tp(partition) for partition in partitions]
        return await self._explained(topic_identity(self._consumer.client, self.topic, tps), "looking at the input")

    async def missing(self, topics: Sequence[str]) -> list[str]:
        """Those topics that are not there. Empty when nobody answers: then nothing is known."""
        try:
            async with asyncio.timeout(_LOOK_S):
                found = await asyncio.gather(*(topic_identity(self._consumer.client, topic) for topic in topics))
        except (TimeoutError, KafkaError, OSError):
            return []
        return [topic for topic, identity in zip(topics, found, strict=True) if identity is None]

    async def at_time(self, partitions: Iterable[int], timestamp_ms: int) -> dict[int, int]:
        """First offsets at or after a time; the end where there is none."""
        parts = list(partitions)
        found = await self._consumer.offsets_for_times({self._tp(partition): timestamp_ms for partition in parts})
        ends = await self.ends(parts)
        return {
            partition: found[self._tp(partition)].offset if found.get(self._tp(partition)) else ends[partition]
            for partition in parts
        }

    async def _offsets(
        self, ask: Callable[[list[TopicPartition]], Awaitable[Mapping[Any, int]]], partitions: Iterable[int]
    ) -> dict[int, int]:
        tps = [self._tp(partition) for partition in partitions]
        for attempt in range(20):
            try:
                found = await ask(tps)
                return {key if isinstance(key, int) else key.partition: offset for key, offset in found.items()}
            except (TimeoutError, KafkaError) as error:
                if attempt == 19 or not getattr(error, "retriable", True):
                    raise self._connection.explain(error, f"offsets of {self.topic!r}") from error
                await asyncio.sleep(0.25)
        raise AssertionError("unreachable")

    async def _explained(self, asking: Awaitable[T], doing: str) -> T:
        try:
            return await asking
        except (TimeoutError, KafkaError, OSError) as error:
            raise self._connection.explain(error, f"{doing} ({self.topic!r})") from error


def _known(offset: int | None) -> int | None:
    return offset if offset is not None and offset >= 0 else None
