"""The comparison's plots: scores with their intervals, memory in one picture, learning curves, times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .. import plots
from .cases import CELLS, VARIANTS, WIDTH
from .claims import longest_of, share
from .statistics import Interval, bootstrap

Row = Mapping[str, Any]
COLOURS = {"feed-forward": "#777777", "rnn": "#d95f02", "lstm": "#1b6fb3", "gru": "#2a9d4a"}
MARKS = {"": "o", " x 2": "s", "bi-": "D"}
LINES = {"": "solid", " x 2": "dashdot", "bi-": "dashed"}
_LEAST = -20
"""Power of ten below which a gradient is drawn as nothing."""


def draw(folder: Path, rows: Sequence[Row]) -> dict[str, str]:
    """All plots that the rows allow, into ``folder``: file name -> what it shows."""
    found: dict[str, str] = {}
    wide = [row for row in rows if row["sizing"] == WIDTH]
    _scores(folder / "scores.png", wide)
    found["scores.png"] = "Scores at equal hidden size as a share of guessing, with their intervals; left is better."
    memory = [row for row in wide if row.get("memory")]
    if any("gradients" in each for row in memory for each in row["by_length"].values()):
        _memory(folder / "memory.png", memory)
        found["memory.png"] = (
            "Forgetting in one picture. Left and middle: how far the last answer still depends on the state so many "
            "steps before (gradient's norm, relative to one step before; mean over the seeds), before and after training. "
            "Right: what that means for the score, by distance. Before training a GRU forgets fastest of all, since its "
            "update gate starts half open, while an LSTM's forget gate is biased to remember: what counts is what training "
            "makes of the gates. Norms below 1e-20 are drawn as nothing."
        )
    _curves(folder / "curves.png", wide)
    found["curves.png"] = (
        "Validation score over the updates (median of the seeds, the band is their range), at the longest length. A "
        "line ends where every seed had stopped improving or the budget was used up."
    )
    timed = {(row["task"], row["variant"]) for row in wide if "times" in row}
    if any((task, "lstm") in timed for task, variant in timed if variant == "gru"):
        _times(folder / "times.png", wide)
        found["times.png"] = (
            "What a GRU costs beside an LSTM of the same width (below 1: the GRU is cheaper). Arithmetic alone would "
            "make it 0.75; where a measured time lies elsewhere, the program decides and not the cell."
        )
    return found


def colour(variant: str) -> str:
    """One colour for a cell, however many layers or directions it has."""
    return COLOURS[variant.removeprefix("bi-").removesuffix(" x 2")]


def _form(variant: str) -> str:
    return "bi-" if variant.startswith("bi-") else " x 2" if variant.endswith(" x 2") else ""


def _scores(path: Path, rows: Sequence[Row]) -> None:
    """One panel per task and length."""
    panels = [(task, length) for task in dict.fromkeys(r["task"] for r in rows) for length in _lengths(rows, task)]
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.5 * lines))
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes, (task, length) in zip(grid, panels, strict=False):
        mine = [row for row in rows if row["task"] == task and length in row["by_length"]]
        order = [name for name in VARIANTS if any(row["variant"] == name for row in mine)]
        for row in mine:
            place = -order.index(row["variant"])
            _interval(axes, share(row, length), place, row["variant"])
        axes.axvline(1.0, color="black", linewidth=0.8, linestyle="dashed")
        axes.set_yticks([-i for i in range(len(order))], order, fontsize="small")
        axes.set_xlim(left=0)
        axes.tick_params(axis="x", labelsize="small")
        many = len(_lengths(rows, task)) > 1
        axes.set_title(f"{task} {length}" if many else task, fontsize="medium")
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    figure.supxlabel(
        "test loss as a share of guessing (dashed: guessing), 95 % bootstrap interval over the seeds", fontsize="medium"
    )
    figure.tight_layout()
    plots.save_figure(figure, path)


def _interval(axes: Axes, value: Interval, place: float, variant: str) -> None:
    if np.isfinite([value.low, value.high]).all():
        axes.plot([value.low, value.high], [place, place], color=colour(variant), linewidth=3, alpha=0.5)
    axes.plot([value.mean], [place], marker=MARKS[_form(variant)], color=colour(variant), markersize=5)


def _memory(path: Path, rows: Sequence[Row]) -> None:
    """A row of panels per task: gradient before, gradient after, score by length."""
    tasks = [t for t in dict.fromkeys(row["task"] for row in rows) if _with_gradients(rows, t)]
    figure = Figure(figsize=(13, 3.2 * len(tasks)))
    grid = figure.subplots(len(tasks), 3, squeeze=False)
    for line, task in zip(grid, tasks, strict=True):
        having = _with_gradients(rows, task)
        length, lowest = longest_of(*having), 0.0
        for row in having:
            found = row["by_length"][length]["gradients"]
            for axes, moment in zip(line[:2], ("before", "after"), strict=True):
                curve = np.asarray(found[moment]["log10_norm"])
                relative = np.maximum(curve - curve[0], _LEAST)
                lowest = min(lowest, float(relative.min()))
                axes.plot(found[moment]["lags"], 10**relative, color=colour(row["variant"]), label=row["variant"])
                axes.set(xlabel="lag (steps)", yscale="log")
                axes.set_title(f"{task} {length}: gradient {moment} training", fontsize="medium")
        for axes in line[:2]:
            axes.set_ylim(10 ** (lowest - 0.5), 10**2)
        line[0].set_ylabel("gradient's norm (lag 1 is 1)")
        line[0].legend(fontsize="small", loc="lower left")
        _by_length(line[2], [row for row in rows if row["task"] == task], task)
    figure.tight_layout()
    plots.save_figure(figure, path)


def _by_length(axes: Axes, rows: Sequence[Row], task: str) -> None:
    every = sorted({length for row in rows for length in row["by_length"]}, key=int)
    for offset, row in enumerate(rows):
        lengths = [length for length in every if length in row["by_length"]]
        shares = [share(row, length) for length in lengths]
        places = [every.index(length) + 0.06 * (offset - (len(rows) - 1) / 2) for length in lengths]
        line = "solid" if row["variant"] in CELLS else "dotted"
        axes.plot(
            places,
            [s.mean for s in shares],
            color=colour(row["variant"]),
            marker="o",
            linestyle=line,
            label=row["variant"],
        )
        for place, s in zip(places, shares, strict=True):
            if np.isfinite([s.low, s.high]).all():
                axes.plot([place, place], [s.low, s.high], color=colour(row["variant"]), linewidth=3, alpha=0.4)
    axes.set_xticks(range(len(every)), every)
    axes.set_xlim(-0.5, len(every) - 0.5)
    axes.axhline(1.0, color="black", linewidth=0.8, linestyle="dashed")
    axes.set(xlabel="length or lag (steps)", ylabel="loss / guessing", ylim=(0, None))
    axes.set_title(f"{task}: score", fontsize="medium")
    axes.legend(fontsize="x-small")


def _curves(path: Path, rows: Sequence[Row]) -> None:
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    columns = min(3, len(tasks))
    lines = -(-len(tasks) // columns)
    figure = Figure(figsize=(4.4 * columns, 3 * lines))
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes, task in zip(grid, tasks, strict=False):
        mine = [row for row in rows if row["task"] == task]
        length = longest_of(*mine)
        for row in (row for row in mine if length in row["by_length"]):
            found = row["by_length"][length]
            curves = [np.asarray(curve) for curve in found["curves"] if len(curve)]
            if not curves:
                continue
            longest = max(curves, key=len)[:, 0]
            held = np.stack([np.interp(longest, c[:, 0], c[:, 1]) for c in curves]) / found["baseline"]
            middle = np.median(held, axis=0)
            axes.plot(
                longest,
                middle,
                color=colour(row["variant"]),
                linestyle=LINES[_form(row["variant"])],
                label=row["variant"],
            )
            axes.fill_between(longest, held.min(axis=0), held.max(axis=0), color=colour(row["variant"]), alpha=0.15)
        axes.set_ylim(0, 1.4)
        axes.set_title(f"{task} {length}", fontsize="medium")
        axes.set_xlabel("updates", fontsize="small")
        axes.tick_params(labelsize="small")
        axes.legend(fontsize="x-small")
    for axes in grid[len(tasks) :]:
        axes.set_visible(False)
    figure.supylabel("validation loss / guessing")
    figure.tight_layout()
    plots.save_figure(figure, path)


def _times(path: Path, rows: Sequence[Row]) -> None:
    same = {(row["task"], row["variant"]): row for row in rows if "times" in row}
    tasks = [t for t, name in same if name == "gru" and (t, "lstm") in same]
    measured = {"PyTorch, training": "update_ms", "without oneDNN": "update_ms_without_onednn"}
    batches = {"ONNX Runtime, 1 row": "1", "64 rows": "64", "256 rows": "256"}

    def pick(row: Row, kind: str) -> Sequence[float]:
        if kind in measured:
            return row["times"][measured[kind]]  # type: ignore[no-any-return]
        return row["times"]["onnx_us"][batches[kind]] if kind in batches else [row["flops_per_event"]] * 2

    figure = Figure(figsize=(10, 4))
    axes = figure.subplots()
    shades = ["#222222", "#1b6fb3", "#8ab8dc", "#8c510a", "#d8a15c", "#f0d3a8"]
    for k, kind in enumerate(("arithmetic", *measured, *batches)):
        for i, task in enumerate(tasks):
            pairs = zip(pick(same[task, "gru"], kind), pick(same[task, "lstm"], kind), strict=True)
            found = bootstrap([gru / lstm for gru, lstm in pairs], median=True)
            place = i + 0.12 * (k - 2.5)
            if np.isfinite([found.low, found.high]).all():
                axes.plot([place, place], [found.low, found.high], color=shades[k], linewidth=3, alpha=0.6)
            axes.plot([place], [found.mean], marker="o", color=shades[k], markersize=5, label=kind if i == 0 else None)
    axes.axhline(1.0, color="black", linewidth=0.8, linestyle="dashed")
    axes.set_xticks(range(len(tasks)), tasks, rotation=20, fontsize="small")
    axes.set(ylabel="GRU / LSTM of the same width", yscale="log")
    ticks = (0.5, 0.75, 1, 1.5, 2, 3, 5, 8, 12)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    plots.save_figure(figure, path)


def _lengths(rows: Sequence[Row], task: str) -> list[str]:
    found = {length for row in rows if row["task"] == task for length in row["by_length"]}
    return sorted(found, key=int)


def _with_gradients(rows: Sequence[Row], task: str) -> list[Row]:
    """Rows of a task whose gradients are known, at a length that all of them have."""
    mine = [row for row in rows if row["task"] == task and row["variant"] in CELLS]
    return [row for row in mine if "gradients" in row["by_length"].get(longest_of(*mine), {})]
