"""What an epoch writes, handed to a producer: predictions, dead letters, changelog."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from streamer.core import Changelog, Outgoing, Reject, Transaction
from streamer.errors import ConfigurationError
from streamer.kafka.internals import Producer, Row, RowTooLarge, noticed
from streamer.kafka.policies import CHANGELOG, DEAD_LETTER, OUTPUT
from streamer.kafka.rows import dead_letter_row, prediction_rows
from streamer.kafka.topics import InputTopic
from streamer.settings import Settings

TRANSACTION_HEADER = "streamer-txn"
_Rows = tuple[str, int, Iterable[Row]]
"""Of one partition of a topic"""


class Writes:
    """Hands records over; the futures tell what became of them. ``bytes_written``: to the changelog."""

    def __init__(self, settings: Settings, topic: InputTopic) -> None:
        self._settings = settings
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
        return [future for _, future in await self._hand_over(producer, self._results(outgoing, refused))]

    async def transaction(
        self, producer: Producer, epoch: Transaction, transactional_id: str
    ) -> tuple[list[asyncio.Future[Any]], list[asyncio.Future[Any]]]:
        """Results, and changelog: handed over together, so that the client adds all partitions and sends all batches in one
        request each. ``transactional_id``: who writes, so that others can end a transaction that was left open."""
        results = self._results(epoch.outgoing, epoch.rejects)
        handed = await self._hand_over(producer, [*results, *self._changelog(epoch.changelog, transactional_id)])
        own = self._settings.changelog_topic
        return [future for topic, future in handed if topic != own], [
            future for topic, future in handed if topic == own
        ]

    def _results(self, outgoing: Sequence[Outgoing], refused: Sequence[Reject]) -> Iterator[_Rows]:
        by_partition: dict[int, list[Outgoing]] = {}
        for part in outgoing:
            by_partition.setdefault(part.partition, []).append(part)
        topic, dead_letter = self._settings.output.topic, self._settings.dead_letter_topic
        for partition, parts in by_partition.items():
            yield topic, partition, prediction_rows(self._prefix, partition, parts, stamped=self.stamped)
        if dead_letter is not None:
            rejects: dict[int, list[Reject]] = {}
            for reject in refused:
                rejects.setdefault(reject.partition, []).append(reject)
            for partition, each in rejects.items():
                yield dead_letter, partition, map(self._dead_letter_row, each)

    def _dead_letter_row(self, reject: Reject) -> Row:
        assert self._settings.dead_letter_topic is not None
        limit = self._max_bytes[self._settings.dead_letter_topic]
        return dead_letter_row(reject, self._prefix, limit, stamped=self.stamped)

    def _changelog(self, changelogs: Sequence[Changelog], transactional_id: str) -> Iterator[_Rows]:
        topic = self._settings.changelog_topic
        assert topic is not None
        mark: list[tuple[str, bytes | None]] = [(TRANSACTION_HEADER, transactional_id.encode())]
        for changelog in changelogs:
            rows = ((None, key, value, [] if row else mark) for row, (key, value) in enumerate(changelog.records))
            yield topic, changelog.partition, rows

    async def _hand_over(self, producer: Producer, writes: Iterable[_Rows]) -> list[tuple[str, asyncio.Future[Any]]]:
        """The first batch of every partition, then the second of those that have one: the client takes one of each at a time,
        and takes it at once. So there is no task per partition, which would cost more than the few records of a small epoch."""
        handed: list[tuple[str, asyncio.Future[Any]]] = []
        going = [(topic, part, producer.pack(rows, self._max_bytes[topic])) for topic, part, rows in writes]
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
