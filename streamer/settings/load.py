"""Where settings come from: flag > environment > file > default; all problems at once, and the origin of every value.

Unknown keys are errors. Secrets come from the file, the environment or a file of their own, never from a flag: process
arguments are public.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError

from streamer.errors import ConfigurationError
from streamer.settings.reference import flat, of_type, sections
from streamer.settings.sections import Settings
from streamer.toml import parse_toml

ENV_PREFIX = "STREAMER_"
_SECRETS = frozenset(f"{section}.{key}" for section, key in of_type(SecretStr))
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


@dataclass
class _Found:
    """What the sources say so far, the later ones on top."""

    document: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def put(self, key: str, value: str, origin: str) -> None:
        *parents, last = key.split(".")
        table = self.document
        for parent in parents:
            child = table.setdefault(parent, {})
            if not isinstance(child, dict):
                self.problems.append(f"{key} ({origin}): {parent} is a value, not a section")
                return
            table = child
        table[last] = value
        self.origins[key] = origin

    def origin(self, key: str) -> str | None:
        """Of a key, or of the first one in a section."""
        inside = (origin for each, origin in self.origins.items() if each.startswith(f"{key}."))
        return self.origins.get(key) or next(inside, None)


def load_settings(
    path: Path | None, overrides: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> tuple[Settings, dict[str, str]]:
    """Settings and the origin of every key that is not a default. Raises ConfigurationError with all problems.

    Paths in the file are relative to the file, all others to the working directory."""
    found = _Found()
    if path is not None:
        found.document = _read(path)
        found.origins = dict.fromkeys(flat(found.document), f"file {path}")
    for name, value in sorted((env or {}).items()):
        key = _env_key(name, value, found.problems)
        if key is not None:
            found.put(key, value, f"environment {name}")
    for number, text in enumerate(overrides, 1):
        key, separator, value = (part.strip() for part in text.partition("="))
        if not separator or "." not in key:
            found.problems.append(f"--set number {number}: write --set section.key=value")
        elif key in _SECRETS:
            found.problems.append(f"{key}: not as a flag, which all users can read: use {key}_file or {_env_name(key)}")
        else:
            found.put(key, value, "flag --set")
    for section in ("kafka", "input", "output"):
        found.document.setdefault(section, {})  # so that the missing keys are named, not the section
    settings = None
    try:
        settings = Settings(**found.document)
    except ValidationError as error:
        found.problems += [_explain(each, found) for each in error.errors(include_url=False)]
    if found.problems or settings is None:
        raise ConfigurationError("settings:\n  " + "\n  ".join(found.problems))
    return settings, found.origins


def _read(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}: name a readable TOML file") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content[:4]:
        raise ConfigurationError(f"{path}: is UTF-16, TOML is UTF-8: save it as UTF-8")
    try:
        # some editors mark UTF-8 with three bytes at the beginning
        document = parse_toml(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigurationError(f"{path}: line {line} is not UTF-8, as TOML must be: save it as UTF-8") from error
    except ValueError as error:
        raise ConfigurationError(f"{path}: not TOML: {error}") from error
    for section, key in of_type(Path):
        for table in _tables(document, section.split(".")):
            if isinstance(table.get(key), str):
                table[key] = str(path.parent / table[key])
    return document


def _tables(table: object, path: Sequence[str]) -> list[dict[str, Any]]:
    """The tables at ``path``, where NAME stands for any name."""
    if not isinstance(table, dict):
        return []
    if not path:
        return [table]
    inner = list(table.values()) if path[0] == "NAME" else [table.get(path[0])]
    return [each for child in inner for each in _tables(child, path[1:])]


def _env_name(key: str) -> str:
    return ENV_PREFIX + key.upper().replace(".", "__")


def _env_key(name: str, value: str, problems: list[str]) -> str | None:
    """Key of a variable, or None when it is none of ours (Kubernetes adds STREAMER_SERVICE_HOST and the like)."""
    if not name.startswith(ENV_PREFIX):
        return None
    rest = name[len(ENV_PREFIX) :].lower()
    if "__" in rest:
        return rest.replace("__", ".")
    for section, fields in sections().items():
        key = rest.removeprefix(f"{section}_")
        if key != rest and key in fields and "://" not in value:
            problems.append(f"environment {name}: write {_env_name(f'{section}.{key}')}, with two underscores")
    return None


def _explain(error: Mapping[str, Any], found: _Found) -> str:
    """Key, message, value given and where it came from. The value of a secret or of an unknown key is never shown."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] in _UNKNOWN:
        message = "unknown key: " + (_suggestion(key) or "remove it or correct its name")
    elif key == "model":
        message = "one or two tables [model.NAME] with a path are needed"
    elif error["type"] in ("missing", "missing_argument"):
        message = f"required: set it in the file, as {_env_name(key)} or with --set {key}=..."
    else:
        message = str(error["msg"]).removeprefix("Value error, ")
        given = error.get("input")
        if key not in _SECRETS and isinstance(given, str | int | float) and error["type"] != "value_error":
            message += f", got {str(given)[:80]!r}"
    origin = found.origin(key)
    return f"{key or 'settings'}: {message}" + (f" ({origin})" if origin else "")


def _suggestion(key: str) -> str:
    """Known keys or sections that may have been meant: one spelled alike beside it, else one of this name elsewhere."""
    parts = key.split(".")
    name = parts[1] if parts[0] == "model" and len(parts) > 2 else "NAME"
    known = {section.replace("NAME", name): fields for section, fields in sections().items()}
    places: dict[str, list[str]] = {}
    """Last part -> where it is known"""
    for section, fields in known.items():
        for each in (section, *(f"{section}.{own}" for own in fields)):
            places.setdefault(each.rpartition(".")[2], []).append(each)
    *_, last = parts
    parent = key.rpartition(".")[0]
    beside = [each for each, where in places.items() if any(w.rpartition(".")[0] == parent for w in where)]
    if close := get_close_matches(last, beside, 1, 0.6):
        return f"did you mean {f'{parent}.' if parent else ''}{close[0]}?"
    if last in places:
        return f"did you mean {' or '.join(places[last][:3])}?"
    close = get_close_matches(last, places, 1, 0.8)
    return f"did you mean {places[close[0]][0]}?" if close else ""
