"""Memory of events of several steps in open windows: the steps of a record stay together."""

from __future__ import annotations

import numpy as np

from streamer.core import I64, EventBatch, X
from streamer.windows.events import Events


class StepEvents(Events):
    """A slot for each event, which holds its steps [T, F] as an array of its own."""

    __slots__ = ("_dtype", "_features", "_step_bytes")

    def __init__(self, features: int, dtype: str = "float32") -> None:
        super().__init__(1, "object")
        self._features, self._dtype = features, dtype
        self._step_bytes = 0

    @property
    def nbytes(self) -> int:
        return super().nbytes + self._step_bytes

    def put(self, x: X, offsets: I64, times_ms: I64) -> list[int]:
        """``x``: as ``arrays`` gives it."""
        self._step_bytes += sum(each.nbytes for each in x[:, 0].tolist())
        return super().put(x, offsets, times_ms)

    def rows(self, index: I64, offsets: I64, times_ms: I64) -> tuple[X, I64, I64]:
        arrays = self.x[index, 0].tolist()
        counts = [len(each) for each in arrays]
        return np.concatenate(arrays), np.repeat(offsets, counts), np.repeat(times_ms, counts)

    def release(self, head: int, tail: int, count: int) -> None:
        for slot in self.chain(head, tail) if count else ():
            self._step_bytes -= self.x[slot, 0].nbytes
            self.x[slot, 0] = None
        super().release(head, tail, count)


def arrays(batch: EventBatch, first: int, last: int) -> tuple[X, list[int]]:
    """Copies of the steps of the rows [first, last): [N, 1] of arrays [T, F], and how many each has."""
    assert batch.steps is not None
    counts = batch.steps[first:last].tolist()
    found: X = np.full((len(counts), 1), None, object)
    at = int(batch.steps[:first].sum())
    for row, count in enumerate(counts):
        found[row, 0] = batch.x[at : at + count].copy()  # a view would keep the whole batch alive
        at += count
    return found, counts
