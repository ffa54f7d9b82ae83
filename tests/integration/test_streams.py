"""``streamer stream``: a stream seen from its instance and from the changelog, reset and ended by records in the log, in
whatever partition its producer put it."""

from __future__ import annotations

import asyncio
import json
import struct
from typing import Any

import pytest
from serving import event, make_service, make_settings, produce, read_all, running, wait_for
from typer.testing import CliRunner

from streamer.cli import app
from streamer.engine.describe import describe
from streamer.errors import ConfigurationError, KafkaUnavailableError
from streamer.kafka.partitioners import PARTITIONERS
from streamer.observe.telemetry import Telemetry
from streamer.service.wiring import observed
from streamer.settings import Settings
from streamer.tools.broker import require_confluent_kafka
from streamer.tools.demo import MODEL, WINDOW_MODEL
from streamer.tools.streams import Where, ask, command, read_checkpoint, send_command


async def test_a_stream_is_shown_reset_and_ended(kafka, topic_name, create_topics) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 2})
    settings = make_settings(kafka, topic, topic_name("group"), http={"port": 0})
    service, recorder = await make_service(settings)
    async with running(service), observed(settings, Telemetry([], "0"), service) as url:
        assert url is not None
        await produce(kafka, topic, [(0, b"a", event([1.0]), []), (0, b"a", event([2.0]), [])])
        first, second = await read_all(kafka, f"{topic}.out", at_least=2)
        shown = await asyncio.to_thread(ask, url, "a")
        assert (shown["partition"], shown["models"]["chain"]["through_offset"]) == (0, 1)
        assert shown["models"]["chain"]["state_norms"]["h"] == second.document["y"]
        with pytest.raises(ConfigurationError, match="is not at"):
            await asyncio.to_thread(ask, url, "b")

        assert await send_command(settings, b"a", "reset", 0) == 2
        await produce(kafka, topic, [(0, b"a", event([1.0]), [])])
        third = (await read_all(kafka, f"{topic}.out", at_least=3))[-1]
        assert third.document["y"] == first.document["y"], "the state began anew"
        async with asyncio.timeout(30):
            while True:  # a checkpoint round of 200 ms writes the stream
                try:
                    kept = await read_checkpoint(settings, b"a")
                except ConfigurationError:
                    continue
                if kept["models"]["chain"]["through_offset"] == 3:
                    break
        assert kept["partition"] == 0

        await send_command(settings, b"a", "end", 0)
        async with asyncio.timeout(30):
            while describe(service.processor, b"a") is not None:
                recorder.changed.clear()
                await recorder.changed.wait()
    assert json.dumps(kept)


def send(bootstrap: str, topic: str, rows: list[tuple[bytes, bytes]], **options: Any) -> dict[bytes, int]:
    """By librdkafka, with its own partitioner unless told otherwise; where each key went."""
    went: dict[bytes, int] = {}
    producer = require_confluent_kafka().Producer(
        {"bootstrap.servers": bootstrap, **options, "on_delivery": lambda _, m: went.update({m.key(): m.partition()})}
    )
    for key, value in rows:
        producer.produce(topic, value, key)
    assert producer.flush(30) == 0
    return went


async def found(settings: Settings, key: str, what: str = "reset", **where: Any) -> tuple[int, str]:
    place, _ = await command(settings, key.encode(), what, Where(**where))
    return place.partition, place.found_by


async def test_commands_reach_the_streams_of_any_producer(kafka, topic_name, create_topics) -> None:
    pytest.importorskip("confluent_kafka", reason="the extra `demo` is not installed")
    topic = topic_name("in")
    await create_topics(kafka, {topic: 5})
    settings = make_settings(kafka, topic, topic_name("group"), http={"port": 0})
    keys = [b"key-%d" % number for number in range(20)]
    went = await asyncio.to_thread(send, kafka, topic, [(key, event([1.0])) for key in keys])
    assert went == {key: PARTITIONERS["crc32"](key, 5) for key in keys}
    assert sum(PARTITIONERS["murmur2"](key, 5) != went[key] for key in keys) > 10, "where they went before"
    assert await found(settings, "key-3") == (went[b"key-3"], "input"), "before the service was ever started"

    service, recorder = await make_service(settings)
    async with running(service), observed(settings, Telemetry([], "0"), service) as url:
        await wait_for(lambda: recorder.committed_events >= 21, recorder)
        for key in keys[:10]:
            assert await found(settings, key.decode(), url=url) == (went[key], "instance")
        with pytest.raises(ConfigurationError, match="is not at"):
            await found(settings, "nobody", url=url)
        await wait_for(lambda: recorder.committed_events >= 31, recorder)
        assert service.processor.lanes.slots.used == 20, "no phantoms"
    for key in keys[10:13]:
        assert await found(settings, key.decode()) == (went[key], "changelog")
    assert await found(settings, "key-1", partitioner="crc32") == (went[b"key-1"], "crc32")
    assert await found(settings, "key-1", partition=4) == (4, "partition")

    murmured = await asyncio.to_thread(send, kafka, topic, [(b"j-1", event([1.0]))], partitioner="murmur2_random")
    assert await found(settings, "j-1", partitioner="murmur2") == (murmured[b"j-1"], "murmur2")
    await found(settings, "j-1", partition=(murmured[b"j-1"] + 1) % 5)
    assert await found(settings, "j-1") == (murmured[b"j-1"], "input"), "a command elsewhere is no event of the stream"


async def test_a_stream_that_is_nowhere_or_in_two_places_is_refused(kafka, topic_name, create_topics) -> None:
    topic = topic_name("in")
    settings = make_settings(kafka, topic, topic_name("group"), delivery={"mode": "ephemeral"})
    with pytest.raises(KafkaUnavailableError, match="does not exist"):
        await found(settings, "a")
    await create_topics(kafka, {topic: 2})
    rows = [(0, b"old", event([1.0]), []), *[(part, b"two", event([1.0]), []) for part in (0, 1)]]
    await produce(kafka, topic, [*rows, (1, struct.pack(">q", 7), event([1.0]), [])])
    assert await found(settings, "old") == (0, "input")
    with pytest.raises(ConfigurationError, match=r"\[0, 1\].*--partition"):
        await found(settings, "two")
    for key, where in (("nobody", {}), ("old", {"search": 2}), ("7", {})):
        with pytest.raises(ConfigurationError, match="is nowhere"):
            await found(settings, key, **where)
    with pytest.raises(ConfigurationError, match="2 partitions"):
        await found(settings, "a", partition=2)
    with pytest.raises(ConfigurationError, match="murmur2, crc32"):
        await found(settings, "a", partitioner="java")
    assert len(await read_all(kafka, topic)) == 5, "nothing was written but one reset"
    place, _ = await command(settings, b"nobody", "generate", Where(), b"{}", anywhere=True)
    assert place.found_by == "murmur2"

    numbered = make_settings(kafka, topic, "g", input={"topic": topic, "key": "int64"}, delivery={"mode": "ephemeral"})
    assert await found(numbered, "7") == (1, "input")
    assert sum(read.key == struct.pack(">q", 7) for read in await read_all(kafka, topic)) == 2
    with pytest.raises(ConfigurationError, match="int64"):
        await found(numbered, "seven")


async def test_a_stream_of_windows_is_found_where_its_events_are(kafka, topic_name, create_topics) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 3})
    await produce(kafka, topic, [(2, b"a", event([1.0]), [])])
    window = {"path": "unused.onnx", "window": {"kind": "session", "gap_ms": 1_000}}
    settings = make_settings(kafka, topic, topic_name("group"), model={"chain": window})
    assert await found(settings, "a", "end", url="http://127.0.0.1:1") == (2, "input"), (
        "an instance tells of states only"
    )


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ([f"model.m.path={MODEL}"], "can go on alone"),
        (
            [f"model.m.path={WINDOW_MODEL}", "model.m.window.kind=tumbling", "model.m.window.size_ms=1000"],
            "can go on alone",
        ),
        (["model.m.path=nowhere.onnx"], "nowhere.onnx"),
    ],
)
def test_generating_without_a_model_for_it_is_refused_at_once(model: list[str], why: str) -> None:
    told = ("kafka.bootstrap=127.0.0.1:1", "kafka.group=g", "input.topic=t", "output.topic=o")
    flags = [f"--set={pair}" for pair in told]
    done = CliRunner().invoke(app, ["stream", "generate", "a", *flags, *(f"--set={pair}" for pair in model)])
    assert why in str(done.exception)
