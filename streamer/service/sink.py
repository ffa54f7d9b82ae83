"""Answers become bytes here: the core hands out numbers. What the output topic does not take becomes several records, or
a reject: never the end of the service."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from streamer.core import (
    Answers,
    EmittedAnswers,
    Epoch,
    GeneratedAnswers,
    Outgoing,
    Reject,
    Report,
    Source,
    Spelled,
    StepAnswers,
    Transaction,
    WindowAnswers,
    WrittenAnswers,
)
from streamer.kafka.rows import RECORD_BYTES, headers_bytes
from streamer.modelfile.model import Model
from streamer.records.answers import AnswerEncoder
from streamer.records.chosen import Chosen
from streamer.records.encode import Encoder
from streamer.records.keys import Keys
from streamer.records.passing import MAX_PASSED_BYTES, passed, without_passed
from streamer.words import Reason

MODEL_HEADER = "streamer-model"
_DIGEST = 16
"""Digits of a model file's sha256 that its answers carry."""
_ANY_SIZE = 1 << 62


@dataclass(slots=True)
class Refused:
    """Answers of one epoch that cannot be written: known only now, counted with the epoch."""

    count: int = 0
    newest: Source | None = None

    def add(self, rejects: Sequence[Reject]) -> None:
        self.count += len(rejects)
        for reject in rejects[-1:]:
            self.newest = Source(reject.partition, reject.offset, reject.detail)

    def told(self, report: Report) -> Report:
        """The epoch's report with them in it."""
        if self.newest is None:
            return report
        return replace(
            report,
            rejects={**report.rejects, Reason.TOO_LARGE_ANSWER: self.count},
            examples={**report.examples, Reason.TOO_LARGE_ANSWER: self.newest},
        )


class Sink:
    """Records of predictions, per model as its contract says."""

    def __init__(
        self,
        models: Iterable[tuple[str, Model]],
        keys: Keys,
        *,
        max_bytes: int = _ANY_SIZE,
        encoders: Mapping[str, AnswerEncoder] | None = None,
        choices: Mapping[str, Chosen] | None = None,
    ) -> None:
        """``keys``: what the keys of the input are; answers have the same. ``max_bytes``: what one answer may have, with
        key, headers and what Kafka adds. ``encoders``: of each model, where answers are not plain JSON. ``choices``: of each
        model, where settings choose what answers carry; made of plain JSON."""
        models = list(models)
        self._keys = keys
        self._max_bytes = max_bytes
        self._choices = choices or {}
        self._encoders = encoders or {name: Encoder(model.contract, name, keys) for name, model in models}
        self._headers = {
            name: ((MODEL_HEADER, f"{name}@{model.contract.version} {model.sha256[:_DIGEST]}".encode()),)
            for name, model in models
        }
        """One tuple per model, which all its records share"""
        self._fixed = {name: RECORD_BYTES + headers_bytes(headers) for name, headers in self._headers.items()}
        """What a record has beside key, value and headers of its own"""

    def encode(self, answers: Sequence[Answers]) -> tuple[list[Outgoing], list[Reject]]:
        """One batch of records per batch of answers, in their order; and the answers that no record can hold."""
        refused: list[Reject] = []
        values = self._written(answers)
        return [self._fitted(each, self._outgoing(each, next(values)), refused) for each in answers], refused

    def transaction(self, epoch: Epoch) -> tuple[Transaction, list[Reject]]:
        """And the answers that no record can hold; they are among the transaction's rejects."""
        outgoing, refused = self.encode(epoch.answers)
        return Transaction(epoch.positions, outgoing, [*epoch.rejects, *refused], epoch.changelog), refused

    def _outgoing(self, answers: Answers, values: list[bytes]) -> Outgoing:
        headers = answers.headers
        if self._choices:
            values = [self._as_chosen(answers, row, value) for row, value in enumerate(values)]
            headers = {row: kept for row, found in headers.items() if (kept := without_passed(found))}
        return Outgoing(
            answers.partition,
            self._keys.raws(answers.keys),
            values,
            answers.timestamps_ms,
            answers.sources,
            headers,
            answers.mode,
            self._headers[answers.model],
        )

    def _written(self, answers: Sequence[Answers]) -> Iterator[list[bytes]]:
        """The values of each. Those of a model that answers every event are written at once for all partitions, since a poll
        may bring few records of many."""
        plain: dict[str, list[StepAnswers]] = {}
        for each in answers:
            if isinstance(each, StepAnswers) and each.steps is None:
                plain.setdefault(each.model, []).append(each)
        found = {model: self._together(model, parts) for model, parts in plain.items()}
        for each in answers:
            together = isinstance(each, StepAnswers) and each.steps is None
            yield next(found[each.model]) if together else self._values(each)

    def _together(self, model: str, parts: Sequence[StepAnswers]) -> Iterator[list[bytes]]:
        keys = [key for part in parts for key in part.keys]
        times_ms = np.concatenate([part.times_ms for part in parts])
        y = [np.concatenate(columns) for columns in zip(*(part.y for part in parts), strict=True)]
        values = iter(self._encoders[model].steps(keys, times_ms, y))
        for part in parts:
            yield list(islice(values, len(part)))

    def _as_chosen(self, answers: Answers, row: int, plain: bytes) -> bytes:
        """``plain``: the answer, or a slice of it, where nothing is chosen."""
        if not self._choices:
            return plain
        beside = passed(answers.headers.get(row, ()))
        if isinstance(beside, int):  # it is refused
            return b""
        return self._choices[answers.model].value(plain, answers.partition, answers.sources[row], beside)

    def _too_much(self, answers: Answers, row: int) -> str:
        """Why a record's fields are not carried; empty: they are, or none are wanted."""
        size = passed(answers.headers.get(row, ())) if self._choices else None
        if not isinstance(size, int):
            return ""
        return (
            f"what answers carry of this record (output.fields, input. and header:) has {size} bytes, at most {MAX_PASSED_BYTES} "
            "can be carried: leave out what is long"
        )

    def _values(self, answers: Answers) -> list[bytes]:
        encoder = self._encoders[answers.model]
        if isinstance(answers, StepAnswers):
            return [encoder.several(*answers.row(row)) for row in range(len(answers))]
        if isinstance(answers, WindowAnswers):
            spelled: Sequence[Spelled | None] = answers.spelled or [None] * len(answers)
            rows = zip(answers.windows, answers.y, spelled, strict=True)
            return [encoder.window(window, y, spelled=text) for window, y, text in rows]
        if isinstance(answers, EmittedAnswers):
            return [encoder.emitted(key, each) for key, each in zip(answers.keys, answers.emitted, strict=True)]
        if isinstance(answers, WrittenAnswers):
            return [
                encoder.written(window, each) for window, each in zip(answers.windows, answers.written, strict=True)
            ]
        assert isinstance(answers, GeneratedAnswers)
        return answers.values

    # what does not fit

    def _fitted(self, answers: Answers, whole: Outgoing, refused: list[Reject]) -> Outgoing:
        """``whole`` itself in the common case: all of it fits."""
        fixed = self._fixed[answers.model]
        longest = max(map(len, whole.values), default=0)
        own = {row: headers_bytes(headers) for row, headers in whole.headers.items()} if whole.headers else {}
        # a key is told in the value, at most 8 bytes shorter there (int64)
        if not self._choices and 2 * longest + 8 + fixed + max(own.values(), default=0) <= self._max_bytes:
            return whole
        rooms = [self._max_bytes - fixed - len(key) - own.get(row, 0) for row, key in enumerate(whole.keys)]
        fits = all(len(value) <= room for value, room in zip(whole.values, rooms, strict=True))
        if fits and not (self._choices and any(self._too_much(answers, row) for row in answers.headers)):
            return whole
        fitted = replace(whole, keys=[], values=[], timestamps_ms=[], sources=[], headers={})
        for row, (value, room) in enumerate(zip(whole.values, rooms, strict=True)):
            why = self._too_much(answers, row)
            records = [] if why else [value] if len(value) <= room else self._slices(answers, row, len(value), room)
            if not records:
                refused.append(self._refusal(answers, whole, row, why))
            for record in records:
                if row in whole.headers:
                    fitted.headers[len(fitted)] = whole.headers[row]
                fitted.values.append(record)
                fitted.timestamps_ms.append(whole.timestamps_ms[row])
                fitted.sources.append(whole.sources[row])
                fitted.keys.append(whole.keys[row])
        return fitted

    def _slices(self, answers: Answers, row: int, size: int, room: int) -> list[bytes]:
        """An answer with a row per event or step in several values of at most ``room`` bytes; none where that cannot be."""
        encoder = self._encoders[answers.model]
        write: Callable[[tuple[int, int]], bytes]
        if isinstance(answers, WindowAnswers) and encoder.per_event:
            window, per_output = answers.windows[row], answers.y[row]
            text = answers.spelled[row] if answers.spelled else None
            events, write = len(window.x), lambda part: encoder.window(window, per_output, part, text)
        elif isinstance(answers, StepAnswers) and answers.steps is not None:
            key, time_ms, y = answers.row(row)
            events, write = len(y[0]), lambda part: encoder.several(key, time_ms, y, part)
        else:
            return []

        def piece(index: int, number: int) -> bytes:
            return self._as_chosen(answers, row, write((index, number)))

        if len(piece(0, events)) > room:  # a single event is too much
            return []
        number = -(-size // room)
        while True:
            number = min(number, events)
            values = [piece(index, number) for index in range(number)]
            if max(map(len, values)) <= room:
                return values
            if number == events:
                return []
            number *= 2

    def _refusal(self, answers: Answers, whole: Outgoing, row: int, why: str) -> Reject:
        """``why``: empty where the answer itself is too large."""
        headers = whole.headers.get(row, ())
        size = len(whole.keys[row]) + len(whole.values[row]) + headers_bytes([*headers, *whole.common])
        large = (
            f"key, value and headers of the answer have {size} bytes, a record of the output takes "
            f"{self._max_bytes - RECORD_BYTES} (output.max_batch_bytes and the topic's max.message.bytes)"
        )
        return Reject(
            partition=whole.partition,
            offset=whole.sources[row],
            reason=Reason.TOO_LARGE_ANSWER,
            detail=f"model {answers.model!r}: " + (why or large),
            key=whole.keys[row],
            value=None,
            headers=headers,
            timestamp_ms=whole.timestamps_ms[row],
        )
