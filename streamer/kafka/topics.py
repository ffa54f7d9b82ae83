"""Topics are listed, verified and created before anything is consumed; automatic creation is never relied on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from aiokafka import TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.admin import NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import CoordinationType

from streamer.errors import ConfigurationError, KafkaRefusedError, KafkaUnavailableError
from streamer.kafka.client import Connection, KafkaError, close
from streamer.kafka.explain import retriable
from streamer.kafka.identity import topic_identity
from streamer.kafka.internals import client_of
from streamer.kafka.policies import INPUT, Config, TopicNeed, config_when_created, max_message_bytes
from streamer.kafka.rights import cluster_time_ms, missing_rights

T = TypeVar("T")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class InputTopic:
    """What the service found out about its input and the topics that it writes."""

    name: str
    partitions: tuple[int, ...]
    topic_id: str
    configs: Mapping[str, Config] = field(default_factory=dict)
    """Setting that names it -> configuration, of every topic that is there"""
    missing: tuple[TopicNeed, ...] = ()
    """Those that would be created (``dry``)"""
    replicas: Mapping[str, int] = field(default_factory=dict)
    """Setting that names it -> replicas of a partition, of every topic that is there and written"""
    clock_ahead_ms: int | None = None
    """Our clock minus the cluster's; None: nobody told"""

    def max_bytes(self, what: str) -> int:
        """The largest record batch that a topic takes. ``what``: the setting that names it."""
        return max_message_bytes(self.configs.get(what, {}))


class Topics:
    """Looks at topics and creates the missing ones. Use as an async context manager."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._admin = connection.admin()

    async def __aenter__(self) -> Topics:
        await self._connection.started(self._admin)
        try:
            await self._connection.tried()
        except BaseException:
            await close(self._admin)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await close(self._admin)

    async def prepare(
        self,
        input_topic: str,
        needs: Sequence[TopicNeed],
        *,
        create: bool,
        dry: bool = False,
        plain_broker: bool = False,
        now_ms: Callable[[], int] = _now_ms,
    ) -> InputTopic:
        """Verifies the input, creates or verifies the others with the input's partition count.

        ``dry``: the cluster is only asked whether it would create them. ``plain_broker``: a broker without topic
        administration (the in-process one), where topics appear by themselves.
        Raises KafkaUnavailableError for a missing topic, ConfigurationError for one that cannot serve."""
        if plain_broker:
            return InputTopic(input_topic, await self._partitions(input_topic), "")
        found = await self._patiently(
            lambda: self._prepare(input_topic, needs, create=create, dry=dry), "checking topics"
        )
        return replace(found, clock_ahead_ms=await self._clock_ahead_ms(now_ms))

    async def _patiently(self, ask: Callable[[], Awaitable[T]], doing: str) -> T:
        """Asks again until ``connect_timeout_ms``: one broker of several may be away, and the client asks another one next
        time; a coordinator may not be there yet."""
        deadline = asyncio.get_running_loop().time() + self._connection.connect_timeout_ms / 1000
        while True:
            try:
                return await ask()
            except (TimeoutError, KafkaError, OSError) as error:
                if not retriable(error) or asyncio.get_running_loop().time() >= deadline:
                    raise self._connection.explain(error, doing) from error
            await asyncio.sleep(0.25)

    async def _prepare(self, input_topic: str, needs: Sequence[TopicNeed], *, create: bool, dry: bool) -> InputTopic:
        existing = set(await self._admin.list_topics())
        if input_topic not in existing:
            raise KafkaUnavailableError(
                f"input topic {input_topic!r} does not exist on {self._connection.bootstrap}, or this client may not "
                "describe it: create it, correct input.topic, or grant READ"
            )
        partitions = await self._partitions(input_topic)
        configs, factors = {INPUT: await self.config(input_topic)}, {}
        missing = [need for need in needs if need.name not in existing]
        for need in needs:
            if need not in missing:
                await self._verify(need, len(partitions))
        if missing and not create:
            names = ", ".join(f"{need.name!r} ({need.what})" for need in missing)
            raise KafkaUnavailableError(
                f"missing topics: {names}. Create them with {len(partitions)} partitions, or set topics.create = true"
            )
        replicas = await self._replicas(input_topic) if missing else 0
        for need in missing:
            await self._create(need, len(partitions), replicas, configs[INPUT], dry=dry)
        for need in needs:
            if not (dry and need in missing):
                configs[need.what] = await self.config(need.name)
                factors[need.what] = await self._replicas(need.name)
        topic_id = await topic_identity(client_of(self._admin), input_topic) or ""
        return InputTopic(input_topic, partitions, topic_id, configs, tuple(missing) if dry else (), factors)

    async def _clock_ahead_ms(self, now_ms: Callable[[], int]) -> int | None:
        began = now_ms()
        theirs = await cluster_time_ms(client_of(self._admin))
        return None if theirs is None else (began + now_ms()) // 2 - theirs

    async def missing_rights(self, topic: str, wanted: Sequence[str]) -> list[str]:
        """Of the rights ``wanted`` on an existing topic those that this client does not have."""
        try:
            return await missing_rights(client_of(self._admin), topic, wanted)
        except (TimeoutError, KafkaError, OSError) as error:
            raise self._connection.explain(error, f"looking at rights on {topic!r}") from error

    async def transactional_id_denied(self, name: str) -> bool:
        """This client has no right to transactional ids like ``name``. Only their coordinator is asked for."""
        try:
            await client_of(self._admin).coordinator_lookup(CoordinationType.TRANSACTION, name)
        except kafka_errors.TransactionalIdAuthorizationFailed:
            return True
        except (TimeoutError, KafkaError, OSError):  # nothing is known; others say what is wrong with the cluster
            return False
        return False

    async def committed(self, group: str, topic: str, partitions: Sequence[int]) -> dict[int, int | None]:
        """Committed offsets of a group that this client does not join, None where there is none."""
        tps = [TopicPartition(topic, partition) for partition in partitions]
        found = await self._patiently(
            lambda: self._admin.list_consumer_group_offsets(group, partitions=tps), f"looking at group {group!r}"
        )
        offsets = {tp.partition: each.offset for tp, each in found.items()}
        return {part: offsets[part] if offsets.get(part, -1) >= 0 else None for part in partitions}

    async def config(self, topic: str) -> dict[str, str]:
        """The topic's effective configuration; empty when the client may not describe it. Raises
        UnknownTopicOrPartitionError where the broker that is asked has not heard of the topic, or not yet."""
        resource = ConfigResource(ConfigResourceType.TOPIC, topic)
        try:
            responses = await self._admin.describe_configs([resource])
        except KafkaError:
            return {}
        entries: dict[str, str] = {}
        for response in responses:
            for found in response.resources:
                if found[0] == kafka_errors.UnknownTopicOrPartitionError.errno:
                    raise kafka_errors.UnknownTopicOrPartitionError(topic)
                entries.update({entry[0]: entry[1] for entry in found[4]})
        return entries

    async def partitions(self, topic: str) -> tuple[int, ...]:
        """Partition numbers of a topic that must exist; KafkaUnavailableError when it does not."""
        if not await self.exists(topic):
            raise KafkaUnavailableError(f"topic {topic!r} does not exist on {self._connection.bootstrap}")
        try:
            return await self._partitions(topic)
        except (TimeoutError, KafkaError, OSError) as error:
            raise self._connection.explain(error, "looking at topics") from error

    async def exists(self, topic: str) -> bool:
        try:
            return topic in set(await self._admin.list_topics())
        except (TimeoutError, KafkaError, OSError) as error:
            raise self._connection.explain(error, "looking at topics") from error

    async def _partitions(self, topic: str) -> tuple[int, ...]:
        return tuple(sorted(partition["partition"] for partition in await self._described(topic)))

    async def _replicas(self, topic: str) -> int:
        return len((await self._described(topic))[0]["replicas"])

    async def _described(self, topic: str) -> list[dict[str, Any]]:
        """Its partitions. A topic just created may have no leader yet, and the broker that is asked may not have heard of it."""
        for _ in range(50):
            described = await self._admin.describe_topics([topic])
            found = described[0]
            if found["error_code"] == 0 and found["partitions"]:
                partitions: list[dict[str, Any]] = found["partitions"]
                return partitions
            error = kafka_errors.for_code(found["error_code"])
            if found["error_code"] and not getattr(error, "retriable", False):
                raise error(topic)
            await asyncio.sleep(0.1)
        raise KafkaUnavailableError(f"topic {topic!r} has no partitions with a leader")

    async def _create(
        self, need: TopicNeed, partitions: int, input_replicas: int, input_config: Config, *, dry: bool
    ) -> None:
        replicas = need.replication_factor if need.replication_factor > 0 else input_replicas
        config = config_when_created(need, input_config, replicas)
        topic = NewTopic(need.name, partitions, replicas, topic_configs=config)
        response = await self._admin.create_topics([topic], validate_only=dry)
        for name, code, *rest in response.topic_errors:
            if code not in (0, kafka_errors.TopicAlreadyExistsError.errno):
                self._refuse_creation(need, partitions, topic, kafka_errors.for_code(code)(name), rest)
        if not dry and len(await self._partitions(need.name)) != partitions:
            raise ConfigurationError(f"topic {need.name!r} ({need.what}) was created by another with other partitions")

    def _refuse_creation(
        self, need: TopicNeed, partitions: int, asked: NewTopic, error: KafkaError, details: list[str | None]
    ) -> None:
        """Raises the retriable ones as they are."""
        if retriable(error):
            raise error
        topic = f"topic {need.name!r} ({need.what})"
        detail = (details[0] if details and details[0] else None) or type(error).__name__
        if isinstance(error, kafka_errors.TopicAuthorizationFailedError | kafka_errors.ClusterAuthorizationFailedError):
            detail = "permission denied: no right to CREATE it. Grant CREATE on it to this client's principal"
        raise KafkaRefusedError(
            f"the cluster at {self._connection.bootstrap} does not create {topic}: {detail}. Or create it yourself with "
            f"{partitions} partitions (replication factor {asked.replication_factor} was asked for) and configuration "
            f"{asked.topic_configs}."
        )

    async def _verify(self, need: TopicNeed, partitions: int) -> None:
        found = len(await self._partitions(need.name))
        if found != partitions:
            raise ConfigurationError(
                f"topic {need.name!r} ({need.what}) has {found} partitions, the input has {partitions}: they must be equal, "
                "since a stream's records share one partition number. Recreate it, or name another topic."
            )
