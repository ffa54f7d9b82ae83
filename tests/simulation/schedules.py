"""Carries a plan out and judges it; shows it, and shrinks it to few faults."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tests.simulation.loop import Deadlock, Exhausted, real_time, simulated
from tests.simulation.oracle import Judge, quiet_enough_s
from tests.simulation.plans import Act, Item, Plan, partition_of
from tests.simulation.world import World

MAX_TURNS = 400_000
CHECK_EVERY_S = 0.5
DECIDED_WITHIN_S = 20.0
"""A transaction's time-out is 6 s at most, and the coordinator looks every 10 s."""


@dataclass
class Result:
    plan: Plan
    findings: list[str]
    virtual_s: float
    real_s: float
    turns: int
    history: list[tuple[float, str, str]] = field(repr=False)
    problems: list[str] = field(default_factory=list, repr=False)

    @property
    def digest(self) -> str:
        """The same for the same run."""
        text = repr((self.history, self.findings, self.virtual_s, self.turns))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def kinds(self) -> list[str]:
        return sorted({finding.split(":")[0] for finding in self.findings})


def run(plan: Plan, *, verbose: bool = False) -> Result:
    """The whole story of a plan."""
    began = real_time()
    findings: list[str] = []
    with simulated(plan.seed, max_turns=MAX_TURNS) as loop:
        world = World(loop, plan)
        world.cluster.verbose = verbose
        world.quiet_s = 0.0
        try:
            loop.run_until_complete(loop.create_task(_tell(world, findings)))
        except (Deadlock, Exhausted) as error:
            findings.append(f"stuck: {type(error).__name__}: {error}")
        result = Result(plan, findings, loop.now, 0.0, loop.turns, list(loop.history), list(loop.problems))
    result.real_s = real_time() - began
    return result


async def _tell(world: World, findings: list[str]) -> None:
    plan, loop = world.plan, world.loop
    for act in plan.acts:
        await asyncio.sleep(max(act.at - loop.time(), 0.0))
        await world.carry_out(act)
    await asyncio.sleep(max(plan.ends_at - loop.time(), 0.0))
    world.end_faults()
    if await _settled(world, findings) and plan.probe:
        await _probe(world, findings)
    quiet = quiet_enough_s(plan) + 0.5
    if not findings and quiet < 10 and await world.owned():
        await asyncio.sleep(quiet)
        world.quiet_s = quiet
    stuck = await world.stop_all()
    findings += [f"stuck: {id_} does not stop" for id_ in stuck]
    await _decided(world)
    findings += [finding for finding in Judge(world).check() if finding not in findings]


async def _decided(world: World) -> None:
    """Waits for what hides answers: the markers of the last transactions, and the time-out of one that a dead member left
    open before anything of it was in the changelog, so that no heir could know of it."""
    deadline = world.loop.time() + DECIDED_WITHIN_S
    await asyncio.sleep(1.0)
    while world.cluster.transactions.undecided() and world.loop.time() < deadline:  # noqa: ASYNC110 - virtual time
        await asyncio.sleep(0.5)


async def _settled(world: World, findings: list[str]) -> bool:
    """Waits until all is answered; alive again within the time that the plan gives."""
    deadline = world.loop.time() + world.plan.live_within_s
    while True:
        judge = Judge(world)
        refused = world.plan.refusal_ends_it and any(end.code == 5 for end in world.ends)
        if refused and not world.alive():
            return False
        missing = judge.missing()
        missing += [f"what is written about {key} of partition {where}" for where, key in judge.being_written]
        if not missing and not judge.findings:
            return True
        if world.loop.time() >= deadline or all(member.given_up for member in world.members.values()):
            findings.append(f"not live: {len(missing)} outstanding, first {missing[:2]}")
            return False
        await asyncio.sleep(CHECK_EVERY_S)


async def _probe(world: World, findings: list[str]) -> None:
    """Everything is restored from the changelog, and every stream is asked once more."""
    stuck = await world.stop_all()
    findings += [f"stuck: {id_} does not stop" for id_ in stuck]
    world.loop.note("probe", "plan")
    world.start_all()
    by_partition: dict[int, list[Item]] = {}
    lag = next((i.ts_lag_ms for a in world.plan.acts if a.kind == "send" for i in a.args["items"]), None)
    for stream in world.plan.streams:
        item = Item(stream, 1.0, None if lag is None else max(lag, 0))
        by_partition.setdefault(partition_of(stream, world.plan.partitions), []).append(item)
    for partition, items in by_partition.items():
        await world.carry_out(Act(world.loop.time(), "send", {"partition": partition, "items": items}))
    await _settled(world, findings)


# shrinking


def shrunk(plan: Plan, fails: Callable[[Plan], bool], *, budget_s: float = 60.0) -> Plan:
    """A plan with as few faults and records as still fail."""
    deadline = real_time() + budget_s
    best = plan
    for size in (8, 4, 2, 1):
        for may_go in (lambda act: act.fault, lambda act: act.kind == "send"):
            at = 0
            while real_time() < deadline:
                places = [i for i, act in enumerate(best.acts) if may_go(act)]
                if at >= len(places):
                    break
                gone = set(places[at : at + size])
                smaller = replace(best, acts=[act for i, act in enumerate(best.acts) if i not in gone])
                if fails(smaller):
                    best = smaller
                else:
                    at += size
    return best


def story(result: Result, *, most: int = 400) -> str:
    """What people read of a failing run."""
    plan = result.plan
    lines = [
        f"profile {plan.profile}, seed {plan.seed}: {plan.partitions} partitions, {plan.nodes} nodes, members {', '.join(plan.members)}"
    ]
    for number, regime in enumerate(plan.regimes):
        shown = {
            name: section
            for name, section in regime.document.items()
            if name not in ("model", "http", "input", "output")
        }
        lines.append(f"regime {number}: models {regime.letters} {shown} {regime.document['model']}")
    lines.append("-- what was planned")
    lines += [_act(act) for act in plan.acts]
    lines.append("-- what happened")
    history = (
        result.history
        if len(result.history) <= most
        else [*result.history[: most // 2], (0.0, "", "..."), *result.history[-most // 2 :]]
    )
    lines += [f"{at:9.4f}  {who:8s} {text}" for at, who, text in history]
    lines.append("-- what is wrong")
    lines += result.findings[:30]
    if len(result.findings) > 30:
        lines.append(f"and {len(result.findings) - 30} more")
    return "\n".join(lines)


def _act(act: Act) -> str:
    if act.kind != "send":
        return str(act)
    items = " ".join(
        f"{i.stream}={i.what}" + (f"@-{i.ts_lag_ms}" if i.ts_lag_ms is not None else "") for i in act.args["items"]
    )
    rest: dict[str, Any] = {name: value for name, value in act.args.items() if name != "items"}
    return f"{act.at:8.3f}  send {rest} {items}"
