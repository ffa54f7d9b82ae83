"""What is counted: totals and histograms. Work per event is a share of one numpy call per poll or commit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from streamer.core import F32, Outgoing, Report
from streamer.observe.histogram import MARK_S, Histogram, doubling
from streamer.words import Closed, Forgotten, Mode, Outcome, Reason, Stage

LATENCY_S = [0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0]
_RATE_S = 2.0


class Counts:
    """Everything that grows. Labels exist from the start."""

    def __init__(self, models: Iterable[str], now: float) -> None:
        """``models``: names of what is served. ``now``: seconds of a clock that never goes back."""
        self.latency = {mode: Histogram(LATENCY_S) for mode in Mode}
        self.stages = {stage: Histogram(LATENCY_S) for stage in Stage}
        self.runs = Histogram(doubling(50e-6, 0.4))
        self.rows = Histogram([float(2**power) for power in range(13)])
        self.padding = Histogram([0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0])
        self.commits = Histogram(LATENCY_S)
        self.restores = Histogram([0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0])
        scores = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]
        self.scores = {name: Histogram(scores) for name in models}
        self.loop_lag = Histogram([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0])
        self.records = self.predictions = self.late = self.checkpoint_bytes = self.rebalances = 0
        self.rejected: dict[Reason, int] = dict.fromkeys(Reason, 0)
        self.evicted: dict[Forgotten, int] = dict.fromkeys(Forgotten, 0)
        self.closed: dict[Closed, int] = dict.fromkeys(Closed, 0)
        self.outcomes: dict[Outcome, int] = dict.fromkeys(Outcome, 0)
        self.last_commit_s = 0.0
        """Wall clock, 0 before the first"""
        self.records_per_s = self.predictions_per_s = 0.0
        """Over the last ``_RATE_S``"""
        self._rate_mark = (now, 0, 0)
        self._marked_at = now

    def published(self, outgoing: Sequence[Outgoing], now_ms: int) -> None:
        stamps_ms: dict[Mode, list[int]] = {}
        for part in outgoing:
            self.predictions += len(part)
            stamps_ms.setdefault(part.mode, []).extend(part.timestamps_ms)
        for mode, stamps in stamps_ms.items():
            latency_s = (now_ms - np.array(stamps, np.float64)) / 1000
            self.latency[mode].observe(np.maximum(latency_s, 0.0))

    def committed(self, report: Report, times: Any, changelog_bytes: int, wall_s: float) -> None:
        """What an epoch brought about counts when it is committed. ``times``: seconds by stage (``Times``)."""
        for stage, histogram in self.stages.items():
            histogram.add(getattr(times, stage))
        self.commits.add(times.commit)
        self.checkpoint_bytes += changelog_bytes
        self.last_commit_s = wall_s
        self.records += report.records
        self.late += report.late
        if report.calls:
            rows, steps, cells = np.array(report.calls, np.float64).T
            self.rows.observe(rows)
            self.padding.observe(1 - cells / np.maximum(rows * steps, 1))
        for reason, count in report.rejects.items():
            self.rejected[reason] += count
        for why, count in report.forgotten.items():
            self.evicted[why] += count
        for how, count in report.closed.items():
            self.closed[how] += count
        scores: dict[str, list[F32]] = {}
        for model, each in report.scores:
            scores.setdefault(model, []).append(each)
        for model, parts in scores.items():
            self.scores[model].observe(np.concatenate(parts, axis=None))

    def age(self, now: float) -> None:
        """What depends on the time alone: rates, and what counts as recent."""
        since, records, predictions = self._rate_mark
        if now - since >= _RATE_S:
            seconds = now - since
            self.records_per_s = (self.records - records) / seconds
            self.predictions_per_s = (self.predictions - predictions) / seconds
            self._rate_mark = (now, self.records, self.predictions)
        if now - self._marked_at >= MARK_S:
            self._marked_at = now
            for histogram in (*self.latency.values(), *self.stages.values()):
                histogram.mark()

    def recent_latency(self, shares: Sequence[float]) -> dict[str, dict[str, float | None]]:
        """By mode, where there was any."""
        return {mode: found.recent(shares) for mode, found in self.latency.items() if found.count}
