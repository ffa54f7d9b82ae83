"""``state.idle_ttl_ms`` is a rule of the log: an event that is later than the newest of its stream by more than the TTL begins
anew, whoever looks and whenever memory is freed. Checked against the rule, row by row."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from durable import Changelog, begin, make_processor, settle
from hypothesis import example, given, settings
from hypothesis import strategies as st
from simulated import ChainModel, advance, records

from streamer.core import Batch, Epoch, EventBatch, Op
from streamer.engine.idlettl import IdleTtls
from streamer.engine.processor import Processor
from streamer.engine.scheduler import Restart, plan_steps
from streamer.records.changelog import Progress
from streamer.state.arena import NO_EVENT_MS
from streamer.words import Forgotten

TTL_MS = 50
FAR_MS = 10**12
Row = tuple[str, int, Any]
"""Stream, time, x or command"""


def make(**limits: Any) -> Processor:
    limits = {"idle_ttl_ms": TTL_MS, "max_poll_records": 64, "max_bytes": 1 << 16, **limits}
    processor = make_processor([("chain", ChainModel(), None)], **limits)
    begin(processor)
    return processor


def batch(first: int, rows: Sequence[Row]) -> EventBatch:
    found = records([(first + at, stream, what) for at, (stream, _, what) in enumerate(rows)])
    found.times_ms = np.array([time for _, time, _ in rows], np.int64)
    return found


def by_rule(rows: Iterable[Row], ttl_ms: int = TTL_MS) -> list[float]:
    """What each event must give."""
    state: dict[str, float] = {}
    newest: dict[str, int] = {}
    answers = []
    for stream, time, what in rows:
        if isinstance(what, Op):
            state[stream] = 0.0
            if what is Op.END:
                newest.pop(stream, None)
            continue
        if time - newest.get(stream, time) > ttl_ms:
            state[stream] = 0.0
        newest[stream] = max(newest.get(stream, time), time)
        state[stream] = advance(state.get(stream, 0.0), what)
        answers.append(state[stream])
    return answers


def answers_of(epochs: Iterable[Epoch | None]) -> list[float]:
    found: dict[int, float] = {}
    for epoch in epochs:
        for answers in epoch.answers if epoch is not None else ():
            found |= dict(zip(answers.sources, answers.y[0][:, 0].tolist(), strict=True))  # type: ignore[attr-defined]
    return [found[offset] for offset in sorted(found)]


def sealed(processor: Processor, now_ms: int) -> Epoch | None:
    epoch = processor.seal(now_ms)
    if epoch is not None:
        processor.committed(epoch, {})
    return epoch


times = st.one_of(st.integers(0, 200), st.sampled_from([0, TTL_MS, TTL_MS + 1, 10**12, -(10**6)]))


@settings(max_examples=5 * settings().max_examples)
@given(
    known=st.lists(st.one_of(st.none(), times), min_size=4, max_size=4),
    rows=st.lists(st.tuples(st.integers(0, 3), times, st.sampled_from([0, 0, Op.RESET, Op.END])), max_size=24),
    plain=st.booleans(),
)
def test_rows_that_begin_anew_are_those_of_the_definition(
    known: list[int | None], rows: list[tuple[int, int, int]], plain: bool
) -> None:
    """``known``: newest event time of each stream before the rows."""
    processor = make()
    (lane,) = processor.lanes.stepping
    slots = processor.partitions[0].streams.of([b"%d" % n for n in range(4)])[::-1].copy()
    newest = dict(zip(slots.tolist(), known, strict=True))
    for slot, time in newest.items():
        if time is not None:
            lane.arena.newest_ms[slot] = time
    wanted = []
    for n, time, op in rows:
        slot, event = int(slots[n]), op == Op.EVENT or plain
        before = newest[slot]
        wanted.append(event and before is not None and time - before > TTL_MS)
        if event:
            newest[slot] = time if before is None else max(before, time)
        elif op == Op.END:
            newest[slot] = None
    mine = slots[[n for n, *_ in rows]] if rows else np.empty(0, np.int64)
    ops = None if plain else np.array([op for *_, op in rows], np.uint8)
    when = np.array([time for _, time, _ in rows], np.int64)
    found = lane.begins_anew(mine, when, ops, TTL_MS)
    assert (np.zeros(len(rows), bool) if found is None else found).tolist() == wanted
    lane.reflect(mine, np.arange(len(rows)), when, ops)
    assert [lane.arena.newest_ms[slot] for slot in newest] == [
        NO_EVENT_MS if time is None else time for time in newest.values()
    ]


@settings(max_examples=5 * settings().max_examples)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from([0, 0, 0, Op.RESET, Op.END]), st.booleans()), max_size=30
    ),
    max_rows=st.integers(1, 4),
    max_steps=st.sampled_from([1, 2, 8]),
    few=st.sampled_from([0, 2, 32]),
)
def test_the_plan_restarts_a_stream_right_before_the_event_that_begins_anew(
    rows: list[tuple[int, int, bool]], max_rows: int, max_steps: int, few: int
) -> None:
    slots = np.array([10 + slot for slot, *_ in rows], np.int64)
    ops = np.array([op for _, op, _ in rows], np.uint8)
    anew = np.array([flag and op == 0 for _, op, flag in rows], bool)
    wanted: dict[int, list[tuple[str, int]]] = {int(slot): [] for slot in slots}
    for row, (slot, op, _) in enumerate(rows):
        if anew[row]:
            wanted[10 + slot].append(("restart", row))
        wanted[10 + slot].append(("event" if op == 0 else "command", row))
    found: dict[int, list[tuple[str, int]]] = {int(slot): [] for slot in slots}
    for item in plan_steps(slots, ops, anew, max_rows=max_rows, max_steps=max_steps, few=few):
        if isinstance(item, Batch):
            assert len(set(item.slots.tolist())) == len(item.slots) <= max_rows, "a stream at most once in a call"
            assert item.rows.shape[1] == item.lengths.max() <= max_steps
            for slot, steps, length in zip(item.slots.tolist(), item.rows.tolist(), item.lengths.tolist(), strict=True):
                assert steps[length:] == [-1] * (len(steps) - length)
                found[slot] += [("event", row) for row in steps[:length]]
        else:
            what = "restart" if isinstance(item, Restart) else "command"
            for row in (item.rows if isinstance(item, Restart) else item).tolist():
                found[int(slots[row])].append((what, row))
    assert found == wanted


@settings(max_examples=2 * settings().max_examples)
@given(seed=st.integers(0, 2**32))
def test_events_in_any_order_and_commands_of_any_time_follow_the_rule(seed: int) -> None:
    """Without sweeps: our clock stands still."""
    rng = random.Random(seed)
    processor = make(max_rows=rng.randint(1, 4), max_steps=rng.choice([1, 8]))
    now, rows, epochs = 1_000, list[Row](), []
    for _ in range(rng.randint(1, 60)):
        now += rng.choice([0, 1, 20, 40, 51, 200])
        what = rng.choices([1.0, 2.0, Op.RESET, Op.END], [10, 10, 1, 1])[0]
        time = rng.choice([0, now + FAR_MS]) if isinstance(what, Op) else now - rng.choice([0, 0, 0, 30, 60, 900])
        rows.append((rng.choice("abcd"), time, what))
    at = 0
    while at < len(rows):
        piece = rows[at : at + rng.randint(1, 12)]
        # an end in the middle of a poll only resets the state: what is forgotten is the stream whose last record it is
        ends = [n for n, row in enumerate(piece[:-1]) if row[2] is Op.END]
        piece = piece[: ends[0] + 1] if ends else piece
        settle(processor, batch(at, piece))
        epochs.append(sealed(processor, 0))
        at += len(piece)
    assert answers_of(epochs) == by_rule(rows)


@settings(max_examples=2 * settings().max_examples)
@given(seed=st.integers(0, 2**32), lag=st.booleans())
def test_the_sweep_frees_memory_and_changes_no_answer(seed: int, lag: bool) -> None:
    """Event times that are in order in the partition, however far from the clock; or in order in each stream, behind the
    clock by a time of its own."""
    rng = random.Random(seed)
    processor = make(max_rows=rng.randint(1, 4))
    behind = {stream: rng.choice([0, 3, 1_000]) for stream in "abcd"}
    offset_ms, now, rows, epochs = rng.choice([0, -FAR_MS, FAR_MS]), 10_000, list[Row](), []
    for _ in range(rng.randint(1, 40)):
        now += rng.choice([0, 1, 20, 40, 51, 200, 5_000])
        processor.tick(now)
        stream = rng.choice("abcd")
        time = now - behind[stream] if lag else now + offset_ms
        rows.append((stream, time, 1.0))
        settle(processor, batch(len(rows) - 1, rows[-1:]))
        for _ in range(rng.randint(0, 2)):
            epochs.append(sealed(processor, now))
            now += rng.choice([0, 10, 100])
    epochs.append(sealed(processor, now))
    assert answers_of(epochs) == by_rule(rows)


def test_the_sweep_does_free_memory() -> None:
    processor = make()
    settle(processor, batch(0, [("a", 1_000, 1.0), ("b", 1_000, 1.0)]))
    assert sealed(processor, 1_000) is not None
    processor.tick(2_000)
    settle(processor, batch(2, [("b", 2_000, 1.0)]))
    epoch = sealed(processor, 2_000)
    assert epoch is not None
    assert epoch.report.forgotten == {Forgotten.IDLE: 1}
    assert list(processor.partitions[0].streams) == [b"b"]


def test_a_stream_alone_in_its_partition_begins_anew_after_the_ttl() -> None:
    processor, minute = make(idle_ttl_ms=60_000), 60_000
    rows = [("a", minute, 1.0), ("a", 2 * minute, 1.0), ("a", 32 * minute, 1.0), ("a", 33 * minute, 1.0)]
    epochs = []
    for at, row in enumerate(rows):
        processor.tick(row[1])
        settle(processor, batch(at, [row]))
        epochs.append(sealed(processor, row[1]))
    one, two = advance(0, 1), advance(advance(0, 1), 1)
    assert answers_of(epochs) == [one, two, one, two]


@pytest.mark.parametrize("op", [Op.RESET, Op.END])
def test_a_command_forgets_no_stream_but_its_own(op: Op) -> None:
    """Event times lag the clock by far; the time of a command is its record's, so it is the clock's."""
    processor = make()
    settle(processor, batch(0, [(stream, 1_000, 1.0) for stream in "abc"]))
    epochs = [sealed(processor, 10**9)]
    processor.tick(2 * 10**9)
    settle(processor, batch(3, [("a", 2 * 10**9, op)]))
    epochs += [sealed(processor, 2 * 10**9 + at) for at in (0, 20_000, 40_000)]
    assert processor.partitions[0].newest_ms == 1_000
    settle(processor, batch(4, [(stream, 1_010, 2.0) for stream in "abc"]))
    epochs.append(sealed(processor, 2 * 10**9 + 40_000))
    assert sum(epoch.report.forgotten.get(Forgotten.IDLE, 0) for epoch in epochs if epoch is not None) == 0
    fresh, on = advance(0, 2), advance(advance(0, 1), 2)
    assert answers_of(epochs)[3:] == [fresh, on, on]


def test_a_straggler_does_not_make_an_active_stream_idle() -> None:
    processor = make()
    rows = [("a", 1_000, 1.0), ("b", 1_000, 1.0), ("a", 10, 2.0), ("b", 1_040, 2.0), ("a", 1_045, 3.0)]
    epochs = []
    for at, row in enumerate(rows):
        now = 10**9 + 30_000 * at  # the sweep looks each time, and our clock says that all are idle
        processor.tick(now)
        settle(processor, batch(at, [row]))
        epochs.append(sealed(processor, now))
    a = [advance(0, 1), advance(advance(0, 1), 2)]
    assert answers_of(epochs) == [a[0], a[0], a[1], a[1], advance(a[1], 3)]


def test_no_ttl_no_end() -> None:
    processor = make(idle_ttl_ms=0)
    (lane,) = processor.lanes.stepping
    slots = processor.partitions[0].streams.of([b"a"])
    lane.arena.newest_ms[slots] = 0
    assert lane.begins_anew(slots, np.array([FAR_MS]), None, 0) is None


@given(
    rows=st.lists(st.tuples(st.sampled_from("ab"), times, st.integers(1, 9).map(float)), min_size=1, max_size=16),
    lives=st.lists(st.tuples(st.integers(0, 16), st.sampled_from([0, 5, TTL_MS, 10**6])), min_size=1, max_size=5),
    complete=st.booleans(),
    seed=st.integers(0, 99),
)
@example(rows=[("a", 0, 1.0), ("a", 100, 2.0), ("a", 101, 3.0)], lives=[(2, 0), (3, TTL_MS)], complete=False, seed=0)
@example(rows=[("a", 0, 1.0), ("a", 100, 2.0), ("a", 101, 3.0)], lives=[(2, TTL_MS), (3, 0)], complete=False, seed=0)
def test_a_replay_judges_each_event_by_the_ttl_that_it_was_answered_with(
    rows: list[Row], lives: list[tuple[int, int]], complete: bool, seed: int
) -> None:
    """``lives``: up to which row each process committed before it died, and its TTL. ``complete``: rounds are."""
    changelog, rng, told, ttls = Changelog(), random.Random(seed), dict[int, float](), list[int]()
    for until, ttl_ms in [*sorted(lives), (len(rows), 7)]:
        processor = make_processor(
            [("chain", ChainModel(), None)], idle_ttl_ms=ttl_ms, max_poll_records=64, checkpoint_interval_ms=10**9
        )
        processor.memory.forget_idle = lambda *_: None  # type: ignore[method-assign]  # is told, and has its own tests
        changelog.recover(processor, rng)
        first = processor.partitions[0].next_offset
        half = (first + until) // 2
        for at, to in ((first, half), (half, until)):  # after the first commit no round is due
            if rows[at:to]:
                settle(processor, batch(at, rows[at:to]))
            epoch = processor.seal(0, slice_bytes=1 << 20 if complete else 0)
            if epoch is None:
                continue
            changelog.commit(epoch)
            for answers in epoch.answers:
                values = answers.y[0][:, 0].tolist()  # type: ignore[attr-defined]
                assert not set(told) & set(answers.sources)
                told |= dict(zip(answers.sources, values, strict=True))
            processor.committed(epoch, {})
        ttls += [ttl_ms] * (len(told) - len(ttls))
    state, newest, wanted = dict[str, float](), dict[str, int](), []
    for (stream, time, x), ttl_ms in zip(rows, ttls, strict=True):
        if ttl_ms and time - newest.get(stream, time) > ttl_ms:
            state[stream] = 0.0
        newest[stream] = max(newest.get(stream, time), time)
        state[stream] = advance(state.get(stream, 0.0), x)
        wanted.append(state[stream])
    assert [told[offset] for offset in range(len(rows))] == wanted


def test_of_ttls_only_those_are_kept_that_a_replay_needs() -> None:
    ttls = IdleTtls.going_on((), 5, 50)
    assert ttls.since(5) == ((0, 50),)
    ttls = IdleTtls.going_on(ttls.since(5), 10, 0)
    assert IdleTtls.going_on(ttls.since(5), 10, 50).since(5) == ((0, 50),), "nothing was answered in between"
    assert ttls.at(np.array([0, 9, 10, 11])).tolist() == [50, 50, 0, 0]
    assert ttls.since(9) == ((0, 50), (10, 0))
    assert ttls.since(10) == ((10, 0),)
    assert IdleTtls.going_on((), 3, 7).at(np.array([0])).tolist() == [7], "what an older version wrote tells none"


def test_versions_that_know_no_ttls_in_the_progress_record_read_ours_and_we_read_theirs() -> None:
    ours = Progress(3, 1, 0, {}, "", "", "", "", -1, 0, idle_ttls=((0, 50),))
    fields = [name for name in Progress.__struct_fields__ if name != "idle_ttls"]
    older: Any = msgspec.defstruct("Older", [(name, object) for name in fields], array_like=True)
    theirs = older(*[getattr(ours, name) for name in fields])
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(ours), type=older)
    assert (read.position, read.replay_point) == (3, 1)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(theirs), type=Progress).idle_ttls == ()
