"""Records become events, some bytes at a time: a poll of large or hostile records takes longer than other tasks (heartbeats,
a hand-over) can wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from streamer.core import EventBatch, RecordBatch
from streamer.records.decode import Codec

PIECE_BYTES = 1 << 20
"""Of values that are decoded without a look at the clock; one value may be larger."""
_YIELD_S = 0.02
"""Longest stretch before other tasks get a turn, but for one piece."""


class Decoding:
    """``given_up``: whether others have waited for too long."""

    def __init__(self, codec: Codec, monotonic: Callable[[], float], given_up: Callable[[], bool]) -> None:
        self._codec, self._monotonic, self._given_up = codec, monotonic, given_up
        self.spent_s = 0.0
        """What the last call took"""

    async def events(self, batches: Sequence[RecordBatch]) -> list[EventBatch] | None:
        """All of ``batches``, in their order, perhaps in more pieces. None: given up."""
        found: list[EventBatch] = []
        begun = last = self._monotonic()
        for piece in chain.from_iterable(map(in_pieces, batches)):
            found.append(self._codec.decode(piece))
            now = self._monotonic()
            if now - last > _YIELD_S:
                await asyncio.sleep(0)
                if self._given_up():
                    return None
                last = self._monotonic()
        self.spent_s = self._monotonic() - begun
        return found


def in_pieces(batch: RecordBatch) -> Iterator[RecordBatch]:
    """The records of a batch: some after the other, of at most ``PIECE_BYTES`` but for a larger value."""
    if _bytes(batch.values) <= PIECE_BYTES:
        yield batch
        return
    first, held = 0, 0
    for row, value in enumerate(batch.values):
        size = len(value or b"")
        if row > first and held + size > PIECE_BYTES:
            yield batch.rows(first, row)
            first, held = row, 0
        held += size
    yield batch.rows(first, len(batch))


def _bytes(values: Sequence[bytes | None]) -> int:
    try:
        return sum(map(len, values))  # type: ignore[arg-type]
    except TypeError:  # one is None
        return sum(len(value or b"") for value in values)
