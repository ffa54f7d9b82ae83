"""Encoder and decoder through a real Kafka: what is written about each window is what PyTorch writes, also when the service
is killed while it writes."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import torch
from members import Member, members
from serving import event, produce, read_all

from export.encdec import export_pair
from export.encdec.verify import EagerSteps
from streamer.generate.search import decode
from streamer.modelfile.model import Model
from streamer.records.changelog import Kind
from tests.support import pairs

pytestmark = pytest.mark.torch

PARTITIONS, STREAMS, WINDOWS, COUNT = 2, 6, 12, 3


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair that writes much about everything, so that every window is open for many commits."""
    path = tmp_path_factory.mktemp("writer") / "pair.onnx"
    export_pair(talkative(), pairs.fields(pairs.WORDS, max_steps=400, search="beam", width=2), path)
    return path


def talkative() -> pairs.Pair:
    pair = pairs.luong()
    with torch.no_grad():
        pair.decoder.out.bias[1] -= 9
    return pair


def member(kafka: str, topic: str, model: Path, folder: Path, number: int, *settings: str) -> Member:
    return Member(
        kafka, topic, folder, number, f"model.pair.path={model}", "model.pair.window.kind=count",
        f"model.pair.window.count={COUNT}", *settings,
    )  # fmt: skip


async def test_kills_in_the_middle_change_nothing(
    kafka: str, topic_name: Any, create_topics: Any, tmp_path: Path, writer: Path
) -> None:
    topic, chance = topic_name("in"), random.Random(3)
    await create_topics(kafka, {topic: PARTITIONS})
    words = {
        stream: [[chance.randrange(12) for _ in range(COUNT)] for _ in range(WINDOWS)] for stream in range(STREAMS)
    }
    rows = [
        (stream % PARTITIONS, b"s%d" % stream, event([words[stream][window][at]]), [])
        for window in range(WINDOWS)
        for at in range(COUNT)
        for stream in range(STREAMS)
    ]
    await produce(kafka, topic, rows)
    total = STREAMS * WINDOWS
    settings = ("decode.max_rows=2", "delivery.checkpoint_interval_ms=100")
    with members() as running:
        for kill in range(2):
            running.append(member(kafka, topic, writer, tmp_path, kill, *settings))
            before = await read_all(kafka, f"{topic}.out", at_least=8 + 16 * kill, alive=running[-1].alive)
            running[-1].signal(signal.SIGKILL)
            running[-1].child.wait()
            assert len(before) < total, "killed too late to prove anything"
        open_records = {
            read.key: read.value
            for read in await read_all(kafka, f"{topic}.group.{topic}.changelog")
            if read.key and read.key[0] == Kind.DECODING
        }
        assert any(value is not None for value in open_records.values()), "nothing was open when it was killed"
        running.append(member(kafka, topic, writer, tmp_path, 9, *settings))
        found = await read_all(kafka, f"{topic}.out", at_least=total, alive=running[-1].alive)
        running[-1].signal(signal.SIGTERM)
        assert running[-1].child.wait(30) == 0
    assert len(found) == total
    model = Model.load(writer)
    eager = EagerSteps(talkative(), model)
    for stream in range(STREAMS):
        mine = [read.document for read in found if read.document["stream"] == f"s{stream}"]
        windows = [np.array(each, np.int64)[:, None] for each in words[stream]]
        expected = decode(model, windows, eager if stream == 0 else None)
        assert len(mine) == WINDOWS
        for told, written in zip(mine, expected, strict=True):
            assert told["y"] == list(written.symbols), "each once, in order, as if alone and undisturbed"
            assert told["text"] == "".join(pairs.LABELS[symbol] for symbol in written.symbols)
            assert told["truncated"] is written.truncated
            assert told["score"] == pytest.approx(written.score, rel=1e-4)
            assert told["window"]["count"] == COUNT
