"""Intervals and verdicts: what a handful of seeds allows one to say, and no more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
_EXACT = 50_000
"""Up to that many resamples are all taken (5 values have 3,125, 6 have 46,656)."""
_DRAWS = 10_000

Order = Literal["better", "worse", "undecided"]
"""How A stands to B where less is better."""
HOLDS, FAILS, UNDECIDED, MISSING = "holds", "does not hold", "undecided on this budget", "not measured"


@dataclass(frozen=True)
class Interval:
    """A mean (or median) and its bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"

    def times(self, factor: float) -> Interval:
        """Scaled by a number above 0."""
        return Interval(self.mean * factor, self.low * factor, self.high * factor)


def bootstrap(values: Sequence[float], *, median: bool = False) -> Interval:
    """Percentile bootstrap of the mean (or median): every resample there is where these are few, else random ones.

    A single value has no interval: it is unbounded, so that nothing can be concluded from it.
    """
    found = np.sort(np.asarray(values, np.float64))  # the order of the seeds says nothing
    middle = np.median if median else np.mean
    if len(found) < 2:
        return Interval(float(found[0]), -np.inf, np.inf)
    low, high = np.quantile(middle(found[_resamples(len(found))], axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(middle(found)), float(low), float(high))


def order(a: Interval, b: Interval) -> Order:
    """Less is better; only intervals that are apart decide."""
    if a.high < b.low:
        return "better"
    return "worse" if a.low > b.high else "undecided"


def below(a: Interval, bound: float) -> Order:
    """A against a fixed number."""
    return order(a, Interval(bound, bound, bound))


def verdict(found: Sequence[Order], rule: Literal["all", "any"]) -> str:
    """``all``: every one has to hold, one decided against refutes. ``any``: one is enough, all against refute."""
    if not found:
        return MISSING
    good, bad = [each == "better" for each in found], [each == "worse" for each in found]
    if rule == "all":
        return HOLDS if all(good) else FAILS if any(bad) else UNDECIDED
    return HOLDS if any(good) else FAILS if all(bad) else UNDECIDED


@cache
def _resamples(count: int) -> NDArray[np.int64]:
    """Indices [N, count] of resamples with replacement."""
    if count**count <= _EXACT:
        return np.array(list(product(range(count), repeat=count)), np.int64)
    return np.random.default_rng(0).integers(0, count, (_DRAWS, count))
