"""Restore, as it ships: pieces of the changelog and facts about the logs go in, a partition that goes on comes out, or a
refusal that says what to do. Pure: the service fetches, tests make up.

A stream record is judged by the regime that it was written under. The progress record tells since which offset each model's
present regime holds; a record that reaches less far is of an earlier one and is not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from streamer.core import LogFacts, RecordBatch
from streamer.engine.begin import Begin
from streamer.engine.checkpoint import ReplayPoint
from streamer.engine.collected import Collected
from streamer.engine.idlettl import IdleTtls
from streamer.engine.lane import Lane, StepLane
from streamer.engine.partition import Partition
from streamer.engine.processor import Processor
from streamer.engine.truth import Decisions, LaneTruth
from streamer.errors import DataLossError
from streamer.records.changelog import (
    NO_MODEL,
    NO_WATERMARK,
    Progress,
    Regime,
    decode_offsets,
)
from streamer.words import ModelChanged


@dataclass(frozen=True, slots=True)
class Found:
    """What the cluster says of a partition that is taken over."""

    facts: LogFacts
    committed: int | None
    """The group's committed offset"""
    start: int
    """Where a first start would begin"""
    checksum: int | None = None
    """CRC-32 of key and value of the record that the progress saw last; None: it is not there any more"""


@dataclass(frozen=True, slots=True)
class Names:
    """What a refusal names."""

    input: str
    changelog: str


class Restore:
    """One partition's. ``apply`` the changelog piece by piece, then ``finish``."""

    def __init__(self, processor: Processor, number: int, names: Names) -> None:
        self.partition: Partition = processor.open(number)
        self.collected = Collected(processor, self.partition)
        self._processor = processor
        self._names = names
        self._lanes = {lane.name: lane for lane in processor.lanes.stepping}

    @property
    def progress(self) -> Progress | None:
        return self.collected.progress

    def apply(self, piece: RecordBatch) -> None:
        """Some records of the changelog partition, in order. Raises DataLossError for records that are corrupt or foreign."""
        self.collected.apply(piece)

    # the judgement

    @property
    def wanted_record(self) -> int | None:
        """Offset of the input record whose checksum ``finish`` wants to compare."""
        return None if self.progress is None or self.progress.last_offset < 0 else self.progress.last_offset

    @property
    def other_machine(self) -> str | None:
        """The machine that wrote the changelog, where it is known and of another kind than this one: it may round
        differently."""
        before = "" if self.progress is None else self.progress.machine
        return before if before and before != self._processor.lanes.identity.machine else None

    def finish(self, found: Found) -> Partition:
        """The partition goes on. Raises DataLossError if that would lose or repeat anything; nothing was changed."""
        progress, lanes = self.progress, self._processor.lanes
        self._check_input(found.facts)
        if progress is None:
            self._check_first(found)
            first = found.start if found.committed is None else found.committed
            begin = self._fresh(max(first, found.facts.begin))
        else:
            self._check(progress, found)
            since = self._regimes(progress)
            begin = self._restored(progress, since)
        self.collected.settle_ages()
        self.partition.begin(begin)
        if progress is not None:
            self.partition.rollouts.restore(
                self.collected.rollouts.values(), dict(progress.rollouts), {each: since[each] for each in self._lanes}
            )
            refused = self.partition.decodings.restore(self.collected.decodings.values(), since)
            self.partition.refuse(refused)
            self.partition.moved |= bool(refused)
        assert len(begin.truths) == len(lanes.stepping)
        return self.partition

    def _fresh(self, start: int) -> Begin:
        truths = [LaneTruth(start) for _ in self._lanes]
        return Begin(start, ReplayPoint(start, NO_WATERMARK), truths, self._idle_ttls((), start), unwritten=True)

    def _idle_ttls(self, before: Sequence[tuple[int, int]], position: int) -> IdleTtls:
        return IdleTtls.going_on(before, position, self._processor.lanes.idle_ttl_ms)

    def _restored(self, progress: Progress, since: Mapping[str, int]) -> Begin:
        truths = []
        for name, lane in self._lanes.items():
            truth = LaneTruth(since[name])
            stale = self._stale(lane, since[name]) | self.collected.misfits[name]
            truth.forgotten = self.collected.forgotten[name] | stale
            for (model, _), record in self.collected.decisions.items():
                if model == name:
                    truth.decisions.restore(record.offset, decode_offsets(record.state))
            truths.append(truth)
        fleeting = Decisions()
        for (model, _), record in self.collected.decisions.items():
            if model == NO_MODEL:
                fleeting.restore(record.offset, decode_offsets(record.state))
        windowing = self._processor.lanes.windowing
        window_since = since[windowing.name] if windowing is not None else 0
        # What another window model left behind is none of this one's; its records go with the others, by their offsets.
        # Before the first event of a regime no window was open, so nothing of its own lies at its very beginning either.
        known = windowing is not None and windowing.name in progress.models and progress.replay_point >= window_since
        idle = [(at, NO_WATERMARK if at <= window_since else mark) for at, mark in sorted(self.collected.idle.values())]
        return Begin(
            position=progress.position,
            replay_point=ReplayPoint(
                progress.replay_point, progress.watermark if known else NO_WATERMARK, progress.clock_ms
            ),
            clock_idle=list(self.collected.clock_idle.values()),
            truths=truths,
            idle_ttls=self._idle_ttls(progress.idle_ttls, progress.position),
            window_since=window_since,
            last_offset=progress.last_offset,
            checksum=progress.checksum,
            window_through=self.collected.window_through,
            idle=idle,
            stranded=list(self.collected.stranded),
            unwritten=self._differs(progress, since) or bool(self.collected.stranded),
            fleeting=fleeting,
        )

    def _differs(self, progress: Progress, since: Mapping[str, int]) -> bool:
        """Whether regimes are others than were written: that has to be durable also where no event comes."""
        lanes = self._processor.lanes
        served = [*lanes.stepping, *([lanes.windowing] if lanes.windowing else [])]
        now = {lane.name: (lane.model_id.hex(), since[lane.name]) for lane in served}
        return now != {name: (regime.model_id, regime.since) for name, regime in progress.models.items()}

    def _stale(self, lane: StepLane, since: int) -> dict[bytes, int]:
        """Takes states of an earlier regime out of the arena: stream -> through, so that their records go too."""
        slots = self.partition.streams.every()
        old = slots[(lane.arena.through[slots] >= 0) & (lane.arena.through[slots] < since)]
        if not len(old):
            return {}
        through, streams = lane.arena.through[old].tolist(), self.partition.lanes.slots.keys(old)
        lane.arena.renew(old)
        return dict(zip(streams, through, strict=True))

    # refusals

    def _where(self) -> str:
        return f"partition {self.partition.number} of {self._names.input!r}"

    def _check_input(self, facts: LogFacts) -> None:
        """The topic that is there is the one that the process began with, and that the progress was made on."""
        known = {self._processor.lanes.identity.topic_id, self.progress.topic_id if self.progress else ""} - {""}
        if facts.topic_id and known - {facts.topic_id}:
            raise DataLossError(
                f"{self._where()}: the input topic was deleted and created again (its id changed), so positions mean "
                "nothing. Use a new kafka.group to begin with the new topic."
            )

    def _check_first(self, found: Found) -> None:
        if found.committed is not None and self._processor.lanes.durable:
            raise DataLossError(
                f"the group has committed offset {found.committed} in {self._where()}, but changelog "
                f"{self._names.changelog!r} has no progress there: it was lost, belongs to another group, or the group ran "
                'with delivery.mode = "ephemeral". Restore it, or use a new kafka.group to begin from the initial state.'
            )

    def _check(self, progress: Progress, found: Found) -> None:
        identity, where, facts = self._processor.lanes.identity, self._where(), found.facts
        if progress.group != identity.group:
            raise DataLossError(
                f"{where}: the changelog was written by group {progress.group!r}, this is {identity.group!r}. "
                "Correct changelog.topic or kafka.group."
            )
        if progress.fingerprint != identity.fingerprint:
            raise DataLossError(
                f"{where}: settings that decide (windows, codec, lateness) changed from {progress.fingerprint!r} to "
                f"{identity.fingerprint!r} while events are in flight. Restore them, or use a new kafka.group."
            )
        if progress.replay_point < facts.begin:
            raise DataLossError(
                f"{where}: replay must begin at offset {progress.replay_point}, the log begins at {facts.begin}: retention "
                "deleted input that is still needed. Raise the topic's retention; use a new kafka.group to go on without."
            )
        if progress.position > facts.end:
            raise DataLossError(
                f"{where}: position {progress.position} is beyond the end of the log ({facts.end}): the input lost records. "
                "Use a new kafka.group to begin anew."
            )
        if found.committed is not None and found.committed > progress.position:
            raise DataLossError(
                f"{where}: the group committed offset {found.committed}, the changelog ends at {progress.position}: records "
                'between were answered without their state being kept (delivery.mode = "ephemeral"), or somebody moved the '
                "offsets. Use a new kafka.group to begin from the initial state."
            )
        if found.checksum is not None and found.checksum != progress.checksum:
            raise DataLossError(
                f"{where}: the record at offset {progress.last_offset} is not the one that was processed: the topic was "
                "replaced. Use a new kafka.group to begin anew."
            )

    def _regimes(self, progress: Progress) -> dict[str, int]:
        """Per served model where its regime begins: where it began, or at the position for one that begins now."""
        rule, since = self._processor.delivery.model_changed, dict[str, int]()
        lanes = self._processor.lanes
        served = {lane.name: lane for lane in [*lanes.stepping, *([lanes.windowing] if lanes.windowing else [])]}
        ids = {name: lane.model_id.hex() for name, lane in served.items()}
        before = {name: regime.model_id for name, regime in progress.models.items()}
        if before != ids and rule == ModelChanged.REFUSE:
            raise DataLossError(
                f"{self._where()}: states were written by models {before}, served are {ids}. Serve the same files, or "
                'set delivery.model_changed = "keep" (same state shapes) or "reset" (initial states).'
            )
        for name, lane in served.items():
            regime = progress.models.get(name)
            if regime is None or (rule == ModelChanged.RESET and self._begins_anew(regime, lane)):
                since[name] = progress.position
            else:
                since[name] = regime.since
                self._check_fits(name, regime, lane.states)
        return since

    def _begins_anew(self, regime: Regime, lane: Lane) -> bool:
        """In a reset: open windows hold events of the input, no states, so another file takes them as well."""
        another_file = regime.model_id != lane.model_id.hex() and lane is not self._processor.lanes.windowing
        return another_file or regime.states != lane.states

    def _check_fits(self, name: str, regime: Regime, states: str) -> None:
        if regime.states != states:
            what = f"keeps {states or 'no state'} per stream, the changelog's states are {regime.states or 'none'}"
        elif misfits := [stream for stream, at in self.collected.misfits.get(name, {}).items() if at >= regime.since]:
            what = f"keeps {states}, the changelog's state of stream {misfits[0][:64]!r} has another size"
        else:
            return
        raise DataLossError(
            f"{self._where()}: model {name!r} {what}. Serve the model that wrote it, or set "
            'delivery.model_changed = "reset" to begin from the initial state.'
        )
