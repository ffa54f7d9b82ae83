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
from onnx import helper, numpy_helper
from torch import Tensor, nn

from streamer.errors import ModelError

from .cells import ColumnEncoder, TokenEmbedding
from .trace import trace_rows

OPSET = 20
IR_VERSION = 10

_OPERATORS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
# torch orders gates i,f,g,o (LSTM) and r,z,n (GRU); ONNX orders them i,o,f,c and z,r,h.
_GATES = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}


class Graph:
    """Nodes and initialisers under construction; every method appends and returns the name of the value it made."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._count = 0

    def name(self, hint: str) -> str:
        self._count += 1
        return f"{hint}_{self._count}"

    def constant(self, value: Any, hint: str = "constant") -> str:
        """An initialiser; equal ones are shared."""
        array = np.ascontiguousarray(value)
        if array.shape != np.shape(value):  # ascontiguousarray makes scalars one-dimensional
            array = array.reshape(np.shape(value))
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            name = self.name(hint)
            self.initializers[name] = numpy_helper.from_array(array, name)
            self._constants[key] = name
        return self._constants[key]

    def axes(self, *axes: int) -> str:
        return self.constant(np.array(axes, np.int64), "axes")

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> list[str]:
        made = [self.name(operator.lower()) for _ in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), made, name=self.name(operator), **attributes))
        return made

    def op(self, operator: str, *inputs: str, **attributes: Any) -> str:
        return self.add(operator, *inputs, **attributes)[0]

    def called(self, value: str, name: str) -> None:
        """Makes ``value`` the graph output ``name``: renamed where a node made it, else copied."""
        makers = [node for node in self.nodes if value in node.output]
        taken = any(name in node.output for node in self.nodes)
        if not makers or taken:
            self.nodes.append(helper.make_node("Identity", [value], [name], name=self.name("Identity")))
            return
        for node in self.nodes:
            node.input[:] = [name if each == value else each for each in node.input]
            node.output[:] = [name if each == value else each for each in node.output]

    def splice(self, model: onnx.ModelProto, value: str) -> str:
        """All of another model's graph, with its one input fed by ``value``; returns its one output."""
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        prefix = self.name("traced") + "."
        names = {model.graph.input[0].name: value, "": ""}

        def renamed(name: str) -> str:
            return names.get(name, prefix + name)

        for tensor in model.graph.initializer:
            copy = onnx.TensorProto()
            copy.CopyFrom(tensor)
            copy.name = renamed(tensor.name)
            self.initializers[copy.name] = copy
        for node in model.graph.node:
            if any(
                attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
                for attribute in node.attribute
            ):
                raise ModelError(
                    f"the module's graph branches ({node.op_type}): encoder and head must be free of control flow"
                )
            step = onnx.NodeProto()
            step.CopyFrom(node)
            step.name = prefix + node.name
            step.input[:] = [renamed(name) for name in node.input]
            step.output[:] = [renamed(name) for name in node.output]
            self.nodes.append(step)
        return renamed(model.graph.output[0].name)


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
    graph: Graph, module: nn.RNNBase, kind: str, x: str, lengths: str, states: Sequence[str]
) -> tuple[str, str, list[str]]:
    """x[B,T,F] through RNN/LSTM/GRU nodes; ``states`` [L*D,B,H] each, or none for zeros.

    Returns (y[B,T,D*H], zero beyond a row's length; the last layer's final h[D,B,H]; next states as ``states``).
    """
    if getattr(module, "proj_size", 0):
        raise ModelError("proj_size is not supported: the ONNX LSTM has no projection; use a Linear head instead")
    directions, layers = 2 if module.bidirectional else 1, module.num_layers
    initial = [_split(graph, state, layers, directions) for state in states]
    finals: list[list[str]] = [[] for _ in range(2 if kind == "lstm" else 1)]
    value = graph.op("Transpose", x, perm=[1, 0, 2])
    for layer in range(layers):
        weights = [_weights(graph, module, kind, layer, name) for name in ("weight_ih", "weight_hh", "bias")]
        inputs = [value, *weights, lengths, *(pieces[layer] for pieces in initial)]
        y, *last = graph.add(
            _OPERATORS[kind], *inputs, outputs=1 + len(finals), **_attributes(module, kind, directions)
        )
        for states_of_layers, state in zip(finals, last, strict=True):
            states_of_layers.append(state)
        if layer < layers - 1:
            value = _join_directions(graph, y, directions, module.hidden_size)
    merged = graph.op("Transpose", y, perm=[2, 0, 1, 3])
    merged = graph.op("Reshape", merged, graph.axes(0, 0, directions * module.hidden_size))
    nexts = [graph.op("Concat", *pieces, axis=0) if layers > 1 else pieces[0] for pieces in finals]
    return merged, finals[0][-1], nexts


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
