"""``/status``: plain values for JSON, what the person on call asks first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from streamer.observe.counts import LATENCY_S, Counts
from streamer.observe.health import Health, State, gauges, health, held, lag, restore, shown
from streamer.observe.view import Siblings

_SHARES = (0.5, 0.95, 0.99)
_MEMBERS_SHOWN = 100


@dataclass(frozen=True, slots=True)
class About:
    """What does not change while the service runs."""

    models: Sequence[tuple[str, str, str]]
    """(name, version, sha256)"""
    version: str
    facts: Mapping[str, str] = field(default_factory=dict)
    """Shown as they are, so they hold no secrets"""


def status(
    about: About,
    state: State,
    counts: Counts,
    errors: Iterable[Mapping[str, Any]],
    *,
    now: float,
    wall_s: float,
    stuck_s: float | None = None,
) -> dict[str, Any]:
    """``errors``: oldest first. ``stuck_s``: how long the event loop has been standing still, if it does."""
    whole = health(state) if stuck_s is None else Health.STUCK
    partitions, outage, view = shown(state, now, wall_s, whole), state.outage, state.view
    waits_s = [each["lag_s"] for each in partitions.values() if each.get("lag_s") is not None]
    return {
        "health": str(whole),
        **({} if stuck_s is None else {"stuck_s": stuck_s}),
        "ending": state.ending,
        "outage_s": outage.lasts_s(wall_s),
        "outage_cause": outage.cause,
        "version": about.version,
        "up_s": round(now - state.started, 1),
        **about.facts,
        "clock_ahead_s": None if view.clock_ahead_ms is None else round(view.clock_ahead_ms / 1000, 3),
        "other_machines": {str(number): other for number, other in sorted(view.other_machines.items())},
        "models": [{"name": name, "version": version, "sha256": digest} for name, version, digest in about.models],
        "restore": restore(state, partitions, now) if whole is Health.RESTORING else None,
        "partitions": {str(number): values for number, values in sorted(partitions.items())},
        "partitions_held": held(state),
        "members": _members(state.siblings),
        "members_total": None if state.siblings is None else len(state.siblings.members),
        "lag": lag(state),
        "lag_s": max(waits_s) if waits_s and lag(state) is not None else None,
        "records": counts.records,
        "records_per_second": round(counts.records_per_s, 1),
        "predictions": counts.predictions,
        "predictions_per_second": round(counts.predictions_per_s, 1),
        "rejected": {reason: count for reason, count in counts.rejected.items() if count},
        "latency_s": counts.recent_latency(_SHARES),
        "latency_limit_s": LATENCY_S[-1],
        "stage_s": {stage: found.recent(_SHARES) for stage, found in counts.stages.items()},
        **gauges(view),
        "streams_evicted": {reason: count for reason, count in counts.evicted.items() if count},
        "windows_closed": {reason: count for reason, count in counts.closed.items() if count},
        "events_late": counts.late,
        "last_commit_s_ago": round(max(wall_s - counts.last_commit_s, 0.0), 1) if counts.last_commit_s else None,
        "errors": [{**error, "s_ago": round(wall_s - error["at_ms"] / 1000, 1)} for error in errors],
    }


def _members(siblings: Siblings | None) -> list[dict[str, Any]] | None:
    """The group, this instance first; None when it is not known."""
    if siblings is None:
        return None
    ordered = sorted(siblings.members, key=lambda member: (not member.here, member.name))
    return [
        {"name": each.name, "host": each.host, "here": each.here, "partitions": list(each.partitions)}
        for each in ordered[:_MEMBERS_SHOWN]
    ]
