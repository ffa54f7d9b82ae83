"""Emission over a simulated log: random fetches, evictions, idle times, commits and crashes against utterances by definition.

As in ``test_step_protocol``: only the log, the commits and the crashes are simulated."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from durable import Changelog, make_processor, settle
from emitting import Came, EmittingChain, Reference
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import records

from streamer.core import EmittedAnswers, Epoch, Op
from streamer.engine.processor import Processor
from streamer.records.changelog import Kind, decode_stream
from streamer.settings import UtteranceSection

STREAMS = "abcd"
Log = list[tuple[str, float | Op, int]]
"""(stream, x or command, event time)"""


def make_log(rng: random.Random) -> Log:
    values: list[float | Op] = [*map(float, range(11)), 13.0, Op.RESET, Op.END]
    weights = [*[10] * 11, 3, 3, 5]
    now, log = 1_000, []
    behind = {stream: rng.choice([0, 0, 500]) for stream in STREAMS}  # one may be late as a whole
    for _ in range(rng.randint(5, 120)):
        now += rng.choice([0, 1, 3, 10, 40])
        stream, what = rng.choice(STREAMS), rng.choices(values, weights)[0]
        time = now + 10**6 if isinstance(what, Op) else now - behind[stream] - rng.choice([0, 0, 0, 5, 60])
        log.append((stream, what, time))
    return log


class Durable:
    """What committed transactions left behind."""

    def __init__(self) -> None:
        self.came: list[Came] = []
        self.evictions: list[tuple[int, str]] = []
        self.idle: list[tuple[int, int]] = []
        """(before offset, clock)"""
        self.changelog = Changelog()

    def commit(self, processor: Processor, epoch: Epoch) -> None:
        for answers in epoch.answers:
            assert isinstance(answers, EmittedAnswers)
            self.came += Came.of(answers)
        self.evictions += self.changelog.commit(epoch)
        for changelog in epoch.changelog:
            for key, value in changelog.records:
                if value is not None and key[0] == Kind.CLOCK:
                    record = decode_stream(key, value)
                    self.idle.append((record.offset, record.last_ms))
        processor.committed(epoch, {})

    @property
    def position(self) -> int:
        progress = self.changelog.progress
        return -1 if progress is None else progress.position


def fetch(processor: Processor, log: Log, count: int) -> bool:
    first = processor.partitions[0].next_offset
    rows = range(first, min(first + count, len(log)))
    if rows:
        batch = records([(offset, *log[offset][:2]) for offset in rows])
        batch.times_ms = np.array([log[offset][2] for offset in rows], np.int64)
        settle(processor, batch)
    return bool(rows)


def expected(log: Log, rule: UtteranceSection, durable: Durable) -> list[Came]:
    reference = Reference(rule)
    gone, idle = defaultdict[int, list[str]](list), defaultdict[int, list[int]](list)
    for offset, stream in durable.evictions:
        gone[offset].append(stream)
    for before, clock_ms in durable.idle:
        idle[before].append(clock_ms)
    for offset in range(len(log) + 1):
        for clock_ms in idle[offset]:
            reference.idle(clock_ms)
        if offset < len(log):
            stream, what, time_ms = log[offset]
            reference.record(offset, stream, time_ms, what)
        for stream in gone[offset]:
            reference.forget(stream)
    return reference.came


def by_stream(came: list[Came]) -> dict[str, list[Came]]:
    found = defaultdict[str, list[Came]](list)
    for each in came:
        found[each.stream].append(each)
    return dict(found)


def run_schedule(seed: int) -> int:
    """Returns how many transcripts ended by time."""
    rng = random.Random(seed)
    log, durable, now_ms = make_log(rng), Durable(), 0
    rule = UtteranceSection(
        gap_ms=rng.choice([20, 100, 400]), max_span_ms=rng.choice([50, 300, 10_000]), max_symbols=rng.choice([1, 3, 64])
    )
    limits: dict[str, Any] = {
        "max_rows": rng.randint(1, 4),
        "max_steps": rng.choice([1, 3, 8]),
        "max_poll_records": 16,
        "checkpoint_interval_ms": rng.choice([0, 30, 100]),
        "idle_ttl_ms": rng.choice([0, 0, 500]),
        "max_bytes": rng.choice([1 << 20, 1 << 20, 3 * 500]),
    }

    def begun() -> Processor:
        processor = make_processor([("chain", EmittingChain(), None)], utterances={"chain": rule}, **limits)
        durable.changelog.recover(processor, rng)
        return processor

    process, quiet = begun(), 0
    while durable.position < len(log) or quiet < 3:
        fetched = sum(fetch(process, log, rng.randint(1, 9)) for _ in range(rng.randint(1, 3))) > 0
        quiet += not fetched
        if rng.random() < 0.3:
            process.idle(0, rng.choice([30, 200, 1_000]))
            settle(process)
        now_ms += rng.randint(0, 60)
        epoch = process.seal(now_ms, slice_bytes=rng.choice([0, 100, 1 << 20]))
        died_inside = rng.random() < 0.25  # nothing of the transaction is seen
        if epoch is not None:
            if not died_inside:
                durable.commit(process, epoch)
            elif rng.random() < 0.5:  # the same process goes on: what failed is restored
                process.failed(epoch)
                durable.changelog.recover(process, rng)
                continue
        if rng.random() < 0.1:
            durable.changelog.compact(rng)
        if died_inside or rng.random() < 0.2:
            process, now_ms = begun(), 0
    wanted = expected(log, rule, durable)
    assert by_stream(durable.came) == by_stream(wanted), seed
    slots = process.lanes.slots
    assert slots.used + slots.free == slots.capacity
    return sum(each.reason == "time" for each in wanted)


@settings(max_examples=300)
@given(st.integers(0, 2**32))
def test_emission_is_exactly_once_and_by_definition(seed):
    run_schedule(seed)


def test_the_schedules_reach_silence():
    assert sum(run_schedule(seed) for seed in range(40)) > 20


@pytest.mark.parametrize("cut", [1, 2, 7, 1_000])
def test_the_cut_into_fetches_changes_nothing(cut):
    rng = random.Random(cut)
    rule = UtteranceSection(gap_ms=100, max_span_ms=300, max_symbols=3)
    for seed in range(20):
        log = make_log(random.Random(seed))
        durable = Durable()
        process = make_processor([("chain", EmittingChain(), None)], utterances={"chain": rule})
        durable.changelog.recover(process, rng)
        while fetch(process, log, cut):
            pass
        epoch = process.seal(1)
        assert epoch is not None
        durable.commit(process, epoch)
        assert by_stream(durable.came) == by_stream(expected(log, rule, durable)), seed
