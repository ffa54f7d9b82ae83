"""Looking a text up in a dictionary instead of learning: what recipes compare their models with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import OSA, Levenshtein


def nearest(queries: Sequence[str], words: Sequence[str]) -> list[str]:
    """For each query the word with the fewest edits; of equally near ones the first."""
    near = process.cdist(queries, words, scorer=Levenshtein.distance, dtype=np.uint8)
    return [words[at] for at in near.argmin(axis=1)]


def norvig(queries: Sequence[str], words: Sequence[str]) -> list[str]:
    """Norvig's spelling corrector: the first word at one edit (or exchange of neighbours), else at two, else the query.

    ``words``: the commonest first.
    """
    near = process.cdist(queries, words, scorer=OSA.distance, dtype=np.uint8)
    rows = zip(near.argmin(axis=1), near.min(axis=1), queries, strict=True)
    return [words[at] if edits <= 2 else query for at, edits, query in rows]
