"""What ``compare`` compares on: built-in tasks at several lengths, and the variants of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch

from .data import Split, Streams
from .memorytasks import ADDING_BASELINE, copy_baseline, split_of
from .model import ModelConfig, build
from .recipes import anomaly, characters
from .train import DataSection, ModelSection, TrainConfig, TrainSection

VARIANTS: dict[str, dict[str, Any]] = {
    "feed-forward": {"kind": "mlp", "window": 8},
    "rnn": {"kind": "rnn"},
    "lstm": {"kind": "lstm"},
    "gru": {"kind": "gru"},
    "rnn x 2": {"kind": "rnn", "layers": 2},
    "lstm x 2": {"kind": "lstm", "layers": 2},
    "gru x 2": {"kind": "gru", "layers": 2},
    "bi-rnn": {"kind": "rnn", "directions": 2},
    "bi-lstm": {"kind": "lstm", "directions": 2},
    "bi-gru": {"kind": "gru", "directions": 2},
}
REFERENCE = "lstm"
"""Its parameter count is what the others are sized to in the comparison at equal parameters."""
TASKS = ("adding", "copying", "characters", "telemetry", "detection")
_DETECTION_STEPS = 60
CAUSAL = ("forecast", "next_category", "next_set")


@dataclass(frozen=True)
class Case:
    """One task at one or more lengths; every score is the test loss, so smaller is better."""

    name: str
    config: TrainConfig
    splits: Mapping[int, Callable[[int], Split]]
    """Length of the sequences -> seed -> data; a case without a length of interest has one entry."""
    unit: str
    baselines: Mapping[int, float] = field(default_factory=dict)
    """Length -> score of guessing, where it is known beforehand; else the evaluation's own baseline counts."""

    @property
    def longest(self) -> int:
        return max(self.splits)

    def variants(self) -> dict[str, dict[str, Any]]:
        """Those that may look at the task: a bidirectional one cannot predict what it has already seen."""
        causal = self.config.task in CAUSAL or self.name == "copying"
        return {name: options for name, options in VARIANTS.items() if not (causal and options.get("directions"))}


def sized(config: TrainConfig, options: Mapping[str, Any], hidden: int) -> TrainConfig:
    """The case's configuration for one variant."""
    return msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, hidden=hidden, **options))


def parameters_of(config: TrainConfig, features: int, outputs: int) -> int:
    """Parameter count of a configuration's model; nothing is computed or drawn for it."""
    with torch.device("meta"):
        model = build(
            ModelConfig(
                features=features,
                task="forecast" if config.task == "forecast" else "sequence",
                outputs=0 if config.task == "forecast" else outputs,
                **msgspec.structs.asdict(config.model),
            )
        )
    return model.parameter_count


def hidden_for(config: TrainConfig, options: Mapping[str, Any], wanted: int, features: int, outputs: int) -> int:
    """The hidden size at which a variant's parameter count comes closest to ``wanted``."""

    def count(hidden: int) -> int:
        return parameters_of(sized(config, options, hidden), features, outputs)

    high = 2
    while count(high) <= wanted:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) <= wanted else (low, middle)
    return low if abs(count(low) - wanted) <= abs(count(high) - wanted) else high


def built_in(names: Sequence[str], *, quick: bool) -> list[Case]:
    """The built-in cases of these names."""
    makers = {
        "adding": _adding,
        "copying": _copying,
        "characters": _characters,
        "telemetry": _telemetry,
        "detection": _detection,
    }
    return [makers[name](quick) for name in names]


def _config(name: str, task: str, model: ModelSection, training: TrainSection, *, scale: bool = False) -> TrainConfig:
    return TrainConfig(
        name=name, task=task, data=DataSection(path="generated", scale=scale), model=model, training=training
    )


def _adding(quick: bool) -> Case:
    lengths, count = ((10, 30), 1600) if quick else ((20, 50), 3200)
    training = TrainSection(epochs=6 if quick else 10, rows=32, learning_rate=5e-3)
    return Case(
        "adding",
        _config("adding", "regress", ModelSection(hidden=32, reduce="last"), training),
        {length: lambda seed, length=length: split_of("adding", length, count, seed) for length in lengths},  # type: ignore[misc]
        "squared error",
        dict.fromkeys(lengths, ADDING_BASELINE),
    )


def _copying(quick: bool) -> Case:
    lengths, count = ((2, 10), 800) if quick else ((2, 8), 1600)
    training = TrainSection(epochs=4 if quick else 6, rows=32, steps=100, learning_rate=5e-3)
    model = ModelSection(hidden=32 if quick else 48, vocabulary=10, embedding=10)
    return Case(
        "copying",
        _config("copying", "classify", model, training),
        {length: lambda seed, length=length: split_of("copying", length, count, seed) for length in lengths},  # type: ignore[misc]
        "nats per step",
        {length: copy_baseline(length) for length in lengths},
    )


def _characters(quick: bool) -> Case:
    training = TrainSection(epochs=1, rows=16, steps=32, segment_steps=600, learning_rate=8e-3, schedule="cosine")
    model = ModelSection(hidden=32 if quick else 64, vocabulary=characters.VOCABULARY, embedding=16)
    return Case(
        "characters",
        _config("characters", "next_category", model, training),
        {32: lambda seed: characters.make(True)},  # the sentences are simple: more of them would only take longer
        "nats per character",
    )


def _telemetry(quick: bool) -> Case:
    training = TrainSection(epochs=3, rows=8 if quick else 24, steps=50, learning_rate=8e-3, schedule="cosine")
    return Case(
        "telemetry",
        _config("telemetry", "forecast", ModelSection(hidden=32 if quick else 48), training, scale=True),
        {50: lambda seed: anomaly.make(quick)},
        "squared error (scaled)",
    )


def _detection(quick: bool) -> Case:
    training = TrainSection(epochs=8 if quick else 4, rows=16, steps=60, learning_rate=8e-3, schedule="cosine")

    def make(seed: int) -> Split:
        split = anomaly.make(quick)
        return Split(*(_windows(part, _DETECTION_STEPS) for part in (split.train, split.validation, split.test)))

    return Case(
        "detection",
        _config("detection", "classify", ModelSection(hidden=32 if quick else 48), training, scale=True),
        {_DETECTION_STEPS: make},
        "nats per event",
    )


def _windows(part: Streams, steps: int) -> Streams:
    """Every stream cut into whole windows, as a service that closes windows would see it."""
    assert part.labels is not None
    cuts = [(i, start) for i, x in enumerate(part.x) for start in range(0, len(x) - steps + 1, steps)]
    return Streams(
        part.features,
        [f"{part.names[i]}-{start}" for i, start in cuts],
        [part.x[i][start : start + steps] for i, start in cuts],
        [part.times_ms[i][start : start + steps] for i, start in cuts],
        [part.labels[i][start : start + steps] for i, start in cuts],
        part.classes,
    )
