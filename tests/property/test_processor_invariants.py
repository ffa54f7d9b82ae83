"""Invariants 7 and 8 of the processor: what comes in is pending or settled, slots are accounted for, nothing of a partition
that is given up remains, and no model call, arena or memory grows beyond its bound."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import pytest
from durable import END, Changelog, Found, begin, make_processor, settle
from hypothesis import given
from hypothesis import strategies as st
from simulated import ChainModel, advance, records

from streamer.core import Epoch, EventBatch, LogFacts
from streamer.engine.partition import Partition, Phase
from streamer.engine.processor import Processor
from streamer.state.table import STREAM_OVERHEAD_BYTES
from streamer.words import Forgotten

PARTITIONS, MAX_ROWS, MAX_STEPS = 3, 3, 2
PER_STREAM = 4 + STREAM_OVERHEAD_BYTES
MAX_BYTES = 5 * PER_STREAM + 400

streams = st.lists(st.integers(0, 6), min_size=1, max_size=8)
partitions = st.integers(0, PARTITIONS - 1)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("ingest"), st.dictionaries(partitions, streams, min_size=1, max_size=2)),
        st.tuples(st.just("abandon"), st.dictionaries(partitions, streams, min_size=1, max_size=2)),
        st.tuples(st.just("seal"), st.integers(0, 100)),
        st.tuples(st.sampled_from(["committed", "failed"]), st.none()),
        st.tuples(st.sampled_from(["drop", "open", "hand over", "keep"]), partitions),
    ),
    max_size=40,
)


def key(partition: int, stream: int) -> str:
    """Long ones count: the longest is larger than all memory."""
    return f"{partition}-{stream}" + "k" * (0, 1, 60, 0, 300, 0, 2 * MAX_BYTES)[stream]


class World:
    """A process, the logs it reads and what it committed, all partitions of it."""

    def __init__(self) -> None:
        self.model: Any = ChainModel()
        self.processor = make_processor(
            [("chain", self.model, None)],
            max_rows=MAX_ROWS,
            max_steps=MAX_STEPS,
            max_poll_records=16,
            max_bytes=MAX_BYTES,
            checkpoint_interval_ms=50,
        )
        self.rng = random.Random(0)
        self.now_ms = 0
        self.logs: dict[int, list[str]] = defaultdict(list)
        self.changelogs: dict[int, Changelog] = defaultdict(Changelog)
        self.answered: dict[int, list[int]] = defaultdict(list)
        self.settled: dict[int, int] = defaultdict(int)
        self.sealed: Epoch | None = None

    @property
    def here(self) -> dict[int, Partition]:
        return self.processor.partitions

    def batches(self, wanted: dict[int, list[int]]) -> list[EventBatch]:
        """News, or first what is to be replayed; the news count as settled."""
        found = []
        for number, chosen in wanted.items():
            partition = self.here.get(number)
            if partition is None or not partition.running:
                continue
            log, first = self.logs[number], partition.next_offset
            if first == len(log):
                log += [key(number, stream) for stream in chosen]
            rows = [(at, log[at], 1.0) for at in range(first, min(first + len(chosen), len(log)))]
            found.append(records(rows, number))
            self.settled[number] += sum(at >= partition.live_from for at, *_ in rows)
        return found

    def gone(self, numbers: set[int]) -> None:
        for number in numbers:
            assert number not in self.here
            self.settled.pop(number, None)
        answers, rejects = self.processor.results()
        assert not [each for each in [*answers, *rejects] if each.partition in numbers]
        assert not answers or self.processor.open_events, "nothing but what is counted"
        for each in answers:  # put back what was only looked at
            self.here[each.partition].answers.append(each)

    # actions

    def ingest(self, wanted: dict[int, list[int]]) -> None:
        settle(self.processor, *self.batches(wanted))

    def abandon(self, wanted: dict[int, list[int]]) -> None:
        """The run is given up after a call, if there are any."""
        found = self.batches(wanted)
        self.processor.ingest(found)
        run = self.processor.run()
        next(run, None)
        run.close()
        work = self.processor._work
        touched = [self.here[number] for number in sorted(set() if work is None else work.partitions)]
        self.processor.abandon()
        assert all(partition.phase is Phase.GONE for partition in touched)
        self.gone({partition.number for partition in touched})

    def seal(self, elapsed_ms: int) -> None:
        self.now_ms += elapsed_ms
        if self.sealed is not None:
            with pytest.raises(AssertionError, match="neither committed nor failed"):
                self.processor.seal(self.now_ms)
            return
        self.sealed = self.processor.seal(self.now_ms)
        counted = sum(self.settled.values())
        assert (0 if self.sealed is None else self.sealed.events) == counted
        if self.sealed is not None:
            assert sum(map(len, self.sealed.answers)) == counted
            assert self.sealed.report.records == counted
        self.settled.clear()

    def committed(self, _: None) -> None:
        if self.sealed is None:
            return
        for number in self.sealed.positions:
            self.changelogs[number].commit(self.sealed, number)
        for answers in self.sealed.answers:
            self.answered[answers.partition] += answers.sources
        self.processor.committed(self.sealed, dict.fromkeys(self.sealed.positions, 7))
        self.sealed = None

    def failed(self, _: None) -> None:
        if self.sealed is None:
            return
        touched = {number: self.here.get(number) for number in self.sealed.positions}
        self.processor.failed(self.sealed)
        assert all(partition is None or partition.phase is Phase.GONE for partition in touched.values())
        self.gone(set(touched))
        self.sealed = None

    def drop(self, number: int) -> None:
        partition = self.here.get(number)
        self.processor.drop(number)
        assert partition is None or partition.phase is Phase.GONE
        self.gone({number})

    def open(self, number: int) -> None:
        if number not in self.here and self.sealed is None:  # what is committed is known only afterwards
            self.changelogs[number].recover(self.processor, self.rng, number=number)

    def hand_over(self, number: int) -> None:
        if number in self.here:
            self.here[number].hand_over()

    def keep(self, number: int) -> None:
        if number in self.here and self.here[number].phase is Phase.HANDING_OVER:
            self.here[number].keep()

    def check(self) -> None:
        slots, owned = self.processor.lanes.slots, [partition.streams for partition in self.here.values()]
        assert self.processor.open_events == sum(self.settled.values())
        assert slots.used + slots.free == slots.capacity
        assert slots.used == sum(map(len, owned))
        assert slots.key_bytes == sum(len(stream) for each in owned for stream in each)
        assert slots.used_bytes == slots.used * PER_STREAM + slots.key_bytes <= MAX_BYTES, "over the memory limit"


@given(actions)
def test_everything_is_accounted_for(steps: list[tuple[str, Any]]) -> None:
    world = World()
    for number in range(PARTITIONS):
        world.open(number)
    for what, argument in steps:
        getattr(world, what.replace(" ", "_"))(argument)
        world.check()
    world.committed(None)
    world.seal(0)
    world.committed(None)
    for number, changelog in world.changelogs.items():
        position = 0 if changelog.progress is None else changelog.progress.position
        assert world.answered[number] == list(range(position)), "each event below the position once, in order"
    assert all(rows <= MAX_ROWS and columns <= MAX_STEPS for rows, columns in world.model.calls)


def test_keys_count_for_the_memory_limit() -> None:
    processor = make_processor([("chain", ChainModel(), None)], max_bytes=1 << 20, max_poll_records=64)
    begin(processor)
    for first in range(0, 1_024, 64):
        settle(processor, records([(at, f"{at}" + "k" * 50_000, 1.0) for at in range(first, first + 64)]))
        assert processor.lanes.slots.used_bytes <= 1 << 20
        assert processor.lanes.slots.used >= 15, "no more than needed is forgotten"
    assert processor.lanes.slots.key_bytes == sum(map(len, processor.partitions[0].streams))


def test_new_streams_during_a_long_commit_pass_the_limit_by_no_more_than_a_poll() -> None:
    processor = make_processor([("chain", ChainModel(), None)], max_bytes=5 * PER_STREAM, max_poll_records=16)
    begin(processor)
    epoch, told = None, 0
    for poll in range(300):
        settle(processor, records([(poll * 16 + row, f"s{poll}-{row}", 1.0) for row in range(16)]))
        assert processor.lanes.slots.used_bytes <= 5 * PER_STREAM
        if poll == 10:
            epoch = processor.seal(0)
            assert epoch is not None
            told += epoch.report.forgotten[Forgotten.MEMORY]
    assert epoch is not None
    processor.committed(epoch, {})
    epoch = processor.seal(0)
    assert epoch is not None
    assert told + epoch.report.forgotten[Forgotten.MEMORY] == 300 * 16 - processor.lanes.slots.used


def test_who_inherits_more_than_fits_forgets_the_oldest_and_goes_on() -> None:
    """Twice 70 % of the memory: the older of both partitions' streams go, whichever was here first."""
    limit = 100 * (PER_STREAM + 10)

    def process() -> Processor:
        return make_processor([("chain", ChainModel(), None)], max_bytes=limit, max_poll_records=100)

    def stream(number: int, n: int) -> str:
        return f"{number}-{n:08}"

    changelogs = {0: Changelog(), 1: Changelog()}
    for number, changelog in changelogs.items():
        owner = process()
        begin(owner, number)
        batch = records([(n, stream(number, n), float(n)) for n in range(70)], number)
        batch.times_ms[:] = [10_000 + number + 100 * n for n in range(70)]
        settle(owner, batch)
        epoch = owner.seal(0)
        assert epoch is not None
        changelog.commit(epoch, number)
    heir, rng = process(), random.Random(1)
    for number, changelog in changelogs.items():
        restore = changelog.restored(heir, rng, number=number)
        assert heir.lanes.slots.used_bytes <= limit
        restore.finish(Found(LogFacts("", 0, END, END), None, 0))
    slots = heir.lanes.slots
    assert slots.used_bytes <= limit
    assert slots.used >= 90
    for partition in heir.partitions.values():
        kept = {int(key.decode()[2:]) for key in partition.streams}
        assert set(range(30, 70)) <= kept, "the newest stay"
    before = {number: set(map(bytes.decode, heir.partitions[number].streams)) for number in (0, 1)}
    settle(heir, *[records([(70 + n, stream(number, n), 1.0) for n in (0, 69)], number) for number in (0, 1)])
    epoch = heir.seal(0)
    assert epoch is not None
    assert epoch.report.forgotten[Forgotten.MEMORY] >= 40
    for answers in epoch.answers:
        for at, n in enumerate((0, 69)):
            held = stream(answers.partition, n) in before[answers.partition]
            wanted = advance(advance(0.0, float(n)) if held else 0.0, 1.0)
            assert float(answers.y[0][at, 0]) == wanted  # type: ignore[attr-defined]


def test_an_epoch_has_to_end_before_the_next_is_sealed_and_ends_once() -> None:
    processor = make_processor([("chain", ChainModel(), None)], max_poll_records=16)
    begin(processor)
    settle(processor, records([(0, "a", 1.0)]))
    epoch = processor.seal(0)
    assert epoch is not None
    settle(processor, records([(1, "a", 1.0)]))
    with pytest.raises(AssertionError, match="neither committed nor failed"):
        processor.seal(0)
    processor.failed(epoch)
    assert not processor.partitions
    for end in (processor.failed, lambda epoch: processor.committed(epoch, {})):
        with pytest.raises(AssertionError, match="no epoch"):
            end(epoch)
    assert processor.seal(0) is None, "what ran after the seal went with the partition"


def test_a_partition_that_came_back_is_not_given_up_by_the_epoch_of_the_one_before() -> None:
    processor = make_processor([("chain", ChainModel(), None)], max_poll_records=16)
    begin(processor)
    settle(processor, records([(0, "a", 1.0)]))
    epoch = processor.seal(0)
    assert epoch is not None
    processor.drop(0)
    again = begin(processor)
    processor.failed(epoch)
    assert processor.partitions == {0: again}
