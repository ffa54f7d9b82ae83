"""Settings as people read them: every key with its bounds and meaning, and every value with where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from enum import EnumType
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from streamer.settings.base import Section
from streamer.settings.sections import ModelSection, Settings
from streamer.settings.utterance import UtteranceSection
from streamer.settings.window import WindowSection

_TABLES = {"window": WindowSection, "utterance": UtteranceSection}
"""Of a model"""


def sections() -> dict[str, dict[str, FieldInfo]]:
    """Section -> its keys. ``model.NAME`` and its tables stand for those of every model."""
    found: dict[str, dict[str, FieldInfo]] = {}
    for name, info in Settings.model_fields.items():
        if name == "model":
            found["model.NAME"] = {key: each for key, each in ModelSection.model_fields.items() if key not in _TABLES}
            found |= {f"model.NAME.{key}": table.__pydantic_fields__ for key, table in _TABLES.items()}  # type: ignore[attr-defined]
        else:
            assert isinstance(info.annotation, type)
            assert issubclass(info.annotation, Section)
            found[name] = info.annotation.model_fields
    return found


def of_type(kind: type) -> list[tuple[str, str]]:
    """(section, key) of every setting that is a ``kind``, or none."""
    return [
        (section, key)
        for section, fields in sections().items()
        for key, info in fields.items()
        if kind in (get_args(info.annotation) or (info.annotation,))
    ]


def flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as ``section.key``."""
    found: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found


def describe(settings: Settings, origins: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(key, value, origin) of every setting, secrets masked."""
    values = flat(settings.model_dump(mode="python"))
    return [(key, "" if value is None else str(value), origins.get(key, "default")) for key, value in values.items()]


def settings_reference() -> str:
    """Markdown with one table per section: key, type and bounds, default, meaning."""
    return "\n\n".join(f"### `[{name}]`\n\n" + section_table(name) for name in sections()) + "\n"


def section_table(name: str) -> str:
    """Markdown table of one section."""
    rows = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    for key, info in sections()[name].items():
        default = "required" if info.is_required() else f"`{_shown(info.default)}`"
        rows.append(f"| `{key}` | {_type_text(info)} | {default} | {info.description} |")
    return "\n".join(rows)


def _shown(value: object) -> str:
    return (
        "unset" if value is None or value in ("", {}) else str(value).lower() if isinstance(value, bool) else str(value)
    )


_NAMES: dict[object, str] = {
    int: "integer", bool: "true or false", float: "number", Path: "path", SecretStr: "secret", str: "text",
}  # fmt: skip


def _type_text(info: FieldInfo) -> str:
    kinds = get_args(info.annotation) or (info.annotation,)
    if isinstance(info.annotation, EnumType):
        text = ", ".join(f"`{member}`" for member in info.annotation)
    elif get_origin(info.annotation) is Literal:
        text = ", ".join(f"`{kind}`" for kind in kinds)
    elif get_origin(info.annotation) is dict:
        text = "table"
    else:
        text = " or ".join(_NAMES.get(kind) or f"`{get_args(kind)[0]}`" for kind in kinds if kind is not type(None))
    low = [bound.ge for bound in info.metadata if isinstance(bound, Ge)]
    high = [bound.le for bound in info.metadata if isinstance(bound, Le)]
    if low and high:
        return f"{text}, {low[0]} to {high[0]}"
    return f"{text}, at least {low[0]}" if low else text
