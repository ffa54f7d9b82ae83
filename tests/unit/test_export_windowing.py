"""Windows of training are the windows of the service, in every kind, with the labels of their own events."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from export.data import Split, Streams
from export.windowing import cut, cut_split, mixed_labels, split_by_time
from streamer.errors import ConfigurationError
from streamer.windows import WindowRule

RULES = [
    WindowRule("tumbling", size_ms=50),
    WindowRule("hopping", size_ms=60, hop_ms=20),
    WindowRule("session", gap_ms=30),
    WindowRule("count", count=4),
    WindowRule("end"),
    WindowRule("end", max_events=7),
    WindowRule("tumbling", size_ms=50, min_events=3),
]


def streams(times: list[list[int]]) -> Streams:
    """The one feature of an event is its own number, and so is its label."""
    sizes = [len(each) for each in times]
    numbers = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    return Streams(
        ("a",),
        [f"s{i}" for i in range(len(times))],
        [each.astype(np.float32)[:, None] for each in numbers],
        [np.sort(np.array(each, np.int64)) for each in times],
        [each.copy() for each in numbers],
        None,
    )


def expected(rule: WindowRule, times: list[int]) -> list[list[int]]:
    """Places of the events of each window of one stream whose events come in order, by the table of ``WindowRule``."""
    at = range(len(times))
    if rule.kind in ("tumbling", "hopping"):
        hop = rule.hop_ms or rule.size_ms
        starts = range((min(times) - rule.size_ms) // hop * hop, max(times) + 1, hop)
        found = [[i for i in at if start <= times[i] < start + rule.size_ms] for start in starts]
    elif rule.kind == "session":
        found = [[0]]
        for i in at[1:]:
            if times[i] - times[i - 1] > rule.gap_ms:
                found.append([])
            found[-1].append(i)
    else:
        size = rule.count or rule.max_events
        found = [list(at[i : i + size]) for i in range(0, len(times), size)]
        if rule.kind == "count" and len(found[-1]) < size:
            found.pop()
    kept = [window for window in found if len(window) >= rule.min_events]
    return [window for window in kept if window]


@given(
    st.lists(st.lists(st.integers(0, 400), min_size=1, max_size=20), min_size=1, max_size=4),
    st.sampled_from(RULES),
)
@settings(max_examples=150, deadline=None)
def test_windows_are_those_of_the_rule_and_keep_their_labels(times: list[list[int]], rule: WindowRule) -> None:
    data = streams(times)
    wanted = Counter(
        (data.names[i], tuple(data.x[i][window, 0].tolist()))
        for i, each in enumerate(data.times_ms)
        for window in expected(rule, each.tolist())
    )
    if not wanted:
        with pytest.raises(ConfigurationError, match=f"no {rule.kind} window closes"):
            cut(data, rule)
        return
    found = cut(data, rule)
    assert (
        Counter((n.split("@")[0], tuple(x[:, 0].tolist())) for n, x in zip(found.names, found.x, strict=True)) == wanted
    )
    assert found.labels is not None
    for x, label in zip(found.x, found.labels, strict=True):
        assert x[:, 0].tolist() == label.tolist()


def test_windows_across_a_border_belong_to_no_part() -> None:
    data = streams([list(range(0, 1000, 10))])
    split, across = split_by_time(data, WindowRule("tumbling", size_ms=70), validation=0.2, test=0.2)
    bounds = [
        (int(part.times_ms[0][0]), int(part.times_ms[-1][-1])) for part in (split.train, split.validation, split.test)
    ]
    assert across == 2
    assert bounds == [(0, 550), (630, 760), (840, 990)]
    assert all(len(x) == 7 for part in (split.train, split.validation) for x in part.x)


def test_parts_of_whole_streams_are_cut_alone_and_mixed_labels_are_counted() -> None:
    data = streams([[0, 1, 2, 3], [0, 1], [5, 6]])
    data.labels = [np.array([0, 0, 0, 1]), np.array([0, 0]), np.array([1, 1])]
    parts: list[Any] = [data.take([0]), data.take([1]), data.take([2])]
    made = cut_split(Split(*parts), WindowRule("count", count=2))
    assert [len(part) for part in (made.train, made.validation, made.test)] == [2, 1, 1]
    assert mixed_labels(made.train) == 0.5
