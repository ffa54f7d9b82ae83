"""Captions: a picture in, what is on it out, word by word; before each word the decoder looks at the patches again.

Data: rendered pictures (8 x 8 pixels) of one to three things. No caption of the test part was ever seen in training:
what is on a picture is new, not only its noise.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..data import F32
from ..pairs.data import Pair, PairSplit, Symbols, split_pairs
from ..pairs.pictures import as_events, of_pictures, patches, read_captions, rolled, word_accuracy
from ..pairs.recipe import SEED, PairRecipe
from ..pairs.sections import DecoderSection, PairsSection
from ..train import DataSection, ModelSection, TrainConfig, TrainSection, train_seed

SIDE = 8
SIZES, SHAPES = ("small", "large"), ("square", "cross", "bar")
PLACES = ("top left", "top right", "bottom left", "bottom right")
SHARE = 0.15
"""Of what can be on a picture, for validation and for the test."""
NOISE = 0.1
Thing = tuple[int, int, int]
"""Size, shape and place, as numbers."""


def draw(rng: np.random.Generator, things: list[Thing]) -> F32:
    """[SIDE * SIDE], noisy; each thing lies somewhere in its quarter of the picture."""
    picture = np.zeros((SIDE, SIDE), np.float32)
    for size, shape, place in things:
        side = 3 + size
        middle, first = np.arange(side) == side // 2, np.arange(side) == 0
        mask = (np.ones((side, side)), middle[:, None] | middle, np.repeat(first[:, None], side, axis=1))[shape]
        slack = SIDE // 2 - side + 1
        top, left = (int(rng.integers(slack)) + (SIDE // 2 if far else 0) for far in (place >= 2, place % 2))
        picture[top : top + side, left : left + side] = mask
    return (picture + rng.normal(0, NOISE, picture.shape)).ravel().astype(np.float32)


def caption(things: list[Thing]) -> Symbols:
    """In the order of reading."""
    said = [f"a {SIZES[size]} {SHAPES[shape]} at the {PLACES[place]}" for size, shape, place in things]
    return tuple(" and ".join(said).split())


def make(quick: bool) -> PairSplit:
    rng, pairs = np.random.default_rng(16), []
    for _ in range(1500 if quick else 8000):
        places = sorted(rng.choice(4, int(rng.integers(1, 4)), replace=False).tolist())
        things = [(int(rng.integers(2)), int(rng.integers(3)), place) for place in places]
        pairs.append(Pair(patches(draw(rng, things)), (caption(things),)))
    return of_pictures(split_pairs(pairs, validation=SHARE, test=SHARE, seed=SEED, by=lambda pair: pair.targets[0]))


def one_state(split: PairSplit) -> dict[str, dict[str, float]]:
    """Figures of a causal model that sees the picture once, as the first event of a stream (our recipe before)."""
    training = TrainSection(epochs=15, rows=64, steps=32, learning_rate=5e-3, schedule="cosine")
    model, events = ModelSection(hidden=96, kind="gru"), as_events(split)
    config = TrainConfig("captions", "classify", DataSection(path="generated"), model, training)
    trained = train_seed(config, events, SEED, out=None)
    longest = max(map(len, events.train.x))
    written = [rolled(trained.model, x[0], longest) for x in events.test.x]
    right = np.mean([mine in pair.targets for mine, pair in zip(written, split.test, strict=True)])
    accuracy = trained.figures["test"]["accuracy"]
    return {"one state for the whole picture": {"exact_match": float(right), "accuracy": accuracy}}


def read(path: Path) -> PairSplit:
    return read_captions(path, share=SHARE, seed=SEED)


RECIPE = PairRecipe(
    summary="a caption for a picture (encoder-decoder with attention over its patches)",
    task="sequence-to-sequence",
    make=make,
    read=read,
    model=ModelSection(hidden=64, kind="lstm", directions=2, dropout=0.1),
    decoder=DecoderSection(embedding=16),
    pairs=PairsSection(target_units="words", metric="exact_match", split_by="target"),
    training=TrainSection(epochs=20, rows=64, learning_rate=6e-3, schedule="cosine"),
    quick_training=TrainSection(epochs=8, rows=32, learning_rate=8e-3, schedule="cosine"),
    limits={"exact_match": 0.97},
    quick_limits={"exact_match": 0.3},
    baseline=one_state,
    further=word_accuracy,
)
