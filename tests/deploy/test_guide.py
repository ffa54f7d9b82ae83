"""The operations guide: its reference is the code's, its alerts are the rules', its commands run, its disasters are caused and
repaired as it says."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, RecordsToDelete
from observing import ROOT, Process, eventually, free_port, process
from serving import event, produce, read_all
from tooling import require_tool

from streamer.tools.demo import MODEL

GUIDE = (ROOT / "deploy" / "README.md").read_text()
SECTIONS: dict[str, str] = dict(re.findall(r"^#{2,3} (.+)\n((?:(?!^#{2,3} ).*\n?)*)", GUIDE, re.M))


def blocks(title: str, language: str = "sh") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", SECTIONS[title], re.M | re.S)


def test_the_reference_is_made_from_the_code() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import reference as r; assert r.with_reference(t := r.GUIDE.read_text()) == t"],
        cwd=ROOT / "deploy", env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, (
        "deploy/README.md is older than the settings: python deploy/reference.py\n" + done.stderr
    )
    assert "| `checkpoint_interval_ms` |" in SECTIONS["`[delivery]`"]


def test_every_alert_has_its_paragraph_and_says_what_to_do_first() -> None:
    groups = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yml").read_text())["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule}
    assert {title for title in SECTIONS if re.fullmatch(r"Streamer\w+", title)} == alerts
    assert [alert for alert in alerts if not re.search(r"First: |Same questions", SECTIONS[alert])] == []


def test_files_that_it_names_exist() -> None:
    table = GUIDE[: GUIDE.index("**What the tests run")]
    named = [name for row in re.findall(r"^\| (`.+?`) \|", table, re.M) for name in re.findall(r"`([^`]+)`", row)]
    assert len(named) >= 8
    for name in named:
        places = [ROOT / "deploy", ROOT / "deploy" / "prometheus"]
        assert any(list(place.glob(name)) for place in places), name


def test_every_command_that_is_not_run_needs_what_is_not_here() -> None:
    for title in SECTIONS:
        for block in blocks(title, "console"):
            commands = re.findall(r"^\$ ([\w.-]+)", block, re.M)
            assert commands
            assert set(commands) <= {"docker", "kubectl", "kafka-transactions.sh"}


@dataclass
class Site:
    """An installation: a folder with settings.toml and models, topics of its own, and how to run commands of the guide."""

    folder: Path
    bootstrap: str
    topic: str
    url: str
    environment: dict[str, str]
    sent: int = 0

    async def send(self, count: int) -> None:
        rows = range(self.sent, self.sent + count)
        await produce(self.bootstrap, self.topic, [(None, b"s%d" % (n % 6), event([n / 100] * 8), []) for n in rows])
        self.sent += count

    def script(self, text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text], cwd=self.folder, env=self.environment,
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    @contextlib.contextmanager
    def running(self, command: str = "streamer run -c settings.toml") -> Iterator[Process]:
        words = ["bash", "-euo", "pipefail", "-c", f"exec {command}"]
        with process(words, self.folder / "service.log", self.url, cwd=self.folder, env=self.environment) as service:
            yield service

    async def serve(self, command: str = "streamer run -c settings.toml", *, output: str = "", answers: int) -> None:
        """Until so many answers are in the output, then an orderly stop."""
        with self.running(command) as service:
            service.answers("/readyz")
            await read_all(self.bootstrap, output or f"{self.topic}.out", at_least=answers)
            assert service.stop() == 0, service.log.read_text()[-2000:]

    def refused(self, title: str, code: int, command: str = "streamer run -c settings.toml") -> None:
        """The service ends with this code, and says what the guide quotes in that section."""
        (quoted,) = re.findall(r"^Says `(.+?)`", SECTIONS[title], re.M)
        with self.running(command) as service:
            assert service.child.wait(60) == code
            assert quoted in service.log.read_text()
        assert code in (2, 5)
        assert code == 5 or "exit code 2" in SECTIONS[title]


@pytest.fixture
async def site(kafka: str, topic_name, create_topics, tmp_path: Path) -> Site:
    """Has served 60 events of 6 streams on 2 partitions, and is stopped."""
    topic, port = topic_name("telemetry"), free_port()
    await create_topics(kafka, {topic: 2})
    (tmp_path / "model.onnx").write_bytes(MODEL.read_bytes())
    (tmp_path / "settings.toml").write_text(f"""
[kafka]
bootstrap = "{kafka}"
group = "{topic}.anomaly"
session_timeout_ms = 6000
[input]
topic = "{topic}"
[output]
topic = "{topic}.out"
[delivery]
checkpoint_interval_ms = 200
[http]
port = {port}
[model.anomaly]
path = "model.onnx"
""")
    url = f"http://127.0.0.1:{port}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STREAMER_")}
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "streamer").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m streamer.cli "$@"\n')
    (bin_folder / "streamer").chmod(0o755)
    environment |= {
        "PATH": f"{bin_folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "URL": url,
        "OUTPUT": f"{topic}.out", "DEPLOY": str(ROOT / "deploy"),
    }  # fmt: skip
    found = Site(tmp_path, kafka, topic, url, environment)
    await found.send(60)
    await found.serve(answers=60)
    return found


@contextlib.asynccontextmanager
async def administration(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


def another_model(site: Site) -> None:
    """The same network in another file, as after further training."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(site.folder / "model.onnx")
    model.doc_string = "trained further"
    onnx.save(model, site.folder / "new.onnx")


async def test_commands_for_the_person_on_call(site: Site) -> None:
    require_tool("promtool", "curl")
    (text,) = blocks("Alerts")
    with site.running() as service:
        service.answers("/readyz")
        done = site.script(text)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "streamer_ready 1.0" in done.stdout
        assert '"from":' in done.stdout
        assert service.stop() == 0


async def test_the_changelog_is_lost(site: Site) -> None:
    title = "The changelog is lost"
    async with administration(site.bootstrap) as admin:
        await admin.delete_topics([f"{site.topic}.anomaly.{site.topic}.changelog"])
    site.refused(title, 5)
    (remedy,) = blocks(title)
    await site.serve(remedy, answers=120)


async def test_the_input_expired(site: Site) -> None:
    title = "The input expired"
    await site.send(60)
    ends = Counter(read.partition for read in await read_all(site.bootstrap, site.topic, at_least=120))
    async with administration(site.bootstrap) as admin:
        await admin.delete_records(
            {TopicPartition(site.topic, part): RecordsToDelete(end - 10) for part, end in ends.items()}
        )
    site.refused(title, 5)
    (remedy,) = blocks(title)
    await site.serve(remedy, answers=60 + 10 * len(ends))


async def test_the_number_of_partitions_changed(site: Site) -> None:
    title = "The number of partitions changed"
    with site.running("streamer run -c settings.toml --set kafka.metadata_max_age_ms=500") as service:
        service.answers("/readyz")
        async with administration(site.bootstrap) as admin:
            await admin.create_partitions({site.topic: NewPartitions(4)})
        assert service.child.wait(60) == 2
        assert "gained partitions" in SECTIONS[title]
        assert "gained partitions" in service.log.read_text()
    site.refused(title, 2)
    (remedy,) = blocks(title)
    await site.serve(remedy, output=f"{site.topic}.out-2", answers=60)


async def test_the_input_was_deleted_and_created_again(site: Site, create_topics) -> None:
    title = "The input was deleted and created again"
    async with administration(site.bootstrap) as admin:
        await admin.delete_topics([site.topic])
        while site.topic in await admin.list_topics():
            pass
    await create_topics(site.bootstrap, {site.topic: 2})
    await site.send(60)
    site.refused(title, 5)
    (remedy,) = blocks(title)
    await site.serve(remedy, answers=120)


async def test_the_wrong_model(site: Site) -> None:
    title = "The wrong model"
    another_model(site)
    site.refused(title, 5, "streamer run -c settings.toml --set model.anomaly.path=new.onnx")
    (remedy,) = blocks(title)
    await site.send(60)
    await site.serve(remedy, answers=120)
    await site.send(60)  # and back, from keep to keep; then to initial states
    await site.serve("streamer run -c settings.toml --set delivery.model_changed=keep", answers=180)
    await site.send(60)
    await site.serve(remedy.replace("keep", "reset"), answers=240)
    pinned = "streamer run -c settings.toml --set model.anomaly.sha256=" + "0" * 64
    with site.running(pinned) as service:
        assert service.child.wait(60) == 3


async def test_looking_before_an_upgrade_and_commands_for_one_stream(site: Site) -> None:
    another_model(site)
    look, one_stream = blocks("Upgrade and rollback")
    done = site.script(look)
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256((site.folder / "new.onnx").read_bytes()).hexdigest() in done.stdout
    done = site.script(one_stream)
    assert done.returncode == 0, done.stderr
    with site.running() as service:
        service.answers("/readyz")
        eventually("the ended stream is forgotten", lambda: service.answers("/streams/s2", 404))
        assert service.stop() == 0


async def test_settings_that_decide_cannot_change_in_flight(site: Site) -> None:
    assert "`max_record_bytes`" in SECTIONS["Upgrade and rollback"]
    with site.running("streamer run -c settings.toml --set input.max_record_bytes=1000") as service:
        assert service.child.wait(60) == 5
        assert "settings that decide" in service.log.read_text()
    await site.send(60)  # everything else may
    await site.serve("streamer run -c settings.toml --set batch.max_rows=16 --set state.max_bytes=100000", answers=120)
