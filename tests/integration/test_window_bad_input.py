"""Input that does not behave, through a real Kafka: every record is answered, dead-lettered or harmless, and the service
goes on. One partition, so that one stream's mistakes could harm the others."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from serving import Recorder, event, make_settings, produce, read_all, running
from windowing import FoldModel, fold

from streamer.service.wiring import Parts, build, prepare
from streamer.windows import WindowRule

END = [("streamer-op", b"end")]
Record = tuple[int, bytes | None, bytes | None, list[tuple[str, bytes]]]


async def serve(
    kafka: str, topic: str, rule: WindowRule, rows: list[Record], *, answers: int, rejects: int = 0, **sections: Any
) -> tuple[list[dict[str, Any]], dict[int, str], Recorder]:
    """What one service says to ``rows``: documents in order, rejects by offset."""
    settings = make_settings(kafka, topic, f"{topic}.group", **sections)
    recorder = Recorder()
    parts = await prepare(settings, [("fold", FoldModel(), rule)])  # type: ignore[list-item]
    service = build(Parts(settings, parts.models, parts.connection, parts.input), recorder, instance="a")
    async with running(service):
        await produce(kafka, topic, rows)
        found = await read_all(kafka, f"{topic}.out", at_least=answers)
        dead = await read_all(kafka, f"{topic}.dlq", at_least=rejects)
        while recorder.committed_events < len(rows) - len(dead):
            recorder.changed.clear()
            await recorder.changed.wait()
    found = await read_all(kafka, f"{topic}.out")
    assert not recorder.errors
    return (
        [read.document for read in found],
        {r.source[1]: r.headers["streamer-error"].decode() for r in dead},
        recorder,
    )


async def test_times_that_do_not_behave(kafka, topic_name, create_topics) -> None:
    topic, now = topic_name("in"), int(time.time() * 1000)
    await create_topics(kafka, {topic: 1})
    rows: list[Record] = [
        (0, b"a", event([1.0], ts=now), []),
        (0, b"a", event([2.0]), []),  # no time: the record's own
        (0, b"liar", event([3.0], ts=now + 10**9), []),  # would close every window
        (0, b"liar", event([3.0], ts=now * 1_000), []),  # microseconds
        (0, b"liar", b'{"x":[3.0],"ts":-1}', []),
        (0, b"liar", b'{"x":[3.0],"ts":"noon"}', []),
        (0, b"a", event([4.0], ts=now - 5_000), []),  # back, within the allowed disorder
        (0, b"a", event([5.0], ts=now - 60_000), []),  # back too far, a session of its own
        (0, b"a", b"", END),
    ]
    documents, dead, _ = await serve(
        kafka, topic, WindowRule("session", gap_ms=20_000, disorder_ms=10_000), rows, answers=1, rejects=5,
        input={"late": "dead-letter"},
    )  # fmt: skip
    assert dead == {2: "bad_time", 3: "bad_time", 4: "bad_time", 5: "bad_time", 7: "late"}
    assert [(document["stream"], document["y"]) for document in documents] == [("a", fold([4.0, 1.0, 2.0]))]


async def test_end_marks_for_nobody_twice_and_in_a_row(kafka, topic_name, create_topics) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    rows: list[Record] = [
        (0, b"unknown", b"", END),
        (0, b"a", event([1.0]), []),
        (0, b"a", None, END),
        (0, b"a", b"", END),
        (0, b"unknown", b"not even json", END),
        (0, b"a", event([2.0]), []),  # a new sequence, of length one
        (0, b"a", b"", END),
        (0, b"a", b"", [("streamer-op", b"finish")]),
    ]
    documents, dead, _ = await serve(kafka, topic, WindowRule("end"), rows, answers=2, rejects=1)
    assert [(d["y"], d["window"]["count"]) for d in documents] == [(fold([1.0]), 1), (fold([2.0]), 1)]
    assert dead == {7: "unknown_command"}


async def test_windows_of_length_one(kafka, topic_name, create_topics) -> None:
    topic, count = topic_name("in"), 500
    await create_topics(kafka, {topic: 1})
    rows: list[Record] = [(0, b"a", event([float(at % 10)], ts=7), []) for at in range(count)]
    documents, dead, _ = await serve(kafka, topic, WindowRule("count", count=1), rows, answers=count)
    assert [document["y"] for document in documents] == [fold([float(at % 10)]) for at in range(count)]
    assert [document["window"]["part"] for document in documents] == list(range(count))
    assert not dead


async def test_one_stream_that_never_ends_and_too_many_that_never_end(kafka, topic_name, create_topics) -> None:
    topic, count, most = topic_name("in"), 6_000, 50
    await create_topics(kafka, {topic: 1})
    rows: list[Record] = [(0, b"endless", event([1.0]), []) for _ in range(count)]
    rows += [(0, b"s%d" % at, event([2.0]), []) for at in range(count)]
    rule = WindowRule("end", max_events=1_000, max_open_windows=most)
    documents, dead, _ = await serve(kafka, topic, rule, rows, answers=count // 1_000 + count - most)
    reasons = Counter(document["window"]["reason"] for document in documents)
    assert reasons == {"full": count // 1_000, "limit": count - most}
    assert [d["stream"] for d in documents[6:]] == [f"s{at}" for at in range(count - most)], "the oldest go first"
    assert not dead
