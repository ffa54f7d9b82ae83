"""Step mode over a simulated log: random fetches, evictions, commits, crashes and regimes against a run without any.

Invariants 1, 2, 4, 5, 7 through the code that ships: processor, partition, changelog records and restore; only the log, the
commits and the crashes are simulated. The state of a stream is a hash chain, so an event that was missed, repeated or
reordered shows.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from durable import Changelog, begin, encoded, make_processor, settle
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import POISON, ChainModel, advance, records

from streamer.core import Epoch, Op
from streamer.engine.partition import Partition
from streamer.engine.processor import Processor
from streamer.records.changelog import Kind, decode_offsets, decode_stream

STREAMS = "abcd"
TTL_MS = 50
Log = list[tuple[str, float | Op, int]]
"""(stream, x or command, event time)"""


@dataclass
class Durable:
    """What committed transactions left behind."""

    predictions: list[tuple[int, str, str, float]] = field(default_factory=list)
    """(offset, model, stream, y)"""
    rejected: list[tuple[int, str]] = field(default_factory=list)
    """(offset, model)"""
    evictions: list[tuple[int, str]] = field(default_factory=list)
    changelog: Changelog = field(default_factory=Changelog)

    def commit(self, processor: Processor, epoch: Epoch) -> None:
        for answers in epoch.answers:
            for row, source in enumerate(answers.sources):
                y = float(answers.y[0][row, 0])  # type: ignore[attr-defined]
                self.predictions.append((source, answers.model, answers.keys[row].decode(), y))
        self.rejected += [(reject.offset, reject.detail.split("'")[1]) for reject in epoch.rejects]
        assert epoch.report.events >= 0
        assert sum(epoch.report.rejects.values()) == len(epoch.rejects)
        self.evictions += self.changelog.commit(epoch)
        processor.committed(epoch, {})

    @property
    def position(self) -> int:
        progress = self.changelog.progress
        return -1 if progress is None else progress.position


class Picky(ChainModel):
    """Refuses another value than the first model does."""

    def run(self, x: np.ndarray, lengths: np.ndarray, states: Any) -> Any:
        return super().run(
            np.where(x == 3.0, POISON, np.where(x == POISON, 3.5, x)).astype(np.float32), lengths, states
        )


def refuses(model: str, what: float) -> bool:
    return what == (POISON if model == "chain" else 3.0)


def value_of(model: str, what: float) -> float:
    return 3.5 if model == "picky" and what == POISON else what


class Owner:
    """A process: recovers from what is durable, then settles epochs of the log."""

    def __init__(
        self, durable: Durable, log: Log, models: list[Any], limits: dict[str, Any], rng: random.Random
    ) -> None:
        self.log = log
        self.processor = make_processor(models, **limits)
        self.partition = self.recover(durable, rng)

    def recover(self, durable: Durable, rng: random.Random) -> Partition:
        return durable.changelog.recover(self.processor, rng)

    def fetch(self, count: int) -> bool:
        first = self.partition.next_offset
        rows = range(first, min(first + count, len(self.log)))
        if not rows:
            return False
        batch = records([(offset, *self.log[offset][:2]) for offset in rows])
        batch.times_ms = np.array([self.log[offset][2] for offset in rows], np.int64)
        settle(self.processor, batch)
        return True


def expected(log: Log, model: str, evictions: list[tuple[int, str]], ttl_ms: int) -> list[tuple[int, str, str, float]]:
    """The run that never crashed, with the evictions that were committed."""
    gone: dict[int, list[str]] = defaultdict(list)
    for offset, stream in evictions:
        gone[offset].append(stream)
    state: dict[str, float] = {}
    newest: dict[str, int] = {}
    result = []
    for offset, (stream, what, time) in enumerate(log):
        if isinstance(what, Op):
            state[stream] = 0.0
            if what is Op.END:
                newest.pop(stream, None)
        else:
            if ttl_ms and stream in newest and time - newest[stream] > ttl_ms:
                state[stream] = 0.0
            newest[stream] = max(newest.get(stream, time), time)
            if not refuses(model, what):
                state[stream] = advance(state.get(stream, 0.0), value_of(model, what))
                result.append((offset, model, stream, state[stream]))
        for name in gone[offset]:
            state.pop(name, None)
            newest.pop(name, None)
    return result


def make_log(rng: random.Random) -> Log:
    values: list[float | Op] = [1.0, 2.0, 3.0, POISON, Op.RESET, Op.END]
    weights = [30, 30, 5, 2, 3, 3]
    now, log = 1_000, []
    for _ in range(rng.randint(5, 90)):
        now += rng.choice([0, 1, 3, 10, 40])
        what = rng.choices(values, weights)[0]
        # the time of a command is its record's, which may be far from the events': it must count for nothing
        time = now + 10**6 if isinstance(what, Op) else max(0, now - rng.choice([0, 0, 0, 5, 60]))
        log.append((rng.choice(STREAMS), what, time))
    return log


def make_limits(rng: random.Random) -> dict[str, Any]:
    return {
        "max_rows": rng.randint(1, 4),
        "max_steps": rng.choice([1, 3, 8]),
        "max_poll_records": 16,
        "checkpoint_interval_ms": rng.choice([0, 30, 100]),
        "idle_ttl_ms": rng.choice([0, 0, TTL_MS]),
        "max_bytes": rng.choice([1 << 20, 2 * 210, 3 * 210]),
    }


def run_schedule(seed: int, *, owner: type[Owner] = Owner, two: bool = False) -> None:
    rng = random.Random(seed)
    log, limits, durable, now_ms = make_log(rng), make_limits(rng), Durable(), 0
    models: list[Any] = [("chain", ChainModel(), None)]
    if two:
        models.append(("picky", Picky("cd" * 32), None))
    process = owner(durable, log, models, limits, rng)
    quiet = 0
    while durable.position < len(log) or quiet < 3:
        fetched = sum(process.fetch(rng.randint(1, 6)) for _ in range(rng.randint(1, 3))) > 0
        quiet += not fetched
        now_ms += rng.randint(0, 60)
        epoch = process.processor.seal(now_ms, slice_bytes=rng.choice([0, 100, 1 << 20]))
        died_inside = rng.random() < 0.25  # nothing of the transaction is seen
        if epoch is not None:
            if not died_inside:
                durable.commit(process.processor, epoch)
            elif rng.random() < 0.5:  # the same process goes on: what failed is restored
                process.processor.failed(epoch)
                assert process.processor.partitions == {}
                process.partition = process.recover(durable, rng)
                continue
        if rng.random() < 0.1:
            durable.changelog.compact(rng)
        if died_inside or rng.random() < 0.2:
            process, now_ms = owner(durable, log, models, limits, rng), 0
    for name, *_ in models:
        mine = sorted(each for each in durable.predictions if each[1] == name)
        assert mine == expected(log, name, durable.evictions, limits["idle_ttl_ms"]), (seed, name)
        refused = [at for at, (_, what, _) in enumerate(log) if isinstance(what, float) and refuses(name, what)]
        assert sorted(at for at, model in durable.rejected if model == name) == refused, (seed, name)
    slots = process.processor.lanes.slots
    assert slots.used + slots.free == slots.capacity
    assert slots.used_bytes <= limits["max_bytes"]
    process.processor.drop(0)
    assert (slots.used, slots.key_bytes) == (0, 0)


@settings(max_examples=400)
@given(seed=st.integers(0, 2**32))
def test_predictions_are_exactly_once_and_equal_to_a_run_without_crashes(seed: int) -> None:
    run_schedule(seed)


@settings(max_examples=400)
@given(seed=st.integers(0, 2**32))
def test_two_models_are_each_exactly_once_whatever_the_other_refuses(seed: int) -> None:
    run_schedule(seed, two=True)


# Recoveries that leave one part out: the same oracle must find each of them.


class _ForgetsThrough(Owner):
    """States are restored, but not up to where they reach."""

    def recover(self, durable: Durable, rng: random.Random) -> Partition:
        partition = super().recover(durable, rng)
        for lane in self.processor.lanes.stepping:
            lane.arena.through[:] = -1
        return partition


class _SkipsReplay(Owner):
    """It goes on from the position although the changelog lags behind."""

    def recover(self, durable: Durable, rng: random.Random) -> Partition:
        partition = super().recover(durable, rng)
        partition.next_offset = partition.live_from
        partition.caught_up()
        return partition


class _ForgetsTheNewest(Owner):
    """The newest event time of a stream is lost: its TTL begins with the next event."""

    def recover(self, durable: Durable, rng: random.Random) -> Partition:
        partition = super().recover(durable, rng)
        for lane in self.processor.lanes.stepping:
            lane.arena.newest_ms[:] = -(2**62)
        return partition


class _ForgetsDecisions(Owner):
    """What a model refused is tried again by the replay."""

    def recover(self, durable: Durable, rng: random.Random) -> Partition:
        partition = super().recover(durable, rng)
        for truth in partition.truths:
            truth.decisions = type(truth.decisions)()
        for lane in self.processor.lanes.stepping:
            lane.model.run = _never_refusing(lane.model)  # type: ignore[method-assign]
        return partition


def _never_refusing(model: Any) -> Callable[..., Any]:
    real = type(model).run

    def run(x: np.ndarray, lengths: np.ndarray, states: Any) -> Any:
        return real(model, np.where((x == POISON) | (x == 3.0), 1.0, x).astype(np.float32), lengths, states)

    return run


class _ForgetsForBoth(Owner):
    """What is forgotten for one model is forgotten for both, as if there were one truth per stream."""

    def recover(self, durable: Durable, rng: random.Random) -> Partition:
        partition = super().recover(durable, rng)
        for stream in {stream for truth in partition.truths for stream in truth.forgotten}:
            if stream in partition.streams:
                partition.streams.release([stream])
        return partition


@pytest.mark.parametrize(
    ("broken", "two"),
    [
        (_ForgetsThrough, False),
        (_SkipsReplay, False),
        (_ForgetsTheNewest, False),
        (_ForgetsDecisions, True),
        (_ForgetsForBoth, True),
    ],
)
def test_the_oracle_finds_a_broken_recovery(broken: type[Owner], two: bool) -> None:
    def search() -> None:
        for seed in range(1_000):
            run_schedule(seed, owner=broken, two=two)

    with pytest.raises(AssertionError):
        search()


def test_a_failed_call_changes_nothing_but_the_poisoned_row() -> None:
    processor = make_processor([("chain", ChainModel(), None)], max_rows=8, max_steps=4, max_poll_records=64)
    begin(processor)
    rows = [(0, "a", 1.0), (1, "b", POISON), (2, "a", 2.0), (3, "c", 3.0), (4, "b", 1.0)]
    settle(processor, records(rows))
    epoch = processor.seal(0)
    assert epoch is not None
    got = {
        source: float(answers.y[0][row, 0])  # type: ignore[attr-defined]
        for answers in epoch.answers
        for row, source in enumerate(answers.sources)
    }
    a1 = advance(0, 1)
    assert got == {0: a1, 2: advance(a1, 2), 3: advance(0, 3), 4: advance(0, 1)}
    assert [(reject.offset, reject.reason) for reject in epoch.rejects] == [(1, "model_refused")]
    decided = [
        decode_stream(key, value) for key, value in epoch.changelog[0].records if key[0] == Kind.DECISIONS and value
    ]
    assert [decode_offsets(record.state).tolist() for record in decided] == [[1]]


def test_streams_that_are_behind_take_several_steps_per_call() -> None:
    model = ChainModel()
    processor = make_processor([("chain", model, None)], max_rows=64, max_steps=16, max_poll_records=256)
    begin(processor)
    settle(processor, records([(offset, "ab"[offset % 2], 1.0) for offset in range(64)]))
    assert model.calls == [(2, 16), (2, 16)]
    epoch = processor.seal(0)
    assert epoch is not None
    assert len(encoded(processor, epoch)[0]) == 64
