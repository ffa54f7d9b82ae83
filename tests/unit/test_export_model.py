"""The eager models: what a ragged batch means, what a forecaster scores, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import torch

from export.cells import ColumnEncoder, TokenEmbedding, settle_unknown
from export.model import Forecaster, ModelConfig, SequenceModel, build, load, save
from export.publish import publish
from streamer.errors import ConfigurationError, ModelError

pytestmark = pytest.mark.torch

CELLS = [("lstm", "tanh"), ("gru", "tanh"), ("rnn", "tanh"), ("rnn", "relu")]


def model_of(**options: Any) -> SequenceModel:
    torch.manual_seed(0)
    model = build(ModelConfig(**{"features": 3, "hidden": 5, "outputs": 2, "layers": 2, **options}))
    model.mean.uniform_(-1, 1)
    model.std.uniform_(0.5, 2)
    return model.eval()


@pytest.mark.parametrize(("kind", "nonlinearity"), CELLS)
@pytest.mark.parametrize("reduce", [None, "last", "mean", "max"])
@pytest.mark.parametrize("directions", [1, 2])
def test_padding_and_neighbours_do_not_matter(
    kind: str, nonlinearity: str, reduce: str | None, directions: int
) -> None:
    model = model_of(kind=kind, nonlinearity=nonlinearity, reduce=reduce, directions=directions)
    lengths = torch.tensor([7, 1, 4], dtype=torch.int32)
    x = torch.randn(3, 7, 3)
    with torch.no_grad():
        together = model(x, lengths)[0]["y"]
        for row, length in enumerate(lengths.tolist()):
            alone = model(x[row : row + 1, :length])[0]["y"][0]
            mine = together[row, :length] if reduce is None else together[row]
            torch.testing.assert_close(mine, alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("task", ["sequence", "forecast"])
def test_step_by_step_equals_the_whole_sequence(kind: str, task: str) -> None:
    model = model_of(kind=kind, task=task)
    if isinstance(model, Forecaster):
        model.residual_scale.uniform_(0.5, 2)
        torch.nn.init.normal_(model.head.weight)
    x = torch.randn(2, 6, 3)
    with torch.no_grad():
        whole, last = model(x)
        states = model.initial_states(2)
        for t in range(6):
            step, states = model(x[:, t : t + 1], torch.ones(2, dtype=torch.int32), *states)
            for name, value in step.items():
                torch.testing.assert_close(value[:, 0], whole[name][:, t], atol=1e-5, rtol=1e-5)
    for a, b in zip(states, last, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_a_forecaster_scores_the_distance_from_its_own_forecast() -> None:
    model = model_of(task="forecast", kind="gru", outputs=0)
    assert isinstance(model, Forecaster)
    torch.nn.init.normal_(model.head.weight)
    model.residual_scale.copy_(torch.tensor([0.5, 1.0, 2.0]))
    x = torch.randn(2, 5, 3)
    with torch.no_grad():
        outputs, _ = model(x)
    score, forecast = outputs["score"][..., 0], outputs["forecast"]
    assert score[:, 0].tolist() == [0.0, 0.0]  # nothing was predicted for a first event
    expected = ((x[:, 1:] - forecast[:, :-1]) / model.std / model.residual_scale).square().mean(dim=-1)
    torch.testing.assert_close(score[:, 1:], expected, atol=1e-4, rtol=1e-4)


def test_initialisation_is_orthogonal_per_gate_with_an_open_forget_gate() -> None:
    model = model_of(kind="lstm")
    for gate in torch.split(model.core.weight_hh_l1.detach(), 5):
        torch.testing.assert_close(gate @ gate.T, torch.eye(5), atol=1e-5, rtol=0)
    bias = model.core.bias_ih_l0.detach()
    assert bias[5:10].tolist() == [1.0] * 5
    assert bias[:5].tolist() == [0.0] * 5
    assert model.core.bias_hh_l0.detach().tolist() == [0.0] * 20


def test_probabilities_are_part_of_the_model() -> None:
    model = model_of(activation="softmax", labels=("a", "b"), vocabulary=7, embedding=4, features=1)
    x = torch.tensor([[[0.0], [6.0], [99.0]]])
    y = model(x)[0]["y"]
    torch.testing.assert_close(y.sum(dim=-1), torch.ones(1, 3))
    assert model.output_fields()[0]["kind"] == "classes"
    assert model.output_fields()[0]["labels"] == ["a", "b"]


@pytest.mark.parametrize(
    "options", [{}, {"task": "forecast"}, {"directions": 2, "reduce": "max", "labels": ("p", "q")}]
)
def test_save_and_load_give_the_same_model(tmp_path: Path, options: dict[str, Any]) -> None:
    model = model_of(**options)
    save(model, tmp_path / "m.pt")
    again = load(tmp_path / "m.pt")
    assert again.config == model.config
    assert not again.training
    x = torch.randn(2, 4, 3)
    for name, value in model(x)[0].items():
        torch.testing.assert_close(again(x)[0][name], value, atol=0, rtol=0)
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt"]


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("not weights")
    torch.save({"weights": {}}, tmp_path / "other.pt")
    for name in ("text.pt", "other.pt", "none.pt"):
        with pytest.raises(ModelError, match=name):
            load(tmp_path / name)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"kind": "transformer"}, "kind must be one of"),
        ({"directions": 3}, "directions must be"),
        ({"hidden": 0}, "at least 1"),
        ({"dropout": 1.0}, "dropout"),
        ({"reduce": "first"}, "reduce must be"),
        ({"task": "forecast", "directions": 2}, "causal"),
        ({"task": "forecast", "score": "median"}, "score must be"),
        ({"vocabulary": 5}, "belong together"),
        ({"vocabulary": 5, "embedding": 2}, "one feature"),
        ({"labels": ("only",)}, "1 labels for 2 outputs"),
    ],
)
def test_impossible_models_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        model_of(**options)


def test_projections_are_refused_because_no_graph_could_hold_them() -> None:
    with pytest.raises(ConfigurationError, match="proj_size"):
        SequenceModel(3, 5, proj_size=2)


def test_a_number_that_is_no_category_is_the_unknown_one_or_none_at_all() -> None:
    other = [-1.0, 5.0, 1e9, -3e38]
    table = TokenEmbedding(5, 3)
    assert table(torch.tensor(other)[:, None]).abs().max() == 0
    torch.testing.assert_close(table(torch.tensor([[4.0], [0.0]])), table.table.weight[[4, 0]])
    known = TokenEmbedding(5, 3, unknown=2)
    torch.testing.assert_close(known(torch.tensor(other)[:, None]), known.table.weight[[2] * 4])


def test_embeddings_stand_beside_the_numbers_and_are_saved(tmp_path: Path) -> None:
    model = model_of(features=4, categories=((1, 5, 3, 0), (3, 4, 2, None)))
    encoder = model.encoder
    assert isinstance(encoder, ColumnEncoder)
    encoded = encoder(torch.tensor([[[0.5, 4.0, -1.5, 9.0]]]))[0, 0]
    assert encoded[:2].tolist() == [0.5, -1.5]
    torch.testing.assert_close(encoded[2:5], encoder.tables[0].table.weight[4])
    assert encoded[5:].tolist() == [0, 0]
    save(model, tmp_path / "m.pt")
    again, x = load(tmp_path / "m.pt"), torch.randn(2, 3, 4)
    torch.testing.assert_close(again(x)[0]["y"], model(x)[0]["y"])


def test_an_unknown_word_that_was_never_seen_is_the_average_one() -> None:
    for seen, changed in (([1, 1, 1, 3], True), ([1, 0, 1, 3], False)):
        table = TokenEmbedding(4, 3, unknown=0)
        before = table.table.weight.detach().clone()
        settle_unknown(table, [np.array(seen, np.float32)[:, None]])
        expected = 0.75 * before[1] + 0.25 * before[3] if changed else before[0]
        torch.testing.assert_close(table.table.weight[0].detach(), expected)
        torch.testing.assert_close(table.table.weight[1:].detach(), before[1:])


@pytest.mark.parametrize(
    "options",
    [
        {"features": 1, "vocabulary": 5, "embedding": 3},
        {"features": 1, "vocabulary": 5, "embedding": 3, "unknown": 4},
        {"features": 4, "categories": ((1, 5, 3, 0), (3, 4, 2, None))},
        {"features": 1, "categories": ((0, 5, 3, 0),), "directions": 2},
    ],
)
def test_the_file_encodes_words_as_the_module_does(tmp_path: Path, options: dict[str, Any]) -> None:
    report = publish(model_of(**options), tmp_path, name="m", features=())
    assert report["passed"], report
