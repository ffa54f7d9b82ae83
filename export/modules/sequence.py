"""Modules whose ``forward`` takes a whole sequence: planned, traced, written, and run eagerly as the reference.

Shapes: B rows, T steps, F features, O outputs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

from streamer.core import F32, I32
from streamer.errors import ModelError
from streamer.modelfile.contract import Contract
from streamer.modelfile.parts import Axis, State
from streamer.modelfile.signature import Layout

from ..graph import write
from .lower import lower
from .plan import Plan
from .planner import Planner
from .recurrent import CELLS, SEQUENCES, recurrent

_TYPES = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
}
_LENGTHS = "lengths"


def is_sequence(fields: Mapping[str, Any]) -> bool:
    """The contract's input has a time axis: ``forward`` takes whole sequences."""
    given = fields.get("input")
    shape = given.get("shape") if isinstance(given, dict) else None
    return isinstance(shape, list | tuple) and "time" in shape


def checked_input(fields: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The contract's input, before anything is tried with it. ModelError for one that no example could be made of."""
    given = dict(fields["input"])
    given.setdefault("name", "x")
    # The contract's own check says what is wrong with it.
    probe = {"name": "m", "mode": "window", "input": given, "outputs": [{"name": "y", "shape": ["batch"]}]}
    Contract.from_fields(probe, source=source)
    return given


def export_sequence_module(
    module: nn.Module, path: str | os.PathLike[str], fields: Mapping[str, Any], source: str = "the contract"
) -> tuple[Contract, list[str]]:
    """Writes ``path`` as ``export_model`` does; returns its contract, completed, and what should be known about it.

    Only name and input must be declared; everything else is found by running the module, and what is declared must agree.
    """
    module.eval()
    fields = {**fields, "input": checked_input(fields, source)}
    plan = Planner(module, fields).plan()
    if plan.cells and plan.mode == "window":
        raise ModelError(
            f"the submodule {plan.cells[0]!r} is called in a loop over time, which can be exported in step mode only (an"
            " answer for every event): declare mode step, or use nn.LSTM, nn.GRU or nn.RNN in place of the loop"
        )
    failure: ModelError | None = None
    notes: list[str] = []
    for attempt, lengths in _attempts(plan, fields):
        if "froze the time axis" in str(failure) and not attempt.one_step:
            continue  # without lengths it would be frozen too
        contract = completed(module, attempt, fields, lengths, source)
        try:
            write(sequence_graph(module, attempt, contract), contract, path)
        except ModelError as error:
            failure = failure or error
            continue
        if attempt.one_step:
            notes.append("every event of a stream is a call of its own: forward loops over time")
        elif lengths is None:
            reason = "padding would change what it gives" if "padding" in str(failure) else str(failure)
            notes.append(f"only rows of equal length share a call: {reason}")
        return contract, notes
    assert failure is not None
    raise failure


def _attempts(plan: Plan, fields: Mapping[str, Any]) -> list[tuple[Plan, str | None]]:
    """Ways to make the graph, best first: rows of different length in one call, of equal length, one event at a time."""
    lengths = str(fields.get("lengths") or _LENGTHS)
    if plan.one_step:
        return [(plan, None)]
    found: list[tuple[Plan, str | None]] = [(plan, lengths)]
    if not fields.get("lengths"):
        found.append((plan, None))
        if plan.mode == "step":
            found.append((replace(plan, one_step=True), None))
    return found


def completed(
    module: nn.Module, plan: Plan, fields: Mapping[str, Any], lengths: str | None, source: str = "the contract"
) -> Contract:
    """The contract with all that the plan knows. ModelError where it declares something else."""
    declared = {each.get("name"): each for each in fields.get("outputs", ()) if isinstance(each, dict)}
    outputs = []
    for leaf in plan.outputs:
        shape = list(leaf.axes)
        known = dict(declared.get(leaf.name, {}))
        size = int(np.prod([axis for axis in shape if isinstance(axis, int)]))
        if "shape" in known and list(known["shape"]) != shape:
            raise ModelError(
                f"{source}: the output {leaf.name!r} is declared as {list(known['shape'])}, the module makes {shape}:"
                " correct it, or leave shape out"
            )
        per = "event" if "time" in shape or plan.mode == "step" else "window"
        kind = "classes" if "labels" in known else "value" if size == 1 else "vector"
        outputs.append({"kind": kind, "per": per, **known, "name": leaf.name, "shape": shape})
    mode = fields.get("mode", plan.mode)
    if mode != plan.mode:
        raise ModelError(f"{source}: mode is {mode!r}: use step or window, or leave it out")
    rest = {key: value for key, value in fields.items() if key not in ("outputs", "states", "lengths", "mode")}
    return Contract.from_fields(
        {
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
            **_people(module),
            **rest,
            "mode": plan.mode,
            "lengths": lengths,
            "states": [_state_fields(state) for state in plan.states],
            "outputs": outputs,
        },
        source=source,
    )


def _state_fields(state: State) -> dict[str, Any]:
    return {"input": state.input, "shape": list(state.shape), "output": state.output, "initial": state.initial}


def _people(module: nn.Module) -> dict[str, Any]:
    """What people want to know of the recurrent submodules."""
    layers: list[Any] = [each for _, each in recurrent(module)]
    if not layers:
        return {}
    kinds = sorted({kind for each in layers for base, kind in (SEQUENCES | CELLS).items() if isinstance(each, base)})
    return {
        "cell": "+".join(kinds),
        "layers": sum(getattr(each, "num_layers", 1) for each in layers),
        "directions": max(2 if getattr(each, "bidirectional", False) else 1 for each in layers),
        "hidden": max(each.hidden_size for each in layers),
    }


def sequence_graph(module: nn.Module, plan: Plan, contract: Contract) -> onnx.ModelProto:
    """The planned module with inputs and outputs as the contract names them."""
    names = [output.name for output in contract.outputs] + [str(state.output) for state in contract.states]
    model = lower(
        module,
        plan,
        input_name=contract.input.name,
        lengths=contract.lengths,
        states=[state.input for state in contract.states],
        outputs=names,
    )
    steps: list[Axis] = [1 if axis == "time" and plan.one_step else axis for axis in contract.input.shape]
    inputs = [helper.make_tensor_value_info(contract.input.name, _TYPES[contract.input.dtype], steps)]
    if contract.lengths:
        inputs.append(helper.make_tensor_value_info(contract.lengths, TensorProto.INT32, ["batch"]))
    inputs += [helper.make_tensor_value_info(s.input, TensorProto.FLOAT, list(s.shape)) for s in contract.states]
    types = {each.name: each.type.tensor_type.elem_type for each in model.graph.output}
    shapes: dict[str, list[Axis]] = {each.name: list(each.shape) for each in contract.outputs}
    shapes |= {str(state.output): list(state.shape) for state in contract.states}
    outputs = [
        helper.make_tensor_value_info(
            name,
            types.get(name, TensorProto.FLOAT),
            [1 if axis == "time" and plan.one_step else axis for axis in shapes[name]],
        )
        for name in names
    ]
    # The exporter names sizes in its own way, and may leave out an input that nothing uses.
    del model.graph.input[:], model.graph.output[:]
    model.graph.input.extend(inputs)
    model.graph.output.extend(outputs)
    return model


class Reference:
    """The module itself as a function of the same arguments as ``Model.run``: every row alone, without any padding."""

    def __init__(self, module: nn.Module, contract: Contract) -> None:
        fields = {
            "mode": contract.mode,
            "input": {"shape": list(contract.input.shape), "dtype": contract.input.dtype},
            "states": [_state_fields(state) for state in contract.states],
            "outputs": [{"name": output.name} for output in contract.outputs],
        }
        self.module, self.contract = module.eval(), contract
        self.plan = Planner(module, fields).plan()
        self._layout = Layout.of(contract.input.shape)
        self._dtype = np.dtype(contract.input.dtype).type
        self._read = [(Layout.of(output.shape), output.per == "event") for output in contract.outputs]

    def __call__(self, x: F32, lengths: I32, states: Sequence[F32]) -> tuple[list[F32], list[F32]]:
        """Outputs [B,T,O] or [B,O] and next states, from ``states``."""
        outputs = self._empty(x)
        nexts = [value.copy() for value in states]
        for row, length in enumerate(lengths.tolist()):
            carried = [
                torch.from_numpy(value.take([row], axis=state.batch_axis))
                for state, value in zip(self.contract.states, states, strict=False)
            ]
            single = self.plan.one_step or self._timeless
            for begin in range(0, length, 1 if single else length):
                end = begin + (1 if single else length)
                results, after = self._call(x[row : row + 1, begin:end], carried)
                self._store(outputs, results, row, begin, end)
                carried = [torch.from_numpy(value) for value in after]
            for state, target, value in zip(self.contract.states, nexts, carried, strict=False):
                target[(slice(None),) * state.batch_axis + ([row],)] = value.numpy()
        return outputs, nexts

    def plain(self, x: F32, lengths: I32) -> list[F32]:
        """As the module's own ``forward`` answers to whole sequences from its own start: no state is put in."""
        outputs = self._empty(x)
        for row, length in enumerate(lengths.tolist()):
            for end in range(1, length + 1) if self._timeless else (length,):
                results, _ = self._call(x[row : row + 1, :end], None)
                self._store(outputs, results, row, end - 1 if self._timeless else 0, end)
        return outputs

    @property
    def _timeless(self) -> bool:
        """A step model that was made of a module which answers to the last event only."""
        return self.contract.mode == "step" and any("time" not in leaf.axes for leaf in self.plan.outputs)

    def _empty(self, x: F32) -> list[F32]:
        return [
            np.zeros((*x.shape[:2], o.size) if o.per == "event" else (len(x), o.size), np.float32)
            for o in self.contract.outputs
        ]

    def _call(self, x: F32, states: Sequence[torch.Tensor] | None) -> tuple[list[Any], list[Any]]:
        tensor = torch.from_numpy(self._layout.feed(x, self._dtype))
        with torch.no_grad():
            lengths = self.plan.lengths(1, x.shape[1])
            outputs, nexts = self.plan.run(self.module, tensor, lengths, states or ())
        return [each.numpy() for each in outputs], [np.ascontiguousarray(each.numpy()) for each in nexts]

    def _store(self, outputs: Sequence[F32], results: Sequence[Any], row: int, begin: int, end: int) -> None:
        for output, result, (layout, per_event), leaf in zip(
            outputs, results, self._read, self.plan.outputs, strict=True
        ):
            steps = end - begin if "time" in leaf.axes else 1
            if per_event:
                output[row, end - steps : end] = layout.read(result, 1, steps, per_event=True)[0]
            else:
                output[row] = layout.read(result, 1, steps, per_event=False)[0]
