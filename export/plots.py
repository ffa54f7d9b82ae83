"""Plots and JSON files, written atomically and without a display."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # used directly, it draws with Agg and never asks for a display

from .fit import History


def write_json(path: Path, document: Any) -> None:
    """One JSON document, complete or not there at all."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def save_figure(figure: Figure, path: Path) -> None:
    """The figure as PNG, complete or not there at all."""
    temporary = path.with_name(path.name + ".part")
    figure.savefig(temporary, format="png", dpi=110, bbox_inches="tight")
    os.replace(temporary, path)


def loss_plot(path: Path, histories: Mapping[str, History]) -> None:
    """Training (dashed) and validation loss by epoch, per run."""
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    for name, history in histories.items():
        epochs = [row.epoch + 1 for row in history.epochs]
        (line,) = axes.plot(epochs, [row.validation_loss for row in history.epochs], label=f"{name} validation")
        axes.plot(
            epochs, [row.train_loss for row in history.epochs], "--", color=line.get_color(), label=f"{name} train"
        )
    axes.set(xlabel="epoch", ylabel="loss")
    axes.legend()
    save_figure(figure, path)


def gradient_norm_plot(path: Path, histories: Mapping[str, History], clip_norm: float) -> None:
    """Mean (line) and largest (dots) gradient norm before clipping by epoch, and the bound that clips it."""
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    for name, history in histories.items():
        epochs = [row.epoch + 1 for row in history.epochs]
        (line,) = axes.plot(epochs, [row.gradient_norm_mean for row in history.epochs], label=f"{name} mean")
        largest = [row.gradient_norm_max for row in history.epochs]
        axes.plot(epochs, largest, ".", color=line.get_color(), label=f"{name} largest")
    if clip_norm:
        axes.axhline(clip_norm, color="grey", linewidth=0.8, label="clip_norm")
    axes.set(xlabel="epoch", ylabel="gradient norm before clipping", yscale="log")
    axes.legend()
    save_figure(figure, path)


def metric_plot(path: Path, parts: Mapping[str, Mapping[str, float]]) -> None:
    """Final figures of each part as bars, the baseline's value as a line where the figure has one."""
    names = [name for name in next(iter(parts.values())) if not name.startswith("baseline_")]
    figure = Figure(figsize=(2.2 * len(names) + 1, 3.2))
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        shown = {part: figures[name] for part, figures in parts.items() if name in figures}
        axes.bar(list(shown), list(shown.values()))
        for place, part in enumerate(shown):
            baseline = parts[part].get(f"baseline_{name}")
            if baseline is not None:
                axes.hlines(baseline, place - 0.4, place + 0.4, color="black", linestyles="dashed")
        axes.set(title=name)
    figure.suptitle("figures of the best seed (dashed: baseline)", fontsize="small")
    figure.tight_layout()
    save_figure(figure, path)
