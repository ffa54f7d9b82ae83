"""Windows of one partition: bounds, reasons, lateness, idle advances, memory, and input that does not behave."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from windowing import Row, seen, settled, timed

from streamer.core import EventBatch, Op, RecordBatch
from streamer.windows import START, WindowRule, Windows


def rows(*events: tuple[str, int] | tuple[str, int, Op]) -> list[Row]:
    """(stream, event time[, command]) at offsets 0, 1, ..."""
    return [(at, event[0], event[1], float(at) if len(event) == 2 else event[2]) for at, event in enumerate(events)]


def spans(
    rule: WindowRule, *events: tuple[str, int] | tuple[str, int, Op]
) -> list[tuple[str, int, int, str, list[int]]]:
    """What closed: stream, start, end, reason, offsets in order."""
    _, added = settled(rule, rows(*events))
    return [(c.stream, c.start, c.end, c.reason, [offset for _, offset in c.events]) for c in seen(added)]


def test_tumbling_windows_begin_at_multiples_of_their_size() -> None:
    rule = WindowRule("tumbling", size_ms=10)
    assert spans(rule, ("a", 9), ("a", 3), ("a", 10), ("b", 25)) == [
        ("a", 0, 10, "time", [1, 0]),
        ("a", 10, 20, "time", [2]),
    ]


def test_an_event_is_in_every_hopping_window_that_covers_it() -> None:
    rule = WindowRule("hopping", size_ms=10, hop_ms=4)
    assert spans(rule, ("a", 9), ("b", 100)) == [
        ("a", 0, 10, "time", [0]),
        ("a", 4, 14, "time", [0]),
        ("a", 8, 18, "time", [0]),
    ]


def test_an_event_between_two_sessions_makes_them_one() -> None:
    rule = WindowRule("session", gap_ms=5, disorder_ms=100)
    assert spans(rule, ("a", 0), ("a", 8), ("a", 4), ("b", 200)) == [("a", 0, 13, "time", [0, 2, 1])]


def test_a_session_ends_after_a_gap_of_event_time() -> None:
    rule = WindowRule("session", gap_ms=5)
    assert spans(rule, ("a", 0), ("a", 5), ("a", 11)) == [("a", 0, 10, "time", [0, 1])]


def test_equal_times_stay_in_order_of_arrival() -> None:
    assert spans(WindowRule("count", count=3), ("a", 5), ("a", 1), ("a", 5))[0][4] == [1, 0, 2]


@pytest.mark.parametrize(
    ("rule", "events", "reason"),
    [
        (WindowRule("count", count=2), [("a", 1), ("a", 2)], "count"),
        (WindowRule("end"), [("a", 1), ("a", 2), ("a", 0, Op.END)], "end"),
        (WindowRule("session", gap_ms=9), [("a", 1), ("a", 2), ("a", 0, Op.END)], "end"),
        (WindowRule("end", max_events=2), [("a", 1), ("a", 2)], "full"),
        (WindowRule("end", max_span_ms=5), [("a", 1), ("a", 2), ("b", 6)], "span"),
        (WindowRule("end", max_open_windows=1), [("a", 1), ("a", 2), ("b", 3)], "limit"),
        (WindowRule("tumbling", size_ms=3), [("a", 1), ("a", 2), ("b", 3)], "time"),
    ],
)
def test_every_reason(rule: WindowRule, events: list, reason: str) -> None:
    _, added = settled(rule, rows(*events))
    assert [(w.stream, w.reason, w.offsets.tolist()) for w in added.closed] == [(b"a", reason, [0, 1])]
    assert added.closed_at == [len(events) - 1]
    assert added.closed_through == ({} if reason == "time" else {b"a": len(events) - 1})


def test_two_sessions_too_long_together_are_closed_apart() -> None:
    rule = WindowRule("session", gap_ms=5, max_events=3, disorder_ms=100)
    windows, added = settled(rule, rows(("a", 0), ("a", 1), ("a", 8), ("a", 5)))
    assert [(c.reason, len(c.events)) for c in seen(added)] == [("full", 2), ("full", 1)]
    assert added.closed_through == {b"a": 2}, "the event that would have joined them is in a window of its own"
    assert windows.oldest() == (3, 8 - 100)


def test_further_windows_with_the_same_bounds_have_other_parts() -> None:
    _, added = settled(WindowRule("tumbling", size_ms=10, max_events=2), rows(*[("a", 3)] * 5, ("b", 10)))
    assert [(w.start_ms, w.end_ms, w.part) for w in added.closed] == [(0, 10, 0), (0, 10, 2), (0, 10, 4)]


def test_lateness_is_judged_before_the_event_moves_the_watermark() -> None:
    windows, added = settled(WindowRule("tumbling", size_ms=10), rows(("a", 0), ("a", 12), ("a", 9), ("a", 13)))
    assert added.late == [2]
    assert windows.watermark == 13


def test_allowed_disorder_keeps_windows_open_for_it() -> None:
    _, added = settled(
        WindowRule("tumbling", size_ms=10, disorder_ms=3), rows(("a", 0), ("a", 12), ("a", 9), ("a", 13))
    )
    assert not added.late
    assert [(w.end_ms, w.offsets.tolist()) for w in added.closed] == [(10, [0, 2])]


def test_a_late_event_that_touches_an_open_session_is_taken() -> None:
    _, added = settled(
        WindowRule("session", gap_ms=5), rows(("a", 10), ("a", 6), ("a", 4), ("a", 1), ("b", 3), ("b", 16))
    )
    assert added.late == [4], "b's own session would be closed already"
    assert [w.offsets.tolist() for w in added.closed] == [[3, 2, 1, 0]]


def test_idleness_moves_the_watermark_only_to_close() -> None:
    windows, _ = settled(WindowRule("tumbling", size_ms=10), rows(("a", 3)))
    assert windows.next_close_ms() == 10
    assert not windows.advance(9).closed
    assert windows.watermark == 3
    assert [w.reason for w in windows.advance(12).closed] == ["time"]
    assert windows.watermark == 12
    assert not windows.advance(11).closed
    assert windows.watermark == 12, "the watermark went back"
    assert windows.add(timed([(1, "a", 9, 1.0)])).late == [0]


def test_commands_carry_no_time() -> None:
    windows, added = settled(
        WindowRule("session", gap_ms=5), rows(("a", 3), ("b", 99, Op.RESET), ("c", 99, Op.GENERATE))
    )
    assert not added.closed
    assert windows.watermark == 3


def test_too_short_windows_close_without_a_prediction() -> None:
    _, added = settled(
        WindowRule("end", min_events=2), rows(("a", 1), ("a", 0, Op.END), ("a", 2), ("a", 3), ("a", 0, Op.END))
    )
    assert [len(w.x) for w in added.closed] == [2]
    assert [len(w.x) for w in added.short] == [1]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"kind": "weekly"}, "should be 'tumbling'"),
        ({"kind": "tumbling"}, "size_ms is 0"),
        ({"kind": "session"}, "gap_ms is 0"),
        ({"kind": "count"}, "count is 0"),
        ({"kind": "hopping", "hop_ms": 5, "min_events": 5_000}, "size_ms is 0.*min_events is 5000"),
        ({"kind": "hopping", "size_ms": 5, "hop_ms": 6}, "events would be lost"),
        ({"kind": "hopping", "size_ms": 10_000, "hop_ms": 1}, "at most 1024"),
        ({"kind": "count", "count": 9, "max_events": 8}, "must not exceed"),
        ({"kind": "end", "disorder_ms": -1}, "greater than or equal to 0"),
        ({"kind": "end", "min_events": 5, "max_events": 4}, "must not exceed"),
    ],
)
def test_impossible_rules_cannot_be_made(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        WindowRule(**wrong)


def test_a_model_that_needs_longer_windows_than_the_rule_makes_is_refused() -> None:
    with pytest.raises(ValueError, match="length_multiple is 5"):
        Windows(WindowRule("end", max_events=4), 1, length_multiple=5)


def test_what_a_replay_depends_on_changes_the_fingerprint() -> None:
    base = WindowRule("session", gap_ms=5)
    assert base.fingerprint() == WindowRule("session", gap_ms=5, max_events=9, min_events=2, count=7).fingerprint()
    assert base.fingerprint() != WindowRule("session", gap_ms=6).fingerprint()
    assert base.fingerprint() != WindowRule("session", gap_ms=5, disorder_ms=1).fingerprint()


# input that does not behave


def test_time_that_jumps_back_and_forth_loses_no_event() -> None:
    times = [5, 1_000_000_000_000, 7, 0, 1_000_000_000_001, 3]
    windows, added = settled(WindowRule("session", gap_ms=10), rows(*[("a", time) for time in times]))
    assert added.late == [2, 3, 5]
    assert [w.offsets.tolist() for w in added.closed] == [[0]]
    assert windows.buffered_events == 2


def test_windows_of_one_event() -> None:
    windows, added = settled(WindowRule("count", count=1), rows(*[("a", 1)] * 5))
    assert [w.offsets.tolist() for w in added.closed] == [[0], [1], [2], [3], [4]]
    assert windows.buffered_events == windows.open_windows == 0


def test_end_marks_for_unknown_streams_and_twice_do_nothing() -> None:
    windows, added = settled(
        WindowRule("end"), rows(("x", 0, Op.END), ("a", 1), ("a", 0, Op.END), ("a", 0, Op.END), ("y", 0, Op.END))
    )
    assert [w.offsets.tolist() for w in added.closed] == [[1]]
    assert added.closed_through == {b"a": 2}
    assert windows.watermark == 1


def columns(streams: np.ndarray, times: np.ndarray, features: int = 1, first: int = 0) -> EventBatch:
    """A large batch, made quickly."""
    count = len(streams)
    return EventBatch(
        partition=0,
        offsets=np.arange(first, first + count),
        times_ms=times.astype(np.int64),
        timestamps_ms=[],
        keys=[b"%d" % stream for stream in streams.tolist()],
        x=np.zeros((count, features), np.float32),
        ops=None,
        records=RecordBatch(0, [], [], [], []),
        next_offset=first + count,
    )


def test_a_million_events_of_one_stream_in_one_window() -> None:
    count = 1_000_000
    windows = Windows(WindowRule("end", max_events=count), 1)
    for first in range(0, count, 100_000):
        added = windows.add(columns(np.zeros(100_000, int), np.arange(first, first + 100_000)[::-1], first=first))
    (closed,) = added.closed
    assert (closed.reason, len(closed.x)) == ("full", count)
    assert np.array_equal(closed.times_ms, np.arange(count))
    assert windows.buffered_events == 0
    assert windows.buffered_bytes < 2_000_000, "the memory of a burst is given back"


def test_more_open_windows_than_allowed_close_the_oldest() -> None:
    windows = Windows(WindowRule("session", gap_ms=10_000_000, max_open_windows=20_000), 1)
    closed = 0
    for first in range(0, 100_000, 20_000):
        added = windows.add(columns(np.arange(first, first + 20_000), np.full(20_000, 5), first=first))
        assert {w.reason for w in added.closed} <= {"limit"}
        assert all(int(w.stream) < first + 20_000 for w in added.closed)
        closed += len(added.closed)
        assert windows.open_windows == 20_000
    assert closed == 80_000
    oldest = windows.oldest()
    assert oldest is not None
    assert oldest[0] == 80_000


@pytest.mark.accept
def test_ten_million_streams_with_a_window_each_cost_bounded_memory() -> None:
    """With the default bound of a million open windows; what is held stops growing there."""
    rule = WindowRule("session", gap_ms=10_000_000)
    windows, streams, block = Windows(rule, 1), 10_000_000, 50_000
    closed, largest = 0, 0
    for first in range(0, streams, block):
        added = windows.add(columns(np.arange(first, first + block), np.full(block, 5), first=first))
        assert {w.reason for w in added.closed} <= {"limit"}
        closed += len(added.closed)
        assert windows.open_windows <= rule.max_open_windows
        if first + block == 2 * rule.max_open_windows:
            largest = windows.buffered_bytes
    assert closed == streams - rule.max_open_windows
    assert windows.buffered_bytes <= largest <= 400 * rule.max_open_windows


def test_nothing_is_due_before_the_first_event() -> None:
    windows = Windows(WindowRule("session", gap_ms=5), 1)
    assert windows.next_close_ms() is None
    assert windows.oldest() is None
    assert not windows.advance(10**15).closed
    assert windows.watermark == START


def test_memory_per_buffered_event() -> None:
    """At most 1.5 times the raw float32 values and 24 bytes, measured by the allocator, without the stream ids."""
    features, streams = 16, 2_000
    rng = np.random.default_rng(0)
    batches = [
        columns(rng.integers(0, streams, 8_000), np.full(8_000, 5), features, first=8_000 * at) for at in range(9)
    ]
    windows = Windows(WindowRule("session", gap_ms=10), features)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for batch in batches:
            assert not windows.add(batch).closed
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert windows.buffered_events == 72_000
    limit = 1.5 * 4 * features + 24
    assert held / windows.buffered_events <= limit, held / windows.buffered_events
    assert windows.buffered_bytes / windows.buffered_events <= limit
