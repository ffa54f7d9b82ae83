"""``python -m export gradients``: why a model forgets. Gradient over the time lag, and what the gates do.

For each cell the loss of the last step is differentiated by the state at every earlier step, before and after training
on the adding problem; training is done with and without clipping. Gates are shown over a sequence of the test part.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from streamer.errors import ConfigurationError, StreamerError

from . import plots
from .data import Example
from .fit import FitOptions, Trainer
from .folders import make_folder
from .memorytasks import ADDING_BASELINE, split_of
from .model import ModelConfig, SequenceModel, build
from .progress import epochs_progress
from .tasks import examples

VARIANTS: dict[str, dict[str, Any]] = {
    "rnn": {"kind": "rnn"},
    "rnn, recurrent weights x 1.5": {"kind": "rnn"},
    "lstm": {"kind": "lstm"},
    "lstm, forget bias 0": {"kind": "lstm", "forget_bias": 0.0},
    "gru": {"kind": "gru"},
}
GAIN = 1.5


def gradient_by_lag(
    model: SequenceModel, sequences: Sequence[Example], *, of: Literal["loss", "answer"] = "loss"
) -> NDArray[np.float64]:
    """Mean norm of d(loss of the last step)/d(state after step T - lag), for lags 1 to T; sequences of one length.

    The state is h, or h and c together: all that a step hands to the next. ``of="answer"`` differentiates what the
    model answers at the last step instead (its value, or the log-probability of the true class): a well trained model
    has a small loss, and its gradient would be small for that reason alone.
    """
    x = torch.from_numpy(np.stack([example.x for example in sequences]))
    target = torch.from_numpy(np.stack([np.atleast_1d(example.target)[-1] for example in sequences]))
    z = model.scale(x)
    e = z if model.encoder is None else model.encoder(z)
    states = tuple(state.requires_grad_() for state in model.initial_states(len(x)))
    trail = [states]
    for t in range(x.shape[1]):
        hx = states if model.kind == "lstm" else states[0]
        _, after = model.core(e[:, t : t + 1], hx)
        states = tuple(after) if model.kind == "lstm" else (after,)
        for state in states:
            state.retain_grad()
        trail.append(states)
    last = states[0][-1]
    output = last if model.head is None else model.head(last)
    model.zero_grad()
    _objective(output, target, of).backward()  # type: ignore[no-untyped-call]
    norms = []
    for step in reversed(trail[:-1]):
        total = torch.stack([_grad(state).square().sum(dim=(0, 2)) for state in step]).sum(dim=0).sqrt()
        norms.append(float(total.mean()))
    return np.asarray(norms)


def _objective(output: Tensor, target: Tensor, of: str) -> Tensor:
    """What is differentiated, as a sum over the sequences."""
    if output.shape[-1] > 1:
        chosen = torch.log_softmax(output, dim=-1).gather(1, target.to(torch.int64)[:, None])
        return chosen.sum() if of == "answer" else -chosen.sum()
    return output.sum() if of == "answer" else (output[..., 0] - target.to(output)).square().sum()


def decay_per_step(norms: NDArray[np.float64]) -> float:
    """Factor by which the gradient's norm changes per step back in time (1 keeps, below vanishes, above explodes)."""
    usable = norms > 1e-30
    if usable.sum() < 2:
        return 0.0
    lags = np.arange(len(norms))[usable]
    return float(np.exp(np.polyfit(lags, np.log(norms[usable]), 1)[0]))


def gates(model: SequenceModel, x: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Gate activity [T, H] of the last layer over one sequence x[T,F], and its state; computed from the weights.

    LSTM: input, forget, output, cell. GRU: reset, update. ``hidden`` for both (equal to what the core gives).
    """
    if model.kind not in ("lstm", "gru") or model.directions != 1:
        raise ConfigurationError("gates are shown for LSTM and GRU with one direction")
    with torch.no_grad():
        z = model.scale(torch.from_numpy(x)[None])
        e = (z if model.encoder is None else model.encoder(z))[0]
        for layer in range(model.layers):
            found = _layer_gates(model.core, model.kind, layer, e)
            e = found["hidden"]
    return {name: value.numpy() for name, value in found.items()}


def _layer_gates(core: nn.RNNBase, kind: str, layer: int, e: Tensor) -> dict[str, Tensor]:
    w_x, w_h = getattr(core, f"weight_ih_l{layer}"), getattr(core, f"weight_hh_l{layer}")
    b_x, b_h = getattr(core, f"bias_ih_l{layer}"), getattr(core, f"bias_hh_l{layer}")
    h = torch.zeros(core.hidden_size)
    c = torch.zeros(core.hidden_size)
    names = ("input", "forget", "output", "cell", "hidden") if kind == "lstm" else ("reset", "update", "hidden")
    rows: list[tuple[Tensor, ...]] = []
    for step in e:
        from_x, from_h = w_x @ step + b_x, w_h @ h + b_h
        if kind == "lstm":
            i, f, g, o = torch.split(from_x + from_h, core.hidden_size)
            i, f, o = torch.sigmoid(i), torch.sigmoid(f), torch.sigmoid(o)
            c = f * c + i * torch.tanh(g)
            h = o * torch.tanh(c)
            rows.append((i, f, o, c, h))
        else:
            (r_x, z_x, n_x), (r_h, z_h, n_h) = (torch.split(v, core.hidden_size) for v in (from_x, from_h))
            r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
            h = (1 - z) * torch.tanh(n_x + r * n_h) + z * h
            rows.append((r, z, h))
    return {name: torch.stack([row[k] for row in rows]) for k, name in enumerate(names)}


def study(steps: int, hidden: int, epochs: int, count: int, out: Path, *, seed: int = 0) -> dict[str, Any]:
    """Train every variant with and without clipping; returns the figures and writes the plots into ``out``."""
    make_folder(out)
    split = split_of("adding", steps, count, seed)
    train, held = (examples("regress", part, per_window=True) for part in (split.train, split.validation))
    judged = held[:64]
    report: dict[str, Any] = {"task": "adding", "steps": steps, "hidden": hidden, "epochs": epochs, "cells": {}}
    report["baseline_loss"] = ADDING_BASELINE
    shown: dict[str, dict[str, NDArray[np.float32]]] = {}
    with epochs_progress("gradients", 2 * len(VARIANTS)) as advance:
        for name, options in VARIANTS.items():
            row: dict[str, Any] = {}
            for clipping in ("clipped", "unclipped"):
                model = _fresh(name, hidden, options, seed)
                before = gradient_by_lag(model, judged)
                row["before"] = {"norm_by_lag": before.tolist(), "factor_per_step": decay_per_step(before)}
                row[clipping] = _train(model, train, held, epochs, 1.0 if clipping == "clipped" else 0.0, seed)
                if "diverged" not in row[clipping]:
                    after = gradient_by_lag(model, judged)
                    row[clipping] |= {"norm_by_lag": after.tolist(), "factor_per_step": decay_per_step(after)}
                if clipping == "clipped" and name in ("lstm", "gru"):
                    shown[name] = gates(model, held[0].x)
                advance(f"{name}, {clipping}")
            report["cells"][name] = row
    report["gates"] = {
        cell: {gate: value.mean(axis=1).tolist() for gate, value in found.items()} for cell, found in shown.items()
    }
    report["advice"] = _advice(report["cells"], steps)
    _plot_decay(out / "gradient_by_lag.png", report["cells"])
    _plot_norms(out / "clipping.png", report["cells"])
    _plot_gates(out / "gates.png", shown, held[0].x)
    plots.write_json(out / "gradients.json", report)
    return report


def main(argv: Sequence[str]) -> int:
    """The command ``gradients``."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__} gradients", description="How gradients travel in time."
    )
    parser.add_argument("--steps", type=int, default=100, help="length of the sequences (default 100)")
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="40 steps and 3 epochs")
    parser.add_argument("--out", type=Path, default=Path("runs/gradients"))
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object on stdout")
    arguments = parser.parse_args(list(argv))
    torch.set_num_threads(1)
    try:
        if min(arguments.steps, arguments.hidden, arguments.epochs) < 2:
            raise ConfigurationError("steps, hidden and epochs must be at least 2")
        sizes = (40, 16, 3, 600) if arguments.quick else (arguments.steps, arguments.hidden, arguments.epochs, 4000)
        steps, hidden, epochs, count = sizes
        report = study(steps, hidden, epochs, count, arguments.out)
    except StreamerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    if arguments.json:
        print(json.dumps(report))
    else:
        print("\n".join(report["advice"]))
        print(f"plots and figures are in {arguments.out}")
    return 0


def _fresh(name: str, hidden: int, options: dict[str, Any], seed: int) -> SequenceModel:
    torch.manual_seed(seed)
    model = build(ModelConfig(features=2, hidden=hidden, outputs=1, reduce="last", **options))
    if "x 1.5" in name:
        with torch.no_grad():
            model.core.weight_hh_l0.mul_(GAIN)
    return model


def _train(
    model: SequenceModel, train: Sequence[Example], held: Sequence[Example], epochs: int, clip: float, seed: int
) -> dict[str, Any]:
    options = FitOptions(epochs=epochs, rows=32, learning_rate=5e-3, clip_norm=clip, seed=seed)
    trainer = Trainer(model, "regress", options)
    try:
        history = trainer.run(train, held)
    except ConfigurationError as error:
        return {"diverged": str(error)}
    rows = [asdict(row) for row in history.epochs]
    return {
        "validation_loss": history.best_loss,
        "gradient_norm_mean": [row["gradient_norm_mean"] for row in rows],
        "gradient_norm_max": [row["gradient_norm_max"] for row in rows],
    }


def _advice(cells: dict[str, Any], steps: int) -> list[str]:
    lines = []
    for name, row in cells.items():
        factor = row["before"]["factor_per_step"]
        reach = factor**steps
        if reach < 1e-3:
            word = "vanishes: use a gated cell, a forget bias of 1 or orthogonal weights, or shorten the lag"
        elif reach > 1e3:
            word = "explodes: clip the gradient's norm, or start from smaller recurrent weights"
        else:
            word = "arrives"
        trained = row["clipped"].get("factor_per_step")
        after = "diverged" if trained is None else f"{trained:.3f}"
        lines.append(f"{name}: x {factor:.3f} per step ({reach:.1e} over {steps}), {word}; after training x {after}")
    return lines


def _grad(state: Tensor) -> Tensor:
    return torch.zeros_like(state) if state.grad is None else state.grad


def _plot_decay(path: Path, cells: dict[str, Any]) -> None:
    figure = Figure(figsize=(11, 4))
    before, after = figure.subplots(1, 2, sharey=True)
    for name, row in cells.items():
        before.plot(np.maximum(row["before"]["norm_by_lag"], 1e-12), label=name)
        if "norm_by_lag" in row["clipped"]:
            after.plot(np.maximum(row["clipped"]["norm_by_lag"], 1e-12), label=name)
    before.set(title="before training", xlabel="lag (steps)", ylabel="norm of d loss / d state", yscale="log")
    after.set(title="after training (clipped)", xlabel="lag (steps)")
    before.legend(fontsize="small")
    plots.save_figure(figure, path)


def _plot_norms(path: Path, cells: dict[str, Any]) -> None:
    figure = Figure(figsize=(11, 4))
    for axes, clipping in zip(figure.subplots(1, 2, sharey=True), ("clipped", "unclipped"), strict=True):
        for name, row in cells.items():
            if "diverged" not in row[clipping]:
                axes.plot(row[clipping]["gradient_norm_max"], label=name)
        axes.set(title=f"{clipping}: largest gradient norm", xlabel="epoch", yscale="log")
        axes.legend(fontsize="small")
    plots.save_figure(figure, path)


def _plot_gates(path: Path, shown: dict[str, dict[str, NDArray[np.float32]]], x: NDArray[np.float32]) -> None:
    panels = [(cell, gate, value) for cell, found in shown.items() for gate, value in found.items() if gate != "hidden"]
    figure = Figure(figsize=(9, 1.6 * (len(panels) + 1)))
    axes = figure.subplots(len(panels) + 1, 1, sharex=True)
    axes[0].plot(x)
    axes[0].set(title="input")
    for (cell, gate, value), panel in zip(panels, axes[1:], strict=True):
        panel.imshow(value.T, aspect="auto", interpolation="nearest")
        panel.set(title=f"{cell}: {gate} (units by steps)")
    plots.save_figure(figure, path)
