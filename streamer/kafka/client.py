"""How every connection is made, and how client errors become ours."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.protocol.metadata import MetadataRequest

from streamer.errors import ConfigurationError, KafkaUnavailableError, StreamerError
from streamer.kafka.internals import Consumer, Producer

KafkaError = kafka_errors.KafkaError

# What these two say of a connection reaches the caller as an error; at level debug they show whole requests: passwords.
_TOLD_AS_ERRORS = ("client", "conn")
for _name in ("aiokafka", "aiokafka.conn"):
    logging.getLogger(_name).addFilter(lambda record: record.module not in _TOLD_AS_ERRORS)

_TRIAL_TIMEOUT_MS = 5_000
_TRIAL_BROKERS = 3
"""How many of the brokers that the bootstrap addresses name are tried at start."""

_REFUSED = (
    kafka_errors.SaslAuthenticationFailed,
    kafka_errors.AuthenticationFailedError,
    kafka_errors.UnsupportedSaslMechanismError,
    kafka_errors.IllegalSaslStateError,
    ssl.SSLError,
)
"""Trying again does not help against these, but for the connection that just broke off (SSLEOFError)."""
_DENIED = (
    kafka_errors.TopicAuthorizationFailedError,
    kafka_errors.GroupAuthorizationFailedError,
    kafka_errors.ClusterAuthorizationFailedError,
    kafka_errors.TransactionalIdAuthorizationFailed,
)
_UNACCEPTABLE: Mapping[type[BaseException], str] = {
    kafka_errors.InvalidTimestampError: (
        "a topic refuses a record's timestamp. Predictions and dead letters carry that of their event: let output.topic and "
        "dead_letter.topic take all that the input takes (message.timestamp.after.max.ms, message.timestamp.before.max.ms), or "
        "set their message.timestamp.type to LogAppendTime."
    ),
    **dict.fromkeys(
        (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError),
        "a topic refuses a batch of this size. Raise its max.message.bytes, or lower output.max_batch_bytes.",
    ),
}
"""What a broker says of records that it will never take: trying again would go on for ever."""
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

    def consumer(self, **options: Any) -> Consumer:
        return Consumer(**self._common(), enable_auto_commit=False, **options)

    def producer(self, **options: Any) -> Producer:
        return Producer(**self._common(), **options)

    def admin(self) -> AIOKafkaAdminClient:
        return AIOKafkaAdminClient(**self._common())

    async def tried(self) -> None:
        """Raises KafkaUnavailableError for credentials or certificates that a bootstrap address or a broker that it
        names refuses or shows. Outages are not told here: whoever needs the cluster waits for it."""
        found = await self._trial()
        if found is not None and _refused(found) is not None:
            raise self.explain(found, "connecting") from found

    async def _trial(self) -> Exception | None:
        """What keeps us from connecting, refusals first: aiokafka only logs that, raises something else and goes on."""
        first: Exception | None = None
        addresses = [(host, port) for host, port, _ in collect_hosts(self.bootstrap, randomize=False)]
        brokers: dict[tuple[str, int], None] = {}
        for host, port in addresses:
            try:
                connection = await self._connect(host, port)
                try:
                    answer = await connection.send(MetadataRequest([]))
                finally:
                    connection.close()
                brokers.update(dict.fromkeys((broker[1], broker[2]) for broker in answer.brokers))
            except Exception as error:
                if _refused(error) is not None:
                    return error
                first = first or error
        for host, port in [broker for broker in brokers if broker not in addresses][:_TRIAL_BROKERS]:
            try:
                (await self._connect(host, port)).close()
            except Exception as error:
                if _refused(error) is not None:
                    return error
                first = first or error
        return first

    async def _connect(self, host: str, port: int) -> Any:
        timeout_ms = min(self.request_timeout_ms, _TRIAL_TIMEOUT_MS)
        return await create_conn(host, port, client_id=self.client_id, request_timeout_ms=timeout_ms, **self.options)

    async def started(self, client: Any) -> Any:
        """Starts a client, trying again until ``connect_timeout_ms``, unless security is what fails. A client that did
        not start is stopped."""
        deadline = asyncio.get_running_loop().time() + self.connect_timeout_ms / 1000
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    await client.start()
                return client
            except Exception as error:
                why = (await self._trial() if retriable(error) else None) or error
                last = asyncio.get_running_loop().time() + 0.5 >= deadline
                if not retriable(error) or _refused(why) is not None or last:
                    await close(client)
                    raise self.explain(why, "connecting") from error
                await asyncio.sleep(0.25)
            except BaseException:
                await close(client)
                raise

    def explain(self, error: BaseException, doing: str) -> StreamerError:
        """One sentence with the remedy. Never shows options: they hold secrets."""
        if isinstance(error, StreamerError):
            return error
        where = f"Kafka at {self.bootstrap}, {doing}"
        text = "" if isinstance(error, kafka_errors.KafkaConnectionError) else str(error)
        text = text or type(error).__name__
        if isinstance(error, _DENIED):
            return KafkaUnavailableError(f"{where}: permission denied ({text}). Grant it to this client's principal.")
        if type(error) in _UNACCEPTABLE:
            return ConfigurationError(f"{where}: {_UNACCEPTABLE[type(error)]}")
        refusal = _refused(error)
        if isinstance(refusal, ssl.SSLError):
            return KafkaUnavailableError(f"{where}: {_tls_sentence(refusal)}")
        if refusal is not None:
            return KafkaUnavailableError(f"{where}: {self._sasl_sentence(refusal)}")
        if isinstance(error, asyncio.TimeoutError | kafka_errors.KafkaConnectionError | OSError):
            return KafkaUnavailableError(
                f"{where}: no broker answers ({text}). Check kafka.bootstrap, kafka.security_protocol and its certificates, and the network."
            )
        return KafkaUnavailableError(f"{where}: {type(error).__name__}: {text}")

    def _sasl_sentence(self, error: BaseException) -> str:
        mechanism = self.options.get("sasl_mechanism")
        if isinstance(error, kafka_errors.UnsupportedSaslMechanismError):
            return f"the broker does not offer kafka.sasl_mechanism = {mechanism}. Use one that it offers."
        if isinstance(error, kafka_errors.IllegalSaslStateError):
            return "this listener does not take SASL. Check kafka.security_protocol and the port in kafka.bootstrap."
        why = error.args[0] if error.args else type(error).__name__
        return f"authentication failed ({why}). Check kafka.sasl_mechanism, kafka.sasl_username and the password."


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _refused(error: BaseException) -> BaseException | None:
    for cause in _chain(error):
        if isinstance(cause, _REFUSED) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return cause
    return None


# X509_V_ERR_*: not yet valid, expired, wrong host name, wrong address
_NOT_YET, _EXPIRED, _HOSTS = 9, 10, (62, 64)


def _tls_sentence(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message.rstrip(".")
        if error.verify_code == _EXPIRED:
            return f"the broker's certificate is not valid any more ({why}). Renew it on the broker."
        if error.verify_code == _NOT_YET:
            return (
                f"the broker's certificate is not valid yet ({why}). Check the clocks of this machine and the broker."
            )
        if error.verify_code in _HOSTS:
            return (
                f"the broker's certificate is for another host name ({why}). Use a name that it holds in kafka.bootstrap "
                "and in the broker's advertised.listeners, or issue it for this name."
            )
        return f"the broker's certificate is not trusted ({why}). Name the CA that signed it in kafka.ssl_cafile."
    reason = (error.reason or type(error).__name__).replace("_", " ").lower()
    if "alert" in reason:
        return (
            f"the broker refuses the TLS connection ({reason}). Check that kafka.ssl_certfile and kafka.ssl_keyfile are "
            "there, valid, and signed by a CA that the broker trusts."
        )
    return f"the TLS handshake failed ({reason}). Check kafka.security_protocol and the port in kafka.bootstrap."


async def close(client: Any, timeout_s: float = 5.0) -> None:
    """Stops a client whatever state it is in; a stop that hangs or fails must not hide why we stop."""
    try:
        async with asyncio.timeout(timeout_s):
            await client.stop() if hasattr(client, "stop") else await client.close()
    except (Exception, asyncio.CancelledError):  # the process goes on to its exit or to a new client
        if asyncio.current_task() is not None and asyncio.current_task().cancelling():  # type: ignore[union-attr]
            raise
