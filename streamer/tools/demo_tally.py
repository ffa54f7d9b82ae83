"""The demo's events, and the independent consumer that counts what came of each: lost, right, how late."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.core import F32, I64
from streamer.errors import ConfigurationError
from streamer.observe.telemetry import Telemetry
from streamer.tools.broker import PARTITIONS, require_confluent_kafka
from streamer.tools.telemetry_data import KINDS
from streamer.tools.telemetry_data import Telemetry as Machines

SOURCE, TARGET = "telemetry", "scores"
WINDOW_MS = 2_000
THRESHOLD = 4.0
"""A score above it says "anomalous" at once; normal events score about 1."""
PLANT = 7
"""Seed of the generator that the model was trained on: it says how metrics move together. The demo's machines are others."""
WAIT_S = 40.0
"""Without any new answer for so long, the demo ends."""
_BEHIND_MS = 100.0
"""A second counts as kept up if at its end no more is unanswered than came in this time."""
_KEPT_PACE = 0.95
"""Of the offered rate; below it the machine was too slow, and the result says so."""
_WARM_UP_EVENTS_PER_STREAM = 4
"""A forecaster knows nothing of a stream's first events; they are scored, but not judged."""


@dataclass
class Verdicts:
    """What the bidirectional model said; each window says one kind per event."""

    seen: I64
    """[N] windows that judged the event"""
    kinds: I64
    """[N] index into KINDS"""
    scores: F32
    """[N] 1 - the probability of normal"""
    windows: list[I64] = field(default_factory=list)
    """The events of each"""
    latencies_ms: list[float] = field(default_factory=list)
    """From the record that closed the window to its verdict"""
    waits_ms: list[float] = field(default_factory=list)
    """From a window's first event to its verdict: what looking ahead costs"""


@dataclass
class Tally:
    """What the independent consumer found; written by its thread, read by the table."""

    labels: I64
    """[N] index into KINDS, by event"""
    seen: I64
    scores: F32
    verdicts: Verdicts
    answered_ms: NDArray[np.float64]
    """[N] when its answer was read, NaN before"""
    latencies_ms: list[float] = field(default_factory=list)
    top: list[tuple[float, str, str]] = field(default_factory=list)
    """(score, stream, kind) of the largest scores"""

    @property
    def answered(self) -> int:
        return int((self.seen > 0).sum())

    @property
    def judged(self) -> int:
        return int((self.verdicts.seen > 0).sum())


class Demo:
    """Event i is step ``i // streams`` of stream ``i % streams``, on partition ``i % streams % PARTITIONS``."""

    def __init__(self, streams: int, rate: float, seconds: float, seed: int) -> None:
        self.streams, self.rate = streams, rate
        self.events = int(rate * seconds) // streams * streams
        if self.events < streams * (_WARM_UP_EVENTS_PER_STREAM + 1):
            raise ConfigurationError("rate x seconds is too small: every stream needs some events")
        machines = Machines(seed=PLANT, anomaly_rate=0.02)
        first = (seed + 1) * 1_000_000
        index = np.arange(self.events)
        self.stream_of, steps = index % streams, index // streams
        parts = [
            machines.rows(first + self.stream_of[begin : begin + 10_000], steps[begin : begin + 10_000])
            for begin in range(0, self.events, 10_000)
        ]
        self.x = np.concatenate([x for x, _ in parts])
        self.tally = Tally(
            np.concatenate([label for _, label in parts]),
            np.zeros(self.events, np.int64),
            np.zeros(self.events, np.float32),
            Verdicts(
                np.zeros(self.events, np.int64), np.zeros(self.events, np.int64), np.zeros(self.events, np.float32)
            ),
            np.full(self.events, np.nan),
        )
        self.start_ms = 0.0
        partitions = self.stream_of % PARTITIONS
        self.event_at = [np.flatnonzero(partitions == partition) for partition in range(PARTITIONS)]
        """Offset -> event, by partition"""
        self.stop = threading.Event()
        self.failure: BaseException | None = None

    def send(self, bootstrap: str) -> None:
        """Open loop: every record carries its intended time, however late it is sent. At the end every machine signs off,
        which ends its last window."""
        producer: Any = require_confluent_kafka().Producer(
            {"bootstrap.servers": bootstrap, "linger.ms": 2, "log_level": 0}
        )
        keys = [f"machine-{stream:04d}" for stream in range(self.streams)]
        # on a border of windows, so that each run cuts the same windows
        self.start_ms = wall_ms = float(-(-time.time() * 1000 // WINDOW_MS) * WINDOW_MS)
        self.stop.wait(wall_ms / 1000 - time.time())
        begin, index = time.monotonic(), 0
        while index < self.events and not self.stop.is_set():
            due = min(int((time.monotonic() - begin) * self.rate) + 1, self.events)
            for event in range(index, due):
                stream, stamp = event % self.streams, int(wall_ms + event * 1000 / self.rate)
                value = json.dumps({"x": [round(float(each), 4) for each in self.x[event]], "ts": stamp})
                producer.produce(SOURCE, value, keys[stream], stream % PARTITIONS, timestamp=stamp)
            index = due
            producer.poll(0)
            self.stop.wait(max(0.0, begin + index / self.rate - time.monotonic()) + 0.001)
        for stream in range(self.streams):
            producer.produce(SOURCE, b"", keys[stream], stream % PARTITIONS, headers=[("streamer-op", b"end")])
        producer.flush(WAIT_S)

    def read(self, bootstrap: str) -> None:
        """Ticks off every event by the header ``streamer-source`` of its answer."""
        kafka = require_confluent_kafka()
        consumer = kafka.Consumer(
            {"bootstrap.servers": bootstrap, "group.id": "demo-reader", "fetch.wait.max.ms": 10, "log_level": 0}
        )
        tally = self.tally
        try:
            consumer.assign([kafka.TopicPartition(TARGET, partition, 0) for partition in range(PARTITIONS)])
            while not self.stop.is_set():
                message = consumer.poll(0.1)
                if message is not None and message.error() is None:
                    document = json.loads(message.value())
                    if "window" in document:
                        self._judge(message, document)
                        continue
                    _, partition, offset = dict(message.headers())["streamer-source"].rsplit(b"/", 2)
                    event = int(self.event_at[int(partition)][int(offset)])
                    tally.seen[event] += 1
                    tally.scores[event] = document["score"]
                    now_ms = time.time() * 1000
                    if tally.seen[event] == 1:
                        tally.answered_ms[event] = now_ms
                    tally.latencies_ms.append(now_ms - message.timestamp()[1])
                    if event >= self.streams * _WARM_UP_EVENTS_PER_STREAM:
                        self._rank(float(document["score"]), document["stream"], KINDS[int(tally.labels[event])])
        finally:
            consumer.close()

    def _judge(self, message: Any, document: dict[str, Any]) -> None:
        """One verdict: a kind for each event of the window, in order."""
        now_ms, verdicts = time.time() * 1000, self.tally.verdicts
        first, last = document["window"]["offsets"]
        near = self.event_at[message.partition()][first : last + 1]
        events = near[self.stream_of[near] == self.stream_of[near[0]]]
        verdicts.seen[events] += 1
        verdicts.kinds[events] = [KINDS.index(label) for label in document["label"]]
        verdicts.scores[events] = 1 - np.array(document["y"])[:, 0]
        verdicts.windows.append(events)
        verdicts.latencies_ms.append(now_ms - message.timestamp()[1])
        verdicts.waits_ms.append(now_ms - self.start_ms - float(events[0]) * 1000 / self.rate)

    def opinions(self) -> NDArray[np.bool_]:
        """[W, 3] by window, is it anomalous: by the scores at once, by the verdict, by the labels."""
        tally, first = self.tally, self.streams * _WARM_UP_EVENTS_PER_STREAM
        alarms = (tally.scores > THRESHOLD) & (np.arange(self.events) >= first)
        rows = [
            (alarms[events].any(), tally.verdicts.kinds[events].any(), tally.labels[events].any())
            for events in tally.verdicts.windows
        ]
        return np.array(rows, bool).reshape(-1, 3)

    def _rank(self, score: float, stream: str, kind: str) -> None:
        top = self.tally.top
        if len(top) < 5 or score > top[-1][0]:
            self.tally.top = sorted([*top, (score, stream, kind)], reverse=True)[:5]

    def result(self, telemetry: Telemetry, url: str | None) -> dict[str, Any]:
        tally = self.tally
        judged = np.arange(self.events) >= self.streams * _WARM_UP_EVENTS_PER_STREAM
        judged &= tally.seen > 0
        verdicts = tally.verdicts
        early, final, truth = self.opinions().T
        return {
            "events": self.events,
            "predictions": int(tally.seen.sum()),
            "rejected": sum(telemetry.counts.rejected.values()),
            "lost": int((tally.seen == 0).sum()),
            "streams": self.streams,
            "anomalies": int((tally.labels > 0).sum()),
            "auc": roc_auc(tally.labels[judged] > 0, tally.scores[judged]),
            "latency_ms": _percentiles(tally.latencies_ms),
            **pace(tally.answered_ms - self.start_ms, self.rate),
            "windows": {
                "verdicts": len(verdicts.windows),
                "events_judged": int(verdicts.seen.sum()),
                "events_lost": int((verdicts.seen == 0).sum()),
                "auc": roc_auc(tally.labels[judged] > 0, verdicts.scores[judged]),
                "latency_ms": _percentiles(verdicts.latencies_ms),
                "first_event_to_verdict_ms": _percentiles(verdicts.waits_ms),
                "agreement": _share(early == final),
                "right_at_once": _share(early == truth),
                "right_at_end": _share(final == truth),
                "anomalous": int(truth.sum()),
            },
            "delivery": "ephemeral",
            "metrics_url": f"{url}/metrics",
        }


def pace(answered_ms: NDArray[np.float64], rate: float) -> dict[str, Any]:
    """How fast the machine was, and how long answers took while it kept up.

    ``answered_ms`` [N]: when each event was answered, since the first was due; NaN: never. Event i was due at i / rate s."""
    due_ms = np.arange(len(answered_ms)) * 1000 / rate
    answered = np.sort(answered_ms[~np.isnan(answered_ms)])
    took_s = max(float(answered[-1]) if len(answered) else 0.0, len(answered_ms) * 1000 / rate) / 1000
    ends_ms = np.arange(1, int(due_ms[-1] // 1000) + 2) * 1000.0
    open_events = np.searchsorted(due_ms, ends_ms) - np.searchsorted(answered, ends_ms, side="right")
    kept = open_events <= max(rate * _BEHIND_MS / 1000, 1)
    there = kept[(due_ms // 1000).astype(int)] & ~np.isnan(answered_ms)
    return {
        "offered_per_second": round(rate, 1),
        "events_per_second": round(len(answered) / took_s, 1),
        "kept_up": {
            "seconds": int(kept.sum()),
            "of_seconds": len(kept),
            "latency_ms": _percentiles((answered_ms - due_ms)[there].tolist()) if there.any() else None,
        },
    }


def told_pace(found: dict[str, Any]) -> str | None:
    """A sentence for a machine that did not keep up; None for one that did."""
    offered, did, kept = found["offered_per_second"], found["events_per_second"], found["kept_up"]
    if did >= _KEPT_PACE * offered and kept["seconds"] >= _KEPT_PACE * kept["of_seconds"]:
        return None
    latency = kept["latency_ms"]
    apart = f"; while it kept up, p50 / p99 were {latency['p50']} / {latency['p99']} ms" if latency is not None else ""
    return (
        f"offered {offered:,.0f}/s, this machine did {did:,.0f}/s: it kept up in {kept['seconds']} of {kept['of_seconds']} s, "
        f"and the latencies above are mostly waiting{apart}. Close other programs, or offer less with --rate."
    )


def _percentiles(values: list[float]) -> dict[str, float]:
    found = np.percentile(values or [0.0], [50, 95, 99]).tolist()
    return dict(zip(("p50", "p95", "p99"), (round(each, 1) for each in found), strict=True))


def _share(right: NDArray[np.bool_]) -> float:
    return round(float(right.mean()), 4) if len(right) else float("nan")


def roc_auc(positive: Any, score: Any) -> float:
    """Area under the ROC curve: the share of pairs that are ordered rightly, ties half (Mann-Whitney U)."""
    positive, score = np.asarray(positive, bool), np.asarray(score, np.float64)
    count = int(positive.sum())
    if count in (0, len(positive)):
        return float("nan")
    _, inverse, sizes = np.unique(score, return_inverse=True, return_counts=True)
    ends = np.cumsum(sizes)
    ranks = (ends - (sizes - 1) / 2)[inverse]
    rank_sum = float(ranks[positive].sum())
    return (rank_sum - count * (count + 1) / 2) / (count * (len(positive) - count))
