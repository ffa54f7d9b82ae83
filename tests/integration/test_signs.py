"""What a service shows of its cluster, its group and its machine, on a real broker."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from local_kafka import LocalKafka
from serving import event, make_settings, produce, running
from simulated import ChainModel
from tooling import require_tool

from streamer.errors import ConfigurationError
from streamer.observe.telemetry import Telemetry
from streamer.service.loop import Service
from streamer.service.wiring import build, observed, prepare
from streamer.settings import Settings


async def made(settings: Settings, instance: str) -> tuple[Service, Telemetry]:
    telemetry = Telemetry([("chain", "1", "ab" * 32)], "0")
    return build(await prepare(settings, [("chain", ChainModel(), None)]), telemetry, instance=instance), telemetry


@contextlib.asynccontextmanager
async def shown(settings: Settings, instance: str) -> AsyncIterator[Telemetry]:
    """A service that runs and is observed as ``streamer run`` does it."""
    service, telemetry = await made(settings, instance)
    async with running(service), observed(settings, telemetry, service):
        yield telemetry


async def seen(telemetry: Telemetry, what: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while not what(telemetry.status()):  # noqa: ASYNC110 - the status is to be looked at
            await asyncio.sleep(0.05)
    return telemetry.status()


def settings_of(kafka: str, topic: str, group: str, **of_kafka: Any) -> Settings:
    return make_settings(kafka, topic, group, http={"port": 0}, kafka={"metadata_max_age_ms": 1_000, **of_kafka})


@pytest.mark.parametrize("static", [False, True])
async def test_the_members_of_the_group_and_where_they_are(kafka, topic_name, create_topics, static: bool) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 5})
    group = topic_name("group")

    def member(name: str) -> contextlib.AbstractAsyncContextManager[Telemetry]:
        return shown(settings_of(kafka, topic, group, static_membership=static, instance=name), name)

    async with member("a") as first:
        alone = await seen(first, lambda s: s["health"] == "live" and bool(s["members"]))
        assert [each["partitions"] for each in alone["members"]] == [[0, 1, 2, 3, 4]]
        assert alone["partitions_held"] == {"owned": 5, "restoring": 0, "elsewhere": 0, "unowned": 0}
        async with member("b") as second:
            for telemetry in (first, second):
                both = await seen(
                    telemetry,
                    lambda s: s["health"] == "live" and len(s["members"] or ()) == 2 and all(m["partitions"] for m in s["members"]),
                )  # fmt: skip
                mine, other = both["members"]
                assert (mine["here"], other["here"]) == (True, False), "this instance comes first"
                assert [str(number) for number in mine["partitions"]] == list(both["partitions"])
                assert sorted([*mine["partitions"], *other["partitions"]]) == [0, 1, 2, 3, 4]
                assert mine["host"] == other["host"] == "127.0.0.1"
                assert both["partitions_held"]["elsewhere"] == len(other["partitions"])
                assert both["partitions_held"]["unowned"] == 0
                names = {mine["name"], other["name"]}
                assert len(names) == 2
                assert all(re.fullmatch("[ab]" if static else r"streamer-[0-9a-f]{8}", name) for name in names), names


async def test_who_stands_by_tells_an_outage(topic_name, create_topics) -> None:
    require_tool("java", "mvn")
    topic, group = topic_name("in"), topic_name("group")
    with LocalKafka() as local:
        await create_topics(local.bootstrap, {topic: 1})
        settings = settings_of(local.bootstrap, topic, group, request_timeout_ms=2_000)
        async with shown(settings, "a") as owner:
            await seen(owner, lambda s: s["health"] == "live")
            async with shown(settings, "b") as standing:
                await seen(standing, lambda s: s["health"] in ("live", "waiting") and len(s["members"] or ()) == 2)
                await asyncio.to_thread(local.kill_node, 1)
                for telemetry in (owner, standing):
                    status = await seen(telemetry, lambda s: s["health"] == "outage" and s["outage_cause"] is None)
                    assert status["outage_s"] > 0
                    assert telemetry.unready() is not None
                await asyncio.to_thread(local.start_node, 1)
                for telemetry in (owner, standing):
                    await seen(telemetry, lambda s: s["health"] in ("live", "waiting") and len(s["members"] or ()) == 2)
                    assert telemetry.unready() is None


async def test_another_machine_before_us(kafka, topic_name, create_topics, monkeypatch) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    settings = settings_of(kafka, topic, topic_name("group"))
    await produce(kafka, topic, [(0, b"a", event([1.0]), [])])
    with monkeypatch.context() as patched:
        patched.setattr("streamer.service.wiring.machine", lambda: "z80; onnxruntime 0.1")
        async with shown(settings, "a") as telemetry:
            status = await seen(telemetry, lambda s: s["predictions"] == 1)
            assert status["other_machines"] == {}
    async with shown(settings, "b") as telemetry:
        status = await seen(telemetry, lambda s: s["health"] == "live")
        assert status["other_machines"] == {"0": "z80; onnxruntime 0.1"}


async def test_a_codec_that_cannot_be_read_is_named_and_no_outage(
    kafka, topic_name, create_topics, monkeypatch
) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1}, config={"compression.type": "zstd"})
    await produce(kafka, topic, [(0, b"a", event([1.0]), [])])
    monkeypatch.setattr("aiokafka.codec.has_zstd", lambda: False)
    service, telemetry = await made(settings_of(kafka, topic, topic_name("group")), "a")
    with pytest.raises(ConfigurationError):
        await service.run()
    status = telemetry.status()
    assert status["health"] == "ending"
    assert "zstd" in status["ending"]
    assert status["outage_s"] is None
    assert "zstd" in (telemetry.unready() or "")
