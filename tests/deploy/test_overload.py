"""Twice the load that the service can take, for three minutes: memory stays bounded, everyone can see it, nothing is lost."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from observing import Process, Prometheus, eventually, get, process, prometheus, serving

from streamer.modelfile.model import Model

pytestmark = [pytest.mark.accept, pytest.mark.alone, pytest.mark.slow]

FEATURES, STREAMS, PARTITIONS, ROWS = 16, 1_000, 4, 512
WANTED_US = 85.0
"""Of the model, per event: with everything else, about 10,000 events per second on one core"""
OVERLOAD_S = 180
MEMORY_BYTES = 150e6
"""What overload may add: fetch buffers and one poll of events, at most"""


def network(folder: Path, hidden: int) -> Path:
    pytest.importorskip("onnx")
    from onnx import helper
    from onnx_models import graph_model, lstm_fields, save

    random = np.random.default_rng(0)
    weights = {
        "W": (random.normal(size=(1, 4 * hidden, FEATURES)) * 0.1).astype(np.float32),
        "R": (random.normal(size=(1, 4 * hidden, hidden)) / hidden**0.5 * 0.5).astype(np.float32),
        "axes": np.array([2]),
    }
    model = graph_model(
        [
            helper.make_node("Transpose", ["x"], ["xt"], perm=[1, 0, 2]),
            helper.make_node(
                "LSTM", ["xt", "W", "R", "", "lengths", "h", "c"], ["yd", "h_next", "c_next"], hidden_size=hidden
            ),
            helper.make_node("Squeeze", ["yd", "one"], ["ys"]),
            helper.make_node("Transpose", ["ys"], ["yt"], perm=[1, 0, 2]),
            helper.make_node("ReduceMean", ["yt", "axes"], ["y"], keepdims=1),
        ],
        [("x", ["batch", "time", FEATURES]), ("lengths", ["batch"], 6), *((s, [1, "batch", hidden]) for s in "hc")],
        [("y", ["batch", "time", 1]), *((f"{s}_next", [1, "batch", hidden]) for s in "hc")],
        {**weights, "one": np.array([1])},
    )
    fields = lstm_fields(FEATURES, hidden, outputs=[{"name": "y", "shape": ["batch", "time", 1], "kind": "score"}])
    return save(model, folder / f"lstm-{hidden}.onnx", fields)


def microseconds(path: Path) -> float:
    """Per event, in full batches of one step; the best of some, since others use this machine too."""
    model = Model.load(path)
    x, lengths, states = np.ones((ROWS, 1, FEATURES), np.float32), np.ones(ROWS, np.int32), model.initial_states(ROWS)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        model.run(x, lengths, states)
        best = min(best, time.perf_counter() - began)
    return best / ROWS * 1e6


def slow_model(folder: Path) -> Path:
    """The network whose cost is nearest to what is wanted, on this machine."""
    candidates = [network(folder, hidden) for hidden in (256, 384, 512, 640, 768, 896, 1024, 1280, 1536)]
    return min(candidates, key=lambda path: abs(microseconds(path) - WANTED_US))


def load(bootstrap: str, topic: str, *options: str) -> list[str]:
    return [
        sys.executable, "-m", "streamer.cli", "produce", "--bootstrap", bootstrap, "--topic", topic, "--format", "float32",
        "--features", str(FEATURES), "--streams", str(STREAMS), "--json", *options,
    ]  # fmt: skip


def sent(found: Process) -> dict[str, Any]:
    """The summary of a load that has ended."""
    assert found.child.wait(900) == 0, found.log.read_text()
    return json.loads(found.log.read_text().splitlines()[-1])


def settings_file(folder: Path, bootstrap: str, topic: str, model: Path) -> Path:
    path = folder / f"{topic}.toml"
    path.write_text(f"""
[kafka]
bootstrap = "{bootstrap}"
group = "{topic}.group"
[input]
topic = "{topic}"
format = "float32"
[output]
topic = "{topic}.out"
[batch]
max_rows = {ROWS}
max_poll_records = 2048
[model.slow]
path = "{model}"
""")
    return path


def metric(service: Process, name: str) -> float:
    _, body = get(f"{service.url}/metrics")
    return sum(float(line.rsplit(" ", 1)[1]) for line in body.splitlines() if line.startswith(name))


def saturation(kafka: str, topic: str, folder: Path, model: Path) -> float:
    """Events per second while there is a backlog."""
    with process(load(kafka, topic, "--rate", "0", "--events", "150000"), folder / "backlog.log") as found:
        sent(found)
    with serving(settings_file(folder, kafka, topic, model), folder / "saturation.log") as service:
        eventually("the first predictions", lambda: metric(service, "streamer_predictions_total") > 10_000)
        began, first = time.monotonic(), metric(service, "streamer_predictions_total")
        eventually("most predictions", lambda: metric(service, "streamer_predictions_total") > 120_000)
        rate = (metric(service, "streamer_predictions_total") - first) / (time.monotonic() - began)
        assert service.stop() == 0
    return rate


async def sources(bootstrap: str, topic: str) -> tuple[int, int]:
    """(different input records that were answered, answers too many), read committed to the end."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, isolation_level="read_committed", auto_offset_reset="earliest"
    )
    await consumer.start()
    answered = [np.zeros(4_000_000, np.int8) for _ in range(PARTITIONS)]
    try:
        tps = [TopicPartition(topic, part) for part in range(PARTITIONS)]
        consumer.assign(tps)
        ends = await consumer.end_offsets(tps)
        while any([await consumer.position(tp) < ends[tp] for tp in tps]):
            for tp, records in (await consumer.getmany(timeout_ms=500)).items():
                offsets = [int(dict(record.headers)["streamer-source"].rsplit(b"/", 1)[1]) for record in records]
                np.add.at(answered[tp.partition], offsets, 1)
    finally:
        await consumer.stop()
    return int(sum((part > 0).sum() for part in answered)), int(sum(np.maximum(part - 1, 0).sum() for part in answered))


def lag(server: Prometheus) -> float:
    return sum(value for _, value in server.query("streamer:lag_records:sum"))


async def test_twice_the_load_for_three_minutes(
    kafka: str, topic_name, create_topics, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, topic = topic_name("calibration"), topic_name("in")
    await create_topics(kafka, {first: PARTITIONS, topic: PARTITIONS})
    model = slow_model(tmp_path)
    rate = saturation(kafka, first, tmp_path, model)
    report: dict[str, Any] = {"model": model.stem, "saturation_events_per_second": round(rate)}
    assert 2_000 < rate < 20_000, report

    settings = settings_file(tmp_path, kafka, topic, model)
    with serving(settings, tmp_path / "service.log") as service:
        service.answers("/readyz")
        with prometheus(tmp_path, service.url.removeprefix("http://")) as server:
            with process(
                load(kafka, topic, "--rate", f"{rate / 10:.0f}", "--duration-s", "20"), tmp_path / "light.log"
            ) as found:
                events = sent(found)["events"]
            eventually("nothing waits", lambda: lag(server) == 0)
            assert server.firing() == set(), "before the overload"
            memory = metric(service, "process_resident_memory_bytes")

            options = ("--rate", f"{2 * rate:.0f}", "--duration-s", str(OVERLOAD_S))
            with process(load(kafka, topic, *options), tmp_path / "overload.log") as found:
                eventually(
                    "the latency alert fires",
                    lambda: "StreamerLatencyBurnsFast" in server.firing(),
                    deadline_s=OVERLOAD_S,
                )
                summary = sent(found)
            dropped_at = time.monotonic()
            events += summary["events"]
            report["offered_events_per_second"] = summary["events_per_second"]
            report["lag_records_at_the_end"] = round(lag(server))
            code, _ = get(service.url + "/livez")
            assert code == 200

            light = ("--rate", f"{rate / 10:.0f}", "--duration-s", "3600")
            with process(load(kafka, topic, *light), tmp_path / "after.log") as after:
                eventually("the backlog is worked off", lambda: lag(server) < rate / 5, deadline_s=1200)
                report["recovery_seconds"] = round(time.monotonic() - dropped_at, 1)
                recovered = (
                    'sum(rate(streamer_prediction_latency_seconds_bucket{le="0.2"}[10s]))'
                    " / sum(rate(streamer_prediction_latency_seconds_count[10s])) > 0.9"
                )
                eventually("latency is back", lambda: server.query(recovered))
                report["latency_recovery_seconds"] = round(time.monotonic() - dropped_at, 1)
                assert after.stop() in (0, -15)
            range_s = round(time.monotonic() - dropped_at) + OVERLOAD_S
            ((_, peak),) = server.query(f"max_over_time(process_resident_memory_bytes{{job='streamer'}}[{range_s}s])")
            ((_, most),) = server.query(f"max_over_time(streamer:lag_records:sum[{range_s}s])")
            report |= {"memory_before": memory, "memory_peak": peak, "lag_peak": most}
            assert service.stop() == 0
    with capsys.disabled():
        print(f"\noverload: {json.dumps(report)}")
    assert summary["events_per_second"] > 1.6 * rate, "the load generator could not send twice the load"
    assert most > 0.3 * OVERLOAD_S * rate, "lag is visible"
    assert peak < memory + MEMORY_BYTES
    in_log = await end_of_log(kafka, topic)
    assert in_log >= events
    answered, repeated = await sources(kafka, f"{topic}.out")
    assert (answered, repeated) == (in_log, 0)


async def end_of_log(bootstrap: str, topic: str) -> int:
    """Records in the input, which is written without transactions."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap)
    await consumer.start()
    try:
        return sum((await consumer.end_offsets([TopicPartition(topic, part) for part in range(PARTITIONS)])).values())
    finally:
        await consumer.stop()
