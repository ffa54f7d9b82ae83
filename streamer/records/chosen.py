"""Answers as ``output.fields`` wants them: names that people chose, what of an answer they carry, and fields of its record.

Made from the plain JSON of ``encode.py``, so that a place means the same in every mode and format.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from streamer.errors import ConfigurationError
from streamer.modelfile.contract import Contract
from streamer.records.answers import avro_array, avro_bytes, avro_long, avro_name, labels_of, named_outputs
from streamer.records.schemas.book import Schema, SchemaKind
from streamer.settings.fields import Place

SLICE = "slice"
"""Always told where an answer is cut, chosen or not: without it the pieces could not be put together."""
_INSIDE: Mapping[str, Sequence[str]] = {
    "window": ("start", "end", "count", "reason", "part", "offsets"),
    "utterance": ("start", "end", "count", "reason", "part", "offsets"),
    "generate": ("n", "seed", "step", "last"),
}
"""Places inside of places"""
_PASSED_KIND = ["null", "boolean", "long", "double", "string"]
_JSON_KINDS = {
    "partition": {"type": "integer"}, "offset": {"type": "integer"}, "window.start": {"type": "integer"},
    "window.end": {"type": "integer"}, "window.count": {"type": "integer"}, "window.reason": {"type": "string"},
    "window.part": {"type": "integer"}, "window.offsets": {"type": "array", "items": {"type": "integer"}},
}  # fmt: skip
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_INT64 = range(-(2**63), 2**63)

Fields = Mapping[str, str | Place]
"""Name -> a place of the answer, or a place of its record"""


def own_places(contract: Contract, *, window: bool) -> list[str]:
    """What answers of a model have, as their JSON calls it; ``partition`` and ``offset`` are those of their source."""
    found = ["stream", "ts"]
    several = contract.many_steps
    if contract.decoder is not None:
        found += ["y", "label", "text", "score", "truncated"]
    elif contract.emitting is not None and (not window or len(contract.outputs) == 1):
        found += ["text", "symbols", "score", "final"]
    else:
        for output, name, label in named_outputs(contract):
            found += [name, label] if labels_of(output) else [name]
            several = several or (window and output.per == "event")
    inside = ["window"] if window else ["utterance"] if contract.emitting is not None else []
    if contract.feedback is not None and not window:
        inside.append("generate")
        found += [each for each in ("y", "label", "text") if each not in found]
    for each in inside:
        found += [each, *(f"{each}.{inner}" for inner in _INSIDE[each])]
    return [*found, *([SLICE] if several else []), "model", "partition", "offset"]


def refuse_unknown(fields: Fields, models: Sequence[tuple[str, Contract, bool]]) -> None:
    """``models``: name, contract, whether it answers per window. ConfigurationError: a place that no answer has."""
    own = {name: own_places(contract, window=window) for name, contract, window in models}
    for name, place in fields.items():
        if isinstance(place, str) and not any(place in each for each in own.values()):
            there = "; ".join(f"those of model {model!r} have {', '.join(each)}" for model, each in own.items())
            raise ConfigurationError(
                f"output.fields.{name} = {place!r}: no answer has that; {there}; a field of the record is input.PATH, a header "
                "of it header:NAME"
            )


class Chosen:
    """How the answers of one model are written. Places that an answer does not have are left out of it."""

    def __init__(self, fields: Fields, own: Sequence[str], plain: Schema | None = None, frame: bytes = b"") -> None:
        """``own``: of ``own_places``. ``plain``: schema of answers where nothing is chosen, in formats that have one. ``frame``:
        what stands before each value. ConfigurationError: a name that the schema cannot have."""
        self._frame = frame
        passed = [place for place in fields.values() if not isinstance(place, str)]
        self._nothing = [msgspec.Raw(b"null")] * len(passed)
        self._takes: list[tuple[str, str | int]] = [
            (name, place if isinstance(place, str) else passed.index(place))
            for name, place in fields.items()
            if not isinstance(place, str) or place in own
        ]
        if SLICE in own and SLICE not in fields.values():
            self._takes.append((SLICE, SLICE))
        asked = {place.partition(".")[0] for _, place in self._takes if isinstance(place, str) and "." in place}
        self._opened = [each for each in _INSIDE if each in asked]
        self._heads = [msgspec.json.encode(name) + b":" for name, _ in self._takes]
        self.schema: Schema | None = None
        self._writers: list[Callable[[Any], bytes]] | None = None
        if plain is not None and plain.kind == SchemaKind.AVRO:
            kinds = self._avro(json.loads(plain.text))
            self._writers = [_writer(kind) for kind in kinds]
        elif plain is not None:
            self._json(json.loads(plain.text))

    def framed(self, frame: bytes) -> Chosen:
        """``frame``: what the registry made of ``schema``."""
        self._frame = frame
        return self

    def value(self, plain: bytes, partition: int, source: int, passed: Sequence[msgspec.Raw] | None) -> bytes:
        """``plain``: the answer where nothing is chosen. ``passed``: what its record has; None: it answers no one record."""
        found: dict[str, Any] = _OBJECT.decode(plain)
        for each in self._opened:
            if each in found:
                found |= {f"{each}.{inner}": token for inner, token in _OBJECT.decode(found[each]).items()}
        found.setdefault("partition", b"%d" % partition)
        found.setdefault("offset", b"%d" % source)
        beside = self._nothing if passed is None else passed
        tokens = [found.get(place) if isinstance(place, str) else beside[place] for _, place in self._takes]
        if self._writers is not None:
            written = zip(self._writers, tokens, strict=True)
            return self._frame + b"".join([write(None if token is None else _cell(token)) for write, token in written])
        there = [head + bytes(token) for head, token in zip(self._heads, tokens, strict=True) if token is not None]
        return self._frame + b"{" + b",".join(there) + b"}"

    def _avro(self, plain: dict[str, Any]) -> list[Any]:
        known = {each["name"]: each for each in plain["fields"]}
        if "window" in known:
            known |= {f"window.{each['name']}": each for each in known["window"]["type"]["fields"]}
        known |= {
            each: {"type": kind} for each, kind in (("partition", "int"), ("offset", "long")) if each not in known
        }
        fields = []
        for name, place in self._takes:
            if avro_name(name) != name:
                raise ConfigurationError(
                    f'output.fields.{name}: output.format = "avro" has no such name: use letters, digits and _'
                )
            found = known.get(place) or known[avro_name(place)] if isinstance(place, str) else {"type": _PASSED_KIND}
            fields.append({**found, "name": name})
        self.schema = Schema(SchemaKind.AVRO, json.dumps({**plain, "fields": fields}))
        return [each["type"] for each in fields]

    def _json(self, plain: dict[str, Any]) -> None:
        known = {**_JSON_KINDS, **plain["properties"]}
        kinds = {name: known[place] if isinstance(place, str) else {} for name, place in self._takes}
        required = [name for name, place in self._takes if place != SLICE]
        self.schema = Schema(SchemaKind.JSON, json.dumps({**plain, "properties": kinds, "required": required}))


def _writer(kind: Any) -> Callable[[Any], bytes]:
    """Avro of a value of JSON, of a type of our own schemas."""
    if kind == _PASSED_KIND:
        return _passed
    if isinstance(kind, list):  # null, or one other
        other = _writer(kind[1])
        return lambda found: b"\0" if found is None else b"\2" + other(found)
    if isinstance(kind, dict) and kind["type"] == "array":
        item = _writer(kind["items"])
        return lambda found: avro_array(len(found), b"".join(map(item, found)))
    if isinstance(kind, dict) and kind["type"] == "record":
        inner = [(each["name"], _writer(each["type"])) for each in kind["fields"]]
        return lambda found: b"".join([write(found[name]) for name, write in inner])
    name = kind["type"] if isinstance(kind, dict) else kind
    if name == "float":
        return struct.Struct("<f").pack
    return _string if name == "string" else avro_long


def _cell(token: bytes | msgspec.Raw) -> Any:
    """What JSON says; a number beyond all numbers, which only records have, as its text."""
    try:
        return msgspec.json.decode(token)
    except msgspec.DecodeError:
        return bytes(token).decode()


def _string(text: str) -> bytes:
    return avro_bytes(text.encode())


def _passed(cell: Any) -> bytes:
    """What has no branch of its own (a list, an object, an integer beyond 64 bits) is told as its JSON."""
    if cell is None:
        return b"\0"
    if isinstance(cell, bool):
        return b"\2\1" if cell else b"\2\0"
    if isinstance(cell, int) and cell in _INT64:
        return b"\4" + avro_long(cell)
    if isinstance(cell, float):
        return b"\6" + struct.pack("<d", cell)
    return b"\b" + _string(cell if isinstance(cell, str) else msgspec.json.encode(cell).decode())
