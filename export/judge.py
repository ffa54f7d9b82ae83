"""What the figures of a training mean: is it better than its baseline, and where would a score's threshold lie?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .data import Split, Streams
from .model import Forecaster
from .tasks import anomalies, scores

BASELINES = {
    "forecast": "the last event again",
    "next_category": "how common each category is",
    "next_set": "how common each feature is",
    "classify": "the largest class",
    "regress": "the mean",
}
"""Task -> what a model has to beat, which any programmer has in ten minutes."""
QUANTILES = (0.5, 0.9, 0.99, 0.999)
_NORMAL_SHARE = 0.995
_PART_OF_BASELINE = {
    "average_precision": "any order",
    "f1_macro": "the largest class",
    "accuracy": "the largest class",
}


def warnings(task: str, figures: Mapping[str, Mapping[str, float]], *, weighted: bool = False) -> list[str]:
    """Sentences about every figure that is no better than its baseline, of the test part (else of validation).

    ``weighted``: with class weights, loss and accuracy are not what was trained for, and are not judged.
    """
    part = "test" if "test" in figures else "validation"
    row, found = figures[part], []
    for name, value in row.items():
        baseline = row.get(f"baseline_{name}")
        if baseline is None or (weighted and name in ("loss", "accuracy")):
            continue
        better = value < baseline if name == "loss" else value > baseline
        if not better:
            what = _PART_OF_BASELINE.get(name, BASELINES[task])
            found.append(
                f"{part} {name} {value:.4g} is no better than the baseline's {baseline:.4g} ({what}):"
                " this model has learnt nothing that is worth serving"
            )
    auc = row.get("auc")
    if auc is not None and auc <= 0.5:
        found.append(
            f"{part} auc {auc:.4g} is no better than chance (0.5): normal events score as high as anomalies, or higher;"
            " is data.normal the label of normal events?"
        )
    return found


def score_summary(model: Forecaster, split: Split) -> dict[str, Any]:
    """Quantiles of the score of normal validation events, a threshold and its rule, and what it does on the test part.

    With anomalies in the validation part the threshold is the one of best F1 there, else a quantile.
    """
    value, anomaly = _judged(model, split.validation)
    normal = value[~anomaly]
    if not len(normal):
        return {}
    threshold = float(np.quantile(normal, _NORMAL_SHARE))
    rule = f"{1 - _NORMAL_SHARE:.1%} of the normal validation events are above it"
    if anomaly.any():
        threshold, rule = _best_f1(value, anomaly), "best F1 on the validation part"
    summary: dict[str, Any] = {
        "score_quantiles": {f"{q:g}": float(np.quantile(normal, q)) for q in QUANTILES},
        "suggested_threshold": threshold,
        "threshold_rule": rule,
    }
    if len(split.test):
        value, anomaly = _judged(model, split.test)
        above = value > threshold
        if anomaly.any():
            summary["precision_at_threshold"] = float((above & anomaly).sum() / max(1, above.sum()))
            summary["recall_at_threshold"] = float((above & anomaly).sum() / anomaly.sum())
    return summary


def card_sections(metrics: Mapping[str, Any]) -> list[str]:
    """Markdown for the model card, from the metrics of a contract: warnings first, then the score."""
    sections = []
    if metrics.get("warnings"):
        sections += ["## Warnings", "\n".join(f"- **{text}**" for text in metrics["warnings"])]
    if "suggested_threshold" in metrics:
        rows = [f"| {name} | {value:.4g} |" for name, value in metrics.get("score_quantiles", {}).items()]
        lines = [
            f"Suggested threshold: **{metrics['suggested_threshold']:.4g}** ({metrics['threshold_rule']}).",
            *(f"On the test part, {name}: {metrics[f'{name}_at_threshold']:.3f}." for name in ("precision", "recall")
              if f"{name}_at_threshold" in metrics),
        ]  # fmt: skip
        table = "\n".join(["| quantile of normal events | score |", "| --- | --- |", *rows])
        sections += ["## Score", " ".join(lines), table]
    return sections


def _judged(model: Forecaster, part: Streams) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Scores of the events that count, and which of them are anomalies. A stream's first event has no score."""
    found = scores(model, part)
    if part.labels is None:
        kept = [score[max(1, start) :] for score, start in zip(found, part.counted_from, strict=True)]
        values = np.concatenate(kept)
        return values, np.zeros(len(values), bool)
    marks = anomalies(part)
    if not any(judged.any() for judged, _ in marks):
        marks = [(np.ones(len(score), bool), np.zeros(len(score), bool)) for score in found]
    for judged, _ in marks:
        judged[:1] = False
    values = np.concatenate([score[judged] for score, (judged, _) in zip(found, marks, strict=True)])
    return values, np.concatenate([anomaly[judged] for judged, anomaly in marks])


def _best_f1(value: NDArray[np.float32], anomaly: NDArray[np.bool_]) -> float:
    """Halfway between the last score that is above it and the first that is not."""
    order = np.argsort(-value, kind="stable")
    sorted_value = value[order].astype(np.float64)
    hits = np.cumsum(anomaly[order])
    f1 = 2 * hits / (np.arange(1, len(value) + 1) + anomaly.sum())
    f1[:-1][sorted_value[1:] == sorted_value[:-1]] = 0  # equal scores are above or below it together
    best = int(np.argmax(f1))
    below = sorted_value[best + 1] if best + 1 < len(value) else sorted_value[best] - 1.0
    return float((sorted_value[best] + below) / 2)
