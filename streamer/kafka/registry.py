"""A schema registry with Confluent's API: schemas by their ids, and ids of schemas.

Small and synchronous inside, in threads of its own: a registry is asked a few times in a process's life. Redirects are not
followed: the password would go with them.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

from streamer.errors import ConfigurationError, RegistryUnavailableError
from streamer.kafka.security import secret, tls_context
from streamer.records.schemas.book import Schema, SchemaId, SchemaKind
from streamer.settings import RegistrySection

_THREADS = 4
_MAX_ANSWER_BYTES = 8_388_608
_MAX_REFERENCES = 200
_ACCEPT = "application/vnd.schemaregistry.v1+json, application/json"
_NO_SCHEMA: tuple[int, ...] = (40403,)
_NO_SUCH = (40401, 40402, 40403)
"""The registry's words for: no subject, no version, no schema"""
_ANY: tuple[int, ...] = ()
"""404, whatever is said beside it"""
_AGAIN_S = 1.0
"""A registry of several nodes may not know everywhere at once what was registered a moment ago."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Registry:
    """RegistryUnavailableError: it cannot be asked now; whoever waits for its answer waits on."""

    def __init__(self, section: RegistrySection) -> None:
        """ConfigurationError for files that cannot be used."""
        self.url = section.url.rstrip("/")
        self._timeout_s = section.timeout_ms / 1000
        self._headers = {"Accept": _ACCEPT, "Content-Type": _ACCEPT.partition(",")[0]}
        if section.username:
            password = secret(section, "password", "registry")
            if password is None:
                raise ConfigurationError("registry.username needs registry.password or registry.password_file")
            token = base64.b64encode(f"{section.username}:{password}".encode()).decode()
            self._headers["Authorization"] = f"Basic {token}"
        handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
        if section.url.startswith("https"):
            handlers.append(urllib.request.HTTPSHandler(context=tls_context(section, "registry")))
        self._opener = urllib.request.build_opener(*handlers)
        self._threads = ThreadPoolExecutor(_THREADS, "registry")

    async def schemas(self, numbers: Iterable[SchemaId]) -> dict[SchemaId, Schema | None]:
        """The schemas of ids. None: the registry says that it has none, twice, a moment apart."""
        found = await self._each(sorted(numbers, key=str))
        absent = [number for number, schema in found.items() if schema is None]
        if absent:
            await asyncio.sleep(_AGAIN_S)
            found |= await self._each(absent)
        return found

    async def register(self, subject: str, schema: Schema) -> int:
        """The id of a schema under a subject, which is registered there unless it is there already."""
        return int(await self._call(self._register, subject, schema))

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _each(self, numbers: list[SchemaId]) -> dict[SchemaId, Schema | None]:
        tasks = [asyncio.ensure_future(self._call(self._schema, number)) for number in numbers]
        try:
            return dict(zip(numbers, await asyncio.gather(*tasks), strict=True))
        finally:
            for task in tasks:
                task.cancel()

    async def _call(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    # in a thread

    def _schema(self, number: SchemaId) -> Schema | None:
        path, absent = f"/schemas/ids/{number}", _NO_SCHEMA
        if isinstance(number, str):  # who does not look up GUIDs has none, or any bytes could hold a partition up
            path, absent = f"/schemas/guids/{number}", _ANY
        answer = self._ask(path, absent=absent)
        if answer is None:
            return None
        kind, text = str(answer.get("schemaType") or SchemaKind.AVRO), answer.get("schema")
        if kind == SchemaKind.PROTOBUF:  # a descriptor where the registry makes one; else it is the source
            made = self._ask(f"{path}?format=serialized", absent=absent) or answer
            text = made.get("schema", text)
        references: dict[str, str] = {}
        self._references(answer, references, ())
        return Schema(kind, str(text), tuple(references.items()))

    def _references(self, answer: dict[str, Any], found: dict[str, str], path: tuple[str, ...]) -> None:
        """Adds what a document refers to, each after those that it needs itself."""
        for each in answer.get("references") or ():
            name = str(each.get("name"))
            if name in found or name in path or len(found) + len(path) >= _MAX_REFERENCES:
                continue  # what lacks a type then is refused by who reads it
            subject, version = quote(str(each.get("subject")), safe=""), quote(str(each.get("version")), safe="")
            inner = self._ask(f"/subjects/{subject}/versions/{version}?deleted=true")
            self._references(inner, found, (*path, name))
            found[name] = str(inner.get("schema"))

    def _register(self, subject: str, schema: Schema) -> int:
        body = {"schema": schema.text, "schemaType": str(schema.kind)}
        path = f"/subjects/{quote(subject, safe='')}"
        known = self._ask(path, body=body, absent=_NO_SUCH)
        answer = known or self._ask(f"{path}/versions", body=body)
        number = answer.get("id")
        if not isinstance(number, int):
            raise RegistryUnavailableError(f"{self.url}: it gave no id for a schema of subject {subject!r}")
        return number

    def _ask(self, path: str, *, body: object = None, absent: tuple[int, ...] | None = None) -> Any:
        """An answer's object. ``absent``: error codes of the registry that mean None; ``_ANY``: each 404 does."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, self._headers)  # noqa: S310 (http or https: settings)
        try:
            with self._opener.open(request, timeout=self._timeout_s) as answer:
                found = json.loads(_bounded(answer))
        except urllib.error.HTTPError as error:
            with error:
                told = _told(error)
            if error.code == 404 and absent is not None and (absent == _ANY or told.get("error_code") in absent):
                return None
            raise RegistryUnavailableError(self._refusal(path, error.code, told)) from None
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, ssl.SSLCertVerificationError):
                reason = f"its certificate is not trusted ({reason.verify_message}): set registry.ssl_cafile"
            raise RegistryUnavailableError(f"the schema registry at {self.url} does not answer: {reason}") from error
        if not isinstance(found, dict):
            raise RegistryUnavailableError(
                f"{self.url}{path}: the answer is no object: is registry.url that of a registry?"
            )
        return found

    def _refusal(self, path: str, status: int, told: dict[str, Any]) -> str:
        why = str(told.get("message", ""))[:300]
        if status in (401, 403):
            why = "set registry.username and registry.password_file to those of a user who may read schemas"
        elif status == 404:
            why = why or "is registry.url that of a registry, with the path of its API?"
        elif 300 <= status < 400:
            why = "it sends us elsewhere: set registry.url to where that is"
        elif status == 409:
            why = f"the schema of our answers is not compatible with what the subject has: {why}"
        return f"the schema registry at {self.url} answers {status} to {path}" + (f": {why}" if why else "")


def _bounded(answer: Any) -> bytes:
    found: bytes = answer.read(_MAX_ANSWER_BYTES + 1)
    if len(found) > _MAX_ANSWER_BYTES:
        raise ValueError(f"an answer has more than {_MAX_ANSWER_BYTES} bytes")
    return found


def _told(error: urllib.error.HTTPError) -> dict[str, Any]:
    try:
        found = json.loads(_bounded(error))
    except (OSError, ValueError, RecursionError, http.client.HTTPException):
        return {}
    return found if isinstance(found, dict) else {}
