"""Looks into an ONNX file without a protobuf library: what must be known before anything in it is loaded or run.

Only lengths are read of weights, so a file of any size is walked in milliseconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from streamer.errors import ModelError

# Operator sets that ONNX Runtime itself brings along; anything else needs a library of custom operators.
BUILT_IN_DOMAINS = frozenset(
    {"", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview", "ai.onnx.preview.training", "com.microsoft"}
)
_RECURRENT = frozenset({"RNN", "LSTM", "GRU"})
_MAX_NESTING = 32

# Field numbers of onnx.proto
_MODEL_GRAPH, _MODEL_METADATA, _MODEL_FUNCTIONS = 7, 14, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_FUNCTION_NAME, _FUNCTION_NODE, _FUNCTION_DOMAIN = 1, 7, 10
_NODE_NAME, _NODE_OP, _NODE_ATTRIBUTE, _NODE_DOMAIN = 3, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH = 1, 3, 5, 6
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES = 10, 11, 22, 23
_SPARSE_VALUES, _SPARSE_INDICES = 1, 2
_TENSOR_EXTERNAL = 13
_KEY, _VALUE = 1, 2


@dataclass(slots=True)
class GraphFile:
    """What an ONNX file says beside its graph's signature."""

    metadata: dict[str, bytes] = field(default_factory=dict)
    external: set[str] = field(default_factory=set)
    """Locations of tensors that are stored in other files, as written in the file."""
    custom: set[str] = field(default_factory=set)
    """``domain.Operator`` that neither ONNX Runtime nor the file itself defines."""
    batch_major: set[str] = field(default_factory=set)
    """Recurrent nodes with layout=1, ``Operator node-name``."""


def scan(data: bytes) -> GraphFile:
    """Walks the bytes of an ONNX file. ModelError if they are not one."""
    found = GraphFile()
    functions: set[tuple[str, str]] = set()
    used: set[tuple[str, str]] = set()
    try:
        graphs = 0
        for number, value in _fields(memoryview(data)):
            if number == _MODEL_METADATA and isinstance(value, memoryview):
                key, content = _entry(value)
                found.metadata[key] = content
            elif number == _MODEL_GRAPH and isinstance(value, memoryview):
                graphs += 1
                _graph(value, found, used, 0)
            elif number == _MODEL_FUNCTIONS and isinstance(value, memoryview):
                functions.add(_function(value, found, used))
    except (ValueError, IndexError):
        raise ModelError("the file is not an ONNX model, or it is cut off: export or copy it again") from None
    if graphs != 1:
        raise ModelError("the file is not an ONNX model (it holds no graph): export or copy it again")
    found.custom = {
        f"{domain}.{op}" for domain, op in used if domain not in BUILT_IN_DOMAINS and (domain, op) not in functions
    }
    return found


def check(found: GraphFile) -> None:
    """Refuses what ONNX Runtime cannot run. ModelError names the node and says what to do."""
    if found.batch_major:
        raise ModelError(
            f"{', '.join(sorted(found.batch_major))} has layout=1 (batch first), which ONNX Runtime does not support:"
            " export it with layout=0 and transpose its input and output instead"
        )
    if found.custom:
        raise ModelError(
            f"the graph uses the custom operators {', '.join(sorted(found.custom))}, which are refused because they"
            " would run foreign native code: export the model with standard ONNX operators"
        )


def external_files(path: Path, locations: set[str]) -> list[Path]:
    """The files that hold external tensors, in order of their names. ModelError for one outside the model's folder."""
    folder = path.resolve().parent
    files = []
    for location in sorted(locations):
        file = (folder / location).resolve()
        if Path(location).is_absolute() or not file.is_relative_to(folder):
            raise ModelError(
                f"the external tensor file {location!r} lies outside the model's folder, which is refused:"
                " save the model as one file, or put the tensor file beside it"
            )
        if not file.is_file():
            raise ModelError(f"the external tensor file {location!r} is missing: copy it beside {path.name}")
        files.append(file)
    return files


def digest(data: bytes, files: list[Path]) -> str:
    """SHA-256 in hex of the model file, followed by its external tensor files if it has any."""
    total = hashlib.sha256(data)
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("varint")


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind == 2:
            size, at = _varint(data, at)
            if at + size > end:
                raise ValueError("cut off")
            yield tag >> 3, data[at : at + size]
            at += size
        else:
            raise ValueError("wire type")
    if at != end:
        raise ValueError("cut off")


def _entry(data: memoryview) -> tuple[str, bytes]:
    values = {number: bytes(value) for number, value in _fields(data) if isinstance(value, memoryview)}
    return values.get(_KEY, b"").decode(), values.get(_VALUE, b"")


def _function(data: memoryview, found: GraphFile, used: set[tuple[str, str]]) -> tuple[str, str]:
    name = domain = ""
    for number, value in _fields(data):
        if not isinstance(value, memoryview):
            continue
        if number == _FUNCTION_NAME:
            name = bytes(value).decode()
        elif number == _FUNCTION_DOMAIN:
            domain = bytes(value).decode()
        elif number == _FUNCTION_NODE:
            _node(value, found, used, 0)
    return domain, name


def _graph(data: memoryview, found: GraphFile, used: set[tuple[str, str]], depth: int) -> None:
    if depth > _MAX_NESTING:
        raise ValueError("nesting")
    for number, value in _fields(data):
        if not isinstance(value, memoryview):
            continue
        if number == _GRAPH_NODE:
            _node(value, found, used, depth)
        elif number == _GRAPH_INITIALIZER:
            _tensor(value, found)
        elif number == _GRAPH_SPARSE:
            _sparse(value, found)


def _node(data: memoryview, found: GraphFile, used: set[tuple[str, str]], depth: int) -> None:
    name = operator = domain = ""
    layout = 0
    for number, value in _fields(data):
        if not isinstance(value, memoryview):
            continue
        if number == _NODE_NAME:
            name = bytes(value).decode()
        elif number == _NODE_OP:
            operator = bytes(value).decode()
        elif number == _NODE_DOMAIN:
            domain = bytes(value).decode()
        elif number == _NODE_ATTRIBUTE:
            key, integer = _attribute(value, found, used, depth)
            layout = integer if key == "layout" else layout
    used.add((domain, operator))
    if operator in _RECURRENT and layout == 1:
        found.batch_major.add(f"{operator} {name}".rstrip())


def _attribute(data: memoryview, found: GraphFile, used: set[tuple[str, str]], depth: int) -> tuple[str, int]:
    key, integer = "", 0
    for number, value in _fields(data):
        if isinstance(value, int):
            integer = value if number == _ATTRIBUTE_INT else integer
        elif number == _ATTRIBUTE_NAME:
            key = bytes(value).decode()
        elif number in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
            _tensor(value, found)
        elif number in (_ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES):
            _sparse(value, found)
        elif number in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
            _graph(value, found, used, depth + 1)
    return key, integer


def _sparse(data: memoryview, found: GraphFile) -> None:
    for number, value in _fields(data):
        if number in (_SPARSE_VALUES, _SPARSE_INDICES) and isinstance(value, memoryview):
            _tensor(value, found)


def _tensor(data: memoryview, found: GraphFile) -> None:
    for number, value in _fields(data):
        if number == _TENSOR_EXTERNAL and isinstance(value, memoryview):
            key, content = _entry(value)
            if key == "location":
                found.external.add(content.decode())
