"""What a broker does with requests about topics, their settings, and groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.simulation.logs import NONE, OFFSET_OUT_OF_RANGE
from tests.simulation.requests_coordination import coordinates

if TYPE_CHECKING:
    from tests.simulation.broker import Call, Cluster

GROUP = 0
UNKNOWN_TOPIC, NOT_LEADER, TOPIC_EXISTS, INVALID_PARTITIONS, INVALID_REPLICATION = 3, 6, 36, 37, 38
DEFAULTS = {
    "cleanup.policy": "delete", "retention.ms": "604800000", "retention.bytes": "-1", "max.message.bytes": "1048588",
    "segment.ms": "604800000", "segment.bytes": "1073741824", "min.cleanable.dirty.ratio": "0.5",
    "max.compaction.lag.ms": "9223372036854775807", "delete.retention.ms": "86400000", "message.timestamp.type": "CreateTime",
    "message.timestamp.after.max.ms": "3600000", "message.timestamp.before.max.ms": "9223372036854775807",
    "compression.type": "producer",
}  # fmt: skip


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
            log = cluster.log(topic["name"], part["partition_index"])
            code = NONE if log is not None else UNKNOWN_TOPIC
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
                "error_code": coordinates(cluster, call, GROUP, name),
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
