"""An event loop with virtual time and seeded choice of what runs next, so that a run is repeated exactly from its seed.

What makes it exact: clock functions are replaced for the run; each turn of the loop takes some virtual time (the client's
sender polls the clock in a loop); tasks and futures are hashed by number, topic partitions and brokers by value (the client
keeps them in sets, and the hash of None, a broker without a rack, is an address); the global ``random`` is seeded; the garbage
collector is off (finalisers act); only tasks race, callbacks of transports and timers keep the order that asyncio promises.
What is left, sets of texts, needs PYTHONHASHSEED to be fixed: ``python -m tests.simulation`` starts itself anew with it.

Several members live in one loop. Every callback belongs to the member whose context it carries, none to the cluster.
A member can die (nothing of it ever runs again), stand still, or be slow: then its own clock runs ahead and the others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import heapq
import random
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context, ContextVar
from typing import Any

from aiokafka.producer import message_accumulator
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.structs import BrokerMetadata, TopicPartition

MEMBER: ContextVar[str] = ContextVar("member", default="")
EPOCH_S = 1_700_000_000.0
"""Wall clock at virtual time zero."""
TURN_S = 20e-6
real_time = time.perf_counter


class Deadlock(Exception):
    """Nothing can ever happen again."""


class Exhausted(Exception):
    """The run takes more turns than any sane one: something spins."""


class SimTask(asyncio.Task[Any]):
    def __init__(self, coro: Coroutine[Any, Any, Any], *, loop: SimLoop, **options: Any) -> None:
        loop.made += 1
        self.number = loop.made
        self.member = MEMBER.get()
        super().__init__(coro, loop=loop, **options)

    def __hash__(self) -> int:
        return self.number


class SimFuture(asyncio.Future[Any]):
    def __init__(self, *, loop: SimLoop) -> None:
        loop.made += 1
        self.number = loop.made
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self.number


class SimLoop(asyncio.BaseEventLoop):
    """Time stands still while anything can run, then jumps to the next timer."""

    def __init__(self, seed: int, *, max_turns: int = 2_000_000) -> None:
        super().__init__()
        self.rng = random.Random(seed)
        self.now = 0.0
        self.made = 0
        self.turns = 0
        self.max_turns = max_turns
        self.history: list[tuple[float, str, str]] = []
        self.problems: list[str] = []
        self.connect: Callable[..., Coroutine[Any, Any, Any]] | None = None
        self.current = ""
        self.dead: set[str] = set()
        self.doomed: dict[str, tuple[int, Callable[[], None]]] = {}
        """Member -> (callbacks that it still runs, what to do then)"""
        self.skew_s: dict[str, float] = {}
        """What a member's wall clock is off."""
        self.backdrop = Context()
        """Context of the cluster's own callbacks: of no member."""
        self._busy: dict[str, float] = {}
        self._held: dict[str, list[asyncio.Handle]] = {}
        self._graveyard: list[Any] = []
        self._seed = seed
        self.set_task_factory(lambda loop, coro, **options: SimTask(coro, loop=loop, **options))  # type: ignore[arg-type]
        self.set_exception_handler(lambda _, context: self.problems.append(_problem(context)))

    # time

    def time(self) -> float:
        """Of the member that runs: a member in a slow call is ahead of the others."""
        return max(self.now, self._busy.get(self.current, 0.0))

    def wall(self) -> float:
        return EPOCH_S + self.time() + self.skew_s.get(self.current, 0.0)

    def note(self, text: str, who: str | None = None) -> None:
        self.history.append((self.time(), self.current if who is None else who, text))

    def consume(self, seconds: float) -> None:
        """What runs now takes that long; the other members go on meanwhile."""
        if self.current:
            self._busy[self.current] = self.time() + seconds

    def freeze(self, member: str, seconds: float) -> None:
        """The process stands still (stopped, or collecting garbage); its sockets and its clock go on."""
        self._busy[member] = max(self._busy.get(member, 0.0), self.now + seconds)

    def at(self, when: float, call: Callable[..., Any], *arguments: Any) -> asyncio.TimerHandle:
        """A callback of the cluster or of the schedule, of no member."""
        return self.call_at(when, call, *arguments, context=self.backdrop)

    def after(self, seconds: float, call: Callable[..., Any], *arguments: Any) -> asyncio.TimerHandle:
        return self.call_at(self.time() + seconds, call, *arguments, context=self.backdrop)

    # members

    def spawn(self, member: str, coro: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Starts a member's main task; all that it starts is of that member too."""
        context = Context()
        context.run(MEMBER.set, member)
        self.dead.discard(member)
        self._busy.pop(member, None)
        return context.run(lambda: self.create_task(coro))

    def kill(self, member: str) -> None:
        """Not one more line of it runs: no ``finally``, no ``except``."""
        self.dead.add(member)
        self.doomed.pop(member, None)
        self._graveyard += [task for task in asyncio.all_tasks(self) if task.member == member]  # type: ignore[attr-defined]
        self._graveyard += self._held.pop(member, [])
        self._busy.pop(member, None)

    # the loop

    def _run_once(self) -> None:
        self.turns += 1
        if self.turns > self.max_turns:
            raise Exhausted(f"{self.turns} turns")
        scheduled, ready = self._scheduled, self._ready  # type: ignore[attr-defined]
        if self._timer_cancelled_count > 200 and self._timer_cancelled_count > len(scheduled) // 2:  # type: ignore[has-type]
            kept = []
            for handle in scheduled:
                if handle._cancelled:
                    handle._scheduled = False
                else:
                    kept.append(handle)
            heapq.heapify(kept)
            self._scheduled = scheduled = kept
            self._timer_cancelled_count = 0
        while scheduled and scheduled[0]._cancelled:
            self._timer_cancelled_count -= 1
            heapq.heappop(scheduled)._scheduled = False
        self.now += TURN_S
        if not ready:
            self._jump(scheduled)
        if self._busy:
            self._resume()
        while scheduled and scheduled[0]._when <= self.now:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            if handle._cancelled:
                self._timer_cancelled_count -= 1
            ready.append(handle)
        self._run_all([ready.popleft() for _ in range(len(ready))])

    def _jump(self, scheduled: list[asyncio.TimerHandle]) -> None:
        times = [self._busy[member] for member in self._held]
        if scheduled:
            times.append(scheduled[0].when())
        if not times:
            raise Deadlock("nothing can ever happen again")
        self.now = max(self.now, min(times))

    def _resume(self) -> None:
        for member in [member for member, until in self._busy.items() if until <= self.now]:
            del self._busy[member]
            self._ready.extendleft(reversed(self._held.pop(member, [])))  # type: ignore[attr-defined]

    def _run_all(self, handles: list[asyncio.Handle]) -> None:
        places = [i for i, each in enumerate(handles) if isinstance(getattr(each._callback, "__self__", None), SimTask)]  # type: ignore[attr-defined]
        if len(places) > 1:
            chosen = [handles[i] for i in places]
            self.rng.shuffle(chosen)  # tasks race; the rest keeps its order
            for place, handle in zip(places, chosen, strict=True):
                handles[place] = handle
        for handle in handles:
            if handle._cancelled:  # type: ignore[attr-defined]
                continue
            member = handle._context.get(MEMBER, "")  # type: ignore[attr-defined]
            if member:
                if member in self.dead:
                    self._graveyard.append(handle)
                    continue
                if self._busy.get(member, 0.0) > self.now:
                    self._held.setdefault(member, []).append(handle)
                    continue
                if member in self.doomed and self._dies(member, handle):
                    continue
            self.current = member
            handle._run()
        self.current = ""

    def _dies(self, member: str, handle: asyncio.Handle) -> bool:
        left, call = self.doomed[member]
        if left > 0:
            self.doomed[member] = left - 1, call
            return False
        self._graveyard.append(handle)
        self.kill(member)
        call()
        return True

    def create_future(self) -> asyncio.Future[Any]:
        return SimFuture(loop=self)

    def _process_events(self, events: Any) -> None: ...

    def _write_to_self(self) -> None: ...

    async def create_connection(self, factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        assert self.connect is not None, "no network"
        return await self.connect(factory, host, port)

    def bury(self) -> None:
        """Frees what was left behind. Suspended coroutines run their ``finally`` blocks here, against a closed loop; nobody
        looks at what they say."""
        self._graveyard += list(asyncio.all_tasks(self))
        for task in self._graveyard:
            if isinstance(task, SimTask):
                task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._scheduled.clear()  # type: ignore[attr-defined]
        self._ready.clear()  # type: ignore[attr-defined]
        self.connect = None
        self.close()
        self._graveyard.clear()
        self._held.clear()


def _problem(context: dict[str, Any]) -> str:
    error = context.get("exception")
    return f"{context.get('message')}: {error!r}" if error is not None else str(context.get("message"))


class SimBuilder(DefaultRecordBatchBuilder):
    """Stamps what has no timestamp with virtual time: the compiled builder asks the system."""

    def append(self, offset: int, timestamp: int | None, key: Any, value: Any, headers: Any) -> Any:
        if timestamp is None:
            timestamp = int(time.time() * 1000)
        return super().append(offset, timestamp, key, value, headers)


_frozen = False


def _clean_memory() -> None:
    """What was imported is looked at once and never again: a collection is to cost no more than what a run made."""
    global _frozen  # noqa: PLW0603
    gc.collect()
    if not _frozen:
        gc.freeze()
        _frozen = True


@contextlib.contextmanager
def simulated(seed: int, *, max_turns: int = 2_000_000) -> Iterator[SimLoop]:
    """A loop whose clock is everybody's clock while the block runs."""
    loop = SimLoop(seed, max_turns=max_turns)
    names = ("time", "monotonic", "time_ns", "monotonic_ns", "perf_counter")
    saved = {name: getattr(time, name) for name in names}
    state, hook = random.getstate(), sys.unraisablehook
    hashed, hashed_broker = TopicPartition.__hash__, BrokerMetadata.__hash__
    random.seed(seed)  # the client draws from the global generator
    _clean_memory()
    gc.disable()
    time.time, time.monotonic, time.perf_counter = loop.wall, loop.time, loop.time
    time.time_ns, time.monotonic_ns = (lambda: int(loop.wall() * 1e9)), (lambda: int(loop.time() * 1e9))
    TopicPartition.__hash__ = lambda self: len(self.topic) * 31 + self.partition  # type: ignore[method-assign]
    BrokerMetadata.__hash__ = lambda self: self.nodeId  # type: ignore[method-assign]
    message_accumulator.DefaultRecordBatchBuilder = SimBuilder
    asyncio.set_event_loop(loop)
    try:
        yield loop
    finally:
        sys.unraisablehook = lambda _: None
        asyncio.set_event_loop(None)
        loop.bury()
        gc.collect()
        for name, function in saved.items():
            setattr(time, name, function)
        message_accumulator.DefaultRecordBatchBuilder = DefaultRecordBatchBuilder
        TopicPartition.__hash__ = hashed  # type: ignore[method-assign]
        BrokerMetadata.__hash__ = hashed_broker  # type: ignore[method-assign]
        sys.unraisablehook = hook
        random.setstate(state)
        gc.enable()
