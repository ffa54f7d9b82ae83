"""Each fault that the service once had is put back, and the simulator finds it: what it says of the service means something."""

from __future__ import annotations

import re

import pytest

from tests.simulation.mutations import MUTATIONS, Mutation
from tests.simulation.test_machine import simulation

FAULTS = {str(number) for number in range(1, 13)}
MOST = 2_000
AT_ONCE = ("identity-unchecked", "markers-not-passed", "old-states-loaded")
"""Found in a few schedules: looked for with every test run"""


def find(mutation: Mutation) -> int:
    """How many schedules it took."""
    done = simulation(
        "--mutation", mutation.name, "--profile", mutation.profile, "--seed", "1", "--schedules", str(mutation.within),
        timeout_s=7_200.0,
    )  # fmt: skip
    print(done.stdout)
    told = re.search(r"^(\d+) schedules from seed 1, .*; (\d+) failed$", done.stdout, re.MULTILINE)
    assert told is not None, done.stdout + done.stderr
    assert told[2] == "1", f"{mutation.name} is not found in {told[1]} schedules"
    assert done.returncode == 1
    return int(told[1])


def test_every_fault_can_be_put_back() -> None:
    assert {mutation.fault for mutation in MUTATIONS.values()} == FAULTS
    assert all(mutation.change.__doc__ for mutation in MUTATIONS.values())
    assert all(mutation.within <= MOST for mutation in MUTATIONS.values())


@pytest.mark.parametrize("name", AT_ONCE)
def test_a_fault_is_found_at_once(name: str) -> None:
    assert find(MUTATIONS[name]) <= MUTATIONS[name].within


@pytest.mark.accept
@pytest.mark.parametrize("name", sorted(set(MUTATIONS) - set(AT_ONCE)))
def test_a_fault_is_found(name: str) -> None:
    assert find(MUTATIONS[name]) <= MUTATIONS[name].within
