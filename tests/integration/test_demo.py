"""``streamer demo`` and ``streamer bench`` as people call them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from streamer.tools.demo import MODEL, WINDOW_MODEL

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "streamer.cli"]


def test_the_demo_loses_nothing_and_finds_the_anomalies() -> None:
    done = subprocess.run(
        [*COMMAND, "demo", "--json", "--seconds", "8"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["lost"] == 0
    assert found["predictions"] == found["events"] == 16_000
    assert found["streams"] == 200
    assert found["auc"] >= 0.95
    # the bidirectional model judged each event in one window, after it was over
    windows = found["windows"]
    assert windows["events_lost"] == 0
    assert windows["events_judged"] == 16_000
    assert windows["auc"] >= 0.98
    assert windows["agreement"] >= 0.95
    assert min(windows["right_at_once"], windows["right_at_end"]) >= 0.95
    assert windows["first_event_to_verdict_ms"]["p50"] > found["latency_ms"]["p50"]
    kept = found["kept_up"]
    assert 0 <= kept["seconds"] <= kept["of_seconds"] == 8
    assert 0 < found["events_per_second"] <= found["offered_per_second"] == 2_000


def test_the_demo_can_be_looked_at_afterwards() -> None:
    command = [*COMMAND, "demo", "--json", "--keep", "--seconds", "4", "--rate", "200", "--streams", "20"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        try:
            assert demo.stdout is not None
            assert demo.stderr is not None
            found = json.loads(demo.stdout.readline())
            assert found["lost"] == 0
            said = ""
            while "Ctrl-C" not in said:
                line = demo.stderr.readline()
                assert line, said
                said += line
            url = found["metrics_url"].removesuffix("/metrics")
            with urllib.request.urlopen(f"{url}/status", timeout=10) as answer:
                assert json.load(answer)["predictions"] >= 800
            demo.send_signal(signal.SIGINT)
            assert demo.wait(60) == 0
        finally:
            demo.kill()


def test_the_bench_verifies_what_it_measures(kafka: str) -> None:
    done = subprocess.run(
        [
            *COMMAND,
            "bench",
            "--events",
            "40000",
            "--streams",
            "500",
            "--repeats",
            "1",
            "--rate-s",
            "3",
            "--format",
            "json",
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "KAFKA_BOOTSTRAP": kafka},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    for result in [*document["results"], document["naive"]]:
        assert result["verified"], result
        assert result["repeated"] == 0
        assert result["latency_ms"]["p50"] > 0
    for result in document["results"]:
        assert result["ratio_to_naive"]["min"] > 0
        assert set(result["stage_us"]) == {"fetch", "decode", "wait", "run", "encode", "commit"}


def bench_windows(kafka: str, events: int, repeats: int) -> dict[str, Any]:
    command = [*COMMAND, "bench", "--windows", "--events", str(events), "--repeats", str(repeats)]
    environment = {**os.environ, "KAFKA_BOOTSTRAP": kafka}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert document["verified"], document["checks"]
    assert document["buffered_bytes_per_event"] <= document["buffered_bytes_limit"] == 1.5 * 16 * 4 + 24
    return document


def test_the_bench_of_windows_verifies_what_it_measures(kafka: str) -> None:
    document = bench_windows(kafka, 30_000, 1)
    for name in ("windows_per_second", "events_per_second", "ratio_to_padded", "ratio_to_one_by_one"):
        assert 0 < document[name]["min"] <= document[name]["median"] <= document[name]["max"]


@pytest.mark.accept
@pytest.mark.alone
def test_buckets_are_worth_their_sorting(kafka: str) -> None:
    document = bench_windows(kafka, 1_000_000, 5)
    print(json.dumps(document))
    assert document["ratio_to_padded"]["median"] >= 1.7


@pytest.mark.torch
@pytest.mark.parametrize(
    ("model", "produced", "figure", "least"),
    [
        (MODEL, ("--events", "60000", "--streams", "200"), "auc", 0.97),
        pytest.param(
            WINDOW_MODEL, ("--events", "400000", "--streams", "1000", "--anomaly-rate", "0.06"), "accuracy", 0.98,
            marks=pytest.mark.accept,
        ),
    ],
)  # fmt: skip
def test_the_demos_models_are_what_their_configurations_train(
    tmp_path: Path, model: Path, produced: tuple[str, ...], figure: str, least: float
) -> None:
    folder = model.parent
    data = tmp_path / "telemetry.csv"
    made = [*COMMAND, "produce", "--out", str(data), *produced, "--seed", "7"]
    subprocess.run(made, check=True, capture_output=True, timeout=120)
    train = [sys.executable, "-m", "export", "train", "--config", str(folder / "train.toml")]
    done = subprocess.run(
        [*train, "--data", str(data), "--out", str(tmp_path / "out"), "--json"],
        capture_output=True,
        text=True,
        timeout=1_200,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    mine = json.loads((tmp_path / "out" / "metrics.json").read_text())
    committed = json.loads((folder / "metrics.json").read_text())
    found = [_find(document, "test")[figure] for document in (mine, committed)]
    assert found[0] == pytest.approx(found[1], abs=0.01)
    assert found[1] >= least


def _find(document: object, name: str) -> dict[str, float]:
    """The first object called ``name`` at any depth."""
    queue = [document]
    while queue:
        each = queue.pop(0)
        if isinstance(each, dict):
            if isinstance(each.get(name), dict):
                return each[name]
            queue += each.values()
        elif isinstance(each, list):
            queue += each
    raise AssertionError(f"no {name!r}")
