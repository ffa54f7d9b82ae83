"""``streamer demo``: the main job in under a minute, on librdkafka's in-process broker; no Java, no torch.

Labelled synthetic telemetry goes in open loop to a topic, the service scores every event with the model in this package,
and an independent consumer counts the answers and compares the scores with the labels. The broker knows neither
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
from rich.console import Console
from rich.live import Live
from rich.table import Table

from streamer import __version__
from streamer.assemble import build, facts, load_models, observed, prepare
from streamer.core import F32, I64
from streamer.errors import ConfigurationError
from streamer.service import Service
from streamer.settings import Settings
from streamer.telemetry import Telemetry
from streamer.tools.broker import PARTITIONS, MockBroker, require_confluent_kafka
from streamer.tools.telemetry_data import KINDS
from streamer.tools.telemetry_data import Telemetry as Machines

MODEL = Path(__file__).with_name("demo_model") / "model.onnx"
SOURCE, TARGET = "telemetry", "scores"
PLANT = 7
"""Seed of the generator that the model was trained on: it says how metrics move together. The demo's machines are others."""
_WAIT_S = 20.0
_WARM_UP_EVENTS_PER_STREAM = 4
"""A forecaster knows nothing of a stream's first events; they are scored, but not judged."""


@dataclass
class Tally:
    """What the independent consumer found; written by its thread, read by the table."""

    labels: I64
    """[N] index into KINDS, by event"""
    seen: I64
    scores: F32
    latencies_ms: list[float] = field(default_factory=list)
    top: list[tuple[float, str, str]] = field(default_factory=list)
    """(score, stream, kind) of the largest scores"""

    @property
    def answered(self) -> int:
        return int((self.seen > 0).sum())


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
        )
        partitions = self.stream_of % PARTITIONS
        self.event_at = [np.flatnonzero(partitions == partition) for partition in range(PARTITIONS)]
        """Offset -> event, by partition"""
        self.stop = threading.Event()
        self.failure: BaseException | None = None

    def send(self, bootstrap: str) -> None:
        """Open loop: every record carries its intended time, however late it is sent."""
        producer: Any = require_confluent_kafka().Producer(
            {"bootstrap.servers": bootstrap, "linger.ms": 2, "log_level": 0}
        )
        keys = [f"machine-{stream:04d}" for stream in range(self.streams)]
        wall_ms, begin, index = time.time() * 1000, time.monotonic(), 0
        while index < self.events and not self.stop.is_set():
            due = min(int((time.monotonic() - begin) * self.rate) + 1, self.events)
            for event in range(index, due):
                stream, stamp = event % self.streams, int(wall_ms + event * 1000 / self.rate)
                value = json.dumps({"x": [round(float(each), 4) for each in self.x[event]], "ts": stamp})
                producer.produce(SOURCE, value, keys[stream], stream % PARTITIONS, timestamp=stamp)
            index = due
            producer.poll(0)
            self.stop.wait(max(0.0, begin + index / self.rate - time.monotonic()) + 0.001)
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
                    _, partition, offset = dict(message.headers())["streamer-source"].rsplit(b"/", 2)
                    event = int(self.event_at[int(partition)][int(offset)])
                    document = json.loads(message.value())
                    tally.seen[event] += 1
                    tally.scores[event] = document["score"]
                    tally.latencies_ms.append(time.time() * 1000 - message.timestamp()[1])
                    if event >= self.streams * _WARM_UP_EVENTS_PER_STREAM:
                        self._rank(float(document["score"]), document["stream"], KINDS[int(tally.labels[event])])
        finally:
            consumer.close()

    def _rank(self, score: float, stream: str, kind: str) -> None:
        top = self.tally.top
        if len(top) < 5 or score > top[-1][0]:
            self.tally.top = sorted([*top, (score, stream, kind)], reverse=True)[:5]

    def result(self, telemetry: Telemetry, url: str | None, seconds: float) -> dict[str, Any]:
        tally = self.tally
        judged = np.arange(self.events) >= self.streams * _WARM_UP_EVENTS_PER_STREAM
        judged &= tally.seen > 0
        p50, p95, p99 = np.percentile(tally.latencies_ms or [0.0], [50, 95, 99]).tolist()
        return {
            "events": self.events,
            "predictions": int(tally.seen.sum()),
            "rejected": sum(telemetry.rejected.values()),
            "lost": int((tally.seen == 0).sum()),
            "streams": self.streams,
            "anomalies": int((tally.labels > 0).sum()),
            "auc": roc_auc(tally.labels[judged] > 0, tally.scores[judged]),
            "latency_ms": {"p50": round(p50, 1), "p95": round(p95, 1), "p99": round(p99, 1)},
            "events_per_second": round(self.events / seconds, 1),
            "delivery": "ephemeral",
            "metrics_url": f"{url}/metrics",
        }


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
    rows = telemetry.rows
    table = Table(title=f"streamer demo, {seconds:.0f} s", show_header=False)
    table.add_row("events/s", f"{(tally.answered - last[1]) / max(seconds - last[0], 1e-3):,.0f}")
    table.add_row("predictions", f"{tally.answered:,} of {demo.events:,}")
    table.add_row("latency p50 / p99", f"{p50:.1f} / {p99:.1f} ms")
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
        model={"anomaly": {"path": str(MODEL)}},  # type: ignore[dict-item]
        http={"port": 0},  # type: ignore[arg-type]
    )
    models = load_models(settings)
    model = models[0][1]
    model.warm((1, 64, demo.streams))
    telemetry = Telemetry(
        [("anomaly", model.contract.version, model.sha256)], __version__, facts=facts(settings, "demo")
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
        while demo.tally.answered < demo.events and time.monotonic() < deadline and not serving.done():
            await asyncio.sleep(0.5)
            seconds = time.monotonic() - began
            if console.is_terminal:
                live.update(_table(demo, telemetry, seconds, last), refresh=True)
            last = (seconds, demo.tally.answered)
    result = demo.result(telemetry, url, time.monotonic() - began)
    demo.stop.set()
    await asyncio.gather(sending, reading)
    return result


def demo_command(
    streams: Annotated[int, typer.Option(min=1, max=10_000, help="Machines that send telemetry.")] = 200,
    rate: Annotated[float, typer.Option(min=1.0, max=20_000.0, help="Events per second.")] = 2_000.0,
    seconds: Annotated[float, typer.Option(min=1.0, max=600.0, help="How long events are sent.")] = 20.0,
    seed: Annotated[int, typer.Option(min=0, max=1_000_000, help="The same seed sends the same events.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as one JSON object.")] = False,
) -> None:
    """Live telemetry in, anomaly scores out, on an in-process broker: no Java, no torch."""
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
    ):
        table.add_row(name, value)
    Console().print(table)
    for score, stream, kind in demo.tally.top:
        print(f"top anomaly: {stream}, score {score:.1f}, injected: {kind}")
