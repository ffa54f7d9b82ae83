"""What happens in a run: settings, members, input and faults, all drawn from the seed before anything runs.

So a plan can be shown, and shrunk: leaving out one act changes nothing about the others."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.faults import ERRORS

INPUT, OUTPUT, GROUP = "in", "out", "g"
CHANGELOG, DEAD = f"{GROUP}.{INPUT}.changelog", f"{INPUT}.dlq"


@dataclass
class Item:
    """One input record. ``what``: x, or a tuple of several steps of it, a command (reset | end), a request to generate, or
    ``bad:REASON``."""

    stream: str
    what: Any
    ts_lag_ms: int | None = None
    """Event time: this much before now; None: the value names none"""


@dataclass
class Act:
    """Something that happens at a time (virtual seconds)."""

    at: float
    kind: str
    args: dict[str, Any] = field(default_factory=dict)
    fault: bool = False
    """May be left out when a failing plan is shrunk"""

    def __str__(self) -> str:
        return f"{self.at:8.3f}  {self.kind} " + ", ".join(f"{name}={value}" for name, value in self.args.items())


@dataclass
class Regime:
    """Settings that hold until the next regime: (section, key) -> value, and the letters of the models."""

    document: dict[str, dict[str, Any]]
    letters: dict[str, str]

    @property
    def delivery(self) -> str:
        return str(self.document["delivery"]["mode"])


@dataclass
class Plan:
    seed: int
    profile: str
    partitions: int
    nodes: int
    segment_bytes: int
    regimes: list[Regime]
    members: list[str]
    acts: list[Act] = field(default_factory=list)
    ends_at: float = 0.0
    """Faults stop here"""
    topics: dict[str, dict[str, str]] = field(default_factory=dict)
    """Made before the service starts: name -> configuration"""
    allowed_exits: set[int] = field(default_factory=lambda: {4})
    refusal_ends_it: bool = False
    """An exit that is allowed is an honest end: nothing more is asked for"""
    each_regime_is_lived: bool = False
    """The next one comes when somebody had every partition, whatever died meanwhile"""
    cost_s: tuple[float, float] = (0.0, 0.0)
    """Of a model call: per call, per event"""
    ttl_ms: int = 0
    many: bool = False
    """Records hold several steps, and answers list them"""
    limited: bool = False
    """Streams may be forgotten for memory"""
    repeats_allowed: bool = False
    stays_hung: bool = False
    """A connection on which a request was dropped is never given up by the system"""
    probe: bool = True
    """After all is answered: everything is restarted and every stream gets one more event"""
    live_within_s: float = 90.0

    @property
    def streams(self) -> list[str]:
        return sorted({item.stream for act in self.acts if act.kind == "send" for item in act.args["items"]})


class Draw:
    """A plan under construction."""

    def __init__(self, seed: int, profile: str) -> None:
        self.rng = random.Random(f"{profile}/{seed}")
        rng = self.rng
        self.plan = Plan(
            seed=seed,
            profile=profile,
            partitions=rng.choice([1, 2, 2, 3, 4]),
            nodes=rng.choice([1, 1, 2, 3]),
            segment_bytes=rng.choice([600, 2_000, 20_000]),
            regimes=[],
            members=["abc"[n] for n in range(rng.choice([1, 2, 2, 3]))],
        )
        self.until = rng.uniform(2.0, 6.0)

    def regime(
        self, letters: dict[str, str], windows: dict[str, Any] | None = None, **sections: dict[str, Any]
    ) -> Regime:
        """A regime of the ordinary settings and of what ``sections`` say; the first one decides what does not change."""
        rng = self.rng
        if self.plan.regimes:
            base = {name: dict(section) for name, section in self.plan.regimes[0].document.items()}
        else:
            base = {
                "kafka": {
                    "group": GROUP,
                    "session_timeout_ms": 6_000,
                    "heartbeat_interval_ms": rng.choice([300, 1_000]),
                    "rebalance_timeout_ms": rng.choice([5_000, 8_000]),
                    "request_timeout_ms": rng.choice([1_500, 3_000]),
                    "connect_timeout_ms": 15_000,
                    "metadata_max_age_ms": rng.choice([1_000, 5_000]),
                    "retry_backoff_ms": rng.choice([20, 100]),
                    "fetch_min_bytes": 1,
                    "fetch_max_wait_ms": rng.choice([100, 300]),
                    "fetch_max_bytes": rng.choice([1_024, 8_388_608]),
                },
                "input": {"topic": INPUT},
                "output": {"topic": OUTPUT},
                "delivery": {
                    "mode": "exactly-once",
                    "commit_interval_ms": rng.choice([20, 100]),
                    "transaction_timeout_ms": rng.choice([3_000, 6_000]),
                    "commit_timeout_ms": rng.choice([1_000, 2_500]),
                    "checkpoint_interval_ms": rng.choice([50, 300, 1_000]),
                    "checkpoint_bytes_per_second": rng.choice([10_000, 20_000_000]),
                    "drain_timeout_ms": rng.choice([500, 2_000, 5_000]),
                },
                "batch": {
                    "max_rows": rng.choice([1, 4, 64]),
                    "max_steps": rng.choice([1, 4]),
                    "max_poll_records": rng.choice([4, 16, 64]),
                },
                "state": {},
                "http": {"enabled": False},
            }
        for name, section in sections.items():
            base.setdefault(name, {}).update(section)
        base["model"] = {name: {"path": "unused.onnx"} for name in letters}
        for name, rule in (windows or {}).items():
            base["model"][name]["window"] = rule
        regime = Regime(base, letters)
        self.plan.regimes.append(regime)
        return regime

    def act(self, at: float, kind: str, *, fault: bool = False, **args: Any) -> None:
        self.plan.acts.append(Act(at, kind, args, fault))

    def send(self, at: float, items: list[Item], **options: Any) -> None:
        """To the partitions of their streams."""
        by_partition: dict[int, list[Item]] = {}
        for item in items:
            by_partition.setdefault(partition_of(item.stream, self.plan.partitions), []).append(item)
        for partition, mine in by_partition.items():
            self.act(at, "send", partition=partition, items=mine, **options)

    def traffic(
        self,
        what: Callable[[random.Random], Any],
        *,
        streams: int | None = None,
        count: int | None = None,
        begin: float = 0.2,
        end: float | None = None,
        lag: Callable[[random.Random], int | None] = lambda _: None,
        transactions: float = 0.0,
    ) -> None:
        """Bursts of records between ``begin`` and ``end``; a share of them in transactions that stay open a while or abort."""
        rng = self.rng
        streams = streams or rng.choice([1, 3, 8])
        count = count or rng.randint(20, 150)
        end = end or self.until
        left = count
        while left > 0:
            size = min(rng.choice([1, 1, 2, 5, 20, 60]), left)
            left -= size
            items = [Item(f"s{rng.randrange(streams)}", what(rng), lag(rng)) for _ in range(size)]
            options: dict[str, Any] = {}
            if rng.random() < transactions:
                options = {"open_s": rng.choice([0.0, 0.01, 0.5, 2.0]), "commit": rng.random() < 0.7}
            self.send(rng.uniform(begin, end), items, **options)

    def start_members(self) -> None:
        for number, name in enumerate(self.plan.members):
            at = 0.0 if number == 0 or self.rng.random() < 0.5 else self.rng.uniform(0.0, self.until)
            self.act(at, "start", member=name)

    # faults

    def deaths(self, most: int) -> None:
        rng = self.rng
        for _ in range(rng.randint(0, most)):
            member, at = rng.choice(self.plan.members), rng.uniform(0.3, self.until)
            kind = rng.choice(["kill", "kill", "kill", "stop", "freeze"])
            if kind == "kill" and rng.random() < 0.6:
                api = rng.choice([0, 0, 24, 25, 26, 26, 28, 28, 22, 14])
                self.act(
                    at, "rule", fault=True, apis=(api,), action="kill", member=member, skip=rng.choice([0, 0, 1, 5])
                )
            elif kind == "kill":
                self.act(
                    at,
                    "kill",
                    fault=True,
                    member=member,
                    handles=rng.choice([0, 3, 30, 300]),
                    back=rng.choice([0.1, 1.0, 4.0]),
                )
            elif kind == "stop":
                self.act(at, "stop", fault=True, member=member, back=rng.choice([0.0, 1.0]))
            else:
                self.act(at, "freeze", fault=True, member=member, seconds=rng.choice([0.3, 2.0, 7.0, 12.0]))

    def trouble(self, most: int, apis: tuple[int, ...] = ()) -> None:
        """With requests and connections."""
        rng = self.rng
        for _ in range(rng.randint(0, most)):
            at = rng.uniform(0.0, self.until)
            member = rng.choice([None, *self.plan.members])
            api = rng.choice(apis or (0, 0, 1, 2, 3, 9, 10, 11, 12, 14, 22, 24, 24, 25, 26, 26, 28, 28))
            actions = ["late", "dropped", "cut", "lost", "late-answer"] + ["error"] * 4 * bool(ERRORS[api])
            action = rng.choice(actions)
            value = float(rng.choice(ERRORS[api])) if action == "error" else rng.choice([0.05, 0.5, 2.0, 4.0])
            self.act(
                at, "rule", fault=True, apis=(api,), action=action, value=value, member=member, skip=rng.choice([0, 0, 1, 4]),
                count=rng.choice([1, 1, 2, 6]),
            )  # fmt: skip

    def outages(self, most: int) -> None:
        rng = self.rng
        for _ in range(rng.randint(0, most)):
            at = rng.uniform(0.2, self.until)
            kind = rng.choice(["node", "node", "leaders", "coordinator", "coordinator", "cut", "partition"])
            if kind == "node":
                self.act(
                    at, "node", fault=True, node=rng.randrange(self.plan.nodes), seconds=rng.choice([0.2, 1.5, 6.0])
                )
            elif kind == "leaders":
                self.act(at, "leaders", fault=True)
            elif kind == "coordinator":
                self.act(at, "coordinator", fault=True, of=rng.choice([0, 1]), loading_s=rng.choice([0.0, 0.3, 2.0]))
            elif kind == "cut":
                self.act(at, "cut", fault=True, member=rng.choice([None, *self.plan.members]))
            else:
                self.act(
                    at,
                    "partition",
                    fault=True,
                    member=rng.choice(self.plan.members),
                    seconds=rng.choice([0.5, 3.0, 8.0]),
                )

    def housekeeping(self) -> None:
        rng = self.rng
        for _ in range(rng.randint(0, 3)):
            self.act(rng.uniform(0.3, self.until), "compact", fault=True)
        if rng.random() < 0.2:
            self.act(rng.uniform(0.5, self.until), "retain", fault=True)

    def faults(self, level: int) -> None:
        """None at level 0, more of each kind above it."""
        if level:
            self.deaths(2 * level)
            self.trouble(2 * level)
            self.outages(level)
        self.housekeeping()

    def done(self) -> Plan:
        self.plan.acts.sort(key=lambda act: act.at)
        self.plan.ends_at = max(self.until, max((act.at for act in self.plan.acts), default=0.0)) + 0.05
        return self.plan


def partition_of(stream: str, partitions: int) -> int:
    return int(stream.lstrip("s") or 0) % partitions


def numbers(rng: random.Random) -> float:
    return float(rng.randrange(11))


def mixed(rng: random.Random) -> Any:
    """Mostly events; commands, and records that cannot be used."""
    return rng.choices(
        [
            numbers(rng),
            13.0,
            "reset",
            "end",
            rng.choice(["bad:undecodable", "bad:missing_key", "bad:wrong_width", "bad:unknown_command"]),
        ],
        [90, 2, 3, 3, 2],
    )[0]
