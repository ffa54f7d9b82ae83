"""Windows for tests: batches with event times, and a slow, obvious reference that assigns every event by definition."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from simulated import MODULUS, POISON, advance

from streamer.core import EventBatch, Op, RecordBatch
from streamer.errors import ModelRunError
from streamer.modelfile.contract import Contract
from streamer.windows import START, Added, WindowRule, Windows

Row = tuple[int, str, int, "float | Op"]
"""Offset, stream, event time in ms, x or command."""


def timed(
    rows: Sequence[Row], *, partition: int = 0, rejects: Iterable[int] = (), next_offset: int | None = None
) -> EventBatch:
    """The batch of one fetch as the codec would give it; ``rejects`` are offsets of records that it refused."""
    offsets = [row[0] for row in rows]
    keys = [row[1].encode() for row in rows]
    times = [0 if isinstance(row[3], Op) else row[2] for row in rows]
    ops = np.array([row[3] if isinstance(row[3], Op) else 0 for row in rows], np.uint8)
    x = np.array([0.0 if isinstance(row[3], Op) else row[3] for row in rows], np.float32).reshape(-1, 1)
    every = sorted([*offsets, *rejects])
    stamp = [10_000 + offset for offset in every]
    raw = RecordBatch(partition, every, stamp, [b"k"] * len(every), [b"v"] * len(every))
    for row, offset in enumerate(offsets):
        raw.keys[every.index(offset)] = keys[row]
    return EventBatch(
        partition=partition,
        offsets=np.array(offsets, np.int64),
        times_ms=np.array(times, np.int64),
        timestamps_ms=[10_000 + offset for offset in offsets],
        keys=keys,  # type: ignore[arg-type]
        x=x,
        ops=ops if ops.any() else None,
        records=raw,
        next_offset=every[-1] + 1 if next_offset is None else next_offset,
        rejects=[raw.reject(every.index(offset), "undecodable", "") for offset in rejects],
        checksum=every[-1] if every else 0,
    )


def several(batch: EventBatch, steps: Sequence[int]) -> EventBatch:
    """``batch`` with every event repeated: so many steps of a record, for each of its rows (of commands: none)."""
    counts = np.array(steps, np.int64)
    if batch.ops is not None:
        counts[batch.ops != Op.EVENT] = 0
    return replace(batch, x=np.repeat(batch.x, counts, axis=0), steps=counts)


@dataclass(frozen=True, order=True)
class Closed:
    """One closed window, comparable. ``events``: (event time, offset), in the order that the model sees."""

    end: int
    start: int
    stream: str
    part: int
    reason: str
    events: tuple[tuple[int, int], ...]


@dataclass
class Step:
    """What one record or one idle advance brought about."""

    closed: list[Closed] = field(default_factory=list)
    late: int = 0
    through: dict[str, int] = field(default_factory=dict)
    moved: bool = True


class Reference:
    """Everything is worked out anew from the events that are in some open window, at every record. Slow and plain."""

    def __init__(
        self, rule: WindowRule, watermark: int = START, steps: Callable[[int], int] = lambda offset: 1
    ) -> None:
        """``steps``: of the record at an offset."""
        self.rule, self.watermark, self.last = rule, watermark, -1
        self.steps = steps
        self.events: dict[str, list[tuple[int, int]]] = {}

    # by definition

    def bounds(self, time: int) -> list[tuple[int, int]]:
        """Tumbling and hopping: every [start, end) that ``time`` is in."""
        size, hop = self.rule.size_ms, self.rule.hop_ms if self.rule.kind == "hopping" else self.rule.size_ms
        return [(k * hop, k * hop + size) for k in range((time - size) // hop + 1, time // hop + 1)]

    def windows(self, stream: str) -> list[tuple[int, int, list[tuple[int, int]]]]:
        """Open windows of a stream: (start, end, events in order)."""
        events = sorted(self.events.get(stream, []))
        if self.rule.kind in ("tumbling", "hopping"):
            spans = sorted({span for time, _ in events for span in self.bounds(time)})
            return [
                (start, end, [event for event in events if start <= event[0] < end])
                for start, end in spans
                if end > self.watermark
            ]
        if not events:
            return []
        if self.rule.kind in ("count", "end"):
            return [(events[0][0], events[-1][0], events)]
        sessions = [[events[0]]]
        for event in events[1:]:
            if event[0] - sessions[-1][-1][0] <= self.rule.gap_ms:
                sessions[-1].append(event)
            else:
                sessions.append([event])
        return [(session[0][0], session[-1][0] + self.rule.gap_ms, session) for session in sessions]

    @property
    def open_windows(self) -> int:
        return sum(len(self.windows(stream)) for stream in self.events)

    def oldest(self) -> int | None:
        firsts = [min(o for _, o in events) for stream in self.events for *_, events in self.windows(stream)]
        return min(firsts, default=None)

    # what happens

    def record(self, offset: int, stream: str, time: int, what: float | Op) -> Step:
        step, self.last = Step(), offset
        if what is Op.END:
            self._close(stream, "end", offset, step)
        elif not isinstance(what, Op) and self.rule.kind == "record":
            step.closed.append(_closed(stream, time, time, "record", [(time, offset)]))
            self._move(time - self.rule.disorder_ms, offset, step)
        elif not isinstance(what, Op):
            step.late = self._place(offset, stream, time, step)
            while self.open_windows > self.rule.max_open_windows:
                oldest = self.oldest()
                victim = next(s for s, events in self.events.items() if any(o == oldest for _, o in events))
                self._close(victim, "limit", offset, step)
            self._move(time - self.rule.disorder_ms, offset, step)
        step.closed.sort()
        return step

    def idle(self, watermark: int) -> Step:
        """Moves the watermark only when that closes a window."""
        if watermark <= self.watermark:
            return Step(moved=False)
        before, kept = self.watermark, {stream: list(events) for stream, events in self.events.items()}
        step = Step()
        self._move(watermark, self.last, step)
        if not step.closed:
            self.watermark, self.events, step.moved = before, kept, False
        step.closed.sort()
        return step

    def _place(self, offset: int, stream: str, time: int, step: Step) -> int:
        kind, most = self.rule.kind, self.rule.max_events
        late = 0
        if kind in ("tumbling", "hopping"):
            late = sum(end <= self.watermark for _, end in self.bounds(time))
            if late == len(self.bounds(time)):
                return late
        if kind == "session":
            touched = [w for w in self.windows(stream) if any(abs(time - t) <= self.rule.gap_ms for t, _ in w[2])]
            if len(touched) == 2 and sum(self._length(w[2]) for w in touched) >= most:
                self._close(stream, "full", offset - 1, step)
                touched = []
            if not touched and time + self.rule.gap_ms <= self.watermark:
                return 1
        self.events.setdefault(stream, []).append((time, offset))
        mine = [events for *_, events in self.windows(stream) if (time, offset) in events]
        if kind == "count" and self._length(mine[0]) >= self.rule.count:
            self._close(stream, "count", offset, step)
        elif any(self._length(events) >= most for events in mine):
            self._close(stream, "full", offset, step)
        return late

    def _length(self, events: Sequence[tuple[int, int]]) -> int:
        return sum(self.steps(offset) for _, offset in events)

    def _move(self, watermark: int, offset: int, step: Step) -> None:
        watermark = max(watermark, self.watermark)  # an event far behind it may open a window that is too long already
        before = {stream: self.windows(stream) for stream in self.events}
        self.watermark = watermark
        for stream, windows in before.items():
            for start, end, events in windows:
                if self.rule.kind not in ("count", "end") and end <= watermark:
                    step.closed.append(_closed(stream, start, end, "time", events))
                    if self.rule.kind == "session":
                        self.events[stream] = [event for event in self.events[stream] if event not in events]
            still = {event for *_, events in self.windows(stream) for event in events}
            self.events[stream] = [event for event in self.events[stream] if event in still]
            if any(events[0][0] + self.rule.max_span_ms <= watermark for *_, events in self.windows(stream)):
                self._close(stream, "span", offset, step)
        self.events = {stream: events for stream, events in self.events.items() if events}

    def _close(self, stream: str, reason: str, through: int, step: Step) -> None:
        windows = self.windows(stream)
        if windows:
            step.closed += [_closed(stream, start, end, reason, events) for start, end, events in windows]
            step.through[stream] = through
            self.events.pop(stream, None)


def _closed(stream: str, start: int, end: int, reason: str, events: Sequence[tuple[int, int]]) -> Closed:
    return Closed(end, start, stream, min(offset for _, offset in events), reason, tuple(events))


def seen(added: Added) -> list[Closed]:
    """What ``Windows`` closed, in its order, also what was too short; x must be the offset of each event."""
    found = []
    for window in added.closed:
        assert window.x[:, 0].tolist() == window.offsets.tolist(), "features went astray"
        events = tuple(zip(window.times_ms.tolist(), window.offsets.tolist(), strict=True))
        found.append(Closed(window.end_ms, window.start_ms, window.stream.decode(), window.part, window.reason, events))
    return found


def settled(rule: WindowRule, rows: Sequence[Row], features: int = 1) -> tuple[Windows, Added]:
    """Fresh windows after ``rows`` in one batch."""
    windows = Windows(rule, features)
    return windows, windows.add(timed(rows))


class FoldModel:
    """A window model: y = the chain of ``simulated`` over the window's events, so contents and order both show."""

    def __init__(self, sha256: str = "cd" * 32, *, per: str = "window", steps: str = "one") -> None:
        shape: list[int | str] = ["batch", 1] if per == "window" else ["batch", "time", 1]
        self.contract = Contract.from_fields(
            {
                "name": "fold",
                "mode": "window",
                "input": {"name": "x", "shape": ["batch", "time", 1], "steps": steps},
                "lengths": "lengths",
                "outputs": [{"name": "y", "shape": shape, "kind": "value", "per": per}],
            }
        )
        self.states = self.contract.states
        self.sha256 = sha256
        self.max_steps: int | None = None
        self.ragged = True
        self.length_multiple = 1
        self.state_bytes_per_stream = 0
        self.calls: list[tuple[int, int]] = []
        self._per = per

    def initial_states(self, rows: int) -> list[np.ndarray]:
        del rows
        return []

    def run(self, x: np.ndarray, lengths: np.ndarray, states: Sequence[np.ndarray]):
        assert x.shape[0] >= 1
        assert int(lengths.min()) >= 1
        assert int(lengths.max()) == x.shape[1], "a call is as long as its longest row"
        assert not states
        self.calls.append((x.shape[0], x.shape[1]))
        h, each = np.zeros(len(x)), np.zeros(x.shape, np.float32)
        for step in range(x.shape[1]):
            alive = lengths > step
            if (x[alive, step] == POISON).any():
                raise ModelRunError("poisoned")
            h[alive] = (h[alive] * 31 + x[alive, step, 0] * 17 + 7) % MODULUS
            each[:, step, 0] = h
        return [h.astype(np.float32)[:, None] if self._per == "window" else each], []


def fold(values: Iterable[float]) -> float:
    state = 0.0
    for value in values:
        state = advance(state, value)
    return state
