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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np

from streamer.checkpoint import (
    NO_WATERMARK,
    RECORD_OVERHEAD_BYTES,
    Kind,
    Ledger,
    Progress,
    StreamRecord,
    encode_progress,
    encode_stream,
    progress_key,
    stream_key,
)
from streamer.codec import Encoder
from streamer.core import F32, I64, U8, Batch, Changelog, ClosedWindow, Epoch, EventBatch, Headers, Op, Outgoing, Reject
from streamer.errors import ConfigurationError, DataLossError, ModelRunError
from streamer.model import Model
from streamer.rollout import Carried, Refused, RolloutLimits, Rollouts
from streamer.scheduler import plan_steps, plan_windows
from streamer.state import Arena, StreamTable
from streamer.windows import Added, Traces, WindowRule, Windows

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


@dataclass(frozen=True, slots=True)
class Identity:
    """What a changelog must agree with before this process goes on from it."""

    group: str = ""
    topic_id: str = ""
    fingerprint: str = ""


@dataclass(slots=True)
class Lane:
    """One model on the input: with an arena in step mode, with windows per partition in window mode."""

    index: int
    name: str
    model: Model
    carried: Carried
    encoder: Encoder
    model_id: bytes
    arena: Arena | None = None
    rule: WindowRule | None = None

    def scores(self, outputs: Sequence[F32]) -> list[tuple[str, F32]]:
        return [
            (self.name, y)
            for y, output in zip(outputs, self.model.contract.outputs, strict=True)
            if output.kind == "score"
        ]


@dataclass(slots=True)
class Counters:
    """What happened since the last reading; the service moves it to its metrics."""

    events: int = 0
    replayed: int = 0
    commands: int = 0
    late: int = 0
    runs: list[tuple[int, int, int]] = field(default_factory=list)
    """(rows, steps of the longest row, cells that held an event) per model call"""
    evicted: dict[str, int] = field(default_factory=dict)
    windows: dict[str, int] = field(default_factory=dict)
    """Closed, by reason; short: fewer than ``min_events``, so without a prediction"""
    trimmed: int = 0
    """Events left out of windows for the model's length multiple."""
    scores: list[tuple[str, F32]] = field(default_factory=list)
    """(model name, scores that were published) per output of kind score"""


@dataclass(slots=True)
class _Segment:
    """Rows [begin, end) of the work belong to one event batch."""

    batch: EventBatch
    begin: int
    end: int
    live_from: int


@dataclass(slots=True)
class _Closing:
    """A window that closed and waits for its prediction."""

    window: ClosedWindow
    partition: int
    timestamp_ms: int
    """Timestamp of the record that closed it; of an idle advance: the last record's and the time that passed. Never the
    window's own end, which may lie further ahead than a broker accepts."""
    headers: Headers
    """The trace of its last event in the log, which the prediction names as its source."""

    @property
    def source(self) -> int:
        return int(self.window.offsets.max())


@dataclass(slots=True)
class _Work:
    """One ingest over all its partitions, merged into columns of N rows."""

    segments: list[_Segment]
    slots: I64
    x: F32
    offsets: I64
    times_ms: I64
    keys: list[bytes]
    ops: U8 | None
    skip: I64 | None
    """Rows whose decision was committed before (replay); None: none."""
    windows: list[_Closing]
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
    ) -> None:
        """``models``: (name, model, window rule or None for step mode); at most one in window mode, all of one width."""
        self.limits = limits or Limits()
        self.identity = identity or Identity()
        self._durable = durable
        self._reset_changed_models = reset_changed_models
        _check_models(models)
        self.features = models[0][1].contract.features
        carried = [Carried(model) for _, model, _ in models]
        stateful = [each for each, (_, _, rule) in zip(carried, models, strict=True) if rule is None]
        per_stream = sum(each.bytes_per_stream for each in stateful) + STREAM_OVERHEAD_BYTES
        self.max_streams = max(self.limits.max_state_bytes // per_stream, 1)
        capacity = self.max_streams + 2 * self.limits.max_ingest_rows if stateful else 1
        self.lanes: list[Lane] = []
        for index, (name, model, rule) in enumerate(models):
            kept, encoder = carried[index], Encoder(model.contract, name)
            arena = None if rule else Arena(kept.states, kept.initial, capacity)
            self.lanes.append(Lane(index, name, model, kept, encoder, bytes.fromhex(model.sha256)[:8], arena, rule))
        self._stepping = [lane for lane in self.lanes if lane.arena is not None]
        self._windowing = next((lane for lane in self.lanes if lane.rule is not None), None)
        self.table = StreamTable([lane.arena for lane in self._stepping if lane.arena], capacity)
        self.ledgers: dict[int, Ledger] = {}
        self.windows: dict[int, Windows] = {}
        self._traces: dict[int, Traces] = {}
        self.rollouts = Rollouts([(lane.name, lane.carried) for lane in self._stepping], self.limits.rollouts)
        self.counters = Counters()
        self._ended: dict[int, dict[bytes, int]] = {}
        self._data_watermark: dict[int, int] = {}
        self._last_stamp: dict[int, int] = {}
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
        if self._windowing and self._windowing.rule:
            self.windows[partition] = Windows(
                self._windowing.rule, self.features, watermark=ledger.watermark, replaying=ledger.replaying
            )
            self._traces[partition] = Traces()
        self.rollouts.restore(
            partition, ledger.rollouts, ledger.emitted, reset_changed_models=self._reset_changed_models
        )

    def revoke(self, partition: int) -> None:
        """Forgets a partition: state, windows, and what of it was not sealed. Invariant 7: nothing of it remains."""
        assert self._work is None, "run() the pending work first, or abandon() it"
        self.ledgers.pop(partition, None)
        self.windows.pop(partition, None)
        self._traces.pop(partition, None)
        self._ended.pop(partition, None)
        self._newest_ms.pop(partition, None)
        self._data_watermark.pop(partition, None)
        self._last_stamp.pop(partition, None)
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
        by_name = {lane.name: lane for lane in self._stepping}
        columns: dict[str, tuple[list[bytes], list[bytes], list[int], list[int]]] = {}
        for record in records:
            lane = by_name.get(record.model)
            if lane is None or record.state is None:
                continue
            if reset_changed_models and record.model_id != lane.model_id:
                continue
            assert lane.arena is not None
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
            assert arena is not None
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
        windows: list[_Closing] = []
        begin = 0
        for fetched in batches:
            ledger = self.ledgers.get(fetched.partition)
            if ledger is None:
                continue
            batch = _news(fetched, ledger.next_offset)
            if batch is None:
                continue
            self._rejects += [reject for reject in batch.rejects if reject.offset >= ledger.live_from]
            if self._windowing:
                windows += self._ingest_windows(batch, ledger)
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
        windows: list[_Closing],
    ) -> _Work:
        slots = [self.table.slots(batch.partition, batch.keys) for batch in batches] if self._stepping else []
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
                batch = _rows_of(batch, np.flatnonzero(~gone))
        refused = [int(row) for row in np.flatnonzero(np.isin(batch.offsets, list(ledger.decisions)))]
        return batch, np.array(refused, np.int64)

    def _ingest_windows(self, batch: EventBatch, ledger: Ledger) -> list[_Closing]:
        """Assigns rows to windows; in replay in pieces, cut where the watermark once moved by idleness and at go-live."""
        windows, first = self.windows[batch.partition], 0
        self._traces[batch.partition].note(batch.offsets, batch.headers)
        while windows.replaying:
            reached = int(batch.offsets[first]) if first < len(batch) else batch.next_offset
            self._repeat_idle(windows, ledger, reached)
            if first == len(batch) or not windows.replaying:
                break
            ends = [before for before, _ in ledger.idle if before > reached]
            last = int(np.searchsorted(batch.offsets, min([*ends, ledger.live_from])))
            windows.add(batch, first, last, ledger.window_through)
            first = last
        closed: list[_Closing] = []
        if first < len(batch):
            added = windows.add(batch, first)
            rows = np.searchsorted(batch.offsets, np.array(added.closed_at, np.int64)).tolist()
            closed = self._closings(batch.partition, added, [batch.timestamps_ms[row] for row in rows])
            self._late(batch, added.late)
            ledger.new_window_through.update(added.closed_through)
        if len(batch):
            self._last_stamp[batch.partition] = batch.timestamps_ms[-1]
        if windows.watermark != NO_WATERMARK:
            self._data_watermark[batch.partition] = windows.watermark
        return closed

    def _repeat_idle(self, windows: Windows, ledger: Ledger, reached: int) -> None:
        """Idle advances that were decided before ``reached``; then, at the end of the replay, life is normal."""
        for before, watermark in ledger.idle:
            if before <= reached:
                windows.advance(watermark)
        if reached >= ledger.live_from:
            windows.replaying = False

    def _closings(self, partition: int, added: Added, stamps_ms: Sequence[int]) -> list[_Closing]:
        for window in added.closed:
            self.counters.windows[window.reason] = self.counters.windows.get(window.reason, 0) + 1
        if added.short:
            self.counters.windows["short"] = self.counters.windows.get("short", 0) + len(added.short)
        self.counters.trimmed += added.trimmed
        traces = self._traces[partition]
        closings = [
            _Closing(window, partition, stamp, traces.of(int(window.offsets.max())) if traces else ())
            for window, stamp in zip(added.closed, stamps_ms, strict=True)
        ]
        oldest = self.windows[partition].oldest()
        traces.drop_before(oldest[0] if oldest else None)
        return closings

    def _late(self, batch: EventBatch, rows: Sequence[int]) -> None:
        self.counters.late += len(rows)
        self._late_events += len(rows)
        if self.limits.late_to_dead_letter:
            for row in sorted(set(rows)):
                self._rejects.append(
                    _reject(batch, row, "late", f"event time {batch.times_ms[row]} ms is behind the watermark")
                )

    # run

    def run(self) -> Iterator[None]:
        """Settles the pending work, one model call per iteration. Abandoning the iterator leaves the epoch as it was."""
        work = self._work
        if work is None:
            return
        for lane in self._stepping:
            outputs = [np.empty((len(work.offsets), size), np.float32) for size in lane.model.contract.output_sizes]
            refused: dict[int, str] = {}
            for item in self._plan(lane, work):
                if isinstance(item, Batch):
                    self._call(lane, work, item, outputs, refused)
                    yield
                else:
                    self._command(lane, work, item)
            self._settle(lane, work, outputs, refused)
        if work.windows and self._windowing:
            yield from self._run_windows(self._windowing, work)
        self._finish(work)
        self._work = None

    def _command(self, lane: Lane, work: _Work, rows: I64) -> None:
        """Between model calls: states go back to the initial one, or are forked for a rollout if that is news."""
        assert lane.arena is not None
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
        """One step of the open rollouts (see ``streamer.rollout``): one model call per model. Nothing may be pending.

        Partitions that are still replayed wait: what they answer could not be committed yet."""
        assert self._work is None, "run() the pending work first"
        live = {partition for partition, ledger in self.ledgers.items() if not ledger.replaying}
        for answer in self.rollouts.step(live):
            self.ledgers[answer.partition].moved = True
            if isinstance(answer, Reject):
                self._rejects.append(answer)
            else:
                self._outgoing.append(answer)
        self.counters.runs += [(rows, 1, rows) for rows in self.rollouts.calls]
        self.rollouts.calls.clear()

    def _plan(self, lane: Lane, work: _Work) -> Iterator[Batch | I64]:
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

    def _due_rows(self, lane: Lane, work: _Work) -> I64 | None:
        """Rows that this lane's state does not reflect yet; None: all. Only a replay brings rows that it does."""
        if all(segment.batch.offsets[0] >= segment.live_from for segment in work.segments):
            return None
        assert lane.arena is not None
        due = work.offsets > lane.arena.through[work.slots]
        if work.skip is not None:
            due[work.skip] = False
        return np.flatnonzero(due)

    def _call(self, lane: Lane, work: _Work, batch: Batch, outputs: Sequence[F32], refused: dict[int, str]) -> None:
        """One model call: take, run, put. A call that fails changed nothing, and is halved until the row is found."""
        arena, rows = lane.arena, batch.rows
        assert arena is not None
        single = rows.shape[1] == 1
        x = work.x[rows[:, 0]][:, None, :] if single else work.x[np.maximum(rows, 0)] * (rows >= 0)[:, :, None]
        try:
            results, states = lane.carried.run(x, batch.lengths, arena.take(batch.slots))
            _check_finite(results, batch, states)
        except ModelRunError as error:
            self._isolate(lane, work, batch, outputs, refused, error)
            return
        arena.put(batch.slots, states)
        if single:
            for output, result in zip(outputs, results, strict=True):
                output[rows[:, 0]] = result[:, 0]
        else:
            valid = rows >= 0
            for output, result in zip(outputs, results, strict=True):
                output[rows[valid]] = result[valid]
        self.counters.runs.append((len(rows), rows.shape[1], int(batch.lengths.sum())))

    def _isolate(
        self,
        lane: Lane,
        work: _Work,
        batch: Batch,
        outputs: Sequence[F32],
        refused: dict[int, str],
        error: ModelRunError,
    ) -> None:
        count, steps = batch.rows.shape
        if count > 1:
            half = count // 2
            for part in (slice(0, half), slice(half, count)):
                longest = int(batch.lengths[part].max())
                piece = Batch(batch.slots[part], batch.rows[part, :longest], batch.lengths[part])
                self._call(lane, work, piece, outputs, refused)
        elif steps > 1:
            for step in range(int(batch.lengths[0])):
                piece = Batch(batch.slots, batch.rows[:, step : step + 1], np.ones(1, np.int32))
                self._call(lane, work, piece, outputs, refused)
        else:
            refused[int(batch.rows[0, 0])] = str(error)

    # settle

    def _settle(self, lane: Lane, work: _Work, outputs: Sequence[F32], refused: dict[int, str]) -> None:
        """Outputs of one lane become predictions of the open epoch; states become known up to their last row."""
        assert lane.arena is not None
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

    def _predict(self, lane: Lane, work: _Work, outputs: Sequence[F32], rows: I64 | None) -> None:
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
                    Outgoing(batch.partition, keys[begin:end], values[begin:end], stamps, sources, headers)
                )

    def _refuse(self, lane: Lane, work: _Work, row: int, detail: str) -> None:
        segment = next(s for s in work.segments if s.begin <= row < s.end)
        offset = int(work.offsets[row])
        ledger = self.ledgers[segment.batch.partition]
        ledger.decisions.setdefault(offset, "model_refused")
        if offset >= segment.live_from:
            self._rejects.append(
                _reject(segment.batch, row - segment.begin, "model_refused", f"model {lane.name!r}: {detail}")
            )

    def _finish(self, work: _Work) -> None:
        for segment in work.segments:
            batch, partition = segment.batch, segment.batch.partition
            ledger = self.ledgers[partition]
            live = len(batch) - int(np.searchsorted(batch.offsets, segment.live_from))
            self.counters.events += live
            self.counters.replayed += len(batch) - live
            self._events += live
            if ledger.forgotten and self._stepping:
                for key in batch.keys:
                    ledger.forgotten.pop(key, None)
        if self._stepping and len(work.slots):
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
                    self._rejects.append(_reject(segment.batch, row, refused.reason, refused.detail))
                if work.ops[segment.begin + row] == Op.END:
                    ended[segment.batch.keys[row]] = int(segment.batch.offsets[row])

    # windows

    def idle(self, partition: int, elapsed_ms: int) -> None:
        """No record came for ``elapsed_ms`` although all were read: closes what that much time closes. The watermark
        moves only when it closes a window, from where the last event left it. Nothing may be pending."""
        windows, ledger = self.windows.get(partition), self.ledgers.get(partition)
        if windows is None or ledger is None or ledger.replaying or self._data_watermark.get(partition) is None:
            return
        watermark = self._data_watermark[partition] + elapsed_ms
        due = windows.next_close_ms()
        if due is None or due > watermark:
            return
        assert self._work is None, "run() the pending work first"
        added = windows.advance(watermark)
        ledger.note_idle(windows.watermark)
        ledger.new_window_through.update(added.closed_through)
        stamp = self._last_stamp[partition] + elapsed_ms
        self._work = self._merge([], [], [], self._closings(partition, added, [stamp] * len(added.closed)))

    def _run_windows(self, lane: Lane, work: _Work) -> Iterator[None]:
        limits, model = self.limits, lane.model
        lengths = [len(closing.window.x) for closing in work.windows]
        values: list[bytes | None] = [None] * len(lengths)
        for chosen in plan_windows(
            lengths, max_rows=limits.max_rows, max_cells=limits.max_window_cells, ragged=model.ragged
        ):
            self._call_windows(lane, work, chosen, values)
            yield
        outgoing: Outgoing | None = None
        for closing, value in zip(work.windows, values, strict=True):
            if value is None:
                continue
            if outgoing is None or outgoing.partition != closing.partition:
                outgoing = Outgoing(closing.partition, [], [], [], [], mode="window")
                self._outgoing.append(outgoing)
            if closing.headers:
                outgoing.headers[len(outgoing)] = closing.headers
            outgoing.keys.append(closing.window.stream)
            outgoing.values.append(value)
            outgoing.timestamps_ms.append(closing.timestamp_ms)
            outgoing.sources.append(closing.source)

    def _call_windows(self, lane: Lane, work: _Work, chosen: I64, values: list[bytes | None]) -> None:
        windows = [work.windows[index].window for index in chosen.tolist()]
        lengths = np.array([len(window.x) for window in windows], np.int32)
        x = np.zeros((len(windows), int(lengths.max()), self.features), np.float32)
        for row, window in zip(x, windows, strict=True):
            row[: len(window.x)] = window.x
        try:
            results, _ = lane.model.run(x, lengths, lane.model.initial_states(len(windows)))
            for result, output in zip(results, lane.model.contract.outputs, strict=True):
                if output.per == "event":
                    finite = all(np.isfinite(row[:length]).all() for row, length in zip(result, lengths, strict=True))
                else:
                    finite = bool(np.isfinite(result).all())
                if not finite:
                    raise ModelRunError(f"output {output.name!r} is not finite")
        except ModelRunError as error:
            if len(chosen) > 1:
                half = len(chosen) // 2
                self._call_windows(lane, work, chosen[:half], values)
                self._call_windows(lane, work, chosen[half:], values)
            else:
                self._refuse_window(lane, work, int(chosen[0]), str(error))
            return
        for at, (index, window) in enumerate(zip(chosen.tolist(), windows, strict=True)):
            parts = [
                result[at, : len(window.x)] if output.per == "event" else result[at]
                for result, output in zip(results, lane.model.contract.outputs, strict=True)
            ]
            values[index] = lane.encoder.window(window, parts)
            self.counters.scores += lane.scores(parts)
        self.counters.runs.append((len(windows), x.shape[1], int(lengths.sum())))

    def _refuse_window(self, lane: Lane, work: _Work, index: int, detail: str) -> None:
        closing = work.windows[index]
        window = closing.window
        offsets = f"offsets {window.offsets.min()} to {window.offsets.max()}"
        self._rejects.append(
            Reject(
                partition=closing.partition,
                offset=closing.source,
                reason="model_refused",
                detail=f"model {lane.name!r}, window {window.start_ms} to {window.end_ms} ms, {offsets}: {detail}",
                key=window.stream,
                value=None,
                headers=closing.headers,
                timestamp_ms=closing.timestamp_ms,
            )
        )

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
            for lane in self._stepping:
                assert lane.arena is not None
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
            due = self._round_due(ledger, now_ms)
            settled = ledger.next_offset if self._durable else self.rollouts.oldest(partition, ledger.next_offset)
            if not (settled > ledger.position or gone or due or ledger.moved or ledger.round_open):
                continue
            ledger.position = settled
            ledger.moved = False
            positions[partition] = ledger.position
            if not self._durable:
                ledger.replay_from_position()
                continue
            records = self._forget_records(partition, gone) + self._window_records(ledger)
            records += self.rollouts.records(partition)
            if due:
                self._begin_round(partition, ledger, now_ms)
            slice_records, spent = self._slice(partition, ledger, slice_bytes)
            slice_bytes -= spent
            records += slice_records
            windows = self.windows.get(partition)
            ledger.move_replay_point(windows.oldest() if windows else None)
            records += self._tombstones(partition, ledger, gone)
            records.append((progress_key(), encode_progress(self._progress(partition, ledger))))
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

    def _round_due(self, ledger: Ledger, now_ms: int) -> bool:
        if not self._durable or ledger.round_open:
            return False
        return (
            ledger.next_offset > ledger.checkpointed
            and now_ms - ledger.round_at_ms >= self.limits.checkpoint_interval_ms
        )

    @property
    def round_bytes(self) -> int:
        """What the current or last round of every partition writes, about."""
        return sum(ledger.round_bytes for ledger in self.ledgers.values())

    def _begin_round(self, partition: int, ledger: Ledger, now_ms: int) -> None:
        slots = self.table.slots_of(partition) if self._stepping else np.empty(0, np.int64)
        changed = [
            (position, slots[lane.arena.changed[slots]], lane.arena.bytes_per_stream + RECORD_OVERHEAD_BYTES)
            for position, lane in enumerate(self._stepping)
            if lane.arena is not None
        ]
        windows = self.windows.get(partition)
        ledger.begin_round(changed, windows.watermark if windows else NO_WATERMARK, now_ms)

    def _slice(self, partition: int, ledger: Ledger, budget_bytes: int) -> tuple[list[tuple[bytes, bytes | None]], int]:
        """Stream records of an open round, at least one per call so that a round always ends."""
        records: list[tuple[bytes, bytes | None]] = []
        spent = 0
        while ledger.pending and (spent < budget_bytes or not records):
            position, slots = ledger.pending.pop()
            lane = self._stepping[position]
            assert lane.arena is not None
            each = lane.arena.bytes_per_stream + RECORD_OVERHEAD_BYTES
            fit = max(int((budget_bytes - spent) // each), 1)
            if fit < len(slots):
                ledger.pending.append((position, slots[fit:]))
                slots = slots[:fit]
            written = self._stream_records(partition, lane, slots[lane.arena.changed[slots]])
            records += written
            spent += len(written) * each
        if ledger.round_open and not ledger.pending:
            ledger.end_round()
        return records, spent

    def _stream_records(self, partition: int, lane: Lane, slots: I64) -> list[tuple[bytes, bytes | None]]:
        arena = lane.arena
        assert arena is not None
        # a slot may have passed to a stream of another partition since the round began
        mine = [s for s in slots.tolist() if self.table.find(partition, self.table.key(s)) == s]
        if not mine:
            return []
        chosen = np.array(mine, np.int64)
        arena.changed[chosen] = False
        columns = zip(
            self.table.keys(chosen),
            arena.through[chosen].tolist(),
            self.table.last_ms[chosen].tolist(),
            arena.rows(chosen),
            strict=True,
        )
        keys = ((stream_key(Kind.STATE, lane.name, stream), *rest) for stream, *rest in columns)
        return [(key, encode_stream(key, through, last, lane.model_id, state)) for key, through, last, state in keys]

    def _forget_records(self, partition: int, gone: dict[bytes, int]) -> list[tuple[bytes, bytes | None]]:
        records: list[tuple[bytes, bytes | None]] = []
        ledger = self.ledgers[partition]
        through = ledger.position - 1
        for stream, last_ms in gone.items():
            ledger.forgotten[stream] = through
            for lane in self._stepping:
                key = stream_key(Kind.STATE, lane.name, stream)
                records.append((key, encode_stream(key, through, last_ms, lane.model_id, None)))
        return records

    def _window_records(self, ledger: Ledger) -> list[tuple[bytes, bytes | None]]:
        lane = self._windowing
        if lane is None or not ledger.new_window_through:
            return []
        records: list[tuple[bytes, bytes | None]] = []
        for stream, through in ledger.new_window_through.items():
            key = stream_key(Kind.WINDOW, lane.name, stream)
            records.append((key, encode_stream(key, through, 0, lane.model_id, None)))
        ledger.window_through.update(ledger.new_window_through)
        ledger.new_window_through.clear()
        return records

    def _tombstones(self, partition: int, ledger: Ledger, gone: dict[bytes, int]) -> list[tuple[bytes, bytes | None]]:
        """Deletes records of forgotten streams that no replay can see. A stream that came back has a record to come."""
        records: list[tuple[bytes, bytes | None]] = []
        for stream in ledger.due_tombstones(ledger.forgotten):
            if stream in gone:
                continue
            del ledger.forgotten[stream]
            if self.table.find(partition, stream) is None:
                records += [(stream_key(Kind.STATE, lane.name, stream), None) for lane in self._stepping]
        if self._windowing:
            for stream in ledger.due_tombstones(ledger.window_through):
                del ledger.window_through[stream]
                records.append((stream_key(Kind.WINDOW, self._windowing.name, stream), None))
        return records

    def _progress(self, partition: int, ledger: Ledger) -> Progress:
        return Progress(
            position=ledger.position,
            replay_point=ledger.replay_point,
            watermark=ledger.watermark,
            idle=tuple(ledger.idle),
            decisions=tuple(sorted(ledger.decisions.items())),
            models={lane.name: lane.model_id.hex() for lane in self.lanes},
            fingerprint=self.identity.fingerprint,
            group=self.identity.group,
            topic_id=self.identity.topic_id,
            checksum=ledger.checksum,
            rollouts=self.rollouts.emitted(partition),
        )

    # forgetting

    def _evict(self, now_ms: int) -> dict[int, dict[bytes, int]]:
        """Streams to forget with this epoch: partition -> {stream: time of its last event}."""
        gone: dict[int, dict[bytes, int]] = {}
        if not self._stepping:
            return gone
        live = [partition for partition, ledger in self.ledgers.items() if not ledger.replaying]
        for partition in live:
            ended, self._ended[partition] = self._ended[partition], {}
            through = self._stepping[0].arena.through if self._stepping[0].arena else None
            assert through is not None
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
    for name, model, rule in models:
        if rule is None and model.contract.mode == "window":
            raise ConfigurationError(
                f"model {name!r} looks ahead (mode window): give it a [model.{name}.window] section"
            )


def _news(batch: EventBatch, next_offset: int) -> EventBatch | None:
    """Without what was ingested before; None when nothing is left."""
    if batch.next_offset <= next_offset:
        return None
    if (not len(batch) or batch.offsets[0] >= next_offset) and (
        not batch.rejects or batch.rejects[0].offset >= next_offset
    ):
        return batch
    batch = _rows_of(batch, np.flatnonzero(batch.offsets >= next_offset))
    batch.rejects = [reject for reject in batch.rejects if reject.offset >= next_offset]
    return batch


def _rows_of(batch: EventBatch, rows: I64) -> EventBatch:
    index = rows.tolist()
    return EventBatch(
        partition=batch.partition,
        offsets=batch.offsets[rows],
        times_ms=batch.times_ms[rows],
        timestamps_ms=[batch.timestamps_ms[row] for row in index],
        keys=[batch.keys[row] for row in index],
        x=batch.x[rows],
        ops=None if batch.ops is None else batch.ops[rows],
        records=batch.records,
        next_offset=batch.next_offset,
        rejects=batch.rejects,
        commands={new: batch.commands[row] for new, row in enumerate(index) if row in batch.commands},
        headers={new: batch.headers[row] for new, row in enumerate(index) if row in batch.headers},
        checksum=batch.checksum,
    )


def _reject(batch: EventBatch, row: int, reason: str, detail: str) -> Reject:
    return batch.records.reject(bisect_left(batch.records.offsets, int(batch.offsets[row])), reason, detail)


def _joined(parts: Sequence[Any], dtype: type) -> Any:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def _check_finite(results: Sequence[F32], batch: Batch, states: Sequence[F32]) -> None:
    """A sum is finite when all its terms are, so the common case costs one pass and no array of flags."""
    for result in results:
        if not isfinite(float(result.sum())):
            valid = result[batch.rows >= 0]
            if not np.isfinite(valid).all():
                raise ModelRunError("an output is not finite")
    for state in states:
        if not isfinite(float(state.sum())) and not np.isfinite(state).all():
            raise ModelRunError("a next state is not finite")
