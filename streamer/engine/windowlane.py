"""A model over closed windows: open windows per partition, when they close, and the calls over those that did."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np

from streamer.core import F32, ClosedWindow, Counters, EventBatch, Headers, ModelCall, Outgoing, Reject
from streamer.engine.lane import Lane
from streamer.engine.ledger import Ledger
from streamer.engine.scheduler import plan_windows
from streamer.errors import ModelRunError
from streamer.modelfile.model import Model
from streamer.records.changelog import NO_WATERMARK
from streamer.records.keys import Keys
from streamer.windows import Added, Traces, WindowRule, Windows


@dataclass(slots=True)
class Closing:
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
class _Partition:
    windows: Windows
    traces: Traces
    data_watermark: int | None = None
    """Where the last event left the watermark: idle advances count from there."""
    last_stamp_ms: int = 0
    """Timestamp of the last record."""


class WindowLane(Lane):
    """Windows of all partitions for one model; zero state, nothing is kept beyond a window."""

    def __init__(self, name: str, model: Model, rule: WindowRule, keys: Keys | None = None) -> None:
        super().__init__(name, model, keys)
        self.rule = rule
        self._partitions: dict[int, _Partition] = {}

    @property
    def open(self) -> dict[int, Windows]:
        """Partition -> its open windows."""
        return {partition: each.windows for partition, each in self._partitions.items()}

    def windows(self, partition: int) -> Windows:
        return self._partitions[partition].windows

    def assign(self, partition: int, ledger: Ledger) -> None:
        declared = self.model.contract
        windows = Windows(
            self.rule,
            declared.features,
            dtype=declared.input.dtype,
            watermark=ledger.watermark,
            replaying=ledger.replaying,
        )
        self._partitions[partition] = _Partition(windows, Traces())

    def revoke(self, partition: int) -> None:
        self._partitions.pop(partition, None)

    def ingest(self, batch: EventBatch, ledger: Ledger, counters: Counters) -> tuple[list[Closing], list[int]]:
        """Assigns rows to windows; in replay in pieces, cut where the watermark once moved by idleness and at go-live.

        Returns what closed, and the rows that came too late, once per window that they missed."""
        mine, first = self._partitions[batch.partition], 0
        windows = mine.windows
        mine.traces.note(batch.offsets, batch.headers)
        while windows.replaying:
            reached = int(batch.offsets[first]) if first < len(batch) else batch.next_offset
            _repeat_idle(windows, ledger, reached)
            if first == len(batch) or not windows.replaying:
                break
            ends = [before for before, _ in ledger.idle if before > reached]
            last = int(np.searchsorted(batch.offsets, min([*ends, ledger.live_from])))
            windows.add(batch, first, last, ledger.window_through)
            first = last
        closed: list[Closing] = []
        late: list[int] = []
        if first < len(batch):
            added = windows.add(batch, first)
            rows = np.searchsorted(batch.offsets, np.array(added.closed_at, np.int64)).tolist()
            closed = self._closings(batch.partition, added, [batch.timestamps_ms[row] for row in rows], counters)
            late = added.late
            ledger.new_window_through.update(added.closed_through)
        if len(batch):
            mine.last_stamp_ms = batch.timestamps_ms[-1]
        if windows.watermark != NO_WATERMARK:
            mine.data_watermark = windows.watermark
        return closed, late

    def idle(self, partition: int, elapsed_ms: int, ledger: Ledger, counters: Counters) -> list[Closing]:
        """What ``elapsed_ms`` without a record closes. The watermark moves only when it closes a window, from where the
        last event left it."""
        mine = self._partitions[partition]
        if ledger.replaying or mine.data_watermark is None:
            return []
        watermark = mine.data_watermark + elapsed_ms
        due = mine.windows.next_close_ms()
        if due is None or due > watermark:
            return []
        added = mine.windows.advance(watermark)
        ledger.note_idle(mine.windows.watermark)
        ledger.new_window_through.update(added.closed_through)
        stamp = mine.last_stamp_ms + elapsed_ms
        return self._closings(partition, added, [stamp] * len(added.closed), counters)

    def _closings(self, partition: int, added: Added, stamps_ms: Sequence[int], counters: Counters) -> list[Closing]:
        for window in added.closed:
            counters.windows[window.reason] = counters.windows.get(window.reason, 0) + 1
        if added.short:
            counters.windows["short"] = counters.windows.get("short", 0) + len(added.short)
        counters.trimmed += added.trimmed
        mine = self._partitions[partition]
        closings = [
            Closing(window, partition, stamp, mine.traces.of(int(window.offsets.max())) if mine.traces else ())
            for window, stamp in zip(added.closed, stamps_ms, strict=True)
        ]
        oldest = mine.windows.oldest()
        mine.traces.drop_before(oldest[0] if oldest else None)
        return closings

    # calls

    def run(
        self, closings: Sequence[Closing], counters: Counters, *, max_rows: int, max_cells: int
    ) -> Generator[None, None, list[Outgoing | Reject]]:
        """One model call per iteration, over windows of like length. Returns predictions and rejects, in the order of
        ``closings``."""
        answers: list[bytes | str] = [""] * len(closings)
        lengths = [len(closing.window.x) for closing in closings]
        for chosen in plan_windows(lengths, max_rows=max_rows, max_cells=max_cells, ragged=self.model.ragged):
            index = chosen.tolist()
            found = self._judge([closings[each].window for each in index], counters.runs, counters.scores)
            for each, answer in zip(index, found, strict=True):
                answers[each] = answer
            yield
        return self._settle(closings, answers)

    def _judge(
        self, windows: list[ClosedWindow], calls: list[ModelCall], scores: list[tuple[str, F32]]
    ) -> list[bytes | str]:
        """The value of each window's prediction, or why the model does not take it: a call that fails is halved."""
        outputs = self.model.contract.outputs
        lengths = np.array([len(window.x) for window in windows], np.int32)
        x = np.zeros((len(windows), int(lengths.max()), self.model.contract.features), windows[0].x.dtype)
        for row, window in zip(x, windows, strict=True):
            row[: len(window.x)] = window.x
        try:
            results, _ = self.model.run(x, lengths, self.model.initial_states(len(windows)))
            parts = [
                [
                    result[at, : len(window.x)] if output.per == "event" else result[at]
                    for result, output in zip(results, outputs, strict=True)
                ]
                for at, window in enumerate(windows)
            ]
            for each in parts:
                for part, output in zip(each, outputs, strict=True):
                    if not np.isfinite(part).all():
                        raise ModelRunError(f"output {output.name!r} is not finite")
        except ModelRunError as error:
            if len(windows) == 1:
                return [str(error)]
            half = len(windows) // 2
            return self._judge(windows[:half], calls, scores) + self._judge(windows[half:], calls, scores)
        for each in parts:
            scores += self.scores(each)
        calls.append((len(windows), x.shape[1], int(lengths.sum())))
        return [self.encoder.window(window, each) for window, each in zip(windows, parts, strict=True)]

    def _settle(self, closings: Sequence[Closing], answers: Sequence[bytes | str]) -> list[Outgoing | Reject]:
        settled: list[Outgoing | Reject] = []
        outgoing: Outgoing | None = None
        for closing, answer in zip(closings, answers, strict=True):
            if isinstance(answer, str):
                settled.append(self._refusal(closing, answer))
                continue
            if outgoing is None or outgoing.partition != closing.partition:
                outgoing = Outgoing(closing.partition, [], [], [], [], mode="window")
                settled.append(outgoing)
            if closing.headers:
                outgoing.headers[len(outgoing)] = closing.headers
            outgoing.keys.append(self.encoder.keys.raw(closing.window.stream))
            outgoing.values.append(answer)
            outgoing.timestamps_ms.append(closing.timestamp_ms)
            outgoing.sources.append(closing.source)
        return settled

    def _refusal(self, closing: Closing, detail: str) -> Reject:
        window = closing.window
        offsets = f"offsets {window.offsets.min()} to {window.offsets.max()}"
        return Reject(
            partition=closing.partition,
            offset=closing.source,
            reason="model_refused",
            detail=f"model {self.name!r}, window {window.start_ms} to {window.end_ms} ms, {offsets}: {detail}",
            key=self.encoder.keys.raw(window.stream),
            value=None,
            headers=closing.headers,
            timestamp_ms=closing.timestamp_ms,
        )


def _repeat_idle(windows: Windows, ledger: Ledger, reached: int) -> None:
    """Idle advances that were decided before ``reached``; then, at the end of the replay, life is normal."""
    for before, watermark in ledger.idle:
        if before <= reached:
            windows.advance(watermark)
    if reached >= ledger.live_from:
        windows.replaying = False
