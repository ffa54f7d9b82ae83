"""Modules of whole sequences as people write them: exported, compared with PyTorch, loaded as the service loads them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import onnx
import their_modules
import torch

from export.__main__ import main
from export.modules.sequence import export_sequence_module
from export.verify import verify
from streamer.errors import ModelError, ModelRunError
from streamer.modelfile.model import Model

pytestmark = pytest.mark.torch

WORDS = {"shape": ["batch", "time"], "dtype": "int64"}
WORDS_TIME_FIRST = {"shape": ["time", "batch"], "dtype": "int64"}


def numbers(features: int) -> dict[str, Any]:
    return {"shape": ["batch", "time", features]}


def made(name: str) -> Any:
    torch.manual_seed(0)
    return getattr(their_modules, name)().eval()


KINDS: dict[str, tuple[dict[str, Any], str, dict[str, list[Any]], dict[str, list[Any]]]] = {
    # module -> input, mode, outputs, states
    "SentenceClassifier": (WORDS, "window", {"y": ["batch", 3]}, {}),
    "Tagger": (WORDS, "window", {"y": ["batch", "time", 4]}, {}),
    "Seq2SeqEncoder": (WORDS_TIME_FIRST, "window", {"y": ["time", "batch", 10], "y_2": ["batch", 5]}, {}),
    "NormedGru": (
        numbers(3),
        "step",
        {"y": ["batch", "time", 2]},
        {"first_h": [1, "batch", 7], "second_h": [1, "batch", 7]},
    ),
    "TimeFirst": ({"shape": ["time", "batch", 4]}, "step", {"y": ["time", "batch", 2]}, {"h": [2, "batch", 6]}),
    "Projected": (numbers(4), "window", {"y": ["batch", 6]}, {}),
    "ProjectedStep": (
        numbers(4),
        "step",
        {"y": ["batch", "time", 1]},
        {"h": [2, "batch", 3], "c": [2, "batch", 8]},
    ),
    "ResidualStack": (
        numbers(3),
        "step",
        {"logits": ["batch", "time", 2], "score": ["batch", "time"]},
        {f"layers_{layer}_{state}": [1, "batch", 6] for layer in (0, 1) for state in "hc"},
    ),
    "CellLoop": (numbers(3), "step", {"y": ["batch", "time", 2]}, {"h": ["batch", 5], "c": ["batch", 5]}),
    "OwnRecurrence": (numbers(3), "step", {"y": ["batch", "time", 2]}, {"state": ["batch", 4]}),
    "Attending": (numbers(3), "window", {"y": ["batch", 3]}, {}),
    "Translator": (numbers(3), "window", {"y": ["batch", "time", 3]}, {}),
    "plain_lstm": (numbers(3), "step", {"y": ["batch", "time", 4]}, {"h": [1, "batch", 4], "c": [1, "batch", 4]}),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_module_as_it_is(name: str, tmp_path: Path) -> None:
    """Outputs and states against PyTorch row by row, batch and padding independence, pieces against the whole."""
    given, mode, outputs, states = KINDS[name]
    module, path = made(name), tmp_path / "m.onnx"
    contract, _ = export_sequence_module(module, path, {"name": name, "input": given})
    assert contract.mode == mode
    assert {output.name: list(output.shape) for output in contract.outputs} == outputs
    assert {state.input: list(state.shape) for state in contract.states} == states
    report = verify(path, module)
    assert report["passed"], report["checks"]
    made_checks = {check["name"]: check["value"] for check in report["checks"]}
    assert {"parity", "batch_invariance"} <= set(made_checks)
    assert ("whole_sequence" in made_checks) == (mode == "step")
    assert max(made_checks.values()) <= 1e-5
    looped = name in ("CellLoop", "OwnRecurrence")
    assert ("padding_independence" in made_checks) != looped
    model = Model.load(path)
    assert model.max_steps == (1 if looped else None)
    assert all(finding.passed for finding in model.findings)


def test_recurrent_layers_become_nodes_with_lengths(tmp_path: Path) -> None:
    export_sequence_module(made("SentenceClassifier"), tmp_path / "m.onnx", {"name": "m", "input": WORDS})
    graph = onnx.load(tmp_path / "m.onnx").graph
    nodes = [node for node in graph.node if node.op_type == "LSTM"]
    assert len(nodes) == 2
    weights = {each.name for each in graph.initializer}
    for node in nodes:
        assert {*node.input[1:4]} <= weights, "constant, so that a runtime can pre-pack them"
        assert node.input[4] == "lengths"
    assert not {"Dropout", "Loop", "Recurrent"} & {node.op_type for node in graph.node}
    assert weights <= {name for node in graph.node for name in node.input}, "nothing that is not used"


def test_exports_of_one_kind_in_one_process_do_not_leak(tmp_path: Path) -> None:
    """Torch's own lowering of a layer freezes the time axis from the second export on (pitfall E3)."""
    for number in range(2):
        path = tmp_path / f"{number}.onnx"
        export_sequence_module(made("NormedGru"), path, {"name": "m", "input": numbers(3)})
        model = Model.load(path)
        assert model.max_steps is None
        model.run(np.zeros((4, 11, 3), np.float32), np.full(4, 11, np.int32), model.initial_states(4))


def test_a_word_outside_of_the_table_is_refused_not_answered_as_another(tmp_path: Path) -> None:
    export_sequence_module(made("SentenceClassifier"), tmp_path / "m.onnx", {"name": "m", "input": WORDS})
    model = Model.load(tmp_path / "m.onnx")
    model.run(np.array([[[0], [39]]], np.float32), np.full(1, 2, np.int32), [])
    for word in (-1, 40):
        with pytest.raises(ModelRunError, match="out of data bounds"):
            model.run(np.array([[[0], [word]]], np.float32), np.full(1, 2, np.int32), [])


def test_a_learned_first_state_is_kept(tmp_path: Path) -> None:
    module = made("ResidualStack")
    contract, _ = export_sequence_module(module, tmp_path / "m.onnx", {"name": "m", "input": numbers(3)})
    for state in contract.states:
        np.testing.assert_allclose(state.initial_row()[0, 0], module.start.detach().numpy()[0, 0])


def test_where_padding_would_matter_rows_of_equal_length_share_a_call(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    contract, notes = export_sequence_module(made("Convolved"), path, {"name": "m", "input": numbers(3)})
    assert (contract.mode, contract.lengths) == ("window", None)
    assert notes == ["only rows of equal length share a call: padding would change what it gives"]
    assert verify(path, made("Convolved"))["passed"]


def test_an_answer_at_the_end_can_be_an_answer_for_every_event(tmp_path: Path) -> None:
    """``mode = "step"`` of a module that looks at the last step only: after each event as if the sequence ended there."""
    path, module = tmp_path / "m.onnx", made("LastOfCells")
    contract, _ = export_sequence_module(module, path, {"name": "m", "mode": "step", "input": numbers(3)})
    assert contract.outputs[0].per == "event"
    report = verify(path, module)
    assert report["passed"], report["checks"]
    assert "whole_sequence" in {check["name"] for check in report["checks"]}


def test_what_is_declared_is_kept(tmp_path: Path) -> None:
    fields = {
        "name": "m",
        "mode": "window",
        "input": {"name": "events", **numbers(3), "features": ["a", "b", "c"]},
        "lengths": "valid",
        "outputs": [{"name": "likely", "labels": ["no", "yes"]}],
        "metrics": {"f1": 0.5},
    }
    contract, _ = export_sequence_module(made("NormedGru"), tmp_path / "m.onnx", fields)
    assert (contract.mode, contract.lengths, contract.feature_names) == ("window", "valid", ("a", "b", "c"))
    assert contract.outputs[0].kind == "classes"
    assert contract.metrics == {"f1": 0.5}
    assert (contract.cell, contract.layers, contract.hidden) == ("gru", 2, 7)
    renamed = {"name": "m", "input": numbers(3), "states": [{"input": s, "shape": [1, "batch", 7]} for s in ("p", "q")]}
    contract, _ = export_sequence_module(made("NormedGru"), tmp_path / "n.onnx", renamed)
    assert [(state.input, state.output) for state in contract.states] == [("p", "p_next"), ("q", "q_next")]


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("NormedGru", {"input": numbers(4)}, r"forward failed on float32 events of shape \[2, 5, 4\].*'first'.*correct input"),
        ("NormedGru", {"input": numbers(3), "outputs": [{"name": "y", "shape": ["batch", "time", 5]}]}, r"makes \['batch'"),
        ("NormedGru", {"input": numbers(3), "outputs": [{"name": "a"}, {"name": "b"}]}, "declares the outputs a, b, but"),
        ("NormedGru", {"input": numbers(3), "states": [{"input": "h", "shape": [1, "batch", 7]}]}, "the module carries first_h"),
        ("NormedGru", {"input": {"shape": ["batch", "tme", 3, "time"]}}, "field input.shape"),
        ("Tagger", {"input": WORDS, "mode": "step"}, "submodule 'rnn' is bidirectional.*declare mode window"),
        ("Translator", {"input": numbers(3), "mode": "step"}, "submodule 'decoder' starts from what another one ends with"),
        ("Convolved", {"input": numbers(3), "mode": "step"}, "submodule 'conv' looks at more than one step"),
        ("Convolved", {"input": numbers(3), "lengths": "lengths"}, "padding changes the result"),
        ("LastOfCells", {"input": numbers(3)}, "submodule 'cell' is called in a loop over time.*declare mode step, or use"),
        ("DataDependent", {"input": numbers(3)}, r"depends on the values of the events in their_modules.py, line \d+"),
        ("Disguised", {"input": numbers(3)}, r"submodule 'core' \(OwnForward\) has a forward of its own"),
        ("RandomStart", {"input": numbers(3)}, "different values for the same events"),
        ("Masked", {"input": numbers(3)}, "needs 'mask', which is neither lengths"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_sentence(name: str, fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as raised:
        export_sequence_module(made(name), tmp_path / "m.onnx", {"name": "m", **fields})
    assert re.search(said, str(raised.value)), raised.value
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_trained_exported_verified_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way of a user: one epoch, a checkpoint as a training loop writes it, the command, and what the command keeps."""
    module = made("SentenceClassifier").train()
    optimiser = torch.optim.Adam(module.parameters(), 0.01)
    tokens = torch.randint(1, 40, (64, 9))
    for rows in tokens.split(16):
        loss = torch.nn.functional.cross_entropy(module(rows), rows[:, -1] % 3)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    weights = {f"model.{name}": value.half() for name, value in module.state_dict().items()}
    torch.save({"epoch": 1, "best": np.float64(0.5), "state_dict": weights}, tmp_path / "last.ckpt")
    (tmp_path / "m.toml").write_text('name = "m"\ninput = {shape = ["batch", "time"], dtype = "int64"}\n')
    out = tmp_path / "out" / "m.onnx"
    options = ["--weights", str(tmp_path / "last.ckpt"), "--contract", str(tmp_path / "m.toml"), "--out", str(out)]
    assert main(["export", "their_modules:SentenceClassifier", *options, "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["passed"]
    said = " ".join(report["notes"])
    assert "float16 tensors were converted" in said
    assert "prefix 'model.' was taken off" in said
    assert verify(out)["checks"][0]["name"] == "parity", "the weights beside the model are enough"
    model = Model.load(out)
    x = np.random.default_rng(0).integers(0, 40, (3, 7, 1)).astype(np.float32)
    (y,), _ = model.run(x, np.array([7, 2, 5], np.int32), [])
    with torch.no_grad():
        expected = module.eval().half().float()(torch.from_numpy(x[1:2, :2, 0]).long())
    np.testing.assert_allclose(y[1:2], expected, atol=1e-5)
    assert main(["export", "their_modules:SentenceClassifier", "--draft"]) == 0
    assert 'dtype = "int64"' in capsys.readouterr().out
