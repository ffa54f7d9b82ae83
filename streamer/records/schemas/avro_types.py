"""Avro schemas: a document becomes a graph of types, or a sentence that says what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from streamer.records.formats import json_tokens
from streamer.records.unusable import plain

PRIMITIVE = ("null", "boolean", "int", "long", "float", "double", "bytes", "string")
MAX_NESTING = 64
"""Levels of a document."""
MAX_SIZE_BYTES = 1 << 20
"""Of a fixed."""
MAX_DECIMAL_BYTES = 64
MAX_SCALE = 300
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
NO_DEFAULT = object()


class BadSchema(ValueError):
    """The document is no schema, or cannot be read as what is asked. Its text is a sentence."""


@dataclass(eq=False)
class Type:
    """One type. Named ones may contain themselves."""

    kind: str
    """A primitive, or record, enum, array, map, union, fixed"""
    name: str = ""
    """Full name of a record, enum or fixed"""
    aliases: tuple[str, ...] = ()
    """Full names as well"""
    fields: list[Field] = field(default_factory=list)
    symbols: tuple[str, ...] = ()
    default: str | None = None
    """Of an enum: what stands for a symbol that a reader does not know"""
    inner: list[Type] = field(default_factory=list)
    """Items, values, or the branches of a union"""
    size: int = 0
    logical: str = ""
    scale: int = 0

    @property
    def told(self) -> str:
        """For people."""
        return f"{self.kind} {self.name}".strip()


@dataclass(eq=False)
class Field:
    name: str
    type: Type
    aliases: tuple[str, ...] = ()
    default: Any = NO_DEFAULT


def parse(text: str, references: Sequence[tuple[str, str]] = ()) -> Type:
    """The type of a document. ``references``: (name, document) of types that it refers to, each after those that it needs.

    BadSchema: it is none."""
    named: dict[str, Type] = {}
    for _, each in references:
        _Parser(named).parse(_document(each), "", 0)
    return _Parser(named).parse(_document(text), "", 0)


def _document(text: str) -> Any:
    raw = text.encode("utf-8", "backslashreplace")
    if json_tokens.too_deep(raw):
        raise BadSchema("the document is nested too deep")
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        if text.strip() in PRIMITIVE:
            return text.strip()
        raise BadSchema("the document is no JSON") from None


class _Parser:
    def __init__(self, named: dict[str, Type]) -> None:
        self._named = named

    def parse(self, written: Any, namespace: str, depth: int) -> Type:
        if depth > MAX_NESTING:
            raise BadSchema(f"the document is nested deeper than {MAX_NESTING} levels")
        if isinstance(written, str):
            return self._by_name(written, namespace)
        if isinstance(written, list):
            return self._union(written, namespace, depth)
        if not isinstance(written, dict):
            raise BadSchema(plain(f"{str(written)[:80]!r} is no type"))
        kind = written.get("type")
        if not isinstance(kind, str):
            return self.parse(kind, namespace, depth + 1)
        if kind in ("record", "error"):
            return self._record(written, namespace, depth)
        if kind == "enum":
            return self._enum(written, namespace)
        if kind == "fixed":
            size = written.get("size")
            if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_SIZE_BYTES:
                raise BadSchema(f"a fixed has no size between 0 and {MAX_SIZE_BYTES}")
            made = self._new("fixed", written, namespace)
            made.size = size
            return _logical(made, written)
        if kind in ("array", "map"):
            if "items" not in written and "values" not in written:
                raise BadSchema(f"an {kind} does not say of what it is made")
            return Type(
                kind, inner=[self.parse(written.get("items" if kind == "array" else "values"), namespace, depth + 1)]
            )
        if kind in PRIMITIVE:
            return _logical(Type(kind), written)
        return self._by_name(kind, namespace)

    def _by_name(self, name: str, namespace: str) -> Type:
        if name in PRIMITIVE:
            return Type(name)
        found = self._named.get(_qualified(name, namespace)) or self._named.get(name)
        if found is None:
            raise BadSchema(plain(f"the type {name[:80]!r} is not defined"))
        return found

    def _union(self, written: list[Any], namespace: str, depth: int) -> Type:
        branches = [self.parse(each, namespace, depth + 1) for each in written]
        keys = [each.name or each.kind for each in branches]
        if not branches or len(set(keys)) < len(keys) or "union" in keys:
            raise BadSchema("a union is empty, holds one type twice, or another union")
        return Type("union", inner=branches)

    def _new(self, kind: str, written: Mapping[str, Any], namespace: str) -> Type:
        name, own = written.get("name"), written.get("namespace")
        if not isinstance(name, str) or not all(map(_NAME.fullmatch, name.split("."))):
            raise BadSchema(plain(f"a {kind} is named {str(name)[:80]!r}"))
        space = own if isinstance(own, str) else namespace
        full = _qualified(name, space)
        if full in self._named or full in PRIMITIVE:
            raise BadSchema(f"the type {full!r} is defined twice")
        own_space = full.rpartition(".")[0]
        aliases = tuple(_qualified(each, own_space) for each in _names(written.get("aliases")))
        made = self._named[full] = Type(kind, full, aliases)
        return made

    def _record(self, written: Mapping[str, Any], namespace: str, depth: int) -> Type:
        made = self._new("record", written, namespace)
        fields = written.get("fields")
        if not isinstance(fields, list):
            raise BadSchema(f"record {made.name} has no list of fields")
        space = made.name.rpartition(".")[0]
        for each in fields:
            if not isinstance(each, dict) or not isinstance(each.get("name"), str) or "type" not in each:
                raise BadSchema(f"record {made.name}: a field has no name or no type")
            default = each.get("default", NO_DEFAULT)
            made.fields.append(
                Field(each["name"], self.parse(each["type"], space, depth + 1), _names(each.get("aliases")), default)
            )
        if len({each.name for each in made.fields}) < len(made.fields):
            raise BadSchema(f"record {made.name} has two fields of one name")
        return made

    def _enum(self, written: Mapping[str, Any], namespace: str) -> Type:
        made = self._new("enum", written, namespace)
        symbols, default = written.get("symbols"), written.get("default")
        made.symbols = _names(symbols)
        if not isinstance(symbols, list) or len(set(made.symbols)) < max(len(symbols), 1):
            raise BadSchema(f"enum {made.name} has no list of different symbols")
        made.default = default if default in made.symbols else None
        return made


def _qualified(name: str, namespace: str) -> str:
    return name if "." in name or not namespace else f"{namespace}.{name}"


def _names(written: Any) -> tuple[str, ...]:
    return tuple(each for each in written if isinstance(each, str)) if isinstance(written, list) else ()


def _logical(made: Type, written: Mapping[str, Any]) -> Type:
    """A logical type that is not valid is none, as the specification says."""
    logical, scale = written.get("logicalType"), written.get("scale", 0)
    if not isinstance(logical, str):
        return made
    if logical == "decimal" and (type(scale) is not int or not 0 <= scale <= MAX_SCALE):
        return made
    made.logical, made.scale = logical, scale if logical == "decimal" else 0
    return made
