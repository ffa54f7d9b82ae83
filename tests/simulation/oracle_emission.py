"""Utterances by definition: the slow reference is given the input in log order, and where the clock moved without an event."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from tests.simulation import product
from tests.simulation.oracle_windows import check_idleness

if TYPE_CHECKING:
    from tests.simulation.expected import Answer
    from tests.simulation.oracle import Judge


def check_utterances(judge: Judge, name: str, rule: dict[str, Any]) -> None:
    """Every record of every utterance, in the order of its stream, exactly as by definition."""
    for partition, log in judge.log.items():
        reference = product.utterances(rule, judge.letters[name])
        moves: dict[int, int] = {}
        gone: dict[int, list[str]] = defaultdict(list)
        for change in judge.changes.get(partition, ()):
            moves |= dict(change.clock)
            if change.gone and judge.plan.limited:
                gone[change.through].append(change.stream.decode())
        idle, forgotten = sorted(moves.items()), sorted(gone.items())
        moved: list[tuple[int, int]] = []
        for sent in log:
            while forgotten and forgotten[0][0] < sent.offset:
                for stream in forgotten.pop(0)[1]:
                    reference.forget(stream)
            while idle and idle[0][0] <= sent.offset:
                moved += [idle[0]] if reference.idle(idle[0][1]) else []
                idle.pop(0)
            if isinstance(sent.what, str) and sent.what.startswith("bad:"):
                continue
            what = product.OPS.get(sent.what, sent.what) if isinstance(sent.what, str) else sent.what
            reference.record(sent.offset, sent.stream, sent.ts_ms, what)
        moved += [move for move in idle if reference.idle(move[1])]
        wanted: dict[str, list[Any]] = defaultdict(list)
        for came in reference.came:
            final = (came.reason, came.part, came.steps, float(f"{came.score:.9g}")) if came.reason else ()
            text = "".join(product.LABELS[label] for label in came.labels)
            wanted[came.stream].append((text, came.source, came.time_ms, came.start_ms, came.first, *final))
        found: dict[str, list[Any]] = defaultdict(list)
        mine = (a for a in judge.answers if a.partition == partition and a.model == name)
        for answer in sorted(mine, key=lambda each: each.offset):
            found[answer.stream].append(_told(answer))
        for stream in sorted(set(wanted) | set(found)):
            if (right := wanted[stream]) != (told := found[stream]):
                at = next(
                    (n for n, (a, b) in enumerate(zip(right, told, strict=False)) if a != b), min(len(right), len(told))
                )
                judge.say(
                    "utterance",
                    f"{stream} of partition {partition}, record {at} of {len(told)}: {told[at : at + 2]}, expected "
                    f"{right[at : at + 2]} of {len(right)}",
                )
        check_idleness(judge, partition, moved)


def _told(answer: Answer) -> tuple[Any, ...]:
    document = answer.document
    utterance = document["utterance"]
    common = document["text"], answer.source[1], document["ts"], utterance["start"], utterance["offsets"][0]
    if not document["final"]:
        assert [each["label"] for each in document["symbols"]] == list(document["text"])
        return common
    assert utterance["offsets"][1] == answer.source[1]
    return *common, utterance["reason"], utterance["part"], utterance["count"], document["score"]
