"""The service on a real broker: an answer for every event, rejects in the dead-letter topic, restarts, rebalances."""

from __future__ import annotations

import asyncio

import pytest
from administration import administrator
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from chain import PARTITIONS, check, rows
from serving import event, make_service, make_settings, produce, read_all, running, wait_for
from simulated import POISON, ChainModel, advance
from windowing import fold

from streamer.errors import ConfigurationError, DataLossError, KafkaUnavailableError


@pytest.mark.parametrize("mode", ["exactly-once", "at-least-once", "ephemeral"])
async def test_every_event_is_answered_in_order(kafka, topic_name, create_topics, mode) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: PARTITIONS})
    await produce(kafka, topic, rows(0, 2000))
    settings = make_settings(kafka, topic, topic_name("group"), delivery={"mode": mode})
    service, recorder = await make_service(settings)
    async with running(service) as task:
        await wait_for(lambda: recorder.committed_events >= 2000 or task.done(), recorder)
        await produce(kafka, topic, rows(2000, 500))
        await wait_for(lambda: recorder.committed_events >= 2500 or task.done(), recorder)
    assert not recorder.errors
    check(await read_all(kafka, f"{topic}.out", at_least=2500), 2500)


async def test_a_restart_goes_on_with_the_state_it_had(kafka, topic_name, create_topics) -> None:
    topic, group = topic_name("in"), topic_name("group")
    await create_topics(kafka, {topic: PARTITIONS})
    settings = make_settings(kafka, topic, group)
    for part in range(3):
        await produce(kafka, topic, rows(part * 700, 700))
        service, recorder = await make_service(settings, instance=f"run{part}")
        async with running(service):
            await wait_for(lambda r=recorder: r.committed_events >= 700, recorder)
        assert not recorder.errors
    check(await read_all(kafka, f"{topic}.out", at_least=2100), 2100)


async def test_a_second_member_takes_over_half_and_gives_it_back(kafka, topic_name, create_topics) -> None:
    topic, group = topic_name("in"), topic_name("group")
    await create_topics(kafka, {topic: PARTITIONS})
    settings = make_settings(kafka, topic, group)
    first, one = await make_service(settings, instance="one")
    second, two = await make_service(settings, instance="two")
    async with running(first):
        await produce(kafka, topic, rows(0, 1000))
        await wait_for(lambda: one.committed_events >= 1000, one)
        async with running(second):
            await wait_for(lambda: bool(two.recoveries), two)
            await wait_for(lambda: len(one.recoveries) >= 2, one)
            await produce(kafka, topic, rows(1000, 1000))
            await wait_for(lambda: one.committed_events + two.committed_events >= 2000, one, two)
            assert len(first.processor.partitions) == len(second.processor.partitions) == 2
            assert one.recoveries[-1][1], "partitions that stayed were restored instead of kept"
        await wait_for(lambda: len(first.processor.partitions) == PARTITIONS, one)
        await produce(kafka, topic, rows(2000, 500))
        await wait_for(lambda: one.committed_events + two.committed_events >= 2500, one)
    check(await read_all(kafka, f"{topic}.out", at_least=2500), 2500)


async def test_bad_records_go_to_the_dead_letter_topic_and_touch_no_state(kafka, topic_name, create_topics) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1}, {"max.message.bytes": "2000000"})
    bad = [
        (0, b"a", b"not json", []),
        (0, b"a", event([1.0, 2.0]), []),
        (0, b"a", event([1e300]), []),
        (0, b"a", b'{"x":[null]}', []),
        (0, None, event([1.0]), []),
        (0, b"\xff", event([1.0]), []),
        (0, b"a", None, []),
        (0, b"a", event([POISON]), []),
        (0, b"a", b"", [("streamer-op", b"dance")]),
        (0, b"a", b"x" * 1_900_000, []),
    ]
    await produce(
        kafka, topic, [(0, b"a", event([1.0]), []), *bad, (0, b"a", event([2.0]), [("traceparent", b"00-1")])]
    )
    settings = make_settings(kafka, topic, topic_name("group"))
    service, recorder = await make_service(settings)
    async with running(service):
        await wait_for(lambda: recorder.committed_events >= 2, recorder)
        dead = await read_all(kafka, f"{topic}.dlq", at_least=len(bad))
    assert [read.headers["streamer-error"].decode() for read in dead] == [
        "undecodable", "wrong_width", "not_finite", "missing_feature", "missing_key",
        "bad_key", "missing_value", "model_refused", "unknown_command", "too_large",
    ]  # fmt: skip
    assert [read.source for read in dead] == [(0, offset) for offset in range(1, 11)]
    assert int(dead[-1].headers["streamer-truncated"]) == 1_900_000
    good = await read_all(kafka, f"{topic}.out", at_least=2)
    first = advance(0, 1)
    assert [read.document["y"] for read in good] == [first, advance(first, 2)]
    assert good[1].headers["traceparent"] == b"00-1"


@pytest.mark.parametrize("mode", ["exactly-once", "at-least-once"])
@pytest.mark.parametrize("limit", ["max.message.bytes", "message.timestamp.before.max.ms"])
async def test_answers_that_their_topic_refuses_end_the_service(kafka, topic_name, create_topics, limit, mode) -> None:
    """Trying again would never end; with a topic that takes them, the same events are answered."""
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    await create_topics(kafka, {f"{topic}.strict": 1})
    await produce(kafka, topic, [(0, b"a", event([1.0]), []), (0, b"a", event([2.0]), [])])
    group, delivery = topic_name("group"), {"mode": mode}
    strict = make_settings(kafka, topic, group, delivery=delivery, output={"topic": f"{topic}.strict"})
    service, _ = await make_service(strict)
    async with administrator(kafka) as admin:  # what is strict from the beginning is found at start
        change = {limit: "100"}  # a marker has 78 bytes
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, f"{topic}.strict", change)])
    with pytest.raises(ConfigurationError, match=limit):
        await asyncio.wait_for(service.run(), 60)
    service, recorder = await make_service(make_settings(kafka, topic, group, delivery=delivery))
    async with running(service):
        await wait_for(lambda: recorder.committed_events >= 2, recorder)
    found = await read_all(kafka, f"{topic}.out", at_least=2)
    assert [read.document["y"] for read in found] == [fold([1.0]), fold([1.0, 2.0])]


async def test_a_dead_letter_topic_that_takes_no_record_without_key_is_refused(
    kafka, topic_name, create_topics
) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    await create_topics(kafka, {f"{topic}.dlq": 1}, {"cleanup.policy": "compact"})
    with pytest.raises(ConfigurationError, match=r"dead_letter\.topic.*cleanup\.policy"):
        await make_service(make_settings(kafka, topic, topic_name("group")))


async def test_commands_in_the_log_reset_and_end_streams(kafka, topic_name, create_topics) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    one = [(0, b"a", event([5.0]), [])]
    reset = [(0, b"a", None, [("streamer-op", b"reset")])]
    end = [(0, b"a", None, [("streamer-op", b"end")])]
    await produce(kafka, topic, [*one, *one, *reset, *one, *end, *one, *end])
    service, recorder = await make_service(make_settings(kafka, topic, topic_name("group")))
    async with running(service):
        await wait_for(lambda: recorder.committed_events >= 7, recorder)
        assert service.processor.lanes.slots.used == 0
    found = await read_all(kafka, f"{topic}.out", at_least=4)
    first = advance(0, 5)
    assert [read.document["y"] for read in found] == [first, advance(first, 5), first, first]


async def test_a_missing_input_topic_is_one_clear_error(kafka, topic_name) -> None:
    with pytest.raises(KafkaUnavailableError, match="does not exist"):
        await make_service(make_settings(kafka, topic_name("nowhere"), "g"))


async def test_a_wrong_address_is_one_clear_error(topic_name) -> None:
    settings = make_settings("127.0.0.1:9", "t", "g", kafka={"connect_timeout_ms": 700})
    with pytest.raises(KafkaUnavailableError, match="no broker answers"):
        await make_service(settings)


async def test_a_changed_model_is_refused_or_kept_or_reset(kafka, topic_name, create_topics) -> None:
    topic, group = topic_name("in"), topic_name("group")
    await create_topics(kafka, {topic: 1})
    await produce(kafka, topic, [(0, b"a", event([1.0]), [])])
    service, recorder = await make_service(make_settings(kafka, topic, group))
    async with running(service):
        await wait_for(lambda: recorder.committed_events >= 1, recorder)
    other = ChainModel("cd" * 32)
    service, _ = await make_service(make_settings(kafka, topic, group), other)
    with pytest.raises(DataLossError, match="states were written by models"):
        await service.run()
    await produce(kafka, topic, [(0, b"a", event([1.0]), [])])
    settings = make_settings(kafka, topic, group, delivery={"model_changed": "keep"})
    service, recorder = await make_service(settings, other)
    async with running(service):
        await wait_for(lambda: recorder.committed_events >= 1, recorder)
    await produce(kafka, topic, [(0, b"a", event([1.0]), [])])
    settings = make_settings(kafka, topic, group, delivery={"model_changed": "reset"})
    service, recorder = await make_service(settings, ChainModel("ef" * 32))
    async with running(service):
        await wait_for(lambda: recorder.committed_events >= 1, recorder)
    found = await read_all(kafka, f"{topic}.out", at_least=3)
    first = advance(0, 1)
    assert [read.document["y"] for read in found] == [first, advance(first, 1), first]
