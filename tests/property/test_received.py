"""The reader of large answers gives what the standard library's gives, however the bytes come in."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.kafka import received
from streamer.kafka.received import Reader

LARGE = received.LARGE_BYTES
SIZES = st.one_of(st.integers(0, 9), st.integers(LARGE - 3, LARGE + 3), st.integers(LARGE, 5 * LARGE))


@dataclass
class Socket:
    """In the place of a transport: whether it may give."""

    reading: bool = True
    stops: int = 0

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False
        self.stops += 1

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True


@dataclass
class Conversation:
    """One reader, that is asked for ``sizes`` one after the other, and what came of it."""

    reader: asyncio.StreamReader
    sizes: list[int]
    answers: list[bytes | tuple[bytes, int] | str] = field(default_factory=list)

    async def run(self) -> None:
        for size in self.sizes:
            try:
                self.answers.append(await self.reader.readexactly(size))
            except asyncio.IncompleteReadError as error:
                assert error.expected is not None
                self.answers.append((error.partial, error.expected))
                return
            except ConnectionResetError as error:
                self.answers.append(str(error))
                return


async def converse(
    sizes: list[int],
    pieces: list[bytes],
    ending: str,
    turns: list[bool],
    become: Callable[[asyncio.StreamReader], None],
) -> tuple[list[bytes | tuple[bytes, int] | str], bytes, bool]:
    """``turns``: whether the reader gets its turn behind each piece. ``become`` is called while it waits for the first."""
    socket = Socket()
    reader = asyncio.StreamReader(limit=LARGE)
    reader.set_transport(socket)  # type: ignore[arg-type]
    conversation = Conversation(reader, sizes)
    task = asyncio.create_task(conversation.run())
    await asyncio.sleep(0)
    become(reader)
    for piece, turn in zip(pieces, turns, strict=True):
        for _ in range(len(sizes) + 1):
            if not socket.reading:
                await asyncio.sleep(0)
        reader.feed_data(piece)
        if turn:
            await asyncio.sleep(0)
    if ending == "eof":
        reader.feed_eof()
    elif ending == "reset":
        reader.set_exception(ConnectionResetError("gone"))
    for _ in range(len(sizes) + 3):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return conversation.answers, bytes(reader._buffer), socket.reading  # type: ignore[attr-defined]


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(SIZES, min_size=1, max_size=6),
    cuts=st.lists(st.integers(1, 3 * LARGE), max_size=30),
    missing=st.integers(0, 2 * LARGE),
    ending=st.sampled_from(["eof", "reset", "open"]),
    seed=st.integers(0, 1 << 30),
)
def test_it_reads_what_the_standard_library_reads(
    sizes: list[int], cuts: list[int], missing: int, ending: str, seed: int
) -> None:
    chance = random.Random(seed)
    data = chance.randbytes(max(sum(sizes) - missing, 0))
    pieces, at = [], 0
    for cut in [*cuts, len(data)]:
        if at < len(data):
            pieces.append(data[at : at + cut])
            at += cut
    turns = [chance.random() < 0.5 for _ in pieces]
    theirs = asyncio.run(converse(sizes, pieces, ending, turns, lambda reader: None))
    ours = asyncio.run(converse(sizes, pieces, ending, turns, Reader.become))
    if ending == "reset":  # theirs may wait for ever, where the error comes in the same turn as bytes
        assert ours[0] in (theirs[0], [*theirs[0], "gone"])
    else:
        assert ours[:2] == theirs[:2]


async def test_an_answer_that_nobody_waits_for_any_more_is_there_for_the_next() -> None:
    reader = asyncio.StreamReader(limit=LARGE)
    Reader.become(reader)
    task = asyncio.create_task(reader.readexactly(3 * LARGE))
    await asyncio.sleep(0)
    reader.feed_data(b"a" * LARGE)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    reader.feed_data(b"b" * 2 * LARGE)
    assert await reader.readexactly(3 * LARGE) == b"a" * LARGE + b"b" * 2 * LARGE


async def test_what_came_at_the_end_is_read_before_the_end() -> None:
    """The client takes a connection at its end for closed, and drops what was asked of it."""
    reader = asyncio.StreamReader(limit=LARGE)
    Reader.become(reader)
    task = asyncio.create_task(reader.readexactly(LARGE))
    await asyncio.sleep(0)
    reader.feed_data(b"a" * LARGE)
    reader.feed_eof()
    assert not reader.at_eof()
    assert await task == b"a" * LARGE
    assert reader.at_eof()


async def test_small_pieces_are_gathered() -> None:
    """Each of them may be a page of its own, and a process may have 65,530 of these."""
    reader = asyncio.StreamReader(limit=LARGE)
    Reader.become(reader)
    data = random.Random(0).randbytes(40 * LARGE)
    task = asyncio.create_task(reader.readexactly(len(data)))
    await asyncio.sleep(0)
    for at in range(0, len(data), 200):
        reader.feed_data(data[at : at + 200])
    assert isinstance(reader, Reader)
    assert len(reader._pieces) <= 1 + len(data) // received._GATHERED_BYTES
    assert await task == data


async def test_two_cannot_read_at_once_and_the_first_goes_on() -> None:
    reader = asyncio.StreamReader(limit=LARGE)
    Reader.become(reader)
    task = asyncio.create_task(reader.readexactly(2 * LARGE))
    await asyncio.sleep(0)
    reader.feed_data(b"a" * LARGE)
    with pytest.raises(RuntimeError, match="another coroutine"):
        await reader.readexactly(3 * LARGE)
    reader.feed_data(b"a" * LARGE)
    assert await task == b"a" * 2 * LARGE


def test_only_the_standard_librarys_own_becomes_ours() -> None:
    async def readers() -> list[asyncio.StreamReader | None]:
        class Other(asyncio.StreamReader):
            pass

        found = [asyncio.StreamReader(), Other(), None]
        for _ in range(2):
            for each in found:
                Reader.become(each)
        return found

    assert [type(each).__name__ for each in asyncio.run(readers())] == ["Reader", "Other", "NoneType"]


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_over_a_socket(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    frames = [random.Random(each).randbytes(size) for each, size in enumerate((5, 3_000_000, LARGE, 8_000_000, 1))]

    async def write(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for frame in frames:
            writer.write(frame)
        await writer.drain()
        writer.close()

    async def talk() -> list[bytes]:
        server = await asyncio.start_server(write, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), limit=LARGE)
            Reader.become(reader)
            found = [await reader.readexactly(len(frame)) for frame in frames]
            with pytest.raises(asyncio.IncompleteReadError):
                await reader.readexactly(LARGE)
            writer.close()
            return found

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(talk()) == frames
