"""What training learns from data before it learns: vocabularies, what stands for missing, which label is normal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from decoding import records
from tables import contract

pytest.importorskip("torch")

from export.config import TrainConfig, read_config
from export.data import Split
from export.prepare import UNKNOWN, read_split
from streamer.errors import ConfigurationError
from streamer.modelfile.feature import Feature
from streamer.modelfile.past import Past
from streamer.records.decode import Codec

BASE = """
name = "m"
task = "{task}"
[data]
path = "{path}"
{data}
[model]
hidden = 4
{model}
{more}
"""


def config(folder: Path, **values: str) -> TrainConfig:
    path = folder / "train.toml"
    defaults = {"task": "classify", "path": "train.csv", "data": "", "model": "", "more": ""}
    path.write_text(BASE.format(**{**defaults, **values}))
    return read_config(path)


def write(path: Path, rows: list[str], header: str = "stream,time,v,word,label") -> None:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def three_files(folder: Path) -> None:
    write(folder / "train.csv", ["a,0,1,x,p", "a,1000,,y,q", "a,4000,3,x,p", "b,0,,y,q", "b,1,4,z,p"])
    write(folder / "held.csv", ["c,0,,z,q", "c,1,10,new,p"])
    write(folder / "test.csv", ["d,0,7,,q", "d,1,,x,p"])


FILES = 'validation_path = "held.csv"\ntest_path = "test.csv"\n'


def values(split: Split) -> list[list[list[float]]]:
    return [np.concatenate(part.x).tolist() for part in (split.train, split.validation, split.test)]


def test_words_and_means_come_from_training_alone(tmp_path: Path) -> None:
    three_files(tmp_path)
    notes: list[str] = []
    split = read_split(config(tmp_path, data=FILES), tmp_path, notes)
    mean = float(np.float32(8 / 3))
    number, word = split.train.tables
    assert number == Feature("v", missing=mean)
    assert word == Feature("word", "category", (UNKNOWN, "x", "y", "z"), unknown=0)  # the most common first
    assert split.test.tables == split.validation.tables == split.train.tables
    train, held, judged = values(split)
    assert train == pytest.approx(np.array([[1, 1], [mean, 2], [3, 1], [mean, 2], [4, 3]]))
    assert held == pytest.approx(np.array([[mean, 3], [10, 0]]))
    assert judged == pytest.approx(np.array([[7, 0], [mean, 1]]))
    assert split.test.classes == ("p", "q")
    assert "column 'word': 3 words are known, 0.0% of those judged are not" in notes
    assert "column 'v': 2.66667 stands for 4 missing cells (data.missing)" in notes


@pytest.mark.parametrize(
    ("rule", "filled", "declared"),
    [
        ('"last"', [1, 1, 3, 8 / 3, 4], Feature("v", missing="last", fallback=float(np.float32(9 / 4)))),
        ("-1", [1, -1, 3, -1, 4], Feature("v", missing=-1.0)),
        ("{v = -2.5}", [1, -2.5, 3, -2.5, 4], Feature("v", missing=-2.5)),
    ],
)
def test_what_stands_for_missing_numbers_is_a_choice_and_declared(
    tmp_path: Path, rule: str, filled: list[float], declared: Feature
) -> None:
    three_files(tmp_path)
    split = read_split(config(tmp_path, data=FILES + f"missing = {rule}"), tmp_path)
    assert split.train.tables[0] == declared
    if declared.missing == "last":  # the mean is of what the model sees: the last values are among it
        filled = [1, 1, 3, 9 / 4, 4]
    assert np.concatenate(split.train.x)[:, 0].tolist() == pytest.approx(filled)
    with pytest.raises(ConfigurationError, match=r"train.csv, line 3, column 'v': no value"):
        read_split(config(tmp_path, data=FILES + 'missing = "reject"'), tmp_path)


def test_masks_and_time_gaps_are_features_of_their_own(tmp_path: Path) -> None:
    three_files(tmp_path)
    split = read_split(config(tmp_path, data=FILES + 'present = ["v"]\nsince_last = true'), tmp_path)
    assert split.train.features == ("v", "word", "v present", "since_last")
    assert split.train.tables[2:] == (
        Feature("v present", "present", source="v"),
        Feature("since_last", "since_last", unit="s"),
    )
    assert np.concatenate(split.train.x)[:, 2:].tolist() == pytest.approx(
        np.array([[1, 0], [0, 1], [1, 3], [0, 0], [1, 0.001]])
    )
    with pytest.raises(ConfigurationError, match=r"data\.present: there is no feature 'w'"):
        read_split(config(tmp_path, data=FILES + 'present = ["w"]'), tmp_path)


def test_of_the_same_records_training_and_service_make_the_same(tmp_path: Path) -> None:
    cells = ["run", "NA", None, "", "idle", None, "nan"]
    events = [{"stream": "s", "time": at, "w": cell, "label": "pq"[at % 2]} for at, cell in enumerate(cells)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, events)))
    data = 'test_path = "d.jsonl"\nvalidation_path = "d.jsonl"\npresent = ["w"]\nmissing = {w = "last"}'
    part = read_split(config(tmp_path, path="d.jsonl", data=data), tmp_path).train
    features = [msgspec.json.decode(msgspec.json.encode(table)) for table in part.tables]
    codec = Codec(contract(*features), "json-named")
    batch = codec.decode(records([json.dumps(event).encode() for event in events]))
    past = Past.of(part.tables, "float32")
    assert past is not None
    assert part.x[0].tolist() == past.whole(batch.x, part.times_ms[0]).tolist()
    assert part.x[0][:, 1].tolist() == [1, 1, 0, 1, 1, 0, 1]


@pytest.mark.parametrize(
    ("column", "data"),
    [("v present", 'present = ["v"]'), ("since_last", "since_last = true"), ("v lag 1", "lags = {v = [1]}")],
)
def test_a_column_called_as_one_that_is_made_is_refused_before_training(tmp_path: Path, column: str, data: str) -> None:
    write(
        tmp_path / "train.csv", [f"{'abcd'[t % 4]},{t},{t},{t},p" for t in range(40)], f"stream,time,v,{column},label"
    )
    with pytest.raises(ConfigurationError, match=rf"data\.present.* are both called '{column}'"):
        read_split(config(tmp_path, data=data), tmp_path)


@pytest.mark.parametrize(
    "data",
    ['categories = ["wrod"]', 'missing = {wrod = "last"}', "fields = {wrod = {missing = 1.0}}", "lags = {wrod = [1]}"],
)
def test_a_column_that_is_not_there_is_refused_wherever_it_is_named(tmp_path: Path, data: str) -> None:
    three_files(tmp_path)
    with pytest.raises(ConfigurationError, match=r"data\.\w+: there is no feature 'wrod', there are v, word"):
        read_split(config(tmp_path, data=FILES + data), tmp_path)


def test_lags_are_features_of_their_own(tmp_path: Path) -> None:
    three_files(tmp_path)
    split = read_split(config(tmp_path, data=FILES + "lags = {v = [1, 2], word = [1]}"), tmp_path)
    mean = float(np.float32(8 / 3))
    assert split.train.tables[2:] == (
        Feature("v lag 1", source="v", lag=1, missing=mean, fallback=mean),
        Feature("v lag 2", source="v", lag=2, missing=mean, fallback=mean),
        Feature("word lag 1", "category", (UNKNOWN, "x", "y", "z"), unknown=0, source="word", lag=1),
    )
    assert np.concatenate(split.train.x)[:, 2:] == pytest.approx(
        np.array([[mean, mean, 0], [1, mean, 1], [mean, 1, 2], [mean, mean, 0], [mean, mean, 2]])
    )
    for wrong, told in (("{w = [1]}", "there is no feature 'w'"), ("{v = [0]}", "each 1 to 1000"), ("{v = []}", "'v'")):
        with pytest.raises(ConfigurationError, match=rf"data\.lags.*{told}"):
            read_split(config(tmp_path, data=FILES + f"lags = {wrong}"), tmp_path)


def test_in_a_window_the_past_begins_with_its_first_event(tmp_path: Path) -> None:
    """As the service has it, which knows nothing of a stream but the window."""
    rows = [f"{stream},{second}000,{second},x,{'pq'[second % 2]}" for stream in "abcdef" for second in (1, 2, 4, 8)]
    write(tmp_path / "train.csv", rows)
    more = '[window]\nkind = "count"\ncount = 2'
    made = config(
        tmp_path,
        data="since_last = true\nlags = {v = [1]}\nvalidation = 0.4\ntest = 0.0",
        model="directions = 2",
        more=more,
    )
    part = read_split(made, tmp_path).train
    fallback = part.tables[3].fallback
    assert {tuple(x[:, 2].tolist()) for x in part.x} == {(0.0, 1.0), (0.0, 4.0)}
    assert {tuple(x[:, 3].tolist()) for x in part.x} == {(fallback, 1.0), (fallback, 4.0)}


@pytest.mark.parametrize("suffix", ["csv", "parquet", "npz", "jsonl"])
def test_columns_are_features_by_the_mapping_of_the_service(tmp_path: Path, suffix: str) -> None:
    cells: dict[str, Any] = {
        "stream": ["a", "a", "b", "c"], "time": [0, 1, 2, 3], "readings.v[0]": [1.5, 2.5, 3.5, 4.5], "w": ["x", "y", "x", "y"],
        "label": ["p", "q", "p", "q"],
    }  # fmt: skip
    path = tmp_path / f"train.{suffix}"
    if suffix == "csv":
        write(path, [",".join(map(str, row)) for row in zip(*cells.values(), strict=True)], ",".join(cells))
    elif suffix == "npz":
        np.savez(path, **{name: np.array(column) for name, column in cells.items()})
    elif suffix == "jsonl":
        rows = [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
        path.write_text("\n".join(json.dumps({"readings": {"v": [row.pop("readings.v[0]")]}, **row}) for row in rows))
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").table(cells), path)
    fields = '[data.fields]\nv = "readings.v[0]"\nmode = {path = "w", missing = "reject"}\ngain = {constant = 2.0}\n'
    data = "validation = 0.3\ntest = 0.0\n" + fields
    split = read_split(config(tmp_path, path=f"train.{suffix}", data=data), tmp_path)
    assert split.train.features == ("v", "mode", "gain")
    assert sorted(np.concatenate([*split.train.x, *split.validation.x])[:, [0, 2]].tolist()) == [
        [1.5, 2.0], [2.5, 2.0], [3.5, 2.0], [4.5, 2.0],
    ]  # fmt: skip
    again = read_split(
        config(tmp_path, path=f"train.{suffix}", data=f'test_path = "train.{suffix}"\n' + data), tmp_path
    )
    assert sorted(np.concatenate(again.test.x)[:, 0].tolist()) == [1.5, 2.5, 3.5, 4.5], (
        "a file of its own is read alike"
    )
    with pytest.raises(ConfigurationError, match=r"no column 'readings.u'"):
        read_split(
            config(tmp_path, path=f"train.{suffix}", data='validation = 0.3\n[data.fields]\nv = "readings.u"'), tmp_path
        )
    with pytest.raises(ConfigurationError, match=r"data.fields: 'v' has a missing"):
        config(tmp_path, data='[data.fields]\nv = {missing = "mean"}')


def test_rare_words_are_unknown_and_numbers_may_be_words(tmp_path: Path) -> None:
    three_files(tmp_path)
    rare = read_split(config(tmp_path, data=FILES + "min_count = 2"), tmp_path)
    assert rare.train.tables[1].vocabulary == (UNKNOWN, "x", "y")
    few = read_split(config(tmp_path, data=FILES, model="vocabulary = 1"), tmp_path)
    assert few.train.tables[1].vocabulary == (UNKNOWN, "x")
    both = read_split(config(tmp_path, data=FILES + 'categories = ["v"]'), tmp_path)
    assert both.train.tables[0].vocabulary == (UNKNOWN, "1", "3", "4")
    assert values(both)[2] == [[0, 0], [0, 1]]  # 7 is not known, and nothing is not either
    write(tmp_path / "test.csv", ["d,0,seven,x,q", "d,1,eight,x,p"])
    with pytest.raises(ConfigurationError, match=r"test.csv: column 'v' holds words, but train.csv has numbers there"):
        read_split(config(tmp_path, data=FILES), tmp_path)
    write(tmp_path / "test.csv", ["d,0,x,q"], "stream,time,word,label")
    with pytest.raises(ConfigurationError, match=r"test.csv: no column 'v'"):
        read_split(config(tmp_path, data=FILES), tmp_path)


@pytest.mark.parametrize(
    ("labels", "data", "normal"),
    [
        (["ok", "bearing", "coolant"], 'normal = "ok"', "ok"),
        (["1", "0", ""], "", "0"),
        (["normal", "odd", "normal"], "", "normal"),
        (["", "", ""], "", None),
        (["good", "bad", "bad"], "", "say data.normal = 'bad'"),
        (["good", "bad", "bad"], 'normal = "fine"', "data.normal is 'fine', but the labels are bad, good"),
    ],
)
def test_the_normal_label_is_named_or_known(tmp_path: Path, labels: list[str], data: str, normal: str | None) -> None:
    write(
        tmp_path / "train.csv",
        [f"s{i},{t},{t},{y}" for i in range(4) for t, y in enumerate(labels)],
        "stream,time,v,label",
    )
    made = config(tmp_path, task="forecast", data=data)
    if normal is not None and " " in normal:
        with pytest.raises(ConfigurationError, match=normal):
            read_split(made, tmp_path)
        return
    part = read_split(made, tmp_path).test
    found = None if part.normal is None or part.classes is None else part.classes[part.normal]
    assert found == normal


@pytest.mark.parametrize(
    ("more", "data", "sentence"),
    [
        ('[window]\nkind = "count"', "", "count is 0, must be at least 1"),
        ('[window]\nkind = "count"\ncount = 3\nsize = 2', "", "window.size is no setting of a window"),
        ('[window]\nkind = "count"\ncount = "many"', "", r"\[window\]"),
        ("", 'decimal = ";"', "data.decimal must be"),
        ("", 'time_unit = "min"', "data.time_unit must be s or ms or us or ns"),
        ("", 'missing = "mode"', "data.missing must be"),
        ("", "missing = nan", "data.missing is nan"),
        ("", "missing = {a = -inf}", "data.missing.a is -inf"),
        ("", f"fields = {{a = {{missing = {'9' * 400}}}}}", "more than 64 bits"),
        ("", f"min_count = {'9' * 5_000}", "limit"),
        ("", f"min_count = {'[' * 9_000}", "nested too deep"),
        ("", "min_count = 0", "data.min_count must be at least 1"),
        ("", "missing = nan", "data.missing is nan, which is no finite number"),
        ("", "missing = {v = -inf}", "data.missing.v is -inf, which is no finite number"),
        ("", "missing = 1e300", "data.missing is 1e[+]300, which is no finite number that 32 bits hold"),
        ("", "lags = {v = [1]}\nfields = {v = {constant = inf}}", "data.fields.v.constant is inf"),
        ("[training]\nclass_weights = {p = nan}", "", "training.class_weights.p is nan"),
        ("", 'features = ["v", "v"]', "data.features has 'v' twice"),
        ("", 'present = ["v", "w", "v"]', "data.present has 'v' twice"),
        ("", 'categories = ["v", "v"]', "data.categories has 'v' twice"),
        ("", 'classes = ["1", "2", 1]', "data.classes has '1' twice"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(tmp_path: Path, more: str, data: str, sentence: str) -> None:
    values: dict[str, Any] = {"more": more, "data": data, "model": "directions = 2"}
    with pytest.raises(ConfigurationError, match=sentence):
        config(tmp_path, **values)
    with pytest.raises(ConfigurationError, match="this one answers every event at once"):
        config(tmp_path, more='[window]\nkind = "end"')


def test_windows_are_cut_for_every_way_to_split(tmp_path: Path) -> None:
    rows = [f"s{i},{t * 1000},{t},x,{'pq'[t % 2]}" for i in range(8) for t in range(100)]
    write(tmp_path / "train.csv", rows)
    window = '[window]\nkind = "tumbling"\nsize_ms = 5000'
    for data in ("", 'split = "time"', 'validation_path = "train.csv"\ntest_path = "train.csv"'):
        notes: list[str] = []
        split = read_split(config(tmp_path, data=data, more=window, model="directions = 2"), tmp_path, notes)
        assert {len(x) for part in (split.train, split.validation, split.test) for x in part.x} == {5}
        assert any(note.startswith("[window] tumbling:") for note in notes)
