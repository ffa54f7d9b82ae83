"""Restarts with other models, other settings and other deliveries: no state that an offline run would not have.

A service is restarted again and again: with models added, removed and added again, other files of the same or of other state
shapes, ``model_changed`` refuse, keep and reset, ephemeral in between, with streams that are silent meanwhile. The offline
run gets what was committed, each event with the models that were served then, and states that begin where a regime begins.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from durable import END, NAMES, Changelog, Found, Restore, begin, make_processor, settle
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import POISON, ChainModel, advance, records
from windowing import FoldModel, timed

from streamer.core import Epoch, LogFacts, Op
from streamer.engine.partition import Partition
from streamer.engine.processor import Processor
from streamer.errors import DataLossError
from streamer.modelfile.contract import Contract
from streamer.records.changelog import Identity, Kind, Progress, decode_stream, split_key
from streamer.windows import WindowRule
from streamer.words import Delivery, ModelChanged, Reason

STREAMS = "abc"
FACTS = LogFacts("", 0, END, END)


class Plus(ChainModel):
    """Another file of the same shapes: it takes x + ``plus``."""

    def __init__(self, sha256: str, plus: float = 0.0) -> None:
        super().__init__(sha256 * 32)
        self.plus = plus

    def run(self, x: np.ndarray, lengths: np.ndarray, states: Any) -> Any:
        return super().run(np.where(x == POISON, x, x + self.plus).astype(np.float32), lengths, states)


class Wide(Plus):
    """Keeps two numbers, as [2, batch, 1] or [1, batch, 2]: the same bytes, yet another shape."""

    def __init__(self, sha256: str, shape: tuple[Any, ...], plus: float) -> None:
        super().__init__(sha256, plus)
        fields = {
            "name": "chain", "mode": "step", "lengths": "lengths",
            "input": {"name": "x", "shape": ["batch", "time", 1]},
            "states": [{"input": "h", "output": "h_next", "shape": list(shape)}],
            "outputs": [{"name": "y", "shape": ["batch", "time", 1], "kind": "value"}],
        }  # fmt: skip
        self.contract = Contract.from_fields(fields)
        self.states = self.contract.states
        self.state_bytes_per_stream = 8

    def initial_states(self, rows: int) -> list[np.ndarray]:
        return [np.zeros([rows if axis == "batch" else axis for axis in self.states[0].shape], np.float32)]

    def run(self, x: np.ndarray, lengths: np.ndarray, states: Any) -> Any:
        flat = states[0].reshape(len(x), 2) if states[0].shape[0] == 1 else states[0][:, :, 0].T
        outputs, (chain,) = super().run(x, lengths, [flat[:, :1][None]])
        after = np.stack([chain[0, :, 0], flat[:, 1] + 1], axis=1)
        return outputs, [after[None] if states[0].shape[0] == 1 else after.T[:, :, None].copy()]


FILES = {
    "first": lambda: Plus("aa"),
    "again": lambda: Plus("a2"),  # computes what "first" does, as a file that was exported anew
    "other": lambda: Plus("bb", 1.0),
    "wide": lambda: Wide("cc", (1, "batch", 2), 2.0),
    "tall": lambda: Wide("dd", (2, "batch", 1), 2.0),
}
PLUS = {"first": 0.0, "again": 0.0, "other": 1.0, "wide": 2.0, "tall": 2.0}
SHAPE = {"first": "one", "again": "one", "other": "one", "wide": "wide", "tall": "tall"}
Serving = dict[str, str]
"""Model name -> file"""


@dataclass
class Service:
    """What outlives a process: the log, the group's offset, the changelog. And the offline run beside it."""

    log: list[tuple[str, float | Op]] = field(default_factory=list)
    changelog: Changelog = field(default_factory=Changelog)
    committed: int | None = None
    answers: list[tuple[str, int, float]] = field(default_factory=list)
    rejects: list[tuple[int, str]] = field(default_factory=list)
    # the offline run
    wanted: list[tuple[str, int, float]] = field(default_factory=list)
    wanted_rejects: list[tuple[int, str]] = field(default_factory=list)
    state: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    before: Serving = field(default_factory=dict)
    """What was served when the changelog was written last"""
    at: int = 0

    @property
    def start(self) -> int:
        return self.committed or 0

    def refusal(self, serving: Serving, rule: ModelChanged) -> bool:
        """Whether a restart has to be refused."""
        progress = self.changelog.progress
        if progress is None:
            return self.committed is not None
        if self.committed is not None and self.committed > progress.position:
            return True
        if rule is ModelChanged.REFUSE:
            return serving != self.before
        if rule is ModelChanged.RESET:
            return False
        return any(SHAPE[self.before[name]] != SHAPE[each] for name, each in serving.items() if name in self.before)

    def commit(
        self, processor: Processor, epoch: Epoch, serving: Serving, rule: ModelChanged, *, durable: bool
    ) -> None:
        for answers in epoch.answers:
            y = answers.y[0][:, 0].tolist()  # type: ignore[attr-defined]
            self.answers += [(answers.model, at, value) for at, value in zip(answers.sources, y, strict=True)]
        self.rejects += [(reject.offset, reject.detail.split("'")[1]) for reject in epoch.rejects]
        evictions = self.changelog.commit(epoch) if durable else []
        processor.committed(epoch, {})
        self.committed = epoch.positions[0]
        for name, each in serving.items():
            if durable and (name not in self.before or (self.before[name] != each and rule is ModelChanged.RESET)):
                self.state[name] = {}
        if durable:
            self.before = serving
        self._offline(self.committed, serving, evictions)

    def _offline(self, position: int, serving: Serving, evictions: list[tuple[int, str]]) -> None:
        gone: dict[int, set[str]] = defaultdict(set)
        for through, stream in evictions:
            gone[through].add(stream)
        for offset in range(self.at - 1, position):
            if offset >= self.at:
                self._event(offset, serving)
            for stream in gone[offset]:
                for each in self.state.values():
                    each.pop(stream, None)
        self.at = position

    def _event(self, offset: int, serving: Serving) -> None:
        stream, what = self.log[offset]
        for name, each in serving.items():
            if isinstance(what, Op):
                self.state[name].pop(stream, None)
            elif what == POISON:
                self.wanted_rejects.append((offset, name))
            else:
                state = advance(self.state[name].get(stream, 0.0), what + PLUS[each])
                self.state[name][stream] = state
                self.wanted.append((name, offset, state))


def recovered(
    service: Service, serving: Serving, rule: ModelChanged, limits: dict[str, Any], rng: random.Random
) -> tuple[Processor, Partition] | None:
    """None: refused, as it has to be."""
    processor = make_processor(
        [(name, FILES[each](), None) for name, each in serving.items()], model_changed=rule, **limits
    )
    restore = service.changelog.restored(processor, rng)
    found = Found(FACTS, service.committed, service.start)
    if service.refusal(serving, rule):
        with pytest.raises(DataLossError):
            restore.finish(found)
        return None
    return processor, restore.finish(found)


def work(
    service: Service, found: tuple[Processor, Partition], serving: Serving, rule: ModelChanged, rng: random.Random
) -> None:
    """Some epochs of one process, until it dies."""
    processor, partition = found
    now_ms = 0
    for _ in range(rng.randint(0, 5)):
        for _ in range(rng.randint(1, 3)):
            fetch(service.log, processor, partition, rng.randint(1, 5))
        now_ms += rng.randint(0, 60)
        epoch = processor.seal(now_ms, slice_bytes=rng.choice([0, 100, 1 << 20]))
        if epoch is None:
            continue
        if rng.random() < 0.15:
            return  # nothing of the transaction is seen
        service.commit(processor, epoch, serving, rule, durable=True)
        if rng.random() < 0.1:
            service.changelog.compact(rng)


def fetch(log: list[tuple[str, float | Op]], processor: Processor, partition: Partition, count: int) -> None:
    first = partition.next_offset
    rows = [(at, *log[at]) for at in range(first, min(first + count, len(log)))]
    if rows:
        settle(processor, records(rows))


def ephemeral(service: Service, serving: Serving, rng: random.Random) -> None:
    """States begin anew and are not kept; the group's offsets move on."""
    models: list[Any] = [(name, FILES[each](), None) for name, each in serving.items()]
    processor = make_processor(models, mode=Delivery.EPHEMERAL, max_poll_records=16)
    restore = Restore(processor, 0, NAMES)
    partition = restore.finish(Found(FACTS, service.committed, service.start))
    kept, service.state = service.state, defaultdict(dict)
    for _ in range(rng.randint(0, 3)):
        fetch(service.log, processor, partition, rng.randint(1, 5))
        if (epoch := processor.seal(0)) is not None:
            assert not epoch.changelog
            service.commit(processor, epoch, serving, ModelChanged.REFUSE, durable=False)
    service.state = kept


def run_schedule(seed: int) -> None:
    rng, service = random.Random(seed), Service()
    limits = {
        "max_rows": rng.randint(1, 4),
        "max_steps": rng.choice([1, 8]),
        "max_poll_records": 16,
        "checkpoint_interval_ms": rng.choice([0, 30, 100]),
        "max_bytes": rng.choice([1 << 16, 1 << 16, 3 * 230]),
    }
    serving: Serving = {"m": "first"}
    for _ in range(rng.randint(3, 9)):
        active = rng.sample(STREAMS, rng.randint(1, 3))  # the others are silent meanwhile
        for _ in range(rng.randint(0, 12)):
            what: float | Op = rng.choices([1.0, 2.0, 3.0, POISON, Op.RESET, Op.END], [20, 20, 20, 3, 1, 1])[0]
            service.log.append((rng.choice(active), what))
        if rng.random() < 0.6:
            names = rng.choice([["m"], ["n"], ["m", "n"]])
            serving = {name: rng.choice([serving.get(name, "first"), *FILES]) for name in names}
        if rng.random() < 0.15:
            ephemeral(service, serving, rng)
            continue
        rule = rng.choice(list(ModelChanged))
        if any(PLUS[service.before.get(name, each)] != PLUS[each] for name, each in serving.items()):
            # kept by a file that computes something else, states depend on where the last round was
            rule = rng.choice([ModelChanged.REFUSE, ModelChanged.RESET])
        for _ in range(rng.randint(1, 3)):
            found = recovered(service, serving, rule, limits, rng)
            if found is None and rng.random() < 0.5:
                break  # the operator puts everything back
            if found is None:
                rule = ModelChanged.RESET
                found = recovered(service, serving, rule, limits, rng)
            if found is None:  # only another group helps: it begins where this one ended
                start, log, told = service.start, service.log, service
                service = Service(log, committed=None, at=start, answers=told.answers, rejects=told.rejects)
                service.wanted, service.wanted_rejects = told.wanted, told.wanted_rejects
                processor = make_processor(
                    [(name, FILES[each](), None) for name, each in serving.items()], model_changed=rule, **limits
                )
                found = processor, begin(processor, start=start)
                if (epoch := processor.seal(0)) is not None:
                    service.commit(processor, epoch, serving, rule, durable=True)
            work(service, found, serving, rule, rng)
            if service.before != serving:
                break  # nothing of it was committed: who comes next decides anew
    assert sorted(service.answers) == sorted(service.wanted), seed
    assert sorted(service.rejects) == sorted(service.wanted_rejects), seed


@settings(max_examples=4 * settings().max_examples)
@given(seed=st.integers(0, 2**32))
def test_no_restart_brings_a_state_that_an_offline_run_would_not_have(seed: int) -> None:
    run_schedule(seed)


# Recoveries that judge by less: the same oracle must find each of them.


def _since_ever(restore: Restore, progress: Progress) -> dict[str, int]:
    return dict.fromkeys(restore._lanes, 0)


def _nothing_stale(restore: Restore, lane: Any, since: int) -> dict[bytes, int]:
    return {}


def _fits_by_size(restore: Restore, name: str, regime: Any, states: str) -> None:
    return None


def _whatever_was_committed(restore: Restore, progress: Progress, found: Found) -> None:
    return None


@pytest.mark.parametrize(
    ("part", "broken"),
    [
        ("_regimes", _since_ever),
        ("_stale", _nothing_stale),
        ("_check_fits", _fits_by_size),
        ("_check", _whatever_was_committed),
    ],
)
def test_the_oracle_finds_a_broken_judgement(part: str, broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Restore, part, broken)

    def search() -> None:
        for seed in range(2_000):
            run_schedule(seed)

    with pytest.raises((AssertionError, pytest.fail.Exception)):
        search()


# The faults of issue 13, each by itself.


def ran(changelog: Changelog, serving: Serving, rows: list[tuple[str, float]], rule: str, first: int) -> list[float]:
    """What a process answers that takes over with ``rule``, gets ``rows`` from offset ``first`` on, and commits."""
    models: list[Any] = [(name, FILES[each](), None) for name, each in serving.items()]
    processor = make_processor(models, model_changed=rule, max_poll_records=64, checkpoint_interval_ms=0)
    partition = changelog.recover(processor, random.Random(0))
    assert partition.position == first
    if partition.replaying:
        return pytest.fail("a round was written with each epoch")
    settle(processor, records([(first + at, *row) for at, row in enumerate(rows)]))
    epoch = processor.seal(10**6)
    assert epoch is not None
    changelog.commit(epoch)
    processor.committed(epoch, {})
    return [float(value) for answers in epoch.answers for value in answers.y[0][:, 0]]  # type: ignore[attr-defined]


def with_a_round_behind(models: list[Any], changelog: Changelog, identity: Identity | None = None) -> Processor:
    """Begun, and offset 0 is in a round: the next one is far away, so what follows will be replayed from offset 1."""
    processor = make_processor(
        models, identity=identity, max_poll_records=16_384, max_rows=1, max_steps=1, checkpoint_interval_ms=1 << 40
    )
    begin(processor)
    settle(processor, timed([(0, "z", 0, Op.RESET)]))
    commit(processor, changelog)
    return processor


def commit(processor: Processor, changelog: Changelog) -> Epoch:
    epoch = processor.seal(0)
    assert epoch is not None
    changelog.commit(epoch)
    processor.committed(epoch, {})
    return epoch


@pytest.mark.parametrize("changed", ["other", "wide"])
def test_streams_that_were_silent_during_a_reset_begin_anew(changed: str) -> None:
    changelog = Changelog()
    assert ran(changelog, {"m": "first"}, [("a", 1.0), ("b", 2.0)], "refuse", 0) == [advance(0, 1), advance(0, 2)]
    plus = PLUS[changed]
    assert ran(changelog, {"m": changed}, [("a", 1.0)], "reset", 2) == [advance(0, 1 + plus)]
    a = advance(advance(0, 1 + plus), 1 + plus)
    assert ran(changelog, {"m": changed}, [("a", 1.0), ("b", 2.0)], "refuse", 3) == [a, advance(0, 2 + plus)]
    assert ran(changelog, {"m": "first"}, [("b", 2.0)], "reset", 5) == [advance(0, 2)], "and back again"


def test_keep_compares_shapes_and_not_bytes() -> None:
    changelog = Changelog()
    ran(changelog, {"m": "wide"}, [("a", 1.0)], "refuse", 0)
    with pytest.raises(DataLossError, match=r"keeps h\[2, 'batch', 1\] per stream.*h\[1, 'batch', 2\]"):
        ran(changelog, {"m": "tall"}, [("a", 1.0)], "keep", 1)
    assert ran(changelog, {"m": "tall"}, [("a", 1.0)], "reset", 1) == [advance(0, 1 + PLUS["tall"])]


def test_keep_goes_on_from_the_states_of_the_file_before() -> None:
    changelog = Changelog()
    ran(changelog, {"m": "first"}, [("a", 1.0), ("b", 1.0)], "refuse", 0)
    on = advance(advance(0, 1), 1 + PLUS["other"])
    assert ran(changelog, {"m": "other"}, [("a", 1.0)], "keep", 2) == [on]
    assert ran(changelog, {"m": "other"}, [("b", 1.0)], "refuse", 3) == [on], "silent streams too"


def test_a_model_that_was_removed_and_added_again_begins_anew() -> None:
    changelog, both = Changelog(), {"m": "first", "n": "first"}
    ran(changelog, both, [("a", 1.0)], "refuse", 0)
    with pytest.raises(DataLossError, match="Serve the same files"):
        ran(changelog, {"m": "first"}, [("a", 2.0)], "refuse", 1)
    kept = [advance(advance(0, 1), 2)]
    assert ran(changelog, {"m": "first"}, [("a", 2.0)], "keep", 1) == kept
    on = advance(kept[0], 3)
    assert ran(changelog, both, [("a", 3.0)], "keep", 2) == [on, advance(0, 3)]


def test_records_of_a_model_that_is_not_served_any_more_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a changelog keeps the states of all models that ever were, and each restore reads them."""
    monkeypatch.setattr("streamer.engine.collected._MOST_STRANDED", 2)
    changelog, served = Changelog(), {"m": "first"}

    def left() -> int:
        return sum(split_key(key)[1] == "n" for key in changelog.newest if key[0] == Kind.STATE)

    ran(changelog, {**served, "n": "first"}, [(stream, 1.0) for stream in "abc"], "refuse", 0)
    assert left() == 3
    with pytest.raises(DataLossError):
        ran(changelog, served, [], "refuse", 3)
    assert left() == 3
    on = 0.0
    for offset, more in ((3, 1), (4, 0), (5, 0)):
        on = advance(on, 1.0)
        assert ran(changelog, served, [("d", 1.0)], "keep", offset) == [on]
        assert left() == more
        changelog.records = list(changelog.newest.items())  # compacted


def test_ephemeral_in_between_is_refused_afterwards() -> None:
    changelog = Changelog()
    ran(changelog, {"m": "first"}, [("a", 1.0)] * 3, "refuse", 0)
    processor = make_processor([("m", FILES["first"](), None)])
    with pytest.raises(DataLossError, match=r"committed offset 7, the changelog ends at 3.*ephemeral"):
        changelog.restored(processor, random.Random(0)).finish(Found(FACTS, 7, 0))
    processor = make_processor([("m", FILES["first"](), None)])
    assert changelog.restored(processor, random.Random(0)).finish(Found(FACTS, 3, 0)).position == 3


def test_committed_offsets_without_a_changelog_are_refused() -> None:
    processor = make_processor([("m", FILES["first"](), None)])
    with pytest.raises(DataLossError, match="has no progress there"):
        Restore(processor, 0, NAMES).finish(Found(FACTS, 5, 0))
    with pytest.raises(AssertionError, match="already here"):
        processor.open(0)


@pytest.mark.parametrize(
    ("found", "identity", "says"),
    [
        (Found(LogFacts("id", 2, END, END), 3, 0), {}, "replay must begin at offset 1, the log begins at 2"),
        (Found(LogFacts("id", 0, 2, 2), 3, 0), {}, r"position 3 is beyond the end of the log \(2\)"),
        (Found(LogFacts("new", 0, END, END), 3, 0), {}, "deleted and created again"),
        (Found(LogFacts("id", 0, END, END), 3, 0, checksum=9), {}, "not the one that was processed"),
        (Found(LogFacts("id", 0, END, END), 3, 0), {"group": "h"}, "written by group 'g', this is 'h'"),
        (Found(LogFacts("id", 0, END, END), 3, 0), {"fingerprint": "y"}, "settings that decide"),
        (Found(LogFacts("id", 0, END, END), 3, 0, checksum=2), {}, ""),
        (Found(LogFacts("id", 0, END, END), None, 0), {"machine": "z"}, ""),
    ],
)
def test_what_does_not_fit_is_refused_and_says_what_to_do(found: Found, identity: dict[str, str], says: str) -> None:
    written, changelog = {"group": "g", "fingerprint": "x", "topic_id": "id", "machine": "i"}, Changelog()
    processor = with_a_round_behind([("m", FILES["first"](), None)], changelog, Identity(**written))
    settle(processor, records([(at, "a", 1.0) for at in (1, 2)]))
    commit(processor, changelog)
    heir = make_processor([("m", FILES["first"](), None)], identity=Identity(**{**written, **identity}))
    restore = changelog.restored(heir, random.Random(0))
    assert restore.wanted_record == 2
    if says:
        with pytest.raises(DataLossError, match=says):
            restore.finish(found)
    else:
        assert restore.finish(found).position == 3


def test_refusals_of_two_models_are_each_their_own() -> None:
    """The first refuses what the second takes: the second's replay must not skip it."""

    class Tolerant(ChainModel):
        def run(self, x: np.ndarray, lengths: np.ndarray, states: Any) -> Any:
            return super().run(np.where(x == POISON, 4.0, x).astype(np.float32), lengths, states)

    def models() -> list[Any]:
        return [("strict", ChainModel(), None), ("tolerant", Tolerant("cd" * 32), None)]

    changelog, rows = Changelog(), records([(1, "a", 1.0), (2, "a", POISON)])
    processor = with_a_round_behind(models(), changelog)
    settle(processor, rows)
    assert len(commit(processor, changelog).rejects) == 1
    heir = make_processor(models(), max_poll_records=64)
    assert changelog.recover(heir, random.Random(0)).replaying
    settle(heir, rows)
    settle(heir, records([(3, "a", 2.0)]))
    epoch = commit(heir, changelog)
    assert not epoch.rejects, "a replay tells nothing again"
    found = {each.model: float(each.y[0][-1, 0]) for each in epoch.answers}  # type: ignore[attr-defined]
    one = advance(0, 1)
    assert found == {"strict": advance(one, 2), "tolerant": advance(advance(one, 4), 2)}


def test_a_stream_that_was_forgotten_and_came_back_when_only_one_models_record_was_written() -> None:
    """Whatever pieces the changelog is read in."""
    for seed in range(40):
        rng, changelog = random.Random(seed), Changelog()
        models: list[Any] = [("m", Plus("aa"), None), ("n", Plus("bb", 1.0), None)]
        processor = make_processor(models, max_poll_records=64, checkpoint_interval_ms=0)
        begin(processor)
        for at, rows in enumerate([[("a", 1.0)], [("a", Op.END)], [("a", 2.0)]]):
            settle(processor, records([(at, *row) for row in rows]))
            # the budget of the last one is spent by the record of one model
            epoch = processor.seal(at * 10, slice_bytes=1 << 20 if at < 2 else 0)
            assert epoch is not None
            changelog.commit(epoch)
            processor.committed(epoch, {})
        states = [
            key for key, value in changelog.newest.items() if key[0] == Kind.STATE and decode_stream(key, value).state
        ]
        assert len(states) == 1
        heir = make_processor(models, max_poll_records=64)
        partition = changelog.recover(heir, rng)
        if partition.replaying:
            settle(heir, records([(at, "a", (1.0, Op.END, 2.0)[at]) for at in range(partition.next_offset, 3)]))
        settle(heir, records([(3, "a", 3.0)]))
        epoch = heir.seal(0)
        assert epoch is not None
        found = {each.model: float(each.y[0][0, 0]) for each in epoch.answers}  # type: ignore[attr-defined]
        assert found == {"m": advance(advance(0, 2), 3), "n": advance(advance(0, 3), 4)}, seed


def test_records_stay_small_however_many_were_refused_between_two_rounds() -> None:
    changelog, count, poll = Changelog(), 52_000, 13_000
    processor = with_a_round_behind([("m", ChainModel(), None)], changelog)
    polls = [[(1 + n, f"s{n % 50}", POISON) for n in range(first, first + poll)] for first in range(0, count, poll)]
    for number, rows in enumerate(polls):
        settle(processor, records(rows))
        if number % 2:  # two polls may make one epoch
            epoch = commit(processor, changelog)
            assert epoch.report.rejects == {Reason.MODEL_REFUSED: 2 * poll}
            assert len(epoch.rejects) == 2 * poll
            assert max(len(value or b"") for _, value in epoch.changelog[0].records) < 1_000_000
    (truth,) = processor.partitions[0].truths
    assert len(truth.decisions) == count
    heir = make_processor([("m", Plus("ab"), None)], max_poll_records=16_384)
    partition = changelog.recover(heir, random.Random(0))
    assert partition.next_offset == 1
    for rows in polls:
        settle(heir, records(rows))
    assert not partition.replaying
    settle(heir, records([(1 + count, "s0", 1.0)]))
    epoch = commit(heir, changelog)
    assert not epoch.rejects, "refused once"
    (answers,) = epoch.answers
    assert answers.y[0].tolist() == [[advance(0, 1)]]  # type: ignore[attr-defined]


def test_a_window_model_that_is_added_gets_no_event_of_before() -> None:
    """What came before its regime began is none of its own: not even if a step model's replay reads it once more."""
    changelog, rows = Changelog(), timed([(1, "a", 100, 1.0), (2, "a", 101, 2.0)])
    processor = with_a_round_behind([("chain", ChainModel(), None)], changelog)
    settle(processor, rows)
    commit(processor, changelog)
    both: list[Any] = [("chain", ChainModel(), None), ("fold", FoldModel(), WindowRule("end"))]
    heir = make_processor(both, max_poll_records=64, model_changed=ModelChanged.KEEP)
    assert changelog.recover(heir, random.Random(0)).replaying
    settle(heir, rows)
    settle(heir, timed([(3, "a", 102, 3.0), (4, "a", 0, Op.END)]))
    epoch = commit(heir, changelog)
    windows = [window for each in epoch.answers if each.model == "fold" for window in each.windows]  # type: ignore[attr-defined]
    assert [window.offsets.tolist() for window in windows] == [[3]]


@pytest.mark.parametrize("kind", ["end", "tumbling", "session"])
def test_a_window_model_that_was_removed_and_added_again_begins_anew(kind: str) -> None:
    """Its records of before say nothing about what comes: neither watermark, idle advances nor closed windows."""
    rule = WindowRule(kind, size_ms=50, gap_ms=50)

    def models(*names: str) -> list[Any]:
        made: dict[str, Any] = {"chain": ("chain", ChainModel(), None), "fold": ("fold", FoldModel(), rule)}
        return [made[name] for name in names]

    def heir(*names: str) -> Processor:
        processor = make_processor(models(*names), max_poll_records=64, model_changed=ModelChanged.KEEP)
        partition = changelog.recover(processor, random.Random(0))
        rows = [row for row in log if row[0] >= partition.next_offset]
        if rows:
            settle(processor, timed(rows))
        assert not partition.replaying
        return processor

    changelog, log = Changelog(), [(1, "a", 100, 1.0), (2, "b", 900, 2.0)]
    processor = with_a_round_behind(models("chain", "fold"), changelog)
    settle(processor, timed(log))
    processor.idle(0, 10_000)  # closes what time closes, and leaves the watermark far ahead
    settle(processor)
    commit(processor, changelog)
    commit(heir("chain"), changelog)
    processor = heir("chain", "fold")
    log += [(3, "a", 910, 3.0)]
    settle(processor, timed(log[-1:]))
    commit(processor, changelog)
    processor = heir("chain", "fold")  # and the same after a restart of the new regime
    settle(processor, timed([(4, "a", 911, 4.0), (5, "a", 0, Op.END)]))
    epoch = commit(processor, changelog)
    windows = [window for each in epoch.answers if each.model == "fold" for window in each.windows]  # type: ignore[attr-defined]
    assert [window.offsets.tolist() for window in windows] == [[3, 4]]
    assert not epoch.report.late


def test_open_windows_outlive_another_file_and_a_switch_of_the_mode_is_a_reset() -> None:
    def heir(model: Any, rule: WindowRule | None, changed: ModelChanged) -> Processor:
        processor = make_processor([("m", model, rule)], max_poll_records=64, model_changed=changed)
        partition = changelog.recover(processor, random.Random(0))
        if partition.replaying:
            settle(processor, timed([(1, "a", 100, 1.0), (2, "a", 101, 2.0)]))
        return processor

    changelog, end = Changelog(), WindowRule("end")
    processor = with_a_round_behind([("m", FoldModel(), end)], changelog)
    settle(processor, timed([(1, "a", 100, 1.0), (2, "a", 101, 2.0)]))
    commit(processor, changelog)
    processor = heir(FoldModel("ef" * 32), end, ModelChanged.RESET)
    settle(processor, timed([(3, "a", 102, 3.0), (4, "a", 0, Op.END)]))
    (answers,) = commit(processor, changelog).answers
    assert [window.offsets.tolist() for window in answers.windows] == [[1, 2, 3]]  # type: ignore[attr-defined]
    with pytest.raises(DataLossError, match="model 'm' keeps h"):  # the same file, now step by step
        heir(ChainModel("ef" * 32), None, ModelChanged.REFUSE)
    processor = heir(ChainModel("ef" * 32), None, ModelChanged.RESET)
    settle(processor, timed([(5, "a", 103, 5.0)]))
    (answers,) = commit(processor, changelog).answers
    assert answers.y[0].tolist() == [[advance(0, 5)]]  # type: ignore[attr-defined]


def test_a_step_model_without_state_goes_on_where_it_was() -> None:
    """Its records say how far each stream came, so a replay asks it nothing twice."""

    class Plain(ChainModel):
        def __init__(self) -> None:
            super().__init__()
            fields = {
                "name": "plain", "mode": "step", "lengths": "lengths",
                "input": {"name": "x", "shape": ["batch", "time", 1]},
                "outputs": [{"name": "y", "shape": ["batch", "time", 1], "kind": "value"}],
            }  # fmt: skip
            self.contract = Contract.from_fields(fields)
            self.states = self.contract.states

        def initial_states(self, rows: int) -> list[np.ndarray]:
            return []

        def run(self, x: np.ndarray, lengths: np.ndarray, states: Any) -> Any:
            self.calls.append(x.shape[:2])
            return [(x + 1).astype(np.float32)], []

    changelog, model = Changelog(), Plain()
    processor = with_a_round_behind([("plain", Plain(), None)], changelog)
    settle(processor, records([(1, "a", 1.0), (2, "b", 2.0)]))
    assert commit(processor, changelog).changelog
    heir = make_processor([("plain", model, None)], max_poll_records=64)
    partition = changelog.recover(heir, random.Random(0))
    settle(heir, records([(1, "a", 1.0), (2, "b", 2.0), (3, "a", 3.0)]))
    commit(heir, changelog)  # with a round
    assert (partition.position, changelog.count(Kind.STATE)) == (4, 3)
    model = Plain()
    heir = make_processor([("plain", model, None)], max_poll_records=64)
    changelog.recover(heir, random.Random(0))
    settle(heir, records([(4, "b", 4.0)]))
    (answers,) = commit(heir, changelog).answers
    assert answers.y[0].tolist() == [[5.0]]  # type: ignore[attr-defined]
    assert model.calls == [(1, 1)]
