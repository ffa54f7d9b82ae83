"""What ``compare`` compares on: built-in tasks at several lengths, the variants of a model, and how long all may learn."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from streamer.errors import ConfigurationError

from ..data import Split, Streams
from ..memorytasks import ADDING_BASELINE, copy_baseline, split_of
from ..model import ModelConfig, build
from ..recipes import anomaly, characters
from ..train import DataSection, ModelSection, TrainConfig, TrainSection
from .digits import digits
from .training import Budget

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
CELLS = ("rnn", "lstm", "gru")
REFERENCE = "lstm"
"""Its parameter count is what the others are sized to in the comparison at equal parameters."""
ONE_WAY = ("feed-forward", *CELLS)
DEEP = tuple(f"{cell} x 2" for cell in CELLS)
BOTH_WAYS = tuple(f"bi-{cell}" for cell in CELLS)
TASKS = ("adding", "copying", "characters", "digits rows", "digits pixels", "digits permuted", "telemetry", "detection")
WIDTH, RESIZED = "equal hidden", "equal parameters"
RATES = (2e-3, 6e-3, 2e-2)
DETECTION_STEPS = 60
CAUSAL = ("forecast", "next_category", "next_set")
TEXT_BYTES = 1_000_000
"""A text has to be at least this long for the task ``characters``."""
HELD = 400
"""Sequences of the memory tasks that are validated on, and as many that are tested on."""
_TEXT_PIECES, _TEXT_WARM_UP = 32, 64


@dataclass(frozen=True)
class Case:
    """One task at one or more lengths; every score is the test loss, so smaller is better."""

    name: str
    config: TrainConfig
    splits: Mapping[int, Callable[[int], Split]]
    """Length of the sequences -> seed -> data; a case without a length of interest has one entry."""
    unit: str
    budgets: Mapping[int, Budget] = field(default_factory=dict)
    """Length -> how long every variant may learn; none for a case of the user's own (``own``)."""
    baselines: Mapping[int, float] = field(default_factory=dict)
    """Length -> score of guessing, where it is known beforehand; else the evaluation's own baseline counts."""
    trains: tuple[str, ...] = tuple(VARIANTS)
    """Variants at equal hidden size."""
    resizes: tuple[str, ...] = tuple(VARIANTS)
    """Variants that are also sized to the reference's parameter count."""
    memory: bool = False
    """The length is a distance in time that has to be bridged."""
    steps: Mapping[int, int] = field(default_factory=dict)
    """Length -> steps of a sequence, where the two differ (the lag of copying)."""
    data: str = ""
    """What the generated or read data depends on beside the seed: another value is another comparison."""
    rates: tuple[float, ...] = RATES
    """Learning rates that validation chooses from."""

    @property
    def longest(self) -> int:
        return max(self.splits)

    @property
    def own(self) -> bool:
        """Of the user's own: trained as ``train`` does."""
        return not self.budgets

    def variants(self, sizing: str = WIDTH) -> dict[str, dict[str, Any]]:
        """Those that may look at the task: a bidirectional one cannot predict what it has already seen."""
        causal = self.config.task in CAUSAL or self.name == "copying"
        known = {name: VARIANTS[name] for name in (self.trains if sizing == WIDTH else self.resizes)}
        return {name: options for name, options in known.items() if not (causal and options.get("directions"))}


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


def built_in(names: Sequence[str], *, quick: bool, text: Path | None = None) -> list[Case]:
    """The built-in cases of these names; ``characters`` needs a text."""
    makers: dict[str, Callable[[bool], Case]] = {
        "adding": _adding,
        "copying": _copying,
        "characters": partial(_characters, text=text),
        "digits rows": partial(_digits, reading="rows"),
        "digits pixels": partial(_digits, reading="pixels"),
        "digits permuted": partial(_digits, reading="permuted"),
        "telemetry": _telemetry,
        "detection": _detection,
    }
    return [makers[name](quick) for name in names]


def find_text() -> Path | None:
    """A text file of at least ``TEXT_BYTES`` under ``char-text`` of the folder STREAMER_TEST_DATA; None without one."""
    folder = Path(os.environ.get("STREAMER_TEST_DATA") or Path.cwd().parent / "shared" / "data") / "char-text"
    found = sorted(folder.glob("*.txt"))
    return next((path for path in found if path.stat().st_size >= TEXT_BYTES), None)


def _config(name: str, task: str, model: ModelSection, training: TrainSection, *, scale: bool = False) -> TrainConfig:
    return TrainConfig(
        name=name, task=task, data=DataSection(path="generated", scale=scale), model=model, training=training
    )


def _adding(quick: bool) -> Case:
    budgets = (
        {20: Budget(240, 30, 4), 40: Budget(240, 30, 4)}
        if quick
        else {50: Budget(1500, 50, 10), 200: Budget(2500, 100, 5), 400: Budget(1200, 100, 5)}
    )
    count = 2000 if quick else 16_000
    return Case(
        "adding",
        _config("adding", "regress", ModelSection(hidden=16 if quick else 32, reduce="last"), TrainSection(rows=16)),
        {length: partial(_memory, "adding", length, count) for length in budgets},
        "squared error",
        budgets,
        dict.fromkeys(budgets, ADDING_BASELINE),
        trains=ONE_WAY,
        resizes=("gru",) if quick else (),
        memory=True,
        data=str(count),
    )


def _copying(quick: bool) -> Case:
    budgets = (
        {5: Budget(240, 30, 4), 10: Budget(240, 30, 4)}
        if quick
        else {10: Budget(2000, 50, 10), 30: Budget(1500, 50, 10), 100: Budget(800, 50, 10)}
    )
    count = 2000 if quick else 16_000
    steps = {lag: lag + 20 for lag in budgets}
    model = ModelSection(hidden=24 if quick else 40, vocabulary=10, embedding=10)
    return Case(
        "copying",
        _config("copying", "classify", model, TrainSection(rows=16, steps=max(steps.values()))),
        {lag: partial(_memory, "copying", lag, count) for lag in budgets},
        "nats per step",
        budgets,
        {lag: copy_baseline(lag) for lag in budgets},
        trains=ONE_WAY,
        resizes=(),
        memory=True,
        data=str(count),
        steps=steps,
    )


def _characters(quick: bool, text: Path | None) -> Case:
    if text is None:
        raise ConfigurationError("the task characters needs a text: give --text FILE (at least 1 MB)")
    split = read_text(text, quick)
    (character,) = split.train.feature_tables
    model = ModelSection(hidden=24 if quick else 48, vocabulary=len(character.vocabulary), embedding=16)
    training = TrainSection(rows=16, steps=50, segment_steps=1000)
    budget = Budget(120, 30, 3) if quick else Budget(1000, 100, 3, gain=0.001)
    return Case(
        "characters",
        _config("characters", "next_category", model, training),
        {50: lambda seed: split},
        "nats per character",
        {50: budget},
        trains=ONE_WAY,
        resizes=() if quick else ("rnn", "gru", *DEEP),
        data=sha256(split.train.x[0].tobytes()).hexdigest(),
    )


def read_text(path: Path, quick: bool) -> Split:
    """90, 5 and 5 % of a text; validation and test in equal pieces, each warmed up by the characters before it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read as a UTF-8 text: {error}") from error
    if len(text) < TEXT_BYTES:
        raise ConfigurationError(f"{path}: {len(text)} characters are too few, {TEXT_BYTES} are the least")
    whole = characters.read_text(text)
    parts = []
    for part in (whole.validation, whole.test):
        x, start = part.x[0], part.counted_from[0]
        size = (len(x) - start) // _TEXT_PIECES
        size = min(size, 200 if quick else size)
        begins = [start + i * size for i in range(_TEXT_PIECES)]
        parts.append(
            Streams(
                part.features,
                [f"piece-{i:02d}" for i in range(_TEXT_PIECES)],
                [x[a - _TEXT_WARM_UP : a + size] for a in begins],
                [np.arange(_TEXT_WARM_UP + size, dtype=np.int64) for _ in begins],
                None,
                part.classes,
                [_TEXT_WARM_UP] * _TEXT_PIECES,
                tables=part.tables,
            )
        )
    return Split(whole.train, *parts)


def _digits(quick: bool, reading: Any) -> Case:
    steps = 8 if reading == "rows" else 64
    budget = Budget(120, 30, 3) if quick else Budget(2000 if reading == "rows" else 1200, 50, 8)
    return Case(
        f"digits {reading}",
        _config(
            f"digits {reading}",
            "classify",
            ModelSection(hidden=16 if quick else 32, reduce="last"),
            TrainSection(rows=16),
        ),
        {steps: partial(digits, reading)},
        "nats per image",
        {steps: budget},
        trains=ONE_WAY if quick or reading != "rows" else (*ONE_WAY, *BOTH_WAYS),
        resizes=() if quick else ("rnn", "gru"),
        memory=reading != "rows",
    )


def _telemetry(quick: bool) -> Case:
    return Case(
        "telemetry",
        _config(
            "telemetry",
            "forecast",
            ModelSection(hidden=16 if quick else 32),
            TrainSection(rows=8 if quick else 16, steps=50),
            scale=True,
        ),
        {50: lambda seed: anomaly.make(quick)},
        "squared error (scaled)",
        {50: Budget(120, 30, 3) if quick else Budget(1200, 50, 6, gain=0.002)},
        trains=ONE_WAY,
        resizes=() if quick else ("feed-forward", "rnn", "gru"),
    )


def _detection(quick: bool) -> Case:
    def make(seed: int) -> Split:
        split = anomaly.make(quick)
        return Split(*(_windows(part, DETECTION_STEPS) for part in (split.train, split.validation, split.test)))

    return Case(
        "detection",
        _config(
            "detection",
            "classify",
            ModelSection(hidden=16 if quick else 32),
            TrainSection(rows=16, steps=60),
            scale=True,
        ),
        {DETECTION_STEPS: make},
        "nats per event",
        {DETECTION_STEPS: Budget(120, 30, 3) if quick else Budget(1200, 50, 6, gain=0.002)},
        trains=("rnn", "lstm", "gru", *BOTH_WAYS) if quick else (*ONE_WAY, *BOTH_WAYS),
        resizes=() if quick else ("rnn", "gru"),
    )


def _memory(task: str, length: int, count: int, seed: int) -> Split:
    return split_of(task, length, count, seed, held=HELD)


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
