"""Why a record is not an event, as a value that travels up to the one place that makes rejects of it."""

from __future__ import annotations

from streamer.core import ClosedWindow, Headers, Reject
from streamer.words import Reason

MAX_DETAIL = 500
"""Characters of a detail: it is told in a header of the dead letter, whatever the record held."""


class Unusable(Exception):
    """One record cannot be used: the reason's code, and a sentence for people."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail

    def alone(self) -> Unusable:
        """Itself, without the way it came: the frames there hold all records of a fetch, and one of them would hold it, so
        that the fetch stays until the collector finds the circle."""
        self.__traceback__ = self.__context__ = self.__cause__ = None
        return self


def plain(text: object) -> str:
    """``text`` as it can be written anywhere: UTF-8, bounded, whatever a stranger's code put into it."""
    try:
        told = str(text)
    except Exception:  # a stranger's ``__str__``
        told = f"a {type(text).__name__} that cannot be told"
    short = told if len(told) <= MAX_DETAIL else told[:MAX_DETAIL] + "..."
    return short.encode("utf-8", "backslashreplace").decode()


def unforeseen(error: BaseException) -> Unusable:
    """What nobody thought of is told with the name of the exception."""
    return Unusable(Reason.UNDECODABLE, plain(f"{type(error).__name__}: {plain(error)}"))


def refused_window(
    partition: int,
    model: str,
    window: ClosedWindow,
    why: str,
    *,
    key: bytes,
    source: int,
    headers: Headers,
    timestamp_ms: int,
) -> Reject:
    """The reject of a closed window that a model does not take. ``source``: offset that stands for it; ``key``: its stream's,
    as records have it."""
    offsets = f"offsets {window.offsets.min()} to {window.offsets.max()}"
    return Reject(
        partition=partition,
        offset=source,
        reason=Reason.MODEL_REFUSED,
        detail=f"model {model!r}, window {window.start_ms} to {window.end_ms} ms, {offsets}: {plain(why)}",
        key=key,
        value=None,
        headers=headers,
        timestamp_ms=timestamp_ms,
    )
