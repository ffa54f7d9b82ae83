"""How values with names are written: JSON or MessagePack. The same fields are read from both."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from streamer.records.formats import json_tokens
from streamer.records.formats.msgpack_depth import MAX_WALKED, OPENING, deeper
from streamer.records.meaning import NO_CELL, Cell, is_nan
from streamer.records.unusable import Unusable, plain
from streamer.words import Reason

_FLOATS = b"\xca\xcb"
"""First bytes of MessagePack's numbers of 32 and 64 bits."""


class Wire(Protocol):
    """One way to write a value."""

    null: msgspec.Raw
    lines: bool
    """Values can be joined by line breaks, and are read together."""

    def decoder(self, kind: Any) -> Any:
        """With ``decode(bytes)``."""
        ...

    deep: str
    """What is said of a value that is ``too_deep``"""

    def too_deep(self, value: bytes) -> bool:
        """Nested deeper than ``json_tokens.MAX_DEPTH`` levels, or too intricate to find that out in bounded time."""
        ...

    def is_null(self, token: msgspec.Raw) -> bool: ...

    def is_nothing(self, token: msgspec.Raw) -> bool:
        """Null, or NaN where the format has one: no value was there."""
        ...

    def is_list(self, token: msgspec.Raw) -> bool:
        """A list or an object."""
        ...

    def cell(self, token: msgspec.Raw) -> Cell:
        """Unusable (undecodable): a text that is none."""
        ...

    def time(self, token: msgspec.Raw) -> object:
        """The time as given: None, a number, text, or what is no time at all."""
        ...


class Json:
    """Numbers as they were written: 5 is an integer, 5.0 is not."""

    null = msgspec.Raw(b"null")
    lines = True
    deep = json_tokens.DEEP

    def decoder(self, kind: Any) -> Any:
        return msgspec.json.Decoder(kind)

    def too_deep(self, value: bytes) -> bool:
        return json_tokens.too_deep(value)

    def is_null(self, token: msgspec.Raw) -> bool:
        return bytes(token).strip() == b"null"

    is_nothing = is_null

    def is_list(self, token: msgspec.Raw) -> bool:
        return bytes(token).lstrip()[:1] in b"{["

    def cell(self, token: msgspec.Raw) -> Cell:
        text = bytes(token).strip()
        if text[:1] in b"-0123456789":
            return json_tokens.digits(text)
        if text[:1] in b"{[":
            return NO_CELL
        return _plain_cell(msgspec.json, text)

    def time(self, token: msgspec.Raw) -> object:
        return json_tokens.time(token)


class Msgpack:
    """Numbers have their kind in them. Times of the extension type are not read: send a number or a text."""

    null = msgspec.Raw(b"\xc0")
    lines = False
    deep = f"{json_tokens.DEEP}, or has more than {MAX_WALKED} lists, objects and long texts"

    def decoder(self, kind: Any) -> Any:
        return msgspec.msgpack.Decoder(kind)

    def too_deep(self, value: bytes) -> bool:
        if len(value) - len(value.translate(None, OPENING)) <= json_tokens.MAX_DEPTH:
            return False
        return deeper(value, json_tokens.MAX_DEPTH)

    def is_null(self, token: msgspec.Raw) -> bool:
        return bytes(token) == b"\xc0"

    def is_nothing(self, token: msgspec.Raw) -> bool:
        value = bytes(token)
        return self.is_null(token) or (value[0] in _FLOATS and is_nan(msgspec.msgpack.decode(value)))

    def is_list(self, token: msgspec.Raw) -> bool:
        return bytes(token)[0] in OPENING

    def cell(self, token: msgspec.Raw) -> Cell:
        value = bytes(token)
        return NO_CELL if value[0] in OPENING else _plain_cell(msgspec.msgpack, value)

    def time(self, token: msgspec.Raw) -> object:
        cell = self.cell(token)
        return "a list, an object, bytes or an extension" if cell is NO_CELL else cell


def _plain_cell(codec: Any, text: bytes) -> Cell:
    try:
        found = codec.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unusable(Reason.UNDECODABLE, plain(error)) from None
    return found if found is None or isinstance(found, bool | int | float | str) else NO_CELL
