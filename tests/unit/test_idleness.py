"""Idleness is what fetches confirm, never what merely looks silent: compared with what the whole history says."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from streamer.service.idleness import Idleness, Look

IDLE_MS, STALE_MS = 1_000, 500
QUIET = Look(partition=0, live=True, position=7, fetched=7, log_end=7, confirmed_ms=0)


def confirmed(at_ms: int, **changes: object) -> tuple[Look, int]:
    """A look at ``at_ms`` that finds a fetch response of the same moment."""
    return replace(QUIET, confirmed_ms=at_ms, **changes), at_ms  # type: ignore[arg-type]


def elapsed(history: list[tuple[Look, int]]) -> int:
    """What is said of the last look, with one clock for both readings."""
    idleness, said = Idleness(IDLE_MS, STALE_MS), 0
    for look, at_ms in history:
        said = idleness.elapsed_ms(look, at_ms / 1000, at_ms)
    return said


def by_definition(history: list[tuple[Look, int]]) -> int:
    run: list[tuple[Look, int]] = []
    for look, at_ms in history:
        quiet = look.live and look.log_end is not None and look.fetched >= look.log_end
        if not quiet or at_ms - look.confirmed_ms >= STALE_MS:
            run = []
        elif run and run[-1][0].position == look.position:
            run.append((look, at_ms))
        else:
            run = [(look, at_ms)]
    if not run:
        return 0
    pairs = itertools.pairwise(run)
    news = [run[0][1]] * 3 + [at_ms for (before, _), (look, at_ms) in pairs if look.confirmed_ms != before.confirmed_ms]
    told_ms = news[-3] - run[0][1]
    return told_ms if told_ms >= IDLE_MS else 0


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[Look, int]]:
    """In eighths of a second, which a clock in seconds holds exactly."""
    now_ms, confirmed_ms, position, found = 1_000, 0, 0, []
    for _ in range(draw(st.integers(1, 30))):
        now_ms += draw(st.sampled_from([125, 250, 375, 375, 1_500]))
        confirmed_ms = draw(st.sampled_from([confirmed_ms, now_ms, now_ms, now_ms - 125]))
        position += draw(st.sampled_from([0] * 12 + [1]))
        log_end = draw(st.sampled_from([position] * 20 + [position + 1, None]))
        live = draw(st.sampled_from([True] * 20 + [False]))
        found.append((Look(0, live, position, position, log_end, confirmed_ms), now_ms))
    return found


@given(histories())
def test_idleness_is_as_defined(history: list[tuple[Look, int]]) -> None:
    for end in range(1, len(history) + 1):
        assert elapsed(history[:end]) == by_definition(history[:end])


def test_time_that_fetches_confirmed_is_idleness() -> None:
    assert elapsed([confirmed(at) for at in range(0, 1_300, 100)]) == 1_000
    assert elapsed([confirmed(at) for at in range(0, 1_200, 100)]) == 0  # the last two may tell of an earlier time


def test_silence_of_the_broker_is_not_idleness() -> None:
    quiet = [confirmed(at) for at in range(0, 1_300, 100)]
    unheard = [(replace(QUIET, confirmed_ms=1_200), at) for at in range(1_300, 3_000, 100)]
    assert elapsed([*quiet, *unheard]) == 0
    assert elapsed([*quiet, *unheard, confirmed(3_000)]) == 0  # begins anew


def test_a_process_that_stood_still_does_not_count_that_time() -> None:
    """What it finds when it wakes was sent before, or answers a request from before."""
    stood = [confirmed(0), confirmed(100), confirmed(60_000), confirmed(60_100)]
    assert elapsed(stood) == 0
    assert elapsed([*stood, confirmed(60_200)]) == 60_000  # asked for after it woke


def test_a_new_event_begins_anew_and_partitions_are_apart() -> None:
    idleness = Idleness(IDLE_MS, STALE_MS)
    for at_ms in range(0, 1_400, 100):
        other, _ = confirmed(at_ms, partition=1, position=at_ms)  # busy
        look, _ = confirmed(at_ms)
        said = (idleness.elapsed_ms(look, at_ms / 1000, at_ms), idleness.elapsed_ms(other, at_ms / 1000, at_ms))
    assert said == (1_100, 0)
    idleness.forget(0)
    assert idleness.elapsed_ms(confirmed(1_400)[0], 1.4, 1_400) == 0
