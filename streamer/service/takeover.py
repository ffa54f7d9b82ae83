"""Taking partitions over: decide what is open, fetch the changelog and the facts, and let ``engine.restore`` judge.

Runs beside the live work of other partitions: between two model calls a piece of the changelog is applied, nothing else.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from streamer.core import RecordBatch
from streamer.engine.partition import Partition
from streamer.engine.processor import Processor
from streamer.engine.restore import Found, Names, Restore
from streamer.kafka.client import Connection
from streamer.kafka.commit import Committer
from streamer.kafka.group import Group
from streamer.kafka.input import Input
from streamer.kafka.restore import Restorer
from streamer.settings import Settings

LOG_CHECK_MS = 5_000
_PROBE_BYTES = 65_536
"""A broker sends the first record batch whole, however large it is."""
_FETCH_BYTES = 8_388_608


@dataclass(slots=True)
class RestoreProgress:
    """How far the restore of one partition is, in changelog offsets."""

    begin: int
    done: int
    end: int
    bytes_read: int = 0


class Takeover:
    """Brings the partitions that are owned and not here. ``ready`` holds those that are restored, until they are taken."""

    def __init__(
        self,
        connection: Connection,
        settings: Settings,
        processor: Processor,
        reader: Input,
        group: Group,
        committer: Committer,
        on_progress: Callable[[int, RestoreProgress], None],
    ) -> None:
        self._connection = connection
        self._settings = settings
        self._processor = processor
        self._reader = reader
        self._group = group
        self._committer = committer
        self._on_progress = on_progress
        self._names = Names(settings.input.topic, settings.changelog_topic or "")
        self._task: asyncio.Task[None] | None = None
        self._restored: list[Partition] = []
        self.undecided_s = 0.0
        """How long the last take-over waited for transactions of previous owners."""
        self.other_machines: dict[int, str] = {}
        """Partition -> machine that wrote what was restored, where it was of another kind"""

    async def unchanged(self, partitions: Iterable[Partition]) -> set[int]:
        """Partitions whose changelog nobody else has written since our last commit."""
        ends = {each.number: each.changelog_end for each in partitions if each.changelog_end is not None}
        if not ends or self._settings.changelog_topic is None:
            return set(ends)
        async with self._restorer(self._settings.changelog_topic) as restorer:
            return await restorer.unchanged(ends)

    # beside the loop

    def begin(self, numbers: Iterable[int]) -> None:
        assert self._task is None, "a take-over is under way"
        self.undecided_s = 0.0
        self._task = asyncio.create_task(self._run(sorted(numbers)))

    @property
    def under_way(self) -> bool:
        return self._task is not None and not self._task.done()

    def take(self) -> list[Partition]:
        """Partitions that were restored since the last call. Raises what ended the take-over."""
        restored, self._restored = self._restored, []
        if self._task is not None and self._task.done():
            task, self._task = self._task, None
            task.result()
        return restored

    async def stop(self) -> None:
        """Gives up what is not restored yet. What is, stays."""
        task, self._task, self._restored = self._task, None, []
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        for number, partition in list(self._processor.partitions.items()):
            if partition.restoring:
                self._processor.drop(number)

    async def _run(self, wanted: list[int]) -> None:
        if self._settings.changelog_topic is None:
            await self._finish({number: Restore(self._processor, number, self._names) for number in wanted}, {})
            return
        began = asyncio.get_running_loop().time()
        try:
            async with self._restorer(self._settings.changelog_topic) as restorer, asyncio.TaskGroup() as tasks:
                async for ends in restorer.decided(wanted):
                    self.undecided_s = asyncio.get_running_loop().time() - began
                    tasks.create_task(self._restore(restorer, ends))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group

    def _restorer(self, changelog: str) -> Restorer:
        return Restorer(self._connection, changelog, own_ids=self._committer.used_ids, fetch_bytes=_FETCH_BYTES)

    async def _restore(self, restorer: Restorer, ends: dict[int, int]) -> None:
        restores = {number: Restore(self._processor, number, self._names) for number in ends}
        progress: dict[int, RestoreProgress] = {}

        def apply(piece: RecordBatch, done: int, bytes_read: int) -> None:
            number = piece.partition
            restores[number].apply(piece)
            first = piece.offsets[0] if len(piece) else done
            mine = progress.setdefault(number, RestoreProgress(first, done, ends[number]))
            mine.done, mine.bytes_read = done, mine.bytes_read + bytes_read
            self._on_progress(number, mine)

        async for complete in restorer.read(ends, on_piece=apply):
            await self._finish({number: restores[number] for number in complete}, ends)

    async def _finish(self, restores: Mapping[int, Restore], changelog_ends: Mapping[int, int]) -> None:
        """All facts are fetched, then every partition is judged."""
        facts = await self._reader.facts(restores)
        committed = await self._group.committed(restores)
        start = self._settings.input.start_position()
        if start == "earliest":
            starts = {number: facts[number].begin for number in restores}
        elif start == "latest":
            starts = {number: facts[number].end for number in restores}
        else:
            fresh = [number for number, restore in restores.items() if restore.progress is None]
            starts = await self._reader.at_time(fresh, int(start)) if fresh else {}
        wanted = {
            number: offset
            for number, restore in restores.items()
            if (offset := restore.wanted_record) is not None and facts[number].begin <= offset < facts[number].end
        }
        checksums = await self._checksums(wanted)
        self._committer.restored({number: changelog_ends[number] for number in restores if number in changelog_ends})
        for number, restore in restores.items():
            start_at = starts.get(number, facts[number].begin)
            found = Found(facts[number], committed[number], start_at, checksums.get(number))
            partition = restore.finish(found)
            partition.changelog_end = changelog_ends.get(number, 0)
            self.other_machines.pop(number, None)
            if (other := restore.other_machine) is not None:
                self.other_machines[number] = other
            self._restored.append(partition)

    async def _checksums(self, wanted: Mapping[int, int]) -> dict[int, int]:
        """CRC-32 of key and value of one record per partition, where it still exists."""
        if not wanted:
            return {}
        found: dict[int, int] = {}
        waiting = dict(wanted)
        probe = Input.of_log(self._connection, self._settings.input.topic, fetch_bytes=_PROBE_BYTES)
        await probe.start()
        try:
            probe.assign(waiting)
            for _ in range(LOG_CHECK_MS // 100):
                for batch in await probe.poll_what_is_left(len(waiting), 100):
                    if waiting.get(batch.partition) == batch.offsets[0]:
                        found[batch.partition] = zlib.crc32(batch.values[0] or b"", zlib.crc32(batch.keys[0] or b""))
                for number, offset in list(waiting.items()):
                    if probe.next_fetch_offset(number) > offset:  # read, or deleted
                        del waiting[number]
                if not waiting:
                    break
                probe.pause(set(wanted) - set(waiting))
            return found
        finally:
            await probe.stop()
