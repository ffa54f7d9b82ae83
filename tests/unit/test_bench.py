"""What the bench sends and compares with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoding import contract, records

from streamer.modelfile.model import Model
from streamer.records.decode import Codec
from streamer.records.formats import Source
from streamer.tools.bench import MODEL, Bench, Options, typical_latency, windows
from streamer.tools.bench.load import FORMATS, POOL, Plan, _rows, avro_schema
from streamer.tools.bench.naive import decoder_of
from streamer.tools.bench.reference import bilstm_last, lstm_outputs
from streamer.tools.demo_tally import roc_auc

NAMES = ("x0", "x1", "x2")


def codec(value_format: str) -> Codec:
    source = Source(None, avro_schema(NAMES)) if value_format == "avro" else None
    return Codec(contract(NAMES), value_format, source=source)


@pytest.mark.parametrize("value_format", FORMATS)
def test_values_carry_the_pool_in_every_format_to_the_service_and_to_the_naive_loop(
    tmp_path: Path, value_format: str
) -> None:
    plan = Plan(100, features=3, format=value_format, names=NAMES)
    batch = codec(value_format).decode(records(plan.values()))
    assert np.array_equal(batch.x, plan.pool())
    schema = tmp_path / "schema.avsc"
    schema.write_bytes(avro_schema(NAMES))
    decode = decoder_of(value_format, list(NAMES), str(schema))
    assert np.array_equal([decode(value) for value in plan.values()[:50]], plan.pool()[:50])


def test_sequences_are_what_was_sent() -> None:
    plan = Plan(30_000, streams=7, features=2)
    streams = plan.streams_of()
    assert sum(len(plan.sequence(stream, streams)) for stream in range(7)) == 30_000
    third = np.flatnonzero(streams == 3)
    assert np.array_equal(plan.sequence(3, streams)[-1], plan.pool()[third[-1] % POOL])


@pytest.mark.parametrize("value_format", FORMATS)
def test_broken_records_lie_where_no_answer_is_due(value_format: str) -> None:
    plan = Plan(1_000, streams=7, partitions=3, features=3, format=value_format, broken_every=7, names=NAMES)
    sent: list[list[bytes]] = [[], [], []]
    for value, _, partition, _ in _rows(plan):
        sent[partition].append(value)
    reading = codec(value_format)
    for values, due in zip(sent, plan.due(), strict=True):
        batch = reading.decode(records(values))
        assert batch.offsets.tolist() == np.flatnonzero(due).tolist()
        assert sorted(reject.offset for reject in batch.rejects) == np.flatnonzero(~due).tolist()
    assert sum(map(len, sent)) == 1_000 + 1_000 // 7
    broken = reading.decode(records(plan.broken()))
    assert not len(broken)
    assert len({reject.reason for reject in broken.rejects}) >= 2


def test_the_reference_is_the_model() -> None:
    x = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
    model = Model.load(MODEL)
    (y,), _ = model.run(x[None], np.array([50], np.int32), model.initial_states(1))
    assert np.abs(lstm_outputs(MODEL.with_name("weights.npz"), x) - y[0]).max() < 1e-6


def test_a_latency_is_the_median_of_its_runs_with_their_spread() -> None:
    runs = [
        {
            "latency_ms": {"rate": 2000, "p50": 20 + n, "p95": 30, "p99": p99, "max": 90 - n},
            "cores_at_rate": 0.3 + n / 100,
        }
        for n, p99 in enumerate((41.0, 250.0, 43.0))
    ]
    found = typical_latency(runs)
    assert found["latency_ms"] == {"rate": 2000, "p50": 21, "p95": 30, "p99": 43.0, "max": 90}
    assert found["latency_spread_ms"]["p99"] == {"min": 41.0, "median": 43.0, "max": 250.0}
    assert found["cores_at_rate"] == pytest.approx(0.31)
    assert found["cores_at_rate_spread"]["max"] == pytest.approx(0.32)


def test_ratios_are_taken_within_each_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is half as fast in the second repeat, and a third in the third: no ratio notices."""
    speed = {("naive", "json"): 10, ("naive", "avro"): 20, ("exactly-once", "json"): 100, ("exactly-once", "avro"): 120}
    asked: list[tuple[str, str]] = []

    def measure(bench: Bench, delivery: str, value_format: str, *load: Any) -> dict[str, Any]:
        repeat = asked.count((delivery, value_format))
        asked.append((delivery, value_format))
        rest = dict.fromkeys(("service", "broker", "rss", "error", "lost", "repeated", "changelog"), 0)
        return {"events_per_second": speed[delivery, value_format] / (repeat + 1), "stages": {}, **rest}

    monkeypatch.setattr(Bench, "_load", lambda bench, *case: case)
    monkeypatch.setattr(Bench, "_measure", measure)
    found = Bench(Options("", repeats=3), str).throughput([("exactly-once", "avro"), ("exactly-once", "json")])
    results = {(each["delivery"], each["format"]): each for each in found}
    avro, json = results["exactly-once", "avro"], results["exactly-once", "json"]
    assert json["events_per_second"]["max"] == 3 * json["events_per_second"]["min"]
    assert list(avro["ratio_to_json"].values()) == pytest.approx([1.2] * 3)
    assert list(avro["ratio_to_naive"].values()) == pytest.approx([6] * 3)
    assert list(json["ratio_to_naive"].values()) == pytest.approx([10] * 3)
    assert "ratio_to_json" not in json
    assert "ratio_to_json" not in results["naive", "avro"]


@pytest.mark.torch
def test_the_reference_is_pytorch() -> None:
    torch = pytest.importorskip("torch")
    weights = MODEL.with_name("weights.npz")
    with np.load(weights) as file:
        named = {name: torch.from_numpy(file[name]) for name in file.files}
    core, head = torch.nn.LSTM(16, 64, batch_first=True), torch.nn.Linear(64, 1)
    core.load_state_dict({name.removeprefix("core."): t for name, t in named.items() if name.startswith("core.")})
    head.load_state_dict({name.removeprefix("head."): t for name, t in named.items() if name.startswith("head.")})
    x = torch.randn(1, 40, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = head(core(x)[0])[0].numpy()
    assert np.abs(lstm_outputs(weights, x[0].numpy()) - expected).max() < 1e-6


@pytest.mark.torch
def test_the_reference_of_windows_is_pytorch() -> None:
    torch = pytest.importorskip("torch")
    weights = windows.MODEL.with_name("weights.npz")
    with np.load(weights) as file:
        named = {name: torch.from_numpy(file[name]) for name in file.files}
    core = torch.nn.LSTM(16, 64, batch_first=True, bidirectional=True)
    core.load_state_dict({name.removeprefix("core."): t for name, t in named.items() if name.startswith("core.")})
    x = torch.randn(1, 40, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = core(x)[0][0]
        expected = torch.cat([y[-1, :64], y[0, 64:]]) @ named["head.weight"].T + named["head.bias"]
    assert np.abs(bilstm_last(weights, x[0].numpy()) - expected.numpy()).max() < 1e-6


def test_the_plan_of_windows_is_what_the_windows_close() -> None:
    plan = windows.WindowPlan(20_000, streams=100)
    polls = windows.closed_by_poll(plan, 10**9)
    sessions = plan.sessions()
    assert len(sessions) == plan.windows
    found = {(int(w.stream[-6:]), w.start_ms // 1_000): w.offsets.tolist() for poll in polls for w in poll}
    assert 0 < plan.windows - len(found) <= 100, "only the last session of each stream may be open"
    assert all(found[name] == sessions[name].tolist() for name in found)
    lengths = plan.lengths
    assert (lengths.min(), lengths.max()) == (windows.SHORTEST, windows.LONGEST)


def test_all_ways_of_calling_the_model_give_the_same_answers() -> None:
    plan, model = windows.WindowPlan(4_000, streams=50), Model.load(windows.MODEL)
    (poll, *_) = windows.closed_by_poll(plan, 100)
    lengths = [len(window.x) for window in poll]
    groups = {name: way(lengths) for name, way in windows.groupings().items()}
    assert all(sorted(np.concatenate(found).tolist()) == list(range(len(poll))) for found in groups.values())
    assert 1 == len(groups["padded"]) < len(groups["buckets"]) < len(groups["one_by_one"])
    first, *others = [windows.call(model, poll, found) for found in groups.values()]
    assert all(np.array_equal(first, other) for other in others), "a row depends on its batch"
    weights = windows.MODEL.with_name("weights.npz")
    assert np.abs(first[0] - bilstm_last(weights, poll[0].x)).max() < 1e-6


def test_roc_auc_counts_ordered_pairs() -> None:
    rng = np.random.default_rng(0)
    positive, score = rng.random(60) < 0.3, rng.integers(0, 9, 60)
    pairs = [(a > b) + 0.5 * (a == b) for a in score[positive] for b in score[~positive]]
    assert roc_auc(positive, score) == pytest.approx(np.mean(pairs))
    assert np.isnan(roc_auc(np.zeros(4, bool), score[:4]))
