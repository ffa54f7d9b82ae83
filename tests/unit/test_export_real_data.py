"""Training by the command on real data: servers' metrics and spoken vowels. In full they are trained where they are also
served, in ``tests/integration``."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import torch
from training import VOWELS, run, servers

from export.memorytasks import ADDING_BASELINE, copy_baseline, split_of
from export.train import DataSection, ModelSection, TrainConfig, TrainSection, train_seed

pytestmark = pytest.mark.torch


def test_a_forecaster_of_real_servers_finds_anomalies(tmp_path: Path, data_dir: Path) -> None:
    figures = servers(tmp_path, data_dir, "gru", epochs=4)["best"]["figures"]["test"]
    assert figures["loss"] < figures["baseline_loss"]
    assert figures["auc_mean_of_streams"] >= 0.75


def test_a_bidirectional_model_learns_real_utterances(tmp_path: Path, data_dir: Path) -> None:
    folder = data_dir / "japanese-vowels"
    text = VOWELS.format(folder=folder, seeds=[0], kind="gru", directions=2, epochs=15)
    figures = run(tmp_path, text)["best"]["figures"]["test"]
    assert figures["accuracy"] >= 0.90
    assert figures["baseline_accuracy"] < 0.2


def memory_loss(task: str, length: int, model: ModelSection, training: TrainSection, count: int) -> float:
    torch.set_num_threads(1)
    config = TrainConfig(
        name=task,
        task="regress" if task == "adding" else "classify",
        data=DataSection(path="generated", scale=False),
        model=model,
        training=training,
    )
    trained = train_seed(config, split_of(task, length, count, 0), 0, out=None)
    return trained.figures["test"]["loss"]


@pytest.mark.accept
@pytest.mark.slow
def test_gated_cells_remember_where_the_plain_rnn_forgets() -> None:
    training = TrainSection(epochs=10, rows=64, learning_rate=3e-3)
    found = {
        kind: memory_loss("adding", 200, ModelSection(hidden=64, kind=kind, reduce="last"), training, 12_800)
        for kind in ("gru", "rnn")
    }
    print(found)
    assert found["gru"] <= ADDING_BASELINE / 5
    assert found["rnn"] > ADDING_BASELINE / 5


@pytest.mark.accept
@pytest.mark.slow
def test_a_gated_cell_copies_over_thirty_steps() -> None:
    model = ModelSection(hidden=128, kind="gru", vocabulary=10, embedding=10)
    training = TrainSection(epochs=36, rows=64, steps=50, learning_rate=3e-3)
    assert memory_loss("copying", 30, model, training, 10_240) <= copy_baseline(30) / 2
