"""One step model over the pending work: what it has to do, the calls, and what becomes of their outputs."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from streamer.core import F32, I64, U8, Batch, Flags, ModelCall, Op, StepAnswers, step_rows
from streamer.emission.utterance import Rows
from streamer.engine.emitting import Emitting, Gathered
from streamer.engine.frames import Frames
from streamer.engine.lane import StepLane
from streamer.engine.lanes import Lanes
from streamer.engine.scheduler import Restart, plan_steps
from streamer.engine.work import Part, Work
from streamer.generate.request import Refused
from streamer.settings import BatchSection
from streamer.words import Reason


@dataclass(slots=True)
class _Due:
    """What one model has to do with the work. ``rows``: that its states do not reflect yet, None: all."""

    rows: I64 | None
    ops: U8 | None
    anew: Flags | None
    decided: Flags | None


class StepRun:
    """One step model and one work."""

    def __init__(self, lanes: Lanes, number: int, work: Work, bounds: BatchSection) -> None:
        self._lanes = lanes
        self._number = number
        self._lane: StepLane = lanes.stepping[number]
        self._work = work
        self._bounds = bounds
        self._frames = None if work.steps is None else Frames(work.steps, bounds, ragged=self._lane.model.ragged)

    def run(self, calls: list[ModelCall]) -> Iterator[None]:
        """One model call per iteration, told in ``calls``; answers, refusals and states are settled when it ends."""
        lane, work = self._lane, self._work
        due = self._due()
        outputs, refused = lane.outputs(len(work.x)), dict[int, str]()
        times_ms = work.times_ms if work.steps is None else np.repeat(work.times_ms, work.steps)
        if lane.emitting is not None:
            due.anew = self._utterances(lane.emitting, due)
        for item in self._plan(due):
            if isinstance(item, Batch):
                for batch in (item,) if self._frames is None else self._frames.calls(item):
                    lane.call(work.x, times_ms, batch, outputs, refused, calls)
                    yield
            elif isinstance(item, Restart):
                if lane.emitting is not None:
                    lane.emitting.end(work.slots[item.rows], item.rows)
                lane.arena.reset(work.slots[item.rows])
            else:
                self._command(item)
        self._settle(due, outputs, refused)

    def _due(self) -> _Due:
        """Only a replay brings rows that the model's states reflect already, or that it refused before."""
        lane, work, number = self._lane, self._work, self._number
        rows: I64 | None = None
        decided: Flags | None = None
        ttl_ms: int | I64 = self._lanes.idle_ttl_ms
        if any(part.batch.offsets[0] < part.partition.live_from for part in work.parts):
            through, flags = lane.arena.through[work.slots], np.empty(len(work.offsets), bool)
            decided = np.zeros(len(work.offsets), bool)
            for part in work.parts:
                at = slice(part.begin, part.end)
                truth = part.partition.truths[number]
                flags[at], before = truth.due(part.batch.keys, part.batch.offsets, through[at])
                decided[at] = False if before is None else before
            rows = np.flatnonzero(flags)
            ttl_ms = np.concatenate([part.partition.idle_ttls.at(part.batch.offsets) for part in work.parts])[rows]
            decided = decided[rows] if decided.any() else None
        ops = work.ops if rows is None or work.ops is None else work.ops[rows]
        slots, times = (work.slots, work.times_ms) if rows is None else (work.slots[rows], work.times_ms[rows])
        anew = lane.begins_anew(slots, times, ops, ttl_ms)
        return _Due(rows, ops, anew, decided)

    def _utterances(self, emitting: Emitting, due: _Due) -> Flags | None:
        """[N] due rows whose states begin anew, with those before which an utterance ends."""
        work = self._work
        before, clock = np.empty((2, len(work.offsets)), np.int64)
        stamps: list[int] = []
        for part in work.parts:
            silence = part.partition.silence
            assert silence is not None, "a partition of a model that emits has a clock"
            before[part.begin : part.end], clock[part.begin : part.end] = silence.clock.around(part.batch.offsets)
            stamps += part.batch.timestamps_ms
        at = np.arange(len(work.offsets)) if due.rows is None else due.rows
        stamps_ms = np.array(stamps, np.int64)[at]
        rows = Rows(work.slots[at], work.times_ms[at], stamps_ms, work.offsets[at], due.ops, before[at], clock[at])
        over = emitting.judge(at, rows)
        if not len(over):
            return due.anew
        anew = np.zeros(len(at), bool) if due.anew is None else due.anew
        anew[over] = True
        return anew

    def _plan(self, due: _Due) -> Iterator[Batch | Restart | I64]:
        """Items over the rows of the work."""
        model, bounds, work = self._lane.model, self._bounds, self._work
        steps = bounds.max_steps if model.max_steps is None else min(bounds.max_steps, model.max_steps)
        if self._frames is not None:
            steps = self._frames.records_per_call(steps)
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

    def _command(self, rows: I64) -> None:
        """Between model calls: states go back to the initial one, or are forked for a rollout if that is news."""
        lane, work = self._lane, self._work
        asking = np.zeros(len(rows), bool) if work.ops is None else work.ops[rows] == Op.GENERATE
        if lane.emitting is not None:
            lane.emitting.end(work.slots[rows[~asking]], rows[~asking])
        lane.arena.reset(work.slots[rows[~asking]])
        for row in rows[asking].tolist():
            part = work.part_of(row)
            if work.offsets[row] < part.partition.live_from:
                continue
            try:
                self._ask(part, row)
            except Refused as refused:
                work.refused[row] = refused

    def _ask(self, part: Part, row: int) -> None:
        lane, work = self._lane, self._work
        batch, at, offset = part.batch, row - part.begin, int(work.offsets[row])
        value = batch.commands.get(at, b"")
        if self._lanes.generators.asked(value) == lane.name:
            part.partition.rollouts.ask(
                lane.name,
                offset,
                batch.keys[at],
                value,
                headers=batch.records.headers.get(bisect_left(batch.records.offsets, offset), ()),
                timestamp_ms=batch.timestamps_ms[at],
                time_ms=int(work.times_ms[row]),
                state=lane.arena.rows(work.slots[row : row + 1])[0],
            )

    def _settle(self, due: _Due, outputs: Sequence[F32], refused: dict[int, str]) -> None:
        """Outputs of one model become answers of the open epoch; states become known up to their last row."""
        lane, work, number = self._lane, self._work, self._number
        if due.rows is None:
            lane.reflect(work.slots, work.offsets, work.times_ms, due.ops)
        else:
            at = due.rows
            lane.reflect(work.slots[at], work.offsets[at], work.times_ms[at], due.ops)
        if lane.emitting is not None:
            self._emit(lane.emitting)
        answered: Flags | None = None
        if refused or work.ops is not None or due.rows is not None:
            answered = np.ones(len(work.offsets), bool) if work.ops is None else work.ops == Op.EVENT
            answered[list(refused)] = False
        for part in work.parts:
            truth = part.partition.truths[number]
            if due.rows is None:
                truth.returned(part.batch.keys)
            else:
                mine = due.rows[(due.rows >= part.begin) & (due.rows < part.end)] - part.begin
                truth.returned(part.batch.keys[row] for row in mine.tolist())
                assert answered is not None
                answered[part.begin : part.end] &= part.batch.offsets >= part.partition.live_from
            if lane.emitting is None:
                self._answer(part, outputs, None if answered is None else answered[part.begin : part.end])
        for row, detail in refused.items():
            self._refuse(row, detail)

    def _emit(self, emitting: Emitting) -> None:
        told = emitting.settle()
        for part in self._work.parts if told else ():
            assert part.partition.silence is not None
            gathered = Gathered(part.partition.number, self._lane.name, part.partition.live_from)
            for row, each in told:
                if part.begin <= row < part.end:
                    gathered.told(part.batch, row - part.begin, each, part.partition.silence.clock)
            if len(gathered.answers):
                part.partition.answers.append(gathered.answers)

    def _answer(self, part: Part, outputs: Sequence[F32], answered: Flags | None) -> None:
        batch, lane = part.batch, self._lane
        span = slice(part.begin, part.end) if self._frames is None else self._frames.span(part.begin, part.end)
        y = [output[span] for output in outputs]
        if answered is not None and not answered.all():
            rows = np.flatnonzero(answered)
            if not len(rows):
                return
            at = rows if batch.steps is None else step_rows(batch.steps, rows)
            batch, y = batch.select(rows), [output[at] for output in y]
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
                steps=batch.steps,
            )
        )

    def _refuse(self, row: int, detail: str) -> None:
        work, number = self._work, self._number
        part = work.part_of(row)
        offset, partition = int(work.offsets[row]), part.partition
        if self._lanes.durable:
            partition.truths[number].decisions.note(offset)
        if offset >= partition.live_from:
            text = f"model {self._lane.name!r}: {detail}"
            partition.refuse([part.batch.reject(row - part.begin, Reason.MODEL_REFUSED, text)])
