"""The simulator itself: a run is repeated from its seed in any process, and dead, frozen and slow members are what they say."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.simulation.loop import Deadlock, SimLoop, simulated

ROOT = Path(__file__).resolve().parent.parent.parent


def simulation(
    *arguments: str, hash_seed: str = "random", timeout_s: float = 900.0
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-m", "tests.simulation", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout_s)


def digest(seed: int, hash_seed: str) -> str:
    return simulation("--seed", str(seed), "--profile", "steps", "--digest", hash_seed=hash_seed).stdout.splitlines()[0]


def test_a_seed_gives_the_same_run_in_any_process() -> None:
    assert digest(6, "1") == digest(6, "2")
    assert digest(6, "1").split()[-1] != digest(7, "1").split()[-1]


def test_an_hour_passes_in_no_time() -> None:
    with simulated(1) as loop:
        before, wall = time.monotonic(), time.time()
        loop.run_until_complete(loop.spawn("a", asyncio.sleep(3600)))
        assert time.monotonic() - before == pytest.approx(3600, abs=0.1)
        assert time.time() - wall == pytest.approx(3600, abs=0.1)


def run(loop: SimLoop, seconds: float) -> None:
    loop.run_until_complete(loop.create_task(asyncio.sleep(seconds)))


def test_of_a_dead_member_nothing_runs_any_more() -> None:
    told: list[str] = []

    async def member(name: str) -> None:
        try:
            while True:
                told.append(name)
                await asyncio.sleep(1)
        finally:
            told.append(f"{name} cleans up")

    with simulated(1) as loop:
        loop.spawn("a", member("a"))
        loop.spawn("b", member("b"))
        loop.at(2.5, loop.kill, "a")
        run(loop, 5.2)
        assert (told.count("a"), told.count("b")) == (3, 6)
        assert "a cleans up" not in told


def test_a_frozen_member_misses_time_and_a_slow_one_is_ahead_of_it() -> None:
    seen: dict[str, list[float]] = {"a": [], "b": []}

    async def member(name: str, cost: float) -> None:
        for _ in range(3):
            await asyncio.sleep(1)
            asyncio.get_running_loop().consume(cost)  # type: ignore[attr-defined]
            seen[name].append(round(time.monotonic(), 1))

    with simulated(1) as loop:
        loop.spawn("a", member("a", 2.0))
        loop.spawn("b", member("b", 0.0))
        loop.at(1.5, loop.freeze, "b", 5.0)
        run(loop, 20)
    assert seen == {"a": [3.0, 6.0, 9.0], "b": [1.0, 6.5, 7.5]}


def test_what_can_never_end_is_told() -> None:
    with simulated(1) as loop, pytest.raises(Deadlock):
        loop.run_until_complete(loop.create_task(asyncio.Event().wait()))
