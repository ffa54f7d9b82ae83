"""Worked examples whose data is pairs: what to learn from, how good it has to be, and what it is compared with."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

import torch

from streamer.errors import ConfigurationError, install_hint

from .. import plots
from ..config import DataSection, ModelSection, TrainConfig, TrainSection
from .data import PairSplit
from .metrics import METRICS
from .publish import publish
from .read import divide, read_texts
from .sections import DecoderSection, PairsSection
from .train import Trained, published_metrics, train_seed, warnings

SEED = 0
SHARE = 0.1
"""Of the pairs, for validation and for the test."""
_SAMPLES = 6


@dataclass(frozen=True)
class PairRecipe:
    """As ``Recipe``, for tasks with pairs. All ``limits`` must be reached, and the baseline beaten ``times`` over."""

    summary: str
    task: str
    make: Callable[[bool], PairSplit]
    """quick -> data with known truth"""
    model: ModelSection
    training: TrainSection
    limits: Mapping[str, float]
    """Figure of ``export.pairs.metrics`` -> what the test part must give, at least or at most; the first is the metric."""
    baseline: Callable[[PairSplit], Mapping[str, float]]
    """Names -> the metric's value by other means, on the test part; the first is what has to be beaten."""
    pairs: PairsSection = field(default_factory=PairsSection)
    decoder: DecoderSection | None = None
    times: float = 1.0
    quick_limits: Mapping[str, float] = field(default_factory=dict)
    quick_model: ModelSection | None = None
    quick_training: TrainSection | None = None


def run_pairs(recipe: PairRecipe, name: str, out: Path, *, quick: bool, data: Path | None) -> dict[str, Any]:
    """As ``export.recipes.run``: train, judge, publish. ``data``: a file of two columns, source and target."""
    torch.set_num_threads(1)
    notes: list[str] = []
    section = DataSection(path=str(data or "generated"))
    split = recipe.make(quick) if data is None else read(data, recipe.pairs, section, notes)
    config = TrainConfig(
        name=name,
        task=recipe.task,
        data=section,
        model=(recipe.quick_model if quick else None) or recipe.model,
        training=(recipe.quick_training if quick else None) or recipe.training,
        pairs=recipe.pairs,
        decoder=recipe.decoder,
    )
    out.mkdir(parents=True, exist_ok=True)
    began = perf_counter()
    trained = train_seed(config, split, SEED, out=None, notes=notes)
    seconds = perf_counter() - began
    found = trained.figures["test"]
    limits = recipe.quick_limits if quick and recipe.quick_limits else recipe.limits
    metric = next(iter(recipe.limits))
    others = recipe.baseline(split)
    baseline_name, baseline = next(iter(others.items()))
    better = METRICS[metric]
    beaten = found[metric] > recipe.times * baseline if better else found[metric] * recipe.times < baseline
    reached = all(found[each] >= limit if METRICS[each] else found[each] <= limit for each, limit in limits.items())
    result: dict[str, Any] = {
        "recipe": name,
        "quick": quick,
        "metric": metric,
        "value": found[metric],
        "limit": None if data is not None else limits.get(metric),  # limits are for the recipe's own data
        "limits": {} if data is not None else dict(limits),
        "baseline": {"name": baseline_name, "value": baseline},
        "others": dict(others),
        "beats_baseline": bool(beaten),
        "figures": found,
        "parameters": trained.parameters,
        "training_s": round(seconds, 1),
        "notes": notes,
        "warnings": warnings(trained.figures),
    }
    result["passed"] = bool((data is not None or reached) and beaten)
    result["verification"] = publish(
        trained.learner,
        trained.alphabet,
        split,
        out,
        name=name,
        decoder=recipe.decoder or DecoderSection(),
        trained_on={"recipe": name, "quick": quick, "data": str(data or "generated"), "pairs": len(split.train)},
        metrics=published_metrics(trained.figures, result["warnings"]),
    )
    result["sample"] = samples(trained, split)
    plots.write_json(out / "result.json", result)
    plots.loss_plot(out / "loss.png", {name: trained.history})
    return result


def samples(trained: Trained, split: PairSplit) -> str:
    """A few test pairs with what the model writes for them."""
    lines = []
    for pair in split.test[:_SAMPLES]:
        mine = trained.write(pair)
        source = split.text_of_source(pair)
        truth = "" if mine in pair.targets else f"   (right: {split.text(pair.targets[0])})"
        lines.append(f"{source} -> {split.text(mine)}{truth}")
    return "\n".join(lines)


def read(path: Path, section: PairsSection, data: DataSection, notes: list[str]) -> PairSplit:
    """The user's own pairs."""
    pairs = read_texts(path, section, data, notes)
    return divide(pairs, section, validation=SHARE, test=SHARE, seed=SEED)


def package(name: str) -> ModuleType:
    """A package that a recipe takes its data from. ConfigurationError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error.name} is not installed: {install_hint('recipes')}") from error
