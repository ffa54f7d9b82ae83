"""``/metrics /livez /readyz /status /streams/KEY`` and ``/``, served by threads outside the event loop, so that a stuck
loop is seen. Loopback unless configured otherwise."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

from prometheus_client import CONTENT_TYPE_LATEST

from streamer.errors import ConfigurationError

PAGE = resources.files("streamer.observe").joinpath("status.html").read_bytes()


def _policy(page: bytes) -> str:
    """The page's own script and style, by their hashes, and its own address: whatever an error text holds, it stays text."""
    rules = ["default-src 'none'", "connect-src 'self'", "base-uri 'none'", "frame-ancestors 'none'"]
    for kind in ("script", "style"):
        (inside,) = re.findall(rb"<%b>(.*?)</%b>" % (kind.encode(), kind.encode()), page, re.DOTALL)
        rules.append(f"{kind}-src 'sha256-{base64.b64encode(hashlib.sha256(inside).digest()).decode()}'")
    return "; ".join(rules)


POLICY = _policy(PAGE)


class Source(Protocol):
    """What is served."""

    beat_at: float
    """Monotonic time of the loop's last sign of life."""

    def metrics(self) -> bytes: ...

    def status(self, stuck_s: float | None = None) -> dict[str, Any]: ...

    def unready(self) -> str | None: ...


class HttpServer:
    """A context manager; ``url`` is where it listens."""

    def __init__(
        self,
        host: str,
        port: int,
        source: Source,
        *,
        stuck_after_s: float,
        stream: Callable[[bytes], dict[str, Any] | None],
    ) -> None:
        """``stream``: summary of one stream's state, None for one that is not here; may take its time, may raise
        TimeoutError. ConfigurationError when the address cannot be listened on."""

        class Handler(_Handler):
            pass

        Handler.source, Handler.stream, Handler.stuck_after_s = source, staticmethod(stream), stuck_after_s
        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise ConfigurationError(
                f"http.host, http.port: cannot listen on {host}:{port}: {error.strerror}"
            ) from error
        self._server.daemon_threads = True
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)

    def __enter__(self) -> HttpServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    source: Source
    stream: Callable[[bytes], dict[str, Any] | None]
    stuck_after_s: float
    timeout = 10
    server_version = "streamer"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._answer(200, self.source.metrics(), CONTENT_TYPE_LATEST)
        elif path == "/livez":
            self._verdict(
                self._silent_s() < self.stuck_after_s, f"the event loop is silent for {self._silent_s():.1f} s"
            )
        elif path == "/readyz":
            why = self.source.unready()
            self._verdict(why is None, why or "")
        elif path == "/status":
            silent_s = round(self._silent_s(), 1)
            self._json(200, self.source.status(silent_s if silent_s >= self.stuck_after_s else None))
        elif path.startswith("/streams/"):
            # as bytes, which a request line has, in the one encoding that keeps them: a key may come as it is, or with %
            self._stream(unquote_to_bytes(path.removeprefix("/streams/").encode("latin-1")))
        elif path == "/":
            self._answer(200, PAGE, "text/html; charset=utf-8")
        else:
            self._json(404, {"error": "not here; see /status, /metrics, /livez, /readyz, /streams/KEY"})

    def do_HEAD(self) -> None:
        """As GET, without the body: monitors and load balancers ask so."""
        self.do_GET()

    def _silent_s(self) -> float:
        return time.monotonic() - self.source.beat_at

    def _stream(self, key: bytes) -> None:
        try:
            found = self.stream(key)
        except TimeoutError:
            self._json(503, {"error": "the event loop did not answer in time"})
            return
        if found is None:
            self._json(404, {"error": f"stream {key.decode(errors='replace')!r} has no state in this instance"})
        else:
            self._json(200, found)

    def _verdict(self, good: bool, otherwise: str) -> None:
        self._answer(200 if good else 503, b"ok\n" if good else f"{otherwise}\n".encode(), "text/plain; charset=utf-8")

    def _json(self, code: int, document: dict[str, Any]) -> None:
        self._answer(code, json.dumps(document).encode(), "application/json")

    def _answer(self, code: int, body: bytes, content_type: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged: probes come every few seconds."""
