"""``verify``, ``export`` and ``inspect`` as people and programs use them: what passes, what fails, what is said."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import onnx
import torch
from onnx import numpy_helper
from onnx_models import lstm, lstm_fields
from onnx_models import save as save_model

from export.__main__ import COMMANDS, main
from export.graph import export_model
from export.model import ModelConfig, build, save
from export.verify import _Differences, verify
from streamer.errors import ModelError
from streamer.modelfile.contract import Contract
from streamer.modelfile.model import Model
from streamer.tools.inspect import inspect

pytestmark = pytest.mark.torch

MODULES = """
import torch
from torch import nn
from export.model import SequenceModel

class Step(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.norm, self.out = nn.GRUCell(6, 8), nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, x, h, seen):
        h = self.cell(x.flatten(1), h)
        return {"y": self.out(self.norm(h)).softmax(-1), "age": seen + 1.0}, h, seen + 1.0

class Leaky(Step):
    def forward(self, x, h, seen):
        outputs, h, seen = super().forward(x, h, seen)
        return outputs, h - h.mean(0), seen

class Frozen(Step):
    def forward(self, x, h, seen):
        return super().forward(x.reshape(3, 3, 2), h, seen)

def sequence():
    return SequenceModel(3, 5, kind="lstm", head=nn.Linear(5, 2))

def not_a_module():
    return 3
"""

STEP_CONTRACT = """
name = "step"
mode = "step"
version = "3"
input = {name = "x", shape = ["batch", 3, 2]}
states = [
    {input = "h", output = "h_next", shape = ["batch", 8]},
    {input = "seen", output = "seen_next", shape = ["batch", 1], initial = 5},
]
outputs = [
    {name = "y", shape = ["batch", 2], kind = "classes", labels = ["no", "yes"]},
    {name = "age", shape = ["batch", 1], kind = "value"},
]
"""


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A user's module of modules, importable here and in the exporter's process."""
    (tmp_path / "their_models.py").write_text(MODULES)
    (tmp_path / "step.toml").write_text(STEP_CONTRACT)
    (tmp_path / "sequence.toml").write_text('name = "theirs"\nfeatures = ["a", "b", "c"]\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "their_models", raising=False)
    import their_models

    torch.manual_seed(0)
    torch.save(their_models.Step().state_dict(), tmp_path / "step.pt")
    torch.save({"epoch": 3, "state_dict": their_models.sequence().state_dict()}, tmp_path / "sequence.pt")
    return their_models


def exported(folder: Path, **options: Any) -> tuple[Path, Any]:
    torch.manual_seed(0)
    module = build(ModelConfig(**{"features": 3, "hidden": 5, "kind": "gru", "outputs": 2, **options})).eval()
    export_model(module, folder / "m.onnx", name="m")
    save(module, folder / "m.pt")
    return folder / "m.onnx", module


def checks(report: dict[str, Any]) -> dict[str, bool]:
    return {check["name"]: check["passed"] for check in report["checks"]}


def test_a_step_model_passes_all_four_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = exported(tmp_path)
    assert main(["verify", str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["passed"] is True
    assert list(checks(report)) == ["parity", "step_by_step", "batch_invariance", "padding_independence"]
    assert all(set(check) >= {"name", "value", "limit", "passed"} for check in report["checks"])
    assert all(check["value"] <= check["limit"] == 1e-5 for check in report["checks"])
    assert main(["verify", str(path)]) == 0
    assert "parity" in capsys.readouterr().out


def test_a_window_model_has_no_steps_to_compare(tmp_path: Path) -> None:
    path, _ = exported(tmp_path, directions=2, reduce="mean", activation="softmax")
    report = verify(path)
    assert report["passed"]
    assert list(checks(report)) == ["parity", "batch_invariance", "padding_independence"]


def test_without_weights_it_says_what_it_could_not_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = exported(tmp_path)
    path.with_suffix(".pt").unlink()
    assert main(["verify", str(path)]) == 0
    assert "not checked: parity with PyTorch: there is no m.pt" in capsys.readouterr().out
    report = verify(path)
    assert "parity" not in checks(report)


def test_weights_that_are_not_the_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The loudest failure there is to find: a file that computes something else than its weights."""
    path, _ = exported(tmp_path)
    model = onnx.load(path)
    gates = next(tensor for tensor in model.graph.initializer if tensor.name.startswith("R_"))
    changed = numpy_helper.to_array(gates).copy()
    changed[0, 0, 0] += 0.01
    gates.CopyFrom(numpy_helper.from_array(changed, gates.name))
    onnx.save(model, path)
    assert main(["verify", str(path), "--json"]) == 3
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["passed"] is False
    assert [name for name, passed in checks(report).items() if not passed] == ["parity"]


def test_a_gru_with_the_wrong_reset_gate_is_found(tmp_path: Path) -> None:
    path, module = exported(tmp_path)
    for bias in (module.core.bias_ih_l0, module.core.bias_hh_l0):
        torch.nn.init.normal_(bias)
    export_model(module, path, name="m")
    assert checks(verify(path, module))["parity"]
    model = onnx.load(path)
    gru = next(node for node in model.graph.node if node.op_type == "GRU")
    next(attribute for attribute in gru.attribute if attribute.name == "linear_before_reset").i = 0
    onnx.save(model, path)
    assert not checks(verify(path, module))["parity"]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("expected", "actual", "passed"),
    [
        ([NAN, 1], [999, NAN], False),
        ([NAN, 1], [NAN, 1], True),
        ([NAN, 1], [NAN, 2], False),
        ([INF, 1], [INF, 1], True),
        ([INF, 1], [-INF, 1], False),
        ([1, 1], [1, NAN], False),
        ([INF, 1], [NAN, 1], False),
        ([3e38, 1], [-3e38, 1], False),
        ([NAN, NAN], [NAN, NAN], False),
    ],
)
def test_what_is_not_finite_is_compared_exactly(expected: list[float], actual: list[float], passed: bool) -> None:
    """``max(worst, nan)`` is ``worst``: such values must be looked at before there is a difference to speak of."""
    for order in ((expected, actual), (actual, expected)):
        found = _Differences()
        found.compare([np.array(order[0], np.float32)], [np.array(order[1], np.float32)])
        check = found.check("parity")
        assert check.passed is passed
        json.dumps(asdict(check), allow_nan=False)


def test_a_model_of_nan_passes_nothing(tmp_path: Path) -> None:
    path, module = exported(tmp_path)
    with torch.no_grad():
        module.head.bias.fill_(NAN)
    export_model(module, path, name="m")
    save(module, path.with_suffix(".pt"))
    report = verify(path)
    assert report["passed"] is False
    assert checks(report)["parity"] is False
    assert any("NaN or infinity for ordinary events" in each for each in report["findings"])


@pytest.mark.parametrize("content", [b"", b"PK nonsense", b"\x80\x04N."])
def test_broken_weights_end_in_a_sentence(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = exported(tmp_path)
    path.with_suffix(".pt").write_bytes(content)
    assert main(["verify", str(path)]) == 3
    assert str(path.with_suffix(".pt")) in capsys.readouterr().err


def test_a_foreign_file_is_verified_as_far_as_possible(tmp_path: Path) -> None:
    report = verify(save_model(lstm(), tmp_path / "m.onnx", lstm_fields()))
    assert report["passed"]
    assert len(report["not_checked"]) == 1


def test_an_own_step_module(theirs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out" / "m.onnx"
    weights, contract = str(tmp_path / "step.pt"), str(tmp_path / "step.toml")
    options = ["--weights", weights, "--contract", contract, "--out", str(out), "--json"]
    assert main(["export", "their_models:Step", *options]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["passed"]
    assert checks(report)["parity"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["m.onnx", "m.pt"]
    model = Model.load(out)
    assert model.contract == Contract.from_fields(json.loads(model.contract.dump()))
    assert model.contract.parameters == sum(p.numel() for p in theirs.Step().parameters())
    assert (model.batched, model.max_steps) == (True, 1)
    (_, age), _ = model.run(np.zeros((4, 3, 6), np.float32), np.full(4, 3, np.int32), model.initial_states(4))
    np.testing.assert_array_equal(age[..., 0], [[6, 7, 8]] * 4)
    assert verify(out)["passed"], "the weights beside the model name the factory"


def test_an_own_sequence_model(theirs: Any, tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    weights, contract = str(tmp_path / "sequence.pt"), str(tmp_path / "sequence.toml")
    assert (
        main(["export", "their_models:sequence", "--weights", weights, "--contract", contract, "--out", str(out)]) == 0
    )
    model = Model.load(out)
    assert model.contract.feature_names == ("a", "b", "c")
    assert model.max_steps is None
    assert model.ragged


@pytest.mark.parametrize(
    ("factory", "contract", "said"),
    [
        ("their_models", "step.toml", "names no factory"),
        ("no_such_module:make", "step.toml", "cannot be imported"),
        ("their_models:Missing", "step.toml", "cannot be imported"),
        ("their_models:not_a_module", "step.toml", "returned a int"),
        ("their_models:sequence", "sequence.toml", "do not fit"),
        ("their_models:Step", "sequence.toml", "lacks input"),
        ("their_models:Step", "none.toml", "cannot be read"),
        ("their_models:Frozen", "step.toml", "torch cannot export Frozen|torch froze the batch axis"),
        ("their_models:Leaky", "step.toml", "verification failed, .* was not written"),
    ],
)
def test_what_cannot_be_exported_leaves_nothing_behind(
    factory: str, contract: str, said: str, theirs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "m.onnx"
    weights = str(tmp_path / "step.pt")
    code = main(["export", factory, "--weights", weights, "--contract", str(tmp_path / contract), "--out", str(out)])
    captured = capsys.readouterr()
    assert code == 3
    assert re.search(said, captured.err), captured.err
    assert not out.parent.exists() or list(out.parent.iterdir()) == []


def test_a_sequence_model_knows_its_tensors_better(
    theirs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contract = tmp_path / "sequence.json"
    contract.write_text(json.dumps({"name": "m", "mode": "window"}))
    options = [
        "--weights",
        str(tmp_path / "sequence.pt"),
        "--contract",
        str(contract),
        "--out",
        str(tmp_path / "m.onnx"),
    ]
    assert main(["export", "their_models:sequence", *options]) == 3
    assert "says mode = window, the module makes step" in capsys.readouterr().err


def test_every_command_is_listed_and_an_unknown_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in COMMANDS)
    assert main(["exprot"]) == 2
    assert "no command 'exprot'" in capsys.readouterr().err
    assert main([]) == 2


def test_inspect_reports_what_the_design_names(tmp_path: Path) -> None:
    path, module = exported(tmp_path, layers=2)
    report = json.loads(json.dumps(inspect(path)))
    assert report["contract"]["name"] == "m"
    assert report["contract"]["states"][0]["shape"] == [2, "batch", 5]
    assert report["sha256"] == Model.load(path).sha256
    assert report["parameters"] == sum(parameter.numel() for parameter in module.parameters())
    assert report["state_bytes_per_stream"] == 2 * 5 * 4
    assert list(report["microseconds_per_event"]) == ["1", "16", "64", "256"]
    assert all(cost > 0 for cost in report["microseconds_per_event"].values())
    assert report["probe"]["passed"] is True
    assert {"batch_independence", "sequence_equals_steps"} <= {f["name"] for f in report["probe"]["findings"]}


def test_inspect_of_a_foreign_file_knows_no_parameters(tmp_path: Path) -> None:
    graph = lstm()
    for value in graph.graph.input[2:]:
        value.type.tensor_type.shape.dim[1].dim_value = 1
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    report = inspect(save_model(graph, tmp_path / "m.onnx", lstm_fields()), measure=False)
    assert report["parameters"] is None
    assert report["probe"]["passed"] is False
    assert report["batched"] is False
    (tmp_path / "m.toml").unlink()
    with pytest.raises(ModelError, match="no contract"):
        inspect(tmp_path / "m.onnx")
