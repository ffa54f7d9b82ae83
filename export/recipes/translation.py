"""Translation: dates and numbers in words, from English to French. The order of words changes, and so does counting
(ninety is four times twenty and ten). Data: num2words and babel; combinations of the test part were never seen.
"""

from __future__ import annotations

from datetime import date, timedelta
from itertools import product

import numpy as np

from ..pairs.data import PairSplit, Symbols, merge
from ..pairs.read import divide
from ..pairs.recipe import SEED, SHARE, PairRecipe, package
from ..pairs.sections import DecoderSection, PairsSection
from ..train import ModelSection, TrainSection

PAIRS = PairsSection(source_units="words", target_units="words", metric="exact_match", label_smoothing=0.1)
DAYS = 365 * 250
LARGEST = 999_999


def words(text: str) -> Symbols:
    """Hyphens and commas are no part of a word: "ninety-one" is two."""
    return tuple(text.lower().replace("-", " ").replace(",", " ").split())


def number(value: int) -> tuple[Symbols, Symbols]:
    say = package("num2words").num2words
    return words(say(value, lang="en")), words(say(value, lang="fr"))


def day(when: date) -> tuple[Symbols, Symbols]:
    """Friday, March the fifth, nineteen eighty-four: vendredi cinq mars mille neuf cent quatre-vingt-quatre."""
    say, show = package("num2words").num2words, package("babel.dates").format_date
    week, month = ([show(when, field, locale=each) for each in ("en", "fr")] for field in ("EEEE", "MMMM"))
    first = "premier" if when.day == 1 else say(when.day, lang="fr")
    english = f"{week[0]} {month[0]} the {say(when.day, to='ordinal')} {say(when.year, to='year')}"
    return words(english), words(f"{week[1]} {first} {month[1]} {say(when.year, lang='fr')}")


def make(quick: bool) -> PairSplit:
    rng, count = np.random.default_rng(22), 1500 if quick else 10_000
    days = [day(date(1850, 1, 1) + timedelta(days=int(each))) for each in rng.choice(DAYS, count, replace=False)]
    # as many numbers of one word as of six: their logarithms are even
    values = {int(each) for each in 10 ** rng.uniform(0, np.log10(LARGEST), count)}
    return divide(merge([*days, *map(number, sorted(values))]), PAIRS, validation=SHARE, test=SHARE, seed=SEED)


def word_by_word(split: PairSplit) -> dict[str, float]:
    """Exact match of giving each word the one that goes with it most (Dice), in the order of the source."""
    counts: dict[tuple[str, str], int] = {}
    alone: tuple[dict[str, int], dict[str, int]] = ({}, {})
    for pair in split.train:
        sides = set(pair.source), set(pair.targets[0])
        for each in product(*sides):
            counts[each] = counts.get(each, 0) + 1
        for side, known in zip(sides, alone, strict=True):
            for word in side:
                known[word] = known.get(word, 0) + 1
    best: dict[str, tuple[float, str]] = {}
    for (mine, theirs), count in counts.items():
        best[mine] = max(best.get(mine, (0.0, "")), (2 * count / (alone[0][mine] + alone[1][theirs]), theirs))
    said = [tuple(best[word][1] for word in pair.source if word in best) for pair in split.test]
    return {"word by word": float(np.mean([a in pair.targets for a, pair in zip(said, split.test, strict=True)]))}


RECIPE = PairRecipe(
    summary="dates and numbers in words, English to French (encoder-decoder with attention)",
    task="sequence-to-sequence",
    make=make,
    model=ModelSection(hidden=64, kind="gru", directions=2, embedding=48, dropout=0.1),
    decoder=DecoderSection(embedding=48),
    pairs=PAIRS,
    training=TrainSection(epochs=6, rows=64, learning_rate=4e-3, schedule="cosine"),
    quick_training=TrainSection(epochs=6, rows=32, learning_rate=8e-3, schedule="cosine"),
    limits={"exact_match": 0.95},
    quick_limits={"exact_match": 0.80},
    baseline=word_by_word,
)
