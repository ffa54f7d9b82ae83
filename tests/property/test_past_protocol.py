"""Features of the past in the processor that ships: records of a log in random fetches, commits, crashes, evictions and
restores, against each stream alone from its first event, without any."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from typing import Any

import msgspec
import numpy as np
import pytest
from durable import Changelog, make_processor, settle
from hypothesis import given, settings
from hypothesis import strategies as st
from pasts import FEATURES, Alone, PastModel, value
from simulated import POISON

from streamer.core import Op, RecordBatch
from streamer.engine.partition import Partition
from streamer.errors import ConfigurationError, DataLossError
from streamer.library import Runner
from streamer.modelfile.carried import Carried
from streamer.modelfile.contract import Contract
from streamer.modelfile.parts import Feedback
from streamer.modelfile.past import Past
from streamer.records.decode import Codec
from streamer.records.exact import Exact
from streamer.records.formats import Fields, as_found
from streamer.windows import WindowRule

STREAMS = "abcd"
TTL_MS = 50_000
BEGIN_MS = 1_760_000_000_000
Event = tuple[float, float | None, int]
Log = list[tuple[str, Event | Op, int]]
"""(stream, event or command, record time)"""


def past_of(model: Any, value_format: str = "json-named") -> Past:
    contract = model.contract
    found = as_found(value_format, contract.feature_tables, Exact(contract.input.dtype), Fields(), several=False)
    past = Past.of(found, contract.input.dtype)
    assert past is not None
    return past


def make_log(rng: random.Random) -> Log:
    now, log = BEGIN_MS, []
    for _ in range(rng.randint(5, 90)):
        now += rng.choice([0, 1, 3_333, 10_000, 40_000])
        stream = rng.choice(STREAMS)
        if rng.random() < 0.08:
            log.append((stream, rng.choice([Op.RESET, Op.END]), now))
            continue
        x = rng.choices([1.0, 2.0, 3.5, POISON], [30, 30, 20, 4])[0]
        kept = rng.choice([None, None, 1.5, 6.0])
        log.append((stream, (x, kept, now - rng.choice([0, 0, 0, 5, 60_000])), now))
    return log


def raw(log: Log, first: int, count: int) -> RecordBatch:
    rows = range(first, min(first + count, len(log)))
    names = {Op.RESET: b"reset", Op.END: b"end"}
    batch = RecordBatch(0, list(rows), [], [], [])
    for row, offset in enumerate(rows):
        stream, what, stamp = log[offset]
        batch.keys.append(stream.encode())
        batch.timestamps_ms.append(stamp)
        batch.values.append(None if isinstance(what, Op) else value(*what))
        if isinstance(what, Op):
            batch.headers[row] = [("streamer-op", names[what])]
    return batch


def expected(log: Log, evictions: list[tuple[int, str]], ttl_ms: int) -> dict[int, float | None]:
    """Offset -> answer; None: refused."""
    gone: dict[int, list[str]] = defaultdict(list)
    for offset, stream in evictions:
        gone[offset].append(stream)
    alone: dict[str, Alone] = defaultdict(Alone)
    newest: dict[str, int] = {}
    found: dict[int, float | None] = {}
    for offset, (stream, what, _) in enumerate(log):
        if isinstance(what, Op):
            alone.pop(stream, None)
            if what is Op.END:
                newest.pop(stream, None)
        else:
            if ttl_ms and what[2] - newest.get(stream, what[2]) > ttl_ms:
                alone.pop(stream, None)
            newest[stream] = max(newest.get(stream, what[2]), what[2])
            found[offset] = alone[stream].event(*what)
        for name in gone[offset]:
            alone.pop(name, None)
            newest.pop(name, None)
    return found


def make(limits: dict[str, Any], model: Any = None) -> tuple[Any, Codec]:
    model = model or PastModel()
    processor = make_processor([("chain", model, None)], pasts={"chain": past_of(model)}, **limits)
    return processor, Codec(model.contract, "json-named")


def run_schedule(seed: int, *, broken: Any = None) -> None:
    rng = random.Random(seed)
    log, changelog, now_ms = make_log(rng), Changelog(), 0
    limits = {
        "max_rows": rng.randint(1, 4),
        "max_steps": rng.choice([1, 3, 8]),
        "max_poll_records": 16,
        "checkpoint_interval_ms": rng.choice([0, 30, 100]),
        "idle_ttl_ms": rng.choice([0, 0, TTL_MS]),
        "max_bytes": rng.choice([1 << 20, 2 * 230, 3 * 230]),
    }
    answered: list[tuple[int, float]] = []
    refused: list[int] = []
    evictions: list[tuple[int, str]] = []

    def recovered(processor: Any) -> Partition:
        partition = changelog.recover(processor, rng)
        if broken is not None:
            broken(processor)
        return partition

    processor, codec = make(limits)
    partition, quiet = recovered(processor), 0
    while (changelog.progress is None or changelog.progress.position < len(log)) or quiet < 3:
        before = partition.next_offset
        for _ in range(rng.randint(1, 3)):
            if len(found := raw(log, partition.next_offset, rng.randint(1, 6))):
                settle(processor, codec.decode(found))
        quiet += partition.next_offset == before
        now_ms += rng.randint(0, 60)
        epoch = processor.seal(now_ms, slice_bytes=rng.choice([0, 100, 1 << 20]))
        died_inside = rng.random() < 0.25
        if epoch is not None and not died_inside:
            for answers in epoch.answers:
                answered += zip(answers.sources, answers.y[0][:, 0].tolist(), strict=True)
            refused += [reject.offset for reject in epoch.rejects]
            evictions += changelog.commit(epoch)
            processor.committed(epoch, {})
        elif epoch is not None and rng.random() < 0.5:
            processor.failed(epoch)
            partition = recovered(processor)
            continue
        if rng.random() < 0.1:
            changelog.compact(rng)
        if died_inside or rng.random() < 0.2:
            processor, codec = make(limits)
            partition, now_ms = recovered(processor), 0
    wanted = expected(log, evictions, limits["idle_ttl_ms"])
    assert sorted(answered) == sorted((at, y) for at, y in wanted.items() if y is not None), seed
    assert sorted(refused) == [at for at, y in wanted.items() if y is None], seed
    slots = processor.lanes.slots
    assert slots.used_bytes <= limits["max_bytes"]


@settings(max_examples=300)
@given(seed=st.integers(0, 2**32))
def test_any_cut_and_any_crash_gives_the_rows_of_each_stream_alone(seed: int) -> None:
    run_schedule(seed)


def _forgets_pasts(processor: Any) -> None:
    for lane in processor.lanes.stepping:
        tensor, initial = lane.arena._tensors[1], lane.carried.initial[1]
        tensor[:] = initial


def _mixes_pasts(processor: Any) -> None:
    for lane in processor.lanes.stepping:
        lane.arena._tensors[1][:] = lane.arena._tensors[1][::-1].copy()


@pytest.mark.parametrize("broken", [_forgets_pasts, _mixes_pasts])
def test_the_oracle_finds_a_past_that_is_not_restored(broken: Any) -> None:
    def search() -> None:
        for seed in range(300):
            run_schedule(seed, broken=broken)

    with pytest.raises(AssertionError):
        search()


def test_another_past_is_another_model() -> None:
    """States are kept for another file only if it keeps the same: another lag is another past."""
    rng = random.Random(1)
    log, changelog = make_log(rng), Changelog()
    processor, codec = make({"max_poll_records": 256})
    changelog.recover(processor, rng)
    settle(processor, codec.decode(raw(log, 0, len(log))))
    epoch = processor.seal(0)
    changelog.commit(epoch)
    deeper = PastModel("cd" * 32, ["x", *[{**each, "lag": 3} if "lag" in each else each for each in FEATURES[1:]]])
    other, _ = make({"max_poll_records": 256, "model_changed": "keep"}, deeper)
    with pytest.raises(
        DataLossError, match=r"keeps h.*past\(float32: newest_ms, x:3, kept:1\).*states are .*x:2, kept:1\)"
    ):
        changelog.recover(other, rng)
    alike, _ = make({"max_poll_records": 256, "model_changed": "keep"}, PastModel("cd" * 32))
    assert changelog.recover(alike, rng).position == len(log)


# the library, windows, generation


def test_the_library_makes_the_past_where_it_is_asked() -> None:
    rng = random.Random(3)
    log = [each for each in make_log(rng) if not isinstance(each[1], Op)]
    gap = float("nan")
    x = [[e[0], 0, e[0], gap if e[1] is None else e[1], e[1] is not None] for _, e, _ in log]  # type: ignore[index]
    keys, times = [each[0] for each in log], [each[1][2] for each in log]  # type: ignore[index]
    wanted = expected(log, [], 0)
    for size in (1, 7, len(log)):
        runner = Runner(PastModel(), past=True)  # type: ignore[arg-type]
        got: dict[int, float] = {}
        for at in range(0, len(log), size):
            answered = runner.feed(keys[at : at + size], x[at : at + size], times[at : at + size])
            got |= {at + row: y for row, y in zip(answered.rows.tolist(), answered.y[:, 0].tolist(), strict=True)}
        assert got == {at: y for at, y in wanted.items() if y is not None}
    with pytest.raises(ValueError, match="x must be finite"):
        Runner(PastModel()).feed(["a"], [[1, 0, 1, gap, 0]], [5])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="x must be finite"):
        Runner(PastModel(), past=True).feed(["a"], [[gap, 0, 1, 1, 0]], [5])  # type: ignore[arg-type]


class WindowPast(PastModel):
    """The same, over windows: the answer is the state after the last event."""

    def __init__(self) -> None:
        super().__init__()
        fields = json.loads(self.contract.dump()) | {"mode": "window"}
        fields["outputs"] = [{"name": "y", "shape": ["batch", 1], "kind": "value", "per": "window"}]
        self.contract = Contract.from_fields(fields)
        self.length_multiple = 1

    def run(self, x: np.ndarray, lengths: np.ndarray, states: Any) -> Any:
        (y,), _ = super().run(x, lengths, states)
        return [y[np.arange(len(x)), lengths - 1]], []


def test_in_a_window_the_past_begins_with_its_first_event() -> None:
    """In the order of event time, whatever the order of the log."""
    model: Any = WindowPast()
    runner = Runner(model, window=WindowRule("count", count=3), past=True)
    times = [3_000, 1_000, 2_500, 9_000, 9_250, 9_500]
    kept = [float("nan"), 2.0, float("nan"), float("nan"), 5.0, float("nan")]
    x = [[float(at), 0, float(at), k, k == k] for at, k in enumerate(kept)]  # noqa: PLR0124
    answered = runner.feed(["a"] * 6, x, times)
    wanted = []
    for rows in ([1, 2, 0], [3, 4, 5]):
        alone = Alone()
        for row in rows:
            last = alone.event(float(row), None if np.isnan(kept[row]) else kept[row], times[row])
        wanted.append([last])
    assert [y.tolist() for y in answered.y] == wanted


def test_a_model_that_generates_has_no_past() -> None:
    model: Any = PastModel()
    model.contract = msgspec.structs.replace(model.contract, feedback=Feedback("y"))
    with pytest.raises(ConfigurationError, match=r"generates \(feedback\), and has features that are made from"):
        Carried(model, past_of(model))
    assert Carried(model).bytes_per_stream == 8
