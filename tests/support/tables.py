"""Contracts whose features are tables."""

from __future__ import annotations

from typing import Any

from streamer.modelfile.contract import Contract

WORDS = ["<unknown>", "run", "idle", "7", "0.5", "-3", "True", "Ünïcode"]


def contract(*features: str | dict[str, Any], dtype: str = "float32") -> Contract:
    return Contract.from_fields(
        {
            "name": "m",
            "mode": "step",
            "input": {"name": "x", "shape": ["batch", len(features)], "features": list(features), "dtype": dtype},
            "outputs": [{"name": "y", "shape": ["batch", 1]}],
        }
    )


def category(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "category", "vocabulary": WORDS, **more}
