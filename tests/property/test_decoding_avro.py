"""Avro: what fastavro writes is read as it reads it; whatever the bytes are, the outcome is the same by every path."""

from __future__ import annotations

import io
import json
from typing import Any
from uuid import UUID

import fastavro
import numpy as np
import pytest
from decoding import NOW_MS, assert_each_record_means_what_it_means, outcomes, records
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_columns import require_native
from tables import WORDS, contract

from streamer.records.decode import Codec
from streamer.records.formats import Fields, Source
from streamer.records.meaning import NO_CELL
from streamer.records.schemas.avro import avro_reader
from streamer.records.schemas.avro_types import parse
from streamer.records.schemas.book import ID_HEADER, Book, Schema, SchemaKind, telling
from streamer.records.unusable import Unusable
from streamer.settings.fields import parse_place
from streamer.words import TimeUnit

NAMES = ("a", "b", "c", "d", "e")
MADE = ("record", "enum", "fixed")


@st.composite
def types(draw: st.DrawFn, depth: int = 0) -> Any:
    """A type, and a strategy of its data. Names are made different by what is drawn."""
    kind = draw(
        st.sampled_from(
            ["null", "boolean", "int", "long", "float", "double", "double", "bytes", "string", "enum", "fixed"]
            + (["record", "record", "array", "map", "union", "union"] if depth < 3 else [])
        )
    )
    name = "N"
    plain: dict[str, Any] = {
        "null": st.none(),
        "boolean": st.booleans(),
        "int": st.integers(-(2**31), 2**31 - 1),
        "long": st.integers(-(2**63), 2**63 - 1),
        "float": st.floats(width=32),
        "double": st.floats(),
        "bytes": st.binary(max_size=9),
        "string": st.text(max_size=5),
    }
    if kind in plain:
        return kind, plain[kind]
    if kind == "enum":
        symbols = ["x", "run", "idle"]
        return {"type": "enum", "name": name, "symbols": symbols}, st.sampled_from(symbols)
    if kind == "fixed":
        size = draw(st.integers(0, 4))
        return {"type": "fixed", "name": name, "size": size}, st.binary(min_size=size, max_size=size)
    if kind == "union":
        branches = [draw(types(depth + 1)) for _ in range(draw(st.integers(1, 2)))]
        branches = [
            each for each in branches if not isinstance(each[0], list) and each[0] not in ("null", "float", "int")
        ]
        kept, seen = [("null", st.none())], {"null"}
        for schema, data in branches:
            key = schema["name"] if isinstance(schema, dict) and schema["type"] in MADE else str(schema)[:12]
            if key not in seen and (not isinstance(schema, dict) or schema["type"] in (*MADE, "array")):
                seen.add(key)
                kept.append((schema, data))
        kept = draw(st.permutations(kept[:2]))
        return [schema for schema, _ in kept], st.one_of(*[data for _, data in kept])
    if kind in ("array", "map"):
        inner, data = draw(types(depth + 1))
        if kind == "array":
            return {"type": "array", "items": inner}, st.lists(data, max_size=3)
        return {"type": "map", "values": inner}, st.dictionaries(st.sampled_from(NAMES), data, max_size=3)
    return draw(record(depth + 1))


@st.composite
def record(draw: st.DrawFn, depth: int = 0) -> Any:
    fields = {name: draw(types(depth)) for name in draw(st.lists(st.sampled_from(NAMES), max_size=5, unique=True))}
    schema = {
        "type": "record",
        "name": "R",
        "fields": [{"name": name, "type": kind} for name, (kind, _) in fields.items()],
    }
    return schema, st.fixed_dictionaries({name: data for name, (_, data) in fields.items()})


def numbered(schema: Any, count: list[int]) -> Any:
    """Every named type has a name of its own."""
    if isinstance(schema, list):
        return [numbered(each, count) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: numbered(each, count) for key, each in schema.items()}
    if schema.get("type") in MADE:
        count.append(0)
        made["name"] = f"N{len(count)}"
    return made


def walked(datum: Any, path: tuple[str | int, ...]) -> Any:
    """What a path finds in what fastavro made; KeyError where it leads into something that has no such part."""
    for step in path:
        if datum is None:
            return None
        if isinstance(step, int) != isinstance(datum, list) or not isinstance(datum, list | dict):
            raise KeyError(step)
        datum = (
            datum[step]
            if isinstance(step, int) and step < len(datum)
            else None
            if isinstance(step, int)
            else datum.get(step)
        )
    return NO_CELL if isinstance(datum, list | dict | bytes) else datum


def encoded(schema: Any, datum: Any) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, datum)
    return out.getvalue()


step: Any = st.sampled_from([*NAMES, 0, 1])
paths = st.lists(
    st.tuples(st.sampled_from(NAMES), st.lists(step, max_size=3)).map(lambda each: (each[0], *each[1])),
    min_size=1, max_size=4, unique=True,
)  # fmt: skip


@settings(max_examples=max(400, settings.default.max_examples), suppress_health_check=list(HealthCheck))
@given(st.data())
def test_what_fastavro_writes_is_read_as_it_reads_it(data: st.DataObject) -> None:
    schema, datums = data.draw(record())
    schema = numbered(schema, [])
    ready = fastavro.parse_schema(json.loads(json.dumps(schema)))
    value = encoded(ready, data.draw(datums))
    expected = fastavro.schemaless_reader(io.BytesIO(value), ready, None)
    for path in data.draw(paths):
        try:
            reader = avro_reader(parse(json.dumps(schema)), None, [path], None, TimeUnit.MS)
        except ValueError:
            continue  # it leads nowhere whatever the value is
        try:
            (found,) = reader.cells(value, 0)
        except Unusable:
            with pytest.raises(KeyError):
                walked(expected, path)
            continue
        try:
            wanted = walked(expected, path)
        except KeyError:
            assert found is None  # a path may go on behind what is null in this value
            continue
        assert found == wanted or (found != found and wanted != wanted), (path, found, wanted)  # noqa: PLR0124
        assert type(found) is type(wanted)


@settings(max_examples=max(400, settings.default.max_examples), suppress_health_check=list(HealthCheck))
@given(st.data())
def test_whatever_the_bytes_are_there_is_an_answer(data: st.DataObject) -> None:
    schema, datums = data.draw(record())
    schema = numbered(schema, [])
    value = encoded(fastavro.parse_schema(json.loads(json.dumps(schema))), data.draw(datums))
    reader = avro_reader(parse(json.dumps(schema)), None, [], None, TimeUnit.MS)
    assert reader.cells(value, 0) == []
    for cut in range(len(value)):
        with pytest.raises(Unusable):
            reader.cells(value[:cut], 0)
    with pytest.raises(Unusable):
        reader.cells(value + b"\0", 0)
    mutated = bytearray(value + data.draw(st.binary(max_size=3)))
    for _ in range(data.draw(st.integers(1, 3))):
        if mutated:
            mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    try:
        reader.cells(bytes(mutated), 0)
    except Unusable as why:
        why.detail.encode()


@st.composite
def named_branches(draw: st.DrawFn) -> list[Any]:
    """Named types of one union, which often have their last names in common, and their aliases with each other."""
    names = draw(
        st.lists(st.sampled_from(["R", "p.R", "q.R", "p.S", "q.S", "q.T"]), min_size=1, max_size=5, unique=True)
    )
    alias = st.lists(st.sampled_from(["R", "S", "p.R", "q.R", "q.S"]), max_size=2)
    made = []
    for name in names:
        kind = draw(st.sampled_from(["record", "record", "enum", "fixed"]))
        own: dict[str, Any] = {"type": kind, "name": name, "namespace": "", "aliases": draw(alias)}
        if kind == "record":
            fields = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
            own["fields"] = [{"name": each, "type": "double", "default": -1.0} for each in fields]
        else:
            own |= {"symbols": draw(st.permutations(NAMES)), "default": "a"} if kind == "enum" else {"size": len(made)}
        made.append(own)
    return made


@settings(max_examples=max(300, settings.default.max_examples), suppress_health_check=list(HealthCheck))
@given(named_branches(), st.data())
def test_a_readers_schema_that_holds_what_was_written_reads_it(branches: list[Any], data: st.DataObject) -> None:
    """In whatever order, whatever else is in the union, whatever one was called before, and however names are alike."""

    def one(union: list[Any]) -> str:
        return json.dumps({"type": "record", "name": "E", "fields": [{"name": "u", "type": union}]})

    written, others = branches, data.draw(named_branches())
    taken = {each["name"] for each in written}
    reader = data.draw(st.permutations([*written, *[each for each in others if each["name"] not in taken]]))
    at = data.draw(st.integers(0, len(written) - 1))
    size = {"record": 8 * len(written[at].get("fields", ())), "enum": 1, "fixed": written[at].get("size")}
    value = bytes([2 * at]) + data.draw(st.binary(min_size=(count := size[written[at]["type"]]), max_size=count))
    if written[at]["type"] == "enum":
        value = value[:1] + bytes([2 * data.draw(st.integers(0, 4))])
    paths = [("u",)] if written[at]["type"] != "record" else [("u", each["name"]) for each in written[at]["fields"]]
    as_written = avro_reader(parse(one(written)), None, paths, None, TimeUnit.MS).cells(value, 0)
    found = avro_reader(parse(one(written)), parse(one(reader)), paths, None, TimeUnit.MS).cells(value, 0)
    assert repr(found) == repr(as_written)


FLAT = {
    "type": "record", "name": "E", "fields": [
        {"name": "u", "type": ["null", "double"]},
        {"name": "v", "type": "float"},
        {"name": "w", "type": ["string", "null", "long", "boolean", "double"]},
        {"name": "in", "type": ["null", {"type": "record", "name": "In", "fields": [
            {"name": "u", "type": "double"}, {"name": "list", "type": {"type": "array", "items": ["null", "int"]}}]}]},
        {"name": "ts", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ],
}  # fmt: skip
LATER = {
    "type": "record", "name": "E", "fields": [
        {"name": "ts", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "more", "type": "bytes"},
        {"name": "u", "type": "int"},
        {"name": "v", "type": {"type": "enum", "name": "S", "symbols": ["run", "idle"]}},
        {"name": "w", "type": "double"},
    ],
}  # fmt: skip
PLAIN = {
    "type": "record", "name": "E", "fields": [
        {"name": "u", "type": ["null", "double"]},
        {"name": "skipped", "type": ["string", "null", "bytes"]},
        {"name": "v", "type": ["float", "null"]},
        {"name": "w", "type": ["string", "null", "long", "boolean", "double",
                               {"type": "enum", "name": "S", "symbols": ["run", "idle", "odd"]}]},
        {"name": "in", "type": {"type": "record", "name": "In", "fields": [
            {"name": "u", "type": "double"}, {"name": "f", "type": {"type": "fixed", "name": "F", "size": 2}}]}},
        {"name": "ts", "type": ["null", {"type": "long", "logicalType": "timestamp-micros"}]},
    ],
}  # fmt: skip
GUID = UUID("5f0c3c1e-0000-4000-8000-000000000007")
ABSENT = str(UUID(bytes=b"\1" * 16))
KNOWN = (
    {7: Schema("AVRO", json.dumps(FLAT)), 8: Schema("AVRO", json.dumps(LATER)),
     6: Schema("AVRO", json.dumps(PLAIN)), 9: None, 10: Schema("JSON", "{}"),
     11: Schema("AVRO", "{"), 12: Schema("AVRO", '"long"'), str(GUID): Schema("AVRO", json.dumps(FLAT)), ABSENT: None}
)  # fmt: skip
number = st.sampled_from([0.0, 1.5, 7.0, float("nan"), 1e300, float(2**24 + 1)]) | st.floats()
flat = st.fixed_dictionaries(
    {
        "u": st.none() | number,
        "v": st.floats(width=32),
        "w": st.none() | st.sampled_from([*WORDS, 7, 2**62, True, 0.5, -0.0]),
        "in": st.none()
        | st.fixed_dictionaries({"u": number, "list": st.lists(st.none() | st.integers(-9, 9), max_size=3)}),
        "ts": st.sampled_from([NOW_MS, NOW_MS + 3, 5, 2**62]),
    }
)
plain_values = st.fixed_dictionaries(
    {
        "u": st.none() | number,
        "skipped": st.none() | st.text(max_size=4) | st.binary(max_size=4),
        "v": st.none() | st.floats(width=32),
        "w": st.none() | st.sampled_from([*WORDS, 7, -(2**63), 2**24 + 1, True, False, 0.5, 1.0, "idle", "odd"]),
        "in": st.fixed_dictionaries({"u": number, "f": st.binary(min_size=2, max_size=2)}),
        "ts": st.sampled_from([None, NOW_MS * 1000 + 999, 5, -1, 2**62]),
    }
)
later = st.fixed_dictionaries(
    {
        "ts": st.sampled_from([NOW_MS * 1000 + 7, 5]), "more": st.binary(max_size=4), "u": st.integers(-9, 9),
        "v": st.sampled_from(["run", "idle"]), "w": number,
    }
)  # fmt: skip
FRAMES = (b"\1", b"\0\0\0\0\7", b"\1" + GUID.bytes, b"\0\0\0\0\x09")
READY = {7: fastavro.parse_schema(FLAT), 8: fastavro.parse_schema(LATER), 6: fastavro.parse_schema(PLAIN)}
framed = st.one_of(
    flat.map(lambda each: b"\0\0\0\0\7" + encoded(READY[7], each)),
    flat.map(lambda each: b"\1" + GUID.bytes + encoded(READY[7], each)),
    flat.map(lambda each: encoded(READY[7], each)),
    plain_values.map(lambda each: b"\0\0\0\0\6" + encoded(READY[6], each)),
    later.map(lambda each: b"\0\0\0\0\x08" + encoded(READY[8], each)),
    st.sampled_from([b"\0\0\0\0\x09x", b"\0\0\0\0\x0ax", b"\0\0\0\0\x0bx", b"\0\0\0\0\x0cx", b"\1" * 30, b"\0\0", b"{}", b"\0\xff\xff\xff\xffx"]),
    st.binary(max_size=20).map(lambda each: b"\0\0\0\0\7" + each),
)  # fmt: skip
feature = st.sampled_from(
    [{}, {"missing": -1.5}, {"kind": "flag"}, {"kind": "present"}, {"kind": "category", "vocabulary": WORDS},
     {"kind": "category", "vocabulary": WORDS, "unknown": 0}]
)  # fmt: skip
place = st.sampled_from(["u", "v", "w", "in.u", "in.list[1]", "in", "nowhere", "header:h", "in.list", "w.x"])


@settings(max_examples=max(200, settings.default.max_examples // 5), suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_cut_gives_the_same_and_the_fast_path_is_the_definition(data: st.DataObject) -> None:
    tables = [
        {"name": f"f{at}", **each} for at, each in enumerate(data.draw(st.lists(feature, min_size=1, max_size=4)))
    ]
    tables = [{**each, "source": "f0"} if each.get("kind") == "present" else each for each in tables]
    places = {each["name"]: parse_place(data.draw(place)) for each in tables}
    book = Book()
    options: dict[str, Any] = {
        "missing": data.draw(st.sampled_from([None, 2.0])),
        "time_unit": data.draw(st.sampled_from([TimeUnit.MS, TimeUnit.S, TimeUnit.ISO8601])),
        "fields": Fields(places, parse_place(data.draw(st.sampled_from(["ts", "u", "nowhere"])))),
        "source": Source(book),
    }
    dtype = data.draw(st.sampled_from(["float32", "float64", "int64"]))
    if dtype == "int64":
        tables = [{name: each for name, each in table.items() if name != "missing"} for table in tables]
    declared = contract(*tables, dtype=dtype)
    values: list[bytes | None] = []
    for _ in range(data.draw(st.integers(1, 6))):
        values += [data.draw(framed)] * data.draw(st.sampled_from([1, 1, 3]))
    header = data.draw(st.sampled_from([("h", b"7"), ("h", b"run"), *((ID_HEADER, frame) for frame in FRAMES)]))
    log = records(values, headers={data.draw(st.integers(0, len(values) - 1)): [header]})
    book.learn(KNOWN)
    book.learn(dict.fromkeys(book.wanted(telling([log]))))
    codec, careful = Codec(declared, "avro", **options), Codec(declared, "avro", careful=True, **options)
    assert_each_record_means_what_it_means(
        codec, careful, log, data.draw(st.lists(st.integers(0, len(log)), max_size=4))
    )


@settings(max_examples=max(300, settings.default.max_examples), suppress_health_check=list(HealthCheck))
@given(st.data())
def test_native_columns_of_flat_records_are_the_definition(data: st.DataObject) -> None:
    """Without a registry, so that most values are of the one schema, and native code decides most of them."""
    require_native()
    dtype = data.draw(st.sampled_from(["float32", "float64", "int32", "int64"]))
    tables = [
        {"name": f"f{at}", **each} for at, each in enumerate(data.draw(st.lists(feature, min_size=1, max_size=4)))
    ]
    tables = [{**each, "source": "f0"} if each.get("kind") == "present" else each for each in tables]
    if dtype.startswith("int"):
        tables = [{name: each for name, each in table.items() if name != "missing"} for table in tables]
    where = st.sampled_from(["u", "v", "w", "in.u", "ts", "nowhere", "in.nowhere"])
    options: dict[str, Any] = {
        "missing": data.draw(st.sampled_from([None, 2.0])),
        "time_unit": data.draw(st.sampled_from([TimeUnit.MS, TimeUnit.S, TimeUnit.ISO8601])),
        "fields": Fields(
            {each["name"]: parse_place(data.draw(where)) for each in tables},
            parse_place(data.draw(st.sampled_from(["ts", "u", "w", "nowhere"]))),
        ),
        "source": Source(document=json.dumps(PLAIN).encode()),
    }
    values: list[bytes | None] = []
    for _ in range(data.draw(st.integers(1, 5))):
        good = encoded(READY[6], data.draw(plain_values))
        spoiled = bytearray(good)
        for _ in range(data.draw(st.integers(0, 2))):
            at = data.draw(st.integers(0, len(spoiled)))
            spoiled[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
        values += [bytes(spoiled), *[good] * data.draw(st.sampled_from([0, 6]))]
    declared, log = contract(*tables, dtype=dtype), records(values)
    fast = Codec(declared, "avro", decoder="native", **options)
    assert fast.decoder.startswith("native")
    found = outcomes(fast.decode(log))
    assert found == outcomes(Codec(declared, "avro", careful=True, **options).decode(log))
    assert found == outcomes(Codec(declared, "avro", decoder="python", **options).decode(log))


@given(st.lists(st.fixed_dictionaries({"u": st.floats(-1e9, 1e9), "w": st.sampled_from(WORDS[1:])}), min_size=1))
def test_plain_good_flat_records_are_sure(given_: list[dict[str, Any]]) -> None:
    """Otherwise equality would be easy: nothing would be native."""
    native = require_native()
    fields = [
        (["null", "double"], True, [("number", 0, None)]),
        (["string"], False, [("category", 1, None, None, None, {word.encode(): 1.0 for word in WORDS}, None)]),
        (["long"], False, [("time",)]),
    ]
    schema = {"type": "record", "name": "E", "fields": [
        {"name": "u", "type": ["null", "double"]}, {"name": "w", "type": "string"}, {"name": "ts", "type": "long"}]}  # fmt: skip
    ready = fastavro.parse_schema(schema)
    values = [b"frame" + encoded(ready, {**each, "ts": NOW_MS}) for each in given_]
    decoder = native.Decoder.avro("float32", "ms", 2, [], fields, b"frame")
    x, times, marks, careful, timed = decoder.decode([*values, *(value[1:] for value in values)])
    assert (careful, timed) == (len(values), len(values)), "those without the frame are of another schema"
    assert set(marks[: len(values)]) == {2}
    found = np.frombuffer(x, np.float32).reshape(-1, 2)[: len(values)]
    assert found.tobytes() == np.array([[each["u"], 1.0] for each in given_], np.float32).tobytes()
    assert set(np.frombuffer(times, np.int64)[: len(values)].tolist()) == {NOW_MS}


def test_the_kinds_of_the_registry_are_those_of_the_formats() -> None:
    from streamer.records.formats import SCHEMAS

    assert set(SCHEMAS.values()) == set(SchemaKind)
