"""What the calls of a step model that emits bring to the utterances of its streams.

While pending rows run, in the order of each stream's rows: ``judge`` says where utterances end, ``end`` takes their
transcripts before the states are reset, ``take`` collapses the labels of a call. ``told`` gives what came of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from streamer.core import F32, I64, Batch, EmittedAnswers, EventBatch, Flags, Headers, Symbols, Transcript
from streamer.emission.ctc import F64, collapse
from streamer.emission.eventclock import EventClock
from streamer.emission.kept import Kept, layout
from streamer.emission.utterance import Ended, Judged, Rows, ended_silent, judge, silent
from streamer.modelfile.contract import Contract
from streamer.settings import UtteranceSection
from streamer.state.arena import Arena
from streamer.words import Closed


@dataclass(slots=True)
class Final:
    """A transcript that ended. ``ended``: with its utterance; None: that goes on, the transcript was full."""

    ended: Ended | None
    labels: list[int]
    part: int
    steps: int
    score: float

    def symbols(self, ended: Ended) -> Symbols:
        final = Transcript(ended.last, ended.reason, self.part, self.steps, self.score)
        return Symbols(self.labels, ended.start_ms, ended.first, ended.newest_ms, final=final)


@dataclass(slots=True)
class Told:
    """What came with one row, in order: transcripts that ended before it or with it, its symbols, transcripts that got full."""

    ended: list[Final] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    """Of the record, with which each label came"""
    full: list[Final] = field(default_factory=list)
    start_ms: int = 0
    first: int = 0
    """Of the utterance that the row belongs to"""


class Gathered:
    """Answers of one model in one partition, row by row. ``live_from``: what came before was answered before."""

    def __init__(self, partition: int, model: str, live_from: int) -> None:
        self.answers = EmittedAnswers(
            partition=partition, model=model, keys=[], timestamps_ms=[], sources=[], emitted=[]
        )
        self._live_from = live_from

    def add(self, at: int, stream: bytes, stamp_ms: int, source: int, symbols: Symbols, headers: Headers = ()) -> None:
        """``at``: offset of the record with which it came about."""
        if at < self._live_from:
            return
        found = self.answers
        if headers:
            found.headers[len(found)] = headers
        found.keys.append(stream)
        found.timestamps_ms.append(stamp_ms)
        found.sources.append(source)
        found.emitted.append(symbols)

    def told(self, batch: EventBatch, row: int, told: Told, clock: EventClock) -> None:
        """What came with a row of ``batch``."""
        at, stream, stamp_ms = int(batch.offsets[row]), batch.keys[row], batch.timestamps_ms[row]
        headers = batch.headers.get(row, ())
        for final in told.ended:
            ended = final.ended
            assert ended is not None
            if ended.limit_ms is not None:
                came, then_ms = clock.passed(ended.limit_ms)
                self.add(came, stream, then_ms, ended.last, final.symbols(ended))
            else:
                self.add(at, stream, stamp_ms, ended.last, final.symbols(ended), headers)
        time_ms = int(batch.times_ms[row])
        if told.labels:
            steps = None if batch.steps is None else told.steps
            symbols = Symbols(told.labels, told.start_ms, told.first, time_ms, steps)
            self.add(at, stream, stamp_ms, at, symbols, headers)
        for final in told.full:
            ended = Ended(told.start_ms, time_ms, told.first, at, stamp_ms, Closed.FULL)
            self.add(at, stream, stamp_ms, at, final.symbols(ended), headers)


class Emitting:
    """Of one lane. What is durable is in its arena, one record per slot; the rest belongs to the rows that run."""

    def __init__(self, contract: Contract, rule: UtteranceSection) -> None:
        at = contract.emitting
        assert at is not None, "no output has the table emit"
        emit = contract.outputs[at].emit
        assert emit is not None
        self.rule, self.emit, self._output = rule, emit, at
        self.layout = layout(rule.max_symbols)
        self.states = f"utterance[{rule.max_symbols}]"
        self._kept: Kept = np.zeros(0, self.layout)
        self._judged: Judged | None = None
        self._index: I64 = np.empty(0, np.int64)
        self._told: dict[int, Told] = defaultdict(Told)

    def bind(self, arena: Arena) -> None:
        self._kept = arena.beside

    # while rows run

    def judge(self, index: I64, rows: Rows) -> I64:
        """``index`` [N]: which row of the work each of ``rows`` is. Returns, of those N, events before which an utterance ends."""
        self._judged, self._index = judge(self.rule, self._kept, rows), index
        return np.flatnonzero(self._judged.anew)

    def end(self, slots: I64, rows: I64) -> None:
        """Utterances that end before or with ``rows`` of the work: their transcripts, while they are there."""
        assert self._judged is not None
        if not self._judged.ended:
            return
        ended = {int(self._index[at]): each for at, each in self._judged.ended.items()}
        for slot, row in zip(slots.tolist(), rows.tolist(), strict=True):
            if row in ended:
                self._told[row].ended.append(self._final(slot, ended[row]))

    def _final(self, slot: int, ended: Ended | None) -> Final:
        kept = self._kept[slot]
        labels = kept["symbols"][: int(kept["count"])].tolist()
        return Final(ended, labels, int(kept["part"]), int(kept["steps"]), float(kept["score"]))

    def take(self, batch: Batch, results: Sequence[F32]) -> None:
        """A call that succeeded: symbols come with the row whose step brought them."""
        kept, slots, lengths = self._kept, batch.slots, batch.lengths
        rows, within = _records(batch)
        y = results[self._output].reshape(*rows.shape, -1)
        found = collapse(self.emit, y, lengths, kept["label"][slots].astype(np.int64) - 1)
        already = kept["count"][slots]
        counts = already + found.emitted.sum(axis=1)
        full = counts >= self.rule.max_symbols
        each, step = np.nonzero(found.emitted & ~full[:, None])
        if len(each):
            labels = found.labels[each, step]
            place = (np.cumsum(found.emitted, axis=1) - 1)[each, step] + already[each]
            kept["symbols"][slots[each], place] = labels
            came = zip(rows[each, step].tolist(), labels.tolist(), within[each, step].tolist(), strict=True)
            for row, label, at in came:
                self._told[row].labels.append(label)
                self._told[row].steps.append(at)
        last = np.arange(len(slots)), lengths - 1
        rest = slots[~full]
        kept["count"][rest], kept["score"][rest] = counts[~full], found.scores(kept["score"][slots])[last][~full]
        kept["steps"][rest] += lengths[~full]
        for at in np.flatnonzero(full).tolist():
            steps = slice(0, int(lengths[at]))
            places = list(zip(rows[at, steps].tolist(), within[at, steps].tolist(), strict=True))
            self._fill(int(slots[at]), places, found.labels[at], found.emitted[at], found.gains[at])
        kept["label"][slots] = found.labels[last] + 1

    def _fill(self, slot: int, places: Sequence[tuple[int, int]], labels: I64, emitted: Flags, gains: F64) -> None:
        """One stream whose transcript gets full, step by step: it is told, and the next one begins. ``places``: row of the
        work, and step of its record."""
        kept = self._kept
        for step, (row, within) in enumerate(places):
            kept["score"][slot] += gains[step]
            kept["steps"][slot] += 1
            if not emitted[step]:
                continue
            kept["symbols"][slot, kept["count"][slot]] = labels[step]
            kept["count"][slot] += 1
            self._told[row].labels.append(int(labels[step]))
            self._told[row].steps.append(within)
            if kept["count"][slot] == self.rule.max_symbols:
                self._told[row].full.append(self._final(slot, None))
                for name in ("count", "steps", "score"):
                    kept[name][slot] = 0
                kept["part"][slot] += 1

    # when they have run

    def settle(self) -> list[tuple[int, Told]]:
        """What is kept reflects the rows that ran. Takes (row of the work, what came with it), in order of the rows."""
        judged, told = self._judged, self._told
        assert judged is not None
        for name, column in judged.after.items():
            self._kept[name][judged.slots] = column
        if told:
            at = {row: at for at, row in enumerate(self._index.tolist())}
            for row, each in told.items():
                each.start_ms, each.first = int(judged.start_ms[at[row]]), int(judged.first[at[row]])
        self._judged, self._told = None, defaultdict(Told)
        return sorted(told.items(), key=lambda item: item[0])

    def silent(self, slots: I64, clock_ms: int) -> tuple[list[tuple[int, Final]], int]:
        """Those of ``slots`` whose utterance the clock ends, with their transcripts; and up to where it ends no other."""
        over, quiet_ms = silent(self.rule, self._kept, slots, clock_ms)
        return [
            (slot, self._final(slot, ended_silent(self.rule, self._kept, slot))) for slot in over.tolist()
        ], quiet_ms


def _records(batch: Batch) -> tuple[I64, I64]:
    """[B, T] the row of the work that each step belongs to, and which step of its record it is."""
    if batch.records is None:
        return batch.rows, np.zeros_like(batch.rows)
    owners = batch.records
    begins = np.ones(owners.shape, bool)
    begins[:, 1:] = owners[:, 1:] != owners[:, :-1]
    at = np.broadcast_to(np.arange(owners.shape[1]), owners.shape)
    return owners, at - np.maximum.accumulate(np.where(begins, at, 0), axis=1)
