"""Pictures: their patches, captions of the user's own, and a record with a picture whose caption comes back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import torch
from durable import begin, encoded, make_processor, settle
from hypothesis import given
from hypothesis import strategies as st

from export.encdec.module import EncoderDecoder, PairConfig
from export.model import ModelConfig
from export.pairs.data import END, Alphabet, Pair
from export.pairs.learners import PairLearner, write_all
from export.pairs.pictures import MOST, as_events, of_pictures, patches, read_captions
from export.pairs.publish import publish
from export.pairs.sections import DecoderSection
from export.recipes import captions
from streamer.core import RecordBatch
from streamer.errors import ConfigurationError
from streamer.modelfile.model import Model
from streamer.records.decode import Codec
from streamer.windows import WindowRule

pytestmark = pytest.mark.torch

NOW_MS = 1_700_000_000_000


@given(st.integers(1, 40))
def test_patches_are_squares_of_the_picture_and_nothing_is_lost(side: int) -> None:
    picture = np.arange(side * side, dtype=np.float32).reshape(side, side)
    found = patches(picture.ravel())
    assert sorted(found.ravel().tolist()) == picture.ravel().tolist()
    grid = round(len(found) ** 0.5)
    assert grid * grid == len(found) <= MOST * MOST
    width = side // grid
    for at, patch in enumerate(found):
        top, left = at // grid * width, at % grid * width
        assert patch.tolist() == picture[top : top + width, left : left + width].ravel().tolist()
    assert grid == max(count for count in range(1, MOST + 1) if side % count == 0)


def test_numbers_that_are_no_square_are_one_step() -> None:
    assert patches(np.zeros(12, np.float32)).shape == (1, 12)
    assert patches(np.zeros(121, np.float32)).shape == (1, 121), "a side of eleven has no patches"


def table(path: Path, rows: list[str]) -> Path:
    path.write_text("\n".join(["stream,time,a,b,label", *rows]) + "\n")
    return path


def test_captions_of_the_users_own_may_end_in_a_word_for_it(tmp_path: Path) -> None:
    rows = []
    for at in range(10):
        rows += [f"s{at},0,{at},1,on", f"s{at},1,,,top"]
        rows += [f"s{at},2,,,{END}"] if at % 2 else []
    split = read_captions(table(tmp_path / "a.csv", rows), share=0.2, seed=0)
    pairs = [*split.train, *split.validation, *split.test]
    assert {pair.targets for pair in pairs} == {(("on", "top"),)}
    assert sorted(float(pair.source[0, 0]) for pair in pairs) == list(range(10))
    assert (split.steps, split.features) == ("many", ("p0", "p1"))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (["s0,0,1,1,on", "s1,0,,1,on"], "stream 's1' has an event without a word, or no whole picture"),
        (["s0,0,1,1,on", "s0,1,,,", "s1,0,1,1,on"], "stream 's0' has an event without a word"),
        ([f"s0,0,1,1,{END}", "s1,0,1,1,on"], "stream 's0' has no word"),
        (["s0,0,1,red,on", "s1,0,1,blue,on"], "wants columns of numbers"),
    ],
)
def test_a_table_that_holds_no_captions_is_said(rows: list[str], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=says):
        read_captions(table(tmp_path / "a.csv", rows), share=0.2, seed=0)


def test_what_the_test_part_shows_was_never_seen_in_training() -> None:
    assert captions.RECIPE.limits == {"exact_match": 0.97}, "of these: no recipe lowers its own limit unseen"
    split = captions.make(True)
    train, judged = ({pair.targets for pair in part} for part in (split.train, split.test))
    assert len(judged) > 50
    assert not train & judged
    words = {word for pair in split.train for word in pair.targets[0]}
    assert words.issuperset(word for pair in split.test for word in pair.targets[0])


def test_events_for_one_state_hold_the_same() -> None:
    pair = Pair(np.array([[1.0, 2.0], [3.0, 4.0]], np.float32), (("b", "a"),))
    events = as_events(of_pictures(([pair], [pair], [pair])))
    assert events.train.classes == (END, "a", "b")
    assert events.train.x[0].tolist() == [[1, 2, 3, 4, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1, 0]]
    assert events.train.labels is not None
    assert events.train.labels[0].tolist() == [2, 1, 0]


@pytest.mark.parametrize("attention", ["bahdanau", "general"])
def test_a_record_with_a_picture_is_answered_with_what_pytorch_writes(attention: str, tmp_path: Path) -> None:
    split = captions.make(True)
    alphabet = Alphabet.of(split, first=END)
    torch.manual_seed(1)
    encoder = ModelConfig(features=4, hidden=8, kind="gru", directions=2)
    labels = alphabet.symbols
    module = EncoderDecoder(PairConfig(encoder, len(labels), 16, attention=attention, labels=labels, max_steps=9))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape))
    learner = PairLearner(module.eval())
    assert publish(learner, alphabet, split, tmp_path, name="m", decoder=DecoderSection())["passed"]
    model = Model.load(tmp_path / "model.onnx")
    assert (model.contract.input.steps, model.contract.feature_names) == ("many", ("p0", "p1", "p2", "p3"))
    xs = [np.asarray(pair.source, np.float32) for pair in split.test[:6]]
    wanted = [alphabet.names(row) for row in write_all(learner, xs)]
    assert len(set(wanted)) > 2, "the test's own model writes the same about every picture"
    processor = make_processor([("m", model, WindowRule("record"))], max_bytes=1 << 24)
    begin(processor)
    count = len(xs)
    values: list[bytes | None] = [json.dumps({"x": x.tolist()}).encode() for x in xs]
    keys = [b"%d" % at for at in range(count)]
    settle(
        processor,
        Codec(model.contract, "json").decode(RecordBatch(0, list(range(count)), [NOW_MS] * count, keys, values)),
    )
    while processor.rolling:
        processor.roll()
    epoch = processor.seal(0)
    assert epoch is not None
    assert not epoch.rejects
    answers = {each["stream"]: each for out in encoded(processor, epoch) for each in map(json.loads, out.values)}
    assert [tuple(answers[str(at)]["label"]) for at in range(count)] == wanted
    assert {answer["window"]["reason"] for answer in answers.values()} == {"record"}
