"""Gradients over the lag are the true ones, and the gates are those of the cell that was trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from export import gradients
from export.data import Example
from export.memorytasks import ADDING_BASELINE, adding, copy_baseline, copying
from export.model import ModelConfig, build
from streamer.errors import ConfigurationError

pytestmark = pytest.mark.torch


def test_a_linear_recurrence_decays_by_its_own_weight() -> None:
    model = build(ModelConfig(features=1, hidden=1, kind="rnn", nonlinearity="relu", outputs=1, reduce="last"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.core.weight_hh_l0.fill_(0.9)
        model.core.weight_ih_l0.fill_(1.0)
        model.head.weight.fill_(1.0)
    x = np.ones((30, 1), np.float32)
    norms = gradients.gradient_by_lag(model, [Example(x, np.asarray(-1.0, np.float32))])
    assert len(norms) == 30
    np.testing.assert_allclose(norms[1:] / norms[:-1], 0.9, rtol=1e-4)
    assert gradients.decay_per_step(norms) == pytest.approx(0.9, rel=1e-3)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("layers", [1, 2])
def test_gates_reproduce_the_core(kind: str, layers: int) -> None:
    torch.manual_seed(0)
    model = build(ModelConfig(features=3, hidden=6, kind=kind, layers=layers))
    model.mean.uniform_(-1, 1)
    x = torch.randn(1, 20, 3)
    found = gradients.gates(model, x[0].numpy())
    with torch.no_grad():
        y, _ = model.raw(x, None)
    np.testing.assert_allclose(found["hidden"], y[0].numpy(), atol=1e-5)
    for name in ("input", "forget", "output", "reset", "update"):
        if name in found:
            assert found[name].min() > 0
            assert found[name].max() < 1


def test_gates_of_a_plain_rnn_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="LSTM and GRU"):
        gradients.gates(build(ModelConfig(features=1, hidden=2, kind="rnn")), np.zeros((3, 1), np.float32))


def test_the_command_tells_vanishing_from_exploding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gradients.main(["--quick", "--out", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report == json.loads((tmp_path / "gradients.json").read_text())
    factor = {name: row["before"]["factor_per_step"] for name, row in report["cells"].items()}
    assert factor["rnn, recurrent weights x 1.5"] > 1 > factor["rnn"]
    assert factor["lstm"] > factor["lstm, forget bias 0"]
    assert set(report["gates"]["lstm"]) == {"input", "forget", "output", "cell", "hidden"}
    for plot in ("gradient_by_lag.png", "clipping.png", "gates.png"):
        assert (tmp_path / plot).read_bytes().startswith(b"\x89PNG")


def test_the_memory_tasks_are_what_they_say() -> None:
    data = adding(20, 4000, 0)
    assert data.labels is not None
    for x, label in zip(data.x, data.labels, strict=True):
        assert x[:, 1].sum() == 2
        assert x[:10, 1].sum() == 1
        assert label[0] == pytest.approx(float((x[:, 0] * x[:, 1]).sum()), abs=1e-5)
    guess = np.mean([(label[0] - 1.0) ** 2 for label in data.labels])
    assert guess == pytest.approx(ADDING_BASELINE, rel=0.05)
    copied = copying(30, 50, 0)
    assert copied.labels is not None
    for x, label in zip(copied.x, copied.labels, strict=True):
        assert len(x) == 50
        assert label[-10:].tolist() == x[:10, 0].tolist()
        assert not label[:-10].any()
        assert x[39, 0] == 9
    assert copy_baseline(30) == pytest.approx(10 * np.log(8) / 50)
