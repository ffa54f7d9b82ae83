"""Sidecars drafted from graphs that others made: what is filled in, and that none is served before it was read."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx")

from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from onnx_models import INT32, INT64, graph_model, lstm, lstm_fields
from onnx_models import save as save_model

from streamer.errors import ModelError
from streamer.modelfile.contract import Contract, load_sidecar
from streamer.modelfile.draft import draft, toml
from streamer.modelfile.model import Model


def test_a_draft_becomes_the_contract_once_it_is_decided(tmp_path: Path) -> None:
    path = save_model(lstm(), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"streamer inspect m\.onnx --draft"):
        Model.load(path)
    text = draft(path)
    sidecar = tmp_path / "m.toml"
    sidecar.write_text(text)
    with pytest.raises(ModelError, match=r"field mode.*DECIDE"):
        Model.load(path)
    sidecar.write_text(text.replace('mode = "DECIDE"', 'mode = "step"'))
    model = Model.load(path)
    declared = Contract.from_fields(lstm_fields())
    assert model.contract.input == declared.input
    assert model.contract.states == declared.states
    assert model.contract.lengths == declared.lengths
    assert [output.shape for output in model.contract.outputs] == [output.shape for output in declared.outputs]


def voice() -> Any:
    """As a public VAD model: batch named differently, states stacked with the batch inside, a constant side input."""
    nodes = [
        helper.make_node("Identity", ["state"], ["stateN"]),
        helper.make_node("ReduceMean", ["input"], ["mean"], keepdims=1),
        helper.make_node("Cast", ["sr"], ["rate"], to=1),
        helper.make_node("Mul", ["mean", "rate"], ["output"]),
    ]
    inputs = [("input", ["n", 512]), ("state", [2, "n", 128]), ("sr", [], INT64)]
    return graph_model(nodes, inputs, [("output", ["n", 1]), ("stateN", [2, "n", 128])])


def test_states_are_paired_and_constants_are_left_to_decide(tmp_path: Path) -> None:
    path = save_model(voice(), tmp_path / "vad.onnx")
    text = draft(path)
    fields = tomllib.loads(text)
    assert fields["input"]["shape"] == ["batch", 512]
    assert fields["states"] == [{"input": "state", "output": "stateN", "shape": [2, "batch", 128], "initial": "zeros"}]
    assert fields["constants"] == {"sr": "DECIDE"}
    assert [output["name"] for output in fields["outputs"]] == ["output"]
    assert "does this output hold the next value" in text


def test_pairs_go_by_size_and_then_by_name(tmp_path: Path) -> None:
    nodes = [helper.make_node("Identity", [a], [b]) for a, b in (("c0", "c1"), ("h0", "h1"), ("k0", "k1"), ("x", "y"))]
    sizes: dict[str, list[int | str]] = {"h": [1, "b", 4], "c": [1, "b", 4], "k": ["b", 9]}
    inputs = [("x", ["b", "t", 3]), *((f"{name}0", size) for name, size in sizes.items())]
    outputs = [("k1", sizes["k"]), ("c1", sizes["c"]), ("y", ["b", "t", 3]), ("h1", sizes["h"])]
    fields = tomllib.loads(draft(save_model(graph_model(nodes, inputs, outputs), tmp_path / "m.onnx")))
    assert {state["input"]: state["output"] for state in fields["states"]} == {"h0": "h1", "c0": "c1", "k0": "k1"}
    assert fields["input"]["shape"] == ["batch", "time", 3]


def test_sizes_that_are_nothing_known_are_left_open(tmp_path: Path) -> None:
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    path = save_model(
        graph_model(nodes, [("x", ["b", "t", "w"], INT32)], [("y", ["b", "t", "w"], INT32)]), tmp_path / "m.onnx"
    )
    fields = tomllib.loads(draft(path))
    assert fields["input"]["shape"] == ["batch", "time", "DECIDE"]
    assert fields["input"]["dtype"] == "int32"
    (tmp_path / "m.toml").write_text(draft(path))
    with pytest.raises(ModelError, match="DECIDE"):
        load_sidecar(tmp_path / "m.toml")


def test_files_that_need_no_draft_or_cannot_have_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        draft(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="not an ONNX model"):
        draft(tmp_path / "bad.onnx")
    model = lstm()
    helper.set_model_props(model, {"streamer.contract": "{}"})
    with pytest.raises(ModelError, match="has a contract inside"):
        draft(save_model(model, tmp_path / "m.onnx"))


VALUES = st.recursive(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]))
    | st.integers(-(2**31), 2**31)
    | st.booleans(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), VALUES, max_size=4))
def test_what_is_written_is_read_again(fields: dict[str, Any]) -> None:
    whole = {**fields, "table_": dict(fields), "tables_": [dict(fields), dict(fields)]}
    assert tomllib.loads(toml(whole, {"": "two\nlines", "table_": "a remark"})) == whole


def test_all_that_is_missing_is_named_at_once() -> None:
    with pytest.raises(ModelError) as raised:
        Contract.from_fields({"input": {"dtype": "int64"}, "outputs": [{"name": "y"}, {}], "states": [{"output": "h"}]})
    said = str(raised.value)
    for name in ("name", "mode (step or window)", "input.name", "input.shape", "outputs[0].shape", "outputs[1].name"):
        assert name in said
    assert "states[0].input" in said
    assert "--draft" in said
    with pytest.raises(
        ModelError, match=r"missing are name, mode \(step or window\), input \(name and shape\), outputs"
    ):
        Contract.from_fields({})
