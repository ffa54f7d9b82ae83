"""What a broker does with requests to the coordinators of groups and transactions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.simulation.logs import INVALID_PRODUCER_EPOCH, INVALID_TXN_STATE, NONE

if TYPE_CHECKING:
    from tests.simulation.broker import Call, Cluster

UNKNOWN_TOPIC, LOADING, NOT_COORDINATOR = 3, 14, 16
INVALID_PRODUCER_ID_MAPPING = 49
GROUP, TRANSACTION = 0, 1


def coordinates(cluster: Cluster, call: Call, kind: int, key: str) -> int:
    if cluster.coordinator(kind, key) != call.node:
        return NOT_COORDINATOR
    return LOADING if cluster.loading_until.get((kind, key), 0.0) > cluster.loop.now else NONE


def find_coordinator(cluster: Cluster, call: Call) -> dict[str, Any]:
    node = cluster.nodes[
        cluster.coordinator(call.request.get("coordinator_type", GROUP), call.request["coordinator_key"])
    ]
    return {"coordinator_id": node.id, "host": node.address[0], "port": node.address[1]}


def join(cluster: Cluster, call: Call) -> dict[str, Any] | None:
    code = coordinates(cluster, call, GROUP, call.request["group"])
    if code != NONE:
        return {
            "error_code": code,
            "generation_id": -1,
            "group_protocol": "",
            "leader_id": "",
            "member_id": call.request["member_id"],
        }
    cluster.groups.join(call.request, call.client, lambda answer: cluster.reply(call, answer))
    return None


def sync(cluster: Cluster, call: Call) -> dict[str, Any] | None:
    code = coordinates(cluster, call, GROUP, call.request["group"])
    if code != NONE:
        return {"error_code": code, "member_assignment": b""}
    cluster.groups.sync(call.request, lambda answer: cluster.reply(call, answer))
    return None


def heartbeat(cluster: Cluster, call: Call) -> dict[str, Any]:
    code = coordinates(cluster, call, GROUP, call.request["group"])
    return {"error_code": code} if code != NONE else cluster.groups.heartbeat(call.request)


def leave(cluster: Cluster, call: Call) -> dict[str, Any]:
    code = coordinates(cluster, call, GROUP, call.request["group"])
    return {"error_code": code} if code != NONE else cluster.groups.leave(call.request)


def offset_commit(cluster: Cluster, call: Call) -> dict[str, Any]:
    request = call.request
    code = coordinates(cluster, call, GROUP, request["consumer_group"])
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
            parts.append(
                {"partition": part["partition"], "error_code": code if there or code != NONE else UNKNOWN_TOPIC}
            )
        rows.append({"topic": topic["topic"], name: parts})
    return rows, offsets


def txn_offset_commit(cluster: Cluster, call: Call) -> dict[str, Any]:
    request = call.request
    group, producer, epoch = request["group_id"], request["producer_id"], request["producer_epoch"]
    code = coordinates(cluster, call, GROUP, group)
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
            code = INVALID_PRODUCER_ID_MAPPING
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
    code = coordinates(cluster, call, GROUP, name)
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
    code = NONE if name is None else coordinates(cluster, call, TRANSACTION, name)
    producer, epoch = -1, -1
    if code == NONE:
        code, producer, epoch = cluster.transactions.init(name, call.request["transaction_timeout_ms"])
    return {"error_code": code, "producer_id": producer, "producer_epoch": epoch}


def add_partitions(cluster: Cluster, call: Call) -> dict[str, Any]:
    request = call.request
    places = [(topic["topic"], part) for topic in request["topics"] for part in topic["partitions"]]
    code = coordinates(cluster, call, TRANSACTION, request["transactional_id"])
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
    code = coordinates(cluster, call, TRANSACTION, request["transactional_id"])
    if code == NONE:
        code = cluster.transactions.add_group(
            request["transactional_id"], request["producer_id"], request["producer_epoch"], request["group_id"]
        )
    return {"error_code": code}


def end_txn(cluster: Cluster, call: Call) -> dict[str, Any]:
    request = call.request
    code = coordinates(cluster, call, TRANSACTION, request["transactional_id"])
    if code == NONE:
        code = cluster.transactions.end(
            request["transactional_id"],
            request["producer_id"],
            request["producer_epoch"],
            commit=request["transaction_result"],
        )
    return {"error_code": code}
