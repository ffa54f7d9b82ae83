"""Invariant 3: a row's result depends neither on its neighbours nor on chunking.

Streams advance by random numbers of events, in random company, in random order; every stream must get, bit for bit with
LSTM and GRU, what it gets alone and one event at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
pytest.importorskip("onnx")

import torch
from torch import nn

from export.graph import export_model
from export.model import ModelConfig, build
from streamer.core import F32
from streamer.modelfile.model import Model

pytestmark = pytest.mark.torch

F, HIDDEN, MAX_STREAMS, MAX_EVENTS = 3, 6, 7, 12
CELLS = [("lstm", "tanh"), ("gru", "tanh"), ("rnn", "tanh"), ("rnn", "relu")]
Exported = Callable[..., Model]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Models by cell, layers and directions, each exported once; without a head, which is no recurrent operator."""
    folder, made = tmp_path_factory.mktemp("models"), dict[str, Model]()

    def model(
        kind: str, nonlinearity: str, *, layers: int = 1, directions: int = 1, reduce: str | None = None
    ) -> Model:
        name = f"{kind}-{nonlinearity}-{layers}-{directions}-{reduce}"
        if name not in made:
            torch.manual_seed(layers)
            options = {"layers": layers, "directions": directions, "reduce": reduce}
            module = build(ModelConfig(features=F, hidden=HIDDEN, kind=kind, nonlinearity=nonlinearity, **options))
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.3)
            path = Path(folder) / f"{name}.onnx"
            export_model(module, path, name=name)
            made[name] = Model.load(path)
        return made[name]

    return model


def same(kind: str, one: F32, other: F32) -> None:
    if kind == "rnn":
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
    else:
        np.testing.assert_array_equal(one, other)


def take(model: Model, states: list[F32], rows: list[int]) -> list[F32]:
    return [value.take(rows, axis=state.batch_axis) for state, value in zip(model.states, states, strict=True)]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("kind", "nonlinearity"), CELLS)
@settings(max_examples=25)
@given(data=st.data())
def test_steps(data: st.DataObject, exported: Exported, kind: str, nonlinearity: str, layers: int) -> None:
    model = exported(kind, nonlinearity, layers=layers)
    totals = data.draw(st.lists(st.integers(1, MAX_EVENTS), min_size=1, max_size=MAX_STREAMS), label="events")
    seed = data.draw(st.integers(0, 2**16), label="seed")
    events = [np.random.default_rng([seed, row]).normal(size=(n, F)).astype(np.float32) for row, n in enumerate(totals)]
    states, done = model.initial_states(len(totals)), [0] * len(totals)
    results: list[list[F32]] = [[] for _ in totals]
    while any(count < total for count, total in zip(done, totals, strict=True)):
        behind = [row for row, total in enumerate(totals) if done[row] < total]
        rows = data.draw(st.lists(st.sampled_from(behind), min_size=1, unique=True), label="rows")
        lengths = [data.draw(st.integers(1, totals[row] - done[row]), label="steps") for row in rows]
        x = np.full((len(rows), max(lengths), F), 9.0, np.float32)
        for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            x[index, :length] = events[row][done[row] : done[row] + length]
        (y,), nexts = model.run(x, np.array(lengths, np.int32), take(model, states, rows))
        for state, target, value in zip(model.states, states, nexts, strict=True):
            target[(slice(None),) * state.batch_axis + (rows,)] = value
        for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            results[row].append(y[index, :length])
            done[row] += length
    for row, (parts, x) in enumerate(zip(results, events, strict=True)):
        alone = model.initial_states(1)
        for step, got in enumerate(np.concatenate(parts)):
            (y,), alone = model.run(x[None, step : step + 1], np.ones(1, np.int32), alone)
            same(kind, y[0, 0], got)
        for value, expected in zip(take(model, states, [row]), alone, strict=True):
            same(kind, value, expected)


@pytest.mark.parametrize("reduce", [None, "last", "max"])
@pytest.mark.parametrize(("kind", "nonlinearity"), CELLS)
@settings(max_examples=25)
@given(data=st.data())
def test_windows(data: st.DataObject, exported: Exported, kind: str, nonlinearity: str, reduce: str | None) -> None:
    model = exported(kind, nonlinearity, layers=2, directions=2, reduce=reduce)
    lengths = np.array(data.draw(st.lists(st.integers(1, MAX_EVENTS), min_size=1, max_size=MAX_STREAMS)), np.int32)
    spare = data.draw(st.integers(0, 3), label="padding beyond the longest")
    random = np.random.default_rng(data.draw(st.integers(0, 2**16), label="seed"))
    x = random.normal(size=(len(lengths), int(lengths.max()) + spare, F)).astype(np.float32)
    (together,), _ = model.run(x, lengths, model.initial_states(len(x)))
    for row, length in enumerate(lengths.tolist()):
        (alone,), _ = model.run(x[row : row + 1, :length], lengths[row : row + 1], model.initial_states(1))
        same(kind, together[row][:length] if reduce is None else together[row], alone[0])
