"""Invariants 7 and 8 of the processor: what comes in is pending or settled, slots are accounted for, nothing of a revoked
partition remains, and no model call or arena grows beyond its bound."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from simulated import ChainModel, records

from streamer.core import EventBatch
from streamer.engine.ledger import Ledger
from streamer.engine.processor import STREAM_OVERHEAD_BYTES, Limits, Processor

PARTITIONS, MAX_ROWS, MAX_STEPS, MAX_STREAMS = 3, 3, 2, 5

actions = st.lists(
    st.one_of(
        st.tuples(
            st.just("ingest"), st.integers(0, PARTITIONS - 1), st.lists(st.integers(0, 6), min_size=1, max_size=12)
        ),
        st.tuples(st.just("seal"), st.just(0), st.just([])),
        st.tuples(st.just("revoke"), st.integers(0, PARTITIONS - 1), st.just([])),
        st.tuples(st.just("abandon"), st.just(0), st.just([])),
    ),
    max_size=25,
)


def batch(partition: int, first: int, streams: list[int]) -> EventBatch:
    rows = [(offset, f"{partition}-{stream}", float(offset)) for offset, stream in enumerate(streams, first)]
    return records(rows, partition)


@given(actions)
def test_everything_is_accounted_for(steps: list[tuple[str, int, list[int]]]) -> None:
    model: Any = ChainModel()
    limits = Limits(
        max_rows=MAX_ROWS,
        max_steps=MAX_STEPS,
        max_ingest_rows=16,
        max_state_bytes=MAX_STREAMS * (model.state_bytes_per_stream + STREAM_OVERHEAD_BYTES),
    )
    processor = Processor([("chain", model, None)], limits)
    for partition in range(PARTITIONS):
        processor.assign(partition, Ledger.fresh(0))
    settled = 0
    for what, partition, streams in steps:
        if what == "ingest" and partition in processor.ledgers:
            processor.ingest([batch(partition, processor.ledgers[partition].next_offset, streams)])
            for _ in processor.run():
                pass
            settled += len(streams)
        elif what == "seal":
            epoch = processor.seal(0)
            assert (0 if epoch is None else epoch.events) == settled
            assert sum(map(len, epoch.outgoing)) <= settled if epoch else True
            settled = 0
            assert processor.table.used <= MAX_STREAMS, "over the memory limit after a commit"
        elif what == "revoke":
            processor.revoke(partition)
            assert all(out.partition != partition for out in processor.results()[0])
            assert partition not in processor.table.partitions
            assert partition not in processor.ledgers
        elif what == "abandon":
            processor.abandon()
            assert processor.table.used == 0
            assert processor.results() == ([], [])
        assert processor.open_events == settled
        assert processor.table.used + processor.table.free == processor.table.capacity
        assert processor.table.used == sum(processor.table.count(each) for each in processor.table.partitions)
    assert all(rows <= MAX_ROWS and columns <= MAX_STEPS for rows, columns in model.calls)
