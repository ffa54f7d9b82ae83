"""What a record means, kind by kind: each alone, among good records, and among bad ones, with the same outcome."""

from __future__ import annotations

import gc
import math
from typing import Any

import numpy as np
import pytest
from decoding import NOW_MS, contract, outcomes, records

from streamer.core import Headers, Op
from streamer.errors import ConfigurationError
from streamer.records.decode import Codec

DEEP = b"[" * 1_200 + b"]" * 1_200
GOOD = {"json": b'{"x":[1.5,2],"ts":1760000000001}', "json-named": b'{"a":1.5,"b":2}', "float32": bytes(8)}
FLOATS = [1.0, 2.0]

# format, value, reason or features, and (for events) the time
KINDS: list[tuple[str, str, bytes | None, Any]] = [
    ("time null", "json", b'{"x":[1,2],"ts":null}', (FLOATS, NOW_MS)),
    ("time zero", "json", b'{"x":[1,2],"ts":0}', "bad_time"),
    ("time zero as float", "json", b'{"x":[1,2],"ts":0.0}', "bad_time"),
    ("time negative", "json", b'{"x":[1,2],"ts":-0.5}', "bad_time"),
    ("time in seconds", "json", b'{"x":[1,2],"ts":1760000000}', "bad_time"),
    ("time in microseconds", "json", b'{"x":[1,2],"ts":1760000000000000}', "bad_time"),
    ("time true", "json", b'{"x":[1,2],"ts":true}', "bad_time"),
    ("time text", "json", b'{"x":[1,2],"ts":"1760000000000"}', "bad_time"),
    ("time list", "json", b'{"x":[1,2],"ts":[1]}', "bad_time"),
    ("time object", "json-named", b'{"a":1,"b":2,"ts":{}}', "bad_time"),
    ("time 1e400", "json", b'{"x":[1,2],"ts":1e400}', "bad_time"),
    ("time of 400 digits", "json", b'{"x":[1,2],"ts":1' + b"0" * 400 + b"}", "bad_time"),
    ("time of 5000 digits", "json-named", b'{"a":1,"b":2,"ts":1' + b"0" * 5000 + b"}", "bad_time"),
    ("time with a fraction", "json", b'{"x":[1,2],"ts":1760000000001.9}', (FLOATS, NOW_MS + 1)),
    ("unknown field, deep", "json", b'{"x":[1,2],"meta":' + DEEP + b"}", "undecodable"),
    ("unknown field, deep, named", "json-named", b'{"a":1,"b":2,"meta":' + DEEP + b"}", "undecodable"),
    ("unknown field, 400 deep", "json", b'{"x":[1,2],"m":' + b"[" * 400 + b"]" * 400 + b"}", (FLOATS, NOW_MS)),
    ("unknown field, 600 deep", "json", b'{"x":[1,2],"m":' + b"[" * 600 + b"]" * 600 + b"}", "undecodable"),
    ("a deep time", "json", b'{"x":[1,2],"ts":' + DEEP + b"}", "undecodable"),
    ("many brackets in a text", "json", b'{"x":[1,2],"m":"' + b"[" * 900 + b'\\"]"}', (FLOATS, NOW_MS)),
    ("400 digits", "json", b'{"x":[1' + b"0" * 399 + b",2]}", "not_finite"),
    ("400 digits, named", "json-named", b'{"a":1' + b"0" * 399 + b',"b":2}', "not_finite"),
    ("5000 digits, named", "json-named", b'{"a":1' + b"0" * 5000 + b',"b":2}', "not_finite"),
    ("1e400", "json", b'{"x":[1e400,2]}', "not_finite"),
    ("-1e39", "json", b'{"x":[-1e39,2]}', "not_finite"),
    ("a large float", "json", b'{"x":[3e38,2]}', ([float(np.float32(3e38)), 2.0], NOW_MS)),
    ("integer that float32 cannot hold", "json", b'{"x":[16777217,2]}', "not_exact"),
    ("integer that float32 holds", "json", b'{"x":[16777218,2]}', ([16777218.0, 2.0], NOW_MS)),
    ("the same as a float", "json", b'{"x":[16777217.0,2]}', ([16777216.0, 2.0], NOW_MS)),
    ("a fraction", "json", b'{"x":[0.1,2]}', ([float(np.float32(0.1)), 2.0], NOW_MS)),
    ("minus zero, an integer", "json", b'{"x":[-0,2]}', ([0.0, 2.0], NOW_MS)),
    ("byte order mark", "json", b'\xef\xbb\xbf{"x":[1,2]}', "undecodable"),
    ("tombstone", "json", None, "missing_value"),
    ("empty", "json", b"", "undecodable"),
    ("empty, named", "json-named", b"", "undecodable"),
    ("no JSON", "json", b"x", "undecodable"),
    ("two values", "json", b'{"x":[1,2]}{"x":[3,4]}', "undecodable"),
    ("two values in two lines", "json", b'{"x":[1,2]}\n{"x":[3,4]}', "undecodable"),
    ("half a value", "json", b'{"x":[1,2]', "undecodable"),
    ("the other half", "json", b',"ts":5}', "undecodable"),
    ("a break inside", "json", b'{"x":\n[1,2]}\r\n', (FLOATS, NOW_MS)),
    ("nested list", "json", b'{"x":[[1],2]}', "undecodable"),
    ("too narrow", "json", b'{"x":[1]}', "wrong_width"),
    ("too wide", "json", b'{"x":[1,2,3]}', "wrong_width"),
    ("no list", "json", b'{"x":1}', "undecodable"),
    ("no x", "json", b"{}", "undecodable"),
    ("repeated field: the last", "json", b'{"x":[1],"x":[1,2]}', (FLOATS, NOW_MS)),
    ("repeated feature: the last", "json-named", b'{"a":"no","b":2,"a":1}', (FLOATS, NOW_MS)),
    ("numbers as text", "json-named", b'{"a":"1","b":2}', "undecodable"),
    ("true as a number", "json-named", b'{"a":true,"b":2}', "undecodable"),
    ("null", "json", b'{"x":[null,2]}', "missing_feature"),
    ("absent", "json-named", b'{"b":2}', "missing_feature"),
    ("lone surrogate", "json", b'{"x":[1,2],"m":"\\ud800"}', "undecodable"),
    ("escaped name", "json-named", b'{"\\u0061":1,"b":2}', (FLOATS, NOW_MS)),
    ("NaN", "json", b'{"x":[NaN,2]}', "undecodable"),
    ("NaN, raw", "float32", np.array([np.nan, 1], "<f4").tobytes(), "not_finite"),
    ("too short, raw", "float32", bytes(7), "wrong_width"),
    ("nothing, raw", "float32", b"", "wrong_width"),
]


def told(codec: Codec, batch: Any, row: int) -> Any:
    decoded = codec.decode(batch)
    for reject in decoded.rejects:
        if reject.offset == row:
            assert reject.detail
            reject.detail.encode()
            return reject.reason
    (at,) = np.flatnonzero(decoded.offsets == row)
    return decoded.x[at].tolist(), int(decoded.times_ms[at])


@pytest.mark.parametrize(("value_format", "value", "expected"), [k[1:] for k in KINDS], ids=[k[0] for k in KINDS])
def test_a_record_means_the_same_alone_and_in_every_company(
    value_format: str, value: bytes | None, expected: Any
) -> None:
    codec = Codec(contract(), value_format, max_future_ms=86_400_000)
    good = GOOD[value_format]
    bad = b'{"x":[1,2' if value_format != "float32" else b"abc"
    companies = [[value], [good, value, good], [bad, value, bad], [good] * 200 + [value] + [good] * 200]
    found = [told(codec, records(company), company.index(value)) for company in companies]
    assert found == [expected] * len(companies)


def test_halves_of_a_value_do_not_become_one() -> None:
    """As many values as lines, in a fetch that is read as lines; but two are halves, and one is two."""
    odd = [b'{"x":[1,2]', b',"ts":1760000000000}', b'{"x":[1,2]} {"x":[3,4]}']
    for order in (odd, odd[::-1], [odd[2], *odd[:2]]):
        batch = Codec(contract(), "json").decode(records([GOOD["json"]] * 60 + order + [GOOD["json"]] * 60))
        assert [reject.offset for reject in batch.rejects] == [60, 61, 62]
        assert batch.x.tolist() == [[1.5, 2.0]] * 120


ODD = [
    b"",
    b" ",
    b"5",
    b"{",
    b"}",
    b'{"x":[1,"2"]}',
    b'{"x":[1]}',
    b' {"x":[1,2]}\n',
    b'{"x":\n[1,\n2]}',
    b'{"x":[1,2]}{}',
    b"\xff",
]


@pytest.mark.parametrize(
    "places", [[0], [127], [128], [500], [3, 4, 5], [31, 32, 160, 161, 499], list(range(0, 500, 3))]
)
def test_odd_values_anywhere_in_a_large_fetch_are_judged_as_alone(places: list[int]) -> None:
    """What is read together, a few at a time or alone is decided by where the odd ones are: never what a record means."""
    values = [b'{"x":[%d,2.5],"ts":%d}' % (row, NOW_MS + row) for row in range(501)]
    for at, place in enumerate(places):
        values[place] = ODD[at % len(ODD)]
    wanted = outcomes(Codec(contract(), "json", careful=True).decode(records(values)))
    assert outcomes(Codec(contract(), "json").decode(records(values))) == wanted
    assert sum(each[0] == "event" for each in wanted.values()) >= 501 - len(places)


def test_what_is_missing_may_be_a_constant() -> None:
    for value_format, value in (
        ("json", b'{"x":[null,2]}'),
        ("json-named", b'{"b":2}'),
        ("json-named", b'{"a":null,"b":2}'),
    ):
        for company in ([value], [GOOD[value_format], value]):
            batch = Codec(contract(), value_format, missing=-1.5).decode(records(company))
            assert batch.x[-1].tolist() == [-1.5, 2.0]


def test_a_constant_must_be_of_the_dtype() -> None:
    for missing in (math.nan, math.inf, 0.5):
        with pytest.raises(ConfigurationError, match="missing"):
            Codec(contract(dtype="int32"), "json", missing=missing)
    assert Codec(contract(dtype="int32"), "json", missing=-1).decode(records([b'{"x":[null,2]}'])).x.tolist() == [
        [-1, 2]
    ]


INTEGERS = [
    ("float32", 16_777_217, None),
    ("float32", 123_456_789, None),
    ("float32", 2**24, 2**24),
    ("float64", 16_777_217, 16_777_217),
    ("float64", 2**53 + 1, None),
    ("float64", 2**53 + 2, 2**53 + 2),
    ("int32", 2**31 - 1, 2**31 - 1),
    ("int32", -(2**31), -(2**31)),
    ("int32", 2**31, None),
    ("int64", 2**63 - 1, 2**63 - 1),
    ("int64", -(2**63), -(2**63)),
    ("int64", 2**53 + 1, 2**53 + 1),
    ("int64", 2**63, None),
    ("int64", 10**30, None),
    ("int64", 10**400, None),
]


@pytest.mark.parametrize(("dtype", "number", "expected"), INTEGERS)
@pytest.mark.parametrize("value_format", ["json", "json-named"])
def test_integers_are_exact_or_refused(dtype: str, number: int, expected: int | None, value_format: str) -> None:
    text = b"%d" % number
    value = b'{"x":[%b,2]}' % text if value_format == "json" else b'{"a":%b,"b":2}' % text
    for company in ([value], [GOOD[value_format].replace(b"1.5", b"1"), value]):
        batch = Codec(contract(dtype=dtype), value_format).decode(records(company))
        assert batch.x.dtype == np.dtype(dtype)
        if expected is None:
            reasons = {"not_exact"} if abs(number) < 10**300 or dtype.startswith("int") else {"not_finite"}
            assert {reject.reason for reject in batch.rejects} == reasons
        else:
            assert int(batch.x[-1, 0]) == expected


@pytest.mark.parametrize("number", [b"1.5", b"9007199254740993.0", b"1e18", b"-0.25"])
def test_a_fraction_is_no_integer(number: bytes) -> None:
    batch = Codec(contract(dtype="int64"), "json").decode(records([b'{"x":[%b,2]}' % number]))
    assert [reject.reason for reject in batch.rejects] == ["not_exact"]


def test_raw_floats_are_exact_in_wider_dtypes_or_refused() -> None:
    value = np.array([0.5, 3], "<f4").tobytes()
    assert Codec(contract(dtype="float64"), "float32").decode(records([value])).x.tolist() == [[0.5, 3.0]]
    batch = Codec(contract(dtype="int64"), "float32").decode(records([value, np.array([4, 3], "<f4").tobytes()]))
    assert batch.x.tolist() == [[4, 3]]
    assert [reject.reason for reject in batch.rejects] == ["not_exact"]


# keys, commands, headers

OP = "streamer-op"
HEADERS: list[tuple[str, Headers, bytes | None, Any]] = [
    ("null header", [("h", None)], GOOD["json"], Op.EVENT),
    ("odd header name", [("\\xff", b"1")], GOOD["json"], Op.EVENT),
    ("reset", [(OP, b"reset")], None, Op.RESET),
    ("end", [(OP, b"end"), ("h", None)], None, Op.END),
    ("generate", [(OP, b"generate"), ("note", None)], b'{"n":2}', Op.GENERATE),
    ("null command", [(OP, None)], None, "unknown_command"),
    ("odd command", [(OP, b"stop")], None, "unknown_command"),
    ("two commands", [(OP, b"end"), (OP, b"reset")], None, "unknown_command"),
]


@pytest.mark.parametrize(("headers", "value", "expected"), [h[1:] for h in HEADERS], ids=[h[0] for h in HEADERS])
def test_headers_and_commands(headers: Headers, value: bytes | None, expected: Any) -> None:
    codec = Codec(contract(), "json", generates=True)
    for before in (0, 3):
        batch = codec.decode(records([GOOD["json"]] * before + [value], headers={before: headers}))
        if isinstance(expected, str):
            assert [(reject.reason, reject.headers) for reject in batch.rejects] == [(expected, headers)]
        else:
            assert len(batch) == before + 1
            assert (0 if batch.ops is None else batch.ops[before]) == expected
            assert batch.commands == ({before: value} if expected is Op.GENERATE else {})


def test_a_trace_context_travels_as_far_as_it_is_one() -> None:
    headers: Headers = [
        ("traceparent", b"00-1"),
        ("tracestate", None),
        ("traceparent", b"a" * 900_000),
        ("other", b"1"),
    ]
    batch = Codec(contract(), "json").decode(records([GOOD["json"]] * 2, headers={1: headers}))
    assert batch.headers == {1: [("traceparent", b"00-1")]}


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (None, "missing_key"),
        (b"", "missing_key"),
        (b"\xff", "bad_key"),
        (b"k" * 600_000, "too_large"),
        (b"\x01" * 150_000, "too_large"),
    ],
)
def test_keys_that_are_no_stream(key: bytes | None, reason: str) -> None:
    batch = Codec(contract(), "json").decode(records([GOOD["json"]] * 3, keys=[b"a", key, b"b"]))
    assert [(reject.offset, reject.reason, reject.key) for reject in batch.rejects] == [(1, reason, key)]
    assert batch.keys == [b"a", b"b"]


def test_a_value_may_be_too_large() -> None:
    batch = Codec(contract(), "json", max_record_bytes=40).decode(records([GOOD["json"], GOOD["json"] + b" " * 40]))
    assert [(reject.offset, reject.reason) for reject in batch.rejects] == [(1, "too_large")]


def test_what_nobody_foresaw_is_told_with_the_exceptions_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from streamer.records.formats import json_list

    def row(self: Any, value: bytes, headers: Any) -> Any:
        raise RuntimeError("surprise \ud800")

    monkeypatch.setattr(json_list.JsonList, "row", row)
    batch = Codec(contract(), "json").decode(records([GOOD["json"], b"x"]))
    assert len(batch) == 1, "the fast path was sure of it"
    assert [(r.offset, r.reason, r.detail) for r in batch.rejects] == [
        (1, "undecodable", "RuntimeError: surprise \\ud800")
    ]


def test_a_fast_path_that_fails_leaves_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    from streamer.records.formats import json_list

    def columns(self: Any, values: Any) -> Any:
        raise MemoryError

    batch = records([GOOD["json"], b"x", GOOD["json"]])
    expected = outcomes(Codec(contract(), "json").decode(batch))
    monkeypatch.setattr(json_list.JsonList, "columns", columns)
    assert outcomes(Codec(contract(), "json").decode(batch)) == expected


def test_a_producers_header_with_a_name_of_ours_takes_nothing_from_its_record() -> None:
    ours: Headers = [("streamer-unreadable", b"x"), ("streamer-passed", b"[1]")]
    plain = Codec(contract(), "json").decode(records([GOOD["json"], b"x"]))
    named = Codec(contract(), "json").decode(records([GOOD["json"], b"x"], headers={0: ours}))
    assert outcomes(named) == outcomes(plain)


@pytest.mark.parametrize("value_format", GOOD)
def test_a_reject_holds_nothing_of_its_fetch(value_format: str) -> None:
    """The service's collector runs seldom: what stays in a circle stays for many fetches."""
    codec = Codec(contract(), value_format)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        assert len(codec.decode(records([GOOD[value_format], b"x", GOOD[value_format]])).rejects) == 1
        gc.collect()
        assert not [each for each in gc.garbage if type(each).__name__ in ("RecordBatch", "traceback", "Unusable")]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
