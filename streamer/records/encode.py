"""Outputs of a model to prediction values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from streamer.core import F32, I64, ClosedWindow, Spelled, Symbols, Written
from streamer.modelfile.contract import Contract
from streamer.modelfile.emit import Emit
from streamer.modelfile.parts import Output
from streamer.records.keys import Keys

_ESCAPED = bytes(range(0x20)) + b'"\\'
_FIELD = re.compile(rb"%(?:b|d|\.9g)")
"""Of a template, which never holds a zero byte: it is JSON"""


class Encoder:
    """Prediction values, JSON: ``{"stream", "ts", "y" or the named outputs, "label"?, "window"?, "model"}``.

    A ``value`` or ``score`` of size one is a number, anything else an array; float32 survives the text exactly (9 digits).
    """

    def __init__(self, contract: Contract, model_name: str, keys: Keys | None = None, native: Any = None) -> None:
        """``keys``: what the keys of records are, so that answers have the same. ``native``: the native module, which writes
        the same bytes or says that it is not sure."""
        self.keys = keys or Keys()
        self._native = native
        self._outputs = contract.outputs
        # labels name classes: the largest of anything else says nothing, as of the sensors of a forecast
        self._labels_of = [_encoded(output) if output.kind == "classes" else () for output in contract.outputs]
        self._decoder = contract.decoder
        single = len(contract.outputs) == 1
        self._names = ["y" if single else output.name for output in contract.outputs]
        self._tail = b',"model":%b}' % msgspec.json.encode(f"{model_name}@{contract.version}")
        self._templates: dict[tuple[int, ...], bytes] = {}
        self._pieces: dict[tuple[int, ...], list[bytes]] = {}
        self._of_a_step = [
            (msgspec.json.encode(name), msgspec.json.encode(self._label_name(name)), _numbers(output, output.size))
            for name, output in zip(self._names, self._outputs, strict=True)
        ]

    def steps(self, keys: Sequence[bytes], times_ms: I64, outputs: Sequence[F32]) -> list[bytes]:
        """One value per row of ``outputs`` (each [N, O_k], finite)."""
        sizes = tuple(y.shape[1] for y in outputs)
        if self._native is not None:
            columns_of = zip(outputs, sizes, self._labels_of, strict=True)
            numbers = [
                (y.astype(np.float32, copy=False).tobytes(), size, list(labels)) for y, size, labels in columns_of
            ]
            found: list[bytes] | None = self._native.answers(
                self._between(sizes), list(keys), times_ms.tobytes(), numbers
            )
            if found is not None:
                return found
        template = self._template(sizes)
        columns: list[Sequence[Any]] = [escape(keys), times_ms.tolist()]
        for labels, y in zip(self._labels_of, outputs, strict=True):
            columns.extend(y.T.tolist())
            if labels:
                columns.append([labels[index] for index in y.argmax(axis=1).tolist()])
        return list(map(template.__mod__, zip(*columns, strict=True)))

    def several(self, key: bytes, time_ms: int, outputs: Sequence[F32], part: tuple[int, int] | None = None) -> bytes:
        """The value of a record of T steps, ``outputs`` each [T, O_k]: what ``steps`` writes for one, in a list.

        ``part`` (i, n), i of 0..n-1: the i-th of n values that hold a slice of the steps each, in order."""
        pieces = [b'{"stream":"%b","ts":%d' % (escape([key])[0], time_ms)]
        for (name, label, step), labels, whole in zip(self._of_a_step, self._labels_of, outputs, strict=True):
            y = whole if part is None else whole[cut_of(len(whole), part)]
            pieces.append(b",%b:[%b]" % (name, b",".join([step % tuple(row) for row in y.tolist()])))
            if labels:
                found = b",".join([labels[index] for index in y.argmax(axis=1).tolist()])
                pieces.append(b",%b:[%b]" % (label, found))
        if part is not None:
            pieces.append(b',"slice":[%d,%d]' % part)
        return b"".join(pieces) + self._tail

    @property
    def per_event(self) -> bool:
        """Whether an output of a window has a row per event, so that its answer can be written in slices."""
        return any(output.per == "event" and output.emit is None for output in self._outputs)

    def window(
        self,
        window: ClosedWindow,
        outputs: Sequence[F32],
        part: tuple[int, int] | None = None,
        spelled: Spelled | None = None,
    ) -> bytes:
        """The value of a closed window; outputs per event are arrays over its T events ([T, O_k]), others [O_k].

        ``part`` (i, n), i of 0..n-1: the i-th of n values that hold a slice of the events each, in order; what is not per
        event is in all of them. ``spelled``: stands in place of the output that emits."""
        cut = slice(None) if part is None else cut_of(len(window.x), part)
        fields: dict[str, Any] = {"stream": window.stream.decode(), "ts": window.end_ms}
        for name, output, named, y in zip(self._names, self._outputs, self._labels_of, outputs, strict=True):
            if spelled is not None and output.emit is not None:
                text = _transcript(output, output.emit, spelled, window)
                fields |= text if name == "y" else {name: text}
                continue
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

    def emitted(self, key: bytes, symbols: Symbols) -> bytes:
        """The value of new symbols, or of a transcript."""
        output = self._outputs[0]
        assert output.emit is not None
        names = [(output.labels or ())[label] for label in symbols.labels]
        fields: dict[str, Any] = {
            "stream": key.decode(),
            "ts": symbols.time_ms,
            "text": output.emit.separator.join(names),
        }
        final = symbols.final
        utterance: dict[str, Any] = {"start": symbols.start_ms}
        if final is None:
            fields["symbols"] = [{"label": name, "ts": symbols.time_ms} for name in names]
            for each, step in zip(fields["symbols"], symbols.steps or (), strict=False):
                each["step"] = step
            utterance["offsets"] = [symbols.first]
        else:
            fields["score"] = float(f"{final.score:.9g}")
            utterance |= {"end": symbols.time_ms, "count": final.steps, "reason": final.reason, "part": final.part}
            utterance["offsets"] = [symbols.first, final.last]
        fields |= {"final": final is not None, "utterance": utterance}
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
                text += b",%b:%b" % (_quoted(name), _numbers(output, size))
                if labels:
                    text += b",%b:%%b" % _quoted(self._label_name(name))
            self._templates[sizes] = text + self._tail.replace(b"%", b"%%")
        return self._templates[sizes]

    def _between(self, sizes: tuple[int, ...]) -> list[bytes]:
        """What stands in the template between its fields."""
        if sizes not in self._pieces:
            texts = _FIELD.split(self._template(sizes).replace(b"%%", b"\0"))
            self._pieces[sizes] = [text.replace(b"\0", b"%") for text in texts]
        return self._pieces[sizes]

    def _label_name(self, name: str) -> str:
        return "label" if name == "y" else f"{name}_label"


def _transcript(output: Output, emit: Emit, spelled: Spelled, window: ClosedWindow) -> dict[str, Any]:
    names = [(output.labels or ())[label] for label in spelled.labels]
    times = window.times_ms[list(spelled.steps)].tolist()
    return {
        "text": emit.separator.join(names),
        "symbols": [{"label": name, "ts": at} for name, at in zip(names, times, strict=True)],
        "score": float(f"{spelled.score:.9g}"),
        "final": True,
    }


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


def _numbers(output: Output, size: int) -> bytes:
    """How the numbers of one step are written."""
    numbers = b",".join([b"%.9g"] * size)
    return numbers if size == 1 and output.kind in ("value", "score") else b"[" + numbers + b"]"


def cut_of(count: int, part: tuple[int, int]) -> slice:
    """The ``part[0]``-th of ``part[1]`` slices of ``count``, as equal as can be."""
    return slice(*(count * border // part[1] for border in (part[0], part[0] + 1)))


def _quoted(name: str) -> bytes:
    return msgspec.json.encode(name).replace(b"%", b"%%")


def _number(row: F32) -> Any:
    values = [float(f"{value:.9g}") for value in row.tolist()]
    return values[0] if len(values) == 1 else values


def escape(keys: Sequence[bytes]) -> Sequence[bytes]:
    """Keys as the inside of JSON strings."""
    joined = b"".join(keys)
    if len(joined.translate(None, _ESCAPED)) == len(joined):
        return keys
    return [msgspec.json.encode(key.decode())[1:-1] for key in keys]
