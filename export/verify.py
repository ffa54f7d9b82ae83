"""Compares an exported model with the module it came from, and with itself: ``python -m export verify MODEL``."""

from __future__ import annotations

import argparse
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
from .encdec.emit import parts_of
from .encdec.module import load_pair
from .encdec.verify import Pairs, pair_results
from .model import SequenceModel, load
from .modules.calling import vocabulary
from .modules.factory import build_module
from .modules.sequence import Reference
from .trace import flatten

LIMIT = 1e-5
"""Largest accepted difference |a - b| / max(1, |a|)."""

_ROUNDINGS, _LARGEST_LIMIT = 4, 1e-4
"""A decoder may differ by so many times what one rounding of its inputs makes of its own module, if that is more than LIMIT:
two that compute the same in another order differ by no less (Higham, Accuracy and Stability of Numerical Algorithms, 1.6).
But never by more than the second."""

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
    """Values that are not finite must be the same at the same places; only finite ones have a difference."""

    worst: float = 0.0
    finite: dict[str, int] = field(default_factory=dict)
    """Finite values that were seen of each tensor."""
    not_finite: int = 0
    """Values that are NaN or infinite on one side only, or differently."""
    shapes: list[str] = field(default_factory=list)

    def compare(self, expected: Sequence[F32], actual: Sequence[F32], what: str = "output") -> None:
        for number, (a, b) in enumerate(zip(expected, actual, strict=True), start=1):
            if a.shape != b.shape:
                self.shapes.append(f"{list(a.shape)} and {list(b.shape)}")
                continue
            both = np.isfinite(a) & np.isfinite(b)
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            self.not_finite += int(np.sum(~both & ~same))
            self.finite[f"{what} {number}"] = self.finite.get(f"{what} {number}", 0) + int(np.sum(both))
            if both.any():
                x, y = a[both].astype(np.float64), b[both].astype(np.float64)
                self.worst = max(self.worst, float(np.max(np.abs(x - y) / np.maximum(1, np.abs(x)))))

    def check(self, name: str, detail: str = "", limit: float = LIMIT) -> Check:
        if self.shapes:
            return Check(name, None, limit, False, f"shapes differ: {self.shapes[0]}")
        if self.not_finite:
            return Check(name, None, limit, False, f"{self.not_finite} values are NaN or infinite on one side only")
        never = [tensor for tensor, count in self.finite.items() if not count]
        if never:
            return Check(name, None, limit, False, f"{never[0]} is NaN or infinite for every event: nothing to compare")
        return Check(name, self.worst, limit, bool(self.worst <= limit), detail)


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
    pair = None if model.decoder is None else module
    if pair is not None:
        module, _ = parts_of(pair)  # the file's own graph is the encoder's
    draw = _Draw(model, module, seed)
    checks: list[Check] = []
    not_checked = []
    if module is None:
        not_checked.append(f"parity with PyTorch: there is no {path.with_suffix('.pt').name} beside the model")
    else:
        module.eval()
        eager = _eager(module, model.contract)
        checks.append(_parity(model, eager, draw))
        if isinstance(eager, Reference) and model.contract.mode == "step":
            checks.append(_whole_sequence(model, eager, draw))
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
    if pair is not None:
        checks += _pair(model, pair.eval(), draw)
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
        # column -> from where to below where its categories are drawn
        tables = enumerate(model.contract.feature_tables)
        self._categories = {at: (0, len(feature.vocabulary)) for at, feature in tables if feature.vocabulary}
        if isinstance(module, SequenceModel):
            self._mean, self._std = module.mean.cpu().numpy(), module.std.cpu().numpy()
            counts = {at: high for at, (_, high) in self._categories.items()} | categories(module.encoder)
            # one beyond each end: our own graphs take unknown words too
            self._categories = {at: (-1, count + 1) for at, count in counts.items()}
        elif module is not None and (size := vocabulary(module)):
            self._categories = dict.fromkeys(range(model.contract.features), (0, size))

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
        for column, (low, high) in self._categories.items():
            x[..., column] = self._random.integers(low, high, shape[:2])
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
            found.compare(eager_states, next_states, "state")
            states = next_states
            x = draw.values(*x.shape[:2])
    return found.check("parity", "eager PyTorch against the file, ragged batches, states carried on")


def _whole_sequence(model: Model, reference: Reference, draw: _Draw) -> Check:
    """The module's own ``forward`` over whole sequences, without a state put in: what was meant when it was trained."""
    found = _Differences()
    for _ in range(_TRIALS):
        x, lengths = draw.batch()
        actual, _ = model.run(x, lengths, model.initial_states(len(x)))
        found.compare(_valid(model, reference.plain(x, lengths), lengths), _valid(model, actual, lengths))
    return found.check("whole_sequence", "forward over whole sequences, from its own start, against the file")


def _pair(model: Model, pair: nn.Module, draw: _Draw) -> list[Check]:
    """What the decoder makes of the encoder's outputs. Sharp attention enlarges rounding, and how much depends on the
    processor: where the module was asked what rounding does to it, the limit follows."""
    checks = []
    for each in pair_results(model, pair, draw):
        limit = min(max(LIMIT, _ROUNDINGS * _differences(each.rounding).worst), _LARGEST_LIMIT)
        checks.append(_differences(each.pairs).check(each.name, each.detail, limit))
    return checks


def _differences(pairs: Pairs) -> _Differences:
    found = _Differences()
    for expected, actual in pairs:
        found.compare([expected], [actual])
    return found


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
            found.compare(_rows(model, final, row), states, "state")
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
            found.compare(_rows(model, final, row), states, "state")
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
            found.compare(states, _rows(model, final, row), "state")
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
        return _eager_steps(module, contract) if contract.single_step else Reference(module, contract)

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
    if isinstance(document, dict) and "pair" in document:
        return load_pair(path)
    if not isinstance(document, dict) or "factory" not in document:
        return load(path)
    return build_module(str(document["factory"]), document["weights"])


def show(report: dict[str, Any]) -> None:
    """The report as a table on standard output."""
    table = Table(title=f"{report['model']}  {report['sha256'][:12]}")
    for column in ("check", "largest difference", "limit", "result", ""):
        table.add_column(column)
    for check in report["checks"]:
        value = "-" if check["value"] is None else f"{check['value']:.1e}"
        result = "passed" if check["passed"] else "FAILED"
        table.add_row(check["name"], value, f"{check['limit']:.1e}", result, check["detail"])
    console = Console()
    console.print(table)
    for kind in ("notes", "findings"):
        for line in report.get(kind, ()):
            console.print(f"{'note' if kind == 'notes' else 'found'}: {line}", markup=False)
    for line in report["not_checked"]:
        console.print(f"not checked: {line}", markup=False)
    console.print("passed" if report["passed"] else "FAILED")


def main(argv: Sequence[str]) -> int:
    """``verify MODEL [--weights FILE] [--seed N] [--json]``: 0 if everything made passed, else 3."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__} verify",
        description="Compare an exported model with the module it came from, and with itself.",
    )
    parser.add_argument("model", type=Path, help="the ONNX file")
    parser.add_argument("--weights", type=Path, help="its PyTorch weights (default: NAME.pt beside it)")
    parser.add_argument("--seed", type=int, default=0, help="of the random batches")
    parser.add_argument("--json", action="store_true", help="the report as one JSON object")
    options = parser.parse_args(argv)
    if not 0 <= options.seed < 2**32:
        parser.error("--seed must be at least 0, and below 2^32")
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
