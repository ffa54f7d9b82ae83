"""Values that were written by a schema: what each cell means, how schemas change, and what is refused, and why."""

from __future__ import annotations

import base64
import inspect
import io
import json
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any
from uuid import UUID

import fastavro
import numpy as np
import pytest
from decoding import NOW_MS, records
from google.protobuf import descriptor_pb2
from google.protobuf.text_encoding import CEscape
from hypothesis import given
from hypothesis import strategies as st
from tables import WORDS, category, contract

from streamer.errors import ConfigurationError
from streamer.records.decode import Codec
from streamer.records.formats import Fields, Source
from streamer.records.schemas.avro import _Compiler
from streamer.records.schemas.avro_types import BadSchema, parse
from streamer.records.schemas.book import Book, Schema, message_indexes, telling
from streamer.records.schemas.protobuf import Messages
from streamer.records.unusable import Unusable
from streamer.settings.fields import parse_place
from streamer.words import TimeUnit

ABSENT = str(UUID(bytes=b"\1" * 16))
ROOT = Path(__file__).resolve().parents[2]


DECODERS = ["python", "auto"]


def avro(schema: Any, datum: Any) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(json.loads(json.dumps(schema))), datum)
    return out.getvalue()


def record(**fields: Any) -> dict[str, Any]:
    listed = [
        {"name": name, **kind} if isinstance(kind, dict) and "default" in kind else {"name": name, "type": kind}
        for name, kind in fields.items()
    ]
    return {"type": "record", "name": "E", "fields": listed}


def one(codec: Codec, value: bytes, **more: Any) -> Any:
    """(numbers, time) of one record, or (reason, detail); by the fast path, which the definition has to confirm."""
    if codec.schemas is not None:
        assert not codec.schemas.wanted([value]) - {9, ABSENT}, "what the registry does not have is asked again"
    batch = codec.decode(records([value], **more))
    if batch.rejects:
        return batch.rejects[0].reason, batch.rejects[0].detail
    return batch.x[0].tolist(), int(batch.times_ms[0])


def plain(schema: Any, *features: Any, fields: dict[str, Any] | None = None, time: str = "", **options: Any) -> Codec:
    places = {name: parse_place(place) for name, place in (fields or {}).items()}
    source = Source(None, json.dumps(schema).encode())
    located = Fields(places, parse_place(time) if time else None)
    return Codec(contract(*features), "avro", source=source, fields=located, **options)


def registered(
    *documents: Any, kind: str = "AVRO", reader: Any = None, features: Any = ("a",), **options: Any
) -> Codec:
    book = Book()
    book.learn(
        {at: Schema(kind, text if isinstance(text, str) else json.dumps(text)) for at, text in enumerate(documents, 1)}
    )
    document = None if reader is None else json.dumps(reader).encode()
    value_format = {"AVRO": "avro", "PROTOBUF": "protobuf"}[kind]
    return Codec(contract(*features), value_format, source=Source(book, document), **options)


# cells


@pytest.mark.parametrize(
    ("kind", "datum", "feature", "found"),
    [
        ("double", 1.5, "a", 1.5),
        ("float", 1.5, "a", 1.5),
        ("long", 7, "a", 7),
        ("long", 2**24 + 1, "a", "not_exact"),
        ("double", float("nan"), "a", "not_finite"),
        ("float", float("inf"), "a", "not_finite"),
        ("boolean", True, "a", "undecodable"),
        ("string", "1", "a", "undecodable"),
        ("bytes", b"1", "a", "undecodable"),
        (["null", "double"], None, "a", "missing_feature"),
        (["null", "double"], None, {"name": "a", "missing": -1.0}, -1),
        (["double", "null"], 2.5, {"name": "a", "missing": -1.0}, 2.5),
        (["null", "double", "string"], "x", "a", "undecodable"),
        ("boolean", True, {"name": "a", "kind": "flag"}, 1),
        ("int", 2, {"name": "a", "kind": "flag"}, "undecodable"),
        ({"type": "enum", "name": "S", "symbols": ["idle", "run"]}, "run", category("a"), 1),
        ("string", "walk", category("a"), "unknown_category"),
        ("string", "walk", category("a", unknown=0), 0),
        ("long", 7, category("a"), WORDS.index("7")),
        ("boolean", True, category("a"), WORDS.index("True")),
        (["null", "bytes"], b"x", {"name": "p", "kind": "present", "source": "a"}, 1),
        ("double", float("nan"), {"name": "p", "kind": "present", "source": "a"}, 0),
        (["null", "bytes"], None, {"name": "p", "kind": "present", "source": "a"}, 0),
        ({"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}, "12.25", "a", 12.25),
        ({"type": "bytes", "logicalType": "decimal", "precision": 9}, "7", "a", 7),
        ({"type": "string", "logicalType": "uuid"}, "run", category("a"), 1),
        ({"type": "array", "items": "double"}, [1.0], "a", "undecodable"),
        ("null", None, "a", "missing_feature"),
    ],
)
def test_what_a_cell_of_avro_means_is_what_it_means_in_json(kind: Any, datum: Any, feature: Any, found: Any) -> None:
    schema = record(a=kind)
    if isinstance(kind, dict) and kind.get("logicalType") == "decimal":
        from decimal import Decimal

        datum = Decimal(datum)
    codec = plain(schema, feature)
    outcome = one(codec, avro(schema, {"a": datum}))
    assert (outcome[0] if isinstance(found, str) else outcome[0][0]) == found
    assert outcome == one(plain(schema, feature, careful=True), avro(schema, {"a": datum}))


@pytest.mark.parametrize(
    ("kind", "datum", "unit", "ms"),
    [
        ({"type": "long", "logicalType": "timestamp-millis"}, NOW_MS + 1, "ms", NOW_MS + 1),
        ({"type": "long", "logicalType": "timestamp-millis"}, NOW_MS + 1, "s", NOW_MS + 1),
        ({"type": "long", "logicalType": "timestamp-micros"}, NOW_MS * 1000 + 1999, "iso8601", NOW_MS + 1),
        ({"type": "long", "logicalType": "timestamp-micros"}, NOW_MS * 1000 + 1999, "us", NOW_MS + 1),
        (["null", {"type": "long", "logicalType": "local-timestamp-nanos"}], NOW_MS * 10**6, "ms", NOW_MS),
        ({"type": "int", "logicalType": "date"}, 20_000, "ms", 20_000 * 86_400_000),
        ("long", NOW_MS // 1000, "s", NOW_MS),
        ("double", NOW_MS / 1000 + 0.5, "s", NOW_MS + 500),
        ("string", "2025-10-09T08:53:20Z", "iso8601", NOW_MS),
        ("string", "x", "ms", "bad_time"),
        (["null", "long"], None, "ms", NOW_MS),
    ],
)
def test_a_time_says_its_unit_where_the_schema_does(kind: Any, datum: Any, unit: str, ms: Any) -> None:
    raw = json.loads(json.dumps(record(a="double", at=kind)).replace('"logicalType"', '"was"'))  # as integers
    value = avro(raw, {"a": 1.0, "at": datum})
    outcome = one(plain(record(a="double", at=kind), "a", time="at", time_unit=unit), value)
    assert ms in (outcome[1], outcome[0])


def test_paths_go_through_records_lists_maps_and_unions() -> None:
    inner = {
        "type": "record",
        "name": "In",
        "fields": [{"name": "list", "type": {"type": "array", "items": ["null", "double"]}}],
    }
    schema = record(r=["null", inner], m={"type": "map", "values": "In"})
    fields = {"a": "r.list[1]", "b": "m.x.list[0]", "c": 'm["no"].list[0]'}
    codec = plain(schema, "a", "b", {"name": "c", "missing": -1.0}, fields=fields)
    value = avro(schema, {"r": {"list": [None, 2.5]}, "m": {"x": {"list": [3.5]}}})
    assert one(codec, value)[0] == [2.5, 3.5, -1]
    reason, detail = one(codec, avro(schema, {"r": {"list": [1.0]}, "m": {"x": {"list": [3.5]}}}))
    assert (reason, "'a'" in detail) == ("missing_feature", True)
    with pytest.raises(ConfigurationError, match=r"r\.list is of type array, not a record"):
        plain(schema, "a", fields={"a": "r.list.x"})


# how schemas change


OLD = record(a="int", s={"type": "enum", "name": "S", "symbols": ["run", "idle", "walk"]}, gone="bytes")
READ_AS = {
    "type": "record", "name": "E", "fields": [
        {"name": "speed", "type": ["null", "double"], "aliases": ["a"]},
        {"name": "s", "type": {"type": "enum", "name": "S", "symbols": ["idle", "run"], "default": "idle"}},
        {"name": "new", "type": "float", "default": 2.5},
        {"name": "deep", "type": {"type": "record", "name": "D", "fields": [{"name": "n", "type": "long"}]}, "default": {"n": 4}},
    ],
}  # fmt: skip


def test_a_readers_schema_says_what_old_values_are() -> None:
    features = ["speed", category("s"), "new", "n"]
    fields = Fields({"n": parse_place("deep.n")})
    codec = registered(OLD, record(speed="long"), reader=READ_AS, features=features, fields=fields)
    found = [one(codec, b"\0\0\0\0\1" + avro(OLD, {"a": 3, "s": s, "gone": b"x"}))[0] for s in ("run", "walk")]
    assert found == [[3, 1, 2.5, 4], [3, 2, 2.5, 4]], (
        "a promoted number, a symbol that became the default, and defaults"
    )
    reason, detail = one(codec, b"\0\0\0\0\2" + avro(record(speed="long"), {"speed": 3}))
    assert reason == "undecodable"
    assert "schema id 2 does not fit" in detail
    assert "'s'" in detail


@pytest.mark.parametrize(
    ("default", "found"), [({}, [4, 7, 1.5]), ({"n": 5}, [5, 7, 1.5]), ({"m": {}, "by": {}}, [4, 7, -1]), ({"m": {"k": 8}}, [4, 8, 1.5])]
)  # fmt: skip
def test_a_default_of_a_record_leaves_its_fields_to_their_own(default: Any, found: list[float]) -> None:
    inner = {"type": "record", "name": "I", "fields": [{"name": "k", "type": "long", "default": 7}]}
    deep = {
        "type": "record",
        "name": "D",
        "fields": [
            {"name": "n", "type": "long", "default": 4},
            {"name": "m", "type": inner, "default": {}},
            {"name": "by", "type": {"type": "map", "values": "double"}, "default": {"x": 1.5}},
        ],
    }
    reader = record(a={"type": "double", "default": 0.0}, deep={"type": deep, "default": default})
    fields = Fields({"n": parse_place("deep.n"), "k": parse_place("deep.m.k"), "x": parse_place("deep.by.x")})
    codec = registered(record(a="double"), reader=reader, features=("n", "k", "x"), fields=fields, missing=-1.0)
    assert one(codec, b"\0\0\0\0\1" + bytes(8))[0] == found


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (["null", "double"], "double"),
        (["double", "null"], "double"),
        (["null", "string", "double"], "double"),
        (["null", "double"], ["double"]),
        (["null", "float"], "double"),
        (["null", "long"], ["string", "double"]),
    ],
)
@pytest.mark.parametrize("decoder", DECODERS)
def test_what_may_be_null_is_read_where_it_is_not(written: Any, read: Any, decoder: str) -> None:
    schema = record(a=written)
    codec = registered(schema, reader=record(a=read), decoder=decoder)
    assert one(codec, b"\0\0\0\0\1" + avro(schema, {"a": 2.0 if "long" not in written else 2}))[0] == [2.0]
    reason, detail = one(codec, b"\0\0\0\0\1" + avro(schema, {"a": None}))
    assert reason == "undecodable"
    assert "a was written as null, which the reader's schema does not take" in detail


@pytest.mark.parametrize("nullable", [True, False])
def test_a_record_that_was_renamed_is_found_by_its_alias(nullable: bool) -> None:
    def nested(name: str, *aliases: str) -> dict[str, Any]:
        kind = {"type": "record", "name": name, "fields": [{"name": "x", "type": "double"}], "aliases": list(aliases)}
        return record(r=["null", kind] if nullable else kind)

    value = b"\0\0\0\0\1" + avro(nested("Old"), {"r": {"x": 2.0}})
    fields = Fields({"a": parse_place("r.x")})
    for alias in ("Old", "of.another.space.Old"):
        assert one(registered(nested("Old"), reader=nested("New", alias), fields=fields), value)[0] == [2.0]
    if nullable:
        reason, detail = one(registered(nested("Old"), reader=nested("New", "Older"), fields=fields), value)
        assert (reason, "r was written as record Old" in detail) == ("undecodable", True)


@pytest.mark.parametrize(
    ("second", "called"),
    [("q.R", {}), ("q.S", {"aliases": ["q.R"]}), ("q.S", {"aliases": ["R"]}), ("q.R", {"before": ["q.R"]})],
)
@pytest.mark.parametrize("turned", [False, True])
def test_of_records_with_one_last_name_the_one_of_the_full_name_is_read(second: str, called: Any, turned: bool) -> None:
    def kind(name: str, default: float | None = None, aliases: Any = ()) -> dict[str, Any]:
        new = [] if default is None else [{"name": "new", "type": "double", "default": default}]
        fields = [{"name": "x", "type": "double"}, *new]
        return {"type": "record", "name": name, "fields": fields, "aliases": list(aliases)}

    written = record(r=[kind("p.R"), kind("q.R")])
    branches = [kind("p.R", 1.0, called.get("before", ())), kind(second, 2.0, called.get("aliases", ()))]
    read = record(r=branches[::-1] if turned else branches)
    fields = Fields({"a": parse_place("r.x"), "b": parse_place("r.new")})
    codec = registered(written, reader=read, features=("a", "b"), fields=fields)
    for at, expected in enumerate([[5.0, 1.0], [5.0, 2.0]]):
        value = b"\0\0\0\0\1" + bytes([2 * at]) + np.float64(5.0).tobytes()
        assert one(codec, value)[0] == expected


def test_each_value_is_read_by_the_schema_that_wrote_it() -> None:
    one_, two = record(a="double", b="double"), record(b="long", more="string", a=["null", "float"])
    codec = registered(one_, two, features=["a", "b"])
    values = [
        b"\0\0\0\0\1" + avro(one_, {"a": 1.0, "b": 2.0}),
        b"\0\0\0\0\2" + avro(two, {"b": 4, "more": "x", "a": 3.0}),
    ]
    assert codec.decode(records(values * 2)).x.tolist() == [[1, 2], [3, 4]] * 2
    assert one(registered(one_, features=["c"]), values[0]) == ("missing_feature", "feature 'c' is null or missing")


def test_schemas_refer_to_each_other() -> None:
    point = {"type": "record", "name": "Point", "namespace": "geo", "fields": [{"name": "x", "type": "double"}]}
    main = {"type": "record", "name": "E", "fields": [{"name": "p", "type": "geo.Point"}]}
    book = Book()
    book.learn(
        {1: Schema("AVRO", json.dumps(main), (("geo.Point", json.dumps(point)),)), 2: Schema("AVRO", json.dumps(main))}
    )
    codec = Codec(contract("a"), "avro", source=Source(book), fields=Fields({"a": parse_place("p.x")}))
    assert one(codec, b"\0\0\0\0\1" + bytes(8)) == ([0.0], NOW_MS)
    assert "'geo.Point' is not defined" in one(codec, b"\0\0\0\0\2" + bytes(8))[1]


# bad input


def bad_frames() -> list[tuple[str, bytes, str, str]]:
    good = avro(record(a="double"), {"a": 1.0})
    return [
        ("empty", b"", "undecodable", "is empty"),
        ("JSON", b'{"a":1}', "undecodable", "begins with byte 123"),
        ("cut in the id", b"\0\0\0", "undecodable", "ends within the schema's id"),
        ("a GUID", b"\1" * 30, "unknown_schema", "01010101-0101-0101-0101-010101010101"),
        ("half a GUID", b"\1" * 16, "undecodable", "ends within"),
        ("an id that is not there", b"\0\0\0\0\x09" + good, "unknown_schema", "schema id 9"),
        ("a negative id", b"\0\xff\xff\xff\xff" + good, "unknown_schema", "schema id 4294967295"),
        ("id 0", b"\0\0\0\0\0" + good, "unknown_schema", "schema id 0"),
        ("truncated", b"\0\0\0\0\1" + good[:-1], "undecodable", "schema id 1: the value ends before"),
        ("more", b"\0\0\0\0\1" + good + b"x", "undecodable", "1 bytes are left"),
        ("another kind", b"\0\0\0\0\2" + good, "undecodable", "schema id 2 is JSON, not AVRO"),
        ("no schema", b"\0\0\0\0\3" + good, "undecodable", "schema id 3 does not fit"),
        ("not a record", b"\0\0\0\0\4" + good, "undecodable", "not records"),
    ]


@pytest.mark.parametrize(
    ("value", "reason", "detail"), [each[1:] for each in bad_frames()], ids=[each[0] for each in bad_frames()]
)
def test_a_value_without_a_schema_is_a_dead_letter_that_says_so(value: bytes, reason: str, detail: str) -> None:
    book = Book()
    schemas = {
        1: Schema("AVRO", json.dumps(record(a="double"))),
        2: Schema("JSON", "{}"),
        3: Schema("AVRO", "{"),
        4: Schema("AVRO", '"long"'),
    }
    book.learn({**schemas, 9: None, ABSENT: None})
    found = one(Codec(contract("a"), "avro", source=Source(book)), value)
    assert found[0] == reason
    assert detail in found[1]


GUID = bytes(range(200, 216))
GUID_TEXT = str(UUID(bytes=GUID))


def known(kind: str, text: str, value_format: str) -> Codec:
    book = Book()
    book.learn({7: Schema(kind, text), GUID_TEXT: Schema(kind, text), 9: None})
    return Codec(contract("a"), value_format, source=Source(book))


@pytest.mark.parametrize("frame", [b"\0\0\0\0\7", b"\1" + GUID])
@pytest.mark.parametrize("in_header", [False, True])
@pytest.mark.parametrize("kind", ["AVRO", "JSON", "PROTOBUF"])
def test_an_id_is_a_number_or_a_guid_before_the_value_or_in_a_header(frame: bytes, in_header: bool, kind: str) -> None:
    file = descriptor_pb2.FileDescriptorProto(name="guid.proto", package="g", syntax="proto3")
    file.message_type.add(name="Other")
    message = file.message_type.add(name="E")
    message.field.add(name="a", number=1, type=1, label=1)
    proto = base64.b64encode(file.SerializeToString()).decode()
    text = {"AVRO": json.dumps(record(a="double")), "JSON": "{}", "PROTOBUF": proto}[kind]
    codec = known(kind, text, {"AVRO": "avro", "JSON": "json-schema", "PROTOBUF": "protobuf"}[kind])
    # the first two begin as frames of other ids do
    for number in (struct.unpack("<d", b"\0\0\0\0\x09\0\0\0")[0], struct.unpack("<d", b"\1" * 8)[0], 2.5):
        body = {
            "AVRO": struct.pack("<d", number),
            "JSON": json.dumps({"a": number}).encode(),
            "PROTOBUF": b"\x09" + struct.pack("<d", number),
        }[kind]
        whole = frame + (b"\2\2" if kind == "PROTOBUF" else b"")
        headers: Any = {0: [("before", b"x"), ("__value_schema_id", whole), ("__value_schema_id", b"\0")]}
        value, more = (body, headers) if in_header else (whole + body, {})
        batch = codec.decode(records([value], headers=more))
        assert codec.schemas is not None
        assert not codec.schemas.wanted(telling([batch.records]))
        assert not batch.rejects
        assert batch.x[0].tolist() == [np.float32(number)]


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (b"\0\0\0", "the header __value_schema_id ends within"), (b"\1\1\1", "ends within"), (b"\2" * 20, "begins with byte 2"),
        (b"\0\0\0\0\7x", "goes on after"), (b"\1" + GUID + b"\0", "goes on after"), (b"\0\0\0\0\x09", "schema id 9"),
        (b"\1" + bytes(16), "schema id 00000000-0000-0000-0000-000000000000"),
    ],
)  # fmt: skip
def test_a_header_that_leads_nowhere_is_a_dead_letter_that_says_so(header: bytes, why: str) -> None:
    codec = known("AVRO", json.dumps(record(a="double")), "avro")
    assert codec.schemas is not None
    codec.schemas.learn({str(UUID(int=0)): None})
    found = codec.decode(records([b"\0\0\0\0\7" + bytes(8)] * 3, headers={1: [("__value_schema_id", header)]}))
    assert found.offsets.tolist() == [0, 2]
    assert why in found.rejects[0].detail
    assert (found.rejects[0].reason == "unknown_schema") == ("schema id" in why and "ends" not in why)


def test_an_id_of_another_kind_in_a_header_is_a_dead_letter_that_says_so() -> None:
    codec = registered(record(a="double"))
    value = b"\0\0\0\0\1" + bytes(8)
    reason, detail = one(codec, value, headers={0: [("value.schema.id", b"\1" * 17)]})
    assert (reason, "value.schema.id" in detail) == ("undecodable", True)
    assert one(codec, value, headers={0: [("other", b"x")]}) == ([0.0], NOW_MS)


NODE = {"type": "record", "name": "N", "fields": [{"name": "next", "type": ["null", "N"]}]}
NOTHING = {
    "type": "record",
    "name": "Nothing",
    "fields": [{"name": "z", "type": {"type": "fixed", "name": "Z", "size": 0}}],
}
LOOP = {"type": "record", "name": "L", "fields": [{"name": "l", "type": "L"}]}
MANY = b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01"  # 2**63 - 1
HOSTILE = {
    "a text of 2**63 bytes": (record(a="double", b="string"), bytes(8) + MANY + b"x"),
    "a text of a negative length": (record(a="double", b="string"), bytes(8) + b"\3x"),
    "2**63 items": (record(a="double", b={"type": "array", "items": "double"}), bytes(8) + MANY + bytes(20)),
    "-2**63 items": (record(a="double", b={"type": "array", "items": "int"}), bytes(8) + b"\xff" * 9 + b"\1\2\2\0"),
    "2**63 entries": (record(a="double", b={"type": "map", "values": "null"}), bytes(8) + MANY + bytes(20)),
    "nested a million times": (record(a="double", b=NODE), bytes(8) + b"\2" * 1_000_000),
    "a record in itself": (record(a="double", b=LOOP), bytes(8)),
    "no such branch": (record(a="double", b=["null", "int"]), bytes(8) + b"\4"),
    "a negative branch": (record(a="double", b=["null", "int"]), bytes(8) + b"\3\2"),
    "no such symbol": (record(a="double", b={"type": "enum", "name": "S", "symbols": ["x"]}), bytes(8) + b"\2"),
    "a negative symbol": (record(a="double", b={"type": "enum", "name": "S", "symbols": ["x"]}), bytes(8) + b"\1"),
    "a boolean of 2": (record(a="double", b="boolean"), bytes(8) + b"\2"),
    "a number of 11 bytes": (record(a="double", b="long"), bytes(8) + b"\xff" * 10 + b"\1"),
    "a number of 65 bits": (record(a="double", b="long"), bytes(8) + b"\xff" * 9 + b"\x7f"),
    "a decimal of a thousand bytes": (
        record(a={"type": "bytes", "logicalType": "decimal", "precision": 9}), b"\xd0\x0f" + bytes(1000),
    ),
    "bytes that are no text": (record(a="string"), b"\4\xff\xfe"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_bytes_cost_nothing(name: str) -> None:
    schema, value = HOSTILE[name]
    codec = plain(schema, "a")
    tracemalloc.start()
    try:
        assert one(codec, value)[0] == "undecodable"
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("items", "found"), [("null", [0.0, 1.0]), (NOTHING, "undecodable")])
def test_many_items_without_bytes_are_passed_over_at_once(items: Any, found: Any) -> None:
    """Walked through one by one they would take years."""
    schema = record(a={"type": "array", "items": items}, b="double")
    blocks = MANY * 50_000 + b"\0" + bytes(8)
    assert one(plain(schema, "b"), blocks)[0] == [0.0]
    assert one(plain(schema, "b", "p", fields={"p": "a[3]"}, missing=1.0), blocks)[0] == found


def test_it_is_why_another_reader_is_not_used() -> None:
    """fastavro ends the process on the bytes that are a dead letter here. If this fails, it learned to refuse them."""
    code = f"import io, fastavro; fastavro.schemaless_reader(io.BytesIO(b'\\2' * 1000000), fastavro.parse_schema({NODE!r}), None)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode < 0


@pytest.mark.parametrize(
    "document",
    ["", "{", "[]", '["null","null"]', '["null",["int"]]', '{"type":"record"}', '{"type":"record","name":"1"}', '"unknown"',
     '{"type":"record","name":"R","fields":[{"name":"a"}]}',
     '{"type":"record","name":"R","fields":[{"name":"a","type":"int"},{"name":"a","type":"int"}]}',
     '{"type":"enum","name":"E","symbols":[]}', '{"type":"enum","name":"E","symbols":["a","a"]}', '{"type":"fixed","name":"F","size":-1}',
     '{"type":"array"}', "7", "[" * 600, '{"type":' * 70 + '"int"' + "}" * 70,
     '{"type":"record","name":"int","fields":[]}'],
)  # fmt: skip
def test_a_document_that_is_no_schema_is_told(document: str) -> None:
    with pytest.raises(BadSchema, match=r"."):
        parse(document)


def test_a_schema_of_many_records_in_records_is_read_at_once() -> None:
    """2**40 ways lead to its end."""
    inner: Any = {"type": "record", "name": "R0", "fields": [{"name": "a", "type": "double"}]}
    for at in range(1, 40):
        inner = {
            "type": "record",
            "name": f"R{at}",
            "fields": [{"name": "x", "type": inner}, {"name": "y", "type": f"R{at - 1}"}],
        }
    schema = record(a="double", b={"type": "array", "items": inner})
    assert one(plain(schema, "a"), bytes(8) + b"\2" + bytes(20))[0] == "undecodable"


# Protobuf


SOURCE = """
syntax = "proto3";
package company.iot; /* a comment
over lines */
import "google/protobuf/timestamp.proto";
import 'google/protobuf/wrappers.proto';
option java_package = "x;}{";
message Other { double x = 1; }
message Event {
  option deprecated = false;
  message Readings { double cpu = 1; optional int64 mem = 2; }
  enum State { option allow_alias = true; UNKNOWN = 0; run = 1; RUN = 1; }
  reserved 50 to 60, 70; reserved "old";
  Readings readings = 1;
  repeated double list = 2 [packed = true, (custom.option).field = {a: "]"}];
  map<string, Readings> by_name = 3;
  State state = 4;
  oneof kind { string word = 5; bool flag = 6; }
  google.protobuf.Timestamp at = 7;
  google.protobuf.DoubleValue maybe = 8;
  uint64 big = 0x9;
  bytes raw = 10;
  Event inner = 11;
}
service S { rpc Get(Event) returns (Event) { option x = 1; } }
"""


def messages(text: str = SOURCE) -> Messages:
    return Messages.of(Schema("PROTOBUF", text))


@pytest.fixture(scope="module")
def event() -> Any:
    return messages().named("company.iot.Event")


FEATURES = {
    "cpu": "readings.cpu", "mem": "readings.mem", "second": "list[1]", "x": "by_name.x.cpu", "maybe": "maybe", "big": "big",
}  # fmt: skip


def protobuf(*features: Any, **fields: str) -> Codec:
    places = {name: parse_place(place) for name, place in fields.items()}
    return registered(
        SOURCE, kind="PROTOBUF", features=features, fields=Fields(places, parse_place("at")), missing=-1.0
    )


def test_fields_of_protobuf_are_found_by_the_same_paths(event: Any) -> None:
    codec = protobuf(*FEATURES, **FEATURES)
    message = event(list=[1, 2], big=3)
    message.readings.cpu = 0.5
    message.by_name["x"].cpu = 4
    message.maybe.value = 0
    message.at.FromMilliseconds(NOW_MS + 5)
    value = b"\0\0\0\0\1\2\2" + message.SerializeToString()
    assert one(codec, value) == ([0.5, -1, 2, 4, 0, 3], NOW_MS + 5), "optional and not set is missing"
    assert one(codec, b"\0\0\0\0\1\2\2")[0] == [-1, -1, -1, -1, -1, 0], "a number that is not set is zero"
    assert one(codec, b"\0\0\0\0\1\0")[0] == [-1] * 6, "the first message of the file has none of them"


def test_words_and_flags_of_protobuf(event: Any) -> None:
    features = [category("state"), {"name": "flag", "kind": "flag"}, {"name": "raw", "kind": "present"}]
    codec = protobuf(*features, state="state", flag="flag")
    assert one(codec, b"\0\0\0\0\1\2\2" + event(state=1, flag=True, raw=b"x").SerializeToString())[0] == [1, 1, 1]
    assert one(codec, b"\0\0\0\0\1\2\2" + event(state=0).SerializeToString())[0] == "unknown_category"
    assert one(codec, b"\0\0\0\0\1\2\2" + event(state=7).SerializeToString())[0][0] == WORDS.index("7")


@pytest.mark.parametrize(
    ("kind", "key", "found"),
    [
        ("int32", "1", 7),
        ("int32", "-2147483648", -1),
        ("int32", "2147483648", "integers from -2147483648 to 2147483647: '2147483648'"),
        ("sint32", "99999999999", "integers"),
        ("sfixed32", "x", "integers"),
        ("int64", "-9223372036854775808", -1),
        ("sint64", "9223372036854775808", "integers"),
        ("sfixed64", "9" * 5_000, "integers"),
        ("uint32", "4294967295", -1),
        ("uint32", "-1", "integers from 0 to 4294967295: '-1'"),
        ("fixed32", "4294967296", "integers"),
        ("uint64", "18446744073709551615", -1),
        ("fixed64", "18446744073709551616", "integers"),
        ("int32", "1_0", "integers"),
        ("bool", "true", 7),
        ("bool", "false", -1),
        ("bool", "7", "true and false: '7'"),
        ("bool", "True", "true and false"),
        ("string", "1", 7),
    ],
)
@pytest.mark.parametrize("filled", [True, False])
def test_a_key_that_a_map_cannot_have_is_told_of_the_schema(kind: str, key: str, found: Any, filled: bool) -> None:
    """Whether a record has anything in its map or not."""
    text = f'syntax = "proto3"; message M {{ map<{kind}, double> m = 1; }}'
    made = messages(text).named("M")()
    if filled:
        made.m[{"string": "1", "bool": True}.get(kind, 1)] = 7
    codec = registered(text, kind="PROTOBUF", fields=Fields({"a": parse_place(f"m.{key}")}), missing=-1.0)
    outcome = one(codec, b"\0\0\0\0\1\0" + made.SerializeToString())
    if isinstance(found, str):
        assert outcome[0] == "undecodable"
        assert "does not fit what is read (input.fields): m is a map whose keys are" in outcome[1]
        assert found in outcome[1]
    else:
        assert outcome[0] == [found if filled else -1]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (b"\2\2\x09", "Error parsing"),
        (b"\2\2\x2a\2\xff\xff", "Error parsing"),
        (b"\2\2" + b"\x5a\x80\x01" * 5, "Error parsing"),
        (b"\2\2\x5a\xff\xff\xff\xff\x07", "Error parsing"),
        (b"\4\2", "ends within its message indexes"),
        (b"\4\2\x63", "no message at [1, -50]"),
        (b"\2\x0c", "no message at [6]"),
        (b"\xff\xff\xff\xff\xff\xff", "more than 5 bytes"),
        (b"\x03", "-2 places"),
        (b"\xd0\x0f", "1000 places"),
        (b"", "ends within its message indexes"),
    ],
)
def test_bad_protobuf_is_a_dead_letter(value: bytes, told: str) -> None:
    reason, detail = one(protobuf("cpu", cpu="readings.cpu"), b"\0\0\0\0\1" + value)
    assert reason == "undecodable"
    assert told in detail


def test_protobuf_nested_deeper_than_its_library_reads_is_a_dead_letter(event: Any) -> None:
    value = b""
    for _ in range(5_000):
        size = len(value)
        prefix = b""
        while size > 127:
            prefix, size = prefix + bytes([size & 127 | 128]), size >> 7
        value = b"\x5a" + prefix + bytes([size]) + value
    assert one(protobuf("cpu", cpu="readings.cpu"), b"\0\0\0\0\1\2\2" + value)[0] == "undecodable"


@pytest.mark.parametrize("name", ["api", "type", "source_context", "field_mask", "any"])
def test_what_google_ships_with_the_library_may_be_imported(name: str) -> None:
    text = f'syntax = "proto3"; import "google/protobuf/{name}.proto"; message M {{ double a = 1; }}'
    assert one(registered(text, kind="PROTOBUF"), b"\0\0\0\0\1\0" + b"\x09" + struct.pack("<d", 1.5))[0] == [1.5]


BUILT_IN = [
    *(
        f"google/type/{name}.proto"
        for name in ("date", "datetime", "decimal", "expr", "latlng", "localized_text", "money")
    ),
    *(f"confluent/{name}.proto" for name in ("meta", "type/decimal", "type/variant", "types/decimal")),
]


@pytest.mark.parametrize("name", BUILT_IN)
def test_what_serializers_take_for_built_in_may_be_imported(name: str) -> None:
    """They send no reference for it."""
    text = (
        f'syntax = "proto3"; import "{name}"; message M {{ double a = 1 [(confluent.field_meta) = {{ doc: "]" }}]; }}'
    )
    assert one(registered(text, kind="PROTOBUF"), b"\0\0\0\0\1\0" + b"\x09" + struct.pack("<d", 1.5))[0] == [1.5]


@pytest.mark.parametrize("module", ["google.protobuf.descriptor_pool", "google.type.date_pb2"])
def test_a_library_that_is_not_there_is_told_at_the_start(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by a dead letter for each record that needs it."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigurationError, match="needs the extra schemas: pip install"):
        registered('syntax = "proto3"; message M { double a = 1; }', kind="PROTOBUF")


@pytest.mark.parametrize("place", ["type", "types"])
def test_a_decimal_of_confluent_is_the_nearest_number(place: str) -> None:
    text = f"""syntax = "proto3"; import "confluent/{place}/decimal.proto"; import "google/type/money.proto";
        message M {{ confluent.type.Decimal a = 1; google.type.Money b = 2; }}"""
    message = messages(text).named("M")
    features = {"a": "a", "b": "b.units"}
    fields = Fields({name: parse_place(given) for name, given in features.items()})
    codec = registered(text, kind="PROTOBUF", features=tuple(features), fields=fields, missing=-1.0)

    def read(unscaled: int, scale: int, size: int = 8) -> Any:
        made = message(a={"value": unscaled.to_bytes(size, "big", signed=True), "precision": 9, "scale": scale})
        made.b.units = 7
        return one(codec, b"\0\0\0\0\1\0" + made.SerializeToString())

    assert read(-12_345, 3)[0] == [np.float32(-12.345), 7]
    assert read(25, -2)[0] == [2500, 7]
    assert read(0, 0, 0)[0] == [0, 7]
    assert one(codec, b"\0\0\0\0\1\0")[0] == [-1, -1]
    for told in (read(1, 2**31 - 1), read(1, -(2**31)), read(1, 0, 65)):
        assert told[0] == "undecodable"
        assert "a decimal of" in told[1]
    assert read(1, -300)[0] == "not_finite", "more than float32 holds"


def test_message_indexes_are_as_confluent_writes_them() -> None:
    assert message_indexes(b"\0x", 0) == ((0,), 1)
    assert message_indexes(b"\2\0x", 0) == ((0,), 2)
    assert message_indexes(b"\4\2\4x", 0) == ((1, 2), 3)
    with pytest.raises(Unusable):
        message_indexes(b"\4\2", 0)


def test_a_set_of_descriptors_from_a_file_and_the_name_of_a_message(event: Any) -> None:
    found = descriptor_pb2.FileDescriptorSet()
    event.DESCRIPTOR.file.CopyToProto(found.file.add())
    options: dict[str, Any] = {"fields": Fields({"a": parse_place("readings.cpu")})}
    source = Source(None, found.SerializeToString(), "company.iot.Event")
    message = event()
    message.readings.cpu = 2
    codec = Codec(contract("a"), "protobuf", source=source, **options)
    assert one(codec, message.SerializeToString())[0] == [2]
    for document, name, told in [
        (found.SerializeToString(), "company.iot.No", "it has company.iot.Event, company.iot.Event.ByNameEntry"),
        (b"\xff", "x", "no set of descriptors"),
        (b"", "x", "no descriptors"),
    ]:
        with pytest.raises(ConfigurationError, match=told):
            Codec(contract("a"), "protobuf", source=Source(None, document, name), **options)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("syntax = 'proto3'; message M { Nowhere n = 1; }", "Nowhere"),
        ("import 'other.proto'; message M { optional int32 n = 1; }", "other.proto"),
        ("message M {", "ends early"),
        ("message M { int32 n = x; }", "no number of a field"),
        ("syntax = 'proto9';", "proto9"),
        ("edition = '2023';", "edition"),
        ("\x00", "no .proto file"),
        ("message " + "M { message " * 100, "nested too deep"),
        ("message M { optional int32 n = 1 [default]; optional int32 m = 2 [deprecated = true]; }", "']' where '='"),
        ("enum E { A = 2147483648; }", "no number of a field"),
        ("enum E { A = 0 [default = 1]; B = -; }", "no number of a field"),
        ("message M { repeated group G = 1 { } }", "groups"),
    ],
)
def test_a_proto_file_that_is_none_is_told(text: str, told: str) -> None:
    codec = registered(text, kind="PROTOBUF")
    reason, detail = one(codec, b"\0\0\0\0\1\0")
    assert reason == "undecodable"
    assert told in detail


def parsed(text: str) -> Any:
    """What a message of the file ``text`` has where nothing is set."""
    return messages(text).at((0,))()


WRITTEN = r"""
syntax = "pro" 'to2' ; package a . b /* . */ . c;
option (o) = { a: <b: 1; c: 2, d: [1, -2]> e { f: "x" "}" } };
extend google.protobuf.FieldOptions { optional string t = 1000; }
message A {
  extensions 400 to 1000 [declaration = { number: 400, full_name: ".a.b", type: ".c.D" }, verification = DECLARATION];
  extensions 2000 to max;
  optional double d = 01 [(o) . default = "no", default = - 1.5e-3, (x) = {a: ["]"]}]; ;
  optional .a . b
    . c.E e = 0x2 [default = N];
  optional float i = 3 [default = -inf, deprecated = true];
  optional int32 h = 4 [default = -0x10];
  optional int64 u = 05 [(a).b = - 5, default = 017];
  reserved 70 to max; reserved "q", "z";
  map < string , . a.b.c.A > m = 6;
  oneof o { option (x) = {a: 1}; int32 z = 7; }
}
enum E { option allow_alias = true; M = - 2147483648; N = - 1; O = 017 [(a) = "x"]; P = 15; reserved -10 to - 5, 6; reserved "X"; };
"""


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_all_that_may_be_written_in_a_proto_file_is_read(mark: str) -> None:
    found = parsed(mark + WRITTEN)
    assert (found.d, found.e, found.i, found.h, found.u) == (-1.5e-3, -1, -np.inf, -16, 15)
    assert {each.name: each.number for each in found.DESCRIPTOR.fields} == {
        "d": 1, "e": 2, "i": 3, "h": 4, "u": 5, "m": 6, "z": 7,
    }  # fmt: skip
    assert found.DESCRIPTOR.full_name == "a.b.c.A"
    words = {each.name: each.number for each in found.DESCRIPTOR.file.enum_types_by_name["E"].values}
    assert words == {"M": -(2**31), "N": -1, "O": 15, "P": 15}


@pytest.mark.parametrize(
    ("written", "means"),
    [
        ('"on" /* and */ "line"', "online"),
        ("'it' \"\\'\" 's'", "it's"),
        (r'"\x41\x4a\112\1012\?\"\'\\"', "AJJA2?\"'\\"),
        (r'"\a\b\f\n\r\t\v"', "\a\b\f\n\r\t\v"),
        (r'"\u00e9\ud83d\ude00\U0001F600" "\303\266"', "\u00e9\U0001f600\U0001f600\u00f6"),
        (r'"\ud83d\U00110000"', "\ufffd\ufffd"),
        ('"\ud83d"', "\ufffd"),
        ('""', ""),
    ],
)
def test_a_text_that_stands_for_an_absent_one_is_read_as_protoc_reads_it(written: str, means: str) -> None:
    text = f'syntax = "proto2"; message M {{ optional string s = 1 [default = {written}]; optional bytes b = 2 [default = {written}]; }}'
    found = parsed(text)
    assert (found.s, found.b) == (means, means.encode())


@given(st.lists(st.text(max_size=5), min_size=1, max_size=3), st.lists(st.binary(max_size=5), min_size=1, max_size=3))
def test_texts_are_what_googles_own_escapes_say(texts: list[str], pieces: list[bytes]) -> None:
    strings, raw = (" ".join(f'"{CEscape(each, as_utf8=False)}"' for each in found) for found in (texts, pieces))
    found = parsed(
        f"message M {{ optional string s = 1 [default = {strings}]; optional bytes b = 2 [default = {raw}]; }}"
    )
    assert (found.s, found.b) == ("".join(texts), b"".join(pieces))


# settings


def test_a_format_without_its_schema_or_its_library_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for value_format in ("avro", "protobuf", "json-schema"):
        with pytest.raises(ConfigurationError, match=r"registry\.url"):
            Codec(contract("a"), value_format)
    monkeypatch.setitem(sys.modules, "google.protobuf.descriptor_pool", None)
    with pytest.raises(ConfigurationError, match="schemas"):
        Codec(contract("a"), "protobuf", source=Source(Book()))
    with pytest.raises(ConfigurationError, match="schema_file: the document is no JSON"):
        Codec(contract("a"), "avro", source=Source(Book(), b"{"))


def test_what_is_not_known_is_wanted_and_what_is_absent_is_asked_again() -> None:
    book = Book()
    values = [
        b"\1" * 16,
        b"\1" * 30,
        b"\0\0\0\0\1x",
        b"\0\0\0\0\2x",
        b"\0\0\0\0\1y",
        None,
        b"",
        b"{}",
        b"\0\0",
        b"\0\xff\xff\xff\xffx",
        bytes(6),
    ]
    assert book.wanted(values) == {1, 2, ABSENT}
    book.learn({1: Schema("AVRO", "x"), 2: None, ABSENT: Schema("AVRO", "x")})
    assert book.wanted(values) == {2}
    book.learn({2: Schema("AVRO", "y")})
    assert book.wanted(values) == set()
    book.learn({number: Schema("AVRO", "z") for number in range(10, 10 + 5_000)})
    assert 1 not in book.ids
    assert len(book.ids) == 5_000, "what was asked together is kept together"


def test_fields_without_bytes_cost_nothing() -> None:
    """A record of 300 nulls is one byte of another field: 1 MB of them would take minutes."""
    inner = {"type": "record", "name": "N", "fields": [{"name": "b", "type": "boolean"}]}
    inner["fields"] += [{"name": f"n{at}", "type": "null"} for at in range(300)]
    empty = {"type": "record", "name": "Z", "fields": [{"name": "z", "type": "null"}]}
    schema = record(a="double", z=empty, many={"type": "array", "items": inner})
    datum = {"a": 1.5, "z": {"z": None}, "many": [{"b": True, **{f"n{at}": None for at in range(300)}}] * 3}
    assert one(plain(schema, "a"), avro(schema, datum))[0] == [1.5]
    compiler = _Compiler(1, None, TimeUnit.MS)
    read = compiler.skip(parse(json.dumps(inner)))
    assert len(inspect.getclosurevars(read).nonlocals["steps"]) == 1
