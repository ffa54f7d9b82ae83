"""How the bytes of large answers come together: kept as the socket gave them, joined once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

LARGE_BYTES = 1 << 16
"""Of an answer, from which it is put together here; a smaller one comes in a piece or two anyway."""
_SMALL_BYTES, _GATHERED_BYTES = 1 << 15, 1 << 18
"""Smaller pieces are gathered until they have so much: each may lie on a page of its own, of the socket's 256 KiB."""


class Reader(asyncio.StreamReader):
    """A connection's reader. An answer of 8 MB costs half of what it costs the standard library's: that grows one buffer
    piece by piece, copies it whole, and stops and starts the socket and wakes its reader for every piece."""

    _pieces: list[bytes | bytearray] = []  # noqa: RUF012 - replaced, never changed, by who waits for an answer
    """What came of the answer that is waited for"""
    _left = 0
    """Its bytes that are still to come, before which nothing stops the socket; what comes behind them is the base's"""

    # the base's, which the standard library does not document
    _buffer: bytearray
    _eof: bool
    _exception: Exception | None
    _wait_for_data: Callable[[str], Awaitable[None]]
    _wakeup_waiter: Callable[[], None]

    @classmethod
    def become(cls, reader: asyncio.StreamReader | None) -> None:
        """``reader``, which the client made and may be waiting for, becomes ours. None: its connection is closed."""
        if type(reader) is asyncio.StreamReader:
            reader.__class__ = cls

    def at_eof(self) -> bool:
        """Not yet, while what came is still to be read."""
        return not self._pieces and super().at_eof()

    def feed_data(self, data: Any) -> None:
        """``data``: bytes."""
        if self._left:
            piece, data = bytes(data[: self._left]), data[self._left :]
            if len(piece) >= _SMALL_BYTES:
                self._pieces.append(piece)
            elif isinstance(last := self._pieces[-1], bytearray) and len(last) < _GATHERED_BYTES:
                last += piece
            else:
                self._pieces.append(bytearray(piece))
            self._left -= len(piece)
            if not self._left:
                self._wakeup_waiter()
        super().feed_data(data)

    async def readexactly(self, n: int) -> bytes:
        small = n < LARGE_BYTES or n <= len(self._buffer)
        if small or self._left or self._eof or self._exception is not None:  # the base has the errors too
            return await super().readexactly(n)
        self._pieces, self._left = [bytearray(self._buffer)], n - len(self._buffer)
        self._buffer.clear()
        try:
            while self._left and not self._eof:
                await self._wait_for_data("readexactly")
            whole = b"".join(self._pieces)
            if self._left:
                raise asyncio.IncompleteReadError(whole, n)
            return whole
        except asyncio.CancelledError:
            self._buffer[:0] = b"".join(self._pieces)  # for whoever reads next
            raise
        finally:
            self._pieces, self._left = [], 0
