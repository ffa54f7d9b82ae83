"""What the client does not offer, by subclasses and instances of our own. No global of the client is replaced: other users
of the client in the same process see nothing of this.

The only place that touches private names of the client; ``private`` lists them.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import CoordinationType
from aiokafka.consumer import fetcher as _fetcher
from aiokafka.producer import message_accumulator as _accumulator
from aiokafka.producer import sender as _sender
from aiokafka.producer import transaction_manager as _manager
from aiokafka.structs import OffsetAndMetadata

from streamer.core import Outgoing
from streamer.kafka.fetched import Buffers, Tap
from streamer.kafka.packed import Packed, packed
from streamer.kafka.requests import TxnOffsetCommit, TxnOffsetCommitResponse
from streamer.kafka.rows import Row, RowTooLarge

BETWEEN_TRANSACTIONS_S = 0.002
"""The broker writes the last transaction's markers for a few ms: the client's 20 ms between two looks would be a p99."""
_FENCED = {22: "illegal generation", 25: "unknown member", 82: "fenced instance"}


@dataclass(frozen=True, slots=True)
class Fence:
    """What the offsets of a transaction are fenced with (KIP-447)."""

    generation: int
    member_id: str
    instance: str | None


class CommitFenced(kafka_errors.KafkaError):
    """The group has moved on: the transaction was refused and must be aborted."""


class TransactionRefused(kafka_errors.ProducerFenced):
    """The broker does not let a transaction begin; nothing of it is written. ``why``: what the broker says.

    Derived from the error after which the client stops sending and does not log a traceback."""

    def __init__(self, why: kafka_errors.KafkaError) -> None:
        super().__init__(why)
        self.why = why

    @property
    def id_expired(self) -> bool:
        """The coordinator has forgotten an id that was idle for long: another producer can do it at once."""
        return isinstance(self.why, kafka_errors.InvalidProducerIdMapping | kafka_errors.UnknownProducerId)


def noticed(future: asyncio.Future[Any]) -> None:
    """What is given up leaves futures that nobody awaits any more; asyncio would log the failure of each."""
    if not future.cancelled():
        future.exception()


class _AddPartitions(_sender.AddPartitionsToTxnHandler):
    """Waits less between two transactions, and tells what refuses one. The client would send the records of a transaction
    without their partitions, and say InvalidTxnState instead of the right that is missing."""

    def handle_response(self, resp: Any) -> float | None:
        written = bool(self._sender._txn_manager.txn_partitions)
        codes = {code: topic for topic, parts in resp.errors for _, code in parts}
        denied = sorted({topic for topic, parts in resp.errors for _, code in parts if code == 29})
        if denied:
            raise TransactionRefused(kafka_errors.TopicAuthorizationFailedError(", ".join(denied)))
        if not written:
            for error in (kafka_errors.InvalidProducerIdMapping, kafka_errors.UnknownProducerId):
                if error.errno in codes:
                    raise TransactionRefused(error())
        backoff: float | None = super().handle_response(resp)
        return BETWEEN_TRANSACTIONS_S if backoff == _sender.BACKOFF_OVERRIDE and not written else backoff


class _CommitOffsets(_sender.TxnOffsetCommitHandler):
    """Sends generation and member (v3). A commit that was fenced leaves the transaction abortable and the producer usable."""

    def create_request(self) -> Any:
        fence, manager = self._sender.fence, self._sender._txn_manager
        topics: dict[str, list[tuple[int, int, int, str, dict[int, bytes]]]] = {}
        for tp, offset in sorted(self._offsets.items()):
            topics.setdefault(tp.topic, []).append((tp.partition, offset.offset, -1, offset.metadata, {}))
        return TxnOffsetCommit(
            manager.transactional_id,
            self._group_id,
            manager.producer_id,
            manager.producer_epoch,
            fence.generation,
            fence.member_id,
            fence.instance,
            [(topic, partitions, {}) for topic, partitions in topics.items()],
        )

    def handle_response(self, resp: TxnOffsetCommitResponse) -> Any:
        plain = [(topic, [(part, code) for part, code, _ in parts]) for topic, parts, _ in resp.errors]
        for code in (code for _, partitions in plain for _, code in partitions if code in _FENCED):
            fenced = CommitFenced(f"offset commit refused: {_FENCED[code]}")
            self._sender._txn_manager.error_transaction(fenced)
            return None
        resp.errors = plain
        return super().handle_response(resp)


class _Produce(_sender.SendProduceReqHandler):
    """Keeps the broker's answer where records are sent again: the client only logs it, and the caller's time runs out without
    a cause."""

    def _can_retry(self, error: kafka_errors.KafkaError, batch: Any) -> bool:
        if isinstance(error, kafka_errors.BrokerResponseError):
            self._sender.last_error = error
        return bool(super()._can_retry(error, batch))


class _Sender(_sender.Sender):
    """The client's, with our requests in place of its own."""

    fence: Fence | None = None
    last_error: kafka_errors.BrokerResponseError | None = None

    async def _send_produce_req(self, node_id: int, batches: Mapping[TopicPartition, Any]) -> None:
        await _Produce(self, batches).do(node_id)
        self._in_flight.remove(node_id)
        self._muted_partitions.difference_update(batches)

    async def _do_add_partitions_to_txn(self, tps: Collection[TopicPartition]) -> Any:
        node = await self._find_coordinator(CoordinationType.TRANSACTION, self._txn_manager.transactional_id)
        return await _AddPartitions(self, tps).do(node)

    async def _do_txn_offset_commit(self, offsets: Mapping[TopicPartition, OffsetAndMetadata], group_id: str) -> Any:
        if self.fence is None:
            raise kafka_errors.IllegalOperation("offsets without a generation would be taken from anybody")
        if not offsets:
            return None
        try:
            node = await self._find_coordinator(CoordinationType.GROUP, group_id)
        except kafka_errors.GroupAuthorizationFailedError as error:
            self._txn_manager.error_transaction(error)
            return None
        return await _CommitOffsets(self, offsets, group_id).do(node)


class _Batch(_accumulator.MessageBatch):
    """Of a producer that is given up nobody awaits any more that its batches are taken."""

    _drain_waiter: asyncio.Future[Any]

    def failure(self, exception: BaseException) -> None:
        super().failure(exception)
        noticed(self._drain_waiter)


class _Pending(set[Any]):
    """Batches under way. The client takes one that it tried again out of it once for each try."""

    remove = set.discard


class _Accumulator(_accumulator.MessageAccumulator):
    """Its batches are ours."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._pending_batches = _Pending()

    def _append_batch(self, builder: Any, tp: TopicPartition) -> Any:
        batch = super()._append_batch(builder, tp)
        batch.__class__ = _Batch
        return batch


class _Manager(_manager.TransactionManager):
    """Sequence numbers begin again at 0 after 2^31 - 1, as the broker counts. The client's turn negative, which no broker
    takes. And the group joins a transaction while its records are on their way, not after them."""

    group: str | None = None
    """Whose offsets end a transaction; None: told with the offsets"""

    def consumer_group_to_add(self) -> str | None:
        if self.group is not None and self._txn_consumer_group is None and self._txn_partitions:
            return self.group
        found: str | None = super().consumer_group_to_add()
        return found

    def increment_sequence_number(self, tp: TopicPartition, increment: int) -> None:
        self._sequence_numbers[tp] = (self._sequence_numbers[tp] + increment) % 2**31


class Producer(AIOKafkaProducer):
    """A producer whose offsets are fenced by the group, and that can be given up."""

    _txn_manager: Any
    _message_accumulator: Any
    _sender: Any

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        stock, sender = self._message_accumulator, self._sender
        if self._txn_manager is not None:
            self._txn_manager = _Manager(self._txn_manager.transactional_id, self._txn_manager.transaction_timeout_ms)
        self._message_accumulator = _Accumulator(
            stock._cluster,
            stock._batch_size,
            stock._compression_type,
            stock._batch_ttl,
            txn_manager=self._txn_manager,
            linger_ms=options.get("linger_ms", 0),
        )
        self._sender = _Sender(
            self.client,
            acks=sender._acks,
            txn_manager=self._txn_manager,
            message_accumulator=self._message_accumulator,
            retry_backoff_ms=sender._retry_backoff * 1000,
            request_timeout_ms=sender._request_timeout_ms,
        )

    async def begin_transaction_of(self, group: str) -> None:
        """A transaction that ends with offsets of ``group``. That group joins it while records are on their way: a round trip
        less before the end. It says nothing yet of who may commit, which the offsets do (``send_fenced_offsets``)."""
        await self.begin_transaction()
        self._txn_manager.group = group

    async def send_batch(self, batch: Any, topic: str, *, partition: int) -> asyncio.Future[Any]:
        """Of a transaction that was refused while others of its batches were handed over, the client says only that there is
        none, or asserts it. Raises what it was refused for."""
        try:
            sent: asyncio.Future[Any] = await super().send_batch(batch, topic, partition=partition)
        except (kafka_errors.IllegalOperation, AssertionError):
            self._raise_end()
            raise
        return sent

    def _raise_end(self) -> None:
        """What ended the open transaction, if something did."""
        ended = None if self._txn_manager is None else self._txn_manager.wait_for_transaction_end()
        if ended is not None and ended.done():
            ended.result()

    async def send_fenced_offsets(self, offsets: Mapping[TopicPartition, int], group: str, fence: Fence) -> None:
        """Raises CommitFenced when the group has moved on."""
        self._raise_end()  # the group was refused while records were on their way
        self._sender.fence = fence
        positions = {tp: OffsetAndMetadata(position, "") for tp, position in offsets.items()}
        await self.send_offsets_to_transaction(positions, group)

    def pack(self, rows: Iterable[Row], max_bytes: int) -> Iterator[Any]:
        """Rows in as few closed record batches as their size allows, in order. ``max_bytes``: what the topic takes in one
        batch; a row that is larger than the producer's batches goes alone. Raises RowTooLarge for what the topic refuses."""
        accumulator = self._message_accumulator
        transactional = self._transactional
        size, compression = min(accumulator._batch_size, max_bytes), accumulator._compression_type
        builder = _accumulator.BatchBuilder(size, compression, is_transactional=transactional)
        append, count = builder._builder.append, 0
        for timestamp, key, value, headers in rows:
            if append(count, timestamp, key, value, headers) is None:
                yield _closed(builder, count)
                builder = _accumulator.BatchBuilder(size, compression, is_transactional=transactional)
                append, count = builder._builder.append, 0
                append(0, timestamp, key, value, headers)
            count += 1
            if count == 1 and builder.size() > max_bytes:  # the client takes the first record whatever its size
                raise RowTooLarge(builder.size())
        if count:
            yield _closed(builder, count)

    def pack_answers(self, native: Any, parts: Sequence[Outgoing], source: bytes, max_bytes: int) -> Iterator[Packed]:
        """As ``pack`` does, by native code; see ``packed``. Not where the producer compresses (``plain``)."""
        size = min(self._message_accumulator._batch_size, max_bytes)
        return packed(native, parts, source, size=size, max_bytes=max_bytes, transactional=self._transactional)

    @property
    def plain(self) -> bool:
        """Batches are not compressed."""
        return not self._message_accumulator._compression_type

    @property
    def _transactional(self) -> bool:
        return self._txn_manager is not None and self._txn_manager.transactional_id is not None

    @property
    def last_error(self) -> kafka_errors.BrokerResponseError | None:
        """The newest answer that refused records, also where they are sent again; None when there was none."""
        error: kafka_errors.BrokerResponseError | None = self._sender.last_error
        return error

    def silence(self) -> None:
        """From here on it can send nothing. While no broker answers, stopping would wait for batches that cannot be sent,
        and what is not stopped would send them when the broker is back."""
        if self._txn_manager is not None:
            waiting = [sent for *_, sent in self._txn_manager._pending_txn_offsets]
            for future in (self._txn_manager.wait_for_transaction_end(), *waiting):
                if future is not None:
                    future.add_done_callback(noticed)
        self.client.send = self.client.ready = _gone
        self.client.coordinator_lookup = _nowhere

    def forget_waiters(self) -> None:
        """After the end: another waiter, if the transaction ended meanwhile."""
        waiter = None if self._txn_manager is None else self._txn_manager.wait_for_transaction_end()
        if waiter is not None:
            waiter.add_done_callback(noticed)


def _closed(builder: Any, count: int) -> Any:
    builder._relative_offset = count
    builder.close()
    return builder


async def _gone(*_: Any, **__: Any) -> None:
    """What a producer is told that was given up: final, so its tasks end."""
    raise kafka_errors.ProducerFenced("this producer was given up")


async def _nowhere(*_: Any, **__: Any) -> int:
    return 0


class Consumer(AIOKafkaConsumer):
    """A consumer whose private facts can be asked for. ``columns``: a partition's records come as one ``RecordBatch``, read
    by ``native``, if there is such a module."""

    def __init__(self, *, columns: bool = False, native: Any = None, **options: Any) -> None:
        super().__init__(**options)
        self.columns, self._native = columns, native
        self.timeout_ms = options["request_timeout_ms"]

    async def start(self) -> None:
        await super().start()
        if self.columns:
            raw: dict[TopicPartition, bytes] = {}
            self._fetcher._records = Buffers(raw, self._native)
            self._fetcher._client = Tap(self._client, raw)

    def fetch_position(self, tp: TopicPartition) -> int:
        """Offset of the next fetch."""
        return int(self._subscription.subscription.assignment.state_value(tp).position)

    async def offsets(self, tps: Iterable[TopicPartition], *, end: bool, committed: bool = False) -> dict[int, int]:
        """Begins or ends of the log by partition, whatever this consumer's own isolation: ``committed`` asks for the last
        stable offset instead of the high watermark."""
        asking = copy.copy(self._fetcher)  # the isolation level belongs to the fetcher, not to the question
        asking._isolation_level = _fetcher.READ_COMMITTED if committed else _fetcher.READ_UNCOMMITTED
        which = _fetcher.OffsetResetStrategy.LATEST if end else _fetcher.OffsetResetStrategy.EARLIEST
        # longer than a request may take: only a request that times out itself closes a connection that nobody answers on
        found = await asking._retrieve_offsets(dict.fromkeys(tps, which), 2 * self.timeout_ms)
        return {tp.partition: offset for tp, (offset, _) in found.items()}

    def membership(self) -> tuple[int, str]:
        """(generation, member id) of now. Never to be taken at a commit: the client rejoins in the background."""
        return int(self._coordinator.generation), str(self._coordinator.member_id)

    def raise_errors(self) -> None:
        """What keeps this member out of its group."""
        self._coordinator.check_errors()

    @property
    def client(self) -> Any:
        return self._client


def hang_up(client: Any, node: Any, group: Any) -> None:
    """Closes a connection, so that the next request makes a new one."""
    connection = client._conns.get((node, group))
    if connection is not None:
        connection.close()


def client_of(admin: AIOKafkaAdminClient) -> Any:
    """The connections of an administration client."""
    return admin._client
