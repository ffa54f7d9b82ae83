"""The HTTP server: health that follows the loop, JSON, a page without external resources."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from streamer.cli import app
from streamer.errors import ConfigurationError, KafkaUnavailableError
from streamer.observe.http import HttpServer
from streamer.observe.telemetry import Telemetry


def lookup(key: bytes) -> dict[str, Any] | None:
    if key == b"slow":
        raise TimeoutError
    return {"stream": key.decode()} if key in ("größe/1".encode(), "\ufffd".encode()) else None


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry([("lstm", "1", "ab" * 32)], "0")


@pytest.fixture
def url(telemetry: Telemetry) -> Iterator[str]:
    with HttpServer("127.0.0.1", 0, telemetry, stuck_after_s=30, stream=lookup) as server:
        yield server.url


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_livez_follows_the_loop(url: str, telemetry: Telemetry) -> None:
    assert get(f"{url}/livez") == (200, "ok\n")
    telemetry.beat_at = time.monotonic() - 31
    code, text = get(f"{url}/livez")
    assert code == 503
    assert "silent" in text


def test_readyz_waits_for_partitions_and_ends_with_the_drain(url: str, telemetry: Telemetry) -> None:
    assert get(f"{url}/readyz")[0] == 503
    telemetry.recovered([0], [], 0.1)
    assert get(f"{url}/readyz")[0] == 200
    telemetry.state.draining = True
    assert get(f"{url}/readyz") == (503, "draining\n")


def test_readyz_tells_what_keeps_it_from_working(url: str, telemetry: Telemetry) -> None:
    telemetry.recovered([0], [], 0.1)
    telemetry.failed(KafkaUnavailableError("too few replicas"))
    code, text = get(f"{url}/readyz")
    assert code == 503
    assert re.fullmatch(r"Kafka cannot be used for \d+\.\d s: too few replicas\n", text)
    telemetry.recovered([0], [], 0.1)
    assert get(f"{url}/readyz")[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/", "/metrics", "/livez", "/readyz", "/status", "/streams/gr%C3%B6%C3%9Fe%2F1", "/streams/slow", "/nowhere"],
)
def test_head_is_get_without_a_body(url: str, path: str) -> None:
    answers = {}
    for method in ("HEAD", "GET"):
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
        connection.request(method, path)
        answer = connection.getresponse()
        answers[method] = answer.status, answer.headers["Content-Type"], answer.headers["Content-Length"]
        body = answer.read()
        assert (body == b"") is (method == "HEAD")
        connection.close()
    if path in ("/metrics", "/status"):  # lengths change with the time
        answers = {method: found[:2] for method, found in answers.items()}
    assert answers["HEAD"] == answers["GET"]


def test_metrics_and_status(url: str) -> None:
    assert "streamer_predictions_total 0.0" in get(f"{url}/metrics")[1]
    status = json.loads(get(f"{url}/status")[1])
    assert status["health"] == "starting"
    assert status["models"] == [{"name": "lstm", "version": "1", "sha256": "ab" * 32}]


def test_streams_are_found_by_their_key(url: str) -> None:
    assert get(f"{url}/streams/gr%C3%B6%C3%9Fe%2F1") == (200, '{"stream": "gr\\u00f6\\u00dfe/1"}')
    assert get(f"{url}/streams/other") == (404, '{"error": "stream \'other\' has no state in this instance"}')
    assert get(f"{url}/streams/slow")[0] == 503


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("größe/1".encode(), 200),
        ("größe%2F1".encode(), 200),
        (b"gr\xc3%b6%C3\x9fe/1?x", 200),
        ("größe/1".encode("latin-1"), 404),
        (b"\xff", 404),
        (b"%ff", 404),
        (b"%EF%BF%BD", 200),
    ],
)
def test_a_key_may_come_in_plain_bytes(url: str, path: bytes, code: int) -> None:
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"GET /streams/" + path + b" HTTP/1.0\r\n\r\n")
        head, _, body = b"".join(iter(lambda: connection.recv(4096), b"")).partition(b"\r\n\r\n")
    assert int(head.split()[1]) == code
    assert json.loads(body)["stream" if code == 200 else "error"]


@pytest.mark.parametrize("command", ["show", "reset", "end", "generate"])
def test_a_stream_that_no_key_can_have_is_one_sentence(command: str) -> None:
    """Bytes of a command line that are no UTF-8 come as halves of surrogates."""
    done = CliRunner().invoke(app, ["stream", command, "gr\udcf6\udcdfe"])
    assert (done.exit_code, type(done.exception)) == (2, SystemExit)
    assert "is not UTF-8" in done.output


def test_the_page_needs_nothing_from_elsewhere(url: str) -> None:
    code, page = get(f"{url}/")
    assert code == 200
    assert re.findall(r"https?://|src=|<link", page) == []


def test_a_taken_port_is_one_sentence(url: str, telemetry: Telemetry) -> None:
    port = int(url.rpartition(":")[2])
    with pytest.raises(ConfigurationError, match=r"http\.port"):
        HttpServer("127.0.0.1", port, telemetry, stuck_after_s=30, stream=lookup)


def test_a_stuck_loop_is_told_by_the_status_too(url: str, telemetry: Telemetry) -> None:
    telemetry.assigned([0])
    telemetry.beat_at = time.monotonic() - 31
    status = json.loads(get(f"{url}/status")[1])
    assert status["health"] == "stuck"
    assert status["stuck_s"] >= 31
    assert status["partitions"] == {"0": {"state": "stuck"}}, "the table agrees with the headline"


def test_only_the_pages_own_script_and_style_may_run(url: str) -> None:
    with urllib.request.urlopen(f"{url}/", timeout=10) as answer:
        policy, page = answer.headers["Content-Security-Policy"], answer.read().decode()
    for kind in ("script", "style"):
        (inside,) = re.findall(f"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
