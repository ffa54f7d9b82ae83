"""The front end: what it computes by definition, that a stream of samples may be cut anywhere, and that its graph agrees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import torch

from export.frontend import FLOOR, FrontEnd, LogMel
from export.listener import Listener
from export.model import ModelConfig, build, load
from export.publish import publish
from streamer.core import F32
from streamer.errors import ConfigurationError
from streamer.library import Runner
from streamer.modelfile.model import Model

pytestmark = pytest.mark.torch

FRONT = FrontEnd(window=48, hop=20, mels=6)
SAMPLES = 40


def listener(**options: Any) -> Listener:
    torch.manual_seed(0)
    defaults = {"features": SAMPLES, "hidden": 5, "kind": "gru", "outputs": 4, "frontend": FRONT}
    model = build(ModelConfig(**{**defaults, **options}))
    assert isinstance(model, Listener)
    model.settle([sound(30)])
    return model.eval()


def sound(steps: int, seed: int = 0) -> F32:
    """[T, F] whole numbers of 16 bits: tones that come and go, in noise."""
    rng = np.random.default_rng(seed)
    at = np.arange(steps * SAMPLES)
    tones = sum(np.sin(at * f + p) for f, p in rng.uniform(0.1, 2.5, (3, 2))) * (1 + np.sin(at / 150))
    return np.round(3000 * tones + rng.normal(0, 50, len(at))).astype(np.float32).reshape(steps, SAMPLES)


def by_definition(front: FrontEnd, samples: F32) -> np.ndarray:
    """Log-mel energies of whole frames of samples, as the HTK Book writes them, with numpy's FFT; [frames, M]."""
    x = np.concatenate((np.zeros(front.overlap), samples.astype(np.float64) / front.full_scale))
    starts = range(0, len(x) - front.window + 1, front.hop)
    mel = lambda hz: 2595 * np.log10(1 + hz / 700)  # noqa: E731
    edges = np.linspace(mel(front.low_hz), mel(front.rate_hz / 2), front.mels + 2)
    found = []
    for start in starts:
        frame = x[start : start + front.window]
        emphasised = frame - front.preemphasis * np.concatenate((frame[:1], frame[:-1]))
        power = np.abs(np.fft.rfft(emphasised * np.hamming(front.window))) ** 2
        row = []
        for number in range(front.mels):
            low, centre, high = edges[number : number + 3]
            energy = 0.0
            for k, each in enumerate(power):
                m = mel(k * front.rate_hz / front.window)
                if low < m < high:
                    energy += each * ((m - low) / (centre - low) if m < centre else (high - m) / (high - centre))
            row.append(np.log(energy + FLOOR))
        found.append(row)
    return np.array(found)


@pytest.mark.parametrize("front", [FRONT, FrontEnd(window=48, hop=40, mels=5, low_hz=0.0, preemphasis=0.0)])
def test_energies_are_those_of_the_definition(front: FrontEnd) -> None:
    module = LogMel(front, SAMPLES)
    x = sound(12)
    z = torch.from_numpy(x / np.float32(front.full_scale))
    before = torch.cat((torch.zeros(1, front.overlap), z[:-1, -front.overlap :]))
    found = module.energies(torch.cat((before, z), dim=1)).numpy().reshape(-1, front.mels)
    np.testing.assert_allclose(found, by_definition(front, x.ravel()), atol=2e-3)


def test_what_stands_in_the_training_part_is_scaled_away() -> None:
    model = listener()
    x = torch.from_numpy(sound(30))
    z = model.scale(x)
    before = torch.cat((torch.zeros(1, model.overlap), z[:-1, -model.overlap :]))
    rows = model.encoder(torch.cat((before, z), dim=1))
    torch.testing.assert_close(rows.mean(dim=0), torch.zeros(12), atol=1e-4, rtol=0)
    torch.testing.assert_close(rows.std(dim=0), torch.ones(12), atol=1e-4, rtol=0)


def test_a_stream_that_is_cut_is_heard_as_a_whole() -> None:
    model, x = listener(), torch.from_numpy(np.stack([sound(9, 1), sound(9, 2)]))
    with torch.no_grad():
        whole, last = model(x)
        states = model.initial_states(2)
        pieces = []
        for begin, end in ((0, 1), (1, 5), (5, 9)):
            piece, states = model(x[:, begin:end], None, *states)
            pieces.append(piece["y"])
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole["y"], atol=1e-5, rtol=0)
    assert torch.equal(states[-1], last[-1])
    silence = torch.zeros(1, 1, SAMPLES)
    with torch.no_grad():  # the state matters: the same step after silence is another one
        assert not torch.equal(model(x[:1, 1:2])[0]["y"], whole["y"][:1, 1:2])
        first, _ = model(torch.cat((silence, x[:1]), dim=1), None)
    assert torch.isfinite(first["y"]).all()


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_the_file_computes_what_the_module_does(tmp_path: Path, kind: str, directions: int) -> None:
    module = listener(kind=kind, directions=directions, activation="softmax", labels=("-", "a", "b", "c"))
    names = [f"s{at}" for at in range(SAMPLES)]
    report = publish(module, tmp_path, name="ear", features=names, emit={"rule": "ctc", "separator": " "}, steps="many")
    assert report["passed"], report
    again, model = load(tmp_path / "model.pt"), Model.load(tmp_path / "model.onnx")
    assert [state.input for state in model.states][-1:] == (["overlap"] if directions == 1 else [])
    xs = [sound(9, 1), sound(4, 2), sound(1, 3)]
    x = np.zeros((3, 9, SAMPLES), np.float32)
    for row, each in enumerate(xs):
        x[row, : len(each)] = each
    lengths = np.array([9, 4, 1], np.int32)
    (y,), states = model.run(x, lengths, model.initial_states(3))
    for row, each in enumerate(xs):
        with torch.no_grad():
            wanted = again(torch.from_numpy(each)[None])[0]["y"][0].numpy()
        np.testing.assert_allclose(y[row, : len(each)], wanted, atol=1e-4)
    if directions == 1:
        assert model.contract.outputs[0].emit is not None
        # to the bit: however a stream's samples are cut into records, and whoever is beside it
        for cuts in ((1,) * 9, (2, 3, 4), (9,)):
            served, found, at = Runner(model), [], 0
            for count in cuts:
                noise = sound(3, at + 10)
                answered = served.feed(["s", "other"], [xs[0][at : at + count], noise])
                found.append(answered.y[0])
                at += count
            assert np.concatenate(found).tobytes() == y[0].tobytes()
        assert np.array_equal(states[-1][0], xs[0][-1, -module.overlap :] / np.float32(32768))


@pytest.mark.parametrize(
    ("front", "samples", "says"),
    [
        (FrontEnd(window=160), 160, "window above hop"),
        (FrontEnd(low_hz=5_000.0), 160, "low_hz must be below high_hz"),
        (FrontEnd(mels=200), 160, "fall between two frequencies"),
        (FrontEnd(), 100, "hops of 160"),
        (FrontEnd(window=400), 160, "at least the 240"),
    ],
)
def test_what_means_nothing_is_said(front: FrontEnd, samples: int, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        LogMel(front, samples)


def test_a_front_end_hears_samples_only() -> None:
    with pytest.raises(ConfigurationError, match="hears samples"):
        build(ModelConfig(features=SAMPLES, hidden=4, task="forecast", frontend=FRONT))
