"""The README says what the code says: its settings load, its commands exist, its requests are requests, its library runs."""

from __future__ import annotations

import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import typer

import export.__main__
from streamer.cli import app
from streamer.generate.request import parse_request
from streamer.library import Runner
from streamer.modelfile.emit import Emit
from streamer.settings import GenerateSection, Settings, load_settings
from streamer.tools.demo import MODEL

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Fences are read in pairs: the end of one is no beginning of another."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S)
    return [text for written, text in fenced if written == language]


def commands(program: str) -> Iterator[list[str]]:
    for line in "".join(blocks("")).splitlines():
        if line.startswith(f"{program} "):
            yield shlex.split(line, comments=True)[len(program.split()) :]


def served(tmp_path: Path, text: str) -> Settings:
    (tmp_path / "settings.toml").write_text(text)
    return load_settings(tmp_path / "settings.toml", (), {})[0]


def test_the_settings_load_one_by_one_and_together(tmp_path: Path) -> None:
    plain, fields, schemas, data, answers, windows, emit, utterances, pairs, secure = blocks("toml")[1:]
    topics = plain[plain.index("[input]") :]
    first = served(tmp_path, plain)
    assert (first.input.format, first.input.key, first.input.time_unit) == ("json", "utf8", "ms"), "as its comments say"
    assert set(served(tmp_path, plain + fields).input.places) == {"cpu", "unit", "site"}
    typed = served(tmp_path, plain[: plain.index("[input]")] + schemas + plain[plain.index("[output]") :])
    assert (typed.input.format, typed.registry.url) == ("avro", "https://registry.example.com")
    assert tomllib.loads(data)["data"]["fields"] == tomllib.loads(schemas)["input"]["fields"], "the same table"
    chosen = served(tmp_path, plain + answers).output
    assert (chosen.fields["risk"], len(chosen.passed)) == ("y", 2)
    assert served(tmp_path, plain + windows).model["verdict"].window is not None
    assert msgspec.convert(tomllib.loads(emit)["emit"], Emit).rule == "ctc"
    rule = served(tmp_path, plain + utterances).model["digits"].utterance
    assert rule is not None
    assert rule.gap_ms == 800
    pair = served(tmp_path, plain + pairs)
    assert (pair.model["correction"].window.kind, pair.decode.max_rows) == ("record", 256)
    assert served(tmp_path, secure + topics).kafka.sasl_username == "anomaly"


def test_what_is_commented_out_in_the_settings_is_a_choice(tmp_path: Path) -> None:
    plain = blocks("toml")[1]
    chosen = served(tmp_path, re.sub(r"^# (?=\w+ = )", "", plain, flags=re.M)).input
    assert (chosen.format, chosen.key, chosen.time_unit) == ("json-named", "int64", "s")


def test_every_command_is_one_with_its_options() -> None:
    root: Any = typer.main.get_command(app)
    asked = list(commands("streamer"))
    assert len(asked) >= 8
    for words in asked:
        command, depth = root, 0
        while hasattr(command, "commands"):
            assert words[depth] in command.commands, words
            command, depth = command.commands[words[depth]], depth + 1
        known = {name for option in command.params for name in option.opts}
        assert {word for word in words if re.match(r"--?[a-z]", word)} <= known, words
    assert {words[0] for words in commands("python -m export")} <= set(export.__main__.COMMANDS)


def test_the_folders_and_files_it_links_to_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert len(links) > 8
    for link in links:
        path, _, anchor = link.partition("#")
        target = ROOT / path if path else ROOT / "README.md"
        assert target.exists(), link
        titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.M) if anchor else []
        slugs = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
        assert not anchor or anchor in slugs, link


def test_the_request_is_one() -> None:
    (request,) = blocks("json")
    assert parse_request(request.encode(), GenerateSection()).n == 200


def test_the_library_runs_as_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = blocks("python")
    shutil.copy(MODEL, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    batches = [(["a", "b", "a"], x), (["b"], x[:1])]
    exec(compile(code, "README.md", "exec"), {"batches": batches})
    expected = [(answered.keys, answered.y) for answered in Runner.load(MODEL).run(batches)]
    assert capsys.readouterr().out == "".join(f"{keys} {y}\n" for keys, y in expected)
    assert [len(y) for _, y in expected] == [3, 1]


def test_the_training_is_a_configuration(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from export.config import read_config

    (train,) = (block for block in blocks("toml") if "task =" in block)
    (tmp_path / "train.toml").write_text(train)
    config = read_config(tmp_path / "train.toml")
    assert (config.name, config.model.kind) == ("pumps", "gru")
    assert tomllib.loads(train)["data"] == {"path": "pumps.csv"}
    # what trains for records with a schema
    given = tomllib.loads(next(block for block in blocks("toml") if "since_last" in block))["data"]
    section = msgspec.convert(given, type(config.data))
    assert section.problem() is None
    assert (section.places[1], section.lags) == ({"cpu": "last"}, {"cpu": [1, 2]})
    # the other tasks that its comment names
    others = re.findall(r"\w+", train.split("task =", 1)[1].split("#", 1)[1].split("\n", 1)[0])
    for task in ("regress", "forecast", "next_category", "next_set"):
        assert task in others
        (tmp_path / "train.toml").write_text(train.replace('"classify"', f'"{task}"'))
        assert read_config(tmp_path / "train.toml").task == task
