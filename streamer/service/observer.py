"""What the service reports, to whom it may concern."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from streamer.observe.view import View
from streamer.service.commits import CommitObserver
from streamer.service.takeover import RestoreProgress


class Observer(CommitObserver, Protocol):
    """What the loop reports, at most a few calls per poll or commit."""

    def ran(self, seconds: Sequence[float]) -> None: ...

    def assigned(self, partitions: Sequence[int]) -> None: ...

    def restoring(self, partition: int, progress: RestoreProgress) -> None: ...

    def recovered(self, restored: Sequence[int], kept: Sequence[int], seconds: float) -> None: ...

    def failed(self, error: BaseException) -> None: ...

    def tick(self, look: Callable[[], View]) -> None: ...
