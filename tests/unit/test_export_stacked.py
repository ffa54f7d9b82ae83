"""A stack of models computes and learns exactly what its models would by themselves with torch's cells."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import torch
from torch import nn

from export.comparison import training
from export.comparison.cases import VARIANTS, built_in, sized
from export.comparison.digits import digits
from export.comparison.recurrence import recur
from export.comparison.stacked import Stack
from export.comparison.training import Budget, train_stack
from export.data import Split
from export.fit import FitOptions, Trainer
from export.memorytasks import split_of
from export.model import ModelConfig, SequenceModel, build
from export.recipes import anomaly
from export.tasks import evaluate, examples
from export.train import DataSection, ModelSection, TrainConfig, TrainSection
from streamer.errors import ConfigurationError

pytestmark = pytest.mark.torch

CELLS = [("rnn", "tanh"), ("rnn", "relu"), ("gru", "tanh")]
BUDGET = Budget(12, 4, 10)


@pytest.mark.parametrize(("kind", "nonlinearity"), CELLS)
@pytest.mark.parametrize(("rows", "steps", "hidden"), [(1, 1, 1), (3, 11, 5)])
def test_the_recurrence_and_its_gradients_are_torchs(
    kind: str, nonlinearity: str, rows: int, steps: int, hidden: int
) -> None:
    torch.manual_seed(rows)
    cell: Any = nn.GRU(4, hidden) if kind == "gru" else nn.RNN(4, hidden, nonlinearity=nonlinearity)
    cell = cell.double()
    x = torch.randn(steps, rows, 4, dtype=torch.float64)
    state = torch.randn(1, rows, hidden, dtype=torch.float64, requires_grad=True)
    y, last = cell(x, state)
    weight = torch.randn_like(y)
    ((y * weight).sum() + 2 * last.sum()).backward()

    gx = (x @ cell.weight_ih_l0.detach().t() + cell.bias_ih_l0.detach())[:, None].requires_grad_()
    u = cell.weight_hh_l0.detach().t()[None].clone().requires_grad_()
    bias = cell.bias_hh_l0.detach()[None, None].clone().requires_grad_()
    mine = state.detach().clone().requires_grad_()
    found, (after,) = recur(kind, gx, u, bias, mine, relu=nonlinearity == "relu")
    ((found[:, 0] * weight).sum() + 2 * after.sum()).backward()

    torch.testing.assert_close(found[:, 0], y)
    torch.testing.assert_close(u.grad[0].t(), cell.weight_hh_l0.grad)
    torch.testing.assert_close(bias.grad[0, 0], cell.bias_hh_l0.grad)
    torch.testing.assert_close(gx.grad.sum(dim=(0, 2))[0], cell.bias_ih_l0.grad)
    torch.testing.assert_close(mine.grad, state.grad)


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize(
    "shape",
    [
        {"features": 1, "vocabulary": 7, "embedding": 3, "outputs": 4},
        {"features": 3, "outputs": 2, "reduce": "last", "head_hidden": 6},
        {"features": 3, "outputs": 2, "reduce": "mean"},
        {"features": 2, "task": "forecast", "skip": True},
    ],
    ids=["embedding", "last", "mean", "forecast"],
)
def test_a_stack_answers_what_each_of_its_models_does(variant: str, shape: dict[str, Any]) -> None:
    options = {**VARIANTS[variant], **shape}
    if options.get("task") == "forecast" and options.get("directions") == 2:
        pytest.skip("a forecast is causal")
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        models.append(build(ModelConfig(hidden=5, **options)))
        if not shape.get("vocabulary"):
            models[-1].mean.uniform_(-1, 1)
            models[-1].std.uniform_(0.5, 2)
    x = (
        torch.randint(0, 7, (3, 2, 9, 1)).float()
        if shape.get("vocabulary")
        else torch.randn(3, 2, 9, shape["features"])
    )
    stack = Stack(models)
    found, states = stack.forward(x, stack.initial_states(2))
    for m, model in enumerate(models):
        initial = SequenceModel.initial_states(model, 2)
        if shape.get("task") == "forecast":
            expected, ends = model.predict(model.scale(x[m]), None, initial)  # type: ignore[operator]
        else:
            expected, ends = model.raw(x[m], None, *initial)
        torch.testing.assert_close(found[m], expected, atol=1e-5, rtol=1e-5)
        for state, end in zip(states, ends, strict=True):
            torch.testing.assert_close(state[:, m], end, atol=1e-5, rtol=1e-5)
        again = stack.model(m)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(again.state_dict()[name], value)


def config(task: str = "regress", **model: Any) -> TrainConfig:
    return TrainConfig(
        name="small",
        task=task,
        data=DataSection(path="generated", scale=task == "forecast"),
        model=ModelSection(**{"hidden": 6, **model}),
        training=TrainSection(rows=16, steps=25, segment_steps=60 if task == "forecast" else 0, learning_rate=5e-3),
    )


def adding(seed: int) -> Split:
    return split_of("adding", 12, 160, seed, held=40)


def copying(seed: int) -> Split:
    return split_of("copying", 4, 160, seed, held=40)


def telemetry(seed: int) -> Split:
    split = anomaly.make(True)
    return Split(split.train.take(range(9)), split.validation, split.test)


@pytest.mark.parametrize(
    ("make", "task", "model"),
    [
        (adding, "regress", {"reduce": "last", "kind": "lstm"}),
        (copying, "classify", {"kind": "gru", "vocabulary": 10, "embedding": 4}),
        (copying, "classify", {"kind": "mlp", "vocabulary": 10, "embedding": 4}),
        (telemetry, "forecast", {"kind": "gru", "layers": 2}),
        (partial(digits, "rows"), "classify", {"kind": "lstm", "directions": 2, "reduce": "last"}),
    ],
    ids=["adding", "copying", "window", "telemetry", "digits"],
)
def test_an_epoch_in_the_stack_is_an_epoch_of_the_training_loop(make: Any, task: str, model: dict[str, Any]) -> None:
    settings, split = config(task, **model), make(3)
    alone = Trainer(
        training.fresh(settings, split, 3),
        task,
        FitOptions(
            epochs=1, rows=16, steps=25, segment_steps=settings.training.segment_steps, learning_rate=5e-3, seed=3
        ),
    )
    per_window = settings.model.reduce is not None
    batches = count_batches(alone, examples(task, split.train, per_window=per_window))
    history = alone.run(
        examples(task, split.train, per_window=per_window), examples(task, split.validation, per_window=per_window)
    )
    run = train_stack(settings, {3: split}, [(3, 5e-3)], Budget(batches, batches, 1))[0]
    assert run.curve[0][1] == pytest.approx(history.best_loss, rel=1e-3)
    assert run.model is not None
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(run.model.state_dict()[name], value, atol=2e-3, rtol=1e-2)


def count_batches(trainer: Trainer, sequences: Any) -> int:
    from export.data import segments

    rng = np.random.default_rng([3, 0])
    if trainer.model.mode == "step":
        sequences = segments(sequences, trainer.options.segment_steps, rng)
    return sum(1 for _ in trainer._plan(sequences, rng))


def test_the_models_of_a_stack_do_not_know_each_other() -> None:
    settings = config(reduce="last", kind="gru")
    splits = {seed: adding(seed) for seed in (0, 1)}
    together = train_stack(settings, splits, [(0, 1e-3), (1, 1e-2), (0, 1e-2)], BUDGET)
    for run in together:
        alone = train_stack(settings, {run.seed: splits[run.seed]}, [(run.seed, run.rate)], BUDGET)[0]
        np.testing.assert_allclose([s for _, s in run.curve], [s for _, s in alone.curve], rtol=1e-4)


def test_a_model_that_has_stopped_keeps_its_best_weights_and_leaves_the_others_alone() -> None:
    settings = config("classify", kind="rnn", reduce="last", hidden=12)
    splits = {seed: digits("rows", seed) for seed in (0, 1)}
    members = [(0, 1e-6), (0, 2e-2), (1, 2e-2)]
    budget = Budget(200, 20, 2, gain=0.05)
    runs = train_stack(settings, splits, members, budget)
    assert {run.stopped for run in runs} == {"budget", "no gain"}
    assert min(run.updates for run in runs) < 200 == runs[0].updates, "what has not begun to learn has the whole budget"
    for run in runs:
        assert run.model is not None
        assert run.best == min(score for _, score in run.curve)
        held = evaluate(run.model, "classify", splits[run.seed].validation, splits[run.seed].train)
        assert held["loss"] == pytest.approx(run.best, rel=1e-4), "the weights are those of the best validation score"


def test_a_rate_that_diverges_is_left_out_and_harms_nobody() -> None:
    settings = config(reduce="last", kind="rnn", nonlinearity="relu")
    chosen, found, runs = training.rates_then_seeds(
        settings, adding, [0, 1, 2], (1e30, 5e-3), BUDGET, rate_seeds=2, guess=1 / 6
    )
    assert chosen == 5e-3
    assert found[1e30] == np.inf
    assert [run.seed for run in runs] == [0, 1, 2]
    assert all(run.figures["loss"] < 1 for run in runs)
    with pytest.raises(ConfigurationError, match="every learning rate diverged"):
        training.rates_then_seeds(settings, adding, [0], (1e30,), BUDGET, rate_seeds=1)


def test_the_rate_is_chosen_on_validation_and_not_on_the_test_part() -> None:
    settings = config(reduce="last", kind="gru")
    chosen, found, runs = training.rates_then_seeds(settings, adding, [0, 1], (1e-4, 2e-2), BUDGET, rate_seeds=1)
    assert chosen == min(found, key=lambda rate: found[rate])
    assert {run.rate for run in runs} == {chosen}
    assert found[chosen] == runs[0].best, "only the first seed chose"


def test_dropout_is_refused_since_the_stack_has_none() -> None:
    with pytest.raises(ConfigurationError, match="dropout"):
        train_stack(config(reduce="last", dropout=0.5, layers=2), {0: adding(0)}, [(0, 1e-3)], BUDGET)


def test_digits_are_the_same_images_read_in_three_ways() -> None:
    rows, pixels, permuted = (digits(reading, 1) for reading in ("rows", "pixels", "permuted"))
    assert len(rows.train) + len(rows.validation) + len(rows.test) == 1797
    assert rows.train.x[0].shape == (8, 8)
    assert pixels.train.x[0].shape == permuted.train.x[0].shape == (64, 1)
    np.testing.assert_array_equal(rows.train.x[5].flatten(), pixels.train.x[5][:, 0])
    assert sorted(pixels.train.x[5][:, 0]) == sorted(permuted.train.x[5][:, 0])
    assert not np.array_equal(pixels.train.x[5], permuted.train.x[5])
    again = digits("permuted", 2)
    assert set(rows.train.names) != set(digits("rows", 2).train.names), "another seed is another split"
    shared = set(permuted.train.names) & set(again.train.names)
    name = min(shared)
    one, two = (s.train.x[s.train.names.index(name)] for s in (permuted, again))
    np.testing.assert_array_equal(one, two, "the permutation is the same for every seed")


def test_every_built_in_case_can_be_trained_as_a_stack() -> None:
    for case in built_in(["adding", "copying", "digits rows", "telemetry", "detection"], quick=True):
        length = min(case.splits)
        settings = sized(case.config, VARIANTS["gru"], 4)
        run = train_stack(settings, {0: case.splits[length](0)}, [(0, 5e-3)], Budget(2, 1, 5))[0]
        assert len(run.curve) == 2
        assert np.isfinite([score for _, score in run.curve]).all(), case.name
