"""Generation: a stream's state is forked and the model rolls forward on its own outputs, one step per call.

A record with the header ``streamer-op: generate`` asks for it, so it has its place in the log between the stream's events.
When it is settled, the stream's state is copied: a rollout never touches the stream. From then on ``step`` advances all
open rollouts together by one step, between the calls for live events, which so wait for one such call at most.

A rollout outlives the epoch that opened it. Exactly once, without holding the position back:

* the transaction that moves the position past the request also writes a changelog record with the request and the
  forked state (unless the answer is already in it);
* the transaction with the answer, or with the refusal, writes that record's tombstone;
* a restore opens again what it finds, from the forked state, and a replay opens nothing: it only repeats events.

The same seed gives the same sequence: chance is a function of (seed, step), and a row's result does not depend on its
neighbours (plain RNN cells: up to 1e-6). With an answer per step, the progress record tells how many are committed;
a restored rollout repeats those silently. Without a changelog the position waits for the oldest open rollout instead.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import numpy as np

from streamer.core import F32, Headers, Outgoing, Reject, X
from streamer.errors import DataLossError, ModelRunError
from streamer.generate.chance import draw, draw_sets, uniforms
from streamer.modelfile.carried import Carried
from streamer.modelfile.contract import Contract, Feedback
from streamer.records.changelog import Kind, StreamRecord, encode_stream, stream_key
from streamer.records.decode import carried as travelling
from streamer.records.exact import Exact
from streamer.records.keys import Keys
from streamer.records.unusable import Unusable, plain
from streamer.state.arena import Arena

STEP_HEADER = "streamer-step"
_OFFSET = struct.Struct(">q")
_NUMBER_BYTES = 16
"""Estimate of one number in an answer."""

Pick = int | list[int] | list[float]


@dataclass(frozen=True, slots=True)
class RolloutLimits:
    """``max_steps``: prompt and generated steps of one rollout. ``max_open``: of this process, beyond it is refused.
    ``max_rows``: rollouts of one model call, further ones wait their turn. ``max_answer_bytes``: of a whole sequence."""

    max_steps: int = 1_000
    max_open: int = 256
    max_rows: int = 64
    max_request_bytes: int = 65_536
    max_answer_bytes: int = 500_000


class Refused(Exception):
    """A request that will not be carried out: reason code and detail for the dead-letter topic."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, plain(detail)


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON value of a ``generate`` record."""

    n: int
    """Steps to generate"""
    temperature: float | None = None
    """0 takes the most probable; none: as the contract declares"""
    top_k: int | None = None
    """Draw among the k most probable classes only"""
    seed: int = 0
    prompt: str | list[int | float | str | list[int | float]] | None = None
    """Events that come first: labels (a text: one per character), classes, or whole events of F numbers"""
    begin: Literal["state", "initial"] = msgspec.field(default="state", name="from")
    stop: int | str | None = None
    """Ends after this class or label"""
    per_step: bool = False
    """One answer per step instead of one with the whole sequence"""
    model: str | None = None
    """Needed where two models generate"""


class Asked(msgspec.Struct, frozen=True, array_like=True):
    """What a changelog record keeps of an open rollout."""

    value: bytes
    headers: tuple[tuple[str, bytes | None], ...]
    timestamp_ms: int
    state: bytes | None
    """None: the initial state"""


@dataclass(slots=True)
class Rollout:
    """One open rollout; ``fed``: events that the model has taken, ``last``: its newest pick."""

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
        return _OFFSET.pack(self.offset) + self.stream


class Generator:
    """One model that can generate: reads requests, picks from outputs, encodes picks as events, tells answers."""

    def __init__(self, name: str, carried: Carried, limits: RolloutLimits, keys: Keys) -> None:
        contract: Contract = carried.model.contract
        assert contract.feedback is not None
        self.name, self.carried, self.limits, self.keys = name, carried, limits, keys
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
            raise Refused("bad_request", "n must be at least 1, seed 0 to 2**63 - 1")
        if steps > limits.max_steps:
            raise Refused("too_long", f"prompt and n are {steps} steps, generate.max_steps is {limits.max_steps}")
        if not request.per_step and request.n * self._step_bytes > limits.max_answer_bytes:
            raise Refused(
                "too_long", f"{request.n} steps do not fit generate.max_answer_bytes: ask per_step, or for fewer"
            )
        if request.temperature is not None and not 0 <= request.temperature <= 1e6:
            raise Refused("bad_request", "temperature must be 0 to 1e6")
        if self.feedback.mode == "value" and (request.temperature is not None or request.top_k is not None):
            raise Refused("bad_request", f"output {self.output.name!r} is fed back as it is: no temperature, no top_k")
        if request.top_k is not None and (request.top_k < 1 or not self.classes):
            raise Refused("bad_request", "top_k must be at least 1, and needs a model that picks one class")
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
        default = 1.0 if self.feedback.mode == "sample" else 0.0
        asked = [rollout.request for rollout in rollouts]
        temperature = np.array([default if r.temperature is None else r.temperature for r in asked])
        steps = np.array([len(rollout.told) for rollout in rollouts], np.uint64)
        seeds = np.array([r.seed for r in asked], np.uint64)
        if not self.classes:
            return [row.tolist() for row in draw_sets(y, temperature, uniforms(seeds, steps, y.shape[1]))]
        top = np.array([min(r.top_k or y.shape[1], y.shape[1]) for r in asked])
        return list(draw(y, temperature, top, uniforms(seeds, steps, 1)[:, 0]).tolist())

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

    def answer(self, rollout: Rollout, *, last: bool) -> Outgoing | None:
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
        return Outgoing(
            rollout.partition,
            [self.keys.raw(rollout.stream)],
            [msgspec.json.encode(fields)],
            [rollout.asked.timestamp_ms],
            [rollout.offset],
            {0: headers} if headers else {},
            mode="generate",
        )

    def _event(self, part: int | float | str | list[int | float]) -> X:
        """One event of a prompt."""
        if self.classes and isinstance(part, int | str):
            return self.event(self._class(part))
        event = part if isinstance(part, list) else [part]
        if isinstance(part, str) or len(event) != self.features:
            raise Refused(
                "bad_request", f"prompt: {_short(part)} is no event: give lists of {self.features} finite numbers"
            )
        try:
            numbers = [self.exact.number(each, place) for place, each in enumerate(event)]  # type: ignore[arg-type]
        except Unusable as why:
            raise Refused("bad_request", f"prompt: {why.detail}") from None
        return np.array(numbers, self.exact.dtype)

    def _class(self, part: int | str) -> int:
        number = self._labels.get(part, -1) if isinstance(part, str) else part
        if not self.classes or not 0 <= number < self.output.size:
            raise Refused(
                "bad_request", f"{_short(part)} is neither a class nor a label of output {self.output.name!r}"
            )
        return number


class Rollouts:
    """All open rollouts of a process, oldest first."""

    def __init__(self, models: Iterable[tuple[str, Carried]], limits: RolloutLimits, keys: Keys | None = None) -> None:
        """``models``: every model in step mode; those without ``feedback`` cannot be asked. ``keys``: of the input."""
        self.limits, self.keys = limits, keys or Keys()
        found = [(name, carried) for name, carried in models if carried.model.contract.feedback is not None]
        self.generators = {name: Generator(name, carried, limits, self.keys) for name, carried in found}
        self._open: dict[tuple[int, int], Rollout] = {}
        self._closed: dict[int, list[tuple[bytes, bytes | None]]] = {}
        self.calls: list[int] = []
        """Rows of each model call, until the processor counts them"""

    def __len__(self) -> int:
        return len(self._open)

    def generator_of(self, value: bytes) -> str:
        """Name of the model that a request asks. Refused: not a request, or not clear which."""
        names = list(self.generators)
        wanted = _request(value, self.limits).model
        if wanted is None and len(names) == 1:
            return names[0]
        if wanted in self.generators:
            return str(wanted)
        raise Refused("bad_request", f"model is {_short(wanted)}, those that generate are {', '.join(names) or 'none'}")

    def ask(
        self,
        model: str,
        source: tuple[int, int],
        stream: bytes,
        value: bytes,
        *,
        headers: Headers,
        timestamp_ms: int,
        time_ms: int,
        state: bytes,
    ) -> None:
        """Opens the rollout that the record at ``source`` (partition, offset) asks for. Refused if it cannot be."""
        if len(self._open) >= self.limits.max_open:
            raise Refused("too_many_rollouts", f"{len(self._open)} rollouts are open, generate.max_open: ask later")
        size = len(value) + sum(len(name) + len(content or b"") for name, content in headers)
        if size > self.limits.max_request_bytes:  # it has to fit a record of the changelog
            bound = self.limits.max_request_bytes
            raise Refused("too_long", f"value and headers have {size} bytes, generate.max_request_bytes is {bound}")
        kept = None if _request(value, self.limits).begin == "initial" else state
        asked = Asked(value, tuple(headers), timestamp_ms, kept)
        self._open[source] = self._made(self.generators[model], source, stream, time_ms, asked)

    def restore(
        self, partition: int, records: Iterable[StreamRecord], emitted: dict[int, int], *, reset_changed_models: bool
    ) -> None:
        """Opens what was open when the changelog was written. What the models of today cannot do will be refused."""
        for record in sorted(records, key=lambda record: record.through):
            asked = _asked(record)
            stream, source = record.stream[_OFFSET.size :], (partition, record.through)
            generator = self.generators.get(record.model)
            size = None if generator is None else generator.arena.bytes_per_stream
            changed = generator is not None and record.model_id != generator.model_id
            if changed and reset_changed_models:
                asked = msgspec.structs.replace(asked, state=None)
            try:
                if generator is None:
                    raise Refused("model_refused", f"model {record.model!r} is not served, or cannot generate any more")
                if asked.state is not None and len(asked.state) != size:
                    raise Refused("model_refused", f"the forked state has {len(asked.state)} bytes, {size} are needed")
                rollout = self._made(generator, source, stream, record.last_ms, asked)
            except Refused as refused:
                request, nothing = Request(n=1), np.empty((0, 0), np.float32)
                rollout = Rollout(*source, stream, record.last_ms, asked, record.model, generator, request, nothing)
                rollout.broken = refused.detail
            rollout.recorded, rollout.emitted = True, emitted.get(record.through, 0)
            self._open[source] = rollout

    def step(self, live: Collection[int]) -> Iterator[Outgoing | Reject]:
        """One step of up to ``max_rows`` rollouts per model, of the partitions in ``live``; the oldest begin first."""
        due = [rollout for rollout in self._open.values() if rollout.partition in live]
        for rollout in due:
            if rollout.broken is not None:
                yield self._refuse(rollout, rollout.broken)
        for generator in self.generators.values():
            mine = [rollout for rollout in due if rollout.generator is generator and rollout.broken is None]
            ready = []
            for rollout in mine:
                if rollout.slot < 0 and generator.free:
                    yield from self._begin(generator, rollout)
                if rollout.slot >= 0:
                    ready.append(rollout)
            if ready:
                yield from self._advance(generator, ready)

    def drop(self, partition: int) -> None:
        """Forgets the rollouts of a partition that is revoked."""
        for rollout in [each for each in self._open.values() if each.partition == partition]:
            self._release(rollout)
            del self._open[partition, rollout.offset]
        self._closed.pop(partition, None)

    def records(self, partition: int) -> list[tuple[bytes, bytes | None]]:
        """Changelog records that the epoch being sealed owes: of newly opened rollouts, and tombstones of answered ones."""
        records = self._closed.pop(partition, [])
        for rollout in self._open.values():
            if rollout.partition == partition and not rollout.recorded:
                assert rollout.generator is not None
                key = stream_key(Kind.ROLLOUT, rollout.model, rollout.key)
                value = msgspec.msgpack.encode(rollout.asked)
                model_id = rollout.generator.model_id
                records.append((key, encode_stream(key, rollout.offset, rollout.time_ms, model_id, value)))
                rollout.recorded = True
        return records

    def emitted(self, partition: int) -> tuple[tuple[int, int], ...]:
        """(offset, answers so far) of the rollouts that answer per step."""
        mine = (rollout for rollout in self._open.values() if rollout.partition == partition and rollout.emitted)
        return tuple((rollout.offset, rollout.emitted) for rollout in mine)

    def oldest(self, partition: int, default: int) -> int:
        """Offset of the partition's oldest open request."""
        return min((offset for part, offset in self._open if part == partition), default=default)

    def _made(
        self, generator: Generator, source: tuple[int, int], stream: bytes, time_ms: int, asked: Asked
    ) -> Rollout:
        request = _request(asked.value, self.limits)
        after = _last_output(asked.state, generator.output.size)
        first = generator.first_events(request, after)
        return Rollout(*source, stream, time_ms, asked, generator.name, generator, request, first)

    def _begin(self, generator: Generator, rollout: Rollout) -> Iterator[Outgoing | Reject]:
        rollout.slot = generator.free.pop()
        slots = np.array([rollout.slot], np.int64)
        if rollout.asked.state is None:
            generator.arena.reset(slots)
        else:
            generator.arena.load(slots, [rollout.asked.state])
        if not len(rollout.first):  # the stream goes on from what the model last gave for it
            yield from self._pick(generator, [rollout], generator.arena.take(slots)[-1])

    def _advance(self, generator: Generator, rollouts: Sequence[Rollout]) -> Iterator[Outgoing | Reject]:
        """One model call; one that fails changed nothing and is halved until the rollout is found."""
        events = [
            rollout.first[rollout.fed] if rollout.fed < len(rollout.first) else generator.event(rollout.last)
            for rollout in rollouts
        ]
        slots = np.array([rollout.slot for rollout in rollouts], np.int64)
        try:
            x, lengths = np.stack(events)[:, None, :], np.ones(len(rollouts), np.int32)
            _, states = generator.carried.run(x, lengths, generator.arena.take(slots))
            if not all(np.isfinite(state).all() for state in states):
                raise ModelRunError("an output or a next state is not finite")
            if generator.feedback.mode == "sample" and (states[-1] < 0).any():
                raise ModelRunError(f"output {generator.output.name!r} is to be sampled, but has negative values")
        except ModelRunError as error:
            if len(rollouts) == 1:
                yield self._refuse(rollouts[0], str(error))
                return
            half = len(rollouts) // 2
            yield from self._advance(generator, rollouts[:half])
            yield from self._advance(generator, rollouts[half:])
            return
        generator.arena.put(slots, states)
        self.calls.append(len(rollouts))
        for rollout in rollouts:
            rollout.fed += 1
        picking = [row for row, rollout in enumerate(rollouts) if rollout.fed >= len(rollout.first)]
        if picking:
            yield from self._pick(generator, [rollouts[row] for row in picking], states[-1][picking])

    def _pick(self, generator: Generator, rollouts: Sequence[Rollout], y: F32) -> Iterator[Outgoing | Reject]:
        for rollout, pick in zip(rollouts, generator.pick(rollouts, y), strict=True):
            generator.take(rollout, pick)
            last = generator.ended(rollout)
            answer = generator.answer(rollout, last=last)
            if last:
                self._close(rollout)
            if answer is not None:
                yield answer

    def _refuse(self, rollout: Rollout, detail: str) -> Reject:
        self._close(rollout)
        asked = rollout.asked
        return Reject(
            partition=rollout.partition,
            offset=rollout.offset,
            reason="model_refused",
            detail=f"after {len(rollout.told)} steps: {detail}",
            key=self.keys.raw(rollout.stream),
            value=asked.value,
            headers=asked.headers,
            timestamp_ms=asked.timestamp_ms,
        )

    def _close(self, rollout: Rollout) -> None:
        self._release(rollout)
        del self._open[rollout.partition, rollout.offset]
        if rollout.recorded:
            tombstone = (stream_key(Kind.ROLLOUT, rollout.model, rollout.key), None)
            self._closed.setdefault(rollout.partition, []).append(tombstone)

    def _release(self, rollout: Rollout) -> None:
        if rollout.slot >= 0:
            assert rollout.generator is not None
            rollout.generator.free.append(rollout.slot)
            rollout.slot = -1


def _request(value: bytes, limits: RolloutLimits) -> Request:
    if len(value) > limits.max_request_bytes:
        raise Refused(
            "too_long", f"value has {len(value)} bytes, generate.max_request_bytes is {limits.max_request_bytes}"
        )
    try:
        return _REQUESTS.decode(value)
    except Exception as error:  # whatever a request holds, it is carried out or refused
        raise Refused("bad_request", f"not a request to generate: {plain(error)}") from None


def _asked(record: StreamRecord) -> Asked:
    """What a changelog record keeps of a rollout. DataLossError: it does not."""
    try:
        if len(record.stream) < _OFFSET.size:
            raise ValueError("its key is too short")
        return msgspec.msgpack.decode(record.state or b"", type=Asked)
    except (msgspec.DecodeError, ValueError) as error:
        raise DataLossError(
            f"changelog: the request to generate at offset {record.through} cannot be read ({plain(error)}). The topic holds "
            "foreign or damaged records: restore it from a backup, or delete it and start a new group to begin anew."
        ) from None


def _short(part: object) -> str:
    """A part of a request for people: bounded before it is made text."""
    if isinstance(part, int) and abs(part) >= 10**30:
        return "an integer of more than 30 digits"
    return repr(part[:40] if isinstance(part, str | list) else part)


_REQUESTS = msgspec.json.Decoder(Request)


def _last_output(state: bytes | None, size: int) -> F32 | None:
    """The last tensor of a stream's state, None if the model gave nothing for it yet."""
    if state is None:
        return None
    last = np.frombuffer(state, "<f4")[-size:]
    return None if np.isnan(last).any() else last
