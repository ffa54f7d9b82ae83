"""Windows by definition: the slow reference is given the input in log order and the idle advances that were committed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from writing import LABELS, write

from tests.simulation import product
from tests.simulation.chains import fold
from tests.simulation.expected import steps_of

if TYPE_CHECKING:
    from tests.simulation.oracle import Judge

Key = tuple[str, int, int, int]
"""Stream, start, end, part"""


class Definition:
    """What the windows of one partition must be."""

    def __init__(
        self, judge: Judge, partition: int, rule: dict[str, Any], *, emits: bool = False, writes: bool = False
    ) -> None:
        self.expected: dict[Key, tuple[Any, str]] = {}
        self._emits, self._writes = emits, writes
        self.late: set[tuple[int, int]] = set()
        self.moved: list[tuple[int, int]] = []
        """Idle advances that closed something: (before offset, watermark)"""
        log = judge.log.get(partition, [])
        self._values = {sent.offset: steps_of(sent.what) for sent in log}
        self._reference = product.reference(rule, lambda offset: len(self._values[offset]))
        idle: dict[int, int] = {}
        for change in judge.changes.get(partition, ()):
            for before, watermark in change.idle:
                idle[before] = max(watermark, idle.get(before, watermark))
        moves = sorted(idle.items())
        for sent in log:
            while moves and moves[0][0] <= sent.offset:
                self._advance(*moves.pop(0))
            if isinstance(sent.what, str) and sent.what.startswith("bad:"):
                continue
            what = product.OPS.get(sent.what, sent.what) if isinstance(sent.what, str) else sent.what
            step = self._reference.record(sent.offset, sent.stream, sent.ts_ms, what)
            if step.late:
                self.late.add((partition, sent.offset))
            self._closed(step)
        for move in moves:
            self._advance(*move)

    def _advance(self, before: int, watermark: int) -> None:
        step = self._reference.idle(watermark)
        if step.moved:
            self.moved.append((before, watermark))
        self._closed(step)

    def _closed(self, step: Any) -> None:
        for window in step.closed:
            values = [x for _, offset in window.events for x in self._values[offset]]
            right = _written(values) if self._writes else product.transcript(values) if self._emits else fold(values)
            self.expected[window.stream, window.start, window.end, window.part] = (right, window.reason)


def _written(values: list[float]) -> Any:
    symbols, score, truncated = write(values, product.WRITTEN_STEPS)
    return symbols, "".join(LABELS[symbol] for symbol in symbols), score, truncated


def check_windows(judge: Judge, name: str, rule: dict[str, Any]) -> None:
    told = {each.source for each in judge.dead if each.reason == "late"}
    for partition in judge.log:
        letter = judge.letters[name]
        wanted = Definition(judge, partition, rule, emits=letter == "#", writes=letter == "+")
        found: dict[Key, Any] = {}
        for answer in judge.answers:
            if answer.partition == partition and answer.model == name:
                window = answer.document["window"]
                found[answer.stream, window["start"], window["end"], window["part"]] = answer.document
        for key in sorted(set(wanted.expected) | set(found)):
            if key not in found and (partition, key) in judge.being_written:
                continue
            if key not in found:
                judge.say("window", f"{key} of partition {partition} is missing ({wanted.expected[key][1]})")
            elif key not in wanted.expected:
                judge.say("window", f"{key} of partition {partition} is not by definition: {found[key]}")
            elif (gives := _gives(found[key])) != (right := wanted.expected[key][0]):
                judge.say("window", f"{key} of partition {partition} gives {gives}, expected {right}")
        mine = {source for source in told if source[0] == partition}
        if mine != wanted.late:
            judge.say("late", f"told {sorted(mine - wanted.late)} too many, {sorted(wanted.late - mine)} not")
        check_idleness(judge, partition, wanted.moved)


def _gives(document: dict[str, Any]) -> Any:
    """What an answer says of its window."""
    if "truncated" in document:
        return tuple(document[key] for key in ("y", "text", "score", "truncated"))
    return document["y"] if "y" in document else (document["text"], document["score"])


def check_idleness(judge: Judge, partition: int, idle: list[tuple[int, int]]) -> None:
    """An idle advance is honest where nothing that readers will see was appended for ``idle_ms``, however long it stays
    undecided."""
    idle_ms = judge.world.current.document["delivery"]["idle_ms"]
    log = judge.world.inputs[-1].logs[partition]
    appended_ms = sorted({record.offset: batch.appended_ms for batch, record in log.visible(ever=True)}.items())
    for before, watermark in idle:
        earlier = [at for offset, at in appended_ms if offset < before]
        following = [at for offset, at in appended_ms if offset >= before]
        if earlier and following and following[0] - earlier[-1] < idle_ms:
            where = f"partition {partition} was quiet for {following[0] - earlier[-1]} ms before offset {before}"
            judge.say("idle", f"{where}, yet the watermark moved to {watermark}")
