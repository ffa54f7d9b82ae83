"""Source text of a .proto file: a descriptor is made of it, as far as values need one (options but ``packed`` are left out).

Registries keep the source. The grammar is that of proto2, proto3 and editions' common part: messages, enums, maps,
``oneof``, groups are refused, services and extensions are passed over.
"""

from __future__ import annotations

import re
from typing import Any

from streamer.records.schemas.avro_types import BadSchema
from streamer.records.unusable import plain

MAX_NESTING = 32
_TOKEN = re.compile(
    r"""\s+|//[^\n]*|/\*.*?\*/|(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')"""
    r"""|(?P<word>\.?[0-9](?:[eE][+-](?=[0-9])|[A-Za-z0-9_.])*|[A-Za-z0-9_.]+)|(?P<sign>[{}()\[\]<>=;,:/+-])""",
    re.DOTALL,
)
_OCTAL = re.compile(r"-?0[0-7]+")
_ESCAPE = re.compile(
    r"\\(?P<octal>[0-7]{1,3})|\\[xX](?P<hex>[0-9A-Fa-f]{1,2})|(?P<utf16>(?:\\u[0-9A-Fa-f]{4})+)"
    r"|\\U(?P<utf32>[0-9A-Fa-f]{8})|\\(?P<other>.)",
    re.DOTALL,
)
_ESCAPED = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_QUOTES = ("'", '"')
_BYTES = 12
_SCALARS = {
    "double": 1, "float": 2, "int64": 3, "uint64": 4, "int32": 5, "fixed64": 6, "fixed32": 7, "bool": 8, "string": 9,
    "bytes": 12, "uint32": 13, "sfixed32": 15, "sfixed64": 16, "sint32": 17, "sint64": 18,
}  # fmt: skip
_OPEN, _CLOSED = ("[", "{", "("), ("]", "}", ")")
_LABELS = {"optional": 1, "required": 2, "repeated": 3}


def parse(text: str, pb2: Any) -> Any:
    """A FileDescriptorProto without name. ``pb2``: the library's ``descriptor_pb2``. BadSchema: it is no such file."""
    # no halves of surrogates, no mark at its beginning
    plain_text = text.encode("utf-8", "backslashreplace").decode("utf-8-sig")
    return _Parser(_tokens(plain_text), pb2).file()


def _tokens(text: str) -> list[str]:
    found, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise BadSchema(plain(f"is no .proto file: {text[at : at + 40]!r} at character {at}"))
        if match.lastgroup is not None:
            found.append(match[0])
        at = match.end()
    return found


class _Parser:
    def __init__(self, tokens: list[str], pb2: Any) -> None:
        self._tokens, self._at, self._pb2 = tokens, 0, pb2
        self._proto3 = False

    def file(self) -> Any:
        file = self._pb2.FileDescriptorProto(syntax="proto2")
        while self._at < len(self._tokens):
            word = self._next()
            if word == "syntax":
                self._expect("=")
                file.syntax = self._text()
                self._proto3 = file.syntax == "proto3"
                if file.syntax not in ("proto2", "proto3"):
                    raise BadSchema(plain(f"its syntax is {file.syntax[:40]!r}, not proto2 or proto3"))
                self._expect(";")
            elif word == "edition":
                raise BadSchema("it is of an edition: only proto2 and proto3 are read from source")
            elif word == "package":
                file.package = self._name(self._next())
                self._expect(";")
            elif word == "import":
                if self._peek() == "public":
                    file.public_dependency.append(len(file.dependency))
                if self._peek() in ("public", "weak"):
                    self._next()
                file.dependency.append(self._text())
                self._expect(";")
            elif word == "message":
                self._message(file.message_type.add(), 0)
            elif word == "enum":
                self._enum(file.enum_type.add())
            elif word in ("option", "service", "extend"):
                self._pass()
            elif word != ";":
                raise BadSchema(plain(f"{word[:40]!r} is not expected in a .proto file"))
        return file

    def _message(self, message: Any, depth: int) -> None:
        if depth > MAX_NESTING:
            raise BadSchema("messages are nested too deep")
        message.name = self._next()
        self._expect("{")
        while (word := self._next()) != "}":
            if word == "message":
                self._message(message.nested_type.add(), depth + 1)
            elif word == "enum":
                self._enum(message.enum_type.add())
            elif word == "oneof":
                self._oneof(message)
            elif word in ("option", "extensions", "reserved", "extend"):
                self._pass()
            elif word == "map" and self._peek() == "<":
                self._map(message)
            elif word != ";":
                self._field(message, word)
        _number_optionals(message)

    def _field(self, message: Any, word: str, oneof: int | None = None) -> None:
        field = message.field.add(label=_LABELS.get(word, 1))
        if oneof is not None:
            field.oneof_index = oneof
        optional = word == "optional"
        if word in _LABELS:
            word = self._next()
        if word == "group":
            raise BadSchema("groups are not read from source")
        self._type(field, word)
        field.name = self._next()
        if default := self._numbered(field):
            field.default_value = _default(default, field.type)
        if optional and self._proto3:
            field.proto3_optional = True

    def _type(self, field: Any, word: str) -> None:
        if word in _SCALARS:
            field.type = _SCALARS[word]
        else:
            field.type_name = self._name(word)  # a message or an enum: the pool finds out which

    def _numbered(self, made: Any) -> list[str]:
        """The number of a field, or of a word of an enum, and its options. The words of its default, where it has one."""
        self._expect("=")
        sign = self._next() if self._peek() == "-" else ""
        made.number = _integer(sign + self._next())
        default = self._options() if self._peek() == "[" else []
        self._expect(";")
        return default

    def _options(self) -> list[str]:
        """``packed`` is read by either form of values; a default of proto2 is what stands for an absent field."""
        default: list[str] = []
        ended = self._next()
        while ended != "]":
            name, _ = self._until("=")
            value, ended = self._until(",", "]")
            if name == ["default"]:
                default = value
        return default

    def _oneof(self, message: Any) -> None:
        index = len(message.oneof_decl)
        message.oneof_decl.add(name=self._next())
        self._expect("{")
        while (word := self._next()) != "}":
            if word == "option":
                self._pass()
            elif word != ";":
                self._field(message, word, index)

    def _map(self, message: Any) -> None:
        self._expect("<")
        key = self._next()
        self._expect(",")
        value = self._name(self._next())
        self._expect(">")
        name = self._next()
        entry = message.nested_type.add(name="".join(each[:1].upper() + each[1:] for each in name.split("_")) + "Entry")
        entry.options.map_entry = True
        if key not in _SCALARS:
            raise BadSchema(plain(f"a map has keys of type {key[:40]!r}"))
        entry.field.add(name="key", number=1, label=1, type=_SCALARS[key])
        self._type(entry.field.add(name="value", number=2, label=1), value)
        field = message.field.add(name=name, label=3, type_name=entry.name)
        self._numbered(field)

    def _enum(self, enum: Any) -> None:
        enum.name = self._next()
        self._expect("{")
        while (word := self._next()) != "}":
            if word in ("option", "reserved"):
                if word == "option" and "allow_alias" in self._tokens[self._at : self._at + 1]:
                    enum.options.allow_alias = True
                self._pass()
            elif word != ";":
                value = enum.value.add(name=word)
                self._numbered(value)

    def _pass(self) -> None:
        """To the end of a statement, or of its braces."""
        self._until(";", "}")

    def _until(self, *ends: str) -> tuple[list[str], str]:
        """All words up to one of ``ends`` outside of all brackets, or that closes the last of them; and which it was."""
        depth, words = 0, list[str]()
        while True:
            word = self._next()
            depth += (word in _OPEN) - (word in _CLOSED)
            if word in ends and depth <= 0:
                return words, word
            if depth < 0:
                raise BadSchema(plain(f"is no .proto file: {word!r} where {ends[0]!r} is expected"))
            words.append(word)

    def _name(self, word: str) -> str:
        """With what belongs to it: there may be spaces beside its dots."""
        while word.endswith(".") or self._peek().startswith("."):
            word += self._next()
        return word

    def _text(self) -> str:
        words = [self._next()]
        while self._peek().startswith(_QUOTES):
            words.append(self._next())
        return _unquoted(words).decode("utf-8", "backslashreplace")

    def _next(self) -> str:
        if self._at >= len(self._tokens):
            raise BadSchema("the .proto file ends early")
        self._at += 1
        return self._tokens[self._at - 1]

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _expect(self, sign: str) -> None:
        if (word := self._next()) != sign:
            raise BadSchema(plain(f"is no .proto file: {word[:40]!r} where {sign!r} is expected"))


def _number_optionals(message: Any) -> None:
    """proto3's ``optional`` is a oneof of one field, after those that are written."""
    for field in message.field:
        if field.proto3_optional and not field.HasField("oneof_index"):
            field.oneof_index = len(message.oneof_decl)
            message.oneof_decl.add(name=f"_{field.name}")


def _default(words: list[str], kind: int) -> str:
    """As descriptors have it: texts as they are, bytes with C's escapes, all else as it is written."""
    if not words[0].startswith(_QUOTES):
        return "".join(words)
    found = _unquoted(words)
    if kind != _BYTES:
        return found.decode("utf-8", "backslashreplace")
    return "".join(chr(byte) if 32 <= byte < 127 and byte not in b"\\\"'" else f"\\{byte:03o}" for byte in found)


def _unquoted(words: list[str]) -> bytes:
    """Texts that stand beside each other are one."""
    return b"".join(_unescaped(word[1:-1]) if word.startswith(_QUOTES) else word.encode() for word in words)


def _unescaped(text: str) -> bytes:
    found, at = list[bytes](), 0
    for escape in _ESCAPE.finditer(text):
        found += [text[at : escape.start()].encode(), _byte_or_character(escape)]
        at = escape.end()
    return b"".join([*found, text[at:].encode()])


def _byte_or_character(escape: re.Match[str]) -> bytes:
    if escape["octal"]:
        return bytes([int(escape["octal"], 8) & 0xFF])
    if escape["hex"]:
        return bytes([int(escape["hex"], 16)])
    if escape["utf16"]:  # all that stand beside each other: two may be one character
        return bytes.fromhex(escape["utf16"].replace("\\u", "")).decode("utf-16-be", "replace").encode()
    if escape["utf32"]:
        return bytes.fromhex(escape["utf32"]).decode("utf-32-be", "replace").encode()
    return _ESCAPED.get(escape["other"], escape["other"]).encode()


def _integer(word: str) -> int:
    try:
        number = int(word, 8) if _OCTAL.fullmatch(word) else int(word, 0)
    except ValueError:
        number = 1 << 40
    if not -(1 << 31) <= number < 1 << 31:
        raise BadSchema(plain(f"{word[:40]!r} is no number of a field"))
    return number
