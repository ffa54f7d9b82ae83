"""What an epoch writes, handed to a producer: predictions, dead letters, changelog."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from streamer.core import Changelog, Outgoing, Reject
from streamer.errors import ConfigurationError
from streamer.kafka.internals import Producer, Row, RowTooLarge, noticed
from streamer.kafka.policies import CHANGELOG, DEAD_LETTER, OUTPUT
from streamer.kafka.rows import dead_letter_row, prediction_rows
from streamer.kafka.topics import InputTopic
from streamer.settings import Settings

TRANSACTION_HEADER = "streamer-txn"


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
        by_partition: dict[int, list[Outgoing]] = {}
        for part in outgoing:
            by_partition.setdefault(part.partition, []).append(part)
        topic, dead_letter = self._settings.output.topic, self._settings.dead_letter_topic
        sends = [
            self._send(
                producer, topic, partition, prediction_rows(self._prefix, partition, parts, stamped=self.stamped)
            )
            for partition, parts in by_partition.items()
        ]
        if dead_letter is not None:
            rejects: dict[int, list[Reject]] = {}
            for reject in refused:
                rejects.setdefault(reject.partition, []).append(reject)
            sends += [
                self._send(producer, dead_letter, partition, map(self._dead_letter_row, parts))
                for partition, parts in rejects.items()
            ]
        return [future for futures in await asyncio.gather(*sends) for future in futures]

    def _dead_letter_row(self, reject: Reject) -> Row:
        assert self._settings.dead_letter_topic is not None
        limit = self._max_bytes[self._settings.dead_letter_topic]
        return dead_letter_row(reject, self._prefix, limit, stamped=self.stamped)

    async def changelog(
        self, producer: Producer, changelogs: Sequence[Changelog], transactional_id: str
    ) -> list[asyncio.Future[Any]]:
        """``transactional_id``: who writes, so that others can end a transaction that was left open."""
        topic = self._settings.changelog_topic
        assert topic is not None
        mark: list[tuple[str, bytes | None]] = [(TRANSACTION_HEADER, transactional_id.encode())]
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

    async def _send(
        self, producer: Producer, topic: str, partition: int, rows: Iterable[Row]
    ) -> list[asyncio.Future[Any]]:
        futures: list[asyncio.Future[Any]] = []
        try:
            for batch in producer.pack(rows, self._max_bytes[topic]):
                if topic == self._settings.changelog_topic:
                    self.bytes_written += batch.size()
                future = await producer.send_batch(batch, topic, partition=partition)
                future.add_done_callback(noticed)
                futures.append(future)
        except RowTooLarge as error:
            raise ConfigurationError(
                f"a record of {error.size} bytes does not fit a batch of topic {topic!r}: raise its max.message.bytes, which is "
                f"{self._max_bytes[topic]}"
            ) from error
        return futures
