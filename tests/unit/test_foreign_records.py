"""Header names that are no UTF-8: every record of the batch is read, whatever it is compressed with."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c

from streamer.kafka.fetched import Buffers
from streamer.kafka.input import to_columns


def batch(base: int, records: list[tuple[bytes, list[tuple[str, bytes | None]]]], odd: dict[bytes, bytes]) -> bytes:
    """One batch of (value, headers) at offsets from ``base``; names in ``odd`` are replaced by bytes of their length."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=1 << 20,
    )
    for row, (value, headers) in enumerate(records):
        builder.append(row, 1_700_000_000_000 + row, b"k", value, headers)
    raw = bytearray(builder.build())
    for name, bytes_ in odd.items():
        assert len(name) == len(bytes_)
        raw = raw.replace(name, bytes_)
    raw[0:8] = base.to_bytes(8, "big")
    raw[17:21] = calc_crc32c(bytes(raw[21:])).to_bytes(4, "big")
    return bytes(raw)


def read(data: bytes, first: int = 0) -> Any:
    """As a consumer's fetcher hands it on."""
    tp = TopicPartition("in", 0)
    buffers = Buffers({tp: data})
    came = fetcher.PartitionRecords(tp, MemoryRecords(data), [], first, None, None, True, fetcher.READ_COMMITTED)
    buffers[tp] = fetcher.FetchResult(tp, assignment=None, partition_records=came, backoff=0)
    parsed = buffers[tp]._partition_records
    assert not buffers._bytes, "what is parsed is kept once"
    return to_columns(0, parsed.take(1 << 20)[0]), parsed.next_fetch_offset


@pytest.mark.parametrize("first", [0, 2, 4])
@pytest.mark.parametrize("odd_at", [0, 1, 3])
def test_every_record_is_read_and_the_odd_name_is_told(odd_at: int, first: int) -> None:
    plain: list[tuple[str, bytes | None]] = [("trace", b"1"), ("none", None)]
    rows = [(b"v%d" % row, plain if row != odd_at else [("ODDNAME", b"x"), *plain]) for row in range(4)]
    data = batch(0, rows, {b"ODDNAME": b"\xff\xfename"[:7].ljust(7, b"!")}) + batch(4, [(b"v4", plain)], {})
    columns, following = read(data, first)
    assert columns.values == [b"v%d" % row for row in range(first, 5)]
    assert columns.offsets == list(range(first, 5))
    assert columns.timestamps_ms[-1] == 1_700_000_000_000
    assert following == 5
    if odd_at >= first:
        assert columns.headers[odd_at - first] == (("\\xff\\xfename!", b"x"), *plain)
    assert columns.headers[4 - first] == tuple(plain)


def test_without_odd_names_the_clients_parser_reads_all() -> None:
    columns, following = read(batch(7, [(b"a", []), (b"b", [("h", b"1")])], {}), 7)
    assert columns.values == [b"a", b"b"]
    assert columns.headers == {1: (("h", b"1"),)}
    assert following == 9
