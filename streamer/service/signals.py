"""SIGTERM and SIGINT of a service, from the first line of its process to the last: it ends in order, with exit code 0.

Imports only what costs nothing, so that the process can listen before it has loaded the rest.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

STOP = (signal.SIGTERM, signal.SIGINT)


def leave_when_told() -> None:
    """Until a loop runs there is nothing to drain: either signal ends the process at once, with 0."""
    for number in STOP:
        signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    del number, frame
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(0)  # an exception could be swallowed: a signal may come inside a callback of the import system


@contextlib.contextmanager
def drain_when_told(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> Iterator[None]:
    """Each signal calls ``stop`` on the loop. Afterwards both are ignored: the process ends, and how is decided.

    Not ``loop.add_signal_handler``: a loop gives its handlers back when it closes, and the next signal would kill."""

    def told(number: int, frame: FrameType | None) -> None:
        del number, frame
        loop.call_soon_threadsafe(stop)

    for number in STOP:
        signal.signal(number, told)
    try:
        yield
    finally:
        _ignore()


def _ignore() -> None:
    """From now on, also while the interpreter is taken down, which gives handlers written in Python back."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None  # Python prints a traceback for a signal that comes just now
    try:
        for number in STOP:
            signal.signal(number, signal.SIG_IGN)
    finally:
        sys.unraisablehook = hook
