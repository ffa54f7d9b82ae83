"""The pieces of which a graph is put together: recurrent core, per-step modules, reductions, residual score.

Shapes: B rows, T steps, F features, L layers, D directions, H hidden. The recurrent core becomes RNN/LSTM/GRU nodes
with ``sequence_lens`` and explicit states; weights are constant initialisers, so that a runtime can pre-pack them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import onnx
import onnx.inliner
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from . import frontend
from .cells import ColumnEncoder, TokenEmbedding
from .nodes import Graph
from .scan import projected_layer
from .trace import trace_rows

__all__ = ["IR_VERSION", "OPSET", "Graph", "affine", "array", "core", "per_step", "reduce"]

OPSET = 20
IR_VERSION = 10

_OPERATORS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
# torch orders gates i,f,g,o (LSTM) and r,z,n (GRU); ONNX orders them i,o,f,c and z,r,h.
_GATES = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}


def array(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().cpu().to(torch.float32).numpy()


def affine(graph: Graph, value: str, *, subtract: Tensor | None = None, divide: Tensor | None = None) -> str:
    """(value - subtract) / divide, leaving out what changes nothing."""
    if subtract is not None and bool(subtract.any()):
        value = graph.op("Sub", value, graph.constant(array(subtract), "mean"))
    if divide is not None and not bool((divide == 1).all()):
        value = graph.op("Div", value, graph.constant(array(divide), "std"))
    return value


def core(
    graph: Graph,
    module: nn.RNNBase,
    kind: str,
    x: str,
    lengths: str,
    states: Sequence[str],
    *,
    time_major: bool = False,
) -> tuple[str, str, list[str]]:
    """x[B,T,F] (``time_major``: [T,B,F]) through RNN/LSTM/GRU nodes; ``states`` [L*D,B,H] each, or none for zeros.

    Returns (y as x, of D*H, zero beyond a row's length; the last layer's final h[D,B,H]; next states as ``states``).
    ``lengths`` "": all rows are as long as x. With a projection H of y and h is its size.
    """
    directions, layers = 2 if module.bidirectional else 1, module.num_layers
    size = getattr(module, "proj_size", 0) or module.hidden_size
    initial = [_split(graph, state, layers, directions) for state in states]
    finals: list[list[str]] = [[] for _ in range(2 if kind == "lstm" else 1)]
    value = x if time_major else graph.op("Transpose", x, perm=[1, 0, 2])
    for layer in range(layers):
        pieces = [each[layer] for each in initial]
        if getattr(module, "proj_size", 0):
            y, *last = projected_layer(graph, module, layer, value, lengths, pieces)
        else:
            y, *last = _layer(graph, module, kind, layer, value, lengths, pieces)
        for states_of_layers, state in zip(finals, last, strict=True):
            states_of_layers.append(state)
        if layer < layers - 1:
            value = _join_directions(graph, y, directions, size)
    merged = graph.op("Transpose", y, perm=[0, 2, 1, 3] if time_major else [2, 0, 1, 3])
    merged = graph.op("Reshape", merged, graph.axes(0, 0, directions * size))
    nexts = [graph.op("Concat", *pieces, axis=0) if layers > 1 else pieces[0] for pieces in finals]
    return merged, finals[0][-1], nexts


def _layer(
    graph: Graph, module: nn.RNNBase, kind: str, layer: int, x: str, lengths: str, states: Sequence[str]
) -> list[str]:
    """One node: y[T,D,B,H], then the final states[D,B,H]."""
    weights = [_weights(graph, module, kind, layer, name) for name in ("weight_ih", "weight_hh", "bias")]
    directions = 2 if module.bidirectional else 1
    attributes = _attributes(module, kind, directions)
    inputs = [x, *weights, lengths, *states]
    while not inputs[-1]:
        inputs.pop()
    return graph.add(_OPERATORS[kind], *inputs, outputs=3 if kind == "lstm" else 2, **attributes)


def _split(graph: Graph, state: str, layers: int, directions: int) -> list[str]:
    if layers == 1:
        return [state]
    sizes = graph.constant(np.full(layers, directions, np.int64), "sizes")
    return graph.add("Split", state, sizes, outputs=layers, axis=0)


def _join_directions(graph: Graph, y: str, directions: int, hidden: int) -> str:
    """Y[T,D,B,H] to the next layer's X[T,B,D*H]."""
    if directions == 1:
        return graph.op("Squeeze", y, graph.axes(1))
    return graph.op("Reshape", graph.op("Transpose", y, perm=[0, 2, 1, 3]), graph.axes(0, 0, 2 * hidden))


def _attributes(module: nn.RNNBase, kind: str, directions: int) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "hidden_size": module.hidden_size,
        "direction": "bidirectional" if directions == 2 else "forward",
    }
    if kind == "gru":
        attributes["linear_before_reset"] = 1  # the default, 0, is another cell than torch's
    if kind == "rnn":
        attributes["activations"] = ["Relu" if module.nonlinearity == "relu" else "Tanh"] * directions
    return attributes


def _weights(graph: Graph, module: nn.RNNBase, kind: str, layer: int, what: str) -> str:
    """W, R or B of one layer, directions stacked, gates in ONNX's order; "" for a missing B."""
    if what == "bias" and not module.bias:
        return ""
    stacked = []
    for suffix in ("", "_reverse") if module.bidirectional else ("",):
        names = ("bias_ih", "bias_hh") if what == "bias" else (what,)
        parts = [_gates(array(getattr(module, f"{name}_l{layer}{suffix}")), kind) for name in names]
        stacked.append(np.concatenate(parts))
    return graph.constant(np.stack(stacked), {"weight_ih": "W", "weight_hh": "R", "bias": "B"}[what])


def _gates(values: NDArray[np.float32], kind: str) -> NDArray[np.float32]:
    blocks = np.split(values, len(_GATES[kind]))
    return np.concatenate([blocks[gate] for gate in _GATES[kind]])


def reduce(graph: Graph, how: str, y: str, lengths: str, last_h: str) -> str:
    """y[B,T,D*H] (zero beyond a row's length) and the final h[D,B,H] to one row per window [B,D*H]."""
    if how == "last":
        return graph.op("Reshape", graph.op("Transpose", last_h, perm=[1, 0, 2]), graph.axes(0, -1))
    if how == "mean":
        count = graph.op("Unsqueeze", graph.op("Cast", lengths, to=onnx.TensorProto.FLOAT), graph.axes(1))
        return graph.op("Div", graph.op("ReduceSum", y, graph.axes(1), keepdims=0), count)
    steps = graph.op("Gather", graph.op("Shape", y), graph.constant(np.int64(1)), axis=0)
    index = graph.op("Range", graph.constant(np.int64(0)), steps, graph.constant(np.int64(1)))
    ends = graph.op("Unsqueeze", graph.op("Cast", lengths, to=onnx.TensorProto.INT64), graph.axes(1))
    valid = graph.op("Unsqueeze", graph.op("Less", index, ends), graph.axes(2))
    masked = graph.op("Where", valid, y, graph.constant(np.float32(-np.inf), "minimum"))
    return graph.op("ReduceMax", masked, graph.axes(1), keepdims=0)


def per_step(graph: Graph, module: nn.Module | None, value: str, width: int) -> str:
    """A module that works on the last axis, on value[..., width]: common ones as nodes, others traced by torch."""
    if module is None:
        return value
    module.eval()
    nodes = _common(graph, module, value)
    return nodes if nodes is not None else _traced(graph, module, value, width)


def _common(graph: Graph, module: nn.Module, value: str) -> str | None:
    simple: dict[type[nn.Module], str] = {nn.ReLU: "Relu", nn.Tanh: "Tanh", nn.Sigmoid: "Sigmoid"}
    kind = type(module)
    if kind in (nn.Identity, nn.Dropout):
        return value
    if kind in simple:
        return graph.op(simple[kind], value)
    if isinstance(module, nn.GELU):
        return graph.op("Gelu", value, approximate=module.approximate)
    if kind is nn.Linear:
        assert isinstance(module, nn.Linear)
        value = graph.op("MatMul", value, graph.constant(array(module.weight).T, "weight"))
        return value if module.bias is None else graph.op("Add", value, graph.constant(array(module.bias), "bias"))
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1 and module.elementwise_affine:
        scale = graph.constant(array(module.weight), "scale")
        shift = [graph.constant(array(module.bias), "shift")] if module.bias is not None else []
        return graph.op("LayerNormalization", value, scale, *shift, axis=-1, epsilon=module.eps)
    if kind is TokenEmbedding:
        return _embedding(graph, cast(TokenEmbedding, module), value)
    if kind is ColumnEncoder:
        return _columns(graph, cast(ColumnEncoder, module), value)
    if kind is frontend.LogMel:
        return frontend.nodes(graph, cast(frontend.LogMel, module), value)
    if kind is nn.Sequential:
        return _chain(graph, module, value)
    return None


def _embedding(graph: Graph, module: TokenEmbedding, value: str) -> str:
    """What is not in the vocabulary is compared as a number, before a cast could make an index of it."""
    number = graph.op("Squeeze", value, graph.axes(-1))
    low, high = graph.constant(np.float32(-1)), graph.constant(np.float32(module.vocabulary))
    known = graph.op("And", graph.op("Greater", number, low), graph.op("Less", number, high))
    index = graph.op("Where", known, number, graph.constant(np.float32(module.other)))
    table = graph.constant(array(module.rows), "table")
    return graph.op("Gather", table, graph.op("Cast", index, to=onnx.TensorProto.INT64))


def _columns(graph: Graph, module: ColumnEncoder, value: str) -> str:
    """The numbers of an event beside the embeddings of its categories."""
    parts = []
    if module.numbers:
        parts.append(graph.op("Gather", value, graph.constant(np.array(module.numbers, np.int64)), axis=-1))
    for column, table in zip(module.columns, module.tables, strict=True):
        one = graph.op("Gather", value, graph.constant(np.array([column], np.int64)), axis=-1)
        parts.append(_embedding(graph, cast(TokenEmbedding, table), one))
    return graph.op("Concat", *parts, axis=-1) if len(parts) > 1 else parts[0]


def _chain(graph: Graph, module: nn.Module, value: str) -> str | None:
    """All of a Sequential as nodes, or nothing of it."""
    nodes, initializers, constants = len(graph.nodes), dict(graph.initializers), dict(graph._constants)
    for each in module.children():
        made = _common(graph, each, value)
        if made is None:
            del graph.nodes[nodes:]
            graph.initializers, graph._constants = initializers, constants
            return None
        value = made
    return value


def _traced(graph: Graph, module: nn.Module, value: str, width: int) -> str:
    """Rows are flattened to [N, width] around the traced graph, so that batch and time stay dynamic in it."""
    traced, result_width = trace_rows(module, width)
    leading = graph.op("Shape", value, start=0, end=-1)
    flat = graph.op("Reshape", value, graph.axes(-1, width))
    made = graph.splice(traced, flat)
    shape = graph.op("Concat", leading, graph.axes(result_width), axis=0)
    return graph.op("Reshape", made, shape)
