"""What is counted: histograms over arrays, stages that sum to the whole, metrics that exist before anything happens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from streamer.core import Epoch, Outgoing, Report
from streamer.observe.histogram import Histogram
from streamer.observe.telemetry import Telemetry
from streamer.service.clock import Times
from streamer.words import Outcome, Reason, Stage

MODELS = [("lstm", "1", "ab" * 32)]


def epoch(**report: Any) -> Epoch:
    return Epoch({0: 1}, [], [], [], Report(**report))


def samples(telemetry: Telemetry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(telemetry.metrics().decode())
        for sample in family.samples
    }


def test_a_histogram_counts_each_value_up_to_its_bound() -> None:
    histogram = Histogram([1.0, 2.0])
    histogram.observe([0.5, 1.0, 1.5, 2.0, 9.0])
    histogram.observe(np.empty(0))
    assert histogram.buckets() == [("1.0", 2), ("2.0", 4), ("+Inf", 5)]
    assert histogram.sum == 14.0
    assert histogram.recent([0.2, 0.5, 0.99]) == {"p20": 0.5, "p50": 1.25, "p99": 2.0}


def test_few_values_and_many_are_counted_alike() -> None:
    values = [0.5, 1.0, 1.5, 2.0, 9.0] * 10
    many, few, single = (Histogram([1.0, 2.0]) for _ in range(3))
    many.observe(values)
    for at in range(0, len(values), 5):
        few.observe(np.array([values[at : at + 5]]))
    for value in values:
        single.add(value)
    assert many.buckets() == few.buckets() == single.buckets() == [("1.0", 20), ("2.0", 40), ("+Inf", 50)]
    assert many.sum == few.sum == single.sum == 140.0


def test_what_is_beyond_the_histogram_is_told_as_its_end() -> None:
    telemetry = Telemetry(MODELS, "0")
    telemetry.published([Outgoing(0, [b"a"], [b""], [1_000], [0])], now_ms=3_000_000)
    status = telemetry.status()
    assert status["latency_s"]["step"]["p99"] == status["latency_limit_s"] == 30.0


def test_percentiles_for_people_are_of_the_last_minute() -> None:
    histogram = Histogram([1.0, 2.0, 4.0])
    histogram.observe([3.0] * 100)
    histogram.mark()
    histogram.observe([0.5])
    for _ in range(5):
        assert histogram.recent([0.5])["p50"] > 2
        histogram.mark()
    histogram.mark()
    assert histogram.recent([0.5]) == {"p50": 0.5}, "what was before the oldest mark still counts"
    histogram.mark()
    assert histogram.recent([0.5]) == {"p50": None}


def test_stages_sum_to_the_whole_exactly() -> None:
    readings = iter([10.0, 10.5, 10.75, 11.0, 13.0, 13.125, 14.0])
    times = Times()
    times.begin(next(readings))
    for stage in Stage:
        times.end(stage, next(readings))
    assert times.total == 4.0
    telemetry = Telemetry(MODELS, "0")
    telemetry.committed(Outcome.COMMITTED, epoch(events=1), times, 7)
    found = samples(telemetry)
    assert sum(found["streamer_stage_seconds_sum", (("stage", stage),)] for stage in Stage) == 4.0
    assert found["streamer_checkpoint_bytes_total", ()] == 7


def test_predictions_and_rejects_are_counted() -> None:
    telemetry = Telemetry(MODELS, "0")
    telemetry.published([Outgoing(0, [b"a", b"b"], [b"", b""], [1_000, 2_000], [0, 1])], now_ms=2_004)
    settled = epoch(records=3, rejects={Reason.TOO_LARGE: 1})
    telemetry.committed(Outcome.FAILED, settled, Times(), 0)
    assert samples(telemetry)["streamer_records_total", ()] == 0, "what failed will come again"
    telemetry.committed(Outcome.COMMITTED, settled, Times(), 0)
    found = samples(telemetry)
    assert found["streamer_predictions_total", ()] == 2
    assert found["streamer_records_total", ()] == 3
    assert found["streamer_records_rejected_total", (("reason", "too_large"),)] == 1
    assert found["streamer_prediction_latency_seconds_sum", (("mode", "step"),)] == pytest.approx(1.008)
    assert found["streamer_prediction_latency_seconds_count", (("mode", "window"),)] == 0


def test_zeros_exist_before_anything_happens() -> None:
    found = samples(Telemetry(MODELS, "0"))
    assert found["streamer_commits_total", (("outcome", "fenced"),)] == 0
    assert found["streamer_windows_closed_total", (("reason", "limit"),)] == 0
    assert found["streamer_model_info", (("name", "lstm"), ("sha256", "ab" * 32), ("version", "1"))] == 1


def test_scores_are_counted_per_model_and_once() -> None:
    telemetry = Telemetry(MODELS, "0")
    scored = epoch(scores=[("lstm", np.float32([[0.015], [7.0]]))])
    telemetry.committed(Outcome.FENCED, scored, Times(), 0)
    telemetry.committed(Outcome.COMMITTED, scored, Times(), 0)
    found = samples(telemetry)
    assert found["streamer_score_bucket", (("le", "0.02"), ("model", "lstm"))] == 1
    assert found["streamer_score_count", (("model", "lstm"),)] == 2


def test_ready_tells_what_readyz_tells() -> None:
    telemetry = Telemetry(MODELS, "0")
    assert samples(telemetry)["streamer_ready", ()] == 0
    telemetry.recovered([0], [], 0.1)
    assert samples(telemetry)["streamer_ready", ()] == 1
