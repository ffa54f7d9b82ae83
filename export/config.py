"""What train.toml may say: every key with its default and meaning. ``reference`` makes the tables of the guide."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import torch
from pydantic import ValidationError

from streamer.errors import ConfigurationError
from streamer.modelfile.feature import MAX_LAG
from streamer.settings.fields import Place, parse_field
from streamer.settings.reference import section_table
from streamer.toml import parse_toml
from streamer.windows import WindowRule

from .bounds import LARGEST, Seed, Size, Threads
from .files import FileOptions
from .files.times import UNITS
from .frontend import FrontEnd
from .pairs.sections import PAIR_TASKS, DecoderSection, PairsSection, sections_problem

TASKS = ("forecast", "next_category", "next_set", "classify", "regress", *PAIR_TASKS)


class DataSection(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Where the events are and what their columns mean; paths are relative to the configuration file."""

    path: str
    """CSV, TSV, Parquet, NPZ, JSON lines or TS, by its suffix."""
    test_path: str | None = None
    """A file that is only judged; without it ``test`` of ``path`` is held back."""
    validation_path: str | None = None
    """A file that early stopping and the choice of the seed see; without it ``validation`` of ``path`` is held back."""
    stream: str = "stream"
    """Column of the stream's id."""
    time: str = "time"
    """Column of the event's time: ISO 8601, or a number."""
    label: str = "label"
    """Column of the label; empty cells and -1 mean that there is none."""
    features: list[str] | None = None
    """Columns that the model sees, in this order; unset: all others."""
    categories: list[str] = msgspec.field(default_factory=list)
    """Columns of numbers that are names (a product, a zip code). Columns of words are found by themselves."""
    classes: list[str | int] | None = None
    """Names of the label's classes, or of the categories of ``model.vocabulary``; unset: those in the data."""
    normal: str | int | None = None
    """forecast with labels: the label of normal events, which alone are trained on. Unset: ``normal`` or ``0``."""
    encoding: str | None = None
    """Of text files, such as latin-1 or utf-16; unset: found out."""
    delimiter: str | None = None
    """Of CSV; unset: comma, semicolon, tab or bar, by the header."""
    decimal: str | None = None
    """``.`` or ``,``; unset: found out."""
    time_unit: str | None = None
    """``s``, ``ms``, ``us`` or ``ns`` of times that are numbers; unset: by the column's name (``_ms``) or by size."""
    missing_words: list[str] | None = None
    """Cells that mean that there is no value. Unset: ``""``, ``NA``, ``N/A``, ``#N/A``, ``nan``, ``null`` and their like; but
    in JSON lines and Parquet, which have a null, a word is a word, as in the service."""
    missing: float | str | dict[str, float | str] = "mean"
    """What stands for a missing number: ``mean`` (of the training part), ``last`` (of the stream; ``mean`` before the
    first), ``reject`` or a number; for all columns, or a table by column."""
    present: list[str] = msgspec.field(default_factory=list)
    """Columns beside which the model sees whether they had a value (1 or 0)."""
    since_last: bool = False
    """Whether the model sees the seconds since the stream's previous event (0 for the first)."""
    lags: dict[str, list[int]] = {}
    """Columns of which the model also sees what they were so many events of the stream before: ``{cpu = [1, 2]}``."""
    fields: dict[str, Any] = {}
    """Feature -> its place in a record, as in the service's ``[input.fields]``: a path (of JSON lines), a column, or a table
    with ``path`` and ``missing``; unset: the column of its name."""
    min_count: int = 1
    """Rarer words of the training part are unknown, which is how a model learns what to do with unknown ones."""
    scale: bool = True
    """Whether numbers are standardised inside the graph, by the training part."""
    split: str = "stream"
    """``stream``: whole streams go to one part; ``time``: one moment for all streams divides the parts."""
    validation: float = 0.15
    """Share of the streams, or of the events, for validation."""
    test: float = 0.15
    """Share for the test."""

    def file_options(self) -> FileOptions:
        """What the readers want to know."""
        by_column = (self.missing if isinstance(self.missing, dict) else {}) | self.places[1]
        return FileOptions(
            complete=None if self.missing == "reject" else [n for n, rule in by_column.items() if rule == "reject"],
            encoding=self.encoding,
            delimiter=self.delimiter,
            decimal=self.decimal,
            time_unit=self.time_unit,
            missing_words=self.missing_words,
            categories=tuple(self.categories),
        )

    def missing_rule(self, column: str) -> float | str:
        """``mean``, ``last``, ``reject`` or a number."""
        own = self.own_rule(column)
        if own is not None:
            return own
        return "mean" if isinstance(self.missing, dict) else self.missing

    def own_rule(self, column: str) -> float | str | None:
        """What is said of this very column."""
        found = self.places[1].get(column)
        return self.missing.get(column) if found is None and isinstance(self.missing, dict) else found

    @property
    def places(self) -> tuple[dict[str, Place], dict[str, float | str]]:
        """Feature -> place, and feature -> what stands for a missing value, of ``fields``. ValueError: they say neither."""
        found = {feature: parse_field(written) for feature, written in self.fields.items()}
        return (
            {feature: place for feature, (place, _) in found.items() if place is not None},
            {feature: rule for feature, (_, rule) in found.items() if rule is not None},
        )

    def problem(self) -> str | None:
        """A value that no file could be read by; None if all can be used."""
        choices = {
            "split": (self.split, ("stream", "time")),
            "decimal": (self.decimal, (None, ".", ",")),
            "time_unit": (self.time_unit, (None, *UNITS)),
        }
        for key, (value, allowed) in choices.items():
            if value not in allowed:
                return f"data.{key} must be {' or '.join(str(each) for each in allowed if each)}, not {value!r}"
        for feature, written in self.fields.items():
            try:
                parse_field(written)
            except ValueError as error:
                return f"data.fields: {feature!r} {error}"
        for key in ("features", "categories", "classes", "present"):
            names = [str(name) for name in getattr(self, key) or ()]
            if (double := next((name for at, name in enumerate(names) if name in names[:at]), None)) is not None:
                return f"data.{key} has {double!r} twice: name each once"
        for column, lags in self.lags.items():
            if not lags or min(lags) < 1 or max(lags) > MAX_LAG or len(set(lags)) != len(lags):
                return f"data.lags: those of {column!r} must be different numbers of events, each 1 to {MAX_LAG}"
        rules = self.missing.values() if isinstance(self.missing, dict) else [self.missing]
        for rule in rules:
            if isinstance(rule, str) and rule not in ("mean", "last", "reject"):
                return f"data.missing must be mean, last, reject or a number, not {rule!r}"
        return f"data.min_count must be at least 1, not {self.min_count}" if self.min_count < 1 else None


class ModelSection(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The choices of ``ModelConfig`` that do not follow from data and task."""

    hidden: Size
    """Width of the recurrent state, per layer and direction."""
    kind: str = "lstm"
    """``lstm``, ``gru`` or ``rnn``."""
    nonlinearity: str = "tanh"
    """``tanh`` or ``relu``, of an ``rnn``."""
    layers: Size = 1
    """Recurrent layers."""
    directions: Size = 1
    """2: looks at later events too, and answers when a window has closed."""
    dropout: float = 0.0
    """Share of the core's output (and of what passes between its layers) that is dropped in training."""
    vocabulary: Size = 0
    """A stream of numbers 0 to N-1 that are categories: N. Of a column of words: the most words that are kept."""
    embedding: Size = 0
    """Width of the embedding of a category; 0: by the size of its vocabulary."""
    embedding_dropout: float = 0.0
    """Share of the embeddings that is dropped in training."""
    head_hidden: Size = 0
    """Width of one hidden ReLU layer in the head; 0: none."""
    reduce: str | None = None
    """One answer per window: from the ``last`` event, or the ``mean`` or ``max`` over all. Unset: one per event."""
    score: str = "mean"
    """forecast: the score is the ``mean`` or the ``max`` over the features."""
    skip: bool = False
    """forecast: the model predicts the change from the current event."""
    forget_bias: float = 1.0
    """Initial bias of an LSTM's forget gate."""
    window: Size = 8
    """Events that the baseline ``mlp`` of ``compare`` sees."""
    frontend: FrontEnd | None = None
    """recognise: the features are samples of sound, of which the model sees log-mel energies; keys below."""


class TrainSection(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How to train; the defaults are what most small recurrent models want."""

    epochs: Size = 20
    """Passes over the training part, at most."""
    rows: Size = 32
    """Streams (or sequences) beside each other in a batch."""
    steps: Size = 64
    """Length of a piece that gradients flow through; the state is carried on. Not used for window models."""
    segment_steps: Size = 0
    """Longer streams are cut into pieces of this length that start from the initial state; 0: never."""
    batch_steps: Size = 0
    """Bound on rows x longest length of a batch of whole sequences; 0: only ``rows`` bounds it."""
    optimiser: str = "adam"
    """``adam``, ``adamw`` or ``sgd``."""
    learning_rate: float = 3e-3
    """Size of a step."""
    weight_decay: float = 0.0
    """Pull of all weights but biases towards 0, beside the gradient (as AdamW does) in every optimiser but ``sgd``."""
    momentum: float = 0.0
    """For sgd only."""
    clip_norm: float = 1.0
    """Upper bound of the gradient's norm; 0: no clipping."""
    schedule: str = "constant"
    """``constant``, ``cosine`` (to a hundredth over all epochs) or ``plateau`` (half after ``patience`` / 2 epochs
    without gain)."""
    patience: Size = 0
    """Epochs without a better validation loss after which training stops; 0: never."""
    class_weights: str | dict[str, float] | None = None
    """classify: ``balanced`` (every class counts alike), or a weight by class (1 for those not named)."""


class TrainConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The whole file. With several seeds every one is trained; the best by validation loss is exported."""

    name: str
    """Name of the model, which predictions carry."""
    task: str
    """``forecast``, ``next_category``, ``next_set``, ``classify``, ``regress``, ``sequence-to-sequence`` or
    ``recognise``."""
    data: DataSection
    model: ModelSection
    training: TrainSection = TrainSection()
    window: dict[str, str | int] | None = None
    pairs: PairsSection | None = None
    decoder: DecoderSection | None = None
    version: str = "1"
    """Version of the model."""
    seeds: list[Seed] = msgspec.field(default_factory=lambda: [0])
    """One training each."""
    device: str = "cpu"
    """``cpu`` or ``cuda``."""
    threads: Threads = 1
    """Threads of a training on the CPU."""

    @property
    def rule(self) -> WindowRule | None:
        """The table ``[window]``, which is that of ``[model.NAME.window]`` in the service's settings."""
        if self.window is None:
            return None
        known = {field.name for field in fields(WindowRule)}
        for key in self.window:
            if key not in known:
                raise ConfigurationError(f"window.{key} is no setting of a window: one of {', '.join(sorted(known))}")
        try:
            return WindowRule(**self.window)  # type: ignore[arg-type]  # it is what the call checks
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"[window]: {_said(error)}") from error


def _said(error: Exception) -> str:
    """What a validation found, one sentence each."""
    if not isinstance(error, ValidationError):
        return str(error)
    parts = [(".".join(map(str, each["loc"])), str(each["msg"])) for each in error.errors(include_url=False)]
    return "; ".join(f"{key}: {text}" if key else text.removeprefix("Value error, ") for key, text in parts)


def read_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The configuration of a file, with ``section.key=value`` (TOML values) on top; unknown keys are errors."""
    try:
        document = parse_toml(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise ConfigurationError(f"no such configuration file: {path}") from error
    except OSError as error:
        raise ConfigurationError(f"the configuration {path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # UnicodeDecodeError too
        raise ConfigurationError(f"{path}: {error}") from error
    for override in overrides:
        _override(document, override)
    if (odd := _no_number(document, "")) is not None:
        raise ConfigurationError(f"{path}: {odd}, which is no finite number that 32 bits hold")
    try:
        config = msgspec.convert(document, TrainConfig)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{path}: {error}") from error
    if config.task not in TASKS:
        raise ConfigurationError(f"{path}: task must be one of {', '.join(TASKS)}, not {config.task!r}")
    if (found := config.data.problem() or _pairs_problem(config)) is not None:
        raise ConfigurationError(f"{path}: {found}")
    if not config.seeds:
        raise ConfigurationError(f"{path}: seeds must be one or more numbers")
    if config.device != "cpu" and not torch.cuda.is_available():
        raise ConfigurationError(f"{path}: device {config.device!r} is not available here")
    if config.rule is not None and config.model.directions == 1 and config.model.reduce is None:
        raise ConfigurationError(
            f"{path}: [window] is for models that are served in windows (model.directions = 2, or model.reduce);"
            " this one answers every event at once: leave [window] out, or say how it looks at a window"
        )
    return config


def _no_number(value: Any, key: str) -> str | None:
    """The first number that would only be found when the loss is none; None: there is no such."""
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        found = (_no_number(each, f"{key}.{name}".lstrip(".")) for name, each in inner)
        return next((odd for odd in found if odd is not None), None)
    return f"{key} is {value!r}" if isinstance(value, float) and not abs(value) <= LARGEST else None


def _pairs_problem(config: TrainConfig) -> str | None:
    """What does not go together in a configuration with, or without, pairs."""
    if config.model.frontend is not None:
        if config.task != "recognise":
            return f"[model.frontend] belongs to the task recognise, not to {config.task}"
        if (problem := config.model.frontend.problem()) is not None:
            return f"[model.frontend]: {problem}"
    if (
        found := sections_problem(config.task, config.pairs, config.decoder)
    ) is not None or config.task not in PAIR_TASKS:
        return found
    if config.window is not None:
        return "[window] is not read for pairs: every source is one window"
    if config.model.frontend is not None and config.pairs is not None and config.pairs.mask_features:
        return "pairs.mask_features masks neighbouring samples where there is a [model.frontend]: use mask_steps"
    if config.model.reduce is not None or config.model.kind == "mlp":
        return "model.reduce and kind mlp are not for pairs: every step of the source counts"
    return None


def reference() -> str:
    """Markdown with one table per section of train.toml: key, default, meaning."""
    sections: list[tuple[str, type]] = [
        ("the top of the file", TrainConfig),
        ("`[data]`", DataSection),
        ("`[model]`", ModelSection),
        ("`[model.frontend]`", FrontEnd),
        ("`[training]`", TrainSection),
        ("`[pairs]`", PairsSection),
        ("`[decoder]`", DecoderSection),
    ]
    tables = [f"### {title}\n\n{_table(section)}" for title, section in sections]
    tables.append("### `[window]`\n\n" + section_table("model.NAME.window"))
    return "\n\n".join(tables) + "\n"


def _table(section: type) -> str:
    rows = ["| key | default | meaning |", "| --- | --- | --- |"]
    described = _descriptions(section)
    required = tuple(each.name for each in msgspec.structs.fields(section) if each.required)
    made = {each.name: each.default_factory for each in msgspec.structs.fields(section)}
    found = [
        (each.name, made[each.name]() if each.default is msgspec.NODEFAULT and not each.required else each.default)
        for each in msgspec.structs.fields(section)
    ]
    for name, default in found:
        if name in described:
            shown = "required" if name in required else f"`{_shown(default)}`"
            rows.append(f"| `{name}` | {shown} | {described[name].replace('``', '`').replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def _shown(value: Any) -> str:
    return "unset" if value is None or value == [] else msgspec.json.encode(value).decode()


def _descriptions(section: type) -> dict[str, str]:
    """Key -> the sentence under it in the source."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(body, ast.ClassDef)
    found, name = {}, ""
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and name:
            found[name] = " ".join(str(node.value.value).split())
            name = ""
        else:
            name = ""
    return found


def _override(document: dict[str, Any], text: str) -> None:
    path, equals, value = text.partition("=")
    *sections, key = path.strip().split(".")
    if not equals or not key:
        raise ConfigurationError(f"--set wants SECTION.KEY=VALUE, not {text!r}")
    try:
        parsed = parse_toml(f"value = {value}")["value"]
    except ValueError:
        parsed = value  # an unquoted word
    target = document
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise ConfigurationError(f"--set {text}: {section} is not a section")
    target[key] = parsed
