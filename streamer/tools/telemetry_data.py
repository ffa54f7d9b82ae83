"""Synthetic telemetry with labelled anomalies, as a pure function of (seed, stream, step).

Every value is computed from hashes, with nothing carried from row to row: any interleaving of streams, any block size
and any restart give the same rows, and a million streams cost no memory. Normal behaviour is learnable: all metrics of
a stream mix a few slow latent processes and a seasonal cycle by one matrix that all streams share.

Letters for shapes: N rows, F features, J latents, K lags.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamer.errors import ConfigurationError

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]

KINDS = ("normal", "spike", "shift", "frozen", "break")
"""What a label number means: one or two wild events; a level shift; a sensor that repeats its last value; metrics that
no longer move with the others."""

METRICS = {
    # name: (typical value, typical deviation)
    "cpu": (0.42, 0.12),
    "memory": (0.63, 0.08),
    "requests": (120.0, 35.0),
    "latency_ms": (18.0, 4.5),
    "errors": (2.5, 0.8),
    "disk_io": (64.0, 14.0),
    "network_in": (41.0, 11.0),
    "network_out": (37.0, 9.0),
}

_SEGMENT = 80
"""Steps; a segment of a stream has at most one anomaly, that lies inside it."""
_LATENTS = 2
_LAGS = 24
_PERIOD = 12
_NOISE = 0.1
_LENGTHS = np.array([[1, 1], [1, 2], [4, 10], [6, 14], [6, 14]])
"""Fewest and most steps of each kind"""
_MEAN_LENGTH = float(_LENGTHS[1:].mean())
MAX_ANOMALY_RATE = _MEAN_LENGTH / _SEGMENT

# What a hash is for, so that no two uses share their numbers.
_LATENT, _WHITE, _PHASE, _GAIN, _SEG, _KIND, _START, _LENGTH, _PICK, _SIZE, _FOREIGN = range(11)


@dataclass(frozen=True)
class Telemetry:
    """``features`` metrics per stream; about ``anomaly_rate`` of all events lie in an anomaly."""

    features: int = 8
    seed: int = 0
    anomaly_rate: float = 0.02

    def __post_init__(self) -> None:
        if not 1 <= self.features <= 4_096:
            raise ConfigurationError(f"features is {self.features}; it must be 1 to 4096")
        if not 0 <= self.anomaly_rate <= MAX_ANOMALY_RATE:
            raise ConfigurationError(f"anomaly rate is {self.anomaly_rate}; it must be 0 to {MAX_ANOMALY_RATE:.3f}")

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the metrics; beyond the known ones they are numbered."""
        known = tuple(METRICS)[: self.features]
        return known + tuple(f"metric_{i:02d}" for i in range(len(known), self.features))

    def rows(self, streams: I64, steps: I64) -> tuple[F32, I64]:
        """x[N, F] and label[N] (index into KINDS) of step ``steps[n]`` of stream ``streams[n]``, in any order."""
        streams, steps = np.asarray(streams, np.int64), np.asarray(steps, np.int64)
        x = self._normal(streams, steps)
        label = self._disturb(x, streams, steps)
        known = np.array(list(METRICS.values()))[np.arange(self.features) % len(METRICS)]
        # Four decimals keep the JSON short; they are what every format and file carries.
        return np.round(known[:, 0] + known[:, 1] * x, 4).astype(np.float32), label

    def _normal(self, streams: I64, steps: I64) -> F64:
        """[N, F] of mean 0 and deviation about 1: latents and season, mixed, with a little noise."""
        lags = np.arange(_LAGS)
        latent = np.arange(_LATENTS)[:, None]
        shocks = self._gauss(_LATENT, streams[:, None, None], (steps[:, None] - lags)[:, None, :], latent)
        weights = np.sin(np.pi * (lags + 1) / (_LAGS + 1))  # without edges, so the sum is smooth
        # Sums by row, not matrix products: those may round differently with the number of rows.
        slow = (shocks * (weights / np.linalg.norm(weights))).sum(axis=-1)
        angle = 2 * np.pi * (steps / _PERIOD + self._uniform(_PHASE, streams))
        season = np.sqrt(2) * np.stack([np.sin(angle), np.cos(angle), np.sin(2 * angle)], axis=1)
        mixed: F64 = np.einsum("nj,jf->nf", np.concatenate([slow, season], axis=1), self._mixing(), optimize=False)
        gain = 0.9 + 0.2 * self._uniform(_GAIN, streams)
        feature = np.arange(self.features)
        noise = self._gauss(_WHITE, streams[:, None], steps[:, None], feature)
        return gain[:, None] * mixed + _NOISE * noise

    def _mixing(self) -> F64:
        """[J + 3, F] with columns of length 1, the same for all streams."""
        rng = np.random.default_rng([self.seed, 1])
        mixing: F64 = rng.normal(size=(_LATENTS + 3, self.features))
        mixing /= np.linalg.norm(mixing, axis=0)
        return mixing

    def _disturb(self, x: F64, streams: I64, steps: I64) -> I64:
        """Write the anomalies into ``x`` and return the labels [N]."""
        segment, place = np.divmod(steps, _SEGMENT)
        hit = self._uniform(_SEG, streams, segment) < self.anomaly_rate / MAX_ANOMALY_RATE
        kind = 1 + (self._uniform(_KIND, streams, segment) * (len(KINDS) - 1)).astype(np.int64)
        low, high = _LENGTHS[kind].T
        length = low + (self._uniform(_LENGTH, streams, segment) * (high - low + 1)).astype(np.int64)
        # Never in a segment's first steps: a stream is seen well before it goes wrong.
        start = _SEGMENT // 4 + (self._uniform(_START, streams, segment) * (_SEGMENT * 3 // 4 - length)).astype(
            np.int64
        )
        inside = hit & (place >= start) & (place < start + length)
        label = np.where(inside, kind, 0)
        rows = np.flatnonzero(inside)
        if len(rows):
            x[rows] = self._disturbed(x[rows], label[rows], streams[rows], steps[rows], (place - start)[rows])
        return label

    def _disturbed(self, x: F64, label: I64, streams: I64, steps: I64, since: I64) -> F64:
        """[M, F] of the rows inside anomalies, ``since`` steps after their start."""
        segment = (steps // _SEGMENT)[:, None]
        feature = np.arange(self.features)
        pick = self._uniform(_PICK, streams[:, None], segment, feature)
        # From one metric (the one with the smallest number) to about a third, for the quiet kinds half of them.
        share = np.where(label >= KINDS.index("frozen"), 0.6, 0.35)[:, None]
        chosen = (pick < share) | (pick == pick.min(axis=1, keepdims=True))
        size = self._uniform(_SIZE, streams[:, None], segment, feature)
        sign = np.where(size < 0.5, -1.0, 1.0)
        size = np.abs(size - 0.5) * 2
        others = {
            "spike": x + sign * (4.0 + 4.0 * size),
            "shift": x + sign * (2.5 + 2.0 * size),
            "frozen": self._normal(streams, steps - since - 1),
            "break": self._normal(*self._elsewhere(streams, steps)),
        }
        for name, other in others.items():
            here = chosen & (label == KINDS.index(name))[:, None]
            x = np.where(here, other, x)
        return x

    def _elsewhere(self, streams: I64, steps: I64) -> tuple[I64, I64]:
        """Rows of no stream: their values are plausible one by one, and follow neither the past nor the other metrics."""
        far = self._uniform(_FOREIGN, streams, steps) * 2**40
        return streams + 2**40, far.astype(np.int64)

    def _uniform(self, use: int, *parts: I64) -> F64:
        """[0, 1) from the hash of the parts, which are broadcast."""
        unit: F64 = (self._hash(use, *parts) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return unit

    def _gauss(self, use: int, *parts: I64) -> F64:
        """Standard normal by Box and Muller from the two halves of one hash."""
        bits = self._hash(use, *parts)
        first = ((bits >> np.uint64(32)).astype(np.float64) + 0.5) * 2.0**-32
        second = (bits & np.uint64(0xFFFFFFFF)).astype(np.float64) * 2.0**-32
        normal: F64 = np.sqrt(-2 * np.log(first)) * np.cos(2 * np.pi * second)
        return normal

    def _hash(self, use: int, *parts: I64) -> U64:
        state = _mix(np.array([self.seed * 64 + use], np.int64).astype(np.uint64))
        for part in parts:
            state = _mix(state ^ np.asarray(part, np.int64).astype(np.uint64))
        return state


def _mix(value: U64) -> U64:
    """The finaliser of splitmix64; wraps modulo 2**64."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: U64 = value ^ (value >> np.uint64(31))
    return mixed
