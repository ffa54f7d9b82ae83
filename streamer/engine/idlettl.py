"""After which silence a stream begins anew, in one partition: a replay repeats what was decided, whatever the setting is today."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from streamer.core import I64


class IdleTtls:
    """``state.idle_ttl_ms`` as it was and as it is. ``ttls``: (from which offset on, TTL in ms), in order; 0 ms: never."""

    def __init__(self, ttls: Sequence[tuple[int, int]]) -> None:
        self._ttls = list(ttls)

    @classmethod
    def going_on(cls, before: Sequence[tuple[int, int]], position: int, ttl_ms: int) -> IdleTtls:
        """``before``: as written by the process before; what is below ``position`` was decided by it."""
        kept = [each for each in before if each[0] < position] or [(0, ttl_ms)]
        return cls(kept if kept[-1][1] == ttl_ms else [*kept, (position, ttl_ms)])

    def at(self, offsets: I64) -> I64:
        """[N] TTL in ms that judges each of ``offsets``."""
        since, ttls = np.array(self._ttls, np.int64).T
        found: I64 = ttls[np.maximum(np.searchsorted(since, offsets, side="right") - 1, 0)]
        return found

    def since(self, offset: int) -> tuple[tuple[int, int], ...]:
        """Those that judge ``offset`` or what comes after it."""
        while len(self._ttls) > 1 and self._ttls[1][0] <= offset:
            del self._ttls[0]
        return tuple(self._ttls)
