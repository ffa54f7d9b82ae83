"""The registry's client against a server that answers as registries and proxies do; records that wait for it."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from decoding import records

from streamer.core import RecordBatch
from streamer.errors import ConfigurationError, RegistryUnavailableError
from streamer.kafka import registry as client
from streamer.kafka.registry import Registry
from streamer.observe.health import State, unready
from streamer.observe.telemetry import Telemetry
from streamer.observe.view import View
from streamer.records.schemas.book import Book, Schema
from streamer.service.schemas import Schemas
from streamer.settings import RegistrySection

Answers = dict[str, tuple[int, Any]]


class Server:
    """``answers``: path -> status and body; anything else is 404 as a registry says it."""

    def __init__(self) -> None:
        self.answers: Answers = {}
        self.asked: list[tuple[str, str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                outer.asked.append((self.command, self.path, json.loads(self.rfile.read(size)) if size else None))
                outer.authorization = self.headers.get("Authorization")
                status, body = outer.answers.get(
                    f"{self.command} {self.path}", (404, {"error_code": 40403, "message": "none"})
                )
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_GET

            def log_message(self, *_: Any) -> None: ...

        self.authorization: str | None = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/api"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(client, "_AGAIN_S", 0.0)
    found = Server()
    yield found
    found.close()


def registry_of(server: Server, **more: Any) -> Registry:
    return Registry(RegistrySection(url=server.url + "/", timeout_ms=2_000, **more))


async def test_documents_come_with_what_they_refer_to(server: Server) -> None:
    refers = {"schema": "A", "references": [{"name": "b", "subject": "s/b", "version": 2}]}
    b = {
        "schema": "B",
        "references": [{"name": "c", "subject": "c", "version": 1}, {"name": "b", "subject": "s/b", "version": 2}],
    }
    server.answers = {
        "GET /api/schemas/ids/1": (200, refers),
        "GET /api/subjects/s%2Fb/versions/2?deleted=true": (200, b),
        "GET /api/subjects/c/versions/1?deleted=true": (200, {"schema": "C"}),
        "GET /api/schemas/ids/2": (200, {"schema": "source", "schemaType": "PROTOBUF"}),
        "GET /api/schemas/ids/2?format=serialized": (200, {"schema": "base64", "schemaType": "PROTOBUF"}),
        "GET /api/schemas/ids/3": (200, {"schema": "{}", "schemaType": "JSON"}),
    }
    found = await registry_of(server).schemas([1, 2, 3, 4])
    assert found == {
        1: Schema("AVRO", "A", (("c", "C"), ("b", "B"))),
        2: Schema("PROTOBUF", "base64"),
        3: Schema("JSON", "{}"),
        4: None,
    }
    assert [path for _, path, _ in server.asked].count("/api/schemas/ids/4") == 2, "asked again before it is absent"


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (401, b"", "registry.password_file"),
        (404, b"<html>", "with the path of its API"),
        (404, {"error_code": 404}, "with the path of its API"),
        (302, b"", "registry.url to where that is"),
        (500, {"message": "no leader"}, "answers 500 to /schemas/ids/7: no leader"),
        (200, b"<html>", "does not answer"),
        (200, b"[]", "is no object"),
        (200, b"[" * 100_000, "does not answer"),
    ],
)
async def test_what_is_no_answer_is_none(server: Server, status: int, body: Any, told: str) -> None:
    server.answers = {"GET /api/schemas/ids/7": (status, body)}
    with pytest.raises(RegistryUnavailableError, match=told):
        await registry_of(server, username="u", password="s3cret").schemas([7])
    assert ("GET", "/elsewhere", None) not in server.asked, "a password is not taken elsewhere"


async def test_the_password_is_sent_and_nobody_answers_is_told(server: Server, tmp_path: Any) -> None:
    (tmp_path / "password").write_text("päss\n", encoding="utf-8")
    registry = registry_of(server, username="u", password_file=tmp_path / "password")
    await registry.schemas([7])
    assert server.authorization == f"Basic {base64.b64encode('u:päss'.encode()).decode()}"
    with pytest.raises(ConfigurationError, match=r"registry\.password_file"):
        registry_of(server, username="u", password_file=tmp_path / "none")
    with pytest.raises(RegistryUnavailableError, match=r"127\.0\.0\.1:1 does not answer"):
        await Registry(RegistrySection(url="http://127.0.0.1:1")).schemas([7])


async def test_a_schema_is_registered_once(server: Server) -> None:
    server.answers = {"POST /api/subjects/out-value/versions": (200, {"id": 5})}
    assert await registry_of(server).register("out-value", Schema("AVRO", "A")) == 5
    server.answers = {"POST /api/subjects/out-value": (200, {"id": 6})}
    assert await registry_of(server).register("out-value", Schema("AVRO", "A")) == 6
    server.answers = {"POST /api/subjects/out-value/versions": (409, {"error_code": 409, "message": "incompatible"})}
    with pytest.raises(RegistryUnavailableError, match="not compatible with what the subject has"):
        await registry_of(server).register("out-value", Schema("AVRO", "A"))


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"url": "ftp://x"}, "http"),
        ({"url": "https://u:p@x"}, "user or password"),
        ({"url": "http://x", "ssl_cafile": "ca.pem"}, "https"),
        ({"url": "https://x", "ssl_keyfile": "key.pem"}, "ssl_certfile"),
        ({"url": "https://x", "username": "u"}, "together"),
        ({"url": "https://x", "password": "p"}, "together"),
        ({"url": "https://x", "username": "u", "password": "p", "password_file": "f"}, "keep one"),
    ],
)
def test_settings_that_do_not_fit_are_told(section: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        RegistrySection(**section)


# records that wait


class Desk:
    """Everything around ``Schemas``, written down."""

    def __init__(self) -> None:
        self.now = 0.0
        self.paused: set[int] = set()
        self.errors: list[BaseException] = []
        self.asked: list[set[int]] = []
        self.answer: asyncio.Future[dict[int, Schema | None]] = asyncio.get_running_loop().create_future()

    async def schemas(self, numbers: Any) -> dict[int, Schema | None]:
        self.asked.append(set(numbers))
        return await asyncio.shield(self.answer)

    def pause(self, partitions: Any) -> None:
        self.paused |= set(partitions)

    def resume(self, partitions: Any) -> None:
        assert set(partitions) <= self.paused
        self.paused -= set(partitions)

    def failed(self, error: BaseException) -> None:
        self.errors.append(error)

    def monotonic(self) -> float:
        return self.now

    def close(self) -> None: ...


def desk() -> tuple[Desk, Schemas]:
    made = Desk()
    return made, Schemas(Book(), made, made, made, made)  # type: ignore[arg-type]


def batch(partition: int, *ids: int, first: int = 0) -> RecordBatch:
    found = records([b"\0" + number.to_bytes(4) + b"x" for number in ids], first=first)
    found.partition = partition
    return found


AVRO = Schema("AVRO", "x")


async def test_partitions_whose_schemas_are_known_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.service.schemas._GRACE_S", 0.01)
    around, schemas = desk()
    one, two = batch(0, 1), batch(1, 1, 2)
    assert await schemas.ready([one, two]) == []
    assert (around.paused, around.asked, schemas.cause) == ({0, 1}, [{1, 2}], "schemas are being looked up")
    assert await schemas.ready([]) == []
    around.answer.set_result({1: AVRO})
    assert await schemas.ready([]) == [one]
    assert around.paused == schemas.held == {1}
    around.answer = asyncio.get_running_loop().create_future()
    around.answer.set_exception(RegistryUnavailableError("it is away"))
    three = batch(0, 1, first=1)
    assert await schemas.ready([three]) == [three], "in the meantime"
    assert [str(each) for each in around.errors] == ["it is away"]
    assert schemas.cause == "it is away"
    around.answer = asyncio.get_running_loop().create_future()
    around.answer.set_result({2: None})
    assert await schemas.ready([]) == []
    assert len(around.asked) == 3 - 1, "not before it is time"
    around.now = 1.0
    assert await schemas.ready([]) == [two], "absent is an answer"
    assert (around.paused, schemas.cause) == (set(), None)
    four = batch(1, 2, first=2)
    assert await schemas.ready([four]) == [four]
    assert around.asked[-1] == {2}, "absent is asked anew"


async def test_what_waits_is_forgotten_when_fetches_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.service.schemas._GRACE_S", 0.01)
    around, schemas = desk()
    await schemas.ready([batch(0, 1)])
    schemas.forget()
    around.answer.set_result({1: AVRO})
    again = batch(0, 1)
    assert await schemas.ready([again]) == [again]
    await schemas.stop()


def test_who_waits_for_schemas_is_not_ready_and_says_why() -> None:
    telemetry = Telemetry([("m", "1", "00")], "1", monotonic=lambda: 1.0, wall=lambda: 1_000.0)
    telemetry.failed(RegistryUnavailableError("it is away"))
    telemetry.tick(lambda: View(ready=True, draining=False, topic="t", waits_for="it is away"))
    assert telemetry.unready() == "records wait for their schemas: it is away"
    assert telemetry.state.ending is None
    assert unready(State(started=0.0), 0.0) == "partitions are not restored yet"
