"""Writing epochs: one transaction each, fenced by the group's generation (KIP-447).

Offsets are sent last, after every record of the transaction is acknowledged: sent first, a transaction could commit after
its partitions had moved.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import TopicPartition
from aiokafka import errors as kafka_errors

from streamer.core import Changelog, Epoch, Headers, Outgoing, Reject
from streamer.errors import ConfigurationError, FencedError
from streamer.kafka.client import Connection, KafkaError, close
from streamer.kafka.group import Group, Ownership
from streamer.kafka.internals import CommitFenced, Fence, Producer, Row, RowTooLarge, noticed

TRANSACTION_HEADER = "streamer-txn"
SOURCE_HEADER = "streamer-source"


@dataclass(frozen=True)
class CommitTopics:
    """Where an epoch goes."""

    input: str
    output: str
    dead_letter: str | None
    changelog: str | None
    dead_letter_max_bytes: int = 1_048_588


@dataclass(frozen=True)
class CommitOptions:
    """``delivery``: exactly-once | at-least-once | ephemeral."""

    delivery: str
    group: str
    instance: str | None
    compression: str | None
    max_batch_bytes: int
    max_request_bytes: int
    transaction_timeout_ms: int
    commit_timeout_ms: int


class Committer:
    """Writes epochs one at a time. After FencedError nothing of the epoch is visible and the next commit may be tried
    once the partitions were recovered; after KafkaUnavailableError the fate of the epoch is open, recovery will tell."""

    def __init__(
        self,
        connection: Connection,
        topics: CommitTopics,
        options: CommitOptions,
        *,
        group: Group | None,
        new_id: Callable[[], str],
    ) -> None:
        self._connection = connection
        self._topics = topics
        self._options = options
        self._group = group
        self._new_id = new_id
        self._prefix = topics.input.encode() + b"/"
        self._transactional: Producer | None = None
        self._plain: Producer | None = None
        self.transactional_id = ""
        self.used_ids: set[str] = set()
        """Every transactional id of this process: recovery must never end a transaction of its own."""
        self.bytes_written = 0
        self._submitting = asyncio.Lock()

    async def start(self) -> None:
        if self._options.delivery != "exactly-once":
            self._plain = await self._connection.started(
                self._connection.producer(
                    enable_idempotence=self._options.delivery == "at-least-once",
                    acks="all",
                    **self._batching(),
                )
            )
        if self._options.delivery != "ephemeral":
            await self._new_transactional()

    async def stop(self) -> None:
        for producer in (self._transactional, self._plain):
            if producer is not None:
                await close(producer)
        self._transactional = self._plain = None

    async def publish(self, outgoing: Sequence[Outgoing], rejects: Sequence[Reject]) -> None:
        """Predictions and rejects through the plain producer, acknowledged when it returns: before the commit that
        counts them (``at-least-once``, ``ephemeral``). Calls may overlap: records are handed over in the order of the calls."""
        assert self._plain is not None
        try:
            async with asyncio.timeout(self._options.commit_timeout_ms / 1000):
                async with self._submitting:
                    sent = await self._send_results(self._plain, outgoing, rejects)
                await _delivered(sent)
        except (TimeoutError, KafkaError, OSError) as error:
            raise self._connection.explain(error, "publishing predictions") from error

    async def commit(self, epoch: Epoch, ownership: Ownership) -> dict[int, int]:
        """All of the epoch or nothing. Where predictions went out before (``publish``) the epoch holds none, and what
        is left is changelog and offsets, or offsets alone (``ephemeral``). Bounded by ``commit_timeout_ms``.

        Returns per partition where its changelog ends now, unless somebody else writes it."""
        if not ownership.valid:
            raise FencedError("this member is no longer in the group")
        try:
            async with asyncio.timeout(self._options.commit_timeout_ms / 1000):
                return await self._commit(epoch, ownership)
        except FencedError:
            raise
        except (TimeoutError, KafkaError, AssertionError, OSError) as error:
            await self._replace()
            if isinstance(error, kafka_errors.ProducerFenced | AssertionError) or _is_fencing(error):
                raise FencedError(f"commit fenced: {type(error).__name__}: {error}") from error
            raise self._connection.explain(error, "commit") from error

    async def _commit(self, epoch: Epoch, ownership: Ownership) -> dict[int, int]:
        options = self._options
        if options.delivery == "ephemeral":
            assert self._group is not None
            if epoch.positions:
                await self._group.commit(epoch.positions)
            return dict.fromkeys(epoch.positions, 0)
        producer = self._transactional
        if producer is None:
            producer = await self._new_transactional()
        await producer.begin_transaction()
        try:
            # handed over together, so that the client adds all partitions and sends all batches in one request each
            sent, changelog = await asyncio.gather(
                self._send_results(producer, epoch.outgoing, epoch.rejects),
                self._send_changelog(producer, epoch.changelog),
            )
            await _delivered(sent)  # a failed batch does not fail the transaction by itself
            written = await _delivered(changelog)
            offsets = {TopicPartition(self._topics.input, part): position for part, position in epoch.positions.items()}
            fence = Fence(ownership.generation, ownership.member_id, options.instance)
            await producer.send_fenced_offsets(offsets, options.group, fence)
            await producer.commit_transaction()
        except CommitFenced as error:
            await self._replace()
            raise FencedError(str(error)) from error
        counts = {changelog.partition: len(changelog) for changelog in epoch.changelog}
        firsts: dict[int, int] = {}
        for metadata in written:
            firsts[metadata.partition] = min(firsts.get(metadata.partition, metadata.offset), metadata.offset)
        # its records are contiguous, and the commit marker follows them
        return {partition: first + counts[partition] + 1 for partition, first in firsts.items()}

    async def _send_results(
        self, producer: Producer, outgoing: Sequence[Outgoing], refused: Sequence[Reject]
    ) -> list[asyncio.Future[Any]]:
        by_partition: dict[int, list[Outgoing]] = {}
        for part in outgoing:
            by_partition.setdefault(part.partition, []).append(part)
        sends = [
            self._send(producer, self._topics.output, partition, self._prediction_rows(partition, parts))
            for partition, parts in by_partition.items()
        ]
        if self._topics.dead_letter is not None:
            rejects: dict[int, list[Reject]] = {}
            for reject in refused:
                rejects.setdefault(reject.partition, []).append(reject)
            sends += [
                self._send(producer, self._topics.dead_letter, partition, map(self._dead_letter_row, parts))
                for partition, parts in rejects.items()
            ]
        return [future for futures in await asyncio.gather(*sends) for future in futures]

    async def _send_changelog(self, producer: Producer, changelogs: Sequence[Changelog]) -> list[asyncio.Future[Any]]:
        topic = self._topics.changelog
        assert topic is not None
        mark = [(TRANSACTION_HEADER, self.transactional_id.encode())]
        sends = [
            self._send(
                producer,
                topic,
                changelog.partition,
                ((None, key, value, mark if row == 0 else []) for row, (key, value) in enumerate(changelog.records)),
            )
            for changelog in changelogs
        ]
        return [future for futures in await asyncio.gather(*sends) for future in futures]

    def _prediction_rows(self, partition: int, parts: list[Outgoing]) -> Iterable[Row]:
        prefix = self._prefix + b"%d/" % partition
        for part in parts:
            sources = [[(SOURCE_HEADER, prefix + b"%d" % source)] for source in part.sources]
            for row, more in part.headers.items():
                sources[row] = [*sources[row], *more]
            yield from zip(part.timestamps_ms, part.keys, part.values, sources, strict=True)

    def _dead_letter_row(self, reject: Reject) -> Row:
        return dead_letter_row(reject, self._prefix, self._topics.dead_letter_max_bytes)

    async def _send(
        self, producer: Producer, topic: str, partition: int, rows: Iterable[Row]
    ) -> list[asyncio.Future[Any]]:
        futures: list[asyncio.Future[Any]] = []
        try:
            for batch in producer.pack(rows):
                if topic == self._topics.changelog:
                    self.bytes_written += batch.size()
                future = await producer.send_batch(batch, topic, partition=partition)
                future.add_done_callback(noticed)
                futures.append(future)
        except RowTooLarge as error:
            raise ConfigurationError(f"a record of {error.size} bytes does not fit output.max_batch_bytes") from error
        return futures

    def _batching(self) -> dict[str, Any]:
        options = self._options
        return {
            "compression_type": options.compression,
            "max_batch_size": options.max_batch_bytes,
            "max_request_size": options.max_request_bytes,
            "linger_ms": 0,
        }

    async def ready(self) -> None:
        """Makes sure that no transaction of an earlier failure is open: recovery would wait for it, since it never ends
        transactions of its own process. KafkaUnavailableError when the cluster does not answer."""
        if self._options.delivery != "ephemeral" and self._transactional is None:
            await self._new_transactional()

    async def _new_transactional(self) -> Producer:
        """Ends what an earlier producer left open, by initialising its id, and goes on under another id. Under the same
        one a broker gives the same producer id: if it died and forgot the open transaction, the next commit would make
        records visible that were given up (seen after a kill: repeated answers)."""
        if self.transactional_id:
            await close(await self._start(self.transactional_id))
        self.transactional_id = self._new_id()
        self.used_ids.add(self.transactional_id)
        self._transactional = await self._start(self.transactional_id)
        return self._transactional

    async def _start(self, transactional_id: str) -> Producer:
        producer: Producer = await self._connection.started(
            self._connection.producer(
                transactional_id=transactional_id,
                transaction_timeout_ms=self._options.transaction_timeout_ms,
                acks="all",
                **self._batching(),
            )
        )
        return producer

    async def _replace(self) -> None:
        """After any failure: never use this producer again. Its own abort is not to be trusted: an error makes aiokafka
        forget which partitions are in the transaction, then it sends no EndTxn, and the next transaction of the same
        producer would commit the refused records. ``ready`` ends the transaction by initialising its id.

        While no broker answers, stopping would wait for batches that cannot be sent, and what is not stopped sends them
        when the broker is back: so from here on it can send nothing."""
        producer, self._transactional = self._transactional, None
        if producer is not None:
            producer.silence()
            await close(producer)
            await close(producer.client)  # also where stopping was given up
            producer.forget_waiters()


async def _delivered(futures: Sequence[asyncio.Future[Any]]) -> list[Any]:
    results = await asyncio.gather(*futures, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return list(results)


def _is_fencing(error: BaseException) -> bool:
    names = {
        "IllegalGenerationError",
        "UnknownMemberIdError",
        "RebalanceInProgressError",
        "CommitFailedError",
        "InvalidProducerEpoch",
    }
    return type(error).__name__ in names


def dead_letter_row(reject: Reject, prefix: bytes, max_bytes: int) -> Row:
    """Original key, value and headers with the reason; the value is cut if the record would exceed the topic's limit."""
    headers: list[tuple[str, bytes]] = [
        *reject.headers,
        ("streamer-error", reject.reason.encode()),
        ("streamer-error-detail", reject.detail.encode()[:1024]),
        (SOURCE_HEADER, prefix + b"%d/%d" % (reject.partition, reject.offset)),
    ]
    value = reject.value
    fixed = len(reject.key or b"") + 256  # batch and record framing
    room = max_bytes - fixed - _size(headers)
    if room < 0:  # headers alone are too large: keep ours
        headers = [*headers[-3:], ("streamer-headers-dropped", b"%d" % len(reject.headers))]
        room = max_bytes - fixed - _size(headers)
    if value is not None and len(value) > room:
        headers.append(("streamer-truncated", b"%d" % len(value)))
        value = value[: max(room - 64, 0)]
    key = reject.key
    if key is not None and room < 0:
        key = None
    return reject.timestamp_ms, key, value, headers


def _size(headers: Headers) -> int:
    return sum(len(name.encode()) + len(value or b"") + 10 for name, value in headers)
