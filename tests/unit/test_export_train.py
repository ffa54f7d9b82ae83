"""``python -m export train``: the files it writes, what it refuses, and how it stops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from export import card, compare, gradients, publish, recipes, train, verify
from export.fit import Trainer
from streamer.errors import ConfigurationError

pytestmark = pytest.mark.torch

CONFIG = """
name = "small"
task = "{task}"
seeds = {seeds}
[data]
path = "data.npz"
split = "{split}"
validation = 0.2
test = 0.2
[model]
hidden = 8
kind = "gru"
{model}
[training]
epochs = {epochs}
rows = 8
steps = 16
"""


def write(folder: Path, **values: Any) -> Path:
    """A configuration and data of 20 streams: two waves, labelled by their phase, with a late jump."""
    rng = np.random.default_rng(0)
    time = np.tile(np.arange(60), 20)
    phase = np.repeat(rng.integers(0, 2, 20), 60)
    x = np.stack([np.sin(time / 4 + phase), np.cos(time / 4)], axis=1) + rng.normal(0, 0.05, (1200, 2))
    np.savez(
        folder / "data.npz",
        stream=np.repeat([f"s{i}" for i in range(20)], 60),
        time_ms=time,
        x=x.astype(np.float32),
        label=phase,
    )
    config = folder / "train.toml"
    defaults = {"task": "forecast", "seeds": [0], "split": "time", "model": "", "epochs": 3}
    config.write_text(CONFIG.format(**{**defaults, **values}))
    return config


@pytest.mark.parametrize(
    ("task", "split", "model"),
    [
        ("forecast", "time", ""),
        ("forecast", "stream", 'score = "max"'),
        ("classify", "stream", "directions = 2"),
        ("classify", "stream", 'reduce = "last"'),
        ("regress", "stream", ""),
    ],
)
def test_a_run_leaves_a_verified_model_figures_and_plots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str, split: str, model: str
) -> None:
    config = write(tmp_path, task=task, split=split, model=model, seeds=[0, 1])
    out = tmp_path / "out"
    assert train.main(["--config", str(config), "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    metrics = json.loads((out / "metrics.json").read_text())
    assert printed["best"] == metrics["best"]
    assert metrics["verification"]["passed"]
    assert len(metrics["seeds"]) == 2
    assert metrics["summary"]["test_loss"]["std"] > 0
    files = {"model.onnx", "model.pt", "metrics.json", "loss.png", "metric.png", "gradient_norm.png"}
    assert {p.name for p in out.iterdir()} == files | {"checkpoint-0.pt", "checkpoint-1.pt"}
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    losses = [row["validation_loss"] for row in metrics["seeds"][0]["epochs"]]
    assert len(losses) == 3
    assert losses[-1] < losses[0]


def test_no_model_is_left_that_did_not_pass_verification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = {"passed": False, "checks": [{"name": "parity", "value": 0.5, "limit": 1e-5, "passed": False}]}
    monkeypatch.setattr(publish, "verify", lambda graph, weights: failed)
    out = tmp_path / "out"
    assert train.main(["--config", str(write(tmp_path)), "--out", str(out)]) == 3
    assert [p.name for p in out.iterdir()] == ["checkpoint-0.pt"]


def test_ctrl_c_leaves_a_checkpoint_and_resume_gives_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write(tmp_path, epochs=4)
    assert train.main(["--config", str(config), "--out", str(tmp_path / "whole")]) == 0
    epoch = Trainer._epoch

    def interrupted(self: Trainer, *arguments: Any) -> Any:
        if arguments[-1] == 2:
            raise KeyboardInterrupt
        return epoch(self, *arguments)

    monkeypatch.setattr(Trainer, "_epoch", interrupted)
    out = tmp_path / "out"
    assert train.main(["--config", str(config), "--out", str(out)]) == 130
    assert [p.name for p in out.iterdir()] == ["checkpoint-0.pt"]
    monkeypatch.setattr(Trainer, "_epoch", epoch)
    assert train.main(["--config", str(config), "--out", str(out), "--resume"]) == 0
    whole, resumed = (json.loads((p / "metrics.json").read_text()) for p in (tmp_path / "whole", out))
    assert whole["best"] == resumed["best"]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ('data.classes=["up", "down"]', 'labels ["down", "up"] (now ["up", "down"])'),
        ("data.path=more.npz", "scale of features"),
        ('data.features=["x1", "x0"]', 'columns ["x0", "x1"] (now ["x1", "x0"])'),
        ("model.dropout=0.5", "dropout 0.0 (now 0.5)"),
        ("data.present=['x0']", "feature 'x0 present' unknown (now"),
        ("training.epochs=2", None),
    ],
)
def test_resume_wants_the_data_that_the_checkpoint_was_made_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, told: str | None
) -> None:
    config = write(tmp_path, task="classify", split="stream", epochs=1)
    with np.load(tmp_path / "data.npz") as archive:
        columns = dict(archive)
    named = np.array(["down", "up"])[columns["label"]]
    np.savez(tmp_path / "data.npz", **{**columns, "label": named})
    np.savez(tmp_path / "more.npz", **{**columns, "label": named, "x": columns["x"] + 1})
    command = ["--config", str(config), "--out", str(tmp_path / "out")]
    assert train.main(command) == 0
    before = (tmp_path / "out" / "model.onnx").read_bytes()
    assert train.main([*command, "--resume", "--set", override]) == (0 if told is None else 2)
    if told is not None:
        assert told in capsys.readouterr().err
        assert (tmp_path / "out" / "model.onnx").read_bytes() == before


def test_without_a_terminal_nothing_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--config", str(write(tmp_path, epochs=1)), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert all(line.startswith(("note: ", "WARNING: ")) for line in printed.err.splitlines())
    assert "\x1b" not in printed.out


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("training.epoch=3", "unknown field `epoch`"),
        ("model.hidden='many'", "hidden"),
        ("task=translate", "task must be one of"),
        ("data.split=random", "data.split"),
        ("seeds=[]", "seeds"),
        ("training.learning_rate=0", "learning_rate"),
        ("model.directions=2", "causal"),
        ("data.features=['nope']", "no column 'nope'"),
        ("data.path=none.csv", "no such data file"),
        ("model.kind=transformer", "kind must be one of"),
        ("model.kind=mlp", "not exported"),
        ("training", "SECTION.KEY=VALUE"),
        ("training.learning_rate=1e30", "diverged"),
        ("training.clip_norm=nan", "training.clip_norm is nan"),
        ("model.forget_bias=inf", "model.forget_bias is inf"),
        ("model.embedding=-1", "Expected `int` >= 0 - at `$.model.embedding`"),
        ("model.head_hidden=-1", "Expected `int` >= 0 - at `$.model.head_hidden`"),
        ("model.hidden=9999999999", "Expected `int` <= 16777216 - at `$.model.hidden`"),
        ("training.rows=0", "rows and steps must be at least 1"),
        ("seeds=[9223372036854775807]", "at `$.seeds[0]`"),
        ("seeds=[-1]", "at `$.seeds[0]`"),
        ("threads=9999999999", "at `$.threads`"),
        ("threads=0", "at `$.threads`"),
        ("decoder={layers = 0}", "at `$.decoder.layers`"),
    ],
)
def test_mistakes_end_in_one_sentence_and_no_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, sentence: str
) -> None:
    config = write(tmp_path)
    extra = ["--set", "training.clip_norm=0", "--set", "training.optimiser=sgd"] if "1e30" in override else []
    code = train.main(["--config", str(config), "--out", str(tmp_path / "out"), "--set", override, *extra])
    assert code == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out" / "model.onnx").exists()


def test_paths_that_cannot_be_read_or_written_are_mistakes_of_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, file = write(tmp_path, epochs=1), tmp_path / "file"
    file.write_text("mine")
    monkeypatch.setattr(card, "card", lambda model: "# A card\n")
    mistakes: list[tuple[Any, list[str], str]] = [
        (train.main, ["--config", str(tmp_path)], "cannot be read: Is a directory"),
        (train.main, ["--config", str(config), "--out", str(file)], f"the folder {file} cannot be made: File exists"),
        (train.main, ["--config", str(config), "--out", str(file / "x")], "cannot be made: Not a directory"),
        (gradients.main, ["--out", str(file)], "cannot be made: File exists"),
        (recipes.main, ["sentiment", "--quick", "--out", str(file)], "cannot be made: File exists"),
        (compare.main, ["--quick", "--tasks", "adding", "--out", str(file)], "cannot be made: "),
        (card.main, ["model.onnx", "--out", str(file / "card.md")], "cannot be made: File exists"),
        (card.main, ["model.onnx", "--out", str(tmp_path)], "is a folder: name a file in it"),
    ]
    for main, arguments, sentence in mistakes:
        assert main(arguments) == 2, arguments
        assert sentence in capsys.readouterr().err
    assert file.read_text() == "mine"
    with pytest.raises(SystemExit, match="2"):
        verify.main(["model.onnx", "--seed", "-1"])


@pytest.mark.parametrize(
    ("task", "model", "values", "sentence"),
    [
        ("next_category", "vocabulary = 3\nembedding = 2", [0, 1, 2, 7], "is a category outside of 0..2"),
        ("next_category", "vocabulary = 3\nembedding = 2", [0, 1, 2, 0.5], "is a category outside of 0..2"),
        ("next_set", "", [0, 1, 1, 2], "not 0 or 1"),
    ],
)
def test_values_without_a_meaning_are_refused_wherever_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str, model: str, values: list[float], sentence: str
) -> None:
    config = write(tmp_path, task=task, model=model)
    with np.load(tmp_path / "data.npz") as archive:
        columns = dict(archive)
    late = columns["time_ms"] == 59  # of the test part, which training does not see
    columns["x"] = np.resize(np.float32(values[:3]), (1200, 1))
    columns["x"][late] = values[3]
    np.savez(tmp_path / "data.npz", **columns)
    assert train.main(["--config", str(config), "--out", str(tmp_path / "out")]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out" / "model.onnx").exists()


def test_scaling_sees_the_training_part_only(tmp_path: Path) -> None:
    config = train.read_config(write(tmp_path))
    with np.load(tmp_path / "data.npz") as archive:
        columns = dict(archive)
    columns["x"][columns["time_ms"] >= 40] += 1e6  # the future jumps
    np.savez(tmp_path / "data.npz", **columns)
    split = train.read_split(config, tmp_path)
    model = train.make_model(config, split.train)
    assert float(model.mean.abs().max()) < 10
    assert float(model.std.max()) < 10
    with pytest.raises(ConfigurationError, match="no such configuration"):
        train.read_config(tmp_path / "none.toml")
