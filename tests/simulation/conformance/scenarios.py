"""What a broker answers: one short story per rule that the service relies on. Each returns what it was told.

Nothing in the telling may depend on names, ids or time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from tests.simulation.conformance.talk import Talk

Told = list[Any]
SCENARIOS: dict[str, Callable[[Talk], Awaitable[Told]]] = {}
SLOW = {"compaction", "a transaction that times out"}
"""These wait for a broker's own clock."""


def scenario(name: str) -> Callable[[Callable[[Talk], Awaitable[Told]]], Callable[[Talk], Awaitable[Told]]]:
    def enter(function: Callable[[Talk], Awaitable[Told]]) -> Callable[[Talk], Awaitable[Told]]:
        SCENARIOS[name] = function
        return function

    return enter


def kv(*texts: str) -> list[tuple[bytes | None, bytes | None]]:
    return [(None, text.encode()) for text in texts]


@scenario("offsets of a plain log")
async def plain(talk: Talk) -> Told:
    topic = talk.name("plain")
    told: Told = [await talk.create(topic)]
    told += [
        await talk.produce(topic, kv("a", "b"), stamps_ms=[1_000, 3_000]),
        await talk.produce(topic, kv("c"), stamps_ms=[2_000]),
    ]
    told += [await talk.offset(topic, when) for when in (-1, -2, 500, 1_500, 2_500, 3_500)]
    told += [await talk.fetch(topic, offset) for offset in (0, 1, 2, 3)]
    told += [(await talk.fetch(topic, offset))["code"] for offset in (4, 100, -5)]
    told.append(await talk.fetch(topic, 0, max_bytes=1))
    return told


@scenario("retention")
async def retention(talk: Talk) -> Told:
    topic = talk.name("kept")
    await talk.create(topic)
    for text in ("a", "b", "c"):
        await talk.produce(topic, kv(text, text))
    told: Told = [await talk.delete_records(topic, 3)]
    told += [await talk.offset(topic, when) for when in (-2, -1)]
    told += [(await talk.fetch(topic, offset))["code"] for offset in (0, 2, 3, 6)]
    told.append(await talk.fetch(topic, 3))
    told += [await talk.delete_records(topic, 100), await talk.delete_records(topic, -1), await talk.offset(topic, -2)]
    told += [await talk.produce(topic, kv("d")), await talk.fetch(topic, 6)]
    return told


@scenario("what does not exist")
async def unknown(talk: Talk) -> Told:
    topic, group = talk.name("nowhere"), talk.name("group")
    told: Told = [(await talk.topic_id(topic))[0]]
    told += [await talk.produce(topic, kv("a")), (await talk.fetch(topic, 0))["code"], await talk.offset(topic, -1)]
    told += [await talk.commit(group, topic, 1), await talk.committed(group, topic)]
    _, producer = await talk.init(talk.name("id"))
    told.append(await talk.add(talk.name("id"), producer, topic))
    told.append(await talk.add(talk.name("never seen"), producer, topic))
    there = talk.name("there")
    told += [await talk.create(there), await talk.add(talk.name("never seen"), producer, there)]
    told.append((await talk.fetch(there, 0, partition=7))["code"])
    return told


@scenario("sequences of an idempotent producer")
async def sequences(talk: Talk) -> Told:
    topic = talk.name("sequences")
    await talk.create(topic)
    _, producer = await talk.init(None)
    told: Told = [await talk.produce(topic, kv("a", "b"), producer=producer, sequence=0)]
    told.append(await talk.produce(topic, kv("a", "b"), producer=producer, sequence=0))  # again
    told.append(await talk.produce(topic, kv("x"), producer=producer, sequence=5))  # a gap
    for number in range(2, 9):
        told.append(await talk.produce(topic, kv(str(number)), producer=producer, sequence=number))
    told.append(await talk.produce(topic, kv("8"), producer=producer, sequence=8))
    told.append(await talk.produce(topic, kv("4"), producer=producer, sequence=4))
    told.append((await talk.produce(topic, kv("a", "b"), producer=producer, sequence=0))[0])  # forgotten
    older, newer = producer, (producer[0], producer[1] + 1)
    told.append(await talk.produce(topic, kv("n"), producer=newer, sequence=3))
    told.append(await talk.produce(topic, kv("n"), producer=newer, sequence=0))
    told.append(await talk.produce(topic, kv("o"), producer=older, sequence=9))
    _, stranger = await talk.init(None)
    told.append(await talk.produce(topic, kv("s"), producer=stranger, sequence=77))  # nothing is known of it
    told.append(await talk.produce(topic, kv("s"), producer=stranger, sequence=0))
    told.append(await talk.fetch(topic, 0))
    return told


@scenario("a transaction, from both kinds of readers")
async def transaction(talk: Talk) -> Told:
    topic, name = talk.name("topic"), talk.name("id")
    await talk.create(topic)
    told: Told = [await talk.produce(topic, kv("before"))]
    code, producer = await talk.init(name)
    told += [code, producer[1], await talk.add(name, producer, topic)]
    told.append(await talk.produce(topic, kv("a", "b"), producer=producer, sequence=0, name=name))
    told.append(await talk.produce(topic, kv("beside")))
    told += [await talk.offset(topic, -1), await talk.offset(topic, -1, committed=True)]
    told += [await talk.fetch(topic, 0), await talk.fetch(topic, 1), await talk.fetch(topic, 0, committed=False)]
    told += [await talk.fetch(topic, 2)]
    told.append(await talk.end(name, producer, commit=True))
    await talk.until_stable(topic, 5)
    told += [await talk.fetch(topic, 0), await talk.fetch(topic, 4), await talk.fetch(topic, 5)]
    told += [await talk.end(name, producer, commit=True), await talk.end(name, producer, commit=False)]
    return told


@scenario("aborted ranges")
async def aborted(talk: Talk) -> Told:
    topic, one, two = talk.name("topic"), talk.name("one"), talk.name("two")
    await talk.create(topic)
    (_, first), (_, second) = await talk.init(one), await talk.init(two)
    await talk.add(one, first, topic)
    await talk.add(two, second, topic)
    told: Told = [await talk.produce(topic, kv("1a"), producer=first, sequence=0, name=one)]
    told.append(await talk.produce(topic, kv("2a"), producer=second, sequence=0, name=two))
    told.append(await talk.produce(topic, kv("1b"), producer=first, sequence=1, name=one))
    told.append(await talk.end(one, first, commit=False))
    await asyncio.sleep(0.2)
    told += [await talk.offset(topic, -1, committed=True), await talk.fetch(topic, 0)]
    told.append(await talk.produce(topic, kv("2b"), producer=second, sequence=1, name=two))
    told.append(await talk.end(two, second, commit=True))
    await talk.until_stable(topic, 6)
    told += [await talk.fetch(topic, offset) for offset in range(7)]
    told.append(await talk.delete_records(topic, 4))
    told += [await talk.fetch(topic, 4), await talk.fetch(topic, 4, committed=False)]
    return told


@scenario("a log that begins behind a marker")
async def behind_marker(talk: Talk) -> Told:
    topic, name = talk.name("topic"), talk.name("id")
    await talk.create(topic)
    _, producer = await talk.init(name)
    await talk.add(name, producer, topic)
    await talk.produce(topic, kv("a", "b"), producer=producer, sequence=0, name=name)
    await talk.end(name, producer, commit=True)
    await talk.until_stable(topic, 3)
    told: Told = [await talk.fetch(topic, 2), await talk.delete_records(topic, 3)]
    told += [
        await talk.offset(topic, -2),
        await talk.offset(topic, -1),
        (await talk.fetch(topic, 2))["code"],
        await talk.fetch(topic, 3),
    ]
    return told


@scenario("retention stops at an open transaction")
async def retention_open(talk: Talk) -> Told:
    topic, name = talk.name("topic"), talk.name("id")
    await talk.create(topic)
    _, producer = await talk.init(name)
    await talk.add(name, producer, topic)
    await talk.produce(topic, kv("a"))
    await talk.produce(topic, kv("b"), producer=producer, sequence=0, name=name)
    await talk.produce(topic, kv("c"))
    told: Told = [await talk.offset(topic, -1, committed=True), await talk.fetch(topic, 0)]
    told.append(await talk.end(name, producer, commit=False))
    await talk.until_stable(topic, 4)
    told.append(await talk.fetch(topic, 0))
    return told


@scenario("fencing by initialising an id")
async def fencing(talk: Talk) -> Told:
    topic, name, group = talk.name("topic"), talk.name("id"), talk.name("group")
    await talk.create(topic)
    _, old = await talk.init(name)
    told: Told = [old[1], await talk.add(name, old, topic)]
    told.append(await talk.produce(topic, kv("old"), producer=old, sequence=0, name=name))
    code, new = await talk.init(name)
    told += [code, new[0] == old[0], new[1]]
    await talk.until_stable(topic, 2)
    told.append(await talk.fetch(topic, 0))
    told += [await talk.produce(topic, kv("zombie"), producer=old, sequence=1, name=name)]
    told += [await talk.add(name, old, topic), await talk.add_group(name, old, group)]
    told += [await talk.end(name, old, commit=True), await talk.end(name, old, commit=False)]
    told.append(await talk.commit_in(name, old, group, {0: 1}, topic))
    told += [
        await talk.add(name, new, topic),
        await talk.produce(topic, kv("new"), producer=new, sequence=0, name=name),
    ]
    told.append(await talk.end(name, new, commit=True))
    await talk.until_stable(topic, 4)
    told.append(await talk.fetch(topic, 0))
    code, third = await talk.init(name)
    told += [code, third[0] == old[0], third[1]]
    return told


@scenario("what must be in a transaction")
async def membership(talk: Talk) -> Told:
    topic, name, group = talk.name("topic"), talk.name("id"), talk.name("group")
    await talk.create(topic, 2)
    _, producer = await talk.init(name)
    told: Told = [await talk.produce(topic, kv("early"), producer=producer, sequence=0, name=name)]
    told += [await talk.end(name, producer, commit=True), await talk.add(name, producer, topic)]
    told.append(await talk.produce(topic, kv("other"), producer=producer, sequence=0, name=name, partition=1))
    told.append(await talk.commit_in(name, producer, group, {0: 1}, topic))
    told.append(await talk.commit_in(talk.name("never seen"), producer, group, {0: 1}, topic))
    told.append(await talk.add_group(name, producer, group))
    told.append(await talk.commit_in(name, producer, group, {0: 1}, topic))
    told.append(await talk.commit_in(name, producer, group, {5: 1}, topic))
    told.append(await talk.end(name, producer, commit=True))
    told.append((await talk.init(talk.name("long"), timeout_ms=100_000_000))[0])
    return told


@scenario("records that are not taken")
async def refused(talk: Talk) -> Told:
    topic = talk.name("topic")
    await talk.create(topic, config={"max.message.bytes": "1000"})
    told: Told = [await talk.produce(topic, kv("x" * 2_000)), await talk.produce(topic, kv("x" * 500))]
    late, early = 4_102_444_800_000, 1_000
    told += [await talk.produce(topic, kv("a"), stamps_ms=[stamp]) for stamp in (late, early)]
    _, producer = await talk.init(None)
    told.append(await talk.produce(topic, kv("x" * 2_000), producer=producer, sequence=0))
    told.append(await talk.produce(topic, kv("next"), producer=producer, sequence=1))
    return told


@scenario("a topic that is deleted and made again")
async def recreated(talk: Talk) -> Told:
    topic, name, group = talk.name("topic"), talk.name("id"), talk.name("group")
    told: Told = [await talk.create(topic, 2)]
    _, plain = await talk.init(None)
    _, producer = await talk.init(name)
    told += [await talk.produce(topic, kv(str(n)), producer=plain, sequence=n) for n in range(3)]
    told.append(await talk.commit(group, topic, 3))
    old = await talk.topic_id(topic)
    told += [old[0], old[2], await talk.delete(topic), (await talk.fetch(topic, 0))["code"]]
    told.append(await talk.create(topic, 1))
    new = await talk.topic_id(topic)
    told += [new[0], new[2], new[1] == old[1]]
    await asyncio.sleep(0.3)
    told += [await talk.committed(group, topic), await talk.offset(topic, -1), (await talk.fetch(topic, 3))["code"]]
    told += [await talk.produce(topic, kv("new"), producer=plain, sequence=3), await talk.fetch(topic, 0)]
    told += [await talk.add_partitions(topic, 3), await talk.add_partitions(topic, 3) != 0]
    while (await talk.topic_id(topic))[2] != 3:  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.05)
    told.append(await talk.add(name, producer, topic))
    return told


@scenario("a transaction that times out")
async def timeout(talk: Talk) -> Told:
    topic, name = talk.name("topic"), talk.name("id")
    await talk.create(topic)
    _, producer = await talk.init(name, timeout_ms=500)
    await talk.add(name, producer, topic)
    told: Told = [await talk.produce(topic, kv("a"), producer=producer, sequence=0, name=name)]
    await talk.until_stable(topic, 2)
    told += [await talk.fetch(topic, 0), await talk.produce(topic, kv("b"), producer=producer, sequence=1, name=name)]
    told += [await talk.add(name, producer, topic), await talk.end(name, producer, commit=True)]
    code, new = await talk.init(name)
    told += [code, new[0] == producer[0], new[1]]
    return told


@scenario("compaction")
async def compaction(talk: Talk) -> Told:
    topic, name = talk.name("topic"), talk.name("id")
    config = {
        "cleanup.policy": "compact", "segment.ms": "100", "min.cleanable.dirty.ratio": "0.01", "delete.retention.ms": "100",
        "max.compaction.lag.ms": "100",
    }  # fmt: skip
    await talk.create(topic, config=config)
    _, producer = await talk.init(name)

    async def write(sequence: int, *pairs: tuple[bytes, bytes | None], commit: bool = True) -> None:
        await talk.add(name, producer, topic)
        await talk.produce(topic, pairs, producer=producer, sequence=sequence, name=name)
        await talk.end(name, producer, commit=commit)
        await asyncio.sleep(0.3)

    await write(0, (b"a", b"1"), (b"b", b"1"))
    await write(2, (b"a", b"2"), commit=False)
    await write(3, (b"c", b"1"), (b"b", b"2"))
    await write(5, (b"c", None))
    await write(6, (b"d", b"1"))
    told: Told = []
    for _ in range(400):  # the last record lies in the active segment, which is left alone
        await talk.produce(topic, [(b"e", b"1")])
        found = await everything(talk, topic)
        keys = [(key, value) for _, key, value in (each for each in found if len(each) == 3) if key != b"e"]
        if keys == [(b"a", b"1"), (b"b", b"2"), (b"d", b"1")]:
            told.append([each for each in found if len(each) == 3 and each[1] != b"e"])
            break
        await asyncio.sleep(0.3)
    told += [await talk.offset(topic, -2), (await talk.fetch(topic, 1))["code"]]
    return told


async def everything(talk: Talk, topic: str) -> list[tuple[Any, ...]]:
    """All records and markers from the begin to the end, as a reader of committed records gets them."""
    offset, end = (await talk.offset(topic, -2))[1], (await talk.offset(topic, -1, committed=True))[1]
    answer = await talk.fetch(topic, offset)
    found = list(answer["records"])
    while found and found[-1][0] < end - 1:
        more = (await talk.fetch(topic, found[-1][0] + 1))["records"]
        if not more:
            break
        found += [each for each in more if each[0] > found[-1][0]]
    return found
