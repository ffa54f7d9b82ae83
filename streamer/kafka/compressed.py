"""Record batches as they are compressed: unpacked by us, so that a small batch cannot fill the memory.

The client unpacks whatever comes: a batch of 100 kB may become 10 GB, and a broker takes it. The library that it uses can
be told where to stop.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from aiokafka import codec as _codec
from aiokafka import errors as kafka_errors

MAX_BATCH_BYTES = 1 << 27
"""Of a batch, unpacked (128 MiB). Producers make batches of 1 MB as a rule; ten times as much is rare, 100 times a trap."""
_LIBRARY: Any = _codec.cramjam
"""The client's; None where it is not installed"""
_ATTRIBUTES = slice(21, 23)
_HEADER = 61
"""Bytes before the records of a batch."""
_CODEC = 0x07
_XERIAL = b"\x82SNAPPY\x00"
_XERIAL_HEADER = 16


class TooLarge(Exception):
    """What is compressed is larger than ``MAX_BATCH_BYTES``."""

    def __init__(self) -> None:
        super().__init__(f"unpacked it is larger than {MAX_BATCH_BYTES} bytes")


def unpacked(batch: bytes | memoryview) -> bytes:
    """A batch (format v2) as it would be without compression. Its checksum is that of the compressed one.

    UnsupportedCodecError: nobody here can read the codec. TooLarge, or what the library raises: the records cannot be
    read."""
    attributes = int.from_bytes(batch[_ATTRIBUTES], "big")
    number = attributes & _CODEC
    if not number:
        return bytes(batch)
    if number not in _CODECS:
        raise kafka_errors.UnsupportedCodecError(f"Unknown compression codec {number:#04x}")
    name, unpack = _CODECS[number]
    if not getattr(_codec, f"has_{name}")():
        raise kafka_errors.UnsupportedCodecError(f"Libraries for {name} compression codec not found")
    plain = (attributes & ~_CODEC).to_bytes(2, "big")
    head = bytes(batch[: _ATTRIBUTES.start]) + plain + bytes(batch[_ATTRIBUTES.stop : _HEADER])
    return head + unpack(bytes(batch[_HEADER:]))


def _gzip(data: bytes) -> bytes:
    """One or more members, one after the other."""
    found, left = bytearray(), MAX_BATCH_BYTES
    while data:
        member = zlib.decompressobj(wbits=31)
        found += member.decompress(data, left + 1)
        left = MAX_BATCH_BYTES - len(found)
        if left < 0:
            raise TooLarge
        if not member.eof:
            raise EOFError("the compressed records end too early")
        data = member.unused_data
    return bytes(found)


def _snappy(data: bytes) -> bytes:
    """As Java's library frames it, or plain."""
    if not data.startswith(_XERIAL):
        return _snappy_block(data, MAX_BATCH_BYTES)
    found, at = bytearray(), _XERIAL_HEADER
    while at < len(data):
        (size,) = struct.unpack_from("!I", data, at)
        at += 4 + size
        if at > len(data):
            raise EOFError("the compressed records end too early")
        found += _snappy_block(data[at - size : at], MAX_BATCH_BYTES - len(found))
    return bytes(found)


def _snappy_block(data: bytes, most: int) -> bytes:
    if _LIBRARY.snappy.decompress_raw_len(data) > most:
        raise TooLarge
    return bytes(_LIBRARY.snappy.decompress_raw(data))


def _framed(name: str) -> Callable[[bytes], bytes]:
    def unpack(data: bytes) -> bytes:
        room = np.empty(MAX_BATCH_BYTES, np.uint8)  # pages that are not written cost nothing
        try:
            count = getattr(_LIBRARY, name).decompress_into(data, room)
        except _LIBRARY.DecompressionError as error:
            if "write whole buffer" in str(error):
                raise TooLarge from None
            raise
        return room[:count].tobytes()

    return unpack


_CODECS: dict[int, tuple[str, Callable[[bytes], bytes]]] = {
    1: ("gzip", _gzip),
    2: ("snappy", _snappy),
    3: ("lz4", _framed("lz4")),
    4: ("zstd", _framed("zstd")),
}
