"""What the service shows of itself: Prometheus metrics, a snapshot for the status page, and structured logs.

``Telemetry`` is the observer of the service. Work per event is a share of one numpy call per poll or commit: histograms
take arrays, labels exist from the start, no stream id is ever a label.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import structlog
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from streamer.core import Epoch, Outgoing, Report
from streamer.errors import KafkaUnavailableError
from streamer.observe.view import PartitionView, View
from streamer.words import Closed, Forgotten, Mode, Outcome, Reason, Stage

_ERRORS_KEPT = 20
_SNAPSHOT_S = 0.5
_RATE_S = 2.0
_MARK_S, _MARKS = 10.0, 7
"""Percentiles for people are over the last minute: marks are set every 10 s, and the oldest of 7 is where it begins."""
_REPEAT_S = 60.0
"""The same error again is counted, and logged once in this time."""
_BLOCKED_S = 5.0
"""Transactions of those who write the input are open for moments; one that is open for so long is told."""
_SILENT_S = 10.0
"""Fetches are answered every few milliseconds, with or without records; without an answer for this long Kafka is away."""

log = structlog.stdlib.get_logger("streamer")


class Histogram:
    """Counts of values up to each bound; takes arrays. Bounds grow; the last bucket is open."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = np.asarray(bounds, np.float64)
        self.counts = np.zeros(len(bounds) + 1, np.int64)
        self.sum = 0.0
        self._marks = deque([self.counts.copy()], maxlen=_MARKS)

    def observe(self, values: Any) -> None:
        """``values``: any number of floats."""
        values = np.asarray(values, np.float64).ravel()
        if len(values):
            places = np.searchsorted(self.bounds, values, side="left")
            self.counts += np.bincount(places, minlength=len(self.counts))
            self.sum += float(values.sum())

    @property
    def count(self) -> int:
        return int(self.counts.sum())

    def mark(self) -> None:
        """Called every ``_MARK_S``: what is older than the oldest mark is not recent."""
        self._marks.append(self.counts.copy())

    def recent(self, shares: Sequence[float]) -> dict[str, float | None]:
        """Quantiles since the oldest mark, ``{"p50": seconds}``; None where nothing happened since."""
        counts = self.counts - self._marks[0]
        return {f"p{share * 100:g}": self._quantile(counts, share) for share in shares}

    def _quantile(self, counts: Any, share: float) -> float | None:
        """Linear inside the bucket that holds the quantile, as Prometheus does; the open bucket gives its lower bound."""
        totals = np.cumsum(counts)
        if not totals[-1]:
            return None
        rank = share * totals[-1]
        place = int(np.searchsorted(totals, rank))
        if place >= len(self.bounds):
            return float(self.bounds[-1])
        low = self.bounds[place - 1] if place else 0.0
        below = totals[place - 1] if place else 0
        return float(low + (self.bounds[place] - low) * (rank - below) / counts[place])

    def buckets(self) -> list[tuple[str, float]]:
        totals = np.cumsum(self.counts).tolist()
        names = [repr(float(bound)) for bound in self.bounds] + ["+Inf"]
        return list(zip(names, totals, strict=True))


def doubling(first: float, last: float) -> list[float]:
    bounds = [first]
    while bounds[-1] < last:
        bounds.append(bounds[-1] * 2)
    return bounds


class Telemetry(Collector):
    """Observer of the service, collector of Prometheus, source of ``/status``. Written by the loop, read by any thread."""

    def __init__(
        self,
        models: Sequence[tuple[str, str, str]],
        version: str,
        *,
        facts: Mapping[str, str] | None = None,
        summary_interval_s: float = 60.0,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """``models``: (name, version, sha256) of what is served. ``facts``: what people want to know of this instance
        (group, topics); shown as it is, so it holds no secrets. The clocks are arguments for tests."""
        self._models = list(models)
        self._version = version
        self._facts = dict(facts or {})
        self._summary_interval_s = summary_interval_s
        self._monotonic, self._wall = monotonic, wall
        latency = [0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0]
        self.latency = {mode: Histogram(latency) for mode in Mode}
        self.stages = {stage: Histogram(latency) for stage in Stage}
        self.runs = Histogram(doubling(50e-6, 0.4))
        self.rows = Histogram([float(2**power) for power in range(13)])
        self.padding = Histogram([0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0])
        self.commits = Histogram(latency)
        self.restores = Histogram([0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0])
        scores = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]
        self.scores = {name: Histogram(scores) for name, *_ in models}
        self.loop_lag = Histogram([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0])
        self.records = self.predictions = self.late = self.checkpoint_bytes = self.rebalances = 0
        self.rejected: dict[Reason, int] = dict.fromkeys(Reason, 0)
        self.evicted: dict[Forgotten, int] = dict.fromkeys(Forgotten, 0)
        self.closed: dict[Closed, int] = dict.fromkeys(Closed, 0)
        self.outcomes: dict[Outcome, int] = dict.fromkeys(Outcome, 0)
        self.last_commit_s = 0.0
        self.ready = False
        self.draining = False
        self.errors: deque[dict[str, Any]] = deque(maxlen=_ERRORS_KEPT)
        self._errors_logged: dict[tuple[str, str], float] = {}
        self._heard_s = 0.0
        self._outage_s: float | None = None
        self._assigned: list[int] | None = None
        self._assigned_at = 0.0
        self._gauges: dict[str, int] = dict.fromkeys(
            ("pending_events", "streams_resident", "streams_limit", "state_bytes", "windows_open", "rollouts_open"), 0
        )
        self._partitions: dict[int, dict[str, Any]] = {}
        self._restoring: dict[int, tuple[int, int, int]] = {}
        self._begun: dict[tuple[str, int], tuple[float, int]] = {}
        self._rounds: dict[int, int] = {}
        self._blocked: set[int] = set()
        self._round_ended: list[int] = []
        self._round_bytes = 0
        self._topic = ""
        now = monotonic()
        self._started = self.beat_at = self._summary_at = self._marked_at = now
        self._snapshot_at = 0.0
        self._summarised = (0, 0, 0)
        self._rates = (0.0, 0.0)
        self._rate_mark = (now, 0, 0)
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)
        ProcessCollector(registry=self.registry)  # memory, processor time and open files of this process

    # the observer

    def ran(self, seconds: Sequence[float]) -> None:
        """Of each model call."""
        self.runs.observe(seconds)

    def published(self, outgoing: Sequence[Outgoing], now_ms: int) -> None:
        for part in outgoing:
            self.predictions += len(part)
            latency_s = (now_ms - np.array(part.timestamps_ms, np.float64)) / 1000
            self.latency[part.mode].observe(np.maximum(latency_s, 0.0))

    def committed(self, outcome: Outcome, epoch: Epoch, times: Any, changelog_bytes: int) -> None:
        self.outcomes[outcome] += 1
        if outcome is not Outcome.COMMITTED:
            log.warning("commit_not_done", outcome=str(outcome), events=epoch.events)
            return
        for stage, histogram in self.stages.items():
            histogram.observe(getattr(times, stage))
        self.commits.observe(times.commit)
        self._count(epoch.report)
        self.checkpoint_bytes += changelog_bytes
        self.last_commit_s = self._wall()
        self._outage_s = None

    def _count(self, report: Report) -> None:
        """What an epoch brought about counts when it is committed."""
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
        for model, scores in report.scores:
            self.scores[model].observe(scores)

    def assigned(self, partitions: Sequence[int]) -> None:
        self.rebalances += 1
        self.ready = False
        self._assigned = list(partitions)
        self._restoring, self._begun, self._partitions, self._rounds = {}, {}, {}, {}
        self._assigned_at = self._monotonic()
        log.info("rebalance", partitions=list(partitions))

    def restoring(self, partition: int, state: Any) -> None:
        done, total = state.done - state.begin, state.end - state.begin
        self._begun.setdefault(("restore", partition), (self._monotonic(), done))
        self._restoring[partition] = (done, total, state.bytes_read)

    def _progress(self, what: tuple[str, int], done: int, total: int) -> dict[str, Any]:
        """How far a restore or replay is; the time that is left follows from the pace since it began until now."""
        now = self._monotonic()
        began, at = self._begun.get(what, (now, done))
        pace = (done - at) / (now - began) if now > began else 0.0
        remaining = max(total - done, 0)
        return {
            "share": min(done / total, 1.0) if total > 0 else 1.0,
            "remaining": remaining,
            "eta_s": remaining / pace if pace > 0 else None,
        }

    def recovered(self, partitions: Sequence[int], kept: Sequence[int], seconds: float) -> None:
        self.restores.observe(seconds)
        read = sum(bytes_read for _, _, bytes_read in self._restoring.values())
        self._restoring = {}
        self._outage_s = None
        self.ready = True
        self._snapshot_at = 0.0  # look again before the first commit, so that its checkpoint round is seen
        log.info("live", restored=list(partitions), kept=list(kept), seconds=round(seconds, 3), changelog_bytes=read)

    def failed(self, error: BaseException) -> None:
        """Kept for the status page and logged; the same error again is counted there, and logged once a minute."""
        now, kind, text = self._monotonic(), type(error).__name__, str(error)
        if isinstance(error, KafkaUnavailableError) and self._outage_s is None:
            wall, heard_s = self._wall(), max(self._heard_s, self.last_commit_s)
            self._outage_s = heard_s if wall - heard_s < _REPEAT_S else wall
        known = next((entry for entry in self.errors if (entry["kind"], entry["text"]) == (kind, text)), None)
        count = 0
        if known is not None:
            self.errors.remove(known)
            count = known["count"]
        self.errors.append({"at_ms": int(self._wall() * 1000), "kind": kind, "text": text, "count": count + 1})
        logged = self._errors_logged
        if now - logged.get((kind, text), -_REPEAT_S) >= _REPEAT_S:
            if len(logged) >= _ERRORS_KEPT:
                logged.pop(min(logged, key=logged.__getitem__))
            logged[kind, text] = now
            log.error("failed", kind=kind, error=text, times=count + 1)

    def tick(self, look: Callable[[], View]) -> None:
        """Every turn of the loop; looks twice a second."""
        now = self._monotonic()
        self.beat_at = now
        if now - self._snapshot_at < _SNAPSHOT_S:
            return
        self._snapshot_at = now
        self._look(look())
        self._age(now)

    def beat(self, late_s: float) -> None:
        """From a timer on the loop, which also runs during restores and outages: it was ``late_s`` later than asked."""
        self.beat_at = self._monotonic()
        self.loop_lag.observe(max(late_s, 0.0))
        self._age(self.beat_at)

    def _age(self, now: float) -> None:
        """What depends on the time alone: rates, what counts as recent, the summary line."""
        since, records, predictions = self._rate_mark
        if now - since >= _RATE_S:
            seconds = now - since
            self._rates = ((self.records - records) / seconds, (self.predictions - predictions) / seconds)
            self._rate_mark = (now, self.records, self.predictions)
        if now - self._marked_at >= _MARK_S:
            self._marked_at = now
            for histogram in (*self.latency.values(), *self.stages.values()):
                histogram.mark()
        if now - self._summary_at >= self._summary_interval_s:
            self._summarise(now - self._summary_at)
            self._summary_at = now

    def _summarise(self, seconds: float) -> None:
        counted = (self.records, self.predictions, sum(self.rejected.values()))
        records, predictions, rejected = (new - old for new, old in zip(counted, self._summarised, strict=True))
        self._summarised = counted
        log.info(
            "summary",
            health=self.health,
            seconds=round(seconds, 1),
            records=records,
            predictions=predictions,
            rejected=rejected,
            per_second=round(predictions / seconds, 1),
            lag=self._lag(),
            latency_s={mode: found.recent((0.5, 0.99)) for mode, found in self.latency.items() if found.count},
            **self._gauges,
        )

    def _restore(self) -> dict[str, float | None] | None:
        """How far the restore is as a whole; what is left follows from the time that it took so far."""
        if self.health != "restoring":
            return None
        parts = self._shown().values()
        share = sum(0.0 if p["state"] == "waiting" else p.get("share", 1.0) for p in parts) / max(len(parts), 1)
        taken_s = self._monotonic() - self._assigned_at
        return {"share": share, "eta_s": taken_s * (1 - share) / share if share else None}

    def _lag(self) -> int | None:
        """Records behind the end of the log; None while that is not known (restore, outage)."""
        if self._outage_s is not None:
            return None
        known = [part["lag"] for part in self._partitions.values()]
        return sum(known) if known and len(known) == len(self._assigned or ()) else None

    def _look(self, view: View) -> None:
        self.ready, self.draining = view.ready, view.draining
        self._gauges = {
            "pending_events": view.pending_events,
            "streams_resident": view.streams,
            "streams_limit": view.streams_limit,
            "state_bytes": view.state_bytes,
            "windows_open": view.windows_open,
            "rollouts_open": view.rollouts_open,
        }
        self._topic = view.topic
        heard_s = [each.confirmed_s for each in view.partitions.values()]
        if any(heard_s):
            self._heard_s = max(heard_s)
            if self._wall() - self._heard_s > _SILENT_S:
                self._outage_s = self._outage_s or self._heard_s
            elif self.ready and self._outage_s and min(filter(None, heard_s)) > self._outage_s:
                self._outage_s = None
        self._partitions = {number: self._partition(number, each) for number, each in view.partitions.items()}
        self._note_blocked(view.partitions)
        self._note_rounds(view.partitions)

    def _partition(self, number: int, view: PartitionView) -> dict[str, Any]:
        replaying = view.next_offset < view.live_from
        found: dict[str, Any] = {
            "state": "replaying" if replaying else "live",
            "position": view.position,
            "lag": view.lag,
            "replay_records": view.position - view.replay_point,
            "blocked_s": round(view.blocked_s, 1),
        }
        if replaying:
            done, total = view.next_offset - view.replay_point, view.live_from - view.replay_point
            self._begun.setdefault(("replay", number), (self._monotonic(), done))
            found |= self._progress(("replay", number), done, total)
        return found

    def _note_blocked(self, partitions: Mapping[int, PartitionView]) -> None:
        """One line when an open transaction of somebody else holds a partition for long, and one when that is over."""
        blocked = {number for number, each in partitions.items() if each.blocked_s > _BLOCKED_S}
        for number in sorted(blocked - self._blocked):
            log.warning(
                "blocked",
                partition=number,
                offset=partitions[number].next_offset,
                seconds=round(partitions[number].blocked_s, 1),
                cause="a producer of the input has a transaction open there: records behind it cannot be read before it ends",
            )
        for number in sorted(self._blocked - blocked):
            log.info("unblocked", partition=number)
        self._blocked = blocked

    def _note_rounds(self, partitions: Mapping[int, PartitionView]) -> None:
        """One line when the checkpoint rounds of all partitions are written: they begin together."""
        for partition, each in partitions.items():
            if each.checkpointed > self._rounds.setdefault(partition, each.checkpointed):
                self._rounds[partition] = each.checkpointed
                self._round_ended.append(partition)
        if self._round_ended and not any(each.round_open for each in partitions.values()):
            spent, self._round_bytes = self.checkpoint_bytes - self._round_bytes, self.checkpoint_bytes
            behind = [each.position - each.replay_point for each in partitions.values()]
            replay = max(behind, default=0)  # all partitions may have gone meanwhile, with an outage or a rebalance
            log.info(
                "checkpoint", partitions=sorted(set(self._round_ended)), bytes=spent, longest_replay_records=replay
            )
            self._round_ended = []

    # what others read

    def metrics(self) -> bytes:
        """Prometheus text format."""
        return generate_latest(self.registry)

    @property
    def health(self) -> str:
        """starting | waiting | restoring | replaying | live | outage | draining"""
        if self.draining:
            return "draining"
        if self._outage_s is not None:
            return "outage"
        if self._assigned is None:
            return "starting"
        if not self._assigned:
            return "waiting"
        if not self.ready or len(self._partitions) < len(self._assigned):
            return "restoring"
        return "replaying" if any(p["state"] == "replaying" for p in self._shown().values()) else "live"

    def _shown(self) -> dict[int, dict[str, Any]]:
        """Partitions as people see them: those that are ready run while others are restored. A copy, since another
        thread reads."""
        shown: dict[int, dict[str, Any]] = {partition: {"state": "waiting"} for partition in self._assigned or ()}
        for partition, (done, total, bytes_read) in list(self._restoring.items()):
            how_far = self._progress(("restore", partition), done, total)
            state = "restoring" if how_far["remaining"] else "restored"
            shown[partition] = {"state": state, **how_far, "bytes_read": bytes_read}
        return shown | self._partitions

    def status(self) -> dict[str, Any]:
        """Plain values for JSON: what the person on call asks first."""
        wall, shown = self._wall(), self._shown()
        return {
            "health": self.health,
            "outage_s": round(wall - self._outage_s, 1) if self._outage_s is not None else None,
            "version": self._version,
            "up_s": round(self._monotonic() - self._started, 1),
            **self._facts,
            "models": [{"name": name, "version": version, "sha256": digest} for name, version, digest in self._models],
            "restore": self._restore(),
            "partitions": {str(partition): values for partition, values in sorted(shown.items())},
            "lag": self._lag(),
            "records": self.records,
            "records_per_second": round(self._rates[0], 1),
            "predictions": self.predictions,
            "predictions_per_second": round(self._rates[1], 1),
            "rejected": {reason: count for reason, count in self.rejected.items() if count},
            "latency_s": {mode: found.recent((0.5, 0.95, 0.99)) for mode, found in self.latency.items() if found.count},
            "stage_s": {stage: found.recent((0.5, 0.95, 0.99)) for stage, found in self.stages.items()},
            **self._gauges,
            "streams_evicted": {reason: count for reason, count in self.evicted.items() if count},
            "windows_closed": {reason: count for reason, count in self.closed.items() if count},
            "events_late": self.late,
            "last_commit_s_ago": round(max(wall - self.last_commit_s, 0.0), 1) if self.last_commit_s else None,
            "errors": [{**error, "s_ago": round(wall - error["at_ms"] / 1000, 1)} for error in list(self.errors)],
        }

    def collect(self) -> Iterator[Metric]:
        yield _counter("records", "Input records", self.records)
        yield _counters("records_rejected", "Records that went to the dead-letter topic", "reason", self.rejected)
        yield _counter("predictions", "Predictions published", self.predictions)
        yield _counter("events_late", "Events behind the watermark", self.late)
        yield _counters("windows_closed", "Windows closed", "reason", self.closed)
        yield _counters("streams_evicted", "Streams forgotten", "reason", self.evicted)
        yield _counters("commits", "Commits", "outcome", self.outcomes)
        yield _counter("rebalances", "Assignments", self.rebalances)
        yield _counter("checkpoint_bytes", "Bytes written to the changelog", self.checkpoint_bytes)
        for name, help_text in (
            ("pending_events", "Events settled and not yet committed"),
            ("streams_resident", "Streams with a slot in the arena"),
            ("streams_limit", "Streams that fit into state.max_bytes; beyond it the oldest go"),
            ("state_bytes", "Raw state of the resident streams"),
            ("windows_open", "Open windows"),
            ("rollouts_open", "Sequences being generated"),
        ):
            yield GaugeMetricFamily(f"streamer_{name}", help_text, self._gauges[name])
        yield GaugeMetricFamily("streamer_ready", "1 when all partitions owned are restored, as /readyz", self.ready)
        yield GaugeMetricFamily(
            "streamer_last_commit_timestamp_seconds", "Time of the last commit, Unix epoch", self.last_commit_s
        )
        yield self._by_partition("partition_lag_records", "Records behind the end of the log", "lag")
        yield self._by_partition(
            "replay_records", "Position - replay point: what a restart reads again", "replay_records"
        )
        yield self._by_partition(
            "partition_blocked_seconds",
            "How long an open transaction of somebody else has held reading up",
            "blocked_s",
        )
        remaining = sum(max(total - done, 0) for done, total, _ in list(self._restoring.values()))
        yield GaugeMetricFamily("streamer_restore_remaining_records", "Changelog records still to restore", remaining)
        yield _histogram("batch_rows", "Rows of a model call", self.rows)
        yield _histogram("batch_padding_ratio", "Share of padding in a model call", self.padding)
        yield _histogram("model_run_seconds", "One model call", self.runs)
        yield _histogram("commit_seconds", "One commit", self.commits)
        yield _histogram("restore_seconds", "Assignment to live", self.restores)
        yield _histogram("event_loop_lag_seconds", "How late timers of the event loop are", self.loop_lag)
        yield _histograms(
            "stage_seconds", "Where an epoch spends its time; stages sum to the whole", "stage", self.stages
        )
        yield _histograms("prediction_latency_seconds", "Record timestamp to commit", "mode", self.latency)
        yield _histograms("score", "Scores that were published", "model", self.scores)
        models = GaugeMetricFamily("streamer_model_info", "Served models", labels=["name", "version", "sha256"])
        for labels in self._models:
            models.add_metric(list(labels), 1)
        yield models
        build = GaugeMetricFamily("streamer_build_info", "Version of the service", labels=["version"])
        build.add_metric([self._version], 1)
        yield build

    def _by_partition(self, name: str, help_text: str, key: str) -> Metric:
        family = GaugeMetricFamily(f"streamer_{name}", help_text, labels=["topic", "partition"])
        for partition, values in sorted(self._partitions.items()):
            family.add_metric([self._topic, str(partition)], values[key])
        return family


def _counter(name: str, help_text: str, value: float) -> Metric:
    return CounterMetricFamily(f"streamer_{name}", help_text, value)


def _counters(name: str, help_text: str, label: str, values: Mapping[Any, int]) -> Metric:
    family = CounterMetricFamily(f"streamer_{name}", help_text, labels=[label])
    for key, value in list(values.items()):
        family.add_metric([key], value)
    return family


def _histogram(name: str, help_text: str, values: Histogram) -> Metric:
    return HistogramMetricFamily(f"streamer_{name}", help_text, buckets=values.buckets(), sum_value=values.sum)


def _histograms(name: str, help_text: str, label: str, values: Mapping[Any, Histogram]) -> Metric:
    family = HistogramMetricFamily(f"streamer_{name}", help_text, labels=[label])
    for key, histogram in values.items():
        family.add_metric([key], histogram.buckets(), histogram.sum)
    return family


class _Repeats(logging.Filter):
    """Lets a message of the Kafka client through once a minute: while brokers are away it says the same many times."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._monotonic = monotonic
        self._last: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith("aiokafka"):
            return True
        now, key = self._monotonic(), (record.name, str(record.msg))
        if now - self._last.get(key, -_REPEAT_S) < _REPEAT_S:
            return False
        self._last[key] = now  # as many as the client has messages: its texts are templates
        return True


def configure_logs(level: str, style: str = "auto") -> bool:
    """Logs on stderr, one line each: JSON unless stderr is a terminal. ``style``: auto | json | console. Whether JSON."""
    plain = style == "console" or (style == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Any = structlog.dev.ConsoleRenderer() if plain else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    handler.addFilter(_Repeats())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)  # else they are written as they are, between the JSON lines
    # never below: at level debug the client writes whole requests, the password of SASL PLAIN among them
    logging.getLogger("aiokafka").setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))
    return not plain
