"""Which topic it is that has this name: a topic that was deleted and created again has another id."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Collection
from typing import Any

from aiokafka import TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.client import ConnectionGroup

from streamer.kafka.internals import hang_up
from streamer.kafka.requests import TopicId

_LOOKS = 20
_ASK_S = 2.0
_PAUSE_S = 0.1
"""A broker that has just started, or that has not heard of a topic yet, may say that there is none: it is asked again."""


async def topic_identity(client: Any, topic: str, partitions: Collection[TopicPartition] = ()) -> str | None:
    """Id of the topic, "" on a broker without topic ids, None when there is no topic of this name.

    Asks the leaders of ``partitions`` at the same time, or any broker: one round trip each, on connections that no fetch
    holds up. Where they differ, some have not heard of a new topic yet: they are asked again. Raises KafkaError when nobody
    answers or this client may not describe the topic."""
    error: kafka_errors.KafkaError = kafka_errors.NodeNotReadyError()
    unknown = 0
    for look in range(_LOOKS):
        nodes = (
            {client.cluster.leader_for_partition(tp) for tp in partitions} - {None, -1} if look < _LOOKS // 2 else set()
        )
        try:
            asking = [_ask(client, topic, node) for node in nodes or {_any(client)}]
            found = {await asking[0]} if len(asking) == 1 else set(await asyncio.gather(*asking))
        except kafka_errors.KafkaError as failed:
            if not failed.retriable:
                raise
            error = failed
        else:
            if len(found) == 1 and None not in found:
                return found.pop()
            unknown += found == {None}
        await asyncio.sleep(_PAUSE_S)
        await client.force_metadata_update()
    if unknown:
        return None
    raise error


def _any(client: Any) -> Any:
    node = client.get_random_node()
    if node is None:
        raise kafka_errors.NodeNotReadyError("no broker is known")
    return node


async def _ask(client: Any, topic: str, node: Any) -> str | None:
    try:
        async with asyncio.timeout(_ASK_S):
            answer = await client.send(node, TopicId(topic), group=ConnectionGroup.COORDINATION)
    except NotImplementedError:  # a broker before 2.8
        return ""
    except TimeoutError:  # nobody may be at the other end any more, and the client would go on asking there
        hang_up(client, node, ConnectionGroup.COORDINATION)
        raise kafka_errors.RequestTimedOutError(f"broker {node} does not answer") from None
    if answer.error_code == kafka_errors.UnknownTopicOrPartitionError.errno:
        return None
    if answer.error_code:
        raise kafka_errors.for_code(answer.error_code)(topic)
    high, low = answer.id_high & (2**64 - 1), answer.id_low & (2**64 - 1)
    return str(uuid.UUID(int=(high << 64) | low))


def gone(topic: str) -> str:
    """What to tell when a topic that was there is not any more."""
    return (
        f"topic {topic!r} was deleted while the service runs: its positions mean nothing any more. Create it again and use "
        "a new kafka.group."
    )


def replaced(topic: str) -> str:
    """What to tell when a topic of this name is another one than before."""
    return (
        f"topic {topic!r} was deleted and created again while the service runs (its id changed), so positions mean nothing. "
        "Use a new kafka.group to begin with the new topic."
    )
