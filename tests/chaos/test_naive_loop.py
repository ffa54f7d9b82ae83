"""The check can fail: a read-process-write loop as people write it by hand does not pass the oracle that the service passes."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from members import PARTITIONS, Load, check_answers, count_committed, grown
from serving import read_all

from streamer.tools.bench import MODEL

pytestmark = pytest.mark.chaos


async def test_a_naive_loop_fails_the_oracle(kafka, topic_name, create_topics, tmp_path: Path) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: PARTITIONS, f"{topic}.out": PARTITIONS})
    arguments = json.dumps(
        {
            "bootstrap": kafka, "source": topic, "target": f"{topic}.out", "group": f"{topic}.group",
            "model_path": str(MODEL), "value_format": "json",
        }
    )  # fmt: skip
    command = [sys.executable, "-m", "streamer.tools.bench.naive", arguments]
    load = Load(kafka, topic, 400)
    children = []
    try:
        async with load.flowing():
            for kill in (True, False):
                with (tmp_path / "naive.log").open("ab") as file:
                    children.append(await asyncio.to_thread(subprocess.Popen, command, stdout=file, stderr=file))
                await grown(kafka, topic, await count_committed(kafka, topic) + 1_000)
                if kill:
                    children[-1].send_signal(signal.SIGKILL)
                    children[-1].wait()
        # it has read to the end: what is missing now stays missing
        last = {(stream % PARTITIONS): 0 for stream in range(PARTITIONS)}
        async with asyncio.timeout(90):
            while True:
                found = await read_all(kafka, f"{topic}.out")
                last.update({read.source[0]: max(last[read.source[0]], read.source[1]) for read in found})
                if sum(last.values()) + PARTITIONS >= load.sent:
                    break
                assert children[-1].poll() is None, (tmp_path / "naive.log").read_text()[-3000:]
                await asyncio.sleep(0.2)
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
            child.wait()
    with pytest.raises(AssertionError, match=r"lost|repeated|twice|state|=="):
        check_answers(found, load.sent, exactly=True)
