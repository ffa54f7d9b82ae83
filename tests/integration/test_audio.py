"""Live sound through a real broker: a stream of samples in, symbols while it is heard, and a transcript at its end; the same
when the service is killed again and again."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from audio import PARTITIONS, Ear, Spoken, Talk, by_stream, cpu_s, cut, expected, quantiles
from members import Member, members
from serving import read_all
from tooling import require_tool

from export import recipes
from export.frontend import FrontEnd
from export.model import ModelConfig, build
from export.pairs.data import BLANK
from export.pairs.sound import names
from export.publish import publish
from export.recipes import digits
from streamer.core import F32
from streamer.modelfile.model import Model

pytestmark = [pytest.mark.torch, pytest.mark.chaos]

FRONT, SAMPLES = FrontEnd(), 320
STEP_S = SAMPLES / FRONT.rate_hz
RECORD_STEPS = 3


def untrained(folder: Path) -> Path:
    """A recogniser that knows nothing, and hears everything: its head is loud, so that sounds make symbols."""
    torch.manual_seed(0)
    module = build(
        ModelConfig(
            features=SAMPLES, hidden=32, kind="gru", outputs=6, activation="softmax", frontend=FRONT,
            labels=(BLANK, *"abcde"),
        )
    )  # fmt: skip
    module.settle([tones(60, 0)])
    with torch.no_grad():
        module.head.weight.mul_(12)
    emit = {"rule": "ctc", "blank": 0, "separator": ""}
    publish(module, folder, name="ear", stem="causal", features=names(SAMPLES), emit=emit, steps="many")
    return folder / "causal.onnx"


def tones(steps: int, seed: int) -> F32:
    """[T, F] tones that change, in noise."""
    rng = np.random.default_rng(seed)
    pitch = np.repeat(rng.uniform(0.1, 2.5, steps // 6 + 1), 6 * SAMPLES)[: steps * SAMPLES]
    sound = 6_000 * np.sin(np.cumsum(pitch)) + rng.normal(0, 300, len(pitch))
    return np.round(sound).astype(np.float32).reshape(steps, SAMPLES)


def made_up(streams: int, seconds: float) -> list[Spoken]:
    """Utterances of tones, of about a second."""
    rng, found = np.random.default_rng(streams), []
    for number in range(streams):
        lengths, left = [], int(seconds / STEP_S)
        while left > 0:
            lengths.append(int(rng.integers(15, 40)))
            left -= lengths[-1]
        found.append(Spoken([cut(tones(each, 1_000 * number + at), RECORD_STEPS) for at, each in enumerate(lengths)]))
    return found


def spoken(streams: int, seconds: float) -> list[Spoken]:
    """Digits in voices that espeak-ng has; a stream says some of a hundred utterances, in an order of its own."""
    split = digits.make(True)
    pool: list[F32] = [pair.source for pair in [*split.test, *split.validation] if isinstance(pair.source, np.ndarray)]
    rng, found = np.random.default_rng(streams), []
    for _ in range(streams):
        own, left = [], int(seconds / STEP_S)
        while left > 0:
            own.append(pool[int(rng.integers(len(pool)))])
            left -= len(own[-1])
        found.append(Spoken([cut(each, RECORD_STEPS) for each in own]))
    return found


def member(bootstrap: str, topic: str, folder: Path, number: int, model: Path) -> Member:
    return Member(bootstrap, topic, folder, number, "input.format=float32", f"model.ear.path={model}")


def fresh(folder: Path, count: int) -> list[Path]:
    found = [folder / f"run-{number}" for number in range(count)]
    for each in found:
        each.mkdir()
    return found


def pauses(kills: int) -> Iterator[float]:
    rng = random.Random(kills)
    return (rng.uniform(0.5, 3.0) for _ in range(kills))


@pytest.mark.parametrize(
    ("streams", "seconds", "kills"),
    [(8, 4, 1), pytest.param(200, 60, 8, marks=[pytest.mark.accept, pytest.mark.alone])],
)
async def test_live_sound_is_written_once_and_also_over_kills(
    kafka, topic_name, create_topics, tmp_path: Path, streams: int, seconds: float, kills: int
) -> None:
    if streams > 100:
        require_tool("espeak-ng")
        recipes.run("digits", tmp_path, quick=True)
        path, talk = tmp_path / "causal.onnx", spoken(streams, seconds)
    else:
        path, talk = untrained(tmp_path), made_up(streams, seconds)
    model = Model.load(path)
    folders = fresh(tmp_path, 2)
    transcripts = []
    for number, killed in enumerate((0, kills)):
        topic = topic_name(f"in{number}")
        await create_topics(kafka, {topic: PARTITIONS, f"{topic}.out": PARTITIONS})
        await heard(kafka, topic, folders[number], path, talk, killed)
        wanted = {f"s{at}": expected(model, stream) for at, stream in enumerate(talk)}
        found = by_stream(await read_all(kafka, f"{topic}.out", at_least=sum(map(len, wanted.values()))))
        assert found == wanted
        transcripts.append({at: [(each.text, each.score) for each in rows if each.final] for at, rows in found.items()})
    assert transcripts[0] == transcripts[1]
    written = sum(len(text) for rows in transcripts[0].values() for text, _ in rows)
    assert written > 3 * streams, "the model heard nothing"


async def heard(bootstrap: str, topic: str, folder: Path, model: Path, talk: list[Spoken], kills: int) -> None:
    """Everything is said while a service runs, and is killed ``kills`` times; what it took is printed."""
    ear, speakers = Ear(bootstrap, f"{topic}.out", STEP_S * 1_000), Talk(bootstrap, topic, talk, STEP_S * RECORD_STEPS)
    finals = sum(len(stream.utterances) for stream in talk)
    with members() as group:
        group.append(member(bootstrap, topic, folder, 0, model))
        await group[0].says('"live"')
        listening = asyncio.create_task(ear.listen(finals, RECORD_STEPS))
        await ear.heard.wait()
        began, before = time.perf_counter(), cpu_s(group[0].child.pid)
        speaking = asyncio.create_task(speakers.speak())
        for number, pause in enumerate(pauses(kills), 1):
            await asyncio.sleep(pause)  # when it dies is the point of the test
            group[-1].signal(signal.SIGKILL)
            group[-1].child.wait()
            group.append(member(bootstrap, topic, folder, number, model))
            await group[-1].says('"live"')
        await speaking
        took, spent = time.perf_counter() - began, 0.0 if kills else cpu_s(group[0].child.pid) - before
        async with asyncio.timeout(90):
            while not listening.done():
                group[-1].alive()
                await asyncio.wait([listening], timeout=0.5)
        listening.result()
    share = "" if kills else f"{spent / took:.2f} of a core, "
    print(
        f"\n{len(talk)} streams of live sound, {took:.0f} s, {kills} kills: {share}{len(ear.symbol_ms)} symbols, {finals} "
        f"transcripts; ms from a step's last sample to its symbol {quantiles(ear.symbol_ms)}, from the record "
        f"{quantiles(ear.record_ms)}; the load was at most {speakers.late_s * 1000:.0f} ms late"
    )
