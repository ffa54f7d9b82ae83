"""From a trained module to model.onnx and model.pt: exported aside, verified, and only then put in place."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from streamer.errors import ModelError
from streamer.modelfile.feature import Feature

from .folders import make_folder
from .graph import export_model
from .model import SequenceModel, save
from .verify import verify


def publish(
    model: SequenceModel,
    out: Path,
    *,
    name: str,
    version: str = "1",
    features: Sequence[str | Feature],
    stem: str = "model",
    trained_on: Any = None,
    metrics: Mapping[str, Any] | None = None,
    feedback: Mapping[str, Any] | None = None,
    emit: Mapping[str, Any] | None = None,
    steps: str = "one",
) -> dict[str, Any]:
    """Write STEM.onnx and STEM.pt into ``out``; returns the report of the verification.

    ``emit``, ``steps``: as ``export_model``.
    ModelError if the exported file does not compute what the module does; then nothing new lies in ``out``.
    """
    model.eval()

    def write(graph: Path, weights: Path) -> None:
        save(model, weights)
        export_model(
            model,
            graph,
            name=name,
            version=version,
            features=[each if isinstance(each, str) else plain(each) for each in features],
            trained_on=trained_on,
            metrics=dict(metrics or {}),
            feedback=dict(feedback) if feedback is not None else None,
            emit=emit,
            steps=steps,
        )

    return verified(write, out, name=name, stem=stem)


def verified(write: Callable[[Path, Path], object], out: Path, *, name: str, stem: str = "model") -> dict[str, Any]:
    """``write(graph, weights)`` makes both files elsewhere; they come into ``out`` when they are the same. As ``publish``."""
    make_folder(out)
    with tempfile.TemporaryDirectory(prefix=".unverified-", dir=out) as staging:
        graph, weights = Path(staging) / f"{stem}.onnx", Path(staging) / f"{stem}.pt"
        write(graph, weights)
        report: dict[str, Any] = verify(graph, weights)
        failed = [check for check in report["checks"] if not check["passed"]]
        if failed or not report["passed"]:
            reasons = ", ".join(f"{check['name']} {check['value']} (limit {check['limit']})" for check in failed)
            raise ModelError(f"{name} did not pass verification and was not written: {reasons}")
        os.replace(weights, out / weights.name)
        os.replace(graph, out / graph.name)
    report["model"] = str(out / graph.name)
    return report


def plain(feature: Feature) -> Any:
    """As the contract has it: a number of which nothing more is known is a name."""
    return feature.name if feature == Feature(feature.name) else msgspec.to_builtins(feature)
