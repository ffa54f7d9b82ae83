"""``python -m export train --config FILE``: from data and a TOML file to a verified model with its figures and plots.

Writes into the output folder: model.onnx, model.pt, metrics.json, loss.png, metric.png, gradient_norm.png and, per
seed, a checkpoint to resume from. A model file appears only after it has passed verification.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from streamer.errors import ConfigurationError, StreamerError

from . import plots
from .data import Split, Streams, fit_scaling, split_by_stream, split_by_time
from .fit import EpochFigures, FitOptions, History, Trainer
from .model import Forecaster, ModelConfig, SequenceModel, build
from .progress import epochs_progress
from .publish import publish
from .readers import load
from .tasks import ACTIVATION, TASKS, evaluate, examples, fit_residual_scale

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells report it."""


class DataSection(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Where the events are and what their columns mean; paths are relative to the configuration file."""

    path: str
    test_path: str | None = None
    """A file that is only judged; without it ``test`` of ``path`` is held back."""
    stream: str = "stream"
    time: str = "time"
    label: str = "label"
    features: list[str] | None = None
    classes: list[str] | None = None
    """Names of the label's classes, or of the categories of ``vocabulary`` models."""
    scale: bool = True
    split: str = "stream"
    """stream | time"""
    validation: float = 0.15
    test: float = 0.15


class ModelSection(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The choices of ``ModelConfig`` that do not follow from data and task."""

    hidden: int
    kind: str = "lstm"
    nonlinearity: str = "tanh"
    layers: int = 1
    directions: int = 1
    dropout: float = 0.0
    vocabulary: int = 0
    embedding: int = 0
    head_hidden: int = 0
    reduce: str | None = None
    score: str = "mean"
    skip: bool = False
    forget_bias: float = 1.0
    window: int = 8


class TrainSection(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The fields of ``FitOptions``, the seed apart."""

    epochs: int = 20
    rows: int = 32
    steps: int = 64
    segment_steps: int = 0
    batch_steps: int = 0
    optimiser: str = "adam"
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    momentum: float = 0.0
    clip_norm: float = 1.0
    schedule: str = "constant"
    patience: int = 0


class TrainConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The whole file. With several seeds every one is trained; the best by validation loss is exported."""

    name: str
    task: str
    data: DataSection
    model: ModelSection
    training: TrainSection = TrainSection()
    version: str = "1"
    seeds: list[int] = msgspec.field(default_factory=lambda: [0])
    device: str = "cpu"
    threads: int = 1


def read_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The configuration of a file, with ``section.key=value`` (TOML values) on top; unknown keys are errors."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigurationError(f"no such configuration file: {path}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: {error}") from error
    for override in overrides:
        _override(document, override)
    try:
        config = msgspec.convert(document, TrainConfig)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{path}: {error}") from error
    if config.task not in TASKS:
        raise ConfigurationError(f"{path}: task must be one of {', '.join(TASKS)}, not {config.task!r}")
    if config.data.split not in ("stream", "time"):
        raise ConfigurationError(f"{path}: data.split must be stream or time, not {config.data.split!r}")
    if not config.seeds or min(config.seeds) < 0 or config.threads < 1:
        raise ConfigurationError(f"{path}: seeds must be one or more numbers >= 0, threads at least 1")
    if config.device != "cpu" and not torch.cuda.is_available():
        raise ConfigurationError(f"{path}: device {config.device!r} is not available here")
    return config


def read_split(config: TrainConfig, base: Path) -> Split:
    """Load and split the data; with a test file, its streams are judged whole and ``data.test`` does not apply."""
    section = config.data
    labels = {"regress": "values", "classify": "classes", "forecast": "classes"}.get(config.task, "none")
    known: dict[str, Any] = {
        "stream": section.stream,
        "time": section.time,
        "label": section.label,
        "features": section.features,
        "classes": section.classes,
        "labels": labels,
    }
    data = load(base / section.path, **known)
    held = 0.0 if section.test_path else section.test
    if section.split == "time":
        split = split_by_time(data, validation=section.validation, test=held)
    else:
        split = split_by_stream(data, validation=section.validation, test=held, seed=config.seeds[0])
    if section.test_path:
        if known["classes"] is None and data.classes is not None:
            known["classes"] = data.classes  # so that both files number their classes alike
        test = load(base / section.test_path, **known)
        if test.features != data.features:
            raise ConfigurationError(f"{section.test_path} has other features than {section.path}")
        split = replace(split, test=test)
    return split


def make_model(config: TrainConfig, train: Streams) -> SequenceModel:
    """A fresh model for this data, scaled by the training part. ConfigurationError if the two do not fit."""
    section = config.model
    features = len(train.features)
    labels: tuple[str, ...] | None = None
    outputs = 1
    if config.task == "classify":
        labels = train.classes
        outputs = len(labels or ())
        if outputs < 2:
            raise ConfigurationError("classify needs at least two classes in the data")
    elif config.task == "next_category":
        outputs = section.vocabulary
        labels = tuple(config.data.classes) if config.data.classes else None
        if not section.vocabulary:
            raise ConfigurationError("next_category needs model.vocabulary, the number of categories")
    elif config.task == "next_set":
        outputs, labels = features, train.features
    elif config.task == "forecast":
        outputs, labels = 0, train.features
    if config.task in ("forecast", "next_category", "next_set") and (section.directions != 1 or section.reduce):
        raise ConfigurationError(f"task {config.task} is causal: directions must be 1, and there is no reduce")
    check_values(config, train)
    model = build(
        ModelConfig(
            features=features,
            task="forecast" if config.task == "forecast" else "sequence",
            outputs=outputs,
            activation=ACTIVATION.get(config.task, "none"),
            labels=labels,
            **msgspec.structs.asdict(section),
        )
    )
    if config.data.scale and not section.vocabulary and config.task != "next_set":
        mean, std = fit_scaling(train)
        model.mean.copy_(torch.from_numpy(mean))
        model.std.copy_(torch.from_numpy(std))
    return model


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
    trainer = Trainer(model, config.task, FitOptions(seed=seed, **msgspec.structs.asdict(config.training)))
    checkpoint = out / f"checkpoint-{seed}.pt" if out is not None else None
    if resume and checkpoint is not None and checkpoint.exists():
        trainer.restore(checkpoint)
    with epochs_progress(f"{config.name} seed {seed}", config.training.epochs, len(trainer.history.epochs)) as advance:
        history = trainer.run(train, held, progress=lambda figures: advance(_describe(figures)), checkpoint=checkpoint)
    model.to("cpu")
    if isinstance(model, Forecaster):
        fit_residual_scale(model, train)
    figures = {"validation": evaluate(model, config.task, split.validation, split.train)}
    if len(split.test):
        figures["test"] = evaluate(model, config.task, split.test, split.train)
    return Trained(seed, model, history, figures)


def run(config: TrainConfig, base: Path, out: Path, *, resume: bool = False) -> dict[str, Any]:
    """Train every seed, publish the best model and write figures and plots; returns what metrics.json holds."""
    if config.model.kind == "mlp":
        raise ConfigurationError("kind mlp is the baseline of `compare` and is not exported: use rnn, lstm or gru")
    torch.set_num_threads(config.threads)
    out.mkdir(parents=True, exist_ok=True)
    split = read_split(config, base)
    trained = [train_seed(config, split, seed, out=out, resume=resume) for seed in config.seeds]
    best = min(trained, key=lambda t: t.history.best_loss)
    metrics = _metrics(config, split, trained, best)
    published = {f"{part}_{name}": value for part, row in best.figures.items() for name, value in row.items()}
    metrics["verification"] = publish(
        best.model,
        out,
        name=config.name,
        version=config.version,
        features=split.train.features,
        trained_on=metrics["data"],
        metrics=published,
    )
    plots.write_json(out / "metrics.json", metrics)
    plots.loss_plot(out / "loss.png", {f"seed {t.seed}": t.history for t in trained})
    plots.metric_plot(out / "metric.png", best.figures)
    plots.gradient_norm_plot(
        out / "gradient_norm.png", {f"seed {t.seed}": t.history for t in trained}, config.training.clip_norm
    )
    return metrics


def main(argv: Sequence[str]) -> int:
    """The command; exit codes as everywhere (0 ok, 2 configuration, 3 model), 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__} train", description="Train, verify and export a model."
    )
    parser.add_argument("--config", type=Path, required=True, help="TOML file")
    parser.add_argument("--out", type=Path, help="output folder (default: runs/NAME)")
    parser.add_argument("--data", type=Path, help="data file instead of data.path")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override one setting")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints in the output folder")
    parser.add_argument("--json", action="store_true", help="print the metrics as one JSON object on stdout")
    arguments = parser.parse_args(list(argv))
    overrides = list(arguments.set)
    if arguments.data is not None:
        overrides.append(f"data.path={json.dumps(str(arguments.data.resolve()))}")
    try:
        config = read_config(arguments.config, overrides)
        out = arguments.out or Path("runs") / config.name
        metrics = run(config, arguments.config.parent, out, resume=arguments.resume)
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
        print(f"{out / 'model.onnx'}: verified, {metrics['parameters']} parameters")
    return 0


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


def _override(document: dict[str, Any], text: str) -> None:
    path, equals, value = text.partition("=")
    *sections, key = path.strip().split(".")
    if not equals or not key:
        raise ConfigurationError(f"--set wants SECTION.KEY=VALUE, not {text!r}")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value  # an unquoted word
    target = document
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise ConfigurationError(f"--set {text}: {section} is not a section")
    target[key] = parsed


def check_values(config: TrainConfig, part: Streams) -> None:
    """ConfigurationError for values that the task gives no meaning to: unknown categories, sets that are none."""
    vocabulary = config.model.vocabulary
    if vocabulary and (vocabulary < 2 or len(part.features) != 1):
        raise ConfigurationError("model.vocabulary needs one feature, and at least 2 categories")
    for name, x in zip(part.names, part.x, strict=True):
        if vocabulary and ((x != np.round(x)).any() or x.min() < 0 or x.max() >= vocabulary):
            raise ConfigurationError(f"stream {name!r} has a category outside of 0..{vocabulary - 1}")
        if config.task == "next_set" and not np.isin(x, (0, 1)).all():
            raise ConfigurationError(f"stream {name!r} has values that are not 0 or 1: next_set needs sets")


def _reinitialise(model: SequenceModel, seed: int) -> None:
    """Fresh weights of this seed; scaling stays."""
    assert model.config is not None
    torch.manual_seed(seed)
    fresh = build(model.config)
    weights = {name: value for name, value in fresh.state_dict().items() if name not in ("mean", "std")}
    model.load_state_dict(weights, strict=False)


def _describe(figures: EpochFigures) -> str:
    return f"train {figures.train_loss:.4f} validation {figures.validation_loss:.4f}"
