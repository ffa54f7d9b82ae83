"""What is seen of the partitions beside their records: which are idle, who holds us, how far they are. Looks, changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from streamer.core import RecordBatch
from streamer.engine.partition import Partition, Phase
from streamer.engine.processor import Processor
from streamer.kafka.input import Input
from streamer.observe.view import PartitionView
from streamer.service.clock import Clock
from streamer.service.idleness import Idleness, Look


class Watch:
    def __init__(self, reader: Input, processor: Processor, clock: Clock, *, idle_ms: int, stale_ms: int) -> None:
        self._reader = reader
        self._processor = processor
        self._clock = clock
        self._idleness = Idleness(idle_ms, stale_ms=stale_ms)
        self._blocked: dict[int, tuple[int, float]] = {}
        """Partition -> (offset, since): an open transaction of somebody else holds us there"""
        self._newest_ms: dict[int, int] = {}
        """Partition -> timestamp of the newest record that was taken"""

    def came(self, batches: Sequence[RecordBatch]) -> None:
        self._newest_ms |= {batch.partition: batch.timestamps_ms[-1] for batch in batches}

    def idle(self, fetching: Mapping[int, Partition]) -> Iterator[tuple[int, int]]:
        """Partitions that are idle, and for how long in ms. Asked in every turn, so only where time alone brings answers."""
        if not self._processor.lanes.timed:
            return
        now_s, wall_ms, reader = self._clock.monotonic(), self._clock.now_ms(), self._reader
        for number, partition in list(fetching.items()):
            if not partition.running:
                continue
            look = Look(
                partition=number,
                live=partition.phase is Phase.LIVE,
                position=partition.next_offset,
                fetched=reader.next_fetch_offset(number),
                log_end=reader.high_watermark(number),
                confirmed_ms=reader.confirmed_at_ms(number),
            )
            if elapsed_ms := self._idleness.elapsed_ms(look, now_s, wall_ms):
                yield number, elapsed_ms

    def _note_blocked(self, number: int, offset: int | None, now_s: float) -> None:
        known = self._blocked.get(number)
        if offset is None:
            self._blocked.pop(number, None)
        elif known is None or known[0] != offset:
            self._blocked[number] = offset, now_s

    def begin_anew(self) -> None:
        """Nothing is idle yet: fetches begin anew."""
        self._idleness.clear()

    def forget(self, number: int) -> None:
        self._idleness.forget(number)
        self._blocked.pop(number, None)
        self._newest_ms.pop(number, None)

    def partitions(self, fetching: Mapping[int, Partition]) -> dict[int, PartitionView]:
        """How far each restored partition is; notes on the way who holds us."""
        reader, now_s = self._reader, self._clock.monotonic()
        for number, each in fetching.items():
            if each.running:
                self._note_blocked(number, reader.blocked(number), now_s)
        return {
            number: PartitionView(
                phase=each.phase,
                position=each.position,
                next_offset=each.next_offset,
                live_from=each.live_from,
                replay_point=each.checkpoint.replay_point.offset,
                checkpointed=each.checkpoint.complete.offset,
                round_open=each.checkpoint.open,
                log_end=reader.high_watermark(number) if number in fetching else None,
                confirmed_s=reader.confirmed_at_ms(number) / 1000 if number in fetching else 0.0,
                blocked_s=now_s - self._blocked[number][1] if number in self._blocked else 0.0,
                newest_s=max(self._newest_ms.get(number, 0), 0) / 1000,
            )
            for number, each in self._processor.partitions.items()
            if not each.restoring
        }
