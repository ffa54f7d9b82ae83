"""The two kinds of models that write sequences: what each loses on a batch, and what each writes by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..data import F32, I64, by_length
from ..encdec.module import END, EncoderDecoder
from ..model import SequenceModel
from .data import Sample

NOTHING = -100
"""Padding of targets, which losses leave out."""
_WRITE_ROWS = 256


@dataclass(frozen=True)
class Batch:
    """x[B,T,F] and lengths[B] of the sources, y[B,U] and widths[B] of the targets."""

    x: Tensor
    lengths: Tensor
    y: Tensor
    widths: Tensor

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Batch:
        x, lengths = padded([sample.x for sample in samples])
        widths = torch.tensor([len(sample.y) for sample in samples])
        y = torch.full((len(samples), max(1, int(widths.max()))), NOTHING)
        for row, sample in enumerate(samples):
            y[row, : len(sample.y)] = torch.from_numpy(sample.y)
        return cls(x, lengths, y, widths)


class Learner(Protocol):
    """What the training loop needs of a model."""

    @property
    def module(self) -> nn.Module: ...

    def fits(self, sample: Sample) -> bool:
        """Whether the model could write the sample's target at all."""

    def loss(self, batch: Batch, own_share: float, smoothing: float) -> tuple[Tensor, int]:
        """(sum of the loss in nats, symbols). ``own_share``: how often a step is given the model's own last symbol."""

    def write(self, x: Tensor, lengths: Tensor) -> list[list[int]]:
        """Symbols for each row, free-running: nothing of the truth is given."""


class CtcLearner:
    """A sequence model with a label per step, symbol 0 being the blank (Graves et al. 2006)."""

    def __init__(self, module: SequenceModel) -> None:
        self.module = module
        module.trains_over_padding = True

    def fits(self, sample: Sample) -> bool:
        """Two equal symbols need a blank between them, and every symbol a step of its own."""
        return len(sample.y) + int(np.sum(sample.y[1:] == sample.y[:-1])) <= len(sample.x)

    def loss(self, batch: Batch, own_share: float, smoothing: float) -> tuple[Tensor, int]:
        logits, _ = self.module.raw(batch.x, batch.lengths)
        log_probs = torch.log_softmax(logits, dim=-1).transpose(0, 1)
        total = functional.ctc_loss(
            log_probs, batch.y.clamp(min=0), batch.lengths, batch.widths, blank=0, reduction="sum"
        )
        return total, int(batch.widths.sum())

    def write(self, x: Tensor, lengths: Tensor) -> list[list[int]]:
        rows = zip(self.likeliest(x, lengths), lengths.tolist(), strict=True)
        return [collapse(row[:length]) for row, length in rows]

    def likeliest(self, x: Tensor, lengths: Tensor) -> I64:
        """[B, T] the label of each step."""
        with torch.no_grad():
            best: I64 = self.module.raw(x, lengths)[0].argmax(dim=-1).numpy()
        return best


class PairLearner:
    """An encoder and its decoder: every symbol is given those before it (teacher forcing)."""

    def __init__(self, module: EncoderDecoder) -> None:
        self.module = module

    def fits(self, sample: Sample) -> bool:
        return len(sample.x) > 0 and len(sample.y) < self.module.config.max_steps

    def loss(self, batch: Batch, own_share: float, smoothing: float) -> tuple[Tensor, int]:
        rows = len(batch.y)
        given = torch.cat((torch.full((rows, 1), END), batch.y.masked_fill(batch.y == NOTHING, END)), dim=1)
        wanted = torch.cat((batch.y, torch.full((rows, 1), NOTHING)), dim=1)
        wanted[torch.arange(rows), batch.widths] = END
        forced = own_share == 0
        log_probs = self.module(batch.x, batch.lengths, given) if forced else self._sampled(batch, given, own_share)
        total = functional.cross_entropy(
            log_probs.flatten(0, 1), wanted.flatten(), ignore_index=NOTHING, reduction="sum", label_smoothing=smoothing
        )
        return total, int(batch.widths.sum()) + rows

    def write(self, x: Tensor, lengths: Tensor) -> list[list[int]]:
        return self.module.greedy(x, lengths)[0]

    def _sampled(self, batch: Batch, given: Tensor, own_share: float) -> Tensor:
        """log_probs[B,U,V] where each step is given the model's own last symbol by chance (Bengio et al. 2015)."""
        memory, states = self.module.encoder(batch.x, batch.lengths)
        symbol, found = given[:, 0], []
        for step in range(given.shape[1]):
            log_probs, states = self.module.decoder(symbol, states, memory, batch.lengths)
            found.append(log_probs)
            if step + 1 < given.shape[1]:
                own = torch.rand(len(given)) < own_share
                symbol = torch.where(own, log_probs.detach().argmax(dim=-1), given[:, step + 1])
        return torch.stack(found, dim=1)


def collapse(best: Sequence[int]) -> list[int]:
    """Greedy CTC: the likeliest label of each step without repetitions, then without blanks (0)."""
    labels = np.asarray(best)
    return [int(label) for label in labels[appearing(labels)]]


def appearing(labels: I64) -> I64:
    """The steps at which a symbol appears, of the likeliest label [T] of each."""
    new = np.ones(len(labels), bool)
    new[1:] = labels[1:] != labels[:-1]
    return np.flatnonzero(new & (labels != 0))


def padded(xs: Sequence[F32]) -> tuple[Tensor, Tensor]:
    """x[B,T,F], zero beyond a row's length, and lengths[B]."""
    lengths = torch.tensor([len(x) for x in xs])
    x = torch.zeros(len(xs), int(lengths.max()), xs[0].shape[1])
    for row, each in enumerate(xs):
        x[row, : len(each)] = torch.from_numpy(each)
    return x, lengths


def write_all(learner: Learner, xs: Sequence[F32]) -> list[list[int]]:
    """Symbols for every source, in its order, decoded in batches of similar length; [] for an empty source."""
    found: list[list[int]] = [[] for _ in xs]
    places = [place for place, x in enumerate(xs) if len(x)]
    learner.module.eval()
    if not places:
        return found
    for group in by_length(np.array([len(xs[place]) for place in places]), rows=_WRITE_ROWS, rng=None):
        members = [places[at] for at in group]
        for place, row in zip(members, learner.write(*padded([xs[place] for place in members])), strict=True):
            found[place] = row
    return found
