"""The asyncio shell: fetch, hand over, run, commit, repeat; signals, drain, health. Nothing about sequences is decided here.

One task (``run``) owns the processor. A commit runs beside it while the next epoch is fetched and run; group callbacks
only set flags and wait. During a rebalance nothing is fetched; afterwards kept partitions go on, and new ones join them
one by one as they are recovered.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from streamer.core import I64, Epoch, EventBatch, Outgoing, Reject
from streamer.engine.ledger import Ledger
from streamer.engine.processor import Processor
from streamer.errors import FencedError, KafkaUnavailableError
from streamer.kafka.commit import Committer
from streamer.kafka.group import Group, Ownership
from streamer.kafka.input import Input
from streamer.records.decode import Codec
from streamer.service.clock import Clock, SystemClock, Times
from streamer.service.idleness import Idleness, Look
from streamer.service.recovery import Recovery, RestoreState

_PUBLISHING = 4
_YIELD_S = 0.02
"""Longest stretch of model calls before other tasks (heartbeats, the commit) get a turn."""
_ROLLING_POLL_MS = 1
"""While sequences are generated: between two of their steps live records are looked for, and not waited for."""


@dataclass(frozen=True)
class ServiceOptions:
    """What the loop must know of the settings. ``delivery``: exactly-once | at-least-once | ephemeral."""

    delivery: str
    commit_interval_ms: int = 100
    commit_min_gap_ms: int = 3
    checkpoint_bytes_per_second: int = 20_000_000
    checkpoint_interval_ms: int = 10_000
    max_poll_records: int = 16_384
    poll_timeout_ms: int = 50
    fetch_max_wait_ms: int = 16
    fetch_min_bytes: int = 100_000
    drain_timeout_ms: int = 20_000
    idle_ms: int = 30_000
    max_fenced: int = 5
    retry_ms: int = 500


class Observer(Protocol):
    """What the loop reports, at most a few calls per poll or commit."""

    def polled(self, records: int, rejects: Sequence[Reject]) -> None: ...

    def settled(self, processor: Processor, run_seconds: Sequence[float]) -> None: ...

    def published(self, outgoing: Sequence[Outgoing], now_ms: int) -> None: ...

    def committed(self, outcome: str, epoch: Epoch, times: Times, changelog_bytes: int) -> None: ...

    def assigned(self, partitions: Sequence[int]) -> None: ...

    def restoring(self, partition: int, state: RestoreState) -> None: ...

    def recovered(self, partitions: Sequence[int], kept: Sequence[int], seconds: float) -> None: ...

    def failed(self, error: BaseException) -> None: ...

    def tick(self, service: Service) -> None: ...


@dataclass
class _Open:
    """The epoch under construction and what was sent of it ahead of the commit."""

    times: Times = field(default_factory=Times)
    publishing: list[asyncio.Task[None]] = field(default_factory=list)
    started: float | None = None


@dataclass
class _Restoring:
    """A recovery that runs beside the loop."""

    began: float
    cold: frozenset[int]
    kept: list[int]
    found: dict[int, Ledger] = field(default_factory=dict)
    """Partitions that are ready and that the loop has not taken up yet."""
    task: asyncio.Task[None] | None = None
    restored: float | None = None


class Service:
    """Wires the parts together. ``run`` returns after a drain, or raises the error that ends the process."""

    def __init__(
        self,
        options: ServiceOptions,
        processor: Processor,
        codec: Codec,
        *,
        make_group: Callable[[Service], Group],
        reader: Input,
        make_committer: Callable[[Group], Committer],
        make_recovery: Callable[[Service, Group, Committer], Recovery],
        observer: Observer,
        clock: Clock | None = None,
    ) -> None:
        self.options = options
        self.processor = processor
        self.reader = reader
        self._codec = codec
        self._clock = clock or SystemClock()
        self._observer = observer
        self.group = make_group(self)
        self.committer = make_committer(self.group)
        self._recovery = make_recovery(self, self.group, self.committer)
        self.stopping = asyncio.Event()
        self.ownership: Ownership | None = None
        self._assignment: Ownership | None = None
        self._revoking: asyncio.Event | None = None
        self.warm: dict[int, int] = {}
        self._commit: asyncio.Task[None] | None = None
        self._committed_at = 0.0
        self._sliced_at = 0.0
        self._open = _Open()
        self._restoring: _Restoring | None = None
        self._fenced = 0
        self._idleness = Idleness(options.idle_ms, stale_ms=max(1000, 10 * options.fetch_max_wait_ms))
        self.outage_since: float | None = None
        self.ready = False
        """Every partition that we own is restored and replayed."""
        self.recovery_s: dict[str, float] = {}
        """Of the last recovery: wait (for transactions of others), restore, replay."""

    # group callbacks: set flags, wait, nothing else

    def owned(self) -> frozenset[int]:
        return self.ownership.partitions if self.ownership else frozenset()

    async def on_revoked(self) -> None:
        """Awaited by the group before it goes on: the open epoch is committed or given up within one deadline."""
        if self.ownership is None:
            return
        drained = self._revoking = asyncio.Event()
        try:
            async with asyncio.timeout(self.options.drain_timeout_ms / 1000):
                await drained.wait()
        except TimeoutError:
            self.ownership = None  # what is still open can no longer be committed; recovery drops it

    def on_assigned(self, ownership: Ownership) -> None:
        self._revoking = None
        self._assignment = ownership

    # the loop

    async def run(self) -> None:
        """Until ``stopping`` is set; then drains: commits what is open and leaves the group."""
        await self.reader.start()
        try:
            await self.committer.start()
            await self.group.start()
            while not self.stopping.is_set():
                await self._turn()
            await self._drain()
        except BaseException as error:
            self._observer.failed(error)
            raise
        finally:
            await self._close()

    async def _turn(self) -> None:
        self._observer.tick(self)
        self.group.check()
        if self._revoking is not None:
            await self._hand_over()
        elif self._assignment is not None:
            await self._adopt()
        else:
            try:
                self._take_over()
                if self.processor.ledgers:
                    await self._step()
                else:
                    await asyncio.sleep(0.01)
            except (FencedError, KafkaUnavailableError) as error:
                await self._fail(error)

    async def _step(self) -> None:
        """One poll and all that follows from it."""
        clock, times = self._clock, self._open.times
        if self._open.started is None:
            times.begin(clock.monotonic())
        batches = await self.reader.poll(self.options.max_poll_records, self._poll_timeout_ms())
        times.end("fetch", clock.monotonic())
        if self._revoking is None and self._assignment is None and batches:
            if self._open.started is None:
                self._open.started = clock.monotonic()
            decoded = [self._codec.decode(batch) for batch in batches]
            times.end("decode", clock.monotonic())
            await self._process(decoded)
        elif batches:  # a rebalance began while the poll was out: these records belong to whoever comes next
            self._fetch_from_here()
            return
        await self._watch_idle()
        await self._roll()
        await self._maybe_commit(drained=sum(map(len, batches)) < self.options.max_poll_records)

    async def _process(self, decoded: list[EventBatch]) -> None:
        self.processor.ingest(decoded)
        self._open.times.end("wait", self._clock.monotonic())
        self._observer.polled(
            sum(len(batch) for batch in decoded), [reject for batch in decoded for reject in batch.rejects]
        )
        await self._run()

    async def _run(self) -> None:
        clock, times = self._clock, self._open.times
        last = begun = clock.monotonic()
        seconds: list[float] = []
        for _ in self.processor.run():
            now = clock.monotonic()
            seconds.append(now - last)
            if now - begun > _YIELD_S:
                times.end("run", now)
                await asyncio.sleep(0)
                begun = clock.monotonic()
                times.end("wait", begun)
                now = begun
            last = now
        times.end("run", clock.monotonic())
        self._observer.settled(self.processor, seconds)
        if self.options.delivery != "exactly-once":
            await self._publish()

    async def _roll(self) -> None:
        """One step of what is being generated: a live event waits for no more than that."""
        if not len(self.processor.rollouts):
            return
        began = self._clock.monotonic()
        self.processor.roll()
        ended = self._clock.monotonic()
        self._open.times.end("run", ended)
        self._observer.settled(self.processor, [ended - began])
        if self.options.delivery != "exactly-once":
            await self._publish()

    async def _publish(self) -> None:
        """Sends predictions as they settle, at most ``_PUBLISHING`` polls of them in flight."""
        outgoing, rejects = self.processor.results()
        if not outgoing and not rejects:
            return
        publishing = self._open.publishing
        while len(publishing) >= _PUBLISHING:
            await publishing.pop(0)
        self._open.times.end("encode", self._clock.monotonic())
        publishing.append(asyncio.create_task(self._publish_now(outgoing, rejects)))

    async def _publish_now(self, outgoing: list[Outgoing], rejects: list[Reject]) -> None:
        await self.committer.publish(outgoing, rejects)
        self._observer.published(outgoing, self._clock.now_ms())

    # commit

    async def _maybe_commit(self, *, drained: bool) -> None:
        """At once when the input is drained, else every ``commit_interval_ms``; one commit at a time, and never closer
        to the last one than the broker's marker writing allows."""
        options, now = self.options, self._clock.monotonic()
        if self._commit is not None:
            waited = self._open.started is not None and now - self._open.started > 4 * options.commit_interval_ms / 1000
            if not self._commit.done() and not waited:
                return
            await self._finish_commit()
        if now - self._committed_at >= self._commit_interval_ms(drained=drained) / 1000:
            await self._begin_commit()

    def _commit_interval_ms(self, *, drained: bool) -> int:
        eager = drained and self.options.delivery == "exactly-once"
        return self.options.commit_min_gap_ms if eager else self.options.commit_interval_ms

    async def _begin_commit(self) -> None:
        assert self._commit is None
        now = self._clock.monotonic()
        epoch = self.processor.seal(self._clock.now_ms(), self._slice_bytes(now))
        if epoch is None or self.ownership is None:
            return
        self._sliced_at = now
        opened, self._open = self._open, _Open()
        self._open.times.begin(now)
        if opened.started is None:
            opened.times.begin(now)
        opened.times.end("encode", self._clock.monotonic())
        self._commit = asyncio.create_task(self._commit_now(epoch, self.ownership, opened))

    def _slice_bytes(self, now: float) -> int:
        """Spreads a round over half its interval, since a large slice delays what is committed with it; at most the byte
        budget, which comes first when memory changes faster than that."""
        options = self.options
        pace = self.processor.round_bytes / (options.checkpoint_interval_ms / 2000)
        return int(min(pace, options.checkpoint_bytes_per_second) * max(min(now - self._sliced_at, 1.0), 0.0))

    async def _commit_now(self, epoch: Epoch, ownership: Ownership, opened: _Open) -> None:
        before = self.committer.bytes_written
        outcome = "failed"
        try:
            await asyncio.gather(*opened.publishing)
            self.warm.update(await self.committer.commit(epoch, ownership))
            outcome = "committed"
        except FencedError:
            outcome = "fenced"
            raise
        finally:
            self._committed_at = self._clock.monotonic()
            opened.times.end("commit", self._committed_at)
            self._observer.committed(outcome, epoch, opened.times, self.committer.bytes_written - before)
        if epoch.outgoing:
            self._observer.published(epoch.outgoing, self._clock.now_ms())

    async def _finish_commit(self) -> None:
        commit, self._commit = self._commit, None
        if commit is not None:
            await commit
            self._fenced = 0
            self.outage_since = None

    async def _settle_all(self) -> None:
        """Commits everything that is open: first the commit in flight, then what was run beside it."""
        await self._finish_commit()
        await self._begin_commit()
        await self._finish_commit()
        await asyncio.gather(*self._open.publishing)

    # rebalance and recovery

    async def _hand_over(self) -> None:
        """Before a rebalance: commit what is open, then let the group go on."""
        revoking = self._revoking
        assert revoking is not None
        try:
            await self._settle_all()
        except (FencedError, KafkaUnavailableError) as error:
            self._observer.failed(error)
            await self._forget_all()
        finally:
            if self.options.delivery == "ephemeral":
                self._idleness.clear()
            self._revoking = None
            revoking.set()
        while self._assignment is None and self._revoking is None and not self.stopping.is_set():
            self.group.check()
            self._observer.tick(self)
            await asyncio.sleep(0.01)

    async def _adopt(self) -> None:
        """After an assignment: drop what is gone, keep what did not change, begin to recover the rest."""
        ownership, self._assignment = self._assignment, None
        assert ownership is not None
        began = self._clock.monotonic()
        await self._drop_commit()
        await self._stop_restoring()
        for partition in set(self.processor.ledgers) - ownership.partitions:
            self._forget(partition)
        self.ownership = ownership
        self.ready = False
        self._observer.assigned(sorted(ownership.partitions))
        self.reader.assign({})
        try:
            await self.committer.ready()
            kept = await self._recovery.unchanged({p: self.warm[p] for p in self.processor.ledgers if p in self.warm})
        except KafkaUnavailableError as error:
            self._observer.failed(error)
            self.outage_since = self.outage_since or began
            await self._forget_all()
            await asyncio.sleep(self.options.retry_ms / 1000)
            self._assignment = self._assignment or ownership
            return
        cold = ownership.partitions - kept
        for partition in cold:
            self._forget(partition)
        self._fetch_from_here()
        self._idleness.clear()
        self._open = _Open()
        self._restoring = restoring = _Restoring(began, cold, sorted(kept))

        def found(partition: int, ledger: Ledger, end: int) -> None:
            restoring.found[partition] = ledger
            self.warm[partition] = end

        restoring.task = asyncio.create_task(self._recovery.restore(cold, found))

    def _take_over(self) -> None:
        """Takes up the partitions that are restored by now; all are live when the last replay has ended. Raises what ended
        the recovery."""
        restoring = self._restoring
        if restoring is None or restoring.task is None:
            return
        done = restoring.task.done()
        if restoring.found:
            for partition, ledger in restoring.found.items():
                self.processor.assign(partition, ledger)
            restoring.found.clear()
            self._fetch_from_here()
        if not done:
            return
        restoring.task.result()
        now = self._clock.monotonic()
        restoring.restored = restoring.restored or now
        if any(ledger.replaying for ledger in self.processor.ledgers.values()):
            return
        self._restoring = None
        self.ready = True
        waited = self._recovery.undecided_s
        self.recovery_s = {
            "wait": waited,
            "restore": restoring.restored - restoring.began - waited,
            "replay": now - restoring.restored,
        }
        self._observer.recovered(sorted(restoring.cold), restoring.kept, now - restoring.began)

    async def _stop_restoring(self) -> None:
        """Gives up a recovery that is under way; what of it is complete stays."""
        restoring, self._restoring = self._restoring, None
        if restoring is None or restoring.task is None:
            return
        restoring.task.cancel()
        await asyncio.gather(restoring.task, return_exceptions=True)
        for partition, ledger in restoring.found.items():
            self.processor.assign(partition, ledger)
        for partition in restoring.cold - self.processor.ledgers.keys():
            self._forget(partition)

    def _fetch_from_here(self) -> None:
        """Fetches what is owned and ready, each partition from its next offset; what was prefetched is dropped."""
        self.reader.assign({part: ledger.next_offset for part, ledger in self.processor.ledgers.items()})

    async def _fail(self, error: FencedError | KafkaUnavailableError) -> None:
        """A commit failed: never go on with state that ran ahead of the log. Drop it, and recover what is still ours."""
        self._observer.failed(error)
        await self._forget_all()
        if isinstance(error, FencedError):
            self._fenced += 1
            if self._fenced >= self.options.max_fenced:
                raise KafkaUnavailableError(
                    f"fenced {self._fenced} times without a rebalance: {error}. Does another process use this "
                    "kafka.instance, or may this principal not commit?"
                ) from error
        else:
            self.outage_since = self.outage_since or self._clock.monotonic()
        deadline = self._clock.monotonic() + self.options.retry_ms / 1000
        while self._clock.monotonic() < deadline and self._assignment is None and self._revoking is None:
            self.group.check()
            await asyncio.sleep(0.02)
        if self._assignment is None and self._revoking is None:
            self._assignment = self.ownership

    async def _drop_commit(self) -> None:
        commit, self._commit = self._commit, None
        if commit is not None:
            try:
                await commit
            except (FencedError, KafkaUnavailableError) as error:
                self._observer.failed(error)
                await self._forget_all()

    def _forget(self, partition: int) -> None:
        self.processor.revoke(partition)
        self.warm.pop(partition, None)
        self._idleness.forget(partition)

    async def _forget_all(self) -> None:
        await self._stop_restoring()
        self.processor.abandon()
        self.warm.clear()
        self._idleness.clear()
        for task in self._open.publishing:
            task.cancel()
        self._open = _Open()
        self.ready = False
        if self._commit is not None:
            self._commit.cancel()
        self._commit = None

    # idleness

    def _poll_timeout_ms(self) -> int:
        """Until what is open may be committed, so that it is not late."""
        options = self.options
        if len(self.processor.rollouts):
            return _ROLLING_POLL_MS
        if self._open.started is None:
            return options.poll_timeout_ms  # a commit under way is looked at with the next records
        if self._commit is not None:
            return options.commit_min_gap_ms
        due_ms = math.ceil(
            self._commit_interval_ms(drained=True) - (self._clock.monotonic() - self._committed_at) * 1000
        )
        return due_ms if due_ms > 0 else options.commit_min_gap_ms  # past: a replay, which cannot commit yet

    async def _watch_idle(self) -> None:
        """Closes the windows whose time has come although no record did."""
        if not self.processor.windows:
            return
        now_s, wall_ms, reader = self._clock.monotonic(), self._clock.now_ms(), self.reader
        for partition, ledger in self.processor.ledgers.items():
            look = Look(
                partition=partition,
                live=not ledger.replaying,
                position=ledger.next_offset,
                fetched=reader.next_fetch_offset(partition),
                log_end=reader.log_end(partition),
                confirmed_ms=reader.confirmed_at_ms(partition),
            )
            if elapsed_ms := self._idleness.elapsed_ms(look, now_s, wall_ms):
                self.processor.idle(partition, elapsed_ms)
                await self._run()

    # end

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self.options.drain_timeout_ms / 1000):
                if self.processor.ledgers and self.ownership is not None:
                    await self._settle_all()
        except (FencedError, KafkaUnavailableError) as error:
            self._observer.failed(error)
        except TimeoutError:
            self._observer.failed(KafkaUnavailableError("drain: the last commit did not finish in time"))

    async def _close(self) -> None:
        await self._stop_restoring()
        if self._commit is not None:
            self._commit.cancel()
            await asyncio.gather(self._commit, return_exceptions=True)
        await self.group.stop()
        await self.committer.stop()
        await self.reader.stop()


def latencies_ms(outgoing: Sequence[Outgoing], now_ms: int) -> I64:
    """Record timestamp to ``now_ms`` for every prediction."""
    if not outgoing:
        return np.empty(0, np.int64)
    return now_ms - np.concatenate([np.array(part.timestamps_ms, np.int64) for part in outgoing])
