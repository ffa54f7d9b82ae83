"""How good what was written is: share that is exactly right, errors per symbol and per word, BLEU.

Edit distances are counted by jiwer, BLEU by sacrebleu (its default tokeniser), as papers do.
"""

from __future__ import annotations

from collections.abc import Sequence

import jiwer
import sacrebleu
from jiwer import transforms
from rapidfuzz.distance import Levenshtein

from .data import Symbols

METRICS = {"exact_match": True, "symbol_error": False, "word_error": False, "bleu": True}
"""Name -> whether more is better."""
_WORDS = transforms.Compose([transforms.ReduceToListOfListOfWords()])  # as they are: no case is folded


def figures(
    written: Sequence[Symbols], right: Sequence[Sequence[Symbols]], separator: str, *, bleu: bool = True
) -> dict[str, float]:
    """Every metric of METRICS that means something here, over all rows; of several right answers the nearest counts.

    exact_match: share of rows that are right. symbol_error: edits (insertions, deletions, substitutions) per symbol.
    Of texts that mostly have
    several words also word_error, edits per word, where symbols are characters; and bleu, 0 to 100, where asked for.
    """
    nearest = [
        min(options, key=lambda each: Levenshtein.distance(each, mine))
        for mine, options in zip(written, right, strict=True)
    ]
    found = {"exact_match": sum(mine in set(o) for mine, o in zip(written, right, strict=True)) / max(1, len(written))}
    texts = [separator.join(row) for row in written]
    truths = [separator.join(row) for row in nearest]
    found["symbol_error"] = _error(nearest, written)
    has_words = 2 * sum(" " in truth for truth in truths) > len(truths)
    if has_words and separator == "":
        found["word_error"] = _error([tuple(t.split()) for t in truths], [tuple(t.split()) for t in texts])
    if has_words and bleu:
        longest = max(map(len, right))
        references = [[separator.join(o[n] if n < len(o) else o[0]) for o in right] for n in range(longest)]
        found["bleu"] = sacrebleu.corpus_bleu(texts, references).score
    return found


def _error(right: Sequence[Symbols], written: Sequence[Symbols]) -> float:
    """Edits per right symbol. Symbols become numbers, so that jiwer sees them as they are."""
    known: dict[str, str] = {}
    for row in (*right, *written):
        for symbol in row:
            known.setdefault(symbol, str(len(known)))
    kept = [(a, b) for a, b in zip(right, written, strict=True) if a]  # jiwer knows no rate of an empty truth
    if not kept:
        return 0.0
    lines = [[" ".join(known[symbol] for symbol in row) for row in side] for side in zip(*kept, strict=True)]
    extra = sum(len(b) for a, b in zip(right, written, strict=True) if not a)
    symbols = sum(len(a) for a, _ in kept)
    rate = float(jiwer.wer(lines[0], lines[1], reference_transform=_WORDS, hypothesis_transform=_WORDS))
    return rate + extra / symbols
