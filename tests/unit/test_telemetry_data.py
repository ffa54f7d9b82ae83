"""The synthetic telemetry: the same rows in any order, labelled anomalies that a forecaster can see."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.errors import ConfigurationError
from streamer.tools.telemetry_data import KINDS, MAX_ANOMALY_RATE, Telemetry


def grid(telemetry: Telemetry, streams: int, steps: int):
    s, t = np.repeat(np.arange(streams), steps), np.tile(np.arange(steps), streams)
    x, label = telemetry.rows(s, t)
    return x.reshape(streams, steps, -1).astype(float), label.reshape(streams, steps)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**7)), min_size=1, max_size=40), st.randoms())
def test_a_row_depends_on_stream_and_step_only(wanted, random):
    telemetry = Telemetry(features=5, seed=3, anomaly_rate=0.08)
    streams, steps = np.array(wanted).T
    x, label = telemetry.rows(streams, steps)
    order = list(range(len(wanted)))
    random.shuffle(order)
    for n in order:
        alone_x, alone_label = telemetry.rows(streams[n : n + 1], steps[n : n + 1])
        np.testing.assert_array_equal(alone_x[0], x[n])
        assert alone_label[0] == label[n]
    assert np.isfinite(x).all()


def test_seeds_and_streams_differ():
    a, _ = grid(Telemetry(seed=1), 3, 50)
    b, _ = grid(Telemetry(seed=2), 3, 50)
    assert np.abs(a - b).max() > 1
    assert np.abs(a[0] - a[1]).max() > 1


@pytest.mark.parametrize("rate", [0.0, 0.02, MAX_ANOMALY_RATE])
def test_share_of_labelled_events_is_the_rate(rate):
    _, label = grid(Telemetry(anomaly_rate=rate, seed=4), 400, 400)
    assert (label > 0).mean() == pytest.approx(rate, rel=0.15)
    assert set(np.unique(label)) == (set(range(len(KINDS))) if rate else {0})


def test_unlabelled_events_are_those_of_the_undisturbed_stream():
    clean, _ = grid(Telemetry(anomaly_rate=0, seed=5), 50, 400)
    x, label = grid(Telemetry(anomaly_rate=0.05, seed=5), 50, 400)
    np.testing.assert_array_equal(x[label == 0], clean[label == 0])
    changed = (x[label > 0] != clean[label > 0]).any(axis=1)
    assert changed.all()


def test_frozen_metrics_repeat_their_last_value():
    x, label = grid(Telemetry(anomaly_rate=0.05, seed=6), 50, 400)
    frozen = np.argwhere(label == KINDS.index("frozen"))
    assert len(frozen) > 20
    for stream, step in frozen:
        assert (x[stream, step] == x[stream, step - 1]).any()


@pytest.mark.parametrize("features", [4, 8, 16])
def test_a_linear_forecaster_finds_the_anomalies(features):
    """A baseline that any recurrent model should meet: residuals of a ridge regression on the last six events."""
    x, label = grid(Telemetry(features=features, seed=1), 160, 400)
    z = (x - x.mean((0, 1))) / x.std((0, 1))
    lags = 6
    past = np.concatenate([z[:, lags - 1 - i : -1 - i] for i in range(lags)], axis=-1)
    now, label = z[:, lags:], label[:, lags:]
    train = past[:80].reshape(-1, features * lags)
    weights = np.linalg.solve(train.T @ train + np.eye(features * lags), train.T @ now[:80].reshape(-1, features))
    score = ((now[80:] - past[80:] @ weights) ** 2).mean(axis=-1).ravel()
    positive = label[80:].ravel() > 0
    ranks = np.argsort(np.argsort(score))
    hits = positive.sum()
    auc = (ranks[positive].sum() - hits * (hits - 1) / 2) / (hits * (~positive).sum())
    assert auc >= 0.95
    assert now[label == 0].std() < 1.1


@pytest.mark.parametrize("bad", [{"features": 0}, {"anomaly_rate": 0.5}, {"anomaly_rate": -0.1}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ConfigurationError):
        Telemetry(**bad)


def test_names_of_metrics_are_distinct_beyond_the_known_ones():
    assert Telemetry(features=2).feature_names == ("cpu", "memory")
    assert len(set(Telemetry(features=20).feature_names)) == 20
