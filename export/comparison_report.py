"""What a comparison says: claims with their figures, a Markdown report, plots."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from . import plots

Row = Mapping[str, Any]
GATED = ("lstm", "gru")
FIGURES = "figures"
"""Folder beside REPORT.md with its plots and compare.json."""
REMEMBERED = 0.5
"""A cell counts as having remembered when its loss is at most this share of guessing."""


def claims(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The textbook's claims: ``holds`` is true, false, or null where the rows do not allow an answer."""
    pairs = _pairs(rows)
    ratios = {
        task: {
            "parameters": gru["parameters"] / lstm["parameters"],
            "state_bytes": gru["state_bytes"] / lstm["state_bytes"] if lstm["state_bytes"] else None,
            "model_bytes": gru["model_bytes"] / lstm["model_bytes"],
            "seconds_per_epoch": gru["seconds_per_epoch"] / lstm["seconds_per_epoch"],
            "microseconds_per_event": {
                rows: gru["microseconds_per_event"][rows] / lstm["microseconds_per_event"][rows]
                for rows in lstm["microseconds_per_event"]
            },
        }
        for task, (lstm, gru) in pairs.items()
    }
    found = [
        _ratio_claim("a GRU has fewer parameters than an LSTM of the same width", ratios, "parameters"),
        _ratio_claim("a GRU needs less memory per stream than an LSTM of the same width", ratios, "state_bytes"),
        _ratio_claim("a GRU trains faster than an LSTM of the same width", ratios, "seconds_per_epoch"),
    ]
    for batch in ("1", "64", "256"):
        speed = {task: {"ratio": row["microseconds_per_event"].get(batch)} for task, row in ratios.items()}
        found.append(_ratio_claim(f"a GRU runs faster than an LSTM of the same width, {batch} rows", speed, "ratio"))
    return [*found, *_accuracy_claims(rows, pairs), _direction_claim(rows)]


def verdict(claim: Mapping[str, Any]) -> str:
    """One word or two for people."""
    return "not measured" if claim["holds"] is None else "holds" if claim["holds"] else "does not hold"


def write(out: Path, report: Mapping[str, Any], command: str) -> None:
    """REPORT.md and its plots."""
    rows = report["rows"]
    lines = ["# Comparison of recurrent cells", "", f"Made by `{command}` on {report['machine']}.", ""]
    lines += ["Scores are test losses: smaller is better. Spread is the standard deviation over "]
    lines[-1] += f"{len(report['seeds'])} seed(s). Times are processor time of one thread: "
    lines[-1] += (
        "s/epoch of training in PyTorch, µs/event of ONNX Runtime at 1, 64 and 256 rows per call. Peak memory is "
    )
    lines[-1] += "what training took beyond the loaded program; state is what a service keeps per stream."
    lines += ["", "All variants of a task get the same short training, so a score tells how far a variant came in it, "]
    lines[-1] += "not how far it can come."
    lines += ["", "## Claims", "", "| claim | verdict | figures |", "|---|---|---|"]
    lines += [f"| {c['claim']} | {verdict(c)} | {_short(c['figures'])} |" for c in report["claims"]]
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task]
        lines += ["", f"## {task} ({mine[0]['unit']})", ""]
        for sizing in dict.fromkeys(row["sizing"] for row in mine):
            lines += [f"At {sizing}:", "", *_table([row for row in mine if row["sizing"] == sizing]), ""]
        if len(mine[0]["by_length"]) > 1:
            _length_plot(out / FIGURES / f"{task}.png", mine)
            lines += [f"![{task}: score by length]({FIGURES}/{task}.png)"]
    temporary = out / "REPORT.md.part"
    temporary.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    os.replace(temporary, out / "REPORT.md")


def machine() -> str:
    """Processor and core count, as far as the system tells."""
    name = platform.processor() or platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text()
        name = next(line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux, or a processor without a name: the architecture has to do
    return f"{name}, {os.cpu_count()} cores, {platform.system()}"


def _pairs(rows: Sequence[Row]) -> dict[str, tuple[Row, Row]]:
    """Task -> (LSTM, GRU) of the same width."""
    same = {(row["task"], row["variant"]): row for row in rows if row["sizing"] == "equal hidden"}
    tasks = dict.fromkeys(row["task"] for row in rows)
    return {t: (same[t, "lstm"], same[t, "gru"]) for t in tasks if (t, "lstm") in same and (t, "gru") in same}


def _ratio_claim(text: str, ratios: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, Any]:
    figures = {f"{task}: gru / lstm": row[key] for task, row in ratios.items() if row[key] is not None}
    holds = bool(np.median(list(figures.values())) < 1) if figures else None
    return {"claim": text, "holds": holds, "figures": figures}


def _accuracy_claims(rows: Sequence[Row], pairs: Mapping[str, tuple[Row, Row]]) -> list[dict[str, Any]]:
    longer: dict[str, float] = {}
    better = []
    for task, (lstm, gru) in pairs.items():
        if len(lstm["by_length"]) < 2:
            continue
        longest = max(lstm["by_length"], key=int)
        a, b = lstm["by_length"][longest], gru["by_length"][longest]
        longer |= {f"{task} {longest}: lstm": a["mean"], f"{task} {longest}: gru": b["mean"]}
        better.append(a["mean"] + a["std"] < b["mean"] - b["std"])  # apart by more than the spread over seeds
    remembered: dict[str, float] = {}
    verdicts = []
    for row in rows:
        if row["sizing"] == "equal hidden" and row["variant"] in (*GATED, "rnn") and len(row["by_length"]) > 1:
            longest = max(row["by_length"], key=int)
            cell = row["by_length"][longest]
            remembered[f"{row['task']} {longest}: {row['variant']} / guessing"] = cell["mean"] / cell["baseline"]
    for task in pairs:
        shares = {name.split(": ")[1].split(" ")[0]: v for name, v in remembered.items() if name.startswith(f"{task} ")}
        if "rnn" in shares:
            gated = min(shares[cell] for cell in GATED)
            verdicts.append(gated <= REMEMBERED < shares["rnn"])
    return [
        {"claim": "an LSTM is more accurate than a GRU on long sequences", "holds": _all(better), "figures": longer},
        {
            "claim": "gated cells remember where the plain RNN forgets",
            "holds": None if not verdicts else any(verdicts),
            "figures": remembered,
        },
    ]


def _direction_claim(rows: Sequence[Row]) -> dict[str, Any]:
    """Does looking ahead buy accuracy, and how many events does its answer come later?"""
    same = {(row["task"], row["variant"]): row for row in rows if row["sizing"] == "equal hidden"}
    figures: dict[str, float] = {}
    better = []
    for (task, variant), row in same.items():
        if variant.startswith("bi-") and (task, variant[3:]) in same and task != "adding":
            causal = same[task, variant[3:]]
            figures[f"{task}: {variant} / {variant[3:]} loss"] = row["score"]["mean"] / causal["score"]["mean"]
            figures[f"{task}: {variant} delay in events"] = row["delay_events"]
            better.append(row["score"]["mean"] < causal["score"]["mean"])
    text = "a bidirectional network is more accurate, and waits for the window's end"
    return {"claim": text, "holds": _all(better), "figures": figures}


def _all(found: Sequence[bool]) -> bool | None:
    return all(found) if found else None


def _short(figures: Mapping[str, float]) -> str:
    return "; ".join(f"{name} {value:.3g}" for name, value in figures.items())


def _table(rows: Sequence[Row]) -> list[str]:
    lengths = list(rows[0]["by_length"])
    many = len(lengths) > 1
    scores = [f"score at {length}" if many else "score" for length in lengths]
    head = [
        "variant",
        "hidden",
        "parameters",
        *scores,
        "s/epoch",
        "peak MB",
        "model kB",
        "state B",
        "µs/event 1/64/256",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row["variant"], str(row["hidden"]), str(row["parameters"])]
        cells += [f"{row['by_length'][n]['mean']:.4f} ± {row['by_length'][n]['std']:.4f}" for n in lengths]
        speed = " / ".join(f"{value:.1f}" for value in row["microseconds_per_event"].values())
        cells += [f"{row['seconds_per_epoch']:.2f}", f"{row['peak_memory_bytes'] / 1e6:.0f}"]
        cells += [f"{row['model_bytes'] / 1e3:.0f}", str(row["state_bytes"]), speed]
        lines.append("| " + " | ".join(cells) + " |")
    guess = [f"{rows[0]['by_length'][n]['baseline']:.4f}" for n in lengths]
    lines.append("| " + " | ".join(["guessing", "", "", *guess, "", "", "", "", ""]) + " |")
    return lines


def _length_plot(path: Path, rows: Sequence[Row]) -> None:
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    for row in rows:
        if row["sizing"] == "equal hidden":
            lengths = [int(length) for length in row["by_length"]]
            cells = list(row["by_length"].values())
            axes.errorbar(
                lengths, [c["mean"] for c in cells], [c["std"] for c in cells], marker="o", label=row["variant"]
            )
    guess = rows[0]["by_length"]
    axes.plot([int(n) for n in guess], [c["baseline"] for c in guess.values()], "k--", label="guessing")
    axes.set(xlabel="length (steps)", ylabel=rows[0]["unit"])
    axes.legend(fontsize="small")
    plots.save_figure(figure, path)
