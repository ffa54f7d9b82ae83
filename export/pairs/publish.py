"""From a trained model that writes sequences to files that are served, verified before they appear."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamer.modelfile.feature import Feature

from .. import publish as sequence_models
from ..encdec.emit import export_pair
from ..encdec.module import END, save_pair
from .data import Alphabet, PairSplit
from .learners import CtcLearner, Learner, PairLearner
from .sections import DecoderSection

_UNKNOWN_CHARACTER = "\ufffd"
"""Unicode's own; a name of several characters would be a piece that a text may hold."""


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
    features = [text_feature(alphabet, split)] if alphabet.source else [Feature(each) for each in split.features]
    module = learner.module.eval()
    fields = {
        "name": name,
        "version": version,
        "trained_on": trained_on,
        "metrics": dict(metrics or {}),
        "input": {
            "name": "x",
            "shape": ["batch", "time", len(features)],
            "steps": "many" if alphabet.source else split.steps,
            "features": [sequence_models.plain(each) for each in features],
        },
        "decoder": {
            "labels": list(alphabet.symbols),
            "begin": END,
            "end": END,
            "max_steps": module.config.max_steps,
            "separator": split.separator,
            **search_of(decoder, len(alphabet.symbols)),
        },
    }

    def write(graph: Path, weights: Path) -> None:
        save_pair(module, weights)
        export_pair(module, fields, graph)

    return sequence_models.verified(write, out, name=name)


def text_feature(alphabet: Alphabet, split: PairSplit) -> Feature:
    """The source as it is sent to the service: a text, which becomes steps as it does in training (``records.spelling``)."""
    _, *known = alphabet.source
    words = split.source_units == "words"
    unknown = alphabet.source[0] if words or _UNKNOWN_CHARACTER in known else _UNKNOWN_CHARACTER
    return Feature("text", "text", (unknown, *known), unknown=0, split="words" if words else "pieces")


def search_of(decoder: DecoderSection, symbols: int) -> dict[str, Any]:
    """What the contract says of the search. A beam holds as many sequences as there are symbols, at most."""
    if decoder.search == "greedy":
        return {}
    return {
        "search": decoder.search,
        "width": min(decoder.width, symbols),
        "length_normalisation": decoder.length_normalisation,
    }
