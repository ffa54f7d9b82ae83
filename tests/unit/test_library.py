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
        ((["a"], [[1.0]], [1.5]), "whole milliseconds"),
        ((["a"], [[1.0]], [float("nan")]), "whole milliseconds"),
        ((["a"], [[1.0]], [1e30]), "whole milliseconds"),
        ((["a"], [[1.0]], [10**30]), "whole milliseconds"),
        ((["a"], [[1.0]], np.array([2**63 + 5], np.uint64)), "whole milliseconds"),
        ((["a"], [[1.0]], [-(2**63)]), "whole milliseconds"),
        ((["a"], [[1.0]], [2**62]), "whole milliseconds"),
        ((["a"], [[1.0]], np.array(["NaT"], "datetime64[ns]")), "without NaT"),
        ((["a"], [[1.0]], ["2025-01-01"]), "whole milliseconds"),
        ((["a"], [[1.0]], [True]), "whole milliseconds"),
        ((["a"], [[1.0]], [None]), "whole milliseconds"),
        ((["a"], [[1j]]), "not complex128"),
        ((["a"], [["1.5"]]), "numbers that float32"),
        ((["a"], [[b"1"]]), "numbers that float32"),
        ((["a"], [[{}]]), "not object"),
        ((["a"], [[10**400]]), "not object"),
        ((["a"], np.array([["2025-01-01"]], "datetime64[s]")), "not datetime64"),
        (([b"a"], [[1.0]]), r"keys\[0\] is .* \(bytes\): a key is a text"),
        ((np.array([7]), [[1.0]]), r"keys\[0\] is '7'"),
        ((["a", None], [[1.0], [2.0]]), r"keys\[1\] is 'None'"),
        (([""], [[1.0]]), "not empty"),
        ((["\ud800"], [[1.0]]), "no text"),
    ],
)
def test_what_does_not_belong_together_is_one_sentence(given: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        runner().feed(*given)


def test_what_is_refused_leaves_nothing() -> None:
    served = runner()
    for given in ((["a", ""], [[1.0], [2.0]], [5, 7]), (["a"], [[1.0]], [2**62])):
        with pytest.raises(ValueError, match=r"not empty|whole"):
            served.feed(*given)
    answered = served.feed(["a"], [[3.0]])
    assert (answered.times_ms.tolist(), answered.y[:, 0].tolist()) == ([0], [advance(0, 3)])


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("kind", [np.float64, np.uint64, np.int64, None])
def test_times_are_milliseconds_whatever_they_are_held_in(unit: str, kind: Any) -> None:
    seconds = [1_759_968_000, 1_759_968_001]
    times = [each * 1000 for each in seconds]
    given = np.array(times, kind) if kind else np.array(seconds, "datetime64[s]").astype(f"datetime64[{unit}]")
    answered = runner().feed(np.array(["a", "b"]), [[1.0], [2.0]], given)
    assert answered.times_ms.tolist() == times
    assert answered.keys == ["a", "b"]


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
