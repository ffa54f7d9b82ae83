"""Training data cut into windows by the service's own rule and code, so that a model learns what it will be given."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from streamer.core import ClosedWindow, EventBatch, Op, RecordBatch
from streamer.errors import ConfigurationError
from streamer.windows import WindowRule, Windows

from .data import I64, Split, Streams, checked_split, time_borders

_BATCH_ROWS = 8_192
_END_OF_TIME_MS = 2**61


def cut(data: Streams, rule: WindowRule) -> Streams:
    """One stream per closed window, named STREAM@START, with the features and labels of its events.

    The events of all streams are put through ``streamer.windows`` in order of time, as one partition of a topic would
    bring them. At the end every time has passed, and streams of end-marked windows have ended; what ``count`` windows
    have not filled is no window. Events from ``counted_from`` on only.
    """
    if not len(data):
        return data
    keys = np.repeat(np.arange(len(data)), [len(x) for x in data.x])
    starts = np.concatenate([np.arange(len(x)) >= start for x, start in zip(data.x, data.counted_from, strict=True)])
    times = np.concatenate(data.times_ms)
    order = np.argsort(times, kind="stable")
    order = order[starts[order]]
    x = np.concatenate(data.x)
    names = [b"%d" % i for i in range(len(data))]
    windows, closed = Windows(rule, x.shape[1]), []
    for first in range(0, len(order), _BATCH_ROWS):
        rows = order[first : first + _BATCH_ROWS]
        offsets = np.arange(first, first + len(rows), dtype=np.int64)
        closed += windows.add(_batch(offsets, times[rows], [names[i] for i in keys[rows]], x[rows], None)).closed
    if rule.kind == "end":
        offsets = np.arange(len(order), len(order) + len(names), dtype=np.int64)
        ended = np.full(len(names), Op.END, np.uint8)
        zero = np.zeros((len(names), x.shape[1]), np.float32)
        closed += windows.add(_batch(offsets, np.zeros(len(names), np.int64), names, zero, ended)).closed
    elif rule.kind != "count":
        closed += windows.advance(_END_OF_TIME_MS).closed
    if not closed:
        raise ConfigurationError(
            f"[window]: no {rule.kind} window closes with the {len(order)} events of this part: too little data, or"
            " windows that are too long (data.time_unit says what times are)"
        )
    return _streams(data, closed, order)


def cut_split(split: Split, rule: WindowRule) -> Split:
    """Every part cut, for parts of whole streams."""
    judged = cut(split.test, rule) if len(split.test) else split.test
    return Split(cut(split.train, rule), cut(split.validation, rule), judged)


def split_by_time(data: Streams, rule: WindowRule, *, validation: float, test: float) -> tuple[Split, int]:
    """Windows of all data, divided by the moments that divide the events; and how many lie across one.

    Those belong to no part: a part of a window is none that is ever served.
    """
    first, second = time_borders(data, validation=validation, test=test)
    windows = cut(data, rule)
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for i, times in enumerate(windows.times_ms):
        low, high = int(times[0]), int(times[-1])
        for part, start, end in zip(
            parts, (-_END_OF_TIME_MS, first, second), (first, second, _END_OF_TIME_MS), strict=True
        ):
            if start <= low and high < end:
                part.append(i)
    across = len(windows) - sum(map(len, parts))
    train, held, judged = (windows.take(part) for part in parts)
    return checked_split(train, held, judged, validation, test), across


def mixed_labels(part: Streams) -> float:
    """Share of the windows whose events do not all have the same label."""
    labels = part.labels or []
    return sum(len(np.unique(each)) > 1 for each in labels) / max(1, len(labels))


def _streams(data: Streams, closed: list[ClosedWindow], order: I64) -> Streams:
    labels = None if data.labels is None else np.concatenate(data.labels)
    return replace(
        data,
        names=[f"{data.names[int(window.stream)]}@{window.start_ms}" for window in closed],
        x=[window.x for window in closed],
        times_ms=[window.times_ms for window in closed],
        labels=None if labels is None else [labels[order[window.offsets]] for window in closed],
        counted_from=[0] * len(closed),
    )


def _batch(offsets: I64, times: I64, keys: list[bytes], x: np.ndarray, ops: np.ndarray | None) -> EventBatch:
    stamps = times.tolist()
    raw = RecordBatch(0, offsets.tolist(), stamps, list(keys), [b""] * len(keys), {})
    return EventBatch(0, offsets, times, stamps, keys, x, ops, raw, int(offsets[-1]) + 1)
