"""One record batch as columns: by native code where it is sure, without it by the client's compiled parser; where these stumble,
record by record (``careful``), and one row stands for what cannot be read."""

from __future__ import annotations

from contextlib import suppress
from operator import attrgetter
from typing import Any, NamedTuple

from aiokafka import errors as kafka_errors
from aiokafka.record.default_records import DefaultRecordBatch

from streamer.core import UNREADABLE_HEADER, RecordBatch
from streamer.kafka import careful
from streamer.kafka.compressed import unpacked

_LENGTH, _CHECKSUM, _SUMMED = slice(8, 12), slice(17, 21), 21
"""Of a batch: what lies behind the length is as long, and what lies behind ``_SUMMED`` has the checksum."""
_V2 = 2
_TOLD = 500
"""Characters of why a batch cannot be read"""
_OFFSET = attrgetter("offset")
_COLUMNS = tuple(map(attrgetter, ("timestamp", "key", "value", "headers")))


class Raw(NamedTuple):
    """A batch in the bytes of an answer."""

    data: bytes
    begin: int
    end: int

    @classmethod
    def at(cls, data: bytes, begin: int) -> Raw:
        """The one that begins there."""
        length = int.from_bytes(data[begin + _LENGTH.start : begin + _LENGTH.stop], "big")
        return cls(data, begin, begin + _LENGTH.stop + length)

    @property
    def bytes(self) -> bytes:
        return self.data[self.begin : self.end]


def intact(batch: Any, raw: Raw, native: Any) -> bool:
    """Whether the checksum is right. ``batch``: the client's."""
    if native is None or batch.magic < _V2:
        return bool(batch.validate_crc())
    told = int.from_bytes(raw.data[raw.begin + _CHECKSUM.start : raw.begin + _CHECKSUM.stop], "big")
    return bool(native.crc32c(raw.data, raw.begin + _SUMMED, raw.end) == told)


def read(batch: Any, raw: Raw, partition: int, native: Any) -> tuple[RecordBatch, int]:
    """The records of a batch, perhaps none, and its bytes, unpacked. ``batch``: the client's. ``native``: the native module.

    CorruptRecordException: another fetch may bring it whole. UnsupportedCodecError, MemoryError: another process, with the
    library or with more memory, can read it."""
    size = raw.end - raw.begin
    records: list[Any] = []
    try:
        plain = raw
        if batch.magic >= _V2 and batch.compression_type:
            data = unpacked(raw.bytes)
            plain, size = Raw(data, 0, len(data)), len(data)
        if native is not None and batch.magic >= _V2 and (found := native.records(*plain)) is not None:
            return RecordBatch(partition, *found), size
        _parse(batch, plain, records, fast=native is None)
        _in_order(records, batch)
    except (kafka_errors.UnsupportedCodecError, MemoryError):
        raise
    except Exception as error:
        if batch.magic < _V2 or not intact(batch, raw, native):
            raise kafka_errors.CorruptRecordException(f"{type(error).__name__}: {error}") from error
        with suppress(ValueError):
            _in_order(records, batch)
        rows = _columns(partition, records)
        _unread(rows, batch, error)
        return rows, size
    return _columns(partition, records), size


def _parse(batch: Any, plain: Raw, records: list[Any], *, fast: bool) -> None:
    """Adds to ``records`` as far as they can be read. ``fast``: the client's compiled parser is tried first."""
    if batch.magic < _V2:
        records.extend(batch)  # what came before an error stays
        return
    if fast:
        with suppress(Exception):  # the definition says what it was
            records += DefaultRecordBatch(plain.bytes)
            return
        records.clear()
    records.extend(careful.records(plain.bytes))


def _in_order(records: list[Any], batch: Any) -> None:
    """ValueError: offsets do not grow, or lie beyond the batch: producers write them, and brokers do not look. The records
    from the first such one on are taken out."""
    offsets = list(map(_OFFSET, records))
    before, end = batch.base_offset - 1, batch.next_offset
    if (
        offsets
        and before < offsets[0]
        and offsets[-1] < end
        and offsets == [*range(offsets[0], offsets[0] + len(offsets))]
    ):
        return
    for row, offset in enumerate(offsets):
        if not before < offset < end:
            del records[row:]
            raise ValueError(f"record {row} of the batch claims offset {offset}")
        before = offset


def _columns(partition: int, records: list[Any]) -> RecordBatch:
    stamps, keys, values, headers = (list(map(get, records)) for get in _COLUMNS)
    return RecordBatch(
        partition=partition,
        offsets=list(map(_OFFSET, records)),
        timestamps_ms=stamps,
        keys=keys,
        values=values,
        headers={row: tuple(found) for row, found in enumerate(headers) if found} if any(headers) else {},
    )


def _unread(rows: RecordBatch, batch: Any, why: BaseException) -> None:
    """Adds what stands for the records that nobody can read: one without key and value, at the last of their offsets."""
    first = rows.offsets[-1] + 1 if rows else batch.base_offset
    last = batch.next_offset - 1
    if first > last:
        return
    where = f"offset {first}" if first == last else f"offsets {first} to {last}"
    told = f"{where}: the record batch cannot be read ({type(why).__name__}: {why})"[:_TOLD]
    header = (UNREADABLE_HEADER, told.encode("utf-8", "backslashreplace"))
    rows.add(RecordBatch(rows.partition, [last], [batch.max_timestamp], [None], [None], {0: (header,)}))
