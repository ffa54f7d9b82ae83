"""REPORT.md: the claims with their intervals, every task's table, what was published, and how it was made."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import pictures
from .cases import RATES, RESIZED, WIDTH
from .claims import REMEMBERED, longest_of, score, share
from .published import PUBLISHED
from .statistics import FAILS, HOLDS, MISSING, UNDECIDED, bootstrap

Row = Mapping[str, Any]
FIGURES = "figures"
"""Folder beside REPORT.md with its plots and compare.json."""
MOST_IN_A_CELL = 16
QUICK = (
    "**A quick run: it shows that everything works, and is no evidence.** Its sequences are short, its trainings end "
    "long before they have learnt what they could, and its intervals come from too few seeds."
)
RULES = {
    "all": "`all`: holds where every task's intervals are apart in its favour, does not hold where one is apart the other way",
    "any": "`any`: holds where one task's intervals are apart in its favour, does not hold where all are apart the other way",
}


def write(out: Path, report: Mapping[str, Any], command: str) -> None:
    """REPORT.md and its plots."""
    rows = report["rows"]
    shown = pictures.draw(out / FIGURES, rows) if rows else {}
    lines = ["# Comparison of recurrent cells", "", f"Made by `{command}` on {report['machine']}.", ""]
    if report["quick"]:
        lines += [QUICK, ""]
    if report.get("missing"):
        missing = "; ".join(report["missing"])
        lines += [f"**Not complete.** The command was stopped before it had trained: {missing}.", ""]
    for text in report.get("left_out", []):
        lines += [f"**Left out.** {text}", ""]
    lines += ["## In short", "", *_short(report["claims"])]
    lines += ["", "## Claims", "", *_claims(report["claims"])]
    lines += ["", "## How it was made", "", *_method(report)]
    for name, text in shown.items():
        lines += ["", f"![{name}]({FIGURES}/{name})", "", text]
    lines += ["", "## What others published", "", *_published(rows)]
    for task in dict.fromkeys(row["task"] for row in rows):
        lines += ["", *_task(task, [row for row in rows if row["task"] == task])]
    lines += ["", "## Why the times are as they are", "", *_causes(rows)]
    temporary = out / "REPORT.md.part"
    temporary.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    os.replace(temporary, out / "REPORT.md")


def _short(claims: Sequence[Mapping[str, Any]]) -> list[str]:
    """The claims by their verdict."""
    lines = []
    for outcome in (HOLDS, FAILS, UNDECIDED, MISSING):
        mine = [claim["claim"] for claim in claims if claim["verdict"] == outcome]
        if mine:
            lines += [f"- **{outcome}:** " + "; ".join(mine) + "."]
    return lines


def _claims(claims: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| claim | verdict | rule | for, against, undecided | figures [95 % interval] |", "|---|---|---|---|---|"]
    for claim in claims:
        orders = [finding["order"] for finding in claim["findings"]]
        counts = ", ".join(str(orders.count(order)) for order in ("better", "worse", "undecided"))
        lines.append(
            f"| {claim['claim']} | **{claim['verdict']}** | {claim['rule']} | {counts if orders else ''} "
            f"| {_findings(claim['findings'])} |"
        )
    return [
        *lines,
        "",
        f"A verdict is given only where intervals do not overlap. {RULES['all']}. {RULES['any']}. Anything else is "
        f'undecided on this budget. "Remember" means a loss of at most {REMEMBERED:g} of guessing. Figures are test '
        "losses (less is better) unless the claim names something else.",
    ]


def _findings(findings: Sequence[Mapping[str, Any]]) -> str:
    signs = {"better": "+", "worse": "-", "undecided": "?"}
    texts = []
    for finding in findings[:MOST_IN_A_CELL]:
        values = ", ".join(f"{name} {_value(value)}" for name, value in finding["figures"].items())
        texts.append(f"{signs[finding['order']]} {finding['on']}: {values}")
    more = len(findings) - MOST_IN_A_CELL
    return "<br>".join(texts) + (f"<br>and {more} more in compare.json" if more > 0 else "")


def _value(value: float | Sequence[float]) -> str:
    if isinstance(value, Sequence):
        mean, low, high = value
        return f"{mean:.3g} [{low:.3g}, {high:.3g}]"
    return f"{value:.3g}"


def _method(report: Mapping[str, Any]) -> list[str]:
    setting = report["setting"]
    rates = ", ".join(f"{rate:g}" for rate in RATES)
    return [
        "- **Equal budget.** All variants of a task and length may make the same number of updates on the same batches "
        "(Adam, gradient norm clipped at 1, constant learning rate). A training ends before that when its validation "
        "score has not gained 0.1 to 0.5 % of what guessing scores for a while. The weights of the best validation "
        "score are judged on the test part. The tables say how many seeds stopped by themselves; where few did, more "
        "updates would change the score.",
        "- **Small budgets.** They are what one core computes in an hour or two, and a longer sequence may have a smaller one "
        "than a shorter, since it costs more. A cell that has learnt nothing at a length has learnt nothing in that "
        "budget: that it never could is not said.",
        f"- **Learning rate per variant.** {rates}: each has the whole budget with {_seeds(setting['rate_seeds'])}, the "
        "best mean validation score decides, and the other seeds see only the rate chosen. Rates at the edge of the "
        "grid are marked with *: a rate beyond it may be better still.",
        f"- **{_seeds(len(report['seeds'])).capitalize()}.** A seed draws the weights, the order of batches and, of generated tasks and "
        "digits, the data and its split. Intervals are 95 % percentile bootstrap intervals of the mean over seeds. With "
        "five seeds such an interval is too narrow (it covers the mean in about 85 of 100 cases); two of them that do "
        "not overlap are nevertheless a demanding test.",
        "- **Two sizes.** At equal hidden size the LSTM has the most parameters; at equal parameters the others are "
        "widened (or narrowed) to the LSTM's count.",
        "- **Feed-forward** is one hidden layer over the last 8 events: what can be had without memory.",
        "- All seeds and rates of a variant are trained as one stack of independent models (`comparison/stacked.py`, "
        "tested against torch's own cells). Times are not taken from it but from torch's and ONNX Runtime's kernels.",
        "- **Times** are processor time of one thread. The variants of a task are timed in turn, round by round, and "
        "compared within a round; the interval is that of the median over the rounds. Peak memory is what three updates "
        "took beyond the loaded program; state is what a service keeps per stream.",
    ]


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"


def _task(task: str, rows: Sequence[Row]) -> list[str]:
    lines = [f"## {task} ({rows[0]['unit']})", ""]
    for sizing in (WIDTH, RESIZED):
        mine = [row for row in rows if row["sizing"] == sizing]
        for length in sorted({n for row in mine for n in row["by_length"]}, key=int):
            have = [row for row in mine if length in row["by_length"]]
            many = len(rows[0]["by_length"]) > 1
            lines += [f"At {sizing}{f', length {length}' if many else ''}:", "", *_scores(have, length), ""]
    costs = [row for row in rows if "times" in row]
    if costs:
        lines += ["What they cost:", "", *_costs(costs)]
    return lines


def _scores(rows: Sequence[Row], length: str) -> list[str]:
    extra = next((n for n in ("accuracy", "auc") if n in rows[0]["by_length"][length]["figures"]), None)
    head = ["variant", "hidden", "parameters", "rate", "test loss [interval]", "of guessing"]
    head += [*([extra] if extra else []), "updates", "stopped by themselves"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        found = row["by_length"][length]
        rates = [float(rate) for rate in found["validation_by_rate"]]
        edge = "*" if len(rates) > 1 and found["learning_rate"] in (min(rates), max(rates)) else ""
        cells = [row["variant"], str(row["hidden"]), str(row["parameters"]), f"{found['learning_rate']:g}{edge}"]
        cells += [str(score(row, length)), f"{share(row, length).mean:.3f}"]
        cells += [str(bootstrap(found["figures"][extra]))] if extra else []
        stopped = sum(reason == "no gain" for reason in found["stopped"])
        cells += [f"{min(found['updates'])} to {max(found['updates'])}", f"{stopped} of {len(found['stopped'])}"]
        lines.append("| " + " | ".join(cells) + " |")
    guess = ["guessing", "", "", "", f"{rows[0]['by_length'][length]['baseline']:.3g}", "1", *([""] if extra else [])]
    return [*lines, "| " + " | ".join([*guess, "", ""]) + " |"]


def _costs(rows: Sequence[Row]) -> list[str]:
    head = [
        "variant",
        "hidden",
        "kFLOP/event",
        "update ms",
        "without oneDNN",
        "µs/event 1/64/256",
        "peak MB",
        "model kB",
    ]
    head += ["state B", "delay"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        times = row["times"]
        speed = " / ".join(f"{value:.2f}" for value in row["microseconds_per_event"].values())
        cells = [row["variant"], str(row["hidden"]), f"{row['flops_per_event'] / 1e3:.1f}"]
        cells += [f"{bootstrap(times[key], median=True).mean:.2f}" for key in ("update_ms", "update_ms_without_onednn")]
        cells += [speed, f"{row['peak_memory_bytes'] / 1e6:.0f}", f"{row['model_bytes'] / 1e3:.0f}"]
        cells += [str(row["state_bytes"]), f"{row['delay_events']:g}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _published(rows: Sequence[Row]) -> list[str]:
    lines = ["| task | published | theirs | ours | what differs |", "|---|---|---|---|---|"]
    for entry in PUBLISHED:
        mine = [row for row in rows if row["task"] == entry.task and row["sizing"] == WIDTH]
        cells = {row["variant"]: row for row in mine if row["variant"] in (*entry.figures, "lstm")}
        if not cells:
            continue
        length = longest_of(*cells.values())
        ours = [f"at {length}:"] if len(next(iter(cells.values()))["by_length"]) > 1 else []
        for name, row in cells.items():
            if length in row["by_length"]:
                ours.append(f"{name} {bootstrap(row['by_length'][length]['figures'][entry.ours])}")
        theirs = "<br>".join(f"{name} {value:.3g}" for name, value in entry.figures.items())
        lines.append(
            f"| {entry.task} ({entry.measure}) | {entry.source} | {theirs} | {'<br>'.join(ours)} | {entry.differs} |"
        )
    return lines


def _causes(rows: Sequence[Row]) -> list[str]:
    """What the times say about the cell, and what about the program."""
    pairs: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["sizing"] == WIDTH and "times" in row and row["variant"] in ("lstm", "gru"):
            pairs.setdefault(row["task"], {})[row["variant"]] = row
    pairs = {task: pair for task, pair in pairs.items() if len(pair) == 2}
    if not pairs:
        return ["Not measured."]

    def span(pick: Callable[[Row], Sequence[float]]) -> str:
        found = [
            bootstrap([a / b for a, b in zip(pick(pair["gru"]), pick(pair["lstm"]), strict=True)], median=True).mean
            for pair in pairs.values()
        ]
        return f"{min(found):.2f} to {max(found):.2f}"

    def slower(name: str) -> str:
        times = [pair[name]["times"] for pair in pairs.values()]
        each = [zip(t["update_ms_without_onednn"], t["update_ms"], strict=True) for t in times]
        found = [bootstrap([a / b for a, b in both], median=True).mean for both in each]
        return f"{min(found):.2f} to {max(found):.2f}"

    def onnx(batch: str) -> str:
        return span(lambda row: row["times"]["onnx_us"][batch])

    return [
        "Counted in floating point operations (two for each weight that an event is multiplied with; element-wise "
        f"operations are left out) a GRU costs {span(lambda row: [row['flops_per_event']])} of an LSTM of the same width.",
        "",
        f"- **PyTorch, training.** A GRU's update takes {span(lambda row: row['times']['update_ms'])} of the LSTM's time; "
        f"with oneDNN off {span(lambda row: row['times']['update_ms_without_onednn'])}. The cause: on a CPU PyTorch "
        "trains an LSTM with a fused kernel of oneDNN, and has none for the GRU and the plain RNN. Switching oneDNN off "
        f"makes the LSTM's update {slower('lstm')} times as long and the GRU's {slower('gru')} times. So the training "
        "time in PyTorch says more of the kernel than of the cell.",
        f"- **ONNX Runtime** has a kernel of its own for each cell. There a GRU takes {onnx('1')} (1 row), {onnx('64')} (64 "
        f"rows) and {onnx('256')} (256 rows) of the LSTM's time. At one row per call the cost of a call hides the cell; at "
        "many rows, what lies above the arithmetic is the kernel's.",
    ]
