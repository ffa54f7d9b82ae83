"""``streamer check`` finds what ``run`` would end with, tries the newest records, and leaves no trace."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from administration import administrator
from onnx_models import lstm, lstm_fields, save
from serving import event, make_settings, produce, running, wait_for

from streamer.errors import ConfigurationError, DataLossError, KafkaUnavailableError, ModelError
from streamer.service import check
from streamer.service.check import Report, examine
from streamer.service.wiring import build, load_models, prepare
from streamer.settings import Settings

FEATURES = 3
GOOD = event([1.0, 2.0, 3.0])
ROWS = [(number % 2, b"s%d" % (number % 4), GOOD, []) for number in range(12)]


def model_file(folder: Path, seed: int = 0, **changes: Any) -> str:
    path = folder / f"model-{seed}-{len(changes)}.onnx"
    if not path.exists():
        save(lstm(FEATURES, seed=seed), path, lstm_fields(FEATURES, **changes))
    return str(path)


def settings_of(bootstrap: str, topic: str, folder: Path, *, seed: int = 0, **sections: dict[str, Any]) -> Settings:
    sections.setdefault("model", {"chain": {"path": model_file(folder, seed)}})
    return make_settings(bootstrap, topic, f"{topic}.group", **sections)


async def checked(settings: Settings, sample: int = 100) -> Report:
    report = Report()
    await examine(settings, report, sample=sample)
    return report


async def serve(settings: Settings, count: int) -> None:
    from serving import Recorder

    recorder = Recorder()
    service = build(await prepare(settings, load_models(settings)), recorder, instance="a")
    async with running(service):
        await wait_for(lambda: recorder.committed_events >= count, recorder)


async def test_nothing_is_left_behind_and_the_newest_records_are_tried(
    kafka, topic_name, create_topics, tmp_path
) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 2})
    bad = [(0, None, GOOD, []), (1, b"s1", b"{", []), (1, b"s1", b'{"x": [1]}', [])]
    await produce(kafka, topic, [*ROWS, *bad])
    settings = settings_of(kafka, topic, tmp_path)
    async with administrator(kafka) as admin:
        before = {name for name in await admin.list_topics() if topic in name}
        report = await checked(settings)
        assert report.problems == []
        assert report.warnings == []
        assert {name for name in await admin.list_topics() if topic in name} == before == {topic}
        assert all(topic not in group[0] for group in await admin.list_consumer_groups())
    assert report.verdict == "check: ok"
    assert report.topics["input.topic"] == {"name": topic, "partitions": 2, "exists": True}
    assert report.topics["changelog.topic"] == {
        "name": f"{topic}.group.{topic}.changelog", "partitions": 2, "exists": False,
    }  # fmt: skip
    sample = report.sample
    assert (sample["records"], sample["events"], sample["streams"], sample["answers"]) == (15, 12, 4, 12)
    assert {reason: found["count"] for reason, found in sample["rejected"].items()} == {
        "missing_key": 1, "undecodable": 1, "wrong_width": 1,
    }  # fmt: skip
    assert sample["rejected"]["missing_key"]["example"] == f"{topic}/0/6"
    assert json.loads(sample["answer"])["model"] == "chain@1"
    few = await checked(settings, sample=4)
    assert few.sample["records"] == 4
    assert few.sample["rejected"].keys() <= sample["rejected"].keys()


async def test_states_are_judged_as_a_restore_would(kafka, topic_name, create_topics, tmp_path) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 2})
    settings = settings_of(kafka, topic, tmp_path)
    await produce(kafka, topic, ROWS)
    await serve(settings, len(ROWS))
    await produce(kafka, topic, ROWS[:2])
    report = await checked(settings)
    assert (report.problems, report.exit_code) == ([], 0)
    assert report.group["behind"] >= 2
    assert "2 partitions" in report.group["says"]
    another = await checked(settings_of(kafka, topic, tmp_path, seed=1))
    (problem,) = another.problems
    assert isinstance(problem, DataLossError)
    assert "states were written by models" in str(problem)
    assert "2 partitions are like this" in str(problem)
    assert (another.exit_code, another.verdict) == (5, "check: 1 problem")
    keep = settings_of(kafka, topic, tmp_path, seed=1, delivery={"model_changed": "keep"})
    assert (await checked(keep)).problems == []
    decided = settings_of(kafka, topic, tmp_path, input={"topic": topic, "max_record_bytes": 77})
    assert "settings that decide" in str((await checked(decided)).problems[0])
    assert (await checked(settings)).group["behind"] >= 2, "a look moves nothing"


@pytest.mark.parametrize(
    ("sections", "error", "says"),
    [
        ({"input": {"format": "jsn"}}, ConfigurationError, "jsn"),
        ({"input": {"format": "not_there:decode"}}, ConfigurationError, "not_there"),
        ({"model": {"chain": {"path": "absent.onnx"}}}, ModelError, "absent.onnx"),
        ({"topics": {"create": False}}, KafkaUnavailableError, "missing topics"),
        (
            {"output": {"max_batch_bytes": 2_000_000}, "dead_letter": {"topic": "SMALL"}},
            ConfigurationError,
            "'SMALL' (dead_letter.topic) takes",
        ),
    ],
)
async def test_check_and_run_say_the_same(
    kafka, topic_name, create_topics, tmp_path, sections: dict[str, Any], error: type, says: str
) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    if sections.get("dead_letter"):
        small = topic_name("small")
        await create_topics(kafka, {small: 1})
        sections, says = {**sections, "dead_letter": {"topic": small}}, says.replace("SMALL", small)
    settings = settings_of(kafka, topic, tmp_path, **sections)
    report = await checked(settings)
    assert says in str(report.problems[0])
    assert isinstance(report.problems[0], error)

    async def start() -> None:
        build(await prepare(settings, load_models(settings)), None, instance="a")  # type: ignore[arg-type]

    with pytest.raises(error) as refused:
        await start()
    assert refused.value.exit_code == report.exit_code
    assert str(refused.value) == str(report.problems[0])


async def test_a_model_that_looks_ahead_needs_its_window(kafka, topic_name, create_topics, tmp_path) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    path = tmp_path / "bi.onnx"
    fields = lstm_fields(FEATURES, mode="window", states=None, outputs=[{"name": "y", "shape": ["batch", "time", 8]}])
    save(lstm(FEATURES, bidirectional=True), path, fields)
    report = await checked(settings_of(kafka, topic, tmp_path, model={"chain": {"path": str(path)}}))
    assert "looks ahead" in str(report.problems[0])
    assert report.exit_code == 2
    await produce(kafka, topic, [(0, b"s", event([1.0, 2.0, 3.0]), [])] * 5)
    served = {"chain": {"path": str(path), "window": {"kind": "count", "count": 2}}}
    report = await checked(settings_of(kafka, topic, tmp_path, model=served))
    assert report.problems == []
    assert report.sample["windows"] == 2


async def test_who_does_not_answer_is_waited_for_aloud(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_TELL_S", 0.2)
    settings = settings_of("127.0.0.1:9", "in", tmp_path, kafka={"connect_timeout_ms": 1_500})
    report, told = Report(), list[str]()
    await examine(settings, report, sample=1, say=told.append)
    assert told
    assert all("127.0.0.1:9 (at most 2 s, kafka.connect_timeout_ms)" in line for line in told)
    assert (report.exit_code, report.verdict) == (4, "check: 1 problem")
    assert "no broker answers" in str(report.problems[0])


async def test_the_command_ends_with_its_verdict(kafka, topic_name, create_topics, tmp_path) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 2})
    await produce(kafka, topic, ROWS)
    given = {
        "kafka.bootstrap": kafka, "kafka.group": f"{topic}.group", "input.topic": topic, "output.topic": f"{topic}.out",
        "model.chain.path": model_file(tmp_path),
    }  # fmt: skip

    def streamer(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        flags = [word for key, value in {**given, **more}.items() for word in ("--set", f"{key}={value}")]
        command = [sys.executable, "-m", "streamer.cli", "check", *flags, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    done = streamer()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "check: ok"
    assert f"changelog.topic {topic}.group.{topic}.changelog: 2 partitions, would be created" in done.stdout
    assert "newest 12 records: 12 events of 4 streams, 12 answers" in done.stdout
    done = streamer("--json", **{"input.format": "jsn"})
    assert done.returncode == 2
    found = json.loads(done.stdout)
    assert (found["ok"], found["exit_code"], found["verdict"]) == (False, 2, "check: 1 problem")
    assert found["settings"]["input.format"] == {"value": "jsn", "origin": "flag --set"}
