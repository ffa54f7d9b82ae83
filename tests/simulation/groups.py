"""The group coordinator: members, generations, eager rebalances, static members, session time-outs, offsets.

As Apache Kafka's classic groups: a rebalance waits for every known member up to its rebalance time-out; who does not come is
removed. Offsets of a transaction are pending until its marker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulation.broker import Cluster

NONE, ILLEGAL_GENERATION, INCONSISTENT_PROTOCOL, UNKNOWN_MEMBER_ID = 0, 22, 23, 25
INVALID_SESSION_TIMEOUT, REBALANCE_IN_PROGRESS, MEMBER_ID_REQUIRED, FENCED_INSTANCE_ID = 26, 27, 79, 82
NEW_MEMBER_S = 300.0

Answer = Callable[[dict[str, Any]], None]
EMPTY, PREPARING, COMPLETING, STABLE = "Empty", "PreparingRebalance", "CompletingRebalance", "Stable"


@dataclass
class Member:
    id: str
    client: str
    instance: str | None
    session_s: float
    rebalance_s: float
    protocols: list[tuple[str, bytes]]
    assignment: bytes = b""
    joining: Answer | None = None
    syncing: Answer | None = None
    timer: asyncio.TimerHandle | None = None

    @property
    def metadata(self) -> bytes:
        return self.protocols[0][1]


@dataclass
class Group:
    name: str
    state: str = EMPTY
    generation: int = 0
    protocol: str | None = None
    leader: str | None = None
    members: dict[str, Member] = field(default_factory=dict)
    instances: dict[str, str] = field(default_factory=dict)
    pending: dict[str, asyncio.TimerHandle] = field(default_factory=dict)
    """Member ids that were handed out and have not joined yet"""
    timer: asyncio.TimerHandle | None = None
    offsets: dict[tuple[str, int], int] = field(default_factory=dict)
    transactional: dict[int, dict[tuple[str, int], int]] = field(default_factory=dict)
    """Producer id -> offsets of its open transaction"""


class Groups:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.known: dict[str, Group] = {}
        self.initial_delay_s = 0.0

    def get(self, name: str) -> Group:
        return self.known.setdefault(name, Group(name))

    # joining

    def join(self, request: dict[str, Any], client: str, answer: Answer) -> None:
        group, id_, instance = self.get(request["group"]), request["member_id"], request.get("group_instance_id")
        protocols = [(each["protocol_name"], each["protocol_metadata"]) for each in request["group_protocols"]]
        session_s = request["session_timeout"] / 1000
        if not 6.0 <= session_s <= 1_800.0:
            return answer(_not_joined(INVALID_SESSION_TIMEOUT, id_))
        if group.members and not {name for name, _ in protocols} & {
            name for member in group.members.values() for name, _ in member.protocols
        }:
            return answer(_not_joined(INCONSISTENT_PROTOCOL, id_))
        if id_ == "":
            if instance is None and request.get("group_instance_id", "absent") is None:
                id_ = self._new_id(client)
                group.pending[id_] = self.cluster.loop.after(session_s, self._drop_pending, group, id_)
                return answer(_not_joined(MEMBER_ID_REQUIRED, id_))
            id_ = self._new_id(instance or client)
            if instance is not None and instance in group.instances:
                return self._replace_static(group, id_, instance, protocols, answer)
        elif instance is not None and instance in group.instances and group.instances[instance] != id_:
            return answer(_not_joined(FENCED_INSTANCE_ID, id_))
        elif id_ not in group.members and id_ not in group.pending:
            return answer(_not_joined(UNKNOWN_MEMBER_ID, id_))
        waiting = group.pending.pop(id_, None)
        if waiting is not None:
            waiting.cancel()
        member = group.members.get(id_)
        if member is None:
            member = Member(
                id_, client, instance, session_s, request.get("rebalance_timeout", session_s * 1000) / 1000, protocols
            )
            group.members[id_] = member
            if instance is not None:
                group.instances[instance] = id_
        elif member.protocols == protocols and (
            group.state == COMPLETING or (group.state == STABLE and group.leader != id_)
        ):
            self._alive(group, member)
            return answer(self._joined(group, member))
        member.protocols = protocols
        member.session_s = session_s
        if member.joining is not None:
            member.joining(_not_joined(UNKNOWN_MEMBER_ID, id_))
        member.joining = answer
        self._stop_timer(member)
        if group.state != PREPARING:
            self._prepare(group)
        self._maybe_complete(group)
        return None

    def _new_id(self, prefix: str) -> str:
        return f"{prefix}-{self.cluster.loop.rng.getrandbits(64):016x}"

    def _drop_pending(self, group: Group, id_: str) -> None:
        group.pending.pop(id_, None)
        self._maybe_complete(group)

    def _replace_static(
        self, group: Group, id_: str, instance: str, protocols: list[tuple[str, bytes]], answer: Answer
    ) -> None:
        old = group.members.pop(group.instances[instance])
        self._stop_timer(old)
        for waiting, told in ((old.joining, _not_joined), (old.syncing, _not_synced)):
            if waiting is not None:
                waiting(told(FENCED_INSTANCE_ID, old.id))
        member = Member(id_, old.client, instance, old.session_s, old.rebalance_s, protocols, old.assignment)
        group.members[id_] = member
        group.instances[instance] = id_
        leader = group.leader
        if group.leader == old.id:
            group.leader = id_
        if group.state == STABLE:
            self._alive(group, member)
            answer({**self._joined(group, member), "leader_id": leader, "members": []})
            return
        member.joining = answer
        if group.state != PREPARING:
            self._prepare(group)
        self._maybe_complete(group)

    def _prepare(self, group: Group) -> None:
        if group.state == COMPLETING:
            for member in group.members.values():
                member.assignment = b""
                if member.syncing is not None:
                    syncing, member.syncing = member.syncing, None
                    syncing(_not_synced(REBALANCE_IN_PROGRESS, member.id))
                    self._alive(group, member)
        group.state = PREPARING
        self.cluster.note(f"group {group.name}: rebalance after generation {group.generation}")
        longest = max((member.rebalance_s for member in group.members.values()), default=0.0)
        if group.timer is not None:
            group.timer.cancel()
        group.timer = self.cluster.loop.after(longest, self._complete, group)

    def _maybe_complete(self, group: Group) -> None:
        if (
            group.state == PREPARING
            and not group.pending
            and all(m.joining is not None for m in group.members.values())
        ):
            self._complete(group)

    def _complete(self, group: Group) -> None:
        """Everybody is there, or the time is over."""
        if group.state != PREPARING:
            return
        if group.timer is not None:
            group.timer.cancel()
            group.timer = None
        for member in [m for m in group.members.values() if m.joining is None and m.instance is None]:
            self._remove(group, member)
        group.generation += 1
        if not group.members:
            group.state, group.protocol, group.leader = EMPTY, None, None
            return
        if group.leader not in group.members or group.members[group.leader].joining is None:
            joined = [m.id for m in group.members.values() if m.joining is not None]
            group.leader = joined[0] if joined else next(iter(group.members))
        group.state = COMPLETING
        group.protocol = next(iter(group.members.values())).protocols[0][0]
        self.cluster.note(f"group {group.name}: generation {group.generation} of {len(group.members)}")
        slowest = 0.0
        for member in list(group.members.values()):
            slowest = max(slowest, member.rebalance_s)
            joining, member.joining = member.joining, None
            self._alive(group, member)
            if joining is not None:
                joining(self._joined(group, member))
        group.timer = self.cluster.loop.after(slowest, self._sync_late, group, group.generation)

    def _sync_late(self, group: Group, generation: int) -> None:
        if group.state == COMPLETING and group.generation == generation:
            for member in [m for m in group.members.values() if m.syncing is None]:
                self._remove(group, member)
            self._prepare(group)
            self._maybe_complete(group)

    def _joined(self, group: Group, member: Member) -> dict[str, Any]:
        leads = member.id == group.leader
        members = [
            {"member_id": each.id, "group_instance_id": each.instance, "member_metadata": each.metadata}
            for each in (group.members.values() if leads else ())
        ]
        return {
            "error_code": NONE,
            "generation_id": group.generation,
            "group_protocol": group.protocol,
            "leader_id": group.leader,
            "member_id": member.id,
            "members": members,
        }

    # after joining

    def _member(self, group: Group, id_: str, instance: str | None) -> tuple[int, Member | None]:
        if instance is not None:
            if instance not in group.instances:
                return UNKNOWN_MEMBER_ID, None
            if group.instances[instance] != id_:
                return FENCED_INSTANCE_ID, None
        member = group.members.get(id_)
        return (UNKNOWN_MEMBER_ID, None) if member is None else (NONE, member)

    def sync(self, request: dict[str, Any], answer: Answer) -> None:
        group = self.get(request["group"])
        code, member = self._member(group, request["member_id"], request.get("group_instance_id"))
        if member is None:
            return answer(_not_synced(code))
        if request["generation_id"] != group.generation:
            return answer(_not_synced(ILLEGAL_GENERATION))
        if group.state == PREPARING:
            return answer(_not_synced(REBALANCE_IN_PROGRESS))
        if group.state == STABLE:
            self._alive(group, member)
            return answer({"error_code": NONE, "member_assignment": member.assignment})
        if group.state == EMPTY:
            return answer(_not_synced(UNKNOWN_MEMBER_ID))
        member.syncing = answer
        self._stop_timer(member)
        if member.id != group.leader:
            return None
        given = {each["member_id"]: each["member_metadata"] for each in request["group_assignment"]}
        group.state = STABLE
        if group.timer is not None:
            group.timer.cancel()
            group.timer = None
        for each in group.members.values():
            each.assignment = given.get(each.id, b"")
            if each.syncing is not None:
                syncing, each.syncing = each.syncing, None
                syncing({"error_code": NONE, "member_assignment": each.assignment})
            self._alive(group, each)
        return None

    def heartbeat(self, request: dict[str, Any]) -> dict[str, Any]:
        group = self.get(request["group"])
        code, member = self._member(group, request["member_id"], request.get("group_instance_id"))
        if member is None:
            return {"error_code": code}
        if request["generation_id"] != group.generation:
            return {"error_code": ILLEGAL_GENERATION}
        self._alive(group, member)
        return {"error_code": REBALANCE_IN_PROGRESS if group.state == PREPARING else NONE}

    def leave(self, request: dict[str, Any]) -> dict[str, Any]:
        group = self.get(request["group"])
        member = group.members.get(request["member_id"])
        if member is None:
            return {"error_code": UNKNOWN_MEMBER_ID}
        self._remove(group, member)
        self._left(group)
        return {"error_code": NONE}

    def _alive(self, group: Group, member: Member) -> None:
        self._stop_timer(member)
        member.timer = self.cluster.loop.after(member.session_s, self._expired, group, member)

    @staticmethod
    def _stop_timer(member: Member) -> None:
        if member.timer is not None:
            member.timer.cancel()
            member.timer = None

    def _expired(self, group: Group, member: Member) -> None:
        if group.members.get(member.id) is member:
            self.cluster.note(f"group {group.name}: session of {member.id} expired")
            self._remove(group, member)
            self._left(group)

    def _remove(self, group: Group, member: Member) -> None:
        self._stop_timer(member)
        group.members.pop(member.id, None)
        if member.instance is not None and group.instances.get(member.instance) == member.id:
            del group.instances[member.instance]
        for waiting, told in ((member.joining, _not_joined), (member.syncing, _not_synced)):
            if waiting is not None:
                waiting(told(UNKNOWN_MEMBER_ID, member.id))
        member.joining = member.syncing = None

    def _left(self, group: Group) -> None:
        if group.state in (STABLE, COMPLETING):
            self._prepare(group)
        self._maybe_complete(group)

    def failover(self, name: str) -> None:
        """Another node coordinates now: joins that wait are told to look for it; what was stable stays."""
        group = self.get(name)
        for member in list(group.members.values()):
            for waiting, told in ((member.joining, _not_joined), (member.syncing, _not_synced)):
                if waiting is not None:
                    waiting(told(16, member.id))
            member.joining = member.syncing = None
            if group.state in (STABLE, PREPARING):
                self._alive(group, member)

    # offsets

    def may_commit(self, request: dict[str, Any], *, transactional: bool) -> int:
        """The check of KIP-447 and of a plain commit: error code."""
        name, generation = request["group"], request["generation"]
        id_, instance = request["member"], request["instance"]
        group = self.known.get(name)
        if group is None:
            return NONE if generation < 0 else ILLEGAL_GENERATION
        if generation < 0 and group.state == EMPTY:
            return NONE
        if generation >= 0 or id_ or instance is not None:
            code, member = self._member(group, id_, instance)
            if member is None:
                return code
            if generation != group.generation:
                return ILLEGAL_GENERATION
        elif not transactional and group.state != EMPTY:
            return UNKNOWN_MEMBER_ID
        if not transactional and group.state == COMPLETING:
            return REBALANCE_IN_PROGRESS
        return NONE

    def commit(self, name: str, offsets: dict[tuple[str, int], int], producer: int | None = None) -> None:
        group = self.get(name)
        if producer is None:
            group.offsets.update(offsets)
        else:
            group.transactional.setdefault(producer, {}).update(offsets)

    def end_transaction(self, name: str, producer: int, *, commit: bool) -> None:
        group = self.get(name)
        pending = group.transactional.pop(producer, {})
        if commit:
            group.offsets.update(pending)

    def topic_deleted(self, topic: str) -> None:
        for group in self.known.values():
            group.offsets = {tp: offset for tp, offset in group.offsets.items() if tp[0] != topic}


def _not_joined(code: int, member_id: str = "") -> dict[str, Any]:
    return {
        "error_code": code, "generation_id": -1, "group_protocol": "", "leader_id": "", "member_id": member_id, "members": [],
    }  # fmt: skip


def _not_synced(code: int, _: str = "") -> dict[str, Any]:
    return {"error_code": code, "member_assignment": b""}
