"""Generation over a simulated log: random fetches, steps, commits and crashes against a run without any.

The state of a stream is a hash chain and so is what is generated from it, so a fork of another moment, a step too many
or an answer that came twice shows.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import msgspec
import numpy as np
import pytest
from durable import END, Changelog, Found, begin, encoded, make_processor, settle
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import POISON, ChainModel, advance, records

from streamer.core import Epoch, LogFacts, Op
from streamer.engine.partition import Partition
from streamer.engine.processor import Processor
from streamer.engine.restore import Restore
from streamer.engine.steprun import StepRun
from streamer.modelfile.contract import Contract
from streamer.records.changelog import Kind
from streamer.words import Delivery, Mode

STREAMS = "abc"
What = float | Op | dict[str, Any]


class Chain(ChainModel):
    """The chain, fed back: what it gives is what it is given next."""

    def __init__(self) -> None:
        super().__init__()
        fields = msgspec.to_builtins(self.contract)
        self.contract = Contract.from_fields({**fields, "feedback": {"output": "y", "mode": "value"}})


@dataclass
class Durable:
    """What committed transactions left behind."""

    predictions: list[tuple[int, float]] = field(default_factory=list)
    answers: dict[int, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    rejected: list[tuple[int, str]] = field(default_factory=list)
    changelog: Changelog = field(default_factory=Changelog)
    position: int = 0

    def commit(self, processor: Processor, epoch: Epoch) -> None:
        assert self.position <= epoch.positions[0], "a position went back"
        self.position = epoch.positions[0]
        for outgoing in encoded(processor, epoch):
            for offset, value in zip(outgoing.sources, outgoing.values, strict=True):
                document = msgspec.json.decode(value)
                if outgoing.mode is Mode.GENERATE:
                    self.answers[offset].append(document)
                else:
                    self.predictions.append((offset, document["y"]))
        self.rejected += [(reject.offset, reject.reason) for reject in epoch.rejects]
        assert sum(epoch.report.rejects.values()) == len(epoch.rejects)
        self.changelog.commit(epoch)
        processor.committed(epoch, {})


class Owner:
    """A process: recovers from what is durable, then settles epochs of the log."""

    def __init__(
        self,
        durable: Durable,
        log: list[tuple[str, What]],
        limits: dict[str, Any],
        rng: random.Random,
        *,
        keeps: bool = True,
    ) -> None:
        self.log, self.keeps, self.model = log, keeps, Chain()
        mode = Delivery.EXACTLY_ONCE if keeps else Delivery.EPHEMERAL
        self.processor = make_processor([("chain", self.model, None)], mode=mode, **limits)
        self.recover(durable, rng)

    def recover(self, durable: Durable, rng: random.Random) -> None:
        if not self.keeps:
            self.partition = begin(self.processor, start=durable.position)
            return
        restore = durable.changelog.restored(self.processor, rng)
        self.before(restore)
        self.partition = restore.finish(Found(LogFacts("", 0, END, END), None, 0))
        self.after(self.partition)

    def before(self, restore: Restore) -> None:
        """What a broken recovery leaves out before the partition goes on, ..."""

    def after(self, partition: Partition) -> None:
        """... and afterwards."""

    def fetch(self, count: int) -> None:
        first = self.partition.next_offset
        rows = [(offset, *self.log[offset]) for offset in range(first, min(first + count, len(self.log)))]
        if not rows:
            return
        plain = [(offset, stream, Op.GENERATE if isinstance(what, dict) else what) for offset, stream, what in rows]
        batch = records(plain)
        for row, (_, _, what) in enumerate(rows):
            if isinstance(what, dict):
                batch.commands[row] = msgspec.json.encode(what)
        settle(self.processor, batch)

    def roll(self, max_rows: int) -> None:
        self.model.calls.clear()
        self.processor.roll()
        assert all(rows <= max_rows and steps == 1 for rows, steps in self.model.calls)


def generated(state: float, last: float | None, request: dict[str, Any]) -> list[float] | None:
    """The sequence that a request must give; None: the model fails on it."""
    if request.get("from") == "initial":
        state, last = 0.0, None
    prompt = request.get("prompt", [])
    for x in prompt or ([0.0] if last is None else []):
        if x == POISON:
            return None
        state = last = advance(state, x)
    assert last is not None
    picked = [last]
    while len(picked) < request["n"]:
        state = advance(state, picked[-1])
        picked.append(state)
    return picked


def expected(log: list[tuple[str, What]]) -> tuple[list[tuple[int, float]], dict[int, list[float] | None]]:
    """Predictions and answers of the run that never crashed."""
    state: dict[str, float] = {}
    last: dict[str, float | None] = {}
    predictions, answers = [], {}
    for offset, (stream, what) in enumerate(log):
        if isinstance(what, dict):
            answers[offset] = generated(state.get(stream, 0.0), last.get(stream), what)
        elif isinstance(what, Op):
            state[stream], last[stream] = 0.0, None
        elif what != POISON:
            state[stream] = last[stream] = advance(state.get(stream, 0.0), what)
            predictions.append((offset, state[stream]))
    return predictions, answers


def some_log(rng: random.Random) -> list[tuple[str, What]]:
    def what() -> What:
        if rng.random() > 0.3:
            return rng.choices([1.0, 2.0, 3.0, POISON, Op.RESET], [30, 30, 30, 1, 3])[0]
        request: dict[str, Any] = {"n": rng.randint(1, 9), "per_step": rng.random() < 0.5}
        if rng.random() < 0.3:
            request["from"] = "initial"
        if rng.random() < 0.4:
            request["prompt"] = rng.choices([5.0, 6.0, POISON], [10, 10, 1], k=rng.randint(1, 4))
        return request

    return [(rng.choice(STREAMS), what()) for _ in range(rng.randint(3, 50))]


def some_limits(rng: random.Random) -> dict[str, Any]:
    return {
        "max_rows": rng.randint(1, 4),
        "max_steps": rng.choice([1, 8]),
        "max_poll_records": 16,
        "max_bytes": 1 << 16,
        "checkpoint_interval_ms": rng.choice([0, 30, 100]),
        "generate": {"max_open": rng.choice([1, 3, 100]), "max_rows": rng.randint(1, 3)},
    }


def run_schedule(
    seed: int, *, owner: type[Owner] = Owner, keeps: bool = True
) -> tuple[Durable, list[tuple[str, What]]]:
    rng = random.Random(seed)
    log, limits, durable, now_ms = some_log(rng), some_limits(rng), Durable(), 0
    process = owner(durable, log, limits, rng, keeps=keeps)
    turns = 0
    while durable.position < len(log) or durable.changelog.count(Kind.ROLLOUT) or process.processor.rolling:
        turns += 1
        assert turns < 3_000, "a request is never answered"
        for _ in range(rng.randint(1, 3)):
            if rng.random() < 0.6:
                process.fetch(rng.randint(1, 6))
            else:
                process.roll(limits["generate"]["max_rows"])
        now_ms += rng.randint(0, 60)
        epoch = process.processor.seal(now_ms, slice_bytes=rng.choice([0, 100, 1 << 20]))
        died_inside = rng.random() < 0.1  # nothing of the transaction is seen
        if epoch is not None and not died_inside:
            durable.commit(process.processor, epoch)
        elif epoch is not None and rng.random() < 0.5:  # the same process goes on: what failed is restored
            process.processor.failed(epoch)
            assert not process.processor.rolling, "a rollout of a partition that failed remains"
            process.recover(durable, rng)
            continue
        if rng.random() < 0.1:
            durable.changelog.compact(rng)
        if died_inside or rng.random() < 0.1:
            process, now_ms = owner(durable, log, limits, rng, keeps=keeps), 0
    assert not len(process.partition.rollouts)
    (generator,) = process.processor.lanes.generators.by_name.values()
    assert len(generator.free) == limits["generate"]["max_rows"], "a slot of a rollout that ended is not free"
    return durable, log


def check(durable: Durable, log: list[tuple[str, What]], seed: int) -> None:
    predictions, answers = expected(log)
    assert sorted(durable.predictions) == predictions, seed
    refused = dict(durable.rejected)
    assert len(refused) == len(durable.rejected), "a record was rejected twice"
    for offset, wanted in answers.items():
        request, told = log[offset][1], durable.answers.get(offset, [])
        assert isinstance(request, dict)
        if refused.get(offset) == "too_many_rollouts":
            assert not told
        elif wanted is None:
            assert refused.pop(offset) == "model_refused"
            assert not told  # it fails in the prompt
        elif request["per_step"]:
            assert [each["y"] for each in told] == wanted, (seed, offset)
            assert [each["generate"]["step"] for each in told] == list(range(1, len(wanted) + 1))
            assert [each["generate"]["last"] for each in told] == [False] * (len(wanted) - 1) + [True]
        else:
            assert [each["y"] for each in told] == [wanted], (seed, offset)


@settings(max_examples=300)
@given(seed=st.integers(0, 2**32))
def test_every_request_is_answered_once_as_in_a_run_without_crashes(seed: int) -> None:
    check(*run_schedule(seed), seed)


class _ForgetsRollouts(Owner):
    """A broken recovery: what was being generated is lost."""

    def before(self, restore: Restore) -> None:
        restore.collected.rollouts.clear()


class _RepeatsSteps(Owner):
    """A broken recovery: it does not know how many answers were committed."""

    def after(self, partition: Partition) -> None:
        for rollout in partition.rollouts:
            rollout.emitted = 0


class _ForksAgain(Owner):
    """A broken recovery: a replayed request opens a rollout as if it were news."""

    def fetch(self, count: int) -> None:
        partition, real = self.partition, StepRun._command

        def command(run: StepRun, rows: np.ndarray) -> None:
            live_from, partition.live_from = partition.live_from, 0
            real(run, rows)
            partition.live_from = live_from

        with mock.patch.object(StepRun, "_command", command):
            super().fetch(count)


@pytest.mark.parametrize("broken", [_ForgetsRollouts, _RepeatsSteps, _ForksAgain])
def test_the_oracle_finds_a_broken_recovery(broken: type[Owner]) -> None:
    def search() -> None:
        for seed in range(200):
            durable, log = run_schedule(seed, owner=broken)
            check(durable, log, seed)

    with pytest.raises((AssertionError, KeyError)):
        search()


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32))
def test_without_a_changelog_the_position_waits_and_no_request_is_lost(seed: int) -> None:
    durable, log = run_schedule(seed, keeps=False)
    for offset, (_, what) in enumerate(log):
        if not isinstance(what, dict) or any(rejected == offset for rejected, _ in durable.rejected):
            continue
        told = durable.answers[offset]
        assert told, "a request was lost"
        if what.get("from") == "initial" and not what["per_step"]:  # a state does not survive a crash here
            assert {tuple(each["y"]) for each in told} == {tuple(generated(0.0, None, what) or ())}


def test_rollouts_of_a_partition_that_is_given_up_go_with_it_and_free_their_slots() -> None:
    processor = make_processor([("chain", Chain(), None)], max_poll_records=16, generate={"max_open": 2, "max_rows": 2})
    for number in (0, 1):
        begin(processor, number)
        batch = records([(0, "a", Op.GENERATE)], number)
        batch.commands[0] = b'{"n": 9}'
        settle(processor, batch)
    processor.roll()
    processor.drop(0)
    assert processor.rolling
    assert len(processor.partitions[1].rollouts) == 1
    begin(processor, 2)
    batch = records([(0, "a", Op.GENERATE)], 2)
    batch.commands[0] = b'{"n": 9}'
    settle(processor, batch)
    for _ in range(9):
        processor.roll()
    assert not processor.rolling
    epoch = processor.seal(0)
    assert epoch is not None
    assert sorted(answers.partition for answers in epoch.answers) == [1, 2]
    assert not epoch.rejects, "those of the partition that went away do not count against generate.max_open"
