"""Verdicts only where intervals are apart: what is undecided stays undecided."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from hypothesis import given
from hypothesis import strategies as st

from export.comparison.claims import claims
from export.comparison.statistics import FAILS, HOLDS, MISSING, UNDECIDED, Interval, bootstrap, order, verdict

pytestmark = pytest.mark.torch

ORDERS = st.lists(st.sampled_from(["better", "worse", "undecided"]), min_size=1, max_size=6)
SCORES = st.lists(st.floats(0.01, 100, allow_nan=False), min_size=2, max_size=8)


@given(SCORES)
def test_a_bootstrap_interval_contains_the_mean_and_stays_within_the_values(values: list[float]) -> None:
    found = bootstrap(values)
    slack = 1e-9 * max(values)
    assert min(values) - slack <= found.low <= found.mean + slack
    assert found.mean - slack <= found.high <= max(values) + slack
    assert bootstrap(list(reversed(values))) == found, "the order of the seeds says nothing"


def test_five_seeds_have_every_resample_and_one_seed_has_no_interval() -> None:
    values = [1.0, 2.0, 4.0, 8.0, 16.0]
    every = np.array(np.meshgrid(*[values] * 5)).reshape(5, -1).mean(axis=0)
    found = bootstrap(values)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(every, [0.025, 0.975])))
    assert bootstrap([3.0]) == Interval(3.0, -np.inf, np.inf)
    assert order(bootstrap([3.0]), bootstrap([1000.0, 1000.0])) == "undecided", "nothing follows from a single seed"


@given(SCORES, SCORES)
def test_only_intervals_that_are_apart_decide(a: list[float], b: list[float]) -> None:
    one, other = bootstrap(a), bootstrap(b)
    found = order(one, other)
    assert (found == "undecided") == (one.low <= other.high and other.low <= one.high)
    assert order(other, one) == {"better": "worse", "worse": "better", "undecided": "undecided"}[found]


@given(ORDERS)
def test_the_rules_say_what_the_report_says_they_do(found: Any) -> None:
    every, one = verdict(found, "all"), verdict(found, "any")
    assert (every == HOLDS) == (set(found) == {"better"})
    assert (every == FAILS) == ("worse" in found)
    assert (one == HOLDS) == ("better" in found)
    assert (one == FAILS) == (set(found) == {"worse"})
    assert {every, one} <= {HOLDS, FAILS, UNDECIDED}
    assert verdict([], "all") == verdict([], "any") == MISSING


def row(task: str, variant: str, seeds: list[float], **values: Any) -> dict[str, Any]:
    lengths = {n: {"seeds": seeds, "baseline": 1.0} for n in ("10", "200")}
    return {
        "task": task,
        "variant": variant,
        "sizing": "equal hidden",
        "memory": task == "copying",
        "parameters": 100,
        "flops_per_event": 200,
        "state_bytes": 8,
        "by_length": lengths,
        "delay_events": 0.0,
        **values,
    }


def times(update: float, without: float) -> dict[str, Any]:
    spread = np.array([0.99, 1.0, 1.01])
    onnx = {batch: list(spread) for batch in ("1", "64", "256")}
    return {
        "update_ms": list(update * spread),
        "update_ms_without_onednn": list(without * spread),
        "onnx_us": onnx,
    }


def found(*rows: dict[str, Any]) -> dict[str, str]:
    return {claim["claim"]: claim["verdict"] for claim in claims(rows)}


def test_claims_follow_the_figures_not_the_textbook() -> None:
    verdicts = found(
        row("copying", "lstm", [0.3, 0.31], times=times(1.0, 4.0)),
        row("copying", "gru", [0.1, 0.11], times=times(3.0, 3.0), parameters=75),
    )
    assert verdicts["a GRU has fewer parameters than an LSTM of the same width"] == HOLDS
    assert verdicts["a GRU trains faster than an LSTM of the same width (PyTorch as it comes)"] == FAILS
    assert verdicts["a GRU trains faster than an LSTM of the same width (PyTorch without oneDNN)"] == HOLDS
    assert verdicts["an LSTM is more accurate than a GRU of the same width on long sequences"] == FAILS
    assert verdicts["gated cells remember where the plain RNN forgets"] == MISSING
    assert set(found().values()) == {MISSING}


@pytest.mark.parametrize(
    ("plain", "outcome"),
    [([0.9, 0.95], HOLDS), ([0.1, 0.2], FAILS), ([0.3, 0.9], UNDECIDED)],
    ids=["it forgets", "it remembers too", "the seeds do not agree"],
)
def test_memory_is_claimed_only_where_it_was_seen(plain: list[float], outcome: str) -> None:
    gated = [row("copying", "lstm", [0.1, 0.12]), row("copying", "gru", [0.9, 0.95])]
    assert found(*gated, row("copying", "rnn", plain))["gated cells remember where the plain RNN forgets"] == outcome


def test_looking_ahead_is_compared_with_the_same_cell_and_told_with_its_delay() -> None:
    rows = [row("detection", "lstm", [0.5, 0.51]), row("detection", "bi-lstm", [0.4, 0.41], delay_events=30.0)]
    claim = next(claim for claim in claims(rows) if claim["claim"].startswith("a bidirectional"))
    assert claim["verdict"] == HOLDS
    assert claim["holds"] is True
    assert claim["rule"] == "all"
    assert claim["figures"]["detection 200: delay in events"] == 30.0
    overlapping = [row("detection", "lstm", [0.3, 0.6]), row("detection", "bi-lstm", [0.2, 0.5])]
    claim = next(claim for claim in claims(overlapping) if claim["claim"].startswith("a bidirectional"))
    assert claim["verdict"] == UNDECIDED
    assert claim["holds"] is None


def test_cells_are_compared_at_a_length_that_both_were_trained_at() -> None:
    short = {"10": {"seeds": [0.1, 0.11], "baseline": 1.0}}
    rows = [row("copying", "lstm", [0.1, 0.11], by_length=short), row("copying", "gru", [0.9, 0.91])]
    rows[1]["by_length"]["10"] = {"seeds": [0.05, 0.06], "baseline": 1.0}
    claim = next(claim for claim in claims(rows) if claim["claim"].startswith("an LSTM is more accurate"))
    assert claim["findings"][0]["figures"]["lstm"][0] == pytest.approx(0.105)
    assert claim["findings"][0]["figures"]["gru"][0] == pytest.approx(0.055)
    assert claim["verdict"] == FAILS


@pytest.mark.parametrize(
    ("near", "far", "outcome"),
    [([0.2, 0.3], [0.9, 1.0], HOLDS), ([0.99, 1.0], [1.01, 1.02], UNDECIDED), ([0.5, 0.6], [0.1, 0.2], FAILS)],
    ids=["it forgets", "it never learnt anything", "it remembers better from afar"],
)
def test_only_what_was_learnt_can_be_forgotten(near: list[float], far: list[float], outcome: str) -> None:
    lengths = {"10": {"seeds": near, "baseline": 1.0}, "100": {"seeds": far, "baseline": 1.0}}
    verdicts = found(row("copying", "rnn", [], by_length=lengths))
    assert verdicts["a plain RNN forgets more the longer the distance"] == outcome
