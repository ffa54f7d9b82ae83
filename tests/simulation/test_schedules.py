"""Schedules from fixed seeds and one fresh seed, for about three minutes; a long run that is part of ``make accept``.

They run in a process of their own: clocks are replaced, and the order of sets of texts is fixed there."""

from __future__ import annotations

import os
import random

import pytest

from tests.simulation.test_machine import simulation

SECONDS = float(os.environ.get("STREAMER_SIMULATION_SECONDS", "170"))
FIXED = 1
LONG_S, LONG_SCHEDULES = 1_800.0, 5_000


@pytest.mark.slow
def test_schedules_from_fixed_seeds() -> None:
    done = simulation("--seed", str(FIXED), "--schedules", "100000", "--seconds", str(SECONDS))
    assert done.returncode == 0, done.stdout + done.stderr


def test_schedules_from_a_fresh_seed() -> None:
    seed = random.SystemRandom().randrange(10**6, 10**9)
    print(f"fresh seed {seed}")
    done = simulation("--seed", str(seed), "--schedules", "20", "--story")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("profile", "seed"),
    [
        ("writing", 20261178),  # a commit had the turns only that slow decoder steps left it, and never came to its end
        ("past", 101580),  # a replay began at markers that retention deleted, and that was called lost input
        ("models", 103658),  # only the checksum of a restore asked for a record that was deleted: called lost input
        ("models", 104503),  # a reset that no partition had lived to see was taken for done, by the plan
        ("emission", 104452),  # a dead member's transaction hid answers until its time-out: lost, said the oracle
    ],
)
def test_what_was_found_once(profile: str, seed: int) -> None:
    done = simulation("--seed", str(seed), "--schedules", "1", "--profile", profile)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.accept
def test_many_schedules() -> None:
    """On one core. Where other parts take their share of it, it takes longer until enough are done."""
    done = simulation(
        "--seed", "100000", "--schedules", "1000000", "--seconds", str(LONG_S), "--at-least", str(LONG_SCHEDULES),
        timeout_s=6 * LONG_S,  # against a hang alone
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.rsplit("\n", 2)[-2].split()[0]) >= LONG_SCHEDULES
