"""``streamer``: data on stdout, logs on stderr, one sentence and an exit code for what goes wrong.

Exit codes: 0 ok, 2 configuration, 3 model, 4 Kafka, 5 lost data would result.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from streamer.assemble import build, load_models, prepare
from streamer.core import Epoch, Outgoing, Reject
from streamer.errors import StreamerError
from streamer.processor import Processor
from streamer.recovery import RestoreState
from streamer.service import Service, Times
from streamer.settings import Settings, describe, instance_id, load_settings
from streamer.tools.bench import bench_command
from streamer.tools.inspect import inspect as inspect_model

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
log = logging.getLogger("streamer")

Config = Annotated[Path | None, typer.Option("--config", "-c", help="Settings, TOML; none: flags and environment only")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="section.key=value, before environment and file")]


class LogObserver:
    """Tells in the log what happens to partitions and commits; nothing per event."""

    def polled(self, records: int, rejects: Sequence[Reject]) -> None: ...

    def settled(self, processor: Processor, run_seconds: Sequence[float]) -> None: ...

    def published(self, outgoing: Sequence[Outgoing], now_ms: int) -> None: ...

    def tick(self, service: Service) -> None: ...

    def committed(self, outcome: str, epoch: Epoch, times: Times, changelog_bytes: int) -> None:
        if outcome != "committed":
            log.warning("commit %s: %d events will be done again", outcome, epoch.events)

    def assigned(self, partitions: Sequence[int]) -> None:
        log.info("assigned partitions %s", list(partitions))

    def restoring(self, partition: int, state: RestoreState) -> None: ...

    def recovered(self, partitions: Sequence[int], kept: Sequence[int], seconds: float) -> None:
        log.info("live after %.2f s: restored %s, kept %s", seconds, list(partitions), list(kept))

    def failed(self, error: BaseException) -> None:
        log.error("%s: %s", type(error).__name__, error)


@app.command()
def run(config: Config = None, overrides: Overrides = None) -> None:
    """Serve until SIGTERM or SIGINT, then commit what is open and leave the group."""
    settings, _ = load_settings(config, overrides or (), os.environ)
    _log_to_stderr(settings.log.level)
    asyncio.run(_serve(settings))


@app.command()
def check(config: Config = None, overrides: Overrides = None) -> None:
    """Validate settings, models and topics without consuming; print the settings and where each comes from."""
    settings, origins = load_settings(config, overrides or (), os.environ)
    for key, value, origin in describe(settings, origins):
        print(f"{key} = {value}  ({origin})")
    asyncio.run(prepare(settings, load_models(settings)))


@app.command("inspect")
def inspect_command(
    model: Annotated[Path, typer.Argument(help="ONNX file")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object")] = False,
) -> None:
    """What a model file declares, whether it behaves so, and what it costs."""
    found: dict[str, Any] = inspect_model(model)
    if as_json:
        print(json.dumps(found, default=str))
        return
    for key, value in found.items():
        print(f"{key}: {json.dumps(value, default=str)}")


app.command("bench")(bench_command)


async def _serve(settings: Settings) -> None:
    models = load_models(settings)
    for name, model, _ in models:
        for finding in model.findings:
            if not finding.passed:
                log.warning("model %s: %s: %s", name, finding.name, finding.detail)
        model.warm((1, min(64, settings.batch.max_rows), settings.batch.max_rows))
    service = build(await prepare(settings, models), LogObserver(), instance=instance_id(settings))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.stopping.set)
    _collect_rarely()
    await service.run()


def _collect_rarely() -> None:
    """A poll makes tens of thousands of short-lived lists and tuples, none of them in a cycle; at the default thresholds
    the collector walks them several times per poll, a fifth of all time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 50)


def _log_to_stderr(level: str) -> None:
    logging.basicConfig(
        stream=sys.stderr, level=level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s", force=True
    )
    logging.getLogger("aiokafka").setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))


def main() -> None:
    """Entry point of the command: a StreamerError becomes one sentence and its exit code."""
    try:
        app()
    except StreamerError as error:
        print(f"streamer: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
