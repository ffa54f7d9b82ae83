"""Scenarios of groups: generations, static members, offsets, and how commits are fenced."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.simulation.conformance.scenarios import Told, scenario
from tests.simulation.conformance.talk import Talk

MEMBER = (-1, "", None)


@scenario("offsets in a transaction")
async def offsets(talk: Talk) -> Told:
    topic, name, group = talk.name("topic"), talk.name("id"), talk.name("group")
    await talk.create(topic)
    _, producer = await talk.init(name)
    told: Told = [await talk.committed(group, topic)]
    for outcome, offset in ((True, 5), (False, 9), (True, 7)):
        told.append(await talk.add_group(name, producer, group))
        told.append(await talk.commit_in(name, producer, group, {0: offset}, topic))
        told.append(await talk.committed(group, topic))
        told.append(await talk.end(name, producer, commit=outcome))
        await talk.add_group(name, producer, talk.name("until the markers are written"))
        await talk.end(name, producer, commit=True)
        await asyncio.sleep(0.1)
        told.append(await talk.committed(group, topic))
    return told


@scenario("joining, and the fence of a generation")
async def generations(talk: Talk) -> Told:
    topic, name, group = talk.name("topic"), talk.name("id"), talk.name("group")
    await talk.create(topic)
    _, producer = await talk.init(name)
    first = await talk.join(group)
    told: Told = [first.error_code, first.member_id != "", first.generation_id]
    one = await talk.join(group, first.member_id)
    told += [one.error_code, one.generation_id, one.leader_id == one.member_id, [m[2] for m in one.members]]
    told.append(await talk.beat(group, 1, one.member_id))
    told.append(await talk.sync(group, 1, one.member_id, {one.member_id: b"all"}))
    told += [await talk.beat(group, g, m) for g, m in ((1, one.member_id), (2, one.member_id), (1, "nobody"))]
    told += [(await talk.sync(group, g, m))[0] for g, m in ((2, one.member_id), (1, "nobody"))]
    told.append((await talk.join(group, "nobody")).error_code)

    async def commit(*member: Any) -> list[int]:
        await talk.add_group(name, producer, group)
        return await talk.commit_in(name, producer, group, {0: 3}, topic, member)

    told += [
        await commit(1, one.member_id, None),
        await commit(0, one.member_id, None),
        await commit(2, one.member_id, None),
    ]
    told += [await commit(1, "nobody", None), await commit(*MEMBER), await commit(1, one.member_id, "unknown instance")]
    told += [
        await talk.commit(group, topic, 4, g, m)
        for g, m in ((1, one.member_id), (2, one.member_id), (1, "nobody"), (-1, ""))
    ]
    other = await talk.another()
    hint = await other.join(group)
    told.append(hint.error_code)
    second = asyncio.ensure_future(other.join(group, hint.member_id))
    while (beat := await talk.beat(group, 1, one.member_id)) == 0:  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.05)
    told.append(beat)
    told += [(await talk.sync(group, 1, one.member_id))[0], await commit(1, one.member_id, None)]
    told.append(await talk.commit(group, topic, 4, 1, one.member_id))
    again = await talk.join(group, one.member_id)
    joined = await second
    told += [
        again.error_code,
        again.generation_id,
        joined.error_code,
        joined.generation_id,
        len(again.members),
        len(joined.members),
    ]
    told += [
        joined.leader_id == one.member_id,
        await commit(1, one.member_id, None),
        await commit(2, one.member_id, None),
    ]
    told.append(await talk.commit(group, topic, 4, 2, one.member_id))
    waiting = asyncio.ensure_future(other.sync(group, 2, joined.member_id))
    told.append(await talk.sync(group, 2, one.member_id, {one.member_id: b"left", joined.member_id: b"right"}))
    told += [await waiting, await talk.commit(group, topic, 4, 2, one.member_id)]
    told += [await talk.leave(group, joined.member_id), await talk.leave(group, "nobody")]
    told.append(await talk.beat(group, 2, one.member_id))
    told.append((await talk.join(group, one.member_id)).generation_id)
    told += [await talk.leave(group, one.member_id), await commit(*MEMBER), await commit(3, one.member_id, None)]
    told += [await talk.commit(group, topic, 6), await talk.committed(group, topic)]
    return told


@scenario("who does not come to a rebalance is removed")
async def removed(talk: Talk) -> Told:
    group = talk.name("group")
    one = await talk.join(group, (await talk.join(group)).member_id, rebalance_ms=1_000)
    told: Told = [await talk.sync(group, 1, one.member_id, {one.member_id: b"all"})]
    other = await talk.another()
    two = await other.join(group, (await other.join(group)).member_id, rebalance_ms=1_000)
    told += [two.error_code, two.generation_id, len(two.members), two.leader_id == two.member_id]
    told += [await talk.beat(group, 1, one.member_id), (await talk.join(group, one.member_id)).error_code]
    return told


@scenario("static members")
async def static(talk: Talk) -> Told:
    topic, name, group = talk.name("topic"), talk.name("id"), talk.name("group")
    await talk.create(topic)
    _, producer = await talk.init(name)
    one = await talk.join(group, instance="pod-1")
    told: Told = [one.error_code, one.generation_id, one.leader_id == one.member_id]
    told.append(await talk.sync(group, 1, one.member_id, {one.member_id: b"all"}, "pod-1"))
    await talk.add_group(name, producer, group)
    told.append(await talk.commit_in(name, producer, group, {0: 1}, topic, (1, one.member_id, "pod-1")))
    new = await talk.join(group, instance="pod-1")
    told += [
        new.error_code,
        new.generation_id,
        new.member_id == one.member_id,
        new.leader_id == new.member_id,
        len(new.members),
    ]
    told.append(await talk.sync(group, 1, new.member_id, instance="pod-1"))
    told += [await talk.beat(group, 1, one.member_id), await talk.beat(group, 1, new.member_id)]
    told.append((await talk.join(group, one.member_id, "pod-1")).error_code)
    told.append((await talk.sync(group, 1, one.member_id, instance="pod-1"))[0])
    told.append(await talk.commit_in(name, producer, group, {0: 2}, topic, (1, one.member_id, "pod-1")))
    told.append(await talk.commit_in(name, producer, group, {0: 2}, topic, (1, new.member_id, "pod-1")))
    changed = await talk.join(group, instance="pod-1", data=b"other")
    told += [changed.error_code, changed.generation_id]
    return told
