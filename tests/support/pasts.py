"""A chain model with features that its stream's past makes, and what a run without service answers to it."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from simulated import MODULUS, POISON, ChainModel

from streamer.errors import ModelRunError
from streamer.modelfile.contract import Contract

FEATURES: list[Any] = [
    "x",
    {"name": "gap", "kind": "since_last", "fallback": 2.5},
    {"name": "before", "source": "x", "lag": 2, "fallback": 1.0},
    {"name": "kept", "missing": "last", "fallback": 4.0},
    {"name": "there", "kind": "present", "source": "kept"},
]
WEIGHTS = (17.0, 1_000.0, 5.0, 3.0, 11.0)


class PastModel(ChainModel):
    """``h' = floor(31 h + sum of weights times features + 7) mod p``: whole numbers, which float32 and JSON hold exactly."""

    def __init__(self, sha256: str = "ab" * 32, features: Sequence[Any] = FEATURES) -> None:
        super().__init__(sha256)
        fields = json.loads(self.contract.dump())
        fields["input"] = {"name": "x", "shape": ["batch", "time", len(features)], "features": list(features)}
        self.contract = Contract.from_fields(fields)
        self.states = self.contract.states

    def run(self, x: np.ndarray, lengths: np.ndarray, states: Any) -> Any:
        self.calls.append(x.shape[:2])
        assert np.isfinite(x).all()
        if (x[:, :, 0] == POISON).any():
            raise ModelRunError("poisoned")
        h = states[0][0, :, 0].astype(np.float64).copy()
        y = np.zeros((*x.shape[:2], 1), np.float32)
        for step in range(x.shape[1]):
            alive = lengths > step
            h[alive] = advance(h[alive], x[alive, step].T.astype(np.float64))
            y[alive, step, 0] = h[alive]
        return [y], [h.astype(np.float32)[None, :, None]]


def advance(state: Any, features: Any) -> Any:
    """Numbers or columns of them: the same operations in the same order, so the same bits."""
    total = state * 31.0 + 7.0
    for weight, value in zip(WEIGHTS, features, strict=True):
        total = total + weight * value
    return np.floor(total) % MODULUS


class Alone:
    """One stream by itself, event after event."""

    def __init__(self) -> None:
        self.state = 0.0
        self.newest: int | None = None
        self.before: deque[float] = deque([1.0, 1.0], maxlen=2)
        self.kept = 4.0

    def event(self, x: float, kept: float | None, time_ms: int) -> float | None:
        """None: the model does not take it, and nothing has happened."""
        if x == POISON:
            return None
        gap = 2.5 if self.newest is None else float(np.float32(max(time_ms - self.newest, 0) / 1000.0))
        self.kept = self.kept if kept is None else kept
        self.state = float(advance(self.state, (x, gap, self.before[0], self.kept, float(kept is not None))))
        self.before.append(x)
        self.newest = time_ms if self.newest is None else max(self.newest, time_ms)
        return self.state


def value(x: float, kept: float | None, time_ms: int) -> bytes:
    """The record of an event, as a company has it."""
    fields = {"x": x, "ts": time_ms} | ({} if kept is None else {"kept": kept})
    return json.dumps(fields).encode()
