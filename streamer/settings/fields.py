"""Where a record has what a feature needs: a path in its value, a header, or a number that no record has to say.

``readings.cpu`` and ``tags[0]`` are paths; a name that is no plain word is quoted in brackets, ``["a.b"].c``.
``header:unit`` is a header of the record. ``{constant = 3.5}`` is the same for all. ``{path = "readings.cpu", missing =
"last"}`` also says what stands for a missing value, instead of what the contract says: a number, the stream's "last" value, or
"reject"; without ``path`` the field is that of the feature's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Literal

MAX_STEPS = 32
"""Of a path; deeper is a mistake."""
MAX_INDEX = 9_999
_HEADER = "header:"
_INPUT = "input."
_STEP = re.compile(r'(?P<dot>\.?)(?P<name>[^.\[\]"\s]+)|\[(?P<index>\d{1,9})\]|\["(?P<quoted>[^"]+)"\]')
Constant = float | int | bool | str
Missing = float | Literal["last", "reject"]


@dataclass(frozen=True)
class FieldPath:
    """Names of fields and places in lists, from the outside in."""

    steps: tuple[str | int, ...]


@dataclass(frozen=True)
class FieldHeader:
    """A header's text. Of several headers of one name the last counts."""

    name: str


@dataclass(frozen=True)
class FieldConstant:
    """The same for every record."""

    value: Constant


Place = FieldPath | FieldHeader | FieldConstant


def told(place: Place) -> str:
    """As a person writes it in the settings."""
    if isinstance(place, FieldHeader):
        return f"header:{place.name}"
    if isinstance(place, FieldConstant):
        return f"constant {place.value}"
    text = ""
    for step in place.steps:
        plain = isinstance(step, int) or _STEP.fullmatch(step) is None
        text += (
            (f"[{step}]" if isinstance(step, int) else f'["{step}"]') if plain else f".{step}" if text else str(step)
        )
    return text


def written_as(place: FieldPath | FieldHeader) -> tuple[str, ...]:
    """Names that a table may have for the column of a place: as in the settings, and with plain dots between all names."""
    if isinstance(place, FieldHeader):
        return (told(place),)
    dotted = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place.steps).removeprefix(".")
    return tuple(dict.fromkeys((told(place), dotted)))


def parse_field(written: object) -> tuple[Place | None, Missing | None]:
    """A place as text or a table (see above), and what stands for a missing value. ValueError: it is none of them."""
    if not isinstance(written, Mapping) or "constant" in written:
        return parse_place(written), None
    if not written or set(written) - {"path", "missing"}:
        raise ValueError(
            'is a table, but neither {constant = 3.5} nor {path = "cpu", missing = "last"}: write one of them'
        )
    rule = written.get("missing")
    if rule is not None and rule not in ("last", "reject"):
        try:
            rule = float(rule)
        except (TypeError, ValueError, OverflowError):
            rule = float("nan")
        if isinstance(written["missing"], bool) or not isfinite(rule):
            raise ValueError('has a missing that is neither "reject", "last" nor a finite number')
    return (parse_place(written["path"]) if "path" in written else None), rule


def parse_place(written: object) -> Place:
    """A path or ``header:NAME`` as text, or a table ``{constant = value}``. ValueError: it is none of them."""
    if isinstance(written, Mapping):
        if set(written) != {"constant"} or not isinstance(written["constant"], float | int | str):
            raise ValueError("is a table, but not {constant = 3.5}: write that, a path, or header:NAME")
        return FieldConstant(written["constant"])
    if not isinstance(written, str):
        raise ValueError(
            f"is {str(written)[:40]!r}: write a path such as readings.cpu, header:NAME, or {{constant = 3.5}}"
        )
    if written.startswith(_HEADER):
        if not written[len(_HEADER) :]:
            raise ValueError("names no header: write header:NAME")
        return FieldHeader(written[len(_HEADER) :])
    return FieldPath(_steps(written))


def parse_answer_place(written: str) -> str | FieldPath | FieldHeader:
    """Where an answer has what it carries: ``input.PATH`` or ``header:NAME`` of its record, else a place of its own, as it is.

    ValueError: it is none of them."""
    if written.startswith((_HEADER, _INPUT)):
        place = parse_place(written.removeprefix(_INPUT))
        assert not isinstance(place, FieldConstant)
        return place
    if not written:
        raise ValueError("is empty: write a place of the answer, such as y, or input.PATH")
    return written


def _steps(text: str) -> tuple[str | int, ...]:
    steps: list[str | int] = []
    at = 0
    while at < len(text):
        found = _STEP.match(text, at)
        if found is None or (found["name"] is not None and bool(found["dot"]) != bool(steps)):
            break
        if found["index"] is not None:
            steps.append(int(found["index"]))
        else:
            steps.append(found["name"] or found["quoted"])
        at = found.end()
    if at < len(text) or not steps:
        raise ValueError(
            f'{text[:80]!r} is no path: write names and places in lists, as in readings.cpu, tags[0] or ["a.b"].c'
        )
    if isinstance(steps[0], int):
        raise ValueError(
            f"{text[:80]!r} begins in a list, but a record's value is an object: begin with a field's name"
        )
    if len(steps) > MAX_STEPS or any(isinstance(step, int) and step > MAX_INDEX for step in steps):
        raise ValueError(f"{text[:80]!r} has more than {MAX_STEPS} steps, or a place beyond {MAX_INDEX}")
    return tuple(steps)
