"""The client's schemas as functions: dictionaries by field name to bytes and back, numbers side by side in one go.

A quarter of a run went into reading and writing on the cluster's side, field by field. Where this and the client disagree, the
client could not read the answer."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache
from io import BytesIO
from typing import Any

from aiokafka.protocol import types

_CODES = {
    types.Int8: "b", types.Int16: "h", types.Int32: "i", types.UInt32: "I", types.Int64: "q", types.Float64: "d",
    types.Boolean: "?",
}  # fmt: skip
Reader = Callable[[bytes, int], tuple[Any, int]]
Writer = Callable[[Any, list[bytes]], None]
_SHORT, _INT = struct.Struct(">h"), struct.Struct(">i")


def _runs(schema: Any) -> list[Any]:
    """Fields, where neighbours of fixed size are one entry: (names, structure)."""
    result: list[Any] = []
    names: list[str] = []
    codes = ""
    for name, field in zip(schema.names, schema.fields, strict=True):
        if isinstance(field, type) and field in _CODES:
            names.append(name)
            codes += _CODES[field]
            continue
        if names:
            result.append((tuple(names), struct.Struct(">" + codes)))
            names, codes = [], ""
        result.append((name, field))
    if names:
        result.append((tuple(names), struct.Struct(">" + codes)))
    return result


@cache
def writer(schema: Any) -> Writer:
    """What is not given is zero, empty or null."""
    parts: list[Callable[[dict[str, Any], list[bytes]], None]] = []
    for name, field in _runs(schema):
        parts.append(_numbers(name, field) if isinstance(name, tuple) else _named(name, _write(field)))

    def write(fields: dict[str, Any], out: list[bytes]) -> None:
        for part in parts:
            part(fields, out)

    return write


def _numbers(names: tuple[str, ...], packed: struct.Struct) -> Callable[[dict[str, Any], list[bytes]], None]:
    def write(fields: dict[str, Any], out: list[bytes]) -> None:
        get = fields.get
        out.append(packed.pack(*[get(name, 0) for name in names]))

    return write


def _named(name: str, write: Writer) -> Callable[[dict[str, Any], list[bytes]], None]:
    return lambda fields, out: write(fields.get(name), out)


def _write(field: Any) -> Writer:
    if isinstance(field, types.Array):
        compact = isinstance(field, types.CompactArray)
        inner = writer(field.array_of) if isinstance(field.array_of, types.Schema) else _write(field.array_of)

        def rows(value: Any, out: list[bytes]) -> None:
            value = value or ()
            out.append(types.UnsignedVarInt32.encode(len(value) + 1) if compact else _INT.pack(len(value)))
            for each in value:
                inner(each, out)

        return rows
    if isinstance(field, types.CompactString):
        return lambda value, out: out.append(field.encode(value))
    if isinstance(field, types.String):

        def text(value: Any, out: list[bytes]) -> None:
            if value is None:
                out.append(b"\xff\xff")
            else:
                data = value.encode()
                out.append(_SHORT.pack(len(data)))
                out.append(data)

        return text
    empty: Any = {} if field is types.TaggedFields else b"" if field is types.Bytes else 0
    return lambda value, out: out.append(field.encode(empty if value is None else value))


@cache
def reader(schema: Any) -> Reader:
    parts: list[tuple[Any, Any]] = []
    for name, field in _runs(schema):
        parts.append((name, field) if isinstance(name, tuple) else (name, _read(field)))

    def read(data: bytes, at: int) -> tuple[dict[str, Any], int]:
        result: dict[str, Any] = {}
        for name, part in parts:
            if name.__class__ is tuple:
                result.update(zip(name, part.unpack_from(data, at), strict=True))
                at += part.size
            else:
                result[name], at = part(data, at)
        return result, at

    return read


def _read(field: Any) -> Reader:
    if isinstance(field, types.Array) and not isinstance(field, types.CompactArray):
        inner = reader(field.array_of) if isinstance(field.array_of, types.Schema) else _read(field.array_of)

        def rows(data: bytes, at: int) -> tuple[Any, int]:
            count = _INT.unpack_from(data, at)[0]
            at += 4
            if count < 0:
                return None, at
            found = []
            for _ in range(count):
                each, at = inner(data, at)
                found.append(each)
            return found, at

        return rows
    if isinstance(field, types.String) and not isinstance(field, types.CompactString):

        def text(data: bytes, at: int) -> tuple[Any, int]:
            size = _SHORT.unpack_from(data, at)[0]
            at += 2
            return (None, at) if size < 0 else (data[at : at + size].decode(), at + size)

        return text
    if isinstance(field, types.Schema):
        return reader(field)

    def other(data: bytes, at: int) -> tuple[Any, int]:
        stream = BytesIO(data)
        stream.seek(at)
        value = field.decode(stream)
        inner = getattr(field, "array_of", None)
        if isinstance(inner, types.Schema) and value is not None:
            value = [named(inner, each) for each in value]
        return value, stream.tell()

    return other


def named(schema: Any, values: Any) -> dict[str, Any]:
    """What the client decoded, by field name."""
    result = {}
    for name, field, value in zip(schema.names, schema.fields, values, strict=True):
        inner = getattr(field, "array_of", None)
        rows = isinstance(inner, types.Schema) and value is not None
        result[name] = [named(inner, each) for each in value] if rows else value
    return result
