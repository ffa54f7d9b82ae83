"""The asyncio shell: fetch, hand over, run, commit, repeat; signals, drain, health. Nothing about sequences is decided here.

One task (``run``) owns the processor. A commit runs beside it while the next epoch is fetched and run (``commits``); group
callbacks only note and wait (``membership``); partitions are restored beside it (``takeover``). During a rebalance nothing
is fetched; afterwards kept partitions go on, and new ones join them one by one as they are restored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from streamer.core import EventBatch, RecordBatch
from streamer.engine.processor import Processor
from streamer.errors import DataLossError, FencedError, KafkaUnavailableError
from streamer.kafka.client import Connection
from streamer.kafka.commit import Committer
from streamer.kafka.group import Group
from streamer.kafka.input import Input
from streamer.observe.view import View
from streamer.records.decode import Codec
from streamer.service.clock import Clock
from streamer.service.commits import Commits
from streamer.service.decoding import Decoding
from streamer.service.fenced import Fenced
from streamer.service.holding import Holding
from streamer.service.membership import Membership, Standing
from streamer.service.observer import Observer
from streamer.service.pace import Pace
from streamer.service.sameinput import SameInput
from streamer.service.schemas import Schemas
from streamer.service.takeover import Takeover
from streamer.service.watch import Watch
from streamer.settings import Settings

_YIELD_S = 0.02
"""Longest stretch of model calls before other tasks (heartbeats, the commit) get a turn."""
_HAND_OVER_S = 1.0
"""When a hand-over waits for so long, work that is still running is given up: who comes next does it again."""
_ROLLING_POLL_MS = 1
"""While sequences are generated: between their steps live records are looked for, and not waited for."""
_ROLL_S = 0.004
"""So long steps of sequences are made in a turn, and then the one that is under way: live records wait no longer."""
_ROLL_WAIT_S = 0.016
"""So long they wait for a commit under way: answers to live records are in it, and each of its requests needs turns of the
event loop. Sequences come to their ends all the same, at about a fifth of their speed or more."""
_RETRY_MS = 500


class Service:
    """Wires the parts together. ``run`` returns after a drain, or raises the error that ends the process."""

    def __init__(
        self,
        settings: Settings,
        processor: Processor,
        codec: Codec,
        *,
        connection: Connection,
        membership: Membership,
        group: Group,
        reader: Input,
        committer: Committer,
        commits: Commits,
        takeover: Takeover,
        observer: Observer,
        clock: Clock,
        schemas: Schemas | None = None,
    ) -> None:
        self._settings = settings
        self.processor = processor
        self._decoding = Decoding(codec, clock.monotonic, lambda: membership.leaving_s > _HAND_OVER_S)
        self._membership = membership
        self._group = group
        self._reader = reader
        self._committer = committer
        self._commits = commits
        self._takeover = takeover
        self._observer = observer
        self._clock = clock
        self._schemas = schemas
        self.stopping = asyncio.Event()
        stale_ms = max(1000, 10 * settings.fetch_max_wait_ms)
        self._watch = Watch(reader, processor, clock, idle_ms=settings.delivery.idle_ms, stale_ms=stale_ms)
        self._pace = Pace(settings.batch.max_poll_records)
        max_age_s = settings.kafka.metadata_max_age_ms / 1000
        self._same_input = SameInput(committer, membership, connection, observer, clock, max_age_s=max_age_s)
        self.holding = Holding(
            processor, membership=membership, reader=reader, committer=committer, commits=commits, takeover=takeover,
            watch=self._watch, observer=observer, clock=clock, schemas=schemas,
        )  # fmt: skip
        self._fenced = Fenced()

    # the loop

    async def run(self) -> None:
        """Until ``stopping`` is set; then drains: commits what is open and leaves the group."""
        try:
            for part in (self._reader, self._committer, self._group):
                await part.start()
            while not self.stopping.is_set():
                await self._turn()
            await self._drain()
        except BaseException as error:
            self._observer.failed(error)
            raise
        finally:
            await self._close()

    async def _turn(self) -> None:
        self._observer.tick(self.view)
        self._group.check()
        try:
            await self._go_on()
        except (FencedError, KafkaUnavailableError) as error:
            await self._recover(error)

    async def _go_on(self) -> None:
        try:
            match self._membership.standing:
                case Standing.LEAVING:
                    await self._hand_over()
                case Standing.ASSIGNED:
                    await self.holding.adopt()
                case Standing.OWNING:
                    self.holding.take_over()
                    await self._same_input.look()
                    await self._step()
                case Standing.OUT:
                    await asyncio.sleep(0.01)
        except DataLossError:
            await self._same_input.check()  # raises the better reason, if there is one
            raise

    async def _step(self) -> None:
        """One poll and all that follows from it."""
        ownership = self._membership.ownership
        assert ownership is not None
        if not self.processor.partitions:
            await asyncio.sleep(0.01)
            return
        clock, commits = self._clock, self._commits
        commits.begin_turn()
        timeout_ms = _ROLLING_POLL_MS if self.processor.rolling else commits.poll_timeout_ms()
        asked = min(self._pace.records, self.processor.room)
        batches = await self._reader.poll(asked, timeout_ms) if asked else []
        commits.times.end("fetch", clock.monotonic())
        if self._schemas is not None:
            batches = await self._schemas.ready(batches)
        owning = self._membership.standing is Standing.OWNING
        if owning and batches:
            commits.records_came()
        events = await self._decoding.events(batches) if owning else None
        commits.times.end("decode", clock.monotonic())
        if events is None:
            self.holding.fetch_from_here()  # these records belong to whoever comes next
            return
        await self._process(batches, events)
        await self._watch_idle()
        await commits.maybe(ownership, drained=sum(map(len, batches)) < asked)
        if self.processor.rolling:
            await self._roll()

    async def _process(self, batches: Sequence[RecordBatch], events: Sequence[EventBatch]) -> None:
        held = set() if self._schemas is None else self._schemas.held
        news = [*events, *self._passed({batch.partition for batch in batches} | held)]
        if not news:  # as of most turns where few records come
            return
        self._watch.came(batches)
        self.processor.ingest(news)
        self._commits.times.end("wait", self._clock.monotonic())
        self._pace.note(sum(map(len, batches)), await self._run() + self._decoding.spent_s)

    def _passed(self, fetched: set[int]) -> list[EventBatch]:
        """Positions follow the reader past markers and aborted records, where nothing is left that would be delivered."""
        rest = (each for number, each in self.holding.fetching.items() if number not in fetched and each.running)
        reached = ((each, self._reader.next_fetch_offset(each.number)) for each in rest)
        none = self.processor.no_events
        return [EventBatch.empty(each.number, at, none) for each, at in reached if at > each.next_offset]

    async def _run(self) -> float:
        """All pending work; how long model calls took. Gives it up when a hand-over has waited for too long."""
        clock, times = self._clock, self._commits.times
        last = begun = clock.monotonic()
        seconds: list[float] = []
        for _ in self.processor.run():
            now = clock.monotonic()
            seconds.append(now - last)
            if now - begun > _YIELD_S:
                times.end("run", now)
                await self._commits.let_go_on(seconds[-1])
                if self._membership.leaving_s > _HAND_OVER_S:
                    self.processor.abandon()
                    break
                begun = now = clock.monotonic()
            last = now
        times.end("run", clock.monotonic())
        self._observer.ran(seconds)
        await self._commits.publish()
        return sum(seconds)

    async def _roll(self) -> None:
        """Steps of what is being generated, after the commit that has just begun. Their number changes no answer."""
        await self._commits.go_first(_ROLL_WAIT_S)
        began = last = self._clock.monotonic()
        seconds: list[float] = []
        while self.processor.roll():
            now = self._clock.monotonic()
            seconds.append(now - last)
            last = now
            if now - began >= _ROLL_S or not self.processor.rolling:
                break
        self._commits.times.end("run", last)
        self._observer.ran(seconds)
        await self._commits.publish()
        await self._commits.let_go_on(max(seconds, default=0.0))

    # rebalance and recovery

    async def _hand_over(self) -> None:
        """Before a rebalance: commit what is open, then let the group go on."""
        await self.holding.hand_over()
        while self._membership.standing is Standing.OWNING and not self.stopping.is_set():
            self._group.check()
            self._observer.tick(self.view)
            await asyncio.sleep(0.01)

    async def _recover(self, error: FencedError | KafkaUnavailableError) -> None:
        """Never go on with state that ran ahead of the log: it is dropped, and what is still ours is restored."""
        self._observer.failed(error)
        await self.holding.forget_all()
        if isinstance(error, FencedError):
            self._fenced.note(error, self._commits.count)
        deadline = self._clock.monotonic() + _RETRY_MS / 1000
        while self._clock.monotonic() < deadline and self._membership.standing in (Standing.OWNING, Standing.OUT):
            self._group.check()
            await asyncio.sleep(0.02)
        self._membership.again()

    async def _watch_idle(self) -> None:
        """Closes the windows whose time has come although no record did."""
        for number, elapsed_ms in self._watch.idle(self.holding.fetching):
            self.processor.idle(number, elapsed_ms)
            await self._run()

    # what is shown

    @property
    def ready(self) -> bool:
        """Every partition that we own is restored and replayed."""
        return self._membership.standing is Standing.OWNING and self.holding.complete

    @property
    def group(self) -> Group:
        return self._group

    def view(self) -> View:
        processor = self.processor
        slots, partitions = processor.lanes.slots, self._watch.partitions(self.holding.fetching)
        open_windows = [each.windows.windows for each in processor.partitions.values() if each.windows is not None]
        return View(
            ready=self.ready,
            draining=self.stopping.is_set(),
            topic=self._reader.topic,
            input_partitions=self._group.partitions,
            partitions=partitions,
            pending_events=processor.open_events,
            streams=slots.used,
            streams_limit=processor.max_streams,
            state_bytes=slots.used_bytes,
            windows_open=sum(each.open_windows for each in open_windows),
            rollouts_open=processor.lanes.generators.open,
            decodings_open=sum(len(each.decodings) for each in processor.partitions.values()),
            waits_for=None if self._schemas is None else self._schemas.cause,
            waiting_records=0 if self._schemas is None else self._schemas.records,
            clock_ahead_ms=self._committer.clock.ahead_ms,
            other_machines={n: other for n, other in self._takeover.other_machines.items() if n in partitions},
        )

    # end

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self._settings.delivery.drain_timeout_ms / 1000):
                if self.processor.partitions and self._membership.ownership is not None:
                    await self._commits.settle_all(self._membership.ownership)
        except (FencedError, KafkaUnavailableError) as error:
            self._observer.failed(error)
        except TimeoutError:
            self._observer.failed(KafkaUnavailableError("drain: the last commit did not finish in time"))

    async def _close(self) -> None:
        await self._takeover.stop()
        if self._schemas is not None:
            await self._schemas.stop()
        await self._commits.give_up()
        await self._group.stop()
        await self._committer.stop()
        await self._reader.stop()
