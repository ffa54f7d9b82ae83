"""A process that ends abruptly at each numbered step of commit, checkpoint and recovery; its successor loses and repeats
nothing. Every phase proves that the process died inside it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import dying
import pytest
from members import PARTITIONS, check_answers, rows
from serving import produce, read_all

from streamer.tools.bench import MODEL

pytestmark = pytest.mark.chaos

EACH = 100


def command(bootstrap: str, topic: str, delivery: str) -> list[str]:
    arguments = ["run"]
    for setting in (
        # a static member: its successor is not kept waiting for the session of the dead one
        f"kafka.bootstrap={bootstrap}", f"kafka.group={topic}.group", "kafka.instance=only", "kafka.static_membership=true",
        "kafka.session_timeout_ms=30000", f"input.topic={topic}", f"output.topic={topic}.out",
        f"delivery.mode={delivery}", "delivery.checkpoint_interval_ms=20", "delivery.checkpoint_bytes_per_second=20000",
        "batch.max_poll_records=20", f"model.lstm.path={MODEL}", "http.enabled=false", "log.format=json",
    ):  # fmt: skip
        arguments += ["--set", setting]
    return arguments


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(arguments, stdout=file, stderr=file)


@pytest.mark.parametrize("delivery", ["exactly-once", pytest.param("at-least-once", marks=pytest.mark.accept)])
async def test_a_crash_at_every_step(kafka, topic_name, create_topics, tmp_path: Path, delivery: str) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: PARTITIONS})
    arguments = command(kafka, topic, delivery)
    sent = 0
    for phase, (_, _, _, count) in dying.PHASES.items():
        mark, log = tmp_path / "mark", tmp_path / "service.log"
        mark.unlink(missing_ok=True)
        await produce(kafka, topic, rows(sent, EACH))
        sent += EACH
        child = start([sys.executable, dying.__file__, phase, str(count), str(mark), *arguments], log)
        try:
            async with asyncio.timeout(90):
                while child.poll() is None:  # events flow until the step is reached
                    await produce(kafka, topic, rows(sent, 20))
                    sent += 20
                    await asyncio.sleep(0.1)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        assert child.returncode == 86, f"{phase}: {log.read_text()[-3000:]}"
        assert mark.read_text() == phase
    survivor = start([sys.executable, "-m", "streamer.cli", *arguments], tmp_path / "survivor.log")
    try:
        found = await read_all(kafka, f"{topic}.out", at_least=sent, distinct=True)
    finally:
        survivor.terminate()
        code = survivor.wait(60)
    assert code == 0
    check_answers(found, sent, exactly=delivery == "exactly-once")
