"""Pending work: one ingest over all its partitions, merged into columns of N rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streamer.core import I64, U8, EventBatch, ModelCall, X
from streamer.engine.partition import Partition
from streamer.engine.windowing import Closing
from streamer.engine.windowlane import WindowLane
from streamer.generate.request import Refused
from streamer.settings import BatchSection


@dataclass(slots=True)
class Part:
    """Rows [begin, end) of the work belong to one event batch."""

    partition: Partition
    batch: EventBatch
    begin: int
    end: int


@dataclass(slots=True)
class Work:
    """One ingest over all its partitions, merged into columns of N rows."""

    parts: list[Part]
    slots: I64
    x: X
    offsets: I64
    times_ms: I64
    ops: U8 | None
    windows: list[tuple[Partition, Closing]]
    steps: I64 | None = None
    """[N] steps of each row, ``x`` then has a row per step; None: one each"""
    refused: dict[int, Refused] = field(default_factory=dict)
    """Row -> why a rollout was not opened"""

    @property
    def partitions(self) -> set[int]:
        owners = [*(part.partition for part in self.parts), *(partition for partition, _ in self.windows)]
        return {partition.number for partition in owners}

    @classmethod
    def merged(
        cls, parts: list[Part], windows: list[tuple[Partition, Closing]], *, stepping: bool, no_events: X
    ) -> Work:
        """``stepping``: streams need slots. ``no_events`` [0, F]: of the input's dtype."""
        batches = [part.batch for part in parts]
        slots = [part.partition.streams.of(part.batch.keys) for part in parts] if stepping else []
        ops = None
        if any(batch.ops is not None for batch in batches):
            ops = np.concatenate([np.zeros(len(b), np.uint8) if b.ops is None else b.ops for b in batches])
        return cls(
            parts=parts,
            slots=_joined(slots, np.int64),
            x=_joined([batch.x for batch in batches], no_events.dtype),
            offsets=_joined([batch.offsets for batch in batches], np.int64),
            times_ms=_joined([batch.times_ms for batch in batches], np.int64),
            ops=ops,
            windows=windows,
            steps=_joined([b.steps for b in batches], np.int64) if batches and batches[0].steps is not None else None,
        )

    def judge(self, lane: WindowLane, bounds: BatchSection, calls: list[ModelCall]) -> Iterator[None]:
        """Runs the window model over ``windows``, one call per iteration, and hands each partition its answers."""
        windows, max_rows, max_cells = self.windows, bounds.max_rows, bounds.max_window_cells
        closings = [closing for _, closing in windows]
        verdicts = yield from lane.run(closings, calls, max_rows=max_rows, max_cells=max_cells)
        for partition in dict.fromkeys(partition for partition, _ in windows):
            mine = [row for row, (owner, _) in enumerate(windows) if owner is partition]
            answers, refused, scores = lane.settle(
                partition.number, [closings[row] for row in mine], [verdicts[row] for row in mine]
            )
            partition.refuse(refused)
            partition.tally.scores += scores
            if len(answers):
                partition.answers.append(answers)

    def part_of(self, row: int) -> Part:
        return next(part for part in self.parts if part.begin <= row < part.end)


def _joined(parts: Sequence[Any], dtype: Any) -> Any:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty(0, dtype)
