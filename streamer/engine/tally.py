"""Counting while an epoch is open. Sealed, it becomes a frozen ``Report``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from streamer.core import F32, ModelCall, Report, Source
from streamer.words import Closed, Forgotten, Reason


@dataclass(slots=True)
class Tally:
    """What happened in one partition since the last epoch; gone with the partition if that is given up."""

    records: int = 0
    events: int = 0
    replayed: int = 0
    late: int = 0
    trimmed: int = 0
    short: int = 0
    rejects: defaultdict[Reason, int] = field(default_factory=lambda: defaultdict(int))
    examples: dict[Reason, Source] = field(default_factory=dict)
    forgotten: defaultdict[Forgotten, int] = field(default_factory=lambda: defaultdict(int))
    closed: defaultdict[Closed, int] = field(default_factory=lambda: defaultdict(int))
    scores: list[tuple[str, F32]] = field(default_factory=list)


def report(tallies: Iterable[Tally], calls: Sequence[ModelCall]) -> Report:
    """The sum over partitions, and the model calls, which partitions share."""
    total = Tally()
    for each in tallies:
        total.records += each.records
        total.events += each.events
        total.replayed += each.replayed
        total.late += each.late
        total.trimmed += each.trimmed
        total.short += each.short
        total.examples |= each.examples
        total.scores += each.scores
        for reason, count in each.rejects.items():
            total.rejects[reason] += count
        for why, count in each.forgotten.items():
            total.forgotten[why] += count
        for how, count in each.closed.items():
            total.closed[how] += count
    return Report(
        records=total.records,
        events=total.events,
        replayed=total.replayed,
        late=total.late,
        trimmed=total.trimmed,
        calls=tuple(calls),
        rejects=dict(total.rejects),
        examples=total.examples,
        forgotten=dict(total.forgotten),
        closed=dict(total.closed),
        short=total.short,
        scores=tuple(total.scores),
    )
