"""The producers of one process. Each is used until its first error and never after: what it still holds can then no more be
sent, and a new one takes its place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from streamer.kafka.client import Connection, close
from streamer.kafka.internals import Producer
from streamer.settings import Settings
from streamer.words import Delivery


class Producers:
    """``publishing``: plain, for predictions that go out before their commit (at-least-once, ephemeral). ``committing``:
    transactional (exactly-once, at-least-once). None where a mode has none, and after ``give_up``."""

    def __init__(self, connection: Connection, settings: Settings, new_id: Callable[[], str]) -> None:
        self._connection = connection
        self._settings = settings
        self._delivery = Delivery(settings.delivery.mode)
        self._new_id = new_id
        self.publishing: Producer | None = None
        self.committing: Producer | None = None
        self.transactional_id = ""
        self.used_ids: set[str] = set()
        """Every transactional id of this process: recovery must never end a transaction of its own."""
        self._given_up: list[Producer] = []
        self._starting = asyncio.Lock()

    async def ready(self) -> None:
        """Makes what is missing. KafkaUnavailableError when the cluster does not answer."""
        await self.bury()
        async with self._starting:
            if self._delivery is not Delivery.EXACTLY_ONCE and self.publishing is None:
                self.publishing = await self._connection.started(
                    self._producer(enable_idempotence=self._delivery is Delivery.AT_LEAST_ONCE)
                )
            if self._delivery.durable and self.committing is None:
                await self._new_transactional()

    async def _new_transactional(self) -> None:
        """Ends what an earlier producer left open, by initialising its id, and goes on under another id. Under the same
        one a broker gives the same producer id: if it died and forgot the open transaction, the next commit would make
        records visible that were given up (seen after a kill: repeated answers)."""
        if self.transactional_id:
            await close(await self._start(self.transactional_id))
        self.transactional_id = self._new_id()
        self.used_ids.add(self.transactional_id)
        self.committing = await self._start(self.transactional_id)

    async def _start(self, transactional_id: str) -> Producer:
        timeout_ms = self._settings.delivery.transaction_timeout_ms
        producer = self._producer(transactional_id=transactional_id, transaction_timeout_ms=timeout_ms)
        started: Producer = await self._connection.started(producer)
        return started

    def _producer(self, **options: Any) -> Producer:
        output = self._settings.output
        return self._connection.producer(
            acks="all",
            compression_type=None if output.compression == "none" else output.compression,
            max_batch_size=output.max_batch_bytes,
            max_request_size=max(output.max_batch_bytes, 1_048_576),
            linger_ms=0,
            **options,
        )

    def give_up(self, producer: Producer | None) -> None:
        """After any failure: never use it again. Its own abort is not to be trusted: an error makes the client forget which
        partitions are in the transaction, then it sends no EndTxn, and the next transaction of the same producer would
        commit the refused records. ``ready`` ends the transaction by initialising its id."""
        if producer is None or producer not in (self.publishing, self.committing):
            return  # another task was faster
        if producer is self.publishing:
            self.publishing = None
        else:
            self.committing = None
        producer.silence()
        self._given_up.append(producer)

    async def bury(self) -> None:
        """Stops what was given up, within a bound."""
        while self._given_up:
            producer = self._given_up.pop()
            await close(producer)
            await close(producer.client)  # also where stopping was given up
            producer.forget_waiters()

    async def stop(self) -> None:
        for producer in (self.committing, self.publishing):
            if producer is not None:
                await close(producer)
        self.committing = self.publishing = None
        await self.bury()
