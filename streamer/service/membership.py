"""What the group has told us, and what the loop made of it.

::

            assigned            adopted              revoked               handed over
    OUT ─────────────> ASSIGNED ───────> OWNING ───────────────> LEAVING ─────────────> OUT
                          ^                │ ^                      │
                          └── assigned ────┘ └── nothing happened ──┘
                             (again, after a failure)

The callbacks only note and wait; the loop looks, acts, and says what it did. An ownership that the group took back stays
what it was: whoever commits with it is fenced by the broker, so nothing has to be decided here about what is late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import StrEnum

from streamer.kafka.group import Ownership


class Standing(StrEnum):
    OUT = "out"
    ASSIGNED = "assigned"
    OWNING = "owning"
    LEAVING = "leaving"


class Membership:
    """Callbacks of the group on one side, the loop on the other."""

    def __init__(self, hand_over_timeout_ms: int, monotonic: Callable[[], float]) -> None:
        self.ownership: Ownership | None = None
        """What commits are fenced with: of the last assignment that was adopted."""
        self._assigned: Ownership | None = None
        self._drained: asyncio.Event | None = None
        self._leaving_since = 0.0
        self._timeout_ms = hand_over_timeout_ms
        self._monotonic = monotonic

    @property
    def standing(self) -> Standing:
        if self._drained is not None:
            return Standing.LEAVING
        if self._assigned is not None:
            return Standing.ASSIGNED
        return Standing.OUT if self.ownership is None else Standing.OWNING

    @property
    def leaving_s(self) -> float:
        """How long the group has been waiting for the hand-over."""
        return self._monotonic() - self._leaving_since if self._drained is not None else 0.0

    def owned(self) -> frozenset[int]:
        """For the assignor: where partitions are now."""
        return frozenset() if self.ownership is None else self.ownership.partitions

    # the group

    async def on_revoked(self) -> None:
        """Awaited by the group before it goes on: until the loop has handed over, or the time is up."""
        if self.ownership is None and self._assigned is None:
            return
        self._assigned = None  # over before it was looked at
        if self._drained is None:
            self._drained, self._leaving_since = asyncio.Event(), self._monotonic()
        try:
            async with asyncio.timeout(self._timeout_ms / 1000):
                await self._drained.wait()
        except TimeoutError:
            return  # the loop still hands over; its commit is fenced if the group was faster

    def on_assigned(self, ownership: Ownership) -> None:
        self._assigned = ownership

    # the loop

    def handed_over(self) -> None:
        assert self._drained is not None, "nobody waits for a hand-over"
        self._drained.set()
        self._drained = None

    def adopt(self) -> Ownership:
        """The new ownership is what counts from now on."""
        assert self._assigned is not None, "nothing was assigned"
        self.ownership, self._assigned = self._assigned, None
        return self.ownership

    def again(self) -> None:
        """After a failure: what is owned is to be taken over anew, unless something newer came."""
        self._assigned = self._assigned or self.ownership
