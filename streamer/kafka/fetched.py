"""What a fetch brought, as the client's parser makes it: whole batches instead of an object per record. The client's own
code decides what of it is committed, aborted or no record at all."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from operator import attrgetter
from typing import Any
from weakref import ref

from aiokafka import TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.consumer import fetcher as _fetcher
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.util import calc_crc32c

from streamer.core import UNREADABLE_HEADER
from streamer.kafka import foreign
from streamer.kafka.compressed import unpacked

_FETCH = 1
"""API key"""
_LENGTH, _MAGIC, _CHECKSUM, _SUMMED = slice(8, 12), 16, slice(17, 21), 21
"""Of a batch: what lies behind the length is as long, and what lies behind ``_SUMMED`` has the checksum."""
_V2 = 2
MAX_POLL_BYTES = 1 << 26
"""Of a partition: no further batch is unpacked for a poll that has so much (64 MiB). Of the compressed bytes a fetch is
bounded, and a thousand times as much may be in them."""
_OFFSET = attrgetter("offset")
_TOLD = 500
"""Characters of why a batch cannot be read"""


class _Piece:
    """The records of one batch, in the place of one record: so the client's own code decides about the batch, once."""

    __slots__ = ("offset", "rows", "size")

    def __init__(self, rows: list[Any], size: int) -> None:
        """``size``: bytes of the batch, unpacked."""
        self.rows, self.size = rows, size
        self.offset: int = rows[-1].offset


class _Unread:
    """In the place of records that nobody can read: a record without key and value, at the last of their offsets."""

    key = value = None

    def __init__(self, first: int, batch: Any, why: BaseException) -> None:
        self.offset: int = batch.next_offset - 1
        self.timestamp: int = batch.max_timestamp
        where = f"offset {first}" if first == self.offset else f"offsets {first} to {self.offset}"
        told = f"{where}: the record batch cannot be read ({type(why).__name__}: {why})"[:_TOLD]
        self.headers = ((UNREADABLE_HEADER, told.encode("utf-8", "backslashreplace")),)


class _Batch:
    """One batch of the client's. Its records come as one piece. What the client asks of every batch is at hand."""

    __slots__ = ("_raw", "_size", "batch", "is_control_batch", "is_transactional", "next_offset", "producer_id")

    def __init__(self, batch: Any, raw: memoryview) -> None:
        self.batch, self._raw, self._size = batch, raw, len(raw)
        self.producer_id = batch.producer_id
        self.is_transactional = batch.is_transactional
        self.is_control_batch = batch.is_control_batch
        self.next_offset = batch.next_offset

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batch, name)

    def __iter__(self) -> Iterator[_Piece]:
        rows: list[Any] = []
        try:
            self._read(rows)
            _in_order(rows, self.batch)
        except (kafka_errors.UnsupportedCodecError, MemoryError):
            raise  # another process, with the library or with more memory, can read them
        except Exception as error:
            if not _whole(self._raw):
                raise kafka_errors.CorruptRecordException(f"{type(error).__name__}: {error}") from error
            with suppress(ValueError):
                _in_order(rows, self.batch)
            first = rows[-1].offset + 1 if rows else self.batch.base_offset
            if first < self.batch.next_offset:
                rows.append(_Unread(first, self.batch, error))
        if rows:
            yield _Piece(rows, self._size)

    def _read(self, rows: list[Any]) -> None:
        """Adds records to ``rows`` as far as they can be read."""
        batch, raw = self.batch, self._raw
        if batch.magic < _V2:
            rows.extend(batch)
            return
        if batch.compression_type:
            raw = memoryview(unpacked(raw))
            self._size = len(raw)
            batch = DefaultRecordBatch(bytes(raw))
        try:
            rows.extend(batch)  # what came before an error stays
        except UnicodeDecodeError:  # a header's name
            rows.extend(islice(foreign.records(bytes(raw)), len(rows), None))


class _Batches:
    """The batches of one answer. ``raw``: what is parsed."""

    def __init__(self, records: Any, raw: bytes) -> None:
        self.has_next = records.has_next
        self._records = records
        self._raw = memoryview(raw)

    def next_batch(self) -> _Batch:
        batch = self._records.next_batch()
        end = _LENGTH.stop + int.from_bytes(self._raw[_LENGTH], "big")
        found, self._raw = self._raw[:end], self._raw[end:]
        return _Batch(batch, found)


def _in_order(rows: list[Any], batch: Any) -> None:
    """ValueError: offsets of ``rows`` do not grow, or lie beyond the batch: producers write them, and brokers do not look.
    The rows from the first such one on are taken out."""
    offsets = list(map(_OFFSET, rows))
    before, end = batch.base_offset - 1, batch.next_offset
    if (
        offsets
        and before < offsets[0]
        and offsets[-1] < end
        and offsets == [*range(offsets[0], offsets[0] + len(rows))]
    ):
        return
    for row, offset in enumerate(offsets):
        if not before < offset < end:
            del rows[row:]
            raise ValueError(f"record {row} of the batch claims offset {offset}")
        before = offset


def _whole(batch: memoryview) -> bool:
    """Whether a batch (format v2) is as its producer made it: else another fetch may bring it whole."""
    return batch[_MAGIC] == _V2 and calc_crc32c(batch[_SUMMED:].tobytes()) == int.from_bytes(batch[_CHECKSUM], "big")


class _Records(_fetcher.PartitionRecords):
    """Hands on the parsed records themselves, a batch at a time: an eleven-field object per record costs 1.4 us, and the
    client's steps from record to record 0.2.

    Also reads on where compaction left an empty control batch: the marker is gone, so there is no abort to note; where a
    header's name is no UTF-8; and where a batch cannot be unpacked or read, although its checksum is right: every other
    fetch would bring the same."""

    _records: Any
    _records_iterator: Any
    raw: bytes
    """What is parsed"""
    rest: Sequence[Any] = ()
    """Of the last piece, what a poll had no room for"""

    @classmethod
    def become(cls, came: Any, raw: bytes) -> None:
        """``came``, a result of the client that nobody has read yet, becomes ours. Not made anew, since a poll brings few
        records of many partitions."""
        came.__class__ = cls
        came.raw = raw
        came._records_iterator = came._unpack_records()

    def take(self, most: int) -> tuple[list[Any], bool]:
        """The next ``most`` records, fewer where they are large; and whether those were all."""
        found, self.rest = list(self.rest), ()
        size = 0
        try:
            while len(found) < most and size < MAX_POLL_BYTES:
                piece = next(self._records_iterator, None)
                if piece is None:
                    self._records_iterator = None
                    return found, True
                found += piece.rows
                size += piece.size
        except BaseException:
            self.rest = found  # nothing of them was handed on
            raise
        found, self.rest = found[:most], found[most:]
        if found:
            self.next_fetch_offset = found[-1].offset + 1  # the client's code has gone to the end of the piece
        return found, False

    def _unpack_records(self) -> Iterator[Any]:
        self._records = _Batches(self._records, self.raw)
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
            _Records.become(result._partition_records, self._bytes.pop(tp))
            result.getall = _getall(ref(result))  # the client wants the very class
        super().__setitem__(tp, result)
