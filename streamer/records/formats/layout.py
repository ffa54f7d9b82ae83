"""What of a value with names is read: a tree of the fields that features and time come from, each once.

From it come the definition (one level after the other, as it was written) and the typed structs of the fast path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any

import msgspec

from streamer.records.formats.typed import each_get
from streamer.records.formats.wire import Wire
from streamer.records.unusable import Unusable, plain
from streamer.words import Reason

Steps = tuple[str | int, ...]


class NoFastPath(Exception):
    """A field is wanted as two kinds of thing: only the definition reads it."""


@dataclass
class Node:
    """A field, or a place in a list, and what of it is read."""

    children: dict[str | int, Node] = field(default_factory=dict)
    leaf: int | None = None
    """Place among the steps that were asked for"""

    @property
    def listed(self) -> bool:
        return any(isinstance(step, int) for step in self.children)


def tree(paths: Sequence[Steps]) -> Node:
    """``paths`` are different. A field may be read whole, and inside, too."""
    root = Node()
    for place, path in enumerate(paths):
        node = root
        for step in path:
            node = node.children.setdefault(step, Node())
        node.leaf = place
    return root


class Written:
    """The definition: the fields as they were written, and no more of the value than is asked for."""

    def __init__(self, node: Node, wire: Wire, where: str = "") -> None:
        self._wire, self._where = wire, where
        self._leaf = node.leaf
        self._listed = node.listed
        self._inner = {
            step: Written(child, wire, f"{where}[{step}]" if isinstance(step, int) else f"{where}.{step}".lstrip("."))
            for step, child in node.children.items()
        }
        if self._listed and not all(isinstance(step, int) for step in self._inner):
            self._read: Callable[[bytes | msgspec.Raw], dict[str | int, msgspec.Raw]] = self._neither
        elif self._listed:
            self._items = wire.decoder(list[msgspec.Raw])
            self._read = self._list
        else:
            names = {f"f{at}": str(step) for at, step in enumerate(self._inner)}
            absent: list[Any] = [(each, msgspec.Raw, wire.null) for each in names]
            self._fields = wire.decoder(msgspec.defstruct("Written", absent, rename=names))
            self._all = each_get(names)
            self._read = self._object

    def read(self, value: bytes | msgspec.Raw, found: list[msgspec.Raw]) -> None:
        """Puts what is there into ``found``, which begins with nulls. Unusable: the value is not what its path says."""
        try:
            inner = self._read(value)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            at = f"{self._where}: " if self._where else ""
            raise Unusable(Reason.UNDECODABLE, plain(f"{at}{error}")) from None
        for step, token in inner.items():
            node = self._inner[step]
            if node._leaf is not None:
                found[node._leaf] = token
            if node._inner and not self._wire.is_null(token):
                node.read(token, found)

    def _object(self, value: bytes | msgspec.Raw) -> dict[str | int, msgspec.Raw]:
        return dict(zip(self._inner, self._all(self._fields.decode(value)), strict=True))

    def _list(self, value: bytes | msgspec.Raw) -> dict[str | int, msgspec.Raw]:
        items = self._items.decode(value)
        return {step: items[step] for step in self._inner if isinstance(step, int) and step < len(items)}

    def _neither(self, value: bytes | msgspec.Raw) -> dict[str | int, msgspec.Raw]:
        raise Unusable(
            Reason.UNDECODABLE, plain(f"{self._where} is read as a list and as an object: it cannot be both")
        )


def typed(node: Node, kinds: Sequence[Any], optional: Sequence[bool]) -> tuple[Any, bool]:
    """The type of a field, and whether it may be absent. ``kinds``: of the leaves, ``optional``: those with None.

    NoFastPath: no one type is all that is read of the field."""
    if node.leaf is not None:
        if node.children:
            raise NoFastPath
        return kinds[node.leaf], optional[node.leaf]
    inner = [typed(child, kinds, optional) for child in node.children.values()]
    if node.listed:
        if any(kind != inner[0][0] for kind, _ in inner) or not all(isinstance(step, int) for step in node.children):
            raise NoFastPath
        return list.__class_getitem__(inner[0][0]), False
    fields: list[Any] = []
    for at, (kind, may_be_absent) in enumerate(inner):
        fields.append(
            (f"f{at}", kind, msgspec.field(default_factory=_absent(kind))) if may_be_absent else (f"f{at}", kind)
        )
    fields.sort(key=len)  # the required ones first; msgspec finds fields by name
    rename = {f"f{at}": str(step) for at, step in enumerate(node.children)}
    return msgspec.defstruct("Value", fields, rename=rename, gc=False), all(absent for _, absent in inner)


def _absent(kind: Any) -> Callable[[], Any]:
    """What stands for a field that is not there: an object without fields, or null."""
    return kind if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else lambda: None


def getter(root: Node, path: Steps) -> Callable[[Any], Any] | str:
    """How a typed object is asked for a path: the dotted name of an attribute, or where lists lie between, a function."""
    parts: list[str | int] = []
    node = root
    for step in path:
        parts.append(step if isinstance(step, int) else f"f{list(node.children).index(step)}")
        node = node.children[step]
    if not any(isinstance(part, int) for part in parts):
        return ".".join(map(str, parts))

    gets: list[Callable[[Any], Any]] = [
        itemgetter(*run) if whole else attrgetter(".".join(map(str, run)))
        for whole, group in groupby(parts, key=lambda part: isinstance(part, int))
        for run in ([[part] for part in group] if whole else [list(group)])
    ]
    if len(gets) == 2:
        first, second = gets
        return lambda row: second(first(row))

    def get(row: Any) -> Any:
        for each in gets:
            row = each(row)
        return row

    return get
