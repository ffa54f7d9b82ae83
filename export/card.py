"""``python -m export card MODEL``: the model card, from what the file declares, what training wrote, and measurements.

Markdown on stdout or into a file: data and split, metrics, parity with PyTorch, latency by batch, contract, limits.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from streamer.errors import ConfigurationError, StreamerError
from streamer.modelfile.contract import Contract
from streamer.modelfile.decoder import Decoder
from streamer.modelfile.model import Model

from .folders import make_folder
from .judge import card_sections
from .measure import machine, microseconds_per_event
from .verify import verify


def card(path: Path) -> str:
    """The card of a model file; metrics.json and NAME.pt beside it are used where they are there."""
    model = Model.load(path)
    report = verify(path)
    beside = path.with_name("metrics.json")
    try:
        training: dict[str, Any] = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else {}
    except ValueError as error:
        raise ConfigurationError(f"{beside} is not JSON: {error}") from error
    contract = model.contract
    sections = [
        f"# {contract.name}, version {contract.version}",
        _summary(model),
        "## Data",
        _data(contract, training),
        "## Metrics",
        _metrics(contract, training),
        *card_sections(contract.metrics),
        *_beside(path),
        "## Checks",
        _checks(report),
        "## Speed",
        _speed(model),
        "## Contract",
        "```json\n" + json.dumps(json.loads(contract.dump()), indent=1) + "\n```",
        "## Limits",
        "\n".join(f"- {line}" for line in limits(model)),
    ]
    return "\n\n".join(sections) + "\n"


def limits(model: Model) -> list[str]:
    """What a user of the model has to know before trusting it."""
    contract = model.contract
    lines = [
        "Inputs must be finite numbers in the units of the training data; other events are rejected, not repaired.",
        "float32 on CPU; other precisions were not checked.",
    ]
    if (decoder := contract.decoder) is not None:
        lines.append(
            f"A sequence of more than {decoder.max_steps} symbols is cut, and told as truncated; the search is"
            f" {decoder.search}, so a likelier sequence may exist."
        )
    if contract.mode == "window":
        lines.append("Answers only when a window has closed: it looks at the whole window, later events included.")
    else:
        lines.append("The first events of a stream are judged with little or no history.")
    if any(output.kind == "score" for output in contract.outputs):
        known = "a threshold is suggested above" if "suggested_threshold" in contract.metrics else "it has no threshold"
        lines.append(f"The score ranks events by how unexpected they are; it is no probability, and {known}.")
    if not model.batched:
        lines.append("Its batch axis is fixed or false: rows run one at a time.")
    if not contract.metrics:
        lines.append("The file carries no metrics: how good it is was not recorded.")
    return lines


def main(argv: Sequence[str]) -> int:
    """The command ``card``."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__} card", description="Write a model card.")
    parser.add_argument("model", type=Path, help="ONNX file")
    parser.add_argument("--out", type=Path, help="Markdown file (default: stdout)")
    arguments = parser.parse_args(list(argv))
    try:
        text = card(arguments.model)
        if arguments.out is None:
            print(text, end="")
            return 0
        if arguments.out.is_dir():
            raise ConfigurationError(f"--out {arguments.out} is a folder: name a file in it")
        make_folder(arguments.out.parent)
    except StreamerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    temporary = arguments.out.with_name(arguments.out.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, arguments.out)
    return 0


def _summary(model: Model) -> str:
    contract = model.contract
    rows = {
        "mode": contract.mode,
        "cell": contract.cell,
        "layers x directions": f"{contract.layers or '?'} x {contract.directions or '?'}",
        "hidden": contract.hidden,
        "parameters": contract.parameters,
        "features": contract.features,
        "outputs": ", ".join(f"{output.name} ({output.kind}, per {output.per})" for output in contract.outputs),
        **({"writes": _written(contract.decoder)} if contract.decoder is not None else {}),
        "state per stream": f"{model.state_bytes_per_stream} bytes",
        "file": f"{model.path.name}, {model.path.stat().st_size} bytes",
        "sha256": model.sha256,
    }
    return _table(rows)


def _written(decoder: Decoder) -> str:
    search = decoder.search if decoder.search == "greedy" else f"{decoder.search} of width {decoder.width}"
    return f"sequences of up to {decoder.max_steps} of {len(decoder.labels)} symbols ({search})"


def _data(contract: Contract, training: Mapping[str, Any]) -> str:
    found = training.get("data") or contract.trained_on
    if not found:
        return "Not recorded."
    return _table(found) if isinstance(found, Mapping) else str(found)


def _metrics(contract: Contract, training: Mapping[str, Any]) -> str:
    summary = training.get("summary")
    if summary:
        seeds = len(training.get("seeds", []))
        rows = {name: f"{v['mean']:.4f} ± {v['std']:.4f}" for name, v in summary.items()}
        return f"Mean and standard deviation over {seeds} seed(s):\n\n{_table(rows)}"
    if not contract.metrics:
        return "Not recorded."
    numbers = {n: v for n, v in contract.metrics.items() if isinstance(v, int | float)}  # the others have sections
    return _table({n: f"{v:.4f}" if isinstance(v, float) else str(v) for n, v in numbers.items()})


def _beside(path: Path) -> list[str]:
    """What a recipe wrote next to its model.onnx: its limits, other means on the same test part, other models."""
    told = path.with_name("result.json")
    if path.name != "model.onnx" or not told.exists():
        return []
    result: dict[str, Any] = json.loads(told.read_text(encoding="utf-8"))
    limits = result.get("limits", {result["metric"]: result["limit"]})
    others = result.get("others", {result["baseline"]["name"]: result["baseline"]["value"]})
    rows: dict[str, Any] = {f"limit of {name}": limit for name, limit in limits.items() if limit is not None}
    rows |= {f"{result['metric']}: {name}": f"{value:.4f}" for name, value in others.items()}
    for stem, each in result.get("beside", {}).items():
        rows |= {f"{stem}.onnx: {name}": f"{value:.4f}" for name, value in each["figures"].items()}
    rows |= result.get("measured", {})
    return ["## Beside it", _table(rows)]


def _checks(report: Mapping[str, Any]) -> str:
    lines = ["| check | largest difference | limit | passed |", "|---|---|---|---|"]
    for check in report["checks"]:
        value = "-" if check["value"] is None else f"{check['value']:.1e}"
        lines.append(f"| {check['name']} | {value} | {check['limit']:.0e} | {'yes' if check['passed'] else 'no'} |")
    return "\n".join([*lines, *(f"\nNot checked: {each}" for each in report["not_checked"])])


def _speed(model: Model) -> str:
    rows = {f"{rows} rows": f"{value:.2f} µs per event" for rows, value in microseconds_per_event(model).items()}
    what = "" if model.decoder is None else "; the encoder alone, each written symbol is a call of the decoder more"
    return f"ONNX Runtime, one thread, {machine()}{what}:\n\n{_table(rows)}"


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
