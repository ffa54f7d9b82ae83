"""The settings of ``[model.NAME.window]``: how streams are cut into windows, and what bounds them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

_SIZES = {
    "tumbling": ["size_ms"],
    "hopping": ["size_ms", "hop_ms"],
    "session": ["gap_ms"],
    "count": ["count"],
    "end": [],
}
"""Kind -> the settings that it needs."""
_MAX_WINDOWS_PER_EVENT = 1_024


@dataclass(frozen=True, slots=True)
class WindowRule:
    """How the events of a stream are cut into windows. Times are event times in milliseconds.

    ========  ============================================  =======================  ===========================
    kind      window                                        bounds published         closes by time at watermark
    ========  ============================================  =======================  ===========================
    tumbling  [k size, (k+1) size)                          the window               its end
    hopping   [k hop, k hop + size), an event is in several  the window               its end
    session   events not more than ``gap_ms`` apart         first, last + gap        last + gap
    count     ``count`` events in order of arrival          first, last              never
    end       events up to the record that ends the stream  first, last              never
    ========  ============================================  =======================  ===========================
    """

    kind: str
    size_ms: int = 0
    hop_ms: int = 0
    gap_ms: int = 0
    count: int = 0
    max_events: int = 4_096
    """No window is longer. A window that reaches it closes with reason ``full``."""
    max_span_ms: int = 86_400_000
    """A window closes with reason ``span`` when the watermark is this far past its first event, in every kind."""
    min_events: int = 1
    """A shorter window closes without a prediction."""
    disorder_ms: int = 0
    """The watermark is the largest event time minus this."""
    max_open_windows: int = 1_000_000
    """Of one partition. Beyond it the window with the oldest event closes with reason ``limit``."""
    length_multiple: int = 1
    """For models that take only such lengths: the oldest events beyond a multiple are left out, and counted."""

    def validate(self) -> list[str]:
        """Everything that is wrong, as sentences; empty when the rule can be used."""
        if self.kind not in _SIZES:
            return [f"kind is {self.kind!r}, must be one of {', '.join(_SIZES)}"]
        positive = [*_SIZES[self.kind], "max_events", "max_span_ms", "min_events", "max_open_windows"]
        problems = [
            f"{name} is {getattr(self, name)}, must be at least 1 for {self.kind} windows"
            for name in [*positive, "length_multiple"]
            if getattr(self, name) < 1
        ]
        if self.disorder_ms < 0:
            problems.append(f"disorder_ms is {self.disorder_ms}, must not be negative")
        if problems:
            return problems
        if self.kind == "hopping" and self.hop_ms > self.size_ms:
            problems.append(f"hop_ms is {self.hop_ms}, must not exceed size_ms = {self.size_ms}: events would be lost")
        if self.kind == "hopping" and -(-self.size_ms // self.hop_ms) > _MAX_WINDOWS_PER_EVENT:
            problems.append(f"size_ms / hop_ms must be at most {_MAX_WINDOWS_PER_EVENT}, the windows of an event")
        if self.kind == "count" and self.count > self.max_events:
            problems.append(f"count is {self.count}, must not exceed max_events = {self.max_events}")
        if max(self.min_events, self.length_multiple) > self.max_events:
            problems.append(f"min_events and length_multiple must not exceed max_events = {self.max_events}")
        return problems

    @property
    def longest_ms(self) -> int:
        """No window is open for longer, in event time: until the watermark is past its end, or its span."""
        end_ms = self.size_ms if self.kind in ("tumbling", "hopping") else self.max_span_ms
        return min(end_ms, self.max_span_ms) + self.disorder_ms

    def fingerprint(self) -> str:
        """Changes with what a replay depends on. Bounds and ``min_events`` act on live records only, so they may change
        while windows are open; the kind, its sizes and the disorder may not."""
        decide = (self.kind, *(getattr(self, name) for name in _SIZES[self.kind]), self.disorder_ms)
        return hashlib.sha256(repr(decide).encode()).hexdigest()[:16]
