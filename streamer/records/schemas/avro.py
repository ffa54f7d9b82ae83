"""Avro values: bytes to the cells that are asked for, by the schema that wrote them, strictly and in bounded time.

Of a value only what a path asks for is made; all else is passed over, and checked on the way: lengths lie within the
value, branches and symbols exist, nesting is bounded, nothing is left at the end. A reader's schema, where there is one,
says what fields are called, what stands for those that the writer did not know, and what numbers become.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

from streamer.records.formats.layout import Node, Steps, tree
from streamer.records.meaning import NO_CELL, Cell
from streamer.records.schemas import avro_steps as steps
from streamer.records.schemas.avro_steps import SIZES, Read, Run
from streamer.records.schemas.avro_types import NO_DEFAULT, BadSchema, Field, Type
from streamer.records.schemas.reader import Kinds, Reader
from streamer.records.times import Moment
from streamer.words import TimeUnit

TIMES = {
    "timestamp-millis": TimeUnit.MS, "timestamp-micros": TimeUnit.US, "timestamp-nanos": TimeUnit.NS,
    "local-timestamp-millis": TimeUnit.MS, "local-timestamp-micros": TimeUnit.US, "local-timestamp-nanos": TimeUnit.NS,
}  # fmt: skip
"""Logical types of integers -> the unit that they say"""
_PROMOTED = {
    ("int", "long"), ("int", "float"), ("int", "double"), ("long", "float"), ("long", "double"), ("float", "double"),
    ("string", "bytes"), ("bytes", "string"),
}  # fmt: skip
_DAY_MS = 86_400_000


def avro_reader(writer: Type, reader: Type | None, paths: Sequence[Steps], time: int | None, unit: TimeUnit) -> Reader:
    """``reader``: the reader's schema, None: as it was written. ``time``: which of ``paths`` is the event's time, given in
    ``unit`` unless the schema says in what. BadSchema: the paths lead nowhere, or one schema cannot be read as the other."""
    if writer.kind != "record":
        raise BadSchema(f"values are of type {writer.told}, not records: fields have names in records")
    compiler = _Compiler(len(paths), time, unit)
    read = compiler.value(writer, reader, tree(paths), "")
    count = len(paths)

    def cells(value: bytes, at: int) -> list[Cell]:
        found: list[Cell] = [None] * count
        try:
            end = read(value, at, found, 0)
        except (IndexError, struct.error):
            raise steps.ends_early() from None
        if end > len(value):
            raise steps.ends_early()
        if end < len(value):
            raise steps.bad(f"{len(value) - end} bytes are left when all of its schema is read")
        return found

    return Reader(cells, [frozenset(each) for each in compiler.kinds], moments=compiler.moments)


class _Compiler:
    """Types and paths to functions that read. ``kinds``: what the cells of each path may be."""

    def __init__(self, count: int, time: int | None, unit: TimeUnit) -> None:
        self.kinds: list[set[str]] = [{"null"} for _ in range(count)]
        self._time, self._unit = time, unit
        self.moments = False
        """The event's time says its own unit"""
        self._skips: dict[int, list[Read]] = {}
        """Of types that may contain themselves: one place for a function that is still being made"""
        self._leasts: dict[int, int] = {}
        self._kept: list[Type] = []
        """So that no other type gets the number of one that is kept above"""

    # what is asked for

    def value(self, writer: Type, reader: Type | None, node: Node, where: str) -> Read:
        if node.leaf is None and not node.children:
            return self.skip(writer)
        if writer.kind == "union":
            return self._union(writer, reader, node, where)
        reader = _chosen(writer, reader, where)
        if writer.kind == "null":
            return steps.null(_leaves(node))
        if not node.children:
            assert node.leaf is not None
            return self._leaf(writer, reader, node.leaf)
        inner = self._inner(writer, reader, node, where)
        if node.leaf is None:
            return inner
        self._may_be(node.leaf, "other")
        return steps.both(inner, node.leaf)

    def _inner(self, writer: Type, reader: Type | None, node: Node, where: str) -> Read:
        if writer.kind == "record":
            return self._record(writer, reader, node, where)
        listed = node.listed
        if writer.kind == "array" and all(isinstance(step, int) for step in node.children):
            item = reader.inner[0] if reader else None
            wanted = {
                step: self.value(writer.inner[0], item, child, f"{where}[{step}]")
                for step, child in node.children.items()
            }
            return steps.array(wanted, self.skip(writer.inner[0]), self._least(writer.inner[0]))
        if writer.kind == "map" and not listed:
            item = reader.inner[0] if reader else None
            named = {
                str(step).encode(): self.value(writer.inner[0], item, child, _dotted(where, step))
                for step, child in node.children.items()
            }
            return steps.named(named, self.skip(writer.inner[0]), self._least(writer.inner[0]))
        raise BadSchema(
            f"{where or 'the value'} is of type {writer.told}, not {'a list' if listed else 'a record or a map'}"
        )

    def _union(self, writer: Type, reader: Type | None, node: Node, where: str) -> Read:
        reads: list[Read] = []
        misfits: list[BadSchema] = []
        for branch in writer.inner:
            try:
                reads.append(self.value(branch, reader, node, where))
            except BadSchema as why:
                if branch.kind != "null":
                    misfits.append(why)
                reads.append(steps.refusing(str(why)))
        if misfits and len(misfits) == len([each for each in writer.inner if each.kind != "null"]):
            raise misfits[0]
        return steps.branches(reads, where)

    def _record(self, writer: Type, reader: Type | None, node: Node, where: str) -> Read:
        if any(isinstance(step, int) for step in node.children):
            raise BadSchema(f"{where or 'the value'} is of type {writer.told}, not a list")
        known = {each.name: each for each in reader.fields} if reader else {}
        wanted: dict[str, tuple[Field | None, Node, str]] = {}
        """Writer's name of a field -> how the reader sees it"""
        reads: list[Read] = []
        theirs = {each.name for each in writer.fields}
        for step, child in node.children.items():
            name, path = str(step), _dotted(where, step)
            own = known.get(name)
            if reader is not None and own is None:
                continue  # the reader's schema has no such field: it is missing
            written = next((each for each in (name, *(own.aliases if own else ())) if each in theirs), None)
            if written is not None:
                wanted[written] = (own, child, path)
            elif own is not None and own.default is not NO_DEFAULT:
                reads.append(steps.given(self._defaults(own.type, own.default, child, path)))
            elif own is not None:
                raise BadSchema(f"it has no field {path!r}, and the reader's schema has no default for it")
        run = Run()
        for field in writer.fields:
            own, child, path = wanted.get(field.name, (None, Node(), ""))
            if field.name not in wanted and not self._least(field.type):
                continue
            read = self.value(field.type, own.type if own else None, child, path)
            plain = _plain_number(field.type, own.type if own else None, child)
            if plain is not None:
                run.add(plain[0], child.leaf, plain[1], read)
            else:
                reads += [*run.take(), read]
        return steps.sequence([*reads, *run.take()])

    def _leaf(self, writer: Type, reader: Type | None, leaf: int) -> Read:
        kind, as_time = writer.kind, leaf == self._time
        target = reader.kind if reader else kind
        source = reader if reader is not None and not writer.logical else writer
        logical = source.logical
        if kind in ("bytes", "fixed") and logical == "decimal":
            self._may_be(leaf, "int", "float")
            return steps.decimal(leaf, writer.size if kind == "fixed" else None, source.scale)
        if kind in ("array", "map", "record", "fixed") or (kind in ("bytes", "string") and target == "bytes"):
            self._may_be(leaf, "other")
            return steps.both(self.skip(writer), leaf)
        if kind in ("bytes", "string"):
            self._may_be(leaf, "str")
            return steps.text(leaf)
        if kind == "enum":
            self._may_be(leaf, "str")
            return steps.symbol(leaf, writer, reader)
        if kind in SIZES:
            self._may_be(leaf, "float")
            return steps.number(leaf, kind)
        if kind == "boolean":
            self._may_be(leaf, "bool")
            return steps.truth(leaf)
        if target in SIZES:
            self._may_be(leaf, "float")
            return steps.integer(leaf, float)
        moment = self._moment(logical) if as_time else None
        self.moments |= moment is not None
        self._may_be(leaf, "int" if moment is None else "other")
        return steps.integer(leaf, moment)

    def _moment(self, logical: str) -> Callable[[int], Cell] | None:
        """What makes an event's time of an integer. None: it is one already."""
        if logical == "date":
            return lambda days: Moment.of(days * _DAY_MS, TimeUnit.MS)
        unit = TIMES.get(logical)
        return None if unit is None or unit is self._unit else lambda number: Moment.of(number, unit)

    def _may_be(self, leaf: int, *kinds: str) -> None:
        self.kinds[leaf].update(kinds)

    def _defaults(self, kind: Type, default: Any, node: Node, where: str) -> list[tuple[int, Cell]]:
        """What a reader's default, which is JSON, puts where."""
        if kind.kind == "union":
            fits = [each for each in kind.inner if (default is None) == (each.kind == "null")]
            kind = fits[0] if fits else kind
        found: list[tuple[int, Cell]] = []
        for step, child in node.children.items():
            inner: Any = None
            own: Type = kind
            if isinstance(default, dict) and isinstance(step, str):
                field = next((each for each in kind.fields if each.name == step), None)
                if field is not None:
                    own, inner = field.type, None if field.default is NO_DEFAULT else field.default
                elif kind.kind == "map":
                    own = kind.inner[0]
                inner = default.get(step, inner)
            elif isinstance(default, list) and isinstance(step, int) and step < len(default):
                own, inner = (kind.inner or [kind])[0], default[step]
            found += self._defaults(own, inner, child, _dotted(where, step))
        if node.leaf is not None:
            cell: Cell = default if default is None or isinstance(default, bool | int | float | str) else NO_CELL
            if kind.kind in ("bytes", "fixed"):
                cell = NO_CELL
            elif kind.kind in SIZES and isinstance(cell, int) and not isinstance(cell, bool):
                cell = float(cell)
            moment = self._moment(kind.logical) if node.leaf == self._time else None
            if moment is not None and isinstance(cell, int):
                cell = moment(cell)
            self._may_be(node.leaf, "other" if isinstance(cell, Moment) else _kind_of(cell))
            found.append((node.leaf, cell))
        return found

    # what is passed over

    def skip(self, kind: Type) -> Read:
        if kind.kind in ("null", "float", "double", "fixed"):
            return steps.passed({"null": 0, "fixed": kind.size, **SIZES}[kind.kind])
        if kind.kind == "boolean":
            return steps.truth(None)
        if kind.kind in ("int", "long"):
            return steps.integer(None, None)
        if kind.kind in ("bytes", "string"):
            return steps.passed_sized
        if kind.kind == "enum":
            return steps.symbol(None, kind, None)
        if kind.kind == "union":
            return steps.branches([self.skip(each) for each in kind.inner], "")
        if kind.kind == "array":
            return steps.array({}, self.skip(kind.inner[0]), self._least(kind.inner[0]))
        if kind.kind == "map":
            return steps.named({}, self.skip(kind.inner[0]), self._least(kind.inner[0]))
        place = self._skips.get(id(kind))
        if place is None:
            place = self._skips[id(kind)] = []
            self._kept.append(kind)
            run, reads = Run(), []
            for each in kind.fields:
                if not self._least(each.type):
                    continue  # it has no bytes: a record of a thousand such fields costs nothing
                plain = _plain_number(each.type, None, Node())
                if plain is not None:
                    run.add(plain[0], None, plain[1], self.skip(each.type))
                else:
                    reads += [*run.take(), self.skip(each.type)]
            place.append(steps.sequence([*reads, *run.take()]))
        if len(place) == 1:
            return place[0]
        return lambda value, at, found, depth: place[0](value, at, found, depth)  # noqa: PLW0108 (made later)

    def _least(self, kind: Type) -> int:
        """The fewest bytes that a value has; 0: it never has any."""
        if kind.kind in ("null", "fixed"):
            return kind.size
        if kind.kind != "record":
            return SIZES.get(kind.kind, 1)
        if id(kind) not in self._leasts:
            self._kept.append(kind)
            self._leasts[id(kind)] = 1  # inside itself
            self._leasts[id(kind)] = sum(self._least(each.type) for each in kind.fields)
        return self._leasts[id(kind)]


def _chosen(writer: Type, reader: Type | None, where: str) -> Type | None:
    """The reader's type for what was written; of a union the first branch of the same type, else one that it becomes.

    Of named types a branch of the very name comes first, then one that had it, then one that is called so elsewhere."""
    if reader is None:
        return None
    among = reader.inner if reader.kind == "union" else [reader]
    alike = [each for each in among if each.kind == writer.kind]
    short = _short(writer.name)
    ranked = [
        *[each for each in alike if each.name == writer.name],
        *[each for each in alike if writer.name in each.aliases],
        *[each for each in alike if len(among) == 1 or short in map(_short, (each.name, *each.aliases))],
        *[each for each in among if (writer.kind, each.kind) in _PROMOTED],
    ]
    if not ranked:
        raise BadSchema(f"{where or 'the value'} was written as {writer.told}, which the reader's schema does not take")
    return ranked[0]


def _plain_number(writer: Type, reader: Type | None, node: Node) -> tuple[str, int | None] | None:
    """float or double, and its branch of a union with null, where the number is what was written. None: it is another type."""
    if node.children:
        return None
    branch = None
    if writer.kind == "union" and len(writer.inner) == 2:
        kinds = [each.kind for each in writer.inner]
        branch = 1 if kinds[0] == "null" else 0 if kinds[1] == "null" else None
        writer = writer.inner[branch or 0]
    if reader is not None and reader.kind == "union":
        numbers = [each for each in reader.inner if each.kind in SIZES]
        reader = numbers[0] if len(numbers) == 1 else None
    fits = reader is None or reader.kind in (writer.kind, "double")
    return (writer.kind, branch) if writer.kind in SIZES and fits else None


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _dotted(where: str, step: str | int) -> str:
    return f"{where}[{step}]" if isinstance(step, int) else f"{where}.{step}".lstrip(".")


def _leaves(node: Node) -> list[int]:
    own = [] if node.leaf is None else [node.leaf]
    return own + [leaf for child in node.children.values() for leaf in _leaves(child)]


def _kind_of(cell: Cell) -> Kinds:
    for kind, name in ((bool, "bool"), (int, "int"), (float, "float"), (str, "str")):
        if isinstance(cell, kind):
            return name
    return "null" if cell is None else "other"
