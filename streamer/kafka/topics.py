"""Topics are listed, verified and created before anything is consumed; automatic creation is never relied on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiokafka import errors as kafka_errors
from aiokafka.admin import NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from streamer.errors import ConfigurationError, KafkaRefusedError, KafkaUnavailableError
from streamer.kafka.client import Connection, KafkaError, close
from streamer.kafka.explain import retriable
from streamer.kafka.identity import topic_identity
from streamer.kafka.internals import client_of


@dataclass(frozen=True)
class TopicNeed:
    """A topic that the service writes: created with ``config`` when missing, verified when there."""

    name: str
    what: str
    """The setting that names it, for messages."""
    config: Mapping[str, str] = field(default_factory=dict)
    verify: Mapping[str, str] = field(default_factory=dict)
    """Configuration values that an existing topic must have."""


@dataclass(frozen=True)
class InputTopic:
    """What the service found out about its input."""

    name: str
    partitions: tuple[int, ...]
    topic_id: str
    config: Mapping[str, str]
    limits: Mapping[str, int] = field(default_factory=dict)
    """Topic that the service writes -> the largest record batch in bytes that it takes."""


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
        needs: list[TopicNeed],
        *,
        create: bool,
        replication_factor: int,
        plain_broker: bool = False,
    ) -> InputTopic:
        """Verifies the input, creates or verifies the others with the input's partition count.

        ``plain_broker``: a broker without topic administration (the in-process one), where topics appear by themselves.
        Raises KafkaUnavailableError for a missing topic, ConfigurationError for one that cannot serve."""
        if plain_broker:
            partitions = await self._partitions(input_topic)
            return InputTopic(input_topic, partitions, "", {})
        deadline = asyncio.get_running_loop().time() + self._connection.connect_timeout_ms / 1000
        while True:
            try:
                return await self._prepare(input_topic, needs, create=create, replication_factor=replication_factor)
            except (TimeoutError, KafkaError, OSError) as error:
                # one broker of several may be away: the client asks another one next time
                if not retriable(error) or asyncio.get_running_loop().time() >= deadline:
                    raise self._connection.explain(error, "checking topics") from error
            await asyncio.sleep(0.25)

    async def _prepare(
        self, input_topic: str, needs: list[TopicNeed], *, create: bool, replication_factor: int
    ) -> InputTopic:
        existing = set(await self._admin.list_topics())
        if input_topic not in existing:
            raise KafkaUnavailableError(
                f"input topic {input_topic!r} does not exist on {self._connection.bootstrap}, or this client may not "
                "describe it: create it, correct input.topic, or grant READ"
            )
        partitions = await self._partitions(input_topic)
        replicas = replication_factor if replication_factor > 0 else await self._replicas(input_topic)
        missing = []
        for need in needs:
            if need.name in existing:
                await self._verify(need, len(partitions))
            elif create:
                await self._create(need, len(partitions), replicas)
            else:
                missing.append(need)
        if missing:
            names = ", ".join(f"{need.name!r} ({need.what})" for need in missing)
            raise KafkaUnavailableError(
                f"missing topics: {names}. Create them with {len(partitions)} partitions, or set topics.create = true"
            )
        topic_id = await topic_identity(client_of(self._admin), input_topic) or ""
        limits = {need.name: result_sizes(await self.config(need.name)) for need in needs}
        return InputTopic(input_topic, partitions, topic_id, await self.config(input_topic), limits)

    async def config(self, topic: str) -> dict[str, str]:
        """The topic's effective configuration; empty when the client may not describe it."""
        resource = ConfigResource(ConfigResourceType.TOPIC, topic)
        try:
            responses = await self._admin.describe_configs([resource])
        except KafkaError:
            return {}
        entries: dict[str, str] = {}
        for response in responses:
            for found in response.resources:
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
        for _ in range(50):  # a topic just created may have no leader yet
            described = await self._admin.describe_topics([topic])
            found = described[0]
            if found["error_code"] == 0 and found["partitions"]:
                return tuple(sorted(partition["partition"] for partition in found["partitions"]))
            error = kafka_errors.for_code(found["error_code"])
            if found["error_code"] and not getattr(error, "retriable", False):
                raise error(topic)
            await asyncio.sleep(0.1)
        raise KafkaUnavailableError(f"topic {topic!r} has no partitions with a leader")

    async def _replicas(self, topic: str) -> int:
        described = await self._admin.describe_topics([topic])
        return len(described[0]["partitions"][0]["replicas"])

    async def _create(self, need: TopicNeed, partitions: int, replication_factor: int) -> None:
        topic = NewTopic(need.name, partitions, replication_factor, topic_configs=dict(need.config))
        response = await self._admin.create_topics([topic])
        for name, code, *rest in response.topic_errors:
            if code not in (0, kafka_errors.TopicAlreadyExistsError.errno):
                self._refuse_creation(need, partitions, replication_factor, kafka_errors.for_code(code)(name), rest)
        if len(await self._partitions(need.name)) != partitions:
            raise ConfigurationError(f"topic {need.name!r} ({need.what}) was created by another with other partitions")

    def _refuse_creation(
        self, need: TopicNeed, partitions: int, replicas: int, error: KafkaError, details: list[str | None]
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
            f"{partitions} partitions (replication factor {replicas} was asked for) and configuration {dict(need.config)}."
        )

    async def _verify(self, need: TopicNeed, partitions: int) -> None:
        found = len(await self._partitions(need.name))
        if found != partitions:
            raise ConfigurationError(
                f"topic {need.name!r} ({need.what}) has {found} partitions, the input has {partitions}: they must be equal, "
                "since a stream's records share one partition number. Recreate it, or name another topic."
            )
        if need.verify:
            config = await self.config(need.name)
            wrong = {key: config[key] for key, value in need.verify.items() if config.get(key, value) != value}
            if wrong:
                raise ConfigurationError(
                    f"topic {need.name!r} ({need.what}) has {wrong}, needed is {dict(need.verify)}"
                )


def result_sizes(config: Mapping[str, Any], default: int = 1_048_588) -> int:
    """The largest record batch in bytes that a topic of this configuration takes."""
    return int(config.get("max.message.bytes", default))
