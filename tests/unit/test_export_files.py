"""Files as tools write them: each kind, each encoding, times of every sort, and the place of whatever is wrong."""

from __future__ import annotations

import contextlib
import json
import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from export.data import Streams
from export.files import FileOptions, Table
from export.files.table import MISSING
from export.files.times import UNITS, nanoseconds
from export.readers import load
from streamer.errors import ConfigurationError
from streamer.modelfile.feature import Feature
from streamer.records.exact import Exact
from streamer.records.meaning import Meaning

TEXT = "stream,time,größe,mode,label\np,10,1.5,än,ja\np,20,,aus,nein\nq,5,2.25,än,\n"


def rows(data: Streams) -> list[tuple[Any, ...]]:
    """All events as (stream, time, features with words as words, label)."""
    found = []
    for i, name in enumerate(data.names):
        for at, time in enumerate(data.times_ms[i].tolist()):
            cells: list[Any] = []
            for value, table in zip(data.x[i][at].tolist(), data.feature_tables, strict=True):
                cells.append(None if np.isnan(value) else table.vocabulary[int(value)] if table.vocabulary else value)
            label = None
            if data.labels is not None and data.classes is not None and data.labels[i][at] >= 0:
                label = data.classes[int(data.labels[i][at])]
            found.append((name, time, *cells, label))
    return found


EXPECTED = [("p", 10, 1.5, "än", "ja"), ("p", 20, None, "aus", "nein"), ("q", 5, 2.25, "än", None)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1", "cp1252"])
def test_the_encoding_of_a_csv_is_found_out(tmp_path: Path, encoding: str) -> None:
    path, notes = tmp_path / "d.csv", list[str]()
    path.write_bytes(TEXT.encode(encoding))
    assert rows(load(path, notes=notes)) == EXPECTED
    assert any("Windows-1252" in note for note in notes) == (encoding in ("latin-1", "cp1252"))


def test_an_encoding_that_is_given_is_used_and_bad_bytes_have_a_line(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes(TEXT.encode("cp437"))
    assert rows(load(path, options=FileOptions(encoding="cp437"))) == EXPECTED
    with pytest.raises(ConfigurationError, match="line 1: the bytes are no utf-8"):
        load(path, options=FileOptions(encoding="utf-8"))
    for odd in ("klingon", "base64", "undefined", "a\0b"):
        with pytest.raises(ConfigurationError, match=r"encoding .* is not known"):
            load(path, options=FileOptions(encoding=odd))
    path.write_text("stream,time,v\na,1,1\n")
    with pytest.raises(ConfigurationError, match="'punycode' is not known, or reads no such file"):
        load(path, options=FileOptions(encoding="punycode"))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("decimal", [".", ","])
def test_delimiter_and_decimal_comma_are_found_out_or_given(tmp_path: Path, delimiter: str, decimal: str) -> None:
    text = TEXT.replace(",", delimiter)
    number = f'"1{decimal}5"' if decimal == delimiter else f"1{decimal}5"
    text = text.replace("1.5", number).replace("2.25", number.replace("1", "2").replace("5", "25"))
    path = tmp_path / "d.csv"
    path.write_text(text, encoding="utf-8")
    assert rows(load(path)) == EXPECTED
    assert rows(load(path, options=FileOptions(delimiter=delimiter, decimal=decimal))) == EXPECTED


def test_a_file_with_both_decimal_marks_is_not_guessed_at(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("stream;time;a;b\ns;1;1.5;2\ns;2;2;1,5\n")
    with pytest.raises(ConfigurationError, match=r"line 3, column 'b': a decimal comma, but .* decimal points"):
        load(path)
    path.write_text("stream;time;a\ns;1;1,5\ns;2;1.234,5\ns;3;2\n")
    with pytest.raises(ConfigurationError, match=r"line 3, column 'a': '1.234,5' is not a number"):
        load(path)


def test_fields_may_be_long_and_quoted_over_lines(tmp_path: Path) -> None:
    path, long = tmp_path / "d.csv", "x" * 300_000
    path.write_text(f'stream,time,a,note\ns,1,1,"{long}"\ns,2,2,"two\nlines; ""quoted"""\ns,3,broken,-\ns,4,5,-\n')
    with pytest.raises(ConfigurationError, match=r"line 5, column 'a': 'broken'"):
        load(path, features=["a"])
    path.write_text(path.read_text().replace("broken", "3"))
    data = load(path)
    assert data.feature_tables[1].vocabulary == ("-", 'two\nlines; "quoted"', long)


def test_index_columns_are_left_out_and_said(tmp_path: Path) -> None:
    for name in ("", "Unnamed: 0"):
        path, notes = tmp_path / "d.csv", list[str]()
        path.write_text(f"{name},stream,time,a,empty\n0,s,1,2,\n1,s,2,NA,\n")
        data = load(path, notes=notes)
        assert data.features == ("a",)
        assert np.isnan(data.x[0][1, 0])
        assert [re.sub(".*column", "column", note) for note in notes] == [
            f"column {name!r} has no name of its own, and is left out as an index",
            "column 'empty' has no value at all, and is left out",
        ]
    with pytest.raises(ConfigurationError, match="'empty': every cell is missing"):
        load(path, features=["empty"])
    path.write_text("stream,time,a,\ns,1,2,\n")
    assert load(path).features == ("a",)


def test_words_that_mean_missing_are_those_that_are_named(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    text = "stream,time,a,b,label\n" + "".join(f"NA,{i},{w},{i},x\n" for i, w in enumerate([*MISSING, "7"]))
    path.write_text(text)
    data = load(path)
    assert data.names == ["NA"]  # a stream may be called so
    assert np.isnan(data.x[0][:, 0]).tolist() == [True] * len(MISSING) + [False]
    named = load(path, options=FileOptions(missing_words=["", "nan"], categories=["a"]))
    assert set(MISSING) - {"", "nan"} < set(named.feature_tables[0].vocabulary)
    with pytest.raises(ConfigurationError, match=r"line 2, column 'a': no value"):
        load(path, options=FileOptions(complete=["a"]))


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (["ok", "bad", "ok"], ("bad", "ok"), [1, 0, 1]),
        (["7", "1000000000", "7"], ("7", "1000000000"), [0, 1, 0]),
        (["10", "9", ""], ("9", "10"), [1, 0, -1]),
        (["1.0", "nan", "3.0"], ("1", "3"), [0, -1, 1]),
        (["-1", "4", "2"], ("2", "4"), [-1, 1, 0]),
        (["None", "yes", "NA"], ("None", "yes"), [0, 1, -1]),
    ],
)
def test_labels_of_every_sort_become_as_many_classes_as_there_are(
    tmp_path: Path, labels: list[str], classes: tuple[str, ...], numbers: list[int]
) -> None:
    path = tmp_path / "d.csv"
    path.write_text("stream,time,a,label\n" + "".join(f"s,{i},1,{y}\n" for i, y in enumerate(labels)))
    data = load(path)
    assert data.classes == classes
    assert data.labels is not None
    assert data.labels[0].tolist() == numbers


def test_labels_by_name_or_number_mean_what_the_classes_say(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("stream,time,a,label\ns,0,1,1\ns,1,1,0\n")
    assert load(path, classes=["no", "yes"]).labels[0].tolist() == [1, 0]  # type: ignore[index]
    with pytest.raises(ConfigurationError, match=r"line 3, column 'label': label '0' is not one of the classes 1, 2"):
        load(path, classes=["1", "2"])
    assert load(path, labels="values").labels[0].dtype == np.float32  # type: ignore[index]
    path.write_text("stream,time,a,label\n" + "".join(f"s,{i},1,{i}\n" for i in range(10_001)))
    with pytest.raises(ConfigurationError, match="10001 different labels"):
        load(path)
    path.write_text("stream,time,a,label\ns,0,1,1_0\ns,1,1,2_0\n")  # numbers for Python only
    assert load(path).classes == ("1_0", "2_0")
    with pytest.raises(ConfigurationError, match=r"line 2, column 'label': '1_0' is not a number: regress needs"):
        load(path, labels="values")
    path.write_text("stream,time,a,label\ns,0,1,01\ns,1,1,1\ns,2,1,+1\n")
    assert load(path).classes == ("+1", "01", "1"), "equal numbers have one order in every run"
    path.write_text("stream,time,a,label\ns,0,1,2.5\ns,1,1,\ns,2,1,many\n")
    with pytest.raises(ConfigurationError, match=r"line 4, column 'label': 'many' is not a number"):
        load(path, labels="values")


def json_lines(columns: dict[str, list[Any]]) -> str:
    return "\n".join(json.dumps(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True))


def served(data: Streams, cell: Any, column: int = 0) -> str | None:
    """The word that the service finds in a record, by the vocabulary that training declares."""
    feature = data.feature_tables[column]
    known = Feature(feature.name, "category", ("<unknown>", *feature.vocabulary), unknown=0)
    number = int(Meaning(known, Exact("float32"), None).number(cell))
    return known.vocabulary[number] if number else None


@given(st.lists(st.none() | st.integers(-99, 99), min_size=1, max_size=8).filter(any), st.integers(0, 3))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whole_numbers_of_a_category_are_the_words_of_the_service(
    tmp_path: Path, cells: list[int | None], zeros: int
) -> None:
    path, notes = tmp_path / "d.csv", list[str]()
    written = ["" if cell is None else f"{cell}.{'0' * zeros}".rstrip(".") for cell in cells]
    path.write_text("stream,time,zip\n" + "".join(f"s,{i},{cell}\n" for i, cell in enumerate(written)))
    data = load(path, options=FileOptions(categories=["zip"]), notes=notes)
    for cell in filter(None, cells):
        assert served(data, cell) == served(data, float(cell)) == served(data, str(cell)) == str(cell)
    assert any("holds whole numbers" in note for note in notes) == bool(zeros)


def test_words_that_only_look_like_numbers_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    for cells in (["007", "7", "08"], ["7.0", "7.5"], ["7.0", "x"], ["1e0", "2.0"]):
        path.write_text("stream,time,zip\n" + "".join(f"s,{i},{cell}\n" for i, cell in enumerate(cells)))
        assert load(path, options=FileOptions(categories=["zip"])).feature_tables[0].vocabulary == tuple(sorted(cells))
    path = tmp_path / "d.jsonl"
    path.write_text('{"stream": "s", "time": 1, "v": "7.0"}\n')  # a text, which the service does not take for 7
    data = load(path, options=FileOptions(categories=["v"]))
    assert data.feature_tables[0].vocabulary == ("7.0",)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_numbers_of_few_bits_are_the_words_that_they_are_written_as(tmp_path: Path, kind: Any) -> None:
    numbers = np.array([0.1, 2.5, 7, np.nan], kind)
    columns = {"stream": np.array(["s"] * 4), "time": np.arange(4), "v": numbers}
    np.savez(tmp_path / "d.npz", **columns)
    paths = [tmp_path / "d.npz"]
    if kind is not np.float16:
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        nulls = pa.array(numbers, mask=np.isnan(numbers))
        parquet.write_table(pa.table({**columns, "v": nulls}), tmp_path / "d.parquet")
        paths.append(tmp_path / "d.parquet")
    for path in paths:
        data = load(path, options=FileOptions(categories=["v"]))
        assert data.feature_tables[0].vocabulary == ("0.1", "2.5", "7")
        assert served(data, 0.1) == "0.1"
        assert rows(data)[3][2] is None


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_where_a_format_has_a_null_a_word_is_a_word(tmp_path: Path, suffix: str) -> None:
    cells = ["run", "NA", "", None]
    path = tmp_path / f"d.{suffix}"
    columns = {"stream": ["s"] * 4, "time": [1, 2, 3, 4], "w": cells, "n": ["1", "2", "NA", None], "label": cells}
    if suffix == "jsonl":
        path.write_text(json_lines(columns))
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").table(columns), path)
    data = load(path)
    assert [row[2] for row in rows(data)] == cells
    assert [served(data, cell) for cell in cells] == cells
    assert [row[3] for row in rows(data)] == [1, 2, None, None], "the service refuses the text of a number anyway"
    assert [row[4] for row in rows(data)] == ["run", None, None, None], "no service reads labels"
    named = load(path, options=FileOptions(missing_words=["NA"]))
    assert [row[2] for row in rows(named)] == ["run", None, "", None]


def table(cells: Any, name: str = "time") -> Table:
    return Table("f", {name: cells})


@given(
    st.lists(st.integers(-(10**15), 4 * 10**15), min_size=1, max_size=5),  # microseconds: 1938 to 2096
    st.integers(-14 * 60, 14 * 60),
)
@settings(max_examples=60, deadline=None)
def test_a_moment_is_the_same_however_it_is_written(moments: list[int], offset_minutes: int) -> None:
    expected = [each * 1000 for each in moments]
    zone = timezone(timedelta(minutes=offset_minutes))
    times = [datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=each) for each in moments]
    options = FileOptions()
    written: list[Any] = [
        [time.astimezone(zone).isoformat() for time in times],
        [time.isoformat().replace("+00:00", "Z") for time in times],
        [time.replace(tzinfo=None).isoformat(sep=" ") for time in times],  # without a zone: UTC
        np.array(moments, "datetime64[us]"),
        np.array(expected, "datetime64[ns]"),
    ]
    for cells in written:
        assert nanoseconds(table(cells), "time", options).tolist() == expected
    for unit, size in UNITS.items():
        exact = [f"{each * 1000 // size}.{each * 1000 % size:0{len(str(size)) - 1}d}" if size > 1 else str(each * 1000)
                 for each in moments]  # fmt: skip
        given_unit = FileOptions(time_unit=unit)
        if min(moments) >= 0:
            assert nanoseconds(table(exact), "time", given_unit).tolist() == expected
            assert nanoseconds(table(exact, f"t_{unit}"), f"t_{unit}", options).tolist() == expected


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1700000000", "1700000001.25"], [1_700_000_000_000, 1_700_000_001_250]),
        (["1700000000000", "1700000000001"], [1_700_000_000_000, 1_700_000_000_001]),
        (["1700000000000000"], [1_700_000_000_000]),
        (np.array([1_700_000_000_000_000_000]), [1_700_000_000_000]),
        (np.array([1_700_000_000.3]), [1_700_000_000_300]),
        (["0", "900000000"], [0, 900_000_000]),  # no epoch: a count of milliseconds
        (np.array(["2026-03-01", "2026-03-02"], "datetime64[D]"), [1_772_323_200_000, 1_772_409_600_000]),
        (["2026-03-01T00:00:00.123456789+02:00"], [1_772_316_000_123]),
    ],
)
def test_the_unit_of_numbers_is_found_by_their_size(cells: Any, expected: list[int]) -> None:
    assert (nanoseconds(table(cells), "time", FileOptions()) // 1_000_000).tolist() == expected


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        (["1", "soon"], "row 2, column 'time': 'soon' is no time, other rows have numbers"),
        (["2026-03-01", "03/01/2026"], "row 2, column 'time': '03/01/2026' is no time: write ISO 8601"),
        (np.array(["2026-03-01", "NaT"], "datetime64[s]"), "row 2, column 'time': there is no time"),
        (np.array([10**17]), "beyond the year 2262"),
        (np.array(["3000-01-01"], "datetime64[D]"), "between 1678 and 2262"),
        (["1", "1e999999999"], "row 2, column 'time': this time lies beyond the year 2262"),
        (["-1e999999999"], "row 1, column 'time': this time lies beyond the year 2262"),
        (np.array([1.0, np.inf]), "is no time, other rows have numbers"),
        (np.array([np.inf]), "is no time: write ISO 8601"),
    ],
)
def test_what_is_no_time_is_refused_with_its_place(cells: Any, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(sentence)):
        nanoseconds(table(cells), "time", FileOptions())


def test_events_finer_than_milliseconds_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("stream,t_us,a\ns,1500,2\ns,1400,1\ns,1600,3\n")
    data = load(path, time="t_us")
    assert data.x[0][:, 0].tolist() == [1, 2, 3]
    assert data.times_ms[0].tolist() == [1, 1, 1]


def test_json_lines_have_paths_for_columns(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    documents = [
        {"stream": "p", "time": "2026-03-01T00:00:00Z", "r": {"cpu": 1.5, "on": True}, "tags": ["än"], "label": "ja"},
        {"stream": "p", "time": "2026-03-01T00:00:01Z", "r": {"cpu": None, "on": False}, "label": None},
    ]
    path.write_text("\n\n".join(json.dumps(each, ensure_ascii=False) for each in documents), encoding="utf-8")
    data = load(path)
    assert data.features == ("r.cpu", "r.on", "tags[0]")
    assert [feature.kind for feature in data.feature_tables] == ["number", "flag", "category"]
    assert [row[2:] for row in rows(data)] == [(1.5, 1.0, "än", "ja"), (None, 0.0, None, None)]
    path.write_text('{"stream": "p", "time": 1, "a": 1}\n{"stream": "p", "time": 2, "a": "x"}\n{"stream"')
    with pytest.raises(ConfigurationError, match="line 3: not JSON"):
        load(path)
    path.write_text('{"stream": "p", "time": 1, "a": 1}\n\n{"stream": "p", "time": 2, "a": "x"}\n')
    with pytest.raises(ConfigurationError, match=r"line 3, column 'a': 'x' is not a number"):
        load(path)
    path.write_text("[1]\n")
    with pytest.raises(ConfigurationError, match="line 1: not an object"):
        load(path)


def test_parquet_has_types_nulls_zones_and_structs(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    moments = [datetime(2026, 3, 1, 2, tzinfo=timezone(timedelta(hours=2))), datetime(2026, 3, 1, 1, tzinfo=UTC)]
    columns = {
        "stream": pa.array([7, 7]),
        "time": pa.array(moments, pa.timestamp("us", "Europe/Berlin")),
        "n": pa.array([1, None], pa.int64()),
        "word": pa.array(["än", None]).dictionary_encode(),
        "on": pa.array([True, None]),
        "s": pa.array([{"a": 1.5}, {"a": 2.5}]),
        "label": pa.array(["x", "y"]),
        "__index_level_0__": pa.array([0, 1]),
    }
    path = tmp_path / "d.parquet"
    parquet.write_table(pa.table(columns), path)
    data = load(path)
    assert data.features == ("n", "word", "on", "s.a")
    assert rows(data) == [
        ("7", 1_772_323_200_000, 1.0, "än", 1.0, 1.5, "x"),
        ("7", 1_772_326_800_000, None, None, None, 2.5, "y"),
    ]
    parquet.write_table(pa.table([pa.array(["s"]), pa.array([1]), pa.array([1]), pa.array([2])],
                                 names=["stream", "time", "a", "a"]), path)  # fmt: skip
    with pytest.raises(ConfigurationError, match="both called 'a'"):
        load(path)
    parquet.write_table(pa.table({"stream": ["s"], "time": [1], "a": [[1, 2]]}), path)
    with pytest.raises(ConfigurationError, match=r"row 1, column 'a': \[1, 2\] is not a number"):
        load(path)
    path.write_text("no")
    with pytest.raises(ConfigurationError, match="not a Parquet file"):
        load(path)


def test_npz_may_hold_columns_of_every_type(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(
        path,
        stream=np.array([3, 3]),
        time=np.array(["2026-03-01T00:00:00", "2026-03-01T00:00:00.5"], "datetime64[ms]"),
        a=np.array([1.5, np.nan]),
        word=np.array(["än", "aus"]),
        on=np.array([True, False]),
        label=np.array(["x", "nan"]),
    )
    assert rows(load(path)) == [
        ("3", 1_772_323_200_000, 1.5, "än", 1.0, "x"),
        ("3", 1_772_323_200_500, None, "aus", 0.0, None),
    ]
    np.savez(path, stream=np.array(["s"]), time_ms=np.array([1]), x=np.zeros((1, 2)), features=np.array(["a", "a"]))
    with pytest.raises(ConfigurationError, match="both called 'a'"):
        load(path)
    np.savez(path, stream=np.array(["s"]), time_ms=np.array([1]), x=np.zeros((2, 2)))
    with pytest.raises(ConfigurationError, match=r"array 'x0' is \[2\], but 'stream' has 1 rows"):
        load(path)


def test_bytes_are_text(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    columns: dict[str, Any] = {"stream": np.array([b"s"]), "time_ms": np.array([1]), "label": np.array([b"x"])}
    np.savez(path, **columns, word=np.array(["än".encode()]))
    assert rows(load(path)) == [("s", 1, "än", "x")]
    np.savez(path, **columns, x=np.ones((1, 1)), features=np.array(["ä".encode()]))
    assert load(path).features == ("ä",)
    np.savez(path, **columns, x=np.ones((1, 1)), features=np.array("v"))
    assert load(path).features == ("v",)
    np.savez(path, **columns, v=np.array([1]), word=np.array([b"\xff"]))
    with pytest.raises(ConfigurationError, match="row 1, column 'word': these bytes are no text in UTF-8"):
        load(path)
    assert load(path, features=["v"]).features == ("v",)
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "d.parquet"
    binary = pa.array(["än".encode(), None], pa.binary())
    parquet.write_table(pa.table({"stream": binary.take(pa.array([0, 0])), "time": [1, 2], "word": binary}), path)
    assert rows(load(path)) == [("än", 1, "än", None), ("än", 2, None, None)]


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"x": np.ones((1, 1), complex)}, "array 'x0' is of type complex128"),
        ({"v": np.array([1], "timedelta64[s]")}, "array 'v' is of type timedelta64"),
        ({"v": np.array([(1,)], [("a", "i4")])}, "array 'v' is of type"),
        ({"stream": np.array("s"), "v": np.array([1])}, "array 'stream' is []"),
        ({"v": np.array([{}])}, "not an NPZ file of plain arrays"),
    ],
)
def test_arrays_that_are_no_columns_are_refused(tmp_path: Path, columns: dict[str, Any], sentence: str) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, **{"stream": np.array(["s"]), "time_ms": np.array([1]), **columns})
    with pytest.raises(ConfigurationError, match=re.escape(sentence)):
        load(path)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "ts", "npz", "parquet"])
@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_read_or_refused_in_a_sentence(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    path = tmp_path / f"d.{suffix}"
    columns: dict[str, Any] = {"stream": ["s", "s"], "time": [1, 2], "v": [1.5, 2.5], "w": ["a", "b"]}
    if suffix == "csv":
        path.write_text("stream,time,v,w\ns,1,1.5,a\ns,2,2.5,b\n")
    elif suffix == "jsonl":
        path.write_text(json_lines(columns))
    elif suffix == "ts":
        path.write_text(TS.format(stamps="false", data="1,?,3:4,5,6:-1"))
    elif suffix == "npz":
        np.savez_compressed(path, **{name: np.array(cells) for name, cells in columns.items()})
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").table(columns), path)
    raw = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw)))]
    for _ in range(data.draw(st.integers(1, 3)) if raw else 0):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    with contextlib.suppress(ConfigurationError):
        load(path)


def test_what_is_no_table_of_events_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.ones(3))
    (tmp_path / "d.npy").rename(tmp_path / "d.npz")
    (tmp_path / "d.jsonl").write_text('{"stream":"a","time":1,"v":' + "[" * 5000 + "1" + "]" * 5000 + "}")
    for name, sentence in (("d.npz", "holds one array only"), ("d.jsonl", "line 1: nested too deeply")):
        with pytest.raises(ConfigurationError, match=sentence):
            load(tmp_path / name)


TS = """# a comment
@problemName mine
@timeStamps {stamps}
@missing true
@univariate false
@classLabel true -1 1
@data
{data}
"""


def test_ts_headers_say_what_the_cases_are(tmp_path: Path) -> None:
    path = tmp_path / "d.ts"
    path.write_text(TS.format(stamps="false", data="1,?,3:4,5,6:-1\n7:8:1"))
    data = load(path)
    assert data.classes == ("-1", "1")
    assert rows(data)[:3] == [
        ("case-00000", 0, 1, 4, "-1"),
        ("case-00000", 1, None, 5, "-1"),
        ("case-00000", 2, 3, 6, "-1"),
    ]
    stamped = "(2026-03-01 00:00:00,1.5),(2026-03-01 00:01:00,?):(2026-03-01 00:00:00,3),(2026-03-01 00:01:00,4):1"
    path.write_text(TS.format(stamps="true", data=stamped))
    assert [row[1:] for row in rows(load(path))] == [
        (1_772_323_200_000, 1.5, 3, "1"),
        (1_772_323_260_000, None, 4, "1"),
    ]
    path.write_text("@classLabel false\n@data\n1,2:3,4\n")
    assert load(path).labels is None
    assert load(path).features == ("x0", "x1")
    path.write_text("@targetLabel true\n@data\n1,2:3,4:2.5\n")
    assert load(path, labels="values").labels[0].tolist() == [2.5, 2.5]  # type: ignore[index]
    for text, sentence in [
        ("1,2:3:a\n", "line 1: the dimensions have different lengths (2, 1)"),
        ("1,2:3,4:a\n\n1:a\n", "line 3: 1 dimensions, the first case has 2"),
        ("1,2:a\n1,q:a\n", "line 2, column 'x0': 'q' is not a number"),
    ]:
        path.write_text(text)
        with pytest.raises(ConfigurationError, match=re.escape(sentence)):
            load(path)
