"""Records of several steps in step mode: T steps of a stream in one model call, and a record runs whole or not at all.

The scheduler plans records; here its calls become calls over steps. A record is never cut: its steps share a call, so that
a model that refuses one of them has changed nothing. Calls are grouped by length, as those over windows are.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from streamer.core import I64, Batch, step_rows
from streamer.engine.scheduler import plan_windows
from streamer.settings import BatchSection


class Frames:
    """Of one work whose rows have ``steps`` [N] steps each, in columns of steps."""

    def __init__(self, steps: I64, bounds: BatchSection, *, ragged: bool) -> None:
        self._steps = steps
        self._ends = np.concatenate(([0], np.cumsum(steps)))
        self._bounds, self._ragged = bounds, ragged

    def records_per_call(self, max_steps: int) -> int:
        """How many records of a stream that is behind share a call: whole ones, within ``max_steps``."""
        return max(max_steps // max(int(self._steps.max(initial=1)), 1), 1)

    def span(self, begin: int, end: int) -> slice:
        """Where the steps of the rows [begin, end) are."""
        return slice(int(self._ends[begin]), int(self._ends[end]))

    def calls(self, batch: Batch) -> Iterator[Batch]:
        """``batch`` has rows of events, one or several for each of its streams; what is yielded has rows of steps."""
        counts = np.where(batch.rows >= 0, self._steps[batch.rows], 0)
        lengths = counts.sum(axis=1)
        for chosen in self._grouped(lengths):
            taken, mine = batch.rows[chosen], lengths[chosen]
            records = taken[taken >= 0]  # one stream after the other, in order
            valid = np.arange(int(mine.max())) < mine[:, None]
            rows, owners = np.full(valid.shape, -1, np.int64), np.full(valid.shape, -1, np.int64)
            rows[valid] = step_rows(self._steps, records)
            owners[valid] = np.repeat(records, self._steps[records])
            yield Batch(batch.slots[chosen], rows, mine.astype(np.int32), owners)

    def _grouped(self, lengths: I64) -> list[I64]:
        bounds, longest = self._bounds, int(lengths.max())
        if longest == int(lengths.min()) and longest * len(lengths) <= bounds.max_window_cells:
            return [np.arange(len(lengths))]  # the scheduler keeps to max_rows already
        return plan_windows(
            lengths.tolist(), max_rows=bounds.max_rows, max_cells=bounds.max_window_cells, ragged=self._ragged
        )


def by_record(batch: Batch) -> list[Batch]:
    """A call over one stream, a piece for each of its records."""
    assert batch.records is not None
    length = int(batch.lengths[0])
    rows, records = batch.rows[:, :length], batch.records[:, :length]
    borders = [0, *(np.flatnonzero(np.diff(records[0])) + 1).tolist(), length]
    return [
        Batch(batch.slots, rows[:, begin:end], np.array([end - begin], np.int32), records[:, begin:end])
        for begin, end in pairwise(borders)
    ]
