"""``streamer`` as its own process, with everything that it emits kept."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

COMMAND = [sys.executable, "-m", "streamer.cli"]
T = TypeVar("T")


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours without settings of the service, plus ``extra``."""
    return {name: value for name, value in os.environ.items() if not name.startswith("STREAMER_")} | dict(extra or {})


def streamer(*arguments: str, extra: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return subprocess.run([*COMMAND, *arguments], env=environment(extra), capture_output=True, text=True, timeout=120)


def until(condition: Callable[[], T], what: str, seconds: float = 60) -> T:
    """The first true answer; fails with ``what`` when it takes too long."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not in {seconds:.0f} s: {what}"
        time.sleep(0.05)


class Running:
    """``streamer run``; its logs go to a file."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self._log = process, log

    def log(self) -> str:
        return self._log.read_text()

    def lines(self, event: str) -> list[dict[str, Any]]:
        """The log's lines of one event."""
        documents = (json.loads(line) for line in self.log().splitlines() if line.startswith("{"))
        return [document for document in documents if document["event"] == event]

    @property
    def url(self) -> str:
        """Where it serves metrics and status; waits for it."""
        found = until(lambda: self._ended() or re.search(r"http://127\.0\.0\.1:\d+", self.log()), "the HTTP address")
        return found[0]

    def _ended(self) -> None:
        assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.log()}"

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as answer:
            return answer.read().decode()

    def status(self) -> dict[str, Any]:
        return json.loads(self.get("/status"))

    def wait_for(self, condition: Callable[[dict[str, Any]], Any], what: str, seconds: float = 60) -> dict[str, Any]:
        """The first status for which ``condition`` holds."""

        seen: list[dict[str, Any]] = []

        def look() -> dict[str, Any] | None:
            self._ended()
            seen[:] = [self.status()]
            return seen[0] if condition(seen[0]) else None

        try:
            return until(look, what, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; last: {seen}\n{self.log()[-4000:]}") from None

    def arguments(self) -> str:
        """What every user of the machine can read of the process."""
        return Path(f"/proc/{self.process.pid}/cmdline").read_bytes().decode()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends the signal; the exit status."""
        self.process.send_signal(number)
        return self.process.wait(60)


@contextlib.contextmanager
def running(folder: Path, *arguments: str, extra: Mapping[str, str] | None = None) -> Iterator[Running]:
    """``streamer run`` with arguments; killed at the end if it still runs."""
    log = folder / f"run-{len(list(folder.glob('run-*')))}.log"
    with log.open("wb") as file:
        process = subprocess.Popen([*COMMAND, "run", *arguments], env=environment(extra), stdout=file, stderr=file)
    try:
        yield Running(process, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def flags(settings: Mapping[str, object]) -> Sequence[str]:
    """``--set`` arguments."""
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
