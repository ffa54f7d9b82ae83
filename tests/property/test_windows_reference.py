"""Windows against a reference that assigns every event by definition: same windows, same contents, same order.

Invariant 6 (the watermark never goes back, a closed window never reopens, every event is in a window or late), and that
a batch gives what its records give one by one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from windowing import Closed, Reference, Row, Step, seen, several, timed

from streamer.core import Op
from streamer.windows import Added, WindowRule, Windows

KINDS = ("tumbling", "hopping", "session", "count", "end")
Idle = tuple[int, int]
"""After this many records the watermark is asked to move this far past its place."""


@st.composite
def rules(draw: st.DrawFn, kind: str) -> WindowRule:
    size = draw(st.sampled_from([1, 7, 10]))
    few = draw(st.sampled_from([1, 2, 3, 5, 100]))
    return WindowRule(
        kind,
        size_ms=size,
        hop_ms=draw(st.integers(1, size)),
        gap_ms=draw(st.sampled_from([1, 4, 8])),
        count=draw(st.integers(1, min(few, 4))),
        max_events=few,
        max_span_ms=draw(st.sampled_from([1, 6, 15, 10_000])),
        disorder_ms=draw(st.sampled_from([0, 0, 3, 20])),
        max_open_windows=draw(st.sampled_from([1, 2, 3, 100, 100])),
    )


@st.composite
def logs(draw: st.DrawFn, most: int = 60) -> list[Row]:
    """Streams a to c, times that go on and jump back, gaps in the offsets, now and then a command."""
    step = st.tuples(
        st.sampled_from("abc"),
        st.sampled_from([0, 0, 1, 1, 2, 3, 9, 30]),
        st.sampled_from([0, 0, 0, 1, 3, 6, 12, 40]),
        st.sampled_from([None] * 12 + [Op.END, Op.END, Op.RESET, Op.GENERATE]),
        st.sampled_from([1, 1, 1, 3]),
    )
    now, offset, rows = 0, -1, []
    for stream, ahead, back, op, jump in draw(st.lists(step, min_size=1, max_size=most)):
        now, offset = now + ahead, offset + jump
        rows.append((offset, stream, max(0, now - back), float(offset) if op is None else op))
    return rows


idles = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40)), max_size=8)


def expected(rule: WindowRule, rows: Sequence[Row], idle: Sequence[Idle]) -> tuple[list[Step], Reference]:
    reference, steps = Reference(rule), []
    for index, row in enumerate(rows):
        steps.append(reference.record(*row))
        steps += [reference.idle(reference.watermark + by) for at, by in idle if at == index]
    return steps, reference


def actual(
    rule: WindowRule, rows: Sequence[Row], idle: Sequence[Idle], cuts: Sequence[int], *, multiple: int = 1
) -> tuple[Added, Windows]:
    """In batches cut at ``cuts`` and where an idle advance comes; late rows as offsets."""
    windows, total = Windows(rule, 1, length_multiple=multiple), Added()

    def take(added: Added, first: int) -> None:
        total.closed += added.closed
        total.closed_at += added.closed_at
        total.short += added.short
        total.late += [rows[first + row][0] for row in added.late]
        total.closed_through.update(added.closed_through)
        total.trimmed += added.trimmed

    edges = sorted(
        {0, len(rows), *(cut for cut in cuts if cut < len(rows)), *(at + 1 for at, _ in idle if at < len(rows))}
    )
    for first, last in itertools.pairwise(edges):
        before = windows.watermark
        take(windows.add(timed(rows[first:last])), first)
        assert windows.watermark >= before
        for by in [by for at, by in idle if at == last - 1]:
            before = windows.watermark
            take(windows.advance(windows.watermark + by), last)
            assert windows.watermark >= before
    return total, windows


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=2 * settings().max_examples)
@given(data=st.data())
def test_windows_are_what_their_definition_says(kind: str, data: st.DataObject) -> None:
    rule, rows, idle = data.draw(rules(kind)), data.draw(logs()), data.draw(idles)
    steps, reference = expected(rule, rows, idle)
    added, windows = actual(rule, rows, idle, data.draw(st.lists(st.integers(0, 60))))
    assert seen(added) == [closed for step in steps for closed in step.closed]
    assert windows.watermark == reference.watermark
    assert windows.open_windows == reference.open_windows
    oldest = windows.oldest()
    assert (None if oldest is None else oldest[0]) == reference.oldest()
    through: dict[str, int] = {}
    for step in steps:
        through.update(step.through)
    assert {stream.decode(): offset for stream, offset in added.closed_through.items()} == through
    events = [step for step in steps if step.late]
    assert len(added.late) == sum(step.late for step in events)
    every_event_is_in_a_window_or_late(rule, rows, added, reference)


def every_event_is_in_a_window_or_late(rule: WindowRule, rows: Sequence[Row], added: Added, open_: Reference) -> None:
    """Invariant 6, counted: each event in as many windows as it has by definition, closed, open or late for."""
    count: dict[int, int] = {row[0]: 0 for row in rows if not isinstance(row[3], Op)}
    for window in added.closed:
        for offset in window.offsets.tolist():
            count[offset] += 1
    for stream in open_.events:
        for *_, events in open_.windows(stream):
            for _, offset in events:
                count[offset] += 1
    for offset in added.late:
        count[offset] += 1
    for offset, stream, time, what in rows:
        if not isinstance(what, Op):
            due = len(open_.bounds(time)) if rule.kind in ("tumbling", "hopping") else 1
            assert count[offset] == due, (offset, stream, time)
    names = [(window.stream, window.start_ms, window.end_ms, window.part) for window in added.closed]
    assert len(set(names)) == len(names), "a closed window opened again"


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_batches_give_what_their_records_give_one_by_one(kind: str, data: st.DataObject) -> None:
    rule, rows, idle = data.draw(rules(kind)), data.draw(logs(200)), data.draw(idles)
    whole, one = actual(rule, rows, idle, []), actual(rule, rows, idle, range(len(rows)))
    assert [vars_of(each) for each in whole[0].closed] == [vars_of(each) for each in one[0].closed]
    for name in ("closed_at", "late", "closed_through"):
        assert getattr(whole[0], name) == getattr(one[0], name)
    assert whole[1].watermark == one[1].watermark
    assert whole[1].oldest() == one[1].oldest()
    assert whole[1].next_close_ms() == one[1].next_close_ms()
    assert whole[1].buffered_events == one[1].buffered_events


def vars_of(window) -> tuple:
    return (
        window.stream, window.start_ms, window.end_ms, window.reason, window.part,
        window.x.tolist(), window.offsets.tolist(), window.times_ms.tolist(),
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_short_windows_and_length_multiples_leave_out_what_they_say(kind: str, data: st.DataObject) -> None:
    plain, rows, idle = data.draw(rules(kind)), data.draw(logs()), data.draw(idles)
    least = data.draw(st.integers(1, plain.max_events))
    multiple = data.draw(st.integers(1, min(plain.max_events, 3)))
    whole, _ = actual(plain, rows, idle, [])
    added, _ = actual(replace(plain, min_events=least), rows, idle, [], multiple=multiple)
    keep = [w for w in whole.closed if len(w.x) >= least and len(w.x) >= multiple]
    assert len(added.closed) == len(keep)
    assert len(added.short) == len(whole.closed) - len(keep)
    for window, full in zip(added.closed, keep, strict=True):
        beyond = len(full.x) % multiple
        assert np.array_equal(window.offsets, full.offsets[beyond:])
        assert np.array_equal(window.x, full.x[beyond:])
        assert window.part == full.part
    assert added.trimmed == sum(len(w.x) % multiple for w in keep)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_time_going_on_closes_everything_that_time_can_close(kind: str, data: st.DataObject) -> None:
    """Nothing is left behind in the table, and all memory can be used again."""
    rule, rows = data.draw(rules(kind)), data.draw(logs())
    windows = Windows(rule, 1)
    first = seen(windows.add(timed(rows)))
    rest = seen(windows.advance(10**6))
    assert windows.open_windows == windows.buffered_events == 0
    assert windows.oldest() is None
    assert windows.next_close_ms() is None
    assert not {closed.part for closed in first} & {closed.part for closed in rest} or rule.kind == "hopping"
    assert all(isinstance(closed, Closed) for closed in rest)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(data=st.data())
def test_windows_of_records_of_several_steps(kind: str, data: st.DataObject) -> None:
    """Bounds count steps, a record's steps stay together and in order."""
    rule, rows, idle = data.draw(rules(kind)), data.draw(logs()), data.draw(idles)

    def weight(offset: int) -> int:
        return 1 + offset * 7 % 3

    reference, wanted = Reference(rule, steps=weight), []
    for index, row in enumerate(rows):
        wanted += reference.record(*row).closed
        for at, by in idle:
            wanted += reference.idle(reference.watermark + by).closed if at == index else []
    windows, found = Windows(rule, 1, several=True), Added()
    held = [cut for cut in data.draw(st.lists(st.integers(0, 60))) if cut < len(rows)]
    edges = sorted({0, len(rows), *held, *(at + 1 for at, _ in idle if at < len(rows))})
    for first, last in itertools.pairwise(edges):
        batch = several(timed(rows[first:last]), [weight(row[0]) for row in rows[first:last]])
        found.closed += windows.add(batch).closed
        for by in [by for at, by in idle if at == last - 1]:
            found.closed += windows.advance(windows.watermark + by).closed
    assert len(found.closed) == len(wanted)
    for window, meant in zip(found.closed, wanted, strict=True):
        events = [(time, offset) for time, offset in meant.events for _ in range(weight(offset))]
        assert list(zip(window.times_ms.tolist(), window.offsets.tolist(), strict=True)) == events
        assert window.x[:, 0].tolist() == [offset for _, offset in events]
        assert (window.stream.decode(), window.start_ms, window.end_ms) == (
            meant.stream,
            meant.start,
            meant.end,
        )
        assert window.reason == meant.reason
    assert windows.open_windows == reference.open_windows
    if not windows.open_windows:
        assert windows._events._step_bytes == 0, "nothing is held for windows that are closed"
