"""A model with what is kept per stream between its calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from streamer.core import F32, I32, I64, X
from streamer.errors import ConfigurationError
from streamer.modelfile.model import Model
from streamer.modelfile.parts import State
from streamer.modelfile.past import Past


class Carried:
    """What is kept per stream for a model: its states, the past of its features, and, if it can generate, what it last gave
    for the feedback.

    NaN stands for "no output yet": outputs that are not finite never get this far."""

    def __init__(self, model: Model, past: Past | None = None, beside: np.dtype[Any] | None = None) -> None:
        """``past``: of features that records do not have. ConfigurationError: such a model cannot generate. ``beside``: what
        is kept of a stream that the model does not see."""
        self.model, self.past, self.beside = model, past, beside
        feedback = model.contract.feedback if model.contract.mode == "step" else None
        self.states: tuple[State, ...] = tuple(model.states)
        self.initial: list[X] = list(model.initial_states(1))
        self._own = len(self.states)
        if past is not None:
            if feedback is not None:
                raise ConfigurationError(
                    f"model {model.contract.name!r} generates (feedback), and has features that are made from the stream's "
                    "past, which events that it makes up have not: leave feedback out of its contract, or let records have "
                    "these numbers ([input.fields])"
                )
            self.states += (State(past.name, ("batch", past.width)),)
            self.initial = [*self.initial, past.initial]
        self._output = -1
        if feedback is not None:
            self._output = [output.name for output in model.contract.outputs].index(feedback.output)
            size = model.contract.outputs[self._output].size
            self.states += (State("feedback", ("batch", size)),)
            self.initial = [*self.initial, np.full((1, size), np.nan, np.float32)]

    @property
    def bytes_per_stream(self) -> int:
        return sum(value.nbytes for value in self.initial) + (0 if self.beside is None else self.beside.itemsize)

    def run(self, x: X, lengths: I32, states: Sequence[X], times_ms: I64 | None = None) -> tuple[list[F32], list[X]]:
        """``Model.run`` with the past and the last output among the states. ``times_ms`` [B, T]: of the events, where
        there is a past; ``x`` may be changed then."""
        if self.past is not None:
            assert times_ms is not None, "a past needs event times"
            x, kept = self.past.fill(x, times_ms, lengths, states[self._own])
            results, nexts = self.model.run(x, lengths, states[: self._own])
            return results, [*nexts, kept]
        if self._output < 0:
            results, nexts = self.model.run(x, lengths, states)
            return results, [*nexts]
        results, nexts = self.model.run(x, lengths, states[: self._own])
        return results, [*nexts, results[self._output][np.arange(len(x)), lengths - 1]]
