"""Answers as ``output.fields`` wants them: the same values under other names, and what their records have, as it is there."""

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
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from streamer.core import PASSED_HEADER, ClosedWindow, Headers, RecordBatch, StepAnswers, WindowAnswers
from streamer.errors import ConfigurationError
from streamer.modelfile.contract import Contract
from streamer.records.answers import answer_schema
from streamer.records.chosen import Chosen, own_places, refuse_unknown
from streamer.records.decode import Codec
from streamer.records.encode import Encoder
from streamer.records.formats import Fields, Source
from streamer.records.keys import Keys
from streamer.records.passing import MAX_PASSED_BYTES, Passing, passed
from streamer.service.sink import Sink
from streamer.settings import OutputSection
from streamer.settings.fields import FieldHeader, FieldPath, parse_answer_place
from streamer.words import AnswerFormat, Closed, Reason

WINDOW = ClosedWindow(
    b"s", 1_000, 1_760_000_000_123, Closed.TIME, 7, np.zeros((3, 2), np.float32), np.array([9, 7, 200]), np.array([1, 2, 3])
)  # fmt: skip
NOTHING_BESIDE = ("partition", "offset")


def numbers(declared: Contract, *, window: bool) -> list[Any]:
    rng = np.random.default_rng(1)
    return [
        rng.normal(size=((3 if each.per == "event" else 1) if window else 1, each.size)).astype(np.float32)
        for each in declared.outputs
    ]


def plain(declared: Contract, *, window: bool, part: tuple[int, int] | None = None) -> bytes:
    encoder = Encoder(declared, "m")
    y = numbers(declared, window=window)
    if not window:
        return encoder.steps([b"s"], np.array([5], np.int64), y)[0]
    return encoder.window(
        WINDOW, [each if o.per == "event" else each[0] for each, o in zip(y, declared.outputs, strict=True)], part
    )


CASES = [(name, window) for name in OUTPUTS for window in (False, True) if window or name != "per window"]


@pytest.mark.parametrize(("name", "window"), CASES)
def test_all_places_under_their_own_names_are_the_answer_itself(name: str, window: bool) -> None:
    declared = contract(name, "window" if window else "step")
    answer = plain(declared, window=window)
    places = list(msgspec.json.decode(answer))
    assert set(places) <= set(own_places(declared, window=window))
    chosen = Chosen({each: each for each in places}, own_places(declared, window=window))
    assert chosen.value(answer, 0, 0, None) == answer


@pytest.mark.parametrize("part", [None, (1, 2)])
@pytest.mark.parametrize("written", [AnswerFormat.AVRO, AnswerFormat.JSON_SCHEMA, AnswerFormat.JSON])
@pytest.mark.parametrize(("name", "window"), CASES)
def test_every_place_under_another_name(
    name: str, window: bool, written: AnswerFormat, part: tuple[int, int] | None
) -> None:
    declared = contract(name, "window" if window else "step")
    answer = plain(declared, window=window, part=part if window else None)
    whole = msgspec.json.decode(answer)
    own = own_places(declared, window=window)
    wanted: dict[str, Any] = {f"n{at}": place for at, place in enumerate(own)}
    wanted["unit"] = FieldPath(("unit",))
    schema = answer_schema(written, declared, "m", window=window)
    chosen = Chosen(wanted, own, schema).framed(b"\0\0\0\1\2" if schema else b"")
    value = chosen.value(answer, 3, 41, [msgspec.Raw(b'"C"')])
    if schema is not None:
        assert value[:5] == b"\0\0\0\1\2"
        assert chosen.schema is not None
        document, value = json.loads(chosen.schema.text), value[5:]
    if written is AnswerFormat.AVRO:
        stream = io.BytesIO(value)
        found = as_json(fastavro.schemaless_reader(stream, fastavro.parse_schema(document), None))
        assert stream.tell() == len(value)
    else:
        found = msgspec.json.decode(value)
    if written is AnswerFormat.JSON_SCHEMA:
        jsonschema.Draft7Validator(document).validate(found)
        assert not list(jsonschema.Draft7Validator(document).iter_errors(found))
    beside = {"partition": 3, "offset": 41}
    for under, place in wanted.items():
        outer, _, inner = place.partition(".") if isinstance(place, str) else ("", "", "")
        if not outer:
            expected: Any = "C"
        elif inner and outer in whole:
            expected = whole[outer][inner]
        else:
            expected = whole.get(place, beside.get(place))
        if place == "slice" and expected is None:
            assert found.get(under) is None
        else:
            assert as_json(found[under]) == as_json(expected), place


def test_a_piece_of_an_answer_says_which_it_is() -> None:
    declared = contract("per window", "window")
    chosen = Chosen({"risk": "each"}, own_places(declared, window=True))
    found = msgspec.json.decode(chosen.value(plain(declared, window=True, part=(1, 2)), 0, 0, None))
    assert set(found) == {"risk", "slice"}
    assert found["slice"] == [1, 2]
    assert set(msgspec.json.decode(chosen.value(plain(declared, window=True), 0, 0, None))) == {"risk"}


@pytest.mark.parametrize(
    ("token", "cell"),
    [
        (b"null", None), (b"true", True), (b"false", False), (b"5", 5), (b"-9223372036854775808", -(2**63)), (b"0.5", 0.5),
        (b'"\\u00fc"', "ü"), (b"9223372036854775808", "9223372036854775808"), (b"1e999", "1e999"), (b'[1, "a"]', '[1,"a"]'),
    ],
)  # fmt: skip
def test_what_avro_has_of_a_record(token: bytes, cell: Any) -> None:
    declared = contract("value", "step")
    schema = answer_schema(AnswerFormat.AVRO, declared, "m", window=False)
    chosen = Chosen({"unit": FieldPath(("unit",))}, own_places(declared, window=False), schema)
    assert chosen.schema is not None
    value = chosen.value(plain(declared, window=False), 0, 0, [msgspec.Raw(token)])
    found = fastavro.schemaless_reader(io.BytesIO(value), fastavro.parse_schema(json.loads(chosen.schema.text)), None)
    assert found == {"unit": cell}
    assert type(found["unit"]) is type(cell)


def test_names_that_avro_has_not_and_places_that_nobody_has() -> None:
    declared = contract("value", "step")
    schema = answer_schema(AnswerFormat.AVRO, declared, "m", window=False)
    with pytest.raises(ConfigurationError, match="letters, digits"):
        Chosen({"the risk": "y"}, own_places(declared, window=False), schema)
    with pytest.raises(ConfigurationError, match=r"output.fields.risk = 'z': no answer has that.*stream, ts, y"):
        refuse_unknown({"risk": "z"}, [("m", declared, False)])
    refuse_unknown({"risk": "score"}, [("m", declared, False), ("other", contract("several", "step"), False)])


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"a": ""}, "is empty"), ({"": "y"}, "has no name"), ({"slice": "y"}, "pieces"), ({"a": "y", "b": "y"}, "twice"),
        ({"a": "input.[3]"}, "begins in a list"), ({"a": "header:"}, "names no header"), ({"a": "input."}, "no path"),
    ],
)  # fmt: skip
def test_settings_that_choose_nothing(fields: dict[str, str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        OutputSection(topic="out", fields=fields)


def test_what_settings_choose() -> None:
    section = OutputSection(
        topic="out", fields={"risk": "y", "unit": "input.unit", "id": "header:id", "slice": "slice"}
    )
    assert section.places == {
        "risk": "y", "unit": FieldPath(("unit",)), "id": FieldHeader("id"), "slice": "slice",
    }  # fmt: skip
    assert section.passed == [FieldPath(("unit",)), FieldHeader("id")]


# what records have


def found_in(
    value_format: str, value: bytes, places: list[str], headers: Headers = (), source: Source | None = None
) -> Any:
    parsed = [parse_answer_place(each) for each in places]
    passing = Passing([each for each in parsed if not isinstance(each, str)], value_format, source)
    name, header = passing.header(value, headers)
    assert name == PASSED_HEADER
    found = passed([(name, header)])
    assert not isinstance(found, int)
    return [bytes(each) for each in found or ()]


def test_fields_of_json_are_carried_as_they_are_written() -> None:
    value = (
        '{"x": [1], "a": {"b": [ 1.10 , 2]}, "n": 12345678901234567890123, "t": "ü\\n", "z": null, "a.b": 7}'.encode()
    )
    places = [
        "input.a.b[0]",
        "input.a.b",
        "input.n",
        "input.t",
        "input.z",
        "input.none",
        "input.a.none.x",
        'input.["a.b"]',
    ]
    expected = [b"1.10", b"[ 1.10 , 2]", b"12345678901234567890123", '"ü\\n"'.encode(), b"null", b"null", b"null", b"7"]
    for value_format in ("json", "json-named", "json-schema"):
        assert found_in(value_format, value, places) == expected


@pytest.mark.parametrize("write", [msgspec.json.encode, msgspec.msgpack.encode], ids=["json", "msgpack"])
@pytest.mark.parametrize("place", ["input.a", "input.a.b", "input.a[1]", "input.a[1].b", "input.a.b[0]"])
def test_whatever_is_on_the_way_it_is_found_as_by_the_definition(write: Any, place: str) -> None:
    cells = [
        None,
        1,
        "b",
        [],
        [1],
        [1, None],
        [1, {"b": 2}],
        [{"b": 1}, [2]],
        {},
        {"b": None},
        {"b": [3]},
        {"b": {"b": 4}},
    ]
    steps = parse_answer_place(place).steps  # type: ignore[union-attr]
    for value in [{}, *({"a": each, "z": 0} for each in cells)]:
        expected: Any = value
        for step in steps:
            inside = isinstance(expected, list) if isinstance(step, int) else isinstance(expected, dict)
            there = inside and (step < len(expected) if isinstance(step, int) else step in expected)
            expected = expected[step] if there else None
        value_format = "json" if write is msgspec.json.encode else "msgpack"
        assert found_in(value_format, write(value), [place]) == [msgspec.json.encode(expected)], value


def test_what_is_no_text_is_null_and_its_neighbours_are_there() -> None:
    assert found_in("json", b'{"a": "\xff", "b": 1}', ["input.a", "input.b"]) == [b"null", b"1"]


def test_fields_of_messagepack_are_carried_as_json() -> None:
    value = msgspec.msgpack.encode({"a": {"b": [1.5, "x"]}, "n": 2**63, "nan": float("nan")})
    assert found_in("msgpack", value, ["input.a", "input.a.b[1]", "input.n", "input.nan", "input.none"]) == [
        b'{"b":[1.5,"x"]}', b'"x"', b"9223372036854775808", b"null", b"null",
    ]  # fmt: skip


def test_headers_are_carried_from_every_format() -> None:
    headers = [("id", b"old"), ("id", b"new"), ("raw", b"\xff"), ("no", None)]
    for value_format in ("json", "float32", "my:decoder"):
        assert found_in(value_format, b"", ["header:id", "header:raw", "header:no", "header:none"], headers) == [
            b'"new"', b"null", b"null", b"null",
        ]  # fmt: skip
    with pytest.raises(ConfigurationError, match=r"float32.*no fields"):
        found_in("float32", b"", ["input.a"])


def test_fields_of_avro_are_carried_where_the_schema_has_them() -> None:
    schema = {
        "type": "record", "name": "E", "fields": [
            {"name": "cpu", "type": "double"}, {"name": "site", "type": ["null", "string"]},
            {"name": "tags", "type": {"type": "array", "items": "string"}}, {"name": "at", "type": "long"}],
    }  # fmt: skip
    out = io.BytesIO()
    event = {"cpu": float("inf"), "site": 'a"b', "tags": ["t"], "at": 2**60}
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), event)
    source = Source(document=json.dumps(schema).encode())
    places = ["input.site", "input.tags[0]", "input.at", "input.cpu", "input.tags", "input.none"]
    assert found_in("avro", out.getvalue(), places, source=source) == [
        b'"a\\"b"', b'"t"', b"1152921504606846976", b"null", b"null", b"null",
    ]  # fmt: skip
    with pytest.raises(ConfigurationError, match=r"output.fields.*site is of type string"):
        found_in("avro", out.getvalue(), ["input.site.deep"], source=source)


def test_fields_of_protobuf_are_carried() -> None:
    file = descriptor_pb2.FileDescriptorProto(name="chosen_e.proto", package="chosen", syntax="proto3")
    message = file.message_type.add(name="E")
    message.field.add(name="site", number=1, type=9, label=1)
    message.field.add(name="count", number=2, type=4, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    made = message_factory.GetMessageClass(pool.FindMessageTypeByName("chosen.E"))
    document = descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString()
    value = made(site="ü", count=2**64 - 1).SerializeToString()
    found = found_in(
        "protobuf", value, ["input.site", "input.count", "input.none"], source=Source(None, document, "chosen.E")
    )
    assert found == ['"ü"'.encode(), b"18446744073709551615", b"null"]


# through codec and sink


def codec(declared: Contract, places: list[str], value_format: str = "json-named") -> Codec:
    parsed = [each for each in map(parse_answer_place, places) if not isinstance(each, str)]
    return Codec(declared, value_format, fields=Fields(), passing=Passing(parsed, value_format, None))


def named(cpu: float, **more: Any) -> bytes:
    return msgspec.json.encode({"a": cpu, "ts": 1_760_000_000_000, **more})


def chain() -> Contract:
    return Contract.from_fields(
        {"name": "m", "mode": "step", "input": {"name": "x", "shape": ["batch", 1], "features": ["a"]},
         "states": [{"input": "h", "output": "h2", "shape": ["batch", 2]}],
         "outputs": [{"name": "y", "shape": ["batch", 1], "kind": "value"}]}
    )  # fmt: skip


class Known:
    def __init__(self, declared: Contract) -> None:
        self.contract, self.sha256 = declared, "ab" * 32


def test_it_travels_with_its_event_and_not_into_the_topic() -> None:
    declared = chain()
    parent = [("traceparent", b"00-1"), ("streamer-passed", b"[666]")]
    values = [named(1, unit="C"), b"no json", named(2), named(3, unit="x" * MAX_PASSED_BYTES), b""]
    headers: dict[int, Headers] = {0: parent, 4: [("streamer-op", b"end")]}
    batch = codec(declared, ["input.unit"]).decode(
        RecordBatch(2, [10, 11, 12, 13, 14], [1_760_000_000_000] * 5, [b"k"] * 5, list(values), headers)
    )
    assert list(batch.headers) == [0, 1, 2], "in the order of the log; a command has no answer"
    batch = batch.select(np.array([0, 1, 2], np.int64))
    fields = {"risk": "y", "from": "offset", "unit": FieldPath(("unit",))}
    model: Any = Known(declared)
    sink = Sink([("m", model)], Keys(), choices={"m": Chosen(fields, own_places(declared, window=False))})
    answers = StepAnswers(
        partition=2, model="m", keys=batch.keys, timestamps_ms=batch.timestamps_ms, sources=batch.offsets.tolist(),
        headers=batch.headers, times_ms=batch.times_ms, y=[np.array([[0.5], [1], [2]], np.float32)],
    )  # fmt: skip
    [out], [reject] = sink.encode([answers])
    assert out.values == [b'{"risk":0.5,"from":10,"unit":"C"}', b'{"risk":1,"from":12,"unit":null}']
    assert out.headers == {0: [("traceparent", b"00-1")]}
    assert out.common == (("streamer-model", b"m@1 abababababababab"),)
    assert (reject.offset, reject.reason, list(reject.headers)) == (13, Reason.TOO_LARGE_ANSWER, [])
    assert str(MAX_PASSED_BYTES) in reject.detail
    assert "output.fields" in reject.detail


def test_an_answer_that_is_cut_keeps_its_names() -> None:
    declared = contract("per window", "window")
    long = ClosedWindow(
        b"k", 0, 1, Closed.TIME, 0, np.zeros((400, 2), np.float32), np.arange(400), np.arange(400), 0
    )  # fmt: skip
    y = [np.zeros(2, np.float32), np.linspace(0, 1, 400, dtype=np.float32)[:, None]]
    model: Any = Known(declared)
    choices = {"m": Chosen({"each one": "each"}, own_places(declared, window=True))}
    sink = Sink([("m", model)], Keys(), max_bytes=1_500, choices=choices)
    answers = WindowAnswers(
        partition=0, model="m", keys=[b"k"], timestamps_ms=[0], sources=[399], windows=[long], y=[y]
    )
    [out], refused = sink.encode([answers])
    assert not refused
    found = [msgspec.json.decode(value) for value in out.values]
    assert len(found) > 1
    assert [each["slice"] for each in found] == [[at, len(found)] for at in range(len(found))]
    assert [number for each in found for number in each["each one"]] == [float(f"{v:.9g}") for v in y[1][:, 0].tolist()]
