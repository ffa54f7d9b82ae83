"""Partitioned logs: record batches as the client sent them, transactions, producers' sequences, compaction, retention.

Every batch that was ever appended stays in ``Log.ever`` for the oracle, whatever compaction and retention do to the log."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

HEADER = struct.Struct(">qiibIhiqqqhii")
ATTRIBUTES_AT, CRC_AT = 21, 17
TRANSACTIONAL, CONTROL = 0x10, 0x20
NONE, OFFSET_OUT_OF_RANGE, MESSAGE_TOO_LARGE, INVALID_TIMESTAMP = 0, 1, 10, 32
OUT_OF_ORDER_SEQUENCE, INVALID_PRODUCER_EPOCH, INVALID_TXN_STATE = 45, 47, 48
_REMEMBERED = 5
"""Batches per producer whose repetition is told from a new one."""


@dataclass(slots=True)
class Record:
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


@dataclass(slots=True)
class StoredBatch:
    base: int
    last: int
    raw: bytes
    producer: int
    epoch: int
    sequence: int
    transactional: bool
    control: bool
    count: int
    max_timestamp_ms: int
    appended_ms: int = 0
    commit: bool | None = None
    """Of a marker"""
    started: int | None = None
    """Of a marker: offset of its transaction's first record here, None if there is none"""

    @classmethod
    def parse(cls, raw: bytes) -> StoredBatch:
        base, _, _, magic, _, attributes, last, _, newest, producer, epoch, sequence, count = HEADER.unpack_from(raw)
        assert magic == 2
        transactional, control = bool(attributes & TRANSACTIONAL), bool(attributes & CONTROL)
        return cls(base, base + last, raw, producer, epoch, sequence, transactional, control, count, newest)

    def at(self, base: int) -> StoredBatch:
        return replace(self, base=base, last=base + self.last - self.base, raw=struct.pack(">q", base) + self.raw[8:])

    def records(self) -> Iterator[Record]:
        for found in DefaultRecordBatch(self.raw):
            yield Record(found.offset, found.timestamp, found.key, found.value, tuple(found.headers))

    def keeping(self, kept: Sequence[Record]) -> StoredBatch:
        """With fewer records, the same first and last offset, as the cleaner leaves it."""
        raw = build(kept, self.base, self.producer, self.epoch, self.sequence, self.transactional, control=self.control)
        fields = list(HEADER.unpack_from(raw))
        fields[6], fields[8] = self.last - self.base, self.max_timestamp_ms
        body = bytearray(HEADER.pack(*fields) + raw[HEADER.size :])
        struct.pack_into(">I", body, CRC_AT, calc_crc32c(bytes(body[ATTRIBUTES_AT:])))
        return replace(self, raw=bytes(body), count=len(kept))


def build(
    records: Iterable[Record],
    base: int,
    producer: int = -1,
    epoch: int = -1,
    sequence: int = -1,
    transactional: bool = False,
    *,
    control: bool = False,
) -> bytes:
    """One record batch; offsets of the records are absolute."""
    builder = DefaultRecordBatchBuilder(2, 0, int(transactional), producer, epoch, sequence, 1 << 30)
    for record in records:
        builder.append(record.offset - base, record.timestamp_ms, record.key, record.value, list(record.headers))
    raw = bytearray(builder.build())
    struct.pack_into(">q", raw, 0, base)
    if control:
        attributes = struct.unpack_from(">h", raw, ATTRIBUTES_AT)[0] | CONTROL
        struct.pack_into(">h", raw, ATTRIBUTES_AT, attributes)
        struct.pack_into(">I", raw, CRC_AT, calc_crc32c(bytes(raw[ATTRIBUTES_AT:])))
    return bytes(raw)


@dataclass(slots=True)
class Producer:
    """What a log knows of a producer id."""

    epoch: int
    batches: deque[tuple[int, int, int]] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    """(first sequence, last sequence, base offset)"""
    started: int | None = None
    """First offset of its open transaction"""


class Log:
    """One partition."""

    def __init__(self, topic: str, partition: int, config: dict[str, str], segment_bytes: int = 1 << 30) -> None:
        self.topic, self.partition, self.config = topic, partition, config
        self.segment_bytes = segment_bytes
        self.batches: list[StoredBatch] = []
        self.ever: list[StoredBatch] = []
        self.start = 0
        self.end = 0
        self.producers: dict[int, Producer] = {}
        self.aborted: list[tuple[int, int, int]] = []
        """(producer id, first offset, offset of the marker)"""
        self.aborted_ever: list[tuple[int, int, int]] = []
        self.segments = [0]
        """Base offsets"""
        self._segment_size = 0
        self.waiting: list[Any] = []
        """Called at each append"""

    # writing

    @property
    def stable(self) -> int:
        """Last stable offset: nothing before it is undecided."""
        open_at = [producer.started for producer in self.producers.values() if producer.started is not None]
        return min(open_at, default=self.end)

    @property
    def max_bytes(self) -> int:
        return int(self.config.get("max.message.bytes", 1_048_588))

    def append(self, raw: bytes, now_ms: int) -> tuple[int, int]:
        """(error code, base offset) of a batch that a producer sent."""
        batch = StoredBatch.parse(raw)
        if len(raw) > self.max_bytes:
            return MESSAGE_TOO_LARGE, -1
        if batch.max_timestamp_ms - now_ms > int(self.config.get("message.timestamp.after.max.ms", 3_600_000)):
            return INVALID_TIMESTAMP, -1
        if batch.producer >= 0:
            code, base = self._check(batch)
            if code != NONE or base is not None:
                return code, -1 if base is None else base
        return NONE, self._store(batch, now_ms)

    def _check(self, batch: StoredBatch) -> tuple[int, int | None]:
        """Whether the producer may write this: (error code, base offset if it is stored already)."""
        known = self.producers.get(batch.producer)
        last = batch.sequence + batch.count - 1
        if known is not None:
            if batch.epoch < known.epoch:
                return INVALID_PRODUCER_EPOCH, None
            if batch.epoch == known.epoch:
                for first, through, base in known.batches:
                    if (first, through) == (batch.sequence, last):
                        return NONE, base
                if known.batches:
                    expected = (known.batches[-1][1] + 1) & 0x7FFFFFFF
                    if batch.sequence != expected:  # also what was taken so long ago that it is forgotten
                        return OUT_OF_ORDER_SEQUENCE, None
            elif batch.sequence != 0:
                return OUT_OF_ORDER_SEQUENCE, None
        if known is None or batch.epoch != known.epoch:
            known = self.producers[batch.producer] = Producer(batch.epoch)
        known.batches.append((batch.sequence, last, self.end))
        if batch.transactional and known.started is None:
            known.started = self.end
        return NONE, None

    def _store(self, batch: StoredBatch, now_ms: int) -> int:
        base = self.end
        batch = batch.at(base)
        batch.appended_ms = now_ms
        if self._segment_size and self._segment_size + len(batch.raw) > self.segment_bytes:
            self.roll()
        self.end = batch.last + 1
        self._segment_size += len(batch.raw)
        self.batches.append(batch)
        self.ever.append(batch)
        self._wake()
        return base

    def marker(self, producer: int, epoch: int, *, commit: bool, now_ms: int) -> None:
        """Ends a producer's transaction here."""
        known = self.producers.setdefault(producer, Producer(epoch))
        if epoch < known.epoch:
            return
        if epoch > known.epoch:
            known.epoch = epoch
            known.batches.clear()
        key = struct.pack(">hh", 0, int(commit))
        value = struct.pack(">hi", 0, 0)
        raw = build([Record(self.end, now_ms, key, value, ())], self.end, producer, epoch, -1, True, control=True)
        batch = StoredBatch.parse(raw)
        batch.commit, batch.started = commit, known.started
        if known.started is not None and not commit:
            self.aborted.append((producer, known.started, self.end))
            self.aborted_ever.append(self.aborted[-1])
        known.started = None
        self._store(batch, now_ms)

    def _wake(self) -> None:
        waiting, self.waiting = self.waiting, []
        for call in waiting:
            call()

    # reading

    def read(self, offset: int, limit_bytes: int, *, committed: bool) -> tuple[bytes, list[tuple[int, int]]]:
        """Batches from the one that holds ``offset``, at least one, within a segment; aborted transactions among them."""
        bound = self.stable if committed else self.end
        at = bisect_right(self.batches, offset, key=lambda batch: batch.base) - 1
        if at >= 0 and self.batches[at].last < offset:
            at += 1
        at = max(at, 0)
        parts: list[bytes] = []
        size, until = 0, offset
        if at < len(self.batches):
            place = bisect_right(self.segments, self.batches[at].base)
            segment_end = self.segments[place] if place < len(self.segments) else self.end
            for batch in self.batches[at:]:
                if batch.base >= bound or batch.base >= segment_end or (parts and size + len(batch.raw) > limit_bytes):
                    break
                parts.append(batch.raw)
                size += len(batch.raw)
                until = batch.last + 1
        aborted = []
        if committed and parts:
            aborted = [(pid, first) for pid, first, last in self.aborted if last >= offset and first < until]
        return b"".join(parts), aborted

    def available(self, offset: int, *, committed: bool) -> int:
        """Bytes from ``offset``."""
        bound = self.stable if committed else self.end
        size = 0
        for batch in reversed(self.batches):
            if batch.last < offset:
                break
            if batch.base < bound:
                size += len(batch.raw)
        return size

    def at_time(self, timestamp_ms: int, *, committed: bool) -> tuple[int, int]:
        """(timestamp, offset) of the first record that is not older; -1, -1 where there is none."""
        bound = self.stable if committed else self.end
        for batch in self.batches:
            if batch.control or batch.max_timestamp_ms < timestamp_ms or batch.base >= bound:
                continue
            for record in batch.records():
                if record.timestamp_ms >= timestamp_ms and record.offset >= self.start:
                    return record.timestamp_ms, record.offset
        return -1, -1

    def visible(self, *, ever: bool = False, undecided: bool = False) -> Iterator[tuple[StoredBatch, Record]]:
        """Records that a read_committed consumer sees, for the oracle. ``ever``: also what was deleted since."""
        bound = self.end if undecided else self.stable
        aborted = self.aborted_ever
        for batch in self.ever if ever else self.batches:
            if batch.control or batch.base >= bound:
                continue
            if batch.transactional and any(p == batch.producer and f <= batch.base < e for p, f, e in aborted):
                continue
            for record in batch.records():
                yield batch, record

    # what time does to a log

    def roll(self) -> None:
        """Begins a new segment."""
        if self.end > self.segments[-1]:
            self.segments.append(self.end)
            self._segment_size = 0

    def delete_before(self, offset: int) -> None:
        """Retention: everything below ``offset`` goes."""
        self.start = max(self.start, min(offset, self.stable))
        self.batches = [batch for batch in self.batches if batch.last >= self.start]
        self.aborted = [each for each in self.aborted if each[2] >= self.start]
        while len(self.segments) > 1 and self.segments[1] <= self.start:
            self.segments.pop(0)

    def compact(self, now_ms: int) -> None:
        """Keeps the newest record per key below the active segment; tombstones and markers go after their time."""
        dirty_end = min(self.segments[-1], self.stable)
        keep_ms = int(self.config.get("delete.retention.ms", 86_400_000))
        newest: dict[bytes, int] = {}
        cleaned = [batch for batch in self.batches if batch.last < dirty_end]
        for batch in cleaned:
            if not batch.control and not self._is_aborted(batch):
                for record in batch.records():
                    newest[record.key or b""] = record.offset
        result: list[StoredBatch] = []
        for batch in cleaned:
            kept = self._clean(batch, newest, now_ms, keep_ms)
            if kept is not None:
                result.append(kept)
        self.batches = result + [batch for batch in self.batches if batch.last >= dirty_end]

    def _clean(self, batch: StoredBatch, newest: dict[bytes, int], now_ms: int, keep_ms: int) -> StoredBatch | None:
        last_of_producer = batch.producer >= 0 and not any(
            later.producer == batch.producer and later.base > batch.base for later in self.batches
        )
        expired = now_ms - batch.appended_ms > keep_ms
        if batch.control:
            data_left = batch.started is not None and any(
                each.producer == batch.producer and batch.started <= each.base < batch.base and each.count
                for each in self.batches
                if not each.control
            )
            if data_left or not expired or not batch.count:
                return batch if batch.count or last_of_producer else None
            return batch.keeping([]) if last_of_producer else None
        if self._is_aborted(batch):
            kept: list[Record] = []
        else:
            kept = [
                record
                for record in (batch.records() if batch.count else ())
                if newest.get(record.key or b"") == record.offset and not (record.value is None and expired)
            ]
        if len(kept) == batch.count and batch.count:
            return batch
        if not kept and not last_of_producer:
            return None
        return batch.keeping(kept)

    def _is_aborted(self, batch: StoredBatch) -> bool:
        return batch.transactional and any(
            producer == batch.producer and first <= batch.base < last for producer, first, last in self.aborted
        )
