"""The search for the sequence that a decoder thinks likeliest, of one window. Pure: log-probabilities in, rows to go on with out.

Greedy is the beam of width 1. Scores are sums of log-probabilities, that of the end symbol among them, divided by
((5 + steps) / 6) ** alpha (Wu et al. 2016, equation 14, without coverage); steps: symbols, the end counted.
Shapes: K rows of the beam, V symbols.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamer.core import F32, I64, Written
from streamer.modelfile.decoder import Decoder

_PENALTY_STEPS, _PENALTY_UNIT = 5.0, 6.0


class Beam:
    """``symbols`` [K] are put in next, one per row; after ``advance`` row i goes on from the state of row ``parents[i]``.

    Rows beyond ``live`` are idle: they repeat row 0, so that a window keeps as many rows from begin to end."""

    __slots__ = ("_best", "_declared", "_histories", "_scores", "live", "parents", "steps", "symbols")

    def __init__(self, declared: Decoder) -> None:
        self._declared = declared
        self.symbols: I64 = np.full(declared.width, declared.begin, np.int64)
        self.parents: I64 = np.zeros(declared.width, np.int64)
        self.live = 1
        self.steps = 0
        """Calls that were made"""
        self._scores: NDArray[np.float64] = np.zeros(1)
        self._histories: list[tuple[int, ...] | list[int]] = [[]]
        self._best: Written | None = None

    def advance(self, log_probabilities: F32) -> Written | None:
        """Takes [K, V] of the rows; the sequence when nothing better can come. ValueError: no symbol is possible."""
        declared = self._declared
        self.steps += 1
        last = self.steps > declared.max_steps
        totals = (self._scores[:, None] + log_probabilities[: self.live]).reshape(-1)
        chosen = _largest(totals, declared.width)
        if not len(chosen):
            raise ValueError("no symbol has a log-probability that is a number above minus infinity")
        parents, symbols = np.divmod(chosen, log_probabilities.shape[1])
        ended = symbols == declared.end
        for place in np.flatnonzero(ended).tolist():
            self._finish(self._histories[parents[place]], totals[chosen[place]], self.steps)
        if last:  # what goes on has no room for a further symbol
            return self._best or self._cut()
        self._go_on(parents[~ended], symbols[~ended], totals[chosen[~ended]])
        if not self.live or (self._best is not None and self._best.score >= self._bound()):
            return self._best
        return None

    def _go_on(self, parents: I64, symbols: I64, scores: NDArray[np.float64]) -> None:
        self.live = len(parents)
        self._scores = scores
        self._histories = [
            [*self._histories[parent], symbol]
            for parent, symbol in zip(parents.tolist(), symbols.tolist(), strict=True)
        ]
        if self.live:
            self.parents[: self.live], self.parents[self.live :] = parents, parents[0]
            self.symbols[: self.live], self.symbols[self.live :] = symbols, symbols[0]

    def _finish(self, history: tuple[int, ...] | list[int], total: float, steps: int) -> None:
        score = float(total) / self._penalty(steps)
        if self._best is None or score > self._best.score:
            self._best = Written(tuple(history), score, False)

    def _cut(self) -> Written:
        """No sequence ended: the best of those that go on."""
        best = int(np.argmax(self._scores))
        written = tuple(self._histories[best])
        return Written(written, float(self._scores[best]) / self._penalty(max(len(written), 1)), True)

    def _bound(self) -> float:
        """The most that a sequence which goes on can still reach: log-probabilities only take away."""
        return float(self._scores.max()) / self._penalty(self._declared.max_steps + 1)

    def _penalty(self, steps: int) -> float:
        return float(((_PENALTY_STEPS + steps) / _PENALTY_UNIT) ** self._declared.length_normalisation)


def _largest(totals: NDArray[np.float64], count: int) -> I64:
    """Indices of the ``count`` largest that are finite, largest first, the first of equal ones first."""
    if count == 1:
        best = int(totals.argmax())
        return np.array([best] if np.isfinite(totals[best]) else [], np.int64)
    if len(totals) > 4 * count:
        edge = np.partition(totals, len(totals) - count)[len(totals) - count]
        found = np.flatnonzero(totals >= edge)
    else:
        found = np.arange(len(totals))
    order = np.lexsort((found, -totals[found]))[:count]
    chosen = found[order]
    return np.asarray(chosen[np.isfinite(totals[chosen])], np.int64)
