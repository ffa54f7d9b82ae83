"""What is true of one step model in one partition, and is not in its arena."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from streamer.core import I64, Flags
from streamer.records.changelog import DECISIONS_PER_RECORD


class Decisions:
    """Offsets that the model refused. A replay that meets them again skips them, until a stream record reflects them.

    Each epoch writes those that it made, as records of their own: the progress record does not grow with them."""

    def __init__(self) -> None:
        self._written: dict[int, I64] = {}
        """First offset of a changelog record -> all of its offsets"""
        self._fresh: list[int] = []

    def __len__(self) -> int:
        return sum(map(len, self._written.values())) + len(self._fresh)

    def restore(self, first: int, offsets: I64) -> None:
        self._written[first] = offsets

    def note(self, offset: int) -> None:
        self._fresh.append(offset)

    def among(self, offsets: I64) -> Flags | None:
        """[N] which of ``offsets`` are decided; None: none is."""
        known = [each for each in self._written.values() if each[-1] >= offsets[0] and each[0] <= offsets[-1]]
        if not known:
            return None
        found: Flags = np.isin(offsets, np.concatenate(known))
        return found if found.any() else None

    def take(self) -> list[I64]:
        """Those of the open epoch, in pieces that fit a record."""
        if not self._fresh:
            return []
        fresh, self._fresh = np.unique(np.array(self._fresh, np.int64)), []
        pieces = [fresh[at : at + DECISIONS_PER_RECORD] for at in range(0, len(fresh), DECISIONS_PER_RECORD)]
        for piece in pieces:
            first = int(piece[0])
            self._written[first] = np.union1d(self._written.get(first, piece), piece)
        return pieces

    def drop_before(self, offset: int) -> list[int]:
        """First offsets of the records that no replay needs any more."""
        if not self._written:
            return []
        gone = [first for first, offsets in self._written.items() if offsets[-1] < offset]
        for first in gone:
            del self._written[first]
        return gone


class LaneTruth:
    """Of one step model in one partition. Streams have a ``through`` per model: one may have a record where another has
    none yet."""

    def __init__(self, since: int) -> None:
        self.since = since
        """Where the model's present regime began: events below are none of its own."""
        self.forgotten: dict[bytes, int] = {}
        """Streams whose record without state waits for its tombstone: stream -> through."""
        self.decisions = Decisions()
        self.quiet_ms = -(2**62)
        """Of a model that emits: until the partition's clock has passed this, it ends no utterance."""

    def due(self, keys: list[bytes], offsets: I64, through: I64) -> tuple[Flags, Flags | None]:
        """In a replay: [N] rows that the model's states do not reflect yet, and which of them it refused before."""
        due = (offsets > through) & (offsets >= self.since)
        if self.forgotten:
            forgotten = self.forgotten
            due &= np.fromiter(
                (forgotten.get(key, -1) < offset for key, offset in zip(keys, offsets.tolist(), strict=True)),
                bool,
                len(keys),
            )
        return due, self.decisions.among(offsets)

    def returned(self, keys: Iterable[bytes]) -> None:
        """Streams that have a state again: their next record replaces the one without."""
        if self.forgotten:
            for key in keys:
                self.forgotten.pop(key, None)
