"""Which partitions this process holds: what an assignment brings is taken over, what it takes is dropped.

Restoring runs beside the loop (``takeover``); what is restored joins between two turns, so nothing here waits for a log.
"""

from __future__ import annotations

from streamer.engine.partition import Partition, Phase
from streamer.engine.processor import Processor
from streamer.errors import FencedError, KafkaUnavailableError
from streamer.kafka.commit import Committer
from streamer.kafka.input import Input
from streamer.service.clock import Clock
from streamer.service.commits import Commits
from streamer.service.membership import Membership
from streamer.service.observer import Observer
from streamer.service.schemas import Schemas
from streamer.service.takeover import Takeover
from streamer.service.watch import Watch
from streamer.words import Delivery


class _Taking:
    """A take-over that is under way."""

    def __init__(self, began: float, cold: list[int], kept: list[int]) -> None:
        self.began, self.cold, self.kept = began, cold, kept
        self.restored: float | None = None


class Holding:
    """The partitions that are here, and those that are on their way."""

    def __init__(
        self,
        processor: Processor,
        *,
        membership: Membership,
        reader: Input,
        committer: Committer,
        commits: Commits,
        takeover: Takeover,
        watch: Watch,
        observer: Observer,
        clock: Clock,
        schemas: Schemas | None,
    ) -> None:
        self._processor = processor
        self._membership = membership
        self._reader = reader
        self._committer = committer
        self._commits = commits
        self._takeover = takeover
        self._watch = watch
        self._observer = observer
        self._clock = clock
        self._schemas = schemas
        self.fetching: dict[int, Partition] = {}
        """What the reader fetches: restored partitions are taken up between two turns"""
        self._taking: _Taking | None = None
        self.recovery_s: dict[str, float] = {}
        """Of the last take-over: wait (for transactions of others), restore, replay."""

    @property
    def complete(self) -> bool:
        """Every partition of the last assignment is restored and replayed."""
        return self._taking is None

    async def hand_over(self) -> None:
        """Commits what is open, then lets the group go on."""
        membership, processor = self._membership, self._processor
        try:
            for partition in processor.partitions.values():
                partition.hand_over()
            if membership.ownership is not None:
                await self._commits.settle_all(membership.ownership)
        except (FencedError, KafkaUnavailableError) as error:
            self._observer.failed(error)
            await self.forget_all()
        finally:
            if Delivery(processor.delivery.mode) is Delivery.EPHEMERAL:
                self._watch.begin_anew()
            membership.handed_over()

    async def adopt(self) -> None:
        """After an assignment: drop what is gone, keep what nobody else wrote, begin to restore the rest."""
        began = self._clock.monotonic()
        await self._commits.finish()
        await self._takeover.stop()
        ownership = self._membership.adopt()
        processor = self._processor
        for number in processor.partitions.keys() - ownership.partitions:
            self._drop(number)
        self._observer.assigned(sorted(ownership.partitions))
        self.fetching = {}
        self._reader.assign({})
        await self._committer.ready()
        kept = await self._takeover.unchanged(processor.partitions.values())
        for number, partition in list(processor.partitions.items()):
            if number not in kept:
                self._drop(number)
            elif partition.phase is Phase.HANDING_OVER:
                partition.keep()
        self.fetch_from_here()
        self._watch.begin_anew()
        cold = ownership.partitions - processor.partitions.keys()
        self._taking = _Taking(began, sorted(cold), sorted(kept))
        self._takeover.begin(cold)

    def take_over(self) -> None:
        """Takes up the partitions that are restored by now; all are live when the last replay has ended. Raises what ended
        the take-over."""
        taking = self._taking
        if taking is None:
            return
        if self._takeover.take():
            self.fetch_from_here()
        if self._takeover.under_way:
            return
        now = self._clock.monotonic()
        taking.restored = taking.restored or now
        if any(partition.phase is not Phase.LIVE for partition in self._processor.partitions.values()):
            return
        self._taking = None
        waited = self._takeover.undecided_s
        self.recovery_s = {
            "wait": waited,
            "restore": taking.restored - taking.began - waited,
            "replay": now - taking.restored,
        }
        self._observer.recovered(taking.cold, taking.kept, now - taking.began)

    def fetch_from_here(self) -> None:
        """Fetches what is owned and restored, each partition from its next offset; what was prefetched is dropped."""
        if self._schemas is not None:
            self._schemas.forget()
        self.fetching = {number: each for number, each in self._processor.partitions.items() if each.running}
        self._reader.assign({number: each.next_offset for number, each in self.fetching.items()})

    def _drop(self, number: int) -> None:
        self._processor.drop(number)
        self.fetching.pop(number, None)
        self._watch.forget(number)

    async def forget_all(self) -> None:
        await self._takeover.stop()
        await self._commits.give_up()
        for number in list(self._processor.partitions):
            self._drop(number)
        self._taking = None
