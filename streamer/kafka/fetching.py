"""What the client does not offer to who reads: records in columns, private facts, bytes that its parser gives up on. The other
half of ``internals``, by the same rules."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.consumer import fetcher as _fetcher

from streamer.kafka import foreign

_FETCH = 1
"""API key"""


class _Records(_fetcher.PartitionRecords):
    """Hands on the parsed record itself instead of building an eleven-field object per record (1.4 us each).

    Also reads on where compaction left an empty control batch: the marker is gone, so there is no abort to note; and where
    a header's name is no UTF-8."""

    raw: bytes | None = None
    """What is parsed; kept for the case that the client's parser gives up."""

    def __iter__(self) -> Any:
        return self._records_iterator

    def _unpack_records(self) -> Iterator[Any]:
        try:
            yield from super()._unpack_records()
        except UnicodeDecodeError:
            if self.raw is None:
                raise
            self._records = foreign.Records(self.raw)  # from the beginning: what was read is passed over
            yield from super()._unpack_records()

    def _consumer_record(self, tp: TopicPartition, record: Any) -> Any:
        return record

    def _contains_abort_marker(self, next_batch: Any) -> bool:
        try:
            return bool(super()._contains_abort_marker(next_batch))
        except kafka_errors.KafkaError as error:
            if "did not contain any records" in str(error):
                return False
            raise


class _Tap:
    """The connections of a fetcher. Remembers of each answer the bytes of its records, until they are parsed."""

    def __init__(self, client: Any, raw: dict[TopicPartition, bytes]) -> None:
        self._client = client
        self._raw = raw

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def send(self, *args: Any, **options: Any) -> Any:
        response = await self._client.send(*args, **options)
        if response.API_KEY == _FETCH:
            for topic, partitions in response.topics:
                self._raw.update({TopicPartition(topic, part[0]): part[-1] for part in partitions})
        return response


class _Buffers(OrderedDict[TopicPartition, Any]):
    """What a fetcher has fetched, by partition: records that nobody has read yet become ours when they come in."""

    def __init__(self, raw: dict[TopicPartition, bytes]) -> None:
        super().__init__()
        self._bytes = raw

    def __setitem__(self, tp: TopicPartition, result: Any) -> None:
        if isinstance(result, _fetcher.FetchResult):
            came = result._partition_records
            ours = result._partition_records = _Records(
                came._tp,
                came._records,
                came._aborted_transactions,
                came.next_fetch_offset,
                None,
                None,
                came._check_crcs,
                came._isolation_level,
            )
            ours.raw = self._bytes.pop(tp, None)
        super().__setitem__(tp, result)


class Consumer(AIOKafkaConsumer):
    """A consumer whose private facts can be asked for. ``columns``: records come as the parser made them."""

    def __init__(self, *, columns: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.columns = columns
        self.timeout_ms = options["request_timeout_ms"]

    async def start(self) -> None:
        await super().start()
        if self.columns:
            raw: dict[TopicPartition, bytes] = {}
            self._fetcher._records = _Buffers(raw)
            self._fetcher._client = _Tap(self._client, raw)

    def fetch_position(self, tp: TopicPartition) -> int:
        """Offset of the next fetch."""
        return int(self._subscription.subscription.assignment.state_value(tp).position)

    async def offsets(self, tps: Iterable[TopicPartition], *, end: bool, committed: bool = False) -> dict[int, int]:
        """Begins or ends of the log by partition, whatever this consumer's own isolation: ``committed`` asks for the last
        stable offset instead of the high watermark."""
        asking = copy.copy(self._fetcher)  # the isolation level belongs to the fetcher, not to the question
        asking._isolation_level = _fetcher.READ_COMMITTED if committed else _fetcher.READ_UNCOMMITTED
        which = _fetcher.OffsetResetStrategy.LATEST if end else _fetcher.OffsetResetStrategy.EARLIEST
        # longer than a request may take: only a request that times out itself closes a connection that nobody answers on
        found = await asking._retrieve_offsets(dict.fromkeys(tps, which), 2 * self.timeout_ms)
        return {tp.partition: offset for tp, (offset, _) in found.items()}

    def membership(self) -> tuple[int, str]:
        """(generation, member id) of now. Never to be taken at a commit: the client rejoins in the background."""
        return int(self._coordinator.generation), str(self._coordinator.member_id)

    def raise_errors(self) -> None:
        """What keeps this member out of its group."""
        self._coordinator.check_errors()

    @property
    def client(self) -> Any:
        return self._client
