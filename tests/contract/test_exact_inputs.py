"""What a record says reaches the graph exactly, in the dtype that the contract declares; answers have the records' keys."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from decoding import NOW_MS
from durable import begin, encoded, make_processor, settle
from onnx import TensorProto, helper
from onnx_models import Value, graph_model, save

from streamer.core import RecordBatch
from streamer.errors import ConfigurationError, ModelError
from streamer.modelfile.contract import Contract
from streamer.modelfile.model import Model
from streamer.records.decode import Codec
from streamer.windows import WindowRule

TYPES = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
}
BASES = {"float32": 2**23, "float64": 2**52 - 2**30, "int32": 2**31 - 2**10, "int64": 2**62}
"""Next to these, float32 (and float64, for int64) no longer tells neighbours apart."""


def model(tmp_path: Path, dtype: str, mode: str) -> Model:
    """y = float32(x - BASE): 0, 1, 2, ... only where not one digit of x was lost on the way."""
    shape: list[Any] = ["batch", "time", 1]
    cast = helper.make_node("Cast", ["rest"], ["y"], to=TensorProto.FLOAT)
    nodes = [helper.make_node("Sub", ["x", "base"], ["rest"]), cast]
    inputs: list[Value] = [("x", shape, TYPES[dtype])]
    graph = graph_model(nodes, inputs, [("y", shape)], {"base": np.array(BASES[dtype], dtype)})
    fields = {
        "name": "rest",
        "mode": mode,
        "input": {"name": "x", "shape": shape, "features": ["a"], "dtype": dtype},
        "outputs": [{"name": "y", "shape": shape, "kind": "value", "per": "event"}],
    }
    return Model.load(save(graph, tmp_path / f"{dtype}-{mode}.onnx", fields))


@pytest.mark.parametrize("value_format", ["json", "json-named"])
@pytest.mark.parametrize("mode", ["step", "window"])
@pytest.mark.parametrize("dtype", TYPES)
def test_not_one_digit_is_lost(dtype: str, mode: str, value_format: str, tmp_path: Path) -> None:
    served = model(tmp_path, dtype, mode)
    codec = Codec(served.contract, value_format, key="int64")
    rule = WindowRule("count", count=3) if mode == "window" else None
    processor = make_processor([("rest", served, rule)], max_rows=4, keys=codec.keys)
    begin(processor)
    numbers = [BASES[dtype] + rest for rest in range(6)]
    values: list[bytes | None] = [
        msgspec.json.encode({"x": [number]} if value_format == "json" else {"a": number}) for number in numbers
    ]
    streams = [7, 1_234_567_890_123]
    keys: list[bytes | None] = [struct.pack(">q", streams[row % 2]) for row in range(6)]
    settle(processor, codec.decode(RecordBatch(0, list(range(6)), [NOW_MS] * 6, keys, values)))
    epoch = processor.seal(0)
    assert epoch is not None
    assert not epoch.rejects
    found: dict[bytes, list[float]] = {}
    for out in encoded(processor, epoch, codec.keys):
        for key, value in zip(out.keys, out.values, strict=True):
            answer = msgspec.json.decode(value)
            assert struct.pack(">q", int(answer["stream"])) == key
            found.setdefault(key, []).extend(answer["y"] if isinstance(answer["y"], list) else [answer["y"]])
    assert found == {keys[0]: [0.0, 2.0, 4.0], keys[1]: [1.0, 3.0, 5.0]}


def test_two_models_of_different_dtypes_are_refused(tmp_path: Path) -> None:
    one, two = model(tmp_path, "float32", "step"), model(tmp_path, "int64", "step")
    with pytest.raises(ConfigurationError, match="same dtype"):
        make_processor([("one", one, None), ("two", two, None)])


@pytest.mark.parametrize(
    "changes",
    [
        {"context": 1, "input": {"name": "x", "shape": ["batch", 1], "dtype": "float64"}},
        {"feedback": {"output": "y"}, "input": {"name": "x", "shape": ["batch", 1], "dtype": "int64"}},
        {"outputs": [{"name": "y", "shape": 5}], "mode": "window"},
        {"states": [{"input": "h", "output": "h2", "shape": ["batch", 1], "initial": [10**400]}]},
        {"states": [{"input": "h", "output": "h2", "shape": ["batch", 10**12]}]},
        {"states": [{"input": "h", "output": "h2", "shape": ["batch", *[1] * 70]}]},
        {"input": {"name": "x", "shape": ["batch", 10**9]}},
        {"context": 10**30},
    ],
)
def test_contracts_that_cannot_be_are_refused_with_a_sentence(changes: dict[str, Any]) -> None:
    fields = {
        "name": "m",
        "mode": "step",
        "input": {"name": "x", "shape": ["batch", 1]},
        "outputs": [{"name": "y", "shape": ["batch", 1]}],
    }
    with pytest.raises(ModelError, match=":"):
        Contract.from_fields({**fields, **changes})
