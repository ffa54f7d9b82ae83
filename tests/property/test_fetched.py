"""What a fetch brought comes as the stock client would hand it on: the same records, the same positions, however polls cut it,
with transactions that were aborted, markers, gaps of compaction and positions in the middle of a batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from hypothesis import given, settings
from hypothesis import strategies as st
from native_columns import INSTALLED, require_native

from streamer.core import RecordBatch
from streamer.kafka.fetched import Buffers

TP = TopicPartition("in", 0)
CONTROL, TRANSACTIONAL = 0x20, 0x10
ABORT, COMMIT = b"\x00\x00\x00\x00", b"\x00\x00\x00\x01"


@dataclass
class Position:
    position: int
    paused: bool = False

    def consumed_to(self, position: int) -> None:
        self.position = position


@dataclass
class Assigned:
    """What a fetch result asks of the assignment."""

    state: Position
    active: bool = True

    def state_value(self, tp: TopicPartition) -> Position:
        return self.state


@dataclass
class Log:
    raw: bytearray = field(default_factory=bytearray)
    end: int = 0
    aborted: list[tuple[int, int]] = field(default_factory=list)
    """(producer id, first offset)"""

    def add(self, kept: list[bool], *, producer: int, flags: int, key: bytes | None = None) -> None:
        """One batch over ``len(kept)`` offsets, of which compaction left some."""
        builder = DefaultRecordBatchBuilder(2, 0, int(flags & TRANSACTIONAL > 0), producer, 0, -1, 1 << 20)
        for row, there in enumerate(kept):
            if there:
                builder.append(row, 1_700_000_000_000 + row, key or b"k%d" % (self.end + row), b"v", [])
        data = builder.build()
        data[0:8] = self.end.to_bytes(8, "big")
        data[21:23] = (int.from_bytes(data[21:23], "big") | flags).to_bytes(2, "big")
        data[23:27] = (len(kept) - 1).to_bytes(4, "big")
        data[17:21] = calc_crc32c(bytes(data[21:])).to_bytes(4, "big")
        self.raw += data
        self.end += len(kept)


@st.composite
def logs(draw: st.DrawFn) -> Log:
    log = Log()
    for _ in range(draw(st.integers(1, 5))):
        kept = draw(st.lists(st.booleans(), min_size=1, max_size=9).filter(any))
        kind = draw(st.sampled_from(["plain", "plain", "committed", "aborted"]))
        if kind == "plain":
            log.add(kept, producer=-1, flags=0)
            continue
        producer = draw(st.integers(1, 2))
        if kind == "aborted":
            log.aborted.append((producer, log.end))
        log.add(kept, producer=producer, flags=TRANSACTIONAL)
        marker = ABORT if kind == "aborted" else COMMIT
        log.add([True], producer=producer, flags=TRANSACTIONAL | CONTROL, key=marker)
    return log


NATIVE = [None, require_native()] if INSTALLED else [None]


def results(log: Log, first: int, native: Any = None) -> tuple[Any, Any]:
    """Stock and ours, each with a position of its own."""
    made = []
    for _ in range(2):
        records = fetcher.PartitionRecords(
            TP, MemoryRecords(bytes(log.raw)), log.aborted, first, None, None, True, fetcher.READ_COMMITTED
        )
        made.append(fetcher.FetchResult(TP, assignment=Assigned(Position(first)), partition_records=records, backoff=0))
    buffers = Buffers({TP: bytes(log.raw)}, native)
    buffers[TP] = made[1]
    assert type(buffers[TP]) is fetcher.FetchResult, "the client looks for the very class"
    return made[0], buffers[TP]


def rows_of(found: RecordBatch | None) -> list[tuple[Any, ...]]:
    if found is None:
        return []
    return list(zip(found.offsets, found.timestamps_ms, found.keys, found.values, strict=True))


@settings(max_examples=max(300, settings.default.max_examples), deadline=None)
@given(log=logs(), data=st.data())
def test_the_same_records_and_positions_as_the_stock_client(log: Log, data: st.DataObject) -> None:
    stock, ours = results(log, data.draw(st.integers(0, log.end - 1)), data.draw(st.sampled_from(NATIVE)))
    while stock.has_more():
        most = data.draw(st.none() | st.integers(1, 12))
        wanted, found = stock.getall(most), ours.getall(most)
        assert rows_of(found) == [(r.offset, r.timestamp, r.key, r.value) for r in wanted]
        assert ours.has_more() == stock.has_more()
        assert ours._assignment.state.position == stock._assignment.state.position
    assert not ours.has_more()


@pytest.mark.parametrize("native", NATIVE)
def test_a_broken_batch_gives_nothing_twice_and_nothing_away(native: Any) -> None:
    """What was read before the error is either fetched again, from the position, or still handed on."""
    log = Log()
    log.add([True] * 4, producer=-1, flags=0)
    log.add([True] * 4, producer=-1, flags=0)
    log.raw[-1] ^= 1
    _, ours = results(log, 0, native)
    assert ours.getall(3).offsets == [0, 1, 2]
    with pytest.raises(Exception, match="Invalid CRC"):
        ours.getall(8)
    assert ours._assignment.state.position == 3
    assert [offset for offset, *_ in rows_of(ours.getall(8))] in ([], [3])
