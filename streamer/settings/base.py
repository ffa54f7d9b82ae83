"""What every section of settings is."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict

TLS_FILES = ("ssl_cafile", "ssl_certfile", "ssl_keyfile")


LONGEST_MS = 100_000_000_000_000
"""More than 3000 years: no span of event time is longer, so that sums with times stay integers of 64 bits"""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")


def check_topic(key: str, name: str) -> None:
    """ValueError: no broker has a topic of this name. It may be made of others, so ``key`` is told with it."""
    if not _TOPIC.fullmatch(name) or name in (".", ".."):
        shown = name if len(name) <= 80 else f"{name[:80]}..."
        raise ValueError(
            f"{key} would be topic {shown!r} ({len(name)} characters): a topic is named with at most 249 of the letters "
            f'a to z and A to Z, digits, ".", "_" and "-". Set {key}'
        )


_MODEL_BYTES = 100


def check_model_name(name: str) -> None:
    """ValueError: it cannot stand in keys of the changelog, in headers, metrics and answers."""
    if not name.isprintable() or not 1 <= len(name.encode()) <= _MODEL_BYTES:
        raise ValueError(f"[model.{name[:80]!r}]: a model is named with 1 to {_MODEL_BYTES} bytes that can be printed")


_BROKER = re.compile(r"(?:\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[^\s:/@,\[\]]+)(?::(\d{1,5}))?|[0-9A-Fa-f:.]*::[0-9A-Fa-f:.]*")


def check_bootstrap(brokers: str) -> str:
    """ValueError: not HOST:PORT, comma separated; what stands there is not told, it may hold a password."""
    for number, broker in enumerate(brokers.split(","), 1):
        found = _BROKER.fullmatch(broker.strip())
        if found is None or not 1 <= int(found[1] or 1) <= 65_535:
            raise ValueError(
                f"broker number {number} is not HOST:PORT with a port of 1 to 65535 (an IPv6 address stands in brackets, and "
                "neither a scheme nor a user belongs there)"
            )
    return brokers
