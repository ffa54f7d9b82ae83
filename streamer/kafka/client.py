"""How every connection is made, and how client errors become ours."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient

from streamer.errors import KafkaUnavailableError, StreamerError

KafkaError = kafka_errors.KafkaError

_DENIED = (
    kafka_errors.TopicAuthorizationFailedError,
    kafka_errors.GroupAuthorizationFailedError,
    kafka_errors.ClusterAuthorizationFailedError,
    kafka_errors.TransactionalIdAuthorizationFailed,
)
_RETRIABLE_AT_START = (
    kafka_errors.KafkaConnectionError,
    kafka_errors.CoordinatorNotAvailableError,
    kafka_errors.CoordinatorLoadInProgressError,
    kafka_errors.NotCoordinatorError,
    kafka_errors.LeaderNotAvailableError,
    kafka_errors.NotLeaderForPartitionError,
    kafka_errors.RequestTimedOutError,
    kafka_errors.KafkaTimeoutError,
    kafka_errors.NodeNotReadyError,
    kafka_errors.UnknownTopicOrPartitionError,
    asyncio.TimeoutError,
    OSError,
)


def retriable(error: BaseException) -> bool:
    """Whether another try, perhaps at another broker, may succeed."""
    return isinstance(error, _RETRIABLE_AT_START)


@dataclass(frozen=True)
class Connection:
    """Address and security of the cluster. ``options``: keyword arguments that every aiokafka client takes."""

    bootstrap: str
    client_id: str = "streamer"
    request_timeout_ms: int = 40_000
    retry_backoff_ms: int = 100
    connect_timeout_ms: int = 30_000
    metadata_max_age_ms: int = 60_000
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def _common(self) -> dict[str, Any]:
        return {
            "bootstrap_servers": self.bootstrap,
            "client_id": self.client_id,
            "request_timeout_ms": self.request_timeout_ms,
            "retry_backoff_ms": self.retry_backoff_ms,
            "metadata_max_age_ms": self.metadata_max_age_ms,
            **self.options,
        }

    def consumer(self, **options: Any) -> AIOKafkaConsumer:
        return AIOKafkaConsumer(**self._common(), enable_auto_commit=False, **options)

    def producer(self, **options: Any) -> AIOKafkaProducer:
        return AIOKafkaProducer(**self._common(), **options)

    def admin(self) -> AIOKafkaAdminClient:
        return AIOKafkaAdminClient(**self._common())

    async def started(self, client: Any) -> Any:
        """Starts a client, trying again until ``connect_timeout_ms``. A client that did not start is stopped."""
        deadline = asyncio.get_running_loop().time() + self.connect_timeout_ms / 1000
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    await client.start()
                return client
            except Exception as error:
                last = asyncio.get_running_loop().time() + 0.5 >= deadline
                if not retriable(error) or last:
                    await close(client)
                    raise self.explain(error, "connecting") from error
                await asyncio.sleep(0.25)
            except BaseException:
                await close(client)
                raise

    def explain(self, error: BaseException, doing: str) -> StreamerError:
        """One sentence with the remedy. Never shows options: they hold secrets."""
        if isinstance(error, StreamerError):
            return error
        where = f"Kafka at {self.bootstrap}, {doing}"
        text = str(error) or type(error).__name__
        if isinstance(error, _DENIED):
            return KafkaUnavailableError(f"{where}: permission denied ({text}). Grant it to this client's principal.")
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, kafka_errors.AuthenticationFailedError | kafka_errors.UnsupportedSaslMechanismError):
                return KafkaUnavailableError(
                    f"{where}: authentication failed ({cause}). Check kafka.sasl_mechanism, kafka.sasl_username and the password."
                )
            cause = cause.__cause__ or cause.__context__
        if isinstance(error, asyncio.TimeoutError | kafka_errors.KafkaConnectionError | OSError):
            return KafkaUnavailableError(
                f"{where}: no broker answers ({text}). Check kafka.bootstrap, kafka.security_protocol and its certificates, and the network."
            )
        return KafkaUnavailableError(f"{where}: {type(error).__name__}: {text}")


async def close(client: Any, timeout_s: float = 5.0) -> None:
    """Stops a client whatever state it is in; a stop that hangs or fails must not hide why we stop."""
    try:
        async with asyncio.timeout(timeout_s):
            await client.stop() if hasattr(client, "stop") else await client.close()
    except (Exception, asyncio.CancelledError):  # the process goes on to its exit or to a new client
        if asyncio.current_task() is not None and asyncio.current_task().cancelling():  # type: ignore[union-attr]
            raise
