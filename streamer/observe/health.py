"""What is known of the service now, and what the headline makes of it: pure functions of that and of the time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from streamer.observe.outage import Outage
from streamer.observe.view import PartitionView, Siblings, View


class Health(StrEnum):
    """The headline."""

    STARTING = "starting"
    WAITING = "waiting"
    RESTORING = "restoring"
    REPLAYING = "replaying"
    LIVE = "live"
    OUTAGE = "outage"
    DRAINING = "draining"
    ENDING = "ending"
    STUCK = "stuck"


_OF_ALL = (Health.OUTAGE, Health.DRAINING, Health.ENDING, Health.STUCK)
"""What is true of every partition when it is true of the service"""


@dataclass(slots=True)
class State:
    """Written by the observer on the service's loop, read by any thread: what is in it is replaced, or copied by readers.
    Times are of a clock that never goes back, in seconds, unless they say otherwise."""

    started: float
    view: View = field(default_factory=lambda: View(ready=False, draining=False, topic=""))
    ready: bool = False
    """Every partition that is owned is restored and replayed"""
    draining: bool = False
    ending: str | None = None
    """The error that ends the process"""
    outage: Outage = field(default_factory=Outage)
    assigned: list[int] | None = None
    """None before the first assignment"""
    assigned_at: float = 0.0
    restoring: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    """Partition -> records of its changelog that are read, all that there are, bytes that were read"""
    begun: dict[tuple[str, int], tuple[float, int]] = field(default_factory=dict)
    """(restore or replay, partition) -> when it began, and what was done then"""
    partitions: Mapping[int, PartitionView] = field(default_factory=dict)
    caught_up_s: dict[int, float] = field(default_factory=dict)
    """Partition -> wall clock when nothing was left of it"""
    siblings: Siblings | None = None
    """None: not known"""


def health(state: State) -> Health:
    if state.ending is not None:
        return Health.ENDING
    if state.draining:
        return Health.DRAINING
    if state.outage.since_s is not None:
        return Health.OUTAGE
    if state.assigned is None:
        return Health.STARTING
    if not state.assigned:
        return Health.WAITING
    if not state.ready or len(state.partitions) < len(state.assigned):
        return Health.RESTORING
    return Health.REPLAYING if any(map(replaying, state.partitions.values())) else Health.LIVE


def unready(state: State, wall_s: float) -> str | None:
    """Why this instance is not to be counted on, None when it is: what ``/readyz`` says."""
    if state.ending is not None:
        return f"ending: {state.ending}"
    if state.draining:
        return "draining"
    lasts_s, cause = state.outage.lasts_s(wall_s), state.outage.cause
    if lasts_s is not None:
        return f"Kafka cannot be used for {lasts_s} s: {cause or 'it does not answer'}"
    if state.view.waits_for is not None:
        return f"records wait for their schemas: {state.view.waits_for}"
    return None if state.ready else "partitions are not restored yet"


def replaying(partition: PartitionView) -> bool:
    return partition.next_offset < partition.live_from


def lag(state: State) -> int | None:
    """Records behind the end of the log; None while that is not known (restore, outage)."""
    known = state.partitions
    if state.outage.since_s is not None or not known or len(known) < len(state.assigned or ()):
        return None
    return sum(each.lag for each in known.values())


def lag_s(state: State, number: int, partition: PartitionView, wall_s: float) -> float | None:
    """At most how long the oldest record that was not taken has been there: since the timestamp of the newest that was, or
    since nothing was left, whichever is later. 0 when nothing is left, None when neither is known."""
    if not partition.lag:
        return 0.0
    since_s = max(partition.newest_s, state.caught_up_s.get(number, 0.0))
    return round(max(wall_s - since_s, 0.0), 3) if since_s > 0 else None


def held(state: State) -> dict[str, int]:
    """All partitions of the input by where they are: owned (running here), restoring (ours, not running yet), elsewhere (with
    other members, as far as is known), unowned (with no member of the group as it was described last)."""
    here = set(state.partitions)
    restoring = set(state.assigned or ()) - here
    others, siblings = max(state.view.input_partitions - len(here | restoring), 0), state.siblings
    unowned = 0
    if siblings is not None:
        elsewhere = {number for member in siblings.members for number in member.partitions} - here - restoring
        unowned = max(others - len(elsewhere), 0)
    return {"owned": len(here), "restoring": len(restoring), "elsewhere": others - unowned, "unowned": unowned}


def shown(state: State, now: float, wall_s: float, whole: Health) -> dict[int, dict[str, Any]]:
    """Partitions as people see them, in agreement with the headline: where that is one of trouble, it is theirs too. Those
    that are ready run while others are restored."""
    found: dict[int, dict[str, Any]] = {number: {"state": "waiting"} for number in state.assigned or ()}
    for number, (done, total, bytes_read) in list(state.restoring.items()):
        how_far = progress(state, ("restore", number), done, total, now)
        word = "restoring" if how_far["remaining"] else "restored"
        found[number] = {"state": word, **how_far, "bytes_read": bytes_read}
    for number, each in state.partitions.items():
        found[number] = {
            "state": "replaying" if replaying(each) else "live",
            "position": each.position,
            "lag": each.lag,
            "lag_s": lag_s(state, number, each, wall_s),
            "replay_records": each.position - each.replay_point,
            "blocked_s": round(each.blocked_s, 1),
        }
        if replaying(each):
            done, total = replayed(each)
            found[number] |= progress(state, ("replay", number), done, total, now)
    if whole in _OF_ALL:
        how_far = dict.fromkeys(("share", "remaining", "eta_s"))
        found = {
            number: {**{key: value for key, value in each.items() if key not in how_far}, "state": str(whole)}
            for number, each in found.items()
        }
    return found


def replayed(partition: PartitionView) -> tuple[int, int]:
    """Records that were replayed, and all that are to be."""
    begin = partition.replay_point
    return partition.next_offset - begin, partition.live_from - begin


def progress(state: State, what: tuple[str, int], done: int, total: int, now: float) -> dict[str, Any]:
    """How far a restore or replay is; the time that is left follows from the pace since it began until now."""
    began, at = state.begun.get(what, (now, done))
    pace = (done - at) / (now - began) if now > began else 0.0
    remaining = max(total - done, 0)
    return {
        "share": min(done / total, 1.0) if total > 0 else 1.0,
        "remaining": remaining,
        "eta_s": remaining / pace if pace > 0 else None,
    }


def restore(state: State, partitions: Mapping[int, dict[str, Any]], now: float) -> dict[str, float | None]:
    """How far the restore is as a whole; what is left follows from the time that it took so far. ``partitions``: as shown."""
    parts = partitions.values()
    share = sum(0.0 if p["state"] == "waiting" else p.get("share", 1.0) for p in parts) / max(len(parts), 1)
    taken_s = now - state.assigned_at
    return {"share": share, "eta_s": taken_s * (1 - share) / share if share else None}


def gauges(view: View) -> dict[str, int]:
    return {
        "pending_events": view.pending_events,
        "streams_resident": view.streams,
        "streams_limit": view.streams_limit,
        "state_bytes": view.state_bytes,
        "windows_open": view.windows_open,
        "rollouts_open": view.rollouts_open,
    }
