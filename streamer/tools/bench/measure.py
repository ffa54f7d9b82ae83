"""What a run costs and when its answers come: processor time and memory of processes, the growth of a topic, its records."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streamer.core import I64, Flags
from streamer.errors import KafkaUnavailableError
from streamer.tools.broker import require_confluent_kafka

_TICK_S = 0.05
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time of living processes, threads included; 0 for one that is gone."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS_PER_S


def rss_bytes(pids: Sequence[int]) -> int:
    """Largest resident memory among the processes."""
    largest = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/statm", encoding="ascii") as file:
                largest = max(largest, int(file.read().split()[1]) * _PAGE_BYTES)
        except OSError:
            continue
    return largest


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def consumer(bootstrap: str, **options: Any) -> Any:
    kafka = require_confluent_kafka()
    settings = {
        "bootstrap.servers": bootstrap,
        "group.id": "bench-reader",
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
        "auto.offset.reset": "earliest",
        "log_level": 0,
    }
    return kafka.Consumer({**settings, **options})


def stable_ends(reader: Any, parts: Sequence[Any], timeout_s: float = 20.0) -> list[int]:
    """Ends of what is committed; tried again while a new topic has no leader yet."""
    kafka = require_confluent_kafka()
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return [reader.get_watermark_offsets(part, timeout=timeout_s)[1] for part in parts]
        except kafka.KafkaException as error:
            if time.monotonic() > deadline:
                raise KafkaUnavailableError(f"the ends of {parts[0].topic!r} are not to be had: {error}") from error
            time.sleep(_TICK_S)


@dataclass(frozen=True)
class Span:
    """One throughput run from its first tenth to its last answer."""

    events_per_second: float
    service_cpu_us_per_event: float
    broker_cpu_us_per_event: float
    rss_bytes: int
    seconds: float


def watch_growth(
    bootstrap: str,
    topic: str,
    partitions: int,
    events: int,
    pids: Sequence[int],
    broker_pids: Sequence[int],
    *,
    alive: Callable[[], None],
    timeout_s: float = 600.0,
) -> Span:
    """Follows the stable end of ``topic`` until it holds ``events`` answers; the first tenth is warm-up.

    ``alive`` raises when a process has died. Ends hold transaction markers too (a few per second), so a run is over when
    the end has passed ``events`` and rested for a second."""
    kafka = require_confluent_kafka()
    reader = consumer(bootstrap)
    parts = [kafka.TopicPartition(topic, partition) for partition in range(partitions)]
    # the topic is new, so what a first look finds has grown since now
    samples = [(time.monotonic(), 0, cpu_seconds(pids), cpu_seconds(broker_pids))]
    rss = 0
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            end = sum(stable_ends(reader, parts))
            now = time.monotonic()
            samples.append((now, end, cpu_seconds(pids), cpu_seconds(broker_pids)))
            rss = max(rss, rss_bytes(pids))
            grown = next((at for at, seen, *_ in reversed(samples) if seen != end), samples[0][0])
            if end >= events and now - grown > 1.0:
                break
            if now > deadline:
                raise KafkaUnavailableError(f"only {end} of {events} answers within {timeout_s:.0f} s")
            alive()
            time.sleep(_TICK_S)
    finally:
        reader.close()
    last = samples[-1][1]
    done = next(sample for sample in samples if sample[1] == last)
    # a short run may grow at once between two looks: then it counts from the look before
    first = next((sample for sample in samples if last / 10 <= sample[1] < last), None)
    first = first or next(sample for sample in reversed(samples) if sample[1] < last)
    count = (done[1] - first[1]) * events / last  # without markers
    seconds = max(done[0] - first[0], _TICK_S)
    return Span(
        events_per_second=count / seconds,
        service_cpu_us_per_event=(done[2] - first[2]) / count * 1e6,
        broker_cpu_us_per_event=(done[3] - first[3]) / count * 1e6,
        rss_bytes=rss,
        seconds=seconds,
    )


@dataclass
class Count:
    """What an independent reader found in the output topic."""

    predictions: int = 0
    lost: int = 0
    repeated: int = 0
    values: dict[bytes, list[bytes]] = field(default_factory=dict)
    """Answers of the sampled streams, in order"""


def count_answers(bootstrap: str, topic: str, due: Sequence[Flags], sample: set[bytes]) -> Count:
    """Reads all of ``topic``, committed records only, and ticks off input offsets by the header ``streamer-source``.
    ``due``: per partition, whether the record at each input offset 0..n-1 is answered."""
    kafka = require_confluent_kafka()
    reader = consumer(bootstrap)
    found = Count()
    seen: list[I64] = [np.zeros(len(each), np.int64) for each in due]
    try:
        parts = [kafka.TopicPartition(topic, partition, 0) for partition in range(len(due))]
        ends = stable_ends(reader, parts)
        reader.assign(parts)
        quiet = 0
        while quiet < 100:
            messages = reader.consume(10_000, timeout=0.2)
            positions = [part.offset for part in reader.position(parts)]
            if not messages and all(at >= end for at, end in zip(positions, ends, strict=True)):
                break
            quiet = 0 if messages else quiet + 1
            for message in messages:
                if message.error() is not None:
                    raise KafkaUnavailableError(f"reading {topic!r}: {message.error().str()}")
                found.predictions += 1
                source = dict(message.headers())["streamer-source"]
                _, partition, offset = source.rsplit(b"/", 2)
                seen[int(partition)][int(offset)] += 1
                if message.key() in sample:
                    found.values.setdefault(message.key(), []).append(message.value())
    finally:
        reader.close()
    found.lost = sum(int((wanted & (part == 0)).sum()) for part, wanted in zip(seen, due, strict=True))
    found.repeated = sum(int(np.maximum(part - wanted, 0).sum()) for part, wanted in zip(seen, due, strict=True))
    return found


def read_latencies(
    bootstrap: str,
    topic: str,
    partitions: int,
    events: int,
    *,
    warm_up: int,
    began: Callable[[], None],
    alive: Callable[[], None],
    timeout_s: float,
) -> I64:
    """Record timestamp to arrival at this reader, in ms, of all answers but the first ``warm_up``. ``began`` is called
    when the warm-up is over."""
    kafka = require_confluent_kafka()
    reader = consumer(bootstrap, **{"fetch.wait.max.ms": 100, "fetch.min.bytes": 1, "fetch.queue.backoff.ms": 1})
    found: list[float] = []
    deadline = time.monotonic() + timeout_s
    try:
        reader.assign([kafka.TopicPartition(topic, partition, 0) for partition in range(partitions)])
        started = False
        while len(found) < events:
            message = reader.poll(1.0)
            if message is None:
                alive()
                if time.monotonic() > deadline:
                    raise KafkaUnavailableError(f"only {len(found)} of {events} answers within {timeout_s:.0f} s")
                continue
            if message.error() is None:
                found.append(time.time() * 1000 - message.timestamp()[1])
            if not started and len(found) >= warm_up:
                started = True
                began()
    finally:
        reader.close()
    return np.array(found[warm_up:])
