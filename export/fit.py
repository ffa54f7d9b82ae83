"""The training loop: truncated back-propagation through time, or whole sequences in buckets of similar length.

Everything random in an epoch comes from (seed, epoch), so a run that goes on from the checkpoint at an epoch's end is
bit-equal (on CPU) to one that was never interrupted.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from streamer.errors import ConfigurationError

from .config import TrainSection
from .data import Chunk, Example, Streams, buckets, chunks, segments
from .model import SequenceModel
from .tasks import Carry, chunk_loss, mean_loss

Source = Sequence[Example] | Callable[[np.random.Generator], Sequence[Example]]
"""The training sequences, or a function that makes an epoch's."""

OPTIMISERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.AdamW,  # the same where nothing decays; where it does, Adam's own way hardly acts at all
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}
SCHEDULES = ("constant", "cosine", "plateau")
_SHOWN = 80
"""Characters of a fact that a message shows."""
DIVERGED_TIMES = 1e4
"""A training loss this many times the first epoch's is called diverging, even while it is still a number."""


class FitOptions(TrainSection, frozen=True):
    """What ``[training]`` says, and the seed."""

    seed: int = 0

    def check(self) -> None:
        """ConfigurationError for a value that cannot train."""
        if self.optimiser not in OPTIMISERS:
            raise ConfigurationError(f"optimiser must be one of {', '.join(OPTIMISERS)}, not {self.optimiser!r}")
        if self.schedule not in SCHEDULES:
            raise ConfigurationError(f"schedule must be one of {', '.join(SCHEDULES)}, not {self.schedule!r}")
        if min(self.epochs, self.rows, self.steps) < 1 or min(self.segment_steps, self.batch_steps, self.patience) < 0:
            raise ConfigurationError("epochs, rows and steps must be at least 1, segments and patience at least 0")
        if not self.learning_rate > 0 or self.clip_norm < 0 or self.weight_decay < 0:
            raise ConfigurationError("learning_rate must be above 0, clip_norm and weight_decay at least 0")
        if self.schedule == "plateau" and self.patience < 2:
            raise ConfigurationError("schedule plateau needs a patience of at least 2 epochs")


@dataclass
class EpochFigures:
    """What one epoch gave. The gradient norm is measured before clipping."""

    epoch: int
    train_loss: float
    validation_loss: float
    learning_rate: float
    gradient_norm_mean: float
    gradient_norm_max: float
    clipped_share: float
    seconds: float


@dataclass
class History:
    """All epochs so far, and which was the best by validation loss."""

    epochs: list[EpochFigures] = field(default_factory=list)
    best_epoch: int = -1
    best_loss: float = math.inf
    stopped_early: bool = False


Progress = Callable[[EpochFigures], None]


def facts(**of: object) -> dict[str, str]:
    """What a run goes on from only where it is the same: as text, so that a checkpoint holds it and a message shows it."""
    return {name.replace("_", " "): json.dumps(msgspec.to_builtins(value)) for name, value in of.items()}


def facts_of(model: SequenceModel, train: Streams, target_scale: tuple[float, float] | None) -> dict[str, str]:
    """What the contract will say of the data, and what the weights take for granted."""
    assert model.config is not None
    return facts(
        **asdict(model.config),
        columns=train.features,
        **{f"feature {table.name!r}": table for table in train.feature_tables},
        normal=train.classes and train.normal is not None and train.classes[train.normal],
        scale_of_features=[model.mean.tolist(), model.std.tolist()],
        scale_of_labels=target_scale,
    )


class Loop:
    """One model, its optimiser and its history, epoch after epoch; what an epoch does, its subclasses say."""

    def __init__(self, model: nn.Module, task: str, options: FitOptions) -> None:
        options.check()
        self.model, self.task, self.options = model, task, options
        extra: dict[str, Any] = {"momentum": options.momentum} if options.optimiser == "sgd" else {}
        make: Any = OPTIMISERS[options.optimiser]
        self.optimiser: torch.optim.Optimizer = make(
            _groups(model, options.weight_decay),
            lr=options.learning_rate,
            **extra,
        )
        self.history = History()
        self.facts: dict[str, str] = {}
        """What weights mean: the data's classes, words and scales, and the model. ``restore`` wants the same."""
        self.best: dict[str, Tensor] = {}
        self.rate_factor = 1.0

    def run_epochs(
        self,
        epoch: Callable[[int], EpochFigures],
        *,
        progress: Progress | None = None,
        checkpoint: Path | None = None,
    ) -> History:
        """Train until the epochs are used up or patience is; the model ends with the best epoch's weights.

        ``checkpoint`` is written at the end of each epoch. ConfigurationError if the loss diverges.
        """
        while len(self.history.epochs) < self.options.epochs and not self.history.stopped_early:
            figures = epoch(len(self.history.epochs))
            self._remember(figures)
            if checkpoint is not None:
                self.save(checkpoint)
            if progress is not None:
                progress(figures)
        self.model.load_state_dict(self.best)
        self.model.eval()
        return self.history

    def save(self, path: Path) -> None:
        """Everything a bit-equal continuation needs, atomically."""
        document = {
            "format": 1,
            "task": self.task,
            "options": msgspec.structs.asdict(self.options),
            "facts": self.facts,
            "weights": self.model.state_dict(),
            "best": self.best,
            "optimiser": self.optimiser.state_dict(),
            "rate_factor": self.rate_factor,
            "history": asdict(self.history),
        }
        temporary = path.with_name(path.name + ".part")
        torch.save(document, temporary)
        os.replace(temporary, path)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint of the same task, options and facts (another number of epochs is allowed)."""
        try:
            document = torch.load(path, map_location="cpu", weights_only=True)
            options = dict(document["options"])
        except FileNotFoundError as error:
            raise ConfigurationError(f"nothing to resume: no checkpoint {path}") from error
        except Exception as error:  # what a damaged file provokes depends on where it is damaged
            raise ConfigurationError(f"{path} is not a checkpoint of a training: {error}") from error
        changed = [
            name
            for name, value in msgspec.structs.asdict(self.options).items()
            if name != "epochs" and options.get(name) != value
        ]
        if document["task"] != self.task or changed:
            raise ConfigurationError(f"{path} was made with other settings: {', '.join(changed) or 'task'}")
        known = document.get("facts", self.facts)  # those of an earlier version do not say
        others = [
            f"{name} {known.get(name, 'unknown')[:_SHOWN]} (now {value[:_SHOWN]})"
            for name, value in self.facts.items()
            if known.get(name) != value
        ]
        if others:
            raise ConfigurationError(
                f"{path} was made with other data or another model: {'; '.join(others)}: begin anew, without --resume"
            )
        try:
            self.model.load_state_dict(document["weights"])
        except RuntimeError as error:
            raise ConfigurationError(f"{path} was made with another model: {error}") from error
        try:
            self.optimiser.load_state_dict(document["optimiser"])
        except ValueError as error:
            raise ConfigurationError(f"{path} was made by another version of train: begin anew: {error}") from error
        self.best = dict(document["best"])
        self.rate_factor = float(document["rate_factor"])
        saved = dict(document["history"])
        self.history = History(**{**saved, "epochs": [EpochFigures(**row) for row in saved["epochs"]]})

    def _begin(self, epoch: int) -> np.random.Generator:
        """Everything random in an epoch follows from (seed, epoch)."""
        torch.manual_seed(self.options.seed * 1_000_003 + epoch)
        return np.random.default_rng([self.options.seed, epoch])

    def _figures(
        self, epoch: int, loss: float, held: float, rate: float, norms: Sequence[float], started: float
    ) -> EpochFigures:
        clip = self.options.clip_norm
        return EpochFigures(
            epoch,
            loss,
            held,
            rate,
            float(np.mean(norms)),
            float(np.max(norms)),
            float(np.mean([norm > clip for norm in norms])) if clip else 0.0,
            perf_counter() - started,
        )

    def _step(self, loss: Tensor) -> float:
        """One optimiser step; the gradient's norm before clipping."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        bound = self.options.clip_norm or math.inf
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), bound))
        if math.isfinite(norm):
            self.optimiser.step()
        return norm

    def _set_rate(self, epoch: int, share: float) -> float:
        rate = self.options.learning_rate * self.rate_factor
        if self.options.schedule == "cosine":
            through = min(1.0, (epoch + share) / self.options.epochs)
            rate *= 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * through))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        return rate

    def _check(self, loss: float, norm: float, epoch: int, batch: int) -> None:
        first = self.history.epochs[0].train_loss if self.history.epochs else math.inf
        if math.isfinite(loss) and math.isfinite(norm) and loss <= DIVERGED_TIMES * max(first, 1e-3):
            return
        raise ConfigurationError(
            f"the loss diverged in epoch {epoch + 1}, batch {batch} (loss {loss:.4g}, gradient norm {norm:.4g}): use a "
            f"smaller learning_rate (now {self.options.learning_rate:g}) or clip_norm (now {self.options.clip_norm:g})"
        )

    def _remember(self, figures: EpochFigures) -> None:
        history = self.history
        history.epochs.append(figures)
        if not math.isfinite(figures.validation_loss):
            self._check(figures.validation_loss, 0.0, figures.epoch, 0)
        if figures.validation_loss < history.best_loss or not self.best:
            history.best_loss, history.best_epoch = figures.validation_loss, figures.epoch
            self.best = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        waited = figures.epoch - history.best_epoch
        if self.options.schedule == "plateau" and waited and waited % max(1, self.options.patience // 2) == 0:
            self.rate_factor *= 0.5
        history.stopped_early = 0 < self.options.patience <= waited


class Trainer(Loop):
    """One sequence model; ``run`` trains on from wherever it is, and keeps the epoch of the best validation loss."""

    model: SequenceModel

    def __init__(
        self, model: SequenceModel, task: str, options: FitOptions, class_weights: Tensor | None = None
    ) -> None:
        """``class_weights`` [O]: what an event of each class counts, in training and in validation."""
        super().__init__(model, task, options)
        self.class_weights = class_weights

    def run(
        self,
        train: Source,
        validation: Sequence[Example],
        *,
        progress: Progress | None = None,
        checkpoint: Path | None = None,
    ) -> History:
        """As ``run_epochs``: the model ends with the weights of the epoch with the best validation loss."""
        return self.run_epochs(
            lambda epoch: self._epoch(train, validation, epoch), progress=progress, checkpoint=checkpoint
        )

    def _epoch(self, train: Source, validation: Sequence[Example], epoch: int) -> EpochFigures:
        started = perf_counter()
        rng = self._begin(epoch)
        sequences = train(rng) if callable(train) else train
        if self.model.mode == "step":
            sequences = segments(sequences, self.options.segment_steps, rng)
        if not sequences:
            raise ConfigurationError("too little data: nothing to train on")
        self.model.train()
        every = max(1, sum(len(e.x) for e in sequences))
        total, count, done, norms = 0.0, 0.0, 0, []
        carry = Carry(self.model, min(self.options.rows, len(sequences)))
        rate = self.options.learning_rate
        for chunk in self._plan(sequences, rng):
            rate = self._set_rate(epoch, done / every)
            states = carry.take(chunk) if self.model.mode == "step" else ()
            loss = chunk_loss(self.model, self.task, chunk, states, self.class_weights)
            value = float(loss.total.detach())
            if loss.count:
                norms.append(self._step(loss.total / loss.count))
                self._check(value / loss.count, norms[-1], epoch, len(norms))
            if self.model.mode == "step":
                carry.put(chunk, loss.states)
            total, count, done = total + value, count + loss.count, done + int(chunk.lengths.sum())
        if not norms:
            raise ConfigurationError("too little data: no event of the training part has a label that counts")
        self.model.eval()
        held = mean_loss(self.model, self.task, validation, self.class_weights)
        return self._figures(epoch, total / count if count else 0.0, held, rate, norms, started)

    def _plan(self, sequences: Sequence[Example], rng: np.random.Generator) -> Iterator[Chunk]:
        if self.model.mode == "window":
            return buckets(sequences, rows=self.options.rows, rng=rng, max_steps=self.options.batch_steps)
        order = [int(i) for i in rng.permutation(len(sequences))]
        return chunks(sequences, rows=self.options.rows, steps=self.options.steps, order=order)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Biases do not decay: they say where things are, not how much they matter."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
