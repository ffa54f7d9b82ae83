"""Time as the service reads it, and how the time of an epoch is divided among its stages."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    def monotonic(self) -> float: ...

    def now_ms(self) -> int: ...


class SystemClock:
    """The real clock; tests bring their own."""

    def monotonic(self) -> float:
        return time.monotonic()

    def now_ms(self) -> int:
        return int(time.time() * 1000)


@dataclass(slots=True)
class Times:
    """Clock readings of one epoch, in seconds. Each stage begins where the one before ends, so stages sum to the whole."""

    fetch: float = 0.0
    decode: float = 0.0
    wait: float = 0.0
    run: float = 0.0
    encode: float = 0.0
    commit: float = 0.0
    began: float = 0.0
    cut: float = 0.0

    def begin(self, now: float) -> None:
        self.began = self.cut = now

    def end(self, stage: str, now: float) -> None:
        """Everything since the last reading belongs to ``stage``."""
        setattr(self, stage, getattr(self, stage) + now - self.cut)
        self.cut = now

    @property
    def total(self) -> float:
        return self.fetch + self.decode + self.wait + self.run + self.encode + self.commit
