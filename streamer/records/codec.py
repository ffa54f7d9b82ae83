"""Record values to event batches, and outputs to prediction values. Bad data becomes a ``Reject``, never an exception.

Formats: ``json`` ({"x": [...], "ts": ms}), ``json-named`` ({"cpu": 0.3, ..., "ts": ms}, fields named as in the contract),
``float32`` (little-endian, F values) and ``module:function``, the user's own
``decode(values: Sequence[bytes]) -> (x[N, F], event_time_ms[N] | None, {row: reason})``.
"""

from __future__ import annotations

import importlib
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, Protocol

import msgspec
import numpy as np

from streamer.core import CARRIED_HEADERS, F32, I64, ClosedWindow, EventBatch, Op, RecordBatch
from streamer.errors import ConfigurationError
from streamer.modelfile.contract import Contract, Output

OP_HEADER = "streamer-op"
_OPS = {b"reset": Op.RESET, b"end": Op.END}
_NEEDS_ESCAPE = re.compile(rb'[\x00-\x1f"\\]')
_FEW_VALUES = 32
"""Up to this many, decoding one by one beats the checks of the one call over all."""
_MAX_TIME_MS = 253_402_300_799_000
"""9999-12-31: later event times are mistakes (microseconds, nanoseconds)."""


class _Value(msgspec.Struct, gc=False):
    x: list[float]
    ts: int | float | None = None


class _LooseValue(msgspec.Struct, gc=False):
    x: list[float | None]
    ts: int | float | None = None


class _RowError(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


Rows = tuple[F32, "I64 | None", dict[int, tuple[str, str]]]
"""x[N, F], event times in ms (0 = not given) or None for all rows, and row -> (reason, detail)."""


class ValueDecoder(Protocol):
    def __call__(self, values: Sequence[bytes]) -> Rows: ...


class JsonDecoder:
    """``{"x": [F numbers], "ts": event time in ms}``; one native parse for a whole fetch while every value is good."""

    def __init__(self, features: int, missing: float | None) -> None:
        self._features = features
        self._missing = missing
        self._fast = msgspec.json.Decoder(_Value)
        self._loose = msgspec.json.Decoder(_LooseValue)

    def __call__(self, values: Sequence[bytes]) -> Rows:
        return self._all(values) or _one_by_one(values, self._features, self._row)

    def _all(self, values: Sequence[bytes]) -> Rows | None:
        """All values if each is good, else None."""
        try:
            rows = list(map(self._fast.decode, values)) if len(values) <= _FEW_VALUES else self._lines(values)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        if rows is None:
            return None
        xs = [row.x for row in rows]
        if set(map(len, xs)) != {self._features}:
            return None
        with np.errstate(over="ignore"):  # becomes infinite, and is rejected as that
            x = np.fromiter(chain.from_iterable(xs), np.float32, len(xs) * self._features).reshape(-1, self._features)
        times = _times([row.ts or 0 for row in rows])
        return None if times is None else (x, times, {})

    def _lines(self, values: Sequence[bytes]) -> list[_Value] | None:
        """Lines are decoded in one call. That every value begins with { and ends with } makes it impossible for two
        values to merge across the line break, so an equal count proves that each line is one value."""
        count = len(values)
        joined = b"\n".join(values)
        ends = np.fromiter(map(len, values), np.int64, count)
        ends += 1
        np.cumsum(ends, out=ends)
        text = np.frombuffer(joined + b"\n", np.uint8)
        starts = np.empty_like(ends)
        starts[0] = 0
        starts[1:] = ends[:-1]
        if not ((text[starts] == 0x7B).all() and (text[ends - 2] == 0x7D).all()):
            return None
        rows = self._fast.decode_lines(joined)
        return rows if len(rows) == count else None

    def _row(self, value: bytes) -> tuple[list[float], int]:
        row = self._loose.decode(value)
        if len(row.x) != self._features:
            raise _RowError("wrong_width", f"x has {len(row.x)} values, the model takes {self._features}")
        return _fill(row.x, self._missing), _time(row.ts)


class NamedDecoder:
    """One JSON object per value with a field per feature name of the contract, and ``ts``."""

    def __init__(self, names: Sequence[str], missing: float | None) -> None:
        self._names = tuple(names)
        self._missing = missing
        self._decoder = msgspec.json.Decoder(dict[str, Any])

    def __call__(self, values: Sequence[bytes]) -> Rows:
        return _one_by_one(values, len(self._names), self._row)

    def _row(self, value: bytes) -> tuple[list[float], int]:
        fields = self._decoder.decode(value)
        row = [fields.get(name) for name in self._names]
        for name, number in zip(self._names, row, strict=True):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int | float)):
                raise _RowError("undecodable", f"feature {name!r} is not a number")
        return _fill(row, self._missing, self._names), _time(fields.get("ts"))


class Float32Decoder:
    """F little-endian float32 per value; the event time is the record's timestamp."""

    def __init__(self, features: int) -> None:
        self._features = features

    def __call__(self, values: Sequence[bytes]) -> Rows:
        width = 4 * self._features
        bad: dict[int, tuple[str, str]] = {}
        if set(map(len, values)) != {width}:
            for row, value in enumerate(values):
                if len(value) != width:
                    bad[row] = ("wrong_width", f"value has {len(value)} bytes, the model takes {width}")
            values = [bytes(width) if row in bad else value for row, value in enumerate(values)]
        x = np.frombuffer(b"".join(values), "<f4").reshape(len(values), self._features)
        return x.astype(np.float32, copy=False), None, bad


class UserDecoder:
    """The user's batch decoder ``module:function``. What it raises or returns in a wrong shape rejects the rows it got."""

    def __init__(self, target: str, features: int) -> None:
        module, _, name = target.partition(":")
        try:
            self._decode: Callable[[Sequence[bytes]], Any] = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ConfigurationError(
                f"input.format = {target!r}: {error}. Name an importable MODULE:FUNCTION, or json, json-named, float32."
            ) from error
        self._features = features

    def __call__(self, values: Sequence[bytes]) -> Rows:
        count = len(values)
        try:
            x, times, bad = self._decode(values)
            x = np.ascontiguousarray(x, dtype=np.float32).reshape(count, self._features)
            times = None if times is None else np.ascontiguousarray(times, dtype=np.int64).reshape(count)
            return x, times, {int(row): ("undecodable", str(reason)) for row, reason in bad.items()}
        except Exception as error:
            if count > 1:  # find the record, so that its neighbours go on
                parts = [self([value]) for value in values]
                rows = {row: part[2][0] for row, part in enumerate(parts) if part[2]}
                stamps = [0 if part[1] is None else int(part[1][0]) for part in parts]
                return np.concatenate([part[0] for part in parts]), np.array(stamps, np.int64), rows
            empty = np.zeros((count, self._features), np.float32)
            return empty, None, dict.fromkeys(range(count), ("undecodable", f"{type(error).__name__}: {error}"))


def _times(times: Sequence[int | float]) -> I64 | None:
    """Milliseconds as int64, clipped just outside the valid range; None if a number is too large for a float."""
    try:
        return np.array(times, np.float64).clip(-1, _MAX_TIME_MS + 1).astype(np.int64)
    except OverflowError:
        return None


def _time(value: object) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MAX_TIME_MS:
        raise _RowError("bad_time", f"ts is {value!r}; it must be milliseconds since 1970")
    return int(value)


def _fill(row: Sequence[float | None], missing: float | None, names: Sequence[str] | None = None) -> list[float]:
    if None not in row:
        return list(row)  # type: ignore[arg-type]
    if missing is None:
        index = row.index(None)
        raise _RowError("missing_feature", f"feature {names[index] if names else index!r} is null or missing")
    return [missing if value is None else value for value in row]


def _one_by_one(values: Sequence[bytes], features: int, decode: Callable[[bytes], tuple[list[float], int]]) -> Rows:
    rows, times, bad = [], [], {}
    nothing = [0.0] * features
    for index, value in enumerate(values):
        try:
            row, time = decode(value)
        except _RowError as error:
            bad[index] = (error.reason, str(error))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            bad[index] = ("undecodable", str(error))
        else:
            rows.append(row)
            times.append(time)
            continue
        rows.append(nothing)
        times.append(0)
    with np.errstate(over="ignore"):
        x = np.array(rows, np.float64).astype(np.float32).reshape(len(values), features)
    return x, np.array(times, np.int64), bad


class Codec:
    """Decodes one fetch of one partition. Stateless: the same record gives the same event wherever a fetch begins."""

    def __init__(
        self,
        contract: Contract,
        value_format: str,
        *,
        missing: float | None = None,
        max_record_bytes: int = 1_048_576,
        max_future_ms: int | None = None,
        generates: bool = False,
    ) -> None:
        """``generates``: a model is served that can, so ``generate`` is a command."""
        self.features = contract.features
        self._ops_known = {**_OPS, b"generate": Op.GENERATE} if generates else _OPS
        self._max_record_bytes = max_record_bytes
        self._max_future_ms = max_future_ms
        self._decode: ValueDecoder
        if value_format == "json":
            self._decode = JsonDecoder(self.features, missing)
        elif value_format == "json-named":
            self._decode = NamedDecoder(contract.feature_names, missing)
        elif value_format == "float32":
            self._decode = Float32Decoder(self.features)
        else:
            self._decode = UserDecoder(value_format, self.features)

    def decode(self, records: RecordBatch) -> EventBatch:
        """All records of ``records`` become rows of the event batch or of its rejects, in order. N >= 1."""
        last = len(records) - 1
        checksum = zlib.crc32(records.values[last] or b"", zlib.crc32(records.keys[last] or b""))
        ops = self._ops(records)
        bad = self._unusable(records, ops)
        if not bad and not ops:
            batch = self._decode_rows(records, None, records.values, bad)  # type: ignore[arg-type]
        else:
            kept = [row for row in range(len(records)) if row not in bad]
            values = [b"" if row in ops else records.values[row] or b"" for row in kept]
            batch = self._decode_some(records, kept, values, ops, bad)
        batch.checksum = checksum
        return batch

    def _ops(self, records: RecordBatch) -> dict[int, Op | None]:
        ops: dict[int, Op | None] = {}
        for row, headers in records.headers.items():
            for name, value in headers:
                if name == OP_HEADER:
                    ops[row] = self._ops_known.get(value)
        return ops

    def _unusable(self, records: RecordBatch, ops: Mapping[int, Op | None]) -> dict[int, tuple[str, str]]:
        bad: dict[int, tuple[str, str]] = {}
        keys, values, limit = records.keys, records.values, self._max_record_bytes
        try:
            b"\n".join(keys).decode()  # type: ignore[arg-type]  # a break between keys: valid together = valid alone
            if b"" not in keys and None not in values and len(max(values, key=len)) <= limit and not ops:  # type: ignore[arg-type]
                return bad
        except (TypeError, UnicodeDecodeError):
            pass
        for row, (key, value) in enumerate(zip(keys, values, strict=True)):
            if row in ops and ops[row] is None:
                bad[row] = ("unknown_command", f"header {OP_HEADER} is none of {self._commands()}")
            elif not key:
                bad[row] = ("missing_key", "the key is the stream's id; this record has none")
            elif not _is_utf8(key):
                bad[row] = ("bad_key", "the key is not UTF-8")
            elif value is None and row not in ops:
                bad[row] = ("missing_value", "the record has no value")
            elif value is not None and len(value) > limit:
                bad[row] = ("too_large", f"value has {len(value)} bytes, input.max_record_bytes is {limit}")
        return bad

    def _commands(self) -> str:
        return ", ".join(name.decode() for name in self._ops_known)

    def _decode_some(
        self,
        records: RecordBatch,
        kept: list[int],
        values: list[bytes],
        ops: Mapping[int, Op | None],
        bad: dict[int, tuple[str, str]],
    ) -> EventBatch:
        """The careful path: commands are cut out before decoding and put back as rows of zeros."""
        events = [index for index, row in enumerate(kept) if row not in ops]
        x = np.zeros((len(kept), self.features), np.float32)
        times = np.zeros(len(kept), np.int64)
        if events:
            event_x, event_times, event_bad = self._decode([values[index] for index in events])
            x[events] = event_x
            if event_times is not None:
                times[events] = event_times
            bad.update({kept[events[row]]: reason for row, reason in event_bad.items()})
        batch = self._finish(records, kept, x, times, bad)
        rows = {row: index for index, row in enumerate(kept) if row not in bad}
        rows = {row: index for index, row in enumerate(rows)}
        marks = [(rows[row], op, row) for row, op in ops.items() if row in rows and op is not None]
        if marks:
            batch.ops = np.zeros(len(batch), np.uint8)
            for index, op, row in marks:
                batch.ops[index] = op
                if op is Op.GENERATE:
                    batch.commands[index] = records.values[row] or b""
        return batch

    def _decode_rows(
        self, records: RecordBatch, kept: list[int] | None, values: Sequence[bytes], bad: dict[int, tuple[str, str]]
    ) -> EventBatch:
        x, times, event_bad = self._decode(values)
        bad.update(event_bad)
        return self._finish(records, kept, x, times, bad)

    def _finish(
        self,
        records: RecordBatch,
        kept: list[int] | None,
        x: F32,
        times: I64 | None,
        bad: dict[int, tuple[str, str]],
    ) -> EventBatch:
        """Checks times and finiteness, drops bad rows, and makes the rejects. ``kept`` None: all records, in order."""
        offsets = np.array(records.offsets, np.int64)
        stamps = np.array(records.timestamps_ms, np.int64)
        keys: list[bytes] = records.keys  # type: ignore[assignment]
        if kept is not None:
            offsets, stamps = offsets[kept], stamps[kept]
            keys = [keys[row] for row in kept]
        times = stamps if times is None else np.where(times == 0, stamps, times)
        self._check_numbers(x, times, stamps, kept, bad)
        chosen = None
        if bad:
            source = range(len(records)) if kept is None else kept
            chosen = [index for index, row in enumerate(source) if row not in bad]
            offsets, times, stamps, x = offsets[chosen], times[chosen], stamps[chosen], x[chosen]
            keys = [keys[index] for index in chosen]
        batch = EventBatch(
            partition=records.partition,
            offsets=offsets,
            times_ms=times,
            timestamps_ms=records.timestamps_ms if kept is None and chosen is None else stamps.tolist(),
            keys=keys,
            x=x,
            ops=None,
            records=records,
            next_offset=records.offsets[-1] + 1,
            rejects=[records.reject(row, *bad[row]) for row in sorted(bad)],
        )
        if records.headers:
            carried = {
                records.offsets[row]: found
                for row, headers in records.headers.items()
                if row not in bad and (found := [header for header in headers if header[0] in CARRIED_HEADERS])
            }
            places = np.searchsorted(offsets, list(carried)).tolist()
            batch.headers = dict(zip(places, carried.values(), strict=True))
        return batch

    def _check_numbers(
        self, x: F32, times: I64, stamps: I64, kept: list[int] | None, bad: dict[int, tuple[str, str]]
    ) -> None:
        # ORT's clipping hides a NaN behind a plausible value, so it must never reach the model
        if not np.isfinite(x).all():
            for index in np.flatnonzero(~np.isfinite(x).all(axis=1)).tolist():
                feature = int(np.flatnonzero(~np.isfinite(x[index]))[0])
                row = index if kept is None else kept[index]
                bad.setdefault(row, ("not_finite", f"feature {feature} is NaN or infinite (in float32)"))
        wrong = (times < 0) | (times > _MAX_TIME_MS)
        if self._max_future_ms is not None:
            wrong |= times - stamps > self._max_future_ms
        if wrong.any():
            for index in np.flatnonzero(wrong).tolist():
                row = index if kept is None else kept[index]
                bad.setdefault(row, ("bad_time", f"event time {times[index]} ms, record timestamp {stamps[index]} ms"))


def _is_utf8(key: bytes) -> bool:
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True


class Encoder:
    """Prediction values, JSON: ``{"stream", "ts", "y" or the named outputs, "label"?, "window"?, "model"}``.

    A ``value`` or ``score`` of size one is a number, anything else an array; float32 survives the text exactly (9 digits).
    """

    def __init__(self, contract: Contract, model_name: str) -> None:
        self._outputs = contract.outputs
        single = len(contract.outputs) == 1
        self._names = ["y" if single else output.name for output in contract.outputs]
        self._tail = b',"model":%b}' % msgspec.json.encode(f"{model_name}@{contract.version}")
        self._templates: dict[tuple[int, ...], bytes] = {}

    def steps(self, keys: Sequence[bytes], times_ms: I64, outputs: Sequence[F32]) -> list[bytes]:
        """One value per row of ``outputs`` (each [N, O_k], finite)."""
        template = self._template(tuple(y.shape[1] for y in outputs))
        columns: list[Sequence[Any]] = [escape(keys), times_ms.tolist()]
        for output, y in zip(self._outputs, outputs, strict=True):
            columns.extend(y.T.tolist())
            if output.labels:
                columns.append(self._labels(output, y))
        return [template % row for row in zip(*columns, strict=True)]

    def window(self, window: ClosedWindow, outputs: Sequence[F32]) -> bytes:
        """The one value of a closed window; outputs per event are arrays over its T events ([T, O_k]), others [O_k]."""
        fields: dict[str, Any] = {"stream": window.stream.decode(), "ts": window.end_ms}
        for name, output, y in zip(self._names, self._outputs, outputs, strict=True):
            flat = y.reshape(len(y), -1) if output.per == "event" else y.reshape(1, -1)
            values = [_number(row) for row in flat]
            fields[name] = values if output.per == "event" else values[0]
            if output.labels:
                labels = [output.labels[int(np.argmax(row))] for row in flat]
                fields[self._label_name(name)] = labels if output.per == "event" else labels[0]
        fields["window"] = {
            "start": window.start_ms,
            "end": window.end_ms,
            "count": len(window.x),
            "reason": window.reason,
            "part": window.part,
            "offsets": [int(window.offsets.min()), int(window.offsets.max())],
        }
        return msgspec.json.encode(fields)[:-1] + self._tail

    def _template(self, sizes: tuple[int, ...]) -> bytes:
        if sizes not in self._templates:
            text = b'{"stream":"%b","ts":%d'
            for name, output, size in zip(self._names, self._outputs, sizes, strict=True):
                scalar = size == 1 and output.kind in ("value", "score")
                numbers = b",".join([b"%.9g"] * size)
                text += b",%b:%b" % (_quoted(name), numbers if scalar else b"[" + numbers + b"]")
                if output.labels:
                    text += b",%b:%%b" % _quoted(self._label_name(name))
            self._templates[sizes] = text + self._tail.replace(b"%", b"%%")
        return self._templates[sizes]

    def _label_name(self, name: str) -> str:
        return "label" if name == "y" else f"{name}_label"

    def _labels(self, output: Output, y: F32) -> list[bytes]:
        labels = [msgspec.json.encode(label) for label in output.labels or ()]
        return [labels[index] for index in y.argmax(axis=1).tolist()]


def _quoted(name: str) -> bytes:
    return msgspec.json.encode(name).replace(b"%", b"%%")


def _number(row: F32) -> Any:
    values = [float(f"{value:.9g}") for value in row.tolist()]
    return values[0] if len(values) == 1 else values


def escape(keys: Sequence[bytes]) -> Sequence[bytes]:
    """Keys as the inside of JSON strings."""
    if _NEEDS_ESCAPE.search(b" ".join(keys)) is None:
        return keys
    return [msgspec.json.encode(key.decode())[1:-1] for key in keys]
