"""Records wait here for the schemas that they were written by, when the registry cannot be asked: they are never dropped.

What waits is of few partitions and bounded: a partition with a record that waits is paused. All others go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Protocol

from streamer.core import RecordBatch
from streamer.errors import RegistryUnavailableError
from streamer.records.schemas.book import Book, Schema, SchemaId, telling
from streamer.service.clock import Clock

_GRACE_S = 0.25
"""What a turn of the loop waits for a registry that is being asked."""
_RETRY_S = (0.5, 1.0, 2.0, 5.0)


class Asks(Protocol):
    async def schemas(self, numbers: Iterable[SchemaId]) -> dict[SchemaId, Schema | None]: ...

    def close(self) -> None: ...


class Pauses(Protocol):
    def pause(self, partitions: Iterable[int]) -> None: ...

    def resume(self, partitions: Iterable[int]) -> None: ...


class Told(Protocol):
    def failed(self, error: BaseException) -> None: ...


class Schemas:
    """``ready`` gives out what can be decoded. One question to the registry is under way at a time."""

    def __init__(self, book: Book, registry: Asks, reader: Pauses, observer: Told, clock: Clock) -> None:
        self._book, self._registry, self._reader = book, registry, reader
        self._observer, self._clock = observer, clock
        self._waiting: dict[int, list[RecordBatch]] = {}
        self._asking: asyncio.Task[dict[SchemaId, Schema | None]] | None = None
        self._again_at = 0.0
        self._failed = 0
        self._cause = ""

    @property
    def held(self) -> set[int]:
        """Partitions whose records wait."""
        return set(self._waiting)

    @property
    def records(self) -> int:
        """That wait."""
        return sum(len(batch) for batches in self._waiting.values() for batch in batches)

    @property
    def cause(self) -> str | None:
        """Why records wait, for people; None: none do."""
        return (self._cause or "schemas are being looked up") if self._waiting else None

    async def ready(self, fetched: Sequence[RecordBatch]) -> list[RecordBatch]:
        """What of this fetch, and of what waited, can be decoded now, per partition in order."""
        wanted = self._book.wanted(telling(fetched))
        if not wanted and not self._waiting:
            return list(fetched)
        for batch in fetched:
            self._waiting.setdefault(batch.partition, []).append(batch)
        every = [batch for batches in self._waiting.values() for batch in batches]
        wanted = self._book.wanted(telling(every))
        found = await self._ask(wanted) if wanted else {}
        self._book.learn(found)
        before = set(self._waiting) - {batch.partition for batch in fetched}
        ready: list[RecordBatch] = []
        for number, batches in list(self._waiting.items()):
            if self._book.wanted(telling(batches)) <= found.keys():
                ready += self._waiting.pop(number)
        self._reader.pause(self.held - before)
        self._reader.resume(before - self.held)
        return ready

    def forget(self) -> None:
        """Fetches begin anew from positions before what waited."""
        self._waiting.clear()

    async def stop(self) -> None:
        self.forget()
        task, self._asking = self._asking, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._registry.close()

    async def _ask(self, wanted: set[SchemaId]) -> dict[SchemaId, Schema | None]:
        """What the registry says by now; nothing while it does not answer."""
        if self._asking is None:
            if self._clock.monotonic() < self._again_at:
                return {}
            self._asking = asyncio.ensure_future(self._registry.schemas(wanted))
        await asyncio.wait((self._asking,), timeout=_GRACE_S)
        if not self._asking.done():
            return {}
        task, self._asking = self._asking, None
        try:
            found = task.result()
        except RegistryUnavailableError as error:
            self._again_at = self._clock.monotonic() + _RETRY_S[min(self._failed, len(_RETRY_S) - 1)]
            self._failed, self._cause = self._failed + 1, str(error)
            self._observer.failed(error)
            return {}
        self._failed, self._cause = 0, ""
        return found
