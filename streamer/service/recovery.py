"""Taking partitions over: decide what is open, read the changelog into the processor, check it against the log.

``unchanged`` tells which partitions keep their warm state, since their changelog did not move; ``restore`` brings the
others back, each as soon as it is ready.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from streamer.engine.ledger import Ledger
from streamer.engine.processor import Processor
from streamer.errors import DataLossError
from streamer.kafka.client import Connection
from streamer.kafka.group import Group
from streamer.kafka.input import Input
from streamer.kafka.restore import RestoreChunk, Restorer
from streamer.records.changelog import Kind, Progress, StreamRecord

LOG_CHECK_MS = 5_000
PROBE_BYTES = 65_536
"""A broker sends the first record batch whole, however large it is."""


@dataclass(frozen=True)
class Rules:
    """What recovery must know of the settings."""

    input: str
    changelog: str | None
    start: str
    """First start: earliest | latest | milliseconds since 1970"""
    model_changed: str
    """refuse | keep | reset"""
    fetch_bytes: int = 8_388_608


@dataclass(slots=True)
class RestoreState:
    """Progress of one partition's restore, for logs, metrics and the status page."""

    done: int = 0
    begin: int | None = None
    end: int = 0
    bytes_read: int = 0
    progress: Progress | None = None
    forgotten: dict[bytes, int] = field(default_factory=dict)
    window_through: dict[bytes, int] = field(default_factory=dict)
    rollouts: dict[bytes, StreamRecord] = field(default_factory=dict)

    @property
    def remaining(self) -> int:
        return max(self.end - self.done, 0)


class Recovery:
    """Brings partitions into a processor, beside the live work of other partitions: only ``load`` and ``unload`` are
    called here, between two model calls. The caller has revoked what it restores."""

    def __init__(
        self,
        connection: Connection,
        rules: Rules,
        processor: Processor,
        reader: Input,
        group: Group,
        *,
        own_ids: Callable[[], set[str]],
        on_progress: Callable[[int, RestoreState], None],
    ) -> None:
        self._connection = connection
        self._rules = rules
        self._processor = processor
        self._reader = reader
        self._group = group
        self._own_ids = own_ids
        self._on_progress = on_progress
        self.undecided_s = 0.0
        """How long the last recovery waited for transactions of previous owners."""

    async def unchanged(self, warm: Mapping[int, int]) -> set[int]:
        """Partitions of ``warm`` (partition -> where its changelog ended) that nobody else has written since."""
        if not warm or self._rules.changelog is None:
            return set(warm)
        async with self._restorer(self._rules.changelog) as restorer:
            return await restorer.unchanged(warm)

    async def restore(self, partitions: Iterable[int], on_ready: Callable[[int, Ledger, int], None]) -> None:
        """``on_ready`` gets every partition once: its ledger and where its changelog ends.

        Raises DataLossError when the changelog does not fit."""
        wanted = sorted(partitions)
        self.undecided_s, began = 0.0, asyncio.get_running_loop().time()
        if self._rules.changelog is None:
            for partition, ledger in (await self._without_changelog(wanted)).items():
                on_ready(partition, ledger, 0)
            return
        try:
            async with self._restorer(self._rules.changelog) as restorer, asyncio.TaskGroup() as tasks:
                async for ends in restorer.decided(wanted):
                    self.undecided_s = asyncio.get_running_loop().time() - began
                    tasks.create_task(self._restore(restorer, ends, on_ready))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group

    def _restorer(self, changelog: str) -> Restorer:
        return Restorer(self._connection, changelog, own_ids=self._own_ids(), fetch_bytes=self._rules.fetch_bytes)

    async def _restore(
        self, restorer: Restorer, ends: dict[int, int], on_ready: Callable[[int, Ledger, int], None]
    ) -> None:
        states = {partition: RestoreState(end=end) for partition, end in ends.items()}

        def apply(chunk: RestoreChunk) -> None:
            self._apply(states[chunk.partition], chunk)

        async for complete in restorer.read(ends, on_chunk=apply):
            ledgers = await self._ledgers({partition: states[partition] for partition in complete})
            for partition, ledger in ledgers.items():
                on_ready(partition, ledger, ends[partition])

    def _apply(self, state: RestoreState, chunk: RestoreChunk) -> None:
        processor, partition = self._processor, chunk.partition
        if state.begin is None:
            state.begin = chunk.done - len(chunk.records)
        for record in chunk.records:
            if record.kind is Kind.WINDOW:
                state.window_through[record.stream] = record.through
            elif record.kind is Kind.ROLLOUT:
                state.rollouts[record.stream] = record
            else:
                state.forgotten.pop(record.stream, None)
        gone = {stream for kind, stream in chunk.removed if kind is Kind.STATE} | chunk.forgotten.keys()
        for kind, stream in chunk.removed:
            ended: dict[Kind, dict[bytes, Any]] = {Kind.WINDOW: state.window_through, Kind.ROLLOUT: state.rollouts}
            ended.get(kind, state.forgotten).pop(stream, None)
        state.forgotten.update(chunk.forgotten)
        processor.unload(partition, gone)
        processor.load(
            partition,
            (record for record in chunk.records if record.kind is Kind.STATE),
            reset_changed_models=self._rules.model_changed == "reset",
        )
        state.progress = chunk.progress or state.progress
        state.done, state.end = chunk.done, chunk.end
        state.bytes_read += chunk.bytes_read
        self._on_progress(partition, state)

    async def _ledgers(self, states: Mapping[int, RestoreState]) -> dict[int, Ledger]:
        begins = await self._reader.beginnings(states)
        ends = await self._reader.ends(states)
        fresh = [partition for partition, state in states.items() if state.progress is None]
        starts = await self._first_starts(fresh, begins, ends)
        result: dict[int, Ledger] = {}
        known: dict[int, Progress] = {}
        for partition, state in states.items():
            if state.progress is None:
                result[partition] = Ledger.fresh(starts[partition])
                result[partition].moved = True  # the start itself must be durable
                continue
            self._check(partition, state.progress, begins[partition], ends[partition])
            if state.progress.position > begins[partition]:
                known[partition] = state.progress
            result[partition] = Ledger.restored(
                state.progress, state.forgotten, state.window_through, state.rollouts.values()
            )
        await self._check_log(known)
        return result

    async def _first_starts(
        self, partitions: list[int], begins: Mapping[int, int], ends: Mapping[int, int]
    ) -> dict[int, int]:
        if not partitions:
            return {}
        committed = await self._group.committed(partitions)
        known = {partition: offset for partition, offset in committed.items() if offset is not None}
        if known and self._rules.changelog is not None:
            raise DataLossError(
                f"the group has committed offsets {known} on {self._rules.input!r}, but changelog "
                f"{self._rules.changelog!r} has no progress there: it was lost or belongs to another group. Restore it, or "
                "use a new kafka.group to begin from the initial state."
            )
        start = self._rules.start
        if start == "earliest":
            first = {partition: begins[partition] for partition in partitions}
        elif start == "latest":
            first = {partition: ends[partition] for partition in partitions}
        else:
            first = await self._reader.at_time(partitions, int(start))
        return {**first, **{partition: max(offset, begins[partition]) for partition, offset in known.items()}}

    async def _without_changelog(self, partitions: list[int]) -> dict[int, Ledger]:
        begins, ends = await self._reader.beginnings(partitions), await self._reader.ends(partitions)
        starts = await self._first_starts(partitions, begins, ends)
        return {partition: Ledger.fresh(starts[partition]) for partition in partitions}

    def _check(self, partition: int, progress: Progress, begin: int, end: int) -> None:
        identity = self._processor.identity
        where = f"partition {partition} of {self._rules.input!r}"
        if progress.group != identity.group:
            raise DataLossError(
                f"{where}: the changelog was written by group {progress.group!r}, this is {identity.group!r}. "
                "Correct changelog.topic or kafka.group."
            )
        if progress.topic_id and identity.topic_id and progress.topic_id != identity.topic_id:
            raise DataLossError(
                f"{where}: the input topic was deleted and created again (its id changed), so positions mean nothing. "
                "Use a new kafka.group to begin with the new topic."
            )
        if progress.fingerprint != identity.fingerprint:
            raise DataLossError(
                f"{where}: settings that decide (windows, codec, lateness) changed from {progress.fingerprint!r} to "
                f"{identity.fingerprint!r} while events are in flight. Restore them, or use a new kafka.group."
            )
        models = {lane.name: lane.model_id.hex() for lane in self._processor.lanes}
        if progress.models != models and self._rules.model_changed == "refuse":
            raise DataLossError(
                f"{where}: states were written by models {progress.models}, served are {models}. Serve the same files, or "
                'set delivery.model_changed = "keep" (same state shapes) or "reset" (initial states).'
            )
        if progress.replay_point < begin:
            raise DataLossError(
                f"{where}: replay must begin at offset {progress.replay_point}, the log begins at {begin}: retention "
                "deleted input that is still needed. Raise the topic's retention; use a new kafka.group to go on without."
            )
        if progress.position > end:
            raise DataLossError(
                f"{where}: position {progress.position} is beyond the end of the log ({end}): the input lost records. "
                "Use a new kafka.group to begin anew."
            )

    async def _check_log(self, known: Mapping[int, Progress]) -> None:
        """The record before the position must be the one that was processed, where it still exists."""
        if not known:
            return
        probe = Input(
            self._connection,
            self._rules.input,
            fetch_min_bytes=1,
            fetch_max_wait_ms=50,
            fetch_max_bytes=PROBE_BYTES,
            max_partition_fetch_bytes=PROBE_BYTES,
        )
        await probe.start()
        try:
            waiting = {partition: progress.position - 1 for partition, progress in known.items()}
            probe.assign(waiting)
            waited_ms = 0
            while waiting and waited_ms < LOG_CHECK_MS:
                for batch in await probe.poll(len(waiting), 100):
                    before = waiting.pop(batch.partition, None)
                    if before is None or batch.offsets[0] != before:
                        continue
                    checksum = zlib.crc32(batch.values[0] or b"", zlib.crc32(batch.keys[0] or b""))
                    if checksum != known[batch.partition].checksum:
                        raise DataLossError(
                            f"partition {batch.partition} of {self._rules.input!r}: the record at offset {before} is not "
                            "the one that was processed: the topic was replaced. Use a new kafka.group to begin anew."
                        )
                for partition, before in list(waiting.items()):
                    if probe.next_fetch_offset(partition) > before:  # a marker, or compacted away
                        del waiting[partition]
                probe.pause(set(known) - set(waiting))
                waited_ms += 100
        finally:
            await probe.stop()
