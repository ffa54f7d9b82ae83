"""Every recipe: reaches its metric, beats its baseline, and its exported model computes what PyTorch does."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import torch
from durable import begin, encoded, make_processor, settle
from tooling import require_tool

from export import recipes
from export.card import card
from export.encdec.module import load_pair
from export.generate import rollout
from export.model import ModelConfig, SequenceModel, build, load
from export.pairs.data import BLANK, END, Alphabet
from export.pairs.learners import CtcLearner, PairLearner, write_all
from export.pairs.pictures import as_events, of_pictures
from export.pairs.recipe import PairRecipe, package
from export.pairs.train import evaluate
from export.publish import publish
from export.recipes import captions
from export.recipes.characters import VOCABULARY, read_text
from export.tasks import EVALUATION_STEPS
from streamer.core import RecordBatch
from streamer.engine.processor import Processor
from streamer.errors import ConfigurationError
from streamer.generate.search import decode
from streamer.modelfile.model import Model
from streamer.records.decode import Codec
from streamer.windows import WindowRule

pytestmark = pytest.mark.torch

NOW_MS = 1_700_000_000_000


PAIRS = [name for name in recipes.names() if isinstance(recipes.get(name), PairRecipe)]


def needed(name: str) -> None:
    if name == "digits":
        require_tool("espeak-ng")


@pytest.mark.parametrize("name", PAIRS)
def test_a_recipe_of_pairs_reaches_its_metric(name: str, tmp_path: Path) -> None:
    needed(name)
    result = recipes.run(name, tmp_path, quick=True)
    assert result["passed"], result
    assert not result["warnings"]
    assert " -> " in result["sample"]
    assert json.loads((tmp_path / "result.json").read_text())["value"] == result["value"]
    assert result["verification"]["passed"]
    contract = Model.load(tmp_path / "model.onnx").contract
    assert contract.metrics[f"test_{result['metric']}"] == result["value"]
    told = card(tmp_path / "model.onnx")
    for other, value in result["others"].items():
        assert f"| {result['metric']}: {other} | {value:.4f} |" in told
    assert all(f"| {stem}.onnx: symbol_error |" in told for stem in result["beside"])
    check_written(name, tmp_path)
    if name == "digits":
        check_delays(result, tmp_path)
    if name == "captions":
        before = result["measured"]["accuracy: one state for the whole picture"]
        assert result["figures"]["accuracy"] > before > 0.5, "of the recipe before this one, words given"


def check_delays(result: dict[str, Any], folder: Path) -> None:
    """Each card says how late its model tells a digit; the difference is what a causal one's symbols came earlier."""
    cards = {stem: Model.load(folder / f"{stem}.onnx").contract.metrics for stem in ("model", "causal")}
    assert cards["model"]["test_delay_s"] == result["figures"]["delay_s"]
    assert cards["causal"]["test_delay_s"] == result["beside"]["causal"]["figures"]["delay_s"]
    earlier = cards["model"]["test_delay_s"] - cards["causal"]["test_delay_s"]
    assert earlier == pytest.approx(result["measured"]["wait_s"], abs=0.3)
    assert cards["causal"]["test_delay_p95_s"] < cards["model"]["test_delay_s"] < result["measured"]["utterance_s"]


@pytest.mark.accept
@pytest.mark.parametrize("name", PAIRS)
def test_a_full_training_on_pairs_reaches_its_limits(name: str, tmp_path: Path) -> None:
    """The limits are written out here, so that a recipe cannot lower its own."""
    needed(name)
    result = recipes.run(name, tmp_path)
    figures, others = result["figures"], result["others"]
    if name == "correction":
        assert "Norvig's method among training words" in others
        assert figures["exact_match"] >= max(0.35, 3 * others["nearest among training words"]), result
    if name == "pronunciation":
        assert figures["exact_match"] >= 0.60, result  # word error
        assert figures["symbol_error"] <= 0.12, result
    if name == "translation":
        assert figures["exact_match"] >= 0.95, result
    if name == "digits":
        causal = result["beside"]["causal"]["figures"]["exact_match"]
        assert figures["exact_match"] >= 0.90, result  # sequence error
        assert figures["exact_match"] - causal <= 0.05, result
        assert {"rtf_whole", "rtf_step_by_step"} <= set(result["measured"])
    assert result["passed"], result
    assert "## Beside it" in card(tmp_path / "model.onnx")


def check_written(name: str, folder: Path) -> None:
    """What lies in the folder writes as well as the result says: loaded again, and judged again."""
    recipe = recipes.get(name)
    assert isinstance(recipe, PairRecipe)
    split = recipe.make(True)
    first = BLANK if recipe.task == "recognise" else END
    alphabet = Alphabet.of(split, first=first)
    learner = CtcLearner(load(folder / "model.pt")) if first == BLANK else PairLearner(load_pair(folder / "model.pt"))
    again = evaluate(learner, alphabet, split, split.test)
    told = json.loads((folder / "result.json").read_text())["figures"]
    assert again == pytest.approx({figure: told[figure] for figure in again}, abs=0.002)
    if isinstance(learner, PairLearner):
        judged = [pair for pair in split.test[:60] if len(pair.source)]
        mine = [alphabet.names(row) for row in write_all(learner, [alphabet.encode(pair.source) for pair in judged])]
        sent = [p.source.tolist() if isinstance(p.source, np.ndarray) else split.text_of_source(p) for p in judged]
        assert written_about(folder / "model.onnx", sent) == [split.text(each) for each in mine]


def written_about(path: Path, sent: Sequence[Any]) -> list[str]:
    """What the file writes about records with these texts, or frames."""
    model = Model.load(path)
    codec, declared = Codec(model.contract, "json"), model.contract.decoder
    assert declared is not None
    values: list[bytes | None] = [json.dumps({"x": each}).encode() for each in sent]
    stamps = [NOW_MS] * len(values)
    batch = codec.decode(RecordBatch(0, list(range(len(values))), stamps, [b"s"] * len(values), values))
    assert batch.steps is not None
    xs = np.split(batch.x, np.cumsum(batch.steps)[:-1])
    joint = declared.joint
    assert joint is not None
    return [joint.join(declared.labels[each] for each in written.symbols) for written in decode(model, xs)]


@pytest.mark.parametrize("name", sorted(set(recipes.names()) - set(PAIRS)))
def test_a_recipe_reaches_its_metric_and_serves_what_it_learnt(name: str, tmp_path: Path) -> None:
    recipe = recipes.get(name)
    assert isinstance(recipe, recipes.Recipe)
    result = recipes.run(name, tmp_path, quick=True)
    assert result["beats_baseline"], result
    assert result["passed"], result
    assert result["verification"]["passed"]
    served, module = Model.load(tmp_path / "model.onnx"), load(tmp_path / "model.pt")
    assert served.contract.mode == module.mode
    assert (served.contract.feedback is None) == (recipe.feedback is None)
    judged = recipe.make(True).test.x[:5]
    steps = min(EVALUATION_STEPS, max(len(x) for x in judged))
    lengths = np.array([min(steps, len(x)) for x in judged], np.int32)
    x = np.zeros((len(judged), int(lengths.max()), judged[0].shape[1]), np.float32)
    for row, events in enumerate(judged):
        x[row, : lengths[row]] = events[: lengths[row]]
    _, states = served.run(x, lengths, served.initial_states(len(judged)))
    found = through_processor(served, [row[:length] for row, length in zip(x, lengths, strict=True)])
    with torch.no_grad():
        expected, expected_states = module(torch.from_numpy(x), torch.from_numpy(lengths))
    for output in served.contract.outputs:
        wanted = expected[output.name].numpy()
        for row, length in enumerate(lengths):
            theirs = wanted[row] if output.per == "window" else wanted[row, :length]
            np.testing.assert_allclose(found[row][output.name], theirs, atol=1e-5, rtol=1e-5)
    for state, wanted_state in zip(states, expected_states, strict=True):
        np.testing.assert_allclose(state, wanted_state.numpy(), atol=1e-5, rtol=1e-5)
    if recipe.feedback is not None:
        for events in judged[:3]:
            check_generation(served, module, events[:20])


def test_a_vector_is_the_first_event_of_what_is_generated(tmp_path: Path) -> None:
    """Argmax as one-hot beside a picture: what captions did before they had a decoder, and what their baseline does."""
    part = captions.make(True).train[:20]
    events = as_events(of_pictures((part, part, part)))
    width, words = events.train.x[0].shape[1], events.train.classes or ()
    config = ModelConfig(width, 16, outputs=len(words), activation="softmax", labels=words)
    module = build(config).eval()
    with torch.no_grad():
        module.head.weight.mul_(20.0)  # what comes next depends on what came
    feedback = {"output": "y", "mode": "argmax", "encoding": "one-hot", "at": width - len(words)}
    assert publish(module, tmp_path, name="m", features=events.train.features, feedback=feedback)["passed"]
    for x in events.train.x[:3]:
        check_generation(Model.load(tmp_path / "model.onnx"), module, x[:1])


def ingest(processor: Processor, model: Model, rows: list[tuple[bytes, bytes, str | None]]) -> None:
    """Records (stream, value, command) of a fetch, decoded and settled as the service does."""
    headers = {row: [("streamer-op", op.encode())] for row, (_, _, op) in enumerate(rows) if op is not None}
    first = processor.partitions[0].next_offset
    offsets = list(range(first, first + len(rows)))
    raw = RecordBatch(
        0, offsets, [NOW_MS + o for o in offsets], [r[0] for r in rows], [r[1] for r in rows], dict(headers)
    )
    settle(processor, Codec(model.contract, "float32", generates=True).decode(raw))


def told(processor: Processor) -> dict[str, list[dict[str, Any]]]:
    """Sealed answers by stream."""
    epoch, found = processor.seal(0), defaultdict(list)
    assert epoch is not None
    assert not epoch.rejects
    for value in (value for out in encoded(processor, epoch) for value in out.values):
        document = json.loads(value)
        found[document["stream"]].append(document)
    return found


def through_processor(model: Model, sequences: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Outputs by name of every sequence, each a stream, or a window that ends with its stream."""
    rule = WindowRule(kind="end") if model.contract.mode == "window" else None
    processor = make_processor([("m", model, rule)], max_bytes=1 << 24)
    begin(processor)
    rows = [(b"%d" % n, event.astype("<f4").tobytes(), None) for n, x in enumerate(sequences) for event in x]
    ingest(processor, model, [*rows, *((b"%d" % n, b"", "end") for n in range(len(sequences)))])
    answers, names = told(processor), [output.name for output in model.contract.outputs]
    result = []
    for n in range(len(sequences)):
        mine = answers[str(n)]
        by_name = {
            name: np.array([each["y" if len(names) == 1 else name] for each in mine], np.float32) for name in names
        }
        shapes = {output.name: output for output in model.contract.outputs}
        result.append(
            {
                name: values[0] if rule is not None else values.reshape(len(mine), shapes[name].size)
                for name, values in by_name.items()
            }
        )
    return result


def check_generation(model: Model, module: SequenceModel, before: np.ndarray, steps: int = 12) -> None:
    """Greedy rollouts of the service from a stream's state and from a prompt are PyTorch's."""
    feedback = model.contract.feedback
    assert feedback is not None
    wide = torch.eye(model.contract.features)
    pick: Any = (lambda y: y) if feedback.mode == "value" else lambda y: (y >= 0.5).float()
    if feedback.encoding != "value":
        pick = lambda y: y.argmax()  # noqa: E731
    encode: Any = (lambda token: wide[feedback.at + token]) if feedback.encoding == "one-hot" else lambda token: token
    wanted = [picked.numpy() for picked in rollout(module, before, steps, pick, encode, feedback.output)]
    processor = make_processor([("m", model, None)], max_bytes=1 << 24)
    begin(processor)
    greedy = {} if feedback.mode == "value" else {"temperature": 0}
    prompt = [[float(number) for number in event] for event in before]
    asked = [{"n": steps, **greedy}, {"n": steps, "prompt": prompt, "from": "initial", **greedy}]
    ingest(processor, model, [(b"s", event.astype("<f4").tobytes(), None) for event in before])
    ingest(processor, model, [(b"s", json.dumps(request).encode(), "generate") for request in asked])
    while processor.rolling:
        processor.roll()
    generated = [each for each in told(processor)["s"] if "generate" in each]
    assert len(generated) == 2
    for answer in generated:
        np.testing.assert_allclose(np.array(answer["y"]), np.array(wanted), atol=1e-4)


def test_a_recipe_is_short() -> None:
    folder = Path(recipes.__file__).parent
    for name in recipes.names():
        assert len((folder / f"{name}.py").read_text().splitlines()) < 100, name


def test_the_command_lists_all_and_refuses_the_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert recipes.main(["list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    of_events = {"anomaly", "characters", "music", "sentiment", "tagging"}
    assert set(listed) == of_events | {"captions", "correction", "digits", "pronunciation", "translation"}
    assert recipes.main(["cooking"]) == 2
    assert "no recipe 'cooking', there are anomaly" in capsys.readouterr().err


def test_a_users_file_takes_the_place_of_the_recipes_data(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(300):
        good = bool(rng.integers(2))
        words = ["room", "unheard", "good" if good else "bad"]
        lines.append(f"{'positive' if good else 'negative'}\tthe {words[0]} was {words[1]} {words[2]}")
    (tmp_path / "mine.tsv").write_text("\n".join(lines))
    result = recipes.run("sentiment", tmp_path / "out", quick=True, data=tmp_path / "mine.tsv")
    assert result["limit"] is None
    assert result["value"] > 0.95
    contract = Model.load(tmp_path / "out" / "model.onnx").contract
    assert set(contract.feature_tables[0].vocabulary) == {"<unknown>", "the", "room", "was", "unheard", "good", "bad"}
    assert contract.feature_tables[0].unknown == 0
    (tmp_path / "bad.tsv").write_text("wonderful film\n")
    with pytest.raises(ConfigurationError, match="line 1"):
        recipes.run("sentiment", tmp_path / "out2", quick=True, data=tmp_path / "bad.tsv")


def csv(path: Path, header: str, lines: list[str]) -> Path:
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def test_foreign_words_and_labels_take_a_tagger_over(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = []
    for i in range(400):  # the meaning of "bank" depends on the word after it
        river = bool(rng.integers(2))
        words = [("die", "ART"), ("bank", "UFER" if river else "GELD"), ("fließt" if river else "zahlt", "VERB")]
        lines += [f"s{i};{at};{word};{tag}" for at, (word, tag) in enumerate(words)]
    path = csv(tmp_path / "mine.csv", "stream;time;wort;label", lines)
    result = recipes.run("tagging", tmp_path / "out", quick=True, data=path)
    assert result["passed"], result
    assert result["value"] > 0.98
    assert result["baseline"]["value"] < 0.9
    contract = Model.load(tmp_path / "out" / "model.onnx").contract
    assert contract.feature_names == ("wort",)
    assert contract.outputs[0].labels == ("ART", "GELD", "UFER", "VERB")


def test_foreign_verdicts_may_have_any_number_of_names(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = ["gut", "naja", "schlecht"]
    lines = [f"{names[n]}\tdas war {('prima', 'so lala', 'mies')[n]} heute" for n in rng.integers(0, 3, 300)]
    (tmp_path / "mine.tsv").write_bytes("\n".join(lines).encode("utf-16"))
    result = recipes.run("sentiment", tmp_path / "out", quick=True, data=tmp_path / "mine.tsv")
    assert result["value"] > 0.95
    assert Model.load(tmp_path / "out" / "model.onnx").contract.outputs[0].labels == tuple(names)


def test_foreign_pictures_get_foreign_captions(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = []
    for i in range(300):
        high = bool(rng.integers(2))
        pixels = rng.normal(2.0 if high else -2.0, 0.3, 3)
        first = ",".join(f"{value:.3f}" for value in pixels)
        lines += [f"s{i},0,{first},{'hoch' if high else 'tief'}", f"s{i},1,,,,oben" if high else f"s{i},1,,,,unten"]
    path = csv(tmp_path / "mine.csv", "stream,time,a,b,c,label", lines)
    result = recipes.run("captions", tmp_path / "out", quick=True, data=path)
    assert result["value"] > 0.95
    assert {line.rpartition("-> ")[2] for line in result["sample"].split("\n")} <= {"hoch oben", "tief unten"}
    contract = Model.load(tmp_path / "out" / "model.onnx").contract
    assert (contract.input.steps, contract.features) == ("many", 3)


def test_a_users_pairs_take_the_place_of_the_recipes_data(tmp_path: Path) -> None:
    rows = [(a + b, f"{b.upper()} {a.upper()}") for a in "abcdefghij" for b in "klmnopqrst"]
    (tmp_path / "mine.txt").write_text("".join(f"{' '.join(source)}\t{target}\n" for source, target in rows))
    result = recipes.run("translation", tmp_path / "out", quick=True, data=tmp_path / "mine.txt")
    assert result["limits"] == {}
    assert result["others"]
    assert "bleu" in result["figures"]
    (tmp_path / "bad.txt").write_text("bonjour hello\n")
    with pytest.raises(ConfigurationError, match="line 1: 1 columns"):
        recipes.run("translation", tmp_path / "out", quick=True, data=tmp_path / "bad.txt")


def test_a_package_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"no_such_words is not installed: pip install '.\[recipes\]'"):
        package("no_such_words")


def test_foreign_telemetry_says_which_label_is_normal(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = []
    for i in range(12):
        values = np.sin(np.arange(120) / 3) + rng.normal(0, 0.02, 120)
        labels = np.full(120, "ok", object)
        for at in (40, 80):
            values[at] += 3.0
            labels[at] = "bearing"
        labels[:5] = ""
        lines += [
            f"m{i},{at},{value:.4f},{label}" for at, (value, label) in enumerate(zip(values, labels, strict=True))
        ]
    path = csv(tmp_path / "mine.csv", "stream,time,shake,label", lines)
    with pytest.raises(ConfigurationError, match=r"which of the labels bearing, ok is that of normal events"):
        recipes.run("anomaly", tmp_path / "out", quick=True, data=path)
    result = recipes.run("anomaly", tmp_path / "out", quick=True, data=path, normal="ok")
    assert result["value"] > 0.95


def test_characters_that_only_the_held_out_text_has_are_unknown() -> None:
    split = read_text("ab" * 2000 + "z" * 100)
    (table,) = split.train.tables
    assert "z" not in table.vocabulary
    assert float(split.test.x[0][-1, 0]) == 0
    many = read_text("".join(chr(200 + i) for i in range(3000)) * 2)
    assert len(many.train.tables[0].vocabulary) == VOCABULARY + 1
    assert many.train.tables[0].unknown == 0
