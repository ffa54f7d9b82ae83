"""Looks now and then at who is in the group."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from streamer.kafka.group import Group
from streamer.observe.view import Member, Siblings

_SOON_S = 5.0
"""How long what is in motion, or not known, counts as such before it is looked at again."""
_TURN_S = 0.5


async def watch_siblings(group: Group, every_s: float, tell: Callable[[Siblings | None], None]) -> None:
    """Until cancelled: after each assignment, and every ``every_s``; sooner while the group moves or does not answer.
    Beside the loop, which waits for none of it."""
    loop = asyncio.get_running_loop()
    seen, due = 0, 0.0
    while True:
        if group.assignments and (group.assignments != seen or loop.time() >= due):
            seen = group.assignments
            found = await _look(group)
            tell(found)
            due = loop.time() + (min(_SOON_S, every_s) if found is None or found.moving else every_s)
        await asyncio.sleep(_TURN_S)


async def _look(group: Group) -> Siblings | None:
    found = await group.described()
    if found is None:
        return None
    members = [Member(each.name, each.host, each.partitions, each.here) for each in found.members]
    return Siblings(members, found.moving)
