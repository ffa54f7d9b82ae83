"""Membership of the consumer group. It fetches nothing: a consumer of its own, without a group, reads the input.

So a rebalance moves no fetch position, and partitions that stay need no new seek. The assignor is our own because the
client's sticky one does not work: partitions stay where their state is, a new member gets as few as possible.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata

from streamer.errors import ConfigurationError
from streamer.kafka.client import Connection, KafkaError, close
from streamer.kafka.siblings import GroupState, describe
from streamer.kafka.topics import InputTopic
from streamer.settings import Settings

_VERSION = 0


@dataclass(frozen=True, slots=True)
class Ownership:
    """What a commit is fenced with: taken when the partitions were assigned, never refreshed."""

    generation: int
    member_id: str
    partitions: frozenset[int]
    instance: str | None = None
    """Of a static member"""

    @property
    def valid(self) -> bool:
        return self.generation > 0 and self.member_id != ""


def balance(partitions: Iterable[int], owned: Mapping[str, Iterable[int]]) -> dict[str, list[int]]:
    """Partitions per member: sizes differ by at most one, and as few as possible move from where they are.

    ``owned``: member -> partitions it had. A partition claimed by two members stays with the first by name."""
    members = sorted(owned)
    every = sorted(set(partitions))
    claimed: dict[int, str] = {}
    for member in members:
        for partition in sorted(set(owned[member])):
            if partition in every:
                claimed.setdefault(partition, member)
    kept: dict[str, list[int]] = {member: [] for member in members}
    for partition, member in sorted(claimed.items()):
        kept[member].append(partition)
    low, extra = divmod(len(every), len(members))
    # members with most keep the larger shares, so that fewer partitions move
    by_size = sorted(members, key=lambda member: (-len(kept[member]), member))
    quota = {member: low + (1 if rank < extra else 0) for rank, member in enumerate(by_size)}
    result = {member: kept[member][: quota[member]] for member in members}
    taken = {partition for parts in result.values() for partition in parts}
    free = [partition for partition in every if partition not in taken]
    for member in members:
        while len(result[member]) < quota[member]:
            result[member].append(free.pop(0))
    return {member: sorted(parts) for member, parts in result.items()}


def sticky_assignor(
    owned: Callable[[], Iterable[int]], on_foreign: Callable[[], None]
) -> type[AbstractPartitionAssignor]:
    """An assignor class for one process: aiokafka takes classes, and calls it once per join. ``on_foreign``: told when the
    partitions were not shared out by an assignor of ours. A broker does that when a KIP-848 member is in the group; it
    sends no user data, ours sends some, if empty."""

    class StickyAssignor(AbstractPartitionAssignor):
        name = "streamer-sticky"

        @classmethod
        def assign(
            cls, cluster: Any, members: Mapping[str, ConsumerProtocolMemberMetadata]
        ) -> dict[str, ConsumerProtocolMemberAssignment]:
            topics = sorted({topic for metadata in members.values() for topic in metadata.subscription})
            claims = {member: _parse_owned(metadata.user_data) for member, metadata in members.items()}
            assigned: dict[str, list[tuple[str, list[int]]]] = {member: [] for member in members}
            for topic in topics:
                partitions = cluster.partitions_for_topic(topic) or set()
                interested = {m: claims[m] for m, metadata in members.items() if topic in metadata.subscription}
                for member, parts in balance(partitions, interested).items():
                    assigned[member].append((topic, parts))
            return {
                member: ConsumerProtocolMemberAssignment(_VERSION, parts, b"") for member, parts in assigned.items()
            }

        @classmethod
        def metadata(cls, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
            return ConsumerProtocolMemberMetadata(_VERSION, list(topics), _format_owned(owned()))

        @classmethod
        def on_assignment(cls, assignment: ConsumerProtocolMemberAssignment) -> None:
            if assignment.user_data is None:
                on_foreign()

    return StickyAssignor


def _format_owned(partitions: Iterable[int]) -> bytes:
    parts = sorted(partitions)
    return struct.pack(f">{len(parts)}i", *parts)


def _parse_owned(data: bytes | None) -> list[int]:
    if not data or len(data) % 4:
        return []
    return list(struct.unpack(f">{len(data) // 4}i", data))


class Group(ConsumerRebalanceListener):
    """Joins the group and tells when partitions come and go.

    ``on_revoked`` is awaited before the group goes on (heartbeats run meanwhile); it drains the open epoch. What either
    callback raises is kept for ``check``, since aiokafka only logs it."""

    def __init__(
        self,
        connection: Connection,
        settings: Settings,
        topic: InputTopic,
        *,
        instance: str,
        on_revoked: Callable[[], Awaitable[None]],
        on_assigned: Callable[[Ownership], None],
        owned: Callable[[], Iterable[int]],
    ) -> None:
        kafka = settings.kafka
        self._connection = connection
        self._topic = topic.name
        self._name = kafka.group
        self.partitions = len(topic.partitions)
        """Of the input"""
        self.assignments = 0
        """How often the group has given us partitions, if none"""
        self._instance = instance if kafka.static_membership else None
        self._on_revoked = on_revoked
        self._on_assigned = on_assigned
        self._error: BaseException | None = None
        self._consumer = connection.consumer(
            group_id=kafka.group,
            group_instance_id=self._instance,
            auto_offset_reset="earliest",
            partition_assignment_strategy=[sticky_assignor(owned, self._on_foreign)],
            session_timeout_ms=kafka.session_timeout_ms,
            heartbeat_interval_ms=kafka.heartbeat_interval_ms,
            rebalance_timeout_ms=kafka.rebalance_timeout_ms,
            max_poll_interval_ms=2**31 - 1,  # this consumer is never polled; the loop's own health is watched elsewhere
            isolation_level="read_committed",
        )

    async def start(self) -> None:
        """Connects; partitions come when the group gives them. That may take as long as the session of a member that died:
        whoever waited for it with the patience of a connection would give up, and leave one more dead member behind."""
        await self._connection.started(self._consumer)
        self._consumer.subscribe([self._topic], listener=self)

    async def stop(self) -> None:
        """Leaves the group (static members stay until their session ends). Drain before."""
        await close(self._consumer)

    def check(self) -> None:
        """Raises what a callback raised, why the group cannot be joined, or that the input is not what it was."""
        if self._error is not None:
            raise self._connection.explain(self._error, "group membership") from self._error
        try:
            self._consumer.raise_errors()
        except KafkaError as error:
            raise self._connection.explain(error, "joining the group") from error
        known = self._consumer.client.cluster.partitions_for_topic(self._topic)
        if known is not None and len(known) > self.partitions:
            raise ConfigurationError(
                f"input topic {self._topic!r} gained partitions ({self.partitions} at start, {len(known)} now): new events "
                "of a stream may lie apart from its state. Give a new kafka.group, output.topic and dead_letter.topic; the "
                "old ones have the old count."
            )

    async def described(self) -> GroupState | None:
        """Its members and what each has; None when this broker does not tell. After the first assignment. Raises
        KafkaSilentError when nobody answers."""
        _, member_id = self._consumer.membership()
        try:
            return await describe(self._consumer.client, self._name, self._topic, member_id)
        except (KafkaError, TimeoutError, OSError) as error:
            raise self._connection.explain(error, "asking who is in the group") from error

    async def committed(self, partitions: Iterable[int]) -> dict[int, int | None]:
        """Committed offsets of the group, None where there is none."""
        result: dict[int, int | None] = {}
        for partition in partitions:
            result[partition] = await self._consumer.committed(TopicPartition(self._topic, partition))
        return result

    async def commit(self, positions: Mapping[int, int]) -> None:
        """Plain offset commit with the group's generation (delivery ``ephemeral``)."""
        await self._consumer.commit(
            {TopicPartition(self._topic, partition): position for partition, position in positions.items()}
        )

    def _on_foreign(self) -> None:
        self._error = self._error or kafka_errors.InconsistentGroupProtocolError()

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        try:
            await self._on_revoked()
        except BaseException as error:
            self._error = self._error or error
            raise

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        # first line: a later reading could already belong to the next generation
        generation, member_id = self._consumer.membership()
        ownership = Ownership(generation, member_id, frozenset(tp.partition for tp in assigned), self._instance)
        try:
            self._consumer.pause(*assigned)
            for tp in assigned:
                self._consumer.seek(tp, 0)  # paused for good: no position is looked up, nothing is fetched
            self._on_assigned(ownership)
            self.assignments += 1
        except BaseException as error:
            self._error = self._error or error
            raise
