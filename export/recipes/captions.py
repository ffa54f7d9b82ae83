"""Captions: vector to sequence. A picture is the first event of a stream; the state it leaves behind tells its caption.

Data: rendered shapes (8 x 8 pixels) and their captions. An event is pixels beside a one-hot word: the first event has
the pixels, each later one the word before; so a picture conditions a stream as any event does.
"""

from __future__ import annotations

import numpy as np
import torch

from ..data import Split, sequences
from ..foreign import captions, pixels_of
from ..generate import rollout
from ..model import SequenceModel
from ..train import ModelSection, TrainSection
from . import Recipe, split

SIDE, PIXELS = 8, 64
SIZES, SHAPES = ("small", "large"), ("square", "cross", "bar")
PLACES = ("top left", "top right", "bottom left", "bottom right")
WORDS = ("<end>", "a", *SIZES, *SHAPES, "at", "the", "top", "bottom", "left", "right")
FEATURES = (*(f"pixel-{i}" for i in range(PIXELS)), *(f"word-{word}" for word in WORDS))


def draw(rng: np.random.Generator, size: int, shape: int, place: int) -> np.ndarray:
    """[PIXELS], noisy; the shape lies somewhere in its quarter of the picture."""
    picture, side = np.zeros((SIDE, SIDE), np.float32), 3 + size
    middle, first = np.arange(side) == side // 2, np.arange(side) == 0
    mask = (np.ones((side, side)), middle[:, None] | middle, np.repeat(first[:, None], side, axis=1))[shape]
    slack = SIDE // 2 - side + 1
    top, left = (int(rng.integers(slack)) + (SIDE // 2 if far else 0) for far in (place >= 2, place % 2))
    picture[top : top + side, left : left + side] = mask
    return (picture + rng.normal(0, 0.1, picture.shape)).ravel()


def make(quick: bool) -> Split:
    rng = np.random.default_rng(16)
    xs, labels = [], []
    for _ in range(1500 if quick else 5000):
        size, shape, place = int(rng.integers(2)), int(rng.integers(3)), int(rng.integers(4))
        caption = ["a", SIZES[size], SHAPES[shape], "at", "the", *PLACES[place].split(), "<end>"]
        tokens = [WORDS.index(word) for word in caption]
        x = np.zeros((len(tokens), len(FEATURES)), np.float32)
        x[0, :PIXELS] = draw(rng, size, shape, place)
        x[np.arange(1, len(tokens)), PIXELS + np.array(tokens[:-1])] = 1
        xs.append(x)
        labels.append(tokens)
    return split(sequences(FEATURES, xs, labels, WORDS))


def caption_of(model: SequenceModel, first: np.ndarray) -> str:
    """The most probable words, one after the other, for the event with the picture [F]."""
    words = model.labels or []
    one_hot = torch.eye(model.features)[model.features - len(words) :]
    picked = rollout(model, first[None], 8, lambda y: y.argmax(), lambda word: one_hot[word])
    return " ".join(words[int(word)] for word in picked).split(" <end>")[0]


def position_baseline(data: Split) -> float:
    """Accuracy of the most common word at each place of a caption, whatever the picture."""
    learnt, judged = (list(part.labels or []) for part in (data.train, data.test))
    longest = max(map(len, [*learnt, *judged]))
    guess = [np.bincount([y[at] for y in learnt if len(y) > at] or [0]).argmax() for at in range(longest)]
    return float(np.mean(np.concatenate([y == guess[: len(y)] for y in judged])))


RECIPE = Recipe(
    summary="a caption for a picture (vector to sequence, causal)",
    task="classify",
    make=make,
    model=ModelSection(hidden=96, kind="gru"),
    training=TrainSection(epochs=15, rows=64, steps=16, learning_rate=5e-3, schedule="cosine"),
    quick_training=TrainSection(epochs=10, rows=32, steps=16, learning_rate=5e-3, schedule="cosine"),
    metric="accuracy",
    limit=0.97,
    quick_limit=0.95,
    baseline=position_baseline,
    baseline_name="accuracy of each place's most common word",
    read=captions,
    feedback=lambda data: {"output": "y", "mode": "argmax", "encoding": "one-hot", "at": pixels_of(data)},
    show=lambda model, data: "\n".join(caption_of(model, x[0]) for x in data.test.x[:4]),
)
