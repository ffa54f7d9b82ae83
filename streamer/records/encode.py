"""Outputs of a model to prediction values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from streamer.core import F32, I64, ClosedWindow, Written
from streamer.modelfile.contract import Contract, Output
from streamer.records.keys import Keys

_NEEDS_ESCAPE = re.compile(rb'[\x00-\x1f"\\]')


class Encoder:
    """Prediction values, JSON: ``{"stream", "ts", "y" or the named outputs, "label"?, "window"?, "model"}``.

    A ``value`` or ``score`` of size one is a number, anything else an array; float32 survives the text exactly (9 digits).
    """

    def __init__(self, contract: Contract, model_name: str, keys: Keys | None = None) -> None:
        """``keys``: what the keys of records are, so that answers have the same."""
        self.keys = keys or Keys()
        self._outputs = contract.outputs
        # labels name classes: the largest of anything else says nothing, as of the sensors of a forecast
        self._labels_of = [_encoded(output) if output.kind == "classes" else () for output in contract.outputs]
        self._decoder = contract.decoder
        single = len(contract.outputs) == 1
        self._names = ["y" if single else output.name for output in contract.outputs]
        self._tail = b',"model":%b}' % msgspec.json.encode(f"{model_name}@{contract.version}")
        self._templates: dict[tuple[int, ...], bytes] = {}

    def steps(self, keys: Sequence[bytes], times_ms: I64, outputs: Sequence[F32]) -> list[bytes]:
        """One value per row of ``outputs`` (each [N, O_k], finite)."""
        template = self._template(tuple(y.shape[1] for y in outputs))
        columns: list[Sequence[Any]] = [escape(keys), times_ms.tolist()]
        for labels, y in zip(self._labels_of, outputs, strict=True):
            columns.extend(y.T.tolist())
            if labels:
                columns.append([labels[index] for index in y.argmax(axis=1).tolist()])
        return [template % row for row in zip(*columns, strict=True)]

    @property
    def per_event(self) -> bool:
        """Whether an output of a window has a row per event, so that its answer can be written in slices."""
        return any(output.per == "event" for output in self._outputs)

    def window(self, window: ClosedWindow, outputs: Sequence[F32], part: tuple[int, int] | None = None) -> bytes:
        """The value of a closed window; outputs per event are arrays over its T events ([T, O_k]), others [O_k].

        ``part`` (i, n), i of 0..n-1: the i-th of n values that hold a slice of the events each, in order; what is not per
        event is in all of them."""
        cut = slice(None)
        if part is not None:
            cut = slice(*(len(window.x) * border // part[1] for border in (part[0], part[0] + 1)))
        fields: dict[str, Any] = {"stream": window.stream.decode(), "ts": window.end_ms}
        for name, output, named, y in zip(self._names, self._outputs, self._labels_of, outputs, strict=True):
            flat = y.reshape(len(y), -1)[cut] if output.per == "event" else y.reshape(1, -1)
            values = [_number(row) for row in flat]
            fields[name] = values if output.per == "event" else values[0]
            if named:
                labels = [msgspec.Raw(named[int(np.argmax(row))]) for row in flat]
                fields[self._label_name(name)] = labels if output.per == "event" else labels[0]
        fields["window"] = _about(window)
        if part is not None:
            fields["slice"] = part
        return msgspec.json.encode(fields)[:-1] + self._tail

    def written(self, window: ClosedWindow, written: Written) -> bytes:
        """The value of a closed window about which a sequence was written: its symbols, their labels, their text."""
        declared = self._decoder
        assert declared is not None
        labels = [declared.labels[symbol] for symbol in written.symbols]
        fields: dict[str, Any] = {
            "stream": window.stream.decode(),
            "ts": window.end_ms,
            "y": written.symbols,
            "label": labels,
        }
        if declared.joint is not None:
            fields["text"] = declared.joint.join(labels)
        fields |= {"score": float(f"{written.score:.6g}"), "truncated": written.truncated, "window": _about(window)}
        return msgspec.json.encode(fields)[:-1] + self._tail

    def _template(self, sizes: tuple[int, ...]) -> bytes:
        if sizes not in self._templates:
            text = b'{"stream":"%b","ts":%d'
            for name, output, labels, size in zip(self._names, self._outputs, self._labels_of, sizes, strict=True):
                scalar = size == 1 and output.kind in ("value", "score")
                numbers = b",".join([b"%.9g"] * size)
                text += b",%b:%b" % (_quoted(name), numbers if scalar else b"[" + numbers + b"]")
                if labels:
                    text += b",%b:%%b" % _quoted(self._label_name(name))
            self._templates[sizes] = text + self._tail.replace(b"%", b"%%")
        return self._templates[sizes]

    def _label_name(self, name: str) -> str:
        return "label" if name == "y" else f"{name}_label"


def _about(window: ClosedWindow) -> dict[str, Any]:
    return {
        "start": window.start_ms,
        "end": window.end_ms,
        "count": len(window.x),
        "reason": window.reason,
        "part": window.part,
        "offsets": [int(window.offsets.min()), int(window.offsets.max())],
    }


def _encoded(output: Output) -> tuple[bytes, ...]:
    return tuple(msgspec.json.encode(label) for label in output.labels or ())


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
