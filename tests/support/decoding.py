"""Records for codecs, and what became of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from streamer.core import EventBatch, Headers, RecordBatch
from streamer.modelfile.contract import Contract
from streamer.records.decode import Codec

NOW_MS = 1_760_000_000_000
NAMES = ("a", "b")


def contract(features: Sequence[str] = NAMES, dtype: str = "float32", steps: str = "one") -> Contract:
    return Contract.from_fields(
        {
            "name": "m",
            "mode": "step",
            "input": {
                "name": "x",
                "shape": ["batch", len(features)],
                "features": list(features),
                "dtype": dtype,
                "steps": steps,
            },
            "outputs": [{"name": "y", "shape": ["batch", 1]}],
        }
    )


def records(
    values: Sequence[bytes | None],
    *,
    keys: Sequence[bytes | None] | None = None,
    stamps: Sequence[int] | None = None,
    headers: dict[int, Headers] | None = None,
    first: int = 0,
) -> RecordBatch:
    count = len(values)
    return RecordBatch(
        partition=0,
        offsets=list(range(first, first + count)),
        timestamps_ms=list(stamps) if stamps is not None else [NOW_MS] * count,
        keys=list(keys) if keys is not None else [b"s"] * count,
        values=list(values),
        headers=headers or {},
    )


def part(log: RecordBatch, first: int, last: int) -> RecordBatch:
    return RecordBatch(
        0,
        log.offsets[first:last],
        log.timestamps_ms[first:last],
        log.keys[first:last],
        log.values[first:last],
        {row - first: found for row, found in log.headers.items() if first <= row < last},
    )


def outcomes(batch: EventBatch) -> dict[int, tuple[Any, ...]]:
    """Offset -> what became of its record, to the bit: an event or command, or the reason and detail of a reject."""
    found: dict[int, tuple[Any, ...]] = {
        reject.offset: (reject.reason, reject.detail, reject.key, reject.value, tuple(reject.headers))
        for reject in batch.rejects
    }
    assert [reject.offset for reject in batch.rejects] == sorted(found)
    rows = np.arange(len(batch)) if batch.steps is None else np.repeat(np.arange(len(batch)), batch.steps)
    assert len(rows) == len(batch.x)
    for row, offset in enumerate(batch.offsets.tolist()):
        assert offset not in found
        found[offset] = (
            "event" if batch.ops is None else int(batch.ops[row]) or "event",
            batch.keys[row],
            int(batch.times_ms[row]),
            batch.timestamps_ms[row],
            batch.x[rows == row].tobytes(),
            batch.commands.get(row),
            tuple(batch.headers.get(row, ())),
        )
    return found


def assert_each_record_means_what_it_means(codec: Codec, careful: Codec, log: RecordBatch, cuts: Iterable[int]) -> None:
    """Every record of ``log`` is accounted for, and alike in the whole, alone, between any ``cuts``, and by ``careful``."""
    whole = outcomes(codec.decode(log))
    assert sorted(whole) == log.offsets
    assert outcomes(careful.decode(log)) == whole
    for bounds in (range(len(log) + 1), sorted({0, len(log), *cuts})):
        pieces = [codec.decode(part(log, first, last)) for first, last in pairwise(bounds)]
        assert {row: found for each in pieces for row, found in outcomes(each).items()} == whole
