"""An input that forgets sooner than its windows close is refused at start, before anything is lost."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest
from serving import make_settings
from windowing import FoldModel

from streamer.errors import ConfigurationError
from streamer.service.wiring import prepare
from streamer.tools.bench.windows import MODEL
from streamer.windows import WindowRule

IDLE_MS = 1_000


async def start(kafka: str, topic: str, group: str, rule: WindowRule, **delivery: Any) -> None:
    settings = make_settings(kafka, topic, group, delivery={"idle_ms": IDLE_MS, **delivery})
    await prepare(settings, [("fold", FoldModel(), rule)])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("rule", "longest_ms"),
    [
        (WindowRule("tumbling", size_ms=60_000, disorder_ms=500), 60_500),
        (WindowRule("hopping", size_ms=60_000, hop_ms=1_000), 60_000),
        (WindowRule("tumbling", size_ms=60_000, max_span_ms=20_000), 20_000),
        (WindowRule("session", gap_ms=10, max_span_ms=70_000), 70_000),
        (WindowRule("count", count=2, max_span_ms=70_000), 70_000),
        (WindowRule("end"), 86_400_000),
    ],
)
async def test_retention_must_cover_the_longest_window(
    kafka, topic_name, create_topics, rule: WindowRule, longest_ms: int
) -> None:
    short, enough = topic_name("short"), topic_name("enough")
    await create_topics(kafka, {short: 1}, config={"retention.ms": str(longest_ms + IDLE_MS - 1)})
    await create_topics(kafka, {enough: 1}, config={"retention.ms": str(longest_ms + IDLE_MS)})
    with pytest.raises(ConfigurationError, match=rf"keeps records for {longest_ms + IDLE_MS - 1} ms .* at least"):
        await start(kafka, short, topic_name("group"), rule)
    await start(kafka, enough, topic_name("group"), rule)
    # without a changelog nothing is replayed, so nothing needs to be kept
    await start(kafka, short, topic_name("group"), rule, mode="ephemeral")


async def test_what_keeps_everything_will_do_and_a_compacted_input_will_not(
    kafka, topic_name, create_topics, caplog: pytest.LogCaptureFixture
) -> None:
    forever, small, compacted = topic_name("forever"), topic_name("small"), topic_name("compacted")
    await create_topics(kafka, {forever: 1}, config={"retention.ms": "-1"})
    await create_topics(kafka, {small: 1}, config={"retention.bytes": "1000000"})
    await create_topics(kafka, {compacted: 1}, config={"cleanup.policy": "compact"})
    await start(kafka, forever, topic_name("group"), WindowRule("end", max_span_ms=10**12))
    assert not caplog.records
    await start(kafka, small, topic_name("group"), WindowRule("end"))
    assert "retention.bytes" in caplog.text
    with pytest.raises(ConfigurationError, match="compacted"):
        await start(kafka, compacted, topic_name("group"), WindowRule("end"))


async def test_the_command_says_it_and_ends_with_the_code_of_a_configuration(kafka, topic_name, create_topics) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1}, config={"retention.ms": "60000"})
    settings = (
        f"kafka.bootstrap={kafka}", f"kafka.group={topic}.group", f"input.topic={topic}", f"output.topic={topic}.out",
        f"model.bi.path={MODEL}", "model.bi.window.kind=end",
    )  # fmt: skip
    command = [sys.executable, "-m", "streamer.cli", "check"]
    for setting in settings:
        command += ["--set", setting]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "keeps records for 60000 ms (retention.ms)" in done.stderr
    assert "model.bi.window.max_span_ms" in done.stderr
