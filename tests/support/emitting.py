"""A model that emits, small enough to think about, and utterances by definition: slow, one record after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from simulated import POISON, ChainModel, advance

from streamer.core import EmittedAnswers, Op
from streamer.modelfile.contract import Contract
from streamer.settings import UtteranceSection

LABELS = ("-", "a", "b", "c")
EMIT = {"rule": "ctc", "blank": 0}


def label_of(h: float) -> int:
    """Blanks and repeats are as frequent as they are of use."""
    return (0, 1, 1, 2, 3, 0)[int(h) // 7 % 6]


def probability_of(h: float) -> np.float32:
    return np.float32(0.5 + int(h) % 97 / 200)


def contract(mode: str = "step", **changes: Any) -> Contract:
    output = {"name": "p", "shape": ["batch", "time", len(LABELS)], "kind": "classes", "labels": list(LABELS)}
    fields: dict[str, Any] = {
        "name": "chain",
        "mode": mode,
        "input": {"name": "x", "shape": ["batch", "time", 1]},
        "lengths": "lengths",
        "states": [{"input": "h", "output": "h_next", "shape": [1, "batch", 1]}] if mode == "step" else [],
        "outputs": [{**output, "emit": EMIT}],
    }
    return Contract.from_fields(fields | changes)


def probabilities(h: np.ndarray) -> np.ndarray:
    """Chain values [B, T] to [B, T, O]."""
    y = np.zeros((*h.shape, len(LABELS)), np.float32)
    for at in np.ndindex(*h.shape):
        y[*at, label_of(h[at])] = probability_of(h[at])
    return y


class EmittingChain(ChainModel):
    """The chain of ``ChainModel``, whose state decides label and probability."""

    def __init__(self, sha256: str = "ab" * 32) -> None:
        super().__init__(sha256)
        self.contract = contract()
        self.states = self.contract.states

    def run(self, x: np.ndarray, lengths: np.ndarray, states: Sequence[np.ndarray]) -> Any:
        [h], nexts = super().run(x, lengths, states)
        return [probabilities(h[:, :, 0])], nexts


class Came(NamedTuple):
    """One record of an utterance."""

    stream: str
    labels: tuple[int, ...]
    source: int
    time_ms: int
    start_ms: int
    first: int
    reason: str = ""
    part: int = 0
    steps: int = 0
    score: float = 0.0

    @classmethod
    def of(cls, answers: EmittedAnswers) -> list[Came]:
        found = []
        for key, source, each in zip(answers.keys, answers.sources, answers.emitted, strict=True):
            came = cls(key.decode(), tuple(each.labels), source, each.time_ms, each.start_ms, each.first)
            if (final := each.final) is not None:
                assert source == final.last
                came = came._replace(reason=str(final.reason), part=final.part, steps=final.steps, score=final.score)
            found.append(came)
        return found


@dataclass
class _Stream:
    h: Any
    label: int = -1
    labels: list[int] = field(default_factory=list)
    score: float = 0.0
    steps: int = 0
    part: int = 0
    open: bool = False
    start_ms: int = 0
    newest_ms: int = 0
    seen_ms: int = 0
    first: int = 0
    last: int = 0


Step = Callable[[Any, Any], tuple[Any, int, Any]]
"""State and event to the next state, the likeliest label and its probability"""


def chain_step(h: float, x: float) -> tuple[float, int, Any]:
    h = advance(h, x)
    return h, label_of(h), probability_of(h)


class Reference:
    """Utterances of one partition by definition. ``came``: what was told, in order."""

    def __init__(
        self,
        rule: UtteranceSection,
        step: Step = chain_step,
        *,
        initial: Any = 0.0,
        refused: Sequence[float] = (POISON,),
    ) -> None:
        self.rule, self.step, self.initial, self.refused = rule, step, initial, refused
        self.clock_ms: int | None = None
        self.streams: dict[str, _Stream] = {}
        self.came: list[Came] = []

    def forget(self, stream: str) -> None:
        self.streams.pop(stream, None)

    def idle(self, clock_ms: int) -> bool:
        """Whether that ended anything."""
        before = len(self.came)
        self._advance(clock_ms)
        return len(self.came) > before

    def record(self, offset: int, stream: str, time_ms: int, what: Any) -> None:
        if isinstance(what, Op):
            if what is Op.END and stream in self.streams:
                self._end(stream, "end")
            if what is not Op.GENERATE:
                self.forget(stream)
            return
        found = self.streams.setdefault(stream, _Stream(self.initial))
        if found.open and time_ms - found.newest_ms > self.rule.gap_ms:
            found = self._end(stream, "time")
        if found.open and time_ms - found.start_ms >= self.rule.max_span_ms:
            found = self._end(stream, "span")
        if not found.open:
            found.open, found.start_ms, found.newest_ms, found.first = True, time_ms, time_ms, offset
        found.newest_ms, found.last = max(found.newest_ms, time_ms), offset
        found.seen_ms = max(found.newest_ms, time_ms if self.clock_ms is None else max(self.clock_ms, time_ms))
        if not isinstance(what, float) or what not in self.refused:
            self._run(found, offset, stream, time_ms, what)
        self._advance(time_ms)

    def _run(self, found: _Stream, offset: int, stream: str, time_ms: int, x: Any) -> None:
        found.h, label, probability = self.step(found.h, x)
        found.score += float(np.log(np.float64(probability)))
        found.steps += 1
        if label not in (0, found.label):
            found.labels.append(label)
            self.came.append(Came(stream, (label,), offset, time_ms, found.start_ms, found.first))
            if len(found.labels) == self.rule.max_symbols:
                self._tell(found, stream, "full", time_ms)
                found.labels, found.score, found.steps, found.part = [], 0.0, 0, found.part + 1
        found.label = label

    def _tell(self, found: _Stream, stream: str, reason: str, time_ms: int) -> None:
        told = tuple(found.labels), found.last, time_ms, found.start_ms, found.first
        self.came.append(Came(stream, *told, reason, found.part, found.steps, found.score))

    def _end(self, stream: str, reason: str) -> _Stream:
        found = self.streams[stream]
        if found.open:
            self._tell(found, stream, reason, found.newest_ms)
        self.streams[stream] = _Stream(self.initial)
        return self.streams[stream]

    def finish(self, stream: str) -> None:
        self._end(stream, "end")

    def _advance(self, clock_ms: int) -> None:
        self.clock_ms = clock_ms if self.clock_ms is None else max(self.clock_ms, clock_ms)
        for stream, found in self.streams.items():
            if found.open and self.clock_ms - found.seen_ms > self.rule.gap_ms:
                self._end(stream, "time")


__all__ = ["LABELS", "Came", "EmittingChain", "Reference", "contract", "probabilities"]
