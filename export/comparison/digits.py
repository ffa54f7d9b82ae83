"""Handwritten digits as sequences: scikit-learn's 1,797 images of 8 x 8, read row by row or pixel by pixel."""

from __future__ import annotations

from typing import Literal

import numpy as np
from sklearn.datasets import load_digits

from ..data import Split, sequences, split_by_stream

Reading = Literal["rows", "pixels", "permuted"]
BRIGHTEST = 16.0


def digits(reading: Reading, seed: int) -> Split:
    """Images split by seed (70, 15 and 15 % of each digit); x [8, 8] by row, or [64, 1] by pixel.

    ``permuted``: the pixels in one random order that is the same for every image and every seed, so that what lies
    beside each other in the image is far apart in time.
    """
    bunch = load_digits()
    images = np.asarray(bunch.images, np.float32) / BRIGHTEST
    if reading != "rows":
        images = images.reshape(len(images), 64, 1)
    if reading == "permuted":
        images = images[:, np.random.default_rng(92916).permutation(64)]
    names = [f"column {i}" for i in range(8)] if reading == "rows" else ["pixel"]
    data = sequences(names, images, [int(label) for label in bunch.target], [str(digit) for digit in range(10)])
    return split_by_stream(data, validation=0.15, test=0.15, seed=seed)
