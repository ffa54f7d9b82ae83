"""Files that our exporter did not write: torch's own exporters and hand-made graphs, served by sidecar.

Whatever the layout of the states and whatever the graph can take at once, each stream gets what it gets alone.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import torch
from onnx import helper
from onnx_models import INT64, graph_model, save, write_sidecar
from torch import nn

from streamer.core import F32
from streamer.modelfile.model import Model

pytestmark = pytest.mark.torch

F, H, LENGTHS = 3, 5, np.array([6, 2, 1, 4], np.int32)


class Separate(nn.Module):
    """h and c apart, [layers, batch, H]: batch on axis 1."""

    states: ClassVar[dict[str, list[Any]]] = {"h": [2, "batch", H], "c": [2, "batch", H]}

    def __init__(self) -> None:
        super().__init__()
        self.core = nn.LSTM(F, H, num_layers=2, batch_first=True)
        self.head = nn.Linear(H, 2)

    def forward(self, x: Any, h: Any, c: Any) -> Any:
        y, (h, c) = self.core(x, (h, c))
        return self.head(y), h, c


class Stacked(Separate):
    """h and c stacked on axis 0 of one tensor [2, layers, batch, H]: batch on axis 2."""

    states: ClassVar[dict[str, list[Any]]] = {"state": [2, 2, "batch", H]}

    def forward(self, x: Any, state: Any) -> Any:
        y, h, c = super().forward(x, state[0], state[1])
        return y, torch.stack((h, c))


class BatchFirst(Separate):
    """Batch on axis 0, h and c on the last."""

    states: ClassVar[dict[str, list[Any]]] = {"state": ["batch", 2, H, 2]}

    def forward(self, x: Any, state: Any) -> Any:
        h, c = state.permute(3, 1, 0, 2).contiguous()
        y, h, c = super().forward(x, h, c)
        return y, torch.stack((h, c)).permute(2, 1, 3, 0)


class ThreeCaches(nn.Module):
    """Three states, their batch on axis 1, 2 and 1, declared in another order than the graph's."""

    states: ClassVar[dict[str, list[Any]]] = {"b": [1, H, "batch"], "a": [1, "batch", H], "seen": [1, "batch"]}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = (
            nn.GRU(F, H, batch_first=True),
            nn.GRU(H, H, batch_first=True),
            nn.Linear(H, 2),
        )

    def forward(self, x: Any, b: Any, a: Any, seen: Any) -> Any:
        y, a = self.first(x, a)
        y, b = self.second(y, b.permute(0, 2, 1).contiguous())
        return self.head(y) * (1 + seen.reshape(-1, 1, 1)), b.permute(0, 2, 1), a, seen + 0


def sidecar(tensors: dict[str, list[Any]], /, **changes: Any) -> dict[str, Any]:
    document = {
        "name": "theirs",
        "mode": "step",
        "input": {"name": "x", "shape": ["batch", "time", F]},
        "states": [
            {"input": n, "output": f"{n}_next", "shape": shape, "initial": 0.25} for n, shape in tensors.items()
        ],
        "outputs": [{"name": "y", "shape": ["batch", "time", 2]}],
        **changes,
    }
    return {key: value for key, value in document.items() if value is not None}


def examples(states: dict[str, list[Any]], rows: int) -> list[Any]:
    return [torch.full([rows if axis == "batch" else axis for axis in shape], 0.25) for shape in states.values()]


def legacy_export(module: Any, path: Path, *, axes: bool = True, rows: int = 2) -> None:
    names, nexts = list(module.states), [f"{name}_next" for name in module.states]
    dynamic: dict[str, dict[int, str]] = {"x": {0: "batch", 1: "time"}, "y": {0: "batch", 1: "time"}}
    for name, shape in module.states.items():
        dynamic[name] = dynamic[f"{name}_next"] = {shape.index("batch"): "batch"}
    if not axes:
        dynamic = {"x": {1: "time"}, "y": {1: "time"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter is deprecated: files made by it are not
        torch.onnx.export(
            module.eval(),
            (torch.zeros(rows, 4, F), *examples(module.states, rows)),
            path,
            input_names=["x", *names],
            output_names=["y", *nexts],
            dynamic_axes=dynamic,
            opset_version=17,
            dynamo=False,
        )


def alone_in_torch(module: Any, x: F32, row: int, length: int) -> list[F32]:
    """One stream's whole sequence through eager PyTorch: output and final states."""
    with torch.no_grad():
        results = module(torch.from_numpy(x[row : row + 1, :length]), *examples(module.states, 1))
    return [result.numpy() for result in results]


def assert_serves(model: Model, alone: Callable[[F32, int, int], Sequence[F32]], *, final: bool = True) -> None:
    """Streams of different length, in two ragged calls with the states carried on, against each stream alone."""
    random = np.random.default_rng(3)
    x = random.normal(size=(len(LENGTHS), int(LENGTHS.max()), model.contract.features)).astype(np.float32)
    first = np.maximum(LENGTHS // 2, 1).astype(np.int32)
    states: ClassVar[dict[str, list[Any]]] = model.initial_states(len(x))
    before = [state.copy() for state in states]
    (head, *_), carried = model.run(x[:, : first.max()], first, states)
    for state, copy in zip(states, before, strict=True):
        np.testing.assert_array_equal(state, copy, err_msg="run changed what it was given")
    left = np.flatnonzero(first < LENGTHS)
    tail_x = np.zeros((len(left), int((LENGTHS - first).max()), x.shape[2]), np.float32)
    for index, row in enumerate(left):
        tail_x[index, : LENGTHS[row] - first[row]] = x[row, first[row] : LENGTHS[row]]
    taken = [value.take(left, axis=state.batch_axis) for state, value in zip(model.states, carried, strict=True)]
    (tail, *_), finals = model.run(tail_x, (LENGTHS - first)[left], taken)
    for row, length in enumerate(LENGTHS.tolist()):
        want, *want_states = alone(x, row, length)
        np.testing.assert_allclose(head[row, : first[row]], want[0, : first[row]], rtol=0, atol=1e-5)
        if row in left:
            index = left.tolist().index(row)
            got = tail[index, : length - first[row]]
            np.testing.assert_allclose(got, want[0, first[row] :], rtol=0, atol=1e-5)
            if final:
                for state, value, expected in zip(model.states, finals, want_states, strict=True):
                    np.testing.assert_allclose(value.take([index], axis=state.batch_axis), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [Separate, Stacked, BatchFirst, ThreeCaches])
def test_state_layouts(kind: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = kind()
    legacy_export(module, tmp_path / "m.onnx")
    write_sidecar(tmp_path / "m.onnx", sidecar(kind.states))
    model = Model.load(tmp_path / "m.onnx")
    assert model.batched
    assert not model.ragged
    assert_serves(model, lambda x, row, length: alone_in_torch(module, x, row, length))


def test_batch_fixed_to_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Stacked()
    legacy_export(module, tmp_path / "m.onnx", axes=False, rows=1)
    write_sidecar(tmp_path / "m.onnx", sidecar(module.states))
    model = Model.load(tmp_path / "m.onnx")
    assert not model.batched
    assert [f.detail for f in model.findings if not f.passed] == [
        "the batch axis is fixed to 1: rows are run one at a time"
    ]
    assert_serves(model, lambda x, row, length: alone_in_torch(module, x, row, length))


def test_batch_fixed_to_three(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Separate()
    legacy_export(module, tmp_path / "m.onnx", axes=False, rows=3)
    write_sidecar(tmp_path / "m.onnx", sidecar(module.states))
    model = Model.load(tmp_path / "m.onnx")
    assert model.rows_per_call == 3
    assert_serves(model, lambda x, row, length: alone_in_torch(module, x, row, length))


class OneStreamInside(Separate):
    """Declares a batch, but takes its rows for consecutive steps of one stream."""

    states: ClassVar[dict[str, list[Any]]] = {"h": [2, "batch", H], "c": [2, "batch", H]}

    def forward(self, x: Any, h: Any, c: Any) -> Any:
        flat = x.reshape(1, -1, F)
        y, (h1, c1) = self.core(flat, (h[:, :1], c[:, :1]))
        return self.head(y).reshape(x.shape[0], -1, 2), h1 + 0 * h, c1 + 0 * c


class Mixed(Separate):
    """Adds what the rows of a call have in common."""

    def forward(self, x: Any, h: Any, c: Any) -> Any:
        return super().forward(x + x.mean(dim=0, keepdim=True), h, c)


@pytest.mark.parametrize("kind", [OneStreamInside, Mixed])
def test_a_falsely_dynamic_batch(kind: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = kind()
    legacy_export(module, tmp_path / "m.onnx")
    write_sidecar(tmp_path / "m.onnx", sidecar(module.states))
    model = Model.load(tmp_path / "m.onnx")
    assert not model.batched
    (finding,) = [finding for finding in model.findings if not finding.passed]
    assert finding.name == "batch_independence"
    assert "the batch axis is false" in finding.detail
    assert_serves(model, lambda x, row, length: alone_in_torch(module, x, row, length))


DYNAMO = """
import sys, torch
from torch import nn
F, H = 3, 5

class Theirs(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.core = nn.{cell}(F, H, num_layers=2, batch_first=True)
        self.head = nn.Linear(H, 2)

    def forward(self, x, *states):
        hx = states if len(states) > 1 else states[0]
        y, last = self.core(x, hx)
        return self.head(y), *(last if len(states) > 1 else (last,))

def main(path):
    module, names = Theirs().eval(), {names}
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    axes = ({{0: batch, 1: time}}, tuple({{1: batch}} for _ in names))
    torch.onnx.export(
        module, (torch.zeros(3, 4, F), *(torch.zeros(2, 3, H) for _ in names)), path, dynamo=True, external_data=False,
        input_names=["x", *names], output_names=["y", *(n + "_next" for n in names)], dynamic_shapes=axes,
    )

if __name__ == "__main__":
    main(sys.argv[1])
"""


@pytest.mark.parametrize(("cell", "names"), [("LSTM", ["h", "c"]), ("GRU", ["h"])])
def test_torch_dynamo_exporter(cell: str, names: list[str], tmp_path: Path) -> None:
    script = tmp_path / "theirs.py"
    script.write_text(DYNAMO.format(cell=cell, names=names))
    command = [sys.executable, script, tmp_path / "m.onnx"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    states: dict[str, list[Any]] = {name: [2, "batch", H] for name in names}
    write_sidecar(tmp_path / "m.onnx", sidecar(states))
    model = Model.load(tmp_path / "m.onnx")
    assert model.batched
    namespace: dict[str, Any] = {"__name__": "theirs"}
    exec(script.read_text(), namespace)
    module = namespace["Theirs"]().eval()
    module.states = states
    assert_serves(model, lambda x, row, length: alone_in_torch(module, x, row, length))


def elman(x: F32, w: F32, u: F32, h: F32) -> F32:
    steps = []
    for event in x:
        h = np.tanh(event @ w + h @ u)
        steps.append(h)
    return np.stack(steps)[None]


def weights(features: int) -> tuple[F32, F32]:
    random = np.random.default_rng(5)
    return (
        random.normal(size=(features, H)).astype(np.float32) * 0.4,
        random.normal(size=(H, H)).astype(np.float32) * 0.4,
    )


def cell_nodes(x: str, *, state: str = "h", result: str = "y") -> list[Any]:
    return [
        helper.make_node("MatMul", [x, "W"], ["a"]),
        helper.make_node("MatMul", [state, "U"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["s"]),
        helper.make_node("Tanh", ["s"], [result]),
    ]


def test_several_axes_per_event_and_a_single_step(tmp_path: Path) -> None:
    """As a denoiser takes spectra [batch, bins, 1, 2]: no time axis, no recurrent operator to be seen."""
    w, u = weights(8)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"], axis=1),
        *cell_nodes("flat"),
        helper.make_node("Identity", ["y"], ["g"]),
    ]
    graph = graph_model(
        nodes, [("x", ["n", 4, 1, 2]), ("h", ["n", H])], [("y", ["n", H]), ("g", ["n", H])], {"W": w, "U": u}
    )
    fields = sidecar(
        {},
        input={"name": "x", "shape": ["batch", 4, 1, 2]},
        states=[{"input": "h", "output": "g", "shape": ["batch", H], "initial": [0.1, 0.2, 0.3, 0.4, 0.5]}],
        outputs=[{"name": "y", "shape": ["batch", H]}],
    )
    model = Model.load(save(graph, tmp_path / "m.onnx", fields))
    assert (model.contract.features, model.max_steps, model.batched) == (8, 1, True)
    start = np.array([0.1, 0.2, 0.3, 0.4, 0.5], np.float32)
    assert_serves(model, lambda x, row, length: [elman(x[row, :length], w, u, start)], final=False)


def test_time_before_batch_in_input_and_output(tmp_path: Path) -> None:
    w, _ = weights(F)
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["wide"]),
        helper.make_node("Concat", ["h", "wide"], ["with"], axis=0),
        helper.make_node("CumSum", ["with", "zero"], ["sums"]),
        helper.make_node("Slice", ["sums", "one", "end", "zeros"], ["y"]),
        helper.make_node("Slice", ["sums", "minus", "end", "zeros"], ["h_next"]),
    ]
    constants = {
        "W": w,
        "zero": np.int64(0),
        "zeros": np.array([0]),
        "one": np.array([1]),
        "minus": np.array([-1]),
        "end": np.array([2**31]),
    }
    graph = graph_model(
        nodes,
        [("x", ["time", "n", F]), ("h", [1, "n", H])],
        [("y", ["time", "n", H]), ("h_next", [1, "n", H])],
        constants,
    )
    fields = sidecar(
        {"h": [1, "batch", H]},
        input={"name": "x", "shape": ["time", "batch", F]},
        outputs=[{"name": "y", "shape": ["time", "batch", H]}],
    )
    model = Model.load(save(graph, tmp_path / "m.onnx", fields))
    assert model.max_steps is None

    def alone(x: F32, row: int, length: int) -> list[F32]:
        sums = 0.25 + np.cumsum(x[row, :length] @ w, axis=0)
        return [sums[None], sums[-1][None, None]]

    assert_serves(model, alone)


def test_constants_and_context(tmp_path: Path) -> None:
    """As a voice detector wants them: the last samples of the previous chunk in front, and a sampling rate."""
    context, features = 2, 4
    w, u = weights(context + features)
    nodes = [
        helper.make_node("Cast", ["rate"], ["ratef"], to=1),
        helper.make_node("Mul", ["ratef", "scale"], ["gain"]),
        helper.make_node("Mul", ["x", "gain"], ["scaled"]),
        *cell_nodes("scaled"),
        helper.make_node("Mul", ["y", "half"], ["h_next"]),
    ]
    graph = graph_model(
        nodes,
        [("x", ["n", context + features]), ("h", ["n", H]), ("rate", [], INT64)],
        [("y", ["n", H]), ("h_next", ["n", H])],
        {"W": w, "U": u, "scale": np.float32(1e-3), "half": np.float32(0.5)},
    )
    fields = sidecar(
        {},
        input={"name": "x", "shape": ["batch", features]},
        states=[{"input": "h", "output": "h_next", "shape": ["batch", H]}],
        outputs=[{"name": "y", "shape": ["batch", H]}],
        constants={"rate": 2000},
        context=context,
    )
    model = Model.load(save(graph, tmp_path / "m.onnx", fields))
    assert [state.input for state in model.states] == ["h", "context"]
    assert model.state_bytes_per_stream == 4 * (H + context)

    def alone(x: F32, row: int, length: int) -> list[F32]:
        h, before, steps = np.zeros(H), np.zeros(context), []
        for event in x[row, :length]:
            y = np.tanh(np.concatenate((before, event)) * 2 @ w + h @ u)
            h, before = y * 0.5, event[-context:]
            steps.append(y)
        return [np.stack(steps)[None], h[None], before[None]]

    assert_serves(model, alone)


def test_a_window_model_without_lengths_pads_nothing(tmp_path: Path) -> None:
    """The mean over time would count padding: rows of different length must not share a call."""
    graph = graph_model(
        [helper.make_node("ReduceMean", ["x", "one"], ["y"], keepdims=0)],
        [("x", ["n", "t", F])],
        [("y", ["n", F])],
        {"one": np.array([1])},
    )
    fields = sidecar({}, mode="window", states=None, outputs=[{"name": "y", "shape": ["batch", F]}])
    model = Model.load(save(graph, tmp_path / "m.onnx", fields))
    assert not model.ragged
    x = np.random.default_rng(0).normal(size=(4, 6, F)).astype(np.float32)
    for lengths in (LENGTHS, np.full(4, 3, np.int32)):
        (y,), states = model.run(x, lengths, [])
        assert states == []
        expected = [x[row, :length].mean(axis=0) for row, length in enumerate(lengths)]
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6)


def test_a_window_model_that_needs_a_length_multiple(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "pairs"], ["paired"]),
        helper.make_node("ReduceMax", ["paired", "axes"], ["y"], keepdims=0),
    ]
    graph = graph_model(
        nodes, [("x", ["n", "t", F])], [("y", ["n", F])], {"pairs": np.array([0, -1, 2, F]), "axes": np.array([1, 2])}
    )
    fields = sidecar({}, mode="window", states=None, outputs=[{"name": "y", "shape": ["batch", F]}])
    model = Model.load(save(graph, tmp_path / "m.onnx", fields))
    assert model.length_multiple == 2
    assert [finding.name for finding in model.findings if not finding.passed] == ["length_multiple"]
