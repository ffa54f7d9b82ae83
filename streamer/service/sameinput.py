"""Whether the input is still the topic that it was: looked at now and then, and when something is missing."""

from __future__ import annotations

import asyncio

from streamer.errors import KafkaUnavailableError
from streamer.kafka.client import Connection
from streamer.kafka.commit import Committer
from streamer.service.clock import Clock
from streamer.service.membership import Membership
from streamer.service.observer import Observer

_LOOK_S = 5.0
"""Longest that the loop waits for one look."""


class SameInput:
    """A commit looks too; this is for where nothing is committed."""

    def __init__(
        self,
        committer: Committer,
        membership: Membership,
        connection: Connection,
        observer: Observer,
        clock: Clock,
        *,
        max_age_s: float,
    ) -> None:
        """``max_age_s``: between two looks."""
        self._committer = committer
        self._membership = membership
        self._connection = connection
        self._observer = observer
        self._clock = clock
        self._max_age_s = max_age_s
        self._looked_at = 0.0

    async def look(self) -> None:
        """A topic that was deleted and created again is told also where nothing is committed. Raises DataLossError."""
        now = self._clock.monotonic()
        if now - self._looked_at >= self._max_age_s:
            self._looked_at = now
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self.check()
            except (KafkaUnavailableError, TimeoutError) as error:  # told; what is here stays right
                self._observer.failed(self._connection.explain(error, "looking at the input"))

    async def check(self) -> None:
        """Asks the leaders of what we own: who has sent us a record of a new topic knows that it is one."""
        ownership = self._membership.ownership
        await self._committer.same_input(() if ownership is None else ownership.partitions)
