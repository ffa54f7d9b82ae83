"""Decoding: a window has closed, and a sequence is written about it, one step of many windows per call.

A decoding outlives the epoch in which its window closed. Exactly once, without holding the position back:

* the transaction that moves the position past the window also writes a changelog record that names the window's events by
  their offsets (unless the answer is already in it), and the replay point stays at the oldest of them, as for an open
  window; so the events themselves are not written again;
* the transaction with the answer, or with the refusal, writes that record's tombstone;
* a restore finds the records, a replay picks the events out of the log, and the same model writes the same answer. A replay
  opens nothing: every window that it closes was answered, or has a record.

Answers of a stream come in the order in which its windows closed, whatever each takes.
Everything is bounded: rows of a call, memory of the windows that are under way; the others wait, and the input with them.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import msgspec
import numpy as np

from streamer.core import ClosedWindow, EventBatch, Headers, ModelCall, Reject, Written, WrittenAnswers, X
from streamer.errors import DataLossError, ModelRunError
from streamer.generate.search import Searches, Searching, encoded
from streamer.modelfile.model import Model
from streamer.modelfile.past import Past
from streamer.records.changelog import Kind, StreamRecord, encode_stream, offset_key
from streamer.records.keys import Keys
from streamer.records.passing import without_passed
from streamer.records.unusable import plain, refused_window
from streamer.settings import DecodeSection
from streamer.words import Closed

_BOUNDS = struct.Struct(">qq")
_OFFSET_BYTES = 8
"""Of a record's stream: the offset of the window's first event; bounds and stream follow"""


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """What a changelog record keeps of a decoding beside its key: all but the events."""

    order: int
    """Windows of a partition in the order in which they closed"""
    reason: str
    watermark: int
    """Just before the window's first event"""
    timestamp_ms: int
    headers: tuple[tuple[str, bytes | None], ...]
    first: int
    gaps: tuple[int, ...]
    """The events' offsets in their order: the first, then what each adds to the one before"""


@dataclass(slots=True, eq=False)
class Decoding:
    """One window that is, or waits to be, written about. ``missing``: events that the replay has not brought yet."""

    home: Decodings
    order: int
    window: ClosedWindow
    timestamp_ms: int
    headers: Headers
    missing: int = 0
    recorded: bool = False
    """Its changelog record is written"""
    searching: Searching | None = None
    answer: Written | str | None = None
    """What was written, or why nothing can be: it may have to wait for earlier windows of its stream"""

    @property
    def source(self) -> int:
        return int(self.window.offsets.max())


class Decoder:
    """The model of a process that writes, and what is under way of all partitions."""

    def __init__(
        self, name: str, model: Model, limits: DecodeSection, keys: Keys, *, max_cells: int, past: Past | None = None
    ) -> None:
        """``max_cells``: events, with padding, of one call of the encoder. ``keys``: of the input; dead letters have the same.
        ``past``: of features that records do not have; it begins with the first event of each window."""
        self._past = past
        assert model.decoder is not None
        self.name, self.model, self.limits, self.keys = name, model, limits, keys
        self.model_id = bytes.fromhex(model.sha256)[:8]
        self.open = 0
        self._graph = model.decoder
        self._width = model.decoder.declared.width
        self._max_cells = max_cells
        self._searches = Searches(model.decoder.declared, model.decoder)
        self._under_way: dict[Searching, Decoding] = {}

    def step(
        self, partitions: Sequence[Decodings], calls: list[ModelCall]
    ) -> Iterator[tuple[int, WrittenAnswers | Reject]]:
        """One call of the encoder at most, for windows that there is room for, and one step of all that are under way.

        ``partitions``: those whose answers can be committed; the oldest windows begin first. Yields (partition, answer)."""
        touched: dict[tuple[Decodings, bytes], None] = {}
        waiting = sorted(
            (each for decodings in partitions for each in decodings.waiting()),
            key=lambda each: (each.timestamp_ms, each.home.partition, each.order),
        )
        for decoding in self._begin(waiting, calls):
            touched[decoding.home, decoding.window.stream] = None
        rows = len(self._searches) * self._width
        for searching, written in self._searches.advance():
            decoding = self._under_way.pop(searching)
            decoding.searching = None
            decoding.answer = str(searching.failure) if written is None else written
            touched[decoding.home, decoding.window.stream] = None
        if rows:
            calls.append((rows, 1, rows))
        for decodings, stream in touched:
            for answer in decodings.answered(stream, self):
                yield decodings.partition, answer

    def _begin(self, waiting: Sequence[Decoding], calls: list[ModelCall]) -> list[Decoding]:
        """The encoder over the next windows; returns those that it does not take."""
        chosen: list[Decoding] = []
        refused: list[Decoding] = []
        longest, under_way = self._searches.longest, len(self._searches)
        longest_new = 0
        for decoding in waiting:
            length = len(decoding.window.x)
            if decoding.missing:
                decoding.answer = f"{decoding.missing} of its events are not in the log any more"
                refused.append(decoding)
                continue
            if self._bytes(1, length) > self.limits.max_memory_bytes:
                decoding.answer = (
                    f"{length} events need {self._bytes(1, length)} bytes of memory, decode.max_memory_bytes is "
                    f"{self.limits.max_memory_bytes}"
                )
                refused.append(decoding)
                continue
            count, most = under_way + len(chosen) + 1, max(longest, length)
            full = count > 1 and count * self._width > self.limits.max_rows
            cells = (len(chosen) + 1) * max(longest_new, length)
            if full or self._bytes(count, most) > self.limits.max_memory_bytes or (chosen and cells > self._max_cells):
                break  # in their order: a long one is not overtaken for ever
            chosen.append(decoding)
            longest, longest_new = most, max(longest_new, length)
        return refused + (self._encode(chosen, calls) if chosen else [])

    def _bytes(self, windows: int, longest: int) -> int:
        """Memory of so many windows that are under way, padded to the longest."""
        return windows * self._width * (longest * self._graph.bytes_per_step + self._graph.bytes_per_row)

    def _encode(self, chosen: Sequence[Decoding], calls: list[ModelCall]) -> list[Decoding]:
        """A call that fails is halved until the window is found."""
        try:
            parts = encoded(self.model, [self._seen(each.window) for each in chosen])
            for memory, states, _ in parts:
                if not all(np.isfinite(each).all() for each in (*memory, *states)):
                    raise ModelRunError("what the encoder makes of it is not finite")
        except ModelRunError as error:
            if len(chosen) == 1:
                chosen[0].answer = str(error)
                return [chosen[0]]
            half = len(chosen) // 2
            return self._encode(chosen[:half], calls) + self._encode(chosen[half:], calls)
        lengths = [length for _, _, length in parts]
        calls.append((len(parts), max(lengths), sum(lengths)))
        for decoding, (memory, states, length) in zip(chosen, parts, strict=True):
            decoding.searching = self._searches.begin(memory, states, length)
            self._under_way[decoding.searching] = decoding
        return []

    def _seen(self, window: ClosedWindow) -> X:
        return window.x if self._past is None else self._past.whole(window.x, window.times_ms)

    def drop(self, decoding: Decoding) -> None:
        if decoding.searching is not None:
            self._searches.drop(decoding.searching)
            del self._under_way[decoding.searching]
            decoding.searching = None


@dataclass(slots=True, eq=False)
class Decodings:
    """Open decodings of one partition. ``decoder`` None: no model of this process writes."""

    partition: int
    decoder: Decoder | None
    keys: Keys
    _open: dict[int, Decoding] = field(default_factory=dict)
    """By their order"""
    _streams: dict[bytes, deque[Decoding]] = field(default_factory=dict)
    _tombstones: list[bytes] = field(default_factory=list)
    _wanted: dict[int, list[Decoding]] = field(default_factory=dict)
    """Offset of an event that a replay has to bring -> who waits for it"""
    _next: int = 0

    def __len__(self) -> int:
        return len(self._open)

    def waiting(self) -> list[Decoding]:
        """Those that have not begun."""
        return [each for each in self._open.values() if each.searching is None and each.answer is None]

    def ask(self, window: ClosedWindow, timestamp_ms: int, headers: Headers) -> None:
        """Opens the decoding of a window that closed."""
        self._add(Decoding(self, self._next, window, timestamp_ms, headers))

    def _add(self, decoding: Decoding) -> None:
        assert self.decoder is not None
        self._open[decoding.order] = decoding
        self._streams.setdefault(decoding.window.stream, deque()).append(decoding)
        self._next = max(self._next, decoding.order + 1)
        self.decoder.open += 1

    def answered(self, stream: bytes, decoder: Decoder) -> Iterator[WrittenAnswers | Reject]:
        """What is due of a stream, in the order of its windows: up to the first that is still being written about."""
        mine = self._streams.get(stream, deque())
        while mine and mine[0].answer is not None:
            decoding = mine.popleft()
            self._close(decoding)
            window, answer = decoding.window, decoding.answer
            if isinstance(answer, str):
                yield self._refusal(decoding, decoder.name, answer)
                continue
            assert answer is not None
            yield WrittenAnswers(
                partition=self.partition,
                model=decoder.name,
                keys=[window.stream],
                timestamps_ms=[decoding.timestamp_ms],
                sources=[decoding.source],
                headers={0: decoding.headers} if decoding.headers else {},
                windows=[window],
                written=[answer],
            )
        if not mine:
            self._streams.pop(stream, None)

    def _close(self, decoding: Decoding) -> None:
        assert self.decoder is not None
        del self._open[decoding.order]
        self.decoder.open -= 1
        if decoding.recorded:
            self._tombstones.append(_key(self.decoder.name, decoding.window))

    def drop(self) -> None:
        """The partition is given up: another owner finds what is open in the log."""
        for decoding in self._open.values():
            assert self.decoder is not None
            self.decoder.drop(decoding)
            self.decoder.open -= 1
        self._open.clear()
        self._streams.clear()
        self._wanted.clear()
        self._tombstones.clear()

    # what survives

    def records(self) -> list[tuple[bytes, bytes | None]]:
        """Changelog records that the epoch being sealed owes: of newly opened decodings, and tombstones of answered ones."""
        records: list[tuple[bytes, bytes | None]] = [(key, None) for key in self._tombstones]
        self._tombstones.clear()
        for decoding in self._open.values():
            if not decoding.recorded:
                assert self.decoder is not None
                key = _key(self.decoder.name, decoding.window)
                value = msgspec.msgpack.encode(_kept(decoding))
                records.append(
                    (key, encode_stream(key, decoding.source, decoding.window.end_ms, self.decoder.model_id, value))
                )
                decoding.recorded = True
        return records

    def oldest(self) -> tuple[int, int] | None:
        """(offset, watermark just before it) of the oldest event of an open decoding: a replay has to begin there."""
        return min((each.window.part, each.window.watermark) for each in self._open.values()) if self._open else None

    def restore(self, records: Iterable[StreamRecord], since: Mapping[str, int]) -> list[Reject]:
        """Opens what was open when the changelog was written; its events come with the replay. Refusals of what the models
        of today cannot write about. ``since``: model -> where its present regime began."""
        refused = []
        found = sorted(((record, _read(record)) for record in records), key=lambda each: each[1].order)
        for record, kept in found:
            offsets = np.cumsum([kept.first, *kept.gaps], dtype=np.int64)
            start_ms, end_ms = _BOUNDS.unpack_from(record.stream, _OFFSET_BYTES)
            stream = record.stream[_OFFSET_BYTES + _BOUNDS.size :]
            features = 0 if self.decoder is None else self.decoder.model.contract.features
            dtype = "float32" if self.decoder is None else self.decoder.model.contract.input.dtype
            x = np.zeros((len(offsets), features), dtype)
            window = ClosedWindow(
                stream, start_ms, end_ms, Closed(kept.reason), record.offset, x, offsets, np.zeros(len(offsets), np.int64),
                kept.watermark,
            )  # fmt: skip
            decoding = Decoding(self, kept.order, window, kept.timestamp_ms, kept.headers, len(offsets), recorded=True)
            if self.decoder is None or self.decoder.name != record.model or record.through < since.get(record.model, 0):
                self._tombstones.append(_key(record.model, window))
                self._next = max(self._next, kept.order + 1)
                why = f"model {record.model!r} is not served, or does not write any more"
                refused.append(self._refusal(decoding, record.model, why))
                continue
            self._add(decoding)
            for offset in np.unique(offsets).tolist():  # once, however many steps its record has
                self._wanted.setdefault(offset, []).append(decoding)
        return refused

    def gather(self, batch: EventBatch) -> None:
        """Takes the events that restored decodings wait for out of a replayed batch."""
        if not self._wanted:
            return
        ends = None if batch.steps is None else np.concatenate(([0], np.cumsum(batch.steps)))
        wanted = np.fromiter(self._wanted, np.int64, len(self._wanted))
        for row in np.flatnonzero(np.isin(batch.offsets, wanted)).tolist():
            offset = int(batch.offsets[row])
            for decoding in self._wanted.pop(offset):
                window = decoding.window
                places = np.flatnonzero(window.offsets == offset)
                steps = slice(row, row + 1) if ends is None else slice(int(ends[row]), int(ends[row + 1]))
                window.x[places] = batch.x[steps][-len(places) :]  # what was trimmed was in front
                window.times_ms[places] = batch.times_ms[row]
                decoding.missing -= len(places)
                if offset == decoding.source:  # what its answer carries of this record is as the settings of today say
                    decoding.headers = batch.headers.get(row, ())

    def _refusal(self, decoding: Decoding, model: str, why: str) -> Reject:
        return refused_window(
            self.partition,
            model,
            decoding.window,
            why,
            key=self.keys.raw(decoding.window.stream),
            source=decoding.source,
            headers=without_passed(decoding.headers),
            timestamp_ms=decoding.timestamp_ms,
        )


def _key(model: str, window: ClosedWindow) -> bytes:
    """Stream, bounds and part name a window."""
    return offset_key(Kind.DECODING, model, window.part, _BOUNDS.pack(window.start_ms, window.end_ms) + window.stream)


def _kept(decoding: Decoding) -> Kept:
    window = decoding.window
    offsets = window.offsets.tolist()
    gaps = tuple(after - before for before, after in pairwise(offsets))
    return Kept(
        decoding.order,
        window.reason,
        window.watermark,
        decoding.timestamp_ms,
        tuple(without_passed(decoding.headers)),
        offsets[0],
        gaps,
    )


def _read(record: StreamRecord) -> Kept:
    """DataLossError: it does not say what is open."""
    try:
        return msgspec.msgpack.decode(record.state or b"", type=Kept)
    except (msgspec.DecodeError, ValueError) as error:
        raise DataLossError(
            f"changelog: the open window at offset {record.offset} cannot be read ({plain(error)}). The topic holds foreign or "
            "damaged records: restore it from a backup, or delete it and start a new group to begin anew."
        ) from None
