"""Outputs of kind classes: their labels, and whether they are probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from onnx import helper
from onnx_models import lstm, lstm_fields, save

from streamer.core import ClosedWindow
from streamer.modelfile.contract import Contract
from streamer.modelfile.model import Model
from streamer.records.encode import Encoder
from streamer.words import Closed

HIDDEN = 4
LABELS = ["a", 'b"', "c", "d"]


def fields(kind: str, **output: Any) -> dict[str, Any]:
    shape = {"name": "y", "shape": ["batch", "time", HIDDEN], "kind": kind, "labels": LABELS}
    return lstm_fields(outputs=[{**shape, **output}])


@pytest.mark.parametrize(("kind", "labelled"), [("classes", True), ("vector", False)])
def test_only_classes_have_a_label(kind: str, labelled: bool) -> None:
    """The largest of four forecast sensors says nothing."""
    encoder = Encoder(Contract.from_fields(fields(kind)), "m")
    y = np.array([[0, 1, 0, 0], [0, 0, 0, 1]], np.float32)
    steps = [msgspec.json.decode(value) for value in encoder.steps([b"s", b"t"], np.array([1, 2]), [y])]
    assert [step.get("label") for step in steps] == (['b"', "d"] if labelled else [None, None])
    assert [step["y"] for step in steps] == y.tolist()
    times = np.array([1, 2])
    window = ClosedWindow(b"s", 0, 9, Closed.TIME, 1, np.zeros((2, 3), np.float32), times, times)
    answer = msgspec.json.decode(encoder.window(window, [y]))
    assert answer.get("label") == (['b"', "d"] if labelled else None)
    assert answer["y"] == y.tolist()


def loaded(folder: Path, *, softmax: bool, kind: str = "classes") -> Model:
    model = lstm()
    if softmax:
        node = next(node for node in model.graph.node if node.output[0] == "y")
        node.output[0] = "logits"
        model.graph.node.append(helper.make_node("Softmax", ["logits"], ["y"], axis=-1))
    return Model.load(save(model, folder / "model.onnx", fields(kind)))


def test_classes_that_are_no_probabilities_are_told_and_served(tmp_path: Path) -> None:
    found = {finding.name: finding for finding in loaded(tmp_path, softmax=False).findings if not finding.passed}
    assert list(found) == ["classes_sum_to_one"]
    assert "'y'" in found["classes_sum_to_one"].detail
    assert "softmax" in found["classes_sum_to_one"].detail


def test_probabilities_and_other_kinds_are_no_finding(tmp_path: Path) -> None:
    findings = loaded(tmp_path, softmax=True).findings
    assert [finding.passed for finding in findings if finding.name == "classes_sum_to_one"] == [True]
    (tmp_path / "model.toml").unlink()
    assert not [f for f in loaded(tmp_path, softmax=False, kind="vector").findings if "sum" in f.name or not f.passed]
