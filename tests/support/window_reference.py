"""Windows by definition, one record at a time: slow, obvious, what the real ones are compared with."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from streamer.core import EventBatch, Op, RecordBatch
from streamer.windows import START, WindowRule

Row = tuple[str, int, bool]
"""stream, event time in ms, whether it is an end mark"""


@dataclass
class Open:
    events: list[tuple[int, int]] = field(default_factory=list)
    """(time, offset)"""
    start: int = 0
    end: int = 0


class Reference:
    """Open windows in a list per stream; every rule is one line of its definition."""

    def __init__(self, rule: WindowRule) -> None:
        self.rule, self.watermark = rule, START
        self.open: dict[str, list[Open]] = {}
        self.closed: list[tuple[str, int, int, str, tuple[int, ...]]] = []
        self.late: list[int] = []

    def add(self, offset: int, row: Row) -> None:
        stream, time_ms, ends = row
        if ends:
            for window in list(self.open.get(stream, [])):
                self.close(stream, window, "end")
            return
        getattr(self, f"place_{self.rule.kind}")(stream, time_ms, offset)
        self.watermark = max(self.watermark, time_ms - self.rule.disorder_ms)
        self.pass_time()

    def pass_time(self) -> None:
        if self.rule.kind in ("count", "end"):
            return
        for stream, windows in self.open.items():
            for window in list(windows):
                if window.end <= self.watermark:
                    self.close(stream, window, "time")

    def close(self, stream: str, window: Open, reason: str) -> None:
        self.open[stream].remove(window)
        order = tuple(offset for _, offset in sorted(window.events))
        self.closed.append((stream, window.start, window.end, reason, order))

    def place_tumbling(self, stream: str, time_ms: int, offset: int) -> None:
        self.place_timed(stream, time_ms, offset, self.rule.size_ms)

    def place_hopping(self, stream: str, time_ms: int, offset: int) -> None:
        self.place_timed(stream, time_ms, offset, self.rule.hop_ms)

    def full(self, stream: str) -> None:
        """A bound closes every window of the stream, so that a replay needs to know only one offset."""
        if any(len(window.events) >= self.rule.max_events for window in self.open.get(stream, [])):
            for window in list(self.open[stream]):
                self.close(stream, window, "full")

    def place_timed(self, stream: str, time_ms: int, offset: int, hop_ms: int) -> None:
        for start in range(time_ms // hop_ms * hop_ms, time_ms - self.rule.size_ms, -hop_ms):
            end = start + self.rule.size_ms
            if end <= self.watermark:
                self.late.append(offset)
                continue
            windows = self.open.setdefault(stream, [])
            window = next((each for each in windows if each.start == start), None)
            if window is None:
                windows.append(window := Open(start=start, end=end))
            window.events.append((time_ms, offset))
        self.full(stream)

    def place_session(self, stream: str, time_ms: int, offset: int) -> None:
        gap = self.rule.gap_ms
        windows = self.open.setdefault(stream, [])
        near = [window for window in windows if window.start - gap <= time_ms <= window.end]
        if len(near) == 2 and sum(len(window.events) for window in near) >= self.rule.max_events:
            for window in list(windows):
                self.close(stream, window, "full")
            near = []
        if not near and time_ms + gap <= self.watermark:
            self.late.append(offset)
            return
        merged = Open([(time_ms, offset)])
        for window in near:
            merged.events += window.events
            windows.remove(window)
        merged.start = min(merged.events)[0]
        merged.end = max(merged.events)[0] + gap
        windows.append(merged)
        self.full(stream)

    def place_count(self, stream: str, time_ms: int, offset: int) -> None:
        window = self.place_end(stream, time_ms, offset)
        if window in self.open[stream] and len(window.events) == self.rule.count:
            self.close(stream, window, "count")

    def place_end(self, stream: str, time_ms: int, offset: int) -> Open:
        windows = self.open.setdefault(stream, [])
        if not windows:
            windows.append(Open())
        windows[0].events.append((time_ms, offset))
        window = windows[0]
        window.start, window.end = min(window.events)[0], max(window.events)[0]
        if len(window.events) != self.rule.count:
            self.full(stream)
        return window


def event_batch(rows: list[Row], first: int) -> EventBatch:
    count = len(rows)
    offsets = np.arange(first, first + count)
    ops = np.array([Op.END if ends else Op.EVENT for *_, ends in rows], np.uint8)
    return EventBatch(
        partition=0,
        offsets=offsets,
        times_ms=np.array([time_ms for _, time_ms, _ in rows], np.int64),
        timestamps_ms=[0] * count,
        keys=[stream.encode() for stream, *_ in rows],
        x=offsets[:, None].astype(np.float32),
        ops=ops if ops.any() else None,
        records=RecordBatch(0, offsets.tolist(), [0] * count, [b""] * count, [b""] * count),
        next_offset=first + count,
    )
