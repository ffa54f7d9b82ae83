"""Models that lie, or that cannot be trusted, are refused in one sentence that names the cause."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

import onnx
from onnx import TensorProto, helper
from onnx_models import FLOAT, INT64, graph_model, lstm, lstm_fields, save

from streamer.errors import ModelError, ModelRunError
from streamer.modelfile.contract import METADATA_KEY, Contract
from streamer.modelfile.model import Model

pytestmark = pytest.mark.torch  # onnx comes with the same extra

F, H = 3, 4


def refused(path: Path, said: str, **options: Any) -> None:
    with pytest.raises(ModelError, match=said) as error:
        Model.load(path, **options)
    assert str(error.value).startswith(f"the model {path}: ")
    assert "\n" not in str(error.value)


def state(name: str, **changes: Any) -> dict[str, Any]:
    return {"input": name, "output": f"{name}_next", "shape": [1, "batch", H], **changes}


def test_what_the_lies_below_start_from_is_accepted(tmp_path: Path) -> None:
    model = Model.load(save(lstm(), tmp_path / "m.onnx", lstm_fields()))
    assert all(finding.passed for finding in model.findings)
    assert (model.batched, model.ragged, model.max_steps) == (True, True, None)
    assert model.state_bytes_per_stream == 2 * H * 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"input": {"name": "z", "shape": ["batch", "time", F]}}, "no input 'z', it has 'x'"),
        ({"input": {"name": "x", "shape": ["batch", "time", 5]}}, r"input 'x' has shape .*\[.batch., .time., 5\]"),
        ({"input": {"name": "x", "shape": ["batch", F]}, "lengths": None}, "input 'x' has shape"),
        (
            {"input": {"name": "x", "shape": ["batch", "time", F], "dtype": "int64"}},
            "'x' is a tensor.float. in the graph, but int64",
        ),
        ({"lengths": None}, "graph input 'lengths' is not declared"),
        ({"lengths": "h", "states": [state("c")]}, "lengths 'h' is a tensor.float."),
        ({"lengths": "len"}, "no input 'len'"),
        ({"states": [state("h")]}, "graph input 'c' is not declared: add it to states"),
        ({"states": [state("h"), state("c", output="c_out")]}, "no output 'c_out'"),
        ({"states": [state("h"), state("c", shape=[1, "batch", 9])]}, "input 'c' has shape"),
        ({"states": [state("h"), state("c", shape=["batch", H])]}, "input 'c' has shape"),
        ({"states": [state("h", output="c_next"), state("c", output="h_next")]}, "mispaired"),
        ({"outputs": [{"name": "w", "shape": ["batch", "time", H]}]}, "no output 'w'"),
        ({"outputs": [{"name": "y", "shape": ["batch", "time", 2]}]}, "output 'y' has shape"),
        ({"outputs": [{"name": "y", "shape": ["batch", H]}]}, "output 'y' has shape"),
        ({"constants": {"gain": 1.0}}, "no input 'gain'"),
        ({"constants": {"c": "loud"}, "states": [state("h")]}, "constant 'c' is not a tensor.float."),
        ({"constants": {"c": [1.0, 2.0]}, "states": [state("h")]}, r"constant 'c' has shape \[2\]"),
        ({"context": 2}, "context 2"),
        ({"surprise": 1}, "unknown field `surprise`"),
    ],
)
def test_contracts_that_do_not_fit_the_graph(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    refused(save(lstm(), tmp_path / "m.onnx", lstm_fields(**changes)), said)


def test_batch_and_time_mixed_up_are_slow_but_never_wrong(tmp_path: Path) -> None:
    """The graph cannot tell the two apart; what is left when neither holds is one event at a time."""
    fields = lstm_fields(input={"name": "x", "shape": ["time", "batch", F]})
    model = Model.load(save(lstm(), tmp_path / "m.onnx", fields))
    assert (model.batched, model.max_steps) == (False, 1)
    assert [f.name for f in model.findings if not f.passed] == ["batch_independence", "sequence_equals_steps"]
    right = Model.load(save(lstm(), tmp_path / "right.onnx", lstm_fields()))
    x, lengths = np.random.default_rng(0).normal(size=(3, 4, F)).astype(np.float32), np.full(3, 4, np.int32)
    (y,), states = model.run(x, lengths, model.initial_states(3))
    (want,), want_states = right.run(x, lengths, right.initial_states(3))
    np.testing.assert_allclose(y, want, atol=1e-6)
    np.testing.assert_allclose(states, want_states, atol=1e-6)


def test_axes_that_come_out_otherwise_than_declared(tmp_path: Path) -> None:
    """The output's size depends on the data, so that only a run can tell."""
    nodes = [
        helper.make_node("Mul", ["x", "zero"], ["nothing"]),
        helper.make_node("ReduceMax", ["nothing"], ["none"], keepdims=0),
        helper.make_node("Add", ["none", "two"], ["size"]),
        helper.make_node("Cast", ["size"], ["whole"], to=INT64),
        helper.make_node("Unsqueeze", ["whole", "first"], ["end"]),
        helper.make_node("Slice", ["x", "first", "end", "last"], ["y"]),
    ]
    constants = {"zero": np.float32(0), "two": np.float32(2), "first": np.array([0]), "last": np.array([2])}
    graph = graph_model(nodes, [("x", ["n", "t", F])], [("y", ["n", "t", "k"])], constants)
    fields = lstm_fields(lengths=None, states=[], outputs=[{"name": "y", "shape": ["batch", "time", F]}])
    refused(save(graph, tmp_path / "m.onnx", fields), r"'y' came out with shape \[1, 1, 2\] .* 3\] is declared")


def test_a_model_that_looks_ahead_is_no_step_model(tmp_path: Path) -> None:
    fields = lstm_fields(states=[], outputs=[{"name": "y", "shape": ["batch", "time", 2 * H]}])
    graph = lstm(bidirectional=True)
    del graph.graph.output[1:]
    refused(save(graph, tmp_path / "m.onnx", fields), "looks ahead")
    accepted = Model.load(save(graph, tmp_path / "m.onnx", {**fields, "mode": "window"}))
    assert accepted.ragged


def test_a_state_that_counts_calls_instead_of_events(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Add", ["x", "h"], ["y"]),
        helper.make_node("Add", ["h", "one"], ["h_next"]),
    ]
    graph = graph_model(
        nodes,
        [("x", ["n", "t", 1]), ("h", ["n", 1, 1])],
        [("y", ["n", "t", 1]), ("h_next", ["n", 1, 1])],
        {"one": np.float32(1)},
    )
    fields = lstm_fields(
        lengths=None,
        input={"name": "x", "shape": ["batch", "time", 1]},
        states=[state("h", shape=["batch", 1, 1])],
        outputs=[{"name": "y", "shape": ["batch", "time", 1]}],
    )
    refused(save(graph, tmp_path / "m.onnx", fields), "another result than step by step")


def test_lengths_that_the_graph_ignores(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x", "one"], ["mean"], keepdims=0),
        helper.make_node("Cast", ["lengths"], ["counts"], to=1),
        helper.make_node("Unsqueeze", ["counts", "one"], ["column"]),
        helper.make_node("Mul", ["column", "zero"], ["nothing"]),
        helper.make_node("Add", ["mean", "nothing"], ["y"]),
    ]
    graph = graph_model(
        nodes,
        [("x", ["n", "t", F]), ("lengths", ["n"], INT64)],
        [("y", ["n", F])],
        {"one": np.array([1]), "zero": np.float32(0)},
    )
    fields = lstm_fields(mode="window", states=[], outputs=[{"name": "y", "shape": ["batch", F]}])
    refused(save(graph, tmp_path / "m.onnx", fields), "padding changes the result .* 'lengths'")


def test_a_fixed_number_of_steps(tmp_path: Path) -> None:
    graph = lstm()
    dim = graph.graph.input[0].type.tensor_type.shape.dim[1]
    dim.dim_value = 8
    refused(save(graph, tmp_path / "m.onnx", lstm_fields()), "time axis of 'x' is fixed to 8 steps")
    dim.dim_value = 1
    model = Model.load(save(graph, tmp_path / "m.onnx", lstm_fields()))
    assert model.max_steps == 1
    reference = Model.load(save(lstm(), tmp_path / "free.onnx", lstm_fields()))
    x, lengths = np.ones((3, 5, F), np.float32), np.array([5, 1, 3], np.int32)
    (y,), states = model.run(x, lengths, model.initial_states(3))
    (want,), want_states = reference.run(x, lengths, model.initial_states(3))
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(y[row, :length], want[row, :length], atol=1e-6)
    for got, expected in zip(states, want_states, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)


# the file itself


def test_no_contract_and_two_contracts(tmp_path: Path) -> None:
    graph = lstm()
    refused(save(graph, tmp_path / "m.onnx"), "has no contract: .* write m.toml beside it")
    helper.set_model_props(graph, {METADATA_KEY: Contract.from_fields(lstm_fields()).dump().decode()})
    Model.load(save(graph, tmp_path / "m.onnx"))
    refused(save(graph, tmp_path / "m.onnx", lstm_fields()), "remove one of the two")
    (tmp_path / "m.toml").unlink()
    helper.set_model_props(graph, {METADATA_KEY: "{"})
    refused(save(graph, tmp_path / "m.onnx"), "metadata streamer.contract is not JSON")


def test_a_pinned_digest(tmp_path: Path) -> None:
    path = save(lstm(), tmp_path / "m.onnx", lstm_fields())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert Model.load(path, sha256=digest.upper()).sha256 == digest
    refused(path, f"sha256 is {digest}, but {'0' * 64} is pinned", sha256="0" * 64)


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x08\x07", b"\xff" * 100])
def test_files_that_are_no_models(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(data)
    refused(tmp_path / "m.onnx", "not an ONNX model")


def test_a_cut_off_file_and_a_missing_one(tmp_path: Path) -> None:
    path = save(lstm(), tmp_path / "m.onnx", lstm_fields())
    path.write_bytes(path.read_bytes()[:-40])
    refused(path, "not an ONNX model|refuses")
    with pytest.raises(ModelError, match=r"none\.onnx cannot be read: No such file"):
        Model.load(tmp_path / "none.onnx")


def test_a_graph_that_onnx_runtime_refuses(tmp_path: Path) -> None:
    graph = lstm()
    graph.ir_version = 99
    refused(save(graph, tmp_path / "m.onnx", lstm_fields()), "ONNX Runtime refuses it")


def nested(node: onnx.NodeProto) -> onnx.NodeProto:
    """The node inside a branch of an If."""
    output = helper.make_tensor_value_info("inner", FLOAT, None)
    node.output[:] = ["inner"]
    branch = helper.make_graph([node], "branch", [], [output])
    return helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)


@pytest.mark.parametrize("wrap", [lambda node: node, nested])
def test_custom_operators(wrap: Callable[[onnx.NodeProto], onnx.NodeProto], tmp_path: Path) -> None:
    node = wrap(helper.make_node("Magic", ["x"], ["y"], domain="com.example"))
    graph = graph_model([node], [("x", ["n", F])], [("y", ["n", F])], {"yes": np.array(True)}, domains=["com.example"])
    refused(save(graph, tmp_path / "m.onnx"), "custom operators com.example.Magic")


def test_a_function_that_the_file_itself_defines_is_no_custom_operator(tmp_path: Path) -> None:
    double = helper.make_function(
        "local", "Double", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 20)]
    )
    node = helper.make_node("Double", ["x"], ["y"], domain="local")
    graph = graph_model([node], [("x", ["n", F])], [("y", ["n", F])], domains=["local"])
    graph.functions.append(double)
    fields = {
        "name": "double",
        "mode": "step",
        "input": {"name": "x", "shape": ["batch", F]},
        "outputs": [{"name": "y", "shape": ["batch", F]}],
    }
    model = Model.load(save(graph, tmp_path / "m.onnx", fields))
    (y,), _ = model.run(np.ones((2, 1, F), np.float32), np.ones(2, np.int32), [])
    np.testing.assert_array_equal(y, np.full((2, 1, F), 2))


def external(path: Path, location: str) -> None:
    """The model's weights in another file."""
    graph = lstm()
    for tensor in graph.graph.initializer:
        if tensor.name in ("W", "R"):
            onnx.external_data_helper.set_external_data(tensor, location)
            target = (path.parent / location).resolve()
            target.parent.mkdir(exist_ok=True)
            with target.open("ab") as file:
                offset = file.tell()
                file.write(tensor.raw_data)
            onnx.external_data_helper.set_external_data(tensor, location, offset, len(tensor.raw_data))
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
    path.write_bytes(graph.SerializeToString())


def test_external_tensors_beside_the_model_are_part_of_its_digest(tmp_path: Path) -> None:
    path = save(lstm(), tmp_path / "m.onnx", lstm_fields())
    whole = Model.load(path)
    external(path, "weights.bin")
    model = Model.load(path)
    x, lengths = np.ones((2, 4, F), np.float32), np.array([4, 2], np.int32)
    np.testing.assert_array_equal(
        model.run(x, lengths, model.initial_states(2))[0][0], whole.run(x, lengths, whole.initial_states(2))[0][0]
    )
    weights = bytearray((tmp_path / "weights.bin").read_bytes())
    weights[0] ^= 1
    (tmp_path / "weights.bin").write_bytes(weights)
    refused(path, "is pinned", sha256=model.sha256)
    (tmp_path / "weights.bin").unlink()
    refused(path, "external tensor file 'weights.bin' is missing")


@pytest.mark.parametrize("location", ["../weights.bin", "sub/../../weights.bin"])
def test_external_tensors_elsewhere_are_refused(location: str, tmp_path: Path) -> None:
    (tmp_path / "models" / "sub").mkdir(parents=True)
    path = save(lstm(), tmp_path / "models" / "m.onnx", lstm_fields())
    external(path, location)
    refused(path, "lies outside the model's folder")


def test_external_tensors_behind_a_link_are_refused(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    path = save(lstm(), tmp_path / "models" / "m.onnx", lstm_fields())
    external(path, "weights.bin")
    (tmp_path / "models" / "weights.bin").rename(tmp_path / "secret.bin")
    (tmp_path / "models" / "weights.bin").symlink_to(tmp_path / "secret.bin")
    refused(path, "lies outside the model's folder")


# calls


@pytest.mark.parametrize(("rows", "steps"), [(0, 1), (1, 0), (0, 0)])
def test_an_empty_call_is_an_error_and_not_the_end_of_the_process(rows: int, steps: int, tmp_path: Path) -> None:
    """ONNX Runtime aborts the process on it, so the guard is tried in a process of its own."""
    path = save(lstm(), tmp_path / "m.onnx", lstm_fields())
    program = f"""
import numpy as np
from streamer.errors import ModelRunError
from streamer.modelfile.model import Model
model = Model.load({str(path)!r}, probe=False)
try:
    x = np.zeros(({rows}, {steps}, {F}), np.float32)
    model.run(x, np.full({rows}, {steps}, np.int32), model.initial_states({rows}))
except ModelRunError as error:
    print("guarded:", error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("guarded: a call needs at least one row and one step")


def test_a_call_that_fails_says_so_and_changes_nothing(tmp_path: Path) -> None:
    model = Model.load(save(lstm(), tmp_path / "m.onnx", lstm_fields()))
    states = model.initial_states(2)
    with pytest.raises(ModelRunError, match="model 'lstm' failed on 2 rows of 1 steps"):
        model.run(np.ones((2, 1, F), np.float32), np.array([1, 5], np.int32), states)
    assert not any(value.any() for value in states)


def test_a_bad_row_does_not_reach_its_neighbours(tmp_path: Path) -> None:
    model = Model.load(save(lstm(), tmp_path / "m.onnx", lstm_fields()))
    x = np.random.default_rng(0).normal(size=(3, 4, F)).astype(np.float32)
    lengths = np.array([4, 2, 4], np.int32)
    clean, _ = model.run(x, lengths, model.initial_states(3))
    x[1, :] = np.nan
    dirty, _ = model.run(x, lengths, model.initial_states(3))
    for row in (0, 2):
        np.testing.assert_array_equal(clean[0][row], dirty[0][row])


def test_warming_runs_every_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model.load(save(lstm(), tmp_path / "m.onnx", lstm_fields()))
    shapes = []
    call = model.run
    monkeypatch.setattr(model, "run", lambda x, *rest: shapes.append(x.shape) or call(x, *rest))
    model.warm([1, 8], steps=2)
    assert shapes == [(1, 2, F), (8, 2, F)]


@pytest.mark.parametrize("name", [b"batch", b"lengths", b"h_next", b"x"])
def test_a_name_in_the_graph_that_is_no_utf8(name: bytes, tmp_path: Path) -> None:
    path = save(lstm(), tmp_path / "m.onnx", lstm_fields())
    data = path.read_bytes()
    field = b"\x0a" + bytes([len(name)]) + name if name != b"batch" else b"\x12" + bytes([len(name)]) + name
    assert field in data
    for at in range(len(name)):
        broken = bytearray(field)
        broken[2 + at] = 0xFF
        path.write_bytes(data.replace(field, bytes(broken)))
        with pytest.raises(ModelError) as error:
            Model.load(path)
        assert str(error.value).startswith(f"the model {path}: ")


def test_a_file_that_is_cut_off_anywhere(tmp_path: Path) -> None:
    path = save(lstm(), tmp_path / "m.onnx", lstm_fields())
    data = path.read_bytes()
    for end in range(0, len(data), 13):
        path.write_bytes(data[:end])
        refused(path, "is not an ONNX model")
