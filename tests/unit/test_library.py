"""The library: a model over batches in somebody's own program."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from simulated import POISON, ChainModel, advance
from windowing import FoldModel, fold
from writing import WritingModel

from streamer.errors import ConfigurationError
from streamer.library import Runner
from streamer.modelfile.model import Model
from streamer.settings import StateSection
from streamer.tools.bench import MODEL
from streamer.windows import WindowRule


def runner(**options: Any) -> Runner:
    model: Any = ChainModel()
    return Runner(model, **options)


def test_states_go_on_from_batch_to_batch() -> None:
    batches = [(["a", "b", "a"], [[1.0], [2.0], [3.0]]), (["b", "a"], [[4.0], [5.0]])]
    first, second = runner().run(batches)
    a1, b1 = advance(0, 1), advance(0, 2)
    a2 = advance(a1, 3)
    assert first.keys == ["a", "b", "a"]
    assert first.y[:, 0].tolist() == [a1, b1, a2]
    assert second.y[:, 0].tolist() == [advance(b1, 4), advance(a2, 5)]
    assert second.rows.tolist() == [0, 1]


def test_a_model_file_answers_as_it_does_by_itself() -> None:
    x = np.random.default_rng(1).normal(size=(7, 16)).astype(np.float32)
    (answered,) = Runner.load(MODEL).run([(["s"] * 7, x)])
    model = Model.load(MODEL)
    (expected, *_), _ = model.run(x[None], np.array([7], np.int32), model.initial_states(1))
    assert answered.y.tolist() == expected[0].tolist()
    assert list(answered.outputs) == [output.name for output in model.contract.outputs]


def test_what_the_model_refuses_is_told() -> None:
    (answered,) = runner().run([(["a", "b", "a"], [[1.0], [POISON], [2.0]])])
    assert answered.rows.tolist() == [0, 2]
    assert answered.keys == ["a", "a"]
    assert list(answered.refused) == [1]
    assert "poisoned" in answered.refused[1]


def test_windows_are_answered_when_they_close() -> None:
    model: Any = FoldModel()
    served = Runner(model, window=WindowRule("count", count=2))
    first, second = served.run([(["a", "a", "b"], [[1.0], [2.0], [3.0]], [5, 6, 7]), (["b"], [[4.0]], [9])])
    assert (first.keys, second.keys) == (["a"], ["b"])
    assert [y.tolist() for y in first.y] == [[fold([1.0, 2.0])]]
    assert second.windows[0].times_ms.tolist() == [7, 9]
    assert second.times_ms.tolist() == [9]


def test_nothing_grows_for_ever() -> None:
    served = runner(state=StateSection(max_bytes=1 << 16))
    for number in range(50):
        answered = served.feed([f"{number}-{row}" for row in range(100)], np.ones((100, 1)))
        assert len(answered.keys) == 100
    slots = served._processor.lanes.slots
    assert slots.used_bytes <= 1 << 16
    partition = served._partition
    assert not partition.answers
    assert not partition.gone
    assert not partition.truths[0].forgotten


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((["a"], [[1.0, 2.0]]), r"shape \[1, 2\]"),
        ((["a", "b"], [[1.0]]), r"shape \[1, 1\]: 2 keys"),
        ((["a"], [[float("nan")]]), "finite"),
        ((["a"], [[1.0]], [1, 2]), "times_ms has shape"),
    ],
)
def test_what_does_not_belong_together_is_one_sentence(given: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        runner().feed(*given)


def test_a_model_that_looks_ahead_needs_a_window() -> None:
    model: Any = FoldModel()
    with pytest.raises(ConfigurationError, match="looks ahead"):
        Runner(model)


def test_no_events_are_no_answers() -> None:
    answered = runner().feed([], np.empty((0, 1)))
    assert answered.keys == []
    assert answered.y.shape == (0, 1)


def test_a_model_that_writes_sequences_is_refused() -> None:
    model: Any = WritingModel()
    with pytest.raises(ConfigurationError, match="has a decoder and writes sequences: serve it with `streamer run`"):
        Runner(model, window=WindowRule("count", count=2))
