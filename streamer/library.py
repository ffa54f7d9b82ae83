"""A model over batches of events in your own program: arrays in, arrays out, one state per stream between them.

    for batch in Runner.load("model.onnx").run(batches):
        batch.keys, batch.y

No Kafka, no offsets, no JSON. What the service does with a log this does with what you give it, in the order in which you
give it, by the same code; nothing is kept on disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamer.core import F32, I64, ClosedWindow, EventBatch, LogFacts, RecordBatch, StepAnswers, WindowAnswers
from streamer.engine.processor import Processor
from streamer.engine.restore import Found, Names, Restore
from streamer.errors import ConfigurationError
from streamer.modelfile.model import Model
from streamer.modelfile.past import Past
from streamer.records.times import MAX_TIME_MS
from streamer.settings import BatchSection, DeliverySection, StateSection
from streamer.windows import WindowRule
from streamer.words import Delivery

Given = tuple[Sequence[str], Any] | tuple[Sequence[str], Any, Any]
"""Streams [N], features [N, F] (or N arrays [T, F], where the contract says that a record holds several steps), and event
times in ms since 1970 or as datetime64 [N]; without times the rows count as one ms each"""

_END = 1 << 62


@dataclass(frozen=True, slots=True)
class Answered:
    """What one batch of events brought about, in columns of N answers: one per event, or one per window that closed."""

    keys: list[str]
    """Streams"""
    outputs: Mapping[str, Any]
    """Per output of the contract: [N, O], or a list of N arrays [T, O] where there is one per step: of a window, or of a
    record of several"""
    times_ms: I64
    """[N] of the events, or the ends of the windows"""
    rows: I64
    """[N] which row of the batch each answers; of a window: -1"""
    refused: Mapping[int, str]
    """Row -> why the model did not take it: its state is as before"""
    windows: Sequence[ClosedWindow] = ()

    @property
    def y(self) -> Any:
        """The first output."""
        return next(iter(self.outputs.values()))


class Runner:
    """One model with the state of every stream that it has seen, up to ``state.max_bytes``; beyond it those begin anew
    that were not used for longest."""

    def __init__(
        self,
        model: Model,
        *,
        window: WindowRule | None = None,
        state: StateSection | None = None,
        batch: BatchSection | None = None,
        past: bool = False,
    ) -> None:
        """``window``: how streams are cut, for a model over windows. ConfigurationError: the model needs one, or it writes
        sequences, which only the service does.

        ``past``: what depends on a stream's past is made here, as in the service from records with names: where the
        contract has a lag, x holds the value of this event; where it has ``since_last``, any number; where it has
        ``missing = "last"``, NaN is a missing value. Without it x holds the numbers that the graph gets."""
        self._model = model
        contract = model.contract
        if contract.decoder:
            raise ConfigurationError(
                f"model {contract.name!r} has a decoder and writes sequences: serve it with `streamer run`"
            )
        made = Past.of(contract.feature_tables, contract.input.dtype) if past else None
        self._may_be_missing = np.array([past and each.missing == "last" for each in contract.feature_tables])
        self._processor = Processor(
            [(model.contract.name, model, window)],
            state=state,
            batch=batch,
            delivery=DeliverySection(mode=Delivery.EPHEMERAL),
            pasts={} if made is None else {contract.name: made},
        )
        restore = Restore(self._processor, 0, Names("", ""))
        self._partition = restore.finish(Found(LogFacts("", 0, _END, _END), None, 0))
        self._batches = 0
        self._clock_ms = 0

    @classmethod
    def load(cls, path: str | Path, *, window: WindowRule | None = None, **sections: Any) -> Runner:
        """A model file, checked and tried. ModelError, in one sentence, if it cannot be trusted."""
        return cls(Model.load(path), window=window, **sections)

    def run(self, batches: Iterable[Given]) -> Iterator[Answered]:
        """One ``Answered`` per batch, in their order. ValueError: streams, features and times do not belong together."""
        for given in batches:
            yield self.feed(*given)

    def feed(self, keys: Sequence[str], x: Any, times_ms: Any = None) -> Answered:
        """The events of one batch, in the order of its rows; those of a stream may be among them several times."""
        first = self._partition.next_offset
        batch = self._batch(keys, x, times_ms, first)
        for begin in range(0, len(batch), self._processor.batch.max_poll_records):
            rows = np.arange(begin, min(begin + self._processor.batch.max_poll_records, len(batch)))
            part = batch.select(rows)
            part.next_offset = first + int(rows[-1]) + 1
            self._processor.ingest([part])
            for _ in self._processor.run():
                pass
        return self._take(first)

    def _batch(self, keys: Sequence[str], x: Any, times_ms: Any, first: int) -> EventBatch:
        features, dtype = self._model.contract.features, self._model.contract.input.dtype
        steps: I64 | None = None
        if self._model.contract.many_steps:
            given, steps = _joined(keys, x, features)
        else:
            given = np.asarray(x)
            if given.shape != (len(keys), features):
                raise ValueError(f"x has shape {list(given.shape)}: {len(keys)} keys need [{len(keys)}, {features}]")
        values = _numbers(given, dtype)
        usable = np.isfinite(values) | (np.isnan(values) & self._may_be_missing)
        if not usable.all() or not (dtype.startswith("float") or np.array_equal(values, given)):
            raise ValueError(f"x must be finite, and every number one of {dtype}")
        counted = np.arange(self._clock_ms, self._clock_ms + len(keys), dtype=np.int64)
        times = counted if times_ms is None else _milliseconds(times_ms, len(keys))
        streams, stamps = _streams(keys), times.tolist()
        self._clock_ms = max(self._clock_ms, int(times.max(initial=-1)) + 1)
        offsets = np.arange(first, first + len(keys), dtype=np.int64)
        raw = RecordBatch(0, offsets.tolist(), stamps, list(streams), [None] * len(streams))
        return EventBatch(0, offsets, times, stamps, streams, values, None, raw, first + len(keys), steps=steps)

    def _take(self, first: int) -> Answered:
        """What the model answered, out of the processor: nothing of it stays there."""
        answers, rejects = self._processor.results()
        self._batches += 1
        epoch = self._processor.seal(self._batches)
        if epoch is not None:
            self._processor.committed(epoch, {})
        refused = {reject.offset - first: reject.detail for reject in rejects}
        steps = [each for each in answers if isinstance(each, StepAnswers)]
        closed = [each for each in answers if isinstance(each, WindowAnswers)]
        names = [output.name for output in self._model.contract.outputs]
        if closed:
            windows = [window for each in closed for window in each.windows]
            per_window = [y for each in closed for y in each.y]
            outputs = {name: [y[at] for y in per_window] for at, name in enumerate(names)}
            ends = np.array([window.end_ms for window in windows], np.int64)
            keys = [window.stream.decode() for window in windows]
            return Answered(keys, outputs, ends, np.full(len(keys), -1), refused, windows)
        return self._answered(first, steps, refused)

    def _answered(self, first: int, steps: Sequence[StepAnswers], refused: Mapping[int, str] | None = None) -> Answered:
        outputs: dict[str, Any] = {}
        for at, output in enumerate(self._model.contract.outputs):
            empty: F32 = np.empty((0, output.size), np.float32)
            outputs[output.name] = (
                [each.row(row)[2][at] for each in steps for row in range(len(each))]
                if self._model.contract.many_steps
                else np.concatenate([empty, *(each.y[at] for each in steps)])
            )
        rows = [source - first for each in steps for source in each.sources]
        times = [each.times_ms for each in steps]
        return Answered(
            [key.decode() for each in steps for key in each.keys],
            outputs,
            np.concatenate([np.empty(0, np.int64), *times]),
            np.array(rows, np.int64),
            refused or {},
        )


def _streams(keys: Sequence[str]) -> list[bytes]:
    """ValueError: a key is none that a record can have."""
    streams = []
    for row, key in enumerate(keys):
        if not isinstance(key, str) or not key:
            raise ValueError(
                f"keys[{row}] is {str(key)[:80]!r} ({type(key).__name__}): a key is a text that is not empty"
            )
        try:
            streams.append(key.encode())
        except UnicodeEncodeError as error:
            raise ValueError(f"keys[{row}] is {key[:80]!r}, which is no text: {error.reason}") from None
    return streams


def _numbers(given: Any, dtype: str) -> Any:
    """ValueError: what is given are no numbers, such as texts, times or complex ones."""
    if given.dtype.kind in "biufO":
        try:
            return given.astype(dtype)
        except (TypeError, ValueError, OverflowError):  # of what objects are
            pass
    raise ValueError(f"x must hold numbers that {dtype} can be made of, not {given.dtype}")


def _milliseconds(times_ms: Any, count: int) -> I64:
    """ValueError: they are not ``count`` times in whole milliseconds, or none that the service takes from a record either."""
    given = np.asarray(times_ms)
    if given.shape != (count,):
        raise ValueError(f"times_ms has shape {list(given.shape)}: {count} keys need [{count}]")
    if given.dtype.kind == "M":
        given = given.astype("datetime64[ms]").astype(np.int64)
    number = given.dtype.kind in "iuf"
    if not number or not ((np.floor(given) == given) & (given >= -MAX_TIME_MS) & (given <= MAX_TIME_MS)).all():
        raise ValueError(
            "times_ms must be whole milliseconds since 1970, at most the year 9999, or datetime64 without NaT"
        )
    return given.astype(np.int64)


def _joined(keys: Sequence[str], x: Any, features: int) -> tuple[Any, I64]:
    """N arrays [T, F] one after the other, and T of each. ValueError: one is of another shape, or has no step."""
    parts = [np.asarray(each) for each in x]
    shapes = [list(part.shape) for part in parts]
    if len(parts) != len(keys):
        raise ValueError(f"x has {len(parts)} arrays: {len(keys)} keys need one for each")
    for shape in shapes:
        if len(shape) != 2 or shape[0] < 1 or shape[1] != features:
            raise ValueError(
                f"x has an array of shape {shape}: a record of several steps is [T, {features}], T at least 1"
            )
    none = np.empty((0, features), parts[0].dtype if parts else np.float32)
    return np.concatenate([none, *parts]), np.array([shape[0] for shape in shapes], np.int64)
