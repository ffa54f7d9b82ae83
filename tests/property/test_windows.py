"""Windows against a slow, obvious reference that looks at one record at a time, by definition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from window_reference import Reference, Row, event_batch

from streamer.core import ClosedWindow
from streamer.windows import WindowRule, Windows

END = 10_000
"""A watermark beyond every event, and before any window is too long."""


def plain(window: ClosedWindow) -> tuple[str, int, int, str, tuple[int, ...]]:
    assert window.x[:, 0].tolist() == window.offsets.tolist(), "features of other events"
    assert list(zip(window.times_ms, window.offsets, strict=True)) == sorted(
        zip(window.times_ms, window.offsets, strict=True)
    )
    return window.stream.decode(), window.start_ms, window.end_ms, window.reason, tuple(window.offsets.tolist())


rules = st.one_of(
    st.builds(WindowRule, kind=st.just("tumbling"), size_ms=st.integers(1, 20), disorder_ms=st.integers(0, 15)),
    st.integers(1, 20).flatmap(
        lambda size: st.builds(
            WindowRule,
            kind=st.just("hopping"),
            size_ms=st.just(size),
            hop_ms=st.integers(1, size),
            disorder_ms=st.integers(0, 15),
        )
    ),
    st.builds(WindowRule, kind=st.just("session"), gap_ms=st.integers(1, 10), disorder_ms=st.integers(0, 15)),
    st.builds(WindowRule, kind=st.just("count"), count=st.integers(1, 5)),
    st.just(WindowRule("end")),
)
logs = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(0, 80), st.sampled_from([False] * 15 + [True])),
    min_size=1,
    max_size=60,
)


@given(rule=rules, log=logs, cuts=st.sets(st.integers(1, 59), max_size=8))
def test_every_event_is_in_its_windows_or_late(rule: WindowRule, log: list[Row], cuts: set[int]) -> None:
    reference = Reference(rule)
    for offset, row in enumerate(log):
        reference.add(offset, row)
    reference.watermark = END
    reference.pass_time()

    windows = Windows(rule, 1)
    found: list[ClosedWindow] = []
    late: list[int] = []
    begin = 0
    for end in [*sorted(cut for cut in cuts if cut < len(log)), len(log)]:
        before = windows.watermark
        added = windows.add(event_batch(log[begin:end], begin))
        assert windows.watermark >= before, "the watermark went back"
        found += added.closed
        late += [begin + row for row in added.late]
        begin = end
    found += windows.advance(END).closed
    assert sorted(map(plain, found)) == sorted(reference.closed)
    assert sorted(late) == sorted(reference.late)
    left = sum(len(stream) for stream in reference.open.values())
    assert windows.open_windows == left
    keys = [(window.stream, window.start_ms, window.end_ms, window.part) for window in found]
    if rule.kind in ("tumbling", "hopping"):
        assert len(set(keys)) == len(keys), "further windows with the same bounds need another part"


@given(rule=rules, log=logs)
def test_short_windows_close_without_a_prediction(rule: WindowRule, log: list[Row]) -> None:
    strict = WindowRule(
        **{name: getattr(rule, name) for name in ("kind", "size_ms", "hop_ms", "gap_ms", "count", "disorder_ms")},
        min_events=3,
    )
    everything = Windows(rule, 1).add(event_batch(log, 0)).closed
    judged = Windows(strict, 1).add(event_batch(log, 0))
    assert list(map(plain, judged.closed)) == [plain(window) for window in everything if len(window.x) >= 3]
    assert len(judged.short) == sum(len(window.x) < 3 for window in everything)


def test_bounds_close_a_streams_windows() -> None:
    full = Windows(WindowRule("end", max_events=3), 1).add(event_batch([("a", 1, False)] * 7, 0)).closed
    assert [(window.reason, len(window.x)) for window in full] == [("full", 3), ("full", 3)]
    rows = [("a", 1, False), ("b", 2, False), ("c", 3, False)]
    limited = Windows(WindowRule("end", max_open_windows=2), 1).add(event_batch(rows, 0)).closed
    assert [(window.stream, window.reason) for window in limited] == [(b"a", "limit")]
    spanned = Windows(WindowRule("end", max_span_ms=10), 1).add(event_batch([("a", 0, False), ("b", 10, False)], 0))
    assert [(window.stream, window.reason) for window in spanned.closed] == [(b"a", "span")]


def test_idle_time_moves_the_watermark_only_to_close() -> None:
    windows = Windows(WindowRule("tumbling", size_ms=10), 1)
    windows.add(event_batch([("a", 3, False)], 0))
    assert windows.next_close_ms() == 10
    assert not windows.advance(9).closed
    assert windows.watermark == 3
    (closed,) = windows.advance(12).closed
    assert (closed.reason, windows.watermark) == ("time", 12)
    assert windows.add(event_batch([("a", 9, False)], 1)).late == [0]


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (WindowRule("weekly"), "must be one of"),
        (WindowRule("tumbling"), "size_ms is 0"),
        (WindowRule("hopping", size_ms=5, hop_ms=6), "events would be lost"),
        (WindowRule("count", count=9, max_events=8), "must not exceed"),
    ],
)
def test_impossible_rules_are_refused(rule: WindowRule, says: str) -> None:
    assert says in "; ".join(rule.validate())
    with pytest.raises(ValueError, match="must"):
        Windows(rule, 1)
