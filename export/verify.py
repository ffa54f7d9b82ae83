"""Compares an exported model with the module it came from, and with itself: ``python -m export verify MODEL``."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from streamer.core import F32, I32
from streamer.errors import ModelError, StreamerError
from streamer.modelfile.contract import Contract
from streamer.modelfile.model import Model

from .cells import categories
from .model import SequenceModel, load
from .trace import flatten

LIMIT = 1e-5
"""Largest accepted difference |a - b| / max(1, |a|)."""

_TRIALS = 12
_MAX_ROWS, _MAX_STEPS = 9, 24

States = list[F32]
Run = Callable[[F32, I32, Sequence[F32]], tuple[list[F32], States]]


@dataclass
class Check:
    """One comparison: the largest difference that was seen, and what is accepted; ``value`` None: not made."""

    name: str
    value: float | None
    limit: float
    passed: bool
    detail: str = ""


@dataclass
class _Differences:
    worst: float = 0.0
    shapes: list[str] = field(default_factory=list)

    def compare(self, expected: Sequence[F32], actual: Sequence[F32]) -> None:
        for a, b in zip(expected, actual, strict=True):
            if a.shape != b.shape:
                self.shapes.append(f"{list(a.shape)} and {list(b.shape)}")
                continue
            if np.isfinite(a).all() != np.isfinite(b).all():
                self.worst = float("inf")
            elif a.size:
                self.worst = max(self.worst, float(np.max(np.abs(a - b) / np.maximum(1, np.abs(a)))))

    def check(self, name: str, detail: str = "") -> Check:
        if self.shapes:
            return Check(name, None, LIMIT, False, f"shapes differ: {self.shapes[0]}")
        return Check(name, self.worst, LIMIT, bool(self.worst <= LIMIT), detail)


def verify(path: str | Path, weights: str | Path | nn.Module | None = None, *, seed: int = 0) -> dict[str, Any]:
    """Compares on random ragged batches; returns {passed, checks [{name, value, limit, passed, detail}], not_checked}.

    ``weights``: the module itself, or its file (default: NAME.pt beside the model; without it parity is not checked and
    the report says so). ModelError for files that cannot be loaded.
    """
    path = Path(path)
    model = Model.load(path)
    module: nn.Module | None
    if isinstance(weights, nn.Module):
        module = weights
    else:
        file = Path(weights) if weights is not None else path.with_suffix(".pt")
        module = load_weights(file) if weights is not None or file.exists() else None
    draw = _Draw(model, module, seed)
    checks: list[Check] = []
    not_checked = []
    if module is None:
        not_checked.append(f"parity with PyTorch: there is no {path.with_suffix('.pt').name} beside the model")
    else:
        module.eval()
        checks.append(_parity(model, _eager(module, model.contract), draw))
    if model.contract.mode == "step":
        checks.append(_stepwise(model, draw))
    if model.rows_per_call == 1 and not model.false_batch:
        not_checked.append("batch invariance: the batch axis is fixed to 1, rows never run together")
    else:
        checks.append(_batching(model, draw))
    if model.ragged:
        checks.append(_padding(model, draw))
    elif model.contract.mode == "window":
        not_checked.append("padding independence: no lengths are declared, so rows are never padded")
    return {
        "model": str(path),
        "sha256": model.sha256,
        "passed": all(check.passed for check in checks),
        "checks": [asdict(check) for check in checks],
        "not_checked": not_checked,
        "findings": [finding.detail for finding in model.findings if not finding.passed],
    }


class _Draw:
    """Random batches in the range that the model was made for."""

    def __init__(self, model: Model, module: nn.Module | None, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._features = model.contract.features
        self._whole = model.contract.input.dtype.startswith("int")
        self._unit = model.length_multiple
        self._mean, self._std = np.zeros(1), np.ones(1)
        # column -> number of categories
        tables = enumerate(model.contract.feature_tables)
        self._categories = {at: len(feature.vocabulary) for at, feature in tables if feature.vocabulary}
        if isinstance(module, SequenceModel):
            self._mean, self._std = module.mean.cpu().numpy(), module.std.cpu().numpy()
            self._categories |= categories(module.encoder)

    def batch(self) -> tuple[F32, I32]:
        """x[B,T,F] and lengths[B], at least one of which is T."""
        rows = int(self._random.integers(1, _MAX_ROWS + 1))
        lengths = (self._random.integers(1, _MAX_STEPS + 1, rows) * self._unit).astype(np.int32)
        return self.values(rows, int(lengths.max())), lengths

    def values(self, rows: int, steps: int) -> F32:
        shape = (rows, steps, self._features)
        if self._whole:
            return self._random.integers(0, 2, shape).astype(np.float32)
        x = (self._mean + self._std * self._random.normal(size=shape)).astype(np.float32)
        for column, count in self._categories.items():
            x[..., column] = self._random.integers(-1, count + 1, shape[:2])  # one beyond each end: unknown words too
        return x


def _parity(model: Model, eager: Run, draw: _Draw) -> Check:
    """Eager PyTorch against the file: outputs within each row's length, states after it, from states on the way."""
    found = _Differences()
    for _ in range(_TRIALS):
        x, lengths = draw.batch()
        states: Sequence[F32] = model.initial_states(len(x))
        for _ in range(2 if model.contract.mode == "step" else 1):
            expected, eager_states = eager(x, lengths, states)
            actual, next_states = model.run(x, lengths, states)
            found.compare(_valid(model, expected, lengths), _valid(model, actual, lengths))
            found.compare(eager_states, next_states)
            states = next_states
            x = draw.values(*x.shape[:2])
    return found.check("parity", "eager PyTorch against the file, ragged batches, states carried on")


def _stepwise(model: Model, draw: _Draw) -> Check:
    found = _Differences()
    for _ in range(_TRIALS):
        x, lengths = draw.batch()
        whole, final = model.run(x, lengths, model.initial_states(len(x)))
        for row, length in enumerate(lengths.tolist()):
            states = model.initial_states(1)
            for step in range(length):
                outputs, states = model.run(x[row : row + 1, step : step + 1], np.ones(1, np.int32), states)
                found.compare([output[row, step] for output in whole], [output[0, 0] for output in outputs])
            found.compare(_rows(model, final, row), states)
    return found.check("step_by_step", "one event at a time against the whole sequence")


def _batching(model: Model, draw: _Draw) -> Check:
    if model.false_batch:
        detail = next(finding.detail for finding in model.findings if finding.name == "batch_independence")
        return Check("batch_invariance", None, LIMIT, False, detail)
    found = _Differences()
    for _ in range(_TRIALS):
        x, _ = draw.batch()
        lengths = np.full(len(x), x.shape[1], np.int32)
        together, final = model.run(x, lengths, model.initial_states(len(x)))
        for row in range(len(x)):
            alone, states = model.run(x[row : row + 1], lengths[:1], model.initial_states(1))
            found.compare([output[row : row + 1] for output in together], alone)
            found.compare(_rows(model, final, row), states)
    return found.check("batch_invariance", "each row alone against all rows together")


def _padding(model: Model, draw: _Draw) -> Check:
    """Padding is filled with other events: what stands there must not matter."""
    found = _Differences()
    for _ in range(_TRIALS):
        x, lengths = draw.batch()
        padded, final = model.run(x, lengths, model.initial_states(len(x)))
        for row, length in enumerate(lengths.tolist()):
            alone, states = model.run(x[row : row + 1, :length], lengths[row : row + 1], model.initial_states(1))
            found.compare(alone, [y[row : row + 1, :length] if y.ndim == 3 else y[row : row + 1] for y in padded])
            found.compare(states, _rows(model, final, row))
    return found.check("padding_independence", "each row unpadded against the ragged batch")


def _rows(model: Model, states: Sequence[F32], row: int) -> States:
    return [value.take([row], axis=state.batch_axis) for state, value in zip(model.states, states, strict=False)]


def _valid(model: Model, outputs: Sequence[F32], lengths: I32) -> list[F32]:
    """Only what lies within each row's length."""
    return [
        np.concatenate([y[row, :length] for row, length in enumerate(lengths.tolist())]) if o.per == "event" else y
        for y, o in zip(outputs, model.contract.outputs, strict=True)
    ]


def _eager(module: nn.Module, contract: Contract) -> Run:
    """The module as a function of the same arguments as ``Model.run``."""
    if not isinstance(module, SequenceModel):
        return _eager_steps(module, contract)

    def run(x: F32, lengths: I32, states: Sequence[F32]) -> tuple[list[F32], States]:
        with torch.no_grad():
            tensors = [torch.from_numpy(np.ascontiguousarray(state)) for state in states]
            outputs, nexts = module(torch.from_numpy(x), torch.from_numpy(lengths), *tensors)
        return [outputs[o.name].numpy() for o in contract.outputs], [state.numpy() for state in nexts]

    return run


def _eager_steps(module: nn.Module, contract: Contract) -> Run:
    """A step module, one row and one event at a time: it knows no lengths."""
    numbers = [axis for axis in contract.input.shape if isinstance(axis, int)]
    batch = contract.input.shape.index("batch")

    def run(x: F32, lengths: I32, states: Sequence[F32]) -> tuple[list[F32], States]:
        outputs = [np.zeros((*x.shape[:2], output.size), np.float32) for output in contract.outputs]
        nexts = [value.copy() for value in states]
        for row, length in enumerate(lengths.tolist()):
            carried = [
                torch.from_numpy(value.take([row], axis=state.batch_axis))
                for state, value in zip(contract.states, states, strict=True)
            ]
            for step in range(length):
                event = np.expand_dims(x[row, step].reshape(numbers), batch).astype(contract.input.dtype)
                with torch.no_grad():
                    results = flatten(module(torch.from_numpy(event), *carried))
                for output, result in zip(outputs, results, strict=False):
                    output[row, step] = result.numpy().reshape(-1)
                carried = list(results[len(outputs) :])
            for state, target, value in zip(contract.states, nexts, carried, strict=True):
                target[(slice(None),) * state.batch_axis + ([row],)] = value.numpy()
        return outputs, nexts

    return run


def load_weights(path: str | Path) -> nn.Module:
    """The module of a NAME.pt that ``train`` or ``export`` wrote, in evaluation mode."""
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # what a foreign file provokes; the loader of our own files says it in a sentence
        return load(path)
    if not isinstance(document, dict) or "factory" not in document:
        return load(path)
    return build_module(str(document["factory"]), document["weights"])


def build_module(factory: str, weights: dict[str, Any]) -> nn.Module:
    """What PACKAGE.MODULE:FACTORY returns, with a state dict loaded, in evaluation mode. ModelError if that fails."""
    package, _, attribute = factory.partition(":")
    if not package or not attribute:
        raise ModelError(
            f"{factory!r} names no factory: write PACKAGE.MODULE:FACTORY, a callable that returns the module"
        )
    try:
        made = getattr(importlib.import_module(package), attribute)()
    except (ImportError, AttributeError) as error:
        raise ModelError(f"the factory {factory} cannot be imported: {error}") from None
    if not isinstance(made, nn.Module):
        raise ModelError(f"the factory {factory} returned a {type(made).__name__}, not a torch.nn.Module")
    try:
        made.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"the weights do not fit what {factory} makes: {' '.join(str(error).split())[:400]}") from None
    return made.eval()


def show(report: dict[str, Any]) -> None:
    """The report as a table on standard output."""
    table = Table(title=f"{report['model']}  {report['sha256'][:12]}")
    for column in ("check", "largest difference", "limit", "result", ""):
        table.add_column(column)
    for check in report["checks"]:
        value = "-" if check["value"] is None else f"{check['value']:.1e}"
        result = "passed" if check["passed"] else "FAILED"
        table.add_row(check["name"], value, f"{check['limit']:.0e}", result, check["detail"])
    console = Console()
    console.print(table)
    for line in report["findings"]:
        console.print(f"found: {line}", markup=False)
    for line in report["not_checked"]:
        console.print(f"not checked: {line}", markup=False)
    console.print("passed" if report["passed"] else "FAILED")


def main(argv: Sequence[str]) -> int:
    """``verify MODEL [--weights FILE] [--seed N] [--json]``: 0 if everything made passed, else 3."""
    parser = argparse.ArgumentParser(prog="python -m export verify", description=__doc__)
    parser.add_argument("model", type=Path, help="the ONNX file")
    parser.add_argument("--weights", type=Path, help="its PyTorch weights (default: NAME.pt beside it)")
    parser.add_argument("--seed", type=int, default=0, help="of the random batches")
    parser.add_argument("--json", action="store_true", help="the report as one JSON object")
    options = parser.parse_args(argv)
    try:
        report = verify(options.model, options.weights, seed=options.seed)
    except StreamerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if options.json:
        print(json.dumps(report))
    else:
        show(report)
    return 0 if report["passed"] else ModelError.exit_code
