"""Training on pairs: batches of similar length, masking, scheduled sampling, and the best epoch by the real metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from streamer.errors import ConfigurationError

from ..data import by_length
from ..fit import EpochFigures, FitOptions, History, Loop, Progress
from .data import Sample
from .learners import Batch, Learner
from .sections import PairsSection

_MASKED_SHARE = 5
"""A mask takes at most one fifth of a sequence, as SpecAugment bounds it."""


class PairTrainer(Loop):
    """One model that writes sequences. ``validation_loss`` of its history is ``judge``'s error, decoded free-running."""

    def __init__(
        self, learner: Learner, task: str, options: FitOptions, section: PairsSection, neutral: Tensor
    ) -> None:
        """``neutral`` [F]: what stands where a step is masked (the mean of frames, the unknown of a text)."""
        super().__init__(learner.module, task, options)
        self.learner, self.section, self.neutral = learner, section, neutral

    def run(
        self,
        train: Sequence[Sample],
        judge: Callable[[], float],
        *,
        progress: Progress | None = None,
        checkpoint: Path | None = None,
    ) -> History:
        """As ``run_epochs``. ConfigurationError if there is no sample that the model could write."""
        if not train:
            raise ConfigurationError("too little data: nothing to train on")
        lengths = np.array([len(sample.x) for sample in train], np.int64)
        return self.run_epochs(
            lambda epoch: self._epoch(train, lengths, judge, epoch), progress=progress, checkpoint=checkpoint
        )

    def _epoch(
        self, train: Sequence[Sample], lengths: np.ndarray, judge: Callable[[], float], epoch: int
    ) -> EpochFigures:
        started, rng = perf_counter(), self._begin(epoch)
        self.model.train()
        own_share = self.section.sampling * epoch / max(1, self.options.epochs - 1)
        total, count, norms, rate, done = 0.0, 0, [], self.options.learning_rate, 0
        for group in by_length(lengths, rows=self.options.rows, rng=rng, max_steps=self.options.batch_steps):
            rate = self._set_rate(epoch, done / len(train))
            batch = self.masked(Batch.of([train[place] for place in group]), rng)
            loss, symbols = self.learner.loss(batch, own_share, self.section.label_smoothing)
            norms.append(self._step(loss / max(1, symbols)))
            value = float(loss.detach())
            self._check(value / max(1, symbols), norms[-1], epoch, len(norms))
            total, count, done = total + value, count + symbols, done + len(group)
        self.model.eval()
        return self._figures(epoch, total / max(1, count), judge(), rate, norms, started)

    def masked(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Some steps and some features neutral, one run of each per row (SpecAugment, Park et al. 2019)."""
        steps, features = self.section.mask_steps, self.section.mask_features
        if not steps and not features:
            return batch
        x = batch.x.clone()
        rows, longest, width = x.shape
        lengths = batch.lengths.numpy()
        for most, size, along in ((steps, lengths, longest), (features, np.full(rows, width), width)):
            runs = np.minimum(rng.integers(0, most + 1, rows), size // _MASKED_SHARE)
            first = rng.integers(0, np.maximum(1, size - runs + 1))
            place = np.arange(along)[None]
            hidden = torch.from_numpy((place >= first[:, None]) & (place < (first + runs)[:, None]))
            x = torch.where(hidden[:, :, None] if size is lengths else hidden[:, None, :], self.neutral, x)
        return Batch(x, batch.lengths, batch.y, batch.widths)
