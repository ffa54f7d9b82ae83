"""The trace context of a record on a real broker: on its prediction, on its dead letter, and on no other record."""

from __future__ import annotations

import asyncio

import pytest
from serving import event, make_service, make_settings, produce, read_all, running

EVENTS = 300


def parent(index: int) -> bytes:
    return b"00-%032x-%016x-01" % (index + 1, index + 1)


def rows():
    for index in range(EVENTS):
        value = b"no json" if index % 7 == 0 else event([float(index % 11)])
        headers = [("traceparent", parent(index)), ("private", b"x")] if index % 3 == 0 else []
        yield 0, b"s%d" % (index % 5), value, headers


@pytest.mark.parametrize("mode", ["exactly-once", "at-least-once"])
async def test_traceparent_goes_with_the_answer(kafka, topic_name, create_topics, mode) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    await produce(kafka, topic, rows())
    settings = make_settings(kafka, topic, topic_name("group"), delivery={"mode": mode})
    bad = len(range(0, EVENTS, 7))
    for instance in ("first", "second"):  # what is replayed after the restart is not answered again
        service, recorder = await make_service(settings, instance=instance)
        async with running(service):
            good, dead = await asyncio.gather(
                read_all(kafka, f"{topic}.out", at_least=EVENTS - bad), read_all(kafka, f"{topic}.dlq", at_least=bad)
            )
        assert not recorder.errors
    assert (len(good), len(dead)) == (EVENTS - bad, bad)
    for read in good:
        index = read.source[1]
        assert read.headers.get("traceparent") == (parent(index) if index % 3 == 0 else None)
        assert "private" not in read.headers
    for read in dead:
        index = read.source[1]
        assert read.headers.get("traceparent") == (parent(index) if index % 3 == 0 else None)
        assert ("private" in read.headers) == (index % 3 == 0), "a dead letter keeps all headers"
