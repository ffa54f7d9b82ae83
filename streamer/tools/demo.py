"""``streamer demo``: the main job in under a minute, on librdkafka's in-process broker; no Java, no torch.

Labelled synthetic telemetry goes in open loop to a topic. The service scores every event at once with a causal model and
judges every window of two seconds, when it ends, with a bidirectional one, which sees what came after. An independent
consumer counts the answers of both, compares them with the labels and with each other. The broker knows neither
transactions nor groups of several members, so delivery is ``ephemeral``: at least once, one worker.

Events come whether the machine keeps up or not. Where it does not, latencies are mostly waiting: the result says how fast
the machine was, and gives the latencies of the seconds apart in which it kept up.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from streamer import __version__
from streamer.observe.logs import configure_logs
from streamer.observe.telemetry import Telemetry
from streamer.service.loop import Service
from streamer.service.wiring import build, facts, load_models, observed, prepare
from streamer.settings import Settings
from streamer.tools.broker import MockBroker
from streamer.tools.demo_tally import SOURCE, TARGET, WAIT_S, WINDOW_MS, Demo, told_pace

MODEL = Path(__file__).with_name("demo_model") / "model.onnx"
WINDOW_MODEL = Path(__file__).with_name("demo_window_model") / "model.onnx"


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


async def _run(
    demo: Demo, bootstrap: str, console: Console, told: Callable[[dict[str, Any]], None], *, keep: bool
) -> None:
    """``told`` gets the result. ``keep``: the service, its page and the topics stay until Ctrl-C."""
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
        facts=facts(settings, "demo", models),
    )
    service = build(await prepare(settings, models, mock=True), telemetry, instance="demo")
    async with observed(settings, telemetry, service) as url:
        serving = asyncio.create_task(service.run())
        try:
            await asyncio.wait({serving, asyncio.create_task(_ready(service))}, return_when=asyncio.FIRST_COMPLETED)
            console.print(f"[bold]metrics[/] {url}/metrics   [bold]status[/] {url}/")
            told(await _watch(demo, bootstrap, telemetry, url, serving, console))
            if keep and not serving.done():
                console.print(
                    f"[bold]kept[/] {url}/ and topics {SOURCE}, {TARGET} at {bootstrap}: Ctrl-C ends. "
                    f"More events: streamer produce --bootstrap {bootstrap} --topic {SOURCE}"
                )
                await _interrupted(serving)
        finally:
            demo.stop.set()
            service.stopping.set()
            await asyncio.gather(serving, return_exceptions=True)
        if serving.exception() is not None:
            raise serving.exception()  # type: ignore[misc]


async def _interrupted(serving: asyncio.Task[None]) -> None:
    """Until Ctrl-C or SIGTERM, or the service ends by itself."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)
    await asyncio.wait({serving, asyncio.create_task(over.wait())}, return_when=asyncio.FIRST_COMPLETED)


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
    done, moved = 0, began + demo.events / demo.rate
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while (
            min(demo.tally.answered, demo.tally.judged) < demo.events
            and time.monotonic() < moved + WAIT_S
            and not serving.done()
        ):
            await asyncio.sleep(0.5)
            seconds = time.monotonic() - began
            if demo.tally.answered + demo.tally.judged > done:  # a slow machine gets the time that it needs
                done, moved = demo.tally.answered + demo.tally.judged, max(moved, time.monotonic())
            if console.is_terminal:
                live.update(_table(demo, telemetry, seconds, last), refresh=True)
            last = (seconds, demo.tally.answered)
    result = demo.result(telemetry, url)
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
    keep: Annotated[bool, typer.Option("--keep", help="Leave page and topics up afterwards, until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as one JSON object.")] = False,
) -> None:
    """Live telemetry in, scores at once and verdicts on windows out, on an in-process broker: no Java, no torch."""
    console = Console(stderr=True)
    configure_logs("warning")
    demo = Demo(streams, rate, seconds, seed)
    with MockBroker() as broker:
        asyncio.run(_run(demo, broker.bootstrap, console, lambda found: _tell(demo, found, as_json=as_json), keep=keep))


def _tell(demo: Demo, found: dict[str, Any], *, as_json: bool) -> None:
    slow = told_pace(found)
    if as_json:
        print(json.dumps({**found, "note": slow}), flush=True)
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
        ("events/s, offered / answered", f"{found['offered_per_second']:,.0f} / {found['events_per_second']:,.0f}"),
        ("latency p50 / p95 / p99", f"{latency['p50']} / {latency['p95']} / {latency['p99']} ms"),
        ("injected anomalous events", f"{found['anomalies']:,}"),
        ("ROC AUC of the score", f"{found['auc']:.4f}"),
        *_verdict_rows(found["windows"]),
    ):
        table.add_row(name, value)
    Console().print(table)
    for score, stream, kind in demo.tally.top:
        print(f"top anomaly: {stream}, score {score:.1f}, injected: {kind}")
    if slow is not None:
        print(slow)
    sys.stdout.flush()
