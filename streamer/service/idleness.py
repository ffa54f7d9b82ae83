"""When a partition is idle, so that its windows may be closed by time: live, and fetches have confirmed position = end of log
without a break for ``idle_ms``. An outage, a restore, our own backlog or a process that stood still is not idleness."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

_CONFIRMATIONS = 3


@dataclass
class _Quiet:
    """A partition whose log holds nothing new ``since_s``, when its position ``end`` was first confirmed to be the end."""

    since_s: float
    end: int
    confirmed_ms: int
    looks_s: deque[float]
    """When we looked and found a new confirmation, the last three times. A response may have waited in its socket while this
    process stood still, but it was asked for after the one before: it tells of the time after ``looks_s[0]``."""


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of one partition. ``position``: next offset that the processor wants; ``log_end``: None before the first
    fetch; ``confirmed_ms``: wall clock of the last fetch response, 0 before the first."""

    partition: int
    live: bool
    position: int
    fetched: int
    log_end: int | None
    confirmed_ms: int


class Idleness:
    """Remembers since when each partition is quiet. Clock readings are arguments: ``now_s`` is monotonic, ``wall_ms`` is not."""

    def __init__(self, idle_ms: int, stale_ms: int) -> None:
        """``stale_ms``: a confirmation that is older than this tells nothing of now."""
        self._idle_ms = idle_ms
        self._stale_ms = stale_ms
        self._quiet: dict[int, _Quiet] = {}

    def elapsed_ms(self, look: Look, now_s: float, wall_ms: int) -> int:
        """How long the partition has been idle, at least ``idle_ms``; 0 when it is not."""
        caught_up = look.log_end is not None and look.fetched >= look.log_end
        if not look.live or not caught_up or wall_ms - look.confirmed_ms >= self._stale_ms:
            self.forget(look.partition)
            return 0
        quiet = self._quiet.get(look.partition)
        if quiet is None or quiet.end != look.position:
            looks_s = deque([now_s] * _CONFIRMATIONS, maxlen=_CONFIRMATIONS)
            self._quiet[look.partition] = _Quiet(now_s, look.position, look.confirmed_ms, looks_s)
            return 0
        if look.confirmed_ms != quiet.confirmed_ms:
            quiet.confirmed_ms = look.confirmed_ms
            quiet.looks_s.append(now_s)
        elapsed_ms = int((quiet.looks_s[0] - quiet.since_s) * 1000)
        return elapsed_ms if elapsed_ms >= self._idle_ms else 0

    def forget(self, partition: int) -> None:
        self._quiet.pop(partition, None)

    def clear(self) -> None:
        self._quiet.clear()
