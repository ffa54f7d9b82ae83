"""Protobuf values: bytes to the cells that are asked for, by descriptors that come at run time.

Parsed by Google's own library, which bounds nesting (100 levels) and never makes more of bytes than they hold. A field
that is not set is missing where its absence can be seen (``optional``, messages, members of a ``oneof``, proto2); else it
has the type's zero, as in every language. Wrappers (``DoubleValue``) are the number or text in them, a
``confluent.type.Decimal`` the nearest number, a ``google.protobuf.Timestamp`` an event's time in its own unit.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from typing import Any

from streamer.records.formats.layout import Steps
from streamer.records.meaning import NO_CELL, Cell
from streamer.records.schemas import protofile
from streamer.records.schemas.avro_types import MAX_DECIMAL_BYTES, MAX_SCALE, BadSchema
from streamer.records.schemas.book import Schema
from streamer.records.schemas.builtin import descriptor, library
from streamer.records.schemas.reader import Reader
from streamer.records.times import Moment
from streamer.records.unusable import Unusable, plain
from streamer.words import Reason, TimeUnit

_TIMESTAMP, _DECIMAL = "google.protobuf.Timestamp", "confluent.type.Decimal"
_WRAPPERS = frozenset(
    f"google.protobuf.{name}Value" for name in
    ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)  # fmt: skip
_FLOATS, _BOOL, _STRING, _MESSAGES, _BYTES, _ENUM = (1, 2), 8, 9, (10, 11), 12, 14
"""Types of fields, as descriptors number them; all others are integers"""
_KEYS = (
    dict.fromkeys((5, 15, 17), (-(1 << 31), (1 << 31) - 1)) | dict.fromkeys((7, 13), (0, (1 << 32) - 1))
    | dict.fromkeys((3, 16, 18), (-(1 << 63), (1 << 63) - 1)) | dict.fromkeys((4, 6), (0, (1 << 64) - 1))
)  # fmt: skip
"""Type of a map's integer keys -> the least and the largest"""
_INTEGER = re.compile(r"-?[0-9]{1,20}")
Get = Callable[[Any], Any]


def require_library() -> None:
    """ConfigurationError: Google's library is not installed, or not what comes in its extra with it. Asked for at the start:
    a record whose schema imports of it later would be a dead letter."""
    _library("descriptor_pool")
    library("google.type.date_pb2")


class Messages:
    """The messages of a file and of those that it needs."""

    def __init__(self, files: Sequence[Any], main: Any) -> None:
        """``files``: descriptors as messages, each after those that it needs. BadSchema: one is wrong, or missing."""
        self._main = main
        self._pool = _library("descriptor_pool").DescriptorPool()
        self._factory = _library("message_factory").GetMessageClass
        added: set[str] = set()
        for file in files:
            for needed in file.dependency:
                self._built_in(needed, added)
            try:
                if file.name not in added:
                    self._pool.Add(file)
                    self._pool.FindFileByName(file.name)
                added.add(file.name)
            except (TypeError, KeyError, ValueError) as error:
                raise BadSchema(plain(f"{file.name}: {error}")) from None

    @classmethod
    def of(cls, schema: Schema) -> Messages:
        """Of a registry's document: the source text of a .proto file, or a descriptor in base64."""
        files = [_file(text, name) for name, text in schema.references]
        main = _file(schema.text, "")
        return cls([*files, main], main)

    @classmethod
    def of_set(cls, document: bytes) -> Messages:
        """Of what ``protoc --descriptor_set_out`` wrote."""
        try:
            found = _library("descriptor_pb2").FileDescriptorSet.FromString(document)
        except Exception as error:  # the library's own, which has no name without it
            raise BadSchema(plain(f"is no set of descriptors (protoc --descriptor_set_out): {error}")) from None
        if not found.file:
            raise BadSchema("is a set of no descriptors")
        return cls(found.file, found.file[-1])

    def named(self, name: str) -> Any:
        """The class of a message. BadSchema: there is none of that name."""
        try:
            return self._factory(self._pool.FindMessageTypeByName(name))
        except KeyError:
            known = ", ".join(sorted(self._names(self._main.package, self._main.message_type)))
            raise BadSchema(plain(f"has no message {name!r} (input.message), it has {known}")) from None

    def at(self, indexes: tuple[int, ...]) -> Any:
        """The class of the message that indexes lead to, from the outside in. BadSchema: there is none."""
        name, inner = self._main.package, self._main.message_type
        for index in indexes:
            if not 0 <= index < len(inner):
                raise BadSchema(f"the file has no message at {list(indexes)}")
            name = f"{name}.{inner[index].name}".lstrip(".")
            inner = inner[index].nested_type
        return self.named(name)

    def _names(self, prefix: str, messages: Sequence[Any]) -> list[str]:
        found = []
        for each in messages:
            name = f"{prefix}.{each.name}".lstrip(".")
            found += [name, *self._names(name, each.nested_type)]
        return found

    def _built_in(self, name: str, added: set[str]) -> None:
        file = None if name in added else descriptor(name)
        if file is None:
            return
        for needed in file.dependency:
            self._built_in(needed, added)
        self._pool.Add(file)
        added.add(name)


def protobuf_reader(message: Any, paths: Sequence[Steps], time: int | None, unit: TimeUnit) -> Reader:
    """``message``: a class. ``time``: which of ``paths`` is the event's time, in ``unit`` unless the field says its own.

    BadSchema: a path leads into what has no fields."""
    compiler = _Compiler(time)
    gets = [compiler.get(message.DESCRIPTOR, path, leaf, "") for leaf, path in enumerate(paths)]
    parse = message.FromString
    error_type = _library("message").DecodeError

    def cells(value: bytes, at: int) -> list[Cell]:
        try:
            found = parse(value[at:] if at else value)
            return [get(found) for get in gets]
        except error_type as error:
            raise Unusable(Reason.UNDECODABLE, plain(error)) from None
        except UnicodeDecodeError as error:
            raise Unusable(Reason.UNDECODABLE, plain(f"a text: {error}")) from None

    return Reader(cells, [frozenset(each) for each in compiler.kinds(len(paths))], moments=compiler.moments)


class _Compiler:
    """Paths to functions that ask a message."""

    def __init__(self, time: int | None) -> None:
        self._time = time
        self._kinds: dict[int, set[str]] = {}
        self.moments = False
        """The event's time says its own unit"""

    def kinds(self, count: int) -> list[set[str]]:
        return [{"null"} | self._kinds.get(leaf, set()) for leaf in range(count)]

    def get(self, kind: Any, path: Steps, leaf: int, where: str) -> Get:
        """``kind``: descriptor of a message."""
        if not path:
            return self._whole(kind, leaf)
        step, *rest = path
        if isinstance(step, int):
            raise BadSchema(f"{where or 'the value'} is a message {kind.full_name}, not a list")
        field = kind.fields_by_name.get(step) or kind.fields_by_camelcase_name.get(step)
        if field is None:
            return lambda message: None
        return self._field(field, tuple(rest), leaf, f"{where}.{step}".lstrip("."))

    def _field(self, field: Any, rest: Steps, leaf: int, where: str) -> Get:
        name = field.name
        if not field.is_repeated:
            inner = self._one(field, rest, leaf, where)
            if not field.has_presence or field.has_default_value:
                return lambda message: inner(getattr(message, name))
            return lambda message: inner(getattr(message, name)) if message.HasField(name) else None
        if not rest:
            self._may_be(leaf, "other")
            return lambda message: NO_CELL
        step, *behind = rest
        if field.type in _MESSAGES and field.message_type.GetOptions().map_entry:
            key = _key(field.message_type.fields_by_name["key"], step, where)
            inner = self._one(field.message_type.fields_by_name["value"], tuple(behind), leaf, where)
            return lambda message: inner(getattr(message, name)[key]) if key in getattr(message, name) else None
        if not isinstance(step, int):
            raise BadSchema(f"{where} is a list: write {where}[0] or another place in it")
        item = self._one(field, tuple(behind), leaf, where)
        return lambda message: item(getattr(message, name)[step]) if step < len(getattr(message, name)) else None

    def _one(self, field: Any, rest: Steps, leaf: int, where: str) -> Get:
        """Of one value of a field."""
        if field.type in _MESSAGES:
            return self.get(field.message_type, rest, leaf, where)
        if rest:
            raise BadSchema(f"{where} is no message, and has no fields")
        if field.type == _BYTES:
            self._may_be(leaf, "other")
            return lambda value: NO_CELL
        if field.type == _ENUM:
            self._may_be(leaf, "str", "int")
            names = {each.number: each.name for each in reversed(field.enum_type.values)}
            return lambda value: names.get(value, value)
        self._may_be(leaf, "float" if field.type in _FLOATS else {_BOOL: "bool", _STRING: "str"}.get(field.type, "int"))
        return _same

    def _whole(self, kind: Any, leaf: int) -> Get:
        """A message that is asked for as one cell."""
        if kind.full_name in _WRAPPERS:
            inner = self._one(kind.fields_by_name["value"], (), leaf, "value")
            return lambda value: inner(value.value)
        if kind.full_name == _DECIMAL:
            self._may_be(leaf, "float", "int")
            return _decimal
        self._may_be(leaf, "other")
        if kind.full_name == _TIMESTAMP and leaf == self._time:
            self.moments = True
            return lambda value: Moment.of(value.seconds * 1_000 + value.nanos // 1_000_000, TimeUnit.MS)
        return lambda value: NO_CELL

    def _may_be(self, leaf: int, *kinds: str) -> None:
        self._kinds.setdefault(leaf, set()).update(kinds)


def _same(value: Any) -> Any:
    return value


def _decimal(found: Any) -> Cell:
    """The number nearest to a decimal. Unusable: it is larger than any that somebody means."""
    size, scale = len(found.value), found.scale
    if size > MAX_DECIMAL_BYTES or abs(scale) > MAX_SCALE:
        told = f"a decimal of {size} bytes and scale {scale}, at most {MAX_DECIMAL_BYTES} bytes and scale {MAX_SCALE} are read"
        raise Unusable(Reason.UNDECODABLE, told)
    unscaled = int.from_bytes(found.value, "big", signed=True)
    number: int | float = unscaled / 10**scale if scale > 0 else unscaled * 10**-scale
    return number


def _key(field: Any, step: str | int, where: str) -> str | int:
    """What a map is asked with. BadSchema: it has no such key, whatever a value says."""
    if field.type == _STRING:
        return str(step)
    if field.type == _BOOL:
        if step not in ("true", "false"):
            raise BadSchema(f"{where} is a map whose keys are true and false: {step!r} is none of them")
        return step == "true"
    least, most = _KEYS[field.type]
    if not _INTEGER.fullmatch(str(step)) or not least <= int(step) <= most:
        raise BadSchema(f"{where} is a map whose keys are integers from {least} to {most}: {step!r} is none of them")
    return int(step)


def _file(text: str, name: str) -> Any:
    """A file's descriptor as a message. BadSchema: it is neither source nor a descriptor in base64."""
    pb2 = _library("descriptor_pb2")
    try:
        found = pb2.FileDescriptorProto.FromString(base64.b64decode(text.strip(), validate=True))
    except (binascii.Error, ValueError, _library("message").DecodeError):
        found = protofile.parse(text, pb2)
    if name or not found.name:
        found.name = name or "schema.proto"
    return found


def _library(name: str) -> Any:
    return library(f"google.protobuf.{name}")
