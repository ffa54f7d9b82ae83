"""Producers that wear out, and a topic that is another one: what is committed stays right, and no recovery is endless."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from administration import administrator, forgotten
from aiokafka import TopicPartition
from local_kafka import LocalKafka
from serving import event, make_service, make_settings, one_by_one, produce, read_all, running, wait_for
from tooling import require_tool

from streamer.errors import DataLossError, KafkaUnavailableError
from streamer.kafka.internals import Producer

ROWS = [(0, b"a", event([float(number % 11)]), []) for number in range(40)]


@pytest.fixture(scope="module")
def forgetful() -> Iterator[str]:
    """A broker that forgets a transactional id after a moment."""
    require_tool("java", "mvn")
    properties = {
        "transactional.id.expiration.ms": "500",
        "transaction.remove.expired.transaction.cleanup.interval.ms": "100",
        "transaction.max.timeout.ms": "20000",
    }
    with LocalKafka(properties=properties) as local:
        yield local.bootstrap


@pytest.mark.parametrize("slowly", [False, True])
@pytest.mark.parametrize("mode", ["exactly-once", "at-least-once"])
async def test_an_id_that_expired_while_idle_costs_nothing(
    forgetful, topic_name, create_topics, monkeypatch, mode: str, slowly: bool
) -> None:
    """No recovery, no error, and at-least-once nothing twice. ``slowly``: the refusal is there before all is handed over."""
    if slowly:
        one_by_one(monkeypatch)
    topic = topic_name("in")
    await create_topics(forgetful, {topic: 1})
    service, recorder = await make_service(
        make_settings(forgetful, topic, topic_name("group"), delivery={"mode": mode})
    )
    async with running(service):
        await produce(forgetful, topic, ROWS[:20])
        await wait_for(lambda: recorder.committed_events >= 20, recorder)
        before = service._committer.transactional_id
        await forgotten(forgetful, before)
        await produce(forgetful, topic, ROWS[20:])
        await wait_for(lambda: recorder.committed_events >= 40, recorder)
        assert service._committer.transactional_id != before
    assert recorder.errors == []
    assert len(recorder.recoveries) == 1
    assert "failed" not in recorder.outcomes
    found = await read_all(forgetful, f"{topic}.out", at_least=40)
    assert [read.source[1] for read in found] == list(range(40))


async def test_sequence_numbers_go_round(kafka, topic_name, create_topics) -> None:
    """A partition that took 2^31 records from one producer takes the next one too: the counter is set, not waited for."""
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    settings = make_settings(kafka, topic, topic_name("group"), delivery={"mode": "at-least-once"})
    service, recorder = await make_service(settings)
    async with running(service):
        await wait_for(lambda: bool(recorder.recoveries), recorder)
        publishing, committing = service._committer.producers.publishing, service._committer.producers.committing
        assert publishing is not None
        assert committing is not None
        assert settings.changelog_topic
        publishing._txn_manager._sequence_numbers[TopicPartition(settings.output.topic, 0)] = 2**31 - 5
        committing._txn_manager._sequence_numbers[TopicPartition(settings.changelog_topic, 0)] = 2**31 - 3
        for number, row in enumerate(ROWS):
            await produce(kafka, topic, [row])
            await wait_for(lambda number=number: recorder.committed_events > number, recorder)
        assert service._committer.producers.publishing is publishing
        assert publishing._txn_manager._sequence_numbers[TopicPartition(settings.output.topic, 0)] < 100
        assert committing._txn_manager._sequence_numbers[TopicPartition(settings.changelog_topic, 0)] < 1_000
    assert recorder.errors == []
    found = await read_all(kafka, f"{topic}.out", at_least=40)
    assert [read.source[1] for read in found] == list(range(40))


@pytest.mark.parametrize("mode", ["at-least-once", "ephemeral"])
async def test_a_plain_producer_that_is_worn_out_is_replaced(kafka, topic_name, create_topics, mode: str) -> None:
    """One recovery, not endless ones: the error would come back for as long as the producer lives."""
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1, f"{topic}.out": 1})
    service, recorder = await make_service(make_settings(kafka, topic, topic_name("group"), delivery={"mode": mode}))
    async with running(service):
        await produce(kafka, topic, ROWS[:20])
        await wait_for(lambda: recorder.committed_events >= 20, recorder)
        worn = service._committer.producers.publishing
        assert worn is not None
        break_for_good(worn, f"{topic}.out")
        await produce(kafka, topic, ROWS[20:])
        async with asyncio.timeout(30):
            while recorder.committed_events < 40:
                recorder.changed.clear()
                await recorder.changed.wait()
        (error,) = recorder.errors
        assert isinstance(error, KafkaUnavailableError)
        assert service._committer.producers.publishing is not worn
    found = await read_all(kafka, f"{topic}.out", at_least=40)
    assert {read.source[1] for read in found} == set(range(40))


def break_for_good(producer: Producer, topic: str) -> None:
    if producer._txn_manager is not None:
        producer._txn_manager._sequence_numbers[TopicPartition(topic, 0)] = 7  # the broker expects another one
    else:
        producer._sender._fail_all(failed_task())


def failed_task() -> asyncio.Future[None]:
    failed = asyncio.get_running_loop().create_future()
    failed.set_exception(OSError("the sender's task has ended"))
    return failed


@pytest.mark.parametrize("mode", ["exactly-once", "at-least-once", "ephemeral"])
async def test_a_topic_that_was_made_again_is_never_committed_against(
    kafka, topic_name, create_topics, mode: str
) -> None:
    """Under the running service: positions of the old topic would skip the first records of the new one."""
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    settings = make_settings(kafka, topic, topic_name("group"), delivery={"mode": mode})
    service, recorder = await make_service(settings)

    async def while_it_runs() -> None:
        async with running(service) as task:
            await produce(kafka, topic, ROWS[:20])
            await wait_for(lambda: recorder.committed_events >= 20, recorder)
            async with administrator(kafka) as admin:
                await admin.delete_topics([topic])
                while await service._reader.identity() is not None:
                    pass
                await create_topics(kafka, {topic: 1})
            await produce(kafka, topic, ROWS)  # more than the old one had: a position of 20 lies within
            await asyncio.wait_for(asyncio.shield(task), 60)

    with pytest.raises(DataLossError, match="deleted"):
        await while_it_runs()
    assert recorder.committed_events == 20
    if mode == "exactly-once":
        assert [read.source[1] for read in await read_all(kafka, f"{topic}.out")] == list(range(20))
