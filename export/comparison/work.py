"""The pieces of work of a comparison: what each does, what decides it, and where its result waits for the others.

A piece's result is a file of its own until the comparison is complete, so that an interrupted one goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from .. import plots
from ..folders import make_folder
from ..gradients import decay_per_step, gradient_by_lag
from ..measure import timed
from ..model import SequenceModel
from ..tasks import examples
from ..train import TrainConfig, make_model
from .cases import CELLS, REFERENCE, RESIZED, VARIANTS, WIDTH, Case, hidden_for, parameters_of, sized
from .recurrence import GATES
from .training import Run, fresh, rates_then_seeds

GRADIENT_SEQUENCES = 64
CURVE_POINTS = 60
_STEP_COST = 60_000.0
"""What a step costs beside its arithmetic, in floating point operations: this decides only the time left shown."""


class Setting(msgspec.Struct, frozen=True):
    """How a comparison is made: what all pieces of work have in common."""

    seeds: tuple[int, ...]
    rate_seeds: int
    """Seeds that choose the learning rate."""
    rounds: int
    """Rounds in which times are taken."""


@dataclass(frozen=True, eq=False)
class Job:
    """The training of one variant at one length."""

    case: Case
    variant: str
    sizing: str
    length: int
    config: TrainConfig

    @property
    def title(self) -> str:
        return f"{self.case.name} {self.length}: {self.variant}, {self.sizing}"

    def digest(self, setting: Setting) -> str:
        """Of all that decides the result."""
        decides = [self.case.name, self.case.data, self.variant, self.sizing, self.length, self.config]
        return _digest(
            [*decides, self.case.budgets.get(self.length), self.case.rates, setting.seeds, setting.rate_seeds]
        )

    def trainings(self, setting: Setting) -> float:
        """Updates that are made, counted for each stack of models by itself: what ``train`` advances by."""
        budget = self.case.budgets.get(self.length)
        stacks = 1 if len(setting.seeds) <= setting.rate_seeds else 2
        return stacks * (self.config.training.epochs if budget is None else budget.updates)

    def cost(self, setting: Setting) -> float:
        """Floating point operations of the whole budget, roughly: the time left is estimated from it."""
        steps = self.case.steps.get(self.length, self.length)
        models = len(self.case.rates) * setting.rate_seeds + len(setting.seeds) - setting.rate_seeds
        weights = 6 * self.config.model.layers * self.config.model.hidden**2
        gates: float = GATES.get(self.config.model.kind, 0.25)
        return self.trainings(setting) * steps * models * (_STEP_COST + self.config.training.rows * weights * gates)


def plan(cases: Sequence[Case], variants: Sequence[str]) -> list[Job]:
    """All trainings: every variant at the case's hidden size and all lengths, then sized, at the longest."""
    return [job for case in cases for job in _plan_case(case, variants)]


def train(job: Job, setting: Setting, advance: Callable[[int], None]) -> dict[str, Any]:
    """Choose the rate, train all seeds, judge them on the test part."""
    case, length = job.case, job.length
    budget = case.budgets.get(length)
    rate, rates, runs = rates_then_seeds(
        job.config,
        case.splits[length],
        setting.seeds,
        case.rates,
        budget,
        rate_seeds=min(setting.rate_seeds, len(setting.seeds)),
        guess=case.baselines.get(length),
        advance=advance,
    )
    figures = {name: [run.figures[name] for run in runs] for name in runs[0].figures}
    found: dict[str, Any] = {
        "hidden": job.config.model.hidden,
        "learning_rate": rate,
        "validation_by_rate": {f"{each:g}": score for each, score in rates.items()},
        "seeds": figures["loss"],
        "baseline": case.baselines.get(length, figures["baseline_loss"][0]),
        "figures": figures,
        "updates": [run.updates for run in runs],
        "best_updates": [run.best_update for run in runs],
        "stopped": [run.stopped for run in runs],
        "curves": [_thin(run) for run in runs],
    }
    if case.memory and job.variant in CELLS and job.sizing == WIDTH:
        found["gradients"] = _gradients(job, runs)
    return found


def measure(case: Case, jobs: Sequence[Job], setting: Setting) -> dict[str, Any]:
    """Times, memory and sizes of the variants of a case at its longest: variant and sizing, joined by a comma."""
    configs = {f"{job.variant}, {job.sizing}": job.config for job in jobs if job.length == case.longest}
    return timed(configs, case.splits[case.longest], rounds=setting.rounds)


class Pieces:
    """Results on disk, by what decides them; gone when the comparison is complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, digest: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What an interrupted comparison left, or ``make``'s result, kept for the next one."""
        path = self.folder / f"{digest}.json"
        found = self.peek(digest)
        if found is None:
            found = json.loads(json.dumps(make()))  # the same values whether they were read or made
            make_folder(self.folder)
            plots.write_json(path, found)
        return found

    def peek(self, digest: str) -> dict[str, Any] | None:
        """The result if it is there."""
        try:
            found: dict[str, Any] = json.loads((self.folder / f"{digest}.json").read_bytes())
        except (OSError, ValueError):
            return None
        return found

    def clear(self, digests: Iterable[str]) -> None:
        """Remove these results, and the folder with the last one."""
        for digest in digests:
            (self.folder / f"{digest}.json").unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def timing_digest(case: Case, jobs: Sequence[Job], setting: Setting) -> str:
    """Of all that decides what ``measure`` measures."""
    return _digest(["times", case.name, [job.config for job in jobs if job.length == case.longest], setting.rounds])


def _plan_case(case: Case, variants: Sequence[str]) -> list[Job]:
    known = {name: options for name, options in case.variants().items() if name in variants}
    train_part = case.splits[case.longest](0).train
    reference = sized(case.config, VARIANTS[REFERENCE], case.config.model.hidden)
    width, features = make_model(reference, train_part).width, len(train_part.features)
    count = partial(parameters_of, features=features, outputs=width)
    jobs = [
        Job(case, name, WIDTH, length, sized(case.config, options, case.config.model.hidden))
        for length in case.splits
        for name, options in known.items()
    ]
    for name, options in case.variants(RESIZED).items():
        if name in variants and name != REFERENCE:
            hidden = hidden_for(case.config, options, count(reference), features, width)
            jobs.append(Job(case, name, RESIZED, case.longest, sized(case.config, options, hidden)))
    return jobs


def _gradients(job: Job, runs: Sequence[Run]) -> dict[str, Any]:
    """How the answer's gradient falls with the lag, per seed, before and after training."""
    found: dict[str, Any] = {}
    for moment in ("before", "after"):
        norms = []
        for run in runs:
            split = job.case.splits[job.length](run.seed)
            model = fresh(job.config, split, run.seed) if moment == "before" else run.model
            assert isinstance(model, SequenceModel)
            judged = examples(job.config.task, split.test, per_window=model.reduce is not None)[:GRADIENT_SEQUENCES]
            norms.append(gradient_by_lag(model, judged, of="answer"))
        logs = np.log10(np.maximum(np.stack(norms), 1e-30))
        lags = np.unique(np.geomspace(1, logs.shape[1], CURVE_POINTS).astype(int))
        found[moment] = {
            "lags": lags.tolist(),
            "log10_norm": logs.mean(axis=0)[lags - 1].round(3).tolist(),
            "factor_per_step": [decay_per_step(row) for row in norms],
        }
    return found


def _thin(run: Run) -> list[list[float]]:
    """A learning curve with at most ``CURVE_POINTS`` points."""
    every = max(1, -(-len(run.curve) // CURVE_POINTS))
    return [[updates, round(score, 6)] for updates, score in run.curve[every - 1 :: every]]


def _digest(decides: Sequence[Any] | Mapping[str, Any]) -> str:
    return sha256(msgspec.json.encode(decides)).hexdigest()[:16]
