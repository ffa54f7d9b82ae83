"""Writing epochs: one transaction each, fenced by the group's generation (KIP-447). Its steps, in this order:

1. predictions, and rejects to the dead-letter topic;
2. stream records of the changelog;
3. progress records, the last of each partition;
4. every record above is acknowledged, and the input is still the topic that the epoch was read from;
5. offsets for every partition touched, with generation and member id. Last: sent first, a transaction could commit after
   its partitions had moved. (That the group is part of the transaction is told while 1 to 3 are on their way: it binds nobody);
6. the end of the transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import Any

from aiokafka import TopicPartition
from aiokafka import errors as kafka_errors

from streamer.core import Outgoing, Reject, Transaction
from streamer.errors import ConfigurationError, DataLossError, FencedError, KafkaRefusedError, StreamerError
from streamer.kafka.client import Connection, KafkaError
from streamer.kafka.clocks import OwnClock
from streamer.kafka.group import Group, Ownership
from streamer.kafka.identity import gone, replaced
from streamer.kafka.input import Input
from streamer.kafka.internals import CommitFenced, Fence, Producer, TransactionRefused, noticed
from streamer.kafka.policies import APPEND_TIME, CHANGELOG, TIMESTAMP_TYPE
from streamer.kafka.producers import Producers
from streamer.kafka.topics import InputTopic
from streamer.kafka.writes import Writes
from streamer.settings import Settings
from streamer.words import Delivery

log = logging.getLogger("streamer")
_FAILURES = (TimeoutError, KafkaError, AssertionError, OSError)
_FENCING = (
    kafka_errors.IllegalGenerationError,
    kafka_errors.UnknownMemberIdError,
    kafka_errors.RebalanceInProgressError,
    kafka_errors.CommitFailedError,
    kafka_errors.InvalidProducerEpoch,
    kafka_errors.ProducerFenced,
    AssertionError,  # the client's state after it was fenced
)


class Committer:
    """Writes epochs one at a time. After FencedError nothing of the epoch is visible and the next commit may be tried
    once the partitions were recovered; after KafkaUnavailableError the fate of the epoch is open, recovery will tell."""

    def __init__(
        self,
        connection: Connection,
        settings: Settings,
        topic: InputTopic,
        *,
        group: Group,
        reader: Input,
        new_id: Callable[[], str],
        now_ms: Callable[[], int],
    ) -> None:
        """``topic``: what the input was when the service looked; only it is ever committed against. ``reader``: asks
        whether it still is."""
        self.clock = OwnClock(now_ms, topic.clock_ahead_ms)
        self._connection = connection
        self._settings = settings
        self._delivery = Delivery(settings.delivery.mode)
        self._input = topic
        self._group = group
        self._reader = reader
        self._writes = Writes(settings, topic, connection.native)
        self._changelog_stamps = topic.configs.get(CHANGELOG, {}).get(TIMESTAMP_TYPE) == APPEND_TIME
        self.producers = Producers(connection, settings, new_id)
        self._changelog_ends: dict[int, int] = {}
        """Partition -> where its changelog ended when this process last read or wrote it"""
        self._submitting = asyncio.Lock()
        self._running: set[asyncio.Task[Any]] = set()

    @property
    def transactional_id(self) -> str:
        return self.producers.transactional_id

    @property
    def used_ids(self) -> set[str]:
        """Every transactional id of this process: recovery must never end a transaction of its own."""
        return self.producers.used_ids

    @property
    def bytes_written(self) -> int:
        """To the changelog"""
        return self._writes.bytes_written

    async def start(self) -> None:
        await self.producers.ready()

    async def ready(self) -> None:
        """Makes sure that no transaction of an earlier failure is open: recovery would wait for it, since it never ends
        transactions of its own process. KafkaUnavailableError when the cluster does not answer."""
        await self.producers.ready()

    async def stop(self) -> None:
        await self.abandon()
        await self.producers.stop()

    def restored(self, changelog_ends: Mapping[int, int]) -> None:
        """Partitions were read from a changelog that ended there: what is written next lies behind it."""
        self._changelog_ends |= changelog_ends

    async def abandon(self) -> None:
        """For who drops the open epoch: ends publications and a commit that are under way, and returns when they have
        ended. What they handed over is not sent any more. ``ready`` before the next."""
        running = self._running - {asyncio.current_task()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self.producers.bury()

    async def publish(self, outgoing: Sequence[Outgoing], rejects: Sequence[Reject]) -> None:
        """Predictions and rejects through the plain producer, acknowledged when it returns: before the commit that
        counts them (``at-least-once``, ``ephemeral``). Calls may overlap: records are handed over in the order of the calls.

        After an error every further call fails, until ``ready``: a later prediction does not overtake an earlier one."""
        producer = self.producers.publishing
        async with self._under_way():
            try:
                if producer is None:
                    raise kafka_errors.ProducerClosed("an earlier publication failed")
                async with asyncio.timeout(self._settings.delivery.commit_timeout_ms / 1000):
                    async with self._submitting:
                        sent = await self._writes.results(producer, outgoing, rejects)
                    await self._taken(sent, "" if self._writes.stamped else self._settings.output.topic)
            except _FAILURES as error:
                self.producers.give_up(producer)
                raise await self._explained(error, "publishing predictions", producer) from error
            except BaseException:
                self.producers.give_up(producer)
                raise

    async def commit(self, epoch: Transaction, ownership: Ownership) -> dict[int, int]:
        """All of the epoch or nothing. Where predictions went out before (``publish``) the epoch holds none, and what
        is left is changelog and offsets, or offsets alone (``ephemeral``). Bounded by ``commit_timeout_ms``.

        Returns per partition where its changelog ends now, unless somebody else writes it. Raises DataLossError when the
        input is not the topic any more that the epoch was read from, KafkaRefusedError for what no retry cures."""
        if not ownership.valid:
            raise FencedError("this member is no longer in the group")
        async with self._under_way():
            try:
                async with asyncio.timeout(self._settings.delivery.commit_timeout_ms / 1000):
                    return await (self._write if self._delivery.durable else self._offsets)(epoch, ownership)
            except _FAILURES as error:
                producer = self.producers.committing
                self.producers.give_up(producer)
                await self.producers.bury()
                if isinstance(error, CommitFenced):
                    raise FencedError(str(error)) from error
                if isinstance(error, _FENCING) and not isinstance(error, TransactionRefused):
                    raise FencedError(f"commit fenced: {type(error).__name__}: {error}") from error
                raise await self._explained(error, "commit", producer) from error
            except BaseException:
                self.producers.give_up(self.producers.committing)
                raise

    @contextlib.asynccontextmanager
    async def _under_way(self) -> AsyncIterator[None]:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            yield
        except BaseException:
            task.add_done_callback(noticed)  # the caller may await another one first, and drop this
            raise
        finally:
            self._running.discard(task)

    async def _offsets(self, epoch: Transaction, ownership: Ownership) -> dict[int, int]:
        """Without a changelog."""
        del ownership
        if epoch.positions:
            await self.same_input(epoch.positions)
            await self._group.commit(epoch.positions)
        return dict.fromkeys(epoch.positions, 0)

    async def _write(self, epoch: Transaction, ownership: Ownership) -> dict[int, int]:
        """An id that the coordinator forgot while we were idle refuses the first request, so nothing is written: the same
        epoch is written at once by another producer."""
        for last in (False, True):
            if self.producers.committing is None:
                await self.producers.ready()
            producer = self.producers.committing
            assert producer is not None
            try:
                return await self._transaction(producer, epoch, ownership)
            except TransactionRefused as error:
                if last or not error.id_expired:
                    raise
                self.producers.give_up(producer)
        raise AssertionError("unreachable")

    async def _transaction(self, producer: Producer, epoch: Transaction, ownership: Ownership) -> dict[int, int]:
        await producer.begin_transaction_of(self._settings.kafka.group)
        checking = asyncio.create_task(self.same_input(epoch.positions))
        try:
            sent, changelog = await self._writes.transaction(producer, epoch, self.transactional_id)
            # a failed batch does not fail the transaction by itself
            await self._taken(sent, "" if self._writes.stamped else self._settings.output.topic)
            firsts = self._firsts(await self._taken(changelog, self._settings.changelog_topic or ""))
            await checking
            offsets = {TopicPartition(self._input.name, part): position for part, position in epoch.positions.items()}
            fence = Fence(ownership.generation, ownership.member_id, ownership.instance)
            await producer.send_fenced_offsets(offsets, self._settings.kafka.group, fence)
            await producer.commit_transaction()
        except DataLossError:
            with contextlib.suppress(KafkaError, AssertionError):
                await producer.abort_transaction()
            raise
        finally:
            checking.add_done_callback(noticed)
            checking.cancel()
        counts = {changelog.partition: len(changelog) for changelog in epoch.changelog}
        # its records are contiguous, and the commit marker follows them
        ends = {partition: first + counts[partition] + 1 for partition, first in firsts.items()}
        self._changelog_ends |= ends
        return ends

    def _firsts(self, written: Sequence[Any]) -> dict[int, int]:
        """Partition of the changelog -> offset of its first record in this transaction. Raises DataLossError where the log has
        become shorter: it is another one, without the states of the streams that are silent just now."""
        firsts: dict[int, int] = {}
        for metadata in written:
            firsts[metadata.partition] = min(firsts.get(metadata.partition, metadata.offset), metadata.offset)
        for partition, first in firsts.items():
            if first < self._changelog_ends.get(partition, 0):
                raise DataLossError(
                    f"changelog {self._settings.changelog_topic!r}, partition {partition}, ended at offset "
                    f"{self._changelog_ends[partition]} and now at {first}: it was deleted and created again, or lost records, "
                    "while the service runs, and the states with it. Use a new kafka.group."
                )
        if news := self.clock.appended([each.timestamp for each in written if self._changelog_stamps]):
            log.warning("%s", news)
        return firsts

    async def same_input(self, partitions: Collection[int] = ()) -> None:
        """Positions of a topic mean nothing in another one of the same name."""
        if not self._input.topic_id:
            return
        found = await self._reader.identity(partitions)
        if found is None:
            raise DataLossError(gone(self._input.name))
        if found != self._input.topic_id:
            raise DataLossError(replaced(self._input.name))

    async def _taken(self, sent: Sequence[asyncio.Future[Any]], ours: str) -> list[Any]:
        """What the brokers answered. ``ours``: the topic whose records we stamp, if any: a time of our own that is refused is
        our clock's fault."""
        try:
            return await _delivered(sent)
        except kafka_errors.InvalidTimestampError as error:
            if not ours:
                raise
            raise ConfigurationError(self.clock.refused(ours)) from error

    async def _explained(self, error: BaseException, doing: str, producer: Producer | None) -> StreamerError:
        """Where nobody took the records in time, a topic may be gone, since the client waits for it, or a broker has said why
        it does not take them."""
        if isinstance(error, TimeoutError | kafka_errors.UnknownTopicOrPartitionError):
            output, dead_letter = self._settings.output.topic, self._settings.dead_letter_topic
            changelog = self._settings.changelog_topic
            written = [topic for topic in (output, dead_letter, changelog) if topic is not None]
            for topic in await self._reader.missing(written):
                if topic == changelog:
                    return DataLossError(
                        f"changelog {topic!r} was deleted while the service runs, and the states with it. Use a new kafka.group."
                    )
                return KafkaRefusedError(
                    f"topic {topic!r} was deleted while the service runs. Create it again with "
                    f"{len(self._input.partitions)} partitions, or let the service do it at its next start (topics.create)."
                )
        last = producer.last_error if producer is not None and isinstance(error, TimeoutError) else None
        if last is not None:
            doing += ", not taken in time"
        return self._connection.explain(error if last is None else last, doing, right="WRITE")


async def _delivered(futures: Sequence[asyncio.Future[Any]]) -> list[Any]:
    """When all have ended. Raises what the first of them failed with."""
    if futures:
        await asyncio.wait(futures)
    return [future.result() for future in futures]
