"""Small ONNX files of other makers' style, and sidecars: what tests serve that our exporter did not write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, INT32 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32
Value = tuple[str, Sequence[int | str]] | tuple[str, Sequence[int | str], int]


def graph_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    constants: dict[str, Any] | None = None,
    *,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """A model of the given nodes; values are (name, shape[, type]), float by default."""

    def info(value: Value) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(value[0], value[2] if len(value) == 3 else FLOAT, list(value[1]))

    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "g", [info(v) for v in inputs], [info(v) for v in outputs], tensors)
    opsets = [helper.make_opsetid("", 20), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def save(model: onnx.ModelProto, path: Path, sidecar: dict[str, Any] | None = None) -> Path:
    """Writes the model and, beside it, the sidecar."""
    onnx.save(model, path)
    if sidecar is not None:
        write_sidecar(path, sidecar)
    return path


def write_sidecar(path: Path, fields: dict[str, Any]) -> None:
    path.with_suffix(".toml").write_text("".join(f"{key} = {toml(value)}\n" for key, value in fields.items()))


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(each) for each in value) + "]"
    return json.dumps(value)


def lstm(features: int = 3, hidden: int = 4, *, seed: int = 0, bidirectional: bool = False) -> onnx.ModelProto:
    """x[batch,time,F], lengths[batch], h and c [1,batch,H] (bidirectional: no states) -> y[batch,time,D*H]."""
    random = np.random.default_rng(seed)
    directions = 2 if bidirectional else 1
    w = random.normal(size=(directions, 4 * hidden, features)).astype(np.float32)
    r = (random.normal(size=(directions, 4 * hidden, hidden)) * 0.4).astype(np.float32)
    states = [] if bidirectional else ["h", "c"]
    nodes = [
        helper.make_node("Transpose", ["x"], ["xt"], perm=[1, 0, 2]),
        helper.make_node(
            "LSTM",
            ["xt", "W", "R", "", "lengths", *states],
            ["yd", "h_next", "c_next"],
            hidden_size=hidden,
            direction="bidirectional" if bidirectional else "forward",
        ),
        helper.make_node("Transpose", ["yd"], ["yt"], perm=[2, 0, 1, 3]),
        helper.make_node("Reshape", ["yt", "flat"], ["y"]),
    ]
    shape = [1, "batch", hidden]
    inputs: list[Value] = [("x", ["batch", "time", features]), ("lengths", ["batch"], INT32)]
    return graph_model(
        nodes,
        [*inputs, *((name, shape) for name in states)],
        [("y", ["batch", "time", directions * hidden]), *((f"{name}_next", shape) for name in states)],
        {"W": w, "R": r, "flat": np.array([0, 0, directions * hidden])},
    )


def lstm_fields(features: int = 3, hidden: int = 4, **changes: Any) -> dict[str, Any]:
    """The contract of ``lstm``; a change to None leaves the field out."""
    document = {
        "name": "lstm",
        "mode": "step",
        "input": {"name": "x", "shape": ["batch", "time", features]},
        "lengths": "lengths",
        "states": [{"input": n, "output": f"{n}_next", "shape": [1, "batch", hidden]} for n in ("h", "c")],
        "outputs": [{"name": "y", "shape": ["batch", "time", hidden]}],
        **changes,
    }
    return {key: value for key, value in document.items() if value is not None}


def recogniser(
    features: int, labels: int, hidden: int = 8, *, seed: int = 0, bidirectional: bool = False
) -> onnx.ModelProto:
    """``lstm`` with probabilities of labels on top: p[batch,time,labels]."""
    random = np.random.default_rng(seed)
    model = lstm(features, hidden, seed=seed, bidirectional=bidirectional)
    width = hidden * (2 if bidirectional else 1)
    weight = (random.normal(size=(width, labels)) * 6).astype(np.float32)
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(weight, "V"))
    graph.node.append(helper.make_node("MatMul", ["y", "V"], ["logits"]))
    graph.node.append(helper.make_node("Softmax", ["logits"], ["p"], axis=-1))
    graph.output[0].CopyFrom(helper.make_tensor_value_info("p", FLOAT, ["batch", "time", labels]))
    return model


def recogniser_fields(features: int, labels: Sequence[str], hidden: int = 8, **changes: Any) -> dict[str, Any]:
    """The contract of ``recogniser``: label 0 is the blank."""
    shape = ["batch", "time", len(labels)]
    emit = {"rule": "ctc", "blank": 0}
    output = {"name": "p", "shape": shape, "kind": "classes", "labels": list(labels), "emit": emit}
    return lstm_fields(features, hidden, name="recogniser", outputs=[output], **changes)
