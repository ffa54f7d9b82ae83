"""One stream as people see it."""

from __future__ import annotations

from typing import Any

import numpy as np

from streamer.engine.processor import Processor


def describe(processor: Processor, stream: bytes) -> dict[str, Any] | None:
    """Summary of one stream's state; None when it has none here."""
    for number, partition in processor.partitions.items():
        slot = partition.streams.find(stream)
        if slot is None:
            continue
        chosen = np.array([slot], np.int64)
        models = {}
        for lane in processor.lanes.stepping:
            tensors = zip(lane.model.states, lane.arena.take(chosen), strict=False)  # not what is fed back
            models[lane.name] = {
                "through_offset": int(lane.arena.through[slot]),
                "state_norms": {state.input: float(np.linalg.norm(value)) for state, value in tensors},
            }
        return {
            "stream": stream.decode(errors="replace"),
            "partition": number,
            "position": partition.position,
            "last_event_ms": int(partition.newest_of(chosen)[0]),
            "models": models,
        }
    return None
