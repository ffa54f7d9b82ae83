"""JSON as it was written, value by value: what the definitions of the JSON formats are made of.

A number without point and exponent is an integer, whatever its size; the last of repeated fields counts; fields that the
contract does not know are passed over; a value nested deeper than ``MAX_DEPTH`` is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec
import numpy as np

from streamer.records.exact import Exact
from streamer.records.unusable import Unusable
from streamer.words import Reason

MAX_DEPTH = 500
"""Levels. The parser recurses, and how deep it can depends on who calls it: this bound lies safely below."""
DEEP = f"the value is nested deeper than {MAX_DEPTH} levels"
_MOST_DIGITS = 400
"""Of an integer that is read: with more it is beyond every dtype."""
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)


def number(token: msgspec.Raw, name: object) -> int | float | None:
    """A number as it was written, or null. Unusable: anything else."""
    text = bytes(token).strip()
    if text == b"null":
        return None
    if text[:1] not in b"-0123456789":
        raise Unusable(Reason.UNDECODABLE, f"feature {name!r} is not a number")
    return digits(text)


def digits(text: bytes) -> int | float:
    """A number that begins with a digit or a minus."""
    if text.lstrip(b"-").isdigit():
        return int(text[:_MOST_DIGITS])
    return float(text)


def row(
    tokens: Sequence[msgspec.Raw], names: Sequence[str], exact: Exact, missing: Sequence[int | float | None]
) -> list[int | float]:
    """Features in the contract's dtype. Unusable: the first that is missing, no number, or does not fit."""
    numbers: list[int | float] = []
    for token, name, stands in zip(tokens, names, missing, strict=True):
        value = number(token, name)
        if value is not None:
            numbers.append(exact.number(value, name))
        elif stands is None:
            raise Unusable(Reason.MISSING_FEATURE, f"feature {name!r} is null or missing")
        else:
            numbers.append(stands)
    return numbers


def time(token: msgspec.Raw) -> object:
    """The time as given: None, a number, text, or what is no time at all."""
    text = bytes(token).strip()
    if text[:1] in b"-0123456789":
        return number(token, "ts")
    if text[:1] in b"{[":
        return text[:40].decode("utf-8", "backslashreplace")
    return msgspec.json.decode(text)


def too_deep(value: bytes) -> bool:
    """Nested deeper than ``MAX_DEPTH`` levels, as far as it can be read."""
    if len(value) <= MAX_DEPTH or value.count(b"[") + value.count(b"{") <= MAX_DEPTH:
        return False
    text = np.frombuffer(_STRING.sub(b"", value), np.uint8)
    steps = ((text == 0x5B) | (text == 0x7B)).astype(np.int32) - ((text == 0x5D) | (text == 0x7D))
    return bool(steps.size) and int(np.cumsum(steps).max()) > MAX_DEPTH


def refuse_deep(value: bytes) -> None:
    """Unusable (undecodable) for what is nested too deep."""
    if too_deep(value):
        raise Unusable(Reason.UNDECODABLE, DEEP)
