"""How often in a row this process was fenced: now and then is a rebalance, always is somebody else."""

from __future__ import annotations

from streamer.errors import FencedError, KafkaUnavailableError

_MAX_IN_A_ROW = 5


class Fenced:
    """A commit that succeeds ends the row."""

    def __init__(self) -> None:
        self._in_a_row = self._at = 0

    def note(self, error: FencedError, commits: int) -> None:
        """``commits``: how many succeeded so far. KafkaUnavailableError: too often in a row."""
        self._in_a_row = 1 if commits > self._at else self._in_a_row + 1
        self._at = commits
        if self._in_a_row >= _MAX_IN_A_ROW:
            raise KafkaUnavailableError(
                f"fenced {self._in_a_row} times without a rebalance: {error}. Does another process use this "
                "kafka.instance, or may this principal not commit?"
            ) from error
