"""The synchronous core: gather, run, settle, seal. No I/O, no clock, no asyncio.

Few calls drive it, from a ten-line test or from the service alike:

    processor.ingest(batches)           # decoded records: what is news becomes pending work
    for _ in processor.run(): ...       # one model call per step; all pending work is settled when it ends
    processor.roll()                    # between the others: one step of what is being generated
    epoch = processor.seal(now_ms)      # everything settled since the last epoch
    processor.committed(epoch, ends)    # or failed(epoch): an epoch has exactly two ends

Every decision at ingest depends on the record, the order of the log and the partition's own state only. Other decisions
(evictions, idle advances, rows that the model refused) are written into the changelog with the epoch that makes them.

Invariants, each asserted or tested as a property:

1. Event n+1 of a stream never runs before n has settled; a stream has at most one row in a batch.
2. A failed run leaves state, pending work and the epoch as before.
3. A row's result depends neither on its neighbours nor on chunking.
4. Positions only grow; everything below is committed: predicted, rejected, or in an open window that replay rebuilds.
5. Crash anywhere + recovery = never having crashed.
6. The watermark never goes back; a closed window never reopens; every event is in a window or counted late.
7. ingested = pending + settled; slots used + free = capacity; nothing of a partition that is given up remains.
8. Every queue, batch, window and wait has a bound; at the bound nothing is dropped silently and nothing grows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from streamer.core import (
    Answers,
    Changelog,
    Epoch,
    EventBatch,
    ModelCall,
    Reject,
    X,
)
from streamer.engine.journal import journal
from streamer.engine.lanes import Served, lanes_of
from streamer.engine.memory import Memory
from streamer.engine.partition import Partition, Phase
from streamer.engine.steprun import StepRun
from streamer.engine.tally import report
from streamer.engine.windowing import Closing
from streamer.engine.work import Part, Work
from streamer.modelfile.past import Past
from streamer.records.changelog import Identity
from streamer.records.keys import Keys
from streamer.settings import (
    BatchSection,
    DecodeSection,
    DeliverySection,
    GenerateSection,
    StateSection,
    UtteranceSection,
)


class Processor:
    """Runs one or two models over decoded records and keeps one state per stream. See the module's text for the calls."""

    def __init__(
        self,
        models: Sequence[Served],
        *,
        batch: BatchSection | None = None,
        state: StateSection | None = None,
        generate: GenerateSection | None = None,
        decode: DecodeSection | None = None,
        delivery: DeliverySection | None = None,
        late: str = "drop",
        identity: Identity | None = None,
        keys: Keys | None = None,
        pasts: Mapping[str, Past] | None = None,
        utterances: Mapping[str, UtteranceSection] | None = None,
    ) -> None:
        """``models``: at most one in window mode, all of one width and dtype. ``late``: as ``input.late``.
        ``keys``: what the keys of the input are (``Codec.keys``). ``pasts``: by model, of features that records do not have.
        ``utterances``: of the models that answer in symbols; without it they answer in numbers, per event."""
        self.batch, state = batch or BatchSection(), state or StateSection()
        self.delivery = delivery or DeliverySection()
        self.lanes, self.max_streams = lanes_of(
            models, self.batch, state, generate or GenerateSection(), decode or DecodeSection(), self.delivery,
            late=late, identity=identity or Identity(), keys=keys or Keys(), pasts=pasts or {}, utterances=utterances or {},
        )  # fmt: skip
        contract = models[0][1].contract
        self.no_events: X = np.empty((0, contract.features), contract.input.dtype)
        self.partitions: dict[int, Partition] = {}
        self.memory = Memory(self.lanes.slots, state.max_bytes, state.idle_ttl_ms)
        self._now_ms = 0
        self._work: Work | None = None
        self._calls: list[ModelCall] = []
        self._sealed: tuple[Epoch, list[Partition]] | None = None

    # partitions

    def open(self, number: int) -> Partition:
        """A partition that is to be restored (see ``streamer.engine.restore``)."""
        assert number not in self.partitions, f"partition {number} is already here"
        partition = self.partitions[number] = Partition(number, self.lanes)
        return partition

    def drop(self, number: int) -> None:
        """Gives a partition up, with what of it is not committed."""
        if self._work is not None and number in self._work.partitions:
            self.abandon()
        if (partition := self.partitions.pop(number, None)) is not None:
            partition.drop()

    def abandon(self) -> None:
        """Gives up pending work, with all partitions that it belongs to: merged, it has no part that could be taken out."""
        work, self._work = self._work, None
        for number in set() if work is None else work.partitions:
            self.drop(number)

    def keep_limit(self) -> None:
        """Memory is back under its limit: after a run, and after each chunk of a restore."""
        pending = np.empty(0, np.int64) if self._work is None else self._work.slots
        self.memory.keep_limit(self.partitions.values(), pending)

    # gather

    def ingest(self, batches: Sequence[EventBatch]) -> None:
        """Makes what is news in ``batches`` (of a partition in log order) pending. Nothing may be pending already."""
        assert self._work is None, "run() the pending work first"
        parts: list[Part] = []
        idle: dict[int, Partition] = {}
        windows: list[tuple[Partition, Closing]] = []
        begin = 0
        for fetched in batches:
            partition = self.partitions.get(fetched.partition)
            if partition is None or not partition.running or (taken := partition.take(fetched)) is None:
                continue
            batch, closed = taken
            windows += [(partition, closing) for closing in closed]
            if len(batch):
                parts.append(Part(partition, batch, begin, begin + len(batch)))
                begin += len(batch)
            else:
                idle[partition.number] = partition
        for partition in idle.values():  # the others when they have run: what they hold may still be a replay
            if all(part.partition is not partition for part in parts):
                partition.caught_up()
        if parts or windows:
            self._work = self._merged(parts, windows)

    def idle(self, number: int, elapsed_ms: int) -> None:
        """No record came for ``elapsed_ms`` although all were read: closes what that much time closes."""
        assert self._work is None, "run() the pending work first"
        partition = self.partitions[number]
        if closed := partition.idle(elapsed_ms):
            self._work = self._merged([], [(partition, closing) for closing in closed])

    def _merged(self, parts: list[Part], windows: list[tuple[Partition, Closing]]) -> Work:
        return Work.merged(parts, windows, stepping=bool(self.lanes.stepping), no_events=self.no_events)

    # run

    def run(self) -> Iterator[None]:
        """Settles the pending work, one model call per iteration. Who abandons the iterator must ``abandon`` the work."""
        work = self._work
        if work is None:
            return
        for number in range(len(self.lanes.stepping)):
            if work.parts:
                yield from StepRun(self.lanes, number, work, self.batch).run(self._calls)
        if self.lanes.decoder is not None:
            for partition, closing in work.windows:
                partition.decodings.ask(closing.window, closing.timestamp_ms, closing.headers)
        elif work.windows and self.lanes.windowing is not None:
            yield from work.judge(self.lanes.windowing, self.batch, self._calls)
        self._finish(work)

    def roll(self) -> bool:
        """One step of what models write by themselves (see ``streamer.generate``): one call per model, and one of an
        encoder. Nothing may be pending. Partitions that are still replayed wait: what they answer could not be committed
        yet. False: nothing could be done."""
        assert self._work is None, "run() the pending work first"
        live = self._live()
        rows: list[int] = []
        before, answered = len(self._calls), False
        for answer in self.lanes.generators.step([partition.rollouts for partition in live], rows):
            answered = True
            self._take_rolled(self.partitions[answer.partition], answer)
        self._calls += [(count, 1, count) for count in rows]
        if self.lanes.decoder is not None:
            for number, found in self.lanes.decoder.step([partition.decodings for partition in live], self._calls):
                answered = True
                self._take_rolled(self.partitions[number], found)
        return answered or len(self._calls) > before

    def _take_rolled(self, partition: Partition, found: Answers | Reject) -> None:
        partition.moved = True
        if isinstance(found, Reject):
            partition.refuse([found])
        else:
            partition.answers.append(found)

    def _live(self) -> list[Partition]:
        return [partition for partition in self.partitions.values() if partition.phase is Phase.LIVE]

    @property
    def rolling(self) -> bool:
        """Whether a step of anything is due."""
        return self.lanes.generators.open > 0 or (self.lanes.decoder is not None and self._decoding() > 0)

    def _decoding(self) -> int:
        return sum(len(partition.decodings) for partition in self._live())

    @property
    def room(self) -> int:
        """Records that may be taken in before more windows are written about than is allowed: each may close one."""
        decoder = self.lanes.decoder
        return self.batch.max_poll_records if decoder is None else max(decoder.limits.max_open - self._decoding(), 0)

    def _finish(self, work: Work) -> None:
        if len(work.slots):
            self.lanes.slots.used_at[work.slots] = self._now_ms
        for row, refused in work.refused.items():
            part = work.part_of(row)
            part.partition.refuse([part.batch.reject(row - part.begin, refused.reason, refused.detail)])
        self._work = None
        for part in work.parts:
            part.partition.settled(part.batch)
        for partition in dict.fromkeys(part.partition for part in work.parts):
            partition.caught_up()
        self.keep_limit()

    # seal

    def results(self) -> tuple[list[Answers], list[Reject]]:
        """Takes answers and rejects out of the open epoch, for deliveries that send them before the commit."""
        found = [partition.results() for partition in self.partitions.values()]
        return [each for answers, _ in found for each in answers], [each for _, rejects in found for each in rejects]

    @property
    def open_events(self) -> int:
        """Events settled since the last seal."""
        return sum(partition.tally.events for partition in self.partitions.values())

    @property
    def round_bytes(self) -> int:
        """What the current or last round of every partition writes, about."""
        return sum(partition.checkpoint.round_bytes for partition in self.partitions.values())

    @property
    def now_ms(self) -> int:
        """What the clock said last."""
        return self._now_ms

    def tick(self, now_ms: int) -> None:
        """The time, of a clock that never goes back: what least recently used and idle for long mean."""
        assert now_ms >= self._now_ms, "the clock went back"
        self._now_ms = now_ms

    def seal(self, now_ms: int, slice_bytes: int = 1 << 62) -> Epoch | None:
        """Everything settled since the last seal, or None when nothing is due. Nothing may be pending, and the epoch
        before has ended. ``slice_bytes``: budget for the stream records of this epoch."""
        assert self._work is None, "run() the pending work first"
        assert self._sealed is None, "the epoch before is neither committed nor failed"
        self.tick(now_ms)
        self.memory.forget_idle(self.partitions.values(), now_ms)
        interval_ms = self.delivery.checkpoint_interval_ms
        due = [partition for partition in self.partitions.values() if partition.due(now_ms, interval_ms)]
        if not due:
            return None
        changelog: list[Changelog] = []
        for partition in due:
            partition.advance()
            if not self.lanes.durable:
                partition.forget_history()
                continue
            records, spent = journal(partition, now_ms, interval_ms, slice_bytes)
            slice_bytes -= spent
            changelog.append(Changelog(partition.number, records))
        results = [partition.results() for partition in due]
        tallies = [partition.counted() for partition in due]
        calls, self._calls = self._calls, []
        epoch = Epoch(
            positions={partition.number: partition.position for partition in due},
            answers=[each for answers, _ in results for each in answers],
            rejects=[each for _, rejects in results for each in rejects],
            changelog=changelog,
            report=report(tallies, calls),
        )
        self._sealed = epoch, due
        return epoch

    def committed(self, epoch: Epoch, changelog_ends: Mapping[int, int]) -> None:
        """The epoch is durable and visible. ``changelog_ends``: partition -> where its changelog ends with it."""
        for partition in self._unseal(epoch):
            partition.changelog_end = changelog_ends.get(partition.number)

    def failed(self, epoch: Epoch) -> None:
        """The epoch is not visible, or nobody knows: its partitions are given up, and are to be restored."""
        touched = self._unseal(epoch)
        self.abandon()
        for partition in touched:
            if self.partitions.get(partition.number) is partition:
                self.drop(partition.number)

    def _unseal(self, epoch: Epoch) -> list[Partition]:
        assert self._sealed is not None, "no epoch is sealed"
        sealed, partitions = self._sealed
        assert epoch is sealed, "not the epoch that was sealed"
        self._sealed = None
        return partitions
