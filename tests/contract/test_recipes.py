"""Every recipe: reaches its metric, beats its baseline, and its exported model computes what PyTorch does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import torch

from export import recipes
from export.model import load
from export.recipes.characters import read_text
from export.tasks import EVALUATION_STEPS
from streamer.errors import ConfigurationError
from streamer.model import Model

pytestmark = pytest.mark.torch


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
    outputs, states = served.run(x, lengths, served.initial_states(len(judged)))
    with torch.no_grad():
        expected, expected_states = module(torch.from_numpy(x), torch.from_numpy(lengths))
    for output, fields in zip(outputs, served.contract.outputs, strict=True):
        wanted = expected[fields.name].numpy()
        for row, length in enumerate(lengths):
            mine, theirs = (
                (output[row], wanted[row]) if output.ndim == 2 else (output[row, :length], wanted[row, :length])
            )
            np.testing.assert_allclose(mine, theirs, atol=1e-5, rtol=1e-5)
    for state, wanted_state in zip(states, expected_states, strict=True):
        np.testing.assert_allclose(state, wanted_state.numpy(), atol=1e-5, rtol=1e-5)


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
