"""Records that an epoch writes: a dead letter always fits and can be read back, an answer that does not fit becomes several
records or a dead letter, and the model's name costs nothing to speak of."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from aiokafka.producer.message_accumulator import BatchBuilder
from hypothesis import given
from hypothesis import strategies as st

from streamer.core import (
    Changelog,
    ClosedWindow,
    Epoch,
    Outgoing,
    Reject,
    Report,
    StepAnswers,
    Transaction,
    WindowAnswers,
)
from streamer.kafka.internals import Producer
from streamer.kafka.rows import (
    NO_TIME,
    RECORD_BYTES,
    SMALLEST_BATCH_BYTES,
    RowTooLarge,
    dead_letter_row,
    headers_bytes,
    prediction_rows,
    read_dead_letter,
)
from streamer.kafka.topics import InputTopic
from streamer.kafka.writes import Writes
from streamer.modelfile.contract import Contract
from streamer.records.decode import MAX_CARRIED_BYTES, MAX_KEY_BYTES, carried
from streamer.records.keys import Keys
from streamer.service.sink import Refused, Sink
from streamer.settings import Settings
from streamer.words import Closed, KeyForm, Mode, Reason

MEGABYTE = 1_048_588
TOPIC = "t" * 249
PREFIX = TOPIC.encode() + b"/"
sizes = st.one_of(st.integers(0, 300), st.integers(0, 5_000), st.integers(0, 3 * MEGABYTE))
blobs = st.builds(lambda size, byte: bytes([byte]) * size, sizes, st.integers(0, 255))
names = st.builds(lambda text, times: text * times, st.text(max_size=20), st.integers(1, 40))
headers = st.lists(st.tuples(names, st.none() | blobs), max_size=6)


def batch_bytes(row: Any) -> int:
    """Of the record batch that holds the row alone, as the client writes it and a broker counts it."""
    timestamp, key, value, headers = row
    builder = BatchBuilder(1, 0, is_transactional=1)
    builder._builder.append(0, timestamp, key, value, headers)
    builder._relative_offset = 1
    return len(builder._build())


rejects = st.builds(
    Reject,
    partition=st.integers(0, 2**31 - 1),
    offset=st.integers(0, 2**63 - 1),
    reason=st.sampled_from(Reason),
    detail=st.builds(lambda text, times: text * times, st.text(max_size=30), st.integers(0, 100)),
    key=st.none() | blobs,
    value=st.none() | blobs,
    headers=headers,
    timestamp_ms=st.integers(-1, 2**42),
)


@given(rejects, st.one_of(st.integers(SMALLEST_BATCH_BYTES, 4_000), st.integers(SMALLEST_BATCH_BYTES, 2 * MEGABYTE)))
def test_a_dead_letter_always_fits_and_says_what_is_missing(reject: Reject, limit: int) -> None:
    row = dead_letter_row(reject, PREFIX, limit)
    assert batch_bytes(row) <= limit
    timestamp, key, value, written = row
    found = read_dead_letter(written)
    assert found is not None
    assert (found.reason, found.topic, found.place) == (reject.reason, TOPIC, (reject.partition, reject.offset))
    assert reject.detail.startswith(found.detail)
    same = (key, value, list(found.headers)) == (reject.key, reject.value, list(reject.headers))
    assert found.whole == same
    assert key in (reject.key, None)
    assert timestamp == (None if reject.timestamp_ms == NO_TIME else reject.timestamp_ms)
    small = len(reject.key or b"") + len(reject.value or b"") + headers_bytes(reject.headers) + 1_900 <= limit
    assert same or not small, "what fits is kept as it is"


def test_headers_of_another_service_stay_the_records_own() -> None:
    mine = [("streamer-error", b"late"), ("streamer-source", b"other/1/2"), ("streamer-truncated", b"9")]
    reject = Reject(3, 7, Reason.UNDECODABLE, "why", b"k", b"v", mine, 5)
    found = read_dead_letter(dead_letter_row(reject, b"in/", MEGABYTE)[3])
    assert found is not None
    assert (list(found.headers), found.reason, found.source, found.whole) == (mine, "undecodable", "in/3/7", True)
    assert read_dead_letter([("label", b"x")]) is None


# answers

MODEL: Any = SimpleNamespace(
    contract=Contract.from_fields(
        {
            "name": "chain",
            "version": "7",
            "mode": "step",
            "input": {"name": "x", "shape": ["batch", "time", 1]},
            "lengths": "lengths",
            "states": [{"input": "h", "output": "h_next", "shape": [1, "batch", 1]}],
            "outputs": [{"name": "y", "shape": ["batch", "time", 1], "kind": "value"}],
        }
    ),
    sha256="0123456789abcdef" * 4,
)


def wide(outputs: int, *, per_event: bool = True) -> Any:
    """A window model of so many outputs."""
    fields: dict[str, Any] = {
        "name": "wide",
        "version": "1",
        "mode": "window",
        "input": {"name": "x", "shape": ["batch", "time", 1]},
        "lengths": "lengths",
        "outputs": [
            {"name": "y", "shape": ["batch", "time", outputs], "kind": "vector", "per": "event"}
            if per_event
            else {"name": "y", "shape": ["batch", outputs], "kind": "vector", "per": "window"}
        ],
    }
    return SimpleNamespace(contract=Contract.from_fields(fields), sha256="ab" * 32)


def steps(keys: list[bytes], headers: dict[int, Any] | None = None) -> StepAnswers:
    rows = len(keys)
    return StepAnswers(
        partition=1,
        model="chain",
        keys=keys,
        timestamps_ms=list(range(rows)),
        sources=list(range(10, 10 + rows)),
        headers=headers or {},
        times_ms=np.arange(rows, dtype=np.int64),
        y=[np.ones((rows, 1), np.float32)],
    )


def windows(model: str, lengths: list[int], outputs: int, *, per_event: bool = True) -> WindowAnswers:
    found = []
    for length in lengths:
        span = np.arange(length, dtype=np.int64)
        found.append(ClosedWindow(b"s", 0, 100, Closed.TIME, 2, np.zeros((length, 1), np.float32), span, span))
    rng = np.random.default_rng(0)
    y = [[rng.normal(size=(length, outputs) if per_event else (outputs,)).astype(np.float32)] for length in lengths]
    return WindowAnswers(
        partition=1,
        model=model,
        keys=[b"s"] * len(lengths),
        timestamps_ms=[5] * len(lengths),
        sources=list(range(len(lengths))),
        windows=found,
        y=y,
    )


def written(outgoing: list[Outgoing]) -> list[Any]:
    return [row for part in outgoing for row in prediction_rows(PREFIX, part.partition, [part])]


def test_every_prediction_names_its_model_and_file_in_one_shared_header() -> None:
    outgoing, refused = Sink([("chain", MODEL)], Keys()).encode([steps([b"a", b"b"], {1: [("traceparent", b"00")]})])
    assert not refused
    first, second = written(outgoing)
    assert first[3] == [("streamer-source", PREFIX + b"1/10"), ("streamer-model", b"chain@7 0123456789abcdef")]
    assert second[3][:2] == [("streamer-source", PREFIX + b"1/11"), first[3][1]]
    assert second[3][2:] == [("traceparent", b"00")]
    assert first[3][1] is second[3][1], "built once"


def test_answers_of_all_partitions_are_written_as_each_would_be_alone() -> None:
    """Written at once, and handed to the right one, whatever lies between them."""
    sink = Sink([("chain", MODEL), ("bi", wide(2))], Keys())
    parts: list[Any] = [steps([b"a", b"b"]), windows("bi", [3], 2), steps([b"c"]), steps([b"d"]), steps([b"e", b"f"])]
    for number, part in enumerate(parts):
        part.partition = number
        if isinstance(part, StepAnswers):
            part.y = [part.y[0] * number]
    together, refused = sink.encode(parts)
    assert together == [sink.encode([part])[0][0] for part in parts]
    assert not refused
    assert [each.keys for each in together] == [part.keys for part in parts]
    assert len({value for each in together for value in each.values}) == 7


class TakesOne:
    """What the client does: one batch of a partition at a time."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, int, Any]] = []

    def pack(self, rows: Any, max_bytes: int) -> Any:
        del max_bytes
        for row in rows:
            yield Packed([row])

    async def send_batch(self, batch: Any, topic: str, *, partition: int) -> Any:
        self.taken.append((topic, partition, batch))
        future = asyncio.get_running_loop().create_future()
        future.set_result((topic, partition, batch))
        return future


class Packed(list[Any]):
    def size(self) -> int:
        return len(self[0][2])


def test_the_first_batches_of_all_partitions_are_handed_over_before_the_second_of_any() -> None:
    settings = Settings(
        kafka={"bootstrap": "x", "group": "g"},
        input={"topic": "in"},
        output={"topic": "out"},
        model={"m": {"path": "m"}},
    )
    own = settings.changelog_topic
    writes, client = Writes(settings, InputTopic("in", (0, 1), "id")), TakesOne()
    outgoing = [steps([b"a", b"b", b"c"]), steps([b"d"])]
    for number, part in enumerate(outgoing):
        part.partition = number
    epoch = Transaction(
        {0: 3, 1: 1},
        Sink([("chain", MODEL)], Keys()).encode(outgoing)[0],
        [],
        [Changelog(0, [(b"s", b"12"), (b"p", b"345")])],
    )
    sent, changelog = asyncio.run(writes.transaction(client, epoch, "id"))  # type: ignore[arg-type]
    assert [(topic, partition) for topic, partition, _ in client.taken] == [
        ("out", 0), ("out", 1), (own, 0), ("out", 0), (own, 0), ("out", 0),
    ]  # fmt: skip
    assert [future.result()[2][0][1] for future in sent] == [b"a", b"d", b"b", b"c"]
    rows = [future.result()[2][0] for future in changelog]
    assert [row[1:] for row in rows] == [
        (b"s", b"12", [("streamer-txn", b"id")]),
        (b"p", b"345", []),
    ], "the first record of the transaction names it"
    assert writes.bytes_written == 5


def test_batches_of_answers_to_records_without_a_time_are_bounded() -> None:
    """To the client the first time says that a batch has begun, and -1 that it has not."""
    client = object.__new__(Producer)
    client._txn_manager = None
    client._message_accumulator = SimpleNamespace(_batch_size=2_000, _compression_type=0)
    answers = Outgoing(3, [b"k"] * 200, [b"v" * 50] * 200, [NO_TIME] * 200, list(range(200)), {}, Mode.STEP, ())
    batches = list(client.pack(prediction_rows(b"in/", 3, [answers]), MEGABYTE))
    assert sum(batch.record_count() for batch in batches) == 200
    assert max(len(batch._build()) for batch in batches) <= 2_000


@pytest.mark.parametrize(
    ("keys", "limit", "fits"),
    [
        ([b"a" * MAX_KEY_BYTES], 524_288, [True]),
        ([b"a", b"\x01" * MAX_KEY_BYTES, b"b"], 524_288, [True, True, True]),  # escaped six-fold
        ([b"a", b"\x01" * MAX_KEY_BYTES, b"b"], 262_144, [True, False, True]),
        ([b"a" * 9_000, b"a" * 7_000], 16_384, [False, True]),
    ],
)
def test_an_answer_that_does_not_fit_is_a_dead_letter_and_its_neighbours_are_not(
    keys: list[bytes], limit: int, fits: list[bool]
) -> None:
    outgoing, refused = Sink([("chain", MODEL)], Keys(), max_bytes=limit).encode([steps(keys)])
    assert [source - 10 for source in outgoing[0].sources] == [row for row, fit in enumerate(fits) if fit]
    assert all(batch_bytes(row) <= limit for row in written(outgoing))
    assert [(r.reason, r.partition, r.offset - 10, r.key) for r in refused] == [
        ("too_large_answer", 1, row, keys[row]) for row, fit in enumerate(fits) if not fit
    ]
    assert all(str(limit - RECORD_BYTES) in reject.detail for reject in refused)


def test_many_carried_headers_do_not_fit_either() -> None:
    one = ("traceparent", b"x" * MAX_CARRIED_BYTES)
    assert carried([("traceparent", b"x" * 1_000_000)]) == [], "no trace context has a megabyte"
    outgoing, refused = Sink([("chain", MODEL)], Keys(), max_bytes=524_288).encode(
        [steps([b"a", b"b", b"c"], {1: [one] * 100, 2: [one]})]
    )
    assert outgoing[0].sources == [10, 12]
    assert outgoing[0].headers == {1: [one]}, "the row that it has now"
    assert [reject.offset for reject in refused] == [11]


@given(
    st.lists(st.tuples(st.sampled_from([b"a", b"\x01", b"\xc3\xa4"]), st.integers(1, 3_000)), min_size=1, max_size=5),
    st.integers(1_024, 20_000),
    st.sampled_from([KeyForm.UTF8, KeyForm.HEX, KeyForm.BASE64]),
    st.dictionaries(st.integers(0, 4), st.lists(st.just(("tracestate", b"y" * 900)), max_size=3), max_size=3),
)
def test_what_the_sink_lets_through_fits(parts: list[Any], limit: int, form: KeyForm, more: dict[int, Any]) -> None:
    keys = Keys(form)
    streams = [keys.text(piece * times) for piece, times in parts]
    answers = steps(streams, {row: found for row, found in more.items() if row < len(streams)})
    outgoing, refused = Sink([("chain", MODEL)], keys, max_bytes=limit).encode([answers])
    rows = written(outgoing)
    assert all(batch_bytes(row) <= limit for row in rows)
    assert sorted([*outgoing[0].sources, *(reject.offset for reject in refused)]) == answers.sources, "each once"
    for row, source in zip(rows, outgoing[0].sources, strict=True):
        assert row[3][2:] == answers.headers.get(source - 10, [])


def test_a_window_of_4096_events_and_40_outputs_is_told_in_slices() -> None:
    model, limit = wide(40), 524_288
    answers = windows("wide", [3, 4_096, 2], 40)
    outgoing, refused = Sink([("wide", model)], Keys(), max_bytes=limit).encode([answers])
    assert not refused
    rows = written(outgoing)
    assert all(batch_bytes(row) <= limit for row in rows)
    documents = [json.loads(row[2]) for row in rows]
    assert outgoing[0].sources == [0, *[1] * (len(documents) - 2), 2]
    assert "slice" not in documents[0]
    assert "slice" not in documents[-1]
    slices = documents[1:-1]
    number = len(slices)
    assert number >= 3
    assert [each["slice"] for each in slices] == [[index, number] for index in range(number)]
    assert all(each["window"] == slices[0]["window"] for each in slices), "the window is the whole one"
    assert (slices[0]["window"]["count"], slices[0]["window"]["part"]) == (4_096, 2)
    told = np.array([row for each in slices for row in each["y"]], np.float32)
    np.testing.assert_array_equal(told, answers.y[1][0])


def test_slices_get_smaller_until_the_fullest_of_them_fits() -> None:
    answers = windows("wide", [400], 40)
    answers.y[0][0][:300] = 0.0  # short numbers: equal shares of the events are no equal shares of the bytes
    outgoing, refused = Sink([("wide", wide(40))], Keys(), max_bytes=40_000).encode([answers])
    assert not refused
    documents = [json.loads(row[2]) for row in written(outgoing)]
    assert all(batch_bytes(row) <= 40_000 for row in written(outgoing))
    told = np.array([row for each in documents for row in each["y"]], np.float32)
    np.testing.assert_array_equal(told, answers.y[0][0])


def test_the_longest_topic_partition_and_offset_are_reckoned_with() -> None:
    limit = 16_384
    keys = [b"k" * size for size in range(limit // 2 - 600, limit // 2 + 10)]
    answers = replace(steps(keys), partition=2**31 - 1, sources=[2**63 - 1] * len(keys))
    outgoing, refused = Sink([("chain", MODEL)], Keys(), max_bytes=limit).encode([answers])
    rows = written(outgoing)
    assert refused
    assert limit - 400 < max(map(batch_bytes, rows)) <= limit, "no more is refused than must be"


def test_a_window_that_slices_cannot_help_is_a_dead_letter() -> None:
    wide_answer = windows("wide", [4], 2_000, per_event=False)
    _, refused = Sink([("wide", wide(2_000, per_event=False))], Keys(), max_bytes=16_384).encode([wide_answer])
    assert [reject.reason for reject in refused] == ["too_large_answer"]
    _, refused = Sink([("wide", wide(2_000))], Keys(), max_bytes=16_384).encode([windows("wide", [4], 2_000)])
    assert [reject.reason for reject in refused] == ["too_large_answer"], "one event alone is too much"


def test_refused_answers_are_in_the_transaction_and_in_the_report() -> None:
    epoch = Epoch({1: 12}, [steps([b"a" * 9_000, b"b"])], [], [], Report(records=2, events=2, rejects={Reason.LATE: 3}))
    transaction, refused = Sink([("chain", MODEL)], Keys(), max_bytes=16_384).transaction(epoch)
    assert transaction.rejects == refused
    assert len(refused) == 1
    counted = Refused()
    assert counted.told(epoch.report) is epoch.report
    counted.add(refused)
    counted.add(refused)
    told = counted.told(epoch.report)
    assert told == replace(epoch.report, rejects={Reason.LATE: 3, Reason.TOO_LARGE_ANSWER: 2}, examples=told.examples)
    assert told.examples[Reason.TOO_LARGE_ANSWER][:2] == (1, 10)


# batches


async def test_batches_keep_to_what_the_topic_takes_and_a_large_row_goes_alone() -> None:
    producer = Producer(bootstrap_servers="127.0.0.1:1", max_batch_size=50_000)
    rows: list[Any] = [(1, b"%d" % number, bytes(9_000), []) for number in range(12)]
    rows.insert(3, (1, b"large", bytes(60_000), []))
    for limit, most in ((MEGABYTE, 5), (70_000, 5), (61_000, 5)):
        batches = list(producer.pack(iter(rows), limit))
        counts = [batch.record_count() for batch in batches]
        assert (sum(counts), max(counts)) == (13, most)
        assert all(batch.size() <= (limit if batch.record_count() == 1 else 50_000) for batch in batches)
    narrow = [row for row in rows if row[1] != b"large"]
    assert all(batch.size() <= 20_000 for batch in producer.pack(iter(narrow), 20_000)), (
        "less than output.max_batch_bytes"
    )
    with pytest.raises(RowTooLarge) as refused:
        list(producer.pack(iter(rows), 40_000))
    assert refused.value.size > 60_000
    await producer.stop()
