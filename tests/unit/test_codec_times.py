"""When an event happened: units, bounds, and messages that say what the time looks like."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from decoding import NOW_MS, contract, records

from streamer.records.decode import Codec

DAY_MS = 86_400_000


def decode(ts: Any, stamp: int = NOW_MS, **options: Any) -> Any:
    """The event time of one record, or its reject; absent where ``ts`` is Ellipsis."""
    value = msgspec.json.encode({"x": [1, 2]} if ts is ... else {"x": [1, 2], "ts": ts})
    batch = Codec(contract(), "json", **{"max_future_ms": DAY_MS, **options}).decode(records([value], stamps=[stamp]))
    return batch.rejects[0] if batch.rejects else int(batch.times_ms[0])


@pytest.mark.parametrize(
    ("unit", "ts", "time_ms"),
    [
        ("ms", NOW_MS + 5, NOW_MS + 5),
        ("ms", float(NOW_MS) + 0.75, NOW_MS),
        ("s", NOW_MS // 1000, NOW_MS),
        ("s", 1_760_000_000.123, NOW_MS + 123),
        ("us", NOW_MS * 1000 + 1999, NOW_MS + 1),
        ("us", float(NOW_MS * 1000 + 1999), NOW_MS + 1),
        ("ns", NOW_MS * 1_000_000 + 1_999_999, NOW_MS + 1),
        ("iso8601", "2025-10-09T08:53:20Z", NOW_MS),
        ("iso8601", "2025-10-09T10:53:20.0019+02:00", NOW_MS + 1),
        ("iso8601", "2025-10-09T08:53:20", NOW_MS),
    ],
)
def test_units(unit: str, ts: Any, time_ms: int) -> None:
    assert decode(ts, time_unit=unit) == time_ms


@pytest.mark.parametrize("ts", [-(2**63), 2**63 - 1, -(2**63) + 1])
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_a_time_at_the_end_of_64_bits_is_the_same_alone_and_in_company(unit: str, ts: int) -> None:
    good, value = b'{"x":[1,2]}', msgspec.json.encode({"x": [1, 2], "ts": ts})
    alone, together = (
        Codec(contract(), "json", time_unit=unit, min_time_ms=-(2**62)).decode(records(each))
        for each in ([value], [good] * 200 + [value])
    )
    assert [each.reason for each in alone.rejects] == [each.reason for each in together.rejects]
    assert unit in ("us", "ns") or alone.rejects


@pytest.mark.parametrize(
    ("unit", "ts", "looks_like"),
    [
        ("ms", NOW_MS // 1000, "seconds"),
        ("ms", NOW_MS * 1000, "microseconds"),
        ("ms", NOW_MS * 1_000_000, "nanoseconds"),
        ("ms", "2025-10-09T08:53:20Z", "ISO 8601"),
        ("s", NOW_MS, "milliseconds"),
        ("us", NOW_MS, "milliseconds"),
        ("ns", NOW_MS // 1000, "seconds"),
        ("iso8601", NOW_MS, "milliseconds"),
        ("iso8601", 1_760_000_000.5, "seconds"),
    ],
)
def test_a_time_in_another_unit_is_refused_with_the_unit_that_it_looks_like(
    unit: str, ts: Any, looks_like: str
) -> None:
    reject = decode(ts, time_unit=unit)
    assert reject.reason == "bad_time"
    assert f"looks like {looks_like}: set input.time_unit" in reject.detail


@pytest.mark.parametrize("ts", [0, 0.0, 1, 2, 59_000])
def test_times_that_begin_at_0_are_served_where_the_range_begins_there(ts: Any) -> None:
    reject = decode(ts)
    assert reject.reason == "bad_time"
    assert 'input.min_time = "1970-01-01T00:00:00Z"' in reject.detail
    assert decode(ts, min_time_ms=0) == int(ts)


def test_below_the_range_stays_below() -> None:
    assert decode(-0.5, min_time_ms=0).reason == "bad_time"
    assert decode(-1, min_time_ms=0).reason == "bad_time"
    assert decode(946_684_800_000) == 946_684_800_000
    assert decode(946_684_799_999).reason == "bad_time"


@pytest.mark.parametrize("stamp", [-1, 0])
def test_without_a_records_timestamp_there_is_no_future(stamp: int) -> None:
    assert decode(NOW_MS + 400 * DAY_MS, stamp) == NOW_MS + 400 * DAY_MS
    assert decode(NOW_MS * 1000, stamp).reason == "bad_time"
    for ts in (..., None):
        reject = decode(ts, stamp)
        assert reject.reason == "bad_time"
        assert "neither" in reject.detail


def test_the_future_is_bounded_by_the_records_timestamp() -> None:
    assert decode(NOW_MS + DAY_MS) == NOW_MS + DAY_MS
    assert "max_future_ms" in decode(NOW_MS + DAY_MS + 1).detail
    assert decode(NOW_MS + DAY_MS + 1, max_future_ms=None) == NOW_MS + DAY_MS + 1


def test_a_record_without_ts_happened_when_its_record_says() -> None:
    assert decode(...) == decode(None) == NOW_MS
    assert decode(..., 5).reason == "bad_time"
    assert decode(..., 5, min_time_ms=0) == 5
