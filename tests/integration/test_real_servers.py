"""Twelve real servers through the service: trained and exported by the command, interleaved on four partitions, every
answer equal to PyTorch's run over the whole stream, and the anomalies found."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from serving import event, make_service, make_settings, produce, read_all, running, wait_for

pytest.importorskip("torch")
pytest.importorskip("onnx")

import torch
from sklearn.metrics import roc_auc_score
from training import servers

from export.model import load
from streamer.modelfile.model import Model

pytestmark = pytest.mark.torch

PARTITIONS, STREAMS = 4, 12


def interleaved(streams: dict[str, np.ndarray]):
    """Step by step over all streams, as monitoring sends it."""
    for step in range(max(map(len, streams.values()))):
        for number, (name, x) in enumerate(streams.items()):
            if step < len(x):
                yield number % PARTITIONS, name.encode(), event(x[step].tolist(), ts=step * 300_000), []


async def serve(kafka, topic: str, group: str, model_path: Path, streams: dict[str, np.ndarray]):
    """Answers in order by stream, as the output topic holds them."""
    model = Model.load(model_path)
    service, recorder = await make_service(make_settings(kafka, topic, group), model)
    count = sum(map(len, streams.values()))
    async with running(service):
        await produce(kafka, topic, interleaved(streams))
        await wait_for(lambda: recorder.committed_events >= count, recorder, seconds=300)
    answers = defaultdict(list)
    for read in sorted(
        await read_all(kafka, f"{topic}.out", at_least=count), key=lambda read: (read.partition, read.offset)
    ):
        answers[(read.key or b"").decode()].append(read.document)
    return answers


@pytest.mark.parametrize(
    ("kind", "epochs", "least", "steps"),
    [
        pytest.param("gru", 2, 0.65, 1500, id="short"),
        pytest.param("lstm", 12, 0.80, None, marks=pytest.mark.accept),
        pytest.param("gru", 12, 0.80, None, marks=pytest.mark.accept),
    ],
)
async def test_real_servers_are_scored_as_pytorch_scores_them(
    kafka, topic_name, create_topics, tmp_path: Path, data_dir: Path, kind, epochs, least, steps
) -> None:
    told = servers(tmp_path, data_dir, kind, epochs)["best"]["figures"]["test"]["auc_mean_of_streams"]
    with np.load(data_dir / "asd" / "asd.npz") as archive:
        streams = {f"omi-{i}": archive[f"omi-{i}_test"][:steps].astype(np.float32) for i in range(1, STREAMS + 1)}
        labels = {f"omi-{i}": archive[f"omi-{i}_label"][:steps] for i in range(1, STREAMS + 1)}
    topic = topic_name("in")
    await create_topics(kafka, {topic: PARTITIONS})
    path = tmp_path / "out" / "model.onnx"
    answers = await serve(kafka, topic, topic_name("group"), path, streams)
    module, model = load(path.with_suffix(".pt")).eval(), Model.load(path)
    outputs = model.contract.outputs
    initial = [torch.from_numpy(state) for state in model.initial_states(1)]
    areas = []
    for name, x in streams.items():
        with torch.no_grad():
            expected, _ = module(torch.from_numpy(x)[None], torch.tensor([len(x)], dtype=torch.int32), *initial)
        for output in outputs:
            key = "y" if len(outputs) == 1 else output.name
            got = np.array([answer[key] for answer in answers[name]], np.float32)
            whole = expected[output.name][0].numpy().reshape(got.shape)
            assert (np.abs(got - whole) <= 1e-5 * np.maximum(1, np.abs(whole))).all(), (name, output.name)
        if 0 < labels[name].sum() < len(labels[name]):
            score = next(output.name for output in outputs if output.kind == "score")
            areas.append(roc_auc_score(labels[name], [answer[score] for answer in answers[name]]))
    print(f"{kind}: mean area under the curve of {len(areas)} servers {np.mean(areas):.4f}, by the training {told:.4f}")
    assert min(told, np.mean(areas)) >= least
