"""The cluster: nodes, topics, who leads and coordinates what, and requests on their way in and answers on their way out.

All nodes share one memory, as perfect replication would give it; a node is what one connects to. What each request does is in
``requests``."""

from __future__ import annotations

import uuid
import zlib
from dataclasses import dataclass, field
from typing import Any

from aiokafka.protocol.api import RequestStruct

from tests.simulation import requests, wire
from tests.simulation.faults import Faults, Rule, refusal
from tests.simulation.groups import Groups
from tests.simulation.logs import Log
from tests.simulation.loop import SimLoop
from tests.simulation.network import Network, Peer
from tests.simulation.transactions import Transactions

GROUP, TRANSACTION = 0, 1


@dataclass
class Topic:
    name: str
    id: uuid.UUID
    logs: list[Log]
    config: dict[str, str]
    led_from_s: float = 0.0


@dataclass
class Node:
    id: int
    up: bool = True

    @property
    def address(self) -> tuple[str, int]:
        return f"sim{self.id}", 9092


@dataclass
class Call:
    """One request that is being served."""

    peer: Peer
    node: int
    kind: type[RequestStruct]
    correlation: int
    client: str
    request: dict[str, Any]
    rule: Rule | None = None
    answered: bool = False

    @property
    def api(self) -> int:
        return self.kind.API_KEY


@dataclass
class Cluster:
    """What outlives every connection."""

    loop: SimLoop
    network: Network
    count: int = 1
    segment_bytes: int = 1 << 30
    verbose: bool = False
    nodes: dict[int, Node] = field(default_factory=dict)
    topics: dict[str, Topic] = field(default_factory=dict)
    deleted: list[Topic] = field(default_factory=list)
    leaders: dict[tuple[str, int], int] = field(default_factory=dict)
    coordinators: dict[tuple[int, str], int] = field(default_factory=dict)
    loading_until: dict[tuple[int, str], float] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)
    hanging: list[Peer] = field(default_factory=list)
    """Connections on which nothing is answered any more"""
    served: int = 0

    def __post_init__(self) -> None:
        self.groups = Groups(self)
        self.transactions = Transactions(self)
        for number in range(self.count):
            self.nodes[number] = Node(number)
            self.start_node(number)

    @property
    def bootstrap(self) -> str:
        return ",".join(f"{node.address[0]}:{node.address[1]}" for node in self.nodes.values())

    def now_ms(self) -> int:
        from tests.simulation.loop import EPOCH_S

        return int((EPOCH_S + self.loop.now) * 1000)

    def note(self, text: str) -> None:
        self.loop.note(text, "cluster")

    # nodes

    def start_node(self, number: int) -> None:
        node = self.nodes[number]
        node.up = True
        self.network.listening[node.address] = lambda peer: self._accept(node, peer)

    def stop_node(self, number: int) -> None:
        """Connections break; what it led and coordinated goes to another node, where there is one."""
        node = self.nodes[number]
        node.up = False
        self.network.stop_listening(node.address)

    def _alive(self) -> list[int]:
        return [node.id for node in self.nodes.values() if node.up] or [0]

    def leader(self, topic: str, partition: int) -> int:
        alive, chosen = self._alive(), self.leaders.get((topic, partition))
        if chosen is not None and chosen in alive:
            return chosen
        return alive[(zlib.crc32(topic.encode()) + partition) % len(alive)]

    def coordinator(self, kind: int, key: str) -> int:
        alive, chosen = self._alive(), self.coordinators.get((kind, key))
        if chosen is not None and chosen in alive:
            return chosen
        return alive[zlib.crc32(key.encode()) % len(alive)]

    # topics

    def create(
        self, name: str, partitions: int, config: dict[str, str] | None = None, *, led_after_s: float = 0.0
    ) -> Topic:
        config = dict(config or {})
        logs = [Log(name, number, config, self.segment_bytes) for number in range(partitions)]
        topic = Topic(name, uuid.UUID(int=self.loop.rng.getrandbits(128)), logs, config, self.loop.now + led_after_s)
        self.topics[name] = topic
        return topic

    def delete(self, name: str) -> None:
        topic = self.topics.pop(name)
        self.deleted.append(topic)
        self.groups.topic_deleted(name)
        for log in topic.logs:
            log._wake()

    def add_partitions(self, name: str, total: int) -> None:
        topic = self.topics[name]
        for number in range(len(topic.logs), total):
            topic.logs.append(Log(name, number, topic.config, self.segment_bytes))

    def log(self, name: str, partition: int) -> Log | None:
        topic = self.topics.get(name)
        if topic is None or not 0 <= partition < len(topic.logs):
            return None
        return topic.logs[partition]

    def after_marker(self, name: str) -> None: ...

    # requests

    def _accept(self, node: Node, peer: Peer) -> None:
        peer.serve = lambda peer, frame: self._serve(node.id, peer, frame)

    def _serve(self, node: int, peer: Peer, frame: bytes) -> None:
        kind, correlation, client, request = wire.decode(frame)
        call = Call(peer, node, kind, correlation, client, request)
        self.served += 1
        if self.verbose and call.api != 18:
            self.note(f"{peer.wire.member}: {wire.NAMES.get(call.api, call.api)} {_short(request)}")
        rule = self.faults.pick(call.api, peer.wire.member, self.loop.now, request)
        if rule is None:
            return self._handle(call)
        self.faults.seen(rule, wire.NAMES.get(call.api, str(call.api)), peer.wire.member)
        if rule.action == "error":
            return self.reply(call, refusal(call.api, request, int(rule.value)))
        if rule.action == "late":
            self.loop.after(rule.value, self._handle_if_there, call)
        elif rule.action == "cut":
            peer.wire.cut()
        elif rule.action == "dropped":
            self.hanging.append(peer)  # no request behind this one is looked at
        else:
            call.rule = rule
            self._handle(call)
        return None

    def _handle_if_there(self, call: Call) -> None:
        self._handle(call)  # a broker carries out what it has read, whether or not the client is still there

    def _handle(self, call: Call) -> None:
        answer = requests.HANDLERS[call.api](self, call)
        if answer is not None:
            self.reply(call, answer)

    def reply(self, call: Call, answer: dict[str, Any]) -> None:
        if call.answered:
            return
        call.answered = True
        rule = call.rule
        data = wire.encode(call.kind, call.correlation, answer)
        if rule is not None and rule.action == "lost":
            call.peer.wire.cut()
        elif rule is not None and rule.action == "late-answer":
            self.loop.after(rule.value, call.peer.answer, data)
        elif rule is not None and rule.action == "kill":
            self.kill(call.peer.wire.member)
        else:
            call.peer.answer(data)

    def kill(self, member: str) -> None:
        """Replaced by the schedule, which knows its members."""

    def silent(self, call: Call) -> None:
        """For requests without an answer."""
        call.answered = True
        call.peer.done()


def _short(request: dict[str, Any]) -> str:
    text = ", ".join(f"{name}={value}" for name, value in request.items() if name not in ("timeout", "group_protocols"))
    return text if len(text) < 160 else text[:157] + "..."
