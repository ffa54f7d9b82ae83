"""Where utterances begin and end: a function of the log alone, judged row by row.

An utterance begins with the first event of a stream that has none open. It ends

- before an event that is more than ``gap_ms`` later than the newest of the utterance (reason time);
- as soon as the clock of the partition, its largest event time, has moved on by more than ``gap_ms`` since the utterance's
  last event (reason time): what ends the last utterance of a stream that goes silent;
- before an event that is ``max_span_ms`` or more later than its first (reason span);
- at the command ``end`` (reason end); the command ``reset`` gives it up.

The clock is compared with where it stood at the utterance's own last event, so a stream that is behind the others as a whole
is not cut at every event.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from streamer.core import I64, U8, Flags, Op
from streamer.emission.kept import Kept
from streamer.settings.utterance import UtteranceSection
from streamer.words import Closed

_FAR = 2**62


@dataclass(frozen=True, slots=True)
class Ended:
    """An utterance that ended. Event times in ms, offsets of the log."""

    start_ms: int
    newest_ms: int
    first: int
    last: int
    stamp_ms: int
    """Timestamp of the last event's record"""
    reason: Closed
    limit_ms: int | None = None
    """It ended as the clock of its partition passed this; None: at the row that it ended before."""


_TIMES = ("start_ms", "newest_ms", "seen_ms", "first", "last", "stamp_ms")


@dataclass(slots=True)
class Judged:
    """What becomes of utterances over N rows in log order."""

    anew: Flags
    """[N] events that begin another utterance although one was open"""
    start_ms: I64
    """[N] of the utterance that a row belongs to"""
    first: I64
    """[N] offset of its first event"""
    ended: dict[int, Ended]
    """Row -> the utterance that ended before it, or with it (command ``end``)"""
    slots: I64
    """[G] the streams among the rows"""
    after: dict[str, I64] = field(default_factory=dict)
    """[G] what is kept of each when all rows are done: ``open`` and the times of ``layout``"""


@dataclass(slots=True)
class Rows:
    """N rows of pending work in log order, with the clock of the row's own partition around it."""

    slots: I64
    times_ms: I64
    stamps_ms: I64
    """[N] timestamps of the records"""
    offsets: I64
    ops: U8 | None
    before: I64
    """[N] the clock before each row"""
    clock: I64
    """[N] the clock with each row"""


def judge(rule: UtteranceSection, kept: Kept, rows: Rows) -> Judged:
    """``kept`` [S]: what is known of every slot before these rows. Most streams neither end nor begin anything: those are told
    apart in columns, the others are judged row by row."""
    count = len(rows.slots)
    judged = Judged(np.zeros(count, bool), np.empty(count, np.int64), np.empty(count, np.int64), {}, rows.slots[:0])
    if not count:
        return judged
    order = np.argsort(rows.slots, kind="stable")
    slots, times, clock = rows.slots[order], rows.times_ms[order], rows.clock[order]
    head = np.ones(count, bool)
    np.not_equal(slots[1:], slots[:-1], out=head[1:])
    starts = np.flatnonzero(head)
    ends = np.append(starts[1:], count) - 1
    mine = {name: kept[name][slots[starts]] for name in ("open", *_TIMES)}
    is_open = mine["open"] == 1
    group = np.cumsum(head) - 1

    newest, seen = np.roll(times, 1), np.roll(np.maximum(times, clock), 1)
    newest[starts] = np.where(is_open, mine["newest_ms"], _FAR)
    seen[starts] = np.where(is_open, mine["seen_ms"], _FAR)
    begins = np.where(is_open, mine["start_ms"], times[starts])
    doubtful = (times - newest > rule.gap_ms) | (rows.before[order] - seen > rule.gap_ms)
    doubtful |= times - begins[group] >= rule.max_span_ms
    if rows.ops is not None:
        doubtful |= rows.ops[order] != Op.EVENT
    slow = np.flatnonzero(np.logical_or.reduceat(doubtful, starts))

    firsts = np.where(is_open, mine["first"], rows.offsets[order][starts])
    newest = np.maximum.reduceat(times, starts)
    newest = np.where(is_open, np.maximum(newest, mine["newest_ms"]), newest)
    judged.slots = slots[starts]
    judged.start_ms[order], judged.first[order] = begins[group], firsts[group]
    judged.after = {
        "open": np.ones(len(starts), np.int64),
        "start_ms": begins,
        "newest_ms": newest,
        "seen_ms": np.maximum(newest, clock[ends]),
        "first": firsts,
        "last": rows.offsets[order][ends],
        "stamp_ms": rows.stamps_ms[order][ends],
    }
    for number in slow.tolist():
        one = _One(rule, {name: int(column[number]) for name, column in mine.items()})
        for row in order[starts[number] : ends[number] + 1].tolist():
            one.row(judged, rows, row)
        for name, column in judged.after.items():
            column[number] = getattr(one, name) if one.open else 0
    return judged


class _One:
    """One stream, row by row: the rule as it is defined."""

    def __init__(self, rule: UtteranceSection, kept: Mapping[str, int]) -> None:
        self.rule, self.open = rule, kept["open"]
        self.start_ms, self.newest_ms, self.seen_ms = kept["start_ms"], kept["newest_ms"], kept["seen_ms"]
        self.first, self.last, self.stamp_ms = kept["first"], kept["last"], kept["stamp_ms"]

    def row(self, judged: Judged, rows: Rows, row: int) -> None:
        op = Op.EVENT if rows.ops is None else Op(int(rows.ops[row]))
        if op is Op.GENERATE:
            return
        time_ms, before = int(rows.times_ms[row]), int(rows.before[row])
        if self.open and before - self.seen_ms > self.rule.gap_ms:
            self._end(judged, row, Closed.TIME, self.seen_ms + self.rule.gap_ms)
        if op is not Op.EVENT:
            if self.open and op is Op.END:
                self._end(judged, row, Closed.END)
            self.open = 0
            return
        if self.open and time_ms - self.newest_ms > self.rule.gap_ms:
            self._end(judged, row, Closed.TIME)
        if self.open and time_ms - self.start_ms >= self.rule.max_span_ms:
            self._end(judged, row, Closed.SPAN)
        judged.anew[row] = row in judged.ended
        if not self.open:
            self.open, self.start_ms, self.newest_ms, self.first = 1, time_ms, time_ms, int(rows.offsets[row])
        self.newest_ms = max(self.newest_ms, time_ms)
        self.seen_ms = max(self.newest_ms, int(rows.clock[row]))
        self.last, self.stamp_ms = int(rows.offsets[row]), int(rows.stamps_ms[row])
        judged.start_ms[row], judged.first[row] = self.start_ms, self.first

    def _end(self, judged: Judged, row: int, reason: Closed, limit_ms: int | None = None) -> None:
        times = self.start_ms, self.newest_ms, self.first, self.last, self.stamp_ms
        judged.ended[row] = Ended(*times, reason, limit_ms)
        self.open = 0


def silent(rule: UtteranceSection, kept: Kept, slots: I64, clock_ms: int) -> tuple[I64, int]:
    """Those of ``slots`` whose utterance the clock ends, and a bound: no other of them ends before the clock has passed it."""
    going, seen = kept["open"][slots] == 1, kept["seen_ms"][slots]
    over = going & (clock_ms - seen > rule.gap_ms)
    return slots[over], min(int(seen[going & ~over].min(initial=clock_ms)), clock_ms) + rule.gap_ms


def ended_silent(rule: UtteranceSection, kept: Kept, slot: int) -> Ended:
    """The open utterance of ``slot``, that the clock ended."""
    start_ms, newest_ms, seen_ms, first, last, stamp_ms = (int(kept[name][slot]) for name in _TIMES)
    return Ended(start_ms, newest_ms, first, last, stamp_ms, Closed.TIME, seen_ms + rule.gap_ms)
