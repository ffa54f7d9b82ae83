"""The processes that the bench measures."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from streamer.errors import KafkaUnavailableError

STOP_TIMEOUT_S = 60.0


class Worker:
    """The processes under test, with their log in a file."""

    def __init__(self, commands: Sequence[Sequence[str]], folder: Path) -> None:
        self._logs = [folder / f"worker-{index}.log" for index in range(len(commands))]
        self._children = []
        for command, log in zip(commands, self._logs, strict=True):
            with log.open("wb") as file:
                child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)  # noqa: S603 - our own modules
            self._children.append(child)
        self.pids = [child.pid for child in self._children]

    def alive(self) -> None:
        """Raises KafkaUnavailableError when a process has ended."""
        for child, log in zip(self._children, self._logs, strict=True):
            if child.poll() is not None:
                raise KafkaUnavailableError(
                    f"the process under test ended with {child.returncode}: {log.read_text()[-2000:]}"
                )

    def ready(self, bootstrap: str, target: str) -> None:
        """Returns when every service says that it is live (the naive loop, that says nothing, gets ten seconds)."""
        del bootstrap, target
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            self.alive()
            if all(b"live" in log.read_bytes() for log in self._logs) or deadline - time.monotonic() < 50:
                return
            time.sleep(0.1)

    def metrics(self) -> dict[str, float]:
        """Sums of the services' samples by name and labels; empty for the naive loop."""
        total: dict[str, float] = {}
        for log in self._logs:
            url = next((_url(line) for line in log.read_text().splitlines() if "http://" in line), None)
            if url is None:
                continue
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:  # noqa: S310 - http only, from our own log
                for line in answer.read().decode().splitlines():
                    if line and not line.startswith("#"):
                        name, _, value = line.rpartition(" ")
                        total[name] = total.get(name, 0.0) + float(value)
        return total

    def stop(self) -> None:
        for child in self._children:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        for child in self._children:
            try:
                child.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _url(line: str) -> str:
    rest = line[line.index("http://") :]
    return rest.split('"')[0].split()[0].rstrip("/,").removesuffix("/metrics")
