"""Features of every kind, wherever they are found: fast paths equal the definition, and any cut gives the same."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from decoding import NOW_MS, assert_each_record_means_what_it_means, records
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_columns import DECODERS
from tables import WORDS, category, contract

from streamer.core import RecordBatch
from streamer.records.decode import Codec
from streamer.records.exact import Exact
from streamer.records.formats import Fields, json_tokens
from streamer.records.formats.wire import Msgpack
from streamer.records.meaning import Meaning
from streamer.records.unusable import Unusable
from streamer.settings.fields import parse_place
from streamer.words import TimeUnit

FIELDS = ("u", "v", "w", "ts")
cell: Any = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-4, 9),
    st.sampled_from([0.0, 1.0, 7.0, 0.5, -3.0, -0.0, 1e300, 2**53, 2**53 + 1, 2**63, 2**64 - 1, -(2**63)]),
    st.floats(),
    st.sampled_from([*WORDS, "7.0", "", "nan", "inf", "true", "x" * 300]),
    st.sampled_from([[], {}, [1], {"a": 1}]),
)
common = st.sampled_from(["run", "idle", 7, 1, 0, 1.0, True])
time = st.sampled_from([NOW_MS, NOW_MS + 3, float(NOW_MS), NOW_MS // 1000, "2025-10-09T08:53:20Z", None, True, [], 0])
feature = st.one_of(
    st.sampled_from([{}, {"missing": -1.5}, {"missing": 3.0}]),
    st.sampled_from([{"kind": "flag"}, {"kind": "flag", "missing": 1.0}, {"kind": "present"}]),
    st.sampled_from([{"vocabulary": WORDS}, {"vocabulary": [*WORDS, "nan", "inf", "-0", "1e5", "1"]}]).flatmap(
        lambda words: st.sampled_from([{**words, "kind": "category"}, {**words, "kind": "category", "unknown": 0}])
    ),
)
path = st.sampled_from(
    [*FIELDS, "in.u", "in.v", "in.deep.w", "list[0]", "list[2]", "list[1].u", "list", "in", '["a.b"]']
)
place = st.one_of(path, path, path, st.just("header:h"))


def place_of(table: dict[str, Any]) -> Any:
    return place | st.just({"constant": "run" if table.get("kind") == "category" else 1})


def grow(draw: st.DrawFn, one: Any) -> Any:
    """An object of the fields that paths may name, sometimes of another shape."""

    def some(make: Any) -> Any:
        return draw(cell) if draw(st.integers(0, 11)) == 0 else make()

    def fields() -> dict[str, Any]:
        return {name: draw(time if name == "ts" else one) for name in FIELDS if draw(st.integers(0, 9))}

    return {
        **fields(),
        "a.b": draw(one),
        "in": some(lambda: {**fields(), "deep": some(fields)}),
        "list": some(lambda: [draw(one), some(fields), draw(one)][: draw(st.integers(0, 3)) or 3]),
    }


def written(value: Any, value_format: str) -> bytes:
    if value_format == "msgpack":
        return msgspec.msgpack.encode(value)
    return json.dumps(value).replace("NaN", "null").replace("-Infinity", "-1e400").replace("Infinity", "1e400").encode()


@st.composite
def logs(draw: st.DrawFn, value_format: str) -> RecordBatch:
    steady = draw(st.booleans())
    one = common if steady else cell
    values: list[bytes | None] = []
    for _ in range(draw(st.integers(1, 6))):
        value = written(grow(draw, draw(st.sampled_from([one, cell]))), value_format)
        cut = draw(st.integers(0, 15))
        value = value[: len(value) // 2] if cut == 0 else value + b" " if cut == 1 else value
        values += [value] * draw(st.sampled_from([1, 1, 2, 40]))
    header = st.sampled_from([None, b"", b"7", b"run", b"true", b"1", b"0.5", b"01", b"\xff", b"nan", b"1760000000001"])
    rows = draw(st.lists(st.integers(0, len(values) - 1), max_size=4))
    given_headers = {row: [("h", draw(header)) for _ in range(draw(st.integers(0, 2)))] for row in rows}
    return records(values, headers=given_headers)


@pytest.mark.parametrize("value_format", ["json-named", "msgpack"])
@settings(
    max_examples=max(200, settings.default.max_examples // 5), deadline=None, suppress_health_check=list(HealthCheck)
)
@given(data=st.data())
def test_any_cut_gives_the_same_and_the_fast_path_is_the_definition(value_format: str, data: st.DataObject) -> None:
    tables = [
        {"name": f"f{at}" if at else "u", **each}
        for at, each in enumerate(data.draw(st.lists(feature, min_size=1, max_size=4)))
    ]
    tables = [
        {**t, "source": data.draw(st.sampled_from(["u", "v"]))} if t.get("kind") == "present" else t for t in tables
    ]
    places = {each["name"]: parse_place(data.draw(place_of(each))) for each in tables if data.draw(st.integers(0, 4))}
    at = data.draw(st.none() | st.sampled_from(["ts", "in.ts", "u", "header:h", "list[2]"]))
    dtype = data.draw(st.sampled_from(["float32", "float64", "int64"]))
    if dtype == "int64":
        tables = [{k: v for k, v in each.items() if v != -1.5} for each in tables]
    options: dict[str, Any] = {
        "missing": data.draw(st.sampled_from([None, 2.0])),
        "time_unit": data.draw(st.sampled_from([TimeUnit.MS, TimeUnit.S, TimeUnit.ISO8601])),
        "decoder": data.draw(st.sampled_from(DECODERS if value_format == "json-named" else ["auto"])),
        "fields": Fields(places, None if at is None else parse_place(at)),
    }
    declared = contract(*tables, dtype=dtype)
    log = data.draw(logs(value_format))
    codec, careful = Codec(declared, value_format, **options), Codec(declared, value_format, careful=True, **options)
    assert_each_record_means_what_it_means(
        codec, careful, log, data.draw(st.lists(st.integers(0, len(log)), max_size=4))
    )


@settings(max_examples=max(500, settings.default.max_examples), deadline=None)
@given(
    words=st.lists(
        st.text(max_size=3)
        | st.integers().map(str)
        | st.floats().map(str)
        | st.sampled_from(["-0", "1e5", "1_0", "nan"]),
        min_size=1,
        max_size=5,
        unique=True,
    ),
    value=st.text(max_size=3) | st.integers() | st.floats() | st.sampled_from([0, 1, 10, 1e5, -0.0, 10**400, 1e300]),
    unknown=st.none() | st.just(0),
)
def test_a_table_of_words_is_its_definition(words: list[str], value: Any, unknown: int | None) -> None:
    declared = contract(category("c", vocabulary=words) | ({} if unknown is None else {"unknown": unknown}))
    meaning = Meaning(declared.feature_tables[0], Exact("float32"), None)
    assert meaning.table is not None
    for each in (value, *words):
        found = meaning.table.get(each, meaning.other)
        if found is not None:
            assert meaning.number(each) == found
        else:
            with pytest.raises(Unusable):
                meaning.number(each)


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.text(max_size=40) | st.binary(max_size=300) | st.floats() | st.integers(-(2**63), 2**64 - 1),
        lambda each: st.lists(each, max_size=20) | st.dictionaries(st.text(max_size=2), each, max_size=18),
    ),
    st.integers(0, 4),
)
def test_the_depth_of_messagepack_is_what_it_is(value: Any, more: int) -> None:
    def depth(each: Any) -> int:
        inner = each.values() if isinstance(each, dict) else each if isinstance(each, list) else None
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    levels = json_tokens.MAX_DEPTH - 2 + more - depth(value)
    text = b"\x92\xc0" * levels + msgspec.msgpack.encode(value)
    assert Msgpack().too_deep(text) == (levels + depth(value) > json_tokens.MAX_DEPTH)
