"""The training loop: deterministic, resumable to the bit, and loud when it cannot train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from export.data import Example
from export.fit import FitOptions, Trainer, facts
from export.model import ModelConfig, build
from export.tasks import chunk_loss, mean_loss, passes
from streamer.errors import ConfigurationError

pytestmark = pytest.mark.torch


def examples(seed: int, count: int = 12) -> list[Example]:
    """Two features; the target is the sum of the first one over the last two steps, which takes a memory."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        x = rng.normal(size=(int(rng.integers(3, 40)), 2)).astype(np.float32)
        made.append(Example(x, (x[:, 0] + np.concatenate(([0], x[:-1, 0]))).astype(np.float32)))
    return made


def trainer(**options: Any) -> Trainer:
    torch.manual_seed(1)
    model = build(ModelConfig(features=2, hidden=12, layers=2, dropout=0.2, outputs=1, kind="gru"))
    fit = {"epochs": 6, "rows": 4, "steps": 8, "segment_steps": 20, "learning_rate": 0.01, "seed": 3}
    return Trainer(model, "regress", FitOptions(**{**fit, **options}))


def weights(made: Trainer) -> list[bytes]:
    return [value.numpy().tobytes() for value in made.model.state_dict().values()]


def test_training_learns_and_is_deterministic() -> None:
    a, b = trainer(), trainer()
    history = a.run(examples(0), examples(1))
    b.run(examples(0), examples(1))
    assert weights(a) == weights(b)
    assert history.best_loss < 0.7 * 2.0  # the variance of the target is 2
    assert history.best_loss == pytest.approx(mean_loss(a.model, "regress", examples(1)))
    c = trainer(seed=4)
    c.run(examples(0), examples(1))
    assert weights(c) != weights(a)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "plateau"])
def test_a_resumed_run_is_bit_equal(tmp_path: Path, schedule: str) -> None:
    options = {"schedule": schedule, "patience": 4}
    whole = trainer(**options)
    whole.run(examples(0), examples(1))

    class Interrupt(Exception):
        pass

    def stop_after_third(figures: Any) -> None:
        if figures.epoch == 2:
            raise Interrupt

    first = trainer(**options)
    with pytest.raises(Interrupt):
        first.run(examples(0), examples(1), progress=stop_after_third, checkpoint=tmp_path / "c.pt")
    second = trainer(**options)
    second.restore(tmp_path / "c.pt")
    assert len(second.history.epochs) == 3
    second.run(examples(0), examples(1))
    assert weights(second) == weights(whole)
    losses = [[row.validation_loss for row in made.history.epochs] for made in (second, whole)]
    assert losses[0] == losses[1]


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    made = trainer(epochs=1)
    made.run(examples(0), examples(1), checkpoint=tmp_path / "c.pt")
    trainer(epochs=5).restore(tmp_path / "c.pt")
    with pytest.raises(ConfigurationError, match="other settings: learning_rate"):
        trainer(learning_rate=0.5).restore(tmp_path / "c.pt")
    with pytest.raises(ConfigurationError, match="no checkpoint"):
        trainer().restore(tmp_path / "none.pt")
    (tmp_path / "broken.pt").write_bytes((tmp_path / "c.pt").read_bytes()[:200])
    with pytest.raises(ConfigurationError, match="not a checkpoint"):
        trainer().restore(tmp_path / "broken.pt")


def test_a_checkpoint_of_other_facts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    made = trainer(epochs=1)
    made.facts = facts(labels=("x", "y"), scale_of_features=[[0.5], [1.0]])
    made.run(examples(0), examples(1), checkpoint=path)
    same, other = trainer(epochs=1), trainer(epochs=1)
    same.facts = dict(made.facts)
    same.restore(path)
    other.facts = facts(labels=("y", "x"), scale_of_features=[[0.5], [1.0]])
    with pytest.raises(
        ConfigurationError, match=r'other data .*: labels \["x", "y"\] \(now \["y", "x"\]\): begin anew'
    ):
        other.restore(path)
    assert not other.history.epochs
    document = torch.load(path)
    del document["facts"]
    torch.save(document, path)
    other.restore(path)  # an earlier version wrote none


def test_a_diverging_loss_stops_with_a_sentence() -> None:
    with pytest.raises(ConfigurationError, match=r"diverged in epoch \d+, batch \d+ .*learning_rate"):
        trainer(optimiser="sgd", learning_rate=1e6, clip_norm=0.0, epochs=50).run(examples(0), examples(1))


def test_clipping_bounds_the_step_and_is_reported() -> None:
    made = trainer(epochs=1, optimiser="sgd", learning_rate=1.0, clip_norm=1e-4)
    before = torch.cat([p.detach().flatten().clone() for p in made.model.parameters()])
    history = made.run(examples(0, count=4), examples(1))
    after = torch.cat([p.detach().flatten() for p in made.model.parameters()])
    steps = 3 * 5  # no more batches than that: 4 streams of at most 39 steps, 4 beside each other, 8 steps each
    assert 0 < float((after - before).norm()) <= steps * 1e-4
    assert history.epochs[0].clipped_share == 1.0
    assert history.epochs[0].gradient_norm_max > 1e-4


def test_patience_ends_training_with_the_best_weights() -> None:
    made = trainer(epochs=200, patience=3, learning_rate=0.05)
    history = made.run(examples(0, count=3), examples(1))
    assert history.stopped_early
    assert len(history.epochs) == history.best_epoch + 4 < 200
    assert mean_loss(made.model, "regress", examples(1)) == pytest.approx(history.best_loss)


def test_carried_state_makes_pieces_equal_to_the_whole() -> None:
    model = trainer().model.eval()
    data = examples(5)
    whole, count = 0.0, 0
    with torch.no_grad():
        for example in data:
            y, _ = model.raw(torch.from_numpy(example.x)[None], None)
            whole += float((y[0, :, 0] - torch.from_numpy(example.target)).square().sum())
            count += len(example.x)
        pieces = 0.0
        for chunk, states, carry in passes(model, data, rows=3, steps=5):
            loss = chunk_loss(model, "regress", chunk, states)
            carry.put(chunk, loss.states)
            pieces += float(loss.total)
    assert pieces == pytest.approx(whole, rel=1e-5)
    assert mean_loss(model, "regress", data) == pytest.approx(whole / count, rel=1e-5)


def test_impossible_options_are_refused() -> None:
    for options in ({"epochs": 0}, {"learning_rate": 0.0}, {"optimiser": "lbfgs"}, {"schedule": "linear"}):
        with pytest.raises(ConfigurationError):
            trainer(**options)
    with pytest.raises(ConfigurationError, match="patience of at least 2"):
        trainer(schedule="plateau")
