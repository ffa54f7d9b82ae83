"""Slot filling from a CSV of words through ``train`` alone: what comes later in the sentence is worth having."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from slots import LABELS, write_slots

from export import train
from streamer.modelfile.model import Model

pytestmark = [pytest.mark.torch, pytest.mark.slow]

CONFIG = """
name = "slots"
task = "classify"
[data]
path = "slots.csv"
min_count = 2
[model]
hidden = {hidden}
kind = "gru"
directions = {directions}
embedding = {embedding}
embedding_dropout = 0.1
[training]
epochs = {epochs}
learning_rate = {rate}
schedule = "cosine"
"""


def f1(folder: Path, **values: Any) -> float:
    (folder / "train.toml").write_text(CONFIG.format(**values))
    out = folder / f"out-{values['directions']}"
    assert train.main(["--config", str(folder / "train.toml"), "--out", str(out)]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["verification"]["passed"]
    assert metrics["warnings"] == []
    found: float = metrics["best"]["figures"]["test"]["f1_macro"]
    return found


def check(folder: Path, *, least: float, **values: Any) -> None:
    causal = f1(folder, directions=1, **values)
    both = f1(folder, directions=2, **values)
    assert both >= causal + 0.04, (causal, both)
    assert both > least
    contract = Model.load(folder / "out-2" / "model.onnx").contract
    assert sorted(contract.outputs[0].labels or ()) == sorted(LABELS)
    assert contract.feature_tables[0].unknown == 0


def test_both_directions_beat_one_on_a_csv_of_words(tmp_path: Path) -> None:
    write_slots(tmp_path / "slots.csv", sentences=700, words=200)
    check(tmp_path, least=0.6, rate=2e-2, hidden=32, embedding=16, epochs=12)


@pytest.mark.accept
def test_both_directions_beat_one_with_forty_labels_and_three_thousand_words(tmp_path: Path) -> None:
    assert len(LABELS) == 40
    write_slots(tmp_path / "slots.csv", sentences=2_500, words=3_000)
    check(tmp_path, least=0.75, rate=1e-2, hidden=32, embedding=24, epochs=8)
