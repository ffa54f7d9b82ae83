"""Readers, splits and batches of the training side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.data import Example, Streams, buckets, chunks, fit_scaling, segments, split_by_stream, split_by_time
from export.readers import load
from streamer.errors import ConfigurationError


def streams(lengths: list[int], *, labels: bool = False, step_ms: int = 10) -> Streams:
    x = [np.arange(n, dtype=np.float32)[:, None] + 1000 * i for i, n in enumerate(lengths)]
    return Streams(
        ("a",),
        [f"s{i}" for i in range(len(lengths))],
        x,
        [np.arange(n, dtype=np.int64) * step_ms for n in lengths],
        [np.full(n, i % 2, np.int64) for i, n in enumerate(lengths)] if labels else None,
        ("no", "yes") if labels else None,
    )


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_is_grouped_by_stream_in_order_of_time(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", "time,stream,a,b,label\n20,s2,3,4,yes\n10,s1,1,2,no\n5,s2,7,8,no\n5,s2,9,9,\n")
    data = load(path, classes=["no", "yes"])
    assert data.names == ["s1", "s2"]
    assert data.features == ("a", "b")
    assert data.x[1].tolist() == [[7, 8], [9, 9], [3, 4]]  # equal times keep the order of the file
    assert data.labels is not None
    assert data.labels[1].tolist() == [0, -1, 1]
    assert data.events == 4


def test_npz_and_csv_of_the_same_events_are_equal(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "d.npz",
        stream=np.array(["q", "p", "q"]),
        time_ms=np.array([2, 1, 1]),
        x=np.array([[1, 2], [3, 4], [5, 6]], np.float32),
        label=np.array([1, 0, 0]),
        features=np.array(["u", "v"]),
    )
    csv = write(tmp_path / "d.csv", "stream,time,u,v,label\nq,2,1,2,1\np,1,3,4,0\nq,1,5,6,0\n")
    a, b = load(tmp_path / "d.npz"), load(csv)
    assert a.names == b.names
    assert a.features == b.features
    assert a.classes == b.classes == ("0", "1")
    for left, right in zip(a.x, b.x, strict=True):
        np.testing.assert_array_equal(left, right)
    chosen = load(tmp_path / "d.npz", features=["v"])
    assert chosen.x[0].tolist() == [[4.0]]


def test_ts_cases_become_streams(tmp_path: Path) -> None:
    path = write(tmp_path / "d.ts", "#note\n@classLabel true\n@data\n1,2,3:4,5,6:b\n7:8:a\n")
    data = load(path)
    assert data.x[0].tolist() == [[1, 4], [2, 5], [3, 6]]
    assert data.classes == ("a", "b")
    assert data.labels is not None
    assert data.labels[0].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("stream,time,a\ns,1,inf\n", "bad.csv, line 2, column 'a': .*inf.* no finite value"),
        ("stream,time,a\ns,1,1e39\n", "line 2, column 'a': 1e.39 is no finite value that 32 bits hold"),
        ("stream,time,a\ns,1,\n", "no feature columns"),
        ("stream,time,a\ns,1,2\n\ns,2,x\ns,3,4\n", "line 4, column 'a': 'x' is not a number .1 such cells of 3."),
        ("stream,time,a\ns,1,1_000\ns,2,7\n", "line 2, column 'a': '1_000' is not a number"),
        ("stream,time,a\ns,noon,2\n", "line 2, column 'time': 'noon' is no time"),
        ("stream,time,a\ns,1,2\ns,,2\n", "line 3, column 'time': '' is no time"),
        ("stream,time,a\n,1,2\n", "line 2, column 'stream': the event has no stream"),
        ("stream,time,a,a\ns,1,2,3\n", "columns 3 and 4 are both called 'a'"),
        ('stream,time,a\ns,1,"2\n', "bad.csv, line 2: not CSV"),
        ("stream,time,a,label\ns,1,2,0.5\n", "line 2, column 'label': label '0.5' is a fraction"),
        ("stream,a\ns,1\n", "no column 'time'"),
        ("stream,time,a\ns,1\n", "line 2: 2 columns, the header has 3"),
        ("stream,time\ns,1\n", "no feature columns"),
        ("stream,time,a\n", "no events"),
        ("", "empty file"),
        ("stream,time,a,label\ns,1,2,maybe\n", "'maybe' is not one of the classes"),
        ("stream,time,a,label\ns,1,2,2\n", "'2' is not one of the classes"),
    ],
)
def test_bad_csv_is_refused_with_the_place(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        load(write(tmp_path / "bad.csv", text), classes=["no", "yes"])


def test_missing_and_unknown_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such data file"):
        load(tmp_path / "none.csv")
    with pytest.raises(ConfigurationError, match="unknown format"):
        load(write(tmp_path / "d.xlsx", "x"))
    with pytest.raises(ConfigurationError, match="not an NPZ file"):
        load(write(tmp_path / "d.npz", "x"))


def test_split_by_stream_is_disjoint_and_keeps_classes_in_all_parts() -> None:
    data = streams([5] * 40, labels=True)
    split = split_by_stream(data, validation=0.2, test=0.2, seed=3)
    names = [set(part.names) for part in (split.train, split.validation, split.test)]
    assert set.union(*names) == set(data.names)
    assert sum(map(len, names)) == 40
    for part in (split.train, split.validation, split.test):
        assert part.labels is not None
        assert {int(y[-1]) for y in part.labels} == {0, 1}
    again = split_by_stream(data, validation=0.2, test=0.2, seed=3)
    assert again.test.names == split.test.names
    assert split_by_stream(data, validation=0.2, test=0.2, seed=4).test.names != split.test.names


def test_split_by_time_never_lets_training_see_the_future() -> None:
    data = streams([100, 60, 10])
    split = split_by_time(data, validation=0.2, test=0.2)
    newest = max(int(times[-1]) for times in split.train.times_ms)
    for part in (split.validation, split.test):
        for times, start in zip(part.times_ms, part.counted_from, strict=True):
            assert int(times[start]) > newest
            assert times[0] == 0
            assert start > 0
    assert split.train.events + split.validation.events + split.test.events == data.events
    assert min(int(t[s]) for t, s in zip(split.test.times_ms, split.test.counted_from, strict=True)) > max(
        int(t[-1]) for t in split.validation.times_ms
    )


def test_too_little_data_to_split_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="nothing is left for test"):
        split_by_stream(streams([5, 5]), validation=0.2, test=0.2, seed=0)
    with pytest.raises(ConfigurationError, match="too little data"):
        split_by_time(streams([1]), validation=0.2, test=0.2)
    with pytest.raises(ConfigurationError, match="validation and test must be"):
        split_by_stream(streams([5, 5]), validation=-0.1, test=0.2, seed=0)


def test_scaling_comes_from_the_training_part_and_constants_stay_finite() -> None:
    train = Streams(("a", "b"), ["s"], [np.array([[1, 7], [3, 7]], np.float32)], [np.arange(2)])
    mean, std = fit_scaling(train)
    assert mean.tolist() == [2, 7]
    assert std.tolist() == [1, 1]


def examples_of(lengths: list[int]) -> list[Example]:
    return [Example(x, np.arange(len(x), dtype=np.int64) + 100 * i) for i, x in enumerate(streams(lengths).x)]


@pytest.mark.parametrize("rows", [1, 2, 3, 10])
def test_chunks_carry_every_stream_once_in_order_and_in_one_lane(rows: int) -> None:
    lengths = [7, 1, 12, 5, 3]
    seen: dict[int, list[int]] = {i: [] for i in range(len(lengths))}
    lane_of: dict[int, int] = {}
    for chunk in chunks(examples_of(lengths), rows=rows, steps=4):
        assert len(set(chunk.lanes.tolist())) == len(chunk.lanes) <= rows
        assert chunk.lengths.min() >= 1
        assert chunk.x.shape[1] == chunk.lengths.max()
        for row, index in enumerate(chunk.examples.tolist()):
            assert chunk.fresh[row] == (chunk.starts[row] == 0) == (not seen[index])
            lane = lane_of.setdefault(index, int(chunk.lanes[row]))
            assert lane == chunk.lanes[row]
            n = int(chunk.lengths[row])
            seen[index] += (chunk.target[row, :n] - 100 * index).tolist()
            assert chunk.counted[row].tolist() == [True] * n + [False] * (chunk.x.shape[1] - n)
            assert not chunk.x[row, n:].any()
    assert {i: list(range(n)) for i, n in enumerate(lengths)} == seen


def test_rows_before_the_part_are_run_but_not_counted() -> None:
    example = Example(np.zeros((10, 1), np.float32), np.arange(10), counted_from=6)
    counted = np.concatenate([chunk.counted[0] for chunk in chunks([example], rows=1, steps=4)])
    assert counted.tolist() == [False] * 6 + [True] * 4


def test_buckets_keep_padding_small_and_lose_nothing() -> None:
    rng = np.random.default_rng(0)
    lengths = [int(n) for n in rng.integers(1, 60, 200)]
    found, padded = [], 0
    for chunk in buckets(examples_of(lengths), rows=16, rng=rng):
        found += chunk.examples.tolist()
        padded += chunk.x.shape[0] * chunk.x.shape[1]
    assert sorted(found) == list(range(200))
    assert padded < 1.25 * sum(lengths)
    bounded = list(buckets(examples_of(lengths), rows=16, rng=rng, max_steps=100))
    assert max(c.x.shape[0] * c.x.shape[1] for c in bounded) <= 100


def test_segments_cover_every_event_once_at_changing_offsets() -> None:
    rng = np.random.default_rng(0)
    first = segments(examples_of([50, 7]), 16, rng)
    assert sorted(np.concatenate([e.target for e in first]).tolist()) == [*range(50), *range(100, 107)]
    assert max(len(e.x) for e in first) <= 16
    assert [len(e.x) for e in first] != [len(e.x) for e in segments(examples_of([50, 7]), 16, rng)]
