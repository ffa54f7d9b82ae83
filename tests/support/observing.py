"""A real Prometheus that scrapes services of a test, with the rules that are shipped; and ``streamer`` as a process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from tooling import require_tool

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 90.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(what: str, look: Callable[[], Any], *, deadline_s: float = DEADLINE_S) -> Any:
    """The first true answer of ``look``; an assertion that tells the last one when there is none in time."""
    deadline, found = time.monotonic() + deadline_s, None
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {deadline_s:.0f} s; the last answer was {found!r}")


def get(url: str) -> tuple[int, str]:
    """Status and body; (0, reason) when nobody listens."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


class Process:
    """A program whose output goes to a file. ``url``: where it serves HTTP, if it does."""

    def __init__(self, command: Sequence[str | os.PathLike[str]], log: Path, url: str = "", **options: Any) -> None:
        self.log, self.url = log, url
        with log.open("wb") as file:
            self.child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, **options)

    def answers(self, path: str, status: int = 200) -> str:
        """The body, as soon as the answer has this status."""

        def look() -> str | None:
            assert self.child.poll() is None, f"it ended with {self.child.returncode}:\n{self.log.read_text()[-4000:]}"
            code, body = get(self.url + path)
            return body or " " if code == status else None

        return str(eventually(f"{self.url}{path} answers {status}", look))

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.child.poll() is None:
            self.child.send_signal(number)
        return self.child.wait(60)


@contextlib.contextmanager
def process(command: Sequence[str | os.PathLike[str]], log: Path, url: str = "", **options: Any) -> Iterator[Process]:
    """Gone at the end, however the test ended."""
    found = Process(command, log, url, **options)
    try:
        yield found
    finally:
        if found.child.poll() is None:
            found.child.kill()
        found.child.wait()


@contextlib.contextmanager
def serving(settings: Path, log: Path, *overrides: str) -> Iterator[Process]:
    """``streamer run`` on a port of its own."""
    port = free_port()
    command = [sys.executable, "-m", "streamer.cli", "run", "-c", settings, "--set", f"http.port={port}"]
    for override in overrides:
        command += ["--set", override]
    with process(command, log, f"http://127.0.0.1:{port}") as found:
        yield found


class Prometheus:
    """Asks a running Prometheus. AssertionError for a query that it refuses."""

    def __init__(self, url: str) -> None:
        self.url = url

    def api(self, path: str, **arguments: str) -> Any:
        code, body = get(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(arguments)}")
        assert code == 200, f"{arguments}: {body}"
        return json.loads(body)["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """(labels, value) of an instant query, without values that are not a number."""
        found = self.api("query", query=expression)["result"]
        if not isinstance(found, list) or not found or not isinstance(found[0], dict):
            return []
        return [(each["metric"], float(each["value"][1])) for each in found if each["value"][1] != "NaN"]

    def firing(self) -> set[str]:
        return {alert["labels"]["alertname"] for alert in self.api("alerts")["alerts"] if alert["state"] == "firing"}


@contextlib.contextmanager
def prometheus(folder: Path, *targets: str) -> Iterator[Prometheus]:
    """The configuration of ``deploy/prometheus`` with the targets (HOST:PORT) in place of a name, scraped every second."""
    (program,) = require_tool("prometheus")
    shipped = ROOT / "deploy" / "prometheus"
    document = yaml.safe_load((shipped / "prometheus.yml").read_text())
    document["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    document["rule_files"] = [str(shipped / name) for name in document["rule_files"]]
    (job,) = document["scrape_configs"]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": list(targets)}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(document))
    port = free_port()
    command = [
        program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
    ]  # fmt: skip
    with process(command, folder / "prometheus.log", f"http://127.0.0.1:{port}") as found:
        found.answers("/-/ready")
        yield Prometheus(found.url)
