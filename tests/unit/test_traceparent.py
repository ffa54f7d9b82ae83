"""The trace context of an event travels to its prediction, and a rejected record keeps it; nothing is copied without one."""

from __future__ import annotations

import random

import pytest
from durable import make_processor, settle
from simulated import POISON, ChainModel

from streamer.core import RecordBatch
from streamer.engine.begin import Begin
from streamer.engine.checkpoint import ReplayPoint
from streamer.engine.truth import LaneTruth
from streamer.kafka.rows import dead_letter_row
from streamer.records.changelog import NO_WATERMARK
from streamer.records.decode import Codec


def parent(offset: int) -> list[tuple[str, bytes]]:
    return [("traceparent", b"00-%032x-%016x-01" % (offset + 1, offset + 1)), ("tracestate", b"a=%d" % offset)]


def records(partition: int, first: int, rng: random.Random, traced: float) -> RecordBatch:
    """Good events, three kinds of bad ones and commands, some of them with a trace."""
    batch = RecordBatch(partition, [], [], [], [])
    for row in range(60):
        offset = first + 2 * row
        kind = rng.choices(["good", "poison", "bad", "command"], [10, 1, 2, 1])[0]
        value = {"good": b'{"x":[1.5]}', "poison": b'{"x":[%f]}' % POISON, "bad": b"no json", "command": b""}[kind]
        headers = parent(offset) if rng.random() < traced else []
        headers += [("private", b"stays")] if rng.random() < 0.3 else []
        headers += [("streamer-op", b"reset")] if kind == "command" else []
        batch.offsets.append(offset)
        batch.timestamps_ms.append(1_700_000_000_000 + offset)
        batch.keys.append(b"s%d" % rng.randrange(8))
        batch.values.append(value)
        if headers:
            batch.headers[row] = headers
    return batch


@pytest.mark.parametrize("live_from", [0, 31])
@pytest.mark.parametrize("seed", range(20))
def test_every_prediction_carries_the_trace_of_its_event(seed: int, live_from: int) -> None:
    rng = random.Random(seed)
    model = ChainModel()
    processor = make_processor([("chain", model, None)], max_rows=8, max_steps=3)
    codec = Codec(model.contract, "json")
    raw = [records(partition, 0, rng, 0.6) for partition in range(2)]
    for partition in range(2):
        found = Begin(live_from, ReplayPoint(0, NO_WATERMARK), [LaneTruth(0)])
        processor.open(partition).begin(found)
    settle(processor, *(codec.decode(batch) for batch in raw))
    answers, rejects = processor.results()
    sent = {
        (batch.partition, offset): [header for header in batch.headers.get(row, []) if header[0].startswith("trace")]
        for batch in raw
        for row, offset in enumerate(batch.offsets)
    }
    answered = 0
    assert all(source >= live_from for part in answers for source in part.sources)
    for part in answers:
        for row, source in enumerate(part.sources):
            assert list(part.headers.get(row, [])) == sent[part.partition, source]
            answered += 1
    assert answered > 40
    for reject in rejects:
        _, _, _, headers = dead_letter_row(reject, b"in/", 1_000_000)
        assert [header for header in headers if header[0].startswith("trace")] == sent[reject.partition, reject.offset]
    assert {reject.reason for reject in rejects} == {"model_refused", "undecodable"}


def test_without_headers_nothing_is_built_for_them() -> None:
    batch = records(0, 0, random.Random(1), 0.0)
    batch.headers = {}
    decoded = Codec(ChainModel().contract, "json").decode(batch)
    assert decoded.headers == {}
