"""What the bench sends: a plan of events as a pure function of its options, so that any answer can be checked later.

Event i belongs to stream ``streams_of()[i]`` and carries row ``i % POOL`` of a fixed pool of features; so the sequence of
every stream is known without keeping what was sent.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamer.core import F32, I64, Flags
from streamer.errors import KafkaUnavailableError
from streamer.tools.broker import require_confluent_kafka

POOL = 9_973
"""Different feature rows; a prime, so that streams do not repeat them in step."""
FORMATS = ("json", "json-named", "avro", "float32")
_FLUSH_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Plan:
    """``events`` events over ``streams`` streams in random order, each stream on one of ``partitions`` partitions."""

    events: int
    streams: int = 10_000
    partitions: int = 4
    features: int = 16
    format: str = "json"
    seed: int = 0
    broken_every: int = 0
    """One more record after so many events, which is no event; 0: none. Each ends in the dead-letter topic."""
    names: Sequence[str] = ()
    """Of the features, for formats with names"""

    def pool(self) -> F32:
        """[POOL, F], four decimals: what all formats carry exactly alike."""
        rows = np.random.default_rng(self.seed).normal(size=(POOL, self.features))
        return np.round(rows, 4).astype(np.float32)

    def values(self) -> list[bytes]:
        """The pool as record values."""
        pool = self.pool()
        if self.format == "float32":
            return [row.astype("<f4").tobytes() for row in pool]
        doubles = np.round(pool.astype(np.float64), 4)
        if self.format == "avro":
            return [row.astype("<f8").tobytes() for row in doubles]
        rows = doubles.tolist()
        if self.format == "json-named":
            return [_json(dict(zip(self.names, row, strict=True))) for row in rows]
        return [_json({"x": row}) for row in rows]

    def broken(self) -> list[bytes]:
        """Values that are no event, each for another reason."""
        if self.format in ("float32", "avro"):
            number = "<f4" if self.format == "float32" else "<f8"
            whole = np.full(self.features, np.nan, number).tobytes()
            return [b"abc", b"", whole, bytes(len(whole) + 4)]
        if self.format == "json-named":
            first, *others = (json.dumps(name) for name in self.names)
            row = ",".join(f"{name}:1.5" for name in others)
            cells = ["null", "1e400", "16777217", "[]", '1.5,"ts":"noon"', '1.5,"ts":-1']
            return [b"x", b"[1]", b"{", *(f"{{{row},{first}:{cell}}}".encode() for cell in cells)]
        row = ",".join(["1.5"] * (self.features - 1))
        return [
            b"x",
            b'{"x":[1,2',
            b"\xef\xbb\xbf" + b'{"x":[]}',
            f'{{"x":[{row}]}}'.encode(),
            f'{{"x":[{row},null]}}'.encode(),
            f'{{"x":[{row},1e400]}}'.encode(),
            f'{{"x":[{row},16777217]}}'.encode(),
            f'{{"x":[{row},1.5],"ts":"noon"}}'.encode(),
            f'{{"x":[{row},1.5],"ts":-1}}'.encode(),
        ]

    def streams_of(self) -> I64:
        """[events] stream of each event."""
        return np.random.default_rng([self.seed, 1]).integers(0, self.streams, self.events)

    def due(self) -> list[Flags]:
        """Per partition: whether the record at each offset is an event, and so answered."""
        partitions = self.streams_of() % self.partitions
        events = np.ones(self.events, np.bool_)
        if self.broken_every:
            after = np.arange(self.broken_every - 1, self.events, self.broken_every)
            events = np.insert(events, after + 1, False)
            partitions = np.insert(partitions, after + 1, partitions[after])
        return [events[partitions == partition] for partition in range(self.partitions)]

    def keys(self) -> list[bytes]:
        return [b"stream-%06d" % stream for stream in range(self.streams)]

    def sequence(self, stream: int, streams_of: I64) -> F32:
        """x[T, F] of one stream, in order."""
        return self.pool()[np.flatnonzero(streams_of == stream) % POOL]


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def avro_schema(names: Sequence[str]) -> bytes:
    """Of the format avro: a double per feature. All there is of a value are their bytes, in this order."""
    fields = [{"name": name, "type": "double"} for name in names]
    return _json({"type": "record", "name": "Event", "fields": fields})


def create_topics(bootstrap: str, names: list[str], partitions: int, replication_factor: int = 1) -> None:
    """Raises KafkaUnavailableError when the cluster refuses."""
    kafka = require_confluent_kafka()
    from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # noqa: PLC0415 - optional

    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    config = {"message.timestamp.type": "CreateTime", "retention.ms": "-1"}
    topics = [NewTopic(name, partitions, replication_factor, config=config) for name in names]
    for name, future in admin.create_topics(topics, operation_timeout=20).items():
        try:
            future.result(30)
        except (kafka.KafkaException, TimeoutError) as error:
            raise KafkaUnavailableError(f"creating topic {name!r} on {bootstrap}: {error}") from error


def delete_topics(bootstrap: str, names: list[str]) -> None:
    """Best effort: a bench's topics are not worth an error."""
    require_confluent_kafka()
    from confluent_kafka.admin import AdminClient  # noqa: PLC0415 - optional

    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    for future in admin.delete_topics(names, operation_timeout=20).values():
        future.exception(30)


def preload(bootstrap: str, topic: str, plan: Plan) -> int:
    """Sends the whole plan as fast as the cluster takes it. Returns the bytes of keys and values."""
    return send_all(bootstrap, topic, _rows(plan))


def _rows(plan: Plan) -> Iterator[tuple[bytes, bytes, int, int]]:
    values, keys, broken, every = plan.values(), plan.keys(), plan.broken(), plan.broken_every
    now = 0  # the client's word for it
    for index, stream in enumerate(plan.streams_of().tolist()):
        yield values[index % POOL], keys[stream], stream % plan.partitions, now
        if every and index % every == every - 1:
            yield broken[index // every % len(broken)], keys[stream], stream % plan.partitions, now


def send_all(bootstrap: str, topic: str, rows: Iterable[tuple[bytes, bytes, int, int]]) -> int:
    """Rows (value, key, partition, timestamp in ms), as fast as the cluster takes them. Returns the bytes of keys and
    values; raises KafkaUnavailableError when not all were taken."""
    kafka = require_confluent_kafka()
    producer: Any = kafka.Producer(
        {
            "bootstrap.servers": bootstrap,
            "linger.ms": 20,
            "batch.size": 1_000_000,
            "acks": "all",
            "enable.idempotence": True,
            "queue.buffering.max.messages": 500_000,
            "log_level": 0,
        }
    )
    sent = 0
    for index, (value, key, partition, timestamp) in enumerate(rows):
        while True:
            try:
                producer.produce(topic, value, key, partition, timestamp=timestamp)
                break
            except BufferError:
                producer.poll(0.05)
        sent += len(value) + len(key)
        if index % 2_000 == 0:
            producer.poll(0)
    if producer.flush(_FLUSH_TIMEOUT_S):
        raise KafkaUnavailableError(f"{bootstrap} did not take the load within {_FLUSH_TIMEOUT_S:.0f} s")
    return sent


def send_open_loop(bootstrap: str, topic: str, plan: Plan, rate: float) -> None:
    """Sends the plan at ``rate`` events per second. A record that is due is never put off; its timestamp is the intended
    time, so latency measured from it holds all the waiting that a real source would have seen."""
    kafka = require_confluent_kafka()
    producer: Any = kafka.Producer(
        {"bootstrap.servers": bootstrap, "linger.ms": 1, "acks": "all", "enable.idempotence": True, "log_level": 0}
    )
    values, keys, streams = plan.values(), plan.keys(), plan.streams_of().tolist()
    wall_ms, begin, index = time.time() * 1000, time.monotonic(), 0
    while index < plan.events:
        due = min(int((time.monotonic() - begin) * rate) + 1, plan.events)
        for number in range(index, due):
            stamp = int(wall_ms + number * 1000 / rate)
            key, partition = keys[streams[number]], streams[number] % plan.partitions
            producer.produce(topic, values[number % POOL], key, partition, timestamp=stamp)
        index = due
        producer.poll(0)
        time.sleep(max(0.0, begin + index / rate - time.monotonic()) + 0.0005)
    if producer.flush(_FLUSH_TIMEOUT_S):
        raise KafkaUnavailableError(f"{bootstrap} did not take the load within {_FLUSH_TIMEOUT_S:.0f} s")
