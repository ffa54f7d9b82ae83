"""``state.max_bytes`` is a promise: beyond it the streams that were not used for longest are forgotten, and nothing else
happens. It counts states, keys, and what a stream costs beside them."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np

from streamer.core import I64
from streamer.engine.partition import Partition, Phase
from streamer.state.table import Slots
from streamer.words import Forgotten

_SPARE = 100
"""When the limit is passed, room for this share of it more is made, so that the search is rare."""
_PATIENCE = 4
"""A silent stream keeps its memory for so many TTLs: whether it begins anew is judged per event, and a straggler that comes
up to three TTLs late must find it."""
_IDLE_AT_ONCE = 10_000
"""Streams that one look forgets for their TTL; more of them wait for the next."""


class Memory:
    """Which streams stay."""

    def __init__(self, slots: Slots, max_bytes: int, idle_ttl_ms: int) -> None:
        self.max_bytes = max_bytes
        self._slots = slots
        self._idle_ttl_ms = idle_ttl_ms
        self._looked_ms: int | None = None

    def keep_limit(self, partitions: Iterable[Partition], pending: I64) -> None:
        """Back under the limit. ``pending``: slots whose streams have rows that are not settled yet: they stay."""
        if self._slots.used_bytes <= self.max_bytes:
            return
        owners = [partition for partition in partitions if partition.phase is not Phase.GONE]
        every = [partition.streams.every() for partition in owners]
        slots = np.concatenate(every) if every else np.empty(0, np.int64)
        owner = np.repeat(np.arange(len(owners)), [len(each) for each in every])
        if len(pending):
            free = ~np.isin(slots, pending)
            slots, owner = slots[free], owner[free]
        excess = self._slots.used_bytes - self.max_bytes + self.max_bytes // _SPARE
        most = min(-(-excess // self._slots.bytes_per_stream), len(slots))  # without the keys: that many always suffice
        if not most:
            return
        oldest = np.argpartition(self._slots.used_at[slots], most - 1)[:most]
        oldest = oldest[np.argsort(self._slots.used_at[slots[oldest]], kind="stable")]
        keys = self._slots.keys(slots[oldest])
        sizes = self._slots.bytes_per_stream + np.fromiter(map(len, keys), np.int64, len(keys))
        count = int(np.searchsorted(np.cumsum(sizes), excess)) + 1
        _forget(owners, owner[oldest[:count]], keys[:count], Forgotten.MEMORY)

    def forget_idle(self, partitions: Collection[Partition], now_ms: int) -> None:
        """Streams whose next event begins anew anyway (the rule is judged per event, see ``StepLane``): nothing came for
        several TTLs, neither by the events' own times nor by our clock. Looks every quarter of a TTL, or every ten seconds."""
        ttl = self._idle_ttl_ms
        if not ttl or (self._looked_ms is not None and now_ms - self._looked_ms < min(ttl // 4 + 1, 10_000)):
            return
        left = _IDLE_AT_ONCE
        for partition in partitions:
            slots = partition.streams.every()
            if partition.phase is not Phase.LIVE or not len(slots):
                continue
            idle = slots[now_ms - self._slots.used_at[slots] > _PATIENCE * ttl]
            if len(idle):
                idle = idle[partition.newest_of(idle) < partition.newest_ms - _PATIENCE * ttl][:left]
            partition.forget(self._slots.keys(idle), Forgotten.IDLE)
            left -= len(idle)
        if left:
            self._looked_ms = now_ms


def _forget(owners: list[Partition], owner: I64, streams: list[bytes], reason: Forgotten) -> None:
    by_owner: dict[int, list[bytes]] = {}
    for number, stream in zip(owner.tolist(), streams, strict=True):
        by_owner.setdefault(number, []).append(stream)
    for number, mine in by_owner.items():
        owners[number].forget(mine, reason)
