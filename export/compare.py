"""``python -m export compare``: the family of cells on the same tasks, at equal width and at equal parameter count.

Answers with figures which textbook claims hold on this machine, as Markdown with plots and as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from streamer.errors import ConfigurationError, StreamerError

from . import comparison_report, plots
from .cases import REFERENCE, TASKS, VARIANTS, Case, built_in, hidden_for, parameters_of, sized
from .data import Split
from .measure import trained_figures
from .progress import epochs_progress
from .train import TrainConfig, make_model, read_config, read_split

WIDTH, RESIZED = "equal hidden", "equal parameters"
QUICK_RESIZED = ("feed-forward", "rnn", "gru")
"""Variants that a quick run also trains at equal parameter count."""


@dataclass(frozen=True)
class Job:
    """One row of the comparison."""

    case: Case
    variant: str
    sizing: str
    config: TrainConfig

    def made_with(self, seeds: Sequence[int]) -> str:
        """Digest of all that decides the row."""
        decides = [self.case.name, self.variant, self.sizing, list(self.case.splits), list(seeds)]
        return sha256(msgspec.json.encode([*decides, self.config])).hexdigest()[:16]


def plan(cases: Sequence[Case], variants: Sequence[str], *, quick: bool) -> list[Job]:
    """All rows: every variant at the case's hidden size, then sized to the reference's parameter count."""
    return [job for case in cases for job in _plan_case(case, variants, quick)]


def run_job(job: Job, seeds: Sequence[int]) -> dict[str, Any]:
    """Train at all lengths with all seeds; speed and sizes are those of the longest and the first seed."""
    by_length: dict[str, dict[str, Any]] = {}
    first: dict[str, Any] = {}
    for length, make in job.case.splits.items():
        if job.sizing == RESIZED and length != job.case.longest:
            continue  # how the score falls with length is told at equal width; this would double the time
        found = [
            trained_figures(job.config, make, seed, speed=length == job.case.longest and index == 0)
            for index, seed in enumerate(seeds)
        ]
        scores = [row["score"] for row in found]
        by_length[str(length)] = {
            "mean": float(np.mean(scores)),
            "std": float(np.std(scores)),
            "baseline": job.case.baselines.get(length, found[0]["baseline"]),
        }
        if length == job.case.longest:
            first = {**found[0], "scores": scores, "epochs": [row["seconds_per_epoch"] for row in found]}
    directions = VARIANTS[job.variant].get("directions", 1)
    return {
        "task": job.case.name,
        "variant": job.variant,
        "sizing": job.sizing,
        "unit": job.case.unit,
        "hidden": job.config.model.hidden,
        "parameters": first["parameters"],
        "seconds_per_epoch": float(np.median(first["epochs"])),
        "peak_memory_bytes": first["peak_memory_bytes"],
        "model_bytes": first["model_bytes"],
        "state_bytes": first["state_bytes"],
        "microseconds_per_event": first["microseconds_per_event"],
        "score": {
            "mean": float(np.mean(first["scores"])),
            "std": float(np.std(first["scores"])),
            "seeds": first["scores"],
        },
        "by_length": by_length,
        "delay_events": (job.case.longest - 1) / 2 if directions == 2 else 0.0,
    }


def compare(
    cases: Sequence[Case], out: Path, *, variants: Sequence[str], seeds: Sequence[int], quick: bool, command: str
) -> dict[str, Any]:
    """Run everything and write REPORT.md into ``out``, compare.json and the plots into its ``figures``; returns the report."""
    jobs = plan(cases, variants, quick=quick)
    rows: list[dict[str, Any]] = []
    figures = out / comparison_report.FIGURES
    figures.mkdir(parents=True, exist_ok=True)
    found = _interrupted(figures / "compare.json")
    with epochs_progress("compare", len(jobs)) as advance:
        for job in jobs:
            made_with = job.made_with(seeds)
            kept = next((row for row in found if row.get("made_with") == made_with), None)
            rows.append(kept or {**run_job(job, seeds), "made_with": made_with})
            # A long run that is interrupted leaves what it has found so far: the next one goes on from there.
            plots.write_json(figures / "compare.json", {"rows": rows, "complete": False})
            advance(f"{job.case.name}: {job.variant}, {job.sizing}")
    report = {"rows": rows, "claims": comparison_report.claims(rows), "seeds": list(seeds), "quick": quick}
    report["machine"] = comparison_report.machine()
    plots.write_json(figures / "compare.json", {**report, "complete": True})
    comparison_report.write(out, report, command)
    return report


def _interrupted(path: Path) -> list[dict[str, Any]]:
    """Rows of a run that did not end."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return []
    rows: list[dict[str, Any]] = [] if document.get("complete", True) else document["rows"]
    return rows


def user_case(path: Path) -> Case:
    """A case of the user's own: the task, data and training of a configuration for ``train``."""
    config = read_config(path)
    steps = config.training.steps

    def split(seed: int) -> Split:
        seeded = msgspec.structs.replace(config, seeds=[seed])
        return read_split(seeded, path.parent)

    return Case(config.name, config, {steps: split}, "loss")


def main(argv: Sequence[str]) -> int:
    """The command ``compare``."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__} compare", description="Compare cells on the same tasks."
    )
    parser.add_argument("--quick", action="store_true", help="short sequences, little data: under 3 minutes")
    parser.add_argument("--tasks", default=",".join(TASKS), help=f"some of {', '.join(TASKS)} (default: all)")
    parser.add_argument("--variants", default=",".join(VARIANTS), help=f"some of {', '.join(VARIANTS)} (default: all)")
    parser.add_argument("--config", type=Path, help="your own data and task: a configuration of train")
    parser.add_argument("--seeds", type=int, help="number of seeds (default 3, quick 1)")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object on stdout")
    arguments = parser.parse_args(list(argv))
    try:
        seeds = range(arguments.seeds if arguments.seeds is not None else 1 if arguments.quick else 3)
        variants = _chosen(arguments.variants, tuple(VARIANTS), "variant")
        names = _chosen(arguments.tasks, TASKS, "task")
        if not seeds:
            raise ConfigurationError("seeds must be at least 1")
        cases = [user_case(arguments.config)] if arguments.config else built_in(names, quick=arguments.quick)
        command = f"python -m {__package__} compare " + " ".join(argv)
        report = compare(
            cases, arguments.out, variants=variants, seeds=list(seeds), quick=arguments.quick, command=command.strip()
        )
    except StreamerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    if arguments.json:
        print(json.dumps(report))
    else:
        for claim in report["claims"]:
            print(f"{comparison_report.verdict(claim):13} {claim['claim']}")
        print(f"{arguments.out / 'REPORT.md'}")
    return 0


def _plan_case(case: Case, variants: Sequence[str], quick: bool) -> Iterator[Job]:
    known = {name: options for name, options in case.variants().items() if name in variants}
    probe = next(iter(case.splits.values()))(0)
    width = make_model(sized(case.config, VARIANTS[REFERENCE], case.config.model.hidden), probe.train).width
    count = partial(parameters_of, features=len(probe.train.features), outputs=width)
    wanted = count(sized(case.config, VARIANTS[REFERENCE], case.config.model.hidden))
    for name, options in known.items():
        if quick and name == "rnn x 2":
            continue  # says least, and three minutes are short
        yield Job(case, name, WIDTH, sized(case.config, options, case.config.model.hidden))
    for name, options in known.items():
        if name != REFERENCE and (not quick or name in QUICK_RESIZED):
            hidden = hidden_for(case.config, options, wanted, len(probe.train.features), width)
            yield Job(case, name, RESIZED, sized(case.config, options, hidden))


def _chosen(text: str, known: Sequence[str], what: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ConfigurationError(f"no {what} {(unknown or [text])[0]!r}, there are {', '.join(known)}")
    return names
