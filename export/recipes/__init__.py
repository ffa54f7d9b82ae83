"""Worked examples, one file each, all of one shape: data, model, training, the metric to reach and what to beat.

A recipe is a module here that defines ``RECIPE``. ``python -m export recipe NAME`` makes (or reads) its data, trains,
judges on the test part, and publishes a verified model.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from streamer.errors import ConfigurationError, ModelError, StreamerError

from .. import foreign, plots
from ..data import Split
from ..folders import make_folder
from ..foreign import SEED, split
from ..judge import warnings
from ..model import SequenceModel
from ..pairs.recipe import PairRecipe, run_pairs
from ..publish import publish
from ..train import DataSection, ModelSection, TrainConfig, TrainSection, train_seed

__all__ = ["Recipe", "get", "main", "names", "read_user_data", "run", "split"]


@dataclass(frozen=True)
class Recipe:
    """What to learn, from what, with what, and how good it has to be on the test part."""

    summary: str
    task: str
    make: Callable[[bool], Split]
    """quick -> data with known truth"""
    model: ModelSection
    training: TrainSection
    metric: str
    """A figure of ``export.tasks.evaluate``: the larger the better, except for ``loss``."""
    limit: float
    baseline: str | Callable[[Split], float]
    """A figure of the same evaluation, or a function that gives the baseline's value of the metric."""
    baseline_name: str
    quick_limit: float | None = None
    quick_model: ModelSection | None = None
    quick_training: TrainSection | None = None
    read: Callable[[Path], Split] | None = None
    """The user's file instead of ``make``; by default a table as ``train`` reads it, split by stream."""
    feedback: Mapping[str, Any] | Callable[[Split], Mapping[str, Any]] | None = None
    show: Callable[[SequenceModel, Split], str] | None = None
    """Something for the eye: a generated sample, say."""


def names() -> list[str]:
    """All recipes, in order of name."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> Recipe | PairRecipe:
    """ConfigurationError for a name that is not a recipe."""
    if name not in names():
        raise ConfigurationError(f"no recipe {name!r}, there are {', '.join(names())}")
    recipe: Recipe | PairRecipe = importlib.import_module(f".{name}", __package__).RECIPE
    return recipe


def run(
    name: str, out: Path, *, quick: bool = False, data: Path | None = None, normal: str | None = None
) -> dict[str, Any]:
    """Train, judge and publish one recipe; ``passed`` says whether metric and baseline were met.

    ``data``: a file of the user's own, whose vocabularies and classes are its own; ``normal``: its normal label.
    """
    recipe = get(name)
    if isinstance(recipe, PairRecipe):
        return run_pairs(recipe, name, out, quick=quick, data=data)
    torch.set_num_threads(1)
    section = (recipe.quick_model if quick else None) or recipe.model
    training = (recipe.quick_training if quick else None) or recipe.training
    split = recipe.make(quick) if data is None else read_user_data(recipe, data, normal)
    if data is not None:
        section = msgspec.structs.replace(section, vocabulary=0)  # of its own words, if it has any
    source = DataSection(path=str(data or "generated"))
    config = TrainConfig(name=name, task=recipe.task, data=source, model=section, training=training)
    make_folder(out)
    trained = train_seed(config, split, SEED, out=None)
    figures = trained.figures["test"]
    if recipe.metric not in figures:
        raise ConfigurationError(f"the test part does not give {recipe.metric} (are there labels of both kinds?)")
    value = figures[recipe.metric]
    baseline = figures[recipe.baseline] if isinstance(recipe.baseline, str) else recipe.baseline(split)
    limit = recipe.quick_limit if quick and recipe.quick_limit is not None else recipe.limit
    sign = -1.0 if recipe.metric == "loss" else 1.0
    result: dict[str, Any] = {
        "recipe": name,
        "quick": quick,
        "metric": recipe.metric,
        "value": value,
        "limit": None if data is not None else limit,  # the limit is for the recipe's own data
        "baseline": {"name": recipe.baseline_name, "value": baseline},
        "beats_baseline": sign * value > sign * baseline,
        "figures": figures,
        "parameters": trained.model.parameter_count,
        "warnings": warnings(recipe.task, trained.figures),
    }
    reached = data is not None or sign * value >= sign * limit
    result["passed"] = bool(reached and result["beats_baseline"])
    result["verification"] = publish(
        trained.model,
        out,
        name=name,
        features=split.train.tables or split.train.features,
        trained_on={"recipe": name, "quick": quick, "data": str(data or "generated"), "events": split.train.events},
        metrics={
            **{f"test_{key}": number for key, number in figures.items()},
            **({"warnings": result["warnings"]} if result["warnings"] else {}),
        },
        feedback=recipe.feedback(split) if callable(recipe.feedback) else recipe.feedback,
    )
    if recipe.show is not None:
        result["sample"] = recipe.show(trained.model, split)
    plots.write_json(out / "result.json", result)
    plots.loss_plot(out / "loss.png", {name: trained.history})
    return result


def main(argv: Sequence[str]) -> int:
    """The command ``recipe``: exit code 0 if the metric was reached, 3 if the model is not good enough."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {(__package__ or '').partition('.')[0]} recipe",
        description="Train one of the worked examples.",
    )
    parser.add_argument("name", help="list, or the name of a recipe")
    parser.add_argument("--quick", action="store_true", help="less data and fewer epochs, seconds instead of minutes")
    parser.add_argument("--data", type=Path, help="your file instead of the recipe's own data")
    parser.add_argument("--normal", help="anomaly: the label of normal events in your file (default: normal or 0)")
    parser.add_argument("--out", type=Path, help="output folder (default: runs/recipe-NAME)")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on stdout")
    arguments = parser.parse_args(list(argv))
    try:
        if arguments.name == "list":
            rows = {name: get(name).summary for name in names()}
            print(json.dumps(rows) if arguments.json else "\n".join(f"{n:12} {s}" for n, s in rows.items()))
            return 0
        out = arguments.out or Path("runs") / f"recipe-{arguments.name}"
        result = run(arguments.name, out, quick=arguments.quick, data=arguments.data, normal=arguments.normal)
    except StreamerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    for warning in result["warnings"]:
        print(f"WARNING: {warning}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(result))
    else:
        base = result["baseline"]
        print(
            f"{result['metric']} {result['value']:.4f} (wanted {result['limit']}), {base['name']} {base['value']:.4f}"
        )
        for stem, model in {"model": result, **result.get("beside", {})}.items():
            own = {name: figure for name, figure in model["figures"].items() if not name.startswith("baseline_")}
            print(f"{stem}: {', '.join(f'{name} {figure:.4g}' for name, figure in own.items())}")
        print(result.get("sample", ""))
    return 0 if result["passed"] else ModelError.exit_code


def read_user_data(recipe: Recipe, path: Path, normal: str | None = None) -> Split:
    """The user's file, by the recipe's own reader or as a table."""
    if recipe.read is not None:
        return recipe.read(path)
    return foreign.table(path, recipe.task, normal=normal)
