"""Every cell that can be exported computes what PyTorch computes, on ragged batches, from any state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import onnx
import torch
from torch import nn

from export.graph import export_model
from export.model import ModelConfig, SequenceModel, build
from export.verify import verify
from streamer.errors import ModelError
from streamer.modelfile.model import Model

pytestmark = pytest.mark.torch

CELLS = [("lstm", "tanh"), ("gru", "tanh"), ("rnn", "tanh"), ("rnn", "relu")]
LENGTHS = torch.tensor([7, 1, 3, 5, 6])


def random_model(**options: Any) -> SequenceModel:
    torch.manual_seed(1)
    model = build(ModelConfig(**{"features": 3, "hidden": 4, **options}))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.35)
    model.mean.normal_()
    model.std.uniform_(0.5, 2)
    return model.eval()


def assert_parity(module: SequenceModel, path: Path) -> Model:
    """Rows, layers, hidden size and steps all differ, so that no axis can stand in for another."""
    model = Model.load(path)
    x = torch.randn(len(LENGTHS), 7, module.features)
    states: list[Any] = [torch.randn(*state.shape) for state in map(torch.from_numpy, model.initial_states(len(x)))]
    with torch.no_grad():
        expected, eager_states = module(x, LENGTHS, *states)
    outputs, next_states = model.run(x.numpy(), LENGTHS.numpy().astype(np.int32), [state.numpy() for state in states])
    for output, y in zip(model.contract.outputs, outputs, strict=True):
        for row, length in enumerate(LENGTHS.tolist() if output.per == "event" else [None] * len(x)):
            want = expected[output.name][row].numpy()
            np.testing.assert_allclose(y[row][:length], want[:length], rtol=1e-5, atol=1e-5)
    for want, state in zip(eager_states, next_states, strict=True):
        np.testing.assert_allclose(state, want.numpy(), rtol=1e-5, atol=1e-5)
    return model


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(("kind", "nonlinearity"), CELLS)
def test_cells(kind: str, nonlinearity: str, layers: int, directions: int, tmp_path: Path) -> None:
    options = {"kind": kind, "nonlinearity": nonlinearity, "layers": layers, "directions": directions, "dropout": 0.2}
    module = random_model(**options, outputs=2)
    export_model(module, tmp_path / "m.onnx", name="m")
    model = assert_parity(module, tmp_path / "m.onnx")
    assert model.contract.mode == ("window" if directions == 2 else "step")
    assert model.batched
    assert model.ragged
    assert model.max_steps is None
    assert not [finding for finding in model.findings if not finding.passed]


@pytest.mark.parametrize("reduce", ["last", "mean", "max"])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_one_output_per_window(reduce: str, directions: int, activation: str, tmp_path: Path) -> None:
    options = {"reduce": reduce, "directions": directions, "activation": activation, "labels": ("a", "b")}
    module = random_model(**options, layers=2, outputs=2, head_hidden=6)
    export_model(module, tmp_path / "m.onnx", name="m")
    model = assert_parity(module, tmp_path / "m.onnx")
    assert model.contract.outputs[0].per == "window"
    assert model.contract.outputs[0].labels == ("a", "b")


@pytest.mark.parametrize("reduce", [None, "max"])
def test_without_a_head_and_without_biases(reduce: str | None, tmp_path: Path) -> None:
    module = SequenceModel(3, 4, kind="gru", directions=2, reduce=reduce).eval()
    module.core = nn.GRU(3, 4, batch_first=True, bidirectional=True, bias=False)
    export_model(module, tmp_path / "m.onnx", name="m")
    assert_parity(module, tmp_path / "m.onnx")


@pytest.mark.parametrize("score", ["mean", "max"])
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_forecaster(kind: str, skip: bool, score: str, tmp_path: Path) -> None:
    module = random_model(task="forecast", kind=kind, skip=skip, score=score)
    module.residual_scale.uniform_(0.5, 2)
    export_model(module, tmp_path / "m.onnx", name="m", features=["a", "b", "c"])
    model = assert_parity(module, tmp_path / "m.onnx")
    assert model.contract.feature_names == ("a", "b", "c")
    first = np.ones((2, 1, 3), np.float32)
    (_, scores), states = model.run(first, np.ones(2, np.int32), model.initial_states(2))
    assert not scores.any(), "a stream's first event has no prediction to be judged by"
    (_, scores), _ = model.run(first, np.ones(2, np.int32), states)
    assert scores.all()


def test_categories(tmp_path: Path) -> None:
    module = random_model(features=1, vocabulary=5, embedding=3, outputs=5, activation="softmax")
    module.mean.zero_()
    module.std.fill_(1)
    export_model(module, tmp_path / "m.onnx", name="m", feedback={"output": "y", "mode": "sample", "encoding": "index"})
    report = verify(tmp_path / "m.onnx", module)
    assert report["passed"], report
    x = np.array([[[-3.0], [0.0], [4.0], [99.0]]], np.float32)
    with torch.no_grad():
        want, _ = module(torch.from_numpy(x))
    model = Model.load(tmp_path / "m.onnx")
    (y,), _ = model.run(x, np.array([4], np.int32), model.initial_states(1))
    np.testing.assert_allclose(y, want["y"].numpy(), atol=1e-5)


def test_common_heads_become_nodes(tmp_path: Path) -> None:
    head = nn.Sequential(
        nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU(), nn.Dropout(0.5), nn.Linear(6, 2, bias=False), nn.Tanh()
    )
    module = SequenceModel(3, 4, head=head)
    export_model(module, tmp_path / "m.onnx", name="m")
    assert_parity(module, tmp_path / "m.onnx")
    assert len(onnx.load(tmp_path / "m.onnx").graph.node) < 12


class Unusual(nn.Module):
    """A head that no table of common modules knows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        return nn.functional.silu(self.inner(x)).cumsum(-1)[..., :3] * x.mean(-1, keepdim=True)


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The class above as a module of its own: the exporter's process has to import it."""
    source = Path(__file__).read_text()
    begin = source.index("class Unusual")
    code = "from typing import Any\nfrom torch import nn\n\n" + source[begin : source.index("@pytest.fixture", begin)]
    (tmp_path / "unusual_module.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    import unusual_module

    return unusual_module


def test_other_heads_and_encoders_are_traced(importable: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = SequenceModel(
        4, 4, kind="gru", layers=2, encoder=importable.Unusual(), encoded=3, head=importable.Unusual()
    )
    export_model(module, tmp_path / "m.onnx", name="m")
    assert_parity(module, tmp_path / "m.onnx")
    model = Model.load(tmp_path / "m.onnx")
    for steps in (1, 2, 6, 9):  # lengths of examples must not be frozen in
        model.run(np.ones((5, steps, 4), np.float32), np.full(5, steps, np.int32), model.initial_states(5))


def test_a_module_that_cannot_be_imported_is_refused(tmp_path: Path) -> None:
    class Local(Unusual):
        pass

    with pytest.raises(ModelError, match="top level of an importable module"):
        export_model(SequenceModel(3, 4, head=Local()), tmp_path / "m.onnx", name="m")
    assert list(tmp_path.iterdir()) == []


def test_projections_are_refused(tmp_path: Path) -> None:
    module = SequenceModel(3, 4)
    module.core = nn.LSTM(3, 4, proj_size=2, batch_first=True)
    with pytest.raises(ModelError, match="proj_size"):
        export_model(module, tmp_path / "m.onnx", name="m")
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_portable(tmp_path: Path) -> None:
    """One file, a pinned operator set, no dropout, gates reset as torch does, symbolic axes."""
    export_model(random_model(kind="gru", layers=2, dropout=0.5, outputs=2), tmp_path / "m.onnx", name="m")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    model = onnx.load(tmp_path / "m.onnx")
    assert model.ir_version == 10
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]
    assert not [node for node in model.graph.node if node.op_type == "Dropout"]
    grus = [node for node in model.graph.node if node.op_type == "GRU"]
    assert len(grus) == 2
    assert all(any(a.name == "linear_before_reset" and a.i == 1 for a in node.attribute) for node in grus)
    initializers = {tensor.name for tensor in model.graph.initializer}
    assert all(set(node.input[1:4]) <= initializers for node in grus), "weights must be constant to be pre-packed"
    dims = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input]
    assert dims == [["batch", "time", 3], ["batch"], [2, "batch", 4]]


def test_a_sidecar_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text("")
    with pytest.raises(ModelError, match="in the way"):
        export_model(random_model(), tmp_path / "m.onnx", name="m")
