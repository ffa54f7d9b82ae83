"""Features that depend on a stream's past, against a definition that sees one event after the other: whatever the cut into
calls, and whoever shares them, numbers and what is kept are the same bits."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.modelfile.feature import Feature
from streamer.modelfile.past import Past

KINDS = ("number", "flag", "category", "since_last", "present")
WORDS = ("<unknown>", "a", "b")
cells = st.one_of(st.just(float("nan")), st.integers(0, 2).map(float))
times = st.one_of(st.integers(-5_000, 5_000), st.sampled_from([0, 10**12, -(10**12)]))


@st.composite
def declared(draw: st.DrawFn) -> list[Feature]:
    found = []
    for at in range(draw(st.integers(1, 6))):
        kind: Any = draw(st.sampled_from(KINDS))
        source = draw(st.sampled_from(["f", "g", None]))
        fallback = float(draw(st.integers(0, 2)))
        more: dict[str, Any] = {}
        if kind in ("number", "flag", "category"):
            more = {"lag": draw(st.integers(0, 3)), "missing": draw(st.sampled_from([None, "last"]))}
            more |= {"vocabulary": WORDS} if kind == "category" else {}
        feature = Feature(f"x{at}", kind, source=source, fallback=fallback, **more)
        assert feature.problem() is None
        found.append(feature)
    return found


class Slow:
    """The definition, by the words of the contract: one stream, one event."""

    def __init__(self, features: list[Feature]) -> None:
        self.features = features
        self.newest: int | None = None
        self.lasts = [feature.fallback for feature in features]
        self.before = [deque([f.fallback] * f.lag, maxlen=f.lag) if f.lag else None for f in features]

    def event(self, row: list[float], time: int) -> list[float]:
        numbers = []
        for at, (feature, cell) in enumerate(zip(self.features, row, strict=True)):
            value = cell
            if feature.kind == "since_last":
                value = feature.fallback if self.newest is None else max(time - self.newest, 0) / 1000
            if feature.missing == "last":
                value = self.lasts[at] = self.lasts[at] if np.isnan(value) else value
            before = self.before[at]
            if before is not None:
                number = before[0]
                before.append(value)
                value = number
            numbers.append(value)
        self.newest = time if self.newest is None else max(self.newest, time)
        return numbers


def events(draw: st.DrawFn, features: list[Feature], count: int) -> Iterator[tuple[list[float], int]]:
    """Features of one field read the same cell."""
    for _ in range(count):
        one = {name: draw(cells) for name in ("f", "g", *(feature.name for feature in features))}
        row = []
        for feature in features:
            cell = one[feature.field]
            may_be_missing = feature.missing == "last"
            row.append(0.0 if feature.kind == "since_last" or (np.isnan(cell) and not may_be_missing) else cell)
        yield row, draw(times)


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[Feature], list[tuple[np.ndarray, np.ndarray]], str]:
    """Features, and per stream cells [T, F] and times [T]."""
    features = draw(declared())
    streams = []
    for _ in range(draw(st.integers(1, 3))):
        found = list(events(draw, features, draw(st.integers(0, 9))))
        x = np.array([row for row, _ in found], np.float64).reshape(len(found), len(features))
        streams.append((x, np.array([time for _, time in found], np.int64)))
    return features, streams, draw(st.sampled_from(["float32", "float64"]))


@given(run=runs(), data=st.data())
def test_every_cut_into_calls_gives_what_one_event_after_the_other_gives(run: Any, data: st.DataObject) -> None:
    features, streams, dtype = run
    past = Past.of(features, dtype)
    slow = [Slow(features) for _ in streams]
    expected = [
        np.array([one.event(row, time) for row, time in zip(x.tolist(), at.tolist(), strict=True)], dtype)
        for one, (x, at) in zip(slow, streams, strict=True)
    ]
    if past is None:
        assert all(not f.lag and f.missing is None and f.kind != "since_last" for f in features)
        for (x, _), wanted in zip(streams, expected, strict=True):
            assert x.astype(dtype).tobytes() == wanted.tobytes()
        return
    kept = np.repeat(past.initial, len(streams), axis=0)
    place, found = [0] * len(streams), [[np.empty((0, len(features)), dtype)] for _ in streams]
    while any(at < len(x) for at, (x, _) in zip(place, streams, strict=True)):
        left = [number for number, (x, _) in enumerate(streams) if place[number] < len(x)]
        chosen = data.draw(st.lists(st.sampled_from(left), min_size=1, unique=True))
        lengths = [data.draw(st.integers(1, min(4, len(streams[each][0]) - place[each]))) for each in chosen]
        longest = max(lengths)
        x = np.full((len(chosen), longest, len(features)), np.nan, dtype)
        at = np.full((len(chosen), longest), 77, np.int64)
        for row, (each, length) in enumerate(zip(chosen, lengths, strict=True)):
            x[row, :length] = streams[each][0][place[each] : place[each] + length]
            at[row, :length] = streams[each][1][place[each] : place[each] + length]
        before = kept[chosen]
        untouched = before.copy()
        numbers, after = past.fill(x, at, np.array(lengths, np.int32), before)
        assert before.tobytes() == untouched.tobytes(), "what was kept is not changed: the call may fail"
        kept[chosen] = after
        for row, (each, length) in enumerate(zip(chosen, lengths, strict=True)):
            found[each].append(numbers[row, :length])
            place[each] += length
            assert not numbers[row, length:].any(), "padding is 0"
    for parts, wanted, (x, at), one in zip(found, expected, streams, kept, strict=True):
        assert np.concatenate(parts).tobytes() == wanted.tobytes()
        if len(x):
            whole, after = past.fill(x.astype(dtype)[None], at[None], np.array([len(x)]), past.initial)
            assert whole[0].tobytes() == wanted.tobytes() == past.whole(x.astype(dtype), at).tobytes()
            assert after.tobytes() == one.tobytes()


def test_lags_of_one_field_are_kept_once() -> None:
    features = [
        Feature("v", missing="last"),
        *(Feature(f"v{lag}", source="v", lag=lag, missing="last") for lag in (1, 5)),
    ]
    past = Past.of([*features, Feature("gap", "since_last")], "float32")
    assert past is not None
    assert past.width == 8 + 5 * 4
    assert past.name == "past(float32: newest_ms, v:5)"


def test_a_past_says_by_which_words_its_categories_are_numbers() -> None:
    pasts = [Past([Feature("c", "category", words, lag=1)], "float32") for words in (("a", "b"), ("b", "a"), ("ab",))]
    assert len({past.name for past in pasts}) == 3


def test_whole_numbers_have_lags_too() -> None:
    past = Past.of([Feature("old", source="n", lag=1, fallback=-1.0)], "int64")
    assert past is not None
    assert past.whole(np.array([[2**62], [7]]), np.zeros(2, np.int64)).tolist() == [[-1], [2**62]]


@pytest.mark.parametrize(
    ("feature", "told"),
    [
        (Feature("v", lag=1_001), "0 to 1000 events"),
        (Feature("v", lag=-1), "0 to 1000 events"),
        (Feature("gap", "since_last", lag=1), "belongs to number, category and flag"),
        (
            Feature("c", "category", WORDS, lag=1, fallback=3.0),
            "has fallback 3.0, but its vocabulary has the places 0 to 2",
        ),
        (Feature("c", "category", WORDS, missing="last", fallback=0.5), "has fallback 0.5"),
    ],
)
def test_a_past_that_cannot_be_is_no_contract(feature: Feature, told: str) -> None:
    assert told in str(feature.problem())
