"""``/metrics``: state and counts as Prometheus takes them. Base units; no stream id is ever a label."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from streamer.observe.counts import Counts
from streamer.observe.health import State, gauges, held, lag_s, unready
from streamer.observe.histogram import Histogram
from streamer.observe.status import About

_GAUGES = {
    "pending_events": "Events settled and not yet committed",
    "streams_resident": "Streams with a slot in the arena",
    "streams_limit": "Streams that fit into state.max_bytes; beyond it the oldest go",
    "state_bytes": "Raw state of the resident streams",
    "windows_open": "Open windows",
    "rollouts_open": "Sequences being generated",
    "decodings_open": "Closed windows that are being written about, or wait for it",
    "schema_waiting_records": "Records that were fetched and wait for the registry to tell their schemas",
}


class Metrics(Collector):
    """Reads when it is scraped, in any thread."""

    def __init__(self, about: About, state: State, counts: Counts, wall: Callable[[], float]) -> None:
        self._about, self._state, self._counts, self._wall = about, state, counts, wall
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)  # memory, processor time and open files of this process

    def text(self) -> bytes:
        """Prometheus text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        yield from self._totals()
        yield from self._now()
        yield from self._histograms()
        models = GaugeMetricFamily("streamer_model_info", "Served models", labels=["name", "version", "sha256"])
        for labels in self._about.models:
            models.add_metric(list(labels), 1)
        yield models
        build = GaugeMetricFamily("streamer_build_info", "Version of the service", labels=["version"])
        build.add_metric([self._about.version], 1)
        yield build

    def _totals(self) -> Iterator[Metric]:
        counts = self._counts
        yield _counter("records", "Input records", counts.records)
        yield _counters("records_rejected", "Records that went to the dead-letter topic", "reason", counts.rejected)
        yield _counter("predictions", "Predictions published", counts.predictions)
        yield _counter("events_late", "Events behind the watermark", counts.late)
        yield _counters("windows_closed", "Windows closed", "reason", counts.closed)
        yield _counters("streams_evicted", "Streams forgotten", "reason", counts.evicted)
        yield _counters("commits", "Commits", "outcome", counts.outcomes)
        yield _counter("rebalances", "Assignments", counts.rebalances)
        yield _counter("checkpoint_bytes", "Bytes written to the changelog", counts.checkpoint_bytes)

    def _now(self) -> Iterator[Metric]:
        state, counts, wall_s = self._state, self._counts, self._wall()
        for name, value in gauges(state.view).items():
            yield _gauge(name, _GAUGES[name], value)
        yield _gauge("ready", "1 when this instance does its work, as /readyz", unready(state, wall_s) is None)
        yield _gauge(
            "outage_seconds", "How long Kafka cannot be used, 0 when it can", state.outage.lasts_s(wall_s) or 0.0
        )
        if state.view.clock_ahead_ms is not None:
            ahead_s = state.view.clock_ahead_ms / 1000
            yield _gauge(
                "clock_ahead_seconds", "The clock of this machine minus the cluster's, where that is known", ahead_s
            )
        yield _gauge("last_commit_timestamp_seconds", "Time of the last commit, Unix epoch", counts.last_commit_s)
        partitions = GaugeMetricFamily(
            "streamer_partitions",
            "All partitions of the input: owned (running here), restoring (ours, not running yet), elsewhere (with other "
            "members, as far as is known), unowned (with no member of the group)",
            labels=["state"],
        )
        for where, count in held(state).items():
            partitions.add_metric([where], count)
        yield partitions
        here = state.partitions
        yield self._by_partition(
            "partition_lag_records", "Records behind the end of the log", {n: each.lag for n, each in here.items()}
        )
        yield self._by_partition(
            "partition_lag_seconds",
            "How long the oldest record that was not taken has been waiting, at most; 0 when none is left",
            {n: lag_s(state, n, each, wall_s) for n, each in here.items()},
        )
        yield self._by_partition(
            "replay_records",
            "Position - replay point: what a restart reads again",
            {n: each.position - each.replay_point for n, each in here.items()},
        )
        yield self._by_partition(
            "partition_blocked_seconds",
            "How long an open transaction of somebody else has held reading up",
            {n: each.blocked_s for n, each in here.items()},
        )
        remaining = sum(max(total - done, 0) for done, total, _ in list(state.restoring.values()))
        yield _gauge("restore_remaining_records", "Changelog records still to restore", remaining)

    def _histograms(self) -> Iterator[Metric]:
        counts = self._counts
        yield _histogram("batch_rows", "Rows of a model call", counts.rows)
        yield _histogram("batch_padding_ratio", "Share of padding in a model call", counts.padding)
        yield _histogram("model_run_seconds", "One model call", counts.runs)
        yield _histogram("commit_seconds", "One commit", counts.commits)
        yield _histogram("restore_seconds", "Assignment to live", counts.restores)
        yield _histogram("event_loop_lag_seconds", "How late timers of the event loop are", counts.loop_lag)
        yield _histograms(
            "stage_seconds", "Where an epoch spends its time; stages sum to the whole", "stage", counts.stages
        )
        yield _histograms("prediction_latency_seconds", "Record timestamp to commit", "mode", counts.latency)
        yield _histograms("score", "Scores that were published", "model", counts.scores)

    def _by_partition(self, name: str, help_text: str, values: Mapping[int, float | None]) -> Metric:
        """Those whose value is known."""
        family = GaugeMetricFamily(f"streamer_{name}", help_text, labels=["topic", "partition"])
        for partition, value in sorted(values.items()):
            if value is not None:
                family.add_metric([self._state.view.topic, str(partition)], value)
        return family


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"streamer_{name}", help_text, value)


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
