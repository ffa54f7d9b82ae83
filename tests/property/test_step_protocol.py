"""Step mode over a simulated log: random fetches, evictions, commits and crashes against a run without any.

Invariants 1, 2, 4, 5, 7 through the real processor, ledger and changelog records; the log, the commits and the crashes
are simulated. The state of a stream is a hash chain, so an event that was missed, repeated or reordered shows.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import POISON, ChainModel, advance, records

from streamer.core import Epoch, Op
from streamer.engine.ledger import Ledger
from streamer.engine.processor import Limits, Processor
from streamer.records.changelog import Kind, Progress, decode_progress, decode_stream, progress_key

STREAMS = "abcd"


@dataclass
class Durable:
    """What committed transactions left behind."""

    predictions: list[tuple[int, str, float]] = field(default_factory=list)
    rejected: list[int] = field(default_factory=list)
    evictions: list[tuple[int, str]] = field(default_factory=list)
    changelog: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def progress(self) -> Progress | None:
        value = self.changelog.get(progress_key())
        return None if value is None else decode_progress(value)

    def commit(self, epoch: Epoch) -> None:
        for outgoing in epoch.outgoing:
            for offset, value in zip(outgoing.sources, outgoing.values, strict=True):
                document = msgspec.json.decode(value)
                self.predictions.append((offset, document["stream"], document["y"]))
        self.rejected += [reject.offset for reject in epoch.rejects]
        for changelog in epoch.changelog:
            for key, value in changelog.records:
                if value is None:
                    self.changelog.pop(key, None)
                    continue
                self.changelog[key] = value
                if key != progress_key():
                    record = decode_stream(key, value)
                    if record.state is None:
                        self.evictions.append((record.through, record.stream.decode()))


class Owner:
    """A process: recovers from what is durable, then settles epochs of the log."""

    def __init__(self, durable: Durable, log: list[tuple[str, float | Op]], limits: Limits) -> None:
        self.log = log
        self.processor = Processor([("chain", ChainModel(), None)], limits)  # type: ignore[list-item]
        progress = durable.progress
        if progress is None:
            ledger = Ledger.fresh(0)
        else:
            found = [decode_stream(key, value) for key, value in durable.changelog.items() if key != progress_key()]
            assert all(record.kind is Kind.STATE for record in found)
            self.processor.load(0, [record for record in found if record.state is not None])
            forgotten = {record.stream: record.through for record in found if record.state is None}
            ledger = Ledger.restored(progress, forgotten, {})
        self.processor.assign(0, ledger)
        self.ledger = ledger

    def fetch(self, count: int) -> bool:
        first = self.ledger.next_offset
        rows = [(offset, *self.log[offset]) for offset in range(first, min(first + count, len(self.log)))]
        if not rows:
            return False
        self.processor.ingest([records(rows)])
        for _ in self.processor.run():
            pass
        return True


def expected(log: list[tuple[str, float | Op]], evictions: list[tuple[int, str]]) -> list[tuple[int, str, float]]:
    """The run that never crashed, with the evictions that were committed."""
    gone: dict[int, list[str]] = {}
    for offset, stream in evictions:
        gone.setdefault(offset, []).append(stream)
    state: dict[str, float] = {}
    result = []
    for offset, (stream, what) in enumerate(log):
        if isinstance(what, Op):
            state[stream] = 0.0
        elif what != POISON:
            state[stream] = advance(state.get(stream, 0.0), what)
            result.append((offset, stream, state[stream]))
        for stream_gone in gone.get(offset, []):
            state.pop(stream_gone, None)
    return result


def run_schedule(seed: int, *, owner: type[Owner] = Owner) -> None:
    rng = random.Random(seed)
    values: list[float | Op] = [1.0, 2.0, 3.0, POISON, Op.RESET, Op.END]
    weights = [30, 30, 30, 1, 3, 3]
    log = [(rng.choice(STREAMS), rng.choices(values, weights)[0]) for _ in range(rng.randint(5, 90))]
    limits = Limits(
        max_rows=rng.randint(1, 4),
        max_steps=rng.choice([1, 3, 8]),
        max_ingest_rows=16,
        checkpoint_interval_ms=rng.choice([0, 30, 100]),
        idle_ttl_ms=rng.choice([0, 0, 5, 20]),
        max_state_bytes=rng.choice([1 << 20, 2 * 204]),
    )
    durable, now_ms = Durable(), 0
    process = owner(durable, log, limits)
    rounds_without_news = 0
    while (durable.progress is None or durable.progress.position < len(log)) or rounds_without_news < 3:
        fetched = sum(process.fetch(rng.randint(1, 6)) for _ in range(rng.randint(1, 3))) > 0
        rounds_without_news += not fetched
        now_ms += rng.randint(0, 60)
        epoch = process.processor.seal(now_ms, slice_bytes=rng.choice([0, 100, 1 << 20]))
        died_inside = rng.random() < 0.25  # nothing of the transaction is seen
        if epoch is not None and not died_inside:
            before = durable.progress
            durable.commit(epoch)
            after = durable.progress
            assert after is not None
            if before is not None:
                assert before.position <= after.position, "a position went back"
                assert before.replay_point <= after.replay_point <= after.position
        if died_inside or rng.random() < 0.2:
            process = owner(durable, log, limits)
    assert sorted(durable.predictions) == expected(log, durable.evictions), seed
    assert sorted(durable.rejected) == [offset for offset, (_, what) in enumerate(log) if what == POISON], seed
    table = process.processor.table
    assert table.used + table.free == table.capacity
    process.processor.revoke(0)
    assert table.used == 0


@settings(max_examples=400)
@given(seed=st.integers(0, 2**32))
def test_predictions_are_exactly_once_and_equal_to_a_run_without_crashes(seed: int) -> None:
    run_schedule(seed)


class _ForgetsThrough(Owner):
    """A broken recovery: it restores states but not up to where they reach."""

    def __init__(self, durable: Durable, log: list[tuple[str, float | Op]], limits: Limits) -> None:
        super().__init__(durable, log, limits)
        for lane in self.processor.stepping:
            lane.arena.through[:] = -1


class _SkipsReplay(Owner):
    """A broken recovery: it goes on from the position although the changelog lags behind."""

    def __init__(self, durable: Durable, log: list[tuple[str, float | Op]], limits: Limits) -> None:
        super().__init__(durable, log, limits)
        self.ledger.next_offset = self.ledger.live_from


@pytest.mark.parametrize("broken", [_ForgetsThrough, _SkipsReplay])
def test_the_oracle_finds_a_broken_recovery(broken: type[Owner]) -> None:
    def search() -> None:
        for seed in range(200):
            run_schedule(seed, owner=broken)

    with pytest.raises(AssertionError):
        search()


def test_a_failed_call_changes_nothing_but_the_poisoned_row() -> None:
    processor = Processor([("chain", ChainModel(), None)], Limits(max_rows=8, max_steps=4, max_ingest_rows=64))  # type: ignore[list-item]
    processor.assign(0, Ledger.fresh(0))
    rows = [(0, "a", 1.0), (1, "b", POISON), (2, "a", 2.0), (3, "c", 3.0), (4, "b", 1.0)]
    processor.ingest([records(rows)])
    for _ in processor.run():
        pass
    epoch = processor.seal(0)
    assert epoch is not None
    got = {
        source: msgspec.json.decode(value)["y"]
        for out in epoch.outgoing
        for source, value in zip(out.sources, out.values, strict=True)
    }
    a1 = advance(0, 1)
    assert got == {0: a1, 2: advance(a1, 2), 3: advance(0, 3), 4: advance(0, 1)}
    assert [(reject.offset, reject.reason) for reject in epoch.rejects] == [(1, "model_refused")]
    progress = decode_progress(dict(epoch.changelog[0].records)[progress_key()] or b"")
    assert progress.decisions == ((1, "model_refused"),)


def test_streams_that_are_behind_take_several_steps_per_call() -> None:
    model = ChainModel()
    processor = Processor([("chain", model, None)], Limits(max_rows=64, max_steps=16, max_ingest_rows=256))  # type: ignore[list-item]
    processor.assign(0, Ledger.fresh(0))
    processor.ingest([records([(offset, "ab"[offset % 2], 1.0) for offset in range(64)])])
    for _ in processor.run():
        pass
    assert model.calls == [(2, 16), (2, 16)]
    assert np.isfinite(processor.table.last_ms).all()
