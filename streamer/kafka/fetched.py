"""What a fetch brought, a batch at a time: columns instead of an object per record. The client's own code decides what of
it is committed, aborted or no record at all."""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any
from weakref import ref

from aiokafka import TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.consumer import fetcher as _fetcher

from streamer.core import RecordBatch
from streamer.kafka.batches import Raw, intact, read
from streamer.kafka.received import Reader

_FETCH = 1
"""API key"""
MAX_POLL_BYTES = 1 << 26
"""Of a partition: no further batch is unpacked for a poll that has so much (64 MiB). Of the compressed bytes a fetch is
bounded, and a thousand times as much may be in them."""


class _Piece:
    """The records of one batch, in the place of one record: so the client's own code decides about the batch, once."""

    __slots__ = ("offset", "rows", "size")

    def __init__(self, rows: RecordBatch, size: int) -> None:
        """``size``: bytes of the batch, unpacked."""
        self.rows, self.size = rows, size
        self.offset: int = rows.offsets[-1]


class _Batch:
    """One batch of the client's. Its records come as one piece. What the client asks of every batch is at hand."""

    __slots__ = (
        "_native", "_partition", "_raw", "batch", "is_control_batch", "is_transactional", "next_offset", "producer_id",
    )  # fmt: skip

    def __init__(self, batch: Any, raw: Raw, partition: int, native: Any) -> None:
        self.batch, self._raw, self._partition, self._native = batch, raw, partition, native
        self.producer_id = batch.producer_id
        self.is_transactional = batch.is_transactional
        self.is_control_batch = batch.is_control_batch
        self.next_offset = batch.next_offset

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batch, name)

    def validate_crc(self) -> bool:
        return intact(self.batch, self._raw, self._native)

    def __iter__(self) -> Iterator[_Piece]:
        rows, size = read(self.batch, self._raw, self._partition, self._native)
        if rows:
            yield _Piece(rows, size)


class _Batches:
    """The batches of one answer. ``raw``: what is parsed."""

    def __init__(self, records: Any, raw: bytes, partition: int, native: Any) -> None:
        self.has_next = records.has_next
        self._records, self._partition, self._native = records, partition, native
        self._raw, self._at = raw, 0

    def next_batch(self) -> _Batch:
        batch = self._records.next_batch()
        raw = Raw.at(self._raw, self._at)
        self._at = raw.end
        return _Batch(batch, raw, self._partition, self._native)


class _Records(_fetcher.PartitionRecords):
    """Hands on columns, a batch at a time: an eleven-field object per record costs 1.4 us, and the client's steps from record
    to record 0.2.

    Also reads on where compaction left an empty control batch: the marker is gone, so there is no abort to note; where a
    header's name is no UTF-8; and where a batch cannot be unpacked or read, although its checksum is right: every other
    fetch would bring the same."""

    _records: Any
    _records_iterator: Any
    raw: bytes
    """What is parsed"""
    native: Any
    rest: RecordBatch | None = None
    """Of the last piece, what a poll had no room for"""

    @classmethod
    def become(cls, came: Any, raw: bytes, native: Any) -> None:
        """``came``, a result of the client that nobody has read yet, becomes ours. Not made anew, since a poll brings few
        records of many partitions."""
        came.__class__ = cls
        came.raw, came.native = raw, native
        came._records_iterator = came._unpack_records()

    def take(self, most: int) -> tuple[RecordBatch | None, bool]:
        """The next ``most`` records, fewer where they are large; and whether those were all."""
        found, self.rest = self.rest, None
        size = 0
        try:
            while (found is None or len(found) < most) and size < MAX_POLL_BYTES:
                piece = next(self._records_iterator, None)
                if piece is None:
                    self._records_iterator = None
                    return found, True
                size += piece.size
                if found is None:
                    found = piece.rows
                else:
                    found.add(piece.rows)
        except BaseException:
            self.rest = found  # nothing of them was handed on
            raise
        if found is not None:
            if len(found) > most:
                found, self.rest = found.rows(0, most), found.rows(most, len(found))
            self.next_fetch_offset = found.offsets[-1] + 1  # the client's code has gone to the end of the piece
        return found, False

    def _unpack_records(self) -> Iterator[Any]:
        self._records = _Batches(self._records, self.raw, self._tp.partition, self.native)
        yield from super()._unpack_records()

    def _consumer_record(self, tp: TopicPartition, record: Any) -> Any:
        rows = record.rows
        if rows.offsets[0] < self.next_fetch_offset:
            record.rows = rows.rows(bisect_left(rows.offsets, self.next_fetch_offset), len(rows))
        return record

    def _contains_abort_marker(self, next_batch: Any) -> bool:
        try:
            return bool(super()._contains_abort_marker(next_batch.batch))
        except kafka_errors.KafkaError as error:
            if "did not contain any records" in str(error):
                return False
            raise


def _getall(reference: ref[_fetcher.FetchResult]) -> Callable[[int | None], RecordBatch | None]:
    """What the client asks a result for: columns instead of one record after the other."""

    def getall(max_records: int | None = None) -> RecordBatch | None:
        result = reference()
        if result is None or not result.check_assignment(result._topic_partition) or not result.has_more():
            return None
        found: RecordBatch | None
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
            for connection in self._client._conns.values():
                Reader.become(connection._reader)  # a read that waits already ends in the base's way
            for topic, partitions in response.topics:
                self._raw.update({TopicPartition(topic, part[0]): part[-1] for part in partitions if part[-1]})
        return response


class Buffers(OrderedDict[TopicPartition, Any]):
    """What a fetcher has fetched, by partition: records that nobody has read yet become ours when they come in."""

    def __init__(self, raw: dict[TopicPartition, bytes], native: Any = None) -> None:
        super().__init__()
        self._bytes, self._native = raw, native

    def __setitem__(self, tp: TopicPartition, result: Any) -> None:
        if isinstance(result, _fetcher.FetchResult):
            _Records.become(result._partition_records, self._bytes.pop(tp), self._native)
            result.getall = _getall(ref(result))  # the client wants the very class
        super().__setitem__(tp, result)
