"""Worked examples whose data is pairs: what to learn from, how good it has to be, and what it is compared with."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

import msgspec
import torch

from streamer.errors import ConfigurationError, install_hint

from .. import plots
from ..config import DataSection, ModelSection, TrainConfig, TrainSection
from ..folders import make_folder
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
    """As ``Recipe``, for tasks with pairs. All ``limits`` must be reached, and the baseline beaten ``times`` over.

    The model is published as model.onnx; those of ``beside`` under their names.
    """

    summary: str
    task: str
    make: Callable[[bool], PairSplit]
    """quick -> data with known truth"""
    model: ModelSection
    training: TrainSection
    limits: Mapping[str, float]
    """Figure of ``export.pairs.metrics`` -> what the test part must give, at least or at most; the first is the metric."""
    baseline: Callable[[PairSplit], Mapping[str, float | Mapping[str, float]]]
    """Names -> the metric's value by other means (or several figures, the metric among them), on the test part; the first
    is what has to be beaten."""
    pairs: PairsSection = field(default_factory=PairsSection)
    decoder: DecoderSection | None = None
    times: float = 1.0
    read: Callable[[Path], PairSplit] | None = None
    """The user's own data instead of ``make``; by default a file of two columns."""
    beside: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Further models on the same data: name -> what is different in its section."""
    within: float = 0.0
    """How much worse than the first model's the metric of each of them may be, but in a quick run."""
    measure: Callable[[Path, PairSplit], Mapping[str, float]] | None = None
    """Of what was published: further figures of the result."""
    further: Callable[[Trained, PairSplit], Mapping[str, float]] | None = None
    """Further figures of each model on the test part; its card has them too."""
    quick_limits: Mapping[str, float] = field(default_factory=dict)
    quick_model: ModelSection | None = None
    quick_training: TrainSection | None = None


def run_pairs(recipe: PairRecipe, name: str, out: Path, *, quick: bool, data: Path | None) -> dict[str, Any]:
    """As ``export.recipes.run``: train, judge, publish. ``data``: the user's own, as the recipe reads it."""
    torch.set_num_threads(1)
    notes: list[str] = []
    section = DataSection(path=str(data or "generated"))
    own = recipe.read or (lambda path: read(path, recipe.pairs, section, notes))
    split = recipe.make(quick) if data is None else own(data)
    config = TrainConfig(
        name=name,
        task=recipe.task,
        data=section,
        model=(recipe.quick_model if quick else None) or recipe.model,
        training=(recipe.quick_training if quick else None) or recipe.training,
        pairs=recipe.pairs,
        decoder=recipe.decoder,
    )
    make_folder(out)
    made = _Made(recipe, split, out, quick)
    result, trained = made.model(config, notes)
    limits = recipe.quick_limits if quick and recipe.quick_limits else recipe.limits
    metric = next(iter(recipe.limits))
    means = recipe.baseline(split)
    others = {each: found[metric] if isinstance(found, Mapping) else found for each, found in means.items()}
    baseline_name, baseline = next(iter(others.items()))
    better, value = METRICS[metric], result["figures"][metric]
    beaten = value > recipe.times * baseline if better else value * recipe.times < baseline
    beaten = beaten or (metric == "exact_match" and value == 1.0)  # nothing is left to win: easy data of a user's own
    reached = all(
        result["figures"][each] >= limit if METRICS[each] else result["figures"][each] <= limit
        for each, limit in limits.items()
    )
    beside: dict[str, dict[str, Any]] = {}
    for stem, changes in recipe.beside.items():
        model = msgspec.structs.replace(config.model, **changes)
        beside[stem], _ = made.model(msgspec.structs.replace(config, model=model), notes, stem)
        lost = (value - beside[stem]["figures"][metric]) * (1 if better else -1)
        reached = reached and (quick or lost <= recipe.within)
    result |= {
        "recipe": name,
        "quick": quick,
        "metric": metric,
        "value": value,
        "limit": None if data is not None else limits.get(metric),  # limits are for the recipe's own data
        "limits": {} if data is not None else dict(limits),
        "baseline": {"name": baseline_name, "value": baseline},
        "others": others,
        "beats_baseline": bool(beaten),
        "beside": beside,
        "passed": bool((data is not None or reached) and beaten),
        "notes": notes,
        "sample": samples(trained, split),
        "measured": dict(recipe.measure(out, split)) if recipe.measure is not None else {},
    }
    for each, found in means.items():
        more = found if isinstance(found, Mapping) else {}
        result["measured"] |= {f"{figure}: {each}": value for figure, value in more.items() if figure != metric}
    plots.write_json(out / "result.json", result)
    plots.loss_plot(out / "loss.png", {name: trained.history})
    return result


@dataclass(frozen=True)
class _Made:
    """Where the models of one run come from and go to."""

    recipe: PairRecipe
    split: PairSplit
    out: Path
    quick: bool

    def model(self, config: TrainConfig, notes: list[str], stem: str = "model") -> tuple[dict[str, Any], Trained]:
        """Trained and published as STEM.onnx, and what is told of it."""
        began = perf_counter()
        trained = train_seed(config, self.split, SEED, out=None, notes=notes)
        seconds = round(perf_counter() - began, 1)
        if self.recipe.further is not None:
            trained.figures["test"] |= self.recipe.further(trained, self.split)
        found: dict[str, Any] = {
            "figures": trained.figures["test"],
            "parameters": trained.parameters,
            "training_s": seconds,
            "warnings": warnings(trained.figures),
        }
        origin = {"recipe": config.name, "quick": self.quick, "data": config.data.path, "pairs": len(self.split.train)}
        found["verification"] = publish(
            trained.learner,
            trained.alphabet,
            self.split,
            self.out,
            name=config.name,
            stem=stem,
            decoder=self.recipe.decoder or DecoderSection(),
            trained_on=origin,
            metrics=published_metrics(trained.figures, found["warnings"]),
        )
        return found, trained


def samples(trained: Trained, split: PairSplit) -> str:
    """A few test pairs with what the model writes for them."""
    lines = []
    for pair in split.test[:: max(1, len(split.test) // _SAMPLES)][:_SAMPLES]:  # neighbours may be about the same
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
