"""Exports a trained module of the user's own: ``python -m export export PACKAGE.MODULE:FACTORY ...``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from streamer.errors import ConfigurationError, ModelError, StreamerError
from streamer.modelfile.contract import Contract
from streamer.toml import parse_toml

from .folders import make_folder
from .graph import export_model, export_step_module, sequence_contract
from .model import SequenceModel
from .modules.calling import SIGNATURES
from .modules.checkpoints import WRAPPERS, read_state
from .modules.factory import build_module
from .modules.proposal import propose
from .modules.sequence import export_sequence_module, is_sequence
from .verify import show, verify

_PEOPLE = ("name", "version", "trained_on", "metrics", "feedback", "features")

EPILOG = "\n".join(
    [
        "accepted signatures of the module:",
        *(f"  {signature:<28} {meaning}" for signature, meaning in SIGNATURES.items()),
        "  It returns a tensor, or a tuple, list or dict of tensors; next states, where it returns them, come last.",
        "",
        "the contract (TOML or JSON) needs a name, and of a module that is no SequenceModel also",
        '  input = {name = "x", shape = ["batch", "time", 16]}    whole sequences; dtype = "int64" for ids of words',
        '  input = {name = "x", shape = ["batch", 16]}            one event; then mode, states and outputs too',
        "  --draft prints one to begin with. All fields: export/README.md.",
        "",
        f"weights: a state dict, or one under {', '.join(WRAPPERS)}, by torch.save or as .safetensors;",
        "  prefixes of DataParallel, torch.compile and Lightning are taken off, weight_norm is folded.",
    ]
)


def export_factory(factory: str, weights: Path, contract: Path, out: Path) -> dict[str, Any]:
    """Builds, loads, exports and verifies; only then ``out`` and NAME.pt beside it appear. Returns the report.

    ModelError, in a sentence, for everything that is wrong with the module, its weights or its contract.
    """
    if out.suffix != ".onnx":
        raise ConfigurationError(f"--out {out} must end in .onnx")
    if out.is_dir():
        raise ConfigurationError(f"--out {out} is a folder: name a file in it")
    fields = read_fields(contract)
    state, notes = read_state(weights)
    module = build_module(factory, state, notes)
    _check_complete(module, fields, contract)
    make_folder(out.parent)
    with tempfile.TemporaryDirectory(prefix=".unverified-", dir=out.parent) as staging:
        graph = Path(staging) / out.name
        if isinstance(module, SequenceModel):
            _check_derived(module, fields, contract)
            export_model(module, graph, **{key: fields[key] for key in _PEOPLE if key in fields})
        elif is_sequence(fields):
            notes += export_sequence_module(module, graph, fields, str(contract))[1]
        else:
            fields.setdefault("parameters", sum(parameter.numel() for parameter in module.parameters()))
            export_step_module(module, graph, Contract.from_fields(fields, source=str(contract)))
        kept = graph.with_suffix(".pt")
        torch.save({"format": 1, "factory": factory, "weights": module.state_dict()}, kept)
        report = verify(graph, module)
        report |= {"model": str(out), "notes": notes}
        if report["passed"]:
            os.replace(kept, out.with_suffix(".pt"))
            os.replace(graph, out)
    return report


def read_fields(path: Path) -> dict[str, Any]:
    """The contract's fields from TOML or JSON (by the file's ending)."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        fields = json.loads(text) if path.suffix == ".json" else parse_toml(text)
    except OSError as error:
        raise ModelError(f"the contract {path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # UnicodeDecodeError too
        raise ModelError(f"the contract {path} is neither TOML nor JSON (by its ending): {error}") from None
    if not isinstance(fields, dict):
        raise ModelError(f"the contract {path} holds a {type(fields).__name__}: it must be a table of fields")
    return fields


def _check_complete(module: nn.Module, fields: dict[str, Any], path: Path) -> None:
    """What only the user knows: all of it that is missing, at once."""
    missing = [] if fields.get("name") else ["name"]
    given = fields.get("input")
    if not isinstance(module, SequenceModel):
        if not isinstance(given, dict):
            missing.append('input (name, shape; with "time" in shape where forward takes whole sequences)')
        elif not given.get("shape"):
            missing.append("input.shape")
        elif not is_sequence(fields):
            return  # the contract of a single step is checked as a whole
    if missing:
        raise ModelError(
            f"the contract {path} lacks {' and '.join(missing)}: declare {'it' if len(missing) == 1 else 'them'},"
            " or let --draft print a contract to begin with"
        )


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
        prog=f"python -m {__package__} export",
        description="Export a trained module of your own.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("factory", metavar="PACKAGE.MODULE:FACTORY", help="callable that returns the module")
    parser.add_argument("--weights", type=Path, help="its trained state dict (torch.save or .safetensors)")
    parser.add_argument("--contract", type=Path, help="TOML or JSON; of a SequenceModel only the name")
    parser.add_argument("--out", type=Path, help="the ONNX file to write")
    parser.add_argument("--draft", action="store_true", help="print a contract for the module, and export nothing")
    parser.add_argument("--json", action="store_true", help="the report as one JSON object")
    options = parser.parse_args(argv)
    if not options.draft:
        missing = [f"--{name}" for name in ("weights", "contract", "out") if getattr(options, name) is None]
        if missing:
            parser.error(f"the following arguments are required: {', '.join(missing)}")
    try:
        if options.draft:
            print(propose(options.factory, options.weights), end="")
            return 0
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
