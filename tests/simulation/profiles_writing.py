"""Plans in which a model writes a sequence about every window: decodings are open over commits, crashes and hand-overs."""

from __future__ import annotations

import random
from typing import Any

from tests.simulation.plans import Draw
from tests.simulation.profiles import profile
from tests.simulation.profiles_failures import numbers


@profile("writing", 4)
def writing(draw: Draw) -> None:
    """Windows of every kind; few rows at a time, and little room, so that many wait."""
    rng = draw.rng
    kind = rng.choice(["tumbling", "hopping", "session", "count", "end"])
    rule: dict[str, Any] = {
        "kind": kind,
        "disorder_ms": rng.choice([0, 50, 300]),
        "max_span_ms": rng.choice([3_000, 60_000]),
    }
    rule |= {
        "tumbling": {"size_ms": 300},
        "hopping": {"size_ms": 300, "hop_ms": 100},
        "session": {"gap_ms": 150},
        "count": {"count": rng.choice([1, 3])},
        "end": {},
    }[kind]
    letters = {"w": "+"} if rng.random() < 0.6 else {"m": "A", "w": "+"}
    draw.regime(
        letters,
        {"w": rule},
        delivery={"idle_ms": rng.choice([400, 1_000])},
        input={"late": "dead-letter"},
        decode={
            "max_rows": rng.choice([1, 2, 64]),
            "max_open": rng.choice([1, 4, 1_000]),
            "max_memory_bytes": rng.choice([1_024, 1_000_000]),
        },
    )

    def what(rng: random.Random) -> Any:
        return rng.choices([numbers(rng), "end", "reset"], [88, 9, 3])[0]

    def lag(rng: random.Random) -> int | None:
        return rng.choice([0, 0, 10, 40, 200])

    draw.start_members()
    draw.traffic(
        what, streams=rng.choice([2, 5]), count=rng.randint(20, 90), lag=lag, transactions=rng.choice([0.0, 0.3])
    )
    draw.faults(rng.choice([0, 2, 3, 4]))
    draw.plan.cost_s = rng.choice([(0.0, 0.0), (0.001, 0.0), (0.005, 0.0), (0.03, 0.0)])
