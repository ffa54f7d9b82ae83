"""The functions that Avro readers are made of. Each reads at a place of a value, and none goes on for longer than it has bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from operator import itemgetter
from typing import Any

from streamer.records.meaning import NO_CELL, Cell
from streamer.records.schemas.avro_types import MAX_DECIMAL_BYTES, Type
from streamer.records.unusable import Unusable, plain
from streamer.words import Reason

MAX_DEPTH = 200
"""Levels of one value."""
Read = Callable[[bytes, int, list[Cell], int], int]
"""Value, place in it, cells to fill, levels above -> place where it ended. IndexError, struct.error: the value ends early."""
SIZES = {"float": 4, "double": 8}


def bad(detail: str) -> Unusable:
    return Unusable(Reason.UNDECODABLE, detail)


def ends_early() -> Unusable:
    return bad("the value ends before all of its schema is read")


class Run:
    """Neighbouring fields of 4 or 8 bytes, which are read together; those of a union with null too, while none is null."""

    def __init__(self) -> None:
        self._fields: list[tuple[str, int | None, int | None, Read]] = []

    def add(self, kind: str, leaf: int | None, branch: int | None, alone: Read) -> None:
        """``branch``: of the number in its union, None: there is no union. ``alone``: reads this field, whatever is there."""
        self._fields.append((kind, leaf, branch, alone))

    def take(self) -> list[Read]:
        fields, self._fields = self._fields, []
        if not fields:
            return []
        letters, flags, wanted, leaves = "<", [], [], []
        expected: list[int] = []
        count = 0
        for kind, leaf, branch, _ in fields:
            if branch is not None:
                letters, count = letters + "B", count + 1
                flags.append(count - 1)
                expected.append(branch * 2)  # zigzag
            if leaf is not None:
                wanted.append(count)
                leaves.append(leaf)
            letters, count = letters + kind[0], count + 1
        packed = struct.Struct(letters)
        whole = len(wanted) == count
        if not wanted and not flags:
            return [passed(packed.size)]
        put = _put(leaves, None if whole else _tuple_of(wanted))
        if not flags:

            def together(value: bytes, at: int, found: list[Cell], depth: int) -> int:
                put(found, packed.unpack_from(value, at))
                return at + packed.size

            return [together]
        flags_of, all_there, size, alone = _tuple_of(flags), tuple(expected), packed.size, [each[3] for each in fields]

        def unless_null(value: bytes, at: int, found: list[Cell], depth: int) -> int:
            if at + size <= len(value):
                numbers = packed.unpack_from(value, at)
                if flags_of(numbers) == all_there:
                    put(found, numbers)
                    return at + size
            for read in alone:
                at = read(value, at, found, depth)
            return at

        return [unless_null]


def _tuple_of(places: Sequence[int]) -> Callable[[Any], tuple[Any, ...]]:
    if len(places) > 1:
        return itemgetter(*places)
    return lambda numbers: tuple([numbers[place] for place in places])


def _put(leaves: Sequence[int], chosen: Callable[[Any], tuple[Any, ...]] | None) -> Callable[[list[Cell], Any], None]:
    """Puts numbers into their places; ``chosen``: which of those that were read, None: all."""
    if leaves and all(two == one + 1 for one, two in pairwise(leaves)):
        first, behind = leaves[0], leaves[-1] + 1

        def slice_of(found: list[Cell], numbers: Any) -> None:
            found[first:behind] = numbers if chosen is None else chosen(numbers)

        return slice_of

    def each(found: list[Cell], numbers: Any) -> None:
        for leaf, number in zip(leaves, numbers if chosen is None else chosen(numbers), strict=True):
            found[leaf] = number

    return each


def varint(value: bytes, at: int) -> tuple[int, int]:
    """A long, zigzag; and where it ended."""
    byte = value[at]
    at += 1
    if byte < 0x80:
        return (byte >> 1) ^ -(byte & 1), at
    number, shift = byte & 0x7F, 7
    while byte >= 0x80:
        byte = value[at]
        at += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if shift > 70:
            raise bad("a number has more than 10 bytes")
    if number >= 1 << 64:
        raise bad("a number has more than 64 bits")
    return (number >> 1) ^ -(number & 1), at


def sized(value: bytes, at: int) -> tuple[int, int]:
    """Where bytes or a text begin and end."""
    size, at = varint(value, at)
    if not 0 <= size <= len(value) - at:
        raise bad(f"a text or bytes of length {size} do not fit into the {len(value) - at} bytes that are left")
    return at, at + size


def passed(size: int) -> Read:
    return lambda value, at, found, depth: at + size


def passed_sized(value: bytes, at: int, found: list[Cell], depth: int) -> int:
    return sized(value, at)[1]


def null(leaves: Sequence[int]) -> Read:
    if len(leaves) == 1:
        (leaf,) = leaves

        def one(value: bytes, at: int, found: list[Cell], depth: int) -> int:
            found[leaf] = None
            return at

        return one

    def nothing(value: bytes, at: int, found: list[Cell], depth: int) -> int:
        for leaf in leaves:
            found[leaf] = None
        return at

    return nothing


def given(cells: Sequence[tuple[int, Cell]]) -> Read:
    """What stands in no value: a reader's defaults."""

    def put(value: bytes, at: int, found: list[Cell], depth: int) -> int:
        for leaf, cell in cells:
            found[leaf] = cell
        return at

    return put


def both(inner: Read, leaf: int) -> Read:
    """What lies inside; the whole of it is no cell."""

    def read(value: bytes, at: int, found: list[Cell], depth: int) -> int:
        found[leaf] = NO_CELL
        return inner(value, at, found, depth)

    return read


def refusing(why: str) -> Read:
    def refuse(value: bytes, at: int, found: list[Cell], depth: int) -> int:
        raise bad(plain(why))

    return refuse


def integer(leaf: int | None, becomes: Callable[[int], Cell] | None) -> Read:
    def passed_over(value: bytes, at: int, found: list[Cell], depth: int) -> int:
        return varint(value, at)[1]

    if leaf is None:
        return passed_over

    def read(value: bytes, at: int, found: list[Cell], depth: int) -> int:
        number, at = varint(value, at)
        found[leaf] = number if becomes is None else becomes(number)
        return at

    return read


def number(leaf: int, kind: str) -> Read:
    packed = struct.Struct("<f" if kind == "float" else "<d")

    def read(value: bytes, at: int, found: list[Cell], depth: int) -> int:
        (found[leaf],) = packed.unpack_from(value, at)
        return at + packed.size

    return read


def truth(leaf: int | None) -> Read:
    def read(value: bytes, at: int, found: list[Cell], depth: int) -> int:
        byte = value[at]
        if byte > 1:
            raise bad(f"a boolean is byte {byte}")
        if leaf is not None:
            found[leaf] = byte == 1
        return at + 1

    return read


def text(leaf: int) -> Read:
    def read(value: bytes, at: int, found: list[Cell], depth: int) -> int:
        begin, end = sized(value, at)
        try:
            found[leaf] = value[begin:end].decode()
        except UnicodeDecodeError as error:
            raise bad(plain(error)) from None
        return end

    return read


def symbol(leaf: int | None, writer: Type, reader: Type | None) -> Read:
    """A symbol that the reader does not know is the reader's default."""
    symbols: list[str | None] = list(writer.symbols)
    if reader is not None and reader.symbols:
        symbols = [each if each in reader.symbols else reader.default for each in writer.symbols]

    def read(value: bytes, at: int, found: list[Cell], depth: int) -> int:
        index, at = varint(value, at)
        if not 0 <= index < len(symbols):
            raise bad(f"enum {writer.name} has no symbol number {index}, it has {len(symbols)}")
        if leaf is not None:
            found[leaf] = symbols[index]
            if symbols[index] is None:
                raise bad(plain(f"the reader's schema has no symbol {writer.symbols[index]!r} in {writer.name}"))
        return at

    return read


def decimal(leaf: int, size: int | None, scale: int) -> Read:
    """The number nearest to a decimal; ``size``: of a fixed one."""
    one = 10**scale

    def read(value: bytes, at: int, found: list[Cell], depth: int) -> int:
        begin, end = sized(value, at) if size is None else (at, at + size)
        if end - begin > MAX_DECIMAL_BYTES:
            raise bad(f"a decimal has {end - begin} bytes, at most {MAX_DECIMAL_BYTES} are read")
        unscaled = int.from_bytes(value[begin:end], "big", signed=True)
        found[leaf] = unscaled / one if scale else unscaled
        return end

    return read


def branches(reads: Sequence[Read], where: str) -> Read:
    count = len(reads)

    def read(value: bytes, at: int, found: list[Cell], depth: int) -> int:
        index, at = varint(value, at)
        if not 0 <= index < count:
            of = f" of {where}" if where else ""
            raise bad(plain(f"the union{of} has no branch number {index}, it has {count}"))
        return reads[index](value, at, found, _below(depth))

    return read


def sequence(steps: Sequence[Read]) -> Read:
    """The fields of a record, one after the other."""

    def read(value: bytes, at: int, found: list[Cell], depth: int) -> int:
        depth = _below(depth)
        for step in steps:
            at = step(value, at, found, depth)
        return at

    return read


def array(wanted: Mapping[Any, Read], skip: Read, least: int) -> Read:
    """``wanted``: place in the list -> what reads it. ``least``: bytes of an item; those of none are passed over at once."""
    most = max(wanted, default=-1)

    def read(value: bytes, at: int, found: list[Cell], depth: int) -> int:
        depth, begun = _below(depth), 0
        while True:
            count, at = _block(value, at, least)
            if not count:
                return at
            walked = count if least else min(count, max(most + 1 - begun, 0))
            for place in range(begun, begun + walked):
                at = (wanted.get(place, skip) if place <= most else skip)(value, at, found, depth)
            begun += count

    return read


def named(wanted: Mapping[bytes, Read], skip: Read, least: int) -> Read:
    """A map; of repeated keys the last counts."""

    def read(value: bytes, at: int, found: list[Cell], depth: int) -> int:
        depth = _below(depth)
        while True:
            count, at = _block(value, at, least + 1)
            if not count:
                return at
            for _ in range(count):
                begin, at = sized(value, at)
                at = wanted.get(value[begin:at], skip)(value, at, found, depth)

    return read


def _block(value: bytes, at: int, least: int) -> tuple[int, int]:
    """How many items come next, and where. A count below zero is followed by their bytes, which are read all the same."""
    count, at = varint(value, at)
    if count < 0:
        count, (_, at) = -count, varint(value, at)
    if count * least > len(value) - at:
        raise bad(f"{count} items do not fit into the {len(value) - at} bytes that are left")
    return count, at


def _below(depth: int) -> int:
    if depth >= MAX_DEPTH:
        raise bad(f"the value is nested deeper than {MAX_DEPTH} levels")
    return depth + 1
