"""Where features are, as settings say it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tables import category, contract

from streamer.errors import ConfigurationError
from streamer.service.prepare import fingerprint, prepare
from streamer.settings import describe, load_settings
from streamer.settings.fields import FieldConstant, FieldHeader, FieldPath, parse_field, parse_place


@pytest.mark.parametrize(
    ("written", "place"),
    [
        ("cpu", FieldPath(("cpu",))),
        ("readings.cpu", FieldPath(("readings", "cpu"))),
        ("tags[0]", FieldPath(("tags", 0))),
        ("a[0][12].b", FieldPath(("a", 0, 12, "b"))),
        ('["a.b"].c["d e"]', FieldPath(("a.b", "c", "d e"))),
        ("größe-1", FieldPath(("größe-1",))),
        ("header:unit", FieldHeader("unit")),
        ({"constant": 3.5}, FieldConstant(3.5)),
        ({"constant": "run"}, FieldConstant("run")),
    ],
)
def test_a_place_is_read(written: Any, place: Any) -> None:
    assert parse_place(written) == place


@pytest.mark.parametrize(
    "written",
    ["", ".", "a.", ".a", "a..b", "a[", "a[x]", "a[-1]", "[0]", "a b", 'a["b', "a]b", "a[99999]", "header:", ".".join("a" * 33),
     {"constant": []}, {"const": 1}, {}, 5],
)  # fmt: skip
def test_what_is_no_place_is_told(written: Any) -> None:
    with pytest.raises(ValueError, match=r"write|begin|more than"):
        parse_place(written)


FILE = """
[kafka]
bootstrap = "b:1"
group = "g"
[input]
topic = "in"
format = "json-named"
{time}
[input.fields]
{fields}
[output]
topic = "out"
[model.m]
path = "m.onnx"
"""


def settings(folder: Path, fields: str, time: str = "") -> Any:
    path = folder / "streamer.toml"
    path.write_text(FILE.format(fields=fields, time=time), encoding="utf-8")
    return load_settings(path)[0]


def test_the_file_says_where_features_are(tmp_path: Path) -> None:
    found = settings(
        tmp_path, 'cpu = "readings.cpu"\n"a b" = "header:x"\ngain = {constant = 2}', 'time = "meta.at"'
    ).input
    assert found.places == {"cpu": FieldPath(("readings", "cpu")), "a b": FieldHeader("x"), "gain": FieldConstant(2)}
    assert found.time_place == FieldPath(("meta", "at"))


@pytest.mark.parametrize(
    ("fields", "time", "told"),
    [
        ('cpu = "a..b"', "", r"input.fields: 'cpu' 'a..b' is no path"),
        ("cpu = 5", "", r"input.fields: 'cpu' is '5': write a path"),
        ("cpu = {constant = []}", "", r"input.fields: 'cpu' is a table, but not"),
        ("", 'time = "a["', r"input.time: 'a\[' is no path"),
    ],
)
def test_what_is_no_place_is_named_with_its_key(tmp_path: Path, fields: str, time: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        settings(tmp_path, fields, time)


def test_what_stands_for_a_missing_value_may_come_as_any_integer() -> None:
    with pytest.raises(ValueError, match="nor a finite number"):
        parse_field({"missing": 10**400})


def test_where_features_are_decides_how_a_replayed_record_is_judged(tmp_path: Path) -> None:
    def decides(fields: str, time: str = "") -> str:
        return fingerprint(settings(tmp_path, fields, time), [])

    assert decides('cpu = "a.b"') != decides("") != decides("", 'time = "at"')
    assert decides('cpu = "a.b"') != decides('cpu = "a.c"')
    assert decides('cpu = "a"\nmem = "b"') == decides('mem = "b"\ncpu = "a"')
    assert "{}" not in decides(""), "old services go on: nothing of theirs has changed"


def test_a_place_may_come_from_the_command_line(tmp_path: Path) -> None:
    settings(tmp_path, "")
    found, origins = load_settings(tmp_path / "streamer.toml", ["input.fields.cpu=readings.cpu"])
    assert found.input.places == {"cpu": FieldPath(("readings", "cpu"))}
    assert origins["input.fields.cpu"] == "flag --set"
    assert ("input.fields.cpu", "readings.cpu", "flag --set") in describe(found, origins)


def test_what_cannot_be_decoded_is_refused_before_any_broker_is_asked(tmp_path: Path) -> None:
    gap = SimpleNamespace(contract=contract({"name": "gap", "kind": "since_last"}, dtype="int64"))
    with pytest.raises(ConfigurationError, match=r"feature 'gap' is a time in seconds, which int64"):
        asyncio.run(prepare(settings(tmp_path, ""), [("m", gap, None)]))  # type: ignore[list-item]
    one, two = (SimpleNamespace(contract=contract(category("c", unknown=at))) for at in (0, 1))
    with pytest.raises(ConfigurationError, match="mean different things"):
        asyncio.run(prepare(settings(tmp_path, ""), [("a", one, None), ("b", two, None)]))  # type: ignore[list-item]


def test_a_field_may_say_what_stands_for_a_missing_value(tmp_path: Path) -> None:
    written = (
        'cpu = {path = "readings.cpu", missing = "last"}\nmem = {missing = "reject"}\nload = {missing = 2}\ndisk = "d"'
    )
    found = settings(tmp_path, written).input
    assert found.places == {"cpu": FieldPath(("readings", "cpu")), "disk": FieldPath(("d",))}
    assert found.missing_rules == {"cpu": "last", "mem": "reject", "load": 2.0}
    assert fingerprint(settings(tmp_path, written), []) != fingerprint(settings(tmp_path, 'cpu = "readings.cpu"'), [])
    (tmp_path / "streamer.toml").unlink()
    for wrong in (
        '{missing = "mean"}',
        "{missing = true}",
        "{missing = nan}",
        "{missing = -inf}",
        '{missing = "1e999"}',
        '{path = "a", gone = 1}',
        "{path = 3}",
    ):
        with pytest.raises(ConfigurationError, match=r"input.fields: 'cpu' (is|has)"):
            settings(tmp_path, f"cpu = {wrong}")
