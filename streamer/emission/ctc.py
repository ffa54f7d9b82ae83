"""Greedy collapse of connectionist temporal classification: of the likeliest label per step, repeats are one symbol and
the blank is none.

Letters for shapes: B rows, T steps, O labels. Nothing depends on how a sequence is cut into calls: what a step adds depends on
the label before it, and the score is summed step by step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamer.core import F32, I32, I64, Flags, Spelled
from streamer.modelfile.emit import Emit

F64 = NDArray[np.float64]

_LEAST = 1e-38
"""Of a probability whose logarithm is taken: rounding may give zero."""


@dataclass(frozen=True, slots=True)
class Collapsed:
    """One call of B rows of up to T steps."""

    labels: I64
    """[B, T] likeliest label of each step"""
    emitted: Flags
    """[B, T] steps that bring a symbol"""
    gains: F64
    """[B, T] what each step adds to the score: the logarithm of its label's probability"""

    def scores(self, score: F64) -> F64:
        """[B, T] up to and with each step; ``score`` [B]: before the first. Summed in order, one by one."""
        sums: F64 = np.add.accumulate(np.concatenate([score[:, None], self.gains], axis=1), axis=1)[:, 1:]
        return sums


def collapse(emit: Emit, y: F32, lengths: I32, before: I64) -> Collapsed:
    """``y`` [B, T, O]; row b has ``lengths[b]`` steps. ``before`` [B]: the label before the first step, -1: none."""
    labels: I64 = y.argmax(axis=2)
    gains = np.ascontiguousarray(np.take_along_axis(y, labels[:, :, None], axis=2)[:, :, 0], np.float64)
    if emit.scale == "probability":
        gains = np.log(np.maximum(gains, _LEAST))
    previous = np.concatenate([before[:, None], labels[:, :-1]], axis=1)
    emitted: Flags = (np.arange(y.shape[1]) < lengths[:, None]) & (labels != emit.blank) & (labels != previous)
    return Collapsed(labels, emitted, gains)


def spelled(emit: Emit, y: F32) -> Spelled:
    """Of one closed sequence ``y`` [T, O], T >= 1."""
    found = collapse(emit, y[None], np.array([len(y)], np.int32), np.array([-1]))
    steps = np.flatnonzero(found.emitted[0])
    return Spelled(found.labels[0, steps].tolist(), steps.tolist(), float(found.scores(np.zeros(1))[0, -1]))
