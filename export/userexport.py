"""Exports a trained module of the user's own: ``python -m export export PACKAGE.MODULE:FACTORY ...``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from streamer.errors import ConfigurationError, ModelError, StreamerError
from streamer.modelfile.contract import Contract

from .graph import export_model, export_step_module, sequence_contract
from .model import SequenceModel
from .verify import build_module, show, verify

_PEOPLE = ("name", "version", "trained_on", "metrics", "feedback", "features")
_WEIGHT_KEYS = ("weights", "state_dict", "model_state_dict")


def export_factory(factory: str, weights: Path, contract: Path, out: Path) -> dict[str, Any]:
    """Builds, loads, exports and verifies; only then ``out`` and NAME.pt beside it appear. Returns the report.

    ModelError, in a sentence, for everything that is wrong with the module, its weights or its contract.
    """
    if out.suffix != ".onnx":
        raise ConfigurationError(f"--out {out} must end in .onnx")
    fields = read_fields(contract)
    state = read_state(weights)
    module = build_module(factory, state)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unverified-", dir=out.parent) as staging:
        graph = Path(staging) / out.name
        if isinstance(module, SequenceModel):
            _check_derived(module, fields, contract)
            export_model(module, graph, **{key: fields[key] for key in _PEOPLE if key in fields})
        else:
            fields.setdefault("parameters", sum(parameter.numel() for parameter in module.parameters()))
            export_step_module(module, graph, Contract.from_fields(fields, source=str(contract)))
        kept = graph.with_suffix(".pt")
        torch.save({"format": 1, "factory": factory, "weights": state}, kept)
        report = verify(graph, module)
        report["model"] = str(out)
        if report["passed"]:
            os.replace(kept, out.with_suffix(".pt"))
            os.replace(graph, out)
    return report


def read_fields(path: Path) -> dict[str, Any]:
    """The contract's fields from TOML or JSON (by the file's ending)."""
    try:
        text = path.read_text()
        fields = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ModelError(f"the contract {path} cannot be read: {error.strerror}") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise ModelError(f"the contract {path} is neither TOML nor JSON (by its ending): {error}") from None
    if not isinstance(fields, dict) or not fields.get("name"):
        raise ModelError(f"the contract {path} has no name: name the model")
    return fields


def read_state(path: Path) -> dict[str, Any]:
    """A state dict, or the one inside a checkpoint of the usual kinds; nothing in the file is executed."""
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(f"no such file of weights: {path}") from None
    except Exception as error:  # what a foreign file provokes
        raise ModelError(f"{path} cannot be read as weights: {' '.join(str(error).split())[:300]}") from None
    if isinstance(document, dict):
        for key in _WEIGHT_KEYS:
            if isinstance(document.get(key), dict):
                document = document[key]
                break
    if not isinstance(document, dict) or not all(isinstance(value, torch.Tensor) for value in document.values()):
        raise ModelError(f"{path} holds no state dict: save module.state_dict()")
    return dict(document)


def _check_derived(module: SequenceModel, fields: dict[str, Any], path: Path) -> None:
    """A SequenceModel knows its own tensors; what the file says about them must not be something else."""
    declared = {key: value for key, value in fields.items() if key not in _PEOPLE and key != "format"}
    if not declared:
        return
    derived = json.loads(sequence_contract(module, name=fields["name"], features=fields.get("features")).dump())
    for key, value in declared.items():
        if derived.get(key) != value:
            raise ModelError(
                f"the contract {path} says {key} = {value}, the module makes {derived.get(key)}: leave it out"
            )


def main(argv: Sequence[str]) -> int:
    """0 written and verified; 2, 3 as everywhere, and then nothing was written."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__} export", description="Export a trained module of your own."
    )
    parser.add_argument("factory", metavar="PACKAGE.MODULE:FACTORY", help="callable that returns the module")
    parser.add_argument("--weights", type=Path, required=True, help="its trained state dict (torch.save)")
    parser.add_argument("--contract", type=Path, required=True, help="TOML or JSON; of a SequenceModel only the name")
    parser.add_argument("--out", type=Path, required=True, help="the ONNX file to write")
    parser.add_argument("--json", action="store_true", help="the report as one JSON object")
    options = parser.parse_args(argv)
    sys.path.insert(0, os.getcwd())  # the user's package is usually where the command is given
    try:
        report = export_factory(options.factory, options.weights, options.contract, options.out)
    except StreamerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if options.json:
        print(json.dumps(report))
    else:
        show(report)
    if not report["passed"]:
        print(f"error: verification failed, {options.out} was not written", file=sys.stderr)
        return ModelError.exit_code
    return 0
