"""Pairs: reading, splitting, metrics, both losses, and the command ``train`` for both tasks, seconds each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("jiwer")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export import train
from export.config import DataSection, ModelSection, TrainConfig, TrainSection, read_config
from export.encdec.module import EncoderDecoder, PairConfig, load_pair
from export.fit import FitOptions, Loop
from export.model import ModelConfig, build, load
from export.pairs.data import BLANK, END, Alphabet, Pair, PairSplit, Sample, merge, split_pairs
from export.pairs.dictionary import nearest, norvig
from export.pairs.fit import PairTrainer
from export.pairs.learners import Batch, CtcLearner, PairLearner, collapse, write_all
from export.pairs.metrics import figures
from export.pairs.read import read_split, read_texts
from export.pairs.sections import DecoderSection, PairsSection
from export.pairs.train import train_seed, warnings
from streamer.emission.ctc import spelled
from streamer.errors import ConfigurationError
from streamer.library import Runner
from streamer.modelfile.emit import Emit
from streamer.modelfile.model import Model
from streamer.records.spelling import Spelling
from streamer.windows import WindowRule

pytestmark = pytest.mark.torch

WORDS = st.lists(st.text("abc ", min_size=1, max_size=6), min_size=1, max_size=5)


def edits(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """Levenshtein's distance by its definition."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


@given(WORDS, st.data())
def test_symbol_error_is_edits_per_symbol(right: list[str], data: st.DataObject) -> None:
    written = [tuple(data.draw(st.text("abc ", max_size=6))) for _ in right]
    truth = [tuple(each) for each in right]
    found = figures(written, [(each,) for each in truth], "")
    total = sum(edits(a, b) for a, b in zip(truth, written, strict=True))
    assert found["symbol_error"] == pytest.approx(total / sum(map(len, truth)))
    assert found["exact_match"] == np.mean([a == b for a, b in zip(truth, written, strict=True)])


def test_of_several_right_answers_the_nearest_counts() -> None:
    found = figures([("A", "B")], [(("X", "Y", "Z"), ("A", "C"))], " ", bleu=False)
    assert found == {"exact_match": 0.0, "symbol_error": 0.5}
    assert figures([("A", "C")], [(("X",), ("A", "C"))], " ", bleu=False)["exact_match"] == 1.0


def test_words_and_bleu_are_judged_where_there_are_words() -> None:
    truth = [tuple("the cat sat on the mat"), tuple("a dog ran over the hill")]
    found = figures([truth[0], tuple("a dog ran under the hill")], [(each,) for each in truth], "")
    assert found["word_error"] == pytest.approx(1 / 12)
    assert 50 < found["bleu"] < 100
    assert set(figures([("a",)], [(("a",),)], "")) == {"exact_match", "symbol_error"}


def test_symbols_of_the_first_place_belong_to_the_model() -> None:
    split = PairSplit([Pair(("a",), (("x", END),))], [], [])
    with pytest.raises(ConfigurationError, match="'<end>' is the name of a symbol"):
        Alphabet.of(split, first=END)


@given(st.lists(st.tuples(st.text("ab", min_size=1, max_size=3), st.text("xy", min_size=1, max_size=2)), min_size=8))
def test_what_is_alike_stays_in_one_part(rows: list[tuple[str, str]]) -> None:
    pairs = merge((tuple(a), tuple(b)) for a, b in rows)
    assert {p.source for p in pairs} == {tuple(a) for a, _ in rows}
    if len({p.targets[0] for p in pairs}) < 5:
        return
    parts = split_pairs(pairs, validation=0.2, test=0.2, seed=0, by=lambda pair: pair.targets[0])
    kinds = [{pair.targets[0] for pair in part} for part in parts]
    assert sum(map(len, parts)) == len(pairs)
    assert not (kinds[0] & kinds[1]) | (kinds[0] & kinds[2]) | (kinds[1] & kinds[2])


@given(st.lists(st.integers(0, 3), max_size=12))
def test_collapse_is_the_definition(labels: list[int]) -> None:
    wanted, before = [], 0
    for label in labels:
        if label not in (before, 0):
            wanted.append(label)
        before = label
    assert collapse(labels) == wanted


def samples(count: int, seed: int = 0, *, features: int = 1) -> list[Sample]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        steps = int(rng.integers(2, 7))
        x = rng.integers(0, 5, (steps, features)).astype(np.float32)
        made.append(Sample(x, rng.integers(1, 4, int(rng.integers(1, steps // 2 + 1)))))
    return made


def ctc() -> CtcLearner:
    torch.manual_seed(0)
    return CtcLearner(build(ModelConfig(features=1, hidden=6, directions=2, outputs=4, vocabulary=5, embedding=4)))


def pair(attention: str = "general") -> PairLearner:
    torch.manual_seed(0)
    encoder = ModelConfig(features=1, hidden=6, directions=2, vocabulary=5, embedding=4)
    return PairLearner(EncoderDecoder(PairConfig(encoder, 4, 12, embedding=4, attention=attention, max_steps=12)))


@pytest.mark.parametrize("learner", [ctc(), pair(), pair("bahdanau")])
def test_a_batchs_loss_is_the_sum_of_its_rows(learner: Any) -> None:
    learner.module.eval()
    rows = samples(6)
    total, symbols = learner.loss(Batch.of(rows), 0.0, 0.0)
    alone = [learner.loss(Batch.of([row]), 0.0, 0.0) for row in rows]
    assert symbols == sum(count for _, count in alone)
    torch.testing.assert_close(total, sum(loss for loss, _ in alone), atol=1e-3, rtol=1e-4)
    together = write_all(learner, [row.x for row in rows])
    assert together == [write_all(learner, [row.x])[0] for row in rows]
    assert write_all(learner, [np.zeros((0, 1), np.float32)]) == [[]]


def test_the_loss_of_a_pair_is_what_the_steps_say() -> None:
    learner = pair()
    learner.module.eval()
    (row,) = samples(1)
    x, lengths = torch.from_numpy(row.x)[None], torch.tensor([len(row.x)])
    memory, states = learner.module.encoder(x, lengths)
    wanted, symbol = 0.0, torch.tensor([0])
    for number in [*row.y.tolist(), 0]:
        log_probs, states = learner.module.decoder(symbol, states, memory, lengths)
        wanted -= float(log_probs.detach()[0, number])
        symbol = torch.tensor([number])
    assert float(learner.loss(Batch.of([row]), 0.0, 0.0)[0].detach()) == pytest.approx(wanted, rel=1e-4)


def test_scheduled_sampling_gives_the_models_own_symbols() -> None:
    """With a share of nearly one, the loss no longer depends on what is true before the last symbol."""
    learner = pair()
    learner.module.eval()
    with torch.no_grad():
        learner.module.decoder.head.bias[2] = 50.0  # writes nothing but symbol 2
    batch = Batch.of([Sample(np.ones((3, 1), np.float32), np.array([1, 3, 1]))])
    forced = learner.loss(batch, 0.0, 0.0)[0]
    own = learner.loss(batch, 1.0, 0.0)[0]
    log_probs = learner.module(batch.x, batch.lengths, torch.tensor([[0, 2, 2, 2]]))
    wanted = -log_probs[0, [0, 1, 2, 3], [1, 3, 1, 0]].sum()
    torch.testing.assert_close(own, wanted, atol=1e-4, rtol=1e-5)
    assert float(own) != pytest.approx(float(forced), rel=1e-6)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("layers", [1, 2])
def test_training_over_padding_sees_what_packed_rows_give(kind: str, directions: int, layers: int) -> None:
    torch.manual_seed(0)
    model = build(ModelConfig(3, 5, kind=kind, directions=directions, layers=layers, outputs=4))
    learner, rows = CtcLearner(model), samples(7, features=3)
    batch = Batch.of([*rows, Sample(np.ones((20, 3), np.float32), np.array([1, 2]))])
    found = []
    for over_padding in (True, False):
        model.trains_over_padding = over_padding
        model.train().zero_grad()
        total, _ = learner.loss(batch, 0.0, 0.0)
        total.backward()
        found.append([total.detach(), *(p.grad for p in model.parameters())])
    for mine, wanted in zip(*found, strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-4, rtol=1e-4)


def test_a_target_that_ctc_cannot_write_is_known() -> None:
    learner, x = ctc(), np.zeros((3, 1), np.float32)
    assert learner.fits(Sample(x, np.array([1, 2, 3])))
    assert not learner.fits(Sample(x, np.array([1, 1, 2])))
    assert pair().fits(Sample(x, np.ones(11, np.int64)))
    assert not pair().fits(Sample(x, np.ones(12, np.int64)))


def test_masks_hide_runs_and_nothing_beyond_a_fifth() -> None:
    section = PairsSection(mask_steps=50, mask_features=50)
    model = build(ModelConfig(features=10, hidden=4, outputs=4))
    neutral = torch.full((10,), 7.0)
    trainer = PairTrainer(CtcLearner(model), "recognise", FitOptions(), section, neutral)
    rows = [Sample(np.zeros((steps, 10), np.float32), np.array([1])) for steps in (40, 20, 3)]
    seen = 0
    for seed in range(20):
        batch = Batch.of(rows)
        x = trainer.masked(batch, np.random.default_rng(seed)).x.numpy()
        hidden = x == 7.0
        for row, length in enumerate((40, 20, 3)):
            steps = hidden[row, :length].all(axis=1).sum()
            features = hidden[row, :length].all(axis=0).sum()
            assert steps <= length // 5
            assert features <= 2
            seen += int(steps) + int(features)
            assert not hidden[row, length:, :].all(axis=1).any() or features == 10
        assert float(batch.x.max()) == 0.0
    assert seen > 20


def test_lookups_by_their_definitions() -> None:
    words = ["the", "then", "than"]
    assert nearest(["thn", "tthen"], words) == ["the", "then"]
    assert norvig(["hte", "thann", "zzzzzz"], words) == ["the", "than", "zzzzzz"]


def write(path: Path, rows: list[tuple[str, str]], *, header: bool = True) -> Path:
    lines = [*([("source", "target")] if header else []), *rows]
    path.write_text("".join(f"{a}\t{b}\n" for a, b in lines), encoding="utf-8")
    return path


def test_two_columns_are_read_with_and_without_a_header(tmp_path: Path) -> None:
    rows = [("un", "one"), ("une", "one"), ("un", "a"), ("NA", "null")]
    data = DataSection(path="")
    wanted = [
        Pair(("u", "n"), (("one",), ("a",))),
        Pair(("u", "n", "e"), (("one",),)),
        Pair(("N", "A"), (("null",),)),
    ]
    section = PairsSection(target_units="words")
    assert read_texts(write(tmp_path / "a.tsv", rows), section, data, []) == wanted
    assert read_texts(write(tmp_path / "b.tsv", rows, header=False), section, data, []) == wanted
    assert read_texts(write(tmp_path / "c.txt", rows, header=False), section, data, []) == wanted
    (tmp_path / "d.csv").write_text("source;target\n" + "".join(f"{a};{b}\n" for a, b in rows))
    assert read_texts(tmp_path / "d.csv", section, data, []) == wanted
    (tmp_path / "e.jsonl").write_text("".join(json.dumps({"source": a, "target": b}) + "\n" for a, b in rows))
    assert read_texts(tmp_path / "e.jsonl", section, data, []) == wanted


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "only one\n", "line 1: 1 columns, wants SOURCE, a tab and TARGET"),
        ("a.tsv", "source\ttarget\nun\t\n", "line 2: wants a source and a target"),
        ("a.csv", "source,text\nun,one\n", "no column 'target'"),
        ("a.txt", "x" * 10_001 + "\ty\n", "longer than 10000 symbols"),
    ],
)
def test_a_bad_pair_is_said_with_its_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        read_texts(tmp_path / name, PairsSection(), DataSection(path=""), [])


def config(tmp_path: Path, text: str) -> Path:
    (tmp_path / "train.toml").write_text(text)
    return tmp_path / "train.toml"


BASE = 'name = "m"\ntask = "{task}"\n[data]\npath = "pairs.tsv"\n[model]\nhidden = 24\nkind = "gru"\ndirections = 2\n{more}'


@pytest.mark.parametrize(
    ("task", "more", "said"),
    [
        ("classify", "[pairs]\n", r"\[pairs\] belongs to the tasks"),
        ("classify", "[decoder]\n", r"\[decoder\] belongs to the tasks"),
        ("recognise", "[decoder]\n", "recognise has a label per step"),
        ("recognise", '[window]\nkind = "end"\n', "every source is one window"),
        ("recognise", 'reduce = "last"\n', "every step of the source counts"),
        ("recognise", '[pairs]\nmetric = "f1"\n', "pairs.metric must be one of"),
        ("recognise", "[pairs]\nsampling = 1.5\n", "pairs.sampling must be at least 0"),
        ("sequence-to-sequence", '[decoder]\nsearch = "random"\n', "decoder.search must be"),
        ("sequence-to-sequence", "[decoder]\nheads = 8\n", "heads"),
        ("sequence-to-sequence", "[decoder]\nwidth = 65\n", "decoder.width must be 1 to 64"),
        ("sequence-to-sequence", "[decoder]\nlength_normalisation = -1\n", "decoder.length_normalisation must be"),
    ],
)
def test_what_does_not_go_together_is_said(tmp_path: Path, task: str, more: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        read_config(config(tmp_path, BASE.format(task=task, more=more)))


def cyphers(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Letters to capitals, one for one, but "ab" is one letter, C; no letter stands twice in a row."""
    rng = np.random.default_rng(seed)
    found: set[str] = set()
    while len(found) < count:
        letters = rng.integers(0, 5, int(rng.integers(3, 7)))
        if (np.diff(letters) != 0).all():
            found.add("".join("abdef"[n] for n in letters))
    return [(word, word.upper().replace("AB", "C")) for word in sorted(found)]


@pytest.mark.parametrize(("task", "epochs"), [("recognise", 12), ("sequence-to-sequence", 10)])
def test_the_command_trains_and_judges_free_running(
    tmp_path: Path, task: str, epochs: int, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "pairs.tsv", cyphers(600))
    decoder = "[decoder]\nembedding = 16\nsearch = 'beam'\nwidth = 3\n" if task == "sequence-to-sequence" else ""
    more = f"[training]\nepochs = {epochs}\nlearning_rate = 0.02\nschedule = 'cosine'\n{decoder}"
    path = config(tmp_path, BASE.format(task=task, more=more))
    assert train.main(["--config", str(path), "--out", str(tmp_path / "out"), "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    test = metrics["best"]["figures"]["test"]
    assert test["symbol_error"] < 0.1, metrics
    assert test["baseline_symbol_error"] > 0.5
    assert metrics["data"]["train_pairs"] == 420
    if task == "recognise":
        check_served(tmp_path / "out", [(word, truth) for word, truth in cyphers(600)[:50]])
    else:
        assert load_pair(tmp_path / "out" / "model.pt").config.labels == (END, "A", "B", "C", "D", "E", "F")
        assert metrics["verification"]["passed"]
        contract = Model.load(tmp_path / "out" / "model.onnx").contract
        assert contract.decoder is not None
        assert (contract.decoder.search, contract.decoder.width) == ("beam", 3)
        assert contract.metrics["test_symbol_error"] == test["symbol_error"]


def check_served(folder: Path, pairs: list[tuple[str, str]]) -> None:
    """A text is one record, and what the service's code makes of it is what training's own decoding does."""
    model = Model.load(folder / "model.onnx")
    contract, text = model.contract, model.contract.feature_tables[0]
    labels, emit = contract.outputs[0].labels, contract.outputs[0].emit
    assert (labels, emit) == ((BLANK, "A", "B", "C", "D", "E", "F"), Emit("ctc", blank=0, separator=""))
    assert (text.kind, text.vocabulary, text.unknown) == ("text", ("\ufffd", *"abdef"), 0)
    assert contract.many_steps
    alphabet, spelling = Alphabet(text.vocabulary, labels), Spelling(text.vocabulary, text.unknown)
    words = [*(word for word, _ in pairs), "azé", "<unknown>"]
    xs = [np.array(spelling.places(word), np.float32)[:, None] for word in words]
    for word, x in zip(words, xs, strict=True):
        assert alphabet.encode(tuple(word)).tolist() == x.tolist()
    answered = Runner(model, window=WindowRule("record")).feed(words, xs)
    assert answered.keys == words
    written = write_all(CtcLearner(load(folder / "model.pt")), xs)
    assert [list(spelled(emit, y).labels) for y in answered.y] == written
    right = sum("".join(alphabet.names(row)) == truth for row, (_, truth) in zip(written, pairs, strict=False))
    assert right > len(pairs) * 0.5


def small(**changes: Any) -> TrainConfig:
    settings_ = {"epochs": 3, "rows": 16, **changes}
    return TrainConfig(
        name="m",
        task="sequence-to-sequence",
        data=DataSection(path="x"),
        model=ModelSection(hidden=8, kind="gru", directions=2, embedding=8),
        training=TrainSection(**settings_),
        pairs=PairsSection(sampling=0.5, label_smoothing=0.1, mask_steps=2),
        decoder=DecoderSection(embedding=8),
    )


def split_of(rows: list[tuple[str, str]]) -> PairSplit:
    parts = split_pairs(merge((tuple(a), tuple(b)) for a, b in rows), validation=0.2, test=0.2, seed=0)
    return PairSplit(*parts)


def test_going_on_from_a_checkpoint_is_bit_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = split_of(cyphers(80))
    whole = train_seed(small(), split, 0, out=None)
    save = Loop.save

    def save_and_stop(loop: Loop, path: Path) -> None:
        save(loop, path)
        if len(loop.history.epochs) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Loop, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train_seed(small(), split, 0, out=tmp_path)
    monkeypatch.undo()
    again = train_seed(small(), split, 0, out=tmp_path, resume=True)
    assert [row.train_loss for row in again.history.epochs] == [row.train_loss for row in whole.history.epochs]
    for name, tensor in whole.learner.module.state_dict().items():
        assert torch.equal(tensor, again.learner.module.state_dict()[name]), name


def test_a_checkpoint_of_other_pairs_is_refused(tmp_path: Path) -> None:
    rows = cyphers(40)
    train_seed(small(), split_of(rows), 0, out=tmp_path)
    swapped = str.maketrans("AB", "XY")
    others = [(source, target.translate(swapped)) for source, target in rows]
    with pytest.raises(ConfigurationError, match="was made with other data or another model"):
        train_seed(small(), split_of(others), 0, out=tmp_path, resume=True)


def test_the_best_epoch_is_the_one_that_writes_best() -> None:
    split = split_of(cyphers(120))
    trained = train_seed(small(epochs=6, learning_rate=0.03), split, 0, out=None)
    errors = [row.validation_loss for row in trained.history.epochs]
    assert trained.history.best_loss == min(errors)
    assert trained.figures["validation"]["symbol_error"] == pytest.approx(min(errors))


def test_frames_are_joined_with_their_transcripts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames, told = ["stream,time,a,b"], ["stream\ttarget"]
    for stream in range(10):
        frames += [f"s{stream},{t},{a:.3f},{b:.3f}" for t, (a, b) in enumerate(rng.normal(size=(4, 2)))]
        told.append(f"s{stream}\t{stream % 3}")
    (tmp_path / "frames.csv").write_text("\n".join(frames))
    (tmp_path / "told.tsv").write_text("\n".join(told))
    more = '[pairs]\ntranscripts = "told.tsv"\n[training]\nepochs = 1\n'
    path = config(tmp_path, BASE.replace("pairs.tsv", "frames.csv").format(task="recognise", more=more))
    split = read_split(read_config(path), tmp_path, [])
    assert split.source_units is None
    assert split.features == ("a", "b")
    assert len(split.train) + len(split.validation) + len(split.test) == 10
    assert split.train[0].source.shape == (4, 2)  # type: ignore[union-attr]
    assert train.main(["--config", str(path), "--out", str(tmp_path / "out")]) == 0
    (tmp_path / "told.tsv").write_text("\n".join(told[:-1]))
    with pytest.raises(ConfigurationError, match="no transcript of stream 's9'"):
        read_split(read_config(path), tmp_path, [])


def test_a_model_that_learnt_nothing_is_warned_about() -> None:
    figures_ = {"exact_match": 0.1, "baseline_exact_match": 0.2, "symbol_error": 0.3, "baseline_symbol_error": 0.5}
    (text,) = warnings({"test": figures_})
    assert "exact_match 0.1 is no better than the baseline's 0.2" in text


@settings(max_examples=20)
@given(st.text("abz", min_size=1, max_size=5))
def test_what_training_never_saw_is_unknown(text: str) -> None:
    alphabet = Alphabet.of(PairSplit([Pair(("a", "b"), (("x",),))], [], []), first=BLANK)
    assert alphabet.encode(tuple(text))[:, 0].tolist() == [{"a": 1.0, "b": 2.0}.get(letter, 0.0) for letter in text]
    assert alphabet.samples([Pair(("a",), (("y",), ("x",)))])[0].y.tolist() == [1]
