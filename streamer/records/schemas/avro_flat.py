"""Which bytes of a flat Avro record are what: no lists, no maps, no unions but of plain values. Native code reads such records
field by field (``formats/native.py``); ``avro.py`` reads all, and says what they mean.
"""

from __future__ import annotations

from collections.abc import Sequence

from streamer.records.formats.layout import Node, Steps, tree
from streamer.records.schemas.avro import TIMES
from streamer.records.schemas.avro_types import MAX_NESTING, Type
from streamer.records.schemas.reader import Flat, FlatField, FlatKind
from streamer.words import TimeUnit

MAX_FIELDS = 4_096
"""Records of records of records can have more fields than anybody can wait for."""
_PLAIN = ("null", "boolean", "int", "long", "float", "double", "string")


def flat(writer: Type, paths: Sequence[Steps], time: int | None, unit: TimeUnit) -> Flat | None:
    """As of ``avro_reader``, with no reader's schema. None: the record is not flat, or what is asked for is no plain value."""
    walk = _Walk(time, unit)
    try:
        walk.record(writer, tree(paths), 0)
    except _NotFlat:
        return None
    if len(walk.units) > 1:
        return None
    there = {each.leaf for each in walk.fields}
    absent = [FlatField(("null",), False, leaf) for leaf in range(len(paths)) if leaf not in there]
    return Flat([*walk.fields, *absent], next(iter(walk.units), unit))


class _NotFlat(Exception):
    pass


class _Walk:
    """``units``: those in which the event's time is written."""

    def __init__(self, time: int | None, unit: TimeUnit) -> None:
        self.fields: list[FlatField] = []
        self.units: set[TimeUnit] = set()
        self._time, self._unit, self._walked = time, unit, 0

    def record(self, writer: Type, node: Node, depth: int) -> None:
        if depth > MAX_NESTING:  # a record in itself, of which there is no value
            raise _NotFlat
        for each in writer.fields:
            self._walked += 1
            if self._walked > MAX_FIELDS:
                raise _NotFlat
            child = node.children.get(each.name, Node())
            if each.type.kind == "record" and child.leaf is None:
                self.record(each.type, child, depth + 1)
            elif child.children:
                raise _NotFlat
            else:
                self._field(each.type, child.leaf)

    def _field(self, writer: Type, leaf: int | None) -> None:
        union = writer.kind == "union"
        types = writer.inner if union else [writer]
        self.fields.append(FlatField(tuple(_kind(each, leaf) for each in types), union, leaf))
        if leaf is not None and leaf == self._time:
            self.units |= {self._unit_of(each) for each in types if each.kind != "null"}

    def _unit_of(self, written: Type) -> TimeUnit:
        if written.kind not in ("int", "long"):
            return self._unit
        if written.logical == "date":
            raise _NotFlat
        return TIMES.get(written.logical, self._unit)


def _kind(written: Type, leaf: int | None) -> FlatKind:
    if leaf is None and written.kind in ("bytes", "string"):
        return "bytes"
    if leaf is None and written.kind == "fixed":
        return written.size
    if written.kind == "enum":
        return written.symbols
    if written.kind in _PLAIN:
        return written.kind
    raise _NotFlat
