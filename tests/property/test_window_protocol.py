"""Windows over crashes: the real processor on a simulated log, against the slow reference that never crashes.

Idle advances are the only decisions that the log does not hold; the reference takes those that were committed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated import advance
from window_reference import Reference, Row, event_batch

from streamer.checkpoint import Kind, Ledger, Progress, decode_progress, decode_stream, progress_key
from streamer.contract import Contract
from streamer.core import Epoch
from streamer.processor import Limits, Processor
from streamer.windows import WindowRule

Prediction = tuple[str, int, int, str, int, float]
"""stream, start, end, reason, number of events, output"""


class ChainWindows:
    """The hash chain of a window's events: anything missing, repeated or out of order shows."""

    def __init__(self) -> None:
        self.contract = Contract.from_fields(
            {
                "name": "chain",
                "mode": "window",
                "input": {"name": "x", "shape": ["batch", "time", 1]},
                "lengths": "lengths",
                "outputs": [{"name": "y", "shape": ["batch", 1], "kind": "value", "per": "window"}],
            }
        )
        self.states: tuple[Any, ...] = ()
        self.sha256 = "cd" * 32
        self.max_steps: int | None = None
        self.ragged = True
        self.state_bytes_per_stream = 0

    def initial_states(self, rows: int) -> list[np.ndarray]:
        return []

    def run(self, x: np.ndarray, lengths: np.ndarray, states: Sequence[np.ndarray]):
        y = [chain(row[:length, 0].tolist()) for row, length in zip(x, lengths, strict=True)]
        return [np.array(y, np.float32)[:, None]], []


def chain(values: Sequence[float]) -> float:
    state = 0.0
    for value in values:
        state = advance(state, value)
    return state


class Durable:
    """What survives: the changelog, the predictions, every idle advance that was ever committed."""

    def __init__(self) -> None:
        self.changelog: dict[bytes, bytes] = {}
        self.progress: Progress | None = None
        self.predictions: list[Prediction] = []
        self.idle: dict[int, int] = {}

    def commit(self, epoch: Epoch, decided: dict[int, int]) -> None:
        """``decided``: idle advances of the process since its last commit."""
        self.idle.update(decided)
        decided.clear()
        for part in epoch.changelog:
            for key, value in part.records:
                if key == progress_key():
                    assert value is not None
                    self.progress = decode_progress(value)
                elif value is None:
                    self.changelog.pop(key, None)
                else:
                    self.changelog[key] = value
        for part in epoch.outgoing:
            for value in part.values:
                document = json.loads(value)
                window = document["window"]
                bounds = window["start"], window["end"], window["reason"], window["count"]
                self.predictions.append((document["stream"], *bounds, document["y"]))


class Owner:
    """One life of the process."""

    def __init__(self, durable: Durable, log: list[Row], rule: WindowRule, limits: Limits) -> None:
        self.log = log
        self.decided: dict[int, int] = {}
        model: Any = ChainWindows()
        self.processor = Processor([("chain", model, rule)], limits)
        if durable.progress is None:
            self.ledger = Ledger.fresh(0)
        else:
            found = [decode_stream(key, value) for key, value in durable.changelog.items()]
            assert all(record.kind is Kind.WINDOW for record in found)
            self.ledger = self.restored(durable.progress, {record.stream: record.through for record in found})
        self.processor.assign(0, self.ledger)

    def restored(self, progress: Progress, through: dict[bytes, int]) -> Ledger:
        return Ledger.restored(progress, {}, through)

    def fetch(self, count: int, end: int) -> None:
        first = self.ledger.next_offset
        rows = self.log[first : min(first + count, end)]
        if rows:
            self.processor.ingest([event_batch(rows, first)])
            self.run()

    def idle(self, elapsed_ms: int) -> None:
        windows = self.processor.windows[0]
        before = windows.watermark
        self.processor.idle(0, elapsed_ms)
        self.run()
        if windows.watermark > before:
            self.decided[self.ledger.next_offset] = windows.watermark

    def run(self) -> None:
        for _ in self.processor.run():
            pass


class ForgetsIdleness(Owner):
    def restored(self, progress: Progress, through: dict[bytes, int]) -> Ledger:
        ledger = super().restored(progress, through)
        ledger.idle.clear()
        return ledger


class ForgetsThrough(Owner):
    def restored(self, progress: Progress, through: dict[bytes, int]) -> Ledger:
        return super().restored(progress, {})


class ForgetsWatermark(Owner):
    def restored(self, progress: Progress, through: dict[bytes, int]) -> Ledger:
        ledger = super().restored(progress, through)
        ledger.watermark = -(2**62)
        return ledger


def random_rule(rng: random.Random) -> WindowRule:
    kind = rng.choice(["tumbling", "hopping", "session", "count", "end"])
    size = rng.randint(2, 20)
    sizes = {
        "tumbling": {"size_ms": size},
        "hopping": {"size_ms": size, "hop_ms": rng.randint(1, size)},
        "session": {"gap_ms": rng.randint(1, 10)},
        "count": {"count": rng.randint(1, 4)},
        "end": {},
    }[kind]
    most = rng.choice([4, 5, 1_000])
    return WindowRule(kind, **sizes, disorder_ms=rng.choice([0, 0, 5, 12]), max_events=most)


def run_schedule(seed: int, *, owner: type[Owner] = Owner) -> None:
    rng = random.Random(seed)
    rule, time_ms, log = random_rule(rng), 0, []
    for _ in range(rng.randint(3, 60)):
        time_ms += rng.randint(0, 6)
        log.append((rng.choice("abc"), max(time_ms - rng.randint(0, 15), 0), rng.random() < 0.06))
    limits = Limits(max_rows=rng.randint(1, 4), checkpoint_interval_ms=rng.choice([0, 30, 100]))
    durable, now_ms, end, quiet = Durable(), 0, 0, 0
    process = owner(durable, log, rule, limits)
    while (durable.progress is None or durable.progress.position < len(log)) or quiet < 4:
        end = min(end + rng.randint(0, 12), len(log))
        for _ in range(rng.randint(1, 3)):
            process.fetch(rng.randint(1, 7), end)
        caught_up = process.ledger.next_offset == end
        quiet += process.ledger.next_offset == len(log)
        if caught_up and rng.random() < 0.5:
            process.idle(rng.randint(0, 60))
        now_ms += rng.randint(0, 60)
        epoch = process.processor.seal(now_ms)
        died_inside = rng.random() < 0.25
        if epoch is not None and not died_inside:
            durable.commit(epoch, process.decided)
        if died_inside or rng.random() < 0.2:
            process = owner(durable, log, rule, limits)
    assert sorted(durable.predictions) == expected(rule, log, durable.idle), (seed, rule)


def expected(rule: WindowRule, log: list[Row], idle: dict[int, int]) -> list[Prediction]:
    reference = Reference(rule)
    for offset in range(len(log) + 1):
        if offset in idle:
            reference.watermark = max(reference.watermark, idle[offset])
            reference.pass_time()
        if offset < len(log):
            reference.add(offset, log[offset])
    return sorted(
        (stream, start, end, reason, len(offsets), chain(offsets))
        for stream, start, end, reason, offsets in reference.closed
    )


@given(st.integers(0, 2**32 - 1))
def test_crashes_change_no_window(seed: int) -> None:
    run_schedule(seed)


def test_many_schedules() -> None:
    for seed in range(1_500):
        run_schedule(seed)


@pytest.mark.parametrize("broken", [ForgetsIdleness, ForgetsThrough, ForgetsWatermark])
def test_the_oracle_finds_a_broken_recovery(broken: type[Owner]) -> None:
    def search() -> None:
        for seed in range(1_500):
            run_schedule(seed, owner=broken)

    with pytest.raises(AssertionError):
        search()
