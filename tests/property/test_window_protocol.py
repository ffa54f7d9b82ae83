"""Window mode over a simulated log: random fetches, idle times, commits and crashes against a run without any.

The real processor, ledger and changelog records; the log, the commits and the crashes are simulated. The reference gets
the same committed history, uninterrupted, and assigns every event by definition. Closed windows, their contents and
order, late events, refused windows and, beside a step model, its predictions must be the same, each exactly once.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import POISON, ChainModel, advance
from windowing import Closed, FoldModel, Reference, fold, timed

from streamer.core import Epoch, Op
from streamer.engine.ledger import Ledger
from streamer.engine.processor import Limits, Processor
from streamer.records.changelog import NO_WATERMARK, Kind, Progress, decode_progress, decode_stream, progress_key
from streamer.windows import WindowRule

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
    changelog: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def progress(self) -> Progress | None:
        value = self.changelog.get(progress_key())
        return None if value is None else decode_progress(value)

    def commit(self, epoch: Epoch) -> None:
        for outgoing in epoch.outgoing:
            for offset, value in zip(outgoing.sources, outgoing.values, strict=True):
                found = msgspec.json.decode(value)
                if outgoing.mode == "window":
                    at = found["window"]
                    name = (found["stream"], at["start"], at["end"], at["reason"], at["part"])
                    self.windows.append((*name, at["count"], *at["offsets"], found["y"]))
                    assert found["ts"] == at["end"]
                    assert offset == at["offsets"][1]
                else:
                    self.steps.append((offset, found["stream"], found["y"]))
        self.rejects += [(reject.offset, _reason(reject.reason, reject.detail)) for reject in epoch.rejects]
        for changelog in epoch.changelog:
            for key, value in changelog.records:
                if value is None:
                    self.changelog.pop(key, None)
                    continue
                self.changelog[key] = value
                if key[0] == Kind.STATE and (record := decode_stream(key, value)).state is None:
                    self.evictions.append((record.through, record.stream.decode()))


def _reason(reason: str, detail: str) -> str:
    return "window_refused" if "window" in detail else reason


class Owner:
    """A process: recovers from what is durable, then settles epochs of the log."""

    def __init__(self, durable: Durable, log: Log, rule: WindowRule, limits: Limits, *, step: bool) -> None:
        self.log = log
        models: list[Any] = [("fold", FoldModel(), rule)]
        if step:
            models.insert(0, ("chain", ChainModel(), None))
        self.processor = Processor(models, limits)
        progress = durable.progress
        if progress is None:
            self.ledger = Ledger.fresh(log[0][0])
        else:
            found = [decode_stream(key, value) for key, value in durable.changelog.items() if key != progress_key()]
            states = [record for record in found if record.kind is Kind.STATE]
            self.processor.load(0, [record for record in states if record.state is not None])
            forgotten = {record.stream: record.through for record in states if record.state is None}
            through = {record.stream: record.through for record in found if record.kind is Kind.WINDOW}
            self.ledger = self.restored(progress, forgotten, through)
        self.processor.assign(0, self.ledger)

    def restored(self, progress: Progress, forgotten: dict[bytes, int], through: dict[bytes, int]) -> Ledger:
        return Ledger.restored(progress, forgotten, through)

    def fetch(self, count: int) -> list[tuple[str, int]]:
        """What is new of the records that were fetched."""
        live_from = self.ledger.live_from
        rows = [row for row in self.log if row[0] >= self.ledger.next_offset][:count]
        if not rows:
            return []
        good = [row for row in rows if row[3] is not BAD]
        bad = [row[0] for row in rows if row[3] is BAD]
        self.processor.ingest([timed(good, rejects=bad, next_offset=rows[-1][0] + 1)])
        self.run()
        return [("record", row[0]) for row in rows if row[0] >= live_from]

    def idle(self, elapsed_ms: int) -> list[tuple[str, int]]:
        windows = self.processor.windows[0]
        before = windows.watermark
        self.processor.idle(0, elapsed_ms)
        self.run()
        return [("idle", windows.watermark)] if windows.watermark != before else []

    def run(self) -> None:
        for _ in self.processor.run():
            pass


class Truth:
    """The run without crashes, over what was committed."""

    def __init__(self, log: Log, rule: WindowRule) -> None:
        self.records = {row[0]: row for row in log}
        self.reference = Reference(rule)
        self.windows: list[tuple[Any, ...]] = []
        self.rejects: list[tuple[int, str]] = []

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

    def steps(self, evictions: list[tuple[int, str]]) -> tuple[list[tuple[int, str, float]], list[tuple[int, str]]]:
        """Predictions and rejects of the step model beside it, with the evictions that were committed."""
        gone: dict[int, list[str]] = {}
        for offset, stream in evictions:
            gone.setdefault(offset, []).append(stream)
        state: dict[str, float] = {}
        result, refused = [], []
        for offset in range(max(self.records) + 1):
            _, stream, _, what = self.records.get(offset, (0, "", 0, BAD))
            if what is Op.RESET or what is Op.END:
                state[stream] = 0.0
            elif what == POISON:
                refused.append((offset, "model_refused"))
            elif isinstance(what, float):
                state[stream] = advance(state.get(stream, 0.0), what)
                result.append((offset, stream, state[stream]))
            for name in gone.get(offset, []):
                state.pop(name, None)
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
    limits = Limits(
        max_rows=rng.randint(1, 4),
        max_steps=rng.choice([1, 8]),
        max_window_cells=rng.choice([4, 64]),
        max_ingest_rows=16,
        checkpoint_interval_ms=rng.choice([0, 30, 100]),
        idle_ttl_ms=rng.choice([0, 0, 20]),
        late_to_dead_letter=True,
        max_state_bytes=1 << 16,
    )
    durable, truth, now_ms = Durable(), Truth(log, rule), 0
    process = owner(durable, log, rule, limits, step=step)
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
        epoch = process.processor.seal(now_ms, slice_bytes=rng.choice([0, 100, 1 << 20]))
        died_inside = rng.random() < 0.25  # nothing of the transaction is seen
        if not died_inside:
            if epoch is not None:
                _commit(durable, epoch)
                truth.follow(open_epoch)
            else:
                assert not open_epoch
            open_epoch = []
        if died_inside or rng.random() < 0.2:
            process, open_epoch = owner(durable, log, rule, limits, step=step), []
    _check(durable, truth, step)
    _check_end(process, durable, truth, now_ms, caught_up=owner is Owner)


def _commit(durable: Durable, epoch: Epoch) -> None:
    before = durable.progress
    durable.commit(epoch)
    after = durable.progress
    assert after is not None
    if before is not None:
        assert before.position <= after.position, "a position went back"
        assert before.replay_point <= after.replay_point <= after.position


def _check(durable: Durable, truth: Truth, step: bool) -> None:
    assert durable.windows == truth.windows
    steps, refused = truth.steps(durable.evictions)
    assert sorted(durable.rejects) == sorted(truth.rejects + (refused if step else []))
    assert sorted(durable.steps) == (steps if step else [])


def _check_end(process: Owner, durable: Durable, truth: Truth, now_ms: int, *, caught_up: bool) -> None:
    """What is open is the same too; when time has closed it, nothing is left to replay."""
    processor = process.processor
    while process.ledger.replaying:
        process.fetch(6)
    windows = processor.windows[0]
    assert windows.watermark == truth.reference.watermark
    assert windows.open_windows == truth.reference.open_windows
    oldest = windows.oldest()
    assert (None if oldest is None else oldest[0]) == truth.reference.oldest()
    truth.follow(process.idle(10**9))
    for _ in range(40):
        now_ms += 1_000
        epoch = processor.seal(now_ms)
        if epoch is not None:
            _commit(durable, epoch)
    assert durable.windows == truth.windows
    progress = durable.progress
    assert progress is not None
    assert windows.open_windows == windows.buffered_events == 0
    assert progress.replay_point == progress.position
    assert not progress.idle
    assert not [key for key in durable.changelog if key[0] == Kind.WINDOW], "a through that no replay needs is kept"


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=2 * settings().max_examples)
@given(seed=st.integers(0, 2**32))
def test_every_window_is_predicted_once_and_as_without_crashes(kind: str, seed: int) -> None:
    run_schedule(seed, kind)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=2 * settings().max_examples)
@given(seed=st.integers(0, 2**32))
def test_a_step_and_a_window_model_on_one_input_are_both_exactly_once(kind: str, seed: int) -> None:
    run_schedule(seed, kind, step=True)


# Recoveries that leave one part out: the same oracle must find each of them.


class _ForgetsThrough(Owner):
    """Windows closed by arrival or by a bound are closed again."""

    def restored(self, progress: Progress, forgotten: dict[bytes, int], through: dict[bytes, int]) -> Ledger:
        return Ledger.restored(progress, forgotten, {})


class _ForgetsIdleAdvances(Owner):
    def restored(self, progress: Progress, forgotten: dict[bytes, int], through: dict[bytes, int]) -> Ledger:
        return Ledger.restored(replace_(progress, idle=()), forgotten, through)


class _ForgetsTheWatermark(Owner):
    def restored(self, progress: Progress, forgotten: dict[bytes, int], through: dict[bytes, int]) -> Ledger:
        return Ledger.restored(replace_(progress, watermark=NO_WATERMARK), forgotten, through)


class _SkipsReplay(Owner):
    """Open windows are lost."""

    def restored(self, progress: Progress, forgotten: dict[bytes, int], through: dict[bytes, int]) -> Ledger:
        ledger = Ledger.restored(progress, forgotten, through)
        ledger.next_offset = ledger.live_from
        return ledger


class _ReplaysAsNews(Owner):
    """Everything since the replay point is predicted again."""

    def restored(self, progress: Progress, forgotten: dict[bytes, int], through: dict[bytes, int]) -> Ledger:
        ledger = Ledger.restored(progress, forgotten, through)
        ledger.live_from = ledger.next_offset
        return ledger


class _AdvancesTooEarly(Owner):
    """Idle advances are repeated one record early."""

    def restored(self, progress: Progress, forgotten: dict[bytes, int], through: dict[bytes, int]) -> Ledger:
        idle = tuple((before - 1, watermark) for before, watermark in progress.idle)
        return Ledger.restored(replace_(progress, idle=idle), forgotten, through)


class _BoundsActInReplay(Owner):
    def __init__(self, durable: Durable, log: Log, rule: WindowRule, limits: Limits, *, step: bool) -> None:
        super().__init__(durable, log, rule, limits, step=step)
        self.processor.windows[0]._replaying = False
        self.processor.windows[0].add = _publishing_nothing(self)  # type: ignore[method-assign]


def _publishing_nothing(owner: Owner) -> Any:
    windows, ledger = owner.processor.windows[0], owner.ledger
    real = type(windows).add

    def add(batch: Any, first: int = 0, last: int | None = None, through: Any = None) -> Any:
        replayed = batch.offsets[first] < ledger.live_from
        added = real(windows, batch, first, last, through or (ledger.window_through if replayed else None))
        if replayed:
            added.closed, added.late, added.short, added.closed_through = [], [], [], {}
        return added

    return add


def replace_(progress: Progress, **changes: Any) -> Progress:
    return msgspec.structs.replace(progress, **changes)


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
