"""Spoken vowels as streams: trained by the command, utterances interleaved through a real Kafka, one verdict per end mark.

The accuracy is computed from the service's output; every window's answer equals PyTorch's for that utterance alone.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import Read, Recorder, event, make_settings, produce, read_all, running

pytest.importorskip("torch")
pytest.importorskip("onnx")

import torch
from training import VOWELS, run

from export.data import Streams
from export.model import SequenceModel
from export.model import load as load_module
from export.readers import load as load_data
from streamer.modelfile.model import Model
from streamer.service.wiring import Parts, build, prepare
from streamer.windows import WindowRule

pytestmark = pytest.mark.torch

PARTITIONS = 4


def trained(
    out: Path, folder: Path, kind: str, directions: int, seed: int, epochs: int
) -> tuple[Model, SequenceModel, float]:
    """And the accuracy that the training tells, of the same test file."""
    out.mkdir()
    metrics = run(out, VOWELS.format(seeds=[seed], folder=folder, kind=kind, directions=directions, epochs=epochs))
    told = metrics["best"]["figures"]["test"]["accuracy"]
    return Model.load(out / "out" / "model.onnx"), load_module(out / "out" / "model.pt"), told


def interleaved(utterances: Streams, seed: int) -> list[tuple[int, bytes, bytes, list[tuple[str, bytes]]]]:
    """Records of all utterances in random order, those of each in its own order, its end mark last."""
    rng = random.Random(seed)
    left = dict.fromkeys(range(len(utterances)), 0)
    rows: list[tuple[int, bytes, bytes, list[tuple[str, bytes]]]] = []
    speaking: list[int] = []
    waiting = list(left)
    rng.shuffle(waiting)
    while speaking or waiting:
        if waiting and len(speaking) < 40:
            speaking.append(waiting.pop())
        index = rng.choice(speaking)
        key, at = utterances.names[index].encode(), left[index]
        if at < len(utterances.x[index]):
            value = event(utterances.x[index][at].tolist(), ts=1_000_000 + len(rows))
            rows.append((index % PARTITIONS, key, value, []))
            left[index] += 1
        else:
            rows.append((index % PARTITIONS, key, b"", [("streamer-op", b"end")]))
            speaking.remove(index)
    return rows


async def served(kafka: str, topic: str, model: Model, utterances: Streams, seed: int) -> list[Read]:
    settings = make_settings(kafka, topic, f"{topic}.group")
    parts = await prepare(settings, [("vowels", model, WindowRule("end"))])
    service = build(Parts(settings, parts.models, parts.connection, parts.input), Recorder(), instance="a")
    async with running(service):
        await produce(kafka, topic, interleaved(utterances, seed))
        return await read_all(kafka, f"{topic}.out", at_least=len(utterances))


def judge(found: list[Read], utterances: Streams, module: SequenceModel) -> float:
    """The accuracy of the verdicts, after each has been compared with PyTorch on its utterance alone."""
    assert sorted(read.document["stream"] for read in found) == sorted(utterances.names), "one verdict per utterance"
    assert utterances.labels is not None
    assert utterances.classes is not None
    number = {name: index for index, name in enumerate(utterances.names)}
    right, worst = 0, 0.0
    for read in found:
        document: dict[str, Any] = read.document
        index = number[document["stream"]]
        x = utterances.x[index]
        assert (document["window"]["count"], document["window"]["reason"]) == (len(x), "end")
        with torch.no_grad():
            outputs, _ = module(torch.from_numpy(np.asarray(x, np.float32))[None])
        (y,) = outputs.values()
        worst = max(worst, float(np.abs(np.array(document["y"]) - y[0].numpy()).max()))
        right += document["label"] == utterances.classes[int(utterances.labels[index][-1])]
    assert worst <= 1e-5, f"a window's answer is {worst:.1e} away from PyTorch's"
    return right / len(found)


async def accuracy(
    kafka: str, topic: str, create_topics: Any, tmp_path: Path, data_dir: Path, kind: str, directions: int, seed: int,
    epochs: int,
) -> float:  # fmt: skip
    folder = data_dir / "japanese-vowels"
    model, module, told = trained(tmp_path / f"{kind}-{directions}-{seed}", folder, kind, directions, seed, epochs)
    utterances = load_data(folder / "JapaneseVowels_TEST.ts", classes=module.labels)
    await create_topics(kafka, {topic: PARTITIONS})
    found = judge(await served(kafka, topic, model, utterances, seed), utterances, module)
    assert found == pytest.approx(told, abs=1.5 / len(utterances)), "more than one verdict differs from the training's"
    return found


async def test_a_bidirectional_model_tells_speakers_apart(
    kafka, topic_name, create_topics, tmp_path: Path, data_dir: Path
) -> None:
    found = await accuracy(kafka, topic_name("in"), create_topics, tmp_path, data_dir, "lstm", 2, seed=0, epochs=15)
    assert found >= 0.90


@pytest.mark.accept
async def test_accuracy_as_served_over_three_seeds(
    kafka, topic_name, create_topics, tmp_path: Path, data_dir: Path
) -> None:
    found: dict[str, list[float]] = {}
    for kind, directions in (("lstm", 2), ("lstm", 1), ("gru", 1), ("rnn", 1)):
        name = f"{'bidirectional ' if directions == 2 else ''}{kind}"
        found[name] = [
            await accuracy(kafka, topic_name("in"), create_topics, tmp_path, data_dir, kind, directions, seed, 60)
            for seed in range(3)
        ]
    print(json.dumps({name: {"mean": float(np.mean(each)), "seeds": each} for name, each in found.items()}))
    assert np.mean(found["bidirectional lstm"]) >= 0.96
    assert np.mean(found["lstm"]) > 0.8
