"""What a transaction writes to the changelog: forgotten streams, windows closed by arrival, a slice of an open round,
tombstones, and last the progress of the partition. See ``streamer.records.changelog`` for the records and the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from streamer.core import I64
from streamer.engine.lane import Lane, StepLane
from streamer.engine.ledger import Ledger
from streamer.engine.windowlane import WindowLane
from streamer.generate.rollout import Rollouts
from streamer.records.changelog import (
    NO_WATERMARK,
    RECORD_OVERHEAD_BYTES,
    Identity,
    Kind,
    Progress,
    encode_progress,
    encode_stream,
    progress_key,
    stream_key,
)
from streamer.state.table import StreamTable

ChangelogRecord = tuple[bytes, bytes | None]
"""Key and value; None: a tombstone"""


class Rounds:
    """Turns what changed in a partition into changelog records, and moves its replay point."""

    def __init__(
        self,
        table: StreamTable,
        stepping: Sequence[StepLane],
        windowing: WindowLane | None,
        rollouts: Rollouts,
        identity: Identity,
        interval_ms: int,
    ) -> None:
        self._table = table
        self._stepping = stepping
        self._windowing = windowing
        self._rollouts = rollouts
        self._identity = identity
        self._interval_ms = interval_ms
        lanes: list[Lane] = [*stepping, *([windowing] if windowing else [])]
        self._models = {lane.name: lane.model_id.hex() for lane in lanes}

    def due(self, ledger: Ledger, now_ms: int) -> bool:
        """Whether a round begins now."""
        return (
            not ledger.round_open
            and ledger.next_offset > ledger.checkpointed
            and now_ms - ledger.round_at_ms >= self._interval_ms
        )

    def records(
        self, partition: int, ledger: Ledger, gone: Mapping[bytes, int], now_ms: int, budget_bytes: int
    ) -> tuple[list[ChangelogRecord], int]:
        """All that the transaction of ``ledger.position`` writes, and how much of the budget it took.

        ``gone``: streams that are forgotten with it, and the times of their last events."""
        records = self._forget(ledger, gone) + self._window_through(ledger)
        records += self._rollouts.records(partition)
        if self.due(ledger, now_ms):
            self._begin(partition, ledger, now_ms)
        slice_records, spent = self._slice(partition, ledger, budget_bytes)
        records += slice_records
        windows = self._windowing.windows(partition) if self._windowing else None
        ledger.move_replay_point(windows.oldest() if windows else None)
        records += self._tombstones(partition, ledger, gone)
        records.append((progress_key(), encode_progress(self._progress(partition, ledger))))
        return records, spent

    def _begin(self, partition: int, ledger: Ledger, now_ms: int) -> None:
        slots = self._table.slots_of(partition) if self._stepping else np.empty(0, np.int64)
        changed = [
            (number, slots[lane.arena.changed[slots]], lane.arena.bytes_per_stream + RECORD_OVERHEAD_BYTES)
            for number, lane in enumerate(self._stepping)
        ]
        windows = self._windowing.windows(partition) if self._windowing else None
        ledger.begin_round(changed, windows.watermark if windows else NO_WATERMARK, now_ms)

    def _slice(self, partition: int, ledger: Ledger, budget_bytes: int) -> tuple[list[ChangelogRecord], int]:
        """Stream records of an open round, at least one per call so that a round always ends."""
        records: list[ChangelogRecord] = []
        spent = 0
        while ledger.pending and (spent < budget_bytes or not records):
            number, slots = ledger.pending.pop()
            lane = self._stepping[number]
            each = lane.arena.bytes_per_stream + RECORD_OVERHEAD_BYTES
            fit = max(int((budget_bytes - spent) // each), 1)
            if fit < len(slots):
                ledger.pending.append((number, slots[fit:]))
                slots = slots[:fit]
            written = self._states(partition, lane, slots[lane.arena.changed[slots]])
            records += written
            spent += len(written) * each
        if ledger.round_open and not ledger.pending:
            ledger.end_round()
        return records, spent

    def _states(self, partition: int, lane: StepLane, slots: I64) -> list[ChangelogRecord]:
        # a slot may have passed to a stream of another partition since the round began
        mine = [slot for slot in slots.tolist() if self._table.find(partition, self._table.key(slot)) == slot]
        if not mine:
            return []
        chosen = np.array(mine, np.int64)
        lane.arena.changed[chosen] = False
        columns = zip(
            self._table.keys(chosen),
            lane.arena.through[chosen].tolist(),
            self._table.last_ms[chosen].tolist(),
            lane.arena.rows(chosen),
            strict=True,
        )
        keys = ((stream_key(Kind.STATE, lane.name, stream), *rest) for stream, *rest in columns)
        return [(key, encode_stream(key, through, last, lane.model_id, state)) for key, through, last, state in keys]

    def _forget(self, ledger: Ledger, gone: Mapping[bytes, int]) -> list[ChangelogRecord]:
        records: list[ChangelogRecord] = []
        through = ledger.position - 1
        for stream, last_ms in gone.items():
            ledger.forgotten[stream] = through
            for lane in self._stepping:
                key = stream_key(Kind.STATE, lane.name, stream)
                records.append((key, encode_stream(key, through, last_ms, lane.model_id, None)))
        return records

    def _window_through(self, ledger: Ledger) -> list[ChangelogRecord]:
        lane = self._windowing
        if lane is None or not ledger.new_window_through:
            return []
        records: list[ChangelogRecord] = []
        for stream, through in ledger.new_window_through.items():
            key = stream_key(Kind.WINDOW, lane.name, stream)
            records.append((key, encode_stream(key, through, 0, lane.model_id, None)))
        ledger.window_through.update(ledger.new_window_through)
        ledger.new_window_through.clear()
        return records

    def _tombstones(self, partition: int, ledger: Ledger, gone: Mapping[bytes, int]) -> list[ChangelogRecord]:
        """Deletes records of forgotten streams that no replay can see. A stream that came back has a record to come."""
        records: list[ChangelogRecord] = []
        for stream in ledger.due_tombstones(ledger.forgotten):
            if stream in gone:
                continue
            del ledger.forgotten[stream]
            if self._table.find(partition, stream) is None:
                records += [(stream_key(Kind.STATE, lane.name, stream), None) for lane in self._stepping]
        if self._windowing:
            for stream in ledger.due_tombstones(ledger.window_through):
                del ledger.window_through[stream]
                records.append((stream_key(Kind.WINDOW, self._windowing.name, stream), None))
        return records

    def _progress(self, partition: int, ledger: Ledger) -> Progress:
        return Progress(
            position=ledger.position,
            replay_point=ledger.replay_point,
            watermark=ledger.watermark,
            idle=tuple(ledger.idle),
            decisions=tuple(sorted(ledger.decisions.items())),
            models=self._models,
            fingerprint=self._identity.fingerprint,
            group=self._identity.group,
            topic_id=self._identity.topic_id,
            checksum=ledger.checksum,
            rollouts=self._rollouts.emitted(partition),
        )
