"""From a module with an encoder and a decoder to one ONNX file: the encoder is its graph, the decoder lies in its metadata.

The encoder is planned and made a graph as any module of whole sequences (``export.modules``): recurrent layers become
nodes with ``sequence_lens``. The decoder is one step, traced. Which tensors pass between them is found by running both.
Shapes: B rows, T steps, V labels.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from streamer.errors import ModelError
from streamer.modelfile.contract import Contract
from streamer.modelfile.decoder import DECODER_KEY
from streamer.modelfile.parts import Axis

from .. import emit
from ..graph import write
from ..modules.calling import axes_of, example, vocabulary
from ..modules.factory import told
from ..modules.lower import all_nodes, filled, opaque, traced
from ..modules.planner import Planner
from ..modules.recurrent import Call, States, intercepted
from ..modules.sequence import checked_input, completed, sequence_graph
from ..modules.trial import SIZES

_ROWS, _STEPS = 3, 5
_LENGTHS, _SYMBOL, _LOG_PROBABILITIES = "lengths", "symbol", "log_probabilities"


@dataclass(frozen=True)
class Parts:
    """What passes from encoder to decoder: names, and shapes with "batch" and "time"."""

    memory: dict[str, tuple[Axis, ...]]
    states: dict[str, tuple[Axis, ...]]


def export_pair(module: nn.Module, fields: Mapping[str, Any], path: str | os.PathLike[str]) -> Contract:
    """Writes ``path`` atomically, after the service's own loading and probing of it has passed; returns its contract.

    ``module``: ``encoder(x[B,T,F], lengths[B]) -> (memory, states)`` and ``decoder(symbol[B], states, memory, lengths[B]) ->
    (log_probabilities[B,V], states)``, memory and states tuples of tensors. It is set to evaluation mode. ``fields``: name,
    input, decoder (labels, begin, end, max_steps, search, ...), and what people want to know. ModelError says why it
    cannot be exported; then nothing was written.
    """
    module.eval()
    encoder, decoder = parts_of(module)
    source = f"the contract of {fields.get('name', 'the model')}"
    declared = _decoder_fields(fields, source)
    given = {**fields, "input": checked_input(fields, source)}
    parts = found_parts(encoder, given)
    names = [*parts.memory, *parts.states]
    planned = {
        **{key: value for key, value in given.items() if key != "decoder"},
        "mode": "window",
        "outputs": [{"name": name} for name in names],
    }
    plan = Planner(encoder, planned).plan()
    if plan.cells:
        raise ModelError(
            f"the encoder's submodule {plan.cells[0]!r} is called in a loop over time: use nn.LSTM, nn.GRU or nn.RNN in"
            " place of the loop"
        )
    planned["parameters"] = sum(parameter.numel() for parameter in module.parameters())
    base = completed(encoder, plan, planned, str(fields.get("lengths") or _LENGTHS), source)
    graph, with_lengths = _decoder_graph(decoder, encoder, given, parts, len(declared["labels"]))
    table = {
        **declared,
        "symbol": _SYMBOL,
        "log_probabilities": _LOG_PROBABILITIES,
        "lengths": _LENGTHS if with_lengths else None,
        "memory": [{"output": name, "input": name} for name in parts.memory],
        "states": [{"initial": name, "input": name, "output": f"{name}_next"} for name in parts.states],
    }
    contract = Contract.from_fields({**msgspec.to_builtins(base), "decoder": table}, source=source)
    text = base64.b64encode(graph.SerializeToString()).decode()
    write(sequence_graph(encoder, plan, contract), contract, path, metadata={DECODER_KEY: text})
    return contract


def parts_of(module: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The two submodules. ModelError: it is no pair."""
    found = [getattr(module, name, None) for name in ("encoder", "decoder")]
    if not all(isinstance(each, nn.Module) for each in found):
        raise ModelError(f"{type(module).__name__} is no pair: it needs the submodules encoder and decoder")
    return found[0], found[1]  # type: ignore[return-value]


def _decoder_fields(fields: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The contract's table, with indices for begin and end."""
    given = fields.get("decoder")
    missing = [
        name for name in ("labels", "begin", "end", "max_steps") if not isinstance(given, dict) or name not in given
    ]
    if missing or not isinstance(given, dict):
        raise ModelError(f"{source}: decoder lacks {', '.join(missing)}: declare what only you know of it")
    labels = list(given["labels"])
    found = {**given, "labels": labels}
    for name in ("begin", "end"):
        if isinstance(given[name], str):
            if labels.count(given[name]) != 1:
                raise ModelError(f"{source}: decoder.{name} {given[name]!r} is not one of its labels")
            found[name] = labels.index(given[name])
    return found


def found_parts(encoder: nn.Module, fields: Mapping[str, Any]) -> Parts:
    """Memory and states as the encoder returns them for made-up events. ModelError: it returns something else."""
    results = [run_encoder(encoder, fields, rows, steps) for rows, steps in SIZES]
    shapes = []
    for place, what in ((0, "memory"), (1, "state")):
        named = {}
        for number in range(len(results[0][place])):
            seen = [tuple(each[place][number].shape) for each in results]
            axes = axes_of(seen, SIZES)
            if axes.count("batch") != 1 or axes.count("time") > (what == "memory") or None in axes or "flat" in axes:
                raise ModelError(
                    f"the encoder's {what} {number} has shape {list(seen[0])} for 2 rows of 5 steps, {list(seen[2])} for 2 of 7:"
                    ' it needs the rows ("batch") once, '
                    + ('"time" at most once, ' if what == "memory" else "")
                    + "and fixed sizes"
                )
            named[f"{what}_{number}"] = tuple(axes)
        shapes.append(named)
    return Parts(*shapes)  # type: ignore[arg-type]


def run_encoder(
    encoder: nn.Module, fields: Mapping[str, Any], rows: int, steps: int
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(memory, states) for made-up events. ModelError: it fails, or returns something else."""
    given = fields["input"]
    x = example(given["shape"], given.get("dtype", "float32"), rows, steps, vocabulary(encoder), 0)
    return checked_parts(lambda: encoder(x, torch.full((rows,), steps, dtype=torch.int64)), list(x.shape))


def checked_parts(call: Callable[[], Any], shape: Sequence[int]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The encoder's result. ModelError: it fails, or returns something else than two tuples of tensors."""
    try:
        with torch.no_grad():
            result = call()
    except Exception as error:  # whatever a foreign module raises
        raise ModelError(f"the encoder failed on events of shape {list(shape)}: {told(error)}") from None
    good = (
        isinstance(result, tuple | list) and len(result) == 2 and all(isinstance(part, tuple | list) for part in result)
    )
    if not good or not all(isinstance(tensor, Tensor) for part in result for tensor in part):
        raise ModelError("the encoder must return (memory, states), each a tuple of tensors; memory may be empty: ()")
    return tuple(result[0]), tuple(result[1])


class _Step(nn.Module):
    """What torch traces: flat inputs (symbol, lengths, states, memory) to flat outputs (log-probabilities, states)."""

    def __init__(self, decoder: nn.Module, states: int) -> None:
        super().__init__()
        self.module, self.states = decoder, states

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        symbol, lengths, *rest = inputs

        def answer(call: Call, original: Callable[..., Any]) -> Any:
            start: States | None = call.states
            if call.is_cell:
                return original(call.x, None if start is None else start[0] if len(start) == 1 else start)
            return opaque(call, start, None, None, None)

        with intercepted(self.module, answer):
            log_probabilities, states = self.module(
                symbol, tuple(rest[: self.states]), tuple(rest[self.states :]), lengths
            )
        # A tensor that is input and output at once, or output twice, would not become an output of its own.
        return tuple(value.clone() for value in (log_probabilities, *states))


def _decoder_graph(
    decoder: nn.Module, encoder: nn.Module, fields: Mapping[str, Any], parts: Parts, labels: int
) -> tuple[onnx.ModelProto, bool]:
    """The graph of one step, and whether it takes lengths. ModelError says what the decoder does not do."""
    memory, states = run_encoder(encoder, fields, _ROWS, _STEPS)
    symbol, lengths = torch.arange(_ROWS) % labels, torch.tensor([_STEPS, 2, 3])
    _check_step(decoder, symbol, states, memory, lengths, labels)
    dynamic: list[dict[int, Any]] = [{0: torch.export.Dim.AUTO}, {0: torch.export.Dim.AUTO}]
    shapes = {**parts.states, **parts.memory}
    for shape in shapes.values():
        dynamic.append({at: torch.export.Dim.AUTO for at, axis in enumerate(shape) if isinstance(axis, str)})
    outputs = [_LOG_PROBABILITIES, *(f"{name}_next" for name in parts.states)]
    inputs = (symbol, lengths, *states, *memory)
    model = traced(_Step(decoder, len(states)), decoder, inputs, dynamic, [_SYMBOL, _LENGTHS, *shapes], outputs)
    model = filled(model, decoder)
    _check_dynamic(model, shapes)
    used = {name for node in all_nodes(model.graph) for name in node.input}
    for name in parts.memory:
        if name not in used:
            raise ModelError(f"the decoder does not look at {name}: leave it out of what the encoder returns as memory")
    if not parts.states and _SYMBOL not in used:
        raise ModelError("neither a symbol nor a state has an effect on what the decoder computes")
    with_lengths = _LENGTHS in used and any("time" in shape for shape in parts.memory.values())
    values = [helper.make_tensor_value_info(_SYMBOL, TensorProto.INT64, ["batch"])]
    if with_lengths:
        values.append(helper.make_tensor_value_info(_LENGTHS, TensorProto.INT64, ["batch"]))
    values += [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in shapes.items()]
    results = [helper.make_tensor_value_info(_LOG_PROBABILITIES, TensorProto.FLOAT, ["batch", labels])]
    for name, shape in parts.states.items():
        results.append(helper.make_tensor_value_info(f"{name}_next", TensorProto.FLOAT, list(shape)))
    del model.graph.input[:], model.graph.output[:]
    model.graph.input.extend(values)
    model.graph.output.extend(results)
    model.ir_version = min(model.ir_version, emit.IR_VERSION)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker's errors and those of shape inference have no common base
        raise ModelError(f"the decoder's graph is not valid ONNX: {' '.join(str(error).split())[:300]}") from None
    return model, with_lengths


def _check_step(
    decoder: nn.Module, symbol: Tensor, states: Sequence[Tensor], memory: Sequence[Tensor], lengths: Tensor, labels: int
) -> None:
    try:
        with torch.no_grad():
            log_probabilities, nexts = decoder(symbol, tuple(states), tuple(memory), lengths)
    except Exception as error:  # whatever a foreign module raises
        raise ModelError(f"the decoder failed on one step of {len(symbol)} rows: {told(error)}") from None
    if list(log_probabilities.shape) != [len(symbol), labels]:
        raise ModelError(
            f"the decoder gives {list(log_probabilities.shape)} for {len(symbol)} rows, the contract has {labels} labels: it must"
            " give [batch, labels]"
        )
    before, after = [list(each.shape) for each in states], [list(each.shape) for each in nexts]
    if before != after:
        raise ModelError(f"the decoder takes states of shapes {before} and returns {after}: they must be the same")


def _check_dynamic(model: onnx.ModelProto, shapes: Mapping[str, Sequence[Axis]]) -> None:
    inputs = {each.name: each for each in model.graph.input}
    for name, shape in {_SYMBOL: ("batch",), **shapes}.items():
        for at, axis in enumerate(shape):
            if isinstance(axis, str) and name in inputs and not inputs[name].type.tensor_type.shape.dim[at].dim_param:
                raise ModelError(f"torch froze the {axis} axis of the decoder's {name}: it must not depend on its size")
