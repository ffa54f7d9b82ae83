"""Native columns against the definition: what they are sure of is right to the bit, and what is plain and good is sure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from decoding import NOW_MS, contract, outcomes, records
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_columns import require_native
from tables import WORDS
from tables import contract as with_tables

from streamer.records.decode import Codec
from streamer.records.exact import Exact
from streamer.records.formats import json_tokens
from streamer.records.times import TimeRule
from streamer.records.unusable import Unusable
from streamer.words import TimeUnit

CAREFUL, TIMED = 1, 2
DTYPES = ("float32", "float64", "int32", "int64")
native = require_native()


def listed(dtype: str, count: int, *, nulls: Any = None, unit: str = "ms") -> Any:
    fields = [([b"x"], [("numbers", 0, [nulls] * count)]), ([b"ts"], [("time",)])]
    return native.Decoder(dtype, unit, count, [], fields)


def read(decoder: Any, values: Sequence[bytes], dtype: str) -> tuple[Any, Any, Any]:
    """(x, times, marks)"""
    x, times, marks, careful, timed = decoder.decode(list(values))
    flags = np.frombuffer(marks, np.uint8)
    assert len(flags) == len(values)
    assert (careful, timed) == (int((flags & CAREFUL != 0).sum()), int((flags & TIMED != 0).sum()))
    return np.frombuffer(x, dtype).reshape(len(values), -1), np.frombuffer(times, np.int64), flags


def between(one: np.floating[Any], two: np.floating[Any]) -> str:
    """All digits of the middle of two neighbours, where rounding turns."""
    from decimal import Context, Decimal

    return str(Context(prec=1200).divide(Decimal(float(one)) + Decimal(float(two)), 2))


single = st.floats(width=32, allow_nan=False, allow_infinity=False)
borders = single.map(np.float32).map(lambda each: between(each, np.nextafter(each, np.float32(1e38))))
digits = st.text("0123456789", min_size=1, max_size=25)
number = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(allow_nan=False, allow_infinity=False).map("{:f}".format),  # from 2^116 on multiples of 2^64
    single.map(repr),
    single.map(lambda each: str(np.float32(each))),
    borders,
    borders.map(lambda text: text[:20]),
    st.tuples(borders, digits).map(
        lambda pair: pair[0] + pair[1] if "." in pair[0] and "E" not in pair[0] else pair[0]
    ),
    st.integers(-(2**65), 2**65).map(str),
    st.sampled_from([2**24, 2**31, 2**53, 2**63, 2**64]).flatmap(lambda b: st.integers(b - 2, b + 2)).map(str),
    st.tuples(st.sampled_from(["", "-"]), digits, digits).map(lambda each: f"{each[0]}{int(each[1])}.{each[2]}"),
    st.tuples(digits, digits, st.integers(-400, 400), st.sampled_from("eE")).map(
        lambda each: f"{int(each[0])}.{each[1]}{each[3]}{each[2]}"
    ),
    st.sampled_from(["0.0", "-0.0", "-0", "0", "1e0", "0e999", "0.0e-0", "1E+2", "3.4028235677973366e38", "7.006e-46"]),
)


@settings(max_examples=max(300, settings.default.max_examples), deadline=None)
@given(st.sampled_from(DTYPES), st.lists(number, min_size=1, max_size=30))
def test_a_number_is_rounded_as_the_definition_does(dtype: str, texts: list[str]) -> None:
    exact = Exact(dtype)
    x, _, marks = read(listed(dtype, 1), [f'{{"x":[{text}]}}'.encode() for text in texts], dtype)
    for row, text in enumerate(texts):
        if not marks[row] & CAREFUL:
            held = np.array([exact.number(json_tokens.digits(text.encode()), "x")], dtype)
            assert x[row].tobytes() == held.tobytes(), text
        elif dtype.startswith("float"):  # what is left to Python is rare: integers that are too large, -0, infinity
            value = json_tokens.digits(text.encode())
            with np.errstate(over="ignore"):
                assert isinstance(value, int) or not np.isfinite(np.array(value).astype(dtype))


garbage = st.one_of(
    st.sampled_from(
        [b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\\u", b"\\ud800", b"\xff", b"\xed\xa0\x80", b"\xc3\xa9", b"\x00",
         b"\n", b" ", b"-", b".", b"e", b"0", b"9" * 30, b"1e400", b"null", b"true", b"NaN", b"Infinity", b"\xef\xbb\xbf",
         b"[" * 70, b"[" * 600, b'"x":[1,2,3],', b'"ts":1,', b"/**/", b"'", b"\x7f", b"\x1f"]
    ),
    st.binary(max_size=3),
)  # fmt: skip


@st.composite
def spoiled(draw: st.DrawFn, good: bytes) -> bytes:
    """A good value with something cut out or put in, several times."""
    value = bytearray(good)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(value)))
        value[at : at + draw(st.sampled_from([0, 0, 1, 2, 9]))] = draw(garbage)
    return bytes(value)


extras: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text(max_size=9),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=3), each, max_size=3),
)


@st.composite
def values(draw: st.DrawFn, fields: dict[str, Any]) -> bytes:
    """A good value: its fields in any order, with others that nobody asked for, however it is written."""
    found = list({**draw(st.dictionaries(st.text(max_size=5), extras, max_size=2)), **fields}.items())
    order = draw(st.permutations(found))
    text = json.dumps(
        dict(order),
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from([None, None, 1])),
        separators=draw(st.sampled_from([None, (",", ":")])),
    )
    return text.encode("utf-8", "surrogatepass")


def same_as_the_definition(declared: Any, value_format: str, log: Any, **options: Any) -> dict[int, Any]:
    fast = Codec(declared, value_format, decoder="native", **options)
    assert fast.decoder.startswith("native")
    found = outcomes(fast.decode(log))
    assert found == outcomes(Codec(declared, value_format, careful=True, **options).decode(log))
    assert found == outcomes(Codec(declared, value_format, decoder="python", **options).decode(log))
    return found


calm = st.floats(-1e6, 1e6) | st.integers(-1000, 1000)


@pytest.mark.parametrize("value_format", ["json", "json-named"])
@settings(
    max_examples=max(150, settings.default.max_examples // 2), deadline=None, suppress_health_check=list(HealthCheck)
)
@given(data=st.data())
def test_spoiled_values_mean_what_the_definition_says(value_format: str, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(["float32", "float64", "int64"]))
    one = st.integers(-1000, 1000) if dtype == "int64" else calm
    log = []
    for _ in range(data.draw(st.integers(1, 4))):
        x = data.draw(st.lists(one, min_size=3, max_size=3))
        fields = {"x": x} if value_format == "json" else dict(zip("abx", x, strict=True))
        good = data.draw(values({**fields, "ts": NOW_MS + 5}))
        log += [data.draw(spoiled(good)), *[good] * data.draw(st.sampled_from([0, 6]))]
    options = {"missing": data.draw(st.sampled_from([None, 2.0])), "max_future_ms": 60_000}
    same_as_the_definition(contract(["a", "b", "x"], dtype), value_format, records(log), **options)


@pytest.mark.parametrize("value_format", ["json", "json-named"])
@settings(max_examples=max(100, settings.default.max_examples // 4), deadline=None)
@given(data=st.data())
def test_plain_good_values_are_sure(value_format: str, data: st.DataObject) -> None:
    """Otherwise equality would be easy: nothing would be native."""
    log, expected = [], []
    for _ in range(data.draw(st.integers(1, 5))):
        x = data.draw(st.lists(calm, min_size=3, max_size=3))
        fields = {"x": x} if value_format == "json" else dict(zip(("a", "b", "é"), x, strict=True))
        others = data.draw(st.dictionaries(st.from_regex("[b-w]{2,5}", fullmatch=True), extras, max_size=2))
        log.append(
            json.dumps({**others, **fields, "ts": NOW_MS}, ensure_ascii=value_format == "json").encode(
                "utf-8", "replace"
            )
        )
        expected.append(np.array(x, np.float32))
    if value_format == "json":
        decoder = listed("float32", 3)
    else:
        paths = [([name.encode()], [("number", at, None)]) for at, name in enumerate(("a", "b", "é"))]
        decoder = native.Decoder("float32", "ms", 3, [], [*paths, ([b"ts"], [("time",)])])
    x, times, marks = read(decoder, log, "float32")
    assert (marks == TIMED).all()
    assert x.tobytes() == np.array(expected).tobytes()
    assert (times == NOW_MS).all()


cell: Any = st.one_of(
    st.sampled_from(
        [*WORDS, 7, 0, 1, True, False, None, -3, 0.5, 7.0, "7.0", "other", 12345678901234567890, [], {"u": 1}]
    ),
    calm,
    st.text(max_size=4),
)
PLACES = {"c": "kind", "d": "in.kind", "n": "in.n", "f": "list[1]", "l": "list[2].v", "p": "in.n", "t": "ts"}


@settings(max_examples=max(150, settings.default.max_examples // 2), deadline=None)
@given(data=st.data())
def test_features_of_all_kinds_and_places(data: st.DataObject) -> None:
    from streamer.records.formats import Fields
    from streamer.settings.fields import parse_place

    unknown = data.draw(st.sampled_from([{}, {"unknown": 0}]))
    missing = data.draw(st.sampled_from([{}, {"missing": -1.5}]))
    declared = with_tables(
        {"name": "c", "kind": "category", "vocabulary": WORDS, **unknown},
        {"name": "d", "kind": "category", "vocabulary": WORDS, "unknown": 0},
        {"name": "n", **missing},
        {"name": "f", "kind": "flag", **({"missing": 1.0} if missing else {})},
        {"name": "l", **missing},
        {"name": "p", "kind": "present", "source": "n"},
        {"name": "t"},
        dtype=data.draw(st.sampled_from(["float32", "float64"])),
    )
    log = []
    for _ in range(data.draw(st.integers(1, 5))):
        fields = {"kind": data.draw(cell), "list": [data.draw(cell), data.draw(cell), {"v": data.draw(calm | cell)}]}
        fields["in"] = data.draw(st.none() | st.fixed_dictionaries({}, optional={"kind": cell, "n": calm | cell}))
        fields["ts"] = data.draw(st.sampled_from([1_760_000_000, 1_760_000_000.25, None, "x"]))
        good = data.draw(values({name: found for name, found in fields.items() if data.draw(st.integers(0, 7))}))
        log += [data.draw(spoiled(good)), *[good] * data.draw(st.sampled_from([0, 6]))]
    places = {name: parse_place(place) for name, place in PLACES.items()}
    options = {
        "time_unit": "s",
        "fields": Fields(places, parse_place("ts")),
        "missing": data.draw(st.sampled_from([None, 2.0])),
    }
    same_as_the_definition(declared, "json-named", records(log), **options)


time = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(1.7e9, 1.8e9),
    st.integers(1_700_000_000_000_000, 1_800_000_000_000_000).map(lambda micros: micros / 1_000_000),
    st.integers(1_700_000_000_000_000_000, 1_800_000_000_000_000_000),
    st.datetimes().map(lambda moment: moment.isoformat()),
    st.datetimes().map(lambda moment: moment.isoformat(timespec="milliseconds") + "Z"),
    st.tuples(st.datetimes(), st.integers(-1439, 1439)).map(
        lambda pair: f"{pair[0].isoformat()}{'-' if pair[1] < 0 else '+'}{abs(pair[1]) // 60:02}:{abs(pair[1]) % 60:02}"
    ),
    st.text("0123456789-+:.TZ ", max_size=30),
    st.booleans(),
)


@settings(max_examples=max(300, settings.default.max_examples), deadline=None)
@given(st.sampled_from(list(TimeUnit)), st.lists(time | st.none(), min_size=1, max_size=10))
def test_a_time_is_what_the_definition_says(unit: TimeUnit, given: list[Any]) -> None:
    rule = TimeRule(unit, min_time_ms=-(2**62))
    log = [json.dumps({"x": [1], "ts": each}).encode() for each in given]
    _, times, marks = read(listed("float32", 1, unit=str(unit)), log, "float32")
    for row, each in enumerate(given):
        if marks[row] & CAREFUL:
            continue
        assert (marks[row] & TIMED != 0) == (each is not None)
        if each is not None:
            try:
                assert times[row] == rule.event_time(each, NOW_MS)
            except Unusable:  # out of bounds, which the rule says of the column, too
                assert times[row] == rule._milliseconds(each)


def test_usual_times_are_sure() -> None:
    usual = {
        "s": [1_760_000_000, 1_760_000_000.123456],
        "ms": [NOW_MS, float(NOW_MS)],
        "us": [NOW_MS * 1000 + 999],
        "ns": [NOW_MS * 10**6 + 999_999],
        "iso8601": ["2025-10-09T08:53:20Z", "2025-10-09T08:53:20.123+02:00", "2025-10-09T08:53:20.123456"],
    }
    for unit, usual_times in usual.items():
        log = [json.dumps({"x": [1], "ts": each}).encode() for each in usual_times]
        _, times, marks = read(listed("float32", 1, unit=unit), log, "float32")
        assert (marks == TIMED).all(), unit
        assert times.tolist() == [TimeRule(TimeUnit(unit)).event_time(each, NOW_MS) for each in usual_times]
