"""The synchronous core: owns all state and decides everything. No I/O, no clock, no asyncio.

Few calls drive it, from a ten-line test or from the service alike:

    processor.ingest(batches)           # decoded records: what is news becomes pending work
    for _ in processor.run(): ...       # one model call per step; all pending work is settled when it ends
    processor.roll()                    # between the others: one step of what is being generated
    epoch = processor.seal(now_ms)      # everything settled since the last epoch, as bytes to commit

Every decision at ingest depends on the record, the order of the log and the partition's own state only. Other decisions
(evictions, idle advances, rows that the model refused) are written into the changelog with the epoch that makes them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streamer.core import F32, I64, U8, Batch, Changelog, Counters, Epoch, EventBatch, Op, Outgoing, Reject, X
from streamer.engine.lane import Lane, StepLane
from streamer.engine.ledger import Ledger
from streamer.engine.rounds import Rounds
from streamer.engine.scheduler import plan_steps
from streamer.engine.windowlane import Closing, WindowLane
from streamer.errors import ConfigurationError, DataLossError
from streamer.generate.rollout import Refused, RolloutLimits, Rollouts
from streamer.modelfile.carried import Carried
from streamer.modelfile.model import Model
from streamer.records.changelog import Identity, StreamRecord
from streamer.records.keys import Keys
from streamer.state.table import StreamTable
from streamer.windows import WindowRule, Windows

STREAM_OVERHEAD_BYTES = 200
"""Memory per stream beside its raw state, counted against ``max_state_bytes``."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the processor. ``max_ingest_rows``: the most records that one ``ingest`` may bring."""

    max_rows: int = 256
    max_steps: int = 16
    max_window_cells: int = 16_384
    max_ingest_rows: int = 16_384
    max_state_bytes: int = 1 << 30
    idle_ttl_ms: int = 0
    checkpoint_interval_ms: int = 10_000
    late_to_dead_letter: bool = False
    rollouts: RolloutLimits = field(default_factory=RolloutLimits)


@dataclass(slots=True)
class _Segment:
    """Rows [begin, end) of the work belong to one event batch."""

    batch: EventBatch
    begin: int
    end: int
    live_from: int


@dataclass(slots=True)
class _Work:
    """One ingest over all its partitions, merged into columns of N rows."""

    segments: list[_Segment]
    slots: I64
    x: X
    offsets: I64
    times_ms: I64
    keys: list[bytes]
    ops: U8 | None
    skip: I64 | None
    """Rows whose decision was committed before (replay); None: none."""
    windows: list[Closing]
    refused: dict[int, Refused] = field(default_factory=dict)
    """Row -> why a rollout was not opened"""


class Processor:
    """Runs one or two models over decoded records and keeps one state per stream. See the module's text for the calls."""

    def __init__(
        self,
        models: Sequence[tuple[str, Model, WindowRule | None]],
        limits: Limits | None = None,
        *,
        identity: Identity | None = None,
        durable: bool = True,
        reset_changed_models: bool = False,
        keys: Keys | None = None,
    ) -> None:
        """``models``: (name, model, window rule or None for step mode); at most one in window mode, all of one width and
        dtype. ``keys``: what the keys of the input are (``Codec.keys``), so that answers have the same."""
        self.limits = limits or Limits()
        self.identity = identity or Identity()
        self._durable = durable
        self._reset_changed_models = reset_changed_models
        _check_models(models)
        self.features = models[0][1].contract.features
        carried = {name: Carried(model) for name, model, rule in models if rule is None}
        per_stream = sum(each.bytes_per_stream for each in carried.values()) + STREAM_OVERHEAD_BYTES
        self.max_streams = max(self.limits.max_state_bytes // per_stream, 1)
        capacity = self.max_streams + 2 * self.limits.max_ingest_rows if carried else 1
        self.stepping = [StepLane(name, each, capacity, keys) for name, each in carried.items()]
        windowing = [WindowLane(name, model, rule, keys) for name, model, rule in models if rule is not None]
        self._windowing = windowing[0] if windowing else None
        self.lanes: list[Lane] = [*self.stepping, *windowing]
        self.table = StreamTable([lane.arena for lane in self.stepping], capacity)
        self.ledgers: dict[int, Ledger] = {}
        self.rollouts = Rollouts([(lane.name, lane.carried) for lane in self.stepping], self.limits.rollouts, keys)
        self._rounds = Rounds(
            self.table,
            self.stepping,
            self._windowing,
            self.rollouts,
            self.identity,
            self.limits.checkpoint_interval_ms,
        )
        self.counters = Counters()
        self._ended: dict[int, dict[bytes, int]] = {}
        self._newest_ms: dict[int, int] = {}
        self._swept_ms = 0
        self._work: _Work | None = None
        self._epoch_number = 1
        self._outgoing: list[Outgoing] = []
        self._rejects: list[Reject] = []
        self._events = 0
        self._late_events = 0

    # partitions

    def assign(self, partition: int, ledger: Ledger) -> None:
        """Takes a partition over at ``ledger.next_offset``. Its streams, if any, are loaded with ``load``."""
        assert partition not in self.ledgers, f"partition {partition} is already assigned"
        self.ledgers[partition] = ledger
        self._ended[partition] = {}
        self._newest_ms[partition] = 0
        if partition not in self.table.partitions:
            self.table.open(partition)
        if self._windowing:
            self._windowing.assign(partition, ledger)
        self.rollouts.restore(
            partition, ledger.rollouts, ledger.emitted, reset_changed_models=self._reset_changed_models
        )

    def revoke(self, partition: int) -> None:
        """Forgets a partition: state, windows, and what of it was not sealed. Invariant 7: nothing of it remains."""
        assert self._work is None, "run() the pending work first, or abandon() it"
        self.ledgers.pop(partition, None)
        if self._windowing:
            self._windowing.revoke(partition)
        self._ended.pop(partition, None)
        self._newest_ms.pop(partition, None)
        self.table.drop(partition)
        self.rollouts.drop(partition)
        self._outgoing = [out for out in self._outgoing if out.partition != partition]
        self._rejects = [reject for reject in self._rejects if reject.partition != partition]

    def abandon(self) -> None:
        """Drops every partition with all pending work: what was not committed is read again by whoever comes next."""
        self._work = None
        for partition in list(self.ledgers):
            self.revoke(partition)

    def load(self, partition: int, records: Iterable[StreamRecord], *, reset_changed_models: bool = False) -> None:
        """Stream records of a restore, newest per key, into the arenas, before ``assign``.

        Raises DataLossError when a state does not fit its model, ConfigurationError when memory does not suffice."""
        if partition not in self.table.partitions:
            self.table.open(partition)
        by_name = {lane.name: lane for lane in self.stepping}
        columns: dict[str, tuple[list[bytes], list[bytes], list[int], list[int]]] = {}
        for record in records:
            lane = by_name.get(record.model)
            if lane is None or record.state is None:
                continue
            if reset_changed_models and record.model_id != lane.model_id:
                continue
            if len(record.state) != lane.arena.bytes_per_stream:
                raise DataLossError(
                    f"changelog: the state of stream {record.stream[:64]!r} has {len(record.state)} bytes, model "
                    f"{lane.name!r} keeps {lane.arena.bytes_per_stream}. Serve the model that wrote it, or set "
                    'delivery.model_changed = "reset" to begin from the initial state.'
                )
            keys, states, through, last_ms = columns.setdefault(record.model, ([], [], [], []))
            keys.append(record.stream)
            states.append(record.state)
            through.append(record.through)
            last_ms.append(record.last_ms)
        for name, (keys, states, through, last_ms) in columns.items():
            if self.table.free < len(keys) or self.table.used > self.max_streams:
                raise ConfigurationError(
                    f"state.max_bytes = {self.limits.max_state_bytes} holds {self.max_streams} streams, the changelog "
                    "has more: raise it, or run more instances"
                )
            arena = by_name[name].arena
            slots = self.table.slots(partition, keys)
            arena.load(slots, states)
            arena.through[slots] = through
            self.table.last_ms[slots] = np.maximum(self.table.last_ms[slots], last_ms)

    def unload(self, partition: int, streams: Iterable[bytes]) -> None:
        """Streams that a later changelog record of the same restore says are forgotten."""
        slots = [slot for stream in streams if (slot := self.table.find(partition, stream)) is not None]
        if slots:
            self.table.forget(partition, np.array(slots, np.int64))

    # ingest

    def ingest(self, batches: Sequence[EventBatch]) -> None:
        """Makes what is news in ``batches`` (at most one per partition) pending. Nothing may be pending already."""
        assert self._work is None, "run() the pending work first"
        segments: list[_Segment] = []
        kept: list[EventBatch] = []
        skips: list[I64] = []
        windows: list[Closing] = []
        begin = 0
        for fetched in batches:
            ledger = self.ledgers.get(fetched.partition)
            if ledger is None:
                continue
            batch = fetched.since(ledger.next_offset)
            if batch is None:
                continue
            self._rejects += [reject for reject in batch.rejects if reject.offset >= ledger.live_from]
            if self._windowing:
                closed, late = self._windowing.ingest(batch, ledger, self.counters)
                windows += closed
                self._late(batch, late)
            if ledger.replaying:
                batch, skip = self._replayed(batch, ledger)
                if len(skip):
                    skips.append(skip + begin)
            ledger.next_offset = batch.next_offset
            ledger.checksum = batch.checksum
            if len(batch):
                self._newest_ms[batch.partition] = max(self._newest_ms[batch.partition], int(batch.times_ms.max()))
                segments.append(_Segment(batch, begin, begin + len(batch), ledger.live_from))
                kept.append(batch)
                begin += len(batch)
        if kept or windows:
            self._work = self._merge(segments, kept, skips, windows)

    def _merge(
        self,
        segments: list[_Segment],
        batches: list[EventBatch],
        skips: list[I64],
        windows: list[Closing],
    ) -> _Work:
        slots = [self.table.slots(batch.partition, batch.keys) for batch in batches] if self.stepping else []
        ops = None
        if any(batch.ops is not None for batch in batches):
            ops = np.concatenate([np.zeros(len(b), np.uint8) if b.ops is None else b.ops for b in batches])
        one = len(batches) == 1
        return _Work(
            segments=segments,
            slots=_joined(slots, np.int64),
            x=batches[0].x if one else _joined([batch.x for batch in batches], np.float32),
            offsets=_joined([batch.offsets for batch in batches], np.int64),
            times_ms=_joined([batch.times_ms for batch in batches], np.int64),
            keys=batches[0].keys if one else [key for batch in batches for key in batch.keys],
            ops=ops,
            skip=np.concatenate(skips) if skips else None,
            windows=windows,
        )

    def _replayed(self, batch: EventBatch, ledger: Ledger) -> tuple[EventBatch, I64]:
        """Drops rows of streams that were forgotten later, and lists the rows that were refused when they were news."""
        if ledger.forgotten:
            forgotten = ledger.forgotten
            pairs = zip(batch.keys, batch.offsets.tolist(), strict=True)
            gone = np.array([forgotten.get(key, -1) >= offset for key, offset in pairs], bool)
            if gone.any():
                batch = batch.select(np.flatnonzero(~gone))
        refused = [int(row) for row in np.flatnonzero(np.isin(batch.offsets, list(ledger.decisions)))]
        return batch, np.array(refused, np.int64)

    def _late(self, batch: EventBatch, rows: Sequence[int]) -> None:
        self.counters.late += len(rows)
        self._late_events += len(rows)
        if self.limits.late_to_dead_letter:
            for row in sorted(set(rows)):
                self._rejects.append(
                    batch.reject(row, "late", f"event time {batch.times_ms[row]} ms is behind the watermark")
                )

    # run

    def run(self) -> Iterator[None]:
        """Settles the pending work, one model call per iteration. Abandoning the iterator leaves the epoch as it was."""
        work = self._work
        if work is None:
            return
        for lane in self.stepping:
            outputs = lane.outputs(len(work.offsets))
            refused: dict[int, str] = {}
            for item in self._plan(lane, work):
                if isinstance(item, Batch):
                    lane.call(work.x, item, outputs, refused, self.counters.runs)
                    yield
                else:
                    self._command(lane, work, item)
            self._settle(lane, work, outputs, refused)
        if work.windows and self._windowing:
            settled = yield from self._windowing.run(
                work.windows,
                self.counters,
                max_rows=self.limits.max_rows,
                max_cells=self.limits.max_window_cells,
            )
            self._publish(settled)
        self._finish(work)
        self._work = None

    def _command(self, lane: StepLane, work: _Work, rows: I64) -> None:
        """Between model calls: states go back to the initial one, or are forked for a rollout if that is news."""
        assert work.ops is not None
        asking = work.ops[rows] == Op.GENERATE
        lane.arena.reset(work.slots[rows[~asking]])
        for row in rows[asking].tolist():
            segment = next(s for s in work.segments if s.begin <= row < s.end)
            batch, at = segment.batch, row - segment.begin
            if work.offsets[row] < segment.live_from:
                continue
            value, offset = batch.commands.get(at, b""), int(work.offsets[row])
            try:
                if self.rollouts.generator_of(value) == lane.name:
                    self.rollouts.ask(
                        lane.name,
                        (batch.partition, offset),
                        work.keys[row],
                        value,
                        headers=batch.records.headers.get(bisect_left(batch.records.offsets, offset), ()),
                        timestamp_ms=batch.timestamps_ms[at],
                        time_ms=int(work.times_ms[row]),
                        state=lane.arena.rows(work.slots[row : row + 1])[0],
                    )
            except Refused as refused:
                work.refused[row] = refused

    def roll(self) -> None:
        """One step of the open rollouts (see ``streamer.generate.rollout``): one model call per model. Nothing may be pending.

        Partitions that are still replayed wait: what they answer could not be committed yet."""
        assert self._work is None, "run() the pending work first"
        live = {partition for partition, ledger in self.ledgers.items() if not ledger.replaying}
        answers = list(self.rollouts.step(live))
        for answer in answers:
            self.ledgers[answer.partition].moved = True
        self._publish(answers)
        self.counters.runs += [(rows, 1, rows) for rows in self.rollouts.calls]
        self.rollouts.calls.clear()

    def _publish(self, answers: Iterable[Outgoing | Reject]) -> None:
        for answer in answers:
            if isinstance(answer, Reject):
                self._rejects.append(answer)
            else:
                self._outgoing.append(answer)

    def _plan(self, lane: StepLane, work: _Work) -> Iterator[Batch | I64]:
        limits, model = self.limits, lane.model
        steps = limits.max_steps if model.max_steps is None else min(limits.max_steps, model.max_steps)
        rows = self._due_rows(lane, work)
        if rows is None:
            yield from plan_steps(work.slots, work.ops, max_rows=limits.max_rows, max_steps=steps)
            return
        ops = None if work.ops is None else work.ops[rows]
        for item in plan_steps(work.slots[rows], ops, max_rows=limits.max_rows, max_steps=steps):
            if isinstance(item, Batch):
                item.rows = np.where(item.rows >= 0, rows[item.rows], -1)
                yield item
            else:
                yield rows[item]

    def _due_rows(self, lane: StepLane, work: _Work) -> I64 | None:
        """Rows that this lane's state does not reflect yet; None: all. Only a replay brings rows that it does."""
        if all(segment.batch.offsets[0] >= segment.live_from for segment in work.segments):
            return None
        due = work.offsets > lane.arena.through[work.slots]
        if work.skip is not None:
            due[work.skip] = False
        return np.flatnonzero(due)

    # settle

    def _settle(self, lane: StepLane, work: _Work, outputs: Sequence[F32], refused: dict[int, str]) -> None:
        """Outputs of one lane become predictions of the open epoch; states become known up to their last row."""
        if not work.segments:
            return
        rows = self._due_rows(lane, work)
        if rows is None:
            lane.arena.through[work.slots] = work.offsets
            lane.arena.changed[work.slots] = True
        else:
            lane.arena.through[work.slots[rows]] = work.offsets[rows]
            lane.arena.changed[work.slots[rows]] = True
        for row, detail in refused.items():
            self._refuse(lane, work, row, detail)
        answered: I64 | None = None
        if refused or work.ops is not None or rows is not None:
            keep = np.ones(len(work.offsets), bool)
            keep[list(refused)] = False
            if work.ops is not None:
                keep &= work.ops == Op.EVENT
            for segment in work.segments:
                keep[segment.begin : segment.end] &= work.offsets[segment.begin : segment.end] >= segment.live_from
            answered = np.flatnonzero(keep)
        self._predict(lane, work, outputs, answered)

    def _predict(self, lane: StepLane, work: _Work, outputs: Sequence[F32], rows: I64 | None) -> None:
        keys, times = work.keys, work.times_ms
        if rows is not None:
            keys, times, outputs = [keys[row] for row in rows.tolist()], times[rows], [y[rows] for y in outputs]
        if not keys:
            return
        values = lane.encoder.steps(keys, times, outputs)
        self.counters.scores += lane.scores(outputs)
        for segment in work.segments:
            batch, begin, end = segment.batch, segment.begin, segment.end
            if rows is None:
                sources, stamps = batch.offsets.tolist(), batch.timestamps_ms
                headers = batch.headers
            else:
                inside = rows[np.searchsorted(rows, begin) : np.searchsorted(rows, end)] - segment.begin
                begin, end = int(np.searchsorted(rows, begin)), int(np.searchsorted(rows, end))
                sources = batch.offsets[inside].tolist()
                stamps = [batch.timestamps_ms[row] for row in inside.tolist()]
                headers = {new: batch.headers[row] for new, row in enumerate(inside.tolist()) if row in batch.headers}
            if begin < end:
                self._outgoing.append(
                    Outgoing(
                        batch.partition,
                        lane.encoder.keys.raws(keys[begin:end]),
                        values[begin:end],
                        stamps,
                        sources,
                        headers,
                    )
                )

    def _refuse(self, lane: StepLane, work: _Work, row: int, detail: str) -> None:
        segment = next(s for s in work.segments if s.begin <= row < s.end)
        offset = int(work.offsets[row])
        ledger = self.ledgers[segment.batch.partition]
        ledger.decisions.setdefault(offset, "model_refused")
        if offset >= segment.live_from:
            self._rejects.append(
                segment.batch.reject(row - segment.begin, "model_refused", f"model {lane.name!r}: {detail}")
            )

    def _finish(self, work: _Work) -> None:
        for segment in work.segments:
            batch, partition = segment.batch, segment.batch.partition
            ledger = self.ledgers[partition]
            live = len(batch) - int(np.searchsorted(batch.offsets, segment.live_from))
            self.counters.events += live
            self.counters.replayed += len(batch) - live
            self._events += live
            if ledger.forgotten and self.stepping:
                for key in batch.keys:
                    ledger.forgotten.pop(key, None)
        if self.stepping and len(work.slots):
            self.table.last_ms[work.slots] = work.times_ms
            self.table.used_at[work.slots] = self._epoch_number
            if work.ops is not None:
                self._note_commands(work)

    def _note_commands(self, work: _Work) -> None:
        assert work.ops is not None
        for segment in work.segments:
            ended = self._ended[segment.batch.partition]
            for row in np.flatnonzero(work.ops[segment.begin : segment.end]).tolist():
                self.counters.commands += 1
                if refused := work.refused.get(segment.begin + row):
                    self._rejects.append(segment.batch.reject(row, refused.reason, refused.detail))
                if work.ops[segment.begin + row] == Op.END:
                    ended[segment.batch.keys[row]] = int(segment.batch.offsets[row])

    # windows

    @property
    def windows(self) -> Mapping[int, Windows]:
        """Partition -> its open windows; empty without a window model."""
        return self._windowing.open if self._windowing else {}

    def idle(self, partition: int, elapsed_ms: int) -> None:
        """No record came for ``elapsed_ms`` although all were read: closes what that much time closes. Nothing may be
        pending."""
        ledger = self.ledgers.get(partition)
        if self._windowing is None or ledger is None:
            return
        assert self._work is None, "run() the pending work first"
        closed = self._windowing.idle(partition, elapsed_ms, ledger, self.counters)
        if closed:
            self._work = self._merge([], [], [], closed)

    # seal

    def results(self) -> tuple[list[Outgoing], list[Reject]]:
        """Takes the predictions and rejects out of the open epoch, for deliveries that send them before the commit."""
        outgoing, rejects = self._outgoing, sorted(self._rejects, key=_log_order)
        self._outgoing, self._rejects = [], []
        return outgoing, rejects

    def describe(self, stream: bytes) -> dict[str, Any] | None:
        """Summary of one stream's state, for people; None when it has none here."""
        for partition in self.table.partitions:
            slot = self.table.find(partition, stream)
            if slot is None:
                continue
            chosen = np.array([slot], np.int64)
            models = {}
            for lane in self.stepping:
                tensors = zip(lane.model.states, lane.arena.take(chosen), strict=False)  # not what is fed back
                models[lane.name] = {
                    "through_offset": int(lane.arena.through[slot]),
                    "state_norms": {state.input: float(np.linalg.norm(value)) for state, value in tensors},
                }
            position = self.ledgers[partition].position if partition in self.ledgers else None
            return {
                "stream": stream.decode(errors="replace"),
                "partition": partition,
                "position": position,
                "last_event_ms": int(self.table.last_ms[slot]),
                "models": models,
            }
        return None

    @property
    def open_events(self) -> int:
        """Events settled since the last seal."""
        return self._events

    def seal(self, now_ms: int, slice_bytes: int = 1 << 62) -> Epoch | None:
        """Everything settled since the last seal, as bytes, or None when nothing is due.

        ``slice_bytes``: budget for the stream records of this epoch. Nothing may be pending."""
        assert self._work is None, "run() the pending work first"
        evicted = self._evict(now_ms)
        changelog: list[Changelog] = []
        positions: dict[int, int] = {}
        for partition, ledger in self.ledgers.items():
            if ledger.replaying:
                continue
            gone = evicted.get(partition, {})
            due = self._durable and self._rounds.due(ledger, now_ms)
            settled = ledger.next_offset if self._durable else self.rollouts.oldest(partition, ledger.next_offset)
            if not (settled > ledger.position or gone or due or ledger.moved or ledger.round_open):
                continue
            ledger.position = settled
            ledger.moved = False
            positions[partition] = ledger.position
            if not self._durable:
                ledger.replay_from_position()
                continue
            records, spent = self._rounds.records(partition, ledger, gone, now_ms, slice_bytes)
            slice_bytes -= spent
            changelog.append(Changelog(partition, records))
        if not (positions or self._outgoing or self._rejects):
            return None
        rejects = sorted(self._rejects, key=_log_order)
        epoch = Epoch(positions, self._outgoing, rejects, changelog, self._events, self._late_events)
        self._clear_epoch()
        self._epoch_number += 1
        return epoch

    def _clear_epoch(self) -> None:
        self._outgoing, self._rejects = [], []
        self._events = 0
        self._late_events = 0

    @property
    def round_bytes(self) -> int:
        """What the current or last round of every partition writes, about."""
        return sum(ledger.round_bytes for ledger in self.ledgers.values())

    # forgetting

    def _evict(self, now_ms: int) -> dict[int, dict[bytes, int]]:
        """Streams to forget with this epoch: partition -> {stream: time of its last event}."""
        gone: dict[int, dict[bytes, int]] = {}
        if not self.stepping:
            return gone
        live = [partition for partition, ledger in self.ledgers.items() if not ledger.replaying]
        for partition in live:
            ended, self._ended[partition] = self._ended[partition], {}
            through = self.stepping[0].arena.through
            found = [(slot, at) for key, at in ended.items() if (slot := self.table.find(partition, key)) is not None]
            self._forget(partition, [slot for slot, at in found if through[slot] == at], "end", gone)
        ttl = self.limits.idle_ttl_ms
        if ttl and now_ms - self._swept_ms >= min(ttl // 4 + 1, 10_000):
            self._swept_ms = now_ms
            for partition in live:
                slots = self.table.slots_of(partition)
                stale = slots[self.table.last_ms[slots] < self._newest_ms[partition] - ttl]
                self._forget(partition, stale.tolist(), "idle", gone)
        if self.table.used > self.max_streams:
            self._evict_oldest(live, gone)
        return gone

    def _evict_oldest(self, live: list[int], gone: dict[int, dict[bytes, int]]) -> None:
        """Back under the memory limit, with one percent to spare so that the search is rare."""
        slots = [self.table.slots_of(partition) for partition in live]
        owners = np.repeat(np.array(live, np.int64), [len(each) for each in slots])
        every = _joined(slots, np.int64)
        count = min(self.table.used - self.max_streams + self.max_streams // 100, len(every))
        if count == 0:
            return
        oldest = np.argpartition(self.table.used_at[every], count - 1)[:count]
        for partition in live:
            self._forget(partition, every[oldest[owners[oldest] == partition]].tolist(), "memory", gone)

    def _forget(self, partition: int, slots: list[int], reason: str, gone: dict[int, dict[bytes, int]]) -> None:
        if not slots:
            return
        chosen = np.array(slots, np.int64)
        times = self.table.last_ms[chosen].tolist()
        gone.setdefault(partition, {}).update(zip(self.table.keys(chosen), times, strict=True))
        self.table.forget(partition, chosen)
        self.counters.evicted[reason] = self.counters.evicted.get(reason, 0) + len(slots)


def _log_order(reject: Reject) -> tuple[int, int]:
    return reject.partition, reject.offset


def _check_models(models: Sequence[tuple[str, Model, WindowRule | None]]) -> None:
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


def _joined(parts: Sequence[Any], dtype: type) -> Any:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty(0, dtype)
