"""Families of plans about what changes around the service: models, delivery, topics, time, retention, limits."""

from __future__ import annotations

import random
from typing import Any

from tests.simulation.plans import CHANGELOG, Draw, Item, numbers
from tests.simulation.profiles import profile


@profile("models", 3)
def models(draw: Draw) -> None:
    """Other model files between restarts, with and without leave to change."""
    rng = draw.rng
    first = draw.regime({"m": "A"})
    story = rng.choice(["reset", "reset-refuse", "reset-refuse", "keep", "refused", "removed", "removed"])
    if story == "removed":
        draw.plan.regimes.clear()
        first = draw.regime({"m": "A", "n": "B"})
        draw.regime({"m": "A"}, delivery={"model_changed": "reset"})
        draw.regime({"m": "A", "n": "B"}, delivery={"model_changed": "reset"})
    elif story == "refused":
        draw.regime({"m": "C"}, delivery={"model_changed": "refuse"})
        draw.plan.allowed_exits |= {5}
        draw.regime(dict(first.letters), delivery={"model_changed": "refuse"})
    else:
        # kept states belong to a file that computes the same: what is replayed was answered by the other one
        draw.regime({"m": "D" if story == "keep" else "C"}, delivery={"model_changed": story.split("-")[0]})
        if story.endswith("refuse"):
            draw.regime({"m": "C"}, delivery={"model_changed": "refuse"})
            draw.plan.each_regime_is_lived = True
    length = 8.0 if story == "reset-refuse" else 2.5  # a stop may take 5 s
    draw.start_members()
    streams = rng.choice([4, 10])
    for number in range(len(draw.plan.regimes)):
        begin = number * length
        if number:
            draw.act(begin, "regime", number=number)
        some = rng.sample(range(streams), rng.randint(1, streams))  # the others are silent meanwhile
        for _ in range(rng.randint(3, 10)):
            items = [Item(f"s{rng.choice(some)}", numbers(rng)) for _ in range(rng.randint(1, 8))]
            draw.send(begin + rng.uniform(0.3, length - 0.3), items)
    draw.until = len(draw.plan.regimes) * length
    if rng.random() < 0.4:
        draw.deaths(2)
    draw.housekeeping()


@profile("delivery", 2)
def delivery(draw: Draw) -> None:
    """The delivery mode changes between restarts: nothing may be answered twice in silence."""
    rng = draw.rng
    draw.plan.members = draw.plan.members[:2]
    draw.regime({"m": "A"})
    modes = rng.choice(
        [
            ["exactly-once", "ephemeral", "exactly-once"],
            ["exactly-once", "at-least-once", "exactly-once"],
            ["ephemeral", "exactly-once"],
        ]
    )
    draw.plan.regimes.clear()
    for mode in modes:
        draw.regime({"m": "A"}, delivery={"mode": mode})
    draw.plan.allowed_exits |= {5}
    draw.plan.refusal_ends_it = True
    draw.plan.probe = False
    draw.start_members()
    for number in range(len(modes)):
        if number:
            draw.act(number * 3.0, "regime", number=number)
        draw.traffic(numbers, streams=5, count=rng.randint(10, 40), begin=number * 3.0 + 0.5, end=number * 3.0 + 2.5)
    draw.until = len(modes) * 3.0


@profile("recreated", 2)
def recreated(draw: Draw) -> None:
    """The input is deleted and made again under a running service."""
    rng = draw.rng
    draw.regime({"m": "A"})
    draw.plan.allowed_exits |= {5}
    draw.plan.refusal_ends_it = True
    draw.plan.probe = False
    draw.start_members()
    draw.until = 5.0
    draw.traffic(numbers, streams=4, count=rng.randint(5, 60), end=2.0)
    draw.act(2.5, "recreate", gap_s=rng.choice([0.0, 0.05, 1.0]))
    if rng.random() < 0.6:  # the new one is longer than the old one was before anybody looks
        draw.send(2.5001, [Item(f"s{rng.randrange(4)}", numbers(rng)) for _ in range(rng.choice([20, 80]))])
    draw.traffic(numbers, streams=4, count=rng.randint(5, 60), begin=3.6, end=4.8)
    if rng.random() < 0.3:
        draw.act(
            rng.uniform(2.6, 4.5),
            rng.choice(["kill", "stop"]),
            fault=True,
            member=draw.plan.members[0],
            handles=0,
            back=0.5,
        )


@profile("windows", 4)
def windows(draw: Draw) -> None:
    """Windows of every kind, late events, quiet partitions, transactions of others that stay open."""
    rng = draw.rng
    kind = rng.choice(["tumbling", "hopping", "session", "count", "end", "tumbling", "session"])
    rule: dict[str, Any] = {
        "kind": kind,
        "disorder_ms": rng.choice([0, 50, 300]),
        "max_span_ms": rng.choice([3_000, 60_000]),
    }
    rule |= {
        "tumbling": {"size_ms": 400},
        "hopping": {"size_ms": 400, "hop_ms": 150},
        "session": {"gap_ms": 200},
        "count": {"count": 4},
        "end": {},
    }[kind]
    letters = {"w": "*"} if rng.random() < 0.6 else {"m": "A", "w": "*"}
    draw.regime(
        letters, {"w": rule}, delivery={"idle_ms": rng.choice([400, 1_000, 3_000])}, input={"late": "dead-letter"}
    )

    def what(rng: random.Random) -> Any:
        return rng.choices([numbers(rng), "end", "reset"], [90, 7, 3])[0]

    def lag(rng: random.Random) -> int | None:
        return rng.choice([0, 0, 10, 40, 200, 900])

    draw.start_members()
    draw.traffic(
        what, streams=rng.choice([2, 5]), count=rng.randint(20, 100), lag=lag, transactions=rng.choice([0.0, 0.3, 0.6])
    )
    draw.faults(rng.choice([0, 0, 1, 2]))


@profile("emission", 4)
def emission(draw: Draw) -> None:
    """A model that answers in symbols, per event or over windows; streams that go silent, quiet partitions."""
    rng = draw.rng
    sections: dict[str, Any] = {"delivery": {"idle_ms": rng.choice([400, 1_000, 3_000])}}
    sections["input"] = {"late": "dead-letter"}
    letters = rng.choice([{"e": "E"}, {"e": "E"}, {"e": "E", "m": "A"}, {"e": "E", "w": "#"}, {"w": "#"}])
    kinds: list[dict[str, Any]] = [
        {"kind": "session", "gap_ms": 200},
        {"kind": "tumbling", "size_ms": 400},
        {"kind": "end"},
    ]
    rule = {**rng.choice(kinds), "max_span_ms": 3_000, "disorder_ms": rng.choice([0, 50])}
    if "e" in letters and rng.random() < 0.25:
        sections["state"] = {"max_bytes": 65_536}
    regime = draw.regime(letters, {"w": rule} if "w" in letters else None, **sections)
    if "e" in letters:
        regime.document["model"]["e"]["utterance"] = {
            "gap_ms": rng.choice([50, 200, 1_000]),
            "max_span_ms": rng.choice([300, 2_000, 60_000]),
            "max_symbols": rng.choice([1, 4, 256]),
        }

    def what(rng: random.Random) -> Any:
        events = [numbers(rng), 13.0 if "w" not in letters else 1.0]
        return rng.choices([*events, "end", "reset"], [90, 3, 6, 2])[0]

    def lag(rng: random.Random) -> int | None:
        return rng.choice([0, 0, 10, 40, 200, 900])

    draw.start_members()
    draw.traffic(
        what, streams=rng.choice([2, 5]), count=rng.randint(20, 150), lag=lag, transactions=rng.choice([0.0, 0.0, 0.3])
    )
    draw.faults(rng.choice([0, 0, 1, 2]))


@profile("markers", 2)
def markers(draw: Draw) -> None:
    """The input ends with a marker, retention takes everything that was processed, and members come and go."""
    rng = draw.rng
    draw.regime({"m": "A"})
    draw.start_members()
    draw.traffic(numbers, streams=4, count=rng.randint(10, 60), end=2.0, transactions=1.0)
    for at in (4.5, 5.5, 6.5):
        draw.act(at, "retain", all=True)
        draw.act(
            at + 0.3,
            rng.choice(["kill", "stop"]),
            fault=True,
            member=rng.choice(draw.plan.members),
            handles=0,
            back=0.2,
        )
    draw.until = 7.5


@profile("idle", 3)
def idle(draw: Draw) -> None:
    """Streams that fall silent, stragglers, commands, and event times that lag the clock."""
    rng = draw.rng
    draw.plan.ttl_ms = rng.choice([300, 1_000])
    draw.regime({"m": "A"}, state={"idle_ttl_ms": draw.plan.ttl_ms})
    behind = rng.choice([0, 0, 5_000, 3_600_000])

    def lag(rng: random.Random) -> int | None:
        return behind + rng.choice([0, 0, 0, 0, 0, draw.plan.ttl_ms // 2, draw.plan.ttl_ms * 2])

    def what(rng: random.Random) -> Any:
        return rng.choices([numbers(rng), "reset"], [95, 5])[0]

    draw.start_members()
    draw.traffic(what, streams=rng.choice([1, 3, 8]), count=rng.randint(20, 80), lag=lag)
    draw.faults(rng.choice([0, 0, 1]))


@profile("clock", 1)
def clock(draw: Draw) -> None:
    """A member's wall clock is set back."""
    rng = draw.rng
    draw.regime({"m": "A"})
    draw.start_members()
    draw.traffic(numbers, streams=4)
    for name in draw.plan.members:
        draw.act(rng.uniform(1.0, draw.until - 0.5), "clock", fault=True, member=name, seconds=-86_400.0)
    draw.plan.probe = False


@profile("memory", 2)
def memory(draw: Draw) -> None:
    """More streams than memory holds: the oldest are forgotten, and nothing else happens."""
    rng = draw.rng
    draw.plan.limited = True
    draw.plan.partitions = 2
    draw.regime(
        {"m": "A"},
        state={"max_bytes": 65_536},
        batch={"max_rows": 64, "max_steps": 4, "max_poll_records": rng.choice([16, 64])},
        kafka={"fetch_max_bytes": 8_388_608},
    )
    draw.plan.probe = False
    heir = rng.random() < 0.5
    draw.plan.members = ["a", "b"] if heir else ["a"]
    for name in draw.plan.members:
        draw.act(0.0, "start", member=name)
    at, number, streams = 1.5, 0, rng.choice([430, 600])
    while number < streams:
        size = rng.choice([20, 60, 120])
        if number > 300 and not heir and rng.random() < 0.7:  # commits that take long while more streams come
            draw.act(
                at - 0.01,
                "rule",
                fault=True,
                apis=(rng.choice([24, 26, 28]),),
                action="late-answer",
                value=rng.choice([0.1, 0.4]),
                count=2,
            )
        draw.send(at, [Item(f"s{n}", numbers(rng)) for n in range(number, min(number + size, streams))])
        number += size
        at += rng.choice([0.0, 0.02, 0.2])
    draw.send(at + 0.5, [Item(f"s{rng.randrange(streams)}", numbers(rng)) for _ in range(40)])
    draw.until = at + 1.0
    if heir:  # the survivor inherits all that its peer held
        draw.act(at + 2.5, "kill", fault=True, member="b", handles=0, back=60.0)
        draw.until = at + rng.choice([3.0, 11.0])


@profile("refusals", 1)
def refusals(draw: Draw) -> None:
    """More refusals between two rounds than a progress record can hold."""
    rng = draw.rng
    draw.plan.partitions = 1
    draw.plan.members = ["a"]
    draw.regime(
        {"m": "A"},
        delivery={"checkpoint_interval_ms": 60_000},
        batch={"max_rows": 64, "max_steps": 16, "max_poll_records": 64},
        kafka={"fetch_max_bytes": 8_388_608},
        output={"max_batch_bytes": 16_384},
    )
    draw.plan.topics[CHANGELOG] = {"cleanup.policy": "compact", "max.message.bytes": "20000"}
    draw.start_members()
    draw.traffic(lambda rng: rng.choice([13.0, 13.0, 13.0, 1.0]), streams=4, count=rng.choice([400, 1_500]))


@profile("memory-two", 1)
def memory_two(draw: Draw) -> None:
    """Two models, streams that are forgotten for memory and return, and deaths while few of their records are written."""
    rng = draw.rng
    draw.plan.limited = True
    draw.plan.partitions = 1
    draw.plan.members = ["a"]
    draw.regime(
        {"m": "A", "n": "B"},
        delivery={"checkpoint_interval_ms": rng.choice([50, 200]), "checkpoint_bytes_per_second": 20_000},
        state={"max_bytes": 65_536},
        batch={"max_rows": 64, "max_steps": 4, "max_poll_records": 64},
        kafka={"fetch_max_bytes": 8_388_608},
    )
    draw.start_members()
    few = rng.choice([10, 30])
    for at, first, end in ((1.0, 100, 350), (1.4, 0, few), (1.8, 100, 350), (2.2, 350, 410)):  # the last forget the few
        draw.send(at, [Item(f"s{n}", numbers(rng)) for n in range(first, end)])
    back = rng.uniform(2.5, 3.0)
    draw.send(back, [Item(f"s{n}", numbers(rng)) for n in range(few)])
    draw.act(back + rng.uniform(0.05, 3.0), "kill", fault=True, member="a", handles=0, back=0.1)
    draw.send(back + 5.0, [Item(f"s{n}", numbers(rng)) for n in range(few)])
    draw.until = back + 5.5
    draw.plan.probe = False


@profile("memory-keys", 1)
def memory_keys(draw: Draw) -> None:
    """Streams whose keys take more memory than their states."""
    rng = draw.rng
    draw.plan.limited = True
    draw.regime({"m": "A"}, state={"max_bytes": 65_536}, kafka={"fetch_max_bytes": 8_388_608})
    draw.start_members()
    long = "s" * rng.choice([1_000, 4_000])
    for _ in range(rng.randint(4, 12)):
        draw.send(rng.uniform(0.5, draw.until), [Item(f"{long}{rng.randrange(150)}", numbers(rng)) for _ in range(20)])
    draw.deaths(1)
    draw.plan.probe = False


@profile("past", 3)
def past(draw: Draw) -> None:
    """A model with features of the past: gaps in event time, lags, last values. Every kind of fault, and streams that end,
    begin anew and are late."""
    rng = draw.rng
    draw.plan.ttl_ms = rng.choice([0, 0, 1_000])
    draw.regime({"m": "P"}, input={"format": "json-named"}, state={"idle_ttl_ms": draw.plan.ttl_ms})

    def what(rng: random.Random) -> Any:
        bad = rng.choice(["bad:undecodable", "bad:missing_key", "bad:missing_feature", "bad:unknown_command"])
        return rng.choices([numbers(rng), 13.0, "reset", "end", bad], [90, 3, 3, 3, 2])[0]

    def lag(rng: random.Random) -> int | None:
        return rng.choice([None, 0, 1, 40, 700, 3_000])

    draw.start_members()
    draw.traffic(what, lag=lag, transactions=rng.choice([0.0, 0.0, 0.3]))
    draw.faults(rng.choice([1, 2, 3]))
