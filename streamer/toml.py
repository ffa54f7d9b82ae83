"""TOML, as all files that people write are read: settings, contracts, trainings."""

from __future__ import annotations

import tomllib
from typing import Any


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a document. ValueError, which says why, whatever the text is."""
    try:
        document = tomllib.loads(text)
        _check(document)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    return document


def _check(value: object) -> None:
    """ValueError: an integer is beyond TOML's 64 bits. Others of thousands of digits could be neither converted nor told."""
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise ValueError(
            "it has an integer of more than 64 bits: write a number that large with an exponent, as in 1e30"
        )
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check(each)
