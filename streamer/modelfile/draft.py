"""A first draft of the sidecar for a file that has no contract: what the graph says, and what a person must decide.

Names, types and sizes are read; nothing else can be known from a graph. What is only likely is marked, and the mode is
left open, so that no draft is served before somebody has read it.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from streamer.errors import ModelError
from streamer.modelfile.contract import METADATA_KEY
from streamer.modelfile.graph import check, external_files, scan
from streamer.modelfile.session import nodes
from streamer.modelfile.signature import DTYPES, Node

OPEN = "DECIDE"
"""Stands where a person must decide. No contract is valid with it."""

_INTEGERS = ("tensor(int64)", "tensor(int32)")
_FLOATS = ("tensor(float)",)
_TIME = re.compile(r"time|seq|step|len|frame|^t$", re.I)


def draft(path: str | Path) -> str:
    """NAME.toml for a file without a contract, as text. ModelError for a file that cannot be read or has a contract."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"the model {path} cannot be read: {error.strerror}") from None
    try:
        found = scan(data)
        check(found)
        if METADATA_KEY in found.metadata:
            raise ModelError("it has a contract inside: there is nothing to draft, `streamer inspect` shows it")
        files = external_files(path, found.external)
        inputs, outputs = nodes(path if files else data)
        fields = _fields(path, inputs, outputs)
    except ModelError as error:
        raise ModelError(f"the model {path}: {error}") from None
    return toml(fields, _notes(fields, f"Draft of the contract of {path.name}, made from its graph."))


def toml(fields: Mapping[str, Any], notes: Mapping[str, str]) -> str:
    """Fields as TOML; ``notes``: comments by field ("" for the whole, "states", "outputs[0].kind", ...)."""
    lines = [f"# {line}" for line in notes.get("", "").splitlines()]

    def line(key: str, value: Any, where: str) -> str:
        note = notes.get(where)
        return f"{key} = {_value(value)}" + (f"  # {note}" if note else "")

    for key, value in fields.items():
        if not (isinstance(value, list) and value and isinstance(value[0], Mapping)) and not isinstance(value, Mapping):
            lines.append(line(key, value, key))
    for key, value in fields.items():
        tables: list[Any] = value if isinstance(value, list) and value and isinstance(value[0], Mapping) else []
        tables = [value] if isinstance(value, Mapping) else tables
        for index, table in enumerate(tables):
            note = notes.get(key)
            lines += ["", *([f"# {note}"] if note and index == 0 else [])]
            lines.append(f"[{key}]" if isinstance(value, Mapping) else f"[[{key}]]")
            place = key if isinstance(value, Mapping) else f"{key}[{index}]"
            lines += [line(name, inner, f"{place}.{name}") for name, inner in table.items()]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    """A value in TOML; JSON's strings, numbers and lists are TOML's too."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(each) for each in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def _fields(path: Path, inputs: Sequence[Node], outputs: Sequence[Node]) -> dict[str, Any]:
    if not inputs or not outputs:
        raise ModelError("the graph has no inputs or no outputs: export it again")
    lengths = next((each for each in inputs if _is_lengths(each)), None)
    rest = [each for each in inputs if each is not lengths]
    event = next((each for each in rest if len(each.shape or ()) > 1), None)
    if event is None:
        raise ModelError("no input of the graph has rows of events (two axes or more): export it with a batch axis")
    names = _axis_names(event)
    pairs = _pairs([each for each in rest if each is not event], outputs)
    carried = {output.name for output in pairs.values()}
    fields: dict[str, Any] = {"name": path.stem, "version": "1", "mode": OPEN}
    if lengths is not None:
        fields["lengths"] = lengths.name
    fields["input"] = {"name": event.name, "shape": _shape(event, names), "dtype": _dtype(event)}
    if pairs:
        fields["states"] = [
            {
                "input": node.name,
                "output": pairs[node.name].name,
                "shape": _shape(node, names, time=False),
                "initial": "zeros",
            }
            for node in rest
            if node.name in pairs
        ]
    constants = {node.name: OPEN for node in rest if node is not event and node.name not in pairs}
    fields["outputs"] = [
        {"name": node.name, "shape": (shape := _shape(node, names)), "kind": "value" if _size(shape) == 1 else "vector"}
        for node in outputs
        if node.name not in carried
    ]
    if constants:
        fields["constants"] = constants
    return fields


def _notes(fields: Mapping[str, Any], title: str) -> dict[str, str]:
    names = [each["name"] for each in fields["outputs"]]
    notes = {
        "": f"{title}\n{OPEN} stands where you must decide; check every line with a remark, then save it beside the model"
        f" as {fields['name']}.toml.",
        "mode": "step: an answer for every event, states are carried on; window: an answer per closed window",
        "input.shape": 'check which axis is "batch" (the streams) and which is "time"; the numbers are the values of one event',
        "states": 'Each state: does this output hold the next value of this input, and which axis is "batch"?',
        "constants": "Inputs that are the same in every call, such as a sampling rate: give the value.",
    }
    for index, _ in enumerate(names):
        notes[f"outputs[{index}].kind"] = "value, vector, classes (then add labels = [...]) or score"
    return notes


def _is_lengths(node: Node) -> bool:
    return node.type in _INTEGERS and len(node.shape or ()) == 1 and bool(re.search(r"len", node.name, re.I))


def _axis_names(event: Node) -> dict[str, str]:
    """The names that the graph gives to the sizes of the event input, as batch and time."""
    symbols = [axis for axis in event.shape if isinstance(axis, str)]
    time = next((axis for axis in symbols if _TIME.search(axis)), None)
    batch = next((axis for axis in symbols if axis != time), None)
    if time is None and len(symbols) > 1:
        time = symbols[1]
    return {name: axis for name, axis in ((batch, "batch"), (time, "time")) if name is not None}


def _shape(node: Node, names: Mapping[str, str], *, time: bool = True) -> list[str | int]:
    """Declared axes: known names as they are, one axis of unknown size as the batch; what is left is open."""
    shape: list[str | int] = []
    for axis in node.shape or ():
        known = names.get(axis) if isinstance(axis, str) else None
        if isinstance(axis, int):
            shape.append(axis)
        elif known is not None and known not in shape and (time or known == "batch"):
            shape.append(known)
        else:
            shape.append("batch" if "batch" not in shape and "batch" not in _later(node, names) else OPEN)
    if "batch" not in shape and 1 in shape:
        shape[shape.index(1)] = "batch"
    return shape


def _later(node: Node, names: Mapping[str, str]) -> set[str]:
    return {names[axis] for axis in node.shape if isinstance(axis, str) and axis in names}


def _pairs(inputs: Iterable[Node], outputs: Sequence[Node]) -> dict[str, Node]:
    """Inputs that look like states, each with the output of the same sizes whose name is the most alike."""
    pairs: dict[str, Node] = {}
    for node in inputs:
        free = [
            each
            for each in outputs
            if each.type in _FLOATS and node.type in _FLOATS and _alike(node, each) and each not in pairs.values()
        ]
        if free:
            pairs[node.name] = max(free, key=lambda each: difflib.SequenceMatcher(None, node.name, each.name).ratio())
    return pairs


def _alike(one: Node, other: Node) -> bool:
    if len(one.shape or ()) != len(other.shape or ()):
        return False
    return all(
        a == b or not (isinstance(a, int) and isinstance(b, int)) for a, b in zip(one.shape, other.shape, strict=True)
    )


def _dtype(node: Node) -> str:
    dtype = DTYPES.get(node.type)
    return dtype.__name__ if dtype is not None else OPEN


def _size(shape: Sequence[str | int]) -> int:
    return prod(axis for axis in shape if isinstance(axis, int))
