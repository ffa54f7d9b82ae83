"""Live sound: streams of samples at the speed at which they are heard, sent as records of several steps with end marks, and
what a recogniser has to write for them, by the model alone."""

from __future__ import annotations

import asyncio
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from serving import Read

from streamer.core import F32
from streamer.emission.ctc import spelled
from streamer.modelfile.model import Model

PARTITIONS = 4
END = [("streamer-op", b"end")]


class Written(NamedTuple):
    """One record of an utterance: new symbols, or its transcript."""

    final: bool
    text: str
    steps: tuple[int, ...]
    """Of the record that brought them each symbol's; of a transcript how many it has"""
    score: float
    sources: tuple[int, ...]
    """Offsets: of the record; of the transcript's first and last record"""

    @classmethod
    def of(cls, read: Read) -> Written:
        document = read.document
        if document["final"]:
            utterance = document["utterance"]
            assert utterance["reason"] == "end", document
            offsets = tuple(utterance["offsets"])
            return cls(True, document["text"], (utterance["count"],), document["score"], offsets)
        steps = tuple(each["step"] for each in document["symbols"])
        return cls(False, document["text"], steps, 0.0, (read.source[1],))


@dataclass
class Spoken:
    """One stream: utterance after utterance, each a list of records [T, F]."""

    utterances: list[list[F32]]
    offsets: list[list[int]] = field(default_factory=list)
    """Of the records that were sent, by utterance"""


def cut(x: F32, steps: int) -> list[F32]:
    """Records of so many steps; the last may have fewer."""
    return [x[at : at + steps] for at in range(0, len(x), steps)]


class Talk:
    """Streams that all talk at once, each from its own moment on, until everything is said."""

    def __init__(self, bootstrap: str, topic: str, streams: Sequence[Spoken], record_s: float) -> None:
        """``record_s``: how long a full record sounds, which is how often each stream sends one."""
        self._bootstrap, self._topic, self._record_s = bootstrap, topic, record_s
        self.streams = streams
        self.late_s = 0.0
        """How far the load itself was behind real time at worst"""

    async def speak(self) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self._bootstrap, enable_idempotence=True, linger_ms=0)
        await producer.start()
        try:
            began = time.perf_counter()
            plans = [self._plan(number, stream) for number, stream in enumerate(self.streams)]
            due = sorted((at, number, step) for number, plan in enumerate(plans) for step, at in enumerate(plan))
            flat = [
                [(u, r) for u, records in enumerate(s.utterances) for r in range(len(records) + 1)]
                for s in self.streams
            ]
            sent: list[tuple[int, int, Any]] = []
            for at, number, step in due:
                wait = began + at - time.perf_counter()
                if wait > 0:
                    await asyncio.sleep(wait)
                self.late_s = max(self.late_s, -wait)
                utterance, place = flat[number][step]
                records = self.streams[number].utterances[utterance]
                end = place == len(records)
                value = b"" if end else records[place].astype("<f4").tobytes()
                to = await producer.send(
                    self._topic,
                    value,
                    key=b"s%d" % number,
                    partition=number % PARTITIONS,
                    headers=END if end else [],
                    timestamp_ms=time.time_ns() // 1_000_000,
                )
                if not end:
                    sent.append((number, utterance, to))
            for stream in self.streams:
                stream.offsets = [[] for _ in stream.utterances]
            for number, utterance, to in sent:
                self.streams[number].offsets[utterance].append((await to).offset)
        finally:
            await producer.stop()

    def _plan(self, number: int, stream: Spoken) -> list[float]:
        """Seconds from the start at which each record and end mark is sent: when its last sample is heard."""
        at, plan = self._record_s * number / len(self.streams), []
        for records in stream.utterances:
            for record in records:
                at += self._record_s * len(record) / len(records[0])
                plan.append(at)
            plan.append(at)
        return plan


def expected(model: Model, stream: Spoken) -> list[Written]:
    """What is right for one stream: the model over each utterance as a whole, collapsed."""
    emit: Any = model.contract.outputs[0].emit
    labels: Any = model.contract.outputs[0].labels
    found = []
    for records, offsets in zip(stream.utterances, stream.offsets, strict=True):
        x = np.concatenate(records)
        (y,), _ = model.run(x[None], np.array([len(x)], np.int32), model.initial_states(1))
        whole = spelled(emit, y[0])
        ends = np.cumsum([len(record) for record in records])
        owners = np.searchsorted(ends, whole.steps, side="right")
        for record in sorted(set(owners.tolist())):
            at = np.flatnonzero(owners == record)
            begin = int(ends[record]) - len(records[record])
            text = emit.separator.join(labels[whole.labels[each]] for each in at)
            steps = tuple(int(whole.steps[each]) - begin for each in at)
            found.append(Written(False, text, steps, 0.0, (offsets[record],)))
        text = emit.separator.join(labels[each] for each in whole.labels)
        found.append(Written(True, text, (len(x),), float(f"{whole.score:.9g}"), (offsets[0], offsets[-1])))
    return found


class Ear:
    """Reads committed answers while they come, and how long after their samples."""

    def __init__(self, bootstrap: str, topic: str, step_ms: float) -> None:
        self._bootstrap, self._topic, self._step_ms = bootstrap, topic, step_ms
        self.symbol_ms: list[float] = []
        """From the last sample of a symbol's step to the symbol"""
        self.record_ms: list[float] = []
        """From a record to the symbols that it brought"""
        self.finals = 0
        self.heard = asyncio.Event()

    async def listen(self, finals: int, steps: int) -> None:
        """Until so many transcripts are read; ``steps`` of a full record."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap, isolation_level="read_committed", auto_offset_reset="earliest"
        )
        await consumer.start()
        try:
            consumer.assign([TopicPartition(self._topic, number) for number in range(PARTITIONS)])
            self.heard.set()
            while self.finals < finals:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    now_ms = time.time_ns() / 1e6
                    for record in records:
                        document = Read(record.partition, record.offset, record.key, record.value, {}).document
                        if document["final"]:
                            self.finals += 1
                            continue
                        waited_ms = now_ms - document["ts"]
                        self.record_ms.append(waited_ms)
                        for each in document["symbols"]:
                            self.symbol_ms.append(waited_ms + (steps - 1 - each["step"]) * self._step_ms)
        finally:
            await consumer.stop()


def quantiles(values: Sequence[float]) -> dict[str, float]:
    return {name: round(float(np.percentile(values, share)), 1) for name, share in (("p50", 50), ("p99", 99))}


def cpu_s(pid: int) -> float:
    """Seconds of processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def by_stream(reads: Sequence[Read]) -> dict[str, list[Written]]:
    found: dict[str, list[Written]] = defaultdict(list)
    for read in sorted(reads, key=lambda read: (read.partition, read.offset)):
        found[(read.key or b"").decode()].append(Written.of(read))
    return dict(found)
