"""What a contract may say, and the sentence that answers one that may not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamer.errors import ModelError
from streamer.modelfile.contract import Contract, load_sidecar


def fields(**changes: Any) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": "m",
        "mode": "step",
        "input": {"name": "x", "shape": ["batch", "time", 3]},
        "lengths": "lengths",
        "states": [{"input": "h", "output": "h_next", "shape": [2, "batch", 4]}],
        "outputs": [{"name": "y", "shape": ["batch", "time", 2], "kind": "classes", "labels": ["a", "b"]}],
        **changes,
    }
    return {key: value for key, value in document.items() if value is not ...}


def test_a_contract_survives_dump_and_parse() -> None:
    contract = Contract.from_fields(
        fields(
            version="7",
            constants={"rate": 16000},
            feedback={"output": "y", "mode": "sample", "encoding": "one-hot"},
            cell="lstm",
            trained_on={"file": "a.csv"},
            metrics={"auc": 0.9},
        )
    )
    assert Contract.parse(contract.dump()) == contract
    assert json.loads(contract.dump())["format"] == 1


def test_derived_sizes() -> None:
    contract = Contract.from_fields(
        fields(
            input={"name": "x", "shape": ["batch", 257, 1, 2]},
            lengths=...,
            outputs=[{"name": "y", "shape": ["batch", 3, 2]}, {"name": "s", "shape": ["batch"], "kind": "score"}],
        )
    )
    assert contract.features == 514
    assert contract.feature_names[:2] == ("x0", "x1")
    assert len(contract.feature_names) == 514
    assert contract.output_sizes == (6, 1)
    assert contract.single_step


def test_a_state_knows_its_axes_and_initial_values() -> None:
    contract = Contract.from_fields(
        fields(
            states=[
                {"input": "a", "output": "a2", "shape": ["batch", 2], "initial": [1.5, -2]},
                {"input": "b", "output": "b2", "shape": [2, "batch", 3], "initial": [[1, 2, 3], [4, 5, 6]]},
                {"input": "c", "output": "c2", "shape": [2, 1, "batch"], "initial": 0.5},
                {"input": "d", "output": "d2", "shape": ["batch", 1]},
            ]
        )
    )
    a, b, c, d = contract.states
    assert [state.batch_axis for state in contract.states] == [0, 1, 2, 0]
    assert b.row_shape == (2, 3)
    np.testing.assert_array_equal(a.initial_row(), [[1.5, -2]])
    np.testing.assert_array_equal(b.initial_row(), [[[1, 2, 3]], [[4, 5, 6]]])
    np.testing.assert_array_equal(c.initial_row(), np.full((2, 1, 1), 0.5))
    np.testing.assert_array_equal(d.initial_row(), [[0]])


def test_outputs_of_window_models_are_per_window_without_a_time_axis() -> None:
    shapes = [{"name": "y", "shape": ["batch", 2]}, {"name": "z", "shape": ["batch", "time", 2]}]
    contract = Contract.from_fields(fields(mode="window", states=[], outputs=shapes))
    assert [output.per for output in contract.outputs] == ["window", "event"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": ...}, "missing is name"),
        ({"colour": "red"}, "unknown field `colour`"),
        ({"format": 2}, "format is 2"),
        ({"mode": "stream"}, "field mode"),
        ({"input": {"name": "x", "shape": ["batch", "tme", 3]}}, "field input.shape"),
        ({"input": {"name": "x", "shape": ["time", 3]}}, "input 'x': shape \\['time', 3\\] needs \"batch\""),
        ({"input": {"name": "x", "shape": ["batch", "time", 0]}}, "input 'x': .* at least 1"),
        ({"input": {"name": "x", "shape": ["batch", "time", 3], "features": ["a"]}}, "1 feature names for 3 features"),
        ({"input": {"name": "x", "shape": ["batch", "time", 2], "features": ["a", "a"]}}, "not unique"),
        ({"input": {"name": "x", "shape": ["batch", 3]}}, "lengths 'lengths' make no sense"),
        ({"input": {"name": "x", "shape": ["batch", 3]}, "lengths": ..., "mode": "window"}, 'needs a "time" axis'),
        ({"context": 2, "input": {"name": "x", "shape": ["batch", 3, 2]}, "lengths": ...}, "exactly one numeric axis"),
        ({"context": -1}, "context must be 0"),
        ({"states": [{"input": "h", "shape": [1, "batch"]}]}, "state 'h': output is missing"),
        ({"states": [{"input": "h", "output": "g", "shape": ["batch", "time"]}]}, "state 'h': .* no time axis"),
        ({"states": [{"input": "h", "output": "g", "shape": ["batch", 2], "initial": "ones"}]}, "initial is 'ones'"),
        ({"states": [{"input": "h", "output": "g", "shape": ["batch", 2], "initial": [1, 2, 3]}]}, "has 3 values"),
        ({"states": [{"input": "h", "output": "g", "shape": ["batch", 2], "initial": [[1], [2, 3]]}]}, "not a number"),
        ({"states": [{"input": "x", "output": "g", "shape": ["batch", 2]}]}, "input 'x' is declared twice"),
        ({"states": [{"input": "h", "output": "y", "shape": ["batch", 2]}]}, "output 'y' is declared twice"),
        ({"outputs": []}, "outputs is empty"),
        ({"outputs": [{"name": "y", "shape": ["batch", 2], "per": "window"}]}, "answers per event"),
        ({"outputs": [{"name": "y", "shape": ["batch", 3], "labels": ["a"]}]}, "1 labels for 3 values"),
        ({"outputs": [{"name": "y", "shape": ["batch", 3], "kind": "score"}]}, "kind score is one number"),
        ({"feedback": {"output": "z"}}, "feedback: there is no output 'z'"),
    ],
)
def test_nonsense_is_refused_in_one_line_that_names_it(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said) as error:
        Contract.from_fields(fields(**changes), source="sidecar m.toml")
    assert str(error.value).startswith("sidecar m.toml: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("document", [b"", b"{", b"[]", b"null", b"3", b'{"name": 3}', b"\xff"])
def test_a_document_that_is_no_contract_is_a_model_error(document: bytes) -> None:
    with pytest.raises(ModelError, match="the contract"):
        Contract.parse(document)


def test_a_sidecar_is_the_same_contract_in_toml(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text(
        """
        name = "m"
        mode = "step"
        lengths = "lengths"
        [input]
        name = "x"
        shape = ["batch", "time", 3]
        [[states]]
        input = "h"
        output = "h_next"
        shape = [2, "batch", 4]
        [[outputs]]
        name = "y"
        shape = ["batch", "time", 2]
        kind = "classes"
        labels = ["a", "b"]
        """
    )
    assert load_sidecar(path) == Contract.from_fields(fields())


@pytest.mark.parametrize("text", ["name = ", "name = 'm'", "\x00", f"name = {'9' * 5_000}", f"name = 0x{'f' * 5_000}"])
def test_a_broken_sidecar_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.toml"
    path.write_text(text)
    with pytest.raises(ModelError, match=r"m\.toml"):
        load_sidecar(path)
    with pytest.raises(ModelError, match=r"none\.toml cannot be read"):
        load_sidecar(tmp_path / "none.toml")


FEATURES: list[Any] = [
    "cpu",
    {"name": "mode", "kind": "category", "vocabulary": ["<unknown>", "idle", "run"], "unknown": 0},
    {"name": "cpu there", "kind": "present", "source": "cpu"},
]


def test_a_feature_is_a_name_or_a_table_that_survives_dump_and_parse() -> None:
    made = Contract.from_fields(fields(input={"name": "x", "shape": ["batch", "time", 3], "features": FEATURES}))
    assert made.feature_names == ("cpu", "mode", "cpu there")
    cpu, mode, there = made.feature_tables
    assert (cpu.kind, cpu.missing, cpu.field) == ("number", None, "cpu")
    assert (mode.vocabulary, mode.unknown) == (("<unknown>", "idle", "run"), 0)
    assert there.field == "cpu"
    assert Contract.parse(made.dump()) == made
    assert json.loads(made.dump())["input"]["features"] == FEATURES  # a plain name stays one
    whole = {
        "name": "load before",
        "source": "load",
        "lag": 3,
        "missing": "last",
        "fallback": 0.5,
        "unit": "%",
        "bounds": [0.0, 100.0],
    }
    shape = {"name": "x", "shape": ["batch", "time", 1]}
    again = Contract.parse(Contract.from_fields(fields(input={**shape, "features": [whole]})).dump())
    assert json.loads(again.dump())["input"]["features"] == [whole]
    assert again.feature_tables[0].missing == "last"
    bare = Contract.from_fields(fields())
    assert [feature.name for feature in bare.feature_tables] == ["x0", "x1", "x2"]


@pytest.mark.parametrize(
    ("feature", "sentence"),
    [
        ({"name": "a", "kind": "category"}, "a vocabulary belongs to category and text"),
        ({"name": "a", "vocabulary": ["p"]}, "a vocabulary belongs to category and text"),
        ({"name": "a", "kind": "category", "vocabulary": ["p", "p"]}, "'p' in its vocabulary twice"),
        ({"name": "a", "kind": "category", "vocabulary": ["p"], "unknown": 1}, "the places 0 to 0"),
        ({"name": "a", "kind": "since_last", "lag": 1}, "lag"),
        ({"name": "a", "lag": -1}, "lag"),
        ({"name": "a", "kind": "present", "missing": 0.0}, "never missing"),
        ({"name": "a", "kind": "category", "vocabulary": ["p"], "missing": 0.0}, "is a category: missing"),
        ({"name": "a", "missing": float("inf")}, "not finite"),
        ({"name": "a", "bounds": [2.0, 1.0]}, "bounds"),
        ({"name": "a", "missing": "next"}, "features"),
        ({"name": "a", "kind": "colour"}, "features"),
        ({"name": ""}, "has no name"),
        ({"name": "b"}, "not unique"),
        ({"name": "a", "kind": "text", "vocabulary": ["p"]}, "the only feature"),
        ({"name": "a", "split": "words"}, "split belongs to text"),
    ],
)
def test_a_feature_that_contradicts_itself_is_refused(feature: dict[str, Any], sentence: str) -> None:
    declared = {"name": "x", "shape": ["batch", "time", 2], "features": [feature, "b"]}
    with pytest.raises(ModelError, match=sentence):
        Contract.from_fields(fields(input=declared))


def test_a_key_of_a_later_version_names_the_remedy() -> None:
    with pytest.raises(ModelError, match=r"unknown field `later`: correct it, or use the version of streamer that"):
        Contract.from_fields(fields(later=1))


@pytest.mark.parametrize(
    ("names", "field"),
    [(["stream", "b"], "stream"), (["a", "model"], "model"), (["ts", "b"], "ts"), (["a", "a_label"], "a_label")],
)
def test_outputs_whose_fields_would_hide_each_other(names: list[str], field: str) -> None:
    outputs = [{"name": name, "shape": ["batch", "time", 2], "kind": "classes", "labels": ["a", "b"]} for name in names]
    with pytest.raises(ModelError, match=f"an answer would have two fields '{field}': rename the output"):
        Contract.from_fields(fields(outputs=outputs))
    assert Contract.from_fields(fields(outputs=outputs[:1])), "a single output is y"
