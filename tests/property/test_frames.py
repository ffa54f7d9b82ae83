"""Records of several steps: T steps in one record are what T records of one step are, bit by bit, however the log is cut, and
a record that the model refuses has left nothing of itself in the state."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from durable import Changelog, begin, encoded, make_processor, settle
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx_models import INT32, graph_model, lstm, lstm_fields, save
from simulated import POISON, ChainModel, advance

from streamer.core import EventBatch, Op, RecordBatch, StepAnswers
from streamer.modelfile.model import Model

FEATURES = 3


Record = tuple[str, "list[Any] | Op"]
"""Stream, and its steps or a command"""


def batch_of(records: Sequence[Record], first: int, features: int = 1, *, many: bool = True) -> EventBatch:
    """One fetch, as the codec would give it."""
    offsets = list(range(first, first + len(records)))
    keys = [stream.encode() for stream, _ in records]
    steps = np.array([0 if isinstance(what, Op) else len(what) for _, what in records], np.int64)
    ops = np.array([what if isinstance(what, Op) else 0 for _, what in records], np.uint8)
    rows = [np.asarray(what, np.float32).reshape(-1, features) for _, what in records if not isinstance(what, Op)]
    stamps = [1_000 + offset for offset in offsets]
    raw = RecordBatch(0, offsets, stamps, list(keys), [b"v"] * len(offsets))
    return EventBatch(
        partition=0,
        offsets=np.array(offsets, np.int64),
        times_ms=np.array(stamps, np.int64),
        timestamps_ms=stamps,
        keys=keys,
        x=np.concatenate([np.empty((0, features), np.float32), *rows]),
        ops=ops if ops.any() else None,
        records=raw,
        next_offset=offsets[-1] + 1,
        checksum=offsets[-1],
        steps=steps if many else None,
    )


def gru(hidden: int = 4) -> onnx.ModelProto:
    """As ``lstm`` of the models for tests, with one state."""
    rng = np.random.default_rng(3)
    nodes = [
        helper.make_node("Transpose", ["x"], ["xt"], perm=[1, 0, 2]),
        helper.make_node("GRU", ["xt", "W", "R", "", "lengths", "h"], ["yd", "h_next"], hidden_size=hidden),
        helper.make_node("Transpose", ["yd"], ["yt"], perm=[2, 0, 1, 3]),
        helper.make_node("Reshape", ["yt", "flat"], ["y"]),
    ]
    return graph_model(
        nodes,
        [("x", ["batch", "time", FEATURES]), ("lengths", ["batch"], INT32), ("h", [1, "batch", hidden])],
        [("y", ["batch", "time", hidden]), ("h_next", [1, "batch", hidden])],
        {
            "W": rng.normal(size=(1, 3 * hidden, FEATURES)).astype(np.float32),
            "R": (rng.normal(size=(1, 3 * hidden, hidden)) * 0.4).astype(np.float32),
            "flat": np.array([0, 0, hidden]),
        },
    )


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Model, Model]]:
    """Cell -> its model with one step and with many steps per record."""
    folder: Path = tmp_path_factory.mktemp("frames")
    found = {}
    states = [{"input": "h", "output": "h_next", "shape": [1, "batch", 4]}]
    for cell, graph, changes in (("lstm", lstm(), {}), ("gru", gru(), {"states": states})):
        both = []
        for steps in ("one", "many"):
            given_input = {"name": "x", "shape": ["batch", "time", FEATURES], "steps": steps}
            fields = lstm_fields(**{**changes, "input": given_input})
            both.append(Model.load(save(graph, folder / f"{cell}-{steps}.onnx", fields)))
        found[cell] = (both[0], both[1])
    return found


bounds = st.fixed_dictionaries(
    {
        "max_rows": st.sampled_from([1, 2, 64]),
        "max_steps": st.sampled_from([1, 3, 16]),
        "max_window_cells": st.sampled_from([1, 6, 10_000]),
    }
)
lengths = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 7)), min_size=1, max_size=12)
cuts = st.lists(st.integers(1, 11), max_size=4)


def pieces(records: Sequence[Any], cuts: Sequence[int]) -> list[tuple[int, int]]:
    edges = sorted({0, len(records), *(cut for cut in cuts if cut < len(records))})
    return list(itertools.pairwise(edges))


def state_of(processor: Any, stream: str) -> list[bytes]:
    slot = processor.partitions[0].streams.find(stream.encode())
    arena = processor.lanes.stepping[0].arena
    return list(arena.rows(np.array([slot], np.int64)))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@settings(deadline=None)
@given(shape=lengths, cuts=cuts, limits=bounds, seed=st.integers(0, 1_000))
def test_t_steps_in_a_record_are_t_records_of_one_step(
    pairs: dict[str, tuple[Model, Model]], cell: str, shape: Any, cuts: list[int], limits: dict[str, int], seed: int
) -> None:
    one, many = pairs[cell]
    rng = np.random.default_rng(seed)
    records = [(stream, rng.normal(size=(count, FEATURES)).astype(np.float32)) for stream, count in shape]
    singles = [(stream, [step]) for stream, steps in records for step in steps]

    plain = make_processor([("m", one, None)])
    begin(plain)
    settle(plain, batch_of(singles, 0, FEATURES, many=False))
    framed = make_processor([("m", many, None)], **limits)
    begin(framed)
    for first, last in pieces(records, cuts):
        settle(framed, batch_of(records[first:last], first, FEATURES))

    by_row = {source: y for each in plain.results()[0] for source, y in zip(each.sources, each.y[0], strict=True)}
    expected = np.array([by_row[row] for row in range(len(singles))], np.float32)
    found = {source: each.row(at)[2][0] for each in framed.results()[0] for at, source in enumerate(each.sources)}
    assert np.concatenate([found[offset] for offset in range(len(records))]).tobytes() == expected.tobytes()
    for stream in {stream for stream, _ in records}:
        assert state_of(framed, stream) == state_of(plain, stream)


steps = st.lists(st.sampled_from([0.0, 1.0, 2.0, 5.0, 1.0, 3.0, POISON]), min_size=1, max_size=5)
whats = st.one_of(steps, steps, steps, st.sampled_from([Op.RESET, Op.END]))
stories = st.lists(st.tuples(st.sampled_from("abcd"), whats), min_size=1, max_size=16)


def by_definition(records: Sequence[Record]) -> dict[int, list[float] | None]:
    """Offset -> its outputs; None: refused, which leaves the state as it was."""
    states: dict[str, float] = {}
    found: dict[int, list[float] | None] = {}
    for offset, (stream, what) in enumerate(records):
        if isinstance(what, Op):
            states.pop(stream, None)
        elif POISON in what:
            found[offset] = None
        else:
            state = states.get(stream, 0.0)
            outputs = []
            for x in what:
                state = advance(state, x)
                outputs.append(state)
            states[stream], found[offset] = state, outputs
    return found


@settings(deadline=None)
@given(records=stories, cuts=st.lists(st.integers(1, 15), max_size=5), limits=bounds, seed=st.integers(0, 1_000))
def test_a_record_runs_whole_or_not_at_all_also_after_crashes(
    records: list[Record], cuts: list[int], limits: dict[str, int], seed: int
) -> None:
    """At each cut the epoch is committed, or lost with the process; who comes next replays from the changelog."""
    rng, log = random.Random(seed), Changelog()
    model: Any = ChainModel(steps="many")
    found: dict[int, list[float] | None] = {}

    def fresh() -> Any:
        return make_processor([("chain", model, None)], checkpoint_interval_ms=10, **limits)

    processor = fresh()
    begin(processor)
    now, at = 0, 0
    edges = [last for _, last in pieces(records, cuts)]
    while at < len(records):
        last = next(edge for edge in edges if edge > at)
        settle(processor, batch_of(records[at:last], at))
        now += rng.choice([1, 30])
        if rng.random() < 0.4:  # dies before the commit
            processor = fresh()
            if log.progress is None:
                begin(processor)
                at = 0
                continue
            at = log.recover(processor, rng).next_offset
            continue
        live_from = processor.partitions[0].live_from
        epoch = processor.seal(now, 200)
        at = last
        if epoch is None:
            continue
        for answers in epoch.answers:
            assert isinstance(answers, StepAnswers)
            for row, source in enumerate(answers.sources):
                assert source not in found, "answered twice"
                assert source >= live_from
                found[source] = answers.row(row)[2][0][:, 0].tolist()
        for reject in epoch.rejects:
            assert reject.offset not in found
            found[reject.offset] = None
        encoded(processor, epoch)
        log.commit(epoch)
        processor.committed(epoch, {})
    assert found == by_definition(records)
