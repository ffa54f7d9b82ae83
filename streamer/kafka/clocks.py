"""Our clock and the cluster's: how far they are apart, and what to say when it matters. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence

APART_MS = 60_000
"""Clocks that differ by more are told."""


def apart(ahead_ms: int) -> str:
    """A difference for people."""
    return f"{datetime.timedelta(seconds=abs(ahead_ms) // 1000)} (hours:minutes:seconds) {'ahead of' if ahead_ms > 0 else 'behind'}"


def told(ahead_ms: int | None) -> str | None:
    """The sentence for a difference that matters. ``ahead_ms``: our clock minus the cluster's; None: unknown."""
    if ahead_ms is None or abs(ahead_ms) <= APART_MS:
        return None
    return (
        f"the clock of this machine is {apart(ahead_ms)} the cluster's: correct it (NTP). What the service stamps itself "
        "carries a wrong time, and topics may refuse it; answers and windows go by the times of the events and stay right."
    )


def refused(topic: str, now_ms: int, ahead_ms: int | None) -> str:
    """A topic refuses records that we stamped just now: it is the clock, not the record."""
    now = datetime.datetime.fromtimestamp(now_ms / 1000, datetime.UTC).isoformat(timespec="seconds")
    known = told(ahead_ms)
    why = f" The clock is {apart(ahead_ms)} the cluster's." if known and ahead_ms is not None else ""
    return (
        f"topic {topic!r} refuses records of this moment: the clock of this machine says {now}, which is further from the "
        f"broker's than the topic allows (message.timestamp.after.max.ms, message.timestamp.before.max.ms).{why} Correct the "
        f"clock (NTP) of this machine, or of the brokers; or set message.timestamp.type = LogAppendTime on {topic!r}. Nothing "
        "is lost."
    )


class OwnClock:
    """What is known of our clock while the service runs. Where brokers stamp a topic themselves, every answer to what we write
    there tells their time."""

    def __init__(self, now_ms: Callable[[], int], ahead_ms: int | None) -> None:
        """``ahead_ms``: as it was at start; None: unknown."""
        self.ahead_ms = ahead_ms
        self._now_ms = now_ms
        self._told_ms = ahead_ms if told(ahead_ms) else 0

    def appended(self, times_ms: Sequence[int]) -> str | None:
        """Records came back just now with the brokers' times. A sentence when that is news: the clocks are apart, and not by
        what was told before."""
        if not times_ms:
            return None
        self.ahead_ms = self._now_ms() - max(times_ms)
        if abs(self.ahead_ms - (self._told_ms or 0)) <= APART_MS:
            return None
        self._told_ms = self.ahead_ms
        return told(self.ahead_ms)

    def refused(self, topic: str) -> str:
        return refused(topic, self._now_ms(), self.ahead_ms)
