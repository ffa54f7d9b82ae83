"""Counts of values by size, over arrays."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

MARK_S, _MARKS = 10.0, 7
"""Percentiles for people are over the last minute: marks are set every 10 s, and the oldest of 7 is where it begins."""
_FEW = 16
"""So many values cost less one by one than the fixed cost of calls over arrays."""


class Histogram:
    """Counts of values up to each bound; takes arrays. Bounds grow; the last bucket is open."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = np.asarray(bounds, np.float64)
        self._bounds = self.bounds.tolist()
        self.counts = np.zeros(len(bounds) + 1, np.int64)
        self.sum = 0.0
        self._marks = deque([self.counts.copy()], maxlen=_MARKS)

    def observe(self, values: Any) -> None:
        """``values``: any number of floats."""
        values = np.asarray(values, np.float64).ravel()
        if len(values) <= _FEW:
            for value in values.tolist():
                self.add(value)
        else:
            places = self.bounds.searchsorted(values)
            self.counts += np.bincount(places, minlength=len(self.counts))
            self.sum += float(values.sum())

    def add(self, value: float) -> None:
        """The same of one value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return int(self.counts.sum())

    def mark(self) -> None:
        """Called every ``MARK_S``: what is older than the oldest mark is not recent."""
        self._marks.append(self.counts.copy())

    def recent(self, shares: Sequence[float]) -> dict[str, float | None]:
        """Quantiles since the oldest mark, ``{"p50": seconds}``; None where nothing happened since. The last bound means
        that value or more: nothing is known beyond it."""
        counts = self.counts - self._marks[0]
        return {f"p{share * 100:g}": self._quantile(counts, share) for share in shares}

    def _quantile(self, counts: Any, share: float) -> float | None:
        """Linear inside the bucket that holds the quantile, as Prometheus does; the open bucket gives its lower bound."""
        totals = np.cumsum(counts)
        if not totals[-1]:
            return None
        rank = share * totals[-1]
        place = int(np.searchsorted(totals, rank))
        if place >= len(self.bounds):
            return float(self.bounds[-1])
        low = self.bounds[place - 1] if place else 0.0
        below = totals[place - 1] if place else 0
        return float(low + (self.bounds[place] - low) * (rank - below) / counts[place])

    def buckets(self) -> list[tuple[str, float]]:
        totals = np.cumsum(self.counts).tolist()
        names = [repr(float(bound)) for bound in self.bounds] + ["+Inf"]
        return list(zip(names, totals, strict=True))


def doubling(first: float, last: float) -> list[float]:
    bounds = [first]
    while bounds[-1] < last:
        bounds.append(bounds[-1] * 2)
    return bounds
