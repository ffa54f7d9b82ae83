"""Sentiment: many-to-one. Does a sentence praise or complain? A negation turns the words after it around.

Data: a grammar that knows the truth. Counting words is not enough: "not bad but the room was awful" has to be read.
"""

from __future__ import annotations

import numpy as np

from ..data import Split, sequences
from ..foreign import sentences
from ..train import ModelSection, TrainSection
from . import Recipe, split

NOUNS = ["room", "food", "service", "film", "plot", "staff", "music", "price"]
GOOD = ["good", "great", "lovely", "warm", "clever", "fresh"]
BAD = ["bad", "awful", "slow", "cold", "dull", "stale"]
OTHER = ["the", "was", "is", "not", "never", "but", "and", "very", "quite", "."]
WORDS = ["<unknown>", *NOUNS, *GOOD, *BAD, *OTHER]
CLASSES = ("negative", "positive")


def sentence(rng: np.random.Generator) -> tuple[list[str], int]:
    """Clauses joined by "and" or "but"; the last clause decides, and a negation turns it around."""
    words: list[str] = []
    truth = 0
    for clause in range(int(rng.integers(1, 4))):
        if clause:
            words.append(str(rng.choice(["but", "and"])))
        truth, negated = int(rng.integers(2)), bool(rng.random() < 0.4)
        adjective = str(rng.choice(GOOD if truth else BAD))
        words += ["the", str(rng.choice(NOUNS)), str(rng.choice(["was", "is"]))]
        words += [str(rng.choice(["not", "never"]))] if negated else []
        words += [str(rng.choice(["very", "quite"]))] if rng.random() < 0.4 else []
        words.append(adjective)
        truth = 1 - truth if negated else truth
    return [*words, "."], truth


def make(quick: bool) -> Split:
    rng = np.random.default_rng(12)
    made = [sentence(rng) for _ in range(1500 if quick else 6000)]
    tokens = [[WORDS.index(word) for word in words] for words, _ in made]
    return split(sequences(["word"], tokens, [truth for _, truth in made], CLASSES, vocabulary=WORDS))


RECIPE = Recipe(
    summary="one verdict per sentence (many-to-one, embedding, closed windows)",
    task="classify",
    make=make,
    read=sentences,
    model=ModelSection(hidden=32, kind="lstm", embedding=16, reduce="last"),
    training=TrainSection(epochs=12, rows=32, learning_rate=5e-3, schedule="cosine"),
    quick_training=TrainSection(epochs=12, rows=32, learning_rate=1e-2, schedule="cosine"),
    metric="accuracy",
    limit=0.98,
    quick_limit=0.95,
    baseline="baseline_accuracy",
    baseline_name="accuracy of the larger class",
)
