"""Figures that others published for the same kinds of tasks, and what is different there."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One result of a paper beside a task of this comparison."""

    task: str
    source: str
    measure: str
    """What the figures are; ``ours`` takes the same measure from a row's figures."""
    figures: dict[str, float]
    ours: str
    """Name of the figure in our rows: loss, accuracy."""
    differs: str


BAI = "Bai, Kolter, Koltun 2018 (arXiv 1803.01271, table 1)"
PUBLISHED = (
    Published(
        "adding",
        f"{BAI}, T = 600",
        "squared error",
        {"rnn": 0.177, "lstm": 0.164, "gru": 5.3e-5},
        "loss",
        "their sequences are longer (600 steps) and their models larger (about 70,000 parameters), and trained "
        "longer; the order GRU before LSTM before plain RNN is what can be compared",
    ),
    Published(
        "copying",
        f"{BAI}, lag T = 1000",
        "nats per step",
        {"rnn": 0.0202, "lstm": 0.0204, "gru": 0.0197},
        "loss",
        "guessing scores 0.0204 at their lag, so none of the three cells learnt anything there; a loss per step falls "
        "with the lag by itself and is compared as a share of guessing",
    ),
    Published(
        "digits pixels",
        f"{BAI}, sequential MNIST",
        "accuracy",
        {"rnn": 0.215, "lstm": 0.872, "gru": 0.962},
        "accuracy",
        "MNIST has 60,000 images of 28 x 28, read as 784 steps; here are 1,797 of 8 x 8, read as 64 steps",
    ),
    Published(
        "digits permuted",
        f"{BAI}, permuted MNIST",
        "accuracy",
        {"rnn": 0.253, "lstm": 0.857, "gru": 0.873},
        "accuracy",
        "as above: 784 steps there, 64 here, and another permutation",
    ),
    Published(
        "characters",
        f"{BAI}, Penn Treebank by character (bits there, nats here: x 0.693)",
        "nats per character",
        {"rnn": 1.48 * 0.6931, "lstm": 1.36 * 0.6931, "gru": 1.37 * 0.6931},
        "loss",
        "another text (5 million characters of newspapers, 50 different characters) and 100 times the parameters",
    ),
    Published(
        "characters",
        "nanoGPT (Karpathy), Shakespeare by character: a transformer of 10 million parameters",
        "nats per character",
        {"transformer": 1.4697},
        "loss",
        "the same text where ours is `tinyshakespeare`; another architecture, and several hundred times the parameters",
    ),
)
"""Table 1 of Bai et al. gives one figure per cell, without a spread."""
