"""Faults that the service once had, put back one at a time: the simulator must find each of them.

    python -m tests.simulation --mutation failed-kept --profile steps --seed 1 --schedules 2000

Each is a small change of the product's own code as it is now. ``apply`` is for a process of its own: nothing is undone.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np

from streamer.core import Batch, EventBatch
from streamer.emission.eventclock import NO_TIME_MS, EventClock
from streamer.engine import journal, lane, lanes
from streamer.engine.checkpoint import Checkpoint
from streamer.engine.collected import Collected
from streamer.engine.lane import StepLane
from streamer.engine.memory import Memory
from streamer.engine.partition import Partition, Phase
from streamer.engine.processor import Processor
from streamer.engine.restore import Restore
from streamer.engine.steprun import StepRun
from streamer.errors import ConfigurationError
from streamer.generate.decodings import Decodings
from streamer.kafka.commit import Committer
from streamer.kafka.input import Input
from streamer.kafka.internals import TransactionRefused
from streamer.kafka.producers import Producers
from streamer.records import changelog
from streamer.service import commits
from streamer.service.commits import Commits
from streamer.service.holding import Holding
from streamer.service.loop import Service
from streamer.service.takeover import Takeover
from streamer.state.table import Slots
from streamer.words import Forgotten

I64 = Any


@dataclass(frozen=True)
class Mutation:
    """``fault``: its number in the list of faults. ``profile``: the family of plans that is expected to find it first.
    ``needed``: how many schedules of that family, from seed 1, it took when it was entered."""

    name: str
    fault: str
    profile: str
    needed: int
    change: Callable[[], None]

    @property
    def within(self) -> int:
        """Schedules in which it has to be found. Any change of the service or of a family gives other runs for the same seeds."""
        return 5 * max(self.needed, 4)


MUTATIONS: dict[str, Mutation] = {}


def mutation(name: str, *, fault: str, profile: str, needed: int) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def enter(function: Callable[[], None]) -> Callable[[], None]:
        MUTATIONS[name] = Mutation(name, fault, profile, needed, function)
        return function

    return enter


def apply(name: str) -> None:
    """Puts the fault back. Raises KeyError for a name that is not in ``MUTATIONS``."""
    MUTATIONS[name].change()


# 1: an epoch has exactly two ends


@mutation("late-epoch-dropped", fault="1", profile="slow", needed=24)
def late_epoch_dropped() -> None:
    """What is sealed after the deadline of a hand-over is neither committed nor failed: its partitions are kept."""
    init, settle_all = Service.__init__, Commits.settle_all

    def wired(self: Any, *args: Any, membership: Any, commits: Any, **rest: Any) -> None:
        init(self, *args, membership=membership, commits=commits, **rest)
        commits.waited_s = lambda: membership.leaving_s

    async def dropping(self: Any, ownership: Any) -> None:
        await self.finish()
        if self.waited_s() * 1000 > self._settings.delivery.drain_timeout_ms:
            epoch = self._processor.seal(int(self._clock.monotonic() * 1000))
            if epoch is not None:
                self._processor._unseal(epoch)
                self._open = commits._Open()
        else:
            await settle_all(self, ownership)

    Service.__init__ = wired  # type: ignore[method-assign]
    Commits.settle_all = dropping  # type: ignore[method-assign]


@mutation("failed-kept", fault="1", profile="steps", needed=3)
def failed_kept() -> None:
    """After a commit that failed its partitions go on from the state that ran ahead of the log."""

    unchanged = Takeover.unchanged

    def failed(self: Any, epoch: Any) -> None:
        for partition in self._unseal(epoch):
            partition.of_failed_epoch = True

    async def unchanged_or_failed(self: Any, partitions: Any) -> set[int]:
        kept = list(partitions)
        found = await unchanged(self, kept)
        return found | {partition.number for partition in kept if hasattr(partition, "of_failed_epoch")}

    async def forget_all(self: Any) -> None:
        await self._takeover.stop()
        await self._commits.give_up()
        self._taking = None

    Processor.failed = failed  # type: ignore[method-assign]
    Holding.forget_all = forget_all  # type: ignore[method-assign]
    Takeover.unchanged = unchanged_or_failed  # type: ignore[method-assign]


# 2: truth per model and stream


@mutation("refusals-shared", fault="2", profile="two", needed=2)
def refusals_shared() -> None:
    """An event that one model refuses is skipped for both when it is replayed."""
    refuse = StepRun._refuse

    def shared(self: Any, row: int, detail: str) -> None:
        refuse(self, row, detail)
        if self._lanes.durable:
            for truth in self._work.part_of(row).partition.truths:
                truth.decisions.note(int(self._work.offsets[row]))

    StepRun._refuse = shared  # type: ignore[method-assign]


@mutation("return-shared", fault="2", profile="memory-two", needed=8)
def return_shared() -> None:
    """A stream that was forgotten and has a record of one model again counts as returned for the other model too."""
    load = Collected._load

    def loading(self: Any, lane: Any, found: Any) -> None:
        load(self, lane, found)
        for stream in found.streams:
            for forgotten in self.forgotten.values():
                forgotten.pop(stream, None)

    Collected._load = loading  # type: ignore[method-assign]


# 3: a record is judged by the regime that it was written under


@mutation("old-states-loaded", fault="3", profile="models", needed=1)
def old_states_loaded() -> None:
    """States of an earlier regime are loaded as if they were of this one."""
    Restore._stale = lambda self, lane, since: {}  # type: ignore[method-assign]


@mutation("regime-lost", fault="3", profile="models", needed=1)
def regime_lost() -> None:
    """A reset takes old states out of memory, and the next restart does not know of it: silent streams get them back."""
    stale, regimes = Restore._stale, Restore._regimes

    def unnamed(self: Any, lane: Any, since: int) -> dict[bytes, int]:
        stale(self, lane, since)
        return {}

    def since_ever(self: Any, progress: Any) -> dict[str, int]:
        found = regimes(self, progress)
        return {name: 0 if since != progress.position else since for name, since in found.items()}

    Restore._stale = unnamed  # type: ignore[method-assign]
    Restore._regimes = since_ever  # type: ignore[method-assign]


@mutation("removed-resumes", fault="3", profile="models", needed=1)
def removed_resumes() -> None:
    """A model that was removed and is served again goes on from the states that it had before."""
    regimes = Restore._regimes

    def resumed(self: Any, progress: Any) -> dict[str, int]:
        return {name: since if name in progress.models else 0 for name, since in regimes(self, progress).items()}

    Restore._regimes = resumed  # type: ignore[method-assign]
    Collected._strand = lambda self, key: None  # type: ignore[method-assign]  # records of a removed model stay


# 4: the delivery mode


@mutation("committed-not-compared", fault="4", profile="delivery", needed=6)
def committed_not_compared() -> None:
    """Committed offsets beyond the position of the changelog are not looked at: ephemeral answers are repeated."""
    check = Restore._check
    Restore._check = lambda self, progress, found: check(self, progress, replace(found, committed=None))  # type: ignore[method-assign]


# 5: the identity of the input


@mutation("identity-unchecked", fault="5", profile="recreated", needed=1)
def identity_unchecked() -> None:
    """A topic that was deleted and created again under a running service counts as the one before."""
    looking_away()
    Restore._check_input = lambda self, facts: None  # type: ignore[method-assign]


@mutation("identity-at-start-only", fault="5", profile="recreated", needed=1)
def looking_away() -> None:
    """The identity of the input is compared when a partition is restored, and never while it is served."""

    async def same_input(self: Any, partitions: Collection[int] = ()) -> None:
        del self, partitions

    Committer.same_input = same_input  # type: ignore[method-assign]


# 6: the end of the log


@mutation("stable-end-taken", fault="6", profile="windows", needed=6)
def stable_end_taken() -> None:
    """The last stable offset counts as the end of the log: windows close while a transaction of somebody else is open."""
    Input.high_watermark = Input.stable_end  # type: ignore[method-assign]


@mutation("markers-not-passed", fault="6", profile="markers", needed=1)
def markers_not_passed() -> None:
    """The position of who has read everything stays before the markers that follow: retention takes what lies there."""
    Service._passed = lambda self, fetched: []  # type: ignore[method-assign]


# 7: forgetting and time


@mutation("command-has-time", fault="7", profile="idle", needed=6)
def command_has_time() -> None:
    """The time of a command's record counts as the event time of its stream."""
    reflect, begins_anew = StepLane.reflect, StepLane.begins_anew
    StepLane.reflect = lambda self, slots, offsets, times, events: reflect(self, slots, offsets, times, None)  # type: ignore[method-assign]
    StepLane.begins_anew = lambda self, slots, times, events, ttl_ms: begins_anew(self, slots, times, None, ttl_ms)  # type: ignore[method-assign]


@mutation("clock-not-kept", fault="7", profile="emission", needed=8)
def clock_not_kept() -> None:
    """The clock that ends utterances begins anew with every restore."""
    init = EventClock.__init__
    EventClock.__init__ = lambda self, value_ms, idle=(): init(self, NO_TIME_MS, idle)  # type: ignore[method-assign]


@mutation("command-forgets-all", fault="7", profile="idle", needed=8)
def command_forgets_all() -> None:
    """A command whose record is newer than all events makes the streams of its partition idle."""
    take = Partition.take

    def taking(self: Any, fetched: EventBatch) -> Any:
        taken = take(self, fetched)
        if taken is not None and len(taken[0]):
            self.newest_ms = max(self.newest_ms, int(taken[0].times_ms.max()))
        return taken

    Partition.take = taking  # type: ignore[method-assign]
    _sweep_at_ttl()


@mutation("last-time-counts", fault="7", profile="idle", needed=1)
def last_time_counts() -> None:
    """The time of a stream's last event counts, not the newest: a straggler makes an active stream idle."""

    def reflect(self: Any, slots: I64, offsets: I64, times_ms: I64, events: Any) -> None:
        rows = slice(None) if events is None else events == 0
        self.arena.through[slots] = offsets
        self.arena.changed[slots] = True
        self.arena.newest_ms[slots[rows]] = times_ms[rows]

    StepLane.reflect = reflect  # type: ignore[method-assign]
    lane._running_max = lambda groups, values: values


@mutation("ttl-by-sweep", fault="7", profile="idle", needed=2)
def ttl_by_sweep() -> None:
    """Only a sweep forgets what was silent for the TTL: a stream that is alone in its partition keeps its state."""
    StepLane.begins_anew = lambda self, slots, times_ms, events, ttl_ms: None  # type: ignore[method-assign]
    _sweep_at_ttl()


def _sweep_at_ttl() -> None:
    """By event times alone, with every seal."""

    def forget_idle(self: Any, partitions: Collection[Partition], now_ms: int) -> None:
        for partition in partitions:
            slots = partition.streams.every()
            if self._idle_ttl_ms and partition.phase is Phase.LIVE and len(slots):
                idle = slots[partition.newest_of(slots) < partition.newest_ms - self._idle_ttl_ms]
                partition.forget(self._slots.keys(idle), Forgotten.IDLE)

    Memory.forget_idle = forget_idle  # type: ignore[method-assign]


@mutation("rounds-by-wall-clock", fault="7", profile="clock", needed=1)
def rounds_by_wall_clock() -> None:
    """Rounds follow the wall clock: set back, no state is written until it has caught up."""
    due, begin = Checkpoint.due, Checkpoint.begin

    def wall_ms() -> int:
        return int(time.time() * 1000)

    Checkpoint.due = lambda self, next_offset, now_ms, interval_ms: due(self, next_offset, wall_ms(), interval_ms)  # type: ignore[method-assign]
    Checkpoint.begin = lambda self, start, lanes, slots, now_ms: begin(self, start, lanes, slots, wall_ms())  # type: ignore[method-assign]


# 8: the memory limit is a promise


@mutation("room-made-at-seal", fault="8", profile="memory", needed=1)
def room_made_at_seal() -> None:
    """Streams are forgotten when an epoch is sealed only: more new ones than there is slack end the process."""
    keep_limit, seal = Processor.keep_limit, Processor.seal

    def sealing(self: Any, *args: Any) -> Any:
        keep_limit(self)
        return seal(self, *args)

    lanes.RESTORE_STREAMS = 0
    Processor.keep_limit = lambda self: None  # type: ignore[method-assign]
    Processor.seal = sealing  # type: ignore[method-assign]


@mutation("heir-refuses", fault="8", profile="memory", needed=11)
def heir_refuses() -> None:
    """Who inherits more streams than fit ends with an error."""
    apply_piece = Restore.apply

    def applying(self: Any, piece: Any) -> None:
        slots, limit = self._processor.lanes.slots, self._processor.memory.max_bytes
        if slots.used_bytes + slots.bytes_per_stream * len(piece) > limit:
            raise ConfigurationError("state.max_bytes is too small for what is restored")
        apply_piece(self, piece)

    Restore.apply = applying  # type: ignore[method-assign]


@mutation("keys-not-counted", fault="8", profile="memory-keys", needed=1)
def keys_not_counted() -> None:
    """Keys are no part of what is limited."""
    Slots.used_bytes = property(lambda self: self.used * self.bytes_per_stream)  # type: ignore[method-assign]


# 9: at least once


@mutation("plain-producer-kept", fault="9", profile="at-least-once", needed=7)
def plain_producer_kept() -> None:
    """The plain producer is never replaced, whatever becomes of it."""
    give_up = Producers.give_up

    def keeping(self: Any, producer: Any) -> None:
        if producer is not self.publishing:
            give_up(self, producer)

    Producers.give_up = keeping  # type: ignore[method-assign]


@mutation("expired-id-fails", fault="9", profile="at-least-once", needed=8)
def expired_id_fails() -> None:
    """A transactional id that expired while nothing came fails the epoch, whose answers are out already."""
    TransactionRefused.id_expired = False  # type: ignore[assignment, method-assign]


# 10: what a progress record holds


@mutation("decisions-in-progress", fault="10", profile="refusals", needed=7)
def decisions_in_progress() -> None:
    """The progress record lists every refusal since the last round."""
    progress_of, decided = journal._progress, list[str]()

    def listing(partition: Partition) -> Any:
        lanes = partition.lanes.stepping
        decided[:] = [
            f"{lane.name}: {offset:>16}"
            for lane, truth in zip(lanes, partition.truths, strict=True)
            for piece in truth.decisions._written.values()
            for offset in piece.tolist()
        ]
        return progress_of(partition)

    def encoded(progress: Any) -> bytes:
        body = msgspec.msgpack.encode(
            [*msgspec.to_builtins(progress), decided]
        )  # who reads it passes over what is behind
        return changelog._PROGRESS_HEADER.pack(changelog.VERSION, zlib.crc32(body)) + body

    journal._progress = listing
    journal.encode_progress = encoded


# 11: records of several steps


@mutation("half-a-record", fault="11", profile="frames", needed=1)
def half_a_record() -> None:
    """The steps of a record that the model refuses are tried one by one: the state keeps those that it took."""

    def by_step(batch: Batch) -> list[Batch]:
        assert batch.records is not None
        return [
            Batch(batch.slots, batch.rows[:, [step]], np.ones(1, np.int32), batch.records[:, [step]])
            for step in range(int(batch.lengths[0]))
        ]

    lane.by_record = by_step


# 12: what is open when a process dies is known to the next one


@mutation("writing-not-recorded", fault="12", profile="writing", needed=4)
def writing_not_recorded() -> None:
    """A window that is being written about leaves no record: its answer dies with the process."""
    Decodings.records = lambda self: []  # type: ignore[method-assign]


@mutation("writing-not-held", fault="12", profile="writing", needed=4)
def writing_not_held() -> None:
    """The replay point passes a window that is being written about: its events are not read again."""
    Decodings.oldest = lambda self: None  # type: ignore[method-assign]


@mutation("writing-not-ended", fault="12", profile="writing", needed=4)
def writing_not_ended() -> None:
    """The answer does not end the record: the next process writes it again."""
    close = Decodings._close

    def closed(self: Any, decoding: Any) -> None:
        decoding.recorded = False
        close(self, decoding)

    Decodings._close = closed  # type: ignore[method-assign]
