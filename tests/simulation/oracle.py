"""What must be true when a plan has run: every event answered as often as promised, with the value of a run without faults,
in order; every window by definition; every rejection told; no state that an offline run would not have; and alive again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tests.simulation import product
from tests.simulation.chains import CHAINS, EMITS
from tests.simulation.expected import (
    Answer,
    answers,
    bad,
    being_written,
    changes,
    dead_letters,
    eras,
    refused_by,
    step_values,
    variants,
    visible,
)
from tests.simulation.oracle_emission import check_utterances
from tests.simulation.oracle_windows import check_windows
from tests.simulation.plans import Plan

if TYPE_CHECKING:
    from tests.simulation.world import Sent, World


def quiet_enough_s(plan: Plan) -> float:
    """After this long without input every round is written, at the byte budget that the plan gives."""
    delivery = plan.regimes[-1].document["delivery"]
    states = len(plan.streams) * len(plan.regimes[-1].letters) * 250
    return float(3 * delivery["checkpoint_interval_ms"] / 1000 + 1.5 + states / delivery["checkpoint_bytes_per_second"])


class Judge:
    """Collects what is wrong. Sentences begin with a word that names the kind."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.plan = world.plan
        self.findings: list[str] = []
        self.log = visible(world)
        self.changes = changes(world)
        self.being_written = being_written(world)
        """Windows that a process which was told to stop left to the next one"""
        self.answers = answers(world)
        self.dead = dead_letters(world)
        self.sources = {(sent.partition, sent.offset): sent for part in self.log.values() for sent in part}
        modes = {regime.delivery for regime in self.plan.regimes}
        self.exactly = modes == {"exactly-once"} or not self.plan.repeats_allowed
        self.letters = world.current.letters
        self.windowed = {
            name: dict(section["window"])
            for name, section in world.current.document["model"].items()
            if section.get("window") is not None
        }

        self.emitting = {
            name: dict(world.current.document["model"][name].get("utterance") or {})
            for name, letter in self.letters.items()
            if letter in EMITS
        }

    def say(self, kind: str, text: str) -> None:
        self.findings.append(f"{kind}: {text}")

    # is everything done

    def missing(self) -> list[str]:
        """What is still to come; empty when all is done."""
        told = {(answer.source, answer.model) for answer in self.answers}
        dead = {each.source for each in self.dead}
        missing = [
            f"a decision about offset {log.stable} of partition {log.partition}, which ends at {log.end}"
            for log in self.world.inputs[-1].logs
            if log.stable < log.end
        ]
        ephemeral = self.world.current.delivery == "ephemeral"
        undecided = [log.partition for log in self.world.inputs[-1].logs if log.stable < log.end]
        missing += [f"the end of an upstream transaction in partition {partition}" for partition in undecided]
        for partition, log in self.log.items():
            for sent in log:
                source = partition, sent.offset
                if self._rejected(sent) and source not in dead:
                    missing.append(f"rejection of {sent.what} at {source}")
                for name, letter in self.letters.items():
                    if (
                        name in self.windowed
                        or name in self.emitting
                        or not isinstance(sent.what, float | tuple | dict)
                        or refused_by(letter, sent.what)
                    ):
                        continue
                    if isinstance(sent.what, dict) and source in dead:
                        continue
                    if (source, name) not in told and not self._before(name, sent):
                        missing.append(f"answer of {name} to {source}")
            if self.windowed or not ephemeral:
                last = next((c for c in reversed(self.changes[partition]) if c.kind == "progress"), None)
                end = log[-1].offset + 1 if log else 0
                if log and (last is None or last.position < end):
                    missing.append(
                        f"position {last.position if last else None} of partition {partition}, which ends at {end}"
                    )
                elif last is not None and self.windowed and self._closes() and last.replay_point < end:
                    missing.append(f"windows of partition {partition}, open from {last.replay_point}")
        for partition, log in self.log.items():
            for sent in log:
                if isinstance(sent.what, dict) and sent.what["per_step"] and (partition, sent.offset) not in dead:
                    steps = {
                        a.document["generate"]["step"] for a in self.answers if a.source == (partition, sent.offset)
                    }
                    if 0 < len(steps) < sent.what["n"]:
                        missing.append(f"steps of {sent.what} at {(partition, sent.offset)}")
        return missing

    def _closes(self) -> bool:
        """Whether time alone closes the windows."""
        return all(rule["kind"] not in ("count", "end") for rule in self.windowed.values())

    def _before(self, name: str, sent: Sent) -> bool:
        """The model was not served yet, or not any more, at this event."""
        letter = None
        for era in eras(self.world, self.changes.get(sent.partition, ())):
            if era.start <= sent.offset:
                letter = era.models.get(name)
        return letter is None

    def _rejected(self, sent: Sent) -> bool:
        return bad(sent.what) is not None or any(
            refused_by(letter, sent.what) for name, letter in self.letters.items() if name not in self.windowed
        )

    # the verdict

    def check(self) -> list[str]:
        self.exits()
        self.memory()
        if self.plan.refusal_ends_it and any(end.code == 5 for end in self.world.ends):
            self._honest_prefix()
            return self.findings
        self.counts()
        self.values()
        self.order()
        for name, rule in self.windowed.items():
            check_windows(self, name, rule)
        for name, rule in self.emitting.items():
            check_utterances(self, name, rule)
        self.rejections()
        self.checkpoints()
        return self.findings

    def exits(self) -> None:
        for end in self.world.ends:
            if end.code is None:
                self.say("crash", f"{end.member} at {end.at_s:.2f}: {end.text}")
            elif end.code not in {0, *self.plan.allowed_exits}:
                self.say("exit", f"{end.member} at {end.at_s:.2f} with {end.code}: {end.text}")
            elif end.code == 5 and self.plan.profile == "recreated" and "retention" in end.text:
                self.say("exit", f"{end.member} blames retention: {end.text}")

    def memory(self) -> None:
        """At rest nobody holds more than the limit."""
        for member in self.world.members.values():
            if beyond := product.beyond_limit_bytes(member.handle):
                self.say("memory", f"{member.id} holds {beyond} bytes beyond its limit")

    def _honest_prefix(self) -> None:
        """The service ended with a sentence: what it answered before must be right, and told once."""
        self.values()
        if self.exactly:
            self.repeated()

    def counts(self) -> None:
        if self.exactly:
            self.repeated()
        for text in self.missing():
            self.say("missing", text)

    def repeated(self) -> None:
        seen: Counter[Any] = Counter()
        for answer in self.answers:
            if "window" in answer.document:
                window = answer.document["window"]
                key: Any = (answer.model, answer.stream, window["start"], window["end"], window["part"])
            elif "utterance" in answer.document:
                key = (answer.model, answer.source, answer.document["final"], answer.document["utterance"].get("part"))
            else:
                key = (answer.model, answer.source, (answer.document.get("generate") or {}).get("step"))
            if not self._of_old_topic(answer):
                seen[key] += 1
        for key, count in seen.items():
            if count > 1:
                self.say("repeated", f"{key} {count} times")

    def _of_old_topic(self, answer: Answer) -> bool:
        """Answers to records of a topic that was deleted since are left out."""
        if len(self.world.inputs) == 1:
            return False
        sent = self.sources.get(answer.source)
        return sent is None or answer.at_s * 1000 < sent.stamp_ms

    def values(self) -> None:
        if self.world.current.delivery == "ephemeral" or any(r.delivery == "ephemeral" for r in self.plan.regimes):
            return self._plausible()
        for partition, log in self.log.items():
            story = eras(self.world, self.changes.get(partition, ()))
            forgotten = [
                (change.through, change.stream.decode())
                for change in self.changes.get(partition, ())
                if change.gone and self.plan.limited
            ]
            names = (
                {name for regime in self.plan.regimes for name in regime.letters}
                - set(self.windowed)
                - set(self.emitting)
            )
            for name in sorted(names):
                mine = [
                    a
                    for a in self.answers
                    if a.partition == partition and a.model == name and not self._of_old_topic(a)
                ]
                wrong = min(
                    (
                        self._wrong(name, mine, step_values(self.world, log, name, each, forgotten))
                        for each in variants(story)
                    ),
                    key=len,
                )
                for text in wrong:
                    self.say("value", text)
        return None

    def _wrong(self, name: str, mine: Sequence[Answer], expected: dict[int, Any]) -> list[str]:
        wrong = []
        for answer in mine:
            value = expected.get(answer.source[1], "nothing")
            found = answer.document["y"]
            if isinstance(value, list) and "generate" in answer.document:
                step = answer.document["generate"].get("step")
                value = value if step is None else value[step - 1]
            if isinstance(value, str) or value is None or found != value:
                wrong.append(f"{name} answers {found} to {answer.stream} at {answer.source}, expected {value}")
        return wrong

    def _plausible(self) -> None:
        """Without a changelog a stream may begin anew anywhere, but not in the middle of nowhere."""
        for answer in self.answers:
            sent = self.sources.get(answer.source)
            if sent is None or "generate" in answer.document:
                continue
            chain = CHAINS[self.letters[answer.model].upper()]
            mine = [s for s in self.log[sent.partition] if s.stream == sent.stream and s.offset <= sent.offset]
            possible, values = {0.0}, set()
            for each in mine:
                if isinstance(each.what, str) and not bad(each.what):
                    possible = {0.0}
                elif isinstance(each.what, float) and each.what not in chain.refuses:
                    values = {chain.advance(state, each.what) for state in possible}
                    possible = values | {0.0}
            if answer.document["y"] not in values:
                self.say("value", f"{answer.document['y']} to {answer.stream} at {answer.source} begins nowhere")

    def order(self) -> None:
        if not self.exactly:
            return
        last: dict[Any, int] = {}
        for answer in sorted(self.answers, key=lambda each: (each.partition, each.offset)):
            if answer.partition != answer.source[0]:
                self.say("partition", f"the answer to {answer.source} lies in {answer.partition}")
            if "generate" in answer.document or "window" in answer.document or self._of_old_topic(answer):
                continue
            key = answer.stream, answer.model
            if answer.source[1] < last.get(key, -1):
                self.say("order", f"{answer.source} of {key} comes after {last[key]}")
            last[key] = answer.source[1]

    def rejections(self) -> None:
        told: Counter[Any] = Counter((each.source, each.reason, each.detail) for each in self.dead)
        if self.exactly:
            for key, count in told.items():
                if count > 1:
                    self.say("rejection", f"{key} told {count} times")
        for each in self.dead:
            sent = self.sources.get(each.source)
            if sent is None or each.reason == "late" or len(self.plan.regimes) > 1:
                continue
            expected = bad(sent.what) or (
                "model_refused" if self._rejected(sent) or isinstance(sent.what, dict) else None
            )
            if each.reason != expected:
                self.say(
                    "rejection",
                    f"{each.source} {sent.what} is told as {each.reason}: {each.detail}, expected {expected}",
                )

    def checkpoints(self) -> None:
        """Rounds are finished without new input: a restart long after has nothing to replay."""
        if self.windowed or self.world.current.delivery == "ephemeral":
            return
        if not self.world.quiet_s or self.world.quiet_s < quiet_enough_s(self.plan):
            return
        for partition in self.log:
            last = next((c for c in reversed(self.changes[partition]) if c.kind == "progress"), None)
            if last is not None and last.replay_point < last.position:
                self.say(
                    "checkpoint", f"partition {partition} would be replayed from {last.replay_point} to {last.position}"
                )
