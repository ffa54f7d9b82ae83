"""From where a partition goes on, once it is restored."""

from __future__ import annotations

from dataclasses import dataclass, field

from streamer.engine.checkpoint import ReplayPoint
from streamer.engine.idlettl import IdleTtls
from streamer.engine.truth import Decisions, LaneTruth


@dataclass(slots=True)
class Begin:
    """From where a partition goes on, once it is restored. ``position``: everything below is settled and committed."""

    position: int
    replay_point: ReplayPoint
    truths: list[LaneTruth]
    """Of each step model"""
    idle_ttls: IdleTtls = field(default_factory=lambda: IdleTtls([(0, 0)]))
    last_offset: int = -1
    checksum: int = 0
    window_through: dict[bytes, int] = field(default_factory=dict)
    idle: list[tuple[int, int]] = field(default_factory=list)
    clock_idle: list[tuple[int, int]] = field(default_factory=list)
    window_since: int = 0
    """Where the window model's regime began"""
    fleeting: Decisions = field(default_factory=Decisions)
    stranded: list[bytes] = field(default_factory=list)
    """Keys of records of models that are not served any more"""
    unwritten: bool = False
    """Something of it is not durable yet: a first start, or other models than before."""
