"""Targets, losses and figures of the tasks, against the same worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

import torch
from sklearn.metrics import roc_auc_score

from export.data import Streams, sequences
from export.model import Forecaster, ModelConfig, build
from export.tasks import evaluate, examples, fit_residual_scale, mean_loss, scores
from streamer.errors import ConfigurationError

pytestmark = pytest.mark.torch


def waves(count: int = 6, seed: int = 0, *, labels: bool = True) -> Streams:
    rng = np.random.default_rng(seed)
    xs = [rng.normal(size=(int(rng.integers(20, 700)), 2)) for _ in range(count)]
    marks = [(rng.random(len(x)) < 0.2).astype(int) for x in xs]
    return sequences(("a", "b"), xs, marks if labels else None, ("normal", "anomaly") if labels else None)


def forecaster() -> Forecaster:
    torch.manual_seed(0)
    model = build(ModelConfig(features=2, hidden=5, task="forecast", kind="lstm"))
    assert isinstance(model, Forecaster)
    torch.nn.init.normal_(model.head.weight)
    model.std.copy_(torch.tensor([0.5, 2.0]))
    return model.eval()


def test_streams_too_short_to_have_a_target_are_left_out() -> None:
    data = sequences(("a",), [[1.0], [1.0, 2.0, 3.0], [5.0, 6.0]])
    found = examples("forecast", data)
    assert [e.x[:, 0].tolist() for e in found] == [[1.0, 2.0], [5.0]]
    assert [e.target[:, 0].tolist() for e in found] == [[2.0, 3.0], [6.0]]
    with pytest.raises(ConfigurationError, match="no stream is long enough"):
        examples("forecast", sequences(("a",), [[1.0], [2.0]]))
    with pytest.raises(ConfigurationError, match="needs labels"):
        examples("classify", data)


def test_a_window_has_the_label_of_its_last_event() -> None:
    data = sequences(("a",), [[1.0, 2.0]], [[0, 1]], ("no", "yes"))
    (found,) = examples("classify", data, per_window=True)
    assert int(found.target) == 1


def test_scores_in_pieces_equal_the_whole_stream() -> None:
    model, data = forecaster(), waves()
    for x, score in zip(data.x, scores(model, data), strict=True):
        with torch.no_grad():
            whole = model(torch.from_numpy(x)[None])[0]["score"][0, :, 0].numpy()
        np.testing.assert_allclose(score, whole, atol=1e-4, rtol=1e-4)


def test_a_forecasters_figures_are_those_of_its_scores() -> None:
    model, data = forecaster(), waves()
    data.counted_from = [10] * len(data)
    figures = evaluate(model, "forecast", data, data)
    found = scores(model, data)
    assert data.labels is not None
    truth = np.concatenate([y[10:] for y in data.labels])
    assert figures["auc"] == pytest.approx(roc_auc_score(truth, np.concatenate([s[10:] for s in found])))
    each = [roc_auc_score(y[10:], s[10:]) for y, s in zip(data.labels, found, strict=True)]
    assert figures["auc_mean_of_streams"] == pytest.approx(np.mean(each))
    # With a residual scale of 1 the score is the squared error of the event; the first counted one is event 10.
    assert figures["loss"] == pytest.approx(float(np.concatenate([s[10:] for s in found]).mean()), rel=1e-4)
    changes = np.concatenate([np.diff(x, axis=0)[9:] / [0.5, 2.0] for x in data.x])
    assert figures["baseline_loss"] == pytest.approx(float(np.square(changes).mean()), rel=1e-5)
    assert "auc" not in evaluate(model, "forecast", waves(labels=False), data)


def test_the_residual_scale_is_the_size_of_what_training_left_over() -> None:
    model, data = forecaster(), waves()
    fit_residual_scale(model, examples("forecast", data))
    judged = np.concatenate([s[1:] for s in scores(model, data)])
    assert float(judged.mean()) == pytest.approx(1.0, rel=1e-3)
    still = sequences(("a", "b"), [np.zeros((30, 2))])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    fit_residual_scale(model, examples("forecast", still))
    assert model.residual_scale.tolist() == pytest.approx([0.01, 0.01])


@pytest.mark.parametrize("options", [{}, {"directions": 2}, {"reduce": "max"}])
def test_unlabelled_events_are_neither_learnt_nor_judged(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = build(ModelConfig(features=2, hidden=4, outputs=3, activation="softmax", **options)).eval()
    rng = np.random.default_rng(0)
    xs = [rng.normal(size=(n, 2)) for n in (5, 9, 7)]
    labels = [rng.integers(0, 3, len(x)) for x in xs]
    known = sequences(("a", "b"), xs[:2], labels[:2], ("p", "q", "r"))
    more = sequences(("a", "b"), xs, [*labels[:2], np.full(7, -1)], ("p", "q", "r"))
    assert evaluate(model, "classify", more, more) == pytest.approx(evaluate(model, "classify", known, known))
    per_window = model.reduce is not None
    losses = [mean_loss(model, "classify", examples("classify", part, per_window=per_window)) for part in (known, more)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] == pytest.approx(evaluate(model, "classify", known, known)["loss"], rel=1e-5)
    nothing = sequences(("a", "b"), xs[:1], [np.full(5, -1)], ("p", "q", "r"))
    with pytest.raises(ConfigurationError, match="nothing to judge"):
        evaluate(model, "classify", nothing, known)


def test_baselines_come_from_the_training_part() -> None:
    torch.manual_seed(0)
    model = build(ModelConfig(features=1, hidden=4, outputs=2, vocabulary=2, embedding=2, activation="softmax")).eval()
    train = sequences(("t",), [[0, 0, 0, 1, 0]])
    test = sequences(("t",), [[1, 1, 0, 1]])
    figures = evaluate(model, "next_category", test, train)
    rates = np.array([3 + 1, 1 + 1]) / 6  # of the four targets of training, one more each
    assert figures["baseline_loss"] == pytest.approx(float(-np.log(rates[[1, 0, 1]]).mean()))
    assert figures["baseline_accuracy"] == pytest.approx(1 / 3)
    sets = sequences(("a", "b"), [np.array([[1, 0], [1, 0], [1, 1]])])
    both = build(ModelConfig(features=2, hidden=4, outputs=2, activation="sigmoid")).eval()
    found = evaluate(both, "next_set", sets, sets)
    rates = (np.array([2, 1]) + 0.5) / 3
    expected = -np.log(rates[0]) * 2 - np.log(rates[1]) - np.log(1 - rates[1])
    assert found["baseline_loss"] == pytest.approx(float(expected / 2))


def test_regression_is_judged_against_the_mean_of_training() -> None:
    model = build(ModelConfig(features=1, hidden=2, outputs=1)).eval()
    train, test = sequences(("a",), [[1.0, 2.0]]), sequences(("a",), [[1.0, 2.0]])
    train.labels, test.labels = [np.array([1.0, 3.0], np.float32)], [np.array([2.0, 6.0], np.float32)]
    assert evaluate(model, "regress", test, train)["baseline_loss"] == pytest.approx(8.0)
