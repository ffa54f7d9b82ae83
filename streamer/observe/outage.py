"""Since when Kafka cannot be used, and why."""

from __future__ import annotations

from collections.abc import Collection

from streamer.errors import KafkaSilentError, KafkaUnavailableError

SILENT_S = 10.0
"""Fetches are answered every few milliseconds, with or without records; without an answer for this long Kafka is away."""
_RECENT_S = 60.0


class Outage:
    """Begins with an error or with silence; ends when all that was asked is answered again. Times are of the wall clock."""

    def __init__(self) -> None:
        self.since_s: float | None = None
        self.cause: str | None = None
        """What Kafka answered, where it did and cannot be used all the same; None: it is silent"""
        self._heard_s = 0.0

    def failed(self, error: KafkaUnavailableError, wall_s: float, last_commit_s: float) -> None:
        """It began when Kafka was last heard, not when a request timed out."""
        if self.since_s is None:
            heard_s = max(self._heard_s, last_commit_s)
            self.since_s = heard_s if wall_s - heard_s < _RECENT_S else wall_s
        self.cause = None if isinstance(error, KafkaSilentError) else str(error)

    def looked(self, heard_s: Collection[float], wall_s: float, *, ready: bool) -> None:
        """``heard_s``: per partition when its last fetch was answered, 0 before the first."""
        if not any(heard_s):
            return
        self._heard_s = max(heard_s)
        if wall_s - self._heard_s > SILENT_S:
            self.since_s = self.since_s or self._heard_s
        elif ready and self.since_s and min(filter(None, heard_s)) > self.since_s:
            self.over()

    def over(self) -> None:
        self.since_s = self.cause = None

    def lasts_s(self, wall_s: float) -> float | None:
        since_s = self.since_s
        return None if since_s is None else round(max(wall_s - since_s, 0.0), 1)
