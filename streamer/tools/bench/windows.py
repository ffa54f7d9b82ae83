"""``streamer bench --windows``: what closed windows cost, end to end and where the time goes.

Sessions of 8 to 64 events, lengths uniform in their logarithm (short ones are common, as in life), a bidirectional LSTM
16 -> 2x64. End to end on a real cluster, every window counted and samples verified. Beside it, in this process and in
turns: the model calls batched by length as the service does, one call per window, and one padded batch of all windows
that a poll closed; and what it costs to hold an event in an open window.
"""

from __future__ import annotations

import json
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamer.core import F32, I64, ClosedWindow, EventBatch, RecordBatch
from streamer.engine.scheduler import plan_windows
from streamer.errors import KafkaUnavailableError
from streamer.modelfile.model import Model
from streamer.settings import BatchSection
from streamer.tools.bench.load import POOL, Plan, create_topics, delete_topics, send_all
from streamer.tools.bench.measure import consumer, spread, stable_ends, watch_growth
from streamer.tools.bench.reference import bilstm_last
from streamer.tools.broker import require_confluent_kafka
from streamer.windows import WindowRule, Windows

if TYPE_CHECKING:
    from streamer.tools.bench import Bench

MODEL = Path(__file__).with_name("window_model") / "model.onnx"
RULE = WindowRule("session", gap_ms=100)
TOLERANCE = 1e-5
SHORTEST, LONGEST = 8, 64
_STEP_MS, _ROUND_MS, _PHASE_MS = 10, 1_000, 200
_POLL_ROWS = 16_384
_CALLED_WINDOWS = 4_000
_HELD_EVENTS = 60_000
_SAMPLED = 64


@dataclass(frozen=True)
class WindowPlan:
    """``streams`` streams, each with one session per round, interleaved in order of event time. Event i carries row
    ``i % POOL`` of the pool, so every window is known without keeping what was sent."""

    events: int
    streams: int = 1_000
    partitions: int = 4
    features: int = 16
    seed: int = 0

    @cached_property
    def lengths(self) -> I64:
        """[rounds, streams] events of each session; about ``events`` in all."""
        mean = (LONGEST - SHORTEST) / np.log(LONGEST / SHORTEST)
        rounds = max(round(self.events / mean / self.streams), 1)
        logs = np.random.default_rng(self.seed).uniform(np.log(SHORTEST), np.log(LONGEST + 1), (rounds, self.streams))
        return np.exp(logs).astype(np.int64).clip(SHORTEST, LONGEST)

    @cached_property
    def columns(self) -> tuple[I64, I64]:
        """(event time in ms from 0, stream) of each event, in the order in which they are sent."""
        sizes = self.lengths.ravel()
        first = np.repeat(np.cumsum(sizes) - sizes, sizes)
        phase = np.arange(self.streams) * 7_919 % _PHASE_MS
        starts = (np.arange(len(self.lengths))[:, None] * _ROUND_MS + phase).ravel()
        times = np.repeat(starts, sizes) + (np.arange(len(first)) - first) * _STEP_MS
        streams = np.repeat(np.tile(np.arange(self.streams), len(self.lengths)), sizes)
        order = np.argsort(times, kind="stable")
        return times[order], streams[order]

    @property
    def windows(self) -> int:
        return self.lengths.size

    @property
    def pool(self) -> F32:
        return Plan(0, features=self.features, seed=self.seed).pool()

    def sessions(self) -> dict[tuple[int, int], I64]:
        """(stream, round) -> its events."""
        times, streams = self.columns
        rounds = times // _ROUND_MS
        order = np.lexsort((rounds, streams))
        borders = np.flatnonzero(np.diff(streams[order] * len(self.lengths) + rounds[order])) + 1
        return {(int(streams[part[0]]), int(rounds[part[0]])): part for part in np.split(order, borders)}

    def batches(self, rows: int = _POLL_ROWS) -> Iterator[EventBatch]:
        """As one partition would give them to the processor."""
        times, streams = self.columns
        pool, keys = self.pool, [b"stream-%06d" % stream for stream in range(self.streams)]
        for begin in range(0, len(times), rows):
            index = np.arange(begin, min(begin + rows, len(times)))
            yield EventBatch(
                partition=0, offsets=index, times_ms=times[index], timestamps_ms=[], ops=None,
                keys=[keys[stream] for stream in streams[index].tolist()], x=pool[index % POOL],
                records=RecordBatch(0, [], [], [], []), next_offset=int(index[-1]) + 1,
            )  # fmt: skip


Grouping = Callable[[Sequence[int]], list[I64]]


def groupings() -> dict[str, Grouping]:
    """Ways to put the windows that one poll closed into model calls."""
    limits = BatchSection()

    def bucketed(lengths: Sequence[int]) -> list[I64]:
        return plan_windows(lengths, max_rows=limits.max_rows, max_cells=limits.max_window_cells, ragged=True)

    return {
        "buckets": bucketed,
        "padded": lambda lengths: [np.arange(len(lengths))],
        "one_by_one": lambda lengths: [np.array([index]) for index in range(len(lengths))],
    }


def call(model: Model, windows: Sequence[ClosedWindow], groups: Sequence[I64]) -> F32:
    """The first output of every window, [N, O], from one model call per group."""
    found: list[Any] = [None] * len(windows)
    for group in groups:
        chosen = [windows[index] for index in group.tolist()]
        lengths = np.array([len(window.x) for window in chosen], np.int32)
        x = np.zeros((len(chosen), int(lengths.max()), model.contract.features), np.float32)
        for row, window in zip(x, chosen, strict=True):
            row[: len(window.x)] = window.x
        (y, *_), _ = model.run(x, lengths, model.initial_states(len(chosen)))
        for index, row in zip(group.tolist(), y, strict=True):
            found[index] = row
    return np.stack(found)


def closed_by_poll(plan: WindowPlan, at_least: int) -> list[list[ClosedWindow]]:
    """The windows that each poll closes, until there are ``at_least`` or the plan ends."""
    windows, polls = Windows(RULE, plan.features), []
    for batch in plan.batches():
        polls.append(windows.add(batch).closed)
        if sum(map(len, polls)) >= at_least:
            break
    return [poll for poll in polls if poll]


def compare_calls(model: Model, plan: WindowPlan, repeats: int) -> dict[str, Any]:
    """Seconds of the model calls for the same windows, in turns; ratios within each turn. All ways agree, or it raises."""
    polls = closed_by_poll(plan, _CALLED_WINDOWS)
    count, events = sum(map(len, polls)), sum(len(window.x) for poll in polls for window in poll)
    ways = groupings()
    expected = [call(model, poll[:_SAMPLED], ways["one_by_one"]([1] * len(poll[:_SAMPLED]))) for poll in polls]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            begin = time.perf_counter()
            found = [call(model, poll, way([len(window.x) for window in poll])) for poll in polls]
            seconds[name].append(time.perf_counter() - begin)
            error = max(float(np.abs(y[:_SAMPLED] - e).max()) for y, e in zip(found, expected, strict=True))
            assert error <= TOLERANCE, f"{name}: a window's answer depends on its neighbours ({error:.1e})"
    return {
        "calls": {
            name: {
                "windows_per_second": spread([count / each for each in found]),
                "events_per_second": spread([events / each for each in found]),
            }
            for name, found in seconds.items()
        },
        **{
            f"ratio_to_{name}": spread([a / b for a, b in zip(seconds[name], seconds["buckets"], strict=True)])
            for name in ("padded", "one_by_one")
        },
    }


def buffering(plan: WindowPlan, repeats: int) -> dict[str, Any]:
    """Microseconds to put one event into its window and to take it out again; bytes held for one event of an open window,
    by the allocator, without the stream ids."""
    batches = list(plan.batches())
    events = sum(map(len, batches))
    each = []
    for _ in range(repeats):
        windows, begin = Windows(RULE, plan.features), time.perf_counter()
        for batch in batches:
            windows.add(batch)
        each.append((time.perf_counter() - begin) / events * 1e6)
    few = batches[: max(_HELD_EVENTS // _POLL_ROWS, 1)]
    holding = Windows(WindowRule("end", max_span_ms=10**12), plan.features)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for batch in few:
            holding.add(batch)
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    raw = 4 * plan.features
    return {
        "buffering_us_per_event": spread(each),
        "buffered_bytes_per_event": held / holding.buffered_events,
        "buffered_bytes_limit": 1.5 * raw + 24,
        "raw_bytes_per_event": raw,
    }


# end to end


def send(bootstrap: str, topic: str, plan: WindowPlan) -> int:
    """The plan as float32 values, event times as the records' timestamps; at the end one record per partition that is
    late enough to close every window. Returns the time of the plan's beginning in ms."""
    times, streams = plan.columns
    start_ms = (int(time.time() * 1000) - int(times[-1]) - 60_000) // _ROUND_MS * _ROUND_MS
    values = [row.astype("<f4").tobytes() for row in plan.pool]
    last_ms = start_ms + int(times[-1]) + 10_000

    def rows() -> Iterator[tuple[bytes, bytes, int, int]]:
        for index, (at_ms, stream) in enumerate(zip(times.tolist(), streams.tolist(), strict=True)):
            yield values[index % POOL], b"stream-%06d" % stream, stream % plan.partitions, start_ms + at_ms
        for partition in range(plan.partitions):
            yield values[0], b"close-%d" % partition, partition, last_ms

    send_all(bootstrap, topic, rows())
    return start_ms


def verify(bootstrap: str, topic: str, plan: WindowPlan, start_ms: int, weights: Path) -> dict[str, Any]:
    """Counts every window by its stream and start; compares samples with the model in double precision."""
    kafka = require_confluent_kafka()
    sessions, pool = plan.sessions(), plan.pool
    seen: Counter[tuple[int, int]] = Counter()
    wrong, error = 0, 0.0
    sampled = set(np.random.default_rng(1).choice(len(sessions), min(_SAMPLED, len(sessions)), replace=False).tolist())
    sample = {name for at, name in enumerate(sessions) if at in sampled}
    reader = consumer(bootstrap)
    try:
        parts = [kafka.TopicPartition(topic, partition, 0) for partition in range(plan.partitions)]
        ends = stable_ends(reader, parts)
        reader.assign(parts)
        while True:
            messages = reader.consume(10_000, timeout=0.2)
            for message in messages:
                if message.error() is not None:
                    raise KafkaUnavailableError(f"reading {topic!r}: {message.error().str()}")
                document = json.loads(message.value())
                window = document["window"]
                name = (int(document["stream"].rpartition("-")[2]), (window["start"] - start_ms) // _ROUND_MS)
                seen[name] += 1
                wrong += name not in sessions or window["count"] != len(sessions[name])
                if name in sample:
                    y = bilstm_last(weights, pool[sessions[name] % POOL])
                    error = max(error, float(np.abs(y - document["y"]).max()))
            if not messages and all(at.offset >= end for at, end in zip(reader.position(parts), ends, strict=True)):
                break
    finally:
        reader.close()
    lost = sum(1 for name in sessions if not seen[name])
    repeated = sum(count - 1 for count in seen.values())
    verified = not (lost or repeated or wrong) and error <= TOLERANCE
    return {"lost": lost, "repeated": repeated, "wrong": wrong, "error": error, "verified": verified}


def bench_windows(bench: Bench, plan: WindowPlan, repeats: int) -> dict[str, Any]:
    """The document that the command prints."""
    options = bench.options
    source = bench.topic("windows")
    create_topics(options.bootstrap, [source], plan.partitions, options.replication_factor)
    bench.say(f"loading {plan.lengths.sum():,} events in {plan.windows:,} sessions")
    start_ms = send(options.bootstrap, source, plan)
    speeds: list[float] = []
    checks: list[dict[str, Any]] = []
    rss = 0
    for repeat in range(repeats):
        target = bench.topic("out")
        create_topics(options.bootstrap, [target], plan.partitions, options.replication_factor)
        with bench.serving("exactly-once", "float32", source, target) as worker:
            span = watch_growth(
                options.bootstrap, target, plan.partitions, plan.windows, worker.pids, options.broker_pids,
                alive=worker.alive,
            )  # fmt: skip
        checks.append(verify(options.bootstrap, target, plan, start_ms, options.model.with_name("weights.npz")))
        speeds.append(span.events_per_second)
        rss = max(rss, span.rss_bytes)
        bench.say(f"repeat {repeat + 1} of {repeats}: {span.events_per_second:,.0f} windows/s, {checks[-1]}")
        delete_topics(options.bootstrap, [target])
    mean = float(plan.lengths.mean())
    model = Model.load(options.model)
    return {
        "windows_per_second": spread(speeds),
        "events_per_second": spread([speed * mean for speed in speeds]),
        **compare_calls(model, plan, repeats),
        **buffering(plan, repeats),
        "rss_bytes": rss,
        "windows": plan.windows,
        "events": int(plan.lengths.sum()),
        "verified": all(check["verified"] for check in checks),
        "checks": checks,
    }


def settings() -> tuple[str, ...]:
    """What the service is told beside the model's path."""
    return (f"model.bench.window.kind={RULE.kind}", f"model.bench.window.gap_ms={RULE.gap_ms}")
