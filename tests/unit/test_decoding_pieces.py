"""Records that are large or slow to read keep nobody waiting, and mean what they mean together."""

from __future__ import annotations

import asyncio
from typing import Any

from decoding import contract, records

from streamer.records.decode import Codec
from streamer.service.decoding import PIECE_BYTES, Decoding, in_pieces

GOOD = b'{"x":[1,2]}'


def large(size: int) -> bytes:
    return b'{"x":[1,2],"m":"' + b"m" * (size - 18) + b'"}'


def test_pieces_are_bounded_and_hold_every_record_once() -> None:
    values = [
        GOOD,
        large(PIECE_BYTES),
        GOOD,
        None,
        large(PIECE_BYTES + 1),
        large(PIECE_BYTES // 2),
        large(PIECE_BYTES // 2),
        b"",
    ]
    batch = records(values, headers={1: [("a", b"1")], 5: [("b", b"2")]})
    pieces = list(in_pieces(batch))
    assert [value for piece in pieces for value in piece.values] == values
    assert [offset for piece in pieces for offset in piece.offsets] == list(batch.offsets)
    assert all(len(piece) == 1 or sum(len(each or b"") for each in piece.values) <= PIECE_BYTES for piece in pieces)
    assert {piece.values[row]: name for piece in pieces for row, ((name, _),) in piece.headers.items()} == {
        values[1]: "a",
        values[5]: "b",
    }


async def test_other_tasks_get_a_turn_and_a_hand_over_ends_it() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    now = 0.0

    def monotonic() -> float:
        nonlocal now
        now += 0.03
        return now

    batches = [records([large(PIECE_BYTES)] * 5)]
    codec = Codec(contract(), "json", max_record_bytes=1 << 24)
    beside = asyncio.create_task(other())
    try:
        found = await Decoding(codec, monotonic, lambda: False).events(batches)
        assert found is not None
        assert [len(each) for each in found] == [1] * 5
        assert turns == 5
        assert await Decoding(codec, monotonic, lambda: turns > 7).events(batches) is None
        assert turns == 8
    finally:
        beside.cancel()


async def test_small_records_are_decoded_at_once() -> None:
    def never() -> bool:
        raise AssertionError("nobody is asked")

    codec: Any = Codec(contract(), "json")
    found = await Decoding(codec, lambda: 0.0, never).events([records([GOOD] * 3), records([GOOD])])
    assert found is not None
    assert [len(each) for each in found] == [3, 1]
