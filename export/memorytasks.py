"""Tasks whose difficulty is a known distance in time: the adding problem and copy memory."""

from __future__ import annotations

import numpy as np

from .data import Split, Streams, sequences

ADDING_BASELINE = 1 / 6
"""Mean squared error of always answering 1: the variance of the sum of two numbers from [0, 1]."""
SYMBOLS = 8
MEMORY = 10


def copy_baseline(lag: int) -> float:
    """Nats per step of blanks where blanks belong and a guess among the symbols where they have to be recalled."""
    return float(MEMORY * np.log(SYMBOLS) / (lag + 2 * MEMORY))


def adding(steps: int, count: int, seed: int) -> Streams:
    """x = (number, marker); the label of the sequence is the sum of the two marked numbers, one in each half."""
    rng = np.random.default_rng([seed, steps, 1])
    xs, sums = [], []
    for _ in range(count):
        x = np.zeros((steps, 2), np.float32)
        x[:, 0] = rng.random(steps)
        marked = [int(rng.integers(steps // 2)), int(rng.integers(steps // 2, steps))]
        x[marked, 1] = 1
        xs.append(x)
        sums.append(float(x[marked, 0].sum()))
    data = sequences(("number", "marker"), xs)
    data.labels = [np.full(steps, total, np.float32) for total in sums]
    return data


def copying(lag: int, count: int, seed: int) -> Streams:
    """Ten symbols, ``lag`` blanks, a signal, blanks: the ten symbols have to be answered after the signal.

    Categories: 0 blank, 1 to 8 symbols, 9 the signal. The label is blank for all but the last ten of lag + 20 steps.
    """
    rng = np.random.default_rng([seed, lag, 2])
    total = lag + 2 * MEMORY
    symbols = rng.integers(1, SYMBOLS + 1, (count, MEMORY))
    x = np.zeros((count, total), np.int64)
    x[:, :MEMORY] = symbols
    x[:, total - MEMORY - 1] = SYMBOLS + 1
    y = np.zeros((count, total), np.int64)
    y[:, -MEMORY:] = symbols
    return sequences(("symbol",), list(x), list(y), [str(i) for i in range(SYMBOLS + 2)])


def split_of(task: str, length: int, count: int, seed: int, held: int | None = None) -> Split:
    """Independent draws for training (``count``), validation and test (``held`` each: a tenth, at least 200)."""
    make = adding if task == "adding" else copying
    held = max(200, count // 10) if held is None else held
    return Split(make(length, count, seed), make(length, held, seed + 1000), make(length, held, seed + 2000))
