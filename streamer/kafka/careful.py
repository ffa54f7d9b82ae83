"""Records of a batch (format v2, not compressed) one by one: what they are, by definition.

The client's parsers are fast, and trust what a batch says of its lengths: from one that lies they read bytes that lie behind
it, so the same batch gives something else each time, or ends the process. And a header's name that is not UTF-8, which
brokers take, ends their reading. Here such names are told as Python escapes them: ``b"\\xff"`` is ``"\\\\xff"``.

Format: https://kafka.apache.org/documentation/#recordbatch
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from streamer.core import Headers

_HEAD = struct.Struct(">qiiBIhiqqqhii")
_LOG_APPEND_TIME = 0x08
_MOST_VARINT_BYTES = 10


class Record(NamedTuple):
    """As the client's are."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers


def records(batch: bytes) -> Iterator[Record]:
    """Those before the first that cannot be read; for that one ValueError."""
    base, _, _, _, _, attributes, _, first_ms, newest_ms, _, _, _, count = _HEAD.unpack_from(batch)
    reader = _Reader(batch, _HEAD.size)
    for _ in range(max(count, 0)):
        end = reader.length("a record") + reader.at
        reader.within(end, "a record")
        reader.varint()  # attributes: none are defined
        later_ms, further = reader.varint(), reader.varint()
        key, value = reader.nullable("a key"), reader.nullable("a value")
        headers = tuple(
            (reader.some("the name of a header").decode("utf-8", "backslashreplace"), reader.nullable("a header"))
            for _ in range(reader.length("a count of headers"))
        )
        if reader.at != end:
            raise ValueError(f"a record says that it ends at byte {end} of the batch, and its fields at {reader.at}")
        stamp_ms = newest_ms if attributes & _LOG_APPEND_TIME else first_ms + later_ms
        if not (-(2**63) <= stamp_ms < 2**63 and -(2**63) <= base + further < 2**63):
            raise ValueError("an offset or a time has more than 64 bits")
        yield Record(base + further, stamp_ms, key, value, headers)
    if count < 0 or reader.at != len(batch):
        raise ValueError(f"{count} records, and {len(batch) - reader.at} bytes behind them")


class _Reader:
    """``at``: of the next byte. All reads raise ValueError beyond the end."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def within(self, end: int, what: str) -> None:
        if end > len(self.data):
            raise ValueError(f"{what} ends {end - len(self.data)} bytes behind the batch")

    def varint(self) -> int:
        """Zigzag, seven bits at a time."""
        number = 0
        for place in range(_MOST_VARINT_BYTES):
            self.within(self.at + 1, "a number")
            byte = self.data[self.at]
            self.at += 1
            number |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                break
        if byte >= 0x80 or number >= 2**64:
            raise ValueError("a number has more than 64 bits")
        return (number >> 1) ^ -(number & 1)

    def length(self, what: str) -> int:
        """Not negative."""
        found = self.varint()
        if found < 0:
            raise ValueError(f"{what} of {found}")
        return found

    def some(self, what: str) -> bytes:
        return self._bytes(self.length(what), what)

    def nullable(self, what: str) -> bytes | None:
        """A length below 0 is null, as for brokers and clients; -1 is what they write."""
        size = self.varint()
        return None if size < 0 else self._bytes(size, what)

    def _bytes(self, size: int, what: str) -> bytes:
        self.within(self.at + size, what)
        self.at += size
        return self.data[self.at - size : self.at]
