"""The demo says how fast the machine was, and keeps apart what was only waiting."""

from __future__ import annotations

import numpy as np
import pytest

from streamer.tools.demo_tally import pace, told_pace

RATE = 1_000.0


def answered(rate_of_machine: float, events: int, latency_ms: float = 5.0) -> np.ndarray:
    """Each event ``latency_ms`` after it was due, or when a machine of that rate gets to it."""
    due = np.arange(events) * 1000 / RATE
    return np.maximum(due, np.arange(events) * 1000 / rate_of_machine) + latency_ms


def test_a_machine_that_keeps_up_has_nothing_to_say() -> None:
    found = pace(answered(2_000.0, 10_000), RATE)
    assert found["events_per_second"] == pytest.approx(RATE, rel=0.01)
    kept = found["kept_up"]
    assert (kept["seconds"], kept["of_seconds"]) == (10, 10)
    assert kept["latency_ms"]["p99"] == 5.0
    assert told_pace(found) is None


def test_a_machine_that_is_too_slow_is_told_with_its_own_pace() -> None:
    found = pace(answered(400.0, 10_000), RATE)
    assert found["events_per_second"] == pytest.approx(400.0, rel=0.01)
    assert found["kept_up"]["seconds"] == 0
    assert found["kept_up"]["latency_ms"] is None
    assert "offered 1,000/s, this machine did 400/s" in (told_pace(found) or "")


def test_the_seconds_in_which_it_kept_up_are_judged_apart() -> None:
    times = answered(2_000.0, 10_000)
    stuck = slice(4_000, 7_000)  # nothing is answered for three seconds, then all at once
    times[stuck] = 7_005.0
    found = pace(times, RATE)
    kept = found["kept_up"]
    assert (kept["seconds"], kept["of_seconds"]) == (7, 10), "the second that ends with a backlog is not kept up"
    assert kept["latency_ms"] == {"p50": 5.0, "p95": 5.0, "p99": 5.0}
    assert "it kept up in 7 of 10 s" in (told_pace(found) or "")


def test_events_without_an_answer_do_not_count_as_done() -> None:
    times = answered(2_000.0, 10_000)
    times[5_000:] = np.nan
    found = pace(times, RATE)
    assert found["events_per_second"] == pytest.approx(500.0, rel=0.01)
    assert found["kept_up"]["seconds"] == 5
    nothing = pace(np.full(10_000, np.nan), RATE)
    assert (nothing["events_per_second"], nothing["kept_up"]["latency_ms"]) == (0.0, None)
