"""Looks now and then at who is in the group."""

from __future__ import annotations

import asyncio
from typing import Protocol

from streamer.errors import KafkaSilentError, StreamerError
from streamer.kafka.group import Group
from streamer.observe.view import Member, Siblings

_SOON_S = 5.0
"""How long what is in motion, or not known, counts as such before it is looked at again."""
_TURN_S = 0.5


class GroupObserver(Protocol):
    """Who is told of the group."""

    def siblings(self, found: Siblings | None, silent: KafkaSilentError | None = None) -> None: ...


async def watch_siblings(group: Group, every_s: float, observer: GroupObserver) -> None:
    """Until cancelled: after each assignment, and every ``every_s``; sooner while the group moves or does not answer.
    Beside the loop, which waits for none of it."""
    loop = asyncio.get_running_loop()
    seen, due = 0, 0.0
    while True:
        if group.assignments and (group.assignments != seen or loop.time() >= due):
            seen = group.assignments
            settled = await _look(group, observer)
            due = loop.time() + (every_s if settled else min(_SOON_S, every_s))
        await asyncio.sleep(_TURN_S)


async def _look(group: Group, observer: GroupObserver) -> bool:
    """Whether the group is at rest."""
    try:
        found = await group.described()
    except StreamerError as error:
        observer.siblings(None, error if isinstance(error, KafkaSilentError) else None)
        return False
    if found is None:
        observer.siblings(None)
        return False
    members = [Member(each.name, each.host, each.partitions, each.here) for each in found.members]
    observer.siblings(Siblings(members, found.moving))
    return not found.moving
