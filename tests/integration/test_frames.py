"""Records of several steps on a real broker, over restarts: every record is answered once, as the model answers the whole
sequence by itself; each record as a window; texts."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from onnx_models import lstm, lstm_fields, save
from serving import Recorder, Row, make_settings, produce, read_all, running, serve, wait_for
from simulated import ChainModel, advance

from streamer.core import F32
from streamer.modelfile.contract import Contract
from streamer.modelfile.model import Model
from streamer.service.check import Report, examine
from streamer.service.loop import Service
from streamer.service.wiring import Parts, build, prepare
from streamer.settings import Settings
from streamer.tools.inspect import inspect
from streamer.windows import WindowRule

FEATURES, STREAMS = 3, 5


@pytest.fixture
def models(tmp_path: Path) -> list[tuple[str, Model, WindowRule | None]]:
    """A causal model, and one that looks ahead in each record."""
    taken = {"name": "x", "shape": ["batch", "time", FEATURES], "steps": "many"}
    step = save(lstm(), tmp_path / "step.onnx", lstm_fields(input=taken))
    ahead = lstm_fields(input=taken, mode="window", states=None, outputs=[{"name": "y", "shape": ["batch", "time", 8]}])
    window = save(lstm(bidirectional=True), tmp_path / "window.onnx", ahead)
    return [("causal", Model.load(step), None), ("ahead", Model.load(window), WindowRule("record"))]


async def service_of(settings: Any, models: Any) -> tuple[Service, Recorder]:
    parts = await prepare(settings, models)
    recorder = Recorder()
    return build(Parts(settings, parts.models, parts.connection, parts.input), recorder, instance="a"), recorder


def frames() -> list[tuple[int, F32]]:
    rng = np.random.default_rng(0)
    return [
        (int(rng.integers(STREAMS)), rng.normal(size=(int(rng.integers(1, 9)), FEATURES)).astype("f4"))
        for _ in range(60)
    ]


def committed(recorder: Recorder, events: int) -> bool:
    return recorder.committed_events >= events


def alone(model: Model, x: F32) -> F32:
    (y,), _ = model.run(x[None], np.array([len(x)], np.int32), model.initial_states(1))
    return y[0]


@pytest.mark.parametrize("value_format", ["json", "float32", "msgpack"])
async def test_both_modes_over_restarts(kafka, topic_name, create_topics, models, value_format: str) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 2})
    write = {
        "json": lambda x: json.dumps({"x": x.tolist()}).encode(),
        "float32": lambda x: x.astype("<f4").tobytes(),
        "msgpack": lambda x: msgspec.msgpack.encode({"x": x.tolist()}),
    }[value_format]
    sent = frames()
    rows: list[Row] = [(stream % 2, b"s%d" % stream, write(x), []) for stream, x in sent]
    bad: list[Row] = [(0, b"s0", write(np.zeros((0, FEATURES))), []), (1, b"s1", write(np.zeros((9, FEATURES))), [])]
    settings = make_settings(
        kafka,
        topic,
        topic_name("group"),
        input={"format": value_format, "max_record_steps": 8},
    )
    for begin in (0, 20, 40):
        service, recorder = await service_of(settings, models)
        async with running(service):
            await produce(
                kafka, topic, [*rows[begin : begin + 10], *(bad if not begin else []), *rows[begin + 10 : begin + 20]]
            )
            await wait_for(partial(committed, recorder, 20), recorder)
    found = await read_all(kafka, f"{topic}.out", at_least=2 * len(sent))
    assert len(found) == 2 * len(sent)
    (_, causal, _), (_, ahead, _) = models
    for stream in range(STREAMS):
        mine = [read.document for read in found if read.key == b"s%d" % stream]
        given = [x for each, x in sent if each == stream]
        steps = [each for each in mine if "window" not in each]
        answered = np.concatenate([np.array(each["y"], np.float32) for each in steps])
        assert [len(each["y"]) for each in steps] == [len(x) for x in given]
        assert answered.tobytes() == alone(causal, np.concatenate(given)).tobytes()
        windows = [each for each in mine if "window" in each]
        for each, x in zip(windows, given, strict=True):
            assert (each["window"]["count"], each["window"]["reason"]) == (len(x), "record")
            assert np.array(each["y"], np.float32).tobytes() == alone(ahead, x).tobytes()
    letters = await read_all(kafka, f"{topic}.dlq", at_least=2)
    assert sorted(letter.headers["streamer-error"] for letter in letters) == [b"too_large", b"wrong_width"]


class Reader(ChainModel):
    """A chain over the characters of a text."""

    def __init__(self) -> None:
        super().__init__()
        fields = msgspec.to_builtins(self.contract)
        query = {"name": "query", "kind": "text", "vocabulary": ["a", "b", "ab", " "], "unknown": 3}
        self.contract = Contract.from_fields({**fields, "input": {**fields["input"], "features": [query]}})
        self.states = self.contract.states


@pytest.mark.parametrize("value_format", ["json-named", "json"])
async def test_texts_are_steps(kafka, topic_name, create_topics, value_format: str) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    name = "query" if value_format == "json-named" else "x"
    texts = {"ab a": [2, 3, 0], "ba": [1, 0], "ü": [3]}
    rows: list[Row] = [(0, b"s", json.dumps({name: text}).encode(), []) for text in (*texts, "")]
    settings = make_settings(kafka, topic, topic_name("group"), input={"format": value_format})
    await serve(settings, rows[:3], model=Reader())
    await produce(kafka, topic, rows[3:])
    await serve(settings, rows[:1], model=Reader())
    state, expected = 0.0, []
    for places in (*texts.values(), texts["ab a"]):
        outputs = []
        for place in places:
            state = advance(state, place)
            outputs.append(state)
        expected.append(outputs)
    assert [read.document["y"] for read in await read_all(kafka, f"{topic}.out", at_least=4)] == expected
    (letter,) = await read_all(kafka, f"{topic}.dlq", at_least=1)
    assert letter.headers["streamer-error"] == b"missing_feature"


async def test_check_tries_them_and_inspect_shows_them(kafka, topic_name, create_topics, models, tmp_path) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    good = [json.dumps({"x": x.tolist()}).encode() for _, x in frames()[:4]]
    await produce(kafka, topic, [(0, b"s", value, []) for value in (*good, b'{"x":[[1,2]]}')])
    (_, causal, _), (_, ahead, _) = models
    settings = make_settings(kafka, topic, topic_name("group")).model_dump()
    window = {"path": str(ahead.path), "window": {"kind": "record"}}
    settings["model"] = {"causal": {"path": str(causal.path)}, "ahead": window}
    report = Report()
    await examine(Settings(**settings), report, sample=10)
    assert report.problems == []
    assert report.sample is not None
    assert (report.sample["records"], report.sample["events"], report.sample["answers"]) == (5, 4, 8)
    assert list(report.sample["rejected"]) == ["wrong_width"]
    assert report.sample["windows"] == 4
    assert inspect(causal.path, measure=False)["contract"]["input"]["steps"] == "many"
