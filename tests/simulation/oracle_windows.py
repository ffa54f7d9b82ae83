"""Windows by definition: the slow reference is given the input in log order and the idle advances that were committed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.simulation import product
from tests.simulation.chains import fold

if TYPE_CHECKING:
    from tests.simulation.oracle import Judge


def check_windows(judge: Judge, name: str, rule: dict[str, Any]) -> None:
    late_told = {each.source for each in judge.dead if each.reason == "late"}
    for partition, log in judge.log.items():
        idle: dict[int, int] = {}
        for change in judge.changes.get(partition, ()):
            for before, watermark in change.idle if change.kind == "progress" else ():
                idle[before] = max(watermark, idle.get(before, watermark))
        reference = product.reference(rule)
        expected: dict[tuple[str, int, int, int], Any] = {}
        values = {sent.offset: sent.what for sent in log}
        late = set()
        moves = sorted(idle.items())

        def closed(step: Any) -> None:
            for window in step.closed:
                at = [offset for _, offset in window.events]
                expected[window.stream, window.start, window.end, window.part] = (fold(values[o] for o in at), window.reason)

        moved = []

        def advance(before: int, watermark: int) -> None:
            step = reference.idle(watermark)
            if step.moved:
                moved.append((before, watermark))
            closed(step)

        for sent in log:
            while moves and moves[0][0] <= sent.offset:
                advance(*moves.pop(0))
            if isinstance(sent.what, str) and sent.what.startswith("bad:"):
                continue
            what = product.OPS.get(sent.what, sent.what) if isinstance(sent.what, str) else sent.what
            step = reference.record(sent.offset, sent.stream, sent.ts_ms, what)
            if step.late:
                late.add((partition, sent.offset))
            closed(step)
        for move in moves:
            advance(*move)
        found = {
            (a.stream, a.document["window"]["start"], a.document["window"]["end"], a.document["window"]["part"]): a.document
            for a in judge.answers
            if a.partition == partition and a.model == name
        }
        for key in sorted(set(expected) | set(found)):
            if key not in found:
                judge.say("window", f"{key} of partition {partition} is missing ({expected[key][1]})")
            elif key not in expected:
                judge.say("window", f"{key} of partition {partition} is not by definition: {found[key]}")
            elif found[key]["y"] != expected[key][0]:
                judge.say("window", f"{key} of partition {partition} gives {found[key]['y']}, expected {expected[key][0]}")
        mine = {source for source in late_told if source[0] == partition}
        if mine != late:
            judge.say("late", f"told {sorted(mine - late)} too many, {sorted(late - mine)} not")
        _check_idleness(judge, partition, moved)


def _check_idleness(judge: Judge, partition: int, idle: list[tuple[int, int]]) -> None:
    """An idle advance is honest where nothing was appended for ``idle_ms``, open transactions of others included."""
    idle_ms = judge.world.current.document["delivery"]["idle_ms"]
    batches = judge.world.inputs[-1].logs[partition].ever
    for before, watermark in idle:
        following = [batch for batch in batches if batch.last >= before and not batch.control]
        earlier = [batch for batch in batches if batch.last < before]
        if not following or not earlier:
            continue
        quiet_ms = following[0].appended_ms - earlier[-1].appended_ms
        if quiet_ms < idle_ms:
            judge.say(
                "idle", f"partition {partition} was quiet for {quiet_ms} ms before offset {before}, yet the watermark moved to {watermark}"
            )
