"""A number in the dtype that the contract declares, or why not: exact, or refused.

A decimal fraction is rounded to the nearest float32 or float64, as everywhere. An integer is never rounded: 16777217 in a
float32 feature, or 2**53 + 1 in a float64 one, would silently become its neighbour, and two ids would become one.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.records.unusable import Unusable, plain
from streamer.words import Reason

Numbers = NDArray[Any]
"""[N, F] in the contract's dtype"""

_FLOAT64_INTEGERS = 2.0**53
"""Below it a float64 that is an integer was written as that integer."""


class Exact:
    """Numbers of one dtype: float32, float64, int32 or int64. ``number`` is the definition, ``column`` the same for many."""

    def __init__(self, dtype: str) -> None:
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.integral = self.dtype.kind == "i"
        self._type: Any = self.dtype.type
        if self.integral:
            limits = np.iinfo(self._type)
            self._lowest, self._highest = int(limits.min), int(limits.max)
        else:
            self.integers = float(2 ** (np.finfo(self._type).nmant + 1))
            """Every integer up to here has its own value."""

    def number(self, value: int | float, name: object) -> int | float:
        """``value`` as this dtype holds it. Unusable: not_finite, or not_exact. ``name``: of the feature, for people."""
        if isinstance(value, float):
            return self._from_float(value, name)
        if self.integral:
            if not self._lowest <= value <= self._highest:
                raise self._refusal(value, name)
            return value
        try:
            held = float(self._cast(float(value)))
        except OverflowError:
            held = float("inf")
        if not isfinite(held):
            raise _not_finite(name, self.dtype)
        if int(held) != value:
            raise self._refusal(value, name)
        return held

    def _from_float(self, value: float, name: object) -> int | float:
        if not self.integral:
            held = float(self._cast(value))
            if not isfinite(held):
                raise _not_finite(name, self.dtype)
            return held
        if not isfinite(value):
            raise _not_finite(name, self.dtype)
        if not value.is_integer() or abs(value) >= _FLOAT64_INTEGERS or not self._lowest <= value <= self._highest:
            raise self._refusal(value, name)
        return int(value)

    def column(self, x: Numbers, *, floats_may_be_integers: bool = False) -> tuple[Numbers, list[int]]:
        """``x`` [N, F] of any number dtype in this one, and the rows that ``number`` has to decide.

        ``floats_may_be_integers``: integers were read as float64, so a large one may have been rounded already."""
        if x.dtype.kind == "f":
            if self.integral:
                with np.errstate(invalid="ignore"):
                    good = (np.trunc(x) == x) & (np.abs(x, dtype=np.float64) < min(_FLOAT64_INTEGERS, self._highest))
                    return np.where(good, x, 0).astype(self.dtype), _rows(~good)
            held = x if x.dtype == self.dtype else self._rounded(x)
            bound = self.integers if floats_may_be_integers else np.inf
            if not held.size or max(held.max(), -held.min()) < bound:  # false with a NaN, too
                return held, []
            good = (np.abs(held) < bound) if bound == np.inf else self._kept(x, held)
            return held, _rows(~good)
        if self.integral:
            good = (x >= self._lowest) & (x <= self._highest)
            return x.astype(self.dtype, copy=False), [] if good.all() else _rows(~good)
        bound = int(self.integers)  # not a float, with which large integers would be rounded before they are compared
        good = (x <= bound) & (x >= -bound)
        return x.astype(self.dtype), [] if good.all() else _rows(~good)

    def _kept(self, x: Numbers, held: Numbers) -> Numbers:
        """Rounding cannot have lost an integer: small, or as it was read and so small that it was read as written."""
        size = np.abs(x)
        kept: Numbers = (size < self.integers) | ((size < _FLOAT64_INTEGERS) & (held == x))
        return kept

    def _rounded(self, x: Numbers) -> Numbers:
        with np.errstate(over="ignore", invalid="ignore"):  # a NaN of any kind stays one, and is refused
            return x.astype(self.dtype)

    def _cast(self, value: float) -> Any:
        with np.errstate(over="ignore"):
            return self._type(value)

    def _refusal(self, value: int | float, name: object) -> Unusable:
        told = str(value) if isinstance(value, float) or abs(value) < 10**30 else "an integer of more than 30 digits"
        return Unusable(Reason.NOT_EXACT, plain(f"feature {name!r} is {told}, which {self.dtype} cannot hold exactly"))


def _rows(bad: Numbers) -> list[int]:
    return [int(row) for row in np.flatnonzero(bad.any(axis=1))]


def _not_finite(name: object, dtype: np.dtype[Any]) -> Unusable:
    return Unusable(Reason.NOT_FINITE, plain(f"feature {name!r} is NaN or infinite (in {dtype})"))
