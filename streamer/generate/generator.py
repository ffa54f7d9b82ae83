"""One model that can generate: reads requests, picks from outputs, encodes picks as events, tells answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import numpy as np

from streamer.core import F32, GeneratedAnswers, X
from streamer.errors import ModelRunError
from streamer.generate.chance import draw, draw_sets, uniforms
from streamer.generate.request import Asked, Refused, Request, short
from streamer.modelfile.carried import Carried
from streamer.modelfile.contract import Contract
from streamer.modelfile.parts import Feedback
from streamer.records.changelog import Kind, offset_key
from streamer.records.decode import carried as travelling
from streamer.records.exact import Exact
from streamer.records.unusable import Unusable
from streamer.settings import GenerateSection
from streamer.state.arena import Arena
from streamer.words import Reason

STEP_HEADER = "streamer-step"
_NUMBER_BYTES = 16
"""Estimate of one number in an answer."""

Pick = int | list[int] | list[float]


class Home(Protocol):
    """Where a rollout is open."""

    def close(self, rollout: Rollout) -> None: ...


@dataclass(slots=True)
class Rollout:
    """One open rollout; ``fed``: events that the model has taken, ``last``: its newest pick."""

    home: Home
    partition: int
    offset: int
    stream: bytes
    time_ms: int
    asked: Asked
    model: str
    generator: Generator | None
    request: Request
    first: X
    """[P, F] the events that come before the first pick"""
    recorded: bool = False
    """Its changelog record is written"""
    emitted: int = 0
    """Answers per step that are committed or in the open epoch"""
    broken: str | None = None
    slot: int = -1
    fed: int = 0
    last: Pick = 0
    told: list[bytes] = field(default_factory=list)
    """Every pick as JSON, made step by step: many that end together would otherwise keep live events waiting"""
    labels: list[str] = field(default_factory=list)

    @property
    def key(self) -> bytes:
        """Of its changelog record."""
        return offset_key(Kind.ROLLOUT, self.model, self.offset, self.stream)


class Generator:
    """What one model needs to generate: its own arena with a slot per rollout that is under way."""

    def __init__(self, name: str, carried: Carried, limits: GenerateSection) -> None:
        contract: Contract = carried.model.contract
        assert contract.feedback is not None
        self.name, self.carried, self.limits = name, carried, limits
        self.exact = Exact(contract.input.dtype)
        self.feedback: Feedback = contract.feedback
        self.output = next(output for output in contract.outputs if output.name == self.feedback.output)
        self.features = contract.features
        self.classes = self.feedback.encoding != "value"
        self.arena = Arena(carried.states, carried.initial, limits.max_rows)
        self.arena.touch(0, limits.max_rows)
        self.free = list(range(limits.max_rows))
        self.model_id = bytes.fromhex(carried.model.sha256)[:8]
        self._labels = {label: number for number, label in enumerate(self.output.labels or ())}
        self._model = f"{name}@{contract.version}"
        self._letters = bool(self._labels) and max(map(len, self._labels)) == 1
        longest = max((len(msgspec.json.encode(label)) for label in self._labels), default=0)
        self._step_bytes = (_NUMBER_BYTES if self.classes else (self.output.size + 1) * _NUMBER_BYTES) + 2 * longest

    def first_events(self, request: Request, after: F32 | None) -> X:
        """[P, F] what the model takes before the first pick: the prompt, or a zero event where nothing came before.

        ``after``: the last output of the stream, None without one. Refused: the request does not fit the model."""
        limits, given = self.limits, request.prompt
        steps = len(given or ()) + request.n
        if request.n < 1 or not 0 <= request.seed < 2**63:
            raise Refused(Reason.BAD_REQUEST, "n must be at least 1, seed 0 to 2**63 - 1")
        if steps > limits.max_steps:
            raise Refused(Reason.TOO_LONG, f"prompt and n are {steps} steps, generate.max_steps is {limits.max_steps}")
        if not request.per_step and request.n * self._step_bytes > limits.max_answer_bytes:
            raise Refused(
                Reason.TOO_LONG, f"{request.n} steps do not fit generate.max_answer_bytes: ask per_step, or for fewer"
            )
        if request.temperature is not None and not 0 <= request.temperature <= 1e6:
            raise Refused(Reason.BAD_REQUEST, "temperature must be 0 to 1e6")
        if self.feedback.mode == "value" and (request.temperature is not None or request.top_k is not None):
            raise Refused(
                Reason.BAD_REQUEST, f"output {self.output.name!r} is fed back as it is: no temperature, no top_k"
            )
        if request.top_k is not None and (request.top_k < 1 or not self.classes):
            raise Refused(Reason.BAD_REQUEST, "top_k must be at least 1, and needs a model that picks one class")
        if request.stop is not None:
            self._class(request.stop)
        prompt = [self._event(part) for part in given] if given else []
        if not prompt and after is None:
            prompt = [np.zeros(self.features, self.exact.dtype)]
        return np.array(prompt, self.exact.dtype).reshape(len(prompt), self.features)

    def pick(self, rollouts: Sequence[Rollout], y: F32) -> list[Pick]:
        """What each rollout takes from its row of ``y`` [B, O] as its next step."""
        if self.feedback.mode == "value":
            return [row.tolist() for row in y]
        asked = [rollout.request for rollout in rollouts]
        temperature = np.array([self._temperature(request) for request in asked])
        steps = np.array([len(rollout.told) for rollout in rollouts], np.uint64)
        seeds = np.array([r.seed for r in asked], np.uint64)
        if not self.classes:
            return [row.tolist() for row in draw_sets(y, temperature, uniforms(seeds, steps, y.shape[1]))]
        top = np.array([min(r.top_k or y.shape[1], y.shape[1]) for r in asked])
        return list(draw(y, temperature, top, uniforms(seeds, steps, 1)[:, 0]).tolist())

    def check(self, rollouts: Sequence[Rollout], y: F32) -> None:
        """ModelRunError: ``y`` [B, O] is no probabilities, and is to be drawn from, by the model or by a request."""
        mode = self.feedback.mode
        drawn = [mode == "sample" or (mode == "argmax" and self._temperature(each.request) > 0) for each in rollouts]
        if (y[drawn] < 0).any():
            raise ModelRunError(f"output {self.output.name!r} is to be sampled, but has negative values")

    def _temperature(self, request: Request) -> float:
        default = 1.0 if self.feedback.mode == "sample" else 0.0
        return default if request.temperature is None else request.temperature

    def event(self, pick: Pick) -> X:
        """[F] the event that feeds a pick back."""
        x, at = np.zeros(self.features, self.exact.dtype), self.feedback.at
        if isinstance(pick, list):
            x[at : at + len(pick)] = pick
        elif self.feedback.encoding == "index":
            x[at] = pick
        else:
            x[at + pick] = 1
        return x

    def ended(self, rollout: Rollout) -> bool:
        """After the last step, or where the request says to stop."""
        stop = rollout.request.stop
        stopped = stop is not None and rollout.last == self._class(stop)
        return stopped or len(rollout.told) >= rollout.request.n

    def take(self, rollout: Rollout, pick: Pick) -> None:
        """Notes a pick as it will be told."""
        rollout.last = pick
        if isinstance(pick, int):
            rollout.told.append(b"%d" % pick)
            if self.output.labels is not None:
                rollout.labels.append(self.output.labels[pick])
        else:
            numbers = b",".join([b"%.9g"] * len(pick)) % tuple(pick)
            rollout.told.append(numbers if len(pick) == 1 else b"[" + numbers + b"]")

    def answer(self, rollout: Rollout, *, last: bool) -> GeneratedAnswers | None:
        """The record that is due after a pick; None while a whole sequence goes on, or for what was answered before."""
        request, step = rollout.request, len(rollout.told)
        about: dict[str, Any] = {"n": request.n, "seed": request.seed}
        headers = travelling(rollout.asked.headers)
        if request.per_step:
            if step <= rollout.emitted:
                return None
            rollout.emitted = step
            about |= {"step": step, "last": last}
            headers.append((STEP_HEADER, b"%d" % step))
        elif not last:
            return None
        fields: dict[str, Any] = {"stream": rollout.stream.decode(), "ts": rollout.time_ms}
        fields["y"] = msgspec.Raw(rollout.told[-1] if request.per_step else b"[" + b",".join(rollout.told) + b"]")
        if rollout.labels:
            fields["label"] = rollout.labels[-1] if request.per_step else rollout.labels
            if not request.per_step and self._letters:
                fields["text"] = "".join(rollout.labels)
        fields |= {"generate": about, "model": self._model}
        return GeneratedAnswers(
            partition=rollout.partition,
            model=self.name,
            keys=[rollout.stream],
            timestamps_ms=[rollout.asked.timestamp_ms],
            sources=[rollout.offset],
            headers={0: headers} if headers else {},
            values=[msgspec.json.encode(fields)],
        )

    def _event(self, part: int | float | str | list[int | float]) -> X:
        """One event of a prompt."""
        if self.classes and isinstance(part, int | str):
            return self.event(self._class(part))
        event = part if isinstance(part, list) else [part]
        if isinstance(part, str) or len(event) != self.features:
            raise Refused(
                Reason.BAD_REQUEST, f"prompt: {short(part)} is no event: give lists of {self.features} finite numbers"
            )
        try:
            numbers = [self.exact.number(each, place) for place, each in enumerate(event)]  # type: ignore[arg-type]
        except Unusable as why:
            raise Refused(Reason.BAD_REQUEST, f"prompt: {why.detail}") from None
        return np.array(numbers, self.exact.dtype)

    def _class(self, part: int | str) -> int:
        number = self._labels.get(part, -1) if isinstance(part, str) else part
        if not self.classes or not 0 <= number < self.output.size:
            raise Refused(
                Reason.BAD_REQUEST, f"{short(part)} is neither a class nor a label of output {self.output.name!r}"
            )
        return number
