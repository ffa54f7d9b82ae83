"""Families of plans about records of several steps, and about windows of one record."""

from __future__ import annotations

import random
from typing import Any

from tests.simulation.plans import Draw, numbers
from tests.simulation.profiles import profile


def frames(rng: random.Random) -> Any:
    """Several steps, one of which the model may not take; commands; records that cannot be used."""
    steps = tuple(numbers(rng) for _ in range(rng.choice([1, 1, 2, 3, 9])))
    refused = (*steps[:-1], 13.0, *steps[:1])
    return rng.choices(
        [steps, refused, "reset", "end", rng.choice(["bad:undecodable", "bad:missing_key", "bad:unknown_command"])],
        [86, 6, 3, 3, 2],
    )[0]


@profile("frames", 3)
def steps(draw: Draw) -> None:
    """A record runs whole or not at all, and a restart finds no half of one in a state."""
    rng = draw.rng
    draw.plan.many = True
    draw.regime(
        {"m": "A"} if rng.random() < 0.7 else {"m": "A", "n": "B"},
        batch={"max_window_cells": rng.choice([1, 12, 16_384])},
    )
    draw.start_members()
    draw.traffic(frames, transactions=rng.choice([0.0, 0.0, 0.4]))
    draw.faults(rng.choice([0, 1, 2]))


@profile("frames-windows", 2)
def windows(draw: Draw) -> None:
    """Windows whose records hold several steps, among them windows of one record."""
    rng = draw.rng
    draw.plan.many = rng.random() < 0.8
    kind = rng.choice(["record", "record", "session", "count", "end", "hopping"])
    rule: dict[str, Any] = {
        "kind": kind,
        "disorder_ms": rng.choice([0, 50]),
        "max_span_ms": rng.choice([3_000, 60_000]),
    }
    rule |= {
        "record": {},
        "session": {"gap_ms": 200},
        "count": {"count": 5},
        "end": {"max_events": rng.choice([6, 4_096])},
        "hopping": {"size_ms": 400, "hop_ms": 150},
    }[kind]
    draw.regime(
        {"w": "*"} if rng.random() < 0.6 else {"m": "A", "w": "*"},
        {"w": rule},
        delivery={"idle_ms": rng.choice([400, 1_000])},
        input={"late": "dead-letter"},
    )

    def what(rng: random.Random) -> Any:
        steps: Any = tuple(numbers(rng) for _ in range(rng.choice([1, 2, 5]))) if draw.plan.many else numbers(rng)
        return rng.choices([steps, "end", "reset"], [90, 7, 3])[0]

    draw.start_members()
    draw.traffic(
        what,
        streams=rng.choice([2, 5]),
        count=rng.randint(20, 80),
        lag=lambda rng: rng.choice([0, 0, 10, 200]),
        transactions=rng.choice([0.0, 0.3]),
    )
    draw.faults(rng.choice([0, 0, 1, 2]))
