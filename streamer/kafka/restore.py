"""Reading a changelog at take-over: first wait until every transaction of previous owners is decided, then read.
Partitions that are decided at once are not held up by the others.

The last stable offset reaches the high watermark seen after the assignment when no such transaction is open. One that
stays open for a second belongs to an owner that died inside it: the record at the last stable offset names its
transactional id, and initialising that id ends it at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping

from streamer.core import RecordBatch
from streamer.errors import KafkaUnavailableError
from streamer.kafka.client import Connection, KafkaError, close
from streamer.kafka.input import Input
from streamer.kafka.writes import TRANSACTION_HEADER

_UNDECIDED_S = 1.0
_POLL_S = 0.02
_STUCK_S = 60.0
_HANGING_S = 60.0
"""After this long an undecided transaction is one that its coordinator does not know any more."""


Apply = Callable[[RecordBatch, int, int], None]
"""Some records, the next offset of the changelog after them, and their bytes"""


class Restorer:
    """Reads changelog partitions. Use as an async context manager, for as long as a recovery takes."""

    def __init__(self, connection: Connection, changelog: str, *, own_ids: Collection[str], fetch_bytes: int) -> None:
        self._connection = connection
        self._topic = changelog
        self._own_ids = own_ids
        self._fetch_bytes = fetch_bytes
        self._committed = self._input("read_committed")
        self._raw = self._input("read_uncommitted")

    def _input(self, isolation_level: str) -> Input:
        return Input.of_log(
            self._connection, self._topic, fetch_bytes=self._fetch_bytes, isolation_level=isolation_level
        )

    async def __aenter__(self) -> Restorer:
        await self._committed.start()
        await self._raw.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._committed.stop()
        await self._raw.stop()

    async def unchanged(self, ends: Mapping[int, int]) -> set[int]:
        """Partitions that end where ``ends`` says, with nothing undecided behind it."""
        written = await self._raw.ends(ends)
        stable = await self._committed.ends(ends)
        return {partition for partition, end in ends.items() if stable[partition] == written[partition] == end}

    async def stable_ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """Where the committed part of every partition ends now, for those who only look."""
        return await self._committed.ends(partitions)

    async def decided(self, partitions: Iterable[int]) -> AsyncIterator[dict[int, int]]:
        """Waits until all that was written before this call is decided; yields ends to read up to, in groups as they
        become known: at first, usually, all partitions.

        Raises KafkaUnavailableError when nobody decides: the next recovery looks again."""
        waiting = await self._raw.ends(partitions)
        loop = asyncio.get_running_loop()
        began = since = loop.time()
        fenced: set[str] = set()
        while waiting:
            stable = await self._committed.ends(waiting)
            decided = {partition: end for partition, end in stable.items() if end >= waiting[partition]}
            if decided:
                yield decided
            waiting = {partition: end for partition, end in waiting.items() if partition not in decided}
            if waiting and loop.time() - since > _UNDECIDED_S:
                for partition in waiting:
                    await self._end_transaction(partition, stable[partition], fenced)
                since = loop.time()
            if waiting and loop.time() - began > _HANGING_S:
                raise KafkaUnavailableError(
                    f"changelog {self._topic!r}: a transaction has been open for {_HANGING_S:.0f} s at "
                    f"{ {partition: stable[partition] for partition in waiting} } (partition: offset). Its coordinator may "
                    "have forgotten it (KAFKA-20734 in Kafka 4.3 and 4.4): see kafka-transactions.sh find-hanging, and the "
                    "operations guide before you abort it."
                )
            if waiting:
                await asyncio.sleep(_POLL_S)

    async def _end_transaction(self, partition: int, offset: int, fenced: set[str]) -> None:
        """Initialises the transactional id that the record at the last stable offset names: once, never our own."""
        self._raw.assign({partition: offset})
        loop = asyncio.get_running_loop()
        deadline = loop.time() + 5
        found: str | None = None
        while found is None and loop.time() < deadline:
            for batch in await self._raw.poll(1, 200):
                headers = batch.headers.get(0, ())
                if batch.offsets[0] != offset:
                    return  # decided meanwhile
                named = next((value for name, value in headers if name == TRANSACTION_HEADER), None)
                found = (named or b"").decode("utf-8", "replace")
        if not found or found in fenced or found in self._own_ids:
            return  # foreign or own: the broker's time-out decides
        fenced.add(found)
        producer = self._connection.producer(transactional_id=found, transaction_timeout_ms=10_000)
        try:
            await self._connection.started(producer)
        finally:
            await close(producer)

    async def read(
        self, ends: dict[int, int], *, on_piece: Apply, max_records: int = 2_000
    ) -> AsyncIterator[list[int]]:
        """Reads every partition from its beginning to its end; ``on_piece`` gets at least one piece per partition, the last
        of them empty. Yields partitions as they are complete. A piece is small, since live partitions wait while it is
        applied."""
        begins = await self._committed.beginnings(ends)
        empty = [partition for partition in ends if begins[partition] >= ends[partition]]
        for partition in empty:
            on_piece(RecordBatch(partition, [], [], [], []), ends[partition], 0)
        if empty:
            yield empty
        positions = {partition: begins[partition] for partition in ends if partition not in empty}
        if not positions:
            return
        reader = self._input("read_committed")
        await reader.start()
        try:
            reader.assign(positions)
            moved_at = asyncio.get_running_loop().time()
            while positions:
                for batch in await reader.poll(max_records, 100):
                    size = sum(
                        len(key or b"") + len(value or b"") for key, value in zip(batch.keys, batch.values, strict=True)
                    )
                    on_piece(batch, reader.next_fetch_offset(batch.partition), size)
                done = []
                for partition in list(positions):
                    position = reader.next_fetch_offset(partition)
                    if position > positions[partition]:
                        positions[partition], moved_at = position, asyncio.get_running_loop().time()
                    if position >= ends[partition]:  # markers and compaction: the last record may lie before the end
                        on_piece(RecordBatch(partition, [], [], [], []), position, 0)
                        del positions[partition]
                        done.append(partition)
                if done:
                    reader.pause(done)
                    yield done
                if positions and asyncio.get_running_loop().time() - moved_at > _STUCK_S:
                    raise KafkaUnavailableError(
                        f"changelog {self._topic!r}: no progress for {_STUCK_S:.0f} s while restoring {positions}"
                    )
        finally:
            await reader.stop()


async def find_record(
    connection: Connection, topic: str, partition: int, key: bytes, isolation_level: str = "read_committed"
) -> bytes | None:
    """The newest value of ``key`` in a changelog partition, read from its beginning (offline look-ups)."""
    reader = Input.of_log(connection, topic, fetch_bytes=8_388_608, isolation_level=isolation_level)
    await reader.start()
    try:
        end = (await reader.ends([partition]))[partition]
        begin = (await reader.beginnings([partition]))[partition]
        found: bytes | None = None
        reader.assign({partition: begin})
        while reader.next_fetch_offset(partition) < end:
            for batch in await reader.poll(10_000, 100):
                for found_key, value in zip(batch.keys, batch.values, strict=True):
                    if found_key == key:
                        found = value
        return found
    except KafkaError as error:
        raise connection.explain(error, f"reading {topic!r}") from error
    finally:
        await reader.stop()
