"""Connections in memory: what is written arrives later and in order, or never.

A wire has two ends. The client's is an asyncio transport, the cluster's is a ``Peer`` that gets whole requests, one at a
time as a broker reads them: the next one is looked at when the one before is answered."""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any

from tests.simulation.loop import MEMBER, SimLoop

Address = tuple[str, int]


class Network:
    """Addresses, who listens there, and how long things take."""

    def __init__(self, loop: SimLoop) -> None:
        self.loop = loop
        self.listening: dict[Address, Callable[[Peer], None]] = {}
        self.wires: list[Wire] = []
        self.latency_s = (0.0002, 0.002)
        self.cut_until: dict[tuple[str, Address | None], float] = {}
        """(member, address or all) -> until when nothing passes. What was sent arrives then, as TCP sends it again."""
        loop.connect = self.connect

    async def connect(self, factory: Callable[[], Any], host: str, port: int) -> tuple[Wire, Any]:
        address, member = (host, port), MEMBER.get()
        await asyncio.sleep(self.delay_s() + max(self.held_until(member, address) - self.loop.time(), 0.0))
        if address not in self.listening:
            raise ConnectionRefusedError(f"{host}:{port}")
        protocol = factory()
        wire = Wire(self, protocol, member, address)
        self.wires.append(wire)
        protocol.connection_made(wire)
        self.listening[address](wire.peer)
        return wire, protocol

    def delay_s(self) -> float:
        return self.loop.rng.uniform(*self.latency_s)

    def held_until(self, member: str, address: Address) -> float:
        return max(self.cut_until.get((member, address), 0.0), self.cut_until.get((member, None), 0.0))

    def of(self, member: str) -> list[Wire]:
        return [wire for wire in self.wires if wire.member == member]

    def stop_listening(self, address: Address) -> None:
        self.listening.pop(address, None)
        for wire in [wire for wire in self.wires if wire.address == address]:
            wire.cut()

    def died(self, member: str) -> None:
        """Its sockets are closed by its system. What it wrote before may still arrive."""
        for wire in self.of(member):
            if self.loop.rng.random() < 0.5:
                wire.deaf = True
            wire.closed = True
            wire.hang_up()
            self.wires.remove(wire)


class Wire(asyncio.Transport):
    """The client's end."""

    def __init__(self, network: Network, protocol: Any, member: str, address: Address) -> None:
        super().__init__()
        self.network, self.protocol, self.member, self.address = network, protocol, member, address
        self.context: Context = copy_context()
        self.peer = Peer(self)
        self.closed = False
        self.deaf = False
        """What is on its way to the cluster is lost."""
        self._to_peer_at = self._to_client_at = 0.0

    def write(self, data: Any) -> None:
        if not self.closed:
            self._to_peer_at = self._next(self._to_peer_at)
            self.network.loop.at(self._to_peer_at, self._arrive, bytes(data))

    def _arrive(self, data: bytes) -> None:
        if not self.deaf:
            self.peer.received(data)

    def deliver(self, data: bytes) -> None:
        """From the cluster."""
        self._to_client_at = self._next(self._to_client_at)
        self.network.loop.call_at(self._to_client_at, self._deliver, data, context=self.context)

    def _deliver(self, data: bytes) -> None:
        if not self.closed:
            self.protocol.data_received(data)

    def _next(self, last: float) -> float:
        """When something that is sent now arrives: never before what was sent earlier."""
        loop = self.network.loop
        when = max(last + 1e-6, loop.time() + self.network.delay_s())
        return max(when, self.network.held_until(self.member, self.address))

    def close(self) -> None:
        if not self.closed:
            self._gone(None)
            self.hang_up()

    def hang_up(self) -> None:
        self._to_peer_at = self._next(self._to_peer_at)
        self.network.loop.at(self._to_peer_at, self.peer.lost)

    def abort(self) -> None:
        self.close()

    def cut(self) -> None:
        """The connection breaks. What is on its way arrives or not, in either direction."""
        if self.closed:
            return
        rng = self.network.loop.rng
        self.deaf = rng.random() < 0.5
        self.peer.mute = True
        self.network.loop.after(self.network.delay_s(), self.peer.lost)
        self.network.loop.call_later(self.network.delay_s(), self._broken, context=self.context)

    def _broken(self) -> None:
        if not self.closed:
            self._gone(ConnectionResetError("connection reset by peer"))

    def _gone(self, error: Exception | None) -> None:
        self.closed = True
        if self in self.network.wires:
            self.network.wires.remove(self)
        self.network.loop.call_soon(self.protocol.connection_lost, error, context=self.context)

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0


class Peer:
    """The cluster's end: requests in order, one at a time."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.serve: Callable[[Peer, bytes], None] = lambda peer, frame: None
        self.mute = False
        """Answers are lost."""
        self.gone = False
        self._buffer = bytearray()
        self._frames: deque[bytes] = deque()
        self._busy = False

    def received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        while len(buffer) >= 4:
            size = struct.unpack_from(">i", buffer)[0]
            if len(buffer) < 4 + size:
                break
            self._frames.append(bytes(buffer[4 : 4 + size]))
            del buffer[: 4 + size]
        self._next()

    def _next(self) -> None:
        while self._frames and not self._busy and not self.gone:
            self._busy = True
            self.serve(self, self._frames.popleft())

    def answer(self, data: bytes) -> None:
        if not self.mute and not self.gone:
            self.wire.deliver(struct.pack(">i", len(data)) + data)
        self.done()

    def done(self) -> None:
        """Answered, or never to be answered: the next request may come."""
        if self._busy:
            self._busy = False
            self._next()

    def lost(self) -> None:
        self.gone = True
        self._frames.clear()
