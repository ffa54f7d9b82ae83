"""Any cut of any records into fetches gives the same events, rejects and reasons; fast paths equal their definitions."""

from __future__ import annotations

import json
import math
import sys
import types
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from decoding import NOW_MS, assert_each_record_means_what_it_means, contract, records
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from native_columns import DECODERS

from streamer.core import Headers, RecordBatch
from streamer.records.decode import Codec
from streamer.records.exact import Exact
from streamer.records.formats import json_tokens
from streamer.records.times import TimeRule
from streamer.records.unusable import Unusable
from streamer.words import KeyForm, TimeUnit

DTYPES = ("float32", "float64", "int32", "int64")
FORMATS = ("json", "json-named", "float32", "users_own_cut:decode")
F = 3
NAMES = ("a", "ts", "b c")
"""Among them what a JSON format reads as a time, too."""


def decode(values: Sequence[bytes]) -> Any:
    """A user's decoder: vectorised, and it gives up on the whole call for some values."""
    if any(value[:1] == b"!" for value in values):
        raise ValueError("no")
    x = np.array([[len(value), value[0] if value else 0.5, value.count(b"0")] for value in values], np.float64)
    return (
        x,
        [None if len(v) % 2 else NOW_MS + len(v) for v in values],
        {i: "odd" for i, v in enumerate(values) if v[:1] == b"["},
    )


module = types.ModuleType("users_own_cut")
module.decode = decode  # type: ignore[attr-defined]
sys.modules["users_own_cut"] = module

token = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(width=32, allow_nan=False, allow_infinity=False).map(repr),
    st.floats(allow_nan=False, allow_infinity=False).map("{:f}".format),
    st.integers(-5, 5).map(str),
    st.integers(-(2**65), 2**65).map(str),
    st.sampled_from([2**24, 2**31, 2**53, 2**63, 2**64]).flatmap(lambda b: st.integers(b - 2, b + 2)).map(str),
    st.sampled_from(
        [
            "null",
            "true",
            '"1"',
            "1e400",
            "-1e39",
            "-0",
            "-0.0",
            "01",
            "1.",
            "NaN",
            "[1]",
            "{}",
            "1e5",
            "5E-324",
            "1" + "0" * 400,
        ]
    ),
)
calm = st.floats(-9, 9).map(repr)
time = st.one_of(
    st.integers(NOW_MS - 10, NOW_MS + 10).map(str),
    st.floats(NOW_MS - 10, NOW_MS + 10).map(repr),
    st.sampled_from([NOW_MS // 1000, NOW_MS * 1000, NOW_MS * 10**6, 0, -1, 10**30]).map(str),
    st.sampled_from(["null", "0.0", "true", '"2025-10-09T08:53:20Z"', '"x"', "1e400", "[]", "1760000000.5"]),
)
extra = st.sampled_from(
    [
        '"m":1',
        '"m":1e400',
        '"m":"\\ud800"',
        '"m":"[{"',
        '"x":[1,2,3]',
        '"a":7',
        '"m":' + "[" * 600 + "]" * 600,
        '"m":"}\\n{"',
        "",
    ]
)


@st.composite
def listed(draw: st.DrawFn) -> bytes:
    one = draw(st.sampled_from([token, calm]))
    fields = ['"x":[' + ",".join(draw(st.lists(one, min_size=F, max_size=F) | st.lists(one, max_size=4))) + "]"]
    if draw(st.booleans()):
        fields.append('"ts":' + draw(time))
    return joined(draw, fields)


@st.composite
def named(draw: st.DrawFn) -> bytes:
    fields = [
        json.dumps(name) + ":" + draw(time if name == "ts" else token) for name in NAMES if draw(st.integers(0, 9))
    ]
    return joined(draw, fields)


def joined(draw: st.DrawFn, fields: list[str]) -> bytes:
    fields = draw(st.permutations([*fields, draw(extra)]))
    breaks = draw(st.sampled_from([",", ", ", ",\n", ",\r\n"]))
    value = ("{" + breaks.join(field for field in fields if field) + "}").encode()
    cut = draw(st.integers(0, 12))
    return value[: len(value) // 2] if cut == 0 else value[len(value) // 2 :] if cut == 1 else value


raw = st.one_of(
    st.lists(st.floats(width=32), min_size=F, max_size=F).map(lambda row: np.array(row, "<f4").tobytes()),
    st.lists(st.integers(-(2**25), 2**25), min_size=F, max_size=F).map(lambda row: np.array(row, "<f4").tobytes()),
)
anything = st.one_of(
    st.binary(max_size=24),
    st.sampled_from([b"", b"{}", b"null", b'{"x":[1,2,3]}\n{"x":[1,2,3]}', b'{"x":[1,2,3]', b',"ts":5}', b"!"]),
)
VALUES: dict[str, Any] = {
    "json": listed() | anything,
    "json-named": named() | anything,
    "float32": raw | anything,
    "users_own_cut:decode": anything | listed(),
}
headers = st.lists(
    st.tuples(
        st.sampled_from(["streamer-op", "traceparent", "h"]),
        st.sampled_from([None, b"reset", b"end", b"generate", b"x", b"t" * 9_000]),
    ),
    min_size=1,
    max_size=3,
)


@st.composite
def logs(draw: st.DrawFn, value_format: str) -> RecordBatch:
    """A log of one partition: good records in plenty, so that fast paths are on their way, and odd ones among them."""
    value = st.none() | VALUES[value_format] if draw(st.integers(0, 3)) == 0 else VALUES[value_format]
    values = draw(st.lists(value, min_size=1, max_size=12))
    filler = {"json": b'{"x":[1,2,3],"ts":1760000000001}', "json-named": b'{"a":1,"ts":1760000000000,"b c":2}'}
    good = filler.get(value_format, bytes(12))
    values = [each for found in values for each in [good] * draw(st.sampled_from([0, 0, 1, 40])) + [found]]
    count = len(values)
    keys: list[bytes | None] = [b"12345678"] * count
    stamps = [NOW_MS] * count
    odd: dict[int, Headers] = {}
    for row in draw(st.lists(st.integers(0, count - 1), max_size=4)):
        keys[row] = draw(st.none() | st.binary(max_size=17))
    for row in draw(st.lists(st.integers(0, count - 1), max_size=4)):
        stamps[row] = draw(st.sampled_from([-1, 0, 1, NOW_MS - 100, NOW_MS + 10**12]))
    for row in draw(st.lists(st.integers(0, count - 1), max_size=4)):
        odd[row] = draw(headers)
    return records(values, keys=keys, stamps=stamps, headers=odd)


@pytest.mark.parametrize("value_format", FORMATS)
@settings(
    max_examples=max(100, settings.default.max_examples // 5), deadline=None, suppress_health_check=list(HealthCheck)
)
@given(data=st.data())
def test_any_cut_gives_the_same_and_every_record_is_accounted_for(value_format: str, data: st.DataObject) -> None:
    log = data.draw(logs(value_format))
    options: dict[str, Any] = {
        "missing": data.draw(st.sampled_from([None, None, -1.0])),
        "max_future_ms": data.draw(st.sampled_from([None, 5, 86_400_000])),
        "min_time_ms": data.draw(st.sampled_from([0, 946_684_800_000])),
        "time_unit": data.draw(st.sampled_from(list(TimeUnit))),
        "key": data.draw(st.sampled_from(list(KeyForm))),
        "generates": data.draw(st.booleans()),
        "decoder": data.draw(st.sampled_from(DECODERS if value_format.startswith("json") else ["auto"])),
        "max_record_bytes": 2_000,
        "max_key_bytes": 16,
    }
    declared = contract(NAMES, data.draw(st.sampled_from(DTYPES)))
    codec, careful = Codec(declared, value_format, **options), Codec(declared, value_format, careful=True, **options)
    assert_each_record_means_what_it_means(
        codec, careful, log, data.draw(st.lists(st.integers(0, len(log)), max_size=6))
    )


@settings(max_examples=max(400, settings.default.max_examples), deadline=None)
@given(
    unit=st.sampled_from(list(TimeUnit)),
    minimum=st.sampled_from([0, -1000, 946_684_800_000]),
    future=st.none() | st.integers(0, 10**6),
    rows=st.lists(
        st.tuples(
            st.none()
            | st.integers(NOW_MS // 1000 - 2, NOW_MS // 1000 + 2)
            | st.integers(NOW_MS - 2, NOW_MS + 2)
            | st.integers(NOW_MS * 1000 - 2000, NOW_MS * 1000 + 2000)
            | st.integers(NOW_MS * 10**6 - 2 * 10**6, NOW_MS * 10**6 + 2 * 10**6)
            | st.integers()
            | st.floats()
            | st.floats(NOW_MS - 2, NOW_MS + 2)
            | st.booleans()
            | st.text(max_size=5)
            | st.datetimes().map(lambda moment: moment.isoformat()),
            st.sampled_from([NOW_MS, NOW_MS - 1, 0, -1, 5, 2**62]),
        ),
        min_size=1,
        max_size=6,
    ),
    alike=st.booleans(),
)
def test_a_column_of_times_is_its_times(
    unit: TimeUnit, minimum: int, future: int | None, rows: list[Any], alike: bool
) -> None:
    if alike:
        rows = [row for row in rows if type(row[0]) is type(rows[0][0])]
    rule = TimeRule(unit, minimum, future)
    times, doubtful = rule.column([ts for ts, _ in rows], np.array([stamp for _, stamp in rows], np.int64))
    for row, (ts, stamp) in enumerate(rows):
        if row not in doubtful:
            assert int(times[row]) == rule.event_time(ts, stamp)
        else:
            with pytest.raises(Unusable) as why:
                rule.event_time(ts, stamp)
            assert why.value.reason == "bad_time"
            why.value.detail.encode()


numbers = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([2**24, 2**31, 2**53, 2**62]).flatmap(lambda bound: st.integers(bound - 2, bound + 2)),
    st.floats(),
    st.floats(width=32),
    st.integers(-3, 3).map(float),
)


@settings(max_examples=max(600, settings.default.max_examples), deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    source=st.sampled_from(["f2", "f4", "f8", "i1", "i4", "i8", "u4", "u8"]),
    found=st.lists(numbers, min_size=1, max_size=5),
)
@example(dtype="float64", source="i8", found=[2**53 + 1])
def test_a_column_of_numbers_is_its_numbers(dtype: str, source: str, found: list[Any]) -> None:
    exact = Exact(dtype)
    with np.errstate(all="ignore"):
        x = np.array([np.array(each).astype(source) for each in found]).reshape(-1, 1)
    column, doubtful = exact.column(x)
    assert column.dtype == np.dtype(dtype)
    for row, value in enumerate(x[:, 0].tolist()):
        if row not in doubtful:
            assert column[row, 0] == exact.number(value, "a")
            assert math.copysign(1, column[row, 0]) == math.copysign(1, exact.number(value, "a"))


@settings(max_examples=max(300, settings.default.max_examples), deadline=None)
@given(dtype=st.sampled_from(DTYPES), value=st.integers() | st.floats())
def test_a_number_is_exact_or_refused(dtype: str, value: int | float) -> None:
    try:
        held = Exact(dtype).number(value, "a")
    except Unusable as why:
        assert why.reason in ("not_exact", "not_finite")
        return
    stored = np.zeros(1, dtype)
    stored[0] = held
    assert stored[0] == held
    if isinstance(value, int):
        assert int(stored[0]) == value
    elif dtype.startswith("int"):
        assert stored[0] == value


@given(
    st.recursive(
        st.none() | st.text(max_size=3),
        lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=2), each, max_size=2),
    ),
    st.integers(0, 4),
)
def test_depth_is_what_it_is(value: Any, more: int) -> None:
    def depth(each: Any) -> int:
        inner = each.values() if isinstance(each, dict) else each if isinstance(each, list) else None
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    wrapped: Any = value
    levels = json_tokens.MAX_DEPTH - 2 + more - depth(value)
    text = "[" * levels + json.dumps(wrapped) + "]" * levels
    assert json_tokens.too_deep(text.encode()) == (levels + depth(value) > json_tokens.MAX_DEPTH)
