"""What an epoch writes, handed to a producer: predictions, dead letters, changelog."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from streamer.core import Changelog, Outgoing, Reject, Transaction
from streamer.errors import ConfigurationError
from streamer.kafka.internals import Producer, noticed
from streamer.kafka.policies import CHANGELOG, DEAD_LETTER, OUTPUT
from streamer.kafka.rows import NO_TIME, Row, RowTooLarge, dead_letter_row, prediction_rows, source_prefix
from streamer.kafka.topics import InputTopic
from streamer.settings import Settings

TRANSACTION_HEADER = "streamer-txn"
_Batches = tuple[str, int, Iterator[Any]]
"""Of one partition of a topic"""


class Writes:
    """Hands records over; the futures tell what became of them. ``bytes_written``: to the changelog."""

    def __init__(self, settings: Settings, topic: InputTopic, native: Any = None) -> None:
        """``native``: the module that packs predictions, if it is used."""
        self._settings = settings
        self._native = native
        self._prefix = topic.name.encode() + b"/"
        self.stamped = settings.output.timestamp == "record"
        """Predictions and dead letters carry the times of their records."""
        names = {
            OUTPUT: settings.output.topic,
            DEAD_LETTER: settings.dead_letter_topic,
            CHANGELOG: settings.changelog_topic,
        }
        self._max_bytes = {name: topic.max_bytes(what) for what, name in names.items() if name is not None}
        """Of one record batch, by topic"""
        self.bytes_written = 0

    async def results(
        self, producer: Producer, outgoing: Sequence[Outgoing], refused: Sequence[Reject]
    ) -> list[asyncio.Future[Any]]:
        return [future for _, future in await self._hand_over(producer, self._results(producer, outgoing, refused))]

    async def transaction(
        self, producer: Producer, epoch: Transaction, transactional_id: str
    ) -> tuple[list[asyncio.Future[Any]], list[asyncio.Future[Any]]]:
        """Results, and changelog: handed over together, so that the client adds all partitions and sends all batches in one
        request each. ``transactional_id``: who writes, so that others can end a transaction that was left open."""
        results = self._results(producer, epoch.outgoing, epoch.rejects)
        changelog = self._changelog(producer, epoch.changelog, transactional_id)
        handed = await self._hand_over(producer, [*results, *changelog])
        own = self._settings.changelog_topic
        return [future for topic, future in handed if topic != own], [
            future for topic, future in handed if topic == own
        ]

    def _results(
        self, producer: Producer, outgoing: Sequence[Outgoing], refused: Sequence[Reject]
    ) -> Iterator[_Batches]:
        by_partition: dict[int, list[Outgoing]] = {}
        for part in outgoing:
            by_partition.setdefault(part.partition, []).append(part)
        dead_letter = self._settings.dead_letter_topic
        for partition, parts in by_partition.items():
            yield self._settings.output.topic, partition, self._answers(producer, partition, parts)
        if dead_letter is not None:
            rejects: dict[int, list[Reject]] = {}
            for reject in refused:
                rejects.setdefault(reject.partition, []).append(reject)
            for partition, each in rejects.items():
                yield self._packed(producer, dead_letter, partition, map(self._dead_letter_row, each))

    def _answers(self, producer: Producer, partition: int, parts: Sequence[Outgoing]) -> Iterator[Any]:
        limit = self._max_bytes[self._settings.output.topic]
        odd = any(part.headers or NO_TIME in part.timestamps_ms for part in parts)
        if odd or self._native is None or not (self.stamped and producer.plain):
            return producer.pack(prediction_rows(self._prefix, partition, parts, stamped=self.stamped), limit)
        return producer.pack_answers(self._native, parts, source_prefix(self._prefix, partition), limit)

    def _packed(self, producer: Producer, topic: str, partition: int, rows: Iterable[Row]) -> _Batches:
        return topic, partition, producer.pack(rows, self._max_bytes[topic])

    def _dead_letter_row(self, reject: Reject) -> Row:
        assert self._settings.dead_letter_topic is not None
        limit = self._max_bytes[self._settings.dead_letter_topic]
        return dead_letter_row(reject, self._prefix, limit, stamped=self.stamped)

    def _changelog(
        self, producer: Producer, changelogs: Sequence[Changelog], transactional_id: str
    ) -> Iterator[_Batches]:
        topic = self._settings.changelog_topic
        assert topic is not None
        mark: list[tuple[str, bytes | None]] = [(TRANSACTION_HEADER, transactional_id.encode())]
        for changelog in changelogs:
            rows = ((None, key, value, [] if row else mark) for row, (key, value) in enumerate(changelog.records))
            yield self._packed(producer, topic, changelog.partition, rows)

    async def _hand_over(self, producer: Producer, writes: Iterable[_Batches]) -> list[tuple[str, asyncio.Future[Any]]]:
        """The first batch of every partition, then the second of those that have one: the client takes one of each at a time,
        and takes it at once. So there is no task per partition, which would cost more than the few records of a small epoch."""
        handed: list[tuple[str, asyncio.Future[Any]]] = []
        going = list(writes)
        while going:
            rest, going = going, []
            for topic, partition, batches in rest:
                if (batch := self._next(topic, batches)) is not None:
                    if topic == self._settings.changelog_topic:
                        self.bytes_written += batch.size()
                    future = await producer.send_batch(batch, topic, partition=partition)
                    future.add_done_callback(noticed)
                    handed.append((topic, future))
                    going.append((topic, partition, batches))
        return handed

    def _next(self, topic: str, batches: Iterator[Any]) -> Any:
        try:
            return next(batches, None)
        except RowTooLarge as error:
            raise ConfigurationError(
                f"a record of {error.size} bytes does not fit a batch of topic {topic!r}: raise its max.message.bytes, which is "
                f"{self._max_bytes[topic]}"
            ) from error
