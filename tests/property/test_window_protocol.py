"""Window mode over a simulated log: random fetches, idle times, commits and crashes against a run without any.

The code that ships: processor, partition, changelog records and restore; the log, the commits and the crashes are simulated.
The reference gets the same committed history, uninterrupted, and assigns every event by definition. Closed windows, their
contents and order, late events, refused windows and, beside a step model, its predictions must be the same, each exactly
once.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from durable import END, Changelog, Found, encoded, make_processor, settle
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import POISON, ChainModel, advance
from windowing import Closed, FoldModel, Reference, fold, timed

from streamer.core import Epoch, LogFacts, Op
from streamer.engine.partition import Partition
from streamer.engine.processor import Processor
from streamer.engine.restore import Restore
from streamer.records.changelog import NO_WATERMARK, Kind, Progress
from streamer.windows import WindowRule
from streamer.words import Mode, Reason

KINDS = ("tumbling", "hopping", "session", "count", "end")
BAD = "bad"
"""A record that the codec refuses."""
Log = list[tuple[int, str, int, Any]]
"""(offset, stream, event time, x | command | BAD); offsets have gaps, as transaction markers leave them."""


@dataclass
class Durable:
    """What committed transactions left behind."""

    windows: list[tuple[Any, ...]] = field(default_factory=list)
    steps: list[tuple[int, str, float]] = field(default_factory=list)
    rejects: list[tuple[int, str]] = field(default_factory=list)
    evictions: list[tuple[int, str]] = field(default_factory=list)
    late: int = 0
    changelog: Changelog = field(default_factory=Changelog)

    @property
    def progress(self) -> Progress | None:
        return self.changelog.progress

    def commit(self, processor: Processor, epoch: Epoch) -> None:
        closed = 0
        for outgoing in encoded(processor, epoch):
            for offset, value in zip(outgoing.sources, outgoing.values, strict=True):
                found = msgspec.json.decode(value)
                if outgoing.mode is Mode.WINDOW:
                    at = found["window"]
                    name = (found["stream"], at["start"], at["end"], at["reason"], at["part"])
                    self.windows.append((*name, at["count"], *at["offsets"], found["y"]))
                    assert found["ts"] == at["end"]
                    assert offset == at["offsets"][1]
                    closed += 1
                else:
                    self.steps.append((offset, found["stream"], found["y"]))
        rejects = [(reject.offset, _reason(reject.reason, reject.detail)) for reject in epoch.rejects]
        closed += sum(reason == "window_refused" for _, reason in rejects)
        assert sum(epoch.report.closed.values()) == closed, "a window was counted without being told"
        assert sum(epoch.report.rejects.values()) == len(rejects)
        assert epoch.report.rejects.get(Reason.LATE, 0) <= epoch.report.late
        self.late += epoch.report.late
        self.rejects += rejects
        self.evictions += self.changelog.commit(epoch)
        processor.committed(epoch, {})


def _reason(reason: str, detail: str) -> str:
    return "window_refused" if "window" in detail else str(reason)


class Owner:
    """A process: recovers from what is durable, then settles epochs of the log."""

    def __init__(
        self, durable: Durable, log: Log, rule: WindowRule, limits: dict[str, Any], rng: random.Random, *, step: bool
    ) -> None:
        self.log = log
        models: list[Any] = [("fold", FoldModel(), rule)]
        if step:
            models.insert(0, ("chain", ChainModel(), None))
        self.processor = make_processor(models, late="dead-letter", **limits)
        self.recover(durable, rng)

    def recover(self, durable: Durable, rng: random.Random) -> None:
        restore = durable.changelog.restored(self.processor, rng)
        self.partition = restore.finish(Found(LogFacts("", 0, END, END), None, self.log[0][0]))
        if durable.progress is not None:
            self.tamper(self.partition, restore)

    def tamper(self, partition: Partition, restore: Restore) -> None:
        """What a broken recovery leaves out."""

    def fetch(self, count: int) -> list[tuple[str, int]]:
        """What is new of the records that were fetched."""
        live_from = self.partition.live_from
        rows = [row for row in self.log if row[0] >= self.partition.next_offset][:count]
        if not rows:
            return []
        good = [row for row in rows if row[3] is not BAD]
        bad = [row[0] for row in rows if row[3] is BAD]
        settle(self.processor, timed(good, rejects=bad, next_offset=rows[-1][0] + 1))
        return [("record", row[0]) for row in rows if row[0] >= live_from]

    def idle(self, elapsed_ms: int) -> list[tuple[str, int]]:
        assert self.partition.windows is not None
        windows = self.partition.windows.windows
        before = windows.watermark
        self.processor.idle(0, elapsed_ms)
        settle(self.processor)
        return [("idle", windows.watermark)] if windows.watermark != before else []


class Truth:
    """The run without crashes, over what was committed."""

    def __init__(self, log: Log, rule: WindowRule) -> None:
        self.records = {row[0]: row for row in log}
        self.reference = Reference(rule)
        self.windows: list[tuple[Any, ...]] = []
        self.rejects: list[tuple[int, str]] = []
        self.late = 0

    def follow(self, history: list[tuple[str, int]]) -> None:
        for what, value in history:
            if what == "idle":
                step = self.reference.idle(value)
                assert step.moved, "an idle advance that closed nothing"
            else:
                record = self.records[value]
                if record[3] is BAD:
                    self.rejects.append((value, "undecodable"))
                    continue
                step = self.reference.record(*record)
                self.late += step.late
                if step.late:
                    self.rejects.append((value, "late"))
            for closed in step.closed:
                self._predict(closed)

    def _predict(self, closed: Closed) -> None:
        offsets = [offset for _, offset in closed.events]
        values = [self.records[offset][3] for offset in offsets]
        if POISON in values:
            self.rejects.append((max(offsets), "window_refused"))
            return
        name = (closed.stream, closed.start, closed.end, closed.reason, closed.part)
        self.windows.append((*name, len(offsets), min(offsets), max(offsets), fold(values)))

    def steps(
        self, evictions: list[tuple[int, str]], ttl_ms: int
    ) -> tuple[list[tuple[int, str, float]], list[tuple[int, str]]]:
        """Predictions and rejects of the step model beside it, with the evictions that were committed."""
        gone: dict[int, list[str]] = {}
        for offset, stream in evictions:
            gone.setdefault(offset, []).append(stream)
        state: dict[str, float] = {}
        newest: dict[str, int] = {}
        result, refused = [], []
        for offset in range(max(self.records) + 1):
            _, stream, time, what = self.records.get(offset, (0, "", 0, BAD))
            if what is Op.RESET or what is Op.END:
                state[stream] = 0.0
            elif isinstance(what, float):
                if ttl_ms and time - newest.get(stream, time) > ttl_ms:
                    state[stream] = 0.0
                newest[stream] = max(newest.get(stream, time), time)
                if what == POISON:
                    refused.append((offset, "model_refused"))
                else:
                    state[stream] = advance(state.get(stream, 0.0), what)
                    result.append((offset, stream, state[stream]))
            for name in gone.get(offset, []):
                state.pop(name, None)
                newest.pop(name, None)
        return result, refused


def make_log(rng: random.Random) -> Log:
    now, offset, log = 0, rng.choice([0, 5]), []
    poison = rng.choice([0, 0, 1])
    for _ in range(rng.randint(5, 90)):
        now += rng.choice([0, 0, 1, 1, 2, 3, 9])
        time = max(0, now - rng.choice([0, 0, 1, 3, 6, 12]))
        what = rng.choices([float(offset % 97 + 20), POISON, Op.END, Op.RESET, BAD], [24, poison, 3, 1, 1])[0]
        log.append((offset, rng.choice("abcd"), time, what))
        offset += rng.choice([1, 1, 1, 2, 4])
    return log


def make_rule(rng: random.Random, kind: str) -> WindowRule:
    most = rng.choice([2, 4, 100])
    return WindowRule(
        kind,
        size_ms=10,
        hop_ms=rng.choice([3, 5, 10]),
        gap_ms=8,
        count=rng.randint(1, min(most, 3)),
        max_events=most,
        max_span_ms=rng.choice([15, 10_000]),
        disorder_ms=rng.choice([0, 3]),
        max_open_windows=rng.choice([2, 3, 100]),
    )


def run_schedule(seed: int, kind: str, *, step: bool = False, owner: type[Owner] = Owner) -> None:
    rng = random.Random(seed)
    log, rule = make_log(rng), make_rule(rng, kind)
    limits = {
        "max_rows": rng.randint(1, 4),
        "max_steps": rng.choice([1, 8]),
        "max_window_cells": rng.choice([4, 64]),
        "max_poll_records": 16,
        "checkpoint_interval_ms": rng.choice([0, 30, 100]),
        "idle_ttl_ms": rng.choice([0, 0, 20]),
        "max_bytes": rng.choice([1 << 16, 1 << 16, 2 * 210]),
    }
    durable, truth, now_ms = Durable(), Truth(log, rule), 0
    process = owner(durable, log, rule, limits, rng, step=step)
    open_epoch: list[tuple[str, int]] = []
    silent = 0
    while (durable.progress is None or durable.progress.position <= log[-1][0]) or silent < 4:
        before = len(open_epoch)
        for _ in range(rng.randint(1, 3)):
            open_epoch += process.fetch(rng.randint(1, 6))
            if rng.random() < 0.4:
                open_epoch += process.idle(rng.choice([1, 5, 9, 20]))
        silent += len(open_epoch) == before
        now_ms += rng.randint(0, 60)
        handed_over = rng.random() < 0.1
        if handed_over:
            process.partition.hand_over()
        epoch = process.processor.seal(now_ms, slice_bytes=rng.choice([0, 100, 1 << 20]))
        if handed_over:
            process.partition.keep()
        died_inside = rng.random() < 0.25  # nothing of the transaction is seen
        if not died_inside:
            if epoch is not None:
                durable.commit(process.processor, epoch)
                truth.follow(open_epoch)
            else:
                assert not open_epoch
            open_epoch = []
            if rng.random() < 0.1:
                durable.changelog.compact(rng)
        elif epoch is not None and rng.random() < 0.5:  # the same process goes on: what failed is restored
            process.processor.failed(epoch)
            process.recover(durable, rng)
            open_epoch = []
            continue
        if died_inside or rng.random() < 0.2:
            process, open_epoch = owner(durable, log, rule, limits, rng, step=step), []
    _check(durable, truth, limits["idle_ttl_ms"], step)
    _check_end(process, durable, truth, now_ms)


def _check(durable: Durable, truth: Truth, ttl_ms: int, step: bool) -> None:
    assert durable.windows == truth.windows
    assert durable.late == truth.late
    steps, refused = truth.steps(durable.evictions, ttl_ms)
    assert sorted(durable.rejects) == sorted(truth.rejects + (refused if step else []))
    assert sorted(durable.steps) == (steps if step else [])


def _check_end(process: Owner, durable: Durable, truth: Truth, now_ms: int) -> None:
    """What is open is the same too; when time has closed it, nothing is left to replay."""
    processor, partition = process.processor, process.partition
    while partition.replaying:
        process.fetch(6)
    assert partition.windows is not None
    windows = partition.windows.windows
    assert windows.watermark == truth.reference.watermark
    assert windows.open_windows == truth.reference.open_windows
    oldest = windows.oldest()
    assert (None if oldest is None else oldest[0]) == truth.reference.oldest()
    truth.follow(process.idle(10**9))
    for _ in range(40):
        now_ms += 1_000
        epoch = processor.seal(now_ms)
        if epoch is not None:
            durable.commit(processor, epoch)
    assert durable.windows == truth.windows
    progress = durable.progress
    assert progress is not None
    assert windows.open_windows == windows.buffered_events == 0
    assert progress.replay_point == progress.position
    for kind in (Kind.WINDOW, Kind.IDLE, Kind.DECISIONS):
        assert not durable.changelog.count(kind), f"{kind.name}: a record that no replay needs is kept"


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=2 * settings().max_examples)
@given(seed=st.integers(0, 2**32))
def test_every_window_is_predicted_once_and_as_without_crashes(kind: str, seed: int) -> None:
    run_schedule(seed, kind)


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32))
def test_a_step_and_a_window_model_on_one_input_are_both_exactly_once(kind: str, seed: int) -> None:
    run_schedule(seed, kind, step=True)


def test_refusals_do_not_accumulate_while_a_window_is_open_for_long() -> None:
    """The replay point stays at the window's first event; what the step model refused since is in its stream records."""
    rng, durable, log = random.Random(0), Durable(), []
    for offset in range(600):
        log.append((offset, rng.choice("abc"), offset, POISON if offset % 3 == 1 else float(offset)))
    rule, limits = WindowRule("end"), {"max_poll_records": 16, "checkpoint_interval_ms": 50, "max_bytes": 1 << 16}
    process = Owner(durable, log, rule, limits, rng, step=True)
    most, now_ms = 0, 0
    while durable.progress is None or durable.progress.position < len(log):
        process.fetch(8)
        now_ms += 10
        if (epoch := process.processor.seal(now_ms)) is not None:
            durable.commit(process.processor, epoch)
        (truth,) = process.partition.truths
        most = max(most, len(truth.decisions))
        assert durable.changelog.count(Kind.DECISIONS) <= 8, "one record per epoch, of one round and the one before"
        if rng.random() < 0.1:
            process, now_ms = Owner(durable, log, rule, limits, rng, step=True), 0
    assert most <= 40
    assert durable.progress.replay_point <= 2, "all windows are open"
    steps, refused = Truth(log, rule).steps([], 0)
    assert sorted(durable.steps) == steps
    assert sorted(durable.rejects) == refused


# Recoveries that leave one part out: the same oracle must find each of them.


class _ForgetsThrough(Owner):
    """Windows closed by arrival or by a bound are closed again."""

    def tamper(self, partition: Partition, restore: Restore) -> None:
        assert partition.windows is not None
        partition.windows.through.clear()


class _ForgetsIdleAdvances(Owner):
    def tamper(self, partition: Partition, restore: Restore) -> None:
        assert partition.windows is not None
        partition.windows.idle.clear()


class _ForgetsTheWatermark(Owner):
    def tamper(self, partition: Partition, restore: Restore) -> None:
        assert partition.windows is not None
        partition.windows.windows.watermark = NO_WATERMARK


class _SkipsReplay(Owner):
    """Open windows are lost."""

    def tamper(self, partition: Partition, restore: Restore) -> None:
        partition.next_offset = partition.live_from
        partition.caught_up()


class _ReplaysAsNews(Owner):
    """Everything since the replay point is predicted again."""

    def tamper(self, partition: Partition, restore: Restore) -> None:
        partition.live_from = partition.next_offset
        partition.caught_up()


class _AdvancesTooEarly(Owner):
    """Idle advances are repeated one record early."""

    def tamper(self, partition: Partition, restore: Restore) -> None:
        assert partition.windows is not None
        partition.windows.idle = [(before - 1, watermark) for before, watermark in partition.windows.idle]


class _BoundsActInReplay(Owner):
    def tamper(self, partition: Partition, restore: Restore) -> None:
        assert partition.windows is not None
        windows = partition.windows.windows
        windows._table.replaying = False
        windows.add = _publishing_nothing(partition)  # type: ignore[method-assign]


def _publishing_nothing(partition: Partition) -> Any:
    assert partition.windows is not None
    open_windows = partition.windows
    real = type(open_windows.windows).add

    def add(batch: Any, first: int = 0, last: int | None = None, through: Any = None) -> Any:
        replayed = batch.offsets[first] < partition.live_from
        known = through or (open_windows.through if replayed else None)
        added = real(open_windows.windows, batch, first, last, known)
        if replayed:
            added.closed, added.closed_at, added.late, added.short, added.closed_through = [], [], [], [], {}
        return added

    return add


@pytest.mark.parametrize(
    "broken",
    [
        _ForgetsThrough,
        _ForgetsIdleAdvances,
        _ForgetsTheWatermark,
        _SkipsReplay,
        _ReplaysAsNews,
        _AdvancesTooEarly,
        _BoundsActInReplay,
    ],
)
def test_the_oracle_finds_a_broken_recovery(broken: type[Owner]) -> None:
    def search() -> None:
        for seed in range(300):
            for kind in KINDS:
                run_schedule(seed, kind, owner=broken)

    with pytest.raises(AssertionError):
        search()
