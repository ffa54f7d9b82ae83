"""The textbook's claims, each with its rule, its figures and the verdict that follows from their intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .cases import BOTH_WAYS, CELLS, REFERENCE, RESIZED, WIDTH
from .statistics import HOLDS, MISSING, UNDECIDED, Interval, Order, below, bootstrap, order, verdict

Row = Mapping[str, Any]
GATED = ("lstm", "gru")
REMEMBERED = 0.5
"""A cell has remembered when its loss is at most this share of guessing."""
LEARNT = 0.95
"""A cell has learnt something when its loss is below this share of guessing."""
Rule = Literal["all", "any"]


@dataclass(frozen=True)
class Finding:
    """One comparison that a claim rests on: what is compared, in words and figures, and how it came out."""

    text: str
    figures: Mapping[str, float | Interval]
    order: Order


def claims(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Claim, rule, verdict, ``holds`` (true, false, or null where undecided or not measured), figures, findings."""
    found = [
        _claim("a GRU has fewer parameters than an LSTM of the same width", "all", _exact(rows, "parameters")),
        _claim("a GRU needs less memory per stream than an LSTM of the same width", "all", _exact(rows, "state_bytes")),
        _claim(
            "a GRU needs fewer floating point operations per event than an LSTM of the same width",
            "all",
            _exact(rows, "flops_per_event"),
        ),
        _claim(
            "a GRU trains faster than an LSTM of the same width (PyTorch as it comes)",
            "all",
            _times(rows, lambda times: times["update_ms"]),
        ),
        _claim(
            "a GRU trains faster than an LSTM of the same width (PyTorch without oneDNN)",
            "all",
            _times(rows, lambda times: times["update_ms_without_onednn"]),
        ),
    ]
    for batch in ("1", "64", "256"):
        found.append(
            _claim(
                f"a GRU runs faster than an LSTM of the same width (ONNX Runtime, {batch} row{'s' * (batch != '1')})",
                "all",
                _times(rows, lambda times, batch=batch: times["onnx_us"][batch]),  # type: ignore[misc]
            )
        )
    return [*found, *_accuracy(rows)]


def _accuracy(rows: Sequence[Row]) -> list[dict[str, Any]]:
    memory = [row for row in rows if row.get("memory")]
    return [
        _claim(
            "an LSTM is more accurate than a GRU of the same width on long sequences",
            "all",
            _pairs(memory, "lstm", "gru"),
        ),
        _claim(
            "a GRU is more accurate than an LSTM of the same parameter count",
            "all",
            _against_reference(rows, "gru"),
        ),
        _claim("gated cells remember where the plain RNN forgets", "any", _remembering(memory)),
        _claim(
            "a plain RNN forgets more the longer the distance",
            "all",
            [finding for row in _plain(memory) for finding in _by_distance(row)],
        ),
        _claim(
            "before training, a plain RNN's gradient falls faster per step than a gated cell's",
            "all",
            _decay(memory, "before"),
        ),
        _claim(
            "after training, a plain RNN's gradient falls faster per step than a gated cell's",
            "all",
            _decay(memory, "after"),
        ),
        _claim(
            "a gated cell beats a feed-forward network over the last 8 events where the answer lies further back",
            "all",
            [f for cell in GATED for f in _pairs(memory, cell, "feed-forward")],
        ),
        _claim(
            "a plain RNN beats a feed-forward network over the last 8 events where the answer lies further back",
            "all",
            _pairs(memory, "rnn", "feed-forward"),
        ),
        _claim(
            "a bidirectional network is more accurate than a causal one, and answers only at the window's end",
            "all",
            [f for name in BOTH_WAYS for f in _pairs(rows, name, name.removeprefix("bi-"), delay=True)],
        ),
        _claim(
            "two layers are more accurate than one of the same parameter count",
            "all",
            [f for cell in CELLS for f in _deeper(rows, cell)],
        ),
    ]


def _claim(text: str, rule: Rule, findings: Sequence[Finding]) -> dict[str, Any]:
    outcome = verdict([finding.order for finding in findings], rule)
    figures = {
        f"{finding.text}: {name}": value.mean if isinstance(value, Interval) else value
        for finding in findings
        for name, value in finding.figures.items()
    }
    return {
        "claim": text,
        "rule": rule,
        "verdict": outcome,
        "holds": None if outcome in (UNDECIDED, MISSING) else outcome == HOLDS,
        "figures": figures,
        "findings": [
            {
                "on": finding.text,
                "order": finding.order,
                "figures": {
                    name: [value.mean, value.low, value.high] if isinstance(value, Interval) else value
                    for name, value in finding.figures.items()
                },
            }
            for finding in findings
        ],
    }


def score(row: Row, length: str | None = None) -> Interval:
    """Mean test loss over the seeds and its interval, at a length (default: the longest)."""
    return bootstrap(row["by_length"][longest_of(row) if length is None else length]["seeds"])


def longest_of(*rows: Row) -> str:
    """The longest length that all these rows have, as by_length has it; of the first alone if they share none."""
    shared = set(rows[0]["by_length"]).intersection(*(row["by_length"] for row in rows))
    return str(max(shared or rows[0]["by_length"], key=int))


def _same_width(rows: Iterable[Row], first: str, second: str) -> list[tuple[Row, Row]]:
    same = {(row["task"], row["variant"]): row for row in rows if row["sizing"] == WIDTH}
    return [(row, same[task, second]) for (task, name), row in same.items() if name == first and (task, second) in same]


def _exact(rows: Sequence[Row], key: str) -> list[Finding]:
    """GRU / LSTM of what is counted, not measured: no interval."""
    found = []
    for gru, lstm in _same_width(rows, "gru", "lstm"):
        if lstm[key]:
            ratio = gru[key] / lstm[key]
            found.append(Finding(gru["task"], {"gru / lstm": ratio}, "better" if ratio < 1 else "worse"))
    return found


def _times(rows: Sequence[Row], pick: Callable[[Mapping[str, Any]], Sequence[float]]) -> list[Finding]:
    """GRU / LSTM of times that were taken in turn: the median of the rounds' ratios."""
    found = []
    for gru, lstm in _same_width(rows, "gru", "lstm"):
        if "times" in gru and "times" in lstm:
            pairs = zip(pick(gru["times"]), pick(lstm["times"]), strict=True)
            ratio = bootstrap([a / b for a, b in pairs], median=True)
            found.append(Finding(gru["task"], {"gru / lstm": ratio}, below(ratio, 1.0)))
    return found


def _pairs(rows: Sequence[Row], first: str, second: str, *, delay: bool = False) -> list[Finding]:
    """First against second at the same width, at each task's longest length."""
    found = []
    for a, b in _same_width(rows, first, second):
        length = longest_of(a, b)
        if length in b["by_length"]:
            on = f"{a['task']} {length}" if len(a["by_length"]) > 1 else a["task"]
            figures: dict[str, float | Interval] = {first: score(a, length), second: score(b, length)}
            if delay:
                figures["delay in events"] = a["delay_events"]
            found.append(Finding(on, figures, order(score(a, length), score(b, length))))
    return found


def _against_reference(rows: Sequence[Row], variant: str) -> list[Finding]:
    """A resized variant against the reference, whose size it has."""
    reference = {row["task"]: row for row in rows if row["sizing"] == WIDTH and row["variant"] == REFERENCE}
    found = []
    for row in rows:
        other = reference.get(row["task"])
        if row["sizing"] == RESIZED and row["variant"] == variant and other and longest_of(row) in other["by_length"]:
            a, b = score(row), score(other, longest_of(row))
            found.append(Finding(row["task"], {variant: a, REFERENCE: b}, order(a, b)))
    return found


def _deeper(rows: Sequence[Row], cell: str) -> list[Finding]:
    """Two layers against one, both of the reference's parameter count."""
    found = []
    for row in rows:
        if row["sizing"] == RESIZED and row["variant"] == f"{cell} x 2":
            wanted = WIDTH if cell == REFERENCE else RESIZED
            flat = [r for r in rows if (r["task"], r["variant"], r["sizing"]) == (row["task"], cell, wanted)]
            for other in flat:
                a, b = score(row), score(other)
                found.append(Finding(f"{row['task']}", {f"{cell} x 2": a, cell: b}, order(a, b)))
    return found


def _plain(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["sizing"] == WIDTH and row["variant"] == "rnn"]


def share(row: Row, length: str) -> Interval:
    """The score as a share of what guessing scores."""
    return score(row, length).times(1 / row["by_length"][length]["baseline"])


def _remembering(rows: Sequence[Row]) -> list[Finding]:
    """At each length: the better gated cell is below half of guessing, the plain RNN above."""
    found = []
    for rnn in _plain(rows):
        gated = [r for r in rows if r["task"] == rnn["task"] and r["sizing"] == WIDTH and r["variant"] in GATED]
        for length in rnn["by_length"]:
            have = [row for row in gated if length in row["by_length"]]
            if have:
                best = min(have, key=lambda row: score(row, length).mean)
                mine, plain = share(best, length), share(rnn, length)
                remembers, forgets = below(mine, REMEMBERED), below(plain, REMEMBERED)
                come: Order = "undecided"
                if remembers == "better" and forgets == "worse":
                    come = "better"
                elif remembers == "worse" or forgets == "better":
                    come = "worse"
                figures = {f"{best['variant']} / guessing": mine, "rnn / guessing": plain}
                found.append(Finding(f"{rnn['task']} {length}", figures, come))
    return found


def _by_distance(row: Row) -> list[Finding]:
    """The shortest length against the longest, as shares of guessing: what was never learnt cannot be forgotten."""
    lengths = sorted(row["by_length"], key=int)
    if len(lengths) < 2:
        return []
    near, far = share(row, lengths[0]), share(row, lengths[-1])
    figures = {f"at {lengths[0]} / guessing": near, f"at {lengths[-1]} / guessing": far}
    learnt = below(near, LEARNT) == "better"
    return [Finding(row["task"], figures, order(near, far) if learnt else "undecided")]


def _decay(rows: Sequence[Row], moment: str) -> list[Finding]:
    """Factor per step of the answer's gradient, at the longest length: plain RNN against each gated cell."""
    found = []
    for cell in GATED:
        for rnn, gated in _same_width(rows, "rnn", cell):
            length = longest_of(rnn, gated)
            a, b = (row["by_length"].get(length, {}).get("gradients") for row in (rnn, gated))
            if a and b:
                plain, kept = (bootstrap(each[moment]["factor_per_step"]) for each in (a, b))
                on = f"{rnn['task']} {length}"
                found.append(Finding(on, {"rnn x per step": plain, f"{cell} x per step": kept}, order(plain, kept)))
    return found


def summary(row: Row, length: str) -> dict[str, float]:
    """Mean, standard deviation and interval of a score, for the JSON."""
    interval, seeds = score(row, length), row["by_length"][length]["seeds"]
    return {"mean": interval.mean, "std": float(np.std(seeds)), "low": interval.low, "high": interval.high}
