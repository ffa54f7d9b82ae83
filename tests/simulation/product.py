"""The only file of the simulator that knows the service: when the service changes, this changes."""

from __future__ import annotations

from types import ModuleType
from typing import Any


def request_modules() -> list[ModuleType]:
    """Modules with request structures that the client does not have."""
    from streamer.kafka import requests

    return [requests]


def txn_offset_commit(
    name: str,
    group: str,
    producer: tuple[int, int],
    member: tuple[int, str, str | None],
    topic: str,
    offsets: dict[int, int],
) -> Any:
    """The service's own request, which names generation, member id and instance."""
    from streamer.kafka.requests import TxnOffsetCommit

    rows = [(partition, offset, -1, "", {}) for partition, offset in offsets.items()]
    return TxnOffsetCommit(name, group, *producer, *member, [(topic, rows, {})])


def topic_metadata(topic: str) -> Any:
    """The service's own request, which tells topic ids."""
    from streamer.kafka.requests import TopicMetadata

    return TopicMetadata(topic)
