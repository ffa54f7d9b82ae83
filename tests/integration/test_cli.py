"""``streamer run`` as its own process: kill -9 and restart, SIGTERM under load, one clear error and the right exit code."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from onnx_models import lstm, lstm_fields, save
from serving import event, produce, read_all

from streamer import __version__
from streamer.modelfile.model import Model

COMMAND = [sys.executable, "-m", "streamer.cli"]
STREAMS, PARTITIONS, FEATURES = 12, 2, 3


def settings_file(folder: Path, bootstrap: str, topic: str, group: str) -> Path:
    if not (folder / "model.onnx").exists():
        save(lstm(FEATURES), folder / "model.onnx", lstm_fields(FEATURES))
    path = folder / "settings.toml"
    path.write_text(
        f"""
[kafka]
bootstrap = "{bootstrap}"
group = "{group}"
session_timeout_ms = 6000
connect_timeout_ms = 5000
[input]
topic = "{topic}"
[output]
topic = "{topic}.out"
[delivery]
checkpoint_interval_ms = 300
[model.lstm]
path = "model.onnx"
"""
    )
    return path


@contextmanager
def process(config: Path) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], None]]]:
    """The service, and a check that it still runs: what it logged is the reason if not."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STREAMER_")}
    log = config.with_suffix(f".{uuid.uuid4().hex[:8]}.log")
    with log.open("wb") as file:
        child = subprocess.Popen([*COMMAND, "run", "-c", str(config)], env=environment, stderr=file)

    def alive() -> None:
        assert child.poll() is None, log.read_text()

    try:
        yield child, alive
    except TimeoutError as error:
        raise AssertionError(f"no answers in time; the service said:\n{log.read_text()}") from error
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()


def features(index: int) -> list[float]:
    return np.random.default_rng(index).normal(size=FEATURES).astype(np.float32).tolist()


def rows(first: int, count: int):
    for index in range(first, first + count):
        stream = index % STREAMS
        yield stream % PARTITIONS, b"s%d" % stream, event(features(index)), []


def offline(path: Path, count: int) -> dict[bytes, list[list[float]]]:
    """Every stream alone, whole sequence in one call: no batches, no restarts."""
    model = Model.load(path)
    outputs = {}
    for stream in range(STREAMS):
        x = np.array([[features(index) for index in range(stream, count, STREAMS)]], np.float32)
        lengths = np.array([x.shape[1]], np.int32)
        (y, *_), _ = model.run(x, lengths, model.initial_states(1))
        outputs[b"s%d" % stream] = y[0].tolist()
    return outputs


async def test_killed_processes_lose_and_repeat_nothing(kafka, topic_name, create_topics, tmp_path) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: PARTITIONS, f"{topic}.out": PARTITIONS})
    config = settings_file(tmp_path, kafka, topic, topic_name("group"))
    for part in range(3):
        await produce(kafka, topic, rows(part * 600, 600))
        with process(config) as (child, alive):
            await read_all(kafka, f"{topic}.out", at_least=part * 600 + 200, alive=alive)
            child.send_signal(signal.SIGKILL)
    with process(config) as (child, alive):
        await produce(kafka, topic, rows(1800, 120))  # the signal must find a process that serves
        found = await read_all(kafka, f"{topic}.out", at_least=1920, alive=alive)
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 0
    counts = Counter(read.source for read in found)
    assert set(counts.values()) == {1}
    assert len(found) == 1920
    got = defaultdict(list)
    for read in sorted(found, key=lambda read: (read.partition, read.offset)):
        y = read.document["y"]
        got[read.key].append(y if isinstance(y, list) else [y])
    expected = offline(tmp_path / "model.onnx", 1920)
    assert {key: np.float32(value).tolist() for key, value in got.items()} == expected


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"kafka.bootstrap": "127.0.0.1:9", "kafka.connect_timeout_ms": "600"}, 4, "no broker answers"),
        ({"input.topic": "nowhere"}, 4, "does not exist"),
        ({"kafka.nonsense": "1"}, 2, "unknown key"),
        ({"delivery.mode": "sometimes", "batch.max_rows": "0"}, 2, "batch.max_rows"),
        ({"model.lstm.sha256": "0" * 64}, 3, "sha256"),
        ({"model.lstm.path": "absent.onnx"}, 3, "absent.onnx"),
    ],
)
def test_each_mistake_is_one_sentence_and_an_exit_code(kafka, topic_name, tmp_path, change, code, says) -> None:
    config = settings_file(tmp_path, kafka, topic_name("in"), "g")
    flags = [part for key, value in change.items() for part in ("--set", f"{key}={value}")]
    done = subprocess.run([*COMMAND, "run", "-c", str(config), *flags], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_inspect_tells_what_the_file_declares(tmp_path) -> None:
    save(lstm(FEATURES), tmp_path / "model.onnx", lstm_fields(FEATURES))
    done = subprocess.run(
        [*COMMAND, "inspect", str(tmp_path / "model.onnx"), "--json"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert '"state_bytes_per_stream": 32' in done.stdout


async def test_records_of_ten_megabytes_are_refused_and_the_rest_goes_on(
    kafka, topic_name, create_topics, tmp_path
) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: PARTITIONS}, {"max.message.bytes": "12000000"})
    config = settings_file(tmp_path, kafka, topic, topic_name("group"))
    huge = (0, b"s0", b"9" * 10_000_000, [])
    await produce(kafka, topic, [*rows(0, 24), huge, *rows(24, 24), huge, *rows(48, 24)])
    with process(config) as (child, alive):
        found = await read_all(kafka, f"{topic}.out", at_least=72, alive=alive)
        refused = await read_all(kafka, f"{topic}.dlq", at_least=2, alive=alive)
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 0
    assert len(found) == 72
    assert [read.headers["streamer-error"] for read in refused] == [b"too_large"] * 2
    assert all(read.headers["streamer-truncated"] == b"10000000" for read in refused)


def test_a_model_that_lies_about_its_shapes_is_refused_before_kafka_is_joined(tmp_path) -> None:
    save(lstm(FEATURES), tmp_path / "model.onnx", lstm_fields(FEATURES, hidden=5))
    config = settings_file(tmp_path, "127.0.0.1:9", "in", "g")
    done = subprocess.run([*COMMAND, "run", "-c", str(config)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3, done.stderr
    assert "h" in done.stderr
    assert "Traceback" not in done.stderr


def test_inspect_is_readable_and_version_and_mistyped_commands_are_told(tmp_path) -> None:
    save(lstm(FEATURES), tmp_path / "model.onnx", lstm_fields(FEATURES))

    def streamer(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*COMMAND, *words], cwd=tmp_path, capture_output=True, text=True, timeout=60)

    done = streamer("inspect", "model.onnx")
    assert done.returncode == 0, done.stderr
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert max(map(len, lines)) <= 80
    assert re.search(r"^state_bytes_per_stream +32 *$", done.stdout, re.M)
    assert "[batch, time, 3]" in done.stdout, "brackets are no markup"
    costs = re.findall(r"^us per event, (\d+) rows +([\d.e+]+) *$", done.stdout, re.M)
    assert [int(rows) for rows, _ in costs] == [1, 16, 64, 256]
    assert all(len(cost.replace(".", "").lstrip("0")) <= 3 or "e" in cost for _, cost in costs)
    assert re.search(r"^ok +batch_independence ", done.stdout, re.M)
    done = streamer("--version")
    assert (done.returncode, done.stdout) == (0, f"streamer {__version__}\n")
    done = streamer("inspct", "model.onnx")
    assert done.returncode == 2
    assert "Did you mean 'inspect'?" in done.stderr
