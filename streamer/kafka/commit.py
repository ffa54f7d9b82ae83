"""Writing epochs: one transaction each, fenced by the group's generation (KIP-447).

aiokafka sends TxnOffsetCommit v0, which names neither generation nor member, so the broker would take it from a member
that was evicted long ago. The v3 request below carries both. Offsets are sent last, after every record of the
transaction is acknowledged: sent first, a transaction could commit after its partitions had moved.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.producer import message_accumulator as _accumulator
from aiokafka.producer import sender as _sender
from aiokafka.structs import OffsetAndMetadata

from streamer.core import Changelog, Epoch, Headers, Outgoing, Reject
from streamer.errors import ConfigurationError, FencedError
from streamer.kafka.client import Connection, KafkaError, close
from streamer.kafka.group import Group, Ownership
from streamer.kafka.requests import TxnOffsetCommit, TxnOffsetCommitResponse

TRANSACTION_HEADER = "streamer-txn"
SOURCE_HEADER = "streamer-source"
_FENCED = {22: "illegal generation", 25: "unknown member", 82: "fenced instance"}


class _FencedGroup(str):
    """A group id that carries what fences the commit: aiokafka hands it through to the request handler."""

    __slots__ = ("instance", "ownership")
    ownership: Ownership
    instance: str | None


class _Handler(_sender.TxnOffsetCommitHandler):
    """Builds the v3 request. A commit that was fenced leaves the transaction abortable and the producer usable."""

    def create_request(self) -> Any:
        group = self._group_id
        if not isinstance(group, _FencedGroup):
            return super().create_request()
        manager = self._sender._txn_manager
        topics: dict[str, list[tuple[int, int, int, str, dict[int, bytes]]]] = {}
        for tp, offset in sorted(self._offsets.items()):
            topics.setdefault(tp.topic, []).append((tp.partition, offset.offset, -1, offset.metadata, {}))
        return TxnOffsetCommit(
            manager.transactional_id,
            str(group),
            manager.producer_id,
            manager.producer_epoch,
            group.ownership.generation,
            group.ownership.member_id,
            group.instance,
            [(topic, partitions, {}) for topic, partitions in topics.items()],
        )

    def handle_response(self, resp: Any) -> Any:
        if not isinstance(resp, TxnOffsetCommitResponse):
            return super().handle_response(resp)
        plain = [(topic, [(part, code) for part, code, _ in parts]) for topic, parts, _ in resp.errors]
        for _, partitions in plain:
            for _, code in partitions:
                if code in _FENCED:
                    self._sender._txn_manager.error_transaction(_fenced_error(code))
                    return None
        resp.errors = plain
        return super().handle_response(resp)


class _CommitFenced(kafka_errors.KafkaError):
    """The group has moved on: the transaction was refused and must be aborted."""


def _fenced_error(code: int) -> _CommitFenced:
    return _CommitFenced(f"offset commit refused: {_FENCED[code]}")


class _Batch(_accumulator.MessageBatch):
    """Of a producer that is given up nobody awaits any more that its batches are taken or sent; asyncio would log each."""

    def failure(self, exception: BaseException) -> None:
        super().failure(exception)
        _noticed(self.future)
        _noticed(self._drain_waiter)


_sender.TxnOffsetCommitHandler = _Handler
_sender.BACKOFF_OVERRIDE = 0.002  # s; while the last transaction's markers are written, a few ms: 20 ms would be a p99
_accumulator.MessageBatch = _Batch


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
        self._transactional: AIOKafkaProducer | None = None
        self._plain: AIOKafkaProducer | None = None
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
            group = _FencedGroup(options.group)
            group.ownership, group.instance = ownership, options.instance
            offsets = {
                TopicPartition(self._topics.input, partition): OffsetAndMetadata(position, "")
                for partition, position in epoch.positions.items()
            }
            await producer.send_offsets_to_transaction(offsets, group)
            await producer.commit_transaction()
        except _CommitFenced as error:
            await self._replace()
            raise FencedError(str(error)) from error
        counts = {changelog.partition: len(changelog) for changelog in epoch.changelog}
        firsts: dict[int, int] = {}
        for metadata in written:
            firsts[metadata.partition] = min(firsts.get(metadata.partition, metadata.offset), metadata.offset)
        # its records are contiguous, and the commit marker follows them
        return {partition: first + counts[partition] + 1 for partition, first in firsts.items()}

    async def _send_results(
        self, producer: AIOKafkaProducer, outgoing: Sequence[Outgoing], refused: Sequence[Reject]
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

    async def _send_changelog(
        self, producer: AIOKafkaProducer, changelogs: Sequence[Changelog]
    ) -> list[asyncio.Future[Any]]:
        topic = self._topics.changelog
        assert topic is not None
        mark: list[tuple[str, bytes | None]] = [(TRANSACTION_HEADER, self.transactional_id.encode())]
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

    def _prediction_rows(self, partition: int, parts: list[Outgoing]) -> Iterable[_Row]:
        prefix = self._prefix + b"%d/" % partition
        for part in parts:
            sources: list[list[tuple[str, bytes | None]]] = [
                [(SOURCE_HEADER, prefix + b"%d" % source)] for source in part.sources
            ]
            for row, more in part.headers.items():
                sources[row] = [*sources[row], *more]
            yield from zip(part.timestamps_ms, part.keys, part.values, sources, strict=True)

    def _dead_letter_row(self, reject: Reject) -> _Row:
        return dead_letter_row(reject, self._prefix, self._topics.dead_letter_max_bytes)

    async def _send(
        self, producer: AIOKafkaProducer, topic: str, partition: int, rows: Iterable[_Row]
    ) -> list[asyncio.Future[Any]]:
        """Rows in as few record batches as their size allows, in order."""
        futures: list[asyncio.Future[Any]] = []
        builder = producer.create_batch()
        append, count = builder._builder.append, 0
        for timestamp, key, value, headers in rows:
            if append(count, timestamp, key, value, headers) is None:
                futures.append(await self._submit(producer, builder, count, topic, partition))
                builder = producer.create_batch()
                append, count = builder._builder.append, 0
                if append(0, timestamp, key, value, headers) is None:
                    raise ConfigurationError(
                        f"a record of {len(value or b'')} bytes does not fit output.max_batch_bytes"
                    )
            count += 1
        if count:
            futures.append(await self._submit(producer, builder, count, topic, partition))
        return futures

    async def _submit(
        self, producer: AIOKafkaProducer, builder: Any, count: int, topic: str, partition: int
    ) -> asyncio.Future[Any]:
        builder._relative_offset = count
        builder.close()
        if topic == self._topics.changelog:
            self.bytes_written += builder.size()
        future: asyncio.Future[Any] = await producer.send_batch(builder, topic, partition=partition)
        future.add_done_callback(_noticed)
        return future

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

    async def _new_transactional(self) -> AIOKafkaProducer:
        """Ends what an earlier producer left open, by initialising its id, and goes on under another id. Under the same
        one a broker gives the same producer id: if it died and forgot the open transaction, the next commit would make
        records visible that were given up (seen after a kill: repeated answers)."""
        if self.transactional_id:
            await close(await self._start(self.transactional_id))
        self.transactional_id = self._new_id()
        self.used_ids.add(self.transactional_id)
        self._transactional = await self._start(self.transactional_id)
        return self._transactional

    async def _start(self, transactional_id: str) -> AIOKafkaProducer:
        producer: AIOKafkaProducer = await self._connection.started(
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
            manager = producer._txn_manager
            for future in (manager.wait_for_transaction_end(), *(sent for *_, sent in manager._pending_txn_offsets)):
                future.add_done_callback(_noticed)
            producer.client.send = producer.client.ready = _gone
            producer.client.coordinator_lookup = _nowhere
            await close(producer)
            await close(producer.client)  # also where stopping was given up
            manager.wait_for_transaction_end().add_done_callback(_noticed)  # another one, if it ended meanwhile


async def _gone(*_: Any, **__: Any) -> None:
    """What a producer is told that was given up: final, so its tasks end."""
    raise kafka_errors.ProducerFenced("this producer was given up")


async def _nowhere(*_: Any, **__: Any) -> int:
    return 0


_Row = tuple[int | None, bytes | None, bytes | None, list[tuple[str, bytes | None]]]
"""timestamp in ms, key, value, headers"""


def _noticed(future: asyncio.Future[Any]) -> None:
    """What is given up leaves futures that nobody awaits any more; asyncio would log the failure of each."""
    if not future.cancelled():
        future.exception()


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


def dead_letter_row(reject: Reject, prefix: bytes, max_bytes: int) -> _Row:
    """Original key, value and headers with the reason; the value is cut if the record would exceed the topic's limit."""
    headers: list[tuple[str, bytes | None]] = [
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
