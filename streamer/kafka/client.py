"""How every connection is made."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.protocol.metadata import MetadataRequest

from streamer.errors import StreamerError
from streamer.kafka.explain import explain, refused, retriable
from streamer.kafka.internals import Consumer, Producer
from streamer.settings import KafkaSection

KafkaError = kafka_errors.KafkaError

# What these two say of a connection reaches the caller as an error; at level debug they show whole requests: passwords.
_TOLD_AS_ERRORS = ("client", "conn")
for _name in ("aiokafka", "aiokafka.conn"):
    logging.getLogger(_name).addFilter(lambda record: record.module not in _TOLD_AS_ERRORS)

_TRIAL_TIMEOUT_MS = 5_000
_TRIAL_BROKERS = 3
"""How many of the brokers that the bootstrap addresses name are tried at start."""


@dataclass(frozen=True)
class Connection:
    """How the cluster is reached. ``options``: keyword arguments that secure every client (``settings.security``).
    ``native``: the module that reads record batches, None: the client does."""

    kafka: KafkaSection
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    native: Any = None

    @property
    def bootstrap(self) -> str:
        return self.kafka.bootstrap

    @property
    def connect_timeout_ms(self) -> int:
        return self.kafka.connect_timeout_ms

    def _common(self) -> dict[str, Any]:
        return {
            "bootstrap_servers": self.kafka.bootstrap,
            "client_id": self.kafka.client_id,
            "request_timeout_ms": self.kafka.request_timeout_ms,
            "retry_backoff_ms": self.kafka.retry_backoff_ms,
            "metadata_max_age_ms": self.kafka.metadata_max_age_ms,
            **self.options,
        }

    def consumer(self, **options: Any) -> Consumer:
        return Consumer(**self._common(), enable_auto_commit=False, native=self.native, **options)

    def producer(self, **options: Any) -> Producer:
        return Producer(**self._common(), **options)

    def admin(self) -> AIOKafkaAdminClient:
        return AIOKafkaAdminClient(**self._common())

    async def tried(self) -> None:
        """Raises KafkaUnavailableError for credentials or certificates that a bootstrap address or a broker that it
        names refuses or shows. Outages are not told here: whoever needs the cluster waits for it."""
        found = await self._trial()
        if found is not None and refused(found) is not None:
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
                if refused(error) is not None:
                    return error
                first = first or error
        for host, port in [broker for broker in brokers if broker not in addresses][:_TRIAL_BROKERS]:
            try:
                (await self._connect(host, port)).close()
            except Exception as error:
                if refused(error) is not None:
                    return error
                first = first or error
        return first

    async def _connect(self, host: str, port: int) -> Any:
        timeout_ms = min(self.kafka.request_timeout_ms, _TRIAL_TIMEOUT_MS)
        return await create_conn(
            host, port, client_id=self.kafka.client_id, request_timeout_ms=timeout_ms, **self.options
        )

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
                if not retriable(error) or refused(why) is not None or last:
                    await close(client)
                    raise self.explain(why, "connecting") from error
                await asyncio.sleep(0.25)
            except BaseException:
                await close(client)
                raise

    def explain(self, error: BaseException, doing: str, *, right: str = "READ") -> StreamerError:
        """One sentence with the remedy. ``right``: what is needed of a topic that denies it. Never shows options: they hold
        secrets."""
        return explain(error, f"Kafka at {self.bootstrap}, {doing}", right, self.options.get("sasl_mechanism"))


async def close(client: Any, timeout_s: float = 5.0) -> None:
    """Stops a client whatever state it is in; a stop that hangs or fails must not hide why we stop."""
    try:
        async with asyncio.timeout(timeout_s):
            await client.stop() if hasattr(client, "stop") else await client.close()
    except (Exception, asyncio.CancelledError):  # the process goes on to its exit or to a new client
        if asyncio.current_task() is not None and asyncio.current_task().cancelling():  # type: ignore[union-attr]
            raise
