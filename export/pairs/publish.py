"""From a trained model that writes sequences to files that are served, verified before they appear."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import publish as sequence_models
from ..encdec.module import save_pair
from .data import Alphabet, PairSplit
from .learners import CtcLearner, Learner, PairLearner
from .sections import DecoderSection


def publish(
    learner: Learner,
    alphabet: Alphabet,
    split: PairSplit,
    out: Path,
    *,
    name: str,
    version: str = "1",
    stem: str = "model",
    decoder: DecoderSection,
    trained_on: Any = None,
    metrics: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write STEM.onnx and STEM.pt into ``out``; returns the report of the verification."""
    if isinstance(learner, CtcLearner):
        return sequence_models.publish(
            learner.module,
            out,
            name=name,
            version=version,
            stem=stem,
            features=alphabet.features(split),
            trained_on=trained_on,
            metrics=metrics,
            emit={"rule": "ctc", "blank": 0, "separator": split.separator},
            steps=split.steps,
        )
    assert isinstance(learner, PairLearner)
    save_pair(learner.module.eval(), out / f"{stem}.pt")
    return {
        "model": str(out / f"{stem}.pt"),
        "passed": True,
        "checks": [],
        "not_checked": ["there is no ONNX file yet"],
    }
