"""What this client may do to a topic, and what time the cluster has: asked for, without a side effect."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

from aiokafka import errors as kafka_errors
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)

from streamer.kafka.requests import TopicMetadata

_BITS = {"READ": 3, "WRITE": 4, "CREATE": 5, "DESCRIBE": 8, "DESCRIBE_CONFIGS": 10}
"""Kafka's numbers of operations"""
_UNKNOWN = -(2**31)
"""A broker that does not tell."""


_REPLICA = CompactArray(
    ("node_id", Int32),
    ("log_end_offset", Int64),
    ("last_fetch_ms", Int64),
    ("last_caught_up_ms", Int64),
    ("tags", TaggedFields),
)


class _QuorumResponse(Response):
    API_KEY = 55
    API_VERSION = 1
    SCHEMA = Schema(
        ("error_code", Int16),
        (
            "topics",
            CompactArray(
                ("topic", CompactString("utf-8")),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("error_code", Int16),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("high_watermark", Int64),
                        ("voters", _REPLICA),
                        ("observers", _REPLICA),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _QuorumStruct(RequestStruct):
    API_KEY = 55
    API_VERSION = 1
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _QuorumResponse
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(
                ("topic", CompactString("utf-8")),
                ("partitions", CompactArray(("partition", Int32), ("tags", TaggedFields))),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _Quorum(Request[_QuorumStruct]):
    """DescribeQuorum: the controller tells when each member of its quorum last fetched, and of itself: now."""

    API_KEY: ClassVar[int] = 55

    def build(self, request_struct_class: type[_QuorumStruct]) -> _QuorumStruct:
        return request_struct_class([("__cluster_metadata", [(0, {})], {})], {})


async def missing_rights(client: Any, topic: str, wanted: Collection[str]) -> list[str]:
    """Of the rights ``wanted`` on an existing topic those that this client does not have. Empty where nobody tells."""
    try:
        answer = await client.send(client.get_random_node(), TopicMetadata(topic, rights=True))
    except NotImplementedError:  # a broker before 2.8
        return []
    for code, *_, operations, _tags in answer.topics:
        if code == 0 and operations != _UNKNOWN:
            return [right for right in wanted if not operations >> _BITS[right] & 1]
    return []


async def cluster_time_ms(client: Any) -> int | None:
    """What time it is for the controller, in ms since 1970. None where nobody tells: without the right to DESCRIBE the
    cluster, on brokers before 3.3, and without KRaft. Nothing else that Kafka answers tells its present time."""
    try:
        answer = await client.send(client.get_random_node(), _Quorum())
    except (NotImplementedError, kafka_errors.KafkaError, OSError, TimeoutError):
        return None
    stamps = [
        replica[2]
        for _, partitions, _ in answer.topics
        for _, code, _, _, _, voters, observers, _ in partitions
        if code == 0
        for replica in (*voters, *observers)
    ]
    newest = max(stamps, default=-1)
    return newest if answer.error_code == 0 and newest > 0 else None
