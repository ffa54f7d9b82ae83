"""When the open epoch is sealed and written. One commit at a time runs beside the loop; how it ended is told to the
processor by the loop itself, between two runs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from streamer.core import Epoch, Outgoing, Reject
from streamer.engine.processor import Processor
from streamer.errors import FencedError
from streamer.kafka.commit import Committer
from streamer.kafka.group import Ownership
from streamer.service.clock import Clock, Times
from streamer.service.sink import Refused, Sink
from streamer.settings import Settings
from streamer.words import Delivery, Outcome

_PUBLISHING = 4
"""Polls whose predictions are in flight ahead of their commit."""
_POLL_TIMEOUT_MS = 50
_SLOW_S = 0.02
"""A model call that a commit would notice: it needs some turns of the event loop for each of its requests"""


class CommitObserver(Protocol):
    """Who is told of commits."""

    def published(self, outgoing: Sequence[Outgoing], now_ms: int) -> None: ...

    def committed(self, outcome: Outcome, epoch: Epoch, times: Times, changelog_bytes: int) -> None: ...


@dataclass
class _Open:
    """The epoch under construction and what was sent of it ahead of the commit."""

    times: Times = field(default_factory=Times)
    publishing: list[asyncio.Task[None]] = field(default_factory=list)
    started: float | None = None
    """When its first records were fetched"""
    refused: Refused = field(default_factory=Refused)
    """What of its answers cannot be written"""


@dataclass
class _Flight:
    """The commit that is under way."""

    epoch: Epoch
    task: asyncio.Task[dict[int, int]]


class Commits:
    """Seals, encodes and commits. An epoch that was sealed here ends here: committed or failed."""

    def __init__(
        self,
        settings: Settings,
        processor: Processor,
        sink: Sink,
        committer: Committer,
        observer: CommitObserver,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._delivery = Delivery(settings.delivery.mode)
        self._processor = processor
        self._sink = sink
        self._committer = committer
        self._observer = observer
        self._clock = clock
        self._open = _Open()
        self._flight: _Flight | None = None
        self._ended_at = 0.0
        self._sliced_at = 0.0
        self.count = 0
        """Epochs that were committed"""

    # the open epoch

    @property
    def times(self) -> Times:
        return self._open.times

    def begin_turn(self) -> None:
        """Time before the first records of an epoch is not its own."""
        if self._open.started is None:
            self._open.times.begin(self._clock.monotonic())

    def records_came(self) -> None:
        if self._open.started is None:
            self._open.started = self._clock.monotonic()

    async def publish(self) -> None:
        """Sends answers as they settle, where they need not wait for the transaction."""
        if self._delivery is Delivery.EXACTLY_ONCE:
            return
        answers, rejects = self._processor.results()
        if not answers and not rejects:
            return
        publishing = self._open.publishing
        while len(publishing) >= _PUBLISHING:
            await publishing.pop(0)
        outgoing, refused = self._sink.encode(answers)
        self._open.refused.add(refused)
        self._open.times.end("encode", self._clock.monotonic())
        task = asyncio.create_task(self._publish(outgoing, [*rejects, *refused]))
        task.add_done_callback(_noticed)
        publishing.append(task)

    async def _publish(self, outgoing: list[Outgoing], rejects: list[Reject]) -> None:
        await self._committer.publish(outgoing, rejects)
        self._observer.published(outgoing, self._clock.now_ms())

    # commit

    def poll_timeout_ms(self) -> int:
        """Until what is open may be committed, so that it is not late."""
        gap_ms = self._settings.delivery.commit_min_gap_ms
        if self._open.started is None:
            return _POLL_TIMEOUT_MS  # a commit under way is looked at with the next records
        if self._flight is not None:
            return gap_ms
        waited_ms = (self._clock.monotonic() - self._ended_at) * 1000
        due_ms = math.ceil(self._interval_ms(drained=True) - waited_ms)
        return due_ms if due_ms > 0 else gap_ms  # past: a replay, which cannot commit yet

    async def maybe(self, ownership: Ownership, *, drained: bool) -> None:
        """At once when the input is drained, else every ``commit_interval_ms``; one commit at a time, and never closer
        to the last one than the broker's marker writing allows. Raises what a commit failed with."""
        now = self._clock.monotonic()
        if self._flight is not None:
            started = self._open.started
            waited = started is not None and now - started > 4 * self._settings.commit_interval_ms / 1000
            if not self._flight.task.done() and not waited:
                return
            await self.finish()
        if now - self._ended_at >= self._interval_ms(drained=drained) / 1000:
            self._begin(ownership)

    def _interval_ms(self, *, drained: bool) -> int:
        eager = drained and self._delivery is Delivery.EXACTLY_ONCE
        return self._settings.delivery.commit_min_gap_ms if eager else self._settings.commit_interval_ms

    def _begin(self, ownership: Ownership) -> None:
        assert self._flight is None
        now = self._clock.monotonic()
        epoch = self._processor.seal(int(now * 1000), self._slice_bytes(now))
        if epoch is None:
            return
        self._sliced_at = now
        opened, self._open = self._open, _Open()
        self._open.times.begin(now)
        if opened.started is None:
            opened.times.begin(now)
        task = asyncio.create_task(self._commit(epoch, ownership, opened))
        task.add_done_callback(_noticed)
        self._flight = _Flight(epoch, task)

    def _slice_bytes(self, now: float) -> int:
        """Spreads a round over half its interval, since a large slice delays what is committed with it; at most the byte
        budget, which comes first when memory changes faster than that."""
        delivery = self._settings.delivery
        pace = self._processor.round_bytes / (delivery.checkpoint_interval_ms / 2000)
        return int(min(pace, delivery.checkpoint_bytes_per_second) * max(min(now - self._sliced_at, 1.0), 0.0))

    async def _commit(self, epoch: Epoch, ownership: Ownership, opened: _Open) -> dict[int, int]:
        before, outcome = self._committer.bytes_written, Outcome.FAILED
        try:
            transaction, refused = self._sink.transaction(epoch)
            opened.refused.add(refused)
            opened.times.end("encode", self._clock.monotonic())
            await asyncio.gather(*opened.publishing)
            ends = await self._committer.commit(transaction, ownership)
            outcome = Outcome.COMMITTED
        except FencedError:
            outcome = Outcome.FENCED
            raise
        finally:
            self._ended_at = self._clock.monotonic()
            opened.times.end("commit", self._ended_at)
            told = replace(epoch, report=opened.refused.told(epoch.report))
            self._observer.committed(outcome, told, opened.times, self._committer.bytes_written - before)
        if transaction.outgoing:
            self._observer.published(transaction.outgoing, self._clock.now_ms())
        return ends

    async def let_go_on(self, spent_s: float) -> None:
        """After a model call of ``spent_s``: other tasks get a turn, and the commit under way as much time as a slow model
        took. Else all of its time would pass in the turns that it waits for."""
        await self.go_first(spent_s if spent_s > _SLOW_S else 0.0)

    async def go_first(self, most_s: float) -> None:
        """Before work that can wait: other tasks get a turn, and the commit under way the time that it needs, up to
        ``most_s``."""
        if self._flight is not None and most_s:
            await asyncio.wait({self._flight.task}, timeout=most_s)
        else:
            await asyncio.sleep(0)
        self._open.times.end("wait", self._clock.monotonic())

    async def finish(self) -> bool:
        """Awaits the commit under way; whether there was one. Raises what it failed with: its partitions are gone then."""
        flight = self._flight
        if flight is None:
            return False
        try:
            ends = await flight.task
        except BaseException:
            self._end(None)
            raise
        self._end(ends)
        return True

    def _end(self, ends: dict[int, int] | None) -> None:
        """The one place where an epoch ends."""
        flight, self._flight = self._flight, None
        assert flight is not None
        if ends is None:
            flight.task.cancel()
            self._processor.failed(flight.epoch)
        else:
            self._processor.committed(flight.epoch, ends)
            self.count += 1

    async def settle_all(self, ownership: Ownership) -> None:
        """Commits everything that is open: first the commit in flight, then what was run beside it."""
        await self.finish()
        self._begin(ownership)
        await self.finish()
        await asyncio.gather(*self._open.publishing)

    async def give_up(self) -> None:
        """Ends the commit under way and all publications, whatever becomes of them."""
        if self._flight is not None:
            self._end(None)
        for task in self._open.publishing:
            task.cancel()
        self._open = _Open()
        await self._committer.abandon()


def _noticed(task: asyncio.Task[Any]) -> None:
    """Who gives up does not await what it gave up; asyncio would log the failure of each."""
    if not task.cancelled():
        task.exception()
