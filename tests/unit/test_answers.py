"""Predictions in Avro, JSON with a schema and float32 say what the JSON of the same answers says."""

from __future__ import annotations

import io
import json
from typing import Any

import fastavro
import jsonschema
import msgspec
import numpy as np
import pytest
from answering import OUTPUTS, as_json, contract
from hypothesis import given
from hypothesis import strategies as st

from streamer.core import ClosedWindow
from streamer.errors import ConfigurationError
from streamer.modelfile.contract import Contract
from streamer.records.answers import answer_encoder, answer_schema
from streamer.records.encode import Encoder
from streamer.records.keys import Keys
from streamer.words import AnswerFormat, Closed


def read(written: AnswerFormat, declared: Contract, value: bytes, *, window: bool) -> Any:
    """As JSON has it, by somebody else's reader; the value agrees with its schema."""
    schema = answer_schema(written, declared, "m", window=window)
    assert schema is not None
    assert value[:5] == b"\0\0\0\1\2"
    body, document = value[5:], json.loads(schema.text)
    if written is AnswerFormat.JSON_SCHEMA:
        found = msgspec.json.decode(body)
        jsonschema.Draft7Validator(document).validate(found)
        return found
    stream = io.BytesIO(body)
    found = fastavro.schemaless_reader(stream, fastavro.parse_schema(document), None)
    assert stream.tell() == len(body)
    return found


numbers = st.floats(-1e6, 1e6, width=32)


@pytest.mark.parametrize("written", [AnswerFormat.AVRO, AnswerFormat.JSON_SCHEMA])
@pytest.mark.parametrize("name", [name for name in OUTPUTS if name != "per window"])
@given(data=st.data())
def test_answers_of_steps(name: str, written: AnswerFormat, data: st.DataObject) -> None:
    declared = contract(name, "step")
    count = data.draw(st.integers(1, 4))
    keys = [data.draw(st.text(min_size=1, max_size=90)).encode() for _ in range(count)]
    times = np.array(data.draw(st.lists(st.integers(0, 10**13), min_size=count, max_size=count)), np.int64)
    outputs = [
        np.array(data.draw(st.lists(numbers, min_size=count * each.size, max_size=count * each.size)), np.float32)
        .reshape(count, each.size) for each in declared.outputs
    ]  # fmt: skip
    plain = [msgspec.json.decode(value) for value in Encoder(declared, "m").steps(keys, times, outputs)]
    encoder = answer_encoder(written, declared, "m", Keys(), window=False, schema_id=258)
    found = [as_json(read(written, declared, value, window=False)) for value in encoder.steps(keys, times, outputs)]
    assert found == [
        as_json({key.replace(" ", "_") if written is AnswerFormat.AVRO else key: each for key, each in one.items()})
        for one in plain
    ]
    bare = answer_encoder(AnswerFormat.FLOAT32, declared, "m", Keys(), window=False, schema_id=None)
    assert bare.steps(keys, times, outputs) == [
        np.concatenate([y[row] for y in outputs]).tobytes() for row in range(count)
    ]


@pytest.mark.parametrize("part", [None, (0, 2), (1, 2)])
@pytest.mark.parametrize("written", [AnswerFormat.AVRO, AnswerFormat.JSON_SCHEMA])
@pytest.mark.parametrize("name", list(OUTPUTS))
def test_answers_of_windows(name: str, written: AnswerFormat, part: tuple[int, int] | None) -> None:
    declared = contract(name, "window")
    count = 3
    window = ClosedWindow(
        b"s\xc3\xbc", 1_000, 1_760_000_000_123, Closed.TIME, 7, np.zeros((count, 2), np.float32),
        np.array([9, 7, 200]), np.array([1, 2, 3]),
    )  # fmt: skip
    rng = np.random.default_rng(1)
    outputs = [
        rng.normal(size=(count, each.size) if each.per == "event" else (each.size,)).astype(np.float32)
        for each in declared.outputs
    ]
    plain = msgspec.json.decode(Encoder(declared, "m").window(window, outputs, part))
    encoder = answer_encoder(written, declared, "m", Keys(), window=True, schema_id=258)
    assert encoder.per_event == Encoder(declared, "m").per_event
    found = as_json(read(written, declared, encoder.window(window, outputs, part), window=True))
    avro = written is AnswerFormat.AVRO
    assert found == as_json({key.replace(" ", "_") if avro else key: each for key, each in plain.items()})
    bare = answer_encoder(AnswerFormat.FLOAT32, declared, "m", Keys(), window=True, schema_id=None)
    assert bare.window(window, outputs) == b"".join(y.tobytes() for y in outputs)


def test_names_that_avro_cannot_tell_apart_are_refused() -> None:
    fields = [{"name": "a b", "shape": ["batch", 1]}, {"name": "a_b", "shape": ["batch", 1]}]
    declared = Contract.from_fields(
        {"name": "m", "mode": "step", "input": {"name": "x", "shape": ["batch", 2]}, "outputs": fields,
         "states": [{"input": "h", "output": "h2", "shape": ["batch", 2]}]}
    )  # fmt: skip
    with pytest.raises(ConfigurationError, match="'a_b'"):
        answer_schema(AnswerFormat.AVRO, declared, "m", window=False)
    assert answer_schema(AnswerFormat.FLOAT32, declared, "m", window=False) is None
    plain = answer_encoder(AnswerFormat.JSON_SCHEMA, declared, "m", Keys(), window=False, schema_id=None)
    assert isinstance(plain, Encoder)
