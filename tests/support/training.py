"""Training by the command on real data, for the tests that judge what came out of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from export import train

SERVERS = """
name = "servers"
task = "forecast"
[data]
path = "train.npz"
test_path = "test.npz"
split = "time"
classes = ["normal", "anomaly"]
[model]
kind = "{kind}"
hidden = 64
[training]
epochs = {epochs}
rows = 48
steps = 48
segment_steps = 1800
patience = 4
"""

VOWELS = """
name = "vowels"
task = "classify"
seeds = {seeds}
[data]
path = "{folder}/JapaneseVowels_TRAIN.ts"
test_path = "{folder}/JapaneseVowels_TEST.ts"
[model]
kind = "{kind}"
hidden = 48
directions = {directions}
reduce = "mean"
[training]
epochs = {epochs}
rows = 16
optimiser = "adamw"
weight_decay = 1e-3
schedule = "cosine"
"""


def run(folder: Path, text: str) -> dict[str, Any]:
    (folder / "train.toml").write_text(text)
    assert train.main(["--config", str(folder / "train.toml"), "--out", str(folder / "out")]) == 0
    metrics: dict[str, Any] = json.loads((folder / "out" / "metrics.json").read_text())
    assert metrics["verification"]["passed"]
    return metrics


def servers(folder: Path, data_dir: Path, kind: str, epochs: int) -> dict[str, Any]:
    """Twelve servers of 19 metrics each; the test file is judged, the training file split by time."""
    with np.load(data_dir / "asd" / "asd.npz") as archive:
        for part in ("train", "test"):
            x = [archive[f"omi-{i}_{part}"] for i in range(1, 13)]
            label = [
                archive[f"omi-{i}_label"] if part == "test" else np.zeros(len(x[i - 1]), int) for i in range(1, 13)
            ]
            np.savez(
                folder / f"{part}.npz",
                stream=np.repeat([f"omi-{i}" for i in range(1, 13)], [len(rows) for rows in x]),
                time_ms=np.concatenate([np.arange(len(rows)) * 300_000 for rows in x]),
                x=np.concatenate(x),
                label=np.concatenate(label),
            )
    return run(folder, SERVERS.format(kind=kind, epochs=epochs))
