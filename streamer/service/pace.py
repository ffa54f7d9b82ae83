"""How many records one poll may bring, so that work between two looks at the group is bounded by time: a slow model and a
long backlog must not keep a joining member waiting."""

from __future__ import annotations

_TARGET_S = 0.5
_FIRST = 64
_FEWEST = 16


class Pace:
    """Follows what a record cost lately."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.records = min(_FIRST, most)
        """Of the next poll"""

    def note(self, records: int, seconds: float) -> None:
        """``records`` took ``seconds`` to decode and in model calls. Grows fourfold at most, so that one lucky poll is no rule."""
        if records:
            fit = int(_TARGET_S * records / seconds) if seconds > 0 else self._most
            self.records = max(min(fit, 4 * self.records, self._most), min(_FEWEST, self._most))
