"""``python -m export train --config FILE``: from data and a TOML file to a verified model with its figures and plots.

Writes into the output folder: model.onnx, model.pt, metrics.json, loss.png, metric.png, gradient_norm.png and, per
seed, a checkpoint to resume from. A model file appears only after it has passed verification.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from streamer.errors import ConfigurationError, StreamerError
from streamer.modelfile.feature import Feature

from . import plots
from .cells import settle_unknown
from .config import DataSection, ModelSection, TrainConfig, TrainSection, read_config, reference
from .data import UNLABELLED, Example, Split, Streams, fit_scaling
from .fit import EpochFigures, FitOptions, History, Trainer, facts_of
from .folders import make_folder
from .judge import score_summary, warnings
from .model import Forecaster, ModelConfig, SequenceModel, build, fold_target_scale
from .pairs.sections import PAIR_TASKS
from .pairs.train import run as run_pairs
from .prepare import read_split
from .progress import epochs_progress
from .publish import publish
from .tasks import ACTIVATION, evaluate, examples, fit_residual_scale, targets_of
from .windowing import mixed_labels

__all__ = [
    "DataSection",
    "ModelSection",
    "TrainConfig",
    "TrainSection",
    "Trained",
    "main",
    "make_model",
    "read_config",
    "read_split",
    "run",
    "train_seed",
]

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells report it."""


def make_model(config: TrainConfig, train: Streams) -> SequenceModel:
    """A fresh model for this data, scaled by the training part. ConfigurationError if the two do not fit."""
    check_values(config, train)
    labels, outputs = _outputs(config, train)
    options = msgspec.structs.asdict(config.model)
    categories = [(at, table) for at, table in enumerate(train.feature_tables) if table.kind == "category"]
    if config.task in ("forecast", "next_set") and categories:
        raise ConfigurationError(
            f"task {config.task} is about numbers, but {categories[0][1].name!r} holds words: choose data.features"
        )
    if categories and len(train.features) == 1:
        options["vocabulary"] = len(categories[0][1].vocabulary)
        options["unknown"] = categories[0][1].unknown
    elif categories:
        options["vocabulary"] = 0
        options["categories"] = tuple(
            (at, len(table.vocabulary), config.model.embedding or _width(len(table.vocabulary)), table.unknown)
            for at, table in categories
        )
    if options["vocabulary"] and not options["embedding"]:
        options["embedding"] = _width(options["vocabulary"])
    elif not options["vocabulary"]:
        options["embedding"] = 0
    model = build(
        ModelConfig(
            features=len(train.features),
            task="forecast" if config.task == "forecast" else "sequence",
            outputs=outputs,
            activation=ACTIVATION.get(config.task, "none"),
            labels=labels,
            **options,
        )
    )
    if config.data.scale and not options["vocabulary"] and config.task != "next_set":
        mean, std = fit_scaling(train)
        model.mean.copy_(torch.from_numpy(mean))
        model.std.copy_(torch.from_numpy(std))
    return model


def _outputs(config: TrainConfig, train: Streams) -> tuple[tuple[str, ...] | None, int]:
    """(labels, width) of the head that the task wants."""
    causal = config.task in ("forecast", "next_category", "next_set")
    if causal and (config.model.directions != 1 or config.model.reduce):
        raise ConfigurationError(f"task {config.task} is causal: directions must be 1, and there is no reduce")
    if config.task == "classify":
        classes = train.classes or ()
        if len(classes) < 2:
            raise ConfigurationError(
                f"classify needs at least two classes in the data, there are {len(classes)}"
                + (" (-1 means that there is no label: name it in data.classes if it is one)" if classes else "")
            )
        return classes, len(classes)
    if config.task == "next_category":
        words = train.feature_tables[0].vocabulary if len(train.features) == 1 else ()
        if words:
            return words, len(words)
        if not config.model.vocabulary:
            raise ConfigurationError(
                "next_category needs one column of words, or model.vocabulary, the number of categories 0 to N-1"
            )
        return tuple(map(str, config.data.classes or ())) or None, config.model.vocabulary
    if config.task == "next_set":
        return train.features, len(train.features)
    return (train.features, 0) if config.task == "forecast" else (None, 1)


def _width(vocabulary: int) -> int:
    """Of an embedding: a handful for a handful of words, 64 at most."""
    return min(64, int(1.6 * float(vocabulary) ** 0.56 + 0.5))


@dataclass
class Trained:
    """One seed's result."""

    seed: int
    model: SequenceModel
    history: History
    figures: dict[str, dict[str, float]]


def train_seed(config: TrainConfig, split: Split, seed: int, *, out: Path | None, resume: bool = False) -> Trained:
    """Train one seed to its best validation loss and judge it on validation and test part."""
    torch.manual_seed(seed)
    model = make_model(config, split.train)
    for part in (split.validation, split.test):
        check_values(config, part)
    _reinitialise(model, seed)
    model.to(config.device)
    per_window = model.reduce is not None
    train = examples(config.task, split.train, per_window=per_window)
    held = examples(config.task, split.validation, per_window=per_window)
    target_scale = _target_scale(train) if config.task == "regress" else None
    if target_scale is not None:
        train, held = (_standardised(part, *target_scale) for part in (train, held))
    options = FitOptions(seed=seed, **msgspec.structs.asdict(config.training))
    trainer = Trainer(model, config.task, options, class_weights(config, split.train, train))
    checkpoint = out / f"checkpoint-{seed}.pt" if out is not None else None
    trainer.facts = facts_of(model, split.train, target_scale)
    if resume and checkpoint is not None and checkpoint.exists():
        trainer.restore(checkpoint)
    with epochs_progress(f"{config.name} seed {seed}", config.training.epochs, len(trainer.history.epochs)) as advance:
        history = trainer.run(train, held, progress=lambda figures: advance(_describe(figures)), checkpoint=checkpoint)
    model.to("cpu")
    settle_unknown(model.encoder, split.train.x)
    if isinstance(model, Forecaster):
        fit_residual_scale(model, train)
    if target_scale is not None:
        fold_target_scale(model, *target_scale)
    figures = {"validation": evaluate(model, config.task, split.validation, split.train)}
    if len(split.test):
        figures["test"] = evaluate(model, config.task, split.test, split.train)
    return Trained(seed, model, history, figures)


def class_weights(config: TrainConfig, part: Streams, sequences: Sequence[Example]) -> torch.Tensor | None:
    """[O] what an event of each class counts, by ``training.class_weights``; None: all alike."""
    wanted = config.training.class_weights
    if wanted is None:
        return None
    classes = part.classes
    if config.task != "classify" or classes is None:
        raise ConfigurationError("training.class_weights belongs to task classify")
    if isinstance(wanted, dict):
        unknown = sorted(set(wanted) - set(classes))
        if unknown or min(wanted.values(), default=1.0) < 0:
            what = f"{unknown[0]!r} is no class of the data" if unknown else "a weight must be at least 0"
            raise ConfigurationError(f"training.class_weights: {what}; the classes are {', '.join(classes)}")
        return torch.tensor([float(wanted.get(name, 1.0)) for name in classes])
    if wanted != "balanced":
        raise ConfigurationError(f"training.class_weights must be balanced or a table by class, not {wanted!r}")
    targets = targets_of(sequences)
    counts = np.bincount(targets[targets != UNLABELLED], minlength=len(classes))
    weights = counts.sum() / np.maximum(1, counts) / max(1, int((counts > 0).sum()))
    return torch.from_numpy(np.where(counts > 0, weights, 1.0).astype(np.float32))


def _target_scale(train: Sequence[Example]) -> tuple[float, float]:
    """Mean and standard deviation of the targets; learning is then as easy for 0 to 125 as for 0 to 1."""
    targets = targets_of(train).astype(np.float64)
    mean, std = float(targets.mean()), float(targets.std())
    return mean, std if std > 1e-6 * max(1.0, abs(mean)) else 1.0


def _standardised(sequences: Sequence[Example], mean: float, std: float) -> list[Example]:
    return [replace(each, target=((each.target - mean) / std).astype(np.float32)) for each in sequences]  # type: ignore[operator]


def run(
    config: TrainConfig, base: Path, out: Path, *, resume: bool = False, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Train every seed, publish the best model and write figures and plots; returns what metrics.json holds.

    ``notes`` in it say what was found out about the data, ``warnings`` what is wrong with the result; ``say`` is told
    both, the notes before training begins.
    """
    if config.model.kind == "mlp":
        raise ConfigurationError("kind mlp is the baseline of `compare` and is not exported: use rnn, lstm or gru")
    if config.task in PAIR_TASKS:
        return run_pairs(config, base, out, resume=resume, say=say)
    torch.set_num_threads(config.threads)
    make_folder(out)
    notes: list[str] = []
    split = read_split(config, base, notes)
    check_windows(config, split.train, notes)
    for note in notes:
        say(f"note: {note}")
    trained = [train_seed(config, split, seed, out=out, resume=resume) for seed in config.seeds]
    best = min(trained, key=lambda t: t.history.best_loss)
    metrics = _metrics(config, split, trained, best)
    metrics["notes"] = notes
    metrics["warnings"] = warnings(config.task, best.figures, weighted=config.training.class_weights is not None)
    for warning in metrics["warnings"]:
        say(f"WARNING: {warning}")
    summary = score_summary(best.model, split) if isinstance(best.model, Forecaster) else {}
    metrics["score"] = summary
    published: dict[str, Any] = {f"{part}_{name}": v for part, row in best.figures.items() for name, v in row.items()}
    metrics["verification"] = publish(
        best.model,
        out,
        name=config.name,
        version=config.version,
        features=_declared(config, split.train),
        trained_on=metrics["data"],
        metrics={**published, **summary, **({"warnings": metrics["warnings"]} if metrics["warnings"] else {})},
    )
    plots.write_json(out / "metrics.json", metrics)
    plots.loss_plot(out / "loss.png", {f"seed {t.seed}": t.history for t in trained})
    plots.metric_plot(out / "metric.png", best.figures)
    plots.gradient_norm_plot(
        out / "gradient_norm.png", {f"seed {t.seed}": t.history for t in trained}, config.training.clip_norm
    )
    return metrics


def _declared(config: TrainConfig, train: Streams) -> tuple[Feature, ...]:
    """What the contract says about the features: categories 0 to N-1 have their numbers for words."""
    size = config.model.vocabulary
    if size and not any(table.kind == "category" for table in train.feature_tables):
        return (Feature(train.features[0], "category", tuple(map(str, range(size)))),)
    return train.feature_tables


def check_windows(config: TrainConfig, train: Streams, notes: list[str]) -> None:
    """ConfigurationError for a model that looks at whole windows where the data is a few long streams."""
    windowed = config.model.directions == 2 or config.model.reduce is not None
    if not windowed:
        return
    count, mean_length = len(train), train.events / max(1, len(train))
    if config.window is None and count < config.training.rows and mean_length > 4 * config.training.steps:
        raise ConfigurationError(
            f"this model looks at whole windows, but the training part is {count} streams of {mean_length:.0f} events:"
            " one step of training per epoch, and windows that no service would wait for. Add [window] as it will be"
            ' served (say kind = "count", count = 64), or kind = "end" if whole streams are really meant'
        )
    if config.model.reduce is not None and config.task in ("classify", "regress"):
        share = mixed_labels(train)
        if share:
            notes.append(
                f"model.reduce: a window has one answer, and is trained on the label of its last event;"
                f" {share:.0%} of the training windows hold several labels"
            )


def main(argv: Sequence[str]) -> int:
    """The command; exit codes as everywhere (0 ok, 2 configuration, 3 model), 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__} train", description="Train, verify and export a model."
    )
    parser.add_argument("--config", type=Path, help="TOML file; export/GUIDE-data.md shows how to write one")
    parser.add_argument("--keys", action="store_true", help="print every key of the TOML file with default and meaning")
    parser.add_argument("--out", type=Path, help="output folder (default: runs/NAME)")
    parser.add_argument("--data", type=Path, help="data file instead of data.path")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override one setting")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints in the output folder")
    parser.add_argument("--json", action="store_true", help="print the metrics as one JSON object on stdout")
    arguments = parser.parse_args(list(argv))
    if arguments.keys:
        print(reference(), end="")
        return 0
    if arguments.config is None:
        parser.error("the following arguments are required: --config (or --keys)")
    overrides = list(arguments.set)
    if arguments.data is not None:
        overrides.append(f"data.path={json.dumps(str(arguments.data.resolve()))}")
    try:
        config = read_config(arguments.config, overrides)
        out = arguments.out or Path("runs") / config.name
        metrics = run(config, arguments.config.parent, out, resume=arguments.resume, say=_say)
    except KeyboardInterrupt:
        print("interrupted; the same command with --resume goes on from the last finished epoch", file=sys.stderr)
        return INTERRUPTED
    except StreamerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if arguments.json:
        print(json.dumps(metrics))
    else:
        best = metrics["best"]
        for part, figures in best["figures"].items():
            print(f"{part}: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))
        if metrics["score"]:
            score = metrics["score"]
            print(f"suggested threshold of the score: {score['suggested_threshold']:.4g} ({score['threshold_rule']})")
        report = metrics["verification"]
        state = "verified" if report["checks"] else report["not_checked"][0]
        print(f"{report['model']}: {state}, {metrics['parameters']} parameters")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _metrics(config: TrainConfig, split: Split, trained: Sequence[Trained], best: Trained) -> dict[str, Any]:
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    summary: dict[str, dict[str, float]] = {}
    for part in best.figures:
        for name in best.figures[part]:
            values = [t.figures[part].get(name, float("nan")) for t in trained]
            summary[f"{part}_{name}"] = {"mean": float(np.mean(values)), "std": float(np.std(values))}
    return {
        "name": config.name,
        "task": config.task,
        "config": msgspec.to_builtins(config),
        "parameters": best.model.parameter_count,
        "data": {
            "file": Path(config.data.path).name,
            "split": config.data.split if config.data.test_path is None else "test file",
            "features": len(split.train.features),
            **{f"{name}_streams": len(part) for name, part in parts.items()},
            **{f"{name}_events": part.events for name, part in parts.items()},
        },
        "seeds": [{"seed": t.seed, "figures": t.figures, **asdict(t.history)} for t in trained],
        "summary": summary,
        "best": {"seed": best.seed, "figures": best.figures},
    }


def check_values(config: TrainConfig, part: Streams) -> None:
    """ConfigurationError for values that the task gives no meaning to: unknown categories, sets that are none."""
    vocabulary = 0 if any(table.kind == "category" for table in part.feature_tables) else config.model.vocabulary
    if vocabulary and (vocabulary < 2 or len(part.features) != 1):
        raise ConfigurationError("model.vocabulary needs one feature, and at least 2 categories")
    if not vocabulary and config.task != "next_set":
        return
    for name, x in zip(part.names, part.x, strict=True):
        wrong = (x != np.round(x)) | (x < 0) | (x >= vocabulary) if vocabulary else ~np.isin(x, (0, 1))
        if wrong.any():
            event, column = (int(place) for place in np.argwhere(wrong)[0])
            where = f"stream {name!r}, event {event + 1}, column {part.features[column]!r}: {x[event, column]:g}"
            if vocabulary:
                raise ConfigurationError(
                    f"{where} is a category outside of 0..{vocabulary - 1}: correct model.vocabulary, or name the column"
                    " in data.categories"
                )
            raise ConfigurationError(f"{where} is not 0 or 1: next_set needs sets")


def _reinitialise(model: SequenceModel, seed: int) -> None:
    """Fresh weights of this seed; scaling stays."""
    assert model.config is not None
    torch.manual_seed(seed)
    fresh = build(model.config)
    weights = {name: value for name, value in fresh.state_dict().items() if name not in ("mean", "std")}
    model.load_state_dict(weights, strict=False)


def _describe(figures: EpochFigures) -> str:
    return f"train {figures.train_loss:.4f} validation {figures.validation_loss:.4f}"
