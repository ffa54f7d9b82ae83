"""Fields of a record that its answers carry (``output.fields``): what the record itself has there, as JSON.

They travel beside the event as a header of the name ``PASSED_HEADER``, as trace headers do, and so are found again by a
replay; whoever writes answers takes the header out. What is longer than ``MAX_PASSED_BYTES`` does not travel, only its size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import msgspec

from streamer.core import PASSED_HEADER, Headers
from streamer.errors import ConfigurationError
from streamer.records.formats import NAMED, SCHEMAS, Source
from streamer.records.formats.layout import Steps, Written, getter, tree, typed
from streamer.records.formats.named import last_header
from streamer.records.formats.typed import one_get
from streamer.records.formats.wire import Json, Wire
from streamer.records.meaning import NO_CELL, Cell
from streamer.records.schemas.book import SchemaKind, frame_bytes, framed
from streamer.records.schemas.values import Values
from streamer.records.unusable import Unusable
from streamer.settings.fields import FieldHeader, FieldPath
from streamer.words import TimeUnit

MAX_PASSED_BYTES = 8_192
"""Of one record, in all"""
_NULL = b"null"
_TOKENS = msgspec.json.Decoder(list[msgspec.Raw])


class Passing:
    """What is read of each record for its answers. A replay reads the same, since nothing else is asked."""

    def __init__(self, places: Sequence[FieldPath | FieldHeader], value_format: str, source: Source | None) -> None:
        """``source``: of schemas, in formats that have them. ConfigurationError: values of the format have no fields."""
        self._gets = [_get(place, value_format, source) for place in places]

    def header(self, value: bytes, headers: Headers) -> tuple[str, bytes]:
        """What travels on: a JSON list of what the record has at each place, null where it has nothing."""
        found = b"[" + b",".join([get(value, headers) for get in self._gets]) + b"]"
        return PASSED_HEADER, found if len(found) <= MAX_PASSED_BYTES else b"%d" % len(found)


def passed(headers: Headers) -> Sequence[msgspec.Raw] | int | None:
    """What each place has; bytes, where that was too much; None: the answer is of no one record."""
    found = last_header(headers, PASSED_HEADER)
    if found is None:
        return None
    return _TOKENS.decode(found) if found[:1] == b"[" else int(found)


def without_passed(headers: Headers) -> Headers:
    """``headers`` themselves where nothing is passed, as nearly always."""
    kept = [each for each in headers if each[0] != PASSED_HEADER]
    return headers if len(kept) == len(headers) else kept


Get = Callable[[bytes, Headers], bytes]


def _get(place: FieldPath | FieldHeader, value_format: str, source: Source | None) -> Get:
    if isinstance(place, FieldHeader):
        name = place.name
        return lambda value, headers: _text(last_header(headers, name))
    if value_format in NAMED or value_format == "json":
        return _of_wire(NAMED.get(value_format, Json)(), place.steps, framing=False)
    if value_format == "json-schema":
        return _of_wire(Json(), place.steps, framing=source is not None and source.book is not None)
    if value_format in SCHEMAS:
        assert source is not None
        return _of_schema(SCHEMAS[value_format], source, place.steps)
    raise ConfigurationError(
        f"output.fields: input.format = {value_format!r} has no fields with names that answers could carry: leave out "
        "what begins with input. (headers can be carried, as header:NAME)"
    )


def _of_wire(wire: Wire, steps: Steps, *, framing: bool) -> Get:
    root = tree([steps])
    written = Written(root, wire)
    kind, _ = typed(root, [msgspec.Raw], [True])
    quick, pick = wire.decoder(kind).decode, one_get(getter(root, steps))

    def token_of(value: bytes) -> bytes:
        """In one call where all is there and nothing odd on the way, else by the definition."""
        with suppress(msgspec.DecodeError, UnicodeError, IndexError, RecursionError):
            token = pick(quick(value))
            return bytes(wire.null if token is None else token)
        found = [wire.null]
        written.read(value, found)
        return bytes(found[0])

    def get(value: bytes, headers: Headers) -> bytes:
        try:
            if framing:
                value = framed(value, headers, SchemaKind.JSON)
                value = value[frame_bytes(value) :]
            token = token_of(value)
            if not isinstance(wire, Json):
                return msgspec.json.encode(msgspec.msgpack.decode(token))
            token.decode()  # what nobody reads is not looked into: it need not be text
            return token.strip()
        except (Unusable, msgspec.DecodeError, UnicodeError, TypeError, ValueError, RecursionError):
            return _NULL

    return get


def _of_schema(kind: SchemaKind, source: Source, steps: Steps) -> Get:
    """By itself: where a schema has no such field, the others are there all the same."""
    try:
        values = Values(kind, source, [steps], None, TimeUnit.MS)
    except ConfigurationError as why:
        raise ConfigurationError(f"output.fields: {why}") from None

    def get(value: bytes, headers: Headers) -> bytes:
        found: list[Cell] = [None]
        try:
            values.read(value if source.book is None else framed(value, headers, kind), found)
            return _NULL if found[0] is NO_CELL else msgspec.json.encode(found[0])
        except (Unusable, TypeError, ValueError):
            return _NULL

    return get


def _text(header: bytes | None) -> bytes:
    try:
        return _NULL if header is None else msgspec.json.encode(header.decode())
    except UnicodeDecodeError:
        return _NULL
