"""What a fetch brought, as the client's parser makes it: whole batches instead of an object per record. The client's own
code decides what of it is committed, aborted or no record at all."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import ref

from aiokafka import TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.consumer import fetcher as _fetcher

from streamer.kafka import foreign

_FETCH = 1
"""API key"""


class _Piece:
    """The records of one batch, in the place of one record: so the client's own code decides about the batch, once."""

    __slots__ = ("offset", "rows")

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows
        self.offset: int = rows[-1].offset


class _Batch:
    """One batch of the client's. Its records come as one piece. What the client asks of every batch is at hand."""

    __slots__ = ("batch", "is_control_batch", "is_transactional", "next_offset", "producer_id")

    def __init__(self, batch: Any) -> None:
        self.batch = batch
        self.producer_id = batch.producer_id
        self.is_transactional = batch.is_transactional
        self.is_control_batch = batch.is_control_batch
        self.next_offset = batch.next_offset

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batch, name)

    def __iter__(self) -> Iterator[_Piece]:
        rows = list(self.batch)
        if rows:
            yield _Piece(rows)


class _Batches:
    """The batches of one answer."""

    def __init__(self, records: Any) -> None:
        self.has_next = records.has_next
        self._records = records

    def next_batch(self) -> _Batch:
        return _Batch(self._records.next_batch())


class _Records(_fetcher.PartitionRecords):
    """Hands on the parsed records themselves, a batch at a time: an eleven-field object per record costs 1.4 us, and the
    client's steps from record to record 0.2.

    Also reads on where compaction left an empty control batch: the marker is gone, so there is no abort to note; and where
    a header's name is no UTF-8."""

    _records: Any
    _records_iterator: Any
    raw: bytes | None
    """What is parsed; kept for the case that the client's parser gives up."""
    rest: Sequence[Any] = ()
    """Of the last piece, what a poll had no room for"""

    @classmethod
    def become(cls, came: Any, raw: bytes | None) -> None:
        """``came``, a result of the client that nobody has read yet, becomes ours. Not made anew, since a poll brings few
        records of many partitions."""
        came.__class__ = cls
        came.raw = raw
        came._records_iterator = came._unpack_records()

    def take(self, most: int) -> tuple[list[Any], bool]:
        """The next ``most`` records, and whether those were all: known when there are fewer."""
        found, self.rest = list(self.rest), ()
        try:
            while len(found) < most:
                piece = next(self._records_iterator, None)
                if piece is None:
                    self._records_iterator = None
                    return found, True
                found += piece.rows
        except BaseException:
            self.rest = found  # nothing of them was handed on
            raise
        found, self.rest = found[:most], found[most:]
        if found:
            self.next_fetch_offset = found[-1].offset + 1  # the client's code has gone to the end of the piece
        return found, False

    def _unpack_records(self) -> Iterator[Any]:
        try:
            self._records = _Batches(self._records)
            yield from super()._unpack_records()
        except UnicodeDecodeError:
            if self.raw is None:
                raise
            self._records = _Batches(foreign.Records(self.raw))  # from the beginning: what was read is passed over
            yield from super()._unpack_records()

    def _consumer_record(self, tp: TopicPartition, record: Any) -> Any:
        if record.rows[0].offset < self.next_fetch_offset:
            record.rows = [row for row in record.rows if row.offset >= self.next_fetch_offset]
        return record

    def _contains_abort_marker(self, next_batch: Any) -> bool:
        try:
            return bool(super()._contains_abort_marker(next_batch.batch))
        except kafka_errors.KafkaError as error:
            if "did not contain any records" in str(error):
                return False
            raise


def _getall(reference: ref[_fetcher.FetchResult]) -> Callable[[int | None], list[Any]]:
    """What the client asks a result for: pieces instead of one record after the other."""

    def getall(max_records: int | None = None) -> list[Any]:
        result = reference()
        if result is None or not result.check_assignment(result._topic_partition) or not result.has_more():
            return []
        found: list[Any]
        found, ended = result._partition_records.take(sys.maxsize if max_records is None else max_records)
        result._update_position()
        if ended:
            result._partition_records = None
        return found

    return getall


class Tap:
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
                self._raw.update({TopicPartition(topic, part[0]): part[-1] for part in partitions if part[-1]})
        return response


class Buffers(OrderedDict[TopicPartition, Any]):
    """What a fetcher has fetched, by partition: records that nobody has read yet become ours when they come in."""

    def __init__(self, raw: dict[TopicPartition, bytes]) -> None:
        super().__init__()
        self._bytes = raw

    def __setitem__(self, tp: TopicPartition, result: Any) -> None:
        if isinstance(result, _fetcher.FetchResult):
            _Records.become(result._partition_records, self._bytes.pop(tp, None))
            result.getall = _getall(ref(result))  # the client wants the very class
        super().__setitem__(tp, result)
