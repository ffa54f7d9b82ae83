"""What the service shows of itself: Prometheus metrics, a snapshot for the status page, and structured logs.

``Telemetry`` is the observer of the service. Work per event is a share of one numpy call per poll or commit: histograms
take arrays, labels exist from the start, no stream id is ever a label.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import structlog
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from streamer.core import Epoch, Outgoing, Reject
from streamer.processor import Processor

STAGES = ("fetch", "decode", "wait", "run", "encode", "commit")
REJECT_REASONS = (
    "undecodable", "wrong_width", "missing_feature", "not_finite", "missing_key", "bad_key", "missing_value", "too_large",
    "bad_time", "unknown_command", "late", "model_refused", "bad_request", "too_long", "too_many_rollouts",
)  # fmt: skip
EVICT_REASONS = ("idle", "memory", "end")
WINDOW_REASONS = ("time", "count", "end", "full", "span", "limit")
OUTCOMES = ("committed", "fenced", "failed")
_ERRORS_KEPT = 20
_SNAPSHOT_S = 0.5

log = structlog.stdlib.get_logger("streamer")


class Histogram:
    """Counts of values up to each bound; takes arrays. Bounds grow; the last bucket is open."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = np.asarray(bounds, np.float64)
        self.counts = np.zeros(len(bounds) + 1, np.int64)
        self.sum = 0.0

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

    def quantile(self, share: float) -> float:
        """Upper bound of the bucket that holds the quantile; 0 without values."""
        if not self.count:
            return 0.0
        place = int(np.searchsorted(np.cumsum(self.counts), share * self.count))
        return float(self.bounds[min(place, len(self.bounds) - 1)])

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
        self, models: Sequence[tuple[str, str, str]], version: str, *, summary_interval_s: float = 60.0
    ) -> None:
        """``models``: (name, version, sha256) of what is served."""
        self._models = list(models)
        self._version = version
        self._summary_interval_s = summary_interval_s
        latency = [0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0]
        self.latency = {mode: Histogram(latency) for mode in ("step", "window", "generate")}
        self.stages = {stage: Histogram(latency) for stage in STAGES}
        self.runs = Histogram(doubling(50e-6, 0.4))
        self.rows = Histogram([float(2**power) for power in range(13)])
        self.padding = Histogram([0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0])
        self.commits = Histogram(latency)
        self.restores = Histogram([0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0])
        scores = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]
        self.scores = {name: Histogram(scores) for name, *_ in models}
        self.loop_lag = Histogram([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0])
        self.records = self.predictions = self.late = self.checkpoint_bytes = self.rebalances = 0
        self.rejected = dict.fromkeys(REJECT_REASONS, 0)
        self.evicted = dict.fromkeys(EVICT_REASONS, 0)
        self.closed = dict.fromkeys(WINDOW_REASONS, 0)
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self.last_commit_s = 0.0
        self.beat_at = time.monotonic()
        self.ready = False
        self.draining = False
        self.errors: deque[dict[str, Any]] = deque(maxlen=_ERRORS_KEPT)
        self._gauges: dict[str, float] = dict.fromkeys(
            ("pending_events", "streams_resident", "streams_limit", "state_bytes", "windows_open", "rollouts_open"), 0.0
        )
        self._partitions: dict[int, dict[str, Any]] = {}
        self._restoring: dict[int, dict[str, Any]] = {}
        self._topic = ""
        self._snapshot_at = 0.0
        self._summary_at = time.monotonic()
        self._summary_predictions = 0
        self._rate = 0.0
        self._rate_mark = (time.monotonic(), 0)
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)
        ProcessCollector(registry=self.registry)  # memory, processor time and open files of this process

    # the observer

    def polled(self, records: int, rejects: Sequence[Reject]) -> None:
        self.records += records + len(rejects)
        self._count_rejects(rejects)

    def settled(self, processor: Processor, run_seconds: Sequence[float]) -> None:
        self.runs.observe(run_seconds)
        counters = processor.counters
        if counters.runs:
            rows, steps, cells = np.array(counters.runs, np.float64).T
            self.rows.observe(rows)
            self.padding.observe(1 - cells / np.maximum(rows * steps, 1))
        for mine, theirs in ((self.evicted, counters.evicted), (self.closed, counters.windows)):
            for reason, count in theirs.items():
                mine[reason] = mine.get(reason, 0) + count
        self.late += counters.late
        for model, scores in counters.scores:
            self.scores[model].observe(scores)
        processor.counters = type(counters)()

    def published(self, outgoing: Sequence[Outgoing], now_ms: int) -> None:
        for part in outgoing:
            self.predictions += len(part)
            latency_s = (now_ms - np.array(part.timestamps_ms, np.float64)) / 1000
            self.latency[part.mode].observe(np.maximum(latency_s, 0.0))

    def committed(self, outcome: str, epoch: Epoch, times: Any, changelog_bytes: int) -> None:
        self.outcomes[outcome] += 1
        if outcome != "committed":
            log.warning("commit_not_done", outcome=outcome, events=epoch.events)
            return
        for stage, histogram in self.stages.items():
            histogram.observe(getattr(times, stage))
        self.commits.observe(times.commit)
        self.checkpoint_bytes += changelog_bytes
        self.last_commit_s = time.time()

    def assigned(self, partitions: Sequence[int]) -> None:
        self.rebalances += 1
        self.ready = False
        self._restoring = {}
        log.info("assigned", partitions=list(partitions))

    def restoring(self, partition: int, state: Any) -> None:
        now = time.monotonic()
        entry = self._restoring.setdefault(partition, {"began": now})
        seconds = max(now - entry["began"], 1e-3)
        begin = state.begin or 0
        rate = (state.done - begin) / seconds
        entry.update(
            remaining=state.remaining,
            share=(state.done - begin) / max(state.end - begin, 1),
            bytes_read=state.bytes_read,
            records_per_second=rate,
            eta_s=state.remaining / rate if rate else None,
        )

    def recovered(self, partitions: Sequence[int], kept: Sequence[int], seconds: float) -> None:
        self.restores.observe(seconds)
        self._restoring = {}
        self.ready = True
        log.info("live", restored=list(partitions), kept=list(kept), seconds=round(seconds, 3))

    def failed(self, error: BaseException) -> None:
        self.errors.append({"at_ms": int(time.time() * 1000), "kind": type(error).__name__, "text": str(error)})
        log.error("failed", kind=type(error).__name__, error=str(error))

    def tick(self, service: Any) -> None:
        """Every turn of the loop; looks at the processor twice a second."""
        now = time.monotonic()
        self.beat_at = now
        if now - self._snapshot_at < _SNAPSHOT_S:
            return
        self._snapshot_at = now
        self.ready = bool(service.ready)
        self.draining = service.stopping.is_set()
        self._look(service)
        since, predictions = self._rate_mark
        if now - since >= 2.0:
            self._rate = (self.predictions - predictions) / (now - since)
            self._rate_mark = (now, self.predictions)
        if now - self._summary_at >= self._summary_interval_s:
            seconds, count = now - self._summary_at, self.predictions - self._summary_predictions
            self._summary_at, self._summary_predictions = now, self.predictions
            lag = sum(part["lag"] for part in self._partitions.values())
            log.info("summary", predictions=count, per_second=round(count / seconds, 1), lag=lag, **self._gauges)

    def beat(self, late_s: float) -> None:
        """From a timer on the loop: it was ``late_s`` later than asked."""
        self.beat_at = time.monotonic()
        self.loop_lag.observe(max(late_s, 0.0))

    def _look(self, service: Any) -> None:
        processor = service.processor
        self._gauges = {
            "pending_events": float(processor.open_events),
            "streams_resident": float(processor.table.used),
            "streams_limit": float(processor.max_streams),
            "state_bytes": float(
                processor.table.used * sum(lane.arena.bytes_per_stream for lane in processor.lanes if lane.arena)
            ),
            "windows_open": float(sum(windows.open_windows for windows in processor.windows.values())),
            "rollouts_open": float(len(processor.rollouts)),
        }
        self._topic = service.reader.topic
        found = {}
        for partition, ledger in processor.ledgers.items():
            end = service.reader.log_end(partition)
            found[partition] = {
                "state": "replaying" if ledger.replaying else "live",
                "position": ledger.position,
                "lag": max((end or ledger.next_offset) - ledger.next_offset, 0),
                "replay_records": ledger.position - ledger.replay_point,
            }
        self._partitions = found

    def _count_rejects(self, rejects: Sequence[Reject]) -> None:
        for reject in rejects:
            self.rejected[reject.reason] = self.rejected.get(reject.reason, 0) + 1

    # what others read

    def metrics(self) -> bytes:
        """Prometheus text format."""
        return generate_latest(self.registry)

    def status(self) -> dict[str, Any]:
        """Plain values for JSON: what the person on call asks first."""
        health = (
            "draining" if self.draining else "live" if self.ready else "restoring" if self._restoring else "starting"
        )
        restoring = {
            str(partition): {"state": "restoring", **{k: v for k, v in entry.items() if k != "began"}}
            for partition, entry in self._restoring.items()
        }
        return {
            "health": health,
            "version": self._version,
            "models": [{"name": name, "version": version, "sha256": digest} for name, version, digest in self._models],
            "partitions": {**{str(p): values for p, values in self._partitions.items()}, **restoring},
            "predictions": self.predictions,
            "predictions_per_second": round(self._rate, 1),
            "rejected": {reason: count for reason, count in self.rejected.items() if count},
            "latency_s": {
                mode: {f"p{int(q * 100)}": found.quantile(q) for q in (0.5, 0.95, 0.99)}
                for mode, found in self.latency.items()
                if found.count
            },
            "stage_s": {
                stage: {"p50": found.quantile(0.5), "p99": found.quantile(0.99)} for stage, found in self.stages.items()
            },
            **self._gauges,
            "windows_closed": {reason: count for reason, count in self.closed.items() if count},
            "last_commit_s_ago": round(time.time() - self.last_commit_s, 1) if self.last_commit_s else None,
            "errors": list(self.errors),
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
        remaining = sum(entry.get("remaining", 0) for entry in self._restoring.values())
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


def _counters(name: str, help_text: str, label: str, values: dict[str, int]) -> Metric:
    family = CounterMetricFamily(f"streamer_{name}", help_text, labels=[label])
    for key, value in list(values.items()):
        family.add_metric([key], value)
    return family


def _histogram(name: str, help_text: str, values: Histogram) -> Metric:
    return HistogramMetricFamily(f"streamer_{name}", help_text, buckets=values.buckets(), sum_value=values.sum)


def _histograms(name: str, help_text: str, label: str, values: dict[str, Histogram]) -> Metric:
    family = HistogramMetricFamily(f"streamer_{name}", help_text, labels=[label])
    for key, histogram in values.items():
        family.add_metric([key], histogram.buckets(), histogram.sum)
    return family


def configure_logs(level: str, style: str = "auto") -> None:
    """Logs on stderr, one line each: JSON unless stderr is a terminal. ``style``: auto | json | console."""
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
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("aiokafka").setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))
