"""Generation through a real Kafka: text that goes on from a prompt, also when the service is killed in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

pytest.importorskip("torch")
pytest.importorskip("onnx")

import torch
from msgspec import structs
from serving import Read, event, make_settings, produce, read_all
from typer.testing import CliRunner

from export import recipes
from export.generate import rollout
from export.graph import export_model
from export.model import ModelConfig, SequenceModel, build, load
from export.recipes import characters
from streamer.cli import app
from streamer.modelfile.model import Model
from streamer.tools.bench.load import Plan

pytestmark = pytest.mark.torch

GENERATE = [("streamer-op", b"generate")]


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small trained model that writes sentences of the recipe's grammar."""
    folder = tmp_path_factory.mktemp("writer")
    assert recipes.run("characters", folder, quick=True)["passed"]
    return folder / "model.onnx"


class Running:
    """One ``streamer run`` with its log in a file."""

    def __init__(self, bootstrap: str, topic: str, model: Path, log: Path, *sections: str) -> None:
        self.log = log
        command = [sys.executable, "-m", "streamer.cli", "run"]
        for setting in (
            f"kafka.bootstrap={bootstrap}", f"kafka.group={topic}.group", "kafka.session_timeout_ms=6000",
            "kafka.heartbeat_interval_ms=500", f"input.topic={topic}", f"output.topic={topic}.out",
            f"model.m.path={model}", "http.port=0", "log.format=json", *sections,
        ):  # fmt: skip
            command += ["--set", setting]
        with log.open("ab") as file:
            self.child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)

    async def live(self) -> None:
        async with asyncio.timeout(90):
            while '"live"' not in self.log.read_text():
                assert self.child.poll() is None, self.log.read_text()
                await asyncio.sleep(0.05)


@contextlib.contextmanager
def serving(*args: Any) -> Iterator[Running]:
    running = Running(*args)
    try:
        yield running
    finally:
        running.child.kill()
        running.child.wait()


def asked(**request: Any) -> bytes:
    return json.dumps(request).encode()


def torch_text(module: SequenceModel, names: tuple[str, ...], prompt: str, count: int) -> str:
    """The most probable continuation, by PyTorch."""
    tokens = np.array([names.index(character) for character in prompt])[:, None]
    return "".join(names[int(token)] for token in rollout(module, tokens, count, lambda y: y.argmax(), lambda t: t))


def documents(found: list[Read]) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """Answers by the position of their request."""
    answers: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for read in sorted(found, key=lambda read: (read.partition, read.offset)):
        if "generate" in read.document:
            answers[read.source].append(read.document)
    return answers


async def committed(bootstrap: str, topic: str, count: int) -> None:
    """Returns as soon as a topic, which may not exist yet, holds ``count`` committed records."""
    options: dict[str, Any] = {"isolation_level": "read_committed", "auto_offset_reset": "earliest"}
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap, metadata_max_age_ms=200, **options)
    await consumer.start()
    try:
        async with asyncio.timeout(90):
            while count > 0:
                count -= sum(map(len, (await consumer.getmany(timeout_ms=100)).values()))
    finally:
        await consumer.stop()


async def continued(kafka: str, topic: str, model: Path, log: Path, prompt: str) -> dict[tuple[int, int], list[Any]]:
    """What the service makes of a prompt that came as live events, as a request's prompt, and twice with one seed."""
    names = Model.load(model).contract.outputs[0].labels
    assert names is not None
    live = [(0, b"play", event([names.index(character)]), []) for character in prompt]
    requests = [
        (0, b"play", asked(n=60, temperature=0), GENERATE),
        (0, b"other", asked(n=60, temperature=0, prompt=prompt), GENERATE),
        (0, b"play", asked(n=200, seed=4, temperature=0.8, top_k=20), GENERATE),
        (0, b"new", asked(n=200, seed=4, temperature=0.8, top_k=20, prompt=prompt), GENERATE),
        (0, b"play", asked(n=200, seed=5, temperature=0.8, top_k=20), GENERATE),
    ]
    await produce(kafka, topic, [*live, *requests])
    with serving(kafka, topic, model, log):
        answers = documents(await read_all(kafka, f"{topic}.out", at_least=len(prompt) + len(requests)))
    assert {len(told) for told in answers.values()} == {1}
    greedy, same, seeded, again, other = (answers[0, len(prompt) + n][0]["text"] for n in range(len(requests)))
    assert greedy == same == torch_text(load(model.with_suffix(".pt")), names, prompt, 60)
    assert seeded == again != other
    assert len(seeded) == 200
    return answers


async def test_text_goes_on_from_a_prompt(
    kafka: str, topic_name: Any, create_topics: Any, tmp_path: Path, writer: Path
) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    answers = await continued(kafka, topic, writer, tmp_path / "log", "The king ")
    first = answers[0, 9][0]["text"].split()[0]
    assert first in ("speaks", "weeps", "laughs", "sleeps"), "the grammar says what a king does"


async def test_a_kill_in_the_middle_changes_nothing(
    kafka: str, topic_name: Any, create_topics: Any, tmp_path: Path, writer: Path
) -> None:
    topic, n = topic_name("in"), 3_000
    await create_topics(kafka, {topic: 2})
    settings = ("generate.max_steps=4000", "delivery.checkpoint_interval_ms=100")
    seeds = list(range(6))

    def requests() -> list[tuple[int, bytes, bytes, list[tuple[str, bytes]]]]:
        whole = [(s % 2, b"w%d" % s, asked(n=n, seed=s, prompt="A "), GENERATE) for s in seeds]
        steps = [(s % 2, b"s%d" % s, asked(n=n, seed=s, prompt="A ", per_step=True), GENERATE) for s in seeds[:2]]
        return [*whole, *steps]

    await produce(kafka, topic, requests())
    for kill in range(2):
        with serving(kafka, topic, writer, tmp_path / f"log-{kill}", *settings):
            await committed(kafka, f"{topic}.out", 1 + kill * 400)
        before = await read_all(kafka, f"{topic}.out")
        assert 0 < len(before) < 2 * n, "killed too late to prove anything"
    await produce(kafka, topic, [(0, b"late", event([1.0]), [])])
    with serving(kafka, topic, writer, tmp_path / "log-last", *settings):
        found = await read_all(kafka, f"{topic}.out", at_least=len(seeds) + 2 * n + 1)
    answers = documents(found)
    by_seed: dict[int, set[str]] = defaultdict(set)
    for told in answers.values():
        about = told[0]["generate"]
        if "step" in about:
            assert [each["generate"]["step"] for each in told] == list(range(1, n + 1)), "a step is missing or repeated"
            by_seed[about["seed"]].add("".join(each["label"] for each in told))
        else:
            assert len(told) == 1
            by_seed[about["seed"]].add(told[0]["text"])
    assert all(len(texts) == 1 for texts in by_seed.values()), "the same seed gave different texts"
    assert len(set.union(*by_seed.values())) == len(seeds)
    # ... and the same as a process that nobody kills
    quiet = topic_name("quiet")
    await create_topics(kafka, {quiet: 2})
    await produce(kafka, quiet, requests())
    with serving(kafka, quiet, writer, tmp_path / "log-quiet", *settings):
        undisturbed = documents(await read_all(kafka, f"{quiet}.out", at_least=len(seeds) + 2 * n))
    assert answers.keys() == undisturbed.keys()
    for source, told in undisturbed.items():
        assert [each["y"] for each in answers[source]] == [each["y"] for each in told]


async def test_requests_that_cannot_be_carried_out_are_dead_lettered(
    kafka: str, topic_name: Any, create_topics: Any, tmp_path: Path, writer: Path
) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    rows = [
        (0, b"a", b"{", GENERATE),
        (0, b"a", asked(n=5000), GENERATE),
        *[(0, b"a", asked(n=500, seed=seed), GENERATE) for seed in range(3)],
    ]
    await produce(kafka, topic, rows)
    with serving(kafka, topic, writer, tmp_path / "log", "generate.max_open=2"):
        dead = await read_all(kafka, f"{topic}.dlq", at_least=3)
        answers = await read_all(kafka, f"{topic}.out", at_least=2)
    errors = {read.source[1]: read.headers["streamer-error"].decode() for read in dead}
    assert errors == {0: "bad_request", 1: "too_long", 4: "too_many_rollouts"}
    assert next(read for read in dead if read.source[1] == 1).value == asked(n=5000)
    assert sorted(read.source[1] for read in answers) == [2, 3]


async def test_the_command_asks_for_a_sequence(
    kafka: str, topic_name: Any, create_topics: Any, tmp_path: Path, writer: Path
) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    settings = make_settings(kafka, topic, "g")
    flags = [f"--set={key}={value}" for key, value in (
        ("kafka.bootstrap", kafka), ("kafka.group", "g"), ("input.topic", topic), ("output.topic", settings.output.topic),
        ("model.m.path", writer),
    )]  # fmt: skip
    command = ["stream", "generate", "play", "-n", "12", "--prompt", "My ", "--seed", "3", "--initial", *flags]
    done = await asyncio.to_thread(CliRunner().invoke, app, command)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["op"], told["found_by"]) == ("generate", "murmur2"), "from the initial state any partition serves"
    for flag, why in (("--top-k=0", "bad_request"), ("--steps=5000", "too_long"), ("--prompt=\u5b57", "bad_request")):
        refused = CliRunner().invoke(app, [*command, flag])
        assert why in str(refused.exception), "at once, not in the dead letters"
    with serving(kafka, topic, writer, tmp_path / "log"):
        (answer,) = await read_all(kafka, f"{topic}.out", at_least=1)
    assert len(answer.document["text"]) == 12
    assert answer.document["generate"]["seed"] == 3


@pytest.mark.accept
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lstm", "gru"])
async def test_held_out_text_of_shakespeare_and_what_it_goes_on_to_write(
    kafka: str,
    topic_name: Any,
    create_topics: Any,
    tmp_path: Path,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    recipe = characters.RECIPE
    assert (recipe.model.hidden, recipe.training.epochs) == (256, 4)
    monkeypatch.setattr(recipes, "get", lambda name: replace(recipe, model=structs.replace(recipe.model, kind=kind)))
    text = data_dir / "char-text" / "tinyshakespeare.txt"
    result = await asyncio.to_thread(recipes.run, "characters", tmp_path, data=text)
    assert result["verification"]["passed"]
    print(kind, result["value"], result["sample"])
    assert result["value"] <= 1.65
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    answers = await continued(kafka, topic, tmp_path / "model.onnx", tmp_path / "log", "ROMEO:\nWhat light")
    for told in answers.values():
        print(repr(told[0]["text"]))


class Arrivals:
    """Reads the answers while they come: latency of live ones by the time they were due, and which requests are done."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._bootstrap, self._topic = bootstrap, topic
        self.live: list[tuple[float, float]] = []
        """(due in ms, latency in ms)"""
        self.answered = 0

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._read())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _read(self) -> None:
        options: dict[str, Any] = {"isolation_level": "read_committed", "auto_offset_reset": "earliest"}
        consumer = AIOKafkaConsumer(self._topic, bootstrap_servers=self._bootstrap, fetch_max_wait_ms=5, **options)
        await consumer.start()
        try:
            while True:
                batches = await consumer.getmany(timeout_ms=100)
                now_ms = time.time() * 1000
                for record in (record for batch in batches.values() for record in batch):
                    if record.key.startswith(b"rolled"):
                        self.answered += 1
                    else:
                        self.live.append((record.timestamp, now_ms - record.timestamp))
        finally:
            await consumer.stop()


def sending(bootstrap: str, topic: str, plan: Plan, rate: int) -> subprocess.Popen[bytes]:
    """Open-loop load in a process of its own, which our reading cannot delay."""
    options = {"events": plan.events, "streams": plan.streams}
    document = {"bootstrap": bootstrap, "topic": topic, "rate": rate, "plan": options}
    return subprocess.Popen([sys.executable, "-m", "streamer.tools.bench.sender", json.dumps(document)])


@pytest.mark.accept
@pytest.mark.alone
@pytest.mark.slow
async def test_live_streams_hardly_notice_fifty_rollouts(
    kafka: str, topic_name: Any, create_topics: Any, tmp_path: Path
) -> None:
    """50 rollouts of 200 steps at a time beside 2,000 live events/s, in turns with none, in one run. The first turns are left
    out: a broker that has just started is slow in them, and so they would hide what rollouts cost."""
    torch.manual_seed(0)
    module = build(ModelConfig(features=16, hidden=64, outputs=16)).eval()
    feedback = {"output": "y", "mode": "value"}
    export_model(module, tmp_path / "m.onnx", name="m", features=None, feedback=feedback)
    topic, rate, turn_s, turns, first = topic_name("in"), 2_000, 6, 16, 4
    await create_topics(kafka, {topic: 4, f"{topic}.out": 4})
    plan = Plan(events=rate * turn_s * turns, streams=1_000)
    arrivals, rounds, marks = Arrivals(kafka, f"{topic}.out"), 0, []
    producer = AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()
    with serving(kafka, topic, tmp_path / "m.onnx", tmp_path / "log") as service:
        await service.live()
        sender = sending(kafka, topic, plan, rate)
        try:
            async with arrivals.reading():
                while not arrivals.live:
                    assert sender.poll() is None
                    await asyncio.sleep(0.01)
                began = time.time()
                for turn in range(turns):
                    end = began + (turn + 1) * turn_s
                    marks.append(time.time() * 1000)
                    while time.time() < end:
                        if turn % 2 and arrivals.answered == rounds * 50:
                            value = asked(n=200)
                            for number in range(50):
                                await producer.send(
                                    topic, value, key=b"rolled-%d" % number, partition=number % 4, headers=GENERATE
                                )
                            await producer.flush()
                            rounds += 1
                        await asyncio.sleep(0.005)
                    async with asyncio.timeout(30):  # a turn without rollouts begins without any
                        while arrivals.answered < rounds * 50:  # noqa: ASYNC110 - another process answers
                            await asyncio.sleep(0.005)
                async with asyncio.timeout(60):
                    while len(arrivals.live) < plan.events:  # noqa: ASYNC110 - another process answers
                        await asyncio.sleep(0.05)
        finally:
            await producer.stop()
            sender.kill()
            sender.wait()
    due, latency = np.array(arrivals.live).T
    turn_of = np.searchsorted(marks, due) - 1
    settled = due - np.array(marks)[np.maximum(turn_of, 0)] > 1_000  # the first second of a turn belongs to both
    quiet, beside = (latency[settled & (turn_of >= first) & (turn_of % 2 == odd)] for odd in (0, 1))
    figures = {
        name: {f"p{q}": round(float(np.percentile(part, q)), 1) for q in (50, 95, 99)}
        for name, part in (("without", quiet), ("with", beside))
    }
    print(f"{rounds * 50} rollouts of 200 steps, latency in ms: {figures}")
    assert arrivals.answered == rounds * 50
    assert rounds >= turns // 2
    assert figures["with"]["p99"] <= 1.5 * figures["without"]["p99"]
