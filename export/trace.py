"""Torch's own exporter, one export to a process: its state leaks from one export into the next of the same kind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from streamer.errors import ModelError

_OPSET = 20
_TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Job:
    """A module, example inputs, which of their axes is the batch, and the names of its inputs and outputs."""

    module: nn.Module
    examples: tuple[Tensor, ...]
    batch_axes: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Flat(nn.Module):
    """A module whose result, however nested (tuple, list, dict), is a flat tuple of tensors."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return flatten(self.module(*inputs))


def flatten(value: Any) -> tuple[Tensor, ...]:
    """Tensors in order of nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return (value,)
    parts = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | tuple | list):
        raise ModelError(f"forward returns a {type(value).__name__}: return tensors, or a tuple or dict of them")
    return tuple(tensor for part in parts for tensor in flatten(part))


def trace_rows(module: nn.Module, width: int) -> tuple[onnx.ModelProto, int]:
    """A module on the last axis as a graph [N, width] -> [N, O], and O. ModelError if it cannot be traced."""
    example = torch.zeros(3, width)
    with torch.no_grad():
        result = module(example)
    if not isinstance(result, Tensor) or result.ndim != 2 or len(result) != len(example):
        raise ModelError(
            f"{type(module).__name__} must make one tensor [N, O] of [N, {width}]: it sees one step at a time"
        )
    graph = trace(Job(module, (example,), (0,), ("rows",), ("result",)))
    return graph, int(result.shape[1])


def trace(job: Job) -> onnx.ModelProto:
    """Exports in a process of its own; every batch axis of the result is dynamic. ModelError says what torch said."""
    with tempfile.TemporaryDirectory(prefix="streamer-trace-") as folder:
        source, target = Path(folder) / "job.pt", Path(folder) / "traced.onnx"
        try:
            torch.save(job, source)
        except Exception as error:  # whatever a foreign module's pickling raises
            raise ModelError(
                f"{type(job.module).__name__} cannot be handed to the exporter's process ({error}):"
                " define its class at the top level of an importable module"
            ) from None
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
        command = [sys.executable, "-m", f"{__package__}.trace", str(source), str(target)]
        try:
            done = subprocess.run(  # noqa: S603 - our own module with our own files
                command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise ModelError(f"torch's exporter did not end within {_TIMEOUT_SECONDS} s") from None
        if done.returncode != 0 or not target.exists():
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
            raise ModelError(f"torch cannot export {type(job.module).__name__}: {lines[-1].strip()}")
        model = onnx.load(target)
    _check_batch(model, job)
    return model


def _check_batch(model: onnx.ModelProto, job: Job) -> None:
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name: value for value in model.graph.input if value.name not in initializers}
    for name, axis in zip(job.inputs, job.batch_axes, strict=True):
        if name not in inputs:
            raise ModelError(
                f"the input {name!r} has no effect on what {type(job.module).__name__} computes: leave it out"
            )
        if not inputs[name].type.tensor_type.shape.dim[axis].dim_param:
            raise ModelError(
                f"torch froze the batch axis of {name!r}: the module must not depend on the number of rows"
            )


def _export(job: Job, target: str) -> None:
    dynamic: Sequence[Any] = tuple({axis: torch.export.Dim("batch", min=1)} for axis in job.batch_axes)
    torch.onnx.export(
        Flat(job.module.eval()),
        job.examples,
        target,
        input_names=list(job.inputs),
        output_names=list(job.outputs),
        dynamic_shapes=(dynamic,),  # of *inputs
        opset_version=_OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )


if __name__ == "__main__":
    # Run as a script this module is __main__, while the job was pickled with the class of export.trace.
    from .trace import _export as run

    torch.set_num_threads(1)
    run(torch.load(sys.argv[1], weights_only=False), sys.argv[2])
