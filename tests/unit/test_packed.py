"""Native code packs answers into the very batches that the client's builder makes of the same rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.producer.message_accumulator import BatchBuilder
from hypothesis import given, settings
from hypothesis import strategies as st
from native_columns import require_native

from streamer.core import Outgoing
from streamer.kafka.internals import Producer
from streamer.kafka.packed import Packed
from streamer.kafka.rows import NO_TIME, RowTooLarge, prediction_rows, source_prefix
from streamer.kafka.writes import Writes
from streamer.words import Mode

NATIVE = require_native()
PREFIX = b"in%d/"
MODEL = ("streamer-model", b"m@1 0123456789abcdef")
TIMES = (st.integers(0, 2**42) | st.integers(-(2**62), 2**62)).filter(lambda time: time != NO_TIME)
ROWS = st.lists(
    st.tuples(st.binary(max_size=80), st.binary(max_size=200), TIMES, st.integers(0, 2**63 - 1)), max_size=40
)
"""Key, value, time, source"""
COMMON = st.sampled_from([(MODEL,), (), (MODEL, ("schäma", None)), (MODEL, ("a", b""), ("b", b"x" * 200))])
WRITERS = st.tuples(st.integers(-1, 2**63 - 1), st.integers(-1, 2**15 - 1), st.integers(-1, 2**31 - 1))


def producer(batch_bytes: int, *, transactional: bool, compression: int = 0) -> Any:
    """What packing asks of a producer, without a cluster."""
    found = object.__new__(Producer)
    found._txn_manager = SimpleNamespace(transactional_id="id" if transactional else None)
    found._message_accumulator = SimpleNamespace(_batch_size=batch_bytes, _compression_type=compression)
    return found


def outgoing(rows: list[tuple[bytes, bytes, int, int]], common: Any) -> Outgoing:
    keys, values, times, sources = ([row[at] for row in rows] for at in range(4))
    return Outgoing(3, keys, values, times, sources, {}, Mode.STEP, common)


def built(batches: Any, writer: tuple[int, int, int]) -> tuple[list[tuple[int, bool, int, bytes]], int | None]:
    """All that a producer asks of batches; and the size of the record that is too large, which comes after them."""
    found = []
    try:
        for batch in batches:
            before = batch.size()
            batch._set_producer_state(*writer)
            data = bytes(batch._build())
            assert bytes(batch._build()) == data, "it may be sent again"
            assert before == batch.size() == len(data)
            found.append((batch.record_count(), batch.closed(), len(data), data))
    except RowTooLarge as error:
        return found, error.size
    return found, None


@settings(max_examples=max(500, settings.default.max_examples), deadline=None)
@given(
    parts=st.lists(st.tuples(ROWS, COMMON), min_size=1, max_size=4),
    batch_bytes=st.integers(100, 5_000),
    max_bytes=st.integers(100, 5_000),
    transactional=st.booleans(),
    writer=WRITERS,
)
def test_the_same_batches(parts: Any, batch_bytes: int, max_bytes: int, transactional: bool, writer: Any) -> None:
    client = producer(batch_bytes, transactional=transactional)
    answers = [outgoing(rows, common) for rows, common in parts]
    wanted = built(client.pack(prediction_rows(PREFIX, 3, answers), max_bytes), writer)
    found = built(client.pack_answers(NATIVE, answers, source_prefix(PREFIX, 3), max_bytes), writer)
    assert found == wanted


@given(rows=ROWS.filter(bool), data=st.data())
def test_a_batch_is_full_at_the_same_byte(rows: Any, data: st.DataObject) -> None:
    """The bound is drawn around the size of the batch that holds some of the rows."""
    answers = [outgoing(rows, (MODEL,))]
    some = [outgoing(rows[: data.draw(st.integers(1, len(rows)))], (MODEL,))]
    ((_, _, size, _),), _ = built(
        producer(1 << 20, transactional=True).pack(prediction_rows(PREFIX, 3, some), 1 << 20), (1, 1, 1)
    )
    client = producer(size + data.draw(st.integers(-2, 2)), transactional=True)
    wanted = built(client.pack(prediction_rows(PREFIX, 3, answers), 1 << 20), (1, 1, 1))
    assert built(client.pack_answers(NATIVE, answers, source_prefix(PREFIX, 3), 1 << 20), (1, 1, 1)) == wanted


def test_what_was_never_given_a_writer_has_none() -> None:
    client = producer(1 << 20, transactional=False)
    answers = [outgoing([(b"k", b"v", 1, 2)], (MODEL,))]
    (wanted,) = client.pack(prediction_rows(PREFIX, 3, answers), 1 << 20)
    (found,) = client.pack_answers(NATIVE, answers, source_prefix(PREFIX, 3), 1 << 20)
    assert bytes(found._build()) == bytes(wanted._build())


def test_a_producer_finds_all_that_it_asks_of_a_batch() -> None:
    """Every method of the client's builder but those that add a record."""
    wanted = {name for name, each in vars(BatchBuilder).items() if callable(each) and not name.startswith("__")}
    assert wanted - {"append", "_serialize"} <= set(dir(Packed))


@pytest.mark.parametrize(
    ("native", "compression", "stamped", "headers", "time_ms", "fast"),
    [
        (NATIVE, 0, True, {}, 1, True),
        (None, 0, True, {}, 1, False),
        (NATIVE, 4, True, {}, 1, False),
        (NATIVE, 0, False, {}, 1, False),
        (NATIVE, 0, True, {0: [("traceparent", b"00")]}, 1, False),
        (NATIVE, 0, True, {}, NO_TIME, False),
    ],
)
def test_what_native_code_does_not_write_the_client_does(
    native: Any, compression: int, stamped: bool, headers: Any, time_ms: int, fast: bool
) -> None:
    writes = object.__new__(Writes)
    writes._native, writes.stamped, writes._prefix = native, stamped, PREFIX
    writes._settings = SimpleNamespace(output=SimpleNamespace(topic="out"))
    writes._max_bytes = {"out": 1 << 20}
    answers = outgoing([(b"k", b"v", time_ms, 2)], (MODEL,))
    answers.headers = headers
    (batch,) = writes._answers(producer(1 << 20, transactional=True, compression=compression), 3, [answers])
    assert (type(batch).__name__ == "Packed") is fast


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="different lengths"):
        NATIVE.Packer(100).add([1], [b"k"], [], [1], "s", b"", [], 0)
