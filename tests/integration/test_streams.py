"""``streamer stream``: a stream seen from its instance and from the changelog, reset and ended by records in the log."""

from __future__ import annotations

import asyncio
import json

import pytest
from serving import event, make_service, make_settings, produce, read_all, running

from streamer.engine.describe import describe
from streamer.errors import ConfigurationError, KafkaUnavailableError
from streamer.observe.telemetry import Telemetry
from streamer.service.wiring import observed
from streamer.tools.streams import ask, read_checkpoint, send_command


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

        assert await send_command(settings, b"a", "reset", 0) == (0, 2)
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


async def test_commands_that_cannot_be_written_say_why(kafka, topic_name, create_topics) -> None:
    topic = topic_name("in")
    settings = make_settings(kafka, topic, topic_name("group"))
    with pytest.raises(KafkaUnavailableError, match="does not exist"):
        await send_command(settings, b"a", "end", None)
    await create_topics(kafka, {topic: 2})
    with pytest.raises(ConfigurationError, match="2 partitions"):
        await send_command(settings, b"a", "end", 2)
