"""Tagging: bidirectional many-to-many. The part of speech of every word; some words need the words *after* them.

Data: a grammar with words that are noun or verb depending on what follows ("can"), so that a causal model must guess.
"""

from __future__ import annotations

import numpy as np

from ..data import Split, sequences
from ..train import ModelSection, TrainSection
from . import Recipe, split

TAGS = ("determiner", "adjective", "noun", "verb", "adverb")
DETERMINERS, ADVERBS = ["the", "a", "this"], ["slowly", "often", "now"]
NOUNS, VERBS = ["dog", "house", "child", "river"], ["sees", "paints", "finds", "hears"]
BOTH = ["light", "cold", "square"]
"""Adjective before a noun, noun otherwise."""
EITHER = ["watch", "plant", "play", "park"]
"""Noun or verb; at the start of a sentence only the next words tell ("watch the dog", "watch often breaks")."""
WORDS = ["<unknown>", *DETERMINERS, *ADVERBS, *NOUNS, *VERBS, *BOTH, *EITHER, "breaks", "falls"]


def phrase(rng: np.random.Generator) -> list[tuple[str, int]]:
    words = [(str(rng.choice(DETERMINERS)), 0)]
    if rng.random() < 0.5:
        words.append((str(rng.choice(BOTH)), 1))
    return [*words, (str(rng.choice([*NOUNS, *BOTH, *EITHER])), 2)]


def sentence(rng: np.random.Generator) -> list[tuple[str, int]]:
    kind = rng.random()
    if kind < 0.35:  # imperative: verb first
        return [(str(rng.choice(EITHER)), 3), *phrase(rng)]
    if kind < 0.7:  # headline: noun first
        return [(str(rng.choice(EITHER)), 2), (str(rng.choice(ADVERBS)), 4), (str(rng.choice(["breaks", "falls"])), 3)]
    return [*phrase(rng), (str(rng.choice([*VERBS, *EITHER])), 3), *phrase(rng)]


def make(quick: bool) -> Split:
    rng = np.random.default_rng(13)
    made = [sentence(rng) for _ in range(1200 if quick else 5000)]
    tokens = [[WORDS.index(word) for word, _ in words] for words in made]
    return split(sequences(["word"], tokens, [[tag for _, tag in words] for words in made], TAGS, vocabulary=WORDS))


def most_common_tag(data: Split) -> float:
    """Accuracy of giving every word the tag it mostly had in training."""
    assert data.train.labels is not None
    assert data.test.labels is not None
    counts = np.zeros((len(data.train.feature_tables[0].vocabulary), len(data.train.classes or ())))
    words, tags = np.concatenate(data.train.x)[:, 0].astype(int), np.concatenate(data.train.labels)
    np.add.at(counts, (words[tags >= 0], tags[tags >= 0]), 1)
    guess = counts.argmax(axis=1)[np.concatenate(data.test.x)[:, 0].astype(int)]
    truth = np.concatenate(data.test.labels)
    return float((guess == truth)[truth >= 0].mean())


RECIPE = Recipe(
    summary="a tag for every word of a sentence (bidirectional, many-to-many, closed windows)",
    task="classify",
    make=make,
    model=ModelSection(hidden=24, kind="gru", directions=2, embedding=12),
    training=TrainSection(epochs=10, rows=32, learning_rate=5e-3, schedule="cosine"),
    quick_training=TrainSection(epochs=8, rows=32, learning_rate=1e-2, schedule="cosine"),
    metric="accuracy",
    limit=0.97,
    quick_limit=0.96,
    baseline=most_common_tag,
    baseline_name="accuracy of each word's most common tag",
)
