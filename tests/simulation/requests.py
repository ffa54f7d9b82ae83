"""What a broker does with each request. Handlers return the answer's fields, or None and answer later."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.simulation import requests_admin as administration
from tests.simulation import requests_coordination as coordination
from tests.simulation import wire
from tests.simulation.logs import NONE, OFFSET_OUT_OF_RANGE, Log

if TYPE_CHECKING:
    from tests.simulation.broker import Call, Cluster

UNKNOWN_TOPIC, LEADER_NOT_AVAILABLE, NOT_LEADER = 3, 5, 6
LOADING, NOT_COORDINATOR, NOT_ENOUGH_REPLICAS = 14, 16, 19
TOPIC_EXISTS, INVALID_PARTITIONS, INVALID_REPLICATION = 36, 37, 38
CONCURRENT = 51
GROUP, TRANSACTION = 0, 1


def api_versions(cluster: Cluster, call: Call) -> dict[str, Any]:
    rows = [
        {"api_key": key, "min_version": low, "max_version": high} for key, (low, high) in sorted(wire.RANGES.items())
    ]
    return {"api_versions": rows}


def metadata(cluster: Cluster, call: Call) -> dict[str, Any]:
    asked = cluster.topics if call.request["topics"] is None else call.request["topics"]
    names = [each["topic"] if isinstance(each, dict) else each for each in asked]
    nodes = [node for node in cluster.nodes.values() if node.up]
    return {
        "brokers": [{"node_id": n.id, "host": n.address[0], "port": n.address[1], "rack": None} for n in nodes],
        "cluster_id": "simulated",
        "controller_id": nodes[0].id if nodes else -1,
        "topics": [_topic(cluster, name) for name in names],
    }


def _topic(cluster: Cluster, name: str) -> dict[str, Any]:
    topic = cluster.topics.get(name)
    if topic is None:
        return {"error_code": UNKNOWN_TOPIC, "topic": name, "partitions": [], "authorized_operations": -(2**31)}
    replicas = sorted(cluster.nodes)
    led = cluster.loop.now >= topic.led_from_s
    high, low = topic.id.int >> 64, topic.id.int & (2**64 - 1)
    partitions = [
        {
            "error_code": NONE if led else LEADER_NOT_AVAILABLE,
            "partition": log.partition,
            "leader": cluster.leader(name, log.partition) if led else -1,
            "leader_epoch": 0,
            "replicas": replicas,
            "isr": replicas,
        }
        for log in topic.logs
    ]
    return {
        "error_code": NONE,
        "topic": name,
        "id_high": high - (1 << 64 if high >> 63 else 0),
        "id_low": low - (1 << 64 if low >> 63 else 0),
        "is_internal": False,
        "partitions": partitions,
        "authorized_operations": -(2**31),
    }


def _led(cluster: Cluster, call: Call, topic: str, partition: int) -> tuple[int, Log | None]:
    log = cluster.log(topic, partition)
    if log is None:
        return UNKNOWN_TOPIC, None
    if cluster.leader(topic, partition) != call.node or cluster.loop.now < cluster.topics[topic].led_from_s:
        return NOT_LEADER, None
    return NONE, log


def produce(cluster: Cluster, call: Call) -> dict[str, Any] | None:
    request, rows = call.request, []
    name = request.get("transactional_id")
    for topic in request["topics"]:
        parts = []
        for part in topic["partitions"]:
            code, log = _led(cluster, call, topic["topic"], part["partition"])
            base, start = -1, -1
            if log is not None:
                code, base = _append(cluster, name, log, bytes(part["messages"]))
                start = log.start if code == NONE else -1
            parts.append(
                {
                    "partition": part["partition"],
                    "error_code": code,
                    "offset": base,
                    "timestamp": -1,
                    "log_start_offset": start,
                }
            )
        rows.append({"topic": topic["topic"], "partitions": parts})
    if request["required_acks"] == 0:
        cluster.silent(call)
        return None
    return {"topics": rows}


def _append(cluster: Cluster, name: str | None, log: Log, raw: bytes) -> tuple[int, int]:
    from tests.simulation.logs import StoredBatch

    batch = StoredBatch.parse(raw)
    if batch.transactional:
        known = log.producers.get(batch.producer)
        ongoing = known is not None and known.started is not None and known.epoch == batch.epoch
        if not ongoing:
            place = (log.topic, log.partition)
            code = cluster.transactions.verify(name, batch.producer, batch.epoch, place)
            if code == CONCURRENT:
                return NOT_ENOUGH_REPLICAS, -1
            if code != NONE:
                return code, -1
    return log.append(raw, cluster.now_ms())


def fetch(cluster: Cluster, call: Call) -> dict[str, Any] | None:
    waiting = _Fetch(cluster, call)
    return waiting.try_now()


class _Fetch:
    """Answers when there is enough, or something is wrong, or the time is over."""

    def __init__(self, cluster: Cluster, call: Call) -> None:
        self.cluster, self.call = cluster, call
        self.committed = call.request.get("isolation_level", 0) == 1
        self.wanted = [
            (topic["topic"], part["partition"], part.get("fetch_offset", part.get("offset")), part["max_bytes"])
            for topic in call.request["topics"]
            for part in topic["partitions"]
        ]
        self.logs: list[Log] = []

    def try_now(self) -> dict[str, Any] | None:
        if self._enough() or call_wait(self.call) <= 0:
            return self._answer()
        for topic, partition, _, _ in self.wanted:
            log = self.cluster.log(topic, partition)
            if log is not None:
                self.logs.append(log)
                log.waiting.append(self._changed)
        self.timer = self.cluster.loop.after(call_wait(self.call), self._finish)
        return None

    def _enough(self) -> bool:
        size = 0
        for topic, partition, offset, _ in self.wanted:
            code, log = _led(self.cluster, self.call, topic, partition)
            if log is None or code != NONE or not log.start <= offset <= log.end:
                return True
            size += log.available(offset, committed=self.committed)
        return size >= max(self.call.request["min_bytes"], 1)

    def _changed(self) -> None:
        if self.call.answered:
            return
        if self._enough():
            self.timer.cancel()
            self._finish()
            return
        for log in self.logs:
            if self._changed not in log.waiting:
                log.waiting.append(self._changed)

    def _finish(self) -> None:
        for log in self.logs:
            if self._changed in log.waiting:
                log.waiting.remove(self._changed)
        self.cluster.reply(self.call, self._answer())

    def _answer(self) -> dict[str, Any]:
        by_topic: dict[str, list[dict[str, Any]]] = {}
        room = self.call.request.get("max_bytes", 1 << 30)
        for topic, partition, offset, limit in self.wanted:
            code, log = _led(self.cluster, self.call, topic, partition)
            row: dict[str, Any] = {
                "partition": partition,
                "error_code": code,
                "highwater_offset": -1,
                "last_stable_offset": -1,
                "log_start_offset": -1,
                "preferred_read_replica": -1,
                "message_set": b"",
            }
            if log is not None and not log.start <= offset <= log.end:
                row["error_code"] = OFFSET_OUT_OF_RANGE
            elif log is not None:
                data, aborted = (
                    log.read(offset, max(min(limit, room), 0), committed=self.committed) if room > 0 else (b"", [])
                )
                room -= len(data)
                row |= {
                    "highwater_offset": log.end,
                    "last_stable_offset": log.stable,
                    "log_start_offset": log.start,
                    "message_set": data,
                    "aborted_transactions": [{"producer_id": p, "first_offset": f} for p, f in aborted],
                }
            by_topic.setdefault(topic, []).append(row)
        return {"topics": [{"topics": t, "topic": t, "partitions": rows} for t, rows in by_topic.items()]}


def call_wait(call: Call) -> float:
    return float(call.request["max_wait_time"]) / 1000


def list_offsets(cluster: Cluster, call: Call) -> dict[str, Any]:
    committed = call.request.get("isolation_level", 0) == 1
    rows = []
    for topic in call.request["topics"]:
        parts = []
        for part in topic["partitions"]:
            code, log = _led(cluster, call, topic["topic"], part["partition"])
            stamp, offset = -1, -1
            if log is not None and part["timestamp"] == -1:
                offset = log.stable if committed else log.end
            elif log is not None and part["timestamp"] == -2:
                offset = log.start
            elif log is not None:
                stamp, offset = log.at_time(part["timestamp"], committed=committed)
            parts.append(
                {
                    "partition": part["partition"],
                    "error_code": code,
                    "timestamp": stamp,
                    "offset": offset,
                    "leader_epoch": 0,
                }
            )
        rows.append({"topic": topic["topic"], "partitions": parts})
    return {"topics": rows}


HANDLERS: dict[int, Callable[[Cluster, Call], dict[str, Any] | None]] = {
    0: produce,
    1: fetch,
    2: list_offsets,
    3: metadata,
    8: coordination.offset_commit,
    9: coordination.offset_fetch,
    10: coordination.find_coordinator,
    11: coordination.join,
    12: coordination.heartbeat,
    13: coordination.leave,
    14: coordination.sync,
    15: administration.describe_groups,
    16: administration.list_groups,
    18: api_versions,
    19: administration.create_topics,
    20: administration.delete_topics,
    21: administration.delete_records,
    22: coordination.init_producer_id,
    24: coordination.add_partitions,
    25: coordination.add_offsets,
    26: coordination.end_txn,
    28: coordination.txn_offset_commit,
    32: administration.describe_configs,
    37: administration.create_partitions,
}
