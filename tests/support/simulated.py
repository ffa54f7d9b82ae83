"""A model and a log small enough to think about: the state is a hash chain, so anything missed or repeated shows."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np

from streamer.core import EventBatch, Op, RecordBatch
from streamer.errors import ModelRunError
from streamer.modelfile.contract import Contract

MODULUS = 8_388_593  # the largest prime below 2^23: sums of products stay exact in float64, values exact in float32
POISON = 13.0


def advance(state: float, x: float) -> float:
    return float((state * 31 + x * 17 + 7) % MODULUS)


class ChainModel:
    """``h' = (31 h + 17 x + 7) mod p`` per stream, the output is h'. x = POISON fails the whole call."""

    def __init__(self, sha256: str = "ab" * 32, *, steps: str = "one") -> None:
        """``steps``: of a record, one or many."""
        self.contract = Contract.from_fields(
            {
                "name": "chain",
                "mode": "step",
                "input": {"name": "x", "shape": ["batch", "time", 1], "steps": steps},
                "lengths": "lengths",
                "states": [{"input": "h", "output": "h_next", "shape": [1, "batch", 1]}],
                "outputs": [{"name": "y", "shape": ["batch", "time", 1], "kind": "value"}],
            }
        )
        self.states = self.contract.states
        self.sha256 = sha256
        self.max_steps: int | None = None
        self.ragged = True
        self.state_bytes_per_stream = 4
        self.calls: list[tuple[int, int]] = []

    def initial_states(self, rows: int) -> list[np.ndarray]:
        return [np.zeros((1, rows, 1), np.float32)]

    def run(self, x: np.ndarray, lengths: np.ndarray, states: Sequence[np.ndarray]):
        assert x.shape[0] >= 1
        assert x.shape[1] >= 1
        self.calls.append(x.shape[:2])
        if (x == POISON).any():
            raise ModelRunError("poisoned")
        h = states[0][0, :, 0].astype(np.float64).copy()
        y = np.zeros(x.shape, np.float32)
        for step in range(x.shape[1]):
            alive = lengths > step
            h[alive] = (h[alive] * 31 + x[alive, step, 0].astype(np.float64) * 17 + 7) % MODULUS
            y[alive, step, 0] = h[alive]
        return [y], [h.astype(np.float32)[None, :, None]]


def records(rows: Sequence[tuple[int, str, float | Op]], partition: int = 0) -> EventBatch:
    """Rows (offset, stream, x or command) of one fetch, as the codec would give them."""
    offsets = [offset for offset, _, _ in rows]
    stamps = [1_000 + offset for offset in offsets]
    keys = [stream.encode() for _, stream, _ in rows]
    ops = np.array([what if isinstance(what, Op) else 0 for _, _, what in rows], np.uint8)
    x = np.array([[0.0 if isinstance(what, Op) else what] for _, _, what in rows], np.float32)
    raw = RecordBatch(partition, offsets, stamps, list(keys), [b"%d" % offset for offset in offsets])
    return EventBatch(
        partition=partition,
        offsets=np.array(offsets, np.int64),
        times_ms=np.array(stamps, np.int64),
        timestamps_ms=stamps,
        keys=keys,
        x=x,
        ops=ops if ops.any() else None,
        records=raw,
        next_offset=offsets[-1] + 1,
        checksum=offsets[-1],
    )


__all__ = ["MODULUS", "POISON", "ChainModel", "SimpleNamespace", "advance", "records"]
