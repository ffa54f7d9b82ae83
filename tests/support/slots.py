"""Sentences with slots, as slot filling has them: what a word is, the words before and after it say together.

A slot's value ("bremen") is one of many that all slots share. The word before it says its kind (13), the word after
the filler behind it which of the three of that kind: so half of what is to be known comes later in the sentence.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

KINDS, ENDS = 13, 3
LABELS = ("O", *(f"slot-{kind}-{end}" for kind in range(KINDS) for end in range(ENDS)))


def sentence(rng: np.random.Generator, fillers: int, values: int) -> Iterator[tuple[str, str]]:
    """Words with their labels: fillers around one to three slots."""
    for _ in range(int(rng.integers(1, 4))):
        for _ in range(int(rng.integers(0, 3))):
            yield f"filler-{rng.integers(fillers)}", "O"
        kind = int(rng.integers(KINDS))
        end = int(rng.choice(ENDS, p=(0.6, 0.25, 0.15)))
        yield f"before-{kind}", "O"
        yield f"value-{rng.integers(values)}", f"slot-{kind}-{end}"
        if rng.random() < 0.5:
            yield f"filler-{rng.integers(fillers)}", "O"
        yield f"after-{end}", "O"


def write_slots(path: Path, sentences: int, words: int, *, seed: int = 0) -> None:
    """A CSV of words: stream (the sentence), time (the place), word, label."""
    rng = np.random.default_rng(seed)
    values = words * 2 // 3
    fillers = words - values - KINDS - ENDS
    with path.open("w", encoding="utf-8") as file:
        file.write("stream,time,word,label\n")
        for number in range(sentences):
            for place, (word, label) in enumerate(sentence(rng, fillers, values)):
                file.write(f"u{number},{place},{word},{label}\n")
