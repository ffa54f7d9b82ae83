"""What the changelog of one partition says, collected piece by piece: states go to the arenas, the rest waits for the
judgement (``streamer.engine.restore``)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from streamer.core import I64, RecordBatch
from streamer.engine.lane import StepLane
from streamer.engine.partition import Partition
from streamer.engine.processor import Processor
from streamer.errors import DataLossError
from streamer.records.changelog import NO_MODEL, Kind, Progress, StreamRecord, decode_progress, decode_stream, split_key

_MOST_STRANDED = 65_536
"""Keys of one partition; where there are more, the next restore finds them."""
_OF_A_MODEL = frozenset({Kind.STATE, Kind.WINDOW, Kind.DECISIONS, Kind.IDLE})
"""What nobody reads without its model. Open rollouts and decodings have an answer to come, and go with that."""


@dataclass(slots=True)
class _Loading:
    """Records of one model in one piece, in columns."""

    streams: list[bytes] = field(default_factory=list)
    states: list[bytes] = field(default_factory=list)
    through: list[int] = field(default_factory=list)
    newest_ms: list[int] = field(default_factory=list)


class Collected:
    """The newest record of each key. Nothing of it is judged yet."""

    def __init__(self, processor: Processor, partition: Partition) -> None:
        self.progress: Progress | None = None
        self.partition = partition
        self._processor = processor
        self._lanes = {lane.name: lane for lane in processor.lanes.stepping}
        self.forgotten: dict[str, dict[bytes, int]] = {name: {} for name in self._lanes}
        """Per model: stream -> through"""
        self.misfits: dict[str, dict[bytes, int]] = {name: {} for name in self._lanes}
        """Streams whose state has another size than the model's: stream -> through"""
        self.window_through: dict[bytes, int] = {}
        self.rollouts: dict[bytes, StreamRecord] = {}
        self.decodings: dict[tuple[str, bytes], StreamRecord] = {}
        self.decisions: dict[tuple[str, bytes], StreamRecord] = {}
        windowing = processor.lanes.windowing
        self._served = {NO_MODEL, *self._lanes, *([windowing.name] if windowing else [])}
        self.stranded: dict[bytes, None] = {}
        """Keys of records of models that are not served any more: their tombstones are still to be written"""
        self.idle: dict[bytes, tuple[int, int]] = {}
        self.clock_idle: dict[bytes, tuple[int, int]] = {}
        self._ahead_ms: int | None = None
        """Our clock minus event time: how long ago restored streams count as used"""

    def apply(self, piece: RecordBatch) -> None:
        """Some records of the changelog partition, in order. Raises DataLossError for records that are corrupt or foreign."""
        newest: dict[bytes, bytes | None] = {}
        for key, value in zip(piece.keys, piece.values, strict=True):
            if key is None:
                raise DataLossError(
                    "changelog: a record without key is not ours: restore the topic, or start a new group"
                )
            newest.pop(key, None)
            newest[key] = value
        loading = {name: _Loading() for name in self._lanes}
        for key, value in newest.items():
            if key[:1] == bytes([Kind.PROGRESS]):
                self.progress = None if value is None else decode_progress(value)
            elif value is None:
                self.stranded.pop(key, None)
                self._remove(*split_key(key))
            else:
                record = decode_stream(key, value)
                if record.model not in self._served and record.kind in _OF_A_MODEL:
                    self._strand(key)
                self._note(record, loading)
        for name, found in loading.items():
            self._load(self._lanes[name], found)
        self._processor.keep_limit()

    def _strand(self, key: bytes) -> None:
        if len(self.stranded) < _MOST_STRANDED:
            self.stranded[key] = None

    def _remove(self, kind: Kind, model: str, stream: bytes) -> None:
        if kind is Kind.STATE and model in self._lanes:
            self._unload(self._lanes[model], stream)
        elif kind is Kind.WINDOW:
            self.window_through.pop(stream, None)
        elif kind is Kind.ROLLOUT:
            self.rollouts.pop(stream, None)
        elif kind is Kind.DECODING:
            self.decodings.pop((model, stream), None)
        elif kind is Kind.DECISIONS:
            self.decisions.pop((model, stream), None)
        elif kind is Kind.IDLE:
            self.idle.pop(stream, None)
        elif kind is Kind.CLOCK:
            self.clock_idle.pop(stream, None)

    def _note(self, record: StreamRecord, loading: dict[str, _Loading]) -> None:
        if record.kind is Kind.WINDOW:
            self.window_through[record.stream] = record.through
        elif record.kind is Kind.ROLLOUT:
            self.rollouts[record.stream] = record
        elif record.kind is Kind.DECODING:
            self.decodings[record.model, record.stream] = record
        elif record.kind is Kind.DECISIONS:
            self.decisions[record.model, record.stream] = record
        elif record.kind is Kind.IDLE:
            self.idle[record.stream] = (record.offset, record.last_ms)
        elif record.kind is Kind.CLOCK:
            self.clock_idle[record.stream] = (record.offset, record.last_ms)
        elif (lane := self._lanes.get(record.model)) is not None:
            if record.state is None or len(record.state) != lane.arena.bytes_per_stream:
                self._unload(lane, record.stream)
                where = self.forgotten if record.state is None else self.misfits
                where[record.model][record.stream] = record.through
            elif not self.partition.was_dropped(record.stream):
                found = loading[record.model]
                found.streams.append(record.stream)
                found.states.append(record.state)
                found.through.append(record.through)
                found.newest_ms.append(record.last_ms)

    def _unload(self, lane: StepLane, stream: bytes) -> None:
        """An earlier piece may have had a state of the stream."""
        self.forgotten[lane.name].pop(stream, None)
        self.misfits[lane.name].pop(stream, None)
        slot = self.partition.streams.find(stream)
        if slot is not None:
            lane.arena.renew(np.array([slot], np.int64))
            if all(each.arena.through[slot] < 0 for each in self._lanes.values()):
                self.partition.streams.release([stream])

    def _load(self, lane: StepLane, found: _Loading) -> None:
        if not found.streams:
            return
        for stream in found.streams:
            self.forgotten[lane.name].pop(stream, None)
            self.misfits[lane.name].pop(stream, None)
        slots = self.partition.streams.of(found.streams)
        lane.arena.load(slots, found.states)
        lane.arena.through[slots] = found.through
        lane.arena.newest_ms[slots] = found.newest_ms
        self._seen(slots, np.array(found.newest_ms, np.int64))

    def _seen(self, slots: I64, newest_ms: I64) -> None:
        """Streams count as used as long ago as their newest event is behind the newest that is known, in one order for all
        pieces: else the long dead ones of the first piece would outlive those that are in use."""
        if self._ahead_ms is None:
            known = max(int(newest_ms.max()), *(each.newest_ms for each in self._processor.partitions.values()))
            self._ahead_ms = self._processor.now_ms - known
        self._processor.lanes.slots.used_at[slots] = newest_ms + self._ahead_ms

    def settle_ages(self) -> None:
        """Later pieces may have had newer events than the first: nothing was used later than now."""
        slots, used_at = self.partition.streams.every(), self._processor.lanes.slots.used_at
        if len(slots):
            used_at[slots] -= max(int(used_at[slots].max()) - self._processor.now_ms, 0)
            self.partition.newest_ms = int(self.partition.newest_of(slots).max())
