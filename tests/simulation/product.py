"""The only file of the simulator that knows the service: when the service changes, this changes."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import emitting
import numpy as np
from emitting import LABELS
from pasts import PastModel
from simulated import ChainModel
from windowing import FoldModel, Reference
from writing import WritingModel

from streamer.core import Op
from streamer.errors import ModelRunError, StreamerError
from streamer.kafka import requests as own_requests
from streamer.kafka.requests import TxnOffsetCommit
from streamer.modelfile.contract import Contract
from streamer.records.changelog import NO_WATERMARK, Kind, decode_progress, decode_stream, split_key
from streamer.service.wiring import build, prepare
from streamer.settings import Settings, UtteranceSection
from tests.simulation.chains import CHAINS, EMITS, MODULUS, PAST, Chain

__all__ = ["LABELS", "StreamerError"]


def request_modules() -> list[ModuleType]:
    """Modules with request structures that the client does not have."""
    return [own_requests]  # of two for one version the last by name is what the broker answers with


def txn_offset_commit(
    name: str,
    group: str,
    producer: tuple[int, int],
    member: tuple[int, str, str | None],
    topic: str,
    offsets: dict[int, int],
) -> Any:
    """The service's own request, which names generation, member id and instance."""
    rows = [(partition, offset, -1, "", {}) for partition, offset in offsets.items()]
    return TxnOffsetCommit(name, group, *producer, *member, [(topic, rows, {})])


# settings and models


def settings(document: Mapping[str, Any]) -> Settings:
    return Settings(**document)


class StepModel(ChainModel):
    """A chain of ``chains``: anything missed, repeated or mixed up shows in every later answer of the stream."""

    def __init__(self, letter: str, cost: Callable[[int], None], *, feeds_back: bool = False, steps: str) -> None:
        self.chain: Chain = CHAINS[letter]
        super().__init__(self.chain.sha256, steps=steps)
        self._cost = cost
        if feeds_back:
            fields: dict[str, Any] = {
                "name": "chain",
                "mode": "step",
                "input": {"name": "x", "shape": ["batch", "time", 1], "steps": steps},
                "lengths": "lengths",
                "states": [{"input": "h", "output": "h_next", "shape": [1, "batch", 1]}],
                "outputs": [{"name": "y", "shape": ["batch", "time", 1], "kind": "value"}],
                "feedback": {"output": "y", "mode": "value"},
            }
            self.contract = Contract.from_fields(fields)
            self.states = self.contract.states

    def run(self, x: Any, lengths: Any, states: Sequence[Any]) -> Any:
        chain = self.chain
        self._cost(int(np.sum(lengths)))
        if any((x == poison).any() for poison in chain.refuses):
            raise ModelRunError(f"{chain.letter} does not take that")
        h = states[0][0, :, 0].astype(np.float64)
        y = np.zeros(x.shape, np.float32)
        for step in range(x.shape[1]):
            alive = lengths > step
            h[alive] = (
                h[alive] * chain.factor + x[alive, step, 0].astype(np.float64) * chain.weight + chain.bias
            ) % MODULUS
            y[alive, step, 0] = h[alive]
        return [y], [h.astype(np.float32)[None, :, None]]


class StepModelWithPast(PastModel):
    def __init__(self, letter: str, cost: Callable[[int], None]) -> None:
        super().__init__(CHAINS[letter].sha256)
        self._cost = cost

    def run(self, x: Any, lengths: Any, states: Sequence[Any]) -> Any:
        self._cost(int(np.sum(lengths)))
        return super().run(x, lengths, states)


class WindowModel(FoldModel):
    def __init__(self, cost: Callable[[int], None], steps: str = "one", *, per: str = "window") -> None:
        super().__init__(steps=steps, per=per)
        self._cost = cost

    def run(self, x: Any, lengths: Any, states: Sequence[Any]) -> Any:
        self._cost(int(np.sum(lengths)))
        return super().run(x, lengths, states)


class EmittingModel(StepModel):
    """A chain that answers in symbols."""

    def __init__(self, letter: str, cost: Callable[[int], None]) -> None:
        super().__init__(letter, cost, steps="one")
        self.contract = emitting.contract()
        self.states = self.contract.states

    def run(self, x: Any, lengths: Any, states: Sequence[Any]) -> Any:
        [h], nexts = super().run(x, lengths, states)
        return [emitting.probabilities(h[:, :, 0])], nexts


class EmittingWindowModel(WindowModel):
    """The chain over a window, whose states decide the labels of its transcript."""

    def __init__(self, cost: Callable[[int], None]) -> None:
        super().__init__(cost, per="event")
        self.contract = emitting.contract("window")

    def run(self, x: Any, lengths: Any, states: Sequence[Any]) -> Any:
        [h], nexts = super().run(x, lengths, states)
        return [emitting.probabilities(h[:, :, 0])], nexts


WRITTEN_STEPS = 12


def load(
    chosen: Settings, letters: Mapping[str, str], cost: Callable[[int], None], *, steps: str
) -> list[tuple[str, Any, Any]]:
    """Models by name; the letter of a chain, a small letter for one that generates, ``*`` for the fold over windows, ``#``
    for the one that emits, ``+`` for one that writes about them. ``steps``: of a record, one or many."""
    found: list[tuple[str, Any, Any]] = []
    for name, section in chosen.model.items():
        letter = letters[name]
        if letter == "+":
            found.append((name, WritingModel(max_steps=WRITTEN_STEPS, cost=cost), section.window))
        elif section.window is not None:
            windowed = EmittingWindowModel(cost) if letter == "#" else WindowModel(cost, steps)
            found.append((name, windowed, section.window))
        elif letter == PAST:
            found.append((name, StepModelWithPast(letter, cost), None))
        elif letter in EMITS:
            found.append((name, EmittingModel(letter, cost), None))
        else:
            found.append((name, StepModel(letter.upper(), cost, feeds_back=letter.islower(), steps=steps), None))
    return found


def reference(section: Mapping[str, Any], steps: Callable[[int], int]) -> Reference:
    """Windows by definition. ``steps``: of the record at an offset."""
    from streamer.settings import WindowSection

    return Reference(WindowSection(**section), steps=steps)


def utterances(section: Mapping[str, Any], letter: str) -> emitting.Reference:
    """Utterances by definition, of the model with that letter."""
    chain = CHAINS[letter]

    def step(h: float, x: float) -> tuple[float, int, Any]:
        h = chain.advance(h, x)
        return h, emitting.label_of(h), emitting.probability_of(h)

    return emitting.Reference(UtteranceSection(**section), step, refused=chain.refuses)


def transcript(values: Iterable[float]) -> tuple[str, float]:
    """Text and score of a closed window."""
    reference = utterances({"max_symbols": 16_384}, EMITS)
    for offset, value in enumerate(values):
        reference.record(offset, "w", 0, value)
    reference.finish("w")
    [final] = [each for each in reference.came if each.reason]
    return "".join(LABELS[label] for label in final.labels), float(f"{final.score:.9g}")


OPS = {"reset": Op.RESET, "end": Op.END, "generate": Op.GENERATE}


# a process


class Observer:
    """Notes what the service reports. Everything that is not noted is taken and dropped."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None

    def committed(self, outcome: Any, epoch: Any, times: Any, changelog_bytes: int) -> None:
        if str(outcome) != "committed":
            self._note(f"commit of {dict(epoch.positions)}: {outcome}")

    def assigned(self, partitions: Sequence[int]) -> None:
        self._note(f"assigned {list(partitions)}")

    def recovered(self, partitions: Sequence[int], kept: Sequence[int], seconds: float) -> None:
        self._note(f"recovered {list(partitions)}, kept {list(kept)}, in {seconds:.2f} s")

    def failed(self, error: BaseException) -> None:
        self._note(f"failed: {type(error).__name__}: {str(error)[:200]}")


class Handle:
    """A running service, as its supervisor sees it."""

    def __init__(self) -> None:
        self.service: Any = None
        self.asked_to_stop = False

    def stop(self) -> None:
        """SIGTERM"""
        self.asked_to_stop = True
        if self.service is not None:
            self.service.stopping.set()


async def serve(
    handle: Handle,
    chosen: Settings,
    models: Sequence[Any],
    instance: str,
    new_id: Callable[[], str],
    note: Callable[[str], None],
) -> None:
    """What ``streamer run`` does, without process, signals and HTTP."""
    parts = await prepare(chosen, list(models))
    handle.service = build(parts, Observer(note), instance=instance, new_id=new_id)  # type: ignore[arg-type]
    if handle.asked_to_stop:
        handle.service.stopping.set()
    await handle.service.run()


def exit_code(error: BaseException) -> int | None:
    """None: not one of the service's own errors, so a crash."""
    return error.exit_code if isinstance(error, StreamerError) else None


def settled_offset(handle: Handle, partition: int) -> int | None:
    found = handle.service.processor.partitions.get(partition) if handle.service else None
    return None if found is None or found.restoring else int(found.position)


def beyond_limit_bytes(handle: Handle) -> int:
    """By how much states and keys that are held pass ``state.max_bytes``."""
    if handle.service is None:
        return 0
    processor, held = handle.service.processor, 0
    for partition in processor.partitions.values():
        held += sum(processor.lanes.slots.bytes_per_stream + len(stream) for stream in partition.streams)
    return max(held - int(processor.memory.max_bytes), 0)


# what it writes


@dataclass(frozen=True)
class Change:
    """One record of the changelog. ``kind``: progress | state | window | rollout"""

    kind: str
    position: int = 0
    replay_point: int = 0
    idle: tuple[tuple[int, int], ...] = ()
    """(before offset, watermark): where the watermark moved without an event, or the one at the replay point"""
    models: tuple[tuple[str, str], ...] = ()
    """(name, first 16 digits of the sha256)"""
    model: str = ""
    stream: bytes = b""
    through: int = -1
    clock: tuple[tuple[int, int], ...] = ()
    """(before offset, clock of utterances), where it moved without an event"""
    gone: bool = False
    """The stream is forgotten up to ``through``"""


def being_written(key: bytes) -> tuple[str, int, int, int] | None:
    """Stream, start, end and part of a window about which a sequence is being written; None: another kind of record."""
    if key[:1] != bytes([Kind.DECODING]):
        return None
    rest = split_key(key)[2]
    part, start, end = struct.unpack_from(">qqq", rest)
    return rest[24:].decode(), start, end, part


def change(key: bytes, value: bytes | None) -> Change | None:
    """None: a tombstone."""
    if value is None:
        return None
    if key[:1] == bytes([Kind.PROGRESS]):
        found = decode_progress(value)
        models = tuple(sorted((name, regime.model_id) for name, regime in found.models.items()))
        idle = ((found.replay_point, found.watermark),) if found.watermark != NO_WATERMARK else ()
        return Change("progress", found.position, found.replay_point, idle, models)
    record = decode_stream(key, value)
    kind = record.kind.name.lower()
    if record.kind is Kind.IDLE:
        return Change(kind, idle=((record.offset, record.last_ms),), model=record.model, through=record.through)
    if record.kind is Kind.CLOCK:
        return Change(kind, clock=((record.offset, record.last_ms),), through=record.through)
    gone = record.state is None and kind == "state"
    return Change(kind, model=record.model, stream=record.stream, through=record.through, gone=gone)
