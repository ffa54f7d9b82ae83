"""One model on the input: how it is called, and how a call that fails is halved until the record is found."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import numpy as np

from streamer.core import F32, I64, U8, Batch, Flags, ModelCall, Op, X
from streamer.engine.emitting import Emitting
from streamer.engine.frames import by_record
from streamer.errors import ModelRunError
from streamer.modelfile.carried import Carried
from streamer.modelfile.model import Model
from streamer.state.arena import NO_EVENT_MS, Arena

_NEVER_MS = np.iinfo(np.int64).max


class Lane:
    """What is known of a model while it runs. ``model_id``: the first 8 bytes of its file's sha256."""

    def __init__(self, name: str, model: Model) -> None:
        self.name = name
        self.model = model
        self.model_id = bytes.fromhex(model.sha256)[:8]
        self.states = ""
        """Names and shapes of what is kept per stream."""
        self._scored = [number for number, output in enumerate(model.contract.outputs) if output.kind == "score"]

    def scores(self, outputs: Sequence[F32]) -> list[tuple[str, F32]]:
        """(model name, values) per output of kind score."""
        return [(self.name, outputs[number]) for number in self._scored]


class StepLane(Lane):
    """A causal model with the states of all streams in its arena."""

    def __init__(self, name: str, carried: Carried, capacity: int, *, emitting: Emitting | None = None) -> None:
        """``emitting``: the model answers in symbols instead of once per event."""
        super().__init__(name, carried.model)
        self.carried = carried
        self.arena = Arena(carried.states, carried.initial, capacity, carried.beside)
        self.states = ", ".join(
            f"{state.input}{[size if axis != state.batch_axis else 'batch' for axis, size in enumerate(value.shape)]}"
            for state, value in zip(carried.states, carried.initial, strict=True)
        )
        self.emitting = emitting
        if emitting is not None:
            emitting.bind(self.arena)
            self.states += f"; {emitting.states}"

    def outputs(self, rows: int) -> list[F32]:
        """Room for the outputs of ``rows`` steps, each [rows, O]."""
        return [np.empty((rows, size), np.float32) for size in self.model.contract.output_sizes]

    def begins_anew(self, slots: I64, times_ms: I64, ops: U8 | None, ttl_ms: int | I64) -> Flags | None:
        """[N] rows whose event is later than the newest of its stream before it by more than ``ttl_ms`` (of all rows, or
        [N]; 0: never); None: no row is.

        ``ops``: of the rows, None: all are events. An end forgets the newest event, also where the stream goes on."""
        if not len(slots) or not np.any(ttl_ms):
            return None
        ttl = np.broadcast_to(np.where(np.equal(ttl_ms, 0), _NEVER_MS, ttl_ms), len(slots))
        newest = self.arena.newest_ms[slots]
        known = newest[newest != NO_EVENT_MS]
        earliest = min(int(times_ms.min()), int(known.min()) if len(known) else int(times_ms.min()))
        if int(times_ms.max()) - earliest <= ttl.min():
            return None
        order = np.argsort(slots, kind="stable")
        grouped = slots[order]
        times, before = times_ms[order], newest[order]
        apart = grouped[1:] != grouped[:-1]
        if ops is not None:
            told = ops[order]
            times = np.where(told == Op.EVENT, times, NO_EVENT_MS)
            ends = np.cumsum(told == Op.END) - (told == Op.END)  # before each row
            first = np.concatenate(([0], np.flatnonzero(apart) + 1))
            before[ends > np.repeat(ends[first], np.diff(first, append=len(ends)))] = NO_EVENT_MS
            apart |= ends[1:] != ends[:-1]
        groups = np.concatenate(([0], np.cumsum(apart)))
        before[1:] = np.where(apart, before[1:], np.maximum(before[1:], _running_max(groups, times)[:-1]))
        anew = np.zeros(len(slots), bool)
        anew[order] = (before != NO_EVENT_MS) & (times != NO_EVENT_MS) & (times - before > ttl[order])
        return anew if anew.any() else None

    def reflect(self, slots: I64, offsets: I64, times_ms: I64, ops: U8 | None) -> None:
        """The states of ``slots`` now reflect these rows, in log order. A command has no event time; after an end there is
        no newest event, until the next one."""
        arena = self.arena
        arena.through[slots] = offsets
        arena.changed[slots] = True
        if ops is None:
            np.maximum.at(arena.newest_ms, slots, times_ms)
            return
        events, ends = ops == Op.EVENT, np.flatnonzero(ops == Op.END)
        if len(ends):
            streams, stream = np.unique(slots, return_inverse=True)
            last = np.full(len(streams), -1)
            np.maximum.at(last, stream[ends], ends)
            events &= np.arange(len(slots)) > last[stream]
            arena.newest_ms[slots[ends]] = NO_EVENT_MS
        np.maximum.at(arena.newest_ms, slots[events], times_ms[events])

    def call(
        self,
        x: X,
        times_ms: I64,
        batch: Batch,
        outputs: Sequence[F32],
        refused: dict[int, str],
        calls: list[ModelCall],
    ) -> None:
        """Take, run, put, and the outputs of ``batch`` at its rows of ``x`` [N, F] and ``times_ms`` [N]. A call that fails
        changed nothing, and is halved until the event is found that the model does not take: that one is in ``refused``, the
        others have run."""
        rows = batch.rows
        single = rows.shape[1] == 1
        taken = x[rows[:, 0]][:, None, :] if single else x[np.maximum(rows, 0)] * (rows >= 0)[:, :, None]
        times = None if self.carried.past is None else times_ms[np.maximum(rows, 0)]
        try:
            results, states = self.carried.run(taken, batch.lengths, self.arena.take(batch.slots), times)
            _check_finite(results, batch, states)
        except ModelRunError as error:
            self._halve(x, times_ms, batch, outputs, refused, calls, error)
            return
        self.arena.put(batch.slots, states)
        if self.emitting is not None:
            self.emitting.take(batch, results)
        if single:
            for output, result in zip(outputs, results, strict=True):
                output[rows[:, 0]] = result[:, 0]
        else:
            valid = rows >= 0
            for output, result in zip(outputs, results, strict=True):
                output[rows[valid]] = result[valid]
        calls.append((len(rows), rows.shape[1], int(batch.lengths.sum())))

    def _halve(
        self,
        x: X,
        times_ms: I64,
        batch: Batch,
        outputs: Sequence[F32],
        refused: dict[int, str],
        calls: list[ModelCall],
        error: ModelRunError,
    ) -> None:
        count, steps = batch.rows.shape
        if count > 1:
            half = count // 2
            for part in (slice(0, half), slice(half, count)):
                longest = int(batch.lengths[part].max())
                records = None if batch.records is None else batch.records[part, :longest]
                piece = Batch(batch.slots[part], batch.rows[part, :longest], batch.lengths[part], records)
                self.call(x, times_ms, piece, outputs, refused, calls)
        elif batch.records is not None:
            pieces = by_record(batch)
            if len(pieces) == 1:  # no half of a record is ever in the state
                refused[int(batch.records[0, 0])] = str(error)
                return
            for piece in pieces:
                self.call(x, times_ms, piece, outputs, refused, calls)
        elif steps > 1:
            for step in range(int(batch.lengths[0])):
                piece = Batch(batch.slots, batch.rows[:, step : step + 1], np.ones(1, np.int32))
                self.call(x, times_ms, piece, outputs, refused, calls)
        else:
            refused[int(batch.rows[0, 0])] = str(error)


def _running_max(groups: I64, values: I64) -> I64:
    """[N] the largest of ``values`` up to each row within its group; rows of a group lie together."""
    ranked, ranks = np.unique(values, return_inverse=True)
    number = np.cumsum(
        np.concatenate(([0], groups[1:] != groups[:-1]))
    )  # a later group beats every rank of an earlier one
    base = number * len(ranked)
    found: I64 = ranked[np.maximum.accumulate(base + ranks) - base]
    return found


def _check_finite(results: Sequence[F32], batch: Batch, states: Sequence[X]) -> None:
    """A sum is finite when all its terms are, so the common case costs one pass and no array of flags."""
    for result in results:
        if not isfinite(float(result.sum())):
            valid = result[batch.rows >= 0]
            if not np.isfinite(valid).all():
                raise ModelRunError("an output is not finite")
    for state in states:
        if not isfinite(float(state.sum())) and not np.isfinite(state).all():
            raise ModelRunError("a next state is not finite")
