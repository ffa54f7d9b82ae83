"""Comparisons and cards: rows that a program can read, claims that follow from them, and honest reports."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import torch

from export import card, compare, gradients, measure
from export.comparison import work
from export.comparison.cases import (
    TASKS,
    TEXT_BYTES,
    VARIANTS,
    Case,
    built_in,
    find_text,
    hidden_for,
    parameters_of,
    read_text,
    sized,
)
from export.comparison.stacked import matrix_weights
from export.comparison.training import Budget
from export.comparison.work import Setting
from export.graph import export_model
from export.memorytasks import split_of
from export.model import ModelConfig, build
from export.tasks import examples
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
SETTING = Setting(seeds=(0, 1), rate_seeds=1, rounds=2)


def adding(length: int, seed: int) -> Any:
    return split_of("adding", length, 160, seed, held=40)


def case(**training: Any) -> Case:
    config = TrainConfig(
        name="adding",
        task="regress",
        data=DataSection(path="generated", scale=False),
        model=ModelSection(hidden=8, reduce="last"),
        training=TrainSection(**{"rows": 32, **training}),
    )
    return Case(
        "adding",
        config,
        {n: partial(adding, n) for n in (5, 8)},
        "squared error",
        {n: Budget(8, 4, 5) for n in (5, 8)},
        {5: 0.1, 8: 0.2},
        memory=True,
        rates=(1e-3, 1e-2),
    )


def run(cases: list[Case], folder: Path, variants: list[str], **options: Any) -> dict[str, Any]:
    defaults = {"setting": SETTING, "quick": False, "command": "made so", "pieces_folder": folder / "pieces"}
    return compare.compare(cases, folder, variants=variants, **{**defaults, **options})


def test_a_comparison_gives_rows_claims_and_a_report(tmp_path: Path) -> None:
    variants = ["feed-forward", "rnn", "lstm", "gru", "bi-gru"]
    report = run([case()], tmp_path, variants)
    rows = {(row["variant"], row["sizing"]): row for row in report["rows"]}
    assert set(rows) == {(v, "equal hidden") for v in variants} | {
        (v, "equal parameters") for v in variants if v != "lstm"
    }
    for row in report["rows"]:
        assert set(row) >= KEYS
        assert set(row["by_length"]) == ({"5", "8"} if row["sizing"] == "equal hidden" else {"8"})
        assert len(row["score"]["seeds"]) == 2
        assert row["score"]["mean"] == pytest.approx(np.mean(row["score"]["seeds"]))
        assert row["score"]["low"] <= row["score"]["mean"] <= row["score"]["high"]
        assert row["peak_memory_bytes"] > 0
        assert min(row["microseconds_per_event"].values()) > 0
        assert all(found["learning_rate"] in (1e-3, 1e-2) for found in row["by_length"].values())
        assert all(len(found["validation_by_rate"]) == 2 for found in row["by_length"].values())
    wanted = rows["lstm", "equal hidden"]["parameters"]
    for variant in ("feed-forward", "rnn", "gru", "bi-gru"):
        assert rows[variant, "equal parameters"]["parameters"] == pytest.approx(wanted, rel=0.15)
        assert rows[variant, "equal hidden"]["hidden"] == 8
    for cell in ("rnn", "lstm", "gru"):
        shown = rows[cell, "equal hidden"]["by_length"]["8"]["gradients"]
        assert len(shown["before"]["factor_per_step"]) == 2
        assert shown["after"]["lags"][-1] == 8
    text = (tmp_path / "REPORT.md").read_text()
    assert "made so" in text
    assert "| gru | 8 |" in text
    assert "no evidence" not in text
    for name in ("scores.png", "memory.png", "curves.png", "times.png"):
        assert (tmp_path / "figures" / name).read_bytes().startswith(b"\x89PNG")
        assert f"figures/{name}" in text
    assert json.loads((tmp_path / "figures" / "compare.json").read_text())["missing"] == []
    verdicts = {claim["claim"]: claim for claim in report["claims"]}
    fewer = verdicts["a GRU has fewer parameters than an LSTM of the same width"]
    assert fewer["holds"] is True
    assert fewer["verdict"] == "holds"
    assert not (tmp_path / "pieces").exists(), "a complete comparison leaves nothing to go on from"


def test_an_interrupted_comparison_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(job: work.Job, *rest: Any) -> dict[str, Any]:
        if job.variant == "gru":
            raise KeyboardInterrupt
        return real(job, *rest)

    real, done = work.train, []
    monkeypatch.setattr(work, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run([case()], tmp_path, ["rnn", "gru"])
    monkeypatch.setattr(work, "train", lambda job, *rest: pytest.fail("the report trains nothing"))
    partly = run([case()], tmp_path, ["rnn", "gru"], only_report=True)
    assert {row["variant"] for row in partly["rows"]} == {"rnn"}
    assert "adding 5: gru, equal hidden" in partly["missing"]
    assert "**Not complete.** The command was stopped before it had trained: " in (tmp_path / "REPORT.md").read_text()
    monkeypatch.setattr(work, "train", lambda job, *rest: done.append((job.variant, job.length)) or real(job, *rest))
    report = run([case()], tmp_path, ["rnn", "gru"])
    assert ("rnn", 5) not in done, "the plain RNN was trained before"
    assert len(report["rows"]) == 4
    assert report["missing"] == []
    done.clear()
    run([case(rows=16)], tmp_path, ["rnn"])
    assert done, "a complete run, or another training, is no reason to leave anything out"


def test_a_quick_report_says_that_it_is_no_evidence(tmp_path: Path) -> None:
    run([case()], tmp_path, ["gru"], quick=True, left_out=["Something was not run."])
    text = (tmp_path / "REPORT.md").read_text()
    assert "is no evidence" in text
    assert "Something was not run." in text


def test_training_times_are_taken_with_and_without_the_fused_kernels() -> None:
    configs = {name: sized(case().config, VARIANTS[name], 32) for name in ("lstm", "gru")}
    found = measure.timed(configs, partial(adding, 30), rounds=2)
    for name, figures in found.items():
        assert len(figures["update_ms"]) == len(figures["update_ms_without_onednn"]) == 2
        assert set(figures["onnx_us"]) == {"1", "64", "256"}
        gates = {"lstm": 4, "gru": 3}[name]
        assert figures["flops_per_event"] == 2 * gates * 32 * (2 + 32)
    assert torch.backends.mkldnn.enabled, "the switch is back where it was"


def test_what_stops_the_child_stops_the_comparison() -> None:
    def without_data(seed: int) -> Any:
        raise ConfigurationError("there is nothing to measure with")

    with pytest.raises(ConfigurationError, match="nothing to measure"):
        measure.timed({"lstm": case().config}, without_data, rounds=1)


def test_operations_are_counted_for_every_event_and_not_for_look_ups() -> None:
    model = build(ModelConfig(features=1, hidden=6, kind="gru", vocabulary=9, embedding=4, outputs=5))
    assert matrix_weights(model) == 3 * 6 * (4 + 6) + 6 * 5
    reduced = build(ModelConfig(features=2, hidden=6, kind="lstm", directions=2, outputs=5, reduce="last"))
    assert matrix_weights(reduced) == 2 * 4 * 6 * (2 + 6)


def test_a_solved_tasks_gradient_is_that_of_the_answer_and_not_of_its_small_error() -> None:
    torch.manual_seed(0)
    model = build(ModelConfig(features=2, hidden=4, kind="gru", outputs=1, reduce="last"))
    sequences = examples("regress", adding(6, 0).test, per_window=True)[:8]
    with torch.no_grad():
        for sequence in sequences:
            sequence.target = model.raw(torch.from_numpy(sequence.x)[None], None)[0].numpy().reshape(()) + np.float32(
                1e-4
            )
    small, answer = (gradients.gradient_by_lag(model, sequences, of=of) for of in ("loss", "answer"))  # type: ignore[arg-type]
    np.testing.assert_allclose(small / answer, 2e-4, rtol=0.01)


def test_bidirectional_variants_are_left_out_where_they_would_see_the_answer(data_text: Path) -> None:
    variants = {each.name: set(each.variants()) for each in built_in(TASKS, quick=False, text=data_text)}
    assert not any(name.startswith("bi-") for task in ("characters", "telemetry", "copying") for name in variants[task])
    assert "bi-lstm" in variants["detection"]
    causal = Case("own", case().config, {5: partial(adding, 5)}, "loss")
    assert "bi-lstm" in causal.variants()
    own = TrainConfig("own", "forecast", case().config.data, ModelSection(hidden=4))
    assert "bi-lstm" not in Case("own", own, {5: partial(adding, 5)}, "loss").variants()


@pytest.fixture
def data_text(data_dir: Path) -> Path:
    """The real text of at least a megabyte among the data sets."""
    found = sorted((data_dir / "char-text").glob("*.txt"))
    if not found:
        pytest.skip(f"no text in {data_dir / 'char-text'}: the task characters is not tested")
    return found[0]


def test_a_real_text_is_cut_into_pieces_that_are_warmed_up_by_what_was_before(data_text: Path) -> None:
    split = read_text(data_text, quick=False)
    text = data_text.read_text(encoding="utf-8")
    (character,) = split.train.feature_tables
    for part in (split.validation, split.test):
        assert len({len(x) for x in part.x}) == 1, "a stack needs streams of one length"
        spelt = ["".join(character.vocabulary[int(i)] for i in x[:, 0]) for x in part.x]
        place = text.index(spelt[0])
        assert place >= int(0.9 * len(text)) - 64, "nothing of it was trained on"
        assert spelt[1][64:].startswith(text[place + len(spelt[0]) : place + len(spelt[0]) + 100])
        assert part.counted_from == [64] * len(part)


def test_without_a_text_the_comparison_says_why_characters_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STREAMER_TEST_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert find_text() is None
    monkeypatch.setattr(compare, "compare", lambda cases, out, **rest: {"claims": [], "names": [c.name for c in cases]})
    assert compare.main(["--quick", "--tasks", "characters,adding", "--json"]) == 0
    streams = capsys.readouterr()
    assert "--text FILE" in streams.err
    assert json.loads(streams.out)["names"] == ["adding"]
    short = tmp_path / "short.txt"
    short.write_text("too short")
    assert compare.main(["--quick", "--tasks", "characters", "--text", str(short)]) == 2
    assert str(TEXT_BYTES) in capsys.readouterr().err
    (tmp_path / "char-text").mkdir()
    long = tmp_path / "char-text" / "long.txt"
    long.write_text("a" * TEXT_BYTES)
    assert find_text() == long


OWN = """
name = "own"
task = "classify"
[data]
path = "own.csv"
[model]
hidden = 4
reduce = "last"
[training]
epochs = 2
rows = 8
"""


def test_data_of_ones_own_are_compared_as_train_trains_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = ["stream,time,x,label"]
    for stream in range(30):
        length, kind = int(rng.integers(3, 9)), stream % 2
        lines += [f"s{stream},{t},{rng.normal(kind):.3f},{'up' if kind else 'down'}" for t in range(length)]
    (tmp_path / "own.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "own.toml").write_text(OWN)
    own = compare.user_case(tmp_path / "own.toml")
    assert own.rates == pytest.approx((1e-3, 3e-3, 9e-3))
    report = run([own], tmp_path, ["lstm", "bi-gru"])
    assert {(row["variant"], row["sizing"]) for row in report["rows"]} == {
        ("lstm", "equal hidden"),
        ("bi-gru", "equal hidden"),
        ("bi-gru", "equal parameters"),
    }
    for row in report["rows"]:
        (found,) = row["by_length"].values()
        assert found["updates"] == [2, 2]
        assert len(found["figures"]["accuracy"]) == 2


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_equal_parameters_are_as_equal_as_whole_units_allow(variant: str) -> None:
    config = case().config
    hidden = hidden_for(config, VARIANTS[variant], 3000, 2, 1)
    near = [parameters_of(sized(config, VARIANTS[variant], h), 2, 1) for h in (hidden - 1, hidden, hidden + 1)]
    assert min(abs(count - 3000) for count in near) == abs(near[1] - 3000)


def test_the_feed_forward_step_computes_what_the_trained_model_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(ModelConfig(features=1, hidden=6, kind="mlp", window=4, vocabulary=9, embedding=3, outputs=5)).eval()
    measure.export_for_speed(model, tmp_path / "m.onnx")
    served = Model.load(tmp_path / "m.onnx")
    x = np.random.default_rng(0).integers(0, 9, (2, 11, 1)).astype(np.float32)
    with torch.no_grad():
        expected = model.raw(torch.from_numpy(x), None)[0].numpy()
    found, _ = served.run(x, np.array([11, 11], np.int32), served.initial_states(2))
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_unknown_tasks_and_variants_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(["--tasks", "chess"]) == 2
    assert "no task 'chess'" in capsys.readouterr().err
    assert compare.main(["--variants", "transformer"]) == 2
    assert compare.main(["--seeds", "0"]) == 2


@pytest.mark.accept
def test_the_quick_comparison_measures_every_task(
    tmp_path: Path, data_text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main(["--quick", "--text", str(data_text), "--out", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {row["task"] for row in report["rows"]} == set(TASKS)
    assert report["missing"] == []
    deeper = "two layers are more accurate than one of the same parameter count"
    measured = {claim["claim"]: claim["verdict"] != "not measured" for claim in report["claims"]}
    assert measured == {name: name != deeper for name in measured}, "only the full run trains two layers"


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
