"""The published ONNX vectors of RNN, LSTM and GRU through the model loader: same outputs, or a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

import onnx
from onnx import numpy_helper
from onnx_models import save

from streamer.errors import ModelError
from streamer.modelfile.model import Model

pytestmark = pytest.mark.torch

RUNS = [
    "gru_defaults",
    "gru_seq_length",
    "gru_with_initial_bias",
    "lstm_defaults",
    "lstm_with_initial_bias",
    "lstm_with_peepholes",
    "rnn_seq_length",
    "simple_rnn_defaults",
    "simple_rnn_with_initial_bias",
]
BATCH_MAJOR = ["gru_batchwise", "lstm_batchwise", "simple_rnn_batchwise"]


def vectors(folder: Path, kind: str) -> list[Any]:
    files = sorted((folder / "test_data_set_0").glob(f"{kind}_*.pb"), key=lambda path: int(path.stem.split("_")[1]))
    return [numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes())) for path in files]


def as_served(folder: Path, target: Path, *, layout: int = 0) -> tuple[Path, dict[str, Any]]:
    """The node's file with its weights as initialisers, axes named, and a sidecar; the remaining inputs' values."""
    model = onnx.load(folder / "model.onnx")
    values = dict(zip([i.name for i in model.graph.input], vectors(folder, "input"), strict=True))
    kept = {name: value for name, value in values.items() if name in ("X", "sequence_lens", "initial_h", "initial_c")}
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in values.items() if n not in kept)
    for tensor in [value for value in model.graph.input if value.name not in kept]:
        model.graph.input.remove(tensor)
    batch = 0 if layout else 1
    axes = {"X": {batch: "batch", 1 - batch: "time"}, "sequence_lens": {0: "batch"}}
    for value in [*model.graph.input, *model.graph.output]:
        for axis, name in axes.get(value.name, {1: "batch"}).items():
            value.type.tensor_type.shape.dim[axis].dim_param = name
    hidden = next(a.i for a in model.graph.node[0].attribute if a.name == "hidden_size")
    order = ["batch", "time"] if layout else ["time", "batch"]
    fields: dict[str, Any] = {
        "name": folder.name,
        "mode": "window",
        "input": {"name": "X", "shape": [*order, values["X"].shape[2]]},
        "states": [
            {"input": name, "shape": [1, "batch", hidden], "initial": value[:, 0].tolist()}
            for name, value in kept.items()
            if name.startswith("initial")
        ],
        "outputs": [{"name": "Y_h", "shape": [1, "batch", hidden]}],
    }
    if "sequence_lens" in kept:
        fields["lengths"] = "sequence_lens"
    return save(model, target / "model.onnx", fields), kept


@pytest.mark.parametrize("name", RUNS)
def test_published_outputs(name: str, data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "onnx-node-tests" / f"test_{name}"
    path, inputs = as_served(folder, tmp_path)
    model = Model.load(path)
    x = inputs["X"].transpose(1, 0, 2)
    lengths = inputs.get("sequence_lens", np.full(len(x), x.shape[1])).astype(np.int32)
    (y,), states = model.run(x, lengths, model.initial_states(len(x)))
    expected = vectors(folder, "output")[-1][0]
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6)
    assert states == []
    for row in range(len(x)):
        (alone,), _ = model.run(x[row : row + 1], lengths[row : row + 1], model.initial_states(1))
        np.testing.assert_allclose(alone[0], expected[row], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", BATCH_MAJOR)
def test_batch_major_nodes_are_refused_with_the_cause(name: str, data_dir: Path, tmp_path: Path) -> None:
    path, _ = as_served(data_dir / "onnx-node-tests" / f"test_{name}", tmp_path, layout=1)
    with pytest.raises(ModelError, match=r"(RNN|LSTM|GRU) has layout=1 .* transpose its input and output"):
        Model.load(path)
