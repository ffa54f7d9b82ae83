"""What a broker does with each request. Handlers return the answer's fields, or None and answer later."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.simulation import wire
from tests.simulation.logs import INVALID_PRODUCER_EPOCH, INVALID_TXN_STATE, NONE, OFFSET_OUT_OF_RANGE, Log

if TYPE_CHECKING:
    from tests.simulation.broker import Call, Cluster

UNKNOWN_TOPIC, LEADER_NOT_AVAILABLE, NOT_LEADER = 3, 5, 6
LOADING, NOT_COORDINATOR, NOT_ENOUGH_REPLICAS = 14, 16, 19
TOPIC_EXISTS, INVALID_PARTITIONS, INVALID_REPLICATION = 36, 37, 38
CONCURRENT = 51
GROUP, TRANSACTION = 0, 1

DEFAULTS = {
    "cleanup.policy": "delete", "retention.ms": "604800000", "retention.bytes": "-1", "max.message.bytes": "1048588",
    "segment.ms": "604800000", "segment.bytes": "1073741824", "min.cleanable.dirty.ratio": "0.5",
    "max.compaction.lag.ms": "9223372036854775807", "delete.retention.ms": "86400000", "message.timestamp.type": "CreateTime",
    "message.timestamp.after.max.ms": "3600000", "message.timestamp.before.max.ms": "9223372036854775807",
    "compression.type": "producer",
}  # fmt: skip


def api_versions(cluster: Cluster, call: Call) -> dict[str, Any]:
    rows = [
        {"api_key": key, "min_version": low, "max_version": high} for key, (low, high) in sorted(wire.RANGES.items())
    ]
    return {"api_versions": rows}


def metadata(cluster: Cluster, call: Call) -> dict[str, Any]:
    asked = call.request["topics"]
    if asked is None:
        names = list(cluster.topics)
    else:
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
                {"partition": part["partition"], "error_code": code, "offset": base, "timestamp": -1, "log_start_offset": start}
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
                "partition": partition, "error_code": code, "highwater_offset": -1, "last_stable_offset": -1,
                "log_start_offset": -1, "preferred_read_replica": -1, "message_set": b"",
            }  # fmt: skip
            if log is not None and not log.start <= offset <= log.end:
                row["error_code"] = OFFSET_OUT_OF_RANGE
            elif log is not None:
                data, aborted = log.read(offset, max(min(limit, room), 0), committed=self.committed) if room > 0 else (b"", [])
                room -= len(data)
                row |= {
                    "highwater_offset": log.end, "last_stable_offset": log.stable, "log_start_offset": log.start,
                    "message_set": data,
                    "aborted_transactions": [{"producer_id": p, "first_offset": f} for p, f in aborted],
                }  # fmt: skip
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
            parts.append({"partition": part["partition"], "error_code": code, "timestamp": stamp, "offset": offset, "leader_epoch": 0})
        rows.append({"topic": topic["topic"], "partitions": parts})
    return {"topics": rows}


# coordinators


def _coordinates(cluster: Cluster, call: Call, kind: int, key: str) -> int:
    if cluster.coordinator(kind, key) != call.node:
        return NOT_COORDINATOR
    return LOADING if cluster.loading_until.get((kind, key), 0.0) > cluster.loop.now else NONE


def find_coordinator(cluster: Cluster, call: Call) -> dict[str, Any]:
    node = cluster.nodes[cluster.coordinator(call.request.get("coordinator_type", GROUP), call.request["coordinator_key"])]
    return {"coordinator_id": node.id, "host": node.address[0], "port": node.address[1]}


def join(cluster: Cluster, call: Call) -> dict[str, Any] | None:
    code = _coordinates(cluster, call, GROUP, call.request["group"])
    if code != NONE:
        return {"error_code": code, "generation_id": -1, "group_protocol": "", "leader_id": "", "member_id": call.request["member_id"]}
    cluster.groups.join(call.request, call.client, lambda answer: cluster.reply(call, answer))
    return None


def sync(cluster: Cluster, call: Call) -> dict[str, Any] | None:
    code = _coordinates(cluster, call, GROUP, call.request["group"])
    if code != NONE:
        return {"error_code": code, "member_assignment": b""}
    cluster.groups.sync(call.request, lambda answer: cluster.reply(call, answer))
    return None


def heartbeat(cluster: Cluster, call: Call) -> dict[str, Any]:
    code = _coordinates(cluster, call, GROUP, call.request["group"])
    return {"error_code": code} if code != NONE else cluster.groups.heartbeat(call.request)


def leave(cluster: Cluster, call: Call) -> dict[str, Any]:
    code = _coordinates(cluster, call, GROUP, call.request["group"])
    return {"error_code": code} if code != NONE else cluster.groups.leave(call.request)


def offset_commit(cluster: Cluster, call: Call) -> dict[str, Any]:
    request = call.request
    code = _coordinates(cluster, call, GROUP, request["consumer_group"])
    if code == NONE:
        who = {
            "group": request["consumer_group"],
            "generation": request["consumer_group_generation_id"],
            "member": request["consumer_id"],
            "instance": None,
        }
        code = cluster.groups.may_commit(who, transactional=False)
    rows, offsets = _offsets(cluster, request["topics"], code, "partitions")
    if code == NONE:
        cluster.groups.commit(request["consumer_group"], offsets)
    return {"topics": rows}


def _offsets(
    cluster: Cluster, topics: list[dict[str, Any]], code: int, name: str
) -> tuple[list[dict[str, Any]], dict[tuple[str, int], int]]:
    rows, offsets = [], {}
    for topic in topics:
        parts = []
        for part in topic["partitions"]:
            there = cluster.log(topic["topic"], part["partition"]) is not None
            if there:
                offsets[topic["topic"], part["partition"]] = part["offset"]
            parts.append({"partition": part["partition"], "error_code": code if there or code != NONE else UNKNOWN_TOPIC})
        rows.append({"topic": topic["topic"], name: parts})
    return rows, offsets


def txn_offset_commit(cluster: Cluster, call: Call) -> dict[str, Any]:
    request = call.request
    group, producer, epoch = request["group_id"], request["producer_id"], request["producer_epoch"]
    code = _coordinates(cluster, call, GROUP, group)
    if code == NONE:
        who = {
            "group": group,
            "generation": request.get("generation_id", -1),
            "member": request.get("member_id", ""),
            "instance": request.get("group_instance_id"),
        }
        code = cluster.groups.may_commit(who, transactional=True)
    if code == NONE:
        found = cluster.transactions.known.get(request["transactional_id"])
        if found is None or found.producer != producer:
            code = 49
        elif found.epoch != epoch:
            code = INVALID_PRODUCER_EPOCH
        elif found.state != "ongoing" or group not in found.groups:
            code = INVALID_TXN_STATE
    rows, offsets = _offsets(cluster, request["topics"], code, "partition_errors")
    if code == NONE:
        cluster.groups.commit(group, offsets, producer)
    return {"errors": rows}


def offset_fetch(cluster: Cluster, call: Call) -> dict[str, Any]:
    name, topics = call.request["consumer_group"], call.request["topics"]
    code = _coordinates(cluster, call, GROUP, name)
    known = cluster.groups.known.get(name)
    offsets = known.offsets if known is not None else {}
    if topics is None:
        wanted: dict[str, list[int]] = {}
        for topic, partition in offsets:
            wanted.setdefault(topic, []).append(partition)
        topics = [{"topic": topic, "partitions": parts} for topic, parts in wanted.items()]
    if code != NONE:
        return {"topics": [], "error_code": code} if not topics else {
            "topics": [_fetched(each, {}, code) for each in topics], "error_code": code
        }  # fmt: skip
    return {"topics": [_fetched(each, offsets, NONE) for each in topics], "error_code": NONE}


def _fetched(topic: dict[str, Any], offsets: dict[tuple[str, int], int], code: int) -> dict[str, Any]:
    name = topic["topic"]
    return {
        "topic": name,
        "partitions": [
            {"partition": part, "offset": offsets.get((name, part), -1), "metadata": "", "error_code": code}
            for part in topic["partitions"]
        ],
    }


def init_producer_id(cluster: Cluster, call: Call) -> dict[str, Any]:
    name = call.request["transactional_id"]
    code = NONE if name is None else _coordinates(cluster, call, TRANSACTION, name)
    producer, epoch = -1, -1
    if code == NONE:
        code, producer, epoch = cluster.transactions.init(name, call.request["transaction_timeout_ms"])
    return {"error_code": code, "producer_id": producer, "producer_epoch": epoch}


def add_partitions(cluster: Cluster, call: Call) -> dict[str, Any]:
    request = call.request
    places = [(topic["topic"], part) for topic in request["topics"] for part in topic["partitions"]]
    code = _coordinates(cluster, call, TRANSACTION, request["transactional_id"])
    if code == NONE:
        codes = cluster.transactions.add(
            request["transactional_id"], request["producer_id"], request["producer_epoch"], places
        )
    else:
        codes = dict.fromkeys(places, code)
    rows = [
        {
            "topic": topic["topic"],
            "partition_errors": [{"partition": p, "error_code": codes[topic["topic"], p]} for p in topic["partitions"]],
        }
        for topic in request["topics"]
    ]
    return {"errors": rows}


def add_offsets(cluster: Cluster, call: Call) -> dict[str, Any]:
    request = call.request
    code = _coordinates(cluster, call, TRANSACTION, request["transactional_id"])
    if code == NONE:
        code = cluster.transactions.add_group(
            request["transactional_id"], request["producer_id"], request["producer_epoch"], request["group_id"]
        )
    return {"error_code": code}


def end_txn(cluster: Cluster, call: Call) -> dict[str, Any]:
    request = call.request
    code = _coordinates(cluster, call, TRANSACTION, request["transactional_id"])
    if code == NONE:
        code = cluster.transactions.end(
            request["transactional_id"],
            request["producer_id"],
            request["producer_epoch"],
            commit=request["transaction_result"],
        )
    return {"error_code": code}


# administration


def create_topics(cluster: Cluster, call: Call) -> dict[str, Any]:
    rows = []
    for wanted in call.request["create_topic_requests"]:
        name, code = wanted["topic"], NONE
        if name in cluster.topics:
            code = TOPIC_EXISTS
        elif wanted["replication_factor"] > len(cluster.nodes):
            code = INVALID_REPLICATION
        elif not call.request.get("validate_only"):
            config = {each["config_key"]: each["config_value"] for each in wanted["configs"] or ()}
            delay = cluster.loop.rng.uniform(0.0, 0.02)
            cluster.create(name, max(wanted["num_partitions"], 1), config, led_after_s=delay)
        rows.append({"topic": name, "error_code": code, "error_message": None})
    return {"topic_errors": rows}


def delete_topics(cluster: Cluster, call: Call) -> dict[str, Any]:
    rows = []
    for name in call.request["topics"]:
        code = NONE if name in cluster.topics else UNKNOWN_TOPIC
        if code == NONE:
            cluster.delete(name)
        rows.append({"topic": name, "error_code": code})
    return {"topic_error_codes": rows}


def create_partitions(cluster: Cluster, call: Call) -> dict[str, Any]:
    rows = []
    for wanted in call.request["topic_partitions"]:
        name = wanted["topic"]
        total = wanted["new_partitions"]
        count = total["count"] if isinstance(total, dict) else total[0] if isinstance(total, list | tuple) else total
        code = NONE if name in cluster.topics else UNKNOWN_TOPIC
        if code == NONE and count <= len(cluster.topics[name].logs):
            code = INVALID_PARTITIONS
        if code == NONE:
            cluster.add_partitions(name, count)
        rows.append({"topic": name, "error_code": code, "error_message": None})
    return {"topic_errors": rows}


def delete_records(cluster: Cluster, call: Call) -> dict[str, Any]:
    rows = []
    for topic in call.request["topics"]:
        parts = []
        for part in topic["partitions"]:
            code, log = _led(cluster, call, topic["name"], part["partition_index"])
            if log is not None and part["offset"] > log.end:
                code = OFFSET_OUT_OF_RANGE
            elif log is not None:
                log.delete_before(log.end if part["offset"] < 0 else part["offset"])
            low = -1 if log is None or code != NONE else log.start
            parts.append({"partition_index": part["partition_index"], "low_watermark": low, "error_code": code})
        rows.append({"name": topic["name"], "partitions": parts})
    return {"topics": rows}


def describe_configs(cluster: Cluster, call: Call) -> dict[str, Any]:
    rows = []
    for wanted in call.request["resources"]:
        topic = cluster.topics.get(wanted["resource_name"])
        entries = {} if topic is None else {**DEFAULTS, **topic.config}
        rows.append(
            {
                "error_code": UNKNOWN_TOPIC if topic is None else NONE,
                "error_message": None,
                "resource_type": wanted["resource_type"],
                "resource_name": wanted["resource_name"],
                "config_entries": [{"config_names": name, "config_value": value} for name, value in entries.items()],
            }
        )
    return {"resources": rows}


def describe_groups(cluster: Cluster, call: Call) -> dict[str, Any]:
    rows = []
    for name in call.request["groups"]:
        group = cluster.groups.known.get(name)
        members = [
            {"member_id": m.id, "client_id": m.client, "client_host": "/127.0.0.1", "member_metadata": m.metadata, "member_assignment": m.assignment}
            for m in (group.members.values() if group else ())
        ]  # fmt: skip
        rows.append(
            {
                "error_code": _coordinates(cluster, call, GROUP, name),
                "group": name,
                "state": group.state if group else "Dead",
                "protocol_type": "consumer" if members else "",
                "protocol": (group.protocol or "") if group else "",
                "members": members,
            }
        )
    return {"groups": rows}


def list_groups(cluster: Cluster, call: Call) -> dict[str, Any]:
    groups = [group for group in cluster.groups.known.values() if cluster.coordinator(GROUP, group.name) == call.node]
    return {"groups": [{"group": group.name, "protocol_type": "consumer"} for group in groups]}


HANDLERS: dict[int, Callable[[Cluster, Call], dict[str, Any] | None]] = {
    0: produce, 1: fetch, 2: list_offsets, 3: metadata, 8: offset_commit, 9: offset_fetch, 10: find_coordinator, 11: join,
    12: heartbeat, 13: leave, 14: sync, 15: describe_groups, 16: list_groups, 18: api_versions, 19: create_topics,
    20: delete_topics, 21: delete_records, 22: init_producer_id, 24: add_partitions, 25: add_offsets, 26: end_txn,
    28: txn_offset_commit, 32: describe_configs, 37: create_partitions,
}  # fmt: skip
