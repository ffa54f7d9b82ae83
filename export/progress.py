"""Progress with an estimate of the time left on stderr; nothing at all when stderr is not a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def epochs_progress(title: str, total: int, done: int = 0) -> Iterator[Callable[[str], None]]:
    """A bar over ``total`` items, ``done`` of which are finished; call the result with a note after each."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda note: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total, completed=done, note="")

        def advance(note: str) -> None:
            progress.update(task, advance=1, note=note)

        yield advance


@contextmanager
def work_progress(title: str, total: float) -> Iterator[Callable[[float, str], None]]:
    """A bar over ``total`` units of work; call the result with the units done since the last call and a note.

    The time left follows from the work left, so that items may differ in size.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda amount, note: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, speed_estimate_period=600) as progress:
        task = progress.add_task(title, total=total, note="")

        def advance(amount: float, note: str) -> None:
            progress.update(task, advance=amount, note=note)

        yield advance
