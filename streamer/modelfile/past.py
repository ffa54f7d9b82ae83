"""Features that are made from what a stream had before: the definition, for the service and for training alike.

========================= =======================================================================================
``kind = "since_last"``   seconds from the newest event time that the stream had before to this event's, never less than
                          0; ``fallback`` for a first event
``lag = n``               what the same field was n events of the stream before this one; ``fallback`` until then
``missing = "last"``      where the field has no value (NaN in x): its last one; ``fallback`` before the first
========================= =======================================================================================

A lag of a field with ``missing = "last"`` is that of the values after they were filled. Events that a model refused, or that
were no events, are in no past. What has to be kept of a stream for it, its past, is one row of bytes, and lies in the arena
beside the states: reset, forgotten, written and restored with them.

Letters for shapes: B rows, T steps, F features, W bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from streamer.core import I32, I64, U8, X
from streamer.errors import ConfigurationError
from streamer.modelfile.feature import Feature

NO_EVENT_MS = -(2**62)
"""The newest event time of a stream without events."""
_NEWEST = "newest_ms"


class _Field:
    """One field of which values are kept, the oldest first, and the features that are made of it."""

    def __init__(self, feature: Feature) -> None:
        self.fills, self.fallback = feature.missing == "last", feature.fallback
        self.columns: list[tuple[int, int]] = []
        """(place in x, lag)"""
        self.words = f"/{zlib.crc32(chr(0).join(feature.vocabulary).encode()):08x}" if feature.vocabulary else ""
        self.name = feature.field

    @property
    def depth(self) -> int:
        return max(int(self.fills), *(lag for _, lag in self.columns))


class Past:
    """The features of one model that the past makes, and the row of W bytes that is kept per stream for them."""

    def __init__(self, features: Sequence[Feature], dtype: str) -> None:
        """``features``: as records have them (``records.meaning.as_read``). ``dtype``: of x. ConfigurationError: it holds no
        such numbers."""
        self._gaps = [(at, each.fallback) for at, each in enumerate(features) if each.kind == "since_last"]
        fields: dict[tuple[object, ...], _Field] = {}
        for at, each in enumerate(features):
            if each.lag or each.missing == "last":
                key = (each.field, each.kind, each.vocabulary, each.unknown, each.missing, each.fallback)
                fields.setdefault(key, _Field(each)).columns.append((at, each.lag))
        self._fields = list(fields.values())
        if np.dtype(dtype).kind == "i" and (self._gaps or any(each.fills for each in self._fields)):
            raise ConfigurationError(
                f"features that are seconds since the last event, or that may be missing, cannot be {dtype}: declare the "
                "input as float32 or float64, and cast in the graph"
            )
        parts: list[Any] = [(_NEWEST, "<i8")] if self._gaps else []
        parts += [(f"f{at}", np.dtype(dtype).newbyteorder("<"), (each.depth,)) for at, each in enumerate(self._fields)]
        self._layout = np.dtype(parts)
        first = np.zeros(1, self._layout)
        if self._gaps:
            first[_NEWEST] = NO_EVENT_MS
        for at, field in enumerate(self._fields):
            first[f"f{at}"] = field.fallback
        self.initial: U8 = first.view(np.uint8).reshape(1, self.width)
        """[1, W] of a stream without events"""
        kept = [_NEWEST] if self._gaps else []
        kept += [f"{each.name}{each.words}:{each.depth}" for each in self._fields]
        self.name = f"past({np.dtype(dtype)}: {', '.join(kept)})"
        """What is kept: pasts of two models are alike if it is the same."""

    @property
    def width(self) -> int:
        return self._layout.itemsize

    def fill(self, x: X, times_ms: I64, lengths: I32, kept: U8) -> tuple[X, U8]:
        """What the graph gets for ``x`` [B, T, F], and what is to be kept after it for ``kept`` [B, W].

        ``times_ms`` [B, T]: of the events; ``lengths`` [B]: 1..T. ``x`` may be changed; beyond a row's length it is 0 then.
        Every cut of a stream into calls gives the same."""
        rows, steps = x.shape[:2]
        before = kept.view(self._layout).reshape(rows)
        after = np.empty(rows, self._layout)
        if self._gaps:
            newest = np.maximum.accumulate(np.concatenate([before[_NEWEST][:, None], times_ms], axis=1), axis=1)
            after[_NEWEST] = newest[:, 1] if steps == 1 else newest[np.arange(rows), lengths]
            previous = newest[:, :-1]
            seconds = np.maximum(times_ms - previous, 0) / 1000.0
            for at, fallback in self._gaps:
                x[:, :, at] = np.where(previous == NO_EVENT_MS, fallback, seconds)
        for number, field in enumerate(self._fields):
            values = np.concatenate([before[f"f{number}"], x[:, :, field.columns[0][0]]], axis=1)
            if field.fills:
                values = _filled(values)
            depth = field.depth
            for at, lag in field.columns:
                x[:, :, at] = values[:, depth - lag : depth - lag + steps]
            kept_now = (
                values[:, 1:] if steps == 1 else np.take_along_axis(values, lengths[:, None] + np.arange(depth), 1)
            )
            after[f"f{number}"] = kept_now
        if steps > 1:
            x[np.arange(steps) >= lengths[:, None]] = 0
        return x, after.view(np.uint8).reshape(rows, self.width)

    def whole(self, x: X, times_ms: I64) -> X:
        """[T, F] a stream, or a window, from its first event on: ``x`` [T, F], ``times_ms`` [T]."""
        filled, _ = self.fill(x[None].copy(), times_ms[None], np.array([len(x)], np.int32), self.initial)
        numbers: X = filled[0]
        return numbers

    @classmethod
    def of(cls, features: Sequence[Feature], dtype: str) -> Past | None:
        """None where no feature depends on the past."""
        some = any(each.kind == "since_last" or each.lag or each.missing == "last" for each in features)
        return cls(features, dtype) if some else None


def _filled(values: X) -> X:
    """[B, N] with the last value where there is none (NaN). The first of a row is there."""
    missing = np.isnan(values)
    if not missing.any():
        return values
    places = np.maximum.accumulate(np.where(missing, 0, np.arange(values.shape[1])), axis=1)
    filled: X = np.take_along_axis(values, places, axis=1)
    return filled
