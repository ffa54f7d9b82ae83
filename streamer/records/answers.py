"""Predictions in other formats than JSON: Avro, JSON with a schema, and bare numbers; and the schemas that say what they are.

In a registry's frame where there is a registry (magic byte 0, 4-byte id, value). All have the same fields as the JSON of
``encode.py``; ``float32`` has the outputs alone, one after the other, little-endian: stream and time are key and timestamp.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from streamer.core import F32, I64, ClosedWindow, Spelled, Symbols, Written
from streamer.errors import ConfigurationError
from streamer.modelfile.contract import Contract
from streamer.modelfile.parts import Output
from streamer.records.encode import Encoder, cut_of
from streamer.records.keys import Keys
from streamer.records.schemas.book import Schema, SchemaKind
from streamer.words import AnswerFormat

_NO_NAME = re.compile(r"[^A-Za-z0-9_]")
_TIME = {"type": "long", "logicalType": "timestamp-millis"}
_NULL, _SOME = b"\0", b"\2"
"""Branches of a union with null"""
_OFFSETS_SCHEMA = {"type": "array", "items": "long"}


class AnswerEncoder(Protocol):
    """What makes values of answers, as ``Encoder`` does."""

    @property
    def per_event(self) -> bool: ...

    def steps(self, keys: Sequence[bytes], times_ms: I64, outputs: Sequence[F32]) -> list[bytes]: ...

    def window(
        self,
        window: ClosedWindow,
        outputs: Sequence[F32],
        part: tuple[int, int] | None = None,
        spelled: Spelled | None = None,
    ) -> bytes: ...

    def several(
        self, key: bytes, time_ms: int, outputs: Sequence[F32], part: tuple[int, int] | None = None
    ) -> bytes: ...

    def emitted(self, key: bytes, symbols: Symbols) -> bytes: ...

    def written(self, window: ClosedWindow, written: Written) -> bytes: ...


_REFUSED = "a model with such answers is refused before it is served"


class _Tables:
    """Formats of models that answer one event or one window with numbers; others are refused before they are served."""

    def several(self, key: bytes, time_ms: int, outputs: Sequence[F32], part: tuple[int, int] | None = None) -> bytes:
        raise AssertionError(_REFUSED)

    def emitted(self, key: bytes, symbols: Symbols) -> bytes:
        raise AssertionError(_REFUSED)

    def written(self, window: ClosedWindow, written: Written) -> bytes:
        raise AssertionError(_REFUSED)


def answer_encoder(
    written: AnswerFormat,
    contract: Contract,
    model_name: str,
    keys: Keys,
    *,
    window: bool,
    schema_id: int | None,
    native: Any = None,
) -> AnswerEncoder:
    """``window``: the model answers per window. ``schema_id``: of ``answer_schema`` in the registry; None: no frame. ``native``:
    the native module, if it is used."""
    frame = framing(schema_id)
    if written is AnswerFormat.FLOAT32:
        return Bare(contract)
    if written is AnswerFormat.AVRO:
        return AvroEncoder(contract, model_name, keys, window=window, frame=frame)
    plain = Encoder(contract, model_name, keys, native)
    return Framed(plain, frame) if frame else plain


def framing(schema_id: int | None) -> bytes:
    """What stands before a value in a registry's frame; None: it has no frame."""
    return b"" if schema_id is None else b"\0" + schema_id.to_bytes(4)


def answer_schema(written: AnswerFormat, contract: Contract, model_name: str, *, window: bool) -> Schema | None:
    """What says what answers are; None for formats without a schema. ConfigurationError: outputs have no names for it."""
    if written is AnswerFormat.AVRO:
        return Schema(SchemaKind.AVRO, json.dumps(_avro_schema(contract, model_name, window=window)))
    if written is AnswerFormat.JSON_SCHEMA:
        return Schema(SchemaKind.JSON, json.dumps(_json_schema(contract, model_name, window=window)))
    return None


class Framed(_Tables):
    """JSON behind the id of its schema."""

    def __init__(self, inner: Encoder, frame: bytes) -> None:
        self._inner, self._frame = inner, frame

    @property
    def per_event(self) -> bool:
        return self._inner.per_event

    def steps(self, keys: Sequence[bytes], times_ms: I64, outputs: Sequence[F32]) -> list[bytes]:
        frame = self._frame
        return [frame + value for value in self._inner.steps(keys, times_ms, outputs)]

    def window(
        self,
        window: ClosedWindow,
        outputs: Sequence[F32],
        part: tuple[int, int] | None = None,
        spelled: Spelled | None = None,
    ) -> bytes:
        return self._frame + self._inner.window(window, outputs, part)


class Bare(_Tables):
    """The numbers of all outputs, float32 little-endian; of a window per output those of all its events, or one row."""

    def __init__(self, contract: Contract) -> None:
        self._outputs = contract.outputs

    per_event = False
    """Slices would not say which they are."""

    def steps(self, keys: Sequence[bytes], times_ms: I64, outputs: Sequence[F32]) -> list[bytes]:
        joined = np.concatenate([y.astype("<f4", copy=False) for y in outputs], axis=1)
        size, whole = joined.shape[1] * 4, joined.tobytes()
        return [whole[at : at + size] for at in range(0, len(whole), size)]

    def window(
        self,
        window: ClosedWindow,
        outputs: Sequence[F32],
        part: tuple[int, int] | None = None,
        spelled: Spelled | None = None,
    ) -> bytes:
        return b"".join(y.astype("<f4").tobytes() for y in outputs)


class AvroEncoder(_Tables):
    """Avro's binary form of ``answer_schema``."""

    def __init__(self, contract: Contract, model_name: str, keys: Keys, *, window: bool, frame: bytes) -> None:
        self.keys = keys
        self._frame, self._window = frame, window
        self._outputs = contract.outputs
        self._labels = [[avro_bytes(label.encode()) for label in labels_of(output)] for output in contract.outputs]
        self._model = avro_bytes(f"{model_name}@{contract.version}".encode())

    @property
    def per_event(self) -> bool:
        return any(output.per == "event" for output in self._outputs)

    def steps(self, keys: Sequence[bytes], times_ms: I64, outputs: Sequence[F32]) -> list[bytes]:
        columns: list[Sequence[bytes]] = [
            [self._frame] * len(keys),
            list(map(avro_bytes, keys)),
            list(map(avro_long, times_ms.tolist())),
        ]
        for output, labels, y in zip(self._outputs, self._labels, outputs, strict=True):
            size, whole = y.shape[1] * 4, y.astype("<f4", copy=False).tobytes()
            rows = [whole[at : at + size] for at in range(0, len(whole), size)]
            columns.append(rows if _scalar(output, window=False) else [avro_array(y.shape[1], row) for row in rows])
            if labels:
                columns.append([labels[index] for index in y.argmax(axis=1).tolist()])
        columns.append([self._model] * len(keys))
        return list(map(b"".join, zip(*columns, strict=True)))

    def window(
        self,
        window: ClosedWindow,
        outputs: Sequence[F32],
        part: tuple[int, int] | None = None,
        spelled: Spelled | None = None,
    ) -> bytes:
        cut = slice(None) if part is None else cut_of(len(window.x), part)
        found = [self._frame, avro_bytes(window.stream), avro_long(window.end_ms)]
        for output, labels, y in zip(self._outputs, self._labels, outputs, strict=True):
            each = output.per == "event"
            flat = y.reshape(len(y), -1)[cut] if each else y.reshape(1, -1)
            rows = [row.astype("<f4").tobytes() for row in flat]
            if not _scalar(output, window=True):
                rows = [avro_array(flat.shape[1], row) for row in rows]
            found.append(avro_array(len(rows), b"".join(rows)) if each else rows[0])
            if labels:
                words = [labels[int(np.argmax(row))] for row in flat]
                found.append(avro_array(len(words), b"".join(words)) if each else words[0])
        first, last = int(window.offsets.min()), int(window.offsets.max())
        found += [
            avro_long(window.start_ms),
            avro_long(window.end_ms),
            avro_long(len(window.x)),
            avro_bytes(str(window.reason).encode()),
        ]
        found += [avro_long(window.part), avro_array(2, avro_long(first) + avro_long(last))]
        found.append(_NULL if part is None else _SOME + avro_array(2, avro_long(part[0]) + avro_long(part[1])))
        return b"".join((*found, self._model))


def avro_long(number: int) -> bytes:
    """Zigzag, 7 bits at a time."""
    left = (number << 1) ^ (number >> 63)
    if left < 0x80:
        return _ONE_BYTE[left]
    found = bytearray()
    while left >= 0x80:
        found.append(left & 0x7F | 0x80)
        left >>= 7
    found.append(left)
    return bytes(found)


_ONE_BYTE = [struct.pack("B", number) for number in range(0x80)]


def avro_bytes(text: bytes) -> bytes:
    """A text, or bytes."""
    return avro_long(len(text)) + text


def avro_array(count: int, items: bytes) -> bytes:
    """``items``: one after the other."""
    return avro_long(count) + items + _NULL if count else _NULL


def labels_of(output: Output) -> Sequence[str]:
    """Those that answers name beside the numbers."""
    return (output.labels or ()) if output.kind == "classes" else ()


def _scalar(output: Output, *, window: bool) -> bool:
    """One number and no list, as in JSON."""
    return output.size == 1 and (window or output.kind in ("value", "score"))


def named_outputs(contract: Contract) -> list[tuple[Output, str, str]]:
    """Outputs, and what they and their labels are called."""
    if len(contract.outputs) == 1:
        return [(contract.outputs[0], "y", "label")]
    return [(output, output.name, f"{output.name}_label") for output in contract.outputs]


def _avro_schema(contract: Contract, model_name: str, *, window: bool) -> dict[str, Any]:
    fields: list[dict[str, Any]] = [{"name": "stream", "type": "string"}, {"name": "ts", "type": _TIME}]
    for output, name, label_name in named_outputs(contract):
        each = window and output.per == "event"
        row: Any = "float" if _scalar(output, window=window) else {"type": "array", "items": "float"}
        fields.append({"name": avro_name(name), "type": {"type": "array", "items": row} if each else row})
        if labels_of(output):
            fields.append(
                {"name": avro_name(label_name), "type": {"type": "array", "items": "string"} if each else "string"}
            )
    if window:
        bounds = [
            {"name": "start", "type": _TIME}, {"name": "end", "type": _TIME}, {"name": "count", "type": "long"},
            {"name": "reason", "type": "string"}, {"name": "part", "type": "long"}, {"name": "offsets", "type": _OFFSETS_SCHEMA},
        ]  # fmt: skip
        fields.append({"name": "window", "type": {"type": "record", "name": "Window", "fields": bounds}})
        fields.append({"name": "slice", "type": ["null", _OFFSETS_SCHEMA], "default": None})
    fields.append({"name": "model", "type": "string"})
    names = [each["name"] for each in fields]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigurationError(
            f'output.format = "avro": model {model_name!r} has outputs that would share the name {twice[0]!r}: '
            "rename them in its contract"
        )
    return {"type": "record", "name": "Prediction", "namespace": "streamer", "fields": fields}


def _json_schema(contract: Contract, model_name: str, *, window: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {"stream": {"type": "string"}, "ts": {"type": "integer"}}
    for output, name, label_name in named_outputs(contract):
        each = window and output.per == "event"
        numbers = {"type": "array", "items": {"type": "number"}}
        row = {"type": "number"} if _scalar(output, window=window) else numbers
        fields[name] = {"type": "array", "items": row} if each else row
        if labels_of(output):
            fields[label_name] = {"type": "array", "items": {"type": "string"}} if each else {"type": "string"}
    if window:
        fields |= {"window": {"type": "object"}, "slice": {"type": "array", "items": {"type": "integer"}}}
    fields["model"] = {"type": "string"}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#", "title": "Prediction", "type": "object", "properties": fields,
        "required": [name for name in fields if name != "slice"],
    }  # fmt: skip


def avro_name(name: str) -> str:
    """As Avro allows it."""
    found = _NO_NAME.sub("_", name)
    return found if found[:1].isalpha() or found[:1] == "_" else f"_{found}"
