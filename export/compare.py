"""``python -m export compare``: the family of cells on the same tasks, at equal width and at equal parameter count.

Answers with figures which textbook claims hold on this machine, as Markdown with plots and as JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from streamer.errors import ConfigurationError, StreamerError

from . import plots
from .comparison import report as reports
from .comparison import work
from .comparison.cases import RESIZED, TASKS, TEXT_BYTES, VARIANTS, Case, built_in, find_text
from .comparison.claims import claims, summary
from .comparison.work import Job, Pieces, Setting
from .data import Split
from .folders import make_folder
from .measure import machine
from .progress import work_progress
from .train import read_config, read_split

FULL = Setting(seeds=(0, 1, 2, 3, 4), rate_seeds=2, rounds=7)
QUICK = Setting(seeds=(0, 1), rate_seeds=1, rounds=3)
PIECES = Path("runs/compare-pieces")
"""Where results wait until a comparison is complete; one that is interrupted goes on from them."""
NO_TEXT = (
    f"The task characters was not run: no text of at least {TEXT_BYTES / 1e6:g} MB was found. Give one with --text FILE, "
    "or set STREAMER_TEST_DATA to a folder that holds char-text/NAME.txt."
)


def compare(
    cases: Sequence[Case],
    out: Path,
    *,
    variants: Sequence[str],
    setting: Setting,
    quick: bool,
    command: str,
    left_out: Sequence[str] = (),
    only_report: bool = False,
    pieces_folder: Path | None = None,
) -> dict[str, Any]:
    """Run everything and write REPORT.md into ``out``, compare.json and the plots into its ``figures``; returns the report.

    ``only_report``: run nothing; report what an interrupted comparison has found so far, and what is missing.
    """
    jobs = work.plan(cases, variants)
    figures = out / reports.FIGURES
    pieces = Pieces(pieces_folder or PIECES)
    make_folder(figures)
    if not only_report:
        _run(cases, jobs, setting, pieces)
    times = {case.name: pieces.peek(_timing(case, jobs, setting)) for case in cases}
    found = {job: pieces.peek(job.digest(setting)) for job in jobs}
    rows = _rows(jobs, found, times)
    report = {
        "rows": rows,
        "claims": claims(rows),
        "seeds": list(setting.seeds),
        "setting": msgspec.to_builtins(setting),
        "quick": quick,
        "left_out": list(left_out),
        "missing": [job.title for job, result in found.items() if result is None],
        "machine": machine(),
    }
    plots.write_json(figures / "compare.json", report)
    reports.write(out, report, command)
    if not report["missing"]:
        pieces.clear([job.digest(setting) for job in jobs] + [_timing(case, jobs, setting) for case in cases])
    return report


def user_case(path: Path) -> Case:
    """A case of the user's own: the task, data and training of a configuration for ``train``."""
    config = read_config(path)
    rate = config.training.learning_rate

    def split(seed: int) -> Split:
        seeded = msgspec.structs.replace(config, seeds=[seed])
        return read_split(seeded, path.parent)

    return Case(config.name, config, {config.training.steps: split}, "loss", rates=(rate / 3, rate, rate * 3))


def main(argv: Sequence[str]) -> int:
    """The command ``compare``."""
    arguments = _parser().parse_args(list(argv))
    try:
        variants = _chosen(arguments.variants, tuple(VARIANTS), "variant")
        names = _chosen(arguments.tasks, TASKS, "task")
        setting = QUICK if arguments.quick else FULL
        if arguments.seeds is not None:
            if arguments.seeds < 1:
                raise ConfigurationError("seeds must be at least 1")
            setting = msgspec.structs.replace(setting, seeds=tuple(range(arguments.seeds)))
        left_out = []
        text = arguments.text or find_text()
        if "characters" in names and text is None and not arguments.config:
            left_out.append(NO_TEXT)
            names.remove("characters")
        own = arguments.config
        cases = [user_case(own)] if own else built_in(names, quick=arguments.quick, text=text)
        _lend_memory()
        command = f"python -m {__package__} compare " + " ".join(word for word in argv if word != "--report")
        report = compare(
            cases,
            arguments.out,
            variants=variants,
            setting=setting,
            quick=arguments.quick,
            command=command.strip(),
            left_out=left_out,
            only_report=arguments.report,
        )
    except StreamerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last finished training", file=sys.stderr)
        return 130
    for text in left_out:
        print(text, file=sys.stderr)
    if arguments.quick:
        print("This was a quick run: it is no evidence for or against any claim.", file=sys.stderr)
    if arguments.json:
        print(json.dumps(report))
    else:
        for claim in report["claims"]:
            print(f"{claim['verdict']:24} {claim['claim']}")
        print(f"{arguments.out / 'REPORT.md'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__} compare", description="Compare cells on the same tasks."
    )
    parser.add_argument("--quick", action="store_true", help="short sequences, little data: 3 minutes, and no evidence")
    parser.add_argument("--tasks", default=",".join(TASKS), help=f"some of {', '.join(TASKS)} (default: all)")
    parser.add_argument("--variants", default=",".join(VARIANTS), help=f"some of {', '.join(VARIANTS)} (default: all)")
    parser.add_argument("--config", type=Path, help="your own data and task: a configuration of train")
    parser.add_argument("--text", type=Path, help="UTF-8 text for the task characters, at least 1 MB")
    parser.add_argument("--seeds", type=int, help="number of seeds (default 5, quick 2)")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    parser.add_argument("--report", action="store_true", help="run nothing: report what an interrupted run has found")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object on stdout")
    return parser


def _run(cases: Sequence[Case], jobs: Sequence[Job], setting: Setting, pieces: Pieces) -> None:
    """All that is not there yet: first the times, while nothing else is loaded, then the trainings."""
    for case in cases:
        mine = [job for job in jobs if job.case is case]
        pieces.get(_timing(case, jobs, setting), lambda mine=mine, case=case: work.measure(case, mine, setting))  # type: ignore[misc]
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # a vanished gradient is a denormal number, and those are a hundred times slower
    try:
        with work_progress("compare", sum(job.cost(setting) for job in jobs)) as advance:
            # The cheap ones first: an interrupted comparison then has most tasks, and all at their own hidden size.
            for job in sorted(jobs, key=lambda job: (job.sizing == RESIZED, job.cost(setting))):
                part = job.cost(setting) / job.trainings(setting)
                done = pieces.peek(job.digest(setting)) is not None
                pieces.get(
                    job.digest(setting),
                    lambda job=job, part=part: work.train(job, setting, lambda share: advance(share * part, job.title)),  # type: ignore[misc]
                )
                if done:
                    advance(job.cost(setting), job.title)
    finally:
        torch.set_flush_denormal(False)


def _timing(case: Case, jobs: Sequence[Job], setting: Setting) -> str:
    return work.timing_digest(case, [job for job in jobs if job.case is case], setting)


def _rows(
    jobs: Sequence[Job],
    found: Mapping[Job, dict[str, Any] | None],
    times: Mapping[str, dict[str, Any] | None],
) -> list[dict[str, Any]]:
    """One row per task, variant and sizing; its score is that of the longest length that was trained."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for job in jobs:
        result = found[job]
        if result is None:
            continue
        row = rows.setdefault(
            (job.case.name, job.variant, job.sizing),
            {
                "task": job.case.name,
                "variant": job.variant,
                "sizing": job.sizing,
                "unit": job.case.unit,
                "memory": job.case.memory,
                "hidden": job.config.model.hidden,
                "delay_events": (job.case.longest - 1) / 2 if job.config.model.directions == 2 else 0.0,
                "by_length": {},
            },
        )
        row["by_length"][str(job.length)] = result
    for (task, variant, sizing), row in rows.items():
        for length, result in row["by_length"].items():
            row["by_length"][length] = {**summary(row, length), **result}
        longest = row["by_length"][max(row["by_length"], key=int)]
        row["score"] = {name: longest[name] for name in ("mean", "std", "low", "high", "seeds")}
        measured = (times[task] or {}).get(f"{variant}, {sizing}")
        if measured:
            taken = {name: measured[name] for name in ("update_ms", "update_ms_without_onednn", "onnx_us")}
            row |= {name: value for name, value in measured.items() if name not in taken}
            row["times"] = taken
            row["seconds_per_epoch"] = float(np.median(taken["update_ms"])) / 1e3 * measured["updates_per_epoch"]
            row["microseconds_per_event"] = {rows: float(np.median(us)) for rows, us in taken["onnx_us"].items()}
    return list(rows.values())


def _lend_memory() -> None:
    """Keep freed memory in the process (glibc): a training frees and takes the same megabytes in every update.

    Without this half of the time goes into pages that the system zeroes again and again. Elsewhere nothing happens.
    """
    mmap_threshold, trim_threshold = -3, -1
    try:
        library = ctypes.CDLL(None)
        library.mallopt(mmap_threshold, 32 * 1024 * 1024)
        library.mallopt(trim_threshold, 2**31 - 1)
    except (OSError, AttributeError, TypeError):
        return


def _chosen(text: str, known: Sequence[str], what: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ConfigurationError(f"no {what} {(unknown or [text])[0]!r}, there are {', '.join(known)}")
    return names
