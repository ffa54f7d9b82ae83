"""Formats of values: each one a small file that says what one value means, and how many are read at once.

``row`` is the definition. ``columns`` is only faster: for a value that it is not sure of it says so, and ``row`` decides.
So what a record means depends neither on its neighbours nor on which of the two ran.
"""

from __future__ import annotations

from collections.abc import Sequence

from streamer.records.exact import Exact
from streamer.records.formats.base import Columns, Format
from streamer.records.formats.float32 import Float32
from streamer.records.formats.json_list import JsonList
from streamer.records.formats.json_named import JsonNamed
from streamer.records.formats.user import User
from streamer.words import TimeUnit

__all__ = ["Columns", "Format", "format_of"]


def format_of(name: str, features: Sequence[str], exact: Exact, missing: int | float | None, unit: TimeUnit) -> Format:
    """``json``, ``json-named``, ``float32``, or the user's MODULE:FUNCTION. ConfigurationError: there is no such thing."""
    if name == "json":
        return JsonList(features, exact, missing, unit)
    if name == "json-named":
        return JsonNamed(features, exact, missing, unit)
    if name == "float32":
        return Float32(features, exact)
    return User(name, features, exact)
