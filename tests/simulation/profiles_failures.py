"""Families of plans about members, brokers and connections that fail."""

from __future__ import annotations

import random
from typing import Any

from tests.simulation.plans import Draw, mixed, numbers
from tests.simulation.profiles import profile


@profile("steps", 6)
def steps(draw: Draw) -> None:
    """One step model, every kind of fault."""
    draw.regime({"m": "A"})
    draw.start_members()
    draw.traffic(mixed, transactions=draw.rng.choice([0.0, 0.0, 0.3]))
    draw.faults(draw.rng.choice([1, 2, 3]))


@profile("joining", 1)
def joining(draw: Draw) -> None:
    """A group that takes longer to form than a connection may take: a dead peer is waited for. Times as by default, a tenth."""
    rng = draw.rng
    draw.plan.members = ["a", "b"]
    draw.regime(
        {"m": "A"}, kafka={"connect_timeout_ms": 4_000, "session_timeout_ms": 6_000, "rebalance_timeout_ms": 8_000}
    )
    draw.start_members()
    draw.traffic(numbers)
    draw.act(rng.uniform(1.0, draw.until), "kill", fault=True, member="a", handles=0, back=0.2)


@profile("half-open", 1)
def half_open(draw: Draw) -> None:
    """Connections that look alive and on which nothing is ever answered again: who asked has to give them up."""
    draw.plan.stays_hung = True
    draw.regime({"m": "A"}, delivery={"mode": draw.rng.choice(["exactly-once", "at-least-once", "ephemeral"])})
    draw.plan.repeats_allowed = draw.plan.regimes[0].delivery != "exactly-once"
    draw.start_members()
    draw.traffic(numbers)
    for act in range(draw.rng.randint(1, 3)):
        api = draw.rng.choice([0, 1, 2, 2, 3, 9, 10, 11, 12, 14, 22, 24, 25, 26, 28, 32])
        draw.act(
            draw.rng.uniform(0.0, draw.until),
            "rule",
            fault=True,
            apis=(api,),
            action="dropped",
            skip=draw.rng.choice([0, act]),
            count=draw.rng.choice([1, 1, 3, 8]),
        )


@profile("two", 4)
def two(draw: Draw) -> None:
    """Two step models that refuse different events, streams that end and return, deaths between slices of a round."""
    rng = draw.rng
    draw.regime(
        {"m": "A", "n": "B"},
        delivery={"checkpoint_interval_ms": rng.choice([50, 200]), "checkpoint_bytes_per_second": 10_000},
    )

    def what(rng: random.Random) -> Any:
        return rng.choices([numbers(rng), 13.0, 14.0, "reset", "end"], [70, 8, 8, 4, 10])[0]

    draw.start_members()
    draw.traffic(what, streams=rng.choice([3, 6]), count=rng.randint(40, 150))
    draw.deaths(4)
    draw.housekeeping()


@profile("slow", 3)
def slow(draw: Draw) -> None:
    """A slow model and a hand-over that outlasts its deadline."""
    rng = draw.rng
    draw.plan.members = ["a", "b"]
    draw.plan.partitions = rng.choice([2, 3, 4])
    draw.regime(
        {"m": "A"},
        delivery={"drain_timeout_ms": 500, "commit_interval_ms": 100},
        batch={"max_rows": 1, "max_steps": 1, "max_poll_records": 64},
        kafka={"heartbeat_interval_ms": 300},
    )
    draw.plan.cost_s = (0.0, rng.choice([0.005, 0.016, 0.03]))
    draw.act(0.0, "start", member="a")
    draw.until = rng.uniform(3.0, 5.0)
    joins = rng.uniform(0.7, draw.until)
    draw.act(joins, "start", member="b")
    draw.traffic(numbers, streams=8, count=rng.randint(80, 260), begin=0.3)
    if rng.random() < 0.5:
        draw.act(rng.uniform(1.5, draw.until + 2), "stop", fault=True, member=rng.choice("ab"), back=0.5)
    if rng.random() < 0.3:
        draw.deaths(1)
    if rng.random() < 0.5:  # and commits that take longer than a hand-over may
        draw.act(
            joins,
            "rule",
            fault=True,
            apis=(rng.choice([24, 26, 28]),),
            action="late-answer",
            value=rng.choice([0.3, 0.6]),
            count=rng.choice([2, 20]),
        )


@profile("static", 1)
def static(draw: Draw) -> None:
    """Static members that are restarted under the same instance id."""
    draw.regime({"m": "A"}, kafka={"static_membership": True})
    draw.start_members()
    draw.traffic(mixed)
    draw.deaths(3)
    draw.trouble(1)


@profile("ephemeral", 1)
def ephemeral(draw: Draw) -> None:
    """No changelog: offsets of the group, initial state."""
    draw.regime({"m": "A"}, delivery={"mode": "ephemeral"})
    draw.plan.repeats_allowed = True
    draw.start_members()
    draw.traffic(mixed)
    draw.faults(draw.rng.choice([0, 1, 2]))


@profile("at-least-once", 2)
def at_least_once(draw: Draw) -> None:
    """Answers first, through a plain producer; the transaction follows."""
    rng = draw.rng
    draw.regime({"m": "A"}, delivery={"mode": "at-least-once", "commit_interval_ms": rng.choice([50, 300])})
    draw.start_members()
    draw.traffic(mixed)
    if rng.random() < 0.4:
        for _ in range(2):
            draw.act(rng.uniform(0.5, draw.until), "expire", fault=True)
    else:
        draw.plan.repeats_allowed = True
        if rng.random() < 0.4:
            draw.act(
                rng.uniform(0.3, 2.0),
                "rule",
                fault=True,
                apis=(0,),
                action="error",
                value=rng.choice([45.0, 59.0, 47.0]),
                topic="out",
            )
        draw.faults(rng.choice([1, 2]))


@profile("generate", 2)
def generate(draw: Draw) -> None:
    """Sequences are generated beside the live events."""
    rng = draw.rng
    draw.regime({"m": "a"}, generate={"max_open": 100, "max_rows": rng.choice([1, 3])})

    def what(rng: random.Random) -> Any:
        if rng.random() < 0.8:
            return rng.choices([numbers(rng), "reset", "end"], [90, 5, 5])[0]
        request: dict[str, Any] = {"n": rng.randint(1, 9), "per_step": rng.random() < 0.5}
        if rng.random() < 0.3:
            request["from"] = "initial"
        if rng.random() < 0.4:
            request["prompt"] = rng.choices([5.0, 6.0, 13.0], [10, 10, 1], k=rng.randint(1, 4))
        return request

    draw.start_members()
    draw.traffic(what)
    draw.faults(rng.choice([0, 1, 2]))
