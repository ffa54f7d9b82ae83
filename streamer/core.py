"""The types that cross module borders. Plain data, no behaviour beyond what keeps them consistent.

Long: it is the list of all that crosses a border, without behaviour, and a reader of any room looks here only.

Letters for shapes: B rows, T steps, F features, O outputs, N records, S slots.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamer.words import Closed, Forgotten, Mode, Reason

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]
Flags = NDArray[np.bool_]
Headers = Sequence[tuple[str, bytes | None]]
"""Names and values; Kafka knows values that are null."""
X = NDArray[Any]
"""Features in the dtype that the contract declares."""

CARRIED_HEADERS = frozenset({"traceparent", "tracestate"})
"""Headers of an input record that its answers keep."""
UNREADABLE_HEADER = "streamer-unreadable"
"""Of a row that stands for records that nobody can read: offsets and cause."""
PASSED_HEADER = "streamer-passed"
"""Beside those: fields of the record that its answers carry in their values (``output.fields``). Never written to a topic."""


class Op(IntEnum):
    """What a record asks for. Commands travel in the log (header ``streamer-op``), so they are ordered and replayed."""

    EVENT = 0
    RESET = 1
    END = 2
    GENERATE = 3


def step_rows(steps: I64, rows: I64) -> I64:
    """Where the steps of ``rows`` are, one row's after the other, in columns that hold ``steps`` [N] for each of N rows."""
    counts = steps[rows]
    before = np.cumsum(counts) - counts
    found: I64 = np.repeat((np.cumsum(steps) - steps)[rows] - before, counts) + np.arange(int(counts.sum()))
    return found


@dataclass(slots=True)
class RecordBatch:
    """Raw records of one fetch and partition, in columns of length N; offsets grow, gaps are allowed."""

    partition: int
    offsets: list[int]
    timestamps_ms: list[int]
    keys: list[bytes | None]
    values: list[bytes | None]
    headers: dict[int, Headers] = field(default_factory=dict)
    """Row -> headers, only for rows that have any."""

    def __len__(self) -> int:
        return len(self.offsets)

    def rows(self, first: int, end: int) -> RecordBatch:
        """Those from ``first`` on, before ``end``."""
        return RecordBatch(
            self.partition,
            self.offsets[first:end],
            self.timestamps_ms[first:end],
            self.keys[first:end],
            self.values[first:end],
            {row - first: headers for row, headers in self.headers.items() if first <= row < end},
        )

    def add(self, more: RecordBatch) -> None:
        """Records that come after these."""
        self.headers |= {len(self) + row: headers for row, headers in more.headers.items()}
        self.offsets += more.offsets
        self.timestamps_ms += more.timestamps_ms
        self.keys += more.keys
        self.values += more.values

    def reject(self, row: int, reason: Reason, detail: str) -> Reject:
        """The reject of ``row``: everything the dead-letter topic keeps of it."""
        return Reject(
            partition=self.partition,
            offset=self.offsets[row],
            reason=reason,
            detail=detail,
            key=self.keys[row],
            value=self.values[row],
            headers=self.headers.get(row, ()),
            timestamp_ms=self.timestamps_ms[row],
        )


@dataclass(slots=True)
class Reject:
    """A record that will not be run: it goes to the dead-letter topic and touches no state."""

    partition: int
    offset: int
    reason: Reason
    detail: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int


class Source(NamedTuple):
    """Where a reject lies, and what is wrong there."""

    partition: int
    offset: int
    detail: str


@dataclass(slots=True)
class EventBatch:
    """Decoded records of one fetch and partition, in columns of length N (rejects are not among them).

    ``ops`` is None when all rows are events. The features of a command row are zero and are never read.
    """

    partition: int
    offsets: I64
    times_ms: I64
    """Event time: ``ts`` of the value, or the record's timestamp."""
    timestamps_ms: list[int]
    """The record's own timestamp, which its prediction keeps."""
    keys: list[bytes]
    """Streams: the text form of the records' keys (``streamer.records.keys``), in UTF-8."""
    x: X
    """[N, F]"""
    ops: U8 | None
    records: RecordBatch
    """What was decoded, for rejects that are found later (late, refused by the model)."""
    next_offset: int
    """Position after this fetch: last fetched offset + 1, rejects included."""
    rejects: list[Reject] = field(default_factory=list)
    commands: dict[int, bytes] = field(default_factory=dict)
    """Row -> value, for the commands that have one (``generate``)."""
    headers: dict[int, Headers] = field(default_factory=dict)
    """Row -> headers that travel on to the prediction (``traceparent``), and what is passed in its value."""
    checksum: int = 0
    """CRC-32 of key and value of the record at ``next_offset - 1``: tells after a restart whether the log is the same."""
    steps: I64 | None = None
    """[N] steps of each row, where a record holds several (a command: 0); ``x`` is then [sum of the steps, F]. None: one each"""

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def empty(cls, partition: int, next_offset: int, x: X) -> EventBatch:
        """A fetch that moves the position and brings nothing: markers, aborted records. ``x`` [0, F]: of the input's dtype."""
        none = np.empty(0, np.int64)
        return cls(partition, none, none, [], [], x, None, RecordBatch(partition, [], [], [], []), next_offset)

    def begins(self, offset: int) -> int:
        """Where the first record at or after ``offset`` lies, events and others; the next position where there is none."""
        raw = self.records.offsets
        at = bisect_left(raw, offset)
        return raw[at] if at < len(raw) else self.next_offset

    def since(self, offset: int) -> EventBatch | None:
        """Without what lies before ``offset``; None when nothing is left."""
        if self.next_offset <= offset:
            return None
        if (not len(self) or self.offsets[0] >= offset) and (not self.rejects or self.rejects[0].offset >= offset):
            return self
        rest = self.select(np.flatnonzero(self.offsets >= offset))
        rest.rejects = [reject for reject in self.rejects if reject.offset >= offset]
        return rest

    def select(self, rows: I64) -> EventBatch:
        """The events of ``rows``, in that order; position and rejects stay."""
        index = rows.tolist()
        return replace(
            self,
            offsets=self.offsets[rows],
            times_ms=self.times_ms[rows],
            timestamps_ms=[self.timestamps_ms[row] for row in index],
            keys=[self.keys[row] for row in index],
            x=self.x[rows if self.steps is None else step_rows(self.steps, rows)],
            steps=None if self.steps is None else self.steps[rows],
            ops=None if self.ops is None else self.ops[rows],
            commands={new: self.commands[row] for new, row in enumerate(index) if row in self.commands},
            headers={new: self.headers[row] for new, row in enumerate(index) if row in self.headers},
        )

    def reject(self, row: int, reason: Reason, detail: str) -> Reject:
        """The reject of an event that turned out to be unusable."""
        return self.records.reject(bisect_left(self.records.offsets, int(self.offsets[row])), reason, detail)


@dataclass(slots=True)
class Batch:
    """One ragged model call: ``rows[b, t]`` is the event row that step t of row b takes, -1 beyond the row's length."""

    slots: I64
    """[B], distinct"""
    rows: I64
    """[B, T]"""
    lengths: I32
    """[B], 1..T"""
    records: I64 | None = None
    """[B, T] the event row that each step belongs to, where events have several: then ``rows`` are rows of steps"""


@dataclass(frozen=True, slots=True)
class LogFacts:
    """What is true of the log of one partition at one moment. The shell fetches it, the core judges by it.

    begin <= stable <= end, all of them offsets."""

    topic_id: str
    """Changes when a topic is deleted and created again under its name; empty on brokers without topic ids."""
    begin: int
    """Log start: the first offset that is still there."""
    end: int
    """High watermark: the offset after the last replicated record or transaction marker."""
    stable: int
    """Last stable offset: everything before it is decided, and can be read as committed."""


ModelCall = tuple[int, int, int]
"""(rows, steps of the longest row, cells that held an event)"""


@dataclass(slots=True)
class ClosedWindow:
    """A closed, immutable span of one stream's events, in event-time order (stable by offset for equal times)."""

    stream: bytes
    start_ms: int
    end_ms: int
    reason: Closed
    part: int
    """Offset of its first event in the log: with stream and bounds it names the window, also after a crash"""
    x: X
    """[T, F]"""
    offsets: I64
    times_ms: I64
    watermark: int = -(2**62)
    """Just before its first event in the log: with ``part`` where a replay begins that brings all its events"""


@dataclass(frozen=True, slots=True)
class Written:
    """A sequence that a decoder wrote, without begin and end."""

    symbols: tuple[int, ...]
    score: float
    """Sum of log-probabilities, that of the end among them, normalised for length"""
    truncated: bool
    """The longest that is allowed was written and the end did not come."""


@dataclass(slots=True, kw_only=True)
class Answers:
    """What one model answers in one partition, in columns of length N: numbers, since the bytes are the sink's business."""

    mode: ClassVar[Mode]

    partition: int
    model: str
    keys: list[bytes]
    timestamps_ms: list[int]
    """Of the record that is answered; the prediction keeps it."""
    sources: list[int]
    """Input offset that each answer names as its source."""
    headers: dict[int, Headers] = field(default_factory=dict)
    """Row -> further headers"""

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(slots=True, kw_only=True)
class StepAnswers(Answers):
    """One row per event."""

    mode: ClassVar[Mode] = Mode.STEP

    times_ms: I64
    """[N] event times"""
    y: list[F32]
    """Per output of the contract [N, O]; with ``steps`` [sum of the steps, O]"""
    steps: I64 | None = None
    """[N] steps of each event, where a record holds several; None: one each"""
    _ends: list[int] = field(init=False, default_factory=list)

    def row(self, row: int) -> tuple[bytes, int, list[F32]]:
        """Stream, event time, and per output [T, O], of an event of several steps."""
        assert self.steps is not None
        self._ends = self._ends or np.cumsum(self.steps).tolist()
        end, count = self._ends[row], int(self.steps[row])
        return self.keys[row], int(self.times_ms[row]), [y[end - count : end] for y in self.y]


class Spelled(NamedTuple):
    """A window's labels, collapsed."""

    labels: Sequence[int]
    """Of its symbols"""
    steps: Sequence[int]
    """Where in the window each came"""
    score: float
    """Logarithm of the probability of the labels of all steps"""


@dataclass(slots=True, kw_only=True)
class WindowAnswers(Answers):
    """One row per closed window."""

    mode: ClassVar[Mode] = Mode.WINDOW

    windows: list[ClosedWindow]
    y: list[list[F32]]
    """Per window and output of the contract: [T, O] where there is one per event, else [O]"""
    spelled: Sequence[Spelled] | None = None
    """Per window, of a model that emits"""


@dataclass(slots=True, kw_only=True)
class WrittenAnswers(Answers):
    """One row per closed window about which a sequence was written."""

    mode: ClassVar[Mode] = Mode.WINDOW

    windows: list[ClosedWindow]
    written: list[Written]


@dataclass(slots=True, kw_only=True)
class GeneratedAnswers(Answers):
    """One row per generated sequence, or per step of one."""

    mode: ClassVar[Mode] = Mode.GENERATE

    values: list[bytes]
    """JSON, made step by step: many sequences that end together would keep live events waiting otherwise."""


@dataclass(frozen=True, slots=True)
class Symbols:
    """What one record of an utterance brings: new symbols, or the transcript. Event times in ms, offsets of the log."""

    labels: Sequence[int]
    start_ms: int
    first: int
    """Offset of the utterance's first event"""
    time_ms: int
    """Of the event that brought them, or of the newest"""
    steps: Sequence[int] | None = None
    """New symbols of a record of several steps: which step of it each came with"""
    final: Transcript | None = None


@dataclass(frozen=True, slots=True)
class Transcript:
    """How a transcript ended. With stream, ``first`` and ``part`` it is named, also after a crash."""

    last: int
    """Offset of the last event"""
    reason: Closed
    part: int
    """Transcripts of the same utterance before it, that were full"""
    steps: int
    score: float
    """Logarithm of the probability of the labels of all its steps"""


@dataclass(slots=True, kw_only=True)
class EmittedAnswers(Answers):
    """Zero to many rows per event: where symbols appear, and where transcripts end."""

    mode: ClassVar[Mode] = Mode.STEP

    emitted: list[Symbols]


@dataclass(slots=True)
class Outgoing:
    """Records for one partition of the output topic, in columns."""

    partition: int
    keys: list[bytes]
    values: list[bytes]
    timestamps_ms: list[int]
    sources: list[int]
    """Input offset that each record answers (header ``streamer-source``)."""
    headers: dict[int, Headers] = field(default_factory=dict)
    """Row -> further headers"""
    mode: Mode = Mode.STEP
    """Which kind of answer, for the metrics"""
    common: Headers = ()
    """Further headers of every record"""

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(slots=True)
class Changelog:
    """Records for one partition of the changelog, in order; a value of None is a tombstone. The progress record is last."""

    partition: int
    records: list[tuple[bytes, bytes | None]]

    def __len__(self) -> int:
        return len(self.records)


@dataclass(frozen=True, slots=True)
class Report:
    """What an epoch brought about. Facts, to be counted when the epoch is committed."""

    records: int = 0
    """Input records that are settled: events, commands, rejects"""
    events: int = 0
    """Events and commands"""
    replayed: int = 0
    """Events that were run again to rebuild states and windows"""
    late: int = 0
    trimmed: int = 0
    """Events left out of windows for the model's length multiple"""
    calls: Sequence[ModelCall] = ()
    rejects: Mapping[Reason, int] = field(default_factory=dict)
    examples: Mapping[Reason, Source] = field(default_factory=dict)
    """The newest reject of each reason"""
    forgotten: Mapping[Forgotten, int] = field(default_factory=dict)
    closed: Mapping[Closed, int] = field(default_factory=dict)
    """Windows by reason"""
    short: int = 0
    """Closed windows with fewer than ``min_events``, so without an answer"""
    scores: Sequence[tuple[str, F32]] = ()
    """(model name, scores that are published) per output of kind score"""


@dataclass(slots=True)
class Epoch:
    """Everything settled between two commits. Sealed: nothing in it aliases memory that a later run changes.

    It has exactly two ends, committed or failed (``Processor.committed``, ``Processor.failed``)."""

    positions: dict[int, int]
    """Partition -> next input offset, for every partition the epoch touches, unmoved ones too."""
    answers: list[Answers]
    rejects: list[Reject]
    changelog: list[Changelog]
    report: Report

    @property
    def events(self) -> int:
        return self.report.events


@dataclass(frozen=True, slots=True)
class Transaction:
    """An epoch as bytes: what one Kafka transaction writes."""

    positions: Mapping[int, int]
    """Partition -> next input offset"""
    outgoing: Sequence[Outgoing]
    rejects: Sequence[Reject]
    changelog: Sequence[Changelog]
