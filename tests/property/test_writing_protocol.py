"""Sequences about windows over a simulated log: random fetches, steps, commits and crashes against what must be written.

The code that ships: processor, partition, decodings, changelog records and restore. Every window that the log's order closes
is written about exactly once, with the sequence that the pair writes about it alone, in the order of its stream."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from durable import END, Changelog, Found, encoded, make_processor, settle
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import ChainModel
from windowing import Reference, Row, timed
from writing import UNWRITABLE, WritingModel, write

from streamer.core import LogFacts, Op
from streamer.engine.processor import Processor
from streamer.generate.decodings import Decodings
from streamer.windows import WindowRule

RULES = (
    WindowRule("count", count=3),
    WindowRule("count", count=1),
    WindowRule("end"),
    WindowRule("tumbling", size_ms=10),
    WindowRule("hopping", size_ms=12, hop_ms=4),
    WindowRule("session", gap_ms=5, max_events=4),
)


def draw_log(rng: random.Random) -> list[Row]:
    log: list[Row] = []
    offset, now = rng.randrange(5), 100
    for _ in range(rng.randint(10, 50)):
        offset += rng.choice([1, 1, 1, 2, 5])
        now += rng.choice([0, 1, 1, 3])
        what: Any = float(rng.choice([0, 1, 2, 3, 4, 5, UNWRITABLE])) if rng.random() < 0.92 else Op.END
        log.append((offset, rng.choice("abc"), now - rng.choice([0, 0, 1, 4]), what))
    return log


class Run:
    """One log, processes that follow each other, and what a reader of committed records sees."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.rule = rng.choice(RULES)
        self.log, self.changelog = draw_log(rng), Changelog()
        self.beside = rng.random() < 0.4
        self.decode = {"max_rows": rng.choice([1, 3, 64]), "max_memory_bytes": rng.choice([200, 1 << 20])}
        self.answers: list[dict[str, Any]] = []
        self.rejects: list[int] = []
        self.calm = False
        self.begin()

    def begin(self) -> None:
        models: list[Any] = [("writer", WritingModel(), self.rule)]
        if self.beside:
            models.insert(0, ("chain", ChainModel(), None))
        self.processor: Processor = make_processor(
            models, decode=self.decode, max_poll_records=64, checkpoint_interval_ms=self.rng.choice([1, 50])
        )
        self.now = 0
        restore = self.changelog.restored(self.processor, self.rng)
        self.partition = restore.finish(Found(LogFacts("", 0, END, END), None, self.log[0][0]))

    def fetch(self) -> None:
        rows = [row for row in self.log if row[0] >= self.partition.next_offset][: self.rng.randint(1, 8)]
        if rows:
            settle(self.processor, timed(rows, next_offset=rows[-1][0] + 1))

    def commit(self) -> None:
        self.now += self.rng.choice([1, 30])
        epoch = self.processor.seal(self.now, self.rng.choice([1, 1 << 20]))
        if epoch is None:
            return None
        if not self.calm and self.rng.random() < 0.15:
            self.processor.failed(epoch)
            return self.begin()
        for outgoing in encoded(self.processor, epoch):
            found = [msgspec.json.decode(value) for value in outgoing.values]
            self.answers += [each for each in found if "window" in each]
        self.rejects += [reject.offset for reject in epoch.rejects]
        self.changelog.commit(epoch)
        return self.processor.committed(epoch, {})

    def go(self) -> None:
        for _ in range(self.rng.randint(20, 120)):
            what = self.rng.random()
            if what < 0.25:
                self.fetch()
            elif what < 0.7:
                if self.processor.rolling:
                    self.processor.roll()
            elif what < 0.93:
                self.commit()
            else:
                self.begin()  # a crash
        self.calm = True
        for _ in range(1_000):
            if self.partition.next_offset > self.log[-1][0] and not len(self.partition.decodings):
                break
            self.fetch()
            self.processor.roll()
            self.commit()
        for _ in range(30):
            self.commit()
        assert not len(self.partition.decodings)

    def check(self) -> None:
        reference = Reference(self.rule)
        values = {row[0]: row[3] for row in self.log}
        wanted: dict[Any, Any] = {}
        refused = []
        for offset, stream, time, what in self.log:
            for window in reference.record(offset, stream, time, what).closed:
                contents = [values[at] for _, at in window.events]
                need = 4 * len(contents) + 4
                if UNWRITABLE in contents or need > self.decode["max_memory_bytes"]:
                    refused.append(max(at for _, at in window.events))
                else:
                    wanted[stream_key(window)] = write(contents)
        found = {}
        for each in self.answers:
            at = each["window"]
            key = each["stream"], at["start"], at["end"], at["part"]
            assert key not in found, f"{key} is answered twice"
            found[key] = each["y"], each["score"], each["truncated"]
        assert found == wanted
        assert sorted(self.rejects) == sorted(refused)
        if self.rule.kind in ("count", "end"):
            for stream in "abc":
                parts = [each["window"]["part"] for each in self.answers if each["stream"] == stream]
                assert parts == sorted(parts), "a stream's answers come in the order of its windows"


def stream_key(window: Any) -> Any:
    return window.stream, window.start, window.end, window.part


@given(st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_every_window_is_written_about_exactly_once(seed: int) -> None:
    run = Run(seed)
    run.go()
    run.check()


def not_held(monkeypatch: Any) -> None:
    monkeypatch.setattr(Decodings, "oldest", lambda self: None)


def not_recorded(monkeypatch: Any) -> None:
    monkeypatch.setattr(Decodings, "records", lambda self: [])


def not_gathered(monkeypatch: Any) -> None:
    monkeypatch.setattr(Decodings, "gather", lambda self, batch: None)


@pytest.mark.parametrize("broken", [not_held, not_recorded, not_gathered])
def test_no_part_can_be_left_out(broken: Any, monkeypatch: Any) -> None:
    broken(monkeypatch)
    wrong = 0
    for seed in range(40):
        run = Run(seed)
        try:
            run.go()
            run.check()
        except AssertionError:
            wrong += 1
    assert wrong
