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

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streamer.core import (
    F32,
    I64,
    U8,
    Answers,
    Batch,
    Changelog,
    Epoch,
    EventBatch,
    Flags,
    ModelCall,
    Op,
    Reject,
    StepAnswers,
    X,
)
from streamer.engine.journal import journal
from streamer.engine.lane import StepLane
from streamer.engine.memory import Memory
from streamer.engine.partition import Lanes, Partition, Phase
from streamer.engine.scheduler import Restart, plan_steps
from streamer.engine.tally import report
from streamer.engine.windowing import Closing
from streamer.engine.windowlane import WindowLane
from streamer.errors import ConfigurationError
from streamer.generate.request import Refused
from streamer.generate.rollouts import Generators
from streamer.modelfile.carried import Carried
from streamer.modelfile.model import Model
from streamer.records.changelog import Identity
from streamer.records.keys import Keys
from streamer.settings import BatchSection, DeliverySection, GenerateSection, StateSection
from streamer.state.table import STREAM_OVERHEAD_BYTES, Slots
from streamer.windows import WindowRule
from streamer.words import Reason

RESTORE_STREAMS = 2_000
"""Most streams that one chunk of a restore may bring, beside the records of one poll."""
Served = tuple[str, Model, WindowRule | None]
"""Name, model, and the window rule; None: step mode"""


@dataclass(slots=True)
class _Part:
    """Rows [begin, end) of the work belong to one event batch."""

    partition: Partition
    batch: EventBatch
    begin: int
    end: int


@dataclass(slots=True)
class _Work:
    """One ingest over all its partitions, merged into columns of N rows."""

    parts: list[_Part]
    slots: I64
    x: X
    offsets: I64
    times_ms: I64
    keys: list[bytes]
    ops: U8 | None
    windows: list[tuple[Partition, Closing]]
    refused: dict[int, Refused] = field(default_factory=dict)
    """Row -> why a rollout was not opened"""

    @property
    def partitions(self) -> set[int]:
        owners = [*(part.partition for part in self.parts), *(partition for partition, _ in self.windows)]
        return {partition.number for partition in owners}


@dataclass(slots=True)
class _Due:
    """What one model has to do with the work. ``rows``: that its states do not reflect yet, None: all."""

    rows: I64 | None
    ops: U8 | None
    anew: Flags | None
    decided: Flags | None


class Processor:
    """Runs one or two models over decoded records and keeps one state per stream. See the module's text for the calls."""

    def __init__(
        self,
        models: Sequence[Served],
        *,
        batch: BatchSection | None = None,
        state: StateSection | None = None,
        generate: GenerateSection | None = None,
        delivery: DeliverySection | None = None,
        late: str = "drop",
        identity: Identity | None = None,
        keys: Keys | None = None,
    ) -> None:
        """``models``: at most one in window mode, all of one width and dtype. ``late``: as ``input.late``.
        ``keys``: what the keys of the input are (``Codec.keys``)."""
        _check_models(models)
        self.batch, state = batch or BatchSection(), state or StateSection()
        self.delivery = delivery or DeliverySection()
        contract = models[0][1].contract
        self.no_events: X = np.empty((0, contract.features), contract.input.dtype)
        carried = {name: Carried(model) for name, model, rule in models if rule is None}
        per_stream = sum(each.bytes_per_stream for each in carried.values()) + STREAM_OVERHEAD_BYTES
        self.max_streams = max(state.max_bytes // per_stream, 1)
        capacity = self.max_streams + self.batch.max_poll_records + RESTORE_STREAMS if carried else 1
        stepping = [StepLane(name, each, capacity, idle_ttl_ms=state.idle_ttl_ms) for name, each in carried.items()]
        windowing = [WindowLane(name, model, rule, keys or Keys()) for name, model, rule in models if rule is not None]
        self.lanes = Lanes(
            stepping=stepping,
            windowing=windowing[0] if windowing else None,
            slots=Slots([lane.arena for lane in stepping], capacity),
            generators=Generators(carried.items(), generate or GenerateSection(), keys or Keys()),
            identity=identity or Identity(),
            late_to_dead_letter=late == "dead-letter",
            durable=self.delivery.mode != "ephemeral",
        )
        self.partitions: dict[int, Partition] = {}
        self.memory = Memory(self.lanes.slots, state.max_bytes, state.idle_ttl_ms)
        self._now_ms = 0
        self._work: _Work | None = None
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
        """Makes what is news in ``batches`` (at most one per partition) pending. Nothing may be pending already."""
        assert self._work is None, "run() the pending work first"
        parts: list[_Part] = []
        windows: list[tuple[Partition, Closing]] = []
        begin = 0
        for fetched in batches:
            partition = self.partitions.get(fetched.partition)
            if partition is None or not partition.running or (taken := partition.take(fetched)) is None:
                continue
            batch, closed = taken
            windows += [(partition, closing) for closing in closed]
            if len(batch):
                parts.append(_Part(partition, batch, begin, begin + len(batch)))
                begin += len(batch)
            else:
                partition.caught_up()
        if parts or windows:
            self._work = self._merge(parts, windows)

    def idle(self, number: int, elapsed_ms: int) -> None:
        """No record came for ``elapsed_ms`` although all were read: closes what that much time closes."""
        assert self._work is None, "run() the pending work first"
        partition = self.partitions[number]
        if closed := partition.idle(elapsed_ms):
            self._work = self._merge([], [(partition, closing) for closing in closed])

    def _merge(self, parts: list[_Part], windows: list[tuple[Partition, Closing]]) -> _Work:
        batches, stepping = [part.batch for part in parts], self.lanes.stepping
        slots = [part.partition.streams.of(part.batch.keys) for part in parts] if stepping else []
        ops = None
        if any(batch.ops is not None for batch in batches):
            ops = np.concatenate([np.zeros(len(b), np.uint8) if b.ops is None else b.ops for b in batches])
        return _Work(
            parts=parts,
            slots=_joined(slots, np.int64),
            x=_joined([batch.x for batch in batches], self.no_events.dtype),
            offsets=_joined([batch.offsets for batch in batches], np.int64),
            times_ms=_joined([batch.times_ms for batch in batches], np.int64),
            keys=batches[0].keys if len(batches) == 1 else [key for batch in batches for key in batch.keys],
            ops=ops,
            windows=windows,
        )

    # run

    def run(self) -> Iterator[None]:
        """Settles the pending work, one model call per iteration. Who abandons the iterator must ``abandon`` the work."""
        work = self._work
        if work is None:
            return
        for number, lane in enumerate(self.lanes.stepping):
            if work.parts:
                yield from self._step(number, lane, work)
        if work.windows and self.lanes.windowing is not None:
            yield from self._judge(self.lanes.windowing, work.windows)
        self._finish(work)

    def _step(self, number: int, lane: StepLane, work: _Work) -> Iterator[None]:
        due = self._due(number, lane, work)
        outputs, refused = lane.outputs(len(work.offsets)), dict[int, str]()
        for item in self._plan(lane, work, due):
            if isinstance(item, Batch):
                lane.call(work.x, item, outputs, refused, self._calls)
                yield
            elif isinstance(item, Restart):
                lane.arena.reset(work.slots[item.rows])
            else:
                self._command(lane, work, item, due)
        self._settle(number, lane, work, due, outputs, refused)

    def _due(self, number: int, lane: StepLane, work: _Work) -> _Due:
        """Only a replay brings rows that the model's states reflect already, or that it refused before."""
        rows: I64 | None = None
        decided: Flags | None = None
        if any(part.batch.offsets[0] < part.partition.live_from for part in work.parts):
            through, flags = lane.arena.through[work.slots], np.empty(len(work.offsets), bool)
            decided = np.zeros(len(work.offsets), bool)
            for part in work.parts:
                at = slice(part.begin, part.end)
                truth = part.partition.truths[number]
                flags[at], before = truth.due(part.batch.keys, part.batch.offsets, through[at])
                decided[at] = False if before is None else before
            rows = np.flatnonzero(flags)
            decided = decided[rows] if decided.any() else None
        ops = work.ops if rows is None or work.ops is None else work.ops[rows]
        slots, times = (work.slots, work.times_ms) if rows is None else (work.slots[rows], work.times_ms[rows])
        anew = lane.begins_anew(slots, times, None if ops is None else ops == Op.EVENT)
        return _Due(rows, ops, anew, decided)

    def _plan(self, lane: StepLane, work: _Work, due: _Due) -> Iterator[Batch | Restart | I64]:
        """Items over the rows of the work."""
        model, bounds = lane.model, self.batch
        steps = bounds.max_steps if model.max_steps is None else min(bounds.max_steps, model.max_steps)
        rows, ops, anew = due.rows, due.ops, due.anew
        if due.decided is not None:
            # what was refused when it was news did nothing, but for a state that began anew with it
            assert rows is not None
            anew = np.zeros(len(rows), bool) if anew is None else anew
            ops = np.zeros(len(rows), np.uint8) if ops is None else ops.copy()
            ops[due.decided & anew] = Op.RESET
            kept = np.flatnonzero(~due.decided | anew)
            rows, ops, anew = rows[kept], ops[kept], (anew & ~due.decided)[kept]
        slots = work.slots if rows is None else work.slots[rows]
        for item in plan_steps(slots, ops, anew, max_rows=bounds.max_rows, max_steps=steps):
            if rows is None:
                yield item
            elif isinstance(item, Batch):
                item.rows = np.where(item.rows >= 0, rows[item.rows], -1)
                yield item
            else:
                yield Restart(rows[item.rows]) if isinstance(item, Restart) else rows[item]

    def _command(self, lane: StepLane, work: _Work, rows: I64, due: _Due) -> None:
        """Between model calls: states go back to the initial one, or are forked for a rollout if that is news."""
        asking = np.zeros(len(rows), bool) if work.ops is None else work.ops[rows] == Op.GENERATE
        lane.arena.reset(work.slots[rows[~asking]])
        for row in rows[asking].tolist():
            part = next(p for p in work.parts if p.begin <= row < p.end)
            if work.offsets[row] < part.partition.live_from:
                continue
            try:
                self._ask(lane, work, part, row)
            except Refused as refused:
                work.refused[row] = refused

    def _ask(self, lane: StepLane, work: _Work, part: _Part, row: int) -> None:
        batch, at, offset = part.batch, row - part.begin, int(work.offsets[row])
        value = batch.commands.get(at, b"")
        if self.lanes.generators.asked(value) == lane.name:
            part.partition.rollouts.ask(
                lane.name,
                offset,
                work.keys[row],
                value,
                headers=batch.records.headers.get(bisect_left(batch.records.offsets, offset), ()),
                timestamp_ms=batch.timestamps_ms[at],
                time_ms=int(work.times_ms[row]),
                state=lane.arena.rows(work.slots[row : row + 1])[0],
            )

    def _judge(self, lane: WindowLane, windows: list[tuple[Partition, Closing]]) -> Iterator[None]:
        bounds = self.batch
        verdicts = yield from lane.run(
            [closing for _, closing in windows],
            self._calls,
            max_rows=bounds.max_rows,
            max_cells=bounds.max_window_cells,
        )
        for partition in dict.fromkeys(partition for partition, _ in windows):
            mine = [row for row, (owner, _) in enumerate(windows) if owner is partition]
            answers, refused, scores = lane.settle(
                partition.number, [windows[row][1] for row in mine], [verdicts[row] for row in mine]
            )
            partition.refuse(refused)
            partition.tally.scores += scores
            if len(answers):
                partition.answers.append(answers)

    def roll(self) -> None:
        """One step of the open rollouts (see ``streamer.generate.rollouts``): one model call per model. Nothing may be
        pending. Partitions that are still replayed wait: what they answer could not be committed yet."""
        assert self._work is None, "run() the pending work first"
        live = [partition for partition in self.partitions.values() if partition.phase is Phase.LIVE]
        rows: list[int] = []
        for answer in self.lanes.generators.step([partition.rollouts for partition in live], rows):
            partition = self.partitions[answer.partition]
            partition.moved = True
            if isinstance(answer, Reject):
                partition.refuse([answer])
            else:
                partition.answers.append(answer)
        self._calls += [(count, 1, count) for count in rows]

    @property
    def rolling(self) -> bool:
        """Whether any rollout is open."""
        return self.lanes.generators.open > 0

    # settle

    def _settle(
        self, number: int, lane: StepLane, work: _Work, due: _Due, outputs: Sequence[F32], refused: dict[int, str]
    ) -> None:
        """Outputs of one model become answers of the open epoch; states become known up to their last row."""
        events = None if due.ops is None else due.ops == Op.EVENT
        if due.rows is None:
            lane.reflect(work.slots, work.offsets, work.times_ms, events)
        else:
            at = due.rows
            lane.reflect(work.slots[at], work.offsets[at], work.times_ms[at], events)
        answered: Flags | None = None
        if refused or work.ops is not None or due.rows is not None:
            answered = np.ones(len(work.offsets), bool) if work.ops is None else work.ops == Op.EVENT
            answered[list(refused)] = False
        for part in work.parts:
            truth = part.partition.truths[number]
            if due.rows is None:
                truth.returned(part.batch.keys)
            else:
                mine = due.rows[(due.rows >= part.begin) & (due.rows < part.end)]
                truth.returned(work.keys[row] for row in mine.tolist())
                assert answered is not None
                answered[part.begin : part.end] &= part.batch.offsets >= part.partition.live_from
            self._answer(lane, part, outputs, None if answered is None else answered[part.begin : part.end])
        for row, detail in refused.items():
            self._refuse(number, lane, work, row, detail)

    def _answer(self, lane: StepLane, part: _Part, outputs: Sequence[F32], answered: Flags | None) -> None:
        batch = part.batch
        y = [output[part.begin : part.end] for output in outputs]
        if answered is not None and not answered.all():
            rows = np.flatnonzero(answered)
            if not len(rows):
                return
            batch, y = batch.select(rows), [output[rows] for output in y]
        part.partition.tally.scores += lane.scores(y)
        part.partition.answers.append(
            StepAnswers(
                partition=batch.partition,
                model=lane.name,
                keys=batch.keys,
                timestamps_ms=batch.timestamps_ms,
                sources=batch.offsets.tolist(),
                headers=batch.headers,
                times_ms=batch.times_ms,
                y=y,
            )
        )

    def _refuse(self, number: int, lane: StepLane, work: _Work, row: int, detail: str) -> None:
        part = next(each for each in work.parts if each.begin <= row < each.end)
        offset, partition = int(work.offsets[row]), part.partition
        if self.lanes.durable:
            partition.truths[number].decisions.note(offset)
        if offset >= partition.live_from:
            text = f"model {lane.name!r}: {detail}"
            partition.refuse([part.batch.reject(row - part.begin, Reason.MODEL_REFUSED, text)])

    def _finish(self, work: _Work) -> None:
        if len(work.slots):
            self.lanes.slots.used_at[work.slots] = self._now_ms
        for row, refused in work.refused.items():
            part = next(each for each in work.parts if each.begin <= row < each.end)
            part.partition.refuse([part.batch.reject(row - part.begin, refused.reason, refused.detail)])
        self._work = None
        for part in work.parts:
            part.partition.settled(part.batch)
            part.partition.caught_up()
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


def _check_models(models: Sequence[Served]) -> None:
    if not 1 <= len(models) <= 2:
        raise ConfigurationError("name one or two models: [model.NAME]")
    if sum(rule is not None for _, _, rule in models) > 1:
        raise ConfigurationError("only one of two models may have a window: run the other as its own service")
    widths = {name: model.contract.features for name, model, _ in models}
    if len(set(widths.values())) > 1:
        raise ConfigurationError(f"models on one input must take the same features, these take {widths}")
    dtypes = {name: model.contract.input.dtype for name, model, _ in models}
    if len(set(dtypes.values())) > 1:
        raise ConfigurationError(f"models on one input must take the same dtype, these take {dtypes}")
    for name, model, rule in models:
        if rule is None and model.contract.mode == "window":
            raise ConfigurationError(
                f"model {name!r} looks ahead (mode window): give it a [model.{name}.window] section"
            )


def _joined(parts: Sequence[Any], dtype: Any) -> Any:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty(0, dtype)
