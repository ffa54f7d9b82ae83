"""Encoder and decoder in services that die while queries and events flow: a reader of committed records sees what is written
about each query and about each window exactly once, in the order of its stream, as of a run that nobody disturbed."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import pairs
import queries
from bursts import PARTITIONS, Bursts, decoded, read_log
from members import FEATURES, Member, members
from serving import read_all
from windowing import Reference

from export.encdec import export_pair
from streamer.generate.search import decode
from streamer.modelfile.model import Model
from streamer.windows import WindowRule

pytestmark = [pytest.mark.chaos, pytest.mark.torch]

IDLE_MS = 60_000
"""Longer than the load ever pauses: the reference knows the log, not when it was silent."""
SESSIONS = WindowRule("session", gap_ms=400, max_events=30, disorder_ms=50)


async def killed(group: list[Member], kills: int, start: Callable[[int], Member]) -> None:
    """One member after the other; the last one lives."""
    rng = random.Random(kills)
    for number in range(kills + 1):
        group.append(start(number))
        await group[-1].says('"live"')
        if number < kills:
            await asyncio.sleep(rng.uniform(0.0, 1.5))  # when it dies is the point of the test
            group[-1].signal(signal.SIGKILL)
            group[-1].child.wait()


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.accept)])
async def test_queries_of_a_killed_service(
    kafka: str, topic_name: Any, create_topics: Any, tmp_path: Path, kills: int
) -> None:
    topic = topic_name("in")
    path = queries.save(queries.corrector(), tmp_path / "pair.onnx", max_steps=60, search="beam", width=2)
    await create_topics(kafka, {topic: queries.PARTITIONS})
    load = queries.Queries(kafka, topic, 50, broken_every=10)
    with members() as group:
        async with load.flowing():
            await killed(group, kills, lambda number: queries.member(kafka, topic, path, tmp_path, number))
        found = await read_all(kafka, f"{topic}.out", at_least=len(load.asked), alive=group[-1].alive)
        letters = await read_all(kafka, f"{topic}.dlq", at_least=len(load.broken), alive=group[-1].alive)
    assert len(load.broken) > len(queries.BROKEN), "the load did not reach everything"
    queries.check_answers(found, load.asked, path)
    told = [(read.source, read.headers["streamer-error"].decode()) for read in letters]
    assert sorted(told) == sorted(load.broken.items()), "a reject is told once, with its reason"


def member(kafka: str, topic: str, path: Path, folder: Path, number: int) -> Member:
    names = ("gap_ms", "max_events", "disorder_ms")
    return Member(
        kafka, topic, folder, number, f"delivery.idle_ms={IDLE_MS}", "input.min_time=1970-01-01T00:00:00Z",
        f"model.pair.path={path}", "model.pair.window.kind=session",
        *(f"model.pair.window.{name}={getattr(SESSIONS, name)}" for name in names),
    )  # fmt: skip


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.accept)])
async def test_windows_of_a_killed_service(
    kafka: str, topic_name: Any, create_topics: Any, tmp_path: Path, kills: int
) -> None:
    """Sessions, which stay open over kills themselves; what is written about them ends after many commits."""
    topic, path = topic_name("in"), tmp_path / "pair.onnx"
    signals = {"name": "x", "shape": ["batch", "time", FEATURES]}
    module = pairs.lively(pairs.Pair(pairs.SignalEncoder(FEATURES), pairs.BahdanauDecoder()))
    export_pair(module, pairs.fields(signals, max_steps=100), path)
    await create_topics(kafka, {topic: PARTITIONS})
    with members() as group:
        async with Bursts(kafka, topic, 200).flowing():
            await killed(group, kills, lambda number: member(kafka, topic, path, tmp_path, number))
        wanted: dict[tuple[Any, ...], list[Any]] = {}
        order: dict[tuple[int, str], list[tuple[Any, ...]]] = {}
        for partition, records in (await read_log(kafka, topic)).items():
            reference, rows = Reference(SESSIONS), decoded(records)
            x_of = {row[0]: row[3] for row in rows}
            for row in rows:
                for closed in reference.record(*row).closed:
                    name = (partition, closed.stream, closed.start, closed.end, closed.reason, closed.part)
                    wanted[name] = [x_of[offset] for _, offset in closed.events]
                    order.setdefault((partition, closed.stream), []).append(name)
        assert len(wanted) > 20, "the load closed too little to prove anything"
        found = await read_all(kafka, f"{topic}.out", at_least=len(wanted), alive=group[-1].alive)
    written = decode(Model.load(path), [np.array(x, np.float32) for x in wanted.values()])
    right = {name: list(each.symbols) for name, each in zip(wanted, written, strict=True)}
    assert len(set(map(tuple, right.values()))) > 5, "the test's own model writes the same about everything"
    came: dict[tuple[int, str], list[tuple[Any, ...]]] = {}
    counts: Counter[tuple[Any, ...]] = Counter()
    for read in sorted(found, key=lambda read: (read.partition, read.offset)):
        document = read.document
        window = (document["window"][name] for name in ("start", "end", "reason", "part"))
        name = (read.partition, document["stream"], *window)
        counts[name] += 1
        came.setdefault(name[:2], []).append(name)  # type: ignore[arg-type]
        assert document["y"] == right[name], "written about other contents, or otherwise"
    assert set(counts) == set(wanted)
    assert set(counts.values()) == {1}, "a window was answered twice"
    assert came == order, "answers of a stream are out of order"
