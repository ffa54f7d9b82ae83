"""Records as companies have them, with gaps, missing cells and lags, on a real broker and through deaths of the process: every
answer is bit-equal to the same model file over the whole log, offline."""

from __future__ import annotations

import asyncio
import json
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_models import lstm, lstm_fields, save
from processes import flags
from processes import running as process
from serving import Row, make_settings, produce, read_all
from tables import WORDS, category

from streamer.errors import ConfigurationError
from streamer.library import Runner
from streamer.service.check import Report, examine
from streamer.service.prepare import load_models, prepare

BEGIN_MS = 1_760_000_000_000
TABLES: list[Any] = [
    "cpu",
    {"name": "gap", "kind": "since_last"},
    {"name": "cpu 2 before", "source": "cpu", "lag": 2, "fallback": 0.25},
    {"name": "temperature", "missing": "last", "fallback": 21.5},
    {"name": "temperature there", "kind": "present", "source": "temperature"},
    category("mode", unknown=0, missing="last"),
    category("mode before", source="mode", unknown=0, missing="last", lag=1),
]


def model_file(folder: Path) -> Path:
    fields = lstm_fields(len(TABLES))
    fields["input"] = {**fields["input"], "features": TABLES}
    return save(lstm(len(TABLES)), folder / "m.onnx", fields)


class Made:
    """Events of a few streams: the records of a company, and the cells of the library."""

    def __init__(self, count: int) -> None:
        rng, now = random.Random(5), BEGIN_MS
        self.rows: list[Row] = []
        self.keys: list[str] = []
        self.x: list[list[float]] = []
        self.times: list[int] = []
        for _ in range(count):
            now += rng.choice([0, 7, 1_250, 90_000])
            key, time = rng.choice("abc"), now - rng.choice([0, 0, 0, 400])
            cpu, temperature = rng.random(), rng.choice([None, rng.uniform(10, 30)])
            mode = rng.choice([None, "run", "idle", "walk"])
            value: dict[str, Any] = {"readings": {"cpu": cpu, "t": temperature}, "mode": mode, "ts": time}
            place = float("nan") if mode is None else float(WORDS.index(mode) if mode in WORDS else 0)
            warm = float("nan") if temperature is None else temperature
            self.rows.append((0, key.encode(), json.dumps(value).encode(), []))
            self.keys.append(key)
            self.times.append(time)
            self.x.append([cpu, 0, cpu, warm, temperature is not None, place, place])

    def offline(self, path: Path) -> dict[int, list[float]]:
        """One event after the other."""
        runner = Runner.load(path, past=True)
        return {
            at: runner.feed([key], [x], [time]).y[0].tolist()
            for at, (key, x, time) in enumerate(zip(self.keys, self.x, self.times, strict=True))
        }


async def test_killed_and_restarted_it_answers_as_offline(kafka, topic_name, create_topics, tmp_path: Path) -> None:
    topic, path, made = topic_name("in"), model_file(tmp_path), Made(600)
    await create_topics(kafka, {topic: 1})
    config = tmp_path / "streamer.toml"
    config.write_text(
        '[input.fields]\ncpu = "readings.cpu"\ntemperature = {path = "readings.t", missing = "last"}\n'
        "[kafka]\nsession_timeout_ms = 6000\nheartbeat_interval_ms = 500\n"
    )
    chosen = {
        "kafka.bootstrap": kafka, "kafka.group": topic_name("group"), "input.topic": topic, "output.topic": f"{topic}.out",
        "input.format": "json-named", "model.m.path": path, "delivery.checkpoint_interval_ms": 200, "http.port": 0,
        "state.max_bytes": 16_000_000,
    }  # fmt: skip
    given = ["--config", str(config), *flags(chosen)]
    for sent in (150, 300, 450, 600):
        await produce(kafka, topic, made.rows[sent - 150 : sent])
        with process(tmp_path, *given) as running:
            await asyncio.to_thread(running.wait_for, bool, "the service to begin")
            await read_all(kafka, f"{topic}.out", at_least=sent - 75, alive=running._ended)
            assert await asyncio.to_thread(running.stop, signal.SIGKILL) == -signal.SIGKILL
    with process(tmp_path, *given) as running:
        found = await read_all(kafka, f"{topic}.out", at_least=600, alive=running._ended)
    got = {read.source[1]: read.document["y"] for read in found}
    assert len(got) == len(found) == 600
    for at, y in made.offline(path).items():
        assert np.array(got[at], np.float32).tobytes() == np.array(y, np.float32).tobytes(), at


async def test_the_mapping_is_told_and_tried(kafka, topic_name, create_topics, tmp_path: Path) -> None:
    topic, path, made = topic_name("in"), model_file(tmp_path), Made(40)
    await create_topics(kafka, {topic: 1})
    await produce(kafka, topic, [*made.rows, (0, b"a", b'{"readings":{"t":1},"mode":"run"}', []), (0, b"a", b"{", [])])
    section = {
        "format": "json-named", "missing": 9.0,
        "fields": {"cpu": {"path": "readings.cpu", "missing": "reject"}, "temperature": {"path": "readings.t"}},
    }  # fmt: skip
    settings = make_settings(kafka, topic, topic_name("group"), input=section, model={"chain": {"path": str(path)}})
    report = Report()
    await examine(settings, report, sample=100)
    assert report.problems == []
    told = {each["feature"]: each for each in report.as_dict()["features"]}
    assert list(told) == [table if isinstance(table, str) else table["name"] for table in TABLES]
    assert told["cpu"] == {
        "feature": "cpu", "kind": "number", "from": "readings.cpu", "missing": "rejected", "found_in": 40, "missing_in": 1,
    }  # fmt: skip
    warm = sum(each[4] for each in made.x) + 1
    assert told["temperature there"]["found_in"] == told["temperature"]["found_in"] == warm
    lines = list(report.lines())
    at = lines.index("an event of json-named: time from ts (ms), else the record's")
    assert lines[at + 1 : at + 5] == [
        "  cpu: number from readings.cpu, found in 40 and missing in 1: rejected",
        "  gap: seconds since the stream's newest event before, 0 at first",
        "  cpu 2 before: number 2 events ago from readings.cpu, found in 40 and missing in 1: rejected",
        f"  temperature: number from readings.t, found in {warm} and missing in {41 - warm}: the stream's last value, 21.5 "
        "before the first",
    ]
    assert lines[at + 6].endswith("the stream's last value, 0 before the first")
    assert report.sample["answers"] == 40
    assert {reason: found["count"] for reason, found in report.sample["rejected"].items()} == {
        "missing_feature": 1, "undecodable": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("section", "changes", "says"),
    [
        ({"fields": {"mode": {"missing": 3.0}}}, {}, "input.fields.mode: missing = 3.0: the feature is a category"),
        (
            {},
            {"feedback": {"output": "y", "mode": "value"}},
            "generates (feedback), and has features that are made from",
        ),
    ],
)
async def test_check_and_run_refuse_alike(
    kafka, topic_name, create_topics, tmp_path: Path, section: dict[str, Any], changes: dict[str, Any], says: str
) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    fields = lstm_fields(len(TABLES), len(TABLES), **changes)
    fields["input"] = {**fields["input"], "features": TABLES}
    path = save(lstm(len(TABLES), len(TABLES)), tmp_path / "m.onnx", fields)
    settings = make_settings(
        kafka,
        topic,
        topic_name("group"),
        input={"format": "json-named", **section},
        model={"chain": {"path": str(path)}},
    )
    report = Report()
    await examine(settings, report, sample=0)
    with pytest.raises(ConfigurationError) as refused:
        await prepare(settings, load_models(settings))
    assert str(report.problems[0]) == str(refused.value)
    assert says in str(refused.value)
