"""What a result is worth: warnings, thresholds, class weights, standardised targets, and words end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import torch
from sklearn.metrics import roc_auc_score

from export import card, train
from export.data import Example, Split, Streams, sequences
from export.fit import FitOptions, Trainer
from export.judge import score_summary, warnings
from export.model import Forecaster, ModelConfig, build
from export.tasks import chunk_loss, evaluate, examples, passes, scores
from streamer.errors import ConfigurationError
from streamer.modelfile.model import Model

pytestmark = pytest.mark.torch


def forecaster() -> Forecaster:
    """Expects every event to be like the one before."""
    torch.manual_seed(0)
    model = build(ModelConfig(features=1, hidden=2, task="forecast", skip=True))
    assert isinstance(model, Forecaster)
    return model.eval()


def telemetry(names: list[str], normal: str | None, *, unlabelled: int = 0) -> Streams:
    """Steady streams with a jump at event 30 of each; every second of them is labelled by the last name, else the first."""
    rng = np.random.default_rng(0)
    xs, labels = [], []
    for i in range(10):
        x = rng.normal(0, 0.01, 60)
        x[30] += 5.0
        label = np.full(60, names.index("ok"))
        label[30:32] = names.index(sorted(set(names) - {"ok"})[i % 2])
        label[:unlabelled] = -1
        xs.append(x)
        labels.append(label)
    data = sequences(("a",), xs, labels, names)
    data.normal = None if normal is None else names.index(normal)
    return data


def test_the_auc_is_that_of_the_label_called_normal_and_of_labelled_events() -> None:
    model = forecaster()
    names = ["bearing", "coolant", "ok"]  # as they are sorted: the first is no normal one
    right = evaluate(model, "forecast", telemetry(names, "ok"), telemetry(names, "ok"))
    assert right["auc"] > 0.95
    data = telemetry(names, "ok", unlabelled=25)
    partly = evaluate(model, "forecast", data, data)
    found = [score[25:] for score in scores(model, data)]
    truth = np.concatenate([label[25:] != 2 for label in data.labels or []])
    assert partly["auc"] == pytest.approx(roc_auc_score(truth, np.concatenate(found)))
    assert partly["auc"] > 0.95
    wrong = evaluate(model, "forecast", telemetry(names, "bearing"), data)
    assert wrong["auc"] < 0.5
    (text,) = (w for w in warnings("forecast", {"test": wrong}) if " auc " in w)
    assert "is data.normal the label of normal events?" in text
    assert not [w for w in warnings("forecast", {"test": right}) if " auc " in w]


def test_a_forecast_learns_from_labelled_normal_events_only() -> None:
    data = telemetry(["bearing", "coolant", "ok"], "ok", unlabelled=5)
    for example in examples("forecast", data):
        counted = np.flatnonzero(example.counted if example.counted is not None else [])
        assert counted.tolist() == [i for i in range(4, 59) if i not in (29, 30)]  # targets are one event on
    everything = telemetry(["bearing", "coolant", "ok"], None)
    everything.labels = [np.full(60, -1) for _ in range(10)]
    assert all(example.counted is None for example in examples("forecast", everything))


def test_quantiles_and_threshold_are_of_normal_events() -> None:
    model, names = forecaster(), ["bearing", "coolant", "ok"]
    data = telemetry(names, "ok", unlabelled=3)
    found = score_summary(model, Split(data, data, data))
    normal = np.concatenate([np.delete(score, [30, 31])[3:] for score in scores(model, data)])
    for name, value in found["score_quantiles"].items():
        assert value == pytest.approx(np.quantile(normal, float(name)), rel=1e-6)
    assert found["precision_at_threshold"] == found["recall_at_threshold"] == 1.0
    assert normal.max() < found["suggested_threshold"]
    assert found["threshold_rule"] == "best F1 on the validation part"
    healthy = telemetry(names, "ok")
    healthy.labels = None
    unlabelled = score_summary(model, Split(healthy, healthy, data))
    everything = np.concatenate([score[1:] for score in scores(model, healthy)])
    assert unlabelled["suggested_threshold"] == pytest.approx(np.quantile(everything, 0.995), rel=1e-6)
    assert unlabelled["threshold_rule"] == "0.5% of the normal validation events are above it"


@pytest.mark.parametrize(
    ("task", "figures", "weighted", "named"),
    [
        (
            "regress",
            {"loss": 2.0, "baseline_loss": 1.0},
            False,
            ["loss 2 is no better than the baseline's 1 (the mean)"],
        ),
        ("regress", {"loss": 1.0, "baseline_loss": 1.0}, False, ["loss"]),
        ("regress", {"loss": 0.9, "baseline_loss": 1.0}, False, []),
        (
            "classify",
            {"accuracy": 0.9, "baseline_accuracy": 0.9, "loss": 0.2, "baseline_loss": 0.3},
            False,
            ["accuracy"],
        ),
        ("classify", {"accuracy": 0.1, "baseline_accuracy": 0.9, "f1_macro": 0.6, "baseline_f1_macro": 0.5}, True, []),
        ("forecast", {"auc": 0.5}, False, ["auc"]),
    ],
)
def test_every_figure_that_does_not_beat_its_baseline_is_named(
    task: str, figures: dict[str, float], weighted: bool, named: list[str]
) -> None:
    for parts in ({"test": figures, "validation": {}}, {"validation": figures}):
        found = warnings(task, parts, weighted=weighted)
        assert len(found) == len(named)
        assert all(name in text for name, text in zip(named, found, strict=True))


def test_class_weights_are_the_weights_of_the_mean() -> None:
    torch.manual_seed(0)
    model = build(ModelConfig(features=1, hidden=3, outputs=3, activation="softmax")).eval()
    data = [
        Example(np.random.default_rng(0).normal(size=(9, 1)).astype(np.float32), np.array([0, 0, 1, 2, 0, -1, 1, 0, 0]))
    ]
    weights = torch.tensor([0.5, 2.0, 3.0])
    ((chunk, states, _),) = passes(model, data)
    loss = chunk_loss(model, "classify", chunk, states, weights)
    logits, _ = model.raw(torch.from_numpy(chunk.x), None)
    expected = torch.nn.functional.cross_entropy(
        logits[0], torch.from_numpy(data[0].target), weight=weights, ignore_index=-1
    )
    assert float(loss.total.detach()) / loss.count == pytest.approx(float(expected.detach()), rel=1e-5)


def test_dropout_acts_on_one_layers_output_in_training_only() -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"features": 1, "hidden": 8, "outputs": 2, "vocabulary": 5, "embedding": 4}
    for dropped in ({"dropout": 0.5}, {"embedding_dropout": 0.5}, {"dropout": 0.5, "reduce": "last"}):
        model = build(ModelConfig(**options, **dropped))
        x = torch.ones(2, 3, 1)
        with torch.no_grad():
            first, second = model.train()(x)[0]["y"], model(x)[0]["y"]
            assert not torch.equal(first, second)
            first, second = model.eval()(x)[0]["y"], model(x)[0]["y"]
            assert torch.equal(first, second)


def test_weight_decay_pulls_weights_but_no_biases() -> None:
    for optimiser in ("adam", "adamw", "sgd"):
        torch.manual_seed(0)
        model = build(ModelConfig(features=1, hidden=2, outputs=1))
        options = FitOptions(optimiser=optimiser, learning_rate=0.1, weight_decay=0.5)
        trainer = Trainer(model, "regress", options)
        before = {name: tensor.clone() for name, tensor in model.named_parameters()}
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        trainer.optimiser.step()
        for name, parameter in model.named_parameters():
            factor = 0.95 if parameter.ndim > 1 else 1.0
            torch.testing.assert_close(parameter.detach(), before[name] * factor)


CONFIG = """
name = "m"
task = "{task}"
[data]
path = "data.csv"
{data}
[model]
hidden = 8
{model}
[training]
epochs = {epochs}
learning_rate = 1e-2
rows = 8
{more}
"""


def run(folder: Path, header: str, rows: list[str], *, code: int = 0, **values: Any) -> dict[str, Any]:
    (folder / "data.csv").write_text("\n".join([header, *rows]) + "\n")
    defaults = {"task": "classify", "data": "", "model": "", "epochs": 8, "more": ""}
    (folder / "train.toml").write_text(CONFIG.format(**{**defaults, **values}))
    assert train.main(["--config", str(folder / "train.toml"), "--out", str(folder / "out")]) == code
    path = folder / "out" / "metrics.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def test_targets_far_from_one_are_learnt_and_served_in_their_units(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(40):
        wear = rng.uniform(0, 1)
        labels = ["" if t < 2 else f"{125 * (1 - wear) + 0.5 * t:.3f}" for t in range(20)]
        rows += [f"s{i},{t},{wear + rng.normal(0, 0.02):.4f},{label}" for t, label in enumerate(labels)]
    metrics = run(tmp_path, "stream,time,wear,label", rows, task="regress", epochs=15)
    test = metrics["best"]["figures"]["test"]
    assert test["loss"] < 0.1 * test["baseline_loss"]
    assert metrics["warnings"] == []
    model = Model.load(tmp_path / "out" / "model.onnx")
    (y,), _ = model.run(np.full((1, 15, 1), 0.5, np.float32), np.array([15], np.int32), model.initial_states(1))
    assert y[0, -1, 0] == pytest.approx(125 * 0.5 + 0.5 * 14, abs=12)


def test_a_result_no_better_than_its_baseline_is_said_on_screen_and_in_the_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    rows = [f"s{i},{t},{rng.normal():.3f},{rng.integers(2)}" for i in range(30) for t in range(10)]
    metrics = run(tmp_path, "stream,time,a,label", rows, epochs=20)
    shown = capsys.readouterr().err
    assert metrics["warnings"]
    for text in metrics["warnings"]:
        assert f"WARNING: {text}" in shown
        assert "learnt nothing that is worth serving" in text
    (tmp_path / "out" / "metrics.json").unlink()  # the file says it by itself
    written = card.card(tmp_path / "out" / "model.onnx")
    assert "## Warnings" in written
    assert metrics["warnings"][0] in written


def test_a_forecaster_says_where_its_threshold_may_lie(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    rng = np.random.default_rng(0)
    for i in range(20):
        for t in range(50):
            odd = t in (30, 31) and i % 2
            value = np.sin(t / 3) + rng.normal(0, 0.02) + 3.0 * odd
            rows.append(f"s{i},{t},{value:.4f},{'bearing' if odd else 'ok'}")
    header = "stream,time,a,label"
    assert run(tmp_path, header, rows, task="forecast", code=2) == {}
    assert "which of the labels bearing, ok is that of normal events? say data.normal" in capsys.readouterr().err
    metrics = run(tmp_path, header, rows, task="forecast", data='normal = "ok"\ntest = 0.3\nvalidation = 0.3')
    assert metrics["best"]["figures"]["test"]["auc"] > 0.95
    assert "suggested threshold of the score" in capsys.readouterr().out
    contract = Model.load(tmp_path / "out" / "model.onnx").contract
    assert contract.metrics["suggested_threshold"] == metrics["score"]["suggested_threshold"]
    assert set(contract.metrics["score_quantiles"]) == {"0.5", "0.9", "0.99", "0.999"}
    written = card.card(tmp_path / "out" / "model.onnx")
    assert "## Score" in written
    assert "Suggested threshold: **" in written


def test_words_beside_numbers_are_learnt_and_unknown_words_are_the_declared_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(60):
        word = ("idle", "run", "boost")[rng.integers(3)]
        for t in range(6):
            a = rng.normal()
            rows.append(f"s{i},{t},{a:.3f},{word},{'high' if (a > 0) != (word == 'run') else 'low'}")
    metrics = run(
        tmp_path, "stream,time,a,mode,label", rows, epochs=30, more='class_weights = "balanced"', model="dropout = 0.1"
    )
    assert metrics["best"]["figures"]["test"]["accuracy"] > 0.9
    model = Model.load(tmp_path / "out" / "model.onnx")
    a, mode = model.contract.feature_tables
    assert (a.kind, mode.kind, mode.unknown) == ("number", "category", 0)
    assert sorted(mode.vocabulary) == ["<unknown>", "boost", "idle", "run"]

    def probabilities(place: float) -> Any:
        x = np.array([[[1.0, place]]], np.float32)
        return model.run(x, np.ones(1, np.int32), model.initial_states(1))[0][0]

    run_at = mode.vocabulary.index("run")
    assert probabilities(run_at)[0, 0].argmax() == 1  # high, low
    for place in (-1, 4, 99, 3e9):
        np.testing.assert_array_equal(probabilities(place), probabilities(0))
        assert not np.array_equal(probabilities(place), probabilities(3))


def test_a_few_long_streams_are_no_windows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"s{i},{t},{np.sin(t / 5):.3f},{int(np.cos(t / 5) > 0)}" for i in range(4) for t in range(400)]
    header, model = "stream,time,a,label", "directions = 2"
    assert run(tmp_path, header, rows, model=model, code=2) == {}
    shown = capsys.readouterr().err
    assert "the training part is 2 streams of 400 events" in shown
    assert '[window] as it will be served (say kind = "count", count = 64)' in shown
    window = 'split = "time"\n[window]\nkind = "count"\ncount = 20\n'
    metrics = run(tmp_path, header, rows, model='directions = 2\nreduce = "last"', data=window, epochs=6)
    assert metrics["data"]["train_streams"] == 56
    said = "trained on the label of its last event"
    assert any(said in note for note in metrics["notes"])
    assert said in capsys.readouterr().err
    assert metrics["best"]["figures"]["test"]["accuracy"] > metrics["best"]["figures"]["test"]["baseline_accuracy"]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"task": "forecast", "data": ""}, "'w' holds words: choose data.features"),
        ({"more": 'class_weights = "even"'}, "class_weights must be balanced"),
        ({"more": "class_weights = {z = 2.0}"}, "'z' is no class of the data; the classes are p, q"),
        (
            {"task": "next_category", "data": 'features = ["w"]', "more": 'class_weights = "balanced"'},
            "belongs to task classify",
        ),
        ({"data": 'features = ["b"]'}, "no column 'b'"),
        ({"data": "validation = 0"}, "data.validation must be above 0"),
    ],
)
def test_what_does_not_fit_the_task_ends_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], values: dict[str, Any], sentence: str
) -> None:
    rows = [f"s{i},{t},{t},{'xy'[t % 2]},{'pq'[t % 2]}" for i in range(10) for t in range(4)]
    header = "stream,time,a,w,label" if values.get("task") != "forecast" else "stream,time,a,w,other"
    assert run(tmp_path, header, rows, code=2, **values) == {}
    assert sentence in capsys.readouterr().err


def test_unknown_options_of_the_trainer_are_errors() -> None:
    with pytest.raises(ConfigurationError, match="learning_rate"):
        Trainer(build(ModelConfig(features=1, hidden=2, outputs=1)), "regress", FitOptions(learning_rate=-1.0))
