"""Records of several steps for the load generator: so many consecutive events of a stream become one record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from streamer.tools.load import Events, Source


class Grouped:
    """What ``source`` gives, ``steps`` events of a stream at a time: x [N, steps, F]. A record has time and due time of its
    last event, and the first label among them. What fills no record at the end is left out."""

    def __init__(self, source: Source, steps: int) -> None:
        self._source, self._steps = source, steps
        self.feature_names = source.feature_names

    def events(self, start_ms: int) -> Iterator[Events]:
        waiting: dict[str, list[Any]] = {}
        labels: dict[str, str] = {}
        for events in self._source.events(start_ms):
            ends: list[int] = []
            x: list[Any] = []
            told: list[str] = []
            for row, (stream, label) in enumerate(zip(map(str, events.streams), events.labels, strict=True)):
                steps = waiting.setdefault(stream, [])
                steps.append(events.x[row])
                labels[stream] = labels.get(stream, "") or label
                if len(steps) == self._steps:
                    ends.append(row)
                    x.append(np.stack(waiting.pop(stream)))
                    told.append(labels.pop(stream))
            if ends:
                streams = [str(events.streams[row]) for row in ends]
                yield Events(streams, np.stack(x), events.times_ms[ends], events.due_ms[ends], told)
