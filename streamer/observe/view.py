"""What the service shows of itself: one frozen look at it, so that nobody reaches into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from streamer.engine.partition import Phase


@dataclass(frozen=True, slots=True)
class PartitionView:
    """One partition that is here. Offsets of the input."""

    phase: Phase
    position: int
    next_offset: int
    live_from: int
    replay_point: int
    checkpointed: int
    """Where the last complete round began"""
    round_open: bool
    log_end: int | None
    """High watermark as the last fetch said"""
    confirmed_s: float
    """Wall clock of the last answered fetch, 0 before the first"""
    blocked_s: float
    """How long an open transaction of somebody else has been holding us"""
    newest_s: float = 0.0
    """Timestamp of the newest record that was taken, Unix epoch; 0 before the first, and for records without one"""

    @property
    def lag(self) -> int:
        """Records behind the end of the log"""
        return max((self.log_end or self.next_offset) - self.next_offset, 0)


@dataclass(frozen=True, slots=True)
class View:
    """The service at one moment."""

    ready: bool
    draining: bool
    topic: str
    input_partitions: int = 0
    """Of the topic"""
    partitions: Mapping[int, PartitionView] = field(default_factory=dict)
    pending_events: int = 0
    streams: int = 0
    streams_limit: int = 0
    state_bytes: int = 0
    windows_open: int = 0
    rollouts_open: int = 0
    waits_for: str | None = None
    """Why records wait for their schemas; None: none do"""
    clock_ahead_ms: int | None = None
    """The clock of this machine minus the cluster's, as far as is known"""
    other_machines: Mapping[int, str] = field(default_factory=dict)
    """Partition -> machine that computed its states before us, where it was another kind"""


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the group, as its coordinator describes it."""

    name: str
    host: str
    partitions: Sequence[int]
    """Of the input"""
    here: bool = False
    """It is this instance"""


@dataclass(frozen=True, slots=True)
class Siblings:
    """The group at one moment."""

    members: Sequence[Member]
    moving: bool = False
    """Partitions are being shared out anew: no member has any"""
