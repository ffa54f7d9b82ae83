"""SIGTERM and Ctrl-C whenever they come: while the process loads, while Kafka does not answer, twice, in a hail."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from onnx_models import lstm, lstm_fields, save
from serving import event, produce, read_all

FEATURES = 3
PATIENCE_S = 60


def settings_file(folder: Path, bootstrap: str, topic: str) -> Path:
    save(lstm(FEATURES), folder / "model.onnx", lstm_fields(FEATURES))
    path = folder / "settings.toml"
    path.write_text(
        f"""
[kafka]
bootstrap = "{bootstrap}"
group = "{topic}.group"
connect_timeout_ms = 600000
[input]
topic = "{topic}"
[output]
topic = "{topic}.out"
[http]
port = 0
[model.lstm]
path = "model.onnx"
"""
    )
    return path


@contextlib.contextmanager
def command(folder: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STREAMER_")}
    with (folder / "stderr").open("wb") as errors:
        child = subprocess.Popen([sys.executable, "-m", "streamer", *words], env=environment, stderr=errors)
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()


def caught(child: subprocess.Popen[bytes], number: int) -> bool:
    """The process has a handler of its own for the signal."""
    lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
    mask = int(next(line for line in lines if line.startswith("SigCgt")).split()[1], 16)
    return bool(mask >> (number - 1) & 1)


def until(child: subprocess.Popen[bytes], number: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not caught(child, number):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_still_loads_leaves_with_zero(tmp_path: Path, number: signal.Signals) -> None:
    config = settings_file(tmp_path, "127.0.0.1:9", "in")
    with command(tmp_path, "run", "-c", str(config)) as child:
        until(child, signal.SIGTERM)
        until(child, number)
        child.send_signal(number)
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE_S) == 0
    assert "Traceback" not in (tmp_path / "stderr").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_waits_for_kafka_leaves_with_zero(tmp_path: Path, number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(PATIENCE_S)
        config = settings_file(tmp_path, f"127.0.0.1:{silent.getsockname()[1]}", "in")
        with command(tmp_path, "run", "-c", str(config)) as child:
            asked, _ = silent.accept()
            with asked:
                assert asked.recv(4), "it asks, and gets no answer"
                child.send_signal(number)
                assert child.wait(PATIENCE_S) == 0
    errors = (tmp_path / "stderr").read_text()
    assert "Traceback" not in errors
    assert "Unclosed" not in errors


@pytest.mark.parametrize("after_s", [0.0, 0.2, 0.5, 1.0, 1.5, 2.0])
def test_whenever_the_signal_comes_at_start_the_code_is_zero(tmp_path: Path, after_s: float) -> None:
    """Wherever in its start these moments find the process: there is none at which it may end otherwise."""
    config = settings_file(tmp_path, "127.0.0.1:9", "in")
    with command(tmp_path, "run", "-c", str(config)) as child:
        until(child, signal.SIGTERM)
        time.sleep(after_s)
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE_S) == 0


async def test_a_hail_of_signals_while_it_serves_drains_once(tmp_path: Path, kafka, topic_name, create_topics) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 2})
    config = settings_file(tmp_path, kafka, topic)
    rows = [(n % 2, b"s%d" % (n % 6), event([n / 10] * FEATURES), []) for n in range(300)]
    await produce(kafka, topic, rows)
    with command(tmp_path, "run", "-c", str(config)) as child:
        await read_all(
            kafka, f"{topic}.out", at_least=300, alive=lambda: None if child.poll() is None else child.wait()
        )

        def hail() -> None:
            while child.poll() is None:
                child.send_signal(signal.SIGTERM)

        thread = threading.Thread(target=hail)
        thread.start()
        thread.join(PATIENCE_S)
        assert child.wait(1) == 0, (tmp_path / "stderr").read_text()
    assert "Traceback" not in (tmp_path / "stderr").read_text()
    assert len(await read_all(kafka, f"{topic}.out", at_least=300)) == 300


def test_ctrl_c_of_another_command_is_130_without_a_traceback(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(PATIENCE_S)
        config = settings_file(tmp_path, f"127.0.0.1:{silent.getsockname()[1]}", "in")
        with command(tmp_path, "check", "-c", str(config)) as child:
            asked, _ = silent.accept()
            with asked:
                child.send_signal(signal.SIGINT)
                assert child.wait(PATIENCE_S) == 130
    assert "Traceback" not in (tmp_path / "stderr").read_text()


def test_sigterm_of_another_command_is_no_success(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(PATIENCE_S)
        config = settings_file(tmp_path, f"127.0.0.1:{silent.getsockname()[1]}", "in")
        with command(tmp_path, "check", "-c", str(config)) as child:
            asked, _ = silent.accept()
            with asked:
                child.send_signal(signal.SIGTERM)
                assert child.wait(PATIENCE_S) == -signal.SIGTERM
