"""Window mode on a real broker: one prediction per closed window, equal to the model run on the window alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import Recorder, event, make_settings, produce, read_all, running

from streamer.modelfile.model import Model
from streamer.service.loop import Service
from streamer.service.wiring import Parts, build, prepare
from streamer.windows import WindowRule

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

FEATURES, STREAMS = 3, 6


@pytest.fixture
def model(tmp_path: Path) -> Model:
    from export.graph import export_model
    from export.model import ModelConfig
    from export.model import build as build_model

    torch.manual_seed(0)
    config = ModelConfig(features=FEATURES, hidden=4, kind="lstm", directions=2, outputs=2, reduce="last")
    export_model(
        build_model(config).eval(), tmp_path / "bi.onnx", name="bi", features=[f"f{i}" for i in range(FEATURES)]
    )
    return Model.load(tmp_path / "bi.onnx")


def sequence(stream: int) -> Any:
    return np.random.default_rng(stream).normal(size=(4 + stream, FEATURES)).astype(np.float32)


def alone(model: Model, x: Any) -> list[float]:
    (y, *_), _ = model.run(x[None], np.array([len(x)], np.int32), model.initial_states(1))
    return y[0].tolist()


async def service_of(settings: Any, model: Model, rule: WindowRule) -> tuple[Service, Recorder]:
    recorder = Recorder()
    parts = await prepare(settings, [("bi", model, rule)])
    return build(Parts(settings, parts.models, parts.connection, parts.input), recorder, instance="a"), recorder


async def committed(recorder: Recorder, events: int) -> None:
    while recorder.committed_events < events:
        recorder.changed.clear()
        await recorder.changed.wait()


async def test_open_windows_survive_a_restart_and_close_once(kafka, topic_name, create_topics, model: Model) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 2})
    settings = make_settings(kafka, topic, topic_name("group"))
    rows = [
        (stream % 2, b"s%d" % stream, event(sequence(stream)[step].tolist(), ts=1_000 + step), [])
        for step in range(4 + STREAMS)
        for stream in range(STREAMS)
        if step < 4 + stream
    ]
    half = len(rows) // 2
    await produce(kafka, topic, rows[:half])
    service, recorder = await service_of(settings, model, WindowRule("end"))
    async with running(service):
        await committed(recorder, half)
    assert await read_all(kafka, f"{topic}.out") == []

    service, recorder = await service_of(settings, model, WindowRule("end"))
    async with running(service):
        await produce(kafka, topic, rows[half:])
        marks = [(stream % 2, b"s%d" % stream, b"", [("streamer-op", b"end")]) for stream in range(STREAMS)]
        await produce(kafka, topic, marks)
        found = await read_all(kafka, f"{topic}.out", at_least=STREAMS)
    service, recorder = await service_of(settings, model, WindowRule("end"))
    async with running(service):
        await produce(kafka, topic, marks)  # an end mark again, for streams without a window
        await produce(kafka, topic, [(0, b"s0", event([1.0, 2.0, 3.0]), [])])
        await committed(recorder, 1)
        found = await read_all(kafka, f"{topic}.out", at_least=STREAMS)
    assert sorted(read.key for read in found) == [b"s%d" % stream for stream in range(STREAMS)]
    for read in found:
        stream = int(read.key[1:])
        assert read.document["window"]["count"] == 4 + stream
        assert read.document["window"]["reason"] == "end"
        assert np.allclose(read.document["y"], alone(model, sequence(stream)), atol=1e-6)


async def test_windows_close_on_a_silent_topic(kafka, topic_name, create_topics, model: Model) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 2})
    settings = make_settings(kafka, topic, topic_name("group"), delivery={"idle_ms": 300})
    service, recorder = await service_of(settings, model, WindowRule("tumbling", size_ms=500))
    async with running(service):
        await produce(
            kafka, topic, [(1, b"a", event(row.tolist(), ts=100 + 10 * at), []) for at, row in enumerate(sequence(2))]
        )
        (read,) = await read_all(kafka, f"{topic}.out", at_least=1)
    assert (read.document["window"]["start"], read.document["window"]["end"]) == (0, 500)
    assert np.allclose(read.document["y"], alone(model, sequence(2)), atol=1e-6)
    # what idleness closed stays closed, also for a successor that replays
    service, recorder = await service_of(settings, model, WindowRule("tumbling", size_ms=500))
    async with running(service):
        await produce(kafka, topic, [(1, b"a", event([0.0, 0.0, 0.0], ts=5_000), [])])
        await committed(recorder, 1)
        assert len(await read_all(kafka, f"{topic}.out")) == 1


async def test_a_causal_and_a_bidirectional_model_answer_on_the_same_streams(
    kafka, topic_name, create_topics, model: Model, tmp_path: Path
) -> None:
    from export.graph import export_model
    from export.model import ModelConfig
    from export.model import build as build_model

    torch.manual_seed(1)
    causal = build_model(ModelConfig(features=FEATURES, hidden=5, kind="gru", outputs=1)).eval()
    export_model(causal, tmp_path / "gru.onnx", name="early", features=[f"f{i}" for i in range(FEATURES)])
    early = Model.load(tmp_path / "gru.onnx")
    topic = topic_name("in")
    await create_topics(kafka, {topic: 2})
    settings = make_settings(kafka, topic, topic_name("group"))
    rows = [
        (stream % 2, b"s%d" % stream, event(sequence(stream)[step].tolist(), ts=1_000 + step), [])
        for step in range(4 + STREAMS)
        for stream in range(STREAMS)
        if step < 4 + stream
    ]
    rows += [(stream % 2, b"s%d" % stream, b"", [("streamer-op", b"end")]) for stream in range(STREAMS)]
    third = len(rows) // 3
    for part in (rows[:third], rows[third : 2 * third], rows[2 * third :]):  # a restart between the parts
        recorder = Recorder()
        parts = await prepare(settings, [("early", early, None), ("final", model, WindowRule("end"))])
        service = build(Parts(settings, parts.models, parts.connection, parts.input), recorder, instance="a")
        await produce(kafka, topic, part)
        async with running(service):
            await committed(recorder, len(part))
    found = await read_all(kafka, f"{topic}.out")
    finals = {read.key: read.document for read in found if "window" in read.document}
    steps = [read for read in found if "window" not in read.document]
    assert len(steps) == len(rows) - STREAMS
    assert len(found) - len(steps) == len(finals) == STREAMS
    for stream in range(STREAMS):
        x, key = sequence(stream), b"s%d" % stream
        mine = sorted((read for read in steps if read.key == key), key=lambda read: read.source)
        (y, *_), _ = early.run(x[None], np.array([len(x)], np.int32), early.initial_states(1))
        assert [read.document["y"] for read in mine] == pytest.approx(y[0, :, 0].tolist(), abs=1e-6)
        assert np.allclose(finals[key]["y"], alone(model, x), atol=1e-6)
        # early answers and the final one are tied by the offsets of the window
        assert finals[key]["window"]["offsets"] == [mine[0].source[1], mine[-1].source[1]]
