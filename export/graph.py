"""From a module to one ONNX file with its contract inside: dynamic batch and time, checked before it appears."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

from streamer.errors import ModelError
from streamer.modelfile.contract import METADATA_KEY, Contract
from streamer.modelfile.model import Model
from streamer.modelfile.parts import Axis

from . import emit
from .listener import Listener, overlapped
from .model import Forecaster, SequenceModel
from .modules.factory import told
from .nodes import Graph
from .trace import Job, flatten, trace

_EXAMPLE_ROWS = 3


def export_model(
    module: SequenceModel,
    path: str | os.PathLike[str],
    *,
    name: str,
    version: str = "1",
    features: Sequence[Any] | None = None,
    trained_on: Any = None,
    metrics: Mapping[str, Any] | None = None,
    feedback: Mapping[str, Any] | None = None,
    emit: Mapping[str, Any] | None = None,
    steps: str = "one",
) -> Contract:
    """Writes ``path`` atomically, after the service's own loading and probing of it has passed; returns its contract.

    ``emit``: the table of that name for the output; ``steps``: of a record, ``one`` or ``many``.

    The module is set to evaluation mode. ModelError says why it cannot be exported; then nothing was written.
    """
    module.eval()
    contract = sequence_contract(
        module,
        name=name,
        version=version,
        features=features,
        trained_on=trained_on,
        metrics=metrics,
        feedback=feedback,
        emit=emit,
        steps=steps,
    )
    write(sequence_graph(module, contract), contract, path)
    return contract


def export_step_module(module: nn.Module, path: str | os.PathLike[str], contract: Contract) -> Contract:
    """As ``export_model``, for any causal module ``forward(x[B,F...], *states) -> (outputs, *next_states)``.

    Traced by torch's exporter; the contract declares input, states and outputs in the order of ``forward``.
    """
    module.eval()
    if contract.mode != "step" or not contract.single_step:
        raise ModelError(
            'a module whose contract has no "time" in input.shape is exported as one step: declare mode step,'
            ' or "time" where forward takes whole sequences'
        )
    if contract.lengths or contract.context:
        raise ModelError("lengths and context belong to files of other makers: leave them out of this contract")
    examples = step_examples(contract, _EXAMPLE_ROWS)
    try:
        with torch.no_grad():
            result = flatten(module(*examples))
    except Exception as error:  # whatever a foreign module raises
        given = ", ".join(f"{type_} {list(each.shape)}" for each in examples for type_ in [str(each.dtype)[6:]])
        raise ModelError(
            f"{type(module).__name__}.forward failed on one event and its states ({given}, as the contract says):"
            f" {told(error)}: correct input and states of the contract, or the module; a module that takes whole"
            ' sequences has "time" in input.shape'
        ) from None
    names = [output.name for output in contract.outputs] + [str(state.output) for state in contract.states]
    if len(result) != len(names):
        raise ModelError(
            f"the module returns {len(result)} tensors, the contract declares {len(names)}: {', '.join(names)}"
        )
    axes = [contract.input.shape.index("batch"), *(state.batch_axis for state in contract.states)]
    inputs = [contract.input.name, *(state.input for state in contract.states)]
    model = trace(Job(module, examples, tuple(axes), tuple(inputs), tuple(names)))
    shapes: dict[str, tuple[Axis, ...]] = {output.name: output.shape for output in contract.outputs}
    shapes |= {str(state.output): state.shape for state in contract.states}
    for value in model.graph.output:
        # The exporter may declare the example's sizes; a runtime would warn about them on every call.
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, list(shapes[value.name])))
    del model.graph.value_info[:]
    write(model, contract, path)
    return contract


def step_examples(contract: Contract, rows: int) -> tuple[torch.Tensor, ...]:
    """Zero input and initial states of ``rows`` streams, as a single step takes them."""
    shape = [rows if axis == "batch" else int(axis) for axis in contract.input.shape]
    x = torch.zeros(shape, dtype=getattr(torch, contract.input.dtype))
    states = [np.repeat(state.initial_row(), rows, axis=state.batch_axis) for state in contract.states]
    return (x, *(torch.from_numpy(state) for state in states))


def sequence_contract(
    module: SequenceModel,
    *,
    features: Sequence[Any] | None = None,
    emit: Mapping[str, Any] | None = None,
    steps: str = "one",
    **fields: Any,
) -> Contract:
    """What the exported graph of a SequenceModel declares."""
    taken = {"name": "x", "shape": ["batch", "time", module.features], "features": list(features or ()), "steps": steps}
    outputs = module.output_fields()
    if emit is not None:
        outputs[0]["emit"] = dict(emit)
    return Contract.from_fields(
        {
            "mode": module.mode,
            "input": taken,
            "lengths": "lengths",
            "states": module.state_fields(),
            "outputs": outputs,
            **module.cell_fields(),
            **{key: value for key, value in fields.items() if value is not None},
        },
        source=f"the contract of {fields.get('name', 'the model')}",
    )


def sequence_graph(module: SequenceModel, contract: Contract) -> onnx.ModelProto:
    """Scaling, encoder, core, reduction, head and post-processing as one graph."""
    if getattr(module.core, "proj_size", 0):
        raise ModelError("a SequenceModel has no proj_size (its states are as wide as its core): use a Linear head")
    graph = Graph()
    states = list(module.state_names)
    core_states = states[: len(module.core_state_names)]
    z = emit.affine(graph, "x", subtract=module.mean, divide=module.std)
    heard, overlap = overlapped(graph, module, z) if isinstance(module, Listener) else (z, None)
    encoded = emit.per_step(graph, module.encoder, heard, module.features)
    y, last_h, nexts = emit.core(graph, module.core, module.kind, encoded, "lengths", core_states)
    if module.reduce is not None:
        y = emit.reduce(graph, module.reduce, y, "lengths", last_h)
    y = emit.per_step(graph, module.head, y, module.directions * module.hidden)
    if isinstance(module, Forecaster):
        results, previous = _forecast(graph, module, z, y)
        nexts.append(previous)
    else:
        nexts += [overlap] if overlap is not None else []
        results = {module.output: _activation(graph, module.activation, y)}
    for name, value in results.items():
        graph.called(value, name)
    for state, value in zip(contract.states, nexts, strict=False):
        graph.called(value, str(state.output))
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, list(contract.input.shape)),
        helper.make_tensor_value_info("lengths", TensorProto.INT32, ["batch"]),
        *(helper.make_tensor_value_info(s.input, TensorProto.FLOAT, list(s.shape)) for s in contract.states),
    ]
    outputs = [
        *(helper.make_tensor_value_info(o.name, TensorProto.FLOAT, list(o.shape)) for o in contract.outputs),
        *(helper.make_tensor_value_info(str(s.output), TensorProto.FLOAT, list(s.shape)) for s in contract.states),
    ]
    made = helper.make_graph(graph.nodes, contract.name, inputs, outputs, list(graph.initializers.values()))
    return helper.make_model(
        made, opset_imports=[helper.make_opsetid("", emit.OPSET)], ir_version=emit.IR_VERSION, producer_name="streamer"
    )


def _activation(graph: Graph, activation: str, y: str) -> str:
    if activation == "softmax":
        return graph.op("Softmax", y, axis=-1)
    return graph.op("Sigmoid", y) if activation == "sigmoid" else y


def _forecast(graph: Graph, module: Forecaster, z: str, delta: str) -> tuple[dict[str, str], str]:
    """The forecast, the score of the current event by the previous prediction, and the next ``previous`` [B,F+1]."""
    prediction = graph.op("Add", z, delta) if module.skip else delta
    sizes = graph.constant(np.array([module.features, 1], np.int64), "sizes")
    carried, seen = graph.add("Split", "previous", sizes, outputs=2, axis=1)
    first = graph.op("Unsqueeze", carried, graph.axes(1))
    begin, end, one = graph.axes(0), graph.axes(-1), graph.axes(1)
    expected = graph.op("Concat", first, graph.op("Slice", prediction, begin, end, one), axis=1)
    r = emit.affine(graph, graph.op("Sub", z, expected), divide=module.residual_scale)
    reduction = "ReduceMean" if module.score == "mean" else "ReduceMax"
    score = graph.op(reduction, graph.op("Mul", r, r), end, keepdims=1)
    # A stream's first event has no prediction to be judged by: its score is 0.
    head = graph.op("Mul", graph.op("Slice", score, begin, one, one), graph.op("Unsqueeze", seen, one))
    rest = graph.op("Slice", score, one, graph.axes(np.iinfo(np.int64).max), one)
    score = graph.op("Concat", head, rest, axis=1)
    index = graph.op("Sub", graph.op("Cast", "lengths", to=TensorProto.INT64), graph.constant(np.int64(1)))
    last = graph.op("GatherND", prediction, graph.op("Unsqueeze", index, one), batch_dims=1)
    previous = graph.op("Pad", last, graph.constant(np.array([0, 0, 0, 1], np.int64)), graph.constant(np.float32(1)))
    forecast = prediction
    if not bool((module.std == 1).all()):
        forecast = graph.op("Mul", forecast, graph.constant(emit.array(module.std), "std"))
    if bool(module.mean.any()):
        forecast = graph.op("Add", forecast, graph.constant(emit.array(module.mean), "mean"))
    return {"forecast": forecast, "score": score}, previous


def write(
    model: onnx.ModelProto,
    contract: Contract,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Puts the contract in (and what else is ``metadata``) and the file in place, atomically and only if the service would
    take it."""
    target = Path(path)
    if target.with_suffix(".toml").exists():
        raise ModelError(
            f"{target.with_suffix('.toml')} is in the way: a model has its contract inside or beside it, not both"
        )
    helper.set_model_props(model, {METADATA_KEY: contract.dump().decode(), **(metadata or {})})
    model.ir_version = min(model.ir_version, emit.IR_VERSION)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker's errors and those of shape inference have no common base
        raise ModelError(
            f"the graph of {contract.name} is not valid ONNX: {' '.join(str(error).split())[:300]}"
        ) from None
    with tempfile.TemporaryDirectory(prefix=".unverified-", dir=target.parent) as staging:
        draft = Path(staging) / target.name
        onnx.save(model, draft)
        Model.load(draft)
        os.replace(draft, target)
