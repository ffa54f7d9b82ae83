"""A planned module as an ONNX graph with dynamic batch and time.

Torch's exporter traces all of ``forward`` with the recurrent submodules left out as opaque nodes; these are then put
in as RNN/LSTM/GRU nodes with ``sequence_lens`` and explicit states. Everything happens on one copy in this process: the
state that torch's exporter leaks belongs to its own lowering of recurrent layers, which is never used here.
"""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any

import onnx
import onnx.inliner
import torch
from torch import Tensor, nn

from streamer.errors import ModelError

from .. import emit
from ..nodes import Graph
from .calling import example, vocabulary
from .factory import place
from .plan import Plan
from .ragged import Ragged
from .recurrent import Call, Padded, States, padded_packing

_DOMAIN, _OPERATOR = "streamer", "Recurrent"
_ROWS, _STEPS = 3, 5
_FLOAT = 1


class _Traced(nn.Module):
    """What torch traces: flat inputs (x, lengths if there are, states) to flat outputs (outputs, next states)."""

    def __init__(self, module: nn.Module, plan: Plan, with_lengths: bool) -> None:
        super().__init__()
        self.module, self.plan, self.with_lengths = module, plan, with_lengths

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        x, *states = inputs
        lengths = states.pop(0) if self.with_lengths else None
        places = {axis: number for number, axis in enumerate(self.plan.shape)}
        rows, steps = x.shape[places["batch"]], x.shape[places["time"]]
        valid = torch.full((rows,), steps, dtype=torch.int64) if lengths is None else lengths.to(torch.int64)

        def answer(call: Call, original: Callable[..., Any], start: States | None) -> Any:
            if call.is_cell:
                return original(call.x, None if start is None else start[0] if len(start) == 1 else start)
            return opaque(call, start, lengths, rows, steps)

        ragged = lengths if self.plan.mode == "window" else None
        with Ragged(ragged, rows, steps):
            outputs, nexts = self.plan.run(self.module, x, valid, states, answer)
        # A tensor that is input and output at once, or output twice, would not become an output of its own.
        return tuple(value.clone() for value in (*outputs, *nexts))


def opaque(call: Call, start: States | None, lengths: Tensor | None, rows: Any, steps: Any) -> Any:
    """A recurrent layer's place in the graph, with results of the right shapes."""
    layer, x = call.module, call.x
    packed = isinstance(x, Padded)
    value, batch_first = (x.data, x.batch_first) if packed else (x, layer.batch_first)
    if value.ndim != 3:
        raise ModelError(f"the submodule {call.name!r} is called without a batch axis: give it [batch, time, features]")
    batch, time = value.shape[0 if batch_first else 1], value.shape[1 if batch_first else 0]
    if packed:
        ends: Tensor | None = x.lengths
    else:
        ends = lengths if lengths is not None and _same(batch, rows) and _same(time, steps) else None
    directions = 2 if layer.bidirectional else 1
    size = getattr(layer, "proj_size", 0) or layer.hidden_size
    last = [(layer.num_layers * directions, batch, size)]
    if call.kind == "lstm":
        last.append((layer.num_layers * directions, batch, layer.hidden_size))
    inputs = [value, *([ends] if ends is not None else []), *(start or ())]
    y, *states = torch.onnx.ops.symbolic_multi_out(
        f"{_DOMAIN}::{_OPERATOR}",
        inputs,
        attrs={
            "module": call.name,
            "kind": call.kind,
            "lengths": int(ends is not None),
            "batch_first": int(batch_first),
        },
        dtypes=(_FLOAT,) * (1 + len(last)),
        shapes=((value.shape[0], value.shape[1], directions * size), *last),
        version=1,
    )
    result = Padded(y, x.lengths, batch_first) if packed else y
    return result, tuple(states) if call.kind == "lstm" else states[0]


def _same(size: Any, other: Any) -> bool:
    """Equal without a guard on symbols."""
    expressions = [getattr(getattr(each, "node", None), "expr", each) for each in (size, other)]
    return bool(expressions[0] == expressions[1])


def lower(
    module: nn.Module,
    plan: Plan,
    *,
    input_name: str,
    lengths: str | None,
    states: Sequence[str],
    outputs: Sequence[str],
) -> onnx.ModelProto:
    """The graph. ``lengths``: the input that takes each row's valid steps, None: all rows of a call are equally long.

    ModelError, with the submodule or the place, for what torch cannot trace with any number of rows and steps.
    """
    steps = 1 if plan.one_step else _STEPS
    x = example(plan.shape, plan.dtype, _ROWS, steps, vocabulary(module), 0)
    inputs = [x, *([torch.full((_ROWS,), steps, dtype=torch.int32)] if lengths else [])]
    inputs += plan.initial(_ROWS) if plan.mode == "step" else []
    dynamic: list[dict[int, Any]] = [{plan.shape.index("batch"): torch.export.Dim.AUTO}]
    if not plan.one_step:
        dynamic[0][plan.shape.index("time")] = torch.export.Dim.AUTO
    dynamic += [{0: torch.export.Dim.AUTO}] if lengths else []
    dynamic += [{state.batch_axis: torch.export.Dim.AUTO} for state in plan.states]
    names = [input_name, *([lengths] if lengths else []), *states]
    model = traced(_Traced(module, plan, lengths is not None), module, inputs, dynamic, names, outputs)
    _check_dynamic(model, plan, type(module).__name__, input_name)
    return filled(model, module)


def traced(
    forward: nn.Module,
    module: nn.Module,
    inputs: Sequence[Tensor],
    dynamic: Sequence[dict[int, Any]],
    names: Sequence[str],
    outputs: Sequence[str],
) -> onnx.ModelProto:
    """``forward``, which calls ``module``, by torch's exporter. ModelError says what it cannot do, and where."""
    name = type(module).__name__
    with _quietly():
        try:
            found = torch.export.export(forward, tuple(inputs), dynamic_shapes=(tuple(dynamic),), strict=False)
        except ModelError:
            raise
        except Exception as error:  # whatever tracing a foreign module raises
            raise ModelError(f"torch cannot trace {name}: {_reason(error)}") from None
        try:
            program: Any = torch.onnx.export(
                found, input_names=list(names), output_names=list(outputs), opset_version=emit.OPSET, dynamo=True,
                external_data=False, verbose=False,
            )  # fmt: skip
        except Exception as error:  # an operator without a translation
            raise ModelError(f"{_untranslated(found, error, module)} cannot become a graph: {_reason(error)}") from None
    model: onnx.ModelProto = program.model_proto
    return model


@contextmanager
def _quietly() -> Any:
    """Without torch's notes; what the user's code prints goes to stderr."""
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "torch._export")
    ]
    levels = [each.level for each in loggers]
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(sys.stderr))
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(torch.no_grad())
        stack.enter_context(padded_packing())
        warnings.simplefilter("ignore")
        for each in loggers:
            each.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for each, level in zip(loggers, levels, strict=True):
                each.setLevel(level)


def _reason(error: BaseException) -> str:
    text = str(error)
    if "data-dependent" in text or "GuardOnDataDependent" in type(error).__name__ or "unbacked" in text:
        where = place(error)
        return f"what runs depends on the values of the events{where}: no if, for, .item() or .tolist() on values or lengths"
    if "specialized" in text or "specialization" in text.lower():
        return "it loops over time, or depends on the number of rows or steps in another way"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{type(error).__name__} ({(lines or [''])[0][:300]}){place(error)}"


def _untranslated(traced: Any, error: BaseException, module: nn.Module) -> str:
    """The submodule in which the operator lies that torch could not translate."""
    found = re.search(r"(aten\.\w+(?:\.\w+)?)", str(error))
    for node in traced.graph.nodes:
        if found and str(node.target).startswith(found[1]):
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            path = stack[-1][0].removeprefix("L['self'].").removeprefix("module.") if stack else ""
            if path and path != "module":
                return f"the submodule {path!r} ({found[1]})"
    return type(module).__name__


def _check_dynamic(model: onnx.ModelProto, plan: Plan, name: str, input_name: str) -> None:
    value = next((each for each in model.graph.input if each.name == input_name), None)
    if value is None:
        raise ModelError(f"the events have no effect on what {name} computes")
    for axis in ("batch", *(() if plan.one_step else ("time",))):
        if not value.type.tensor_type.shape.dim[plan.shape.index(axis)].dim_param:
            remedy = (
                "it loops over time: use nn.LSTM, nn.GRU or nn.RNN in place of the loop"
                if axis == "time"
                else "the module must not depend on the number of rows"
            )
            raise ModelError(f"torch froze the {axis} axis of {name}: {remedy}")


def filled(model: onnx.ModelProto, module: nn.Module) -> onnx.ModelProto:
    """Recurrent nodes in the places that were left for them; without what nothing uses."""
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    graph = Graph("recurrent.")
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.domain != _DOMAIN:
            nodes.append(node)
            continue
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        layer: Any = module.get_submodule(attributes["module"].decode())
        inputs = list(node.input)
        x = inputs.pop(0)
        lengths = inputs.pop(0) if attributes["lengths"] else ""
        time_major = not attributes["batch_first"]
        y, _, finals = emit.core(graph, layer, attributes["kind"].decode(), x, lengths, inputs, time_major=time_major)
        for made, wanted in zip((y, *finals), node.output, strict=False):
            if wanted:
                graph.called(made, wanted)
        nodes += graph.nodes
        graph.nodes = []
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(graph.initializers.values())
    used = {name for node in all_nodes(model.graph) for name in node.input} | {each.name for each in model.graph.output}
    kept = [each for each in model.graph.initializer if each.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    domains = {node.domain for node in all_nodes(model.graph)}
    opsets = [each for each in model.opset_import if each.domain == "" or each.domain in domains]
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    del model.graph.value_info[:]
    return model


def all_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    found = []
    for node in graph.node:
        found.append(node)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found += all_nodes(attribute.g)
    return found
