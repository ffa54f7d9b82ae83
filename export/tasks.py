"""What a model is to learn: the target and the loss of each task, and the figures it is judged by.

| task          | target                        | loss                  | baseline           |
|---------------|-------------------------------|-----------------------|--------------------|
| forecast      | the next event                | squared error, scaled | the last event     |
| next_category | the next event's category     | nats                  | unigram            |
| next_set      | the next event's 0/1 features | nats over features    | marginal rates     |
| classify      | a label per event or window   | nats                  | the largest class  |
| regress       | a value per event or window   | squared error         | the mean           |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from torch import Tensor
from torch.nn import functional

from streamer.errors import ConfigurationError

from .config import TASKS
from .data import UNLABELLED, Chunk, Example, Streams, buckets, chunks
from .model import Forecaster, SequenceModel

__all__ = ["ACTIVATION", "TASKS", "Loss", "chunk_loss", "evaluate", "examples", "mean_loss", "passes", "scores"]

ACTIVATION = {"next_category": "softmax", "next_set": "sigmoid", "classify": "softmax"}
EVALUATION_STEPS = 512
EVALUATION_ROWS = 128


def examples(task: str, part: Streams, *, per_window: bool = False) -> list[Example]:
    """The sequences of a part with their targets. A stream too short to have one is left out.

    ``per_window``: the label of a window is that of its last event. Events without a label do not count, nor do those
    of a forecast that are not normal where ``part.normal`` says what is; they are seen all the same.
    """
    if task in ("classify", "regress") and part.labels is None:
        raise ConfigurationError(f"task {task} needs labels, the data has none")
    found = []
    marks = _counted(task, part)
    for i, x in enumerate(part.x):
        start, counted = part.counted_from[i], None if marks is None else marks[i]
        if task in ("forecast", "next_category", "next_set"):
            if len(x) >= 2:
                target: NDArray[Any] = x[1:, 0].astype(np.int64) if task == "next_category" else x[1:]
                found.append(Example(x[:-1], target, max(0, start - 1), None if counted is None else counted[1:]))
        elif part.labels is not None and len(x) >= 1:
            label = part.labels[i]
            if per_window and task == "regress" and np.isnan(label[-1]):
                continue
            if per_window:
                found.append(Example(x, np.asarray(label[-1]), start))
            else:
                found.append(Example(x, np.nan_to_num(label), start, counted))
    if not found:
        raise ConfigurationError(f"too little data: no stream is long enough for task {task}")
    if marks is not None and not any(e.counted is None or e.counted[e.counted_from :].any() for e in found):
        raise ConfigurationError("too little data: no event of this part has a label that counts")
    return found


def _counted(task: str, part: Streams) -> list[NDArray[np.bool_]] | None:
    """Which events of each stream count; None: all. A part without any label is taken as it is."""
    if part.labels is None or task not in ("forecast", "regress"):
        return None  # classify leaves out unlabelled events itself
    if task == "regress":
        return [~np.isnan(label) for label in part.labels] if any(np.isnan(y).any() for y in part.labels) else None
    if all((label == UNLABELLED).all() for label in part.labels):
        return None
    if part.normal is not None:
        return [label == part.normal for label in part.labels]
    return [label != UNLABELLED for label in part.labels]


@dataclass(slots=True)
class Loss:
    """A chunk's loss as a sum, so that chunks of any size add up, and what it is divided by."""

    total: Tensor
    count: float
    """Events (or windows) that count, each by its weight."""
    states: tuple[Tensor, ...]
    output: Tensor
    """What the loss was computed from: logits, values or the scaled forecast."""


def chunk_loss(
    model: SequenceModel, task: str, chunk: Chunk, states: Sequence[Tensor], class_weights: Tensor | None = None
) -> Loss:
    """Run one chunk from the given core states (none: initial) and compare with its targets.

    ``class_weights`` [O]: what an event of each class counts.
    """
    device = model.mean.device
    x = torch.from_numpy(chunk.x).to(device)
    ragged = bool((chunk.lengths != chunk.x.shape[1]).any())
    lengths = torch.from_numpy(chunk.lengths) if ragged else None
    target = torch.from_numpy(np.asarray(chunk.target)).to(device)
    weight = torch.from_numpy(chunk.counted).to(device)
    if task == "forecast":
        assert isinstance(model, Forecaster)
        output, next_states = model.predict(model.scale(x), lengths, states)
        loss = (output - model.scale(target)).square().mean(dim=-1)
        return Loss((loss * weight).sum(), int(weight.sum()), next_states, output)
    output, next_states = model.raw(x, lengths, *states)
    if model.reduce is not None:
        weight = weight.any(dim=1)
    if task in ("classify", "next_category"):
        weight = weight & (target != UNLABELLED)
        flat = functional.cross_entropy(
            output.flatten(0, -2), target.flatten(), ignore_index=UNLABELLED, reduction="none"
        )
        loss = flat.view(target.shape)
        if class_weights is not None:
            weight = weight * class_weights.to(device)[target.clamp(min=0)]
    elif task == "next_set":
        loss = functional.binary_cross_entropy_with_logits(output, target, reduction="none").sum(dim=-1)
    else:
        loss = (output.squeeze(-1) - target).square()
    return Loss((loss * weight).sum(), float(weight.sum()), next_states, output)


class Carry:
    """The states of the lanes from chunk to chunk, cut from the graph of the chunk before."""

    def __init__(self, model: SequenceModel, lanes: int) -> None:
        self.states = SequenceModel.initial_states(model, lanes)

    def take(self, chunk: Chunk) -> tuple[Tensor, ...]:
        lanes = torch.from_numpy(chunk.lanes)
        keep = torch.from_numpy(~chunk.fresh)[None, :, None].to(self.states[0].device)
        return tuple(state[:, lanes] * keep for state in self.states)

    def put(self, chunk: Chunk, states: Sequence[Tensor]) -> None:
        lanes = torch.from_numpy(chunk.lanes)
        for mine, new in zip(self.states, states, strict=True):
            mine[:, lanes] = new.detach()


def passes(
    model: SequenceModel, sequences: Sequence[Example], *, rows: int = EVALUATION_ROWS, steps: int = EVALUATION_STEPS
) -> Iterator[tuple[Chunk, tuple[Tensor, ...], Carry]]:
    """Chunks of an evaluation with the states they start from; the caller puts the next states back."""
    carry = Carry(model, min(rows, len(sequences)))
    by_length = sorted(range(len(sequences)), key=lambda i: -len(sequences[i].x))
    stepwise = model.mode == "step"
    plan = (
        chunks(sequences, rows=rows, steps=steps, order=by_length)
        if stepwise
        else buckets(sequences, rows=rows, rng=None, max_steps=rows * steps)
    )
    for chunk in plan:
        yield chunk, carry.take(chunk) if stepwise else (), carry


def mean_loss(
    model: SequenceModel, task: str, sequences: Sequence[Example], class_weights: Tensor | None = None
) -> float:
    """Loss per counted event (or window) over all sequences, without training."""
    total, count = 0.0, 0.0
    with torch.no_grad():
        for chunk, states, carry in passes(model, sequences):
            loss = chunk_loss(model, task, chunk, states, class_weights)
            total, count = total + float(loss.total), count + loss.count
            if model.mode == "step":
                carry.put(chunk, loss.states)
    return total / count if count else 0.0


def evaluate(model: SequenceModel, task: str, part: Streams, train: Streams) -> dict[str, float]:
    """The task's figures on a part, beside the baseline that the training part gives (``baseline_...``)."""
    model.eval()
    sequences = examples(task, part, per_window=model.reduce is not None)
    if task == "forecast":
        assert isinstance(model, Forecaster)
        return _judge_forecast(model, sequences, part)
    outputs, targets = _collect(model, task, sequences)
    learnt = targets_of(examples(task, train, per_window=model.reduce is not None))
    if task == "regress":
        return {
            "loss": float(np.mean((outputs[:, 0] - targets) ** 2)),
            "baseline_loss": float(np.mean((learnt.mean() - targets) ** 2)),
        }
    if task == "next_set":
        return _judge_sets(outputs, targets, learnt)
    return _judge_classes(task, outputs, targets, learnt)


def targets_of(sequences: Sequence[Example]) -> NDArray[Any]:
    """The targets that count, of all sequences."""
    found = []
    for example in sequences:
        target = np.atleast_1d(example.target)
        if example.target.ndim:
            counts = np.arange(len(target)) >= example.counted_from
            target = target[counts if example.counted is None else counts & example.counted]
        found.append(target)
    return np.concatenate(found)


def fit_residual_scale(model: Forecaster, sequences: Sequence[Example], *, floor: float = 1e-2) -> None:
    """Set ``residual_scale`` to the root mean square of each feature's residual over the training events.

    ``floor`` (in standard deviations) keeps a feature that never moved in training from drowning all others.
    """
    total = torch.zeros(model.features, dtype=torch.float64)
    count = 0
    with torch.no_grad():
        for chunk, states, carry in passes(model, sequences):
            loss = chunk_loss(model, "forecast", chunk, states)
            carry.put(chunk, loss.states)
            target = model.scale(torch.from_numpy(np.asarray(chunk.target, np.float32)).to(loss.output.device))
            squared = (loss.output - target).square()[torch.from_numpy(chunk.counted).to(loss.output.device)]
            total += squared.sum(dim=0).double().cpu()
            count += len(squared)
        model.residual_scale.copy_((total / max(1, count)).sqrt().clamp(min=floor))


def scores(model: Forecaster, part: Streams) -> list[NDArray[np.float32]]:
    """The residual score of every event [T], per stream of the part, the state carried from the stream's start."""
    sequences = [Example(x, np.zeros(len(x), np.int64)) for x in part.x]
    found = [np.zeros(len(x), np.float32) for x in part.x]
    lanes = min(EVALUATION_ROWS, len(sequences))
    previous = torch.zeros(lanes, model.features + 1, device=model.mean.device)
    with torch.no_grad():
        for chunk, states, carry in passes(model, sequences):
            where = torch.from_numpy(chunk.lanes)
            seen = previous[where] * torch.from_numpy(~chunk.fresh)[:, None].to(previous)
            lengths = torch.from_numpy(chunk.lengths)
            outputs, last = model(torch.from_numpy(chunk.x).to(previous), lengths, *states, seen)
            carry.put(chunk, last[:-1])
            previous[where] = last[-1]
            values = outputs["score"][..., 0].cpu().numpy()
            for row, (index, start) in enumerate(zip(chunk.examples, chunk.starts, strict=True)):
                length = int(chunk.lengths[row])
                found[index][start : start + length] = values[row, :length]
    return found


def _judge_forecast(model: Forecaster, sequences: Sequence[Example], part: Streams) -> dict[str, float]:
    last_value, count = 0.0, 0
    std = model.std.cpu().numpy()
    for example in sequences:
        counts = np.arange(len(example.x)) >= example.counted_from
        counts = counts if example.counted is None else counts & example.counted
        change = (np.asarray(example.target, np.float32) - example.x)[counts] / std
        last_value, count = last_value + float(np.square(change).mean(axis=1).sum()), count + len(change)
    figures = {"loss": mean_loss(model, "forecast", sequences), "baseline_loss": last_value / max(1, count)}
    if part.labels is not None and part.classes is not None:
        figures |= _judge_scores(scores(model, part), part)
    return figures


def anomalies(part: Streams) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Per stream: [T] events that are judged (they have a label), and [T] those that are anomalies."""
    assert part.labels is not None
    normal = part.normal or 0
    found = []
    for label, start in zip(part.labels, part.counted_from, strict=True):
        found.append(((label != UNLABELLED) & (np.arange(len(label)) >= start), label != normal))
    return found


def _judge_scores(found: Sequence[NDArray[np.float32]], part: Streams) -> dict[str, float]:
    """How well the scores tell anomalies from normal events; {} where the labels are all of one kind."""
    per_stream, values, truths = [], [], []
    for score, (judged, anomaly) in zip(found, anomalies(part), strict=True):
        value, truth = score[judged], anomaly[judged]
        values.append(value)
        truths.append(truth)
        if truth.any() and not truth.all():
            per_stream.append(float(roc_auc_score(truth, value)))
    truth, value = np.concatenate(truths), np.concatenate(values)
    if not truth.any() or truth.all():
        return {}
    figures = {"auc": float(roc_auc_score(truth, value))}
    if per_stream:
        figures["auc_mean_of_streams"] = float(np.mean(per_stream))
    return {
        **figures,
        "average_precision": float(average_precision_score(truth, value)),
        "baseline_average_precision": float(truth.mean()),
    }


def _collect(model: SequenceModel, task: str, sequences: Sequence[Example]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Raw outputs [N, O] and targets of all counted events (or windows)."""
    outputs, targets = [], []
    with torch.no_grad():
        for chunk, states, carry in passes(model, sequences):
            loss = chunk_loss(model, task, chunk, states)
            if model.mode == "step":
                carry.put(chunk, loss.states)
            keep = chunk.counted if model.reduce is None else chunk.counted.any(axis=1)
            outputs.append(loss.output.cpu().numpy()[keep])
            targets.append(np.asarray(chunk.target)[keep])
    return np.concatenate(outputs), np.concatenate(targets)


def _judge_classes(task: str, logits: NDArray[Any], targets: NDArray[Any], learnt: NDArray[Any]) -> dict[str, float]:
    known = targets != UNLABELLED
    if not known.any():
        raise ConfigurationError("nothing to judge: no event of this part has a label")
    logits, targets = logits[known].astype(np.float64), targets[known]
    counts = (
        np.bincount(learnt[learnt != UNLABELLED], minlength=logits.shape[1]) + 1.0
    )  # unseen is rare, not impossible
    shifted = logits - logits.max(axis=1, keepdims=True)
    nats = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(targets)), targets]
    guess = logits.argmax(axis=1)
    figures = {
        "loss": float(nats.mean()),
        "baseline_loss": float(-np.log(counts / counts.sum())[targets].mean()),
        "accuracy": float((guess == targets).mean()),
        "baseline_accuracy": float((targets == counts.argmax()).mean()),
    }
    if task == "classify":
        figures["f1_macro"] = _f1_macro(targets, guess)
        figures["baseline_f1_macro"] = _f1_macro(targets, np.full_like(targets, counts.argmax()))
    return figures


def _f1_macro(targets: NDArray[Any], guess: NDArray[Any]) -> float:
    return float(f1_score(targets, guess, average="macro", zero_division=0.0))


def _judge_sets(logits: NDArray[Any], targets: NDArray[Any], learnt: NDArray[Any]) -> dict[str, float]:
    rates = (learnt.sum(axis=0) + 0.5) / (len(learnt) + 1.0)
    unigram = -(targets * np.log(rates) + (1 - targets) * np.log(1 - rates)).sum(axis=1).mean()
    nats = (np.logaddexp(0.0, logits.astype(np.float64)) - targets * logits).sum(axis=1).mean()
    guess = (logits > 0).astype(np.int64)
    return {
        "loss": float(nats),
        "baseline_loss": float(unigram),
        "f1": float(f1_score(targets.astype(np.int64), guess, average="micro", zero_division=0.0)),
    }
