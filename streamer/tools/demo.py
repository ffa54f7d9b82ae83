"""``streamer demo``: the main job in under a minute, on librdkafka's in-process broker; no Java, no torch.

Labelled synthetic telemetry goes in open loop to a topic. The service scores every event at once with a causal model and
judges every window of two seconds, when it ends, with a bidirectional one, which sees what came after. An independent
consumer counts the answers of both, compares them with the labels and with each other. The broker knows neither
transactions nor groups of several members, so delivery is ``ephemeral``: at least once, one worker.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.live import Live
from rich.table import Table

from streamer import __version__
from streamer.core import F32, I64
from streamer.errors import ConfigurationError
from streamer.observe.telemetry import Telemetry
from streamer.service.loop import Service
from streamer.service.wiring import build, facts, load_models, observed, prepare
from streamer.settings import Settings
from streamer.tools.broker import PARTITIONS, MockBroker, require_confluent_kafka
from streamer.tools.telemetry_data import KINDS
from streamer.tools.telemetry_data import Telemetry as Machines

MODEL = Path(__file__).with_name("demo_model") / "model.onnx"
WINDOW_MODEL = Path(__file__).with_name("demo_window_model") / "model.onnx"
SOURCE, TARGET = "telemetry", "scores"
WINDOW_MS = 2_000
THRESHOLD = 4.0
"""A score above it says "anomalous" at once; normal events score about 1."""
PLANT = 7
"""Seed of the generator that the model was trained on: it says how metrics move together. The demo's machines are others."""
_WAIT_S = 40.0
_WARM_UP_EVENTS_PER_STREAM = 4
"""A forecaster knows nothing of a stream's first events; they are scored, but not judged."""


@dataclass
class Verdicts:
    """What the bidirectional model said; each window says one kind per event."""

    seen: I64
    """[N] windows that judged the event"""
    kinds: I64
    """[N] index into KINDS"""
    scores: F32
    """[N] 1 - the probability of normal"""
    windows: list[I64] = field(default_factory=list)
    """The events of each"""
    latencies_ms: list[float] = field(default_factory=list)
    """From the record that closed the window to its verdict"""
    waits_ms: list[float] = field(default_factory=list)
    """From a window's first event to its verdict: what looking ahead costs"""


@dataclass
class Tally:
    """What the independent consumer found; written by its thread, read by the table."""

    labels: I64
    """[N] index into KINDS, by event"""
    seen: I64
    scores: F32
    verdicts: Verdicts
    latencies_ms: list[float] = field(default_factory=list)
    top: list[tuple[float, str, str]] = field(default_factory=list)
    """(score, stream, kind) of the largest scores"""

    @property
    def answered(self) -> int:
        return int((self.seen > 0).sum())

    @property
    def judged(self) -> int:
        return int((self.verdicts.seen > 0).sum())


class Demo:
    """Event i is step ``i // streams`` of stream ``i % streams``, on partition ``i % streams % PARTITIONS``."""

    def __init__(self, streams: int, rate: float, seconds: float, seed: int) -> None:
        self.streams, self.rate = streams, rate
        self.events = int(rate * seconds) // streams * streams
        if self.events < streams * (_WARM_UP_EVENTS_PER_STREAM + 1):
            raise ConfigurationError("rate x seconds is too small: every stream needs some events")
        machines = Machines(seed=PLANT, anomaly_rate=0.02)
        first = (seed + 1) * 1_000_000
        index = np.arange(self.events)
        self.stream_of, steps = index % streams, index // streams
        parts = [
            machines.rows(first + self.stream_of[begin : begin + 10_000], steps[begin : begin + 10_000])
            for begin in range(0, self.events, 10_000)
        ]
        self.x = np.concatenate([x for x, _ in parts])
        self.tally = Tally(
            np.concatenate([label for _, label in parts]),
            np.zeros(self.events, np.int64),
            np.zeros(self.events, np.float32),
            Verdicts(
                np.zeros(self.events, np.int64), np.zeros(self.events, np.int64), np.zeros(self.events, np.float32)
            ),
        )
        self.start_ms = 0.0
        partitions = self.stream_of % PARTITIONS
        self.event_at = [np.flatnonzero(partitions == partition) for partition in range(PARTITIONS)]
        """Offset -> event, by partition"""
        self.stop = threading.Event()
        self.failure: BaseException | None = None

    def send(self, bootstrap: str) -> None:
        """Open loop: every record carries its intended time, however late it is sent. At the end every machine signs off,
        which ends its last window."""
        producer: Any = require_confluent_kafka().Producer(
            {"bootstrap.servers": bootstrap, "linger.ms": 2, "log_level": 0}
        )
        keys = [f"machine-{stream:04d}" for stream in range(self.streams)]
        # on a border of windows, so that each run cuts the same windows
        self.start_ms = wall_ms = float(-(-time.time() * 1000 // WINDOW_MS) * WINDOW_MS)
        self.stop.wait(wall_ms / 1000 - time.time())
        begin, index = time.monotonic(), 0
        while index < self.events and not self.stop.is_set():
            due = min(int((time.monotonic() - begin) * self.rate) + 1, self.events)
            for event in range(index, due):
                stream, stamp = event % self.streams, int(wall_ms + event * 1000 / self.rate)
                value = json.dumps({"x": [round(float(each), 4) for each in self.x[event]], "ts": stamp})
                producer.produce(SOURCE, value, keys[stream], stream % PARTITIONS, timestamp=stamp)
            index = due
            producer.poll(0)
            self.stop.wait(max(0.0, begin + index / self.rate - time.monotonic()) + 0.001)
        for stream in range(self.streams):
            producer.produce(SOURCE, b"", keys[stream], stream % PARTITIONS, headers=[("streamer-op", b"end")])
        producer.flush(_WAIT_S)

    def read(self, bootstrap: str) -> None:
        """Ticks off every event by the header ``streamer-source`` of its answer."""
        kafka = require_confluent_kafka()
        consumer = kafka.Consumer(
            {"bootstrap.servers": bootstrap, "group.id": "demo-reader", "fetch.wait.max.ms": 10, "log_level": 0}
        )
        tally = self.tally
        try:
            consumer.assign([kafka.TopicPartition(TARGET, partition, 0) for partition in range(PARTITIONS)])
            while not self.stop.is_set():
                message = consumer.poll(0.1)
                if message is not None and message.error() is None:
                    document = json.loads(message.value())
                    if "window" in document:
                        self._judge(message, document)
                        continue
                    _, partition, offset = dict(message.headers())["streamer-source"].rsplit(b"/", 2)
                    event = int(self.event_at[int(partition)][int(offset)])
                    tally.seen[event] += 1
                    tally.scores[event] = document["score"]
                    tally.latencies_ms.append(time.time() * 1000 - message.timestamp()[1])
                    if event >= self.streams * _WARM_UP_EVENTS_PER_STREAM:
                        self._rank(float(document["score"]), document["stream"], KINDS[int(tally.labels[event])])
        finally:
            consumer.close()

    def _judge(self, message: Any, document: dict[str, Any]) -> None:
        """One verdict: a kind for each event of the window, in order."""
        now_ms, verdicts = time.time() * 1000, self.tally.verdicts
        first, last = document["window"]["offsets"]
        near = self.event_at[message.partition()][first : last + 1]
        events = near[self.stream_of[near] == self.stream_of[near[0]]]
        verdicts.seen[events] += 1
        verdicts.kinds[events] = [KINDS.index(label) for label in document["label"]]
        verdicts.scores[events] = 1 - np.array(document["y"])[:, 0]
        verdicts.windows.append(events)
        verdicts.latencies_ms.append(now_ms - message.timestamp()[1])
        verdicts.waits_ms.append(now_ms - self.start_ms - float(events[0]) * 1000 / self.rate)

    def opinions(self) -> NDArray[np.bool_]:
        """[W, 3] by window, is it anomalous: by the scores at once, by the verdict, by the labels."""
        tally, first = self.tally, self.streams * _WARM_UP_EVENTS_PER_STREAM
        alarms = (tally.scores > THRESHOLD) & (np.arange(self.events) >= first)
        rows = [
            (alarms[events].any(), tally.verdicts.kinds[events].any(), tally.labels[events].any())
            for events in tally.verdicts.windows
        ]
        return np.array(rows, bool).reshape(-1, 3)

    def _rank(self, score: float, stream: str, kind: str) -> None:
        top = self.tally.top
        if len(top) < 5 or score > top[-1][0]:
            self.tally.top = sorted([*top, (score, stream, kind)], reverse=True)[:5]

    def result(self, telemetry: Telemetry, url: str | None, seconds: float) -> dict[str, Any]:
        tally = self.tally
        judged = np.arange(self.events) >= self.streams * _WARM_UP_EVENTS_PER_STREAM
        judged &= tally.seen > 0
        verdicts = tally.verdicts
        early, final, truth = self.opinions().T
        return {
            "events": self.events,
            "predictions": int(tally.seen.sum()),
            "rejected": sum(telemetry.counts.rejected.values()),
            "lost": int((tally.seen == 0).sum()),
            "streams": self.streams,
            "anomalies": int((tally.labels > 0).sum()),
            "auc": roc_auc(tally.labels[judged] > 0, tally.scores[judged]),
            "latency_ms": _percentiles(tally.latencies_ms),
            "windows": {
                "verdicts": len(verdicts.windows),
                "events_judged": int(verdicts.seen.sum()),
                "events_lost": int((verdicts.seen == 0).sum()),
                "auc": roc_auc(tally.labels[judged] > 0, verdicts.scores[judged]),
                "latency_ms": _percentiles(verdicts.latencies_ms),
                "first_event_to_verdict_ms": _percentiles(verdicts.waits_ms),
                "agreement": _share(early == final),
                "right_at_once": _share(early == truth),
                "right_at_end": _share(final == truth),
                "anomalous": int(truth.sum()),
            },
            "events_per_second": round(self.events / seconds, 1),
            "delivery": "ephemeral",
            "metrics_url": f"{url}/metrics",
        }


def _percentiles(values: list[float]) -> dict[str, float]:
    found = np.percentile(values or [0.0], [50, 95, 99]).tolist()
    return dict(zip(("p50", "p95", "p99"), (round(each, 1) for each in found), strict=True))


def _share(right: NDArray[np.bool_]) -> float:
    return round(float(right.mean()), 4) if len(right) else float("nan")


def roc_auc(positive: Any, score: Any) -> float:
    """Area under the ROC curve: the share of pairs that are ordered rightly, ties half (Mann-Whitney U)."""
    positive, score = np.asarray(positive, bool), np.asarray(score, np.float64)
    count = int(positive.sum())
    if count in (0, len(positive)):
        return float("nan")
    _, inverse, sizes = np.unique(score, return_inverse=True, return_counts=True)
    ends = np.cumsum(sizes)
    ranks = (ends - (sizes - 1) / 2)[inverse]
    rank_sum = float(ranks[positive].sum())
    return (rank_sum - count * (count + 1) / 2) / (count * (len(positive) - count))


def _table(demo: Demo, telemetry: Telemetry, seconds: float, last: tuple[float, int]) -> Table:
    tally = demo.tally
    recent = tally.latencies_ms[-4000:] or [0.0]
    p50, p99 = np.percentile(recent, [50, 99])
    rows = telemetry.counts.rows
    table = Table(title=f"streamer demo, {seconds:.0f} s", show_header=False)
    table.add_row("events/s", f"{(tally.answered - last[1]) / max(seconds - last[0], 1e-3):,.0f}")
    table.add_row("predictions", f"{tally.answered:,} of {demo.events:,}")
    table.add_row("latency p50 / p99", f"{p50:.1f} / {p99:.1f} ms")
    table.add_row("windows judged", f"{len(tally.verdicts.windows):,}")
    table.add_row("streams", f"{demo.streams}")
    table.add_row("rows per model call", f"{rows.sum / max(rows.count, 1):.1f}")
    for score, stream, kind in tally.top:
        table.add_row("top anomaly", f"{stream}  score {score:.1f}  (injected: {kind})")
    return table


async def _run(demo: Demo, bootstrap: str, console: Console) -> dict[str, Any]:
    settings = Settings(
        kafka={"bootstrap": bootstrap, "group": "demo", "fetch_max_wait_ms": 5, "fetch_min_bytes": 1},  # type: ignore[arg-type]
        input={"topic": SOURCE},  # type: ignore[arg-type]
        output={"topic": TARGET},  # type: ignore[arg-type]
        delivery={"mode": "ephemeral"},  # type: ignore[arg-type]
        model={
            "anomaly": {"path": str(MODEL)},  # type: ignore[dict-item]
            "verdict": {"path": str(WINDOW_MODEL), "window": {"kind": "tumbling", "size_ms": WINDOW_MS}},  # type: ignore[dict-item]
        },
        http={"port": 0},  # type: ignore[arg-type]
    )
    models = load_models(settings)
    for _, model, _ in models:
        model.warm((1, 64, demo.streams))
    telemetry = Telemetry(
        [(name, model.contract.version, model.sha256) for name, model, _ in models],
        __version__,
        facts=facts(settings, "demo"),
    )
    service = build(await prepare(settings, models, mock=True), telemetry, instance="demo")
    async with observed(settings, telemetry, service) as url:
        serving = asyncio.create_task(service.run())
        try:
            await asyncio.wait({serving, asyncio.create_task(_ready(service))}, return_when=asyncio.FIRST_COMPLETED)
            console.print(f"[bold]metrics[/] {url}/metrics   [bold]status[/] {url}/")
            result = await _watch(demo, bootstrap, telemetry, url, serving, console)
        finally:
            demo.stop.set()
            service.stopping.set()
            await asyncio.gather(serving, return_exceptions=True)
        if serving.exception() is not None:
            raise serving.exception()  # type: ignore[misc]
    return result


async def _ready(service: Service) -> None:
    while not service.ready:  # noqa: ASYNC110 - the loop says so only by this flag
        await asyncio.sleep(0.05)


async def _watch(
    demo: Demo,
    bootstrap: str,
    telemetry: Telemetry,
    url: str | None,
    serving: asyncio.Task[None],
    console: Console,
) -> dict[str, Any]:
    sending = asyncio.create_task(asyncio.to_thread(demo.send, bootstrap))
    reading = asyncio.create_task(asyncio.to_thread(demo.read, bootstrap))
    began, last = time.monotonic(), (0.0, 0)
    deadline = began + demo.events / demo.rate + _WAIT_S
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while (
            min(demo.tally.answered, demo.tally.judged) < demo.events
            and time.monotonic() < deadline
            and not serving.done()
        ):
            await asyncio.sleep(0.5)
            seconds = time.monotonic() - began
            if console.is_terminal:
                live.update(_table(demo, telemetry, seconds, last), refresh=True)
            last = (seconds, demo.tally.answered)
    result = demo.result(telemetry, url, time.monotonic() - began)
    demo.stop.set()
    await asyncio.gather(sending, reading)
    return result


def _verdict_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    latency, wait = found["latency_ms"], found["first_event_to_verdict_ms"]
    return [
        (f"windows of {WINDOW_MS / 1000:g} s judged at their end", f"{found['verdicts']:,}"),
        ("events without a verdict", str(found["events_lost"])),
        ("close to verdict p50 / p95 / p99", f"{latency['p50']} / {latency['p95']} / {latency['p99']} ms"),
        ("first event to verdict p50 (the price of waiting)", f"{wait['p50']:.0f} ms"),
        ("ROC AUC of the verdicts", f"{found['auc']:.4f}"),
        ("scores at once and verdicts agree", f"{found['agreement']:.1%} of windows"),
        ("right: at once / at the end", f"{found['right_at_once']:.1%} / {found['right_at_end']:.1%}"),
    ]


def demo_command(
    streams: Annotated[int, typer.Option(min=1, max=10_000, help="Machines that send telemetry.")] = 200,
    rate: Annotated[float, typer.Option(min=1.0, max=20_000.0, help="Events per second.")] = 2_000.0,
    seconds: Annotated[float, typer.Option(min=1.0, max=600.0, help="How long events are sent.")] = 20.0,
    seed: Annotated[int, typer.Option(min=0, max=1_000_000, help="The same seed sends the same events.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as one JSON object.")] = False,
) -> None:
    """Live telemetry in, scores at once and verdicts on windows out, on an in-process broker: no Java, no torch."""
    console = Console(stderr=True)
    demo = Demo(streams, rate, seconds, seed)
    with MockBroker() as broker:
        found = asyncio.run(_run(demo, broker.bootstrap, console))
    if as_json:
        print(json.dumps(found))
        return
    table = Table(title="streamer demo (in-process broker: one worker, at least once, no durable state)")
    table.add_column("figure")
    table.add_column("value", justify="right")
    latency = found["latency_ms"]
    for name, value in (
        ("events", f"{found['events']:,}"),
        ("predictions", f"{found['predictions']:,}"),
        ("lost (counted by an independent consumer)", str(found["lost"])),
        ("rejected", str(found["rejected"])),
        ("streams", str(found["streams"])),
        ("events/s", f"{found['events_per_second']:,.0f}"),
        ("latency p50 / p95 / p99", f"{latency['p50']} / {latency['p95']} / {latency['p99']} ms"),
        ("injected anomalous events", f"{found['anomalies']:,}"),
        ("ROC AUC of the score", f"{found['auc']:.4f}"),
        *_verdict_rows(found["windows"]),
    ):
        table.add_row(name, value)
    Console().print(table)
    for score, stream, kind in demo.tally.top:
        print(f"top anomaly: {stream}, score {score:.1f}, injected: {kind}")
