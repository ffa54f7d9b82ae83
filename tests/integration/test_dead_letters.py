"""Rejects as people work on them: ``streamer dlq``; and what cannot be written as it is, which becomes one."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import pytest
from serving import event, make_service, make_settings, produce, read_all, running, wait_for
from typer.testing import CliRunner

from streamer.cli import app
from streamer.core import Headers
from streamer.errors import ConfigurationError
from streamer.kafka.rows import DeadLetter
from streamer.settings import Settings
from streamer.tools.deadletters import Filter, Letter, redriven, redrives, why_not


def cli(settings: Settings, *command: str) -> Any:
    told = {
        "kafka.bootstrap": settings.kafka.bootstrap,
        "kafka.group": settings.kafka.group,
        "input.topic": settings.input.topic,
        "output.topic": settings.output.topic,
        "model.chain.path": "unused.onnx",
    }
    done = CliRunner().invoke(app, ["dlq", *command, *(f"--set={key}={value}" for key, value in told.items())])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


async def test_rejects_are_shown_and_sent_again(kafka, topic_name, create_topics) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 2})
    settings = make_settings(kafka, topic, topic_name("group"))
    mine = [("note", b"[red]"), ("streamer-error", b"of another service")]
    rows = [
        (0, b"a", b"no [json]", mine),
        (1, b"b", event([1.0, 2.0]), []),
        (0, b"a", event([1.0]), []),
        (1, b"b", b"x" * 1_048_400, []),
        (0, None, event([1.0]), []),
    ]
    service, _ = await make_service(settings)
    async with running(service):
        await produce(kafka, topic, rows)
        await read_all(kafka, f"{topic}.dlq", at_least=4)
        before = await read_all(kafka, topic)

        found = json.loads(await asyncio.to_thread(cli, settings, "show", "--json"))
        counts = {reason: each["records"] for reason, each in found["reasons"].items()}
        assert counts == {"undecodable": 2, "wrong_width": 1, "missing_key": 1}
        newest, first = found["reasons"]["undecodable"]["examples"]
        assert (newest["whole"], newest["value_bytes"] < 1_048_400) == (False, True)
        assert (first["source"], first["key"], first["value"]) == (f"{topic}/0/0", "a", "no [json]")
        assert first["headers"] == [["note", "[red]"], ["streamer-error", "of another service"]]
        assert "no [json]" in await asyncio.to_thread(cli, settings, "show", "--reason=undecodable")
        one = json.loads(await asyncio.to_thread(cli, settings, "show", "--json", "-n", "1", f"--source={topic}/1"))
        assert {reason: len(each["examples"]) for reason, each in one["reasons"].items()} == {
            "undecodable": 1,
            "wrong_width": 1,
        }

        would = json.loads(await asyncio.to_thread(cli, settings, "replay", "--dry-run"))
        assert (would["would_send"], would["by_partition"]) == (3, {"0": 2, "1": 1})
        assert list(would["not_sent"].values()) == [1]
        assert len(await read_all(kafka, topic)) == len(before), "nothing was sent"

        sent = json.loads(await asyncio.to_thread(cli, settings, "replay", "--reason=undecodable"))
        assert (sent["sent"], sent["by_reason"], sent["by_partition"]) == (1, {"undecodable": 1}, {"0": 1})
        (again,) = [read for read in await read_all(kafka, topic) if read.partition == 0 and read.offset == 3]
        assert (again.key, again.value) == (b"a", b"no [json]")
        assert again.headers == {**dict(mine), "streamer-redrive": b"1"}

        # it is rejected again, and what was sent so often stays
        dead = await read_all(kafka, f"{topic}.dlq", at_least=5)
        assert max(read.source for read in dead if read.partition == 0) == (0, 3)
        last = json.loads(
            await asyncio.to_thread(
                cli, settings, "replay", f"--source={topic}/0/3", "--max-redrives=1", "--since=2020-01-01T00:00:00Z"
            )
        )
        assert (last["sent"], last["not_sent"]) == (0, {"replayed 1 times already": 1})


async def test_once_the_cause_is_gone_a_replayed_record_is_served(kafka, topic_name, create_topics) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    strict = make_settings(kafka, topic, topic_name("group"), input={"topic": topic, "max_record_bytes": 12})
    service, _ = await make_service(strict)
    async with running(service):
        await produce(kafka, topic, [(0, b"a", event([1.0]), []), (0, b"a", event([2.0], ts=1_700_000_000_000), [])])
        (dead,) = await read_all(kafka, f"{topic}.dlq", at_least=1)
        assert dead.headers["streamer-error"] == b"too_large"
    # what decides changed, so it is another group; it begins behind what the first one has settled
    lenient = make_settings(kafka, topic, topic_name("group"), input={"topic": topic, "start": "latest"})
    service, recorder = await make_service(lenient)
    async with running(service):
        await wait_for(lambda: recorder.recoveries, recorder)
        assert json.loads(await asyncio.to_thread(cli, strict, "replay"))["sent"] == 1
        answers = await read_all(kafka, f"{topic}.out", at_least=2)
    assert [read.source for read in answers] == [(0, 0), (0, 2)]


@pytest.mark.parametrize("mode", ["exactly-once", "at-least-once"])
async def test_nothing_is_too_large_to_commit(kafka, topic_name, create_topics, mode: str) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1}, config={"max.message.bytes": "4000000"})
    settings = make_settings(
        kafka, topic, topic_name("group"), output={"max_batch_bytes": 131_072}, delivery={"mode": mode}
    )
    service, recorder = await make_service(settings)
    counted: Counter[str] = Counter()
    committed = recorder.committed

    def count(outcome: str, epoch: Any, *more: Any) -> None:
        counted.update(epoch.report.rejects)
        committed(outcome, epoch, *more)

    recorder.committed = count  # type: ignore[method-assign]
    good = event([1.0])
    rows = [
        (0, b"k" * 600_000, good, []),
        (0, b"\x01" * 150_000, good, []),
        (0, b"a", good, [("traceparent", b"0" * 1_000_000), ("tracestate", b"kept")]),
        (0, b"t", good, [("traceparent", b"0" * 8_000)] * 20),  # each of them travels on
        (0, b"a", b"x" * 3_000_000, [("big", b"h" * 500_000)]),
        (0, b"b", good, []),
    ]
    async with running(service):
        await produce(kafka, topic, rows)
        answers = await read_all(kafka, f"{topic}.out", at_least=2)
        dead = await read_all(kafka, f"{topic}.dlq", at_least=4)
        await wait_for(lambda: counted.total() >= 4, recorder)
    reasons = {read.source[1]: read.headers["streamer-error"].decode() for read in dead}
    assert reasons == {0: "too_large", 1: "too_large", 3: "too_large_answer", 4: "too_large"}
    assert counted == Counter(reasons.values())
    assert [read.source[1] for read in answers] == [2, 5]
    assert answers[0].headers["tracestate"] == b"kept"
    assert "traceparent" not in answers[0].headers
    letter = next(read for read in dead if read.source[1] == 3)
    assert (letter.key, letter.value) == (b"t", None)
    assert answers[0].headers["streamer-model"] == b"chain@1 " + b"ab" * 8


# what decides, without Kafka


def letter(**changes: Any) -> Letter:
    given = {"reason": "undecodable", "detail": "", "source": "in/1/7", "headers": (), "whole": True, **changes}
    fields = {name: given.pop(name, default) for name, default in (("value", b"v"), ("timestamp_ms", 1_000))}
    return Letter(1, 0, fields["timestamp_ms"], b"k", fields["value"], DeadLetter(**given))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"whole": False}, "not whole"),
        ({"value": None}, None),
        ({"value": None, "headers": (("streamer-unreadable", b"offsets 3 to 7"),)}, "batch that nobody can read"),
        ({"value": None, "reason": "model_refused"}, "of an answer"),
        ({"value": None, "reason": "too_large_answer"}, "of an answer"),
        ({"source": "other/1/7"}, "another input: other"),
        ({"source": ""}, "no source"),
        ({"source": "in/9/7"}, "partition is gone"),
        ({"headers": (("streamer-redrive", b"2"),)}, None),
        ({"headers": (("streamer-redrive", b"3"),)}, "3 times already"),
        ({"headers": (("streamer-redrive", b"many"),)}, "3 times already"),
        ({"headers": (("streamer-redrive", None),)}, "3 times already"),
    ],
)
def test_which_dead_letters_are_sent_again(changes: dict[str, Any], why: str | None) -> None:
    found = why_not(letter(**changes), "in", (0, 1), 3)
    assert found == why if why is None else why in (found or "")


def test_every_replay_is_counted_on_the_record() -> None:
    headers: Headers = (("a", b"1"), ("a", None))
    for count in range(1, 4):
        headers = redriven(headers)
        assert list(headers) == [("a", b"1"), ("a", None), ("streamer-redrive", b"%d" % count)]
    assert redrives(headers) == 3


def test_the_filter() -> None:
    narrow = Filter.of(["undecodable", "late"], "1000", "2000", "in/1")
    assert narrow.takes(letter())
    assert narrow.takes(letter(reason="late", timestamp_ms=1_999))
    for changes in ({"reason": "bad_key"}, {"timestamp_ms": 999}, {"timestamp_ms": 2_000}, {"source": "in/11/7"}):
        assert not narrow.takes(letter(**changes)), changes
    assert Filter.of(None, None, None, "in/1/7").takes(letter())
    assert not Filter.of(None, None, None, "in/1/70").takes(letter())
    for reasons, since in ((["lat"], None), (None, "yesterday")):
        with pytest.raises(ConfigurationError):
            Filter.of(reasons, since, None, None)
