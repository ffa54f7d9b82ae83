"""Chance without a generator that would have to be kept: what is drawn depends on a seed and a step alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamer.core import F32, I64


def uniforms(seeds: NDArray[np.uint64], steps: NDArray[np.uint64], count: int) -> NDArray[np.float64]:
    """[B, count] numbers in [0, 1) that depend on seed and step alone (splitmix64): no generator has to be kept."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    places = steps[:, None] * np.uint64(count) + np.arange(1, count + 1, dtype=np.uint64)
    mixed = _mix(np.add(_mix(np.add(seeds, golden))[:, None], places * golden))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def draw(y: F32, temperature: NDArray[np.float64], top_k: NDArray[np.int64], u: NDArray[np.float64]) -> I64:
    """[B] one class per row of the probabilities ``y`` [B, O], each at its temperature, among its ``top_k`` best."""
    best = y.argmax(axis=1)
    p = _warmed(y.astype(np.float64), temperature)
    if (top_k < y.shape[1]).any():
        rank = np.argsort(np.argsort(-p, axis=1, kind="stable"), axis=1, kind="stable")
        p[rank >= top_k[:, None]] = 0
    total = p.cumsum(axis=1)
    found = np.minimum((total <= (u * total[:, -1])[:, None]).sum(axis=1), y.shape[1] - 1)
    usable = (temperature > 0) & (p[np.arange(len(p)), found] > 0)
    return np.asarray(np.where(usable, found, best), np.int64)


def draw_sets(y: F32, temperature: NDArray[np.float64], u: NDArray[np.float64]) -> I64:
    """[B, O] zeros and ones, each drawn by its own probability in ``y``; at temperature 0 the more probable of the two."""
    p = y.astype(np.float64)
    # near 0 both powers would vanish, so the larger of the two is 1; at 1 nothing is rounded that need not be
    top = np.where((temperature == 1)[:, None], 1.0, np.maximum(p, 1 - p))
    yes, no = _warmed(p / top, temperature), _warmed((1 - p) / top, temperature)
    return np.where(temperature[:, None] > 0, u < yes / (yes + no), p >= 0.5).astype(np.int64)


def _warmed(p: NDArray[np.float64], temperature: NDArray[np.float64]) -> NDArray[np.float64]:
    if (temperature == 1).all():
        return p
    power = 1 / np.where(temperature > 0, temperature, 1.0)
    return np.asarray(np.where((power == 1)[:, None], p, np.maximum(p, 0) ** power[:, None]))
