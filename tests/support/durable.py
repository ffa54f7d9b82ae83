"""What committed transactions left behind, and a process that recovers from it with the code that ships."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from streamer.core import Epoch, EventBatch, LogFacts, Outgoing, RecordBatch
from streamer.engine.partition import Partition
from streamer.engine.processor import Processor
from streamer.engine.restore import Found, Names, Restore
from streamer.records.changelog import Kind, Progress, decode_progress, decode_stream, progress_key
from streamer.records.keys import Keys
from streamer.service.sink import Sink
from streamer.settings import BatchSection, DecodeSection, DeliverySection, GenerateSection, StateSection

NAMES = Names("in", "changelog")
END = 1 << 40


def make_processor(
    models: Sequence[Any],
    *,
    identity: Any = None,
    late: str = "drop",
    keys: Keys | None = None,
    generate: dict[str, Any] | None = None,
    pasts: Any = None,
    utterances: dict[str, Any] | None = None,
    decode: dict[str, Any] | None = None,
    **limits: Any,
) -> Processor:
    """``limits``: keys of any section, whatever their bounds: tests want small ones. ``generate``: those of [generate],
    which shares names with [batch]; ``decode``: those of [decode]."""
    sections: dict[str, Any] = {}
    limits = {"max_bytes": 1 << 22, **limits}  # reserved for each of many processors
    for name, section in (
        ("batch", BatchSection), ("state", StateSection), ("generate", GenerateSection), ("delivery", DeliverySection)
    ):  # fmt: skip
        mine = {key: value for key, value in limits.items() if key in section.model_fields}
        mine = (generate or {}) if name == "generate" else mine
        sections[name] = section.model_construct(**{**section().model_dump(), **mine})
        limits = {key: value for key, value in limits.items() if key not in mine}
    assert not limits, f"no section has {sorted(limits)}"
    decoding = DecodeSection.model_construct(**{**DecodeSection().model_dump(), **(decode or {})})
    return Processor(
        models,
        identity=identity,
        late=late,
        keys=keys,
        decode=decoding,
        pasts=pasts,
        utterances=utterances,
        **sections,
    )


def begin(processor: Processor, number: int = 0, start: int = 0, **found: Any) -> Partition:
    """A partition of which nothing was known before."""
    restore = Restore(processor, number, NAMES)
    return restore.finish(Found(LogFacts("", 0, END, END), None, start, **found))


def settle(processor: Processor, *batches: EventBatch) -> None:
    if batches:
        processor.ingest(batches)
    for _ in processor.run():
        pass


def encoded(processor: Processor, epoch: Epoch, keys: Keys | None = None) -> list[Outgoing]:
    """The answers of an epoch as bytes."""
    lanes = [*processor.lanes.stepping, *([processor.lanes.windowing] if processor.lanes.windowing else [])]
    outgoing, refused = Sink([(lane.name, lane.model) for lane in lanes], keys or Keys()).encode(epoch.answers)
    assert not refused
    return outgoing


class Changelog:
    """One partition of a changelog: a log of committed records, compacted now and then."""

    def __init__(self) -> None:
        self.records: list[tuple[bytes, bytes | None]] = []

    @property
    def newest(self) -> dict[bytes, bytes]:
        found: dict[bytes, bytes | None] = {}
        for key, value in self.records:
            found[key] = value
        return {key: value for key, value in found.items() if value is not None}

    @property
    def progress(self) -> Progress | None:
        value = self.newest.get(progress_key())
        return None if value is None else decode_progress(value)

    def count(self, kind: Kind) -> int:
        return sum(key[0] == kind for key in self.newest)

    def commit(self, epoch: Epoch, partition: int = 0) -> list[tuple[int, str]]:
        """Returns what is forgotten with the epoch: (through, stream)."""
        before, forgotten = self.progress, []
        for changelog in epoch.changelog:
            if changelog.partition != partition:
                continue
            self.records += changelog.records
            for key, value in changelog.records:
                if value is not None and key[0] == Kind.STATE and (record := decode_stream(key, value)).state is None:
                    forgotten.append((record.through, record.stream.decode()))
            after = self.progress
            assert after is not None
            assert after.replay_point <= after.position
            if before is not None:
                assert before.position <= after.position, "a position went back"
                assert before.replay_point <= after.replay_point, "a replay point went back"
            position = epoch.positions[partition]
            assert after.position == position
        return forgotten

    def compact(self, rng: random.Random) -> None:
        """Keeps the newest record of each key below some point; tombstones go later, or never."""
        cut = rng.randint(0, len(self.records))
        last = {key: index for index, (key, _) in enumerate(self.records)}
        self.records = [
            (key, value)
            for index, (key, value) in enumerate(self.records)
            if index >= cut or (last[key] == index and (value is not None or rng.random() < 0.5))
        ]

    def pieces(self, rng: random.Random) -> Iterator[RecordBatch]:
        at = 0
        while at < len(self.records):
            part = self.records[at : at + rng.randint(1, 8)]
            offsets = list(range(at, at + len(part)))
            yield RecordBatch(0, offsets, [0] * len(part), [key for key, _ in part], [value for _, value in part])
            at += len(part)

    def restored(self, processor: Processor, rng: random.Random, *, number: int = 0, start: int = 0) -> Restore:
        """Everything applied, not judged yet."""
        restore = Restore(processor, number, NAMES)
        for piece in self.pieces(rng):
            restore.apply(piece)
        return restore

    def recover(
        self, processor: Processor, rng: random.Random, *, number: int = 0, start: int = 0, begin: int = 0
    ) -> Partition:
        return self.restored(processor, rng, number=number).finish(Found(LogFacts("", begin, END, END), None, start))


__all__ = ["END", "NAMES", "Changelog", "Found", "Restore", "begin", "encoded", "make_processor", "np", "settle"]
