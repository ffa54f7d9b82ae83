"""A model with what is kept per stream between its calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from streamer.core import F32, I32
from streamer.modelfile.contract import State
from streamer.modelfile.model import Model


class Carried:
    """What is kept per stream for a model: its states and, if it can generate, what it last gave for the feedback.

    NaN stands for "no output yet": outputs that are not finite never get this far."""

    def __init__(self, model: Model, beside: np.dtype[Any] | None = None) -> None:
        """``beside``: what is kept of a stream that the model does not see."""
        self.model, self.beside = model, beside
        feedback = model.contract.feedback if model.contract.mode == "step" else None
        self.states: tuple[State, ...] = tuple(model.states)
        self.initial = model.initial_states(1)
        self._own = len(self.states)
        self._output = -1
        if feedback is not None:
            self._output = [output.name for output in model.contract.outputs].index(feedback.output)
            size = model.contract.outputs[self._output].size
            self.states += (State("feedback", ("batch", size)),)
            self.initial = [*self.initial, np.full((1, size), np.nan, np.float32)]

    @property
    def bytes_per_stream(self) -> int:
        return sum(value.nbytes for value in self.initial) + (0 if self.beside is None else self.beside.itemsize)

    def run(self, x: F32, lengths: I32, states: Sequence[F32]) -> tuple[list[F32], list[F32]]:
        """``Model.run`` with the last output among the states."""
        if self._output < 0:
            return self.model.run(x, lengths, states)
        results, nexts = self.model.run(x, lengths, states[: self._own])
        return results, [*nexts, results[self._output][np.arange(len(x)), lengths - 1]]
