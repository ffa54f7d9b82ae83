"""When the loop commits, how long it waits for records before that, how much of a round goes with each commit, and how many
records a poll may bring."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from durable import begin, make_processor, settle
from serving import make_settings
from simulated import ChainModel, records

from streamer.core import Epoch
from streamer.engine.processor import Processor
from streamer.service.commits import Commits, _Flight
from streamer.service.pace import Pace

STREAMS = 1_000


class HandClock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def now_ms(self) -> int:
        return int(self.now * 1000)


def make(delivery: str = "exactly-once", **options: Any) -> tuple[Commits, Processor, HandClock]:
    """Its own decisions are asked for: nothing is around it."""
    clock, nothing = HandClock(), Any
    settings = make_settings("127.0.0.1:1", "in", "group", delivery={"mode": delivery, **options})
    processor = make_processor(
        [("chain", ChainModel(), None)],
        max_bytes=1 << 20,
        max_poll_records=STREAMS,
        checkpoint_interval_ms=settings.delivery.checkpoint_interval_ms,
    )
    begin(processor)
    return Commits(settings, processor, nothing, nothing, nothing, clock), processor, clock  # type: ignore[arg-type]


def feed(processor: Processor, first: int) -> None:
    settle(processor, records([(first + row, f"s{row}", 1.0) for row in range(STREAMS)]))


def sealed(processor: Processor, clock: HandClock, slice_bytes: int) -> Epoch | None:
    epoch = processor.seal(clock.now_ms(), slice_bytes)
    if epoch is not None:
        processor.committed(epoch, {})
    return epoch


@pytest.mark.parametrize(("delivery", "interval_ms"), [("exactly-once", 5), ("at-least-once", 100)])
def test_records_are_awaited_until_what_is_open_may_be_committed(delivery: str, interval_ms: int) -> None:
    commits, _, clock = make(delivery, commit_min_gap_ms=5, commit_interval_ms=100)
    assert commits.poll_timeout_ms() == 50, "nothing is open"
    commits.records_came()
    commits._ended_at = clock.now
    assert commits.poll_timeout_ms() == interval_ms
    clock.now += 0.003
    assert commits.poll_timeout_ms() == interval_ms - 3
    clock.now += 1
    assert commits.poll_timeout_ms() == 5, "it could not be committed: no busy loop"


@pytest.mark.parametrize(
    ("mode", "fetch_ms", "commit_ms"), [("exactly-once", 24, 100), ("at-least-once", 11, 500), ("ephemeral", 11, 500)]
)
def test_waits_follow_the_delivery_unless_they_are_set(mode: str, fetch_ms: int, commit_ms: int) -> None:
    settings = make_settings("127.0.0.1:1", "in", "group", delivery={"mode": mode})
    assert (settings.fetch_max_wait_ms, settings.commit_interval_ms) == (fetch_ms, commit_ms)
    own = {"kafka": {"fetch_max_wait_ms": 7}, "delivery": {"mode": mode, "commit_interval_ms": 70}}
    settings = make_settings("127.0.0.1:1", "in", "group", **own)
    assert (settings.fetch_max_wait_ms, settings.commit_interval_ms) == (7, 70)


async def test_a_commit_under_way_wakes_nobody_when_nothing_waits_for_its_end() -> None:
    commits, processor, clock = make(commit_min_gap_ms=5)
    feed(processor, 0)
    epoch = processor.seal(clock.now_ms())
    assert epoch is not None
    commits._flight = _Flight(epoch, asyncio.create_task(_written()))
    assert commits.poll_timeout_ms() == 50
    commits.records_came()
    assert commits.poll_timeout_ms() == 5
    assert await commits.finish()
    assert processor.partitions[0].changelog_end == 7


async def test_who_lets_a_commit_go_on_waits_for_its_end_and_no_longer() -> None:
    commits, processor, clock = make()
    feed(processor, 0)
    epoch = processor.seal(clock.now_ms())
    assert epoch is not None
    commits._flight = _Flight(epoch, asyncio.create_task(_written(turns=50)))
    await commits.let_go_on(0.01)
    assert not commits._flight.task.done(), "one turn of the event loop"
    await commits.go_first(60.0)
    assert commits._flight.task.done()
    commits._flight = _Flight(epoch, asyncio.create_task(_written(turns=10**9)))
    await commits.go_first(0.01)
    assert not commits._flight.task.done()
    commits._flight.task.cancel()


async def _written(turns: int = 0) -> dict[int, int]:
    for _ in range(turns):
        await asyncio.sleep(0)
    return {0: 7}


@pytest.mark.parametrize("commit_every_s", [0.02, 0.25])
def test_a_round_is_spread_over_half_its_interval(commit_every_s: float) -> None:
    commits, processor, clock = make(checkpoint_interval_ms=10_000)
    checkpoint = processor.partitions[0].checkpoint
    offset, slices = 0, []
    for number in range(2):  # the first round tells how large the second one will be
        feed(processor, offset)
        offset += STREAMS
        clock.now += 10
        began, commits._sliced_at, slices = clock.now, clock.now - commit_every_s, []
        while not slices or checkpoint.open:
            epoch = sealed(processor, clock, commits._slice_bytes(clock.now))
            assert epoch is not None
            slices.append(len(epoch.changelog[0].records) - 1)  # without the progress record
            commits._sliced_at = clock.now
            clock.now += commit_every_s
        assert sum(slices) == STREAMS, "each changed stream once"
        assert clock.now - began <= 5 + 3 * commit_every_s, number
    assert max(slices) <= STREAMS * commit_every_s / 5 + 1


def test_a_round_keeps_to_the_byte_budget() -> None:
    commits, processor, clock = make(checkpoint_interval_ms=10, checkpoint_bytes_per_second=10_000)
    feed(processor, 0)
    clock.now += 1
    commits._sliced_at = clock.now
    assert sealed(processor, clock, commits._slice_bytes(clock.now)) is not None
    clock.now += 0.5
    assert commits._slice_bytes(clock.now) == 5_000
    clock.now += 60
    assert commits._slice_bytes(clock.now) == 10_000, "time without commits does not add up"


def test_a_poll_brings_what_half_a_second_takes() -> None:
    pace = Pace(16_384)
    assert pace.records == 64, "nothing is known of the model"
    pace.note(64, 64 * 0.016)
    assert pace.records == 31
    pace.note(31, 31 * 0.2)
    assert pace.records == 16, "so few that a call is worth it"
    pace.note(0, 0.0)
    assert pace.records == 16
    for expected in (64, 256, 1_024, 4_096, 16_384, 16_384):
        pace.note(pace.records, pace.records * 3e-6)
        assert pace.records == expected


def test_a_poll_keeps_to_its_bound() -> None:
    pace = Pace(10)
    assert pace.records == 10
    pace.note(10, 9.0)
    assert pace.records == 10
