"""Queries in, corrections out: a pair that writes about each text by itself, texts that flow to it, and records that are none."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pairs
import torch
from aiokafka import AIOKafkaProducer
from members import Load, Member
from serving import Read

from export.encdec import export_pair
from export.encdec.verify import EagerSteps
from streamer.core import Written, X
from streamer.generate.search import decode
from streamer.modelfile.model import Model

PARTITIONS, STREAMS, LONGEST = 2, 8, 24
LETTERS = "abcdefghijkl"
WORDS: dict[str, Any] = {**pairs.WORDS, "features": [{"name": "query", "kind": "text", "vocabulary": list(LETTERS)}]}
BROKEN: tuple[tuple[bytes, str], ...] = (
    (b'{"query":"abc', "undecodable"),
    (b'{"query":["a","b"]}', "undecodable"),
    (b'{"query":""}', "missing_feature"),
    (b'{"qeury":"abc"}', "missing_feature"),
    (b'{"query":"abz"}', "unknown_category"),
    (b'{"query":"%s"}' % (b"a" * (LONGEST + 1)), "too_large"),
    (b"\xff\xfe", "undecodable"),
)
"""Records that are no query, with what is said of them"""


def corrector(restraint: float = 3.0) -> pairs.Pair:
    """The larger ``restraint``, the later it ends what it writes."""
    pair = pairs.luong()
    with torch.no_grad():
        pair.decoder.out.bias[1] -= restraint
    return pair


def save(module: pairs.Pair, path: Path, **decoder: Any) -> Path:
    export_pair(module, pairs.fields(WORDS, **decoder), path)
    return path


def member(kafka: str, topic: str, model: Path, folder: Path, number: int, *settings: str) -> Member:
    return Member(
        kafka, topic, folder, number, f"model.pair.path={model}", "model.pair.window.kind=record",
        "input.format=json-named", f"input.max_record_steps={LONGEST}", *settings,
    )  # fmt: skip


def queries(count: int, seed: int) -> list[str]:
    chance = random.Random(seed)
    return ["".join(chance.choices(LETTERS, k=chance.randint(1, LONGEST))) for _ in range(count)]


def asked(text: str) -> bytes:
    return json.dumps({"query": text}).encode()


def places(text: str) -> X:
    return np.array([[LETTERS.index(letter)] for letter in text], np.int64)


def corrections(path: Path, texts: Sequence[str], module: pairs.Pair | None = None) -> list[Written]:
    """What is written about each text when nothing else happens: by the file, or step by step by PyTorch."""
    model = Model.load(path)
    return decode(model, [places(text) for text in texts], None if module is None else EagerSteps(module, model))


def check_answers(found: Sequence[Read], sent: Mapping[tuple[int, int], str], path: Path) -> None:
    """Each query is answered once, in the order of its stream, with what is written about it alone."""
    counts = Counter(read.source for read in found)
    assert set(counts) == set(sent), "answers are lost, or of nothing that was asked"
    assert set(counts.values()) == {1}, "a query was answered twice"
    wanted = dict(zip(sent, corrections(path, list(sent.values())), strict=True))
    last: dict[bytes | None, int] = {}
    for read in sorted(found, key=lambda read: (read.partition, read.offset)):
        told, written = read.document, wanted[read.source]
        assert told["text"] == "".join(pairs.LABELS[symbol] for symbol in written.symbols)
        assert told["truncated"] is written.truncated
        assert abs(told["score"] - written.score) <= 1e-4 * max(1, abs(written.score))
        assert (told["window"]["reason"], told["window"]["count"]) == ("record", len(sent[read.source]))
        assert last.get(read.key, -1) < read.source[1], "answers of a stream are out of order"
        last[read.key] = read.source[1]


class Queries(Load):
    """Queries of all streams, and one record that is none after every ``broken_every``."""

    def __init__(self, bootstrap: str, topic: str, per_second: int, broken_every: int = 0) -> None:
        super().__init__(bootstrap, topic, per_second)
        self._broken_every = broken_every
        self._chance = random.Random(per_second)
        self._texts = queries(500, per_second)
        self.asked: dict[tuple[int, int], str] = {}
        """(partition, offset) -> text"""
        self.broken: dict[tuple[int, int], str] = {}
        """(partition, offset) -> reason"""

    async def some(self, producer: AIOKafkaProducer, count: int) -> None:
        waiting = []
        for _ in range(count):
            self.sent += 1
            stream = self._chance.randrange(STREAMS)
            key, partition = b"s%d" % stream, stream % PARTITIONS
            text = self._chance.choice(self._texts)
            waiting.append((self.asked, text, await self._send(producer, asked(text), key, partition)))
            if self._broken_every and self.sent % self._broken_every == 0:
                value, reason = BROKEN[self.sent // self._broken_every % len(BROKEN)]
                waiting.append((self.broken, reason, await self._send(producer, value, key, partition)))
        for into, what, sent in waiting:
            record = await sent
            into[record.partition, record.offset] = what

    async def _send(self, producer: AIOKafkaProducer, value: bytes, key: bytes, partition: int) -> Any:
        return await producer.send(self._topic, value, key=key, partition=partition)
