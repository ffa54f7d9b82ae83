"""The image: a linter reads the Dockerfile; its instructions build a root on which the service runs as they say: as another
user, without capabilities, unable to write anywhere."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import pytest
from dockerfile import Image, Namespace, build, inside, instructions, namespace, sent_context
from observing import ROOT, Process, free_port, process
from serving import event, produce, read_all

from streamer import __version__
from streamer.tools.demo import MODEL

DOCKERFILE = ROOT / "deploy" / "Dockerfile"


def test_the_linter_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_linter_would_speak_up(tmp_path: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nRUN cd /src && pip install x\n")
    done = subprocess.run([hadolint, tmp_path / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "DL3007" in done.stdout


def test_the_version_of_the_image_is_the_service_s() -> None:
    assert ("ARG", f"VERSION={__version__}") in instructions(DOCKERFILE)


def test_every_dependency_that_the_service_can_use_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [project["optional-dependencies"][extra] for extra in ("demo", "fast", "schemas")]
    wanted = {re.split(r"[^A-Za-z0-9-]", each)[0] for each in chain(project["dependencies"], *extras)}
    lines = (ROOT / "deploy" / "requirements.txt").read_text().split("\n")
    begins = [*(at for at, line in enumerate(lines) if "==" in line), len(lines)]
    ours = {
        lines[first].partition("==")[0].partition("[")[0]
        for first, last in pairwise(begins)
        if any("streamer-rnn (pyproject.toml)" in line for line in lines[first:last])
    }
    assert {each.lower() for each in wanted} == ours


@dataclass
class Built:
    space: Namespace
    image: Image
    folder: Path

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(inside(self.space, self.image, words), capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """With a folder at /etc/streamer and the demo's model at /models; everything is read-only."""
    folder = tmp_path_factory.mktemp("image")
    (folder / "etc").mkdir()
    context = sent_context(ROOT, DOCKERFILE.with_name("Dockerfile.dockerignore"), folder / "context")
    with namespace() as space:
        image = build(space, DOCKERFILE, context)
        for source, target in ((folder / "etc", "/etc/streamer"), (MODEL.parent, "/models")):
            space.run("mkdir", "-p", image.root + target)
            space.run("mount", "--bind", str(source), image.root + target)
            space.run("mount", "-o", "remount,bind,ro", image.root + target)
        space.run("mount", "-o", "remount,ro", image.root)
        yield Built(space, image, folder)


@pytest.mark.slow
class TestBuilt:
    def test_it_declares_what_an_orchestrator_asks(self, built: Built) -> None:
        image = built.image
        uid, gid = map(int, image.user.split(":"))
        assert uid >= 10_000
        assert gid >= 10_000
        assert image.ports == [8080]
        assert image.labels["org.opencontainers.image.version"] == __version__
        assert image.labels["org.opencontainers.image.licenses"] == "Apache-2.0"

    def test_only_what_is_pinned_is_in_it(self, built: Built) -> None:
        script = (
            "import importlib.metadata as m; print(*sorted(d.name.lower().replace('_','-') for d in m.distributions()))"
        )
        installed = set(built.run("python", "-c", script).stdout.split())
        lines = (ROOT / "deploy" / "requirements.txt").read_text().splitlines()
        pinned = {line.partition("==")[0] for line in lines if "==" in line}
        assert "streamer-rnn" in installed
        assert installed - {"streamer-rnn", "streamer-rnn-native"} <= pinned
        assert not installed & {"torch", "onnx", "pip", "setuptools"}

    def test_it_runs_as_another_user_that_can_write_nowhere(self, built: Built) -> None:
        status = built.run("cat", "/proc/self/status").stdout
        assert f"Uid:\t{built.image.user.split(':')[0]}\t" in status
        assert "CapEff:\t0000000000000000" in status
        assert "CapBnd:\t0000000000000000" in status
        for place in ("/", "/tmp", "/opt/streamer", "/etc/streamer", "/models", "/var/tmp"):
            done = built.run("touch", f"{place}/written")
            assert done.returncode != 0, place
            assert "Read-only file system" in done.stderr or "Permission denied" in done.stderr

    def test_records_are_read_by_native_code(self, built: Built) -> None:
        script = "from streamer.records.formats import Native; from streamer.words import Decoder; Native.load(Decoder.NATIVE)"
        done = built.run("python", "-c", script)
        assert done.returncode == 0, done.stderr

    def test_protobuf_can_be_read(self, built: Built) -> None:
        script = "from streamer.records.decode import Codec; from streamer.records.schemas.protobuf import require_library; require_library()"
        done = built.run("python", "-c", script)
        assert done.returncode == 0, done.stderr

    def test_it_says_what_is_missing(self, built: Built) -> None:
        done = built.run(*built.image.entrypoint, *built.image.command)
        assert done.returncode == 2
        assert "/etc/streamer/settings.toml" in done.stderr

    async def test_it_serves_from_kafka_and_drains_at_sigterm(
        self, built: Built, kafka, topic_name, create_topics
    ) -> None:
        topic, port = topic_name("in"), free_port()
        await create_topics(kafka, {topic: 2})
        (built.folder / "etc" / "settings.toml").write_text(f"""
[kafka]
bootstrap = "{kafka}"
group = "{topic}.group"
[input]
topic = "{topic}"
[output]
topic = "{topic}.out"
[http]
port = {port}
[model.anomaly]
path = "/models/model.onnx"
""")
        await produce(kafka, topic, [(n % 2, b"s%d" % (n % 6), event([n / 10] * 8), []) for n in range(300)])
        command = inside(built.space, built.image, [*built.image.entrypoint, *built.image.command])
        health = [word.replace("127.0.0.1:8080", f"127.0.0.1:{port}") for word in built.image.health]
        with process(command, built.folder / "service.log", f"http://127.0.0.1:{port}") as service:
            service.answers("/readyz")
            assert len(await read_all(kafka, f"{topic}.out", at_least=300)) == 300
            assert _capabilities(service) == 0
            assert built.run(*health).returncode == 0
            assert service.stop(signal.SIGTERM) == 0
        assert built.run(*health).returncode != 0
        log = (built.folder / "service.log").read_text()
        assert "Traceback" not in log
        assert "telemetry device" not in log, "ONNX Runtime would report home"

    def test_the_demo_runs_in_it(self, built: Built) -> None:
        done = built.run(*built.image.entrypoint, "demo", "--seconds", "3", "--json")
        assert done.returncode == 0, done.stderr
        summary = json.loads(done.stdout.splitlines()[-1])
        assert summary["lost"] == 0
        assert summary["predictions"] > 0


def _capabilities(service: Process) -> int:
    lines = Path(f"/proc/{service.child.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("CapEff:")).split()[1], 16)
