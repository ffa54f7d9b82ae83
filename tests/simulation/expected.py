"""What a run left behind, read from the cluster's logs, and what a run without faults would have answered."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pasts import Alone

from tests.simulation import product
from tests.simulation.chains import CHAINS, LETTER_OF, PAST, kept_of, rollout
from tests.simulation.plans import CHANGELOG, DEAD, OUTPUT

if TYPE_CHECKING:
    from tests.simulation.logs import Log
    from tests.simulation.world import Sent, World


@dataclass(frozen=True)
class Answer:
    partition: int
    offset: int
    """In the output"""
    source: tuple[int, int]
    """Partition and offset of the input"""
    stream: str
    model: str
    document: dict[str, Any]
    at_s: float


@dataclass(frozen=True)
class Dead:
    source: tuple[int, int]
    reason: str
    detail: str


def read(world: World, name: str) -> Iterator[tuple[Log, Any, Any]]:
    topic = world.cluster.topics.get(name)
    for log in topic.logs if topic else ():
        for batch, record in log.visible(ever=True):
            yield log, batch, record


def answers(world: World) -> list[Answer]:
    found = []
    for log, batch, record in read(world, OUTPUT):
        headers = dict(record.headers)
        _, partition, offset = headers["streamer-source"].decode().rsplit("/", 2)
        document = json.loads(record.value)
        source, stream = (int(partition), int(offset)), record.key.decode()
        model = document["model"].split("@")[0]
        found.append(Answer(log.partition, record.offset, source, stream, model, document, batch.appended_ms / 1000))
    return found


def dead_letters(world: World) -> list[Dead]:
    found = []
    for _, _, record in read(world, DEAD):
        headers = dict(record.headers)
        _, partition, offset = headers["streamer-source"].decode().rsplit("/", 2)
        source = int(partition), int(offset)
        found.append(Dead(source, headers["streamer-error"].decode(), headers["streamer-error-detail"].decode()))
    return found


def changes(world: World) -> dict[int, list[product.Change]]:
    """The changelog's committed records by partition, all that ever were, in order."""
    found: dict[int, list[product.Change]] = defaultdict(list)
    for log, _, record in read(world, CHANGELOG):
        change = product.change(record.key, record.value)
        if change is not None:
            found[log.partition].append(change)
    return found


def being_written(world: World) -> set[tuple[int, tuple[str, int, int, int]]]:
    """(partition, (stream, start, end, part)) of windows that have closed and wait for what is written about them."""
    newest = {
        (log.partition, window): record.value
        for log, _, record in read(world, CHANGELOG)
        if (window := product.being_written(record.key)) is not None
    }
    return {where for where, value in newest.items() if value is not None}


def replay_points(world: World) -> dict[int, int]:
    points: dict[int, int] = {}
    for partition, found in changes(world).items():
        for change in found:
            if change.kind == "progress":
                points[partition] = change.replay_point
    return points


# what is expected


def visible(world: World) -> dict[int, list[Sent]]:
    """Input records by partition that a reader of committed records gets, of the newest topic."""
    topic = world.inputs[-1]
    uncommitted = world.current.delivery == "ephemeral"
    offsets = {
        (log.partition, record.offset)
        for log in topic.logs
        for _, record in log.visible(ever=True, undecided=uncommitted)
    }
    found: dict[int, list[Sent]] = defaultdict(list)
    for sent in world.sent:
        if sent.topic is topic and (sent.partition, sent.offset) in offsets:
            found[sent.partition].append(sent)
    return found


def bad(what: Any) -> str | None:
    return what.removeprefix("bad:") if isinstance(what, str) and what.startswith("bad:") else None


def refused_by(letter: str, what: Any) -> bool:
    return any(x in CHAINS[letter.upper()].refuses for x in steps_of(what))


def steps_of(what: Any) -> tuple[float, ...]:
    """Of an event; none of anything else."""
    return what if isinstance(what, tuple) else (what,) if isinstance(what, float) else ()


@dataclass
class Era:
    """From ``start`` on a partition is in the hands of these models."""

    start: int
    replayed_from: int
    models: dict[str, str]
    """Name -> letter"""
    clears: set[str]
    """Names whose states begin anew"""


def eras(world: World, found: Sequence[product.Change]) -> list[Era]:
    """By the progress records of one partition."""
    result = [Era(0, 0, {n: letter.upper() for n, letter in world.plan.regimes[0].letters.items()}, set())]
    last: product.Change | None = None
    policies = {
        tuple(sorted((n, c.upper()) for n, c in r.letters.items())): r.document["delivery"].get(
            "model_changed", "refuse"
        )
        for r in world.plan.regimes
    }
    for change in found:
        if change.kind != "progress":
            continue
        if last is not None and change.models != last.models:
            models = {name: LETTER_OF.get(digest, "*") for name, digest in change.models}
            before = dict(last.models)
            changed = {name for name, digest in change.models if before.get(name) != digest}
            policy = policies.get(tuple(sorted(models.items())), "reset")
            clears = changed if policy != "keep" else {name for name in changed if name not in before}
            result.append(Era(last.position, last.replay_point, models, clears))
        last = change
    return result


def step_values(
    world: World, log: Sequence[Sent], name: str, story: Sequence[Era], forgotten: Sequence[tuple[int, str]]
) -> dict[int, Any]:
    """Offset -> what model ``name`` must answer: a value, "refused", or what a rollout gives."""
    ttl = world.plan.ttl_ms
    state: dict[str, Any] = {}
    last: dict[str, float | None] = {}
    newest: dict[str, int] = {}
    result: dict[int, Any] = {}
    due = sorted(forgotten)
    coming = list(story)
    letter: str | None = None
    for sent in log:
        while due and due[0][0] < sent.offset:
            gone = due.pop(0)[1]
            state.pop(gone, None)
            last.pop(gone, None)
        while coming and coming[0].start <= sent.offset:
            era = coming.pop(0)
            letter = era.models.get(name)
            if name in era.clears:
                state.clear()
                last.clear()
        if letter is None or letter == "*" or bad(sent.what):
            continue
        chain, stream, what = CHAINS[letter], sent.stream, sent.what
        if isinstance(what, dict):
            result[sent.offset] = rollout(chain, state.get(stream, 0.0), last.get(stream), what)
        elif isinstance(what, str):
            state.pop(stream, None)
            last.pop(stream, None)
            if what == "end":
                newest.pop(stream, None)
        else:
            if ttl and stream in newest and sent.ts_ms > newest[stream] + ttl:
                state.pop(stream, None)
                last.pop(stream, None)
            newest[stream] = max(newest.get(stream, sent.ts_ms), sent.ts_ms)
            if refused_by(letter, what):
                result[sent.offset] = "refused"
            elif letter == PAST:
                alone = state.setdefault(stream, Alone())
                result[sent.offset] = alone.event(what, kept_of(what), sent.ts_ms)
            else:
                listed = []
                for x in steps_of(what):
                    state[stream] = last[stream] = chain.advance(state.get(stream, 0.0), x)
                    listed.append(state[stream])
                result[sent.offset] = listed if world.plan.many else listed[-1]
    return result


def variants(story: Sequence[Era]) -> Iterator[list[Era]]:
    """A model that begins anew does so where it took over, or where the replay began: both are honest."""
    choices = [[era.start] if not era.clears else sorted({era.start, era.replayed_from}) for era in story]
    for starts in itertools.product(*choices):
        yield [Era(start, era.replayed_from, era.models, era.clears) for start, era in zip(starts, story, strict=True)]
