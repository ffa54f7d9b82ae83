"""A pair that was trained here becomes one verified file: a text in, and what the module writes about it out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import torch

from export.card import card
from export.encdec.module import EncoderDecoder, PairConfig, save_pair
from export.model import ModelConfig
from export.pairs.data import END, Alphabet, Pair, PairSplit
from export.pairs.learners import PairLearner, write_all
from export.pairs.publish import publish
from export.pairs.sections import DecoderSection
from export.verify import verify
from streamer.core import I64, RecordBatch
from streamer.errors import ModelError
from streamer.generate.search import decode
from streamer.modelfile.model import Model
from streamer.records.decode import Codec
from streamer.tools.inspect import inspect

pytestmark = pytest.mark.torch

NOW_MS = 1_700_000_000_000


def split_of(units: str, rows: list[tuple[str, str]]) -> PairSplit:
    cut = tuple if units == "characters" else lambda text: tuple(text.split())
    return PairSplit([Pair(cut(a), (cut(b),)) for a, b in rows], [], [], target_units=units, source_units=units)


SPLITS = {
    "characters": split_of("characters", [("ab c", "xy z"), ("cb", "zzy")]),
    "words": split_of("words", [("nine of ten", "neuf sur dix"), ("nineteen", "dix neuf")]),
}
TEXTS = {
    "characters": ["ab c", "cba", "bü<unknown>", "\ufffd a"],
    "words": ["nine of nineteen", " ten  eleven ", "<end>"],
}


def learner_of(split: PairSplit, **changes: Any) -> tuple[PairLearner, Alphabet]:
    """Not trained, but lively: what it writes depends on all that it reads, and ends."""
    alphabet = Alphabet.of(split, first=END)
    options: dict[str, Any] = {"attention": "general", "max_steps": 9, **changes}
    encoder = ModelConfig(
        features=1, hidden=8, kind="gru", directions=2, vocabulary=len(alphabet.source), unknown=0, embedding=6
    )
    torch.manual_seed(3)
    module = EncoderDecoder(PairConfig(encoder, len(alphabet.symbols), 16, labels=alphabet.symbols, **options))
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape))
    return PairLearner(module.eval()), alphabet


def steps_of(model: Model, texts: list[str]) -> list[I64]:
    values: list[bytes | None] = [json.dumps({"text": text}).encode() for text in texts]
    count = len(values)
    batch = Codec(model.contract, "json-named").decode(
        RecordBatch(0, list(range(count)), [NOW_MS] * count, [b"s"] * count, values)
    )
    assert batch.steps is not None
    return np.split(batch.x, np.cumsum(batch.steps)[:-1])


@pytest.mark.parametrize("units", list(SPLITS))
def test_a_text_in_gives_what_the_module_writes(units: str, tmp_path: Path) -> None:
    split = SPLITS[units]
    learner, alphabet = learner_of(split)
    report = publish(learner, alphabet, split, tmp_path, name="m", decoder=DecoderSection(), metrics={"test_bleu": 3.5})
    assert report["passed"]
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.pt"}
    model = Model.load(tmp_path / "model.onnx")
    contract, texts = model.contract, TEXTS[units]
    assert (contract.input.steps, contract.mode, contract.metrics) == ("many", "window", {"test_bleu": 3.5})
    assert contract.decoder is not None
    assert contract.decoder.joint == split.separator
    xs = [alphabet.encode(tuple(text) if units == "characters" else tuple(text.split())) for text in texts]
    wanted = write_all(learner, xs)
    assert len(set(map(tuple, wanted))) > 2, "the test's own model writes the same about everything"
    assert [list(each.symbols) for each in decode(model, steps_of(model, texts))] == wanted


def test_a_name_of_several_characters_is_no_piece(tmp_path: Path) -> None:
    """Ten characters of a query, one of them "<", must not become one unknown step."""
    split = SPLITS["characters"]
    learner, alphabet = learner_of(split)
    publish(learner, alphabet, split, tmp_path, name="m", decoder=DecoderSection())
    model = Model.load(tmp_path / "model.onnx")
    assert [len(each) for each in steps_of(model, ["<unknown>", "<end>a"])] == [9, 6]


def test_the_search_of_the_section_is_the_one_that_is_served(tmp_path: Path) -> None:
    split = SPLITS["characters"]
    learner, alphabet = learner_of(split)
    section = DecoderSection(search="beam", width=40, length_normalisation=0.7)
    publish(learner, alphabet, split, tmp_path, name="m", decoder=section)
    declared = Model.load(tmp_path / "model.onnx").contract.decoder
    assert declared is not None
    assert (declared.search, declared.width, declared.length_normalisation) == ("beam", len(alphabet.symbols), 0.7)
    report = verify(tmp_path / "model.onnx")  # the weights beside it are found, and they are of a pair
    assert report["passed"]
    assert report["not_checked"] == []
    assert {"teacher_forced", "free_running"} <= {check["name"] for check in report["checks"]}
    assert inspect(tmp_path / "model.onnx", measure=False)["contract"]["decoder"]["width"] == len(alphabet.symbols)
    text = card(tmp_path / "model.onnx")
    assert f"| writes | sequences of up to 9 of {len(alphabet.symbols)} symbols (beam of width" in text
    assert "free_running" in text


def test_a_file_that_is_not_the_module_does_not_appear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = SPLITS["characters"]
    learner, alphabet = learner_of(split)
    other, _ = learner_of(split)
    with torch.no_grad():
        other.module.decoder.head.bias[1] += 1.0
    monkeypatch.setattr("export.pairs.publish.save_pair", lambda module, path: save_pair(other.module, path))
    with pytest.raises(ModelError, match="did not pass verification and was not written: teacher_forced"):
        publish(learner, alphabet, split, tmp_path, name="m", decoder=DecoderSection())
    assert list(tmp_path.iterdir()) == []


def test_frames_are_read_as_they_come(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pairs = [Pair(rng.normal(size=(4, 3)).astype(np.float32), (("x", "y"),))]
    split = PairSplit(pairs, [], [], source_units=None, features=("a", "b", "c"))
    alphabet = Alphabet.of(split, first=END)
    encoder = ModelConfig(features=3, hidden=6, kind="lstm")
    torch.manual_seed(0)
    module = EncoderDecoder(PairConfig(encoder, 3, 6, attention="bahdanau", labels=alphabet.symbols, max_steps=5))
    assert publish(PairLearner(module), alphabet, split, tmp_path, name="m", decoder=DecoderSection())["passed"]
    contract = Model.load(tmp_path / "model.onnx").contract
    assert contract.input.steps == "one"
    assert [each.name for each in contract.feature_tables] == ["a", "b", "c"]
