"""A plan on its way: members that start, die and come back, the input that others write, and what goes wrong meanwhile."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from tests.simulation import product
from tests.simulation.broker import GROUP as GROUP_KIND
from tests.simulation.broker import TRANSACTION, Cluster, Topic
from tests.simulation.chains import kept_of
from tests.simulation.expected import replay_points
from tests.simulation.faults import Rule
from tests.simulation.logs import Record, build
from tests.simulation.loop import SimLoop
from tests.simulation.network import Network
from tests.simulation.plans import GROUP, INPUT, Act, Item, Plan, Regime

SAME_END = 3
"""A member that ends this often with the same code is not started again."""


@dataclass(frozen=True)
class Sent:
    """One record of the input, as it was meant."""

    topic: Topic
    partition: int
    offset: int
    stream: str
    what: Any
    ts_ms: int
    """Event time"""
    stamp_ms: int
    at_s: float


@dataclass
class Member:
    name: str
    number: int = 0
    running: bool = False
    regime: int = 0
    handle: product.Handle = field(default_factory=product.Handle)
    ends: list[tuple[int | None, str]] = field(default_factory=list)
    given_up: bool = False
    wanted: bool = True
    """It is to run: an end is followed by another start"""

    @property
    def id(self) -> str:
        return f"{self.name}.{self.number}"


@dataclass
class End:
    member: str
    code: int | None
    """0: in order; None: crashed"""
    text: str
    at_s: float
    regime: int


class World:
    """Everything that a plan moves. ``trace``: what people read."""

    def __init__(self, loop: SimLoop, plan: Plan) -> None:
        self.loop, self.plan = loop, plan
        self.network = Network(loop)
        self.cluster = Cluster(loop, self.network, plan.nodes, plan.segment_bytes)
        self.cluster.kill = self._killed_by_request  # type: ignore[method-assign]
        self.cluster.faults.seen = lambda rule, api, member: loop.note(
            f"{api} of {member}: {rule.action} {rule.value:g}", "fault"
        )
        self.members = {name: Member(name) for name in plan.members}
        self.sent: list[Sent] = []
        self.inputs: list[Topic] = []
        self.ends: list[End] = []
        self.regime_starts: list[tuple[float, int]] = [(0.0, 0)]
        self.regime = 0
        self.faults_over = False
        self.quiet_s = 0.0
        """How long everything was at rest before the end"""
        self._ids = 0
        self._keys: dict[str, bytes] = {}
        for name, config in plan.topics.items():
            self.cluster.create(name, plan.partitions, config)
        self._create_input()

    def _create_input(self) -> None:
        self.inputs.append(self.cluster.create(INPUT, self.plan.partitions))

    @property
    def current(self) -> Regime:
        return self.plan.regimes[self.regime]

    # members

    def start(self, name: str) -> None:
        member = self.members[name]
        if member.running or member.given_up or not member.wanted:
            return
        member.number += 1
        member.running, member.regime, member.handle = True, self.regime, product.Handle()
        self.loop.skew_s[member.id] = self.loop.skew_s.get(name, 0.0)
        self.loop.note("starts", member.id)
        self.loop.spawn(member.id, self._run(member, member.id))

    async def _run(self, member: Member, id_: str) -> None:
        regime = self.plan.regimes[member.regime]
        document = {section: dict(values) for section, values in regime.document.items()}
        document["kafka"]["bootstrap"] = self.cluster.bootstrap
        instance = id_
        if document["kafka"].get("static_membership"):
            instance = document["kafka"]["instance"] = member.name
        code: int | None = 0
        text = ""
        try:
            chosen = product.settings(document)
            models = product.load(chosen, regime.letters, self._cost, steps="many" if self.plan.many else "one")
            await product.serve(member.handle, chosen, models, instance, self._new_id, self.loop.note)
        except asyncio.CancelledError:
            code, text = None, "CancelledError"
        except BaseException as error:
            code, text = product.exit_code(error), f"{type(error).__name__}: {error}"
            if code is None:
                text += _where(error)
        self._ended(member, code, text)

    def _cost(self, events: int) -> None:
        call, event = self.plan.cost_s
        if call or event:
            self.loop.consume(call + event * events)

    def _new_id(self) -> str:
        self._ids += 1
        return f"{GROUP}-{self.loop.current}-{self._ids:04d}"

    def _ended(self, member: Member, code: int | None, text: str) -> None:
        member.running = False
        self.loop.note(f"ends: {code} {text[:400]}", member.id)
        self.ends.append(End(member.id, code, text, self.loop.time(), member.regime))
        for wire in self.network.of(member.id):
            wire.cut()
        # what a process leaves behind goes with it
        self.loop.at(self.loop.time(), self.loop.kill, member.id)
        if code == 0:
            return
        member.ends.append((code, text))
        last = [end for end, _ in member.ends[-SAME_END:]]
        if code in (2, 3, 5) and len(last) == SAME_END and len(set(last)) == 1:
            member.given_up = True
            self.loop.note("is not started again", member.id)
        else:
            self._back_later(member.name, 0.5)

    def _back_later(self, name: str, seconds: float) -> None:
        self.loop.after(seconds, self.start, name)

    def _dead(self, id_: str) -> None:
        name = id_.partition(".")[0]
        member = self.members[name]
        if member.id != id_ or not member.running:
            return
        self.loop.note("is dead", id_)
        member.running = False
        self.network.died(id_)

    def _killed_by_request(self, id_: str) -> None:
        name = id_.partition(".")[0]
        if name in self.members and self.members[name].id == id_ and self.members[name].running:
            self.loop.kill(id_)
            self._dead(id_)
            self._back_later(name, self.loop.rng.choice([0.1, 1.0, 3.0]))

    def alive(self) -> list[Member]:
        return [member for member in self.members.values() if member.running]

    async def stop_all(self, within_s: float = 60.0) -> list[str]:
        """SIGTERM to everybody. Returns who does not stop."""
        for member in self.members.values():
            member.wanted = False
            if member.running:
                member.handle.stop()
        deadline = self.loop.time() + within_s
        while self.alive() and self.loop.time() < deadline:  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(0.05)
        return [member.id for member in self.alive()]

    def start_all(self) -> None:
        for member in self.members.values():
            member.wanted = True
            self.start(member.name)

    # acts

    async def carry_out(self, act: Act) -> None:
        if act.kind != "send":
            self.loop.note(f"{act.kind} " + ", ".join(f"{k}={v}" for k, v in act.args.items()), "plan")
        result = getattr(self, f"_do_{act.kind}")(**act.args)
        if result is not None:
            await result

    def _do_start(self, member: str) -> None:
        self.start(member)

    def _do_stop(self, member: str, back: float = 0.5, handles: int = 0) -> None:
        found = self.members[member]
        if found.running:
            found.handle.stop()
            self.loop.after(back, self._again, member, found.id)

    def _again(self, name: str, id_: str) -> None:
        """Starts it when it is gone."""
        member = self.members[name]
        if member.running and member.id == id_:
            self.loop.after(0.2, self._again, name, id_)
        else:
            self.start(name)

    def _do_kill(self, member: str, handles: int = 0, back: float = 0.5) -> None:
        found = self.members[member]
        if found.running:
            id_ = found.id

            def dead() -> None:
                self._dead(id_)
                self._back_later(member, back)

            self.loop.doomed[id_] = handles, dead

    def _do_freeze(self, member: str, seconds: float) -> None:
        if self.members[member].running:
            self.loop.freeze(self.members[member].id, seconds)

    def _do_clock(self, member: str, seconds: float) -> None:
        self.loop.skew_s[member] = self.loop.skew_s[self.members[member].id] = seconds

    def _do_rule(self, member: str | None = None, **fields: Any) -> None:
        found = self.members[member].id if member is not None else None
        self.cluster.faults.rules.append(Rule(member=found, **fields))

    def _do_node(self, node: int, seconds: float) -> None:
        if self.cluster.nodes[node].up:
            self.cluster.stop_node(node)
            self.loop.after(seconds, self.cluster.start_node, node)

    def _do_leaders(self) -> None:
        for topic in self.cluster.topics.values():
            for log in topic.logs:
                self.cluster.leaders[topic.name, log.partition] = self.loop.rng.randrange(self.plan.nodes)

    def _do_coordinator(self, of: int, loading_s: float) -> None:
        keys = [GROUP] if of == GROUP_KIND else list(self.cluster.transactions.known)
        for key in keys:
            self.cluster.coordinators[of, key] = self.loop.rng.randrange(self.plan.nodes)
            self.cluster.loading_until[of, key] = self.loop.now + loading_s
        if of == GROUP_KIND:
            self.cluster.groups.failover(GROUP)

    def _do_cut(self, member: str | None) -> None:
        wanted = None if member is None else self.members[member].id
        for wire in list(self.network.wires):
            if wanted is None or wire.member == wanted:
                wire.cut()

    def _do_partition(self, member: str, seconds: float) -> None:
        self.network.cut_until[self.members[member].id, None] = self.loop.now + seconds

    def _do_compact(self) -> None:
        for topic in self.cluster.topics.values():
            if "compact" in topic.config.get("cleanup.policy", ""):
                for log in topic.logs:
                    if self.loop.rng.random() < 0.5:
                        log.roll()
                    log.compact(self.cluster.now_ms() + self.loop.rng.choice([0, 10**9]))

    def _do_retain(self, all: bool = False) -> None:
        """Deletes input that no restart needs any more: below every replay point, and behind a marker that follows it."""
        points = replay_points(self)
        for log in self.inputs[-1].logs:
            point = points.get(log.partition, 0)
            if all or self.loop.rng.random() < 0.5:
                while any(batch.control and batch.base == point for batch in log.batches):
                    point += 1
                log.delete_before(point)

    def _do_expire(self) -> None:
        self.loop.note(f"{self.cluster.transactions.expire()} transactional ids expire", "cluster")

    async def owned(self) -> bool:
        """Waits until somebody has every partition: all may be answered while the session of a dead member still lasts, and
        who comes next is not there yet."""
        deadline = self.loop.time() + self.plan.live_within_s
        while self.loop.time() < deadline and not all(member.given_up for member in self.members.values()):
            handles = [member.handle for member in self.alive()]
            numbers = range(self.plan.partitions)
            if all(any(product.settled_offset(each, number) is not None for each in handles) for number in numbers):
                return True
            await asyncio.sleep(0.1)
        return False

    async def _do_regime(self, number: int) -> None:
        if self.plan.each_regime_is_lived:
            await self.owned()
        stuck = await self.stop_all()
        for id_ in stuck:
            self.ends.append(End(id_, None, "does not stop", self.loop.time(), self.regime))
            self.loop.kill(id_)
            self._dead(id_)
        self.regime = number
        self.regime_starts.append((self.loop.time(), number))
        for member in self.members.values():
            member.given_up = False
            member.ends.clear()
        self.start_all()

    async def _do_recreate(self, gap_s: float) -> None:
        self.cluster.delete(INPUT)
        await asyncio.sleep(gap_s)
        self._create_input()

    def _do_send(self, partition: int, items: list[Item], open_s: float | None = None, commit: bool = True) -> None:
        topic = self.cluster.topics.get(INPUT)
        if topic is None:
            return
        log, now = topic.logs[partition], self.cluster.now_ms()
        producer = -1 if open_s is None else self.cluster.transactions.new_producer()
        records = []
        for number, item in enumerate(items):
            ts = now if item.ts_lag_ms is None else now - item.ts_lag_ms
            named = self.current.document["input"].get("format") == "json-named"
            key, value, headers = encoded(item, None if item.ts_lag_ms is None else ts, named=named)
            records.append(Record(number, now, key, value, headers))
            offset = log.end + number
            self.sent.append(Sent(topic, partition, offset, item.stream, item.what, ts, now, self.loop.now))
        transactional = producer >= 0
        raw = build(records, 0, producer, 0 if transactional else -1, 0 if transactional else -1, transactional)
        code, base = log.append(raw, now)
        assert code == 0
        assert base == log.end - len(items)
        if open_s is not None:
            epoch = 0
            self.loop.after(open_s, lambda: log.marker(producer, epoch, commit=commit, now_ms=self.cluster.now_ms()))

    def end_faults(self) -> None:
        """From here on everything works."""
        self.faults_over = True
        self.loop.note("faults end", "plan")
        self.cluster.faults.rules.clear()
        self.network.cut_until.clear()
        self.loop.doomed.clear()
        for peer in self.cluster.hanging if not self.plan.stays_hung else ():
            peer.wire.cut()  # at last the system gives a dead connection up
        self.cluster.loading_until.clear()
        for number, node in self.cluster.nodes.items():
            if not node.up:
                self.cluster.start_node(number)
        self.start_all()


def encoded(
    item: Item, ts_ms: int | None, *, named: bool = False
) -> tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]:
    """Key, value and headers."""
    key, what = item.stream.encode(), item.what
    if isinstance(what, dict):
        return key, json.dumps(what).encode(), [("streamer-op", b"generate")]
    if what in ("reset", "end"):
        return key, None, [("streamer-op", str(what).encode())]
    if isinstance(what, str):
        reason = what.removeprefix("bad:")
        good = b'{"x":1.0}' if named else b'{"x":[1.0]}'
        return {
            "undecodable": (key, b"{", []),
            "missing_feature": (key, b'{"kept":1.0}', []),
            "missing_key": (None, good, []),
            "wrong_width": (key, b'{"x":[1.0,2.0]}', []),
            "unknown_command": (key, good, [("streamer-op", b"dance")]),
        }[reason]  # type: ignore[return-value]
    value: dict[str, Any] = {"x": list(what) if isinstance(what, tuple) else [what]}
    if named:
        value = {"x": what, "kept": kept_of(what)}
    if ts_ms is not None:
        value["ts"] = ts_ms
    return key, json.dumps(value).encode(), []


def _where(error: BaseException) -> str:
    found, place = error.__traceback__, ""
    while found is not None:
        place = f" ({found.tb_frame.f_code.co_filename.split('/')[-1]}:{found.tb_lineno})"
        found = found.tb_next
    return place


__all__ = ["TRANSACTION", "End", "Member", "Sent", "World", "encoded"]
