"""A real schema registry for tests: Apicurio with Confluent's API, on loopback, records in memory."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from local_kafka import HOST, _free_ports, maven_alone
from tooling import require_tool

VERSION = "2.6.13.Final"
ARTIFACT = f"io.apicurio:apicurio-registry-app:{VERSION}:tar.gz:all"
_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
_START_S = 90.0


def program() -> Path:
    """The registry's jar, downloaded at the first call (140 MB) and shared by all checkouts."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "streamer"
    target = root / f"apicurio-{VERSION}"
    with maven_alone(root):
        if not target.is_dir():
            _fetch(root, target)
    (jar,) = target.glob("*-runner.jar")
    return jar


def _fetch(root: Path, target: Path) -> None:
    partial = Path(tempfile.mkdtemp(prefix="apicurio-partial-", dir=root))
    try:
        command = ["mvn", "-q", "-B", _PLUGIN, f"-Dartifact={ARTIFACT}", f"-DoutputDirectory={partial}"]
        subprocess.run(command, check=True, capture_output=True, cwd=partial)
        (archive,) = partial.glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(partial, filter="data")
        archive.unlink()
        partial.chmod(0o755)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class LocalRegistry:
    """``url`` is that of Confluent's API. What it knows is gone with its process: ``start`` begins with id 1 again."""

    def __init__(self) -> None:
        require_tool("java", "mvn")
        self._port = next(_free_ports())
        self.url = f"http://{HOST}:{self._port}/apis/ccompat/v7"
        self._home = Path(tempfile.mkdtemp(prefix="streamer-registry-"))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = ["java", "-Xmx384m", "-XX:TieredStopAtLevel=1", f"-Dquarkus.http.port={self._port}"]
        command += [f"-Dquarkus.http.host={HOST}", "-Dquarkus.log.level=WARN", "-jar", str(program())]
        with (self._home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self._home, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + _START_S
        while not self._answers():
            assert self._process.poll() is None, (self._home / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, "the registry did not answer"
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/subjects", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        self.kill()
        shutil.rmtree(self._home, ignore_errors=True)


class GuidsBefore:
    """In front of a registry that gives no GUIDs: tells one of each schema that is registered through it, and looks schemas up
    by them (``/schemas/guids/GUID``), as Confluent's registry does from version 8 on. All else is passed on."""

    def __init__(self, url: str) -> None:
        guids: dict[str, int] = {}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path, _, query = self.path.partition("?")
                if path.startswith("/schemas/guids/"):
                    number = guids.get(path.rpartition("/")[2])
                    if number is None:
                        self._answer(404, b'{"error_code": 40403, "message": "Schema not found"}')
                        return
                    path = f"/schemas/ids/{number}"
                size = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(size) if size else None
                asked = urllib.request.Request(url + path + (f"?{query}" if query else ""), body, method=self.command)
                for name in ("Accept", "Content-Type"):
                    if self.headers.get(name):
                        asked.add_header(name, self.headers[name])
                try:
                    with urllib.request.urlopen(asked, timeout=20) as answer:
                        status, content = answer.status, answer.read()
                except urllib.error.HTTPError as error:
                    status, content = error.code, error.read()
                found = json.loads(content)
                if self.command == "POST" and status == 200 and "id" in found:
                    found["guid"] = str(uuid.uuid5(uuid.NAMESPACE_URL, str(found["id"])))
                    guids[found["guid"]] = found["id"]
                self._answer(status, json.dumps(found).encode())

            do_POST = do_GET

            def _answer(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self.url = f"http://{HOST}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def local_registry() -> Iterator[LocalRegistry]:
    registry = LocalRegistry()
    try:
        registry.start()
        yield registry
    finally:
        registry.stop()
