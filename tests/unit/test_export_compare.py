"""Comparisons and cards: rows that a program can read, claims that follow from them, and honest reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import torch

from export import card, compare
from export.cases import VARIANTS, Case, built_in, hidden_for, parameters_of, sized
from export.comparison_report import claims
from export.graph import export_model
from export.measure import export_for_speed, trained_figures
from export.memorytasks import split_of
from export.model import ModelConfig, build
from export.train import DataSection, ModelSection, TrainConfig, TrainSection
from streamer.errors import ConfigurationError
from streamer.modelfile.model import Model

pytestmark = pytest.mark.torch

KEYS = {
    "task",
    "variant",
    "hidden",
    "parameters",
    "seconds_per_epoch",
    "peak_memory_bytes",
    "model_bytes",
    "state_bytes",
    "microseconds_per_event",
    "score",
    "by_length",
}


def case(**training: Any) -> Case:
    config = TrainConfig(
        name="adding",
        task="regress",
        data=DataSection(path="generated", scale=False),
        model=ModelSection(hidden=8, reduce="last"),
        training=TrainSection(**{"epochs": 1, "rows": 32, **training}),
    )
    splits = {n: (lambda seed, n=n: split_of("adding", n, 200, seed)) for n in (5, 8)}
    return Case("adding", config, splits, "squared error", {5: 0.1, 8: 0.2})


def test_a_comparison_gives_rows_claims_and_a_report(tmp_path: Path) -> None:
    variants = ["feed-forward", "lstm", "gru", "bi-gru"]
    report = compare.compare([case()], tmp_path, variants=variants, seeds=[0, 1], quick=False, command="made so")
    rows = {(row["variant"], row["sizing"]): row for row in report["rows"]}
    assert set(rows) == {(v, "equal hidden") for v in variants} | {
        (v, "equal parameters") for v in variants if v != "lstm"
    }
    for row in report["rows"]:
        assert set(row) >= KEYS
        assert set(row["by_length"]) == ({"5", "8"} if row["sizing"] == "equal hidden" else {"8"})
        assert len(row["score"]["seeds"]) == 2
        assert row["score"]["mean"] == pytest.approx(np.mean(row["score"]["seeds"]))
        assert row["peak_memory_bytes"] > 0
        assert min(row["microseconds_per_event"].values()) > 0
    wanted = rows["lstm", "equal hidden"]["parameters"]
    for variant in ("feed-forward", "gru", "bi-gru"):
        assert rows[variant, "equal parameters"]["parameters"] == pytest.approx(wanted, rel=0.15)
        assert rows[variant, "equal hidden"]["hidden"] == 8
    text = (tmp_path / "REPORT.md").read_text()
    assert "made so" in text
    assert "| gru | 8 |" in text
    assert (tmp_path / "figures" / "adding.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "figures" / "compare.json").read_text())["complete"]
    holds = {claim["claim"]: claim["holds"] for claim in report["claims"]}
    assert holds["a GRU has fewer parameters than an LSTM of the same width"] is True


def test_an_interrupted_comparison_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(job: compare.Job, seeds: Any) -> dict[str, Any]:
        if job.variant == "gru":
            raise KeyboardInterrupt
        return measure(job, seeds)

    measure, done = compare.run_job, []
    options: dict[str, Any] = {"variants": ["rnn", "gru"], "seeds": [0], "quick": False, "command": "c"}
    monkeypatch.setattr(compare, "run_job", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare.compare([case()], tmp_path, **options)
    monkeypatch.setattr(compare, "run_job", lambda job, seeds: done.append(job.variant) or measure(job, seeds))
    report = compare.compare([case()], tmp_path, **options)
    assert done == ["gru", "rnn", "gru"], "the plain RNN of equal width was measured before"
    assert len(report["rows"]) == 4
    compare.compare([case(rows=16)], tmp_path, **{**options, "variants": ["rnn"]})
    assert done[3:] == ["rnn", "rnn"], "a complete run, or another training, is no reason to leave anything out"


def row(task: str, variant: str, loss: float, **values: Any) -> dict[str, Any]:
    length = {"mean": loss, "std": 0.01, "baseline": 1.0}
    return {
        "task": task,
        "variant": variant,
        "sizing": "equal hidden",
        "parameters": 100,
        "state_bytes": 8,
        "model_bytes": 10,
        "seconds_per_epoch": 1.0,
        "microseconds_per_event": {"1": 1.0, "64": 1.0, "256": 1.0},
        "score": {"mean": loss, "std": 0.01, "seeds": [loss]},
        "by_length": {"10": length, "200": length},
        "delay_events": 0.0,
        **values,
    }


def test_claims_follow_the_figures_not_the_textbook() -> None:
    def found(*rows: dict[str, Any]) -> dict[str, bool | None]:
        return {claim["claim"]: claim["holds"] for claim in claims(rows)}

    slow_gru = found(row("copying", "lstm", 0.3), row("copying", "gru", 0.1, seconds_per_epoch=3.0, parameters=75))
    assert slow_gru["a GRU trains faster than an LSTM of the same width"] is False
    assert slow_gru["a GRU has fewer parameters than an LSTM of the same width"] is True
    assert slow_gru["an LSTM is more accurate than a GRU on long sequences"] is False
    assert slow_gru["gated cells remember where the plain RNN forgets"] is None  # there is no plain RNN to compare
    gated = [row("copying", "lstm", 0.1), row("copying", "gru", 0.9)]
    assert found(*gated, row("copying", "rnn", 0.9))["gated cells remember where the plain RNN forgets"] is True
    assert found(*gated, row("copying", "rnn", 0.2))["gated cells remember where the plain RNN forgets"] is False
    both = found(row("detection", "lstm", 0.5), row("detection", "bi-lstm", 0.4, delay_events=30.0))
    assert both["a bidirectional network is more accurate, and waits for the window's end"] is True
    assert set(found().values()) == {None}


def test_bidirectional_variants_are_left_out_where_they_would_see_the_answer() -> None:
    variants = {each.name: set(each.variants()) for each in built_in(compare.TASKS, quick=True)}
    for task in ("characters", "telemetry", "copying"):
        assert not any(name.startswith("bi-") for name in variants[task])
    assert "bi-lstm" in variants["detection"]
    assert "bi-lstm" in variants["adding"]


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_equal_parameters_are_as_equal_as_whole_units_allow(variant: str) -> None:
    config = case().config
    hidden = hidden_for(config, VARIANTS[variant], 3000, 2, 1)
    near = [parameters_of(sized(config, VARIANTS[variant], h), 2, 1) for h in (hidden - 1, hidden, hidden + 1)]
    assert min(abs(count - 3000) for count in near) == abs(near[1] - 3000)


def test_the_feed_forward_step_computes_what_the_trained_model_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(ModelConfig(features=1, hidden=6, kind="mlp", window=4, vocabulary=9, embedding=3, outputs=5)).eval()
    export_for_speed(model, tmp_path / "m.onnx")
    served = Model.load(tmp_path / "m.onnx")
    x = np.random.default_rng(0).integers(0, 9, (2, 11, 1)).astype(np.float32)
    with torch.no_grad():
        expected = model.raw(torch.from_numpy(x), None)[0].numpy()
    found, _ = served.run(x, np.array([11, 11], np.int32), served.initial_states(2))
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_what_stops_the_child_stops_the_comparison() -> None:
    diverging = case(learning_rate=1e20, clip_norm=0.0, optimiser="sgd")
    with pytest.raises(ConfigurationError, match="diverged"):
        trained_figures(diverging.config, diverging.splits[5], 0, speed=False)


def test_unknown_tasks_and_variants_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(["--tasks", "chess"]) == 2
    assert "no task 'chess'" in capsys.readouterr().err
    assert compare.main(["--variants", "transformer"]) == 2
    assert compare.main(["--seeds", "0"]) == 2


@pytest.mark.accept
def test_the_quick_comparison_answers_every_claim(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(["--quick", "--out", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {row["task"] for row in report["rows"]} == set(compare.TASKS)
    assert all(claim["holds"] is not None for claim in report["claims"])


@pytest.mark.parametrize("options", [{"task": "forecast"}, {"outputs": 2, "directions": 2}])
def test_a_card_says_what_is_known_and_what_is_not(tmp_path: Path, options: dict[str, Any]) -> None:
    model = build(ModelConfig(features=3, hidden=4, **options)).eval()
    path = tmp_path / "model.onnx"
    export_model(model, path, name="little", features=["a", "b", "c"])
    assert card.main([str(path), "--out", str(tmp_path / "CARD.md")]) == 0
    text = (tmp_path / "CARD.md").read_text()
    assert text.startswith("# little, version 1")
    assert "Not checked: parity with PyTorch" in text
    assert "carries no metrics" in text
    assert ("no probability" in text) == ("task" in options)
    assert ("later events included" in text) == ("directions" in options)
    metrics = {"summary": {"test_loss": {"mean": 0.25, "std": 0.01}}, "seeds": [{}], "data": {"file": "d.csv"}}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    assert "| test_loss | 0.2500 ± 0.0100 |" in card.card(path)
    (tmp_path / "metrics.json").write_text("{")
    assert card.main([str(path)]) == 2
    assert card.main([str(tmp_path / "none.onnx")]) == 3
