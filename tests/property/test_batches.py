"""Native code reads a record batch exactly as the definition and the client do, or says that it is not sure."""

from __future__ import annotations

from typing import Any

from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c
from hypothesis import given, settings
from hypothesis import strategies as st
from native_columns import require_native
from unsure import Unsure

from streamer.kafka.batches import Raw, intact, read

NATIVE = require_native()

LOG_APPEND_TIME = 0x08
BYTES = st.none() | st.binary(max_size=300)
HEADERS = st.lists(st.tuples(st.text(max_size=8), BYTES), max_size=3)
NAMES = (b"name", b"\xffame", b"n\xc3\xa9e", b"\xed\xa0me", b"nam\xe2", b"\xf0\x9f\x98\x80", b"a\xc0\x80b")
"""Of one length: those that are no UTF-8 take the place of the first"""
ROWS = st.lists(
    st.tuples(st.integers(1, 5), st.integers(-(2**40), 2**62), BYTES, BYTES, HEADERS), min_size=1, max_size=30
)
"""How far the offset lies behind the last one, time, key, value, headers"""


@st.composite
def batches(draw: st.DrawFn) -> bytearray:
    builder = DefaultRecordBatchBuilder(2, 0, draw(st.integers(0, 1)), 7, 1, 3, 1 << 24)
    offset = -1
    for step, time, key, value, headers in draw(ROWS):
        offset += step
        builder.append(offset, time, key, value, headers)
    builder.append(offset + 1, 1, b"k", b"v", [(NAMES[0].decode(), b"1")])
    data = bytearray(builder.build())
    data[-6:-2] = draw(st.sampled_from(NAMES))
    data[0:8] = draw(st.sampled_from([0, 1, 2**31, 2**40])).to_bytes(8, "big")
    if draw(st.booleans()):
        data[22] |= LOG_APPEND_TIME
    return data


def sealed(data: bytearray) -> bytearray:
    """With the checksum that belongs to it."""
    data[17:21] = calc_crc32c(bytes(data[21:])).to_bytes(4, "big")
    return data


def outcome(data: bytes, before: bytes, native: Any) -> Any:
    """What becomes of a batch behind ``before`` in an answer."""
    raw = Raw.at(before + data, len(before))
    try:
        return read(DefaultRecordBatch(raw.bytes), raw, 3, native)
    except Exception as error:
        return type(error), str(error)


@settings(max_examples=max(300, settings.default.max_examples), deadline=None)
@given(data=batches(), before=st.binary(max_size=70))
def test_good_batches_are_read_alike(data: bytearray, before: bytes) -> None:
    whole = before + bytes(sealed(data))
    assert NATIVE.records(whole, len(before), len(whole)) is not None, "it is sure of a good one"
    assert outcome(bytes(data), before, NATIVE) == outcome(bytes(data), before, Unsure)
    assert outcome(bytes(data), before, NATIVE) == outcome(bytes(data), before, None)


@settings(max_examples=max(1_000, settings.default.max_examples), deadline=None)
@given(
    data=batches(),
    changes=st.lists(st.tuples(st.integers(min_value=21), st.integers(0, 255)), max_size=4),
    cut=st.none() | st.integers(1, 40),
)
def test_bad_batches_are_read_alike(data: bytearray, changes: list[tuple[int, int]], cut: int | None) -> None:
    """With a checksum that belongs to them: as a producer may have written them."""
    for place, byte in changes:
        data[21 + (place - 21) % (len(data) - 21)] = byte
    if cut is not None and len(data) - cut > 61:
        del data[-cut:]
        data[8:12] = (len(data) - 12).to_bytes(4, "big")
    if data[22] & 0x07 or data[16] != 2:
        return  # compressed: unpacked first, and then the same
    assert outcome(bytes(sealed(data)), b"", NATIVE) == outcome(bytes(data), b"", Unsure)


@given(data=batches(), place=st.integers(0, 2**20), bit=st.integers(0, 7))
def test_a_wrong_bit_is_seen(data: bytearray, place: int, bit: int) -> None:
    raw = Raw.at(bytes(sealed(data)), 0)
    assert intact(DefaultRecordBatch(raw.bytes), raw, NATIVE)
    data[21 + place % (len(data) - 21)] ^= 1 << bit
    raw = Raw(bytes(data), 0, len(data))
    assert intact(DefaultRecordBatch(bytes(data)), raw, NATIVE) == intact(DefaultRecordBatch(bytes(data)), raw, None)
