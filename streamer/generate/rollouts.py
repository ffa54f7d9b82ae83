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

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec
import numpy as np

from streamer.core import F32, Answers, Headers, Reject
from streamer.errors import DataLossError, ModelRunError
from streamer.generate.generator import Generator, Rollout
from streamer.generate.request import Asked, Refused, Request, parse_request, short
from streamer.modelfile.carried import Carried
from streamer.records.changelog import StreamRecord, encode_stream
from streamer.records.keys import Keys
from streamer.records.unusable import plain
from streamer.settings import GenerateSection
from streamer.words import Reason

_OFFSET_BYTES = 8
"""Of a record's stream: the offset of the request"""


class Generators:
    """All models of a process that can generate, and how many rollouts are open over all partitions."""

    def __init__(self, models: Iterable[tuple[str, Carried]], limits: GenerateSection, keys: Keys) -> None:
        """``models``: every model in step mode; those without ``feedback`` cannot be asked. ``keys``: of the input."""
        self.limits, self.keys = limits, keys
        found = [(name, carried) for name, carried in models if carried.model.contract.feedback is not None]
        self.by_name = {name: Generator(name, carried, limits) for name, carried in found}
        self.open = 0

    def asked(self, value: bytes) -> str:
        """Name of the model that a request asks. Refused: not a request, or not clear which."""
        names = list(self.by_name)
        wanted = parse_request(value, self.limits).model
        if wanted is None and len(names) == 1:
            return names[0]
        if wanted in self.by_name:
            return str(wanted)
        raise Refused(
            Reason.BAD_REQUEST, f"model is {short(wanted)}, those that generate are {', '.join(names) or 'none'}"
        )

    def step(self, partitions: Sequence[Rollouts], calls: list[int]) -> Iterator[Answers | Reject]:
        """One step of up to ``max_rows`` rollouts per model, of ``partitions``; the oldest begin first.

        ``calls`` gets the rows of each model call."""
        due = sorted((rollout for each in partitions for rollout in each), key=lambda each: each.asked.timestamp_ms)
        for rollout in due:
            if rollout.broken is not None:
                yield self._refuse(rollout, rollout.broken)
        for generator in self.by_name.values():
            mine = [rollout for rollout in due if rollout.generator is generator and rollout.broken is None]
            ready = []
            for rollout in mine:
                if rollout.slot < 0 and generator.free:
                    yield from self._begin(generator, rollout)
                if rollout.slot >= 0:
                    ready.append(rollout)
            if ready:
                yield from self._advance(generator, ready, calls)

    def _begin(self, generator: Generator, rollout: Rollout) -> Iterator[Answers | Reject]:
        rollout.slot = generator.free.pop()
        slots = np.array([rollout.slot], np.int64)
        if rollout.asked.state is None:
            generator.arena.reset(slots)
        else:
            generator.arena.load(slots, [rollout.asked.state])
        if not len(rollout.first):  # the stream goes on from what the model last gave for it
            y = generator.arena.take(slots)[-1]
            try:
                generator.check([rollout], y)
            except ModelRunError as error:
                yield self._refuse(rollout, str(error))
                return
            yield from self._pick(generator, [rollout], y)

    def _advance(
        self, generator: Generator, rollouts: Sequence[Rollout], calls: list[int]
    ) -> Iterator[Answers | Reject]:
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
            generator.check(rollouts, states[-1])
        except ModelRunError as error:
            if len(rollouts) == 1:
                yield self._refuse(rollouts[0], str(error))
                return
            half = len(rollouts) // 2
            yield from self._advance(generator, rollouts[:half], calls)
            yield from self._advance(generator, rollouts[half:], calls)
            return
        generator.arena.put(slots, states)
        calls.append(len(rollouts))
        for rollout in rollouts:
            rollout.fed += 1
        picking = [row for row, rollout in enumerate(rollouts) if rollout.fed >= len(rollout.first)]
        if picking:
            yield from self._pick(generator, [rollouts[row] for row in picking], states[-1][picking])

    def _pick(self, generator: Generator, rollouts: Sequence[Rollout], y: F32) -> Iterator[Answers | Reject]:
        for rollout, pick in zip(rollouts, generator.pick(rollouts, y), strict=True):
            generator.take(rollout, pick)
            last = generator.ended(rollout)
            answer = generator.answer(rollout, last=last)
            if last:
                rollout.home.close(rollout)
            if answer is not None:
                yield answer

    def _refuse(self, rollout: Rollout, detail: str) -> Reject:
        rollout.home.close(rollout)
        asked = rollout.asked
        return Reject(
            partition=rollout.partition,
            offset=rollout.offset,
            reason=Reason.MODEL_REFUSED,
            detail=f"after {len(rollout.told)} steps: {detail}",
            key=self.keys.raw(rollout.stream),
            value=asked.value,
            headers=asked.headers,
            timestamp_ms=asked.timestamp_ms,
        )


class Rollouts:
    """Open rollouts of one partition, oldest first."""

    def __init__(self, partition: int, generators: Generators) -> None:
        self._partition = partition
        self._generators = generators
        self._open: dict[int, Rollout] = {}
        self._tombstones: list[bytes] = []

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Rollout]:
        return iter(list(self._open.values()))

    def ask(
        self,
        model: str,
        offset: int,
        stream: bytes,
        value: bytes,
        *,
        headers: Headers,
        timestamp_ms: int,
        time_ms: int,
        state: bytes,
    ) -> None:
        """Opens the rollout that the record at ``offset`` asks for. Refused if it cannot be."""
        limits, count = self._generators.limits, self._generators.open
        if count >= limits.max_open:
            raise Refused(Reason.TOO_MANY_ROLLOUTS, f"{count} rollouts are open, generate.max_open: ask later")
        size = len(value) + sum(len(name) + len(content or b"") for name, content in headers)
        if size > limits.max_request_bytes:  # it has to fit a record of the changelog
            bound = limits.max_request_bytes
            raise Refused(
                Reason.TOO_LONG, f"value and headers have {size} bytes, generate.max_request_bytes is {bound}"
            )
        kept = None if parse_request(value, limits).begin == "initial" else state
        asked = Asked(value, tuple(headers), timestamp_ms, kept)
        self._add(self._made(self._generators.by_name[model], offset, stream, time_ms, asked))

    def restore(self, records: Iterable[StreamRecord], emitted: Mapping[int, int], since: Mapping[str, int]) -> None:
        """Opens what was open when the changelog was written. What the models of today cannot do will be refused.

        ``since``: model -> where its present regime began; a state that was forked before is not its own."""
        for record in sorted(records, key=lambda record: record.through):
            asked = _asked(record)
            stream = record.stream[_OFFSET_BYTES:]
            generator = self._generators.by_name.get(record.model)
            if record.through < since.get(record.model, 0):
                asked = msgspec.structs.replace(asked, state=None)
            try:
                if generator is None:
                    raise Refused(
                        Reason.MODEL_REFUSED, f"model {record.model!r} is not served, or cannot generate any more"
                    )
                size = generator.arena.bytes_per_stream
                if asked.state is not None and len(asked.state) != size:
                    raise Refused(
                        Reason.MODEL_REFUSED, f"the forked state has {len(asked.state)} bytes, {size} are needed"
                    )
                rollout = self._made(generator, record.through, stream, record.last_ms, asked)
            except Refused as refused:
                rollout = Rollout(
                    self, self._partition, record.through, stream, record.last_ms, asked, record.model, generator,
                    Request(n=1), np.empty((0, 0), np.float32), broken=refused.detail,
                )  # fmt: skip
            rollout.recorded, rollout.emitted = True, emitted.get(record.through, 0)
            self._add(rollout)

    def drop(self) -> None:
        """The partition is given up."""
        for rollout in self:
            self._remove(rollout)
        self._tombstones.clear()

    def records(self) -> list[tuple[bytes, bytes | None]]:
        """Changelog records that the epoch being sealed owes: of newly opened rollouts, and tombstones of answered ones."""
        records: list[tuple[bytes, bytes | None]] = [(key, None) for key in self._tombstones]
        self._tombstones.clear()
        for rollout in self._open.values():
            if not rollout.recorded:
                assert rollout.generator is not None
                key, value = rollout.key, msgspec.msgpack.encode(rollout.asked)
                model_id = rollout.generator.model_id
                records.append((key, encode_stream(key, rollout.offset, rollout.time_ms, model_id, value)))
                rollout.recorded = True
        return records

    def emitted(self) -> tuple[tuple[int, int], ...]:
        """(offset, answers so far) of the rollouts that answer per step."""
        return tuple((rollout.offset, rollout.emitted) for rollout in self._open.values() if rollout.emitted)

    def oldest(self, default: int) -> int:
        """Offset of the oldest open request."""
        return min(self._open, default=default)

    def close(self, rollout: Rollout) -> None:
        """It is answered or refused."""
        self._remove(rollout)
        if rollout.recorded:
            self._tombstones.append(rollout.key)

    def _made(self, generator: Generator, offset: int, stream: bytes, time_ms: int, asked: Asked) -> Rollout:
        request = parse_request(asked.value, self._generators.limits)
        after = _last_output(asked.state, generator.output.size)
        first = generator.first_events(request, after)
        return Rollout(self, self._partition, offset, stream, time_ms, asked, generator.name, generator, request, first)

    def _add(self, rollout: Rollout) -> None:
        self._open[rollout.offset] = rollout
        self._generators.open += 1

    def _remove(self, rollout: Rollout) -> None:
        if rollout.slot >= 0:
            assert rollout.generator is not None
            rollout.generator.free.append(rollout.slot)
            rollout.slot = -1
        del self._open[rollout.offset]
        self._generators.open -= 1


def _asked(record: StreamRecord) -> Asked:
    """What a changelog record keeps of a rollout. DataLossError: it does not."""
    try:
        return msgspec.msgpack.decode(record.state or b"", type=Asked)
    except (msgspec.DecodeError, ValueError) as error:
        raise DataLossError(
            f"changelog: the request to generate at offset {record.through} cannot be read ({plain(error)}). The topic holds "
            "foreign or damaged records: restore it from a backup, or delete it and start a new group to begin anew."
        ) from None


def _last_output(state: bytes | None, size: int) -> F32 | None:
    """The last tensor of a stream's state, None if the model gave nothing for it yet."""
    if state is None:
        return None
    last = np.frombuffer(state, "<f4")[-size:]
    return None if np.isnan(last).any() else last
