"""Record batches that the client alone would end at: names of headers that are no UTF-8, and records that cannot be unpacked."""

from __future__ import annotations

import gzip
from typing import Any

import cramjam
import pytest
from aiokafka import TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException, UnsupportedCodecError
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from decoding import contract
from native_columns import INSTALLED, require_native

from streamer.kafka.fetched import Buffers
from streamer.records.decode import Codec
from streamer.words import Reason


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


def read(data: bytes, first: int = 0, *, check: bool = True) -> Any:
    """As a consumer's fetcher hands it on: alike with native code and without it."""
    found = _read(data, first, check=check, native=None)
    if INSTALLED:
        assert _read(data, first, check=check, native=require_native()) == found
    return found


def _read(data: bytes, first: int, *, check: bool, native: Any) -> Any:
    tp = TopicPartition("in", 0)
    buffers = Buffers({tp: data}, native)
    came = fetcher.PartitionRecords(tp, MemoryRecords(data), [], first, None, None, check, fetcher.READ_COMMITTED)
    buffers[tp] = fetcher.FetchResult(tp, assignment=None, partition_records=came, backoff=0)
    parsed = buffers[tp]._partition_records
    assert not buffers._bytes, "what is parsed is kept once"
    return parsed.take(1 << 20)[0], parsed.next_fetch_offset


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


def squeezed(codec: int, packed: bytes, *, count: int = 3, base: int = 0) -> bytes:
    """A batch whose checksum is right, with ``packed`` for its compressed records."""
    raw = bytearray(batch(base, [(b"v", [])] * count, {})[:61] + packed)
    raw[8:12] = (len(raw) - 12).to_bytes(4, "big")
    raw[21:23] = codec.to_bytes(2, "big")
    raw[17:21] = calc_crc32c(bytes(raw[21:])).to_bytes(4, "big")
    return bytes(raw)


CODECS: dict[int, Any] = {
    1: gzip.compress,
    2: cramjam.snappy.compress_raw,
    3: cramjam.lz4.compress,
    4: cramjam.zstd.compress,
}
RECORDS = batch(0, [(b"v" * 50, [("h", b"1")])] * 3, {})[61:]


def packed(codec: int, data: bytes = RECORDS) -> bytes:
    return bytes(CODECS[codec](data))


@pytest.mark.parametrize("codec", CODECS)
def test_a_batch_that_does_not_unpack_is_one_record_without_key_that_says_so(codec: int) -> None:
    """The service goes on behind it, and its partition has one reject for it."""
    whole = packed(codec)
    for broken in (b"", whole[:-1], whole[: len(whole) // 2], b"\xff" * 40, packed(codec, RECORDS[:-4])):
        data = squeezed(codec, broken) + batch(3, [(b"next", [])], {})
        columns, following = read(data)
        assert (columns.values[-1], columns.offsets[-1], following) == (b"next", 3, 4)
        assert columns.offsets[-2] == 2
        assert columns.keys[-2] is columns.values[-2] is None
        [(name, why)] = columns.headers[len(columns) - 2]
        assert name == "streamer-unreadable"
        assert why is not None
        assert b"cannot be read" in why
        assert b"to 2" in why or b"offset 2" in why
        assert len(why) <= 500


@pytest.mark.parametrize("codec", CODECS)
def test_what_unpacks_is_read(codec: int) -> None:
    columns, following = read(squeezed(codec, packed(codec)))
    assert (columns.values, following) == ([b"v" * 50] * 3, 3)


@pytest.mark.parametrize("codec", [1, 3, 4])
def test_members_and_frames_that_follow_each_other_are_read(codec: int) -> None:
    columns, _ = read(squeezed(codec, packed(codec, RECORDS[:70]) + packed(codec, RECORDS[70:])))
    assert columns.values == [b"v" * 50] * 3


@pytest.mark.parametrize("codec", CODECS)
def test_a_small_batch_does_not_fill_the_memory(codec: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.kafka.compressed.MAX_BATCH_BYTES", 1 << 20)
    columns, following = read(squeezed(codec, packed(codec, RECORDS + bytes(1 << 20))))
    assert (columns.keys, columns.offsets, following) == ([None], [2], 3)
    assert b"larger than 1048576 bytes" in (columns.headers[0][0][1] or b"")


def test_a_batch_with_another_checksum_is_fetched_again() -> None:
    """Whoever reads on without checks has no reject for what only the network broke."""
    data = bytearray(squeezed(4, packed(4)[:-1]))
    data[-1] ^= 1
    with pytest.raises(CorruptRecordException):
        read(bytes(data))
    with pytest.raises(CorruptRecordException):
        read(bytes(data), check=False)


@pytest.mark.parametrize("codec", [5, 6, 7])
def test_a_codec_of_the_future_ends_the_service_and_loses_nothing(codec: int) -> None:
    with pytest.raises(UnsupportedCodecError):
        read(squeezed(codec, b"1234"))


@pytest.mark.parametrize("at", range(len(RECORDS)))
@pytest.mark.parametrize("byte", [0xFF, 0x00, 0x06, 0x7F])
def test_records_before_the_broken_one_are_read(at: int, byte: int) -> None:
    """Whatever byte is wrong: every offset is a record or lies in what is told."""
    damaged = bytearray(RECORDS)
    damaged[at] = byte
    columns, following = read(squeezed(0, bytes(damaged)) + batch(3, [(b"next", [])], {}))
    assert (columns.values[-1], following) == (b"next", 4)
    assert columns.offsets[-2] == 2
    assert columns.offsets == sorted(set(columns.offsets))


def test_what_cannot_be_read_is_a_reject_with_a_reason() -> None:
    columns, _ = read(squeezed(4, b"nonsense"))
    decoded = Codec(contract(), "json").decode(columns)
    [reject] = decoded.rejects
    assert (reject.reason, reject.offset, decoded.next_offset) == (Reason.UNDECODABLE, 2, 3)
    assert "offsets 0 to 2: the record batch cannot be read" in reject.detail


def test_a_poll_of_large_records_brings_fewer_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 MB of a fetch may hold 20,000 records of 1 MB: all of them come, a batch at a time."""
    monkeypatch.setattr("streamer.kafka.fetched.MAX_POLL_BYTES", 2 * len(RECORDS))
    tp, data = TopicPartition("in", 0), b"".join(squeezed(4, packed(4), base=3 * at) for at in range(5))
    buffers = Buffers({tp: data})
    came = fetcher.PartitionRecords(tp, MemoryRecords(data), [], 0, None, None, True, fetcher.READ_COMMITTED)
    buffers[tp] = fetcher.FetchResult(tp, assignment=None, partition_records=came, backoff=0)
    parsed, polls, ended = buffers[tp]._partition_records, [], False
    while not ended:
        found, ended = parsed.take(4 if len(polls) == 1 else 1 << 20)
        polls.append([] if found is None else found.offsets)
        assert parsed.next_fetch_offset == sum(map(len, polls))
    assert polls == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9], [10, 11, 12, 13, 14]]
