"""Contracts with all that answers can be made of, and answers as JSON has them."""

from __future__ import annotations

from typing import Any

import numpy as np

from streamer.modelfile.contract import Contract

OUTPUTS = {
    "value": [{"name": "y", "shape": ["batch", "time", 1], "kind": "value"}],
    "vector of one": [{"name": "y", "shape": ["batch", "time", 1]}],
    "classes": [{"name": "p", "shape": ["batch", "time", 3], "kind": "classes", "labels": ["a", 'b"', "ü"]}],
    "several": [
        {"name": "p 1", "shape": ["batch", "time", 2], "kind": "classes", "labels": ["a", "b"]},
        {"name": "score", "shape": ["batch", "time", 1], "kind": "score"},
        {"name": "v", "shape": ["batch", "time", 2, 2]},
    ],
    "per window": [
        {"name": "p", "shape": ["batch", 2], "kind": "classes", "labels": ["a", "b"]},
        {"name": "each", "shape": ["batch", "time", 1], "kind": "value"},
    ],
}


def contract(name: str, mode: str) -> Contract:
    states = [{"input": "h", "output": "h2", "shape": ["batch", 2]}] if mode == "step" else []
    return Contract.from_fields(
        {"name": "m", "mode": mode, "input": {"name": "x", "shape": ["batch", "time", 2]}, "lengths": "lengths",
         "states": states, "outputs": OUTPUTS[name]}
    )  # fmt: skip


def as_json(found: Any) -> Any:
    """Times and names as JSON has them."""
    if isinstance(found, dict):
        return {name: as_json(each) for name, each in found.items() if not (name == "slice" and each is None)}
    if isinstance(found, list | tuple):
        return [as_json(each) for each in found]
    if isinstance(found, float):
        return float(np.float32(found))
    return round(found.timestamp() * 1000) if hasattr(found, "timestamp") else found
