"""The search of a decoder: against all sequences that there are, and with windows that come and go beside each other."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from writing import WritingModel, write

from streamer.core import F32, I64, Written
from streamer.errors import ModelRunError
from streamer.generate.beam import Beam
from streamer.generate.search import Searches, decode
from streamer.modelfile.decoder import Decoder

END = 1


def declared(symbols: int, max_steps: int, width: int, alpha: float) -> Decoder:
    labels = tuple("<>abcdefgh"[:symbols])
    search: Any = "greedy" if width == 1 else "beam"
    return Decoder(labels, 0, END, max_steps, search=search, width=width, length_normalisation=alpha)


class Table:
    """Log-probabilities that depend on all that was written: a number per prefix, from a seed."""

    def __init__(self, symbols: int, seed: int) -> None:
        self.symbols, self.seed = symbols, seed

    def row(self, prefix: tuple[int, ...]) -> F32:
        chance = np.random.default_rng([self.seed, len(prefix), *prefix])
        logits = chance.normal(size=self.symbols) * 2
        return (logits - np.log(np.exp(logits).sum())).astype(np.float32)

    def run(self, beam: Beam) -> Written:
        """Drives a beam; the state of a row is its prefix."""
        prefixes: list[tuple[int, ...]] = [()] * len(beam.symbols)
        while True:
            written = beam.advance(np.stack([self.row(prefix) for prefix in prefixes]))
            if written is not None:
                return written
            prefixes = [
                (*prefixes[parent], symbol)
                for parent, symbol in zip(beam.parents.tolist(), beam.symbols.tolist(), strict=True)
            ]

    def best(self, max_steps: int, alpha: float) -> tuple[tuple[int, ...], float]:
        """The best of all sequences that end in time."""
        found = []
        others = [symbol for symbol in range(self.symbols) if symbol != END]
        for count in range(max_steps + 1):
            for sequence in itertools.product(others, repeat=count):
                total = sum(float(self.row(sequence[:at])[symbol]) for at, symbol in enumerate((*sequence, END)))
                found.append((total / ((5 + count + 1) / 6) ** alpha, sequence))
        score, sequence = max(found)
        return sequence, score


@given(st.integers(2, 4), st.integers(1, 3), st.sampled_from([0.0, 0.6, 1.0]), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_a_beam_as_wide_as_there_are_sequences_finds_the_best(
    symbols: int, max_steps: int, alpha: float, seed: int
) -> None:
    table = Table(symbols, seed)
    found = table.run(Beam(declared(symbols, max_steps, symbols ** (max_steps + 1), alpha)))
    sequence, score = table.best(max_steps, alpha)
    assert (found.symbols, found.truncated) == (sequence, False)
    assert found.score == pytest.approx(score, abs=1e-5)


@given(st.integers(2, 6), st.integers(1, 8), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_width_one_takes_the_likeliest_symbol_at_every_step(symbols: int, max_steps: int, seed: int) -> None:
    table, written = Table(symbols, seed), list[int]()
    while (pick := int(table.row(tuple(written)).argmax())) != END and len(written) < max_steps:
        written.append(pick)
    found = table.run(Beam(declared(symbols, max_steps, 1, 0.6)))
    assert (list(found.symbols), found.truncated) == (written, pick != END)


@given(st.integers(2, 6), st.integers(1, 6), st.integers(2, 4), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_a_score_is_that_of_the_sequence(symbols: int, max_steps: int, width: int, seed: int) -> None:
    table = Table(symbols, seed)
    found = table.run(Beam(declared(symbols, max_steps, min(width, symbols), 0.6)))
    told = found.symbols if found.truncated else (*found.symbols, END)
    total = sum(float(table.row(told[:at])[symbol]) for at, symbol in enumerate(told))
    assert found.score == pytest.approx(total / ((5 + len(told)) / 6) ** 0.6, abs=1e-5)
    assert len(found.symbols) <= max_steps
    assert not found.truncated or len(found.symbols) == max_steps


def test_what_cannot_be_is_not_written() -> None:
    beam = Beam(declared(4, 3, 2, 0.0))
    with pytest.raises(ValueError, match="no symbol"):
        beam.advance(np.full((2, 4), -np.inf, np.float32))


class PrefixSteps:
    """A decoder whose state is a row of numbers that names the prefix; memory says which table."""

    def __init__(self, symbols: int, most: int) -> None:
        self.symbols, self.most = symbols, most
        self.largest = 0

    def step(self, symbols: I64, states: Sequence[F32], memory: Sequence[F32], lengths: I64) -> tuple[F32, list[F32]]:
        self.largest = max(self.largest, len(symbols))
        found, nexts = [], states[0].copy()
        for row, symbol in enumerate(symbols.tolist()):
            steps = int(nexts[row, 0])
            if steps:
                nexts[row, steps] = symbol
            nexts[row, 0] += 1
            told = memory[0][row, : lengths[row], 0]
            assert (told == told[0]).all()
            assert len(told) == int(told[0]) % 5 + 1, "another row's memory"
            if told[0] == 13:
                raise ModelRunError("poisoned")
            found.append(Table(self.symbols, int(told[0])).row(tuple(nexts[row, 1 : steps + 1].astype(int).tolist())))
        return np.stack(found), [nexts]


@given(
    st.lists(st.tuples(st.integers(0, 4), st.lists(st.integers(0, 30), max_size=3)), min_size=1, max_size=12),
    st.integers(1, 3),
    st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None)
def test_windows_beside_each_other_are_written_about_as_each_alone(
    arrivals: list[tuple[int, list[int]]], width: int, seed: int
) -> None:
    """Windows begin at any step, leave when they are done, are given up in between, and one may be refused."""
    symbols, most = 4, 5
    table = declared(symbols, most, width, 0.6)
    steps = PrefixSteps(symbols, most)
    searches = Searches(table, steps)
    chance = np.random.default_rng(seed)
    under_way: dict[Any, int] = {}
    answers: list[tuple[int, Written | None]] = []

    def advance() -> None:
        for searching, written in searches.advance():
            answers.append((under_way.pop(searching), written))

    for wait, tables in arrivals:
        for _ in range(wait):
            advance()
        for number in tables:
            memory = np.full((number % 5 + 1, 1), number, np.float32)
            under_way[searches.begin([memory], [np.zeros(most + 3, np.float32)], len(memory))] = number
        if under_way and chance.random() < 0.3:
            gone = list(under_way)[int(chance.integers(len(under_way)))]
            searches.drop(gone)
            del under_way[gone]
        assert len(searches) == len(under_way)
    for _ in range(most + 1):
        advance()
    assert not under_way
    assert len(searches) == 0
    for number, written in answers:
        assert (written is None) == (number == 13)
        if written is not None:
            assert written == Table(symbols, number).run(Beam(table))


@given(st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=9), min_size=1, max_size=80))
@settings(max_examples=30, deadline=None)
def test_decode_is_what_the_pair_would_write(windows: list[list[int]]) -> None:
    given_windows = [np.array(each, np.float32)[:, None] for each in windows]
    model: Any = WritingModel()
    for values, written in zip(windows, decode(model, given_windows), strict=True):
        assert (list(written.symbols), written.score, written.truncated) == write(values)
