"""What the transaction of an epoch writes to the changelog for one partition, in order: forgotten streams, windows closed
by arrival, open rollouts and decodings, a slice of the open round, decisions, tombstones, and last the progress."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

from streamer.engine.checkpoint import ChangelogRecord, ReplayPoint
from streamer.engine.partition import Partition
from streamer.records.changelog import (
    NO_MODEL,
    NO_WATERMARK,
    Kind,
    Progress,
    Regime,
    encode_offsets,
    encode_progress,
    encode_stream,
    offset_key,
    progress_key,
    stream_key,
)

_TOMBSTONES_AT_ONCE = 10_000
"""Of one partition and transaction; more of them wait for the next."""


def journal(
    partition: Partition, now_ms: int, interval_ms: int, budget_bytes: int
) -> tuple[list[ChangelogRecord], int]:
    """The records, and how much of the budget the slice took. The partition's position has been advanced before.

    Nearly always there is the progress alone, of every partition in every epoch: what is not there is not asked for."""
    lanes, checkpoint = partition.lanes, partition.checkpoint
    records: list[ChangelogRecord] = []
    if partition.gone:
        records += _forgotten(partition)
    if partition.windows is not None:
        records += _window_through(partition)
    records += partition.rollouts.records()
    records += partition.decodings.records()
    if checkpoint.due(partition.next_offset, now_ms, interval_ms):
        windows = partition.windows
        watermark = windows.windows.watermark if windows else NO_WATERMARK
        slots = partition.streams.every() if lanes.stepping else np.empty(0, np.int64)
        clock_ms = partition.silence.clock.value_ms if partition.silence else NO_WATERMARK
        checkpoint.begin(ReplayPoint(partition.position, watermark, clock_ms), lanes.stepping, slots, now_ms)
    written, spent = checkpoint.slice(lanes.stepping, partition.still_mine, budget_bytes)
    records += written
    checkpoint.move(partition.position, partition.oldest_open)
    records += _decisions(partition)
    if partition.windows is not None:
        records += _idle(partition)
    if partition.silence is not None:
        records += _clock(partition)
    tombstones = [(key, None) for key in islice(_tombstones(partition), _TOMBSTONES_AT_ONCE)]
    partition.moved |= len(tombstones) == _TOMBSTONES_AT_ONCE
    records += tombstones
    partition.gone.clear()
    records.append((progress_key(), encode_progress(_progress(partition))))
    return records, spent


def _forgotten(partition: Partition) -> Iterator[ChangelogRecord]:
    for stream, through, newest_ms in partition.gone:
        for lane in partition.lanes.stepping:
            key = stream_key(Kind.STATE, lane.name, stream)
            yield key, encode_stream(key, through, newest_ms, lane.model_id, None)


def _window_through(partition: Partition) -> Iterator[ChangelogRecord]:
    lane, windows = partition.lanes.windowing, partition.windows
    if lane is None or windows is None:
        return
    for stream, through in windows.fresh_through.items():
        key = stream_key(Kind.WINDOW, lane.name, stream)
        yield key, encode_stream(key, through, 0, lane.model_id, None)
    windows.through.update(windows.fresh_through)
    windows.fresh_through.clear()


def _decisions(partition: Partition) -> Iterator[ChangelogRecord]:
    for lane, truth in zip(partition.lanes.stepping, partition.truths, strict=True):
        for offsets in truth.decisions.take():
            key = offset_key(Kind.DECISIONS, lane.name, int(offsets[0]))
            yield key, encode_stream(key, int(offsets[-1]), 0, lane.model_id, encode_offsets(offsets.tolist()))
    for offsets in partition.fleeting.take():
        key = offset_key(Kind.DECISIONS, NO_MODEL, int(offsets[0]))
        yield key, encode_stream(key, int(offsets[-1]), 0, bytes(8), encode_offsets(offsets.tolist()))


def _idle(partition: Partition) -> Iterator[ChangelogRecord]:
    lane, windows = partition.lanes.windowing, partition.windows
    if lane is None or windows is None:
        return
    for before, watermark in windows.fresh_idle.items():
        key = offset_key(Kind.IDLE, lane.name, before)
        yield key, encode_stream(key, before - 1, watermark, lane.model_id, None)
    windows.fresh_idle.clear()


def _clock(partition: Partition) -> Iterator[ChangelogRecord]:
    clock = partition.silence.clock if partition.silence else None
    if clock is None:
        return
    for before, value_ms in clock.fresh.items():
        key = offset_key(Kind.CLOCK, "", before)
        yield key, encode_stream(key, before - 1, value_ms, bytes(8), None)
    clock.fresh.clear()


def _tombstones(partition: Partition) -> Iterator[bytes]:
    """Keys of records that no replay can need. A stream that came back has a record to come; one that is forgotten with
    this very epoch had its record written a moment ago."""
    point = partition.checkpoint.replay_point.offset
    just_gone = {stream for stream, *_ in partition.gone} if partition.gone else ()
    for lane, truth in zip(partition.lanes.stepping, partition.truths, strict=True):
        gone = [stream for stream, through in truth.forgotten.items() if through < point] if truth.forgotten else ()
        for stream in gone:
            if stream in just_gone:
                continue
            del truth.forgotten[stream]
            slot = partition.streams.find(stream)
            if slot is None or lane.arena.through[slot] < 0:
                yield stream_key(Kind.STATE, lane.name, stream)
        for first in truth.decisions.drop_before(partition.checkpoint.complete.offset):
            yield offset_key(Kind.DECISIONS, lane.name, first)
    while partition.stranded:
        yield partition.stranded.pop()
    for first in partition.fleeting.drop_before(point):
        yield offset_key(Kind.DECISIONS, NO_MODEL, first)
    clock = partition.silence.clock if partition.silence else None
    while clock is not None and clock.idle and clock.idle[0][0] <= partition.checkpoint.complete.offset:
        yield offset_key(Kind.CLOCK, "", clock.idle.pop(0)[0])
    window_lane, windows = partition.lanes.windowing, partition.windows
    if window_lane is None or windows is None:
        return
    for stream in [stream for stream, through in windows.through.items() if through < point]:
        del windows.through[stream]
        yield stream_key(Kind.WINDOW, window_lane.name, stream)
    while windows.idle and windows.idle[0][0] <= point:
        before, _ = windows.idle.pop(0)
        yield offset_key(Kind.IDLE, window_lane.name, before)


def _progress(partition: Partition) -> Progress:
    lanes = partition.lanes
    models = {
        lane.name: Regime(lane.model_id.hex(), truth.since, lane.states)
        for lane, truth in zip(lanes.stepping, partition.truths, strict=True)
    }
    if lanes.windowing is not None:
        since = partition.windows.since if partition.windows else 0
        models[lanes.windowing.name] = Regime(lanes.windowing.model_id.hex(), since, lanes.windowing.states)
    return Progress(
        position=partition.position,
        replay_point=partition.checkpoint.replay_point.offset,
        watermark=partition.checkpoint.replay_point.watermark,
        models=models,
        fingerprint=lanes.identity.fingerprint,
        group=lanes.identity.group,
        topic_id=lanes.identity.topic_id,
        machine=lanes.identity.machine,
        last_offset=partition.last_offset,
        checksum=partition.checksum,
        rollouts=partition.rollouts.emitted(),
        clock_ms=partition.checkpoint.replay_point.clock_ms,
        idle_ttls=partition.idle_ttls.since(partition.checkpoint.replay_point.offset),
    )
