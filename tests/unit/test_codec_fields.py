"""What cells mean to the features of a contract, and where features are found: each alone, and among good and bad ones."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from decoding import NOW_MS, outcomes, records
from hypothesis import given
from hypothesis import strategies as st
from tables import WORDS, category, contract

from streamer.errors import ConfigurationError
from streamer.records.decode import Codec
from streamer.records.formats import Fields
from streamer.records.formats.msgpack_depth import deeper
from streamer.records.meaning import refuse_different
from streamer.settings import load_settings
from streamer.settings.fields import FieldPath, parse_place

FLAG = {"name": "f", "kind": "flag"}
GAP = {"name": "n", "missing": 2.5}
SHOWN = {"name": "n present", "kind": "present", "source": "n"}
KNOWN, OTHER = category("c"), category("c", unknown=0)

# feature, cell as JSON, number or reason
CELLS: list[tuple[str, dict[str, Any], str, Any]] = [
    ("a word", KNOWN, '"idle"', 2),
    ("a word beyond ASCII", KNOWN, '"\\u00dcn\\u00efcode"', 7),
    ("a number that is a word", KNOWN, "7", 3),
    ("the same as a float", KNOWN, "7.0", 3),
    ("the same as text", KNOWN, '"7"', 3),
    ("text with a point is another word", KNOWN, '"7.0"', "unknown_category"),
    ("a fraction", KNOWN, "0.5", 4),
    ("a fraction, written otherwise", KNOWN, "5e-1", 4),
    ("a negative number", KNOWN, "-3", 5),
    ("true", KNOWN, "true", 6),
    ("false", KNOWN, "false", "unknown_category"),
    ("an unknown word", KNOWN, '"walk"', "unknown_category"),
    ("an unknown word with a place", OTHER, '"walk"', 0),
    ("an unknown number with a place", OTHER, "8", 0),
    ("a number of 5000 digits", OTHER, "1" + "0" * 5000, 0),
    ("a number of 5000 digits without a place", KNOWN, "1" + "0" * 5000, "unknown_category"),
    ("an infinite number", OTHER, "1e400", 0),
    ("no word", KNOWN, "null", "missing_feature"),
    ("no word, with a place", OTHER, "null", 0),
    ("an empty word", KNOWN, '""', "unknown_category"),
    ("a list as a word", OTHER, '["run"]', "undecodable"),
    ("an object as a word", OTHER, '{"run":1}', "undecodable"),
    ("a lone surrogate", OTHER, '"\\ud800"', "undecodable"),
    ("true as a flag", FLAG, "true", 1),
    ("false as a flag", FLAG, "false", 0),
    ("1 as a flag", FLAG, "1", 1),
    ("0.0 as a flag", FLAG, "0.0", 0),
    ("2 as a flag", FLAG, "2", "undecodable"),
    ("text as a flag", FLAG, '"true"', "undecodable"),
    ("no flag", FLAG, "null", "missing_feature"),
    ("no flag, with a rule", {**FLAG, "missing": 1.0}, "null", 1),
    ("no number, with a rule", GAP, "null", 2.5),
    ("no number, without", {"name": "n", "kind": "number", "unit": "K"}, "null", "missing_feature"),
    ("true as a number", GAP, "true", "undecodable"),
    ("a number by another name", {"name": "n", "source": "kelvin"}, "3", 3),
]


def values(feature: dict[str, Any], cell: str) -> dict[str, bytes]:
    """The cell in both formats with names; what JSON alone can write is left out of the other."""
    text = f'{{"{feature.get("source", feature["name"])}":{cell}}}'
    found = {"json-named": text.encode()}
    with contextlib.suppress(msgspec.DecodeError, OverflowError):
        found["msgpack"] = msgspec.msgpack.encode(msgspec.json.decode(text))
    return found


GOOD_CELL = {"category": '"run"', "flag": "true", "number": "1.5"}


@pytest.mark.parametrize(("feature", "cell", "expected"), [each[1:] for each in CELLS], ids=[each[0] for each in CELLS])
def test_a_cell_means_the_same_alone_and_in_every_company(feature: dict[str, Any], cell: str, expected: Any) -> None:
    for value_format, value in values(feature, cell).items():
        codec = Codec(contract(feature), value_format)
        good = values(feature, GOOD_CELL[feature.get("kind", "number")])[value_format]
        for company in ([value], [good, value, good], [b"\xc1{", value], [good] * 150 + [value] + [good] * 150):
            batch = codec.decode(records(company))
            row = company.index(value)
            told = {reject.offset: reject.reason for reject in batch.rejects}
            found = told[row] if row in told else batch.x[batch.offsets.tolist().index(row)].tolist()
            assert found == (expected if isinstance(expected, str) else [expected])


def test_whether_a_value_was_there_is_a_feature() -> None:
    codec = Codec(contract(GAP, SHOWN, {"name": "m present", "kind": "present", "source": "m"}), "json-named")
    batch = codec.decode(records([b'{"n":1,"m":null}', b'{"m":[1]}', b'{"n":null,"m":"x"}']))
    assert batch.x.tolist() == [[1, 1, 0], [2.5, 0, 1], [2.5, 0, 1]]


@pytest.mark.parametrize("value_format", ["json-named", "msgpack"])
@pytest.mark.parametrize("features", [(SHOWN,), (category("n", unknown=0), SHOWN)])
def test_nan_is_no_value_as_in_training(value_format: str, features: tuple[Any, ...]) -> None:
    codec = Codec(contract(*features), value_format)
    cells: list[Any] = [None, "NA", "", 0, [1], True]
    wire: Any = msgspec.json if value_format == "json-named" else msgspec.msgpack
    if len(features) > 1:
        cells.remove([1])
    if value_format == "msgpack":
        cells.append(float("nan"))
    for company in (1, 200):
        batch = codec.decode(records([wire.encode({"n": cell}) for cell in cells * company]))
        there = [0.0 if cell is None or cell != cell else 1.0 for cell in cells]  # noqa: PLR0124 - NaN
        assert batch.x[:, -1].tolist() == there * company


def test_by_place_a_category_is_its_number_and_the_contract_says_what_is_missing() -> None:
    batch = Codec(contract(GAP, OTHER), "json").decode(records([b'{"x":[1,2]}', b'{"x":[null,null]}']))
    assert batch.x.tolist() == [[1, 2], [2.5, 0]]
    batch = Codec(contract(GAP, "m"), "json", missing=9).decode(records([b'{"x":[null,null]}']))
    assert batch.x.tolist() == [[2.5, 9]]


def test_the_setting_stands_where_the_contract_has_no_rule() -> None:
    batch = Codec(contract(GAP, "m", KNOWN), "json-named", missing=9).decode(records([b'{"c":"run"}', b"{}"]))
    assert batch.x.tolist() == [[2.5, 9, 1]]
    assert [reject.reason for reject in batch.rejects] == ["missing_feature"], "a number is no word"


def test_a_features_own_rule_comes_before_that_of_its_field() -> None:
    features = ({"name": "cpu"}, {"name": "filled", "source": "cpu"}, {"name": "old", "source": "cpu", "lag": 1})
    event = records([b'{"b":1}'])

    def decoded(*names: int, **rules: Any) -> Any:
        chosen = [features[each] for each in names]
        batch = Codec(contract("b", *chosen), "json-named", fields=Fields({}, None, rules)).decode(event)
        return batch.x.tolist() or batch.rejects[0].detail

    assert decoded(1, cpu="reject", filled=0.5) == [[1, 0.5]]
    assert decoded(1, cpu="reject") == "feature 'filled' is null or missing"
    assert decoded(2, cpu="reject", old=3.0) == [[1, 3]]
    assert decoded(0, 1, cpu="reject", filled=0.5) == "feature 'cpu' is null or missing"
    assert decoded(0, 1, cpu=0.25, filled="reject") == "feature 'filled' is null or missing"


def test_what_stands_for_a_missing_one_must_fit() -> None:
    with pytest.raises(ConfigurationError, match=r"feature 'n' has missing = 2.5, which is no int64"):
        Codec(contract(GAP, dtype="int64"), "json-named")


def test_what_the_past_makes_is_left_to_it() -> None:
    """The cell of a lag is that of the event, a missing one is NaN, and a time since the last event is made anyway."""
    kept = {"name": "n", "missing": "last", "fallback": 4.5}
    features = ({"name": "gap", "kind": "since_last"}, {"name": "old", "source": "n", "lag": 2, "missing": 1.0}, kept)
    word = category("c", unknown=0, missing="last")
    for value_format in ("json-named", "msgpack"):
        codec = Codec(contract(*features, word), value_format)
        cells: list[dict[str, Any]] = [{"n": 3, "c": "run"}, {}, {"n": 5, "c": "walk"}]
        encode = msgspec.json.encode if value_format == "json-named" else msgspec.msgpack.encode
        for few in ([encode(each) for each in cells], [encode(each) for each in cells] * 50):
            x = codec.decode(records(few)).x[:3]
            assert np.array_equal(x, [[0, 3, 3, 1], [0, 1, np.nan, np.nan], [0, 5, 5, 0]], equal_nan=True)


def test_a_null_in_a_list_is_the_last_value_where_the_contract_says_so() -> None:
    codec = Codec(contract({"name": "gap", "kind": "since_last"}, {"name": "n", "missing": "last", "lag": 1}), "json")
    batch = codec.decode(records([b'{"x":[1.5,null]}', b'{"x":[2,3]}', b'{"x":[null,3]}']))
    assert np.array_equal(batch.x, [[1.5, np.nan], [2, 3]], equal_nan=True)
    assert [reject.reason for reject in batch.rejects] == ["missing_feature"]
    whole = Codec(contract({"name": "n", "missing": "last"}, dtype="int64"), "json").decode(records([b'{"x":[null]}']))
    assert [reject.reason for reject in whole.rejects] == ["missing_feature"]


@pytest.mark.parametrize(
    ("feature", "dtype", "told"),
    [
        ({"name": "gap", "kind": "since_last"}, "int64", "a time in seconds, which int64"),
        ({"name": "kept", "missing": "last"}, "int32", 'missing = "last", but in int32'),
    ],
)
def test_what_no_record_can_be_made_into_is_refused(feature: dict[str, Any], dtype: str, told: str) -> None:
    for value_format in ("json-named", "msgpack"):
        with pytest.raises(ConfigurationError, match=f"feature '{feature['name']}' .*{told}"):
            Codec(contract(feature, dtype=dtype), value_format)
    Codec(contract(feature, dtype=dtype), "json")
    Codec(contract(feature, dtype=dtype), "float32")
    Codec(contract({"name": "old", "lag": 2}, dtype="int64"), "json-named")


def test_the_settings_say_what_stands_for_a_missing_one() -> None:
    rules = Fields(missing={"n": "reject", "m": "last", "c": "reject", "f": 1.0})
    features = (GAP, {"name": "m"}, {"name": "m before", "source": "m", "lag": 1}, OTHER, {"name": "f", "kind": "flag"})
    codec = Codec(contract(*features), "json-named", missing=9, fields=rules)
    batch = codec.decode(records([b'{"n":1,"c":"run"}', b'{"c":"run"}', b'{"n":1}', b'{"n":1,"c":"walk"}'] * 20))
    gap = np.nan
    assert np.array_equal(batch.x[:2], [[1, gap, gap, 1, 1], [1, gap, gap, 0, 1]], equal_nan=True)
    assert [(reject.offset, reject.reason) for reject in batch.rejects[:2]] == [
        (1, "missing_feature"),
        (2, "missing_feature"),
    ]
    with pytest.raises(ConfigurationError, match=r"input.fields.c: missing = 2.0: the feature is a category"):
        Codec(contract(OTHER), "json-named", fields=Fields(missing={"c": 2.0}))
    with pytest.raises(ConfigurationError, match="no such feature"):
        Codec(contract(OTHER), "json-named", fields=Fields(missing={"x": 2.0}))


def test_a_record_may_have_what_depends_on_the_past() -> None:
    fields = Fields({"gap": parse_place("gap_s"), "old": parse_place("was[2]")})
    codec = Codec(
        contract({"name": "gap", "kind": "since_last"}, {"name": "old", "lag": 2}), "json-named", fields=fields
    )
    assert codec.decode(records([b'{"gap_s":1.5,"was":[3,4,5]}'])).x.tolist() == [[1.5, 5]]


MAPPED = Fields(
    {
        "cpu": parse_place("readings.cpu"),
        "tag": parse_place("tags[1]"),
        "c": parse_place('["host.role"].name'),
        "unit": parse_place("header:unit"),
        "gain": parse_place({"constant": 3.5}),
    },
    parse_place("meta.at"),
)


def mapped() -> Codec:
    return Codec(contract("cpu", "tag", OTHER, "unit", "gain", "plain"), "json-named", fields=MAPPED)


def test_features_are_where_the_settings_say() -> None:
    value = (
        b'{"readings":{"cpu":0.5},"tags":[1,2,3],"host.role":{"name":"idle"},"meta":{"at":1760000000007},'
        b'"plain":4,"ts":1,"cpu":9}'
    )
    batch = mapped().decode(records([value] * 3, headers={0: [("unit", b"1")], 2: [("unit", b"0"), ("unit", b"-2.5")]}))
    assert batch.x.tolist() == [[0.5, 2, 2, 1, 3.5, 4], [0.5, 2, 2, -2.5, 3.5, 4]]
    assert batch.times_ms.tolist() == [NOW_MS + 7] * 2
    assert [(reject.offset, reject.reason) for reject in batch.rejects] == [(1, "missing_feature")]


@pytest.mark.parametrize(
    ("value", "header", "reason"),
    [
        (b'{"readings":5,"tags":[1,2],"plain":1}', b"1", "undecodable"),
        (b'{"readings":null,"tags":[1,2],"plain":1}', b"1", "missing_feature"),
        (b'{"tags":[1,2],"plain":1}', b"1", "missing_feature"),
        (b'{"readings":{"cpu":1},"tags":[1],"plain":1}', b"1", "missing_feature"),
        (b'{"readings":{"cpu":1},"tags":{"1":2},"plain":1}', b"1", "undecodable"),
        (b'{"readings":{"cpu":1},"tags":[1,2],"plain":1}', b"", "undecodable"),
        (b'{"readings":{"cpu":1},"tags":[1,2],"plain":1}', b"\xff", "undecodable"),
        (b'{"readings":{"cpu":1},"tags":[1,2],"plain":1}', None, "missing_feature"),
        (b'{"readings":{"cpu":1},"tags":[1,2],"plain":1,"meta":{"at":"x"}}', b"1", "bad_time"),
        (b'{"readings":{"cpu":1},"tags":[1,2],"plain":1,"meta":7}', b"1", "undecodable"),
    ],
)
def test_what_is_not_where_the_settings_say_is_a_reject(value: bytes, header: bytes | None, reason: str) -> None:
    good = b'{"readings":{"cpu":1},"tags":[1,2],"plain":1}'
    for company in ([value], [good] * 40 + [value] + [good] * 40):
        row = len(company) // 2
        headers: Any = {at: [("unit", header if at == row else b"1")] for at in range(len(company))}
        batch = mapped().decode(records(company, headers=headers))
        assert [(r.offset, r.reason) for r in batch.rejects] == [(row, reason)]


def test_the_time_may_be_in_a_header() -> None:
    headers: Any = {0: [("at", b"1760000000009")], 1: [("at", b"soon")], 2: [("at", b"\xff")]}
    batch = Codec(contract("n"), "json-named", fields=Fields(time=parse_place("header:at"))).decode(
        records([b'{"n":1,"ts":5}'] * 4, headers=headers)
    )
    assert batch.times_ms.tolist() == [NOW_MS + 9, NOW_MS]
    assert [(r.offset, r.reason) for r in batch.rejects] == [(1, "bad_time"), (2, "undecodable")]
    headers = {0: [("at", b"2025-10-09T08:53:20Z")]}
    codec = Codec(contract("n"), "msgpack", fields=Fields(time=parse_place("header:at")), time_unit="iso8601")
    assert codec.decode(records([b"\x81\xa1n\x01"], headers=headers)).times_ms.tolist() == [NOW_MS]


def test_a_record_need_not_say_anything() -> None:
    fields = Fields({"a": parse_place("header:a"), "b": parse_place({"constant": 2})}, parse_place("header:at"))
    headers: Any = {0: [("a", b"1"), ("at", b"1760000000009")]}
    for value_format, value in (("json-named", b"{}"), ("msgpack", b"\x80")):
        batch = Codec(contract("a", "b"), value_format, fields=fields).decode(records([value] * 2, headers=headers))
        assert (batch.x.tolist(), batch.times_ms.tolist()) == ([[1, 2]], [NOW_MS + 9])
        assert [(r.offset, r.reason) for r in batch.rejects] == [(1, "missing_feature")]


def test_a_feature_that_is_not_there_and_formats_without_names_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"input.fields.b: the contract has no such feature, it has a"):
        Codec(contract("a"), "json-named", fields=Fields({"b": parse_place("x")}))
    for value_format in ("json", "float32"):
        with pytest.raises(ConfigurationError, match="has no fields with names"):
            Codec(contract("a"), value_format, fields=Fields({"a": parse_place("x")}))
    with pytest.raises(
        ConfigurationError, match=r"input.fields.a: the constant 'x' cannot be used: feature 'a' is not a number"
    ):
        Codec(contract("a"), "json-named", fields=Fields({"a": parse_place({"constant": "x"})}))


@pytest.mark.parametrize(
    ("feature", "text", "found"),
    [
        ("a", "3.5", 3.5),
        ("a", "-1e3", -1000),
        ("a", "16777217", "'16777217' cannot be used"),
        ("a", "3,5", "'3,5' cannot be used: feature 'a' is not a number"),
        ("a", "true", "'true' cannot be used"),
        ("a", "1e999", "'1e999' cannot be used"),
        ("a", "\udcff", "cannot be used"),
        ({"name": "a", "kind": "flag"}, "true", 1),
        ({"name": "a", "kind": "flag"}, "0", 0),
        ({"name": "a", "kind": "flag"}, "7", "'7' cannot be used: feature 'a' is not a flag"),
        (category("a"), "run", 1),
        (category("a"), "7", WORDS.index("7")),
    ],
)
def test_a_constant_may_come_as_text(tmp_path: Path, feature: Any, text: str, found: Any) -> None:
    """From the environment, and from a flag, it comes as nothing else."""
    path = tmp_path / "streamer.toml"
    path.write_text('kafka = {bootstrap = "b", group = "g"}\ninput.topic = "i"\noutput.topic = "o"\nmodel.m.path = "m"')
    flag = load_settings(path, [f"input.fields.a.constant={text}"])[0].input.places
    assert flag == load_settings(path, env={"STREAMER_INPUT__FIELDS__A__CONSTANT": text})[0].input.places
    if isinstance(found, str):
        with pytest.raises(ConfigurationError, match=found):
            Codec(contract(feature), "json-named", fields=Fields(flag))
    else:
        batch = Codec(contract(feature), "json-named", fields=Fields(flag)).decode(records([b"{}"]))
        assert batch.x.tolist() == [[found]]


# msgpack

TOTAL = [
    ("empty", b"", "undecodable"),
    ("a list", b"\x91\x01", "undecodable"),
    ("cut", b"\x81\xa1n", "undecodable"),
    ("two values", b"\x81\xa1n\x01\x81\xa1n\x01", "undecodable"),
    ("no such byte", b"\x81\xa1n\xc1", "undecodable"),
    ("a list that says it is long", b"\x82\xa1m\xdd\xff\xff\xff\xff\xa1n\x01", "undecodable"),
    ("a map that says it is long", b"\xdf\xff\xff\xff\xff\xa1n\x01", "undecodable"),
    ("a name that is a number", b"\x82\x05\x01\xa1n\x01", "undecodable"),
    ("a name that is a list", b"\x82\x90\x01\xa1n\x01", "undecodable"),
    ("deep", b"\x82\xa1m" + b"\x91" * 499 + b"\x01\xa1n\x01", [1.0]),
    ("too deep", b"\x82\xa1m" + b"\x91" * 500 + b"\x01\xa1n\x01", "undecodable"),
    ("deep without end", b"\x81\xa1m" + b"\x91" * 400_000, "undecodable"),
    ("wide, not deep", b"\x82\xa1m\xdc\x03\xe8" + b"\x90" * 1_000 + b"\xa1n\x01", [1.0]),
    ("opening bytes in a text", b"\x82\xa1m\xda\x03\xe8" + b"\x91" * 1_000 + b"\xa1n\x01", [1.0]),
    ("NaN", b"\x81\xa1n\xcb" + struct.pack(">d", float("nan")), "not_finite"),
    ("infinite", b"\x81\xa1n\xca" + struct.pack(">f", float("inf")), "not_finite"),
    ("float32", b"\x81\xa1n\xca" + struct.pack(">f", 0.1), [float(np.float32(0.1))]),
    ("uint64 that float32 cannot hold", b"\x81\xa1n\xcf" + b"\xff" * 8, "not_exact"),
    ("bytes as a number", b"\x81\xa1n\xc4\x01\x01", "undecodable"),
    ("a text that is no UTF-8", b"\x81\xa1n\xa1\xff", "undecodable"),
    ("an extension", b"\x81\xa1n\xd6\xff\x00\x00\x00\x01", "undecodable"),
    ("a time that is an extension", b"\x82\xa1n\x01\xa2ts\xd6\xff\x00\x00\x00\x01", "bad_time"),
    ("nothing", b"\x81\xa1n\xc0", "missing_feature"),
    ("the last of repeated fields", b"\x82\xa1n\xa1x\xa1n\x02", [2.0]),
]


@pytest.mark.parametrize(("value", "expected"), [each[1:] for each in TOTAL], ids=[each[0] for each in TOTAL])
def test_msgpack_is_read_whole_or_not_at_all(value: bytes, expected: Any) -> None:
    for careful in (False, True):
        batch = Codec(contract("n"), "msgpack", careful=careful).decode(records([b"\x81\xa1n\x01", value]))
        found = batch.x[1].tolist() if len(batch) == 2 else str(batch.rejects[0].reason)
        assert found == expected


def depth(value: Any) -> int:
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 1 + max(map(depth, value.values()), default=0) if isinstance(value, dict) else 0


PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=40)
    | st.binary(max_size=9)
)


@given(
    st.recursive(
        PLAIN, lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=4)
    ),
    st.integers(1, 1_100),
)
def test_the_depth_of_a_msgpack_value(value: Any, times: int) -> None:
    """Also where many values lie together, which are passed over by the hundred."""
    value = [value] * times
    written = msgspec.msgpack.encode(value)
    deep = depth(value)
    assert not deeper(written, deep)
    assert deeper(written, deep - 1)


@pytest.mark.parametrize(
    "piece", [b"\x91\x91\x01", b"\x81\x01\x91\x01", b"\x91\xc4\x00", b"\xdc\x00\x00"], ids=bytes.hex
)
def test_a_wide_msgpack_value_costs_bounded_work(piece: bytes) -> None:
    """What nobody looks at to the end is refused, by the fast path and by the definition."""
    count = 2**18
    wide = b"\x82\xa1m\xdd" + count.to_bytes(4, "big") + piece * count + b"\xa1n\x01"
    for careful in (False, True):
        codec = Codec(contract("n"), "msgpack", careful=careful, max_record_bytes=1 << 24)
        [reject] = codec.decode(records([wide])).rejects
        assert reject.reason == "undecodable"
        assert "more than 131072 lists" in reject.detail


def test_two_models_on_one_input_mean_the_same_by_a_word() -> None:
    one, two = contract(OTHER).feature_tables, contract(category("c", unknown=1)).feature_tables
    refuse_different([("a", one), ("b", one)])
    refuse_different([("a", contract("n").feature_tables), ("b", contract("m").feature_tables)])
    with pytest.raises(ConfigurationError, match="mean different things by the features 'c' and 'c'"):
        refuse_different([("a", one), ("b", two)])


def test_a_field_wanted_as_two_kinds_is_read_by_the_definition() -> None:
    same = category("word", source="v", unknown=0)
    codec = Codec(contract({"name": "number", "source": "v"}, same), "json-named")
    batch = codec.decode(records([b'{"v":7}', b'{"v":"run"}'] * 30))
    assert batch.x.tolist() == [[7, 3]] * 30
    assert {reject.reason for reject in batch.rejects} == {"undecodable"}
    assert outcomes(batch)[0][0] == "event"
    assert WORDS[3] == "7"


@pytest.mark.parametrize("value_format", ["json-named", "msgpack"])
@pytest.mark.parametrize("name", ['a"b', "a\\", "a\nb", "\x1f", "a\ud800"])
def test_a_name_that_no_parser_looks_for_is_refused(value_format: str, name: str) -> None:
    with pytest.raises(
        ConfigurationError, match=r"no field of a \S+ record can be named .*another field in input.fields"
    ):
        Codec(contract({"name": name}), value_format)
    with pytest.raises(ConfigurationError, match="can be named"):
        Codec(contract({"name": "a"}), value_format, fields=Fields({}, FieldPath(("in", name))))
    codec = Codec(contract({"name": name}), value_format, fields=Fields({name: FieldPath(("a",))}))
    write = msgspec.json.encode if value_format == "json-named" else msgspec.msgpack.encode
    assert codec.decode(records([write({"a": 2})])).x.tolist() == [[2.0]]
