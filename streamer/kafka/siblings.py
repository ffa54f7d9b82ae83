"""Who else is in the group, and which partitions each member has: what the group's coordinator says."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from aiokafka import errors as kafka_errors
from aiokafka.client import CoordinationType
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.protocol.admin import DescribeGroupsRequest

_LOOK_S = 5.0
_ID_LENGTH = len("-00000000-0000-0000-0000-000000000000")
"""The broker makes a member's id of its instance, or else of its client id, and of a random id."""
_SHORT = len("-00000000")
_MOVING = ("PreparingRebalance", "CompletingRebalance")


@dataclass(frozen=True, slots=True)
class GroupMember:
    """``name``: its instance where it is a static member, else its client id and some of its random id."""

    name: str
    host: str
    partitions: tuple[int, ...]
    here: bool


@dataclass(frozen=True, slots=True)
class GroupState:
    """``moving``: partitions are being shared out anew, and no member has any."""

    members: tuple[GroupMember, ...]
    moving: bool


async def describe(client: Any, group: str, topic: str, member_id: str) -> GroupState | None:
    """The group as its coordinator sees it; ``member_id``: of this member. None when this broker does not tell. Two round trips
    on connections that no fetch and no join holds up. Raises KafkaError, TimeoutError or OSError when nobody answers."""
    if client.get_random_node() is None:
        raise kafka_errors.NodeNotReadyError("no broker is known")
    try:
        async with asyncio.timeout(_LOOK_S):
            node = await client.coordinator_lookup(CoordinationType.GROUP, group)
            answer = await client.send(node, DescribeGroupsRequest([group]))
        ((code, _, state, _, _, members, *_),) = answer.groups
        if code:
            return None
        found = [_member(member, topic, member_id) for member in members]
    except (NotImplementedError, ValueError, kafka_errors.IncompatibleBrokerVersion):
        return None
    return GroupState(tuple(found), state in _MOVING)


def _member(described: Any, topic: str, own_id: str) -> GroupMember:
    member_id, client_id, host, _, assignment = described
    shared: list[tuple[str, list[int]]] = []
    if assignment:
        shared = ConsumerProtocolMemberAssignment.decode(assignment).assignment
    partitions = sorted(partition for name, parts in shared if name == topic for partition in parts)
    return GroupMember(_name(member_id, client_id), host.removeprefix("/"), tuple(partitions), member_id == own_id)


def _name(member_id: str, client_id: str) -> str:
    instance = member_id[:-_ID_LENGTH]
    return instance if instance not in ("", client_id) else member_id[: len(instance) + _SHORT]
