"""Training to the end of what it brings: an equal budget of updates, the learning rate chosen on validation.

All rates and seeds of a variant are trained as one stack of models (see ``stacked``). A model leaves the stack when its
validation score has stopped improving.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from streamer.errors import ConfigurationError

from ..data import UNLABELLED, Chunk, Example, Split, buckets, chunks, segments
from ..fit import FitOptions
from ..model import Forecaster, SequenceModel
from ..tasks import EVALUATION_ROWS, EVALUATION_STEPS, evaluate, examples, fit_residual_scale
from ..train import TrainConfig, make_model, train_seed
from .stacked import Stack, States

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Of Adam, as in torch."""


PLATEAU = 0.8
"""A model above this share of guessing has hardly begun to learn: it may use the whole budget, since some tasks are
learnt all at once after a long time without any gain."""


@dataclass(frozen=True)
class Budget:
    """How long every variant of a case may learn, and when one is done."""

    updates: int
    every: int
    """Updates between two validations."""
    patience: int
    """Validations without a gain after which a model that has learnt something is done."""
    gain: float = 0.005
    """Share of the score of guessing that a validation score has to fall by to count as a gain."""


@dataclass
class Run:
    """One training: a seed at a learning rate."""

    seed: int
    rate: float
    best: float = math.inf
    """Best validation score, and after how many updates."""
    best_update: int = 0
    updates: int = 0
    stopped: str = "budget"
    """budget | no gain | diverged"""
    curve: list[tuple[int, float]] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    """On the test part, with the weights of the best validation score."""
    model: SequenceModel | None = None


Advance = Callable[[int], None]
"""Called with the number of updates that are behind all models of a stack since the last call."""


def rates_then_seeds(
    config: TrainConfig,
    make: Callable[[int], Split],
    seeds: Sequence[int],
    rates: Sequence[float],
    budget: Budget | None,
    *,
    rate_seeds: int,
    guess: float | None = None,
    advance: Advance = lambda updates: None,
) -> tuple[float, dict[float, float], list[Run]]:
    """(learning rate chosen, rate -> mean validation score, the runs of all seeds at the rate chosen).

    The first ``rate_seeds`` seeds choose among the rates with the whole budget, the others see only what was chosen.
    Without a budget each model is trained as the command ``train`` does, for the epochs of the configuration.
    """
    splits = {seed: make(seed) for seed in seeds}

    def trained(members: Sequence[tuple[int, float]]) -> list[Run]:
        if budget is None:
            return [_as_train_does(config, splits[seed], seed, rate) for seed, rate in members]
        return train_stack(config, splits, members, budget, guess=guess, advance=advance)

    first = trained([(seed, rate) for rate in rates for seed in seeds[:rate_seeds]])
    found = {rate: float(np.mean([run.best for run in first if run.rate == rate])) for rate in rates}
    chosen = min(found, key=lambda rate: found[rate])
    if not math.isfinite(found[chosen]):
        raise ConfigurationError(f"every learning rate diverged ({', '.join(map(str, rates))}): try smaller ones")
    rest = trained([(seed, chosen) for seed in seeds[rate_seeds:]]) if seeds[rate_seeds:] else []
    runs = [run for run in first if run.rate == chosen] + rest
    for run in runs:
        if run.model is None:
            raise ConfigurationError(f"{config.name}: seed {run.seed} diverged at the rate {chosen:g} that others kept")
        if not run.figures:
            run.figures = judged(config, run.model, splits[run.seed])
    return chosen, found, runs


def judged(config: TrainConfig, model: SequenceModel, split: Split) -> dict[str, float]:
    """The task's figures on the test part."""
    if isinstance(model, Forecaster):
        fit_residual_scale(model, examples(config.task, split.train))
    return evaluate(model, config.task, split.test, split.train)


def train_stack(
    config: TrainConfig,
    splits: Mapping[int, Split],
    members: Sequence[tuple[int, float]],
    budget: Budget,
    *,
    guess: float | None = None,
    advance: Advance = lambda updates: None,
) -> list[Run]:
    """Train (seed, rate) members as one stack; each ends with its best weights by validation.

    ``guess``: what the trivial answer scores, where that is known (else it is estimated).
    """
    runs = [Run(seed, rate) for seed, rate in members]
    seeds = list(dict.fromkeys(seed for seed, _ in members))
    stack = Stack([fresh(config, splits[seed], seed) for seed, _ in members])
    feed = Feed(config, {seed: splits[seed] for seed in seeds})
    state = _Adam(stack, torch.tensor([rate for _, rate in members]), config.training.clip_norm)
    best, alive = stack.theta.detach().clone(), list(range(len(runs)))
    guess = guessing(config, splits[seeds[0]]) if guess is None else guess
    done = 0
    while alive and done < budget.updates:
        for _ in range(min(budget.every, budget.updates - done)):
            loss, carried = feed.loss([seeds.index(runs[i].seed) for i in alive], stack)
            state.step(loss)
            feed.carry(carried)
            done += 1
        scores = feed.validation([seeds.index(runs[i].seed) for i in alive], stack)
        places = []
        for place, (i, score) in enumerate(zip(alive, scores, strict=True)):
            run = runs[i]
            run.updates = done
            run.curve.append((done, score))
            if not math.isfinite(score) or state.diverged[place]:
                run.stopped = "diverged"
                continue
            if score < run.best:
                best[i] = stack.theta.detach()[place]
                if score < run.best - budget.gain * guess:
                    run.best_update = done
                run.best = score
            learnt = run.best < PLATEAU * guess
            if learnt and done - run.best_update >= budget.patience * budget.every:
                run.stopped = "no gain"
                continue
            places.append(place)
        advance(budget.every if places else budget.updates - done + budget.every)
        if len(places) < len(alive):
            kept = torch.tensor(places, dtype=torch.int64)
            stack.keep(kept)
            state.keep(kept)
            feed.keep(kept)
            alive = [alive[place] for place in places]
    made = Stack([fresh(config, splits[seed], seed) for seed, _ in members])
    for i, run in enumerate(runs):
        if run.stopped != "diverged":
            run.model = made.model(i, best[i])
        else:
            run.best = math.inf
    return runs


def fresh(config: TrainConfig, split: Split, seed: int) -> SequenceModel:
    """A new model of this seed, scaled by the training part."""
    torch.manual_seed(seed)
    return make_model(config, split.train)


def guessing(config: TrainConfig, split: Split) -> float:
    """Roughly what the task's trivial answer scores on validation: the scale that gains are measured in."""
    held = examples(config.task, split.validation, per_window=config.model.reduce is not None)
    if config.task == "forecast":
        std = split.train.x[0].std(axis=0)
        return float(np.mean([np.square((np.asarray(e.target, np.float32) - e.x) / std).mean() for e in held[:50]]))
    targets = np.concatenate([np.atleast_1d(e.target) for e in held])
    if config.task == "regress":
        return float(targets.var())
    shares = np.bincount(targets[targets != UNLABELLED].astype(np.int64)) / len(targets)
    return float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())


class _Adam:
    """Adam with a learning rate and a clipped gradient norm per model of the stack."""

    def __init__(self, stack: Stack, rates: Tensor, clip: float) -> None:
        self.stack, self.rates, self.clip = stack, rates, clip
        self.first, self.second = torch.zeros_like(stack.theta), torch.zeros_like(stack.theta)
        self.steps = 0
        self.diverged = torch.zeros(len(stack), dtype=torch.bool)

    def step(self, loss: Tensor) -> None:
        """One update; a model whose gradient is no number stays where it is and is marked."""
        theta = self.stack.theta
        (gradient,) = torch.autograd.grad(loss.sum(), theta)
        norm = gradient.norm(dim=1)
        self.diverged |= ~torch.isfinite(norm)
        if self.diverged.any():
            gradient = gradient.masked_fill(self.diverged[:, None], 0.0)
        if self.clip:
            gradient = gradient * (self.clip / (norm.nan_to_num() + 1e-6)).clamp(max=1.0)[:, None]
        self.steps += 1
        self.first.lerp_(gradient, 1 - BETAS[0])
        self.second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        size = self.rates / (1 - BETAS[0] ** self.steps)
        root = (self.second / (1 - BETAS[1] ** self.steps)).sqrt_().add_(EPSILON)
        with torch.no_grad():
            theta -= size[:, None] * self.first / root

    def keep(self, indices: Tensor) -> None:
        self.rates, self.first, self.second, self.diverged = (
            value[indices] for value in (self.rates, self.first, self.second, self.diverged)
        )


class Feed:
    """The batches of several seeds beside each other; the models of one seed see the same ones in the same order."""

    def __init__(self, config: TrainConfig, splits: Mapping[int, Split]) -> None:
        self.config, self.windows = config, config.model.reduce is not None
        self.stepwise = not self.windows and config.model.directions == 1
        self.sources = [self._endless(split, seed) for seed, split in splits.items()]
        self.held = [self._held(split) for split in splits.values()]
        self.states: States | None = None
        self.lanes = torch.zeros(0, 0, dtype=torch.int64)

    def loss(self, which: Sequence[int], stack: Stack) -> tuple[Tensor, States]:
        """The next batch's loss [M] per counted event (or window) of each model, of the seeds of these numbers."""
        batch = [next(source) for source in self.sources]
        self.lanes = _padded([chunk.lanes for chunk in batch], fill=self.config.training.rows)[list(which)]
        states = self._take(stack, _padded([chunk.fresh for chunk in batch], fill=True)[list(which)])
        total, number, after = _loss(self.config.task, stack, batch, which, states)
        return total / number.clamp(min=1), after

    def carry(self, states: States) -> None:
        """What the next pieces of the same streams start from."""
        if self.stepwise and self.states is not None:
            for mine, new in zip(self.states, states, strict=True):
                index = self.lanes[None, :, :, None].expand_as(new)
                mine.scatter_(2, index, new.detach())

    def keep(self, indices: Tensor) -> None:
        """Forget the states of all other models."""
        if self.states is not None:
            self.states = tuple(state[:, indices] for state in self.states)

    def validation(self, which: Sequence[int], stack: Stack) -> list[float]:
        """Validation score of every model."""
        total, number = torch.zeros(len(which)), torch.zeros(len(which))
        states: States | None = None
        with torch.no_grad():
            for batch in zip(*self.held, strict=True):
                rows = max(len(chunk.lanes) for chunk in batch)
                if not self.stepwise or states is None or batch[0].fresh.all():
                    states = stack.initial_states(rows)
                more, counted, states = _loss(self.config.task, stack, batch, which, states)
                total, number = total + more, number + counted
        return [float(value) for value in total / number.clamp(min=1)]

    def _endless(self, split: Split, seed: int) -> Iterator[Chunk]:
        training = self.config.training
        sequences = examples(self.config.task, split.train, per_window=self.windows)
        for epoch in count():
            rng = np.random.default_rng([seed, epoch])
            if not self.stepwise:
                yield from buckets(sequences, rows=training.rows, rng=rng)
                continue
            pieces: Sequence[Example] = segments(sequences, training.segment_steps, rng)
            order = [int(i) for i in rng.permutation(len(pieces))]
            yield from chunks(pieces, rows=training.rows, steps=training.steps, order=order)

    def _held(self, split: Split) -> list[Chunk]:
        """Validation in batches whose rows all start and go on together, so that states need no lanes."""
        sequences = examples(self.config.task, split.validation, per_window=self.windows)
        if not self.stepwise:
            return list(buckets(sequences, rows=EVALUATION_ROWS, rng=None))
        order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i].x))
        groups = [order[a : a + EVALUATION_ROWS] for a in range(0, len(order), EVALUATION_ROWS)]
        plan: list[Chunk] = []
        for group in groups:
            some = [sequences[i] for i in group]
            if len({len(example.x) for example in some}) > 1:
                raise ConfigurationError("a stacked training needs validation streams of one length")
            plan.extend(chunks(some, rows=EVALUATION_ROWS, steps=EVALUATION_STEPS))
        return plan

    def _take(self, stack: Stack, fresh: Tensor) -> States:
        rows = self.lanes.shape[1]
        if not self.stepwise:
            return stack.initial_states(rows)
        if self.states is None:
            self.states = stack.initial_states(self.config.training.rows + 1)  # one more lane for rows that are padding
        index = self.lanes[None, :, :, None]
        keep = ~fresh[None, :, :, None]
        return tuple(s.gather(2, index.expand(s.shape[0], -1, -1, s.shape[3])) * keep for s in self.states)


def _loss(
    task: str, stack: Stack, batch: Sequence[Chunk], which: Sequence[int], states: States
) -> tuple[Tensor, Tensor, States]:
    """Sum of the losses [M], number of what was counted [M], next states."""
    pick = torch.tensor(list(which))
    x = _padded([chunk.x for chunk in batch])[pick]
    target = _padded([chunk.target for chunk in batch])[pick]
    weight = _padded([chunk.counted for chunk in batch])[pick]
    output, after = stack.forward(x, states)
    if task == "forecast":
        loss = (output - stack.scale(target)).square().mean(dim=-1)
    else:
        if output.dim() == target.dim() + 1 and target.dim() == 2:
            weight = weight.any(dim=2)
        if task == "regress":
            loss = (output.squeeze(-1) - target).square()
        elif task == "next_set":
            loss = functional.binary_cross_entropy_with_logits(output, target, reduction="none").sum(dim=-1)
        else:
            weight = weight & (target != UNLABELLED)
            flat = functional.cross_entropy(
                output.flatten(0, -2), target.flatten(), ignore_index=UNLABELLED, reduction="none"
            )
            loss = flat.view(target.shape)
    return (loss * weight).flatten(1).sum(dim=1), weight.flatten(1).sum(dim=1), after


def _padded(parts: Sequence[np.ndarray], fill: float = 0) -> Tensor:
    """Arrays that may differ in size along each axis, as one tensor with a new first axis."""
    if all(part.shape == parts[0].shape for part in parts):
        return torch.from_numpy(np.stack(parts))
    shape = np.max([part.shape for part in parts], axis=0)
    made = np.full((len(parts), *shape), fill, parts[0].dtype)
    for row, part in zip(made, parts, strict=True):
        row[tuple(slice(size) for size in part.shape)] = part
    return torch.from_numpy(made)


def _as_train_does(config: TrainConfig, split: Split, seed: int, rate: float) -> Run:
    """One model by the loop of the command ``train``, with all that the configuration says."""
    training = msgspec.structs.replace(config.training, learning_rate=rate)
    FitOptions(**msgspec.structs.asdict(training)).check()
    run = Run(seed, rate)
    try:
        trained = train_seed(msgspec.structs.replace(config, training=training), split, seed, out=None)
    except ConfigurationError as error:
        if "diverged" not in str(error):
            raise
        run.stopped = "diverged"
        return run
    history = trained.history
    run.model, run.best, run.figures = trained.model, history.best_loss, trained.figures["test"]
    run.updates, run.best_update = len(history.epochs), history.best_epoch + 1
    run.curve = [(row.epoch + 1, row.validation_loss) for row in history.epochs]
    run.stopped = "no gain" if history.stopped_early else "budget"
    return run
