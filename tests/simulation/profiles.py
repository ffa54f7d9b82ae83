"""Families of plans: each puts weight on one part of the service. A seed chooses one."""

from __future__ import annotations

import random
from collections.abc import Callable
from importlib import import_module

from tests.simulation.plans import Draw, Plan

PROFILES: dict[str, tuple[int, Callable[[Draw], None]]] = {}
"""Name -> weight and what draws it"""


def profile(name: str, weight: int) -> Callable[[Callable[[Draw], None]], Callable[[Draw], None]]:
    def enter(function: Callable[[Draw], None]) -> Callable[[Draw], None]:
        PROFILES[name] = weight, function
        return function

    return enter


def plan(seed: int, name: str | None = None) -> Plan:
    """The plan of a seed."""
    for families in ("profiles_failures", "profiles_changes", "profiles_frames", "profiles_writing"):
        import_module(f"tests.simulation.{families}")
    if name is None:
        names = sorted(PROFILES)
        name = random.Random(seed).choices(names, [PROFILES[each][0] for each in names])[0]
    draw = Draw(seed, name)
    PROFILES[name][1](draw)
    return draw.done()
