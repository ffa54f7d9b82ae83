"""``[model.NAME.window]``: how streams are cut into windows, and what bounds them."""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from streamer.settings.base import LONGEST_MS

_SIZES = {
    "tumbling": ["size_ms"],
    "hopping": ["size_ms", "hop_ms"],
    "session": ["gap_ms"],
    "count": ["count"],
    "end": [],
    "record": [],
}
"""Kind -> the settings that it needs."""
_MAX_WINDOWS_PER_EVENT = 1_024


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class WindowSection:
    """The rule of a model in window mode. One that cannot be followed cannot be made: ValueError says all that is wrong.

    Times are event times in milliseconds.

    ========  ============================================  =======================  ===========================
    kind      window                                        bounds published         closes by time at watermark
    ========  ============================================  =======================  ===========================
    tumbling  [k size, (k+1) size)                          the window               its end
    hopping   [k hop, k hop + size), an event is in several  the window               its end
    session   events not more than ``gap_ms`` apart         first, last + gap        last + gap
    count     ``count`` events in order of arrival          first, last              never
    end       events up to the record that ends the stream  first, last              never
    record    every record                                  its time                 at once, by arrival
    ========  ============================================  =======================  ===========================

    Where a record holds several steps (contract: ``input.steps``), counts and bounds are of steps. A record's steps stay
    together, so a window may be longer than ``count`` or ``max_events`` by what its last record brings.
    """

    kind: Literal["tumbling", "hopping", "session", "count", "end", "record"] = Field(description="Kind of window")
    size_ms: int = Field(default=0, ge=0, le=LONGEST_MS, description="tumbling, hopping: length")
    hop_ms: int = Field(default=0, ge=0, le=LONGEST_MS, description="hopping: distance of starts")
    gap_ms: int = Field(default=0, ge=0, le=LONGEST_MS, description="session: gap that ends it")
    count: int = Field(default=0, ge=0, description="count: events")
    max_events: int = Field(
        default=4_096, ge=1, le=1_000_000, description="No window is longer: closes with reason full"
    )
    max_span_ms: int = Field(
        default=86_400_000,
        ge=1,
        le=LONGEST_MS,
        description="Closes with reason span, when the watermark is this far past its first event",
    )
    min_events: int = Field(default=1, ge=1, description="Shorter windows close without a prediction")
    disorder_ms: int = Field(default=0, ge=0, le=LONGEST_MS, description="How far events may be behind the newest")
    max_open_windows: int = Field(
        default=1_000_000, ge=1, description="Per partition; the oldest closes with reason limit"
    )

    @model_validator(mode="after")
    def _can_be_followed(self) -> WindowSection:
        wrong = [
            f"{name} is {getattr(self, name)}, must be at least 1 for {self.kind} windows"
            for name in _SIZES[self.kind]
            if getattr(self, name) < 1
        ]
        if self.kind == "hopping" and not wrong:
            if self.hop_ms > self.size_ms:
                wrong.append(f"hop_ms is {self.hop_ms}, must not exceed size_ms = {self.size_ms}: events would be lost")
            if -(-self.size_ms // self.hop_ms) > _MAX_WINDOWS_PER_EVENT:
                wrong.append(f"size_ms / hop_ms must be at most {_MAX_WINDOWS_PER_EVENT}, the windows of an event")
        if self.kind == "count" and self.count > self.max_events:
            wrong.append(f"count is {self.count}, must not exceed max_events = {self.max_events}")
        if self.min_events > self.max_events:
            wrong.append(f"min_events is {self.min_events}, must not exceed max_events = {self.max_events}")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @property
    def longest_ms(self) -> int:
        """No window is open for longer, in event time: until the watermark is past its end, or its span; 0: none ever is."""
        if self.kind == "record":
            return 0
        end_ms = self.size_ms if self.kind in ("tumbling", "hopping") else self.max_span_ms
        return min(end_ms, self.max_span_ms) + self.disorder_ms

    def fingerprint(self) -> str:
        """Changes with what a replay depends on. Bounds and ``min_events`` act on live records only, so they may change
        while windows are open; the kind, its sizes and the disorder may not."""
        decide = (self.kind, *(getattr(self, name) for name in _SIZES[self.kind]), self.disorder_ms)
        return hashlib.sha256(repr(decide).encode()).hexdigest()[:16]
