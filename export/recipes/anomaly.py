"""Anomaly: causal many-to-many. A forecaster learns normal telemetry; what it did not expect scores high.

Data: machines whose four metrics share a daily rhythm and a load that wanders; anomalies are short spans in which one
metric stops following the others (its values stay in the usual range, so no threshold finds them).
"""

from __future__ import annotations

import numpy as np
from sklearn.metrics import roc_auc_score

from ..data import UNLABELLED, Split, sequences
from ..train import ModelSection, TrainSection
from . import Recipe, split

FEATURES = ("cpu", "memory", "requests", "latency")


def make(quick: bool) -> Split:
    rng = np.random.default_rng(11)
    streams, steps = (40, 300) if quick else (120, 600)
    xs, labels = [], []
    for _ in range(streams):
        time = np.arange(steps) + rng.integers(96)
        load = np.sin(2 * np.pi * time / 96) + np.cumsum(rng.normal(0, 0.05, steps))
        gains = np.array([1.0, 0.6, 1.5, 0.8])
        x = load[:, None] * gains + rng.normal(0, 0.08, (steps, 4))
        label = np.zeros(steps, np.int64)
        for start in rng.choice(np.arange(40, steps - 20, 40), 3, replace=False):
            span = slice(start, start + int(rng.integers(4, 10)))
            metric = int(rng.integers(4))
            x[span, metric] = rng.permutation(x[:, metric])[: span.stop - span.start]  # its own values, out of place
            label[span] = 1
        xs.append(x)
        labels.append(label)
    return split(sequences(FEATURES, xs, labels, ("normal", "anomaly")))


def last_value_auc(data: Split) -> float:
    """The same score with "as before" as the forecast."""
    part = data.test
    assert part.labels is not None
    std = np.concatenate(data.train.x).std(axis=0)
    judged = [(y != UNLABELLED, y != (part.normal or 0)) for y in part.labels]
    score = [np.concatenate(([0.0], (np.diff(x, axis=0) / std).__pow__(2).mean(axis=1))) for x in part.x]
    known, anomaly = (np.concatenate(each) for each in zip(*judged, strict=True))
    return float(roc_auc_score(anomaly[known], np.concatenate(score)[known]))


RECIPE = Recipe(
    summary="anomaly score for every event of a telemetry stream (causal, many-to-many)",
    task="forecast",
    make=make,
    model=ModelSection(hidden=48, kind="gru"),
    training=TrainSection(epochs=20, rows=24, steps=64, learning_rate=5e-3, schedule="cosine"),
    quick_training=TrainSection(epochs=15, rows=8, steps=50, learning_rate=1e-2, schedule="cosine"),
    metric="auc",
    limit=0.90,
    quick_limit=0.85,
    baseline=last_value_auc,
    baseline_name="AUC of the change from the last value",
    feedback={"output": "forecast", "mode": "value"},
)
