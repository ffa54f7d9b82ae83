"""A pair that is small enough to think about: what it writes depends on every event, on their order, and on every symbol."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from simulated import MODULUS
from windowing import FoldModel, fold

from streamer.core import F32, I64, X
from streamer.errors import ModelRunError
from streamer.modelfile.contract import Contract

LABELS = ("<", ">", "a", "b", "c")
LIKELY, UNLIKELY = -0.5, -10.0
UNWRITABLE = 99.0
"""An event about which the encoder has something to say, and the decoder has not."""


def _next(state: float, symbol: int, total: float) -> float:
    return float((state * 31 + symbol * 17 + 7 + total * 3) % MODULUS)


def _chosen(state: float) -> int:
    return 1 if state % 7 == 0 else 2 + int(state) % 3


def write(values: Iterable[float], max_steps: int = 8) -> tuple[list[int], float, bool]:
    """(symbols, score, truncated) that must be written about a window."""
    values = list(values)
    state, symbol, symbols, total = fold(values), 0, list[int](), sum(values)
    while True:
        state = _next(state, symbol, total)
        symbol = _chosen(state)
        if symbol == 1:
            return symbols, LIKELY * (len(symbols) + 1), False
        if len(symbols) == max_steps:
            return symbols, LIKELY * max_steps, True
        symbols.append(symbol)


class WritingModel(FoldModel):
    """The encoder is the fold over the window, its memory the events; the decoder a chain that looks at both."""

    def __init__(
        self, sha256: str = "cd" * 32, *, max_steps: int = 8, cost: Callable[[int], None] = lambda _: None
    ) -> None:
        super().__init__(sha256)
        self._cost = cost
        fields: dict[str, Any] = {
            "name": "writer",
            "mode": "window",
            "input": {"name": "x", "shape": ["batch", "time", 1]},
            "lengths": "lengths",
            "outputs": [{"name": "h", "shape": ["batch", 1]}, {"name": "m", "shape": ["batch", "time", 1]}],
            "decoder": {
                "labels": LABELS,
                "begin": 0,
                "end": 1,
                "max_steps": max_steps,
                "lengths": "lengths",
                "memory": [{"output": "m", "input": "m"}],
                "states": [{"initial": "h", "input": "h", "output": "h_next"}],
            },
        }
        self.contract = Contract.from_fields(fields)
        self.decoder = ChainDecoder(self.contract, cost)

    def run(self, x: X, lengths: Any, states: Sequence[F32]) -> Any:
        self._cost(int(np.sum(lengths)))
        [h], _ = super().run(x, lengths, states)
        return [h, x.astype(np.float32) + (np.arange(x.shape[1])[None, :, None] >= lengths[:, None, None]) * 5], []


class ChainDecoder:
    """Stands for ``DecoderGraph``. Counts the rows of its calls."""

    bytes_per_step, bytes_per_row = 4, 4

    def __init__(self, contract: Contract, cost: Callable[[int], None]) -> None:
        assert contract.decoder is not None
        self.declared = contract.decoder
        self._cost = cost
        self.calls: list[int] = []

    def given(self, outputs: Sequence[F32]) -> tuple[list[F32], list[F32]]:
        return [outputs[1]], [outputs[0]]

    def step(self, symbols: I64, states: Sequence[F32], memory: Sequence[F32], lengths: I64) -> tuple[F32, list[F32]]:
        self.calls.append(len(symbols))
        self._cost(len(symbols))
        valid = np.arange(memory[0].shape[1])[None] < lengths[:, None]
        if (memory[0][..., 0][valid] == UNWRITABLE).any():
            raise ModelRunError("nobody can write about that")
        totals = (memory[0][..., 0].astype(np.float64) * valid).sum(1)
        nexts = np.array(
            [_next(float(h), int(s), float(t)) for h, s, t in zip(states[0][:, 0], symbols, totals, strict=True)]
        )
        found = np.full((len(symbols), len(LABELS)), UNLIKELY, np.float32)
        found[np.arange(len(symbols)), [_chosen(each) for each in nexts]] = LIKELY
        return found, [nexts.astype(np.float32)[:, None]]
