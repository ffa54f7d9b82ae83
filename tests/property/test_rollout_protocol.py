"""Generation over a simulated log: random fetches, steps, commits and crashes against a run without any.

The state of a stream is a hash chain and so is what is generated from it, so a fork of another moment, a step too many
or an answer that came twice shows.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import POISON, ChainModel, advance, records

from streamer.core import Epoch, Op
from streamer.engine.ledger import Ledger
from streamer.engine.processor import Limits, Processor
from streamer.modelfile.contract import Contract
from streamer.records.changelog import Kind, Progress, StreamRecord, decode_progress, decode_stream, progress_key
from streamer.settings import GenerateSection

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
    changelog: dict[bytes, bytes] = field(default_factory=dict)
    position: int = 0

    @property
    def progress(self) -> Progress | None:
        value = self.changelog.get(progress_key())
        return None if value is None else decode_progress(value)

    @property
    def open_rollouts(self) -> list[bytes]:
        return [key for key in self.changelog if key[0] == Kind.ROLLOUT]

    def commit(self, epoch: Epoch) -> None:
        self.position = epoch.positions.get(0, self.position)
        for outgoing in epoch.outgoing:
            for offset, value in zip(outgoing.sources, outgoing.values, strict=True):
                document = msgspec.json.decode(value)
                if outgoing.mode == "generate":
                    self.answers[offset].append(document)
                else:
                    self.predictions.append((offset, document["y"]))
        self.rejected += [(reject.offset, reject.reason) for reject in epoch.rejects]
        for changelog in epoch.changelog:
            for key, value in changelog.records:
                if value is None:
                    self.changelog.pop(key, None)
                else:
                    self.changelog[key] = value


class Owner:
    """A process: recovers from what is durable, then settles epochs of the log."""

    def __init__(self, durable: Durable, log: list[tuple[str, What]], limits: Limits, *, keeps: bool = True) -> None:
        self.log = log
        self.processor = Processor([("chain", Chain(), None)], limits, durable=keeps)  # type: ignore[list-item]
        if not keeps:
            ledger = Ledger.fresh(durable.position)
        elif durable.progress is None:
            ledger = Ledger.fresh(0)
        else:
            found = [decode_stream(key, value) for key, value in durable.changelog.items() if key != progress_key()]
            states = [record for record in found if record.kind is Kind.STATE]
            self.processor.load(0, [record for record in states if record.state is not None])
            forgotten = {record.stream: record.through for record in states if record.state is None}
            ledger = Ledger.restored(durable.progress, forgotten, {}, self.rollouts(found))
        self.adjust(ledger)
        self.processor.assign(0, ledger)
        self.ledger = ledger

    def rollouts(self, found: list[StreamRecord]) -> list[StreamRecord]:
        return [record for record in found if record.kind is Kind.ROLLOUT]

    def adjust(self, ledger: Ledger) -> None: ...

    def fetch(self, count: int) -> bool:
        first = self.ledger.next_offset
        rows = [(offset, *self.log[offset]) for offset in range(first, min(first + count, len(self.log)))]
        if not rows:
            return False
        plain = [(offset, stream, Op.GENERATE if isinstance(what, dict) else what) for offset, stream, what in rows]
        batch = records(plain)
        for row, (_, _, what) in enumerate(rows):
            if isinstance(what, dict):
                batch.commands[row] = msgspec.json.encode(what)
        self.processor.ingest([batch])
        for _ in self.processor.run():
            pass
        return True


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


def some_limits(rng: random.Random) -> Limits:
    return Limits(
        max_rows=rng.randint(1, 4),
        max_steps=rng.choice([1, 8]),
        max_ingest_rows=16,
        max_state_bytes=1 << 16,
        checkpoint_interval_ms=rng.choice([0, 30, 100]),
        rollouts=GenerateSection(max_open=rng.choice([1, 3, 100]), max_rows=rng.randint(1, 3)),
    )


def run_schedule(
    seed: int, *, owner: type[Owner] = Owner, keeps: bool = True
) -> tuple[Durable, list[tuple[str, What]]]:
    rng = random.Random(seed)
    log, limits, durable, now_ms = some_log(rng), some_limits(rng), Durable(), 0
    process = owner(durable, log, limits, keeps=keeps)
    turns = 0
    while durable.position < len(log) or durable.open_rollouts or len(process.processor.rollouts):
        turns += 1
        assert turns < 3_000, "a request is never answered"
        for _ in range(rng.randint(1, 3)):
            if rng.random() < 0.6:
                process.fetch(rng.randint(1, 6))
            else:
                process.processor.counters.runs.clear()
                process.processor.roll()
                calls = [rows for rows, *_ in process.processor.counters.runs]
                assert all(rows <= limits.rollouts.max_rows for rows in calls)
        now_ms += rng.randint(0, 60)
        epoch = process.processor.seal(now_ms, slice_bytes=rng.choice([0, 100, 1 << 20]))
        died_inside = rng.random() < 0.1  # nothing of the transaction is seen
        if epoch is not None and not died_inside:
            before = durable.position
            durable.commit(epoch)
            assert before <= durable.position, "a position went back"
        if died_inside or rng.random() < 0.1:
            process = owner(durable, log, limits, keeps=keeps)
    process.processor.revoke(0)
    assert not len(process.processor.rollouts), "a rollout of a revoked partition remains"
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


@settings(max_examples=400)
@given(seed=st.integers(0, 2**32))
def test_every_request_is_answered_once_as_in_a_run_without_crashes(seed: int) -> None:
    check(*run_schedule(seed), seed)


class _ForgetsRollouts(Owner):
    """A broken recovery: what was being generated is lost."""

    def rollouts(self, found: list[StreamRecord]) -> list[StreamRecord]:
        return []


class _RepeatsSteps(Owner):
    """A broken recovery: it does not know how many answers were committed."""

    def adjust(self, ledger: Ledger) -> None:
        ledger.emitted.clear()


class _ForksAgain(Owner):
    """A broken recovery: a replayed request opens a rollout as if it were news."""

    def fetch(self, count: int) -> bool:
        self.ledger.live_from = min(self.ledger.live_from, self.ledger.next_offset)
        return super().fetch(count)


@pytest.mark.parametrize("broken", [_ForgetsRollouts, _RepeatsSteps, _ForksAgain])
def test_the_oracle_finds_a_broken_recovery(broken: type[Owner]) -> None:
    def search() -> None:
        for seed in range(200):
            durable, log = run_schedule(seed, owner=broken)
            check(durable, log, seed)

    with pytest.raises((AssertionError, KeyError)):
        search()


@settings(max_examples=150)
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
