"""How values with names are written: JSON or MessagePack. The same fields are read from both."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from streamer.records.formats import json_tokens
from streamer.records.meaning import NO_CELL, Cell
from streamer.records.unusable import Unusable, plain
from streamer.words import Reason


class Wire(Protocol):
    """One way to write a value."""

    null: msgspec.Raw
    lines: bool
    """Values can be joined by line breaks, and are read together."""

    def decoder(self, kind: Any) -> Any:
        """With ``decode(bytes)``."""
        ...

    def too_deep(self, value: bytes) -> bool:
        """Nested deeper than ``json_tokens.MAX_DEPTH`` levels."""
        ...

    def is_null(self, token: msgspec.Raw) -> bool: ...

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

    def decoder(self, kind: Any) -> Any:
        return msgspec.json.Decoder(kind)

    def too_deep(self, value: bytes) -> bool:
        return json_tokens.too_deep(value)

    def is_null(self, token: msgspec.Raw) -> bool:
        return bytes(token).strip() == b"null"

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

    def decoder(self, kind: Any) -> Any:
        return msgspec.msgpack.Decoder(kind)

    def too_deep(self, value: bytes) -> bool:
        if len(value) - len(value.translate(None, _OPENING)) <= json_tokens.MAX_DEPTH:
            return False
        return _depth_beyond(value, json_tokens.MAX_DEPTH)

    def is_null(self, token: msgspec.Raw) -> bool:
        return bytes(token) == b"\xc0"

    def is_list(self, token: msgspec.Raw) -> bool:
        return bytes(token)[0] in _OPENING

    def cell(self, token: msgspec.Raw) -> Cell:
        value = bytes(token)
        return NO_CELL if value[0] in _OPENING else _plain_cell(msgspec.msgpack, value)

    def time(self, token: msgspec.Raw) -> object:
        cell = self.cell(token)
        return "a list, an object, bytes or an extension" if cell is NO_CELL else cell


_OPENING = bytes([*range(0x80, 0xA0), *range(0xDC, 0xE0)])
"""First bytes of maps and lists."""
_FIXED = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4,
          0xD3: 8, 0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17}  # fmt: skip
_SIZED = {0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1),
          0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0)}  # fmt: skip
_COUNTED = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
"""Lists and maps: bytes of the count, and values for each."""


def _plain_cell(codec: Any, text: bytes) -> Cell:
    try:
        found = codec.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unusable(Reason.UNDECODABLE, plain(error)) from None
    return found if found is None or isinstance(found, bool | int | float | str) else NO_CELL


def _depth_beyond(value: bytes, most: int) -> bool:
    """Whether lists and maps are nested deeper than ``most``, as far as the bytes go. Without recursion."""
    left: list[int] = [1]
    """Values that each open list still has to have; the value itself is the only one of the first"""
    at, size = 0, len(value)
    while at < size and left:
        first = value[at]
        at += 1
        left[-1] -= 1
        inner = 0
        if first in _COUNTED:
            width, each = _COUNTED[first]
            inner, at = int.from_bytes(value[at : at + width], "big") * each, at + width
        elif 0x80 <= first <= 0x9F:
            inner = (first & 0x0F) * (2 if first < 0x90 else 1)
        elif 0xA0 <= first <= 0xBF:
            at += first & 0x1F
        elif first in _SIZED:
            width, more = _SIZED[first]
            at += width + more + int.from_bytes(value[at : at + width], "big")
        else:
            at += _FIXED.get(first, 0)
        if first in _OPENING:
            left.append(inner)
            if len(left) - 1 > most:
                return True
        while left and not left[-1]:
            left.pop()
    return False
