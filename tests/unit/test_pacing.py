"""When the loop commits, how long it waits for records before that, and how much of a round goes with each commit."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from serving import make_settings
from simulated import ChainModel, records

from streamer.engine.ledger import Ledger
from streamer.engine.processor import Limits, Processor
from streamer.service.loop import Service, ServiceOptions

STREAMS = 1_000


class HandClock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def now_ms(self) -> int:
        return int(self.now * 1000)


def make(delivery: str = "exactly-once", **options: Any) -> tuple[Service, HandClock]:
    """The loop with nothing around it: only its own decisions are asked for."""
    clock = HandClock()
    wanted = ServiceOptions(delivery, **options)
    limits = Limits(
        max_state_bytes=1 << 20, max_ingest_rows=STREAMS, checkpoint_interval_ms=wanted.checkpoint_interval_ms
    )
    processor = Processor([("chain", ChainModel(), None)], limits)  # type: ignore[list-item]
    processor.assign(0, Ledger.fresh(0))
    nothing: Any = None
    service = Service(
        wanted, processor, nothing, make_group=lambda _: nothing, reader=nothing, make_committer=lambda _: nothing,
        make_recovery=lambda *_: nothing, observer=nothing, clock=clock,
    )  # fmt: skip
    return service, clock


def feed(service: Service, first: int) -> None:
    service.processor.ingest([records([(first + row, f"s{row}", 1.0) for row in range(STREAMS)])])
    for _ in service.processor.run():
        pass


@pytest.mark.parametrize(("delivery", "interval_ms"), [("exactly-once", 5), ("at-least-once", 100)])
def test_records_are_awaited_until_what_is_open_may_be_committed(delivery: str, interval_ms: int) -> None:
    service, clock = make(delivery, commit_min_gap_ms=5, commit_interval_ms=100)
    assert service._poll_timeout_ms() == 50, "nothing is open"
    service._open.started = service._committed_at = clock.now
    assert service._poll_timeout_ms() == interval_ms
    clock.now += 0.003
    assert service._poll_timeout_ms() == interval_ms - 3
    clock.now += 1
    assert service._poll_timeout_ms() == 5, "it could not be committed: no busy loop"


@pytest.mark.parametrize(
    ("mode", "fetch_ms", "commit_ms"), [("exactly-once", 16, 100), ("at-least-once", 11, 500), ("ephemeral", 11, 500)]
)
def test_waits_follow_the_delivery_unless_they_are_set(mode: str, fetch_ms: int, commit_ms: int) -> None:
    settings = make_settings("127.0.0.1:1", "in", "group", delivery={"mode": mode})
    assert (settings.fetch_max_wait_ms, settings.commit_interval_ms) == (fetch_ms, commit_ms)
    own = {"kafka": {"fetch_max_wait_ms": 7}, "delivery": {"mode": mode, "commit_interval_ms": 70}}
    settings = make_settings("127.0.0.1:1", "in", "group", **own)
    assert (settings.fetch_max_wait_ms, settings.commit_interval_ms) == (7, 70)


async def test_a_commit_under_way_wakes_nobody_when_nothing_waits_for_its_end() -> None:
    service, clock = make(commit_min_gap_ms=5)
    service._commit = asyncio.create_task(asyncio.sleep(0))
    assert service._poll_timeout_ms() == 50
    service._open.started = clock.now
    assert service._poll_timeout_ms() == 5
    await service._finish_commit()


@pytest.mark.parametrize("commit_every_s", [0.02, 0.25])
def test_a_round_is_spread_over_half_its_interval(commit_every_s: float) -> None:
    service, clock = make(checkpoint_interval_ms=10_000)
    processor, ledger = service.processor, service.processor.ledgers[0]
    offset, slices = 0, []
    for number in range(2):  # the first round tells how large the second one will be
        feed(service, offset)
        offset += STREAMS
        clock.now += 10
        began, service._sliced_at, slices = clock.now, clock.now - commit_every_s, []
        while not slices or ledger.round_open:
            epoch = processor.seal(clock.now_ms(), service._slice_bytes(clock.now))
            assert epoch is not None
            slices.append(len(epoch.changelog[0].records) - 1)  # without the progress record
            service._sliced_at = clock.now
            clock.now += commit_every_s
        assert sum(slices) == STREAMS, "each changed stream once"
        assert clock.now - began <= 5 + 3 * commit_every_s, number
    assert max(slices) <= STREAMS * commit_every_s / 5 + 1


def test_a_round_keeps_to_the_byte_budget() -> None:
    service, clock = make(checkpoint_interval_ms=10, checkpoint_bytes_per_second=10_000)
    feed(service, 0)
    clock.now += 1
    service._sliced_at = clock.now
    assert service.processor.seal(clock.now_ms(), service._slice_bytes(clock.now)) is not None
    clock.now += 0.5
    assert service._slice_bytes(clock.now) == 5_000
    clock.now += 60
    assert service._slice_bytes(clock.now) == 10_000, "time without commits does not add up"
