"""How deep a MessagePack value is nested, without recursion and within a bound: its parser recurses, and a hostile value
is all lists.

Values without others inside are passed over by the hundred; only lists and objects are walked.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

OPENING = bytes([*range(0x80, 0xA0), *range(0xDC, 0xE0)])
"""First bytes of maps and lists."""
MAX_WALKED = 1 << 17
"""Lists, objects and long texts of one value that are walked: those of few plain values are not. About 0.1 s."""
_FIXED = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4,
          0xD3: 8, 0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17}  # fmt: skip
_SIZED = {0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1),
          0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0)}  # fmt: skip
_COUNTED = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
"""Lists and maps: bytes of the count, and values for each."""


def _byte(*numbers: int) -> bytes:
    return b"[" + b"".join(rb"\x%02x" % each for each in numbers) + b"]"


def _single() -> bytes:
    """One value with nothing inside: of a fixed size, or a short text."""
    alone = [*range(0x80), *range(0xE0, 0x100), 0xA0, *(first for first, size in _FIXED.items() if not size)]
    sized = [_byte(first) + b".{%d}" % size for first, size in _FIXED.items() if size]
    texts = [_byte(0xA0 + size) + b".{%d}" % size for size in range(1, 0x20)]
    return b"(?:" + b"|".join([_byte(*alone), *sized, *texts]) + b")"


def _flat() -> bytes:
    """One value, or a list or an object of few of them."""
    lists = [_byte(0x90 + size) + _single() + b"{%d}" % size for size in range(1, 0x10)]
    maps = [_byte(0x80 + size) + _single() + b"{%d}" % (2 * size) for size in range(1, 0x10)]
    return b"(?:" + b"|".join([_byte(0x80, 0x90), _single(), *lists, *maps]) + b")"


Run = tuple[int, Callable[[bytes, int], "re.Match[bytes] | None"]]


@cache
def _runs(value: Callable[[], bytes]) -> list[Run]:
    """Compiled when the first value needs them: it takes 0.2 s, which a service of other formats would start later."""
    return [(many, re.compile(value() + b"{%d}" % many, re.DOTALL).match) for many in (1024, 128, 16)]


def deeper(value: bytes, most: int) -> bool:
    """Whether lists and maps are nested deeper than ``most``, as far as the bytes go; also of what has so many of them that
    nobody wants to know."""
    left: list[int] = [1]
    """Values that each open list still has to have; the value itself is the only one of the first"""
    at, size, walked, by_hand = 0, len(value), 0, 0
    while at < size and left:
        if left[-1] >= 16 and by_hand <= 0:
            at = _passed(value, at, left, _runs(_flat if len(left) < most else _single))
            by_hand = 16
            if not left[-1] or at >= size:
                _close(left)
                continue
        by_hand -= 1
        walked += 1
        if walked > MAX_WALKED:
            return True
        first = value[at]
        at += 1
        left[-1] -= 1
        if first in OPENING:
            width, each = _COUNTED.get(first, (0, 0))
            inner = int.from_bytes(value[at : at + width], "big") * each
            left.append(inner if width else (first & 0x0F) * (2 if first < 0x90 else 1))
            at += width
            if len(left) - 1 > most:
                return True
        elif 0xA0 <= first <= 0xBF:
            at += first & 0x1F
        elif first in _SIZED:
            width, more = _SIZED[first]
            at += width + more + int.from_bytes(value[at : at + width], "big")
        else:
            at += _FIXED.get(first, 0)
        _close(left)
    return False


def _passed(value: bytes, at: int, left: list[int], runs: list[Run]) -> int:
    """Where the values that can be passed over at once end; they are taken off ``left``."""
    for many, match in runs:
        while left[-1] >= many and (found := match(value, at)):
            at = found.end()
            left[-1] -= many
    return at


def _close(left: list[int]) -> None:
    while left and not left[-1]:
        left.pop()
