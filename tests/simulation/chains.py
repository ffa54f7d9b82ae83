"""Models whose state is a hash chain, as arithmetic: what they answer is worked out here a second time for the oracle."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

MODULUS = 8_388_593  # the largest prime below 2^23: sums of products stay exact in float64, values exact in float32


@dataclass(frozen=True)
class Chain:
    """``h' = (factor h + weight x + bias) mod p``; an x of ``refuses`` fails the call."""

    letter: str
    factor: int
    weight: int
    bias: int
    refuses: tuple[float, ...]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.letter.encode()).hexdigest()

    def advance(self, state: float, x: float) -> float:
        return float((state * self.factor + x * self.weight + self.bias) % MODULUS)


CHAINS = {
    chain.letter: chain
    for chain in (
        Chain("A", 31, 17, 7, (13.0,)),
        Chain("B", 29, 19, 11, (14.0,)),
        Chain("C", 37, 23, 5, (13.0,)),
        Chain("D", 31, 17, 7, (13.0,)),  # another file that computes the same as A
        Chain("P", 0, 0, 0, (13.0,)),  # with features of the past: what it answers is in tests/support/pasts.py
        Chain("E", 31, 17, 7, (13.0,)),  # emits: its state decides a label, of which symbols are made
    )
}
LETTER_OF = {chain.sha256[:16]: chain.letter for chain in CHAINS.values()}

EMITS = "E"
"""Letters of chains that answer in symbols; of the fold over windows that does: ``#``"""


PAST = "P"


def kept_of(x: float) -> float | None:
    """The second cell of an event for a model with a past; None: it has none."""
    return x if x % 3 == 0 else None


def fold(values: Iterable[float]) -> float:
    """What the model over windows gives."""
    state = 0.0
    for value in values:
        state = float((state * 31 + value * 17 + 7) % MODULUS)
    return state


def rollout(chain: Chain, state: float, last: float | None, request: dict[str, object]) -> list[float] | None:
    """The sequence that a request to generate must give; None: the model refuses it."""
    if request.get("from") == "initial":
        state, last = 0.0, None
    prompt = request.get("prompt") or ([0.0] if last is None else [])
    assert isinstance(prompt, list)
    for x in prompt:
        if x in chain.refuses:
            return None
        state = last = chain.advance(state, x)
    assert last is not None
    picked = [last]
    steps = request["n"]
    assert isinstance(steps, int)
    while len(picked) < steps:
        if picked[-1] in chain.refuses:
            return None
        state = chain.advance(state, picked[-1])
        picked.append(state)
    return picked
