"""The load generator's plan: what is sent, to which stream, with which times."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from decoding import contract as several_steps
from decoding import records
from typer.testing import CliRunner

from export.readers import load
from streamer.cli import app
from streamer.core import Op, RecordBatch
from streamer.errors import ConfigurationError
from streamer.modelfile.contract import Contract
from streamer.records.decode import Codec
from streamer.tools.eventfile import Columns, read_events
from streamer.tools.grouping import Grouped
from streamer.tools.load import (
    BROKEN_KINDS,
    FORMATS,
    FileSource,
    LoadOptions,
    TelemetrySource,
    blocks,
    write_events,
)

START_MS = 1_700_000_000_000


def plan(options, source=None, **more):
    """All records as (kind, due, stamp, key, value, headers)."""
    columns = [
        zip(b.kinds, b.due_ms, b.timestamps_ms, b.keys, b.values, b.headers, strict=True)
        for b in blocks(source or TelemetrySource(options), options, START_MS, **more)
    ]
    return [row for block in columns for row in block]


def codec(options):
    names = list(TelemetrySource(options).feature_names)
    fields = {
        "format": 1,
        "name": "test",
        "version": "1",
        "mode": "step",
        "input": {"name": "x", "shape": ["batch", len(names)], "features": names},
        "outputs": [{"name": "y", "shape": ["batch", 1], "kind": "value"}],
    }
    return Codec(Contract.from_fields(fields), options.format)


def decoded(options, rows):
    """The plan's records as the service sees them; offsets are row numbers."""
    records = RecordBatch(
        partition=0,
        offsets=list(range(len(rows))),
        timestamps_ms=[row[2] for row in rows],
        keys=[row[3] for row in rows],
        values=[row[4] for row in rows],
        headers={n: row[5] for n, row in enumerate(rows) if row[5]},
    )
    return codec(options).decode(records)


@pytest.mark.parametrize("value_format", FORMATS)
def test_service_decodes_what_was_meant_and_rejects_what_was_broken_for_the_reason_given(value_format):
    options = LoadOptions(events=2_000, format=value_format, broken=0.05, end_marks=4, rate=500, features=5)
    rows = plan(options)
    batch = decoded(options, rows)
    kinds = Counter(row[0] for row in rows)
    assert Counter(reject.reason for reject in batch.rejects) == {k: kinds[k] for k in BROKEN_KINDS[value_format]}
    assert all(rows[reject.offset][0] == reject.reason for reject in batch.rejects)
    events = batch.ops == Op.EVENT
    expected = list(TelemetrySource(options).events(START_MS))
    np.testing.assert_array_equal(batch.x[events], np.concatenate([e.x for e in expected]))
    np.testing.assert_array_equal(batch.times_ms[events], np.concatenate([e.times_ms for e in expected]))
    ends = [key for key, op in zip(batch.keys, batch.ops, strict=True) if op == Op.END]
    per_stream = Counter(row[3] for row in rows if row[0] in ("event", "anomaly"))
    assert Counter(ends) == {key: count // 4 for key, count in per_stream.items() if count >= 4}
    assert len(ends) == kinds["end"] > 0


def test_an_end_mark_follows_its_streams_nth_event():
    rows = plan(LoadOptions(events=500, streams=7, end_marks=3, skew="zipf"))
    seen = Counter()
    for kind, _, _, key, value, headers in rows:
        if kind == "end":
            assert seen[key] % 3 == 0
            assert value is None
            assert headers == [("streamer-op", b"end")]
        else:
            seen[key] += 1


def test_the_same_options_give_the_same_records():
    options = LoadOptions(events=3_000, skew="zipf", gaps=0.3, disorder_ms=50, broken=0.1, end_marks=5, rate=1_000)
    assert plan(options) == plan(options)
    assert plan(options) != plan(replace(options, seed=1))


def test_due_times_are_even_and_timestamps_are_intended_send_times():
    rows = plan(LoadOptions(events=1_000, rate=400, streams=10))
    assert [row[1] for row in rows] == [n * 2.5 for n in range(1_000)]
    assert [row[2] for row in rows] == [START_MS + int(n * 2.5) for n in range(1_000)]
    assert [row[3] for row in rows[:11]] == [b"stream-%05d" % (n % 10) for n in range(11)]


def test_disorder_moves_event_times_back_by_at_most_its_bound():
    options = LoadOptions(events=2_000, rate=1_000, disorder_ms=40)
    rows = plan(options)
    late = [row[2] - msgspec.json.decode(row[4])["ts"] for row in rows]
    assert min(late) == 0
    assert max(late) == 40
    # Values without a time of their own carry it in the record's timestamp.
    stamps = [row[2] for row in plan(replace(options, format="float32"))]
    assert stamps == [msgspec.json.decode(row[4])["ts"] for row in rows]


def test_zipf_shares_fall_with_the_rank():
    rows = plan(LoadOptions(events=20_000, streams=50, skew="zipf"))
    count = Counter(row[3] for row in rows)
    first, second, tenth = (count[b"stream-%05d" % n] for n in (0, 1, 9))
    assert first / second == pytest.approx(2**1.1, rel=0.15)
    assert first / tenth == pytest.approx(10**1.1, rel=0.2)


def test_gaps_silence_streams_for_whole_spans_at_an_unchanged_rate():
    options = LoadOptions(events=20_000, streams=40, rate=1_000, gaps=0.4, gap_ms=1_000)
    rows = plan(options)
    heard = {(int(row[1] // 1_000), row[3]) for row in rows}
    assert len(heard) / (20 * 40) == pytest.approx(0.6, abs=0.05)
    assert len(rows) == 20_000


def test_steps_of_a_stream_follow_each_other_across_blocks():
    options = LoadOptions(events=10_000, streams=3, skew="zipf", anomaly_rate=0)
    source = TelemetrySource(options)
    pieces = list(source.events(START_MS))
    assert len(pieces) > 1
    streams = np.concatenate([piece.streams for piece in pieces])
    x = np.concatenate([piece.x for piece in pieces])
    for number in range(3):
        own = x[streams == f"stream-{number:05d}"]
        steps = np.arange(len(own))
        np.testing.assert_array_equal(own, source._telemetry.rows(np.full_like(steps, number), steps)[0])


@pytest.mark.parametrize("suffix", [".csv", ".npz"])
def test_a_written_file_is_read_back_by_the_trainer_and_by_the_generator(tmp_path, suffix):
    path = tmp_path / f"telemetry{suffix}"
    options = LoadOptions(events=3_000, streams=20, features=3, anomaly_rate=0.05)
    source = TelemetrySource(options)
    written, anomalies = write_events(path, source, START_MS)
    assert written == 3_000
    assert anomalies > 0
    pieces = list(source.events(START_MS))
    x = np.concatenate([piece.x for piece in pieces])
    data = load(path)
    assert data.features == source.feature_names
    assert (len(data), data.events) == (20, 3_000)
    np.testing.assert_array_equal(np.concatenate(data.x), np.concatenate([x[n::20] for n in range(20)]))
    streams, times, again, labels, names = read_events(path)
    assert names == source.feature_names
    np.testing.assert_array_equal(again, x)
    assert list(streams[:2]) == ["stream-00000", "stream-00001"]
    assert times[0] == START_MS
    assert sum(label != "0" for label in labels) == anomalies
    replayed = FileSource(path, options)
    rows = plan(replace(options, format="float32"), replayed, file_times=True)
    assert [row[2] for row in rows] == times.tolist()
    assert sum(row[0] == "anomaly" for row in rows) == anomalies


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "stream,time,x\n"),
        ("a.csv", "time,x\n1,2\n"),
        ("a.csv", "stream,time,x\ns,1,abc\n"),
        ("a.csv", "stream,time,x\ns,1\n"),
        ("a.npz", "no archive"),
    ],
)
def test_a_file_that_holds_no_events_is_one_clear_error(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"a\.(csv|npz): "):
        read_events(path)


TRAIN = """
name = "pumps"
[data]
path = "pumps.csv"
stream = "machine"
time = "at_s"
label = "fault"
features = ["warm", "Druck"]
[model]
hidden = 3
"""
PUMPS = "machine;at_s;Druck;note;warm;fault\nb;1700000001.5;1,5;x;2;0\na;1700000000;NA;y;3,25;leak\n"


def test_a_file_is_sent_by_the_column_names_that_training_had(tmp_path):
    train, path = tmp_path / "train.toml", tmp_path / "pumps.csv"
    train.write_text(TRAIN)
    path.write_bytes(b"\xef\xbb\xbf" + PUMPS.encode())
    source = FileSource(path, LoadOptions(events=None), Columns.of_training(train))
    assert source.feature_names == ("warm", "Druck")
    rows = plan(LoadOptions(format="json-named", events=None), source, file_times=True)
    sent = [(row[2], row[3], json.loads(row[4])) for row in rows]
    assert [(key, value) for _, key, value in sent] == [
        (b"a", {"warm": 3.25, "Druck": None, "ts": 1_700_000_000_000}),
        (b"b", {"warm": 2.0, "Druck": 1.5, "ts": 1_700_000_001_500}),
    ]
    assert [row[0] for row in rows] == ["anomaly", "event"]
    with pytest.raises(ConfigurationError, match=r"no column 'stream'.*machine.*--train"):
        read_events(path)


@pytest.mark.parametrize(
    ("time", "unit", "cells", "wanted"),
    [
        ("time", None, ["5", "7"], [5, 7]),
        ("time", None, ["1700000000", "1700000001"], [1_700_000_000_000, 1_700_000_001_000]),
        ("time", None, ["1700000000000", "1700000000001"], [1_700_000_000_000, 1_700_000_000_001]),
        ("t_us", None, ["5000", "7000"], [5, 7]),
        ("time", "s", ["5", "7.5"], [5_000, 7_500]),
        ("time", None, ["2023-11-14T22:13:20", "2023-11-15T00:13:20.5+02:00"], [1_700_000_000_000, 1_700_000_000_500]),
    ],
)
def test_times_of_a_file_are_read_as_training_reads_them(tmp_path, time, unit, cells, wanted):
    path = tmp_path / "a.csv"
    path.write_text(f"stream,{time},x\n" + "".join(f"s,{cell},1\n" for cell in cells))
    assert read_events(path, Columns(time=time, time_unit=unit))[1].tolist() == wanted


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[model]\n", r"no \[data\]"),
        ("[data\n", "TOML"),
        ("[data]\nfeatures = 3\n", "features"),
        ("[data]\ntime_unit = 'h'\n", "time_unit"),
    ],
)
def test_a_train_toml_that_names_no_columns_is_one_clear_error(tmp_path, text, why):
    path = tmp_path / "train.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=why):
        Columns.of_training(path)


def test_a_missing_file_is_one_clear_error(tmp_path):
    with pytest.raises(ConfigurationError, match="No such file"):
        read_events(tmp_path / "none.csv")


@pytest.mark.parametrize(
    "bad",
    [{"streams": 0}, {"rate": -1}, {"skew": "odd"}, {"gaps": 1.0}, {"broken": 2}, {"format": "xml"}, {"end_marks": -1}],
)
def test_impossible_options_are_refused(bad):
    with pytest.raises(ConfigurationError, match=next(iter(bad)).replace("_", "-")):
        LoadOptions(**bad)


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigurationError, match=r"streams.*rate.*skew"):
        LoadOptions(streams=0, rate=-1, skew="odd")


@pytest.mark.parametrize("value_format", ["json", "float32"])
def test_several_events_of_a_stream_are_one_record(value_format):
    options = LoadOptions(
        events=1_000, streams=7, format=value_format, broken=0.1, rate=500, features=3, anomaly_rate=0.05
    )
    rows = plan(options, Grouped(TelemetrySource(options), 4))
    contract = several_steps(["a", "b", "c"], steps="many")
    batch = Codec(contract, value_format).decode(records([row[4] for row in rows], keys=[row[3] for row in rows]))
    kinds = [row[0] for row in rows]
    good = [kind for kind in kinds if kind in ("event", "anomaly")]
    assert "anomaly" in good
    assert batch.steps.tolist() == [4] * len(good)
    assert sorted(str(reject.reason) for reject in batch.rejects) == sorted(
        kind for kind in kinds if kind not in ("event", "anomaly")
    )
    single = [
        event for events in TelemetrySource(options).events(0) for event in zip(events.streams, events.x, strict=True)
    ]
    for stream in {key for key, _ in single}:
        mine = np.concatenate(
            [batch.x[4 * at : 4 * at + 4] for at, key in enumerate(batch.keys) if key.decode() == stream]
        )
        assert np.allclose(mine, [x for key, x in single if key == stream][: len(mine)], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "why"),
    [(["--format", "json-named"], "named"), (["--steps", "0"], "at least 1"), (["--out", "x.csv"], "--out")],
)
def test_what_has_no_steps_is_said(options, why):
    done = CliRunner().invoke(app, ["produce", "--topic", "t", "--steps", "2", "--events", "10", *options])
    assert done.exit_code != 0
    assert why in str(done.exception or "") + done.output
