"""A draft of the contract for a module: what can be found by running it, with what a person must decide marked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from streamer.errors import ModelError
from streamer.modelfile.draft import OPEN, toml

from ..model import SequenceModel
from ..trace import flatten
from .checkpoints import load_into, read_state
from .factory import make
from .planner import Planner
from .recurrent import CELLS
from .sequence import completed

_NOTES = {
    "name": "how the model is called in metrics and predictions",
    "mode": "step: an answer for every event, states are carried on; window: an answer per closed window",
    "input": "features = [...] may name the values of an event, in order",
}


def propose(factory: str, weights: Path | None = None) -> str:
    """The contract as TOML. ModelError where no input can be found with which the module runs."""
    module = make(factory)
    if weights is not None:
        load_into(module, read_state(weights)[0], factory)
    module.float().eval()
    name = type(module).__name__.lower()
    if isinstance(module, SequenceModel):
        return toml({"name": name}, {"": "A SequenceModel knows everything but its name.", **_NOTES})
    failure = f"{type(module).__name__} has no layer that tells the width of its input"
    for given in _inputs(module):
        fields: dict[str, Any] = {"name": name, "input": given}
        try:
            if "time" not in given["shape"]:
                return toml(_single(module, fields), _notes(_single(module, fields)))
            contract = completed(module, Planner(module, fields).plan(), fields, None)
        except ModelError as error:
            failure = str(error)
            continue
        found = json.loads(contract.dump())
        kept = {key: found[key] for key in ("name", "mode", "input", "states", "outputs") if key in found}
        for output in kept["outputs"]:
            output.setdefault("kind", "vector")
        return toml(kept, _notes(kept))
    raise ModelError(f"no contract can be drafted for {factory} ({failure}): write it by hand, see export/README.md")


def _notes(fields: dict[str, Any]) -> dict[str, str]:
    notes = {
        "": "Draft of a contract, found by running the module: check every line with a remark.",
        "states": "Found by running the module; left out, they are found again when it is exported.",
        **_NOTES,
    }
    for index, _ in enumerate(fields["outputs"]):
        notes[f"outputs[{index}].kind"] = f"{OPEN}: value, vector, classes (then add labels = [...]) or score"
    return notes


def _inputs(module: nn.Module) -> Iterator[dict[str, Any]]:
    """Inputs with which the module may run, from its layers in the order of their definition."""
    first_rnn = next((each for each in module.modules() if isinstance(each, nn.RNNBase)), None)
    axes = ["batch", "time"] if first_rnn is None or first_rnn.batch_first else ["time", "batch"]
    widths: list[int] = []
    for each in module.modules():
        if isinstance(each, nn.Embedding):
            yield {"name": "x", "shape": axes, "dtype": "int64"}
        width = next((getattr(each, n) for n in ("input_size", "in_features", "in_channels") if hasattr(each, n)), None)
        if isinstance(width, int) and width not in widths:
            widths.append(width)
    for width in widths:
        yield {"name": "x", "shape": [*axes, width]}
    for width in widths:
        yield {"name": "x", "shape": ["batch", width]}


def _single(module: nn.Module, fields: dict[str, Any]) -> dict[str, Any]:
    """The contract of a module that takes one event and the states of its cells."""
    cells: list[Any] = [each for each in module.modules() if isinstance(each, tuple(CELLS))]
    sizes = [each.hidden_size for each in cells for _ in range(2 if isinstance(each, nn.LSTMCell) else 1)]
    names = ["h", "c"] if len(sizes) <= 2 else [f"state_{place}" for place in range(len(sizes))]
    rows = 3
    try:
        with torch.no_grad():
            x = torch.zeros(rows, fields["input"]["shape"][1])
            result = flatten(module(x, *(torch.zeros(rows, size) for size in sizes)))
    except Exception as error:  # whatever a foreign module raises
        raise ModelError(f"forward cannot be called with one event and the states of its cells: {error}") from None
    answers = result[: len(result) - len(sizes)]
    if not answers or any(tensor.ndim < 1 or len(tensor) != rows for tensor in answers):
        raise ModelError("forward gives no answer per row beside its next states")
    shapes = [["batch", *map(int, tensor.shape[1:])] for tensor in answers]
    return {
        **fields,
        "mode": "step",
        "states": [
            {"input": name, "output": f"{name}_next", "shape": ["batch", size], "initial": "zeros"}
            for name, size in zip(names, sizes, strict=False)
        ],
        "outputs": [
            {"name": "y" if number == 0 else f"y_{number + 1}", "shape": shape, "kind": "vector"}
            for number, shape in enumerate(shapes)
        ],
    }
