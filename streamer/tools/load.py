"""What a load generator sends, and when: a deterministic plan of records, made in blocks, without Kafka or a clock.

Times are intended send times in ms. The plan is open loop: it does not know how fast anything is sent or answered.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from streamer.errors import ConfigurationError
from streamer.tools.eventfile import Columns, read_events
from streamer.tools.telemetry_data import F32, I64, Telemetry

FORMATS = ("json", "json-named", "float32")
SKEWS = ("even", "zipf")
OP_HEADER = "streamer-op"
LABEL_HEADER = "label"
BROKEN_KINDS = {
    "json": ("undecodable", "wrong_width", "not_finite", "missing_key"),
    "json-named": ("undecodable", "missing_feature", "not_finite", "missing_key"),
    "float32": ("wrong_width", "not_finite", "missing_key"),
}
"""The reasons for which the service rejects them."""
_ZIPF_EXPONENT = 1.1
_GAP_TRIES = 32
_BLOCK_EVENTS = 4_096
_BLOCK_MS = 100.0

Headers = list[tuple[str, bytes]]
_NONE: Headers = []


@dataclass(frozen=True)
class LoadOptions:
    """All of a plan; the same options give the same records, apart from ``start_ms``."""

    streams: int = 200
    events: int | None = 10_000
    """Events without end marks and broken records; None: without end"""
    rate: float = 0.0
    """Events per second; 0 as fast as possible, and event times pass as if each stream had one event per second"""
    skew: str = "even"
    """even: streams take turns; zipf: the n-th stream has a share of 1 / n**1.1"""
    gaps: float = 0.0
    """Share of the time for which a stream is silent"""
    gap_ms: int = 5_000
    disorder_ms: int = 0
    """Event times are up to this much before the intended send time"""
    broken: float = 0.0
    """Broken records per event, in addition to the events"""
    end_marks: int = 0
    """A record that ends the sequence after every n-th event of a stream; 0: none"""
    format: str = "json"
    features: int = 8
    anomaly_rate: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [
            sentence
            for ok, sentence in (
                (self.streams >= 1, "streams must be at least 1"),
                (self.events is None or self.events >= 0, "events must not be negative"),
                (self.rate >= 0, "rate must not be negative"),
                (self.skew in SKEWS, f"skew must be one of {', '.join(SKEWS)}"),
                (0 <= self.gaps < 1, "gaps must be at least 0 and below 1"),
                (self.gap_ms >= 1, "gap-ms must be at least 1"),
                (self.disorder_ms >= 0, "disorder-ms must not be negative"),
                (0 <= self.broken <= 1, "broken must be 0 to 1"),
                (self.end_marks >= 0, "end-marks must not be negative"),
                (self.format in FORMATS, f"format must be one of {', '.join(FORMATS)}"),
            )
            if not ok
        ]
        if problems:
            raise ConfigurationError("; ".join(problems))

    @property
    def interval_ms(self) -> float:
        """Between two intended events."""
        return 1_000.0 / (self.rate or self.streams)


@dataclass
class Block:
    """Records in the order in which they are sent, in columns of length N."""

    due_ms: list[float] = field(default_factory=list)
    """Intended send time since the plan's start"""
    keys: list[bytes | None] = field(default_factory=list)
    values: list[bytes | None] = field(default_factory=list)
    timestamps_ms: list[int] = field(default_factory=list)
    """Of the record: the intended send time; the event time for formats that carry none in the value"""
    headers: list[Headers] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    """event | anomaly | end | a reason of BROKEN_KINDS"""

    def __len__(self) -> int:
        return len(self.keys)

    def add(
        self, kind: str, due: float, stamp: int, key: bytes | None, value: bytes | None, headers: Headers = _NONE
    ) -> None:
        self.kinds.append(kind)
        self.due_ms.append(due)
        self.timestamps_ms.append(stamp)
        self.keys.append(key)
        self.values.append(value)
        self.headers.append(headers)


@dataclass
class Events:
    """N events in the order in which they are sent."""

    streams: NDArray[np.str_] | list[str]
    x: F32
    """[N, F]; of records of several steps [N, steps, F]"""
    times_ms: I64
    """Event times"""
    due_ms: NDArray[np.float64]
    """Intended send times since the plan's start"""
    labels: list[str]
    """Empty: normal"""


class Source(Protocol):
    """Where events come from."""

    @property
    def feature_names(self) -> tuple[str, ...]: ...

    def events(self, start_ms: int) -> Iterator[Events]:
        """In blocks; the first event is intended at ``start_ms``."""
        ...


class TelemetrySource:
    """Synthetic telemetry with labelled anomalies."""

    def __init__(self, options: LoadOptions) -> None:
        self._options = options
        self._telemetry = Telemetry(options.features, options.seed, options.anomaly_rate)
        weights = np.arange(1, options.streams + 1, dtype=np.float64) ** -_ZIPF_EXPONENT
        self._cumulative = np.cumsum(weights / weights.sum())

    @property
    def feature_names(self) -> tuple[str, ...]:
        return self._telemetry.feature_names

    def events(self, start_ms: int) -> Iterator[Events]:
        options = self._options
        block = int(np.clip(_BLOCK_MS / options.interval_ms, 64, _BLOCK_EVENTS)) if options.rate else _BLOCK_EVENTS
        seen = np.zeros(options.streams, np.int64)
        for first in count(0, block):
            size = block if options.events is None else min(block, options.events - first)
            if size <= 0:
                return
            number = np.arange(first, first + size, dtype=np.int64)
            rng = np.random.default_rng([options.seed, 2, first])
            due = np.asarray(number * options.interval_ms, np.float64)
            streams = self._silenced(self._streams(number, rng), due)
            x, labels = self._telemetry.rows(streams, _occurrences(streams, seen))
            jitter = rng.integers(0, options.disorder_ms + 1, size) if options.disorder_ms else 0
            times = start_ms + due.astype(np.int64) - jitter
            # The width grows with the number of streams only, so a stream keeps its name.
            names = [f"stream-{stream:05d}" for stream in streams.tolist()]
            yield Events(names, x, times, due, [str(label) if label else "" for label in labels.tolist()])

    def _streams(self, number: I64, rng: np.random.Generator) -> I64:
        if self._options.skew == "even":
            return number % self._options.streams
        return np.minimum(np.searchsorted(self._cumulative, rng.random(len(number))), self._options.streams - 1)

    def _silenced(self, streams: I64, due: NDArray[np.float64]) -> I64:
        """A silent stream's events go to the next stream that is not; bounded tries, then it speaks after all."""
        options = self._options
        if not options.gaps:
            return streams
        span = (due // options.gap_ms).astype(np.int64)
        streams = streams.copy()
        silence = {int(s): np.random.default_rng([options.seed, 3, int(s)]).random(options.streams) for s in set(span)}
        quiet = np.stack([silence[s] < options.gaps for s in sorted(silence)])
        row = np.searchsorted(sorted(silence), span)
        for _ in range(_GAP_TRIES):
            silent = quiet[row, streams]
            if not silent.any():
                break
            streams[silent] = (streams[silent] + 1) % options.streams
        return streams


class FileSource:
    """Events of a CSV or NPZ file, in the order of their times; event times are the file's, sending follows the rate."""

    def __init__(self, path: Path, options: LoadOptions, columns: Columns | None = None) -> None:
        self._options = options
        self._names, self._times_ms, self._x, self._labels, self.feature_names = read_events(path, columns)

    def events(self, start_ms: int) -> Iterator[Events]:
        del start_ms
        total = len(self._names) if self._options.events is None else min(len(self._names), self._options.events)
        for first in range(0, total, _BLOCK_EVENTS):
            rows = slice(first, min(first + _BLOCK_EVENTS, total))
            due = np.asarray(np.arange(rows.start, rows.stop) * self._options.interval_ms, np.float64)
            labels = [label if label not in ("0", "0.0", "-1") else "" for label in self._labels[rows]]
            yield Events(self._names[rows], self._x[rows], self._times_ms[rows], due, labels)


def blocks(source: Source, options: LoadOptions, start_ms: int, *, file_times: bool = False) -> Iterator[Block]:
    """The plan's records. ``file_times``: event times are not the intended send times (they come from a file)."""
    encode = _encoder(options.format, source.feature_names)
    kinds = BROKEN_KINDS[options.format]
    of_stream: Counter[str] = Counter()
    rng = np.random.default_rng([options.seed, 4])
    for events in source.events(start_ms):
        block = Block()
        stamps = (start_ms + events.due_ms.astype(np.int64)).tolist()
        times = events.times_ms.tolist()
        own_time = options.format == "float32" and (options.disorder_ms > 0 or file_times)
        broken = (rng.random(len(times)) < options.broken).tolist() if options.broken else None
        values = encode(events.x, times)
        rows = zip(events.due_ms.tolist(), stamps, times, events.streams, values, events.labels, strict=True)
        for number, (due, stamp, time, stream, value, label) in enumerate(rows):
            key = str(stream).encode()
            stamp = time if own_time else stamp  # noqa: PLW2901
            if broken is not None and broken[number]:
                kind = kinds[int(rng.integers(len(kinds)))]
                block.add(kind, due, stamp, *_broken(kind, key, value, options.format))
            if label:
                block.add("anomaly", due, stamp, key, value, [(LABEL_HEADER, label.encode())])
            else:
                block.add("event", due, stamp, key, value)
            if options.end_marks:
                of_stream[str(stream)] += 1
                if of_stream[str(stream)] % options.end_marks == 0:
                    block.add("end", due, stamp, key, None, [(OP_HEADER, b"end")])
        yield block


def _occurrences(streams: I64, seen: I64) -> I64:
    """Step of each event in its stream; ``seen`` counts on."""
    order = np.argsort(streams, kind="stable")
    ordered = streams[order]
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    sizes = np.diff(np.r_[first, len(ordered)])
    steps = np.empty_like(streams)
    steps[order] = np.arange(len(ordered)) - np.repeat(first, sizes) + seen[ordered]
    seen[ordered[first]] += sizes
    return steps


class _Encode(Protocol):
    def __call__(self, x: F32, times_ms: list[int], /) -> list[bytes]: ...


def _encoder(value_format: str, names: tuple[str, ...]) -> _Encode:
    encode = msgspec.json.Encoder().encode

    def plain(x: F32, times_ms: list[int]) -> list[bytes]:
        rows = np.round(x.astype(np.float64), 6).tolist()  # short texts that still are the same float32 values
        return [encode({"x": row, "ts": time}) for row, time in zip(rows, times_ms, strict=True)]

    def named(x: F32, times_ms: list[int]) -> list[bytes]:
        rows = np.round(x.astype(np.float64), 6).tolist()
        return [
            encode({**dict(zip(names, row, strict=True)), "ts": time}) for row, time in zip(rows, times_ms, strict=True)
        ]

    def float32(x: F32, times_ms: list[int]) -> list[bytes]:
        del times_ms
        data, width = x.astype("<f4").tobytes(), 4 * x[0].size if len(x) else 4
        return [data[at : at + width] for at in range(0, len(data), width)]

    return {"json": plain, "json-named": named, "float32": float32}[value_format]


def _broken(kind: str, key: bytes, value: bytes, value_format: str) -> tuple[bytes | None, bytes]:
    """Key and value of a record that must be rejected."""
    if kind == "missing_key":
        return None, value
    if value_format == "float32":
        return key, value + bytes(4) if kind == "wrong_width" else b"\x00\x00\xc0\x7f" + value[4:]
    if kind == "undecodable":
        return key, value[: len(value) // 2]
    fields = msgspec.json.decode(value)
    if value_format == "json":
        several = isinstance(fields["x"][0], list)
        step, *rest = fields["x"] if several else [fields["x"]]
        step = [*step, 0.0] if kind == "wrong_width" else [1e39, *step[1:]]
        fields["x"] = [step, *rest] if several else step
    elif kind == "missing_feature":
        del fields[next(iter(fields))]
    else:
        fields[next(iter(fields))] = 1e39  # finite in JSON, not in float32
    return key, msgspec.json.encode(fields)


def write_events(path: Path, source: Source, start_ms: int) -> tuple[int, int]:
    """Write a file of ``source``'s events that ``python -m export train`` and ``read_events`` read.

    Returns the numbers of events and of those with a label. The suffix chooses: .csv or .npz.
    """
    if path.suffix.lower() not in (".csv", ".npz"):
        raise ConfigurationError(f"{path}: unknown format, expected .csv or .npz")
    pieces = list(source.events(start_ms))
    if not pieces:
        raise ConfigurationError("no events to write")
    streams = np.concatenate([np.asarray(piece.streams, str) for piece in pieces])
    times = np.concatenate([piece.times_ms for piece in pieces])
    x = np.concatenate([piece.x for piece in pieces])
    labels = [label or "0" for piece in pieces for label in piece.labels]
    try:
        if path.suffix.lower() == ".npz":
            numbers = np.array(labels)
            numbers = numbers.astype(np.int64) if all(label.lstrip("-").isdigit() for label in labels) else numbers
            names = np.array(source.feature_names)
            np.savez_compressed(path, stream=streams, time_ms=times, x=x, label=numbers, features=names)
        else:
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(["stream", "time", *source.feature_names, "label"])
                rows = np.round(x.astype(np.float64), 6).tolist()
                writer.writerows([s, t, *row, k] for s, t, row, k in zip(streams, times, rows, labels, strict=True))
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or error}") from error
    return len(labels), sum(label != "0" for label in labels)
