"""An LSTM with a projection (``proj_size``) as Scan nodes: the ONNX LSTM has none.

h = (o * tanh(c)) W_hr; everything else is the LSTM's. Shapes: T steps, B rows, D directions, H hidden, P projected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from .nodes import Graph


def projected_layer(
    graph: Graph, module: Any, layer: int, x: str, lengths: str, states: Sequence[str]
) -> tuple[str, str, str]:
    """x[T,B,in] -> y[T,D,B,P] (zero beyond a row's length), final h[D,B,P] and c[D,B,H]; ``states`` h and c, or none."""
    ys, hs, cs = [], [], []
    for direction in range(2 if module.bidirectional else 1):
        start = [graph.op("Gather", state, graph.constant(np.int64(direction)), axis=0) for state in states]
        start = start or [_zeros(graph, x, size) for size in (module.proj_size, module.hidden_size)]
        y, h, c = _direction(graph, module, f"l{layer}" + ("_reverse" if direction else ""), x, lengths, start)
        ys.append(graph.op("Unsqueeze", y, graph.axes(1)))
        hs.append(graph.op("Unsqueeze", h, graph.axes(0)))
        cs.append(graph.op("Unsqueeze", c, graph.axes(0)))
    if len(ys) == 1:
        return ys[0], hs[0], cs[0]
    return graph.op("Concat", *ys, axis=1), graph.op("Concat", *hs, axis=0), graph.op("Concat", *cs, axis=0)


def valid_steps(graph: Graph, x: str, lengths: str) -> str:
    """[T,B,1], true within each row's length, of x[T,B,...]."""
    steps = graph.op("Squeeze", graph.op("Shape", x, start=0, end=1), graph.axes(0))
    places = graph.op("Range", graph.constant(np.int64(0)), steps, graph.constant(np.int64(1)))
    ends = graph.op("Unsqueeze", graph.op("Cast", lengths, to=TensorProto.INT64), graph.axes(0))
    return graph.op("Unsqueeze", graph.op("Less", graph.op("Unsqueeze", places, graph.axes(1)), ends), graph.axes(2))


def _zeros(graph: Graph, x: str, size: int) -> str:
    rows = graph.op("Shape", x, start=1, end=2)
    return graph.op("ConstantOfShape", graph.op("Concat", rows, graph.axes(size), axis=0))


def _direction(
    graph: Graph, module: Any, suffix: str, x: str, lengths: str, states: Sequence[str]
) -> tuple[str, str, str]:
    def weight(name: str) -> Any:
        return getattr(module, f"{name}_{suffix}").detach().cpu().numpy()

    gates = graph.op("MatMul", x, graph.constant(weight("weight_ih").T, "W"))
    if module.bias:
        gates = graph.op("Add", gates, graph.constant(weight("bias_ih") + weight("bias_hh"), "bias"))
    recurrent = graph.constant(weight("weight_hh").T, "R")
    projection = graph.constant(weight("weight_hr").T, "P")
    inner = graph.inner()
    h, c, step, valid = (inner.name(hint) for hint in ("h", "c", "step", "valid"))
    size = module.hidden_size
    total = inner.op("Add", step, inner.op("MatMul", h, recurrent))
    i, f, g, o = inner.add("Split", total, inner.constant(np.full(4, size, np.int64), "sizes"), outputs=4, axis=-1)
    kept = inner.op("Mul", inner.op("Sigmoid", f), c)
    next_c = inner.op("Add", kept, inner.op("Mul", inner.op("Sigmoid", i), inner.op("Tanh", g)))
    next_h = inner.op("MatMul", inner.op("Mul", inner.op("Sigmoid", o), inner.op("Tanh", next_c)), projection)
    y = inner.op("Identity", next_h)
    given = [helper.make_tensor_value_info(step, TensorProto.FLOAT, None)]
    if lengths:
        y = inner.op("Where", valid, next_h, inner.constant(np.float32(0)))
        next_h, next_c = inner.op("Where", valid, next_h, h), inner.op("Where", valid, next_c, c)
        given.append(helper.make_tensor_value_info(valid, TensorProto.BOOL, None))
    carried = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (h, c)]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (next_h, next_c, y)]
    body = helper.make_graph(inner.nodes, inner.name("step"), [*carried, *given], made)
    reverse = int(suffix.endswith("_reverse"))
    scanned = [gates, *([valid_steps(graph, x, lengths)] if lengths else [])]
    last_h, last_c, whole = graph.add(
        "Scan",
        *states,
        *scanned,
        outputs=3,
        body=body,
        num_scan_inputs=len(scanned),
        scan_input_directions=[reverse] * len(scanned),
        scan_output_directions=[reverse],
    )
    return whole, last_h, last_c
