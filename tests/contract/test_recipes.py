"""Every recipe: reaches its metric, beats its baseline, and its exported model computes what PyTorch does."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import torch
from durable import begin, encoded, make_processor, settle

from export import recipes
from export.generate import rollout
from export.model import SequenceModel, load
from export.recipes.characters import read_text
from export.tasks import EVALUATION_STEPS
from streamer.core import RecordBatch
from streamer.engine.processor import Processor
from streamer.errors import ConfigurationError
from streamer.modelfile.model import Model
from streamer.records.decode import Codec
from streamer.windows import WindowRule

pytestmark = pytest.mark.torch

NOW_MS = 1_700_000_000_000


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_reaches_its_metric_and_serves_what_it_learnt(name: str, tmp_path: Path) -> None:
    recipe = recipes.get(name)
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
            check_generation(served, module, events[: 1 if name == "captions" else 20])


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
        assert len((folder / f"{name}.py").read_text().splitlines()) < 80, name


def test_the_command_lists_all_and_refuses_the_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert recipes.main(["list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert set(listed) == {"anomaly", "captions", "characters", "music", "sentiment", "tagging"}
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
    (tmp_path / "bad.tsv").write_text("wonderful film\n")
    with pytest.raises(ConfigurationError, match="line 1"):
        recipes.run("sentiment", tmp_path / "out2", quick=True, data=tmp_path / "bad.tsv")


def test_characters_that_only_the_held_out_text_has_are_unknown() -> None:
    split = read_text("ab" * 2000 + "z" * 100)
    assert split.train.classes is not None
    assert "z" not in split.train.classes
    assert float(split.test.x[0][-1, 0]) == 0
    with pytest.raises(ConfigurationError, match="different characters"):
        read_text("".join(chr(200 + i) for i in range(3000)))
