"""``streamer``: data on stdout, logs on stderr, one sentence and an exit code for what goes wrong.

Exit codes: 0 ok, 2 configuration, 3 model, 4 Kafka, 5 lost data would result, 130 interrupted (Ctrl-C). ``run`` ends with
0 when it is told to stop, whenever that is.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from streamer import __version__
from streamer.errors import StreamerError
from streamer.modelfile.draft import draft as draft_sidecar
from streamer.modelfile.model import Model
from streamer.observe.logs import configure_logs, log
from streamer.observe.telemetry import Telemetry
from streamer.service.check import Report, examine
from streamer.service.signals import drain_when_told, leave_when_told
from streamer.service.wiring import Parts, build, facts, instance_id, load_models, observed, prepare
from streamer.settings import Settings, describe, load_settings
from streamer.tools.bench import bench_command
from streamer.tools.deadletters import dlq_app
from streamer.tools.demo import demo_command
from streamer.tools.inspect import as_table
from streamer.tools.inspect import inspect as inspect_model
from streamer.tools.produce import produce_command
from streamer.tools.streams import stream_app
from streamer.windows import WindowRule

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

Config = Annotated[Path | None, typer.Option("--config", "-c", help="Settings, TOML; none: flags and environment only")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="section.key=value, before environment and file")]
Models = list[tuple[str, Model, WindowRule | None]]


def _tell_version(wanted: bool) -> None:
    if wanted:
        print(f"streamer {__version__}")
        raise typer.Exit


@app.callback()
def streamer(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Tell the version and exit")
    ] = False,
) -> None:
    """Durable, exactly-once recurrent inference on Kafka streams."""
    del version


@app.command()
def run(config: Config = None, overrides: Overrides = None) -> None:
    """Serve until SIGTERM or SIGINT, then commit what is open and leave the group."""
    leave_when_told()
    settings, _ = load_settings(config, overrides or (), os.environ)
    as_json = configure_logs(settings.log.level, settings.log.format)
    try:
        models = _ready_models(settings)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(settings, models))
    except StreamerError as error:
        if not as_json:
            raise
        log.error("stopped", exit_code=error.exit_code, error=str(error))
        raise typer.Exit(error.exit_code) from error
    except Exception:
        if not as_json:
            raise
        log.exception("crashed", exit_code=1)  # one line, with the traceback in it
        raise typer.Exit(1) from None
    log.info("stopped", exit_code=0)


@app.command()
def check(
    config: Config = None,
    overrides: Overrides = None,
    sample: Annotated[int, typer.Option(min=0, max=10_000, help="Newest records that are decoded and scored")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object")] = False,
) -> None:
    """Do all that run does before it joins the group, and try the newest records. Nothing is created or committed."""
    report = Report()
    try:
        settings, origins = load_settings(config, overrides or (), os.environ)
    except StreamerError as error:
        report.problems.append(error)
    else:
        report.settings = {key: (value, origin) for key, value, origin in describe(settings, origins)}
        if not as_json:
            for key, (value, origin) in report.settings.items():
                print(f"{key} = {value}  ({origin})")
        asyncio.run(examine(settings, report, sample=sample, say=_tell))
    if as_json:
        print(json.dumps(report.as_dict(), default=str))
    else:
        for line in report.lines():
            print(line)
        for problem in report.problems:
            _tell(f"streamer: {problem}")
        print(report.verdict)
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def _tell(text: str) -> None:
    """Beside the data, and in order with it."""
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)


@app.command("inspect")
def inspect_command(
    model: Annotated[Path, typer.Argument(help="ONNX file")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object")] = False,
    draft: Annotated[bool, typer.Option("--draft", help="Print a sidecar for a file without contract")] = False,
) -> None:
    """What a model file declares, whether it behaves so, and what it costs."""
    if draft:
        print(draft_sidecar(model), end="")
        return
    found: dict[str, Any] = inspect_model(model)
    if as_json:
        print(json.dumps(found, default=str))
        return
    Console().print(as_table(found))


app.add_typer(stream_app, name="stream")
app.add_typer(dlq_app, name="dlq")
app.command("demo")(demo_command)
app.command("bench")(bench_command)
app.command("produce")(produce_command)


def _ready_models(settings: Settings) -> Models:
    """Loaded, tried and warm, before there is a loop that this would keep waiting."""
    models = load_models(settings)
    for name, model, _ in models:
        for finding in model.findings:
            if not finding.passed:
                log.warning("model", name=name, finding=finding.name, detail=finding.detail)
        model.warm((1, min(64, settings.batch.max_rows), settings.batch.max_rows))
    return models


async def _serve(settings: Settings, models: Models) -> None:
    stopping = asyncio.Event()
    with drain_when_told(asyncio.get_running_loop(), stopping.set):
        instance = instance_id(settings)
        telemetry = Telemetry(
            [(name, model.contract.version, model.sha256) for name, model, _ in models],
            __version__,
            facts=facts(settings, instance, models),
            summary_interval_s=settings.log.summary_interval_s,
        )
        parts = await _unless(stopping, prepare(settings, models))
        if parts is None:
            return
        service = build(parts, telemetry, instance=instance)
        service.stopping = stopping
        _collect_rarely()
        log.info(
            "started",
            version=__version__,
            models={name: model.sha256 for name, model, _ in models},
            **facts(settings, instance, models),
        )
        async with observed(settings, telemetry, service):
            await service.run()


async def _unless(stopping: asyncio.Event, work: Coroutine[Any, Any, Parts]) -> Parts | None:
    """The work's result; None when it was told to stop before: then the work is cancelled."""
    doing, told = asyncio.create_task(work), asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait((doing, told), return_when=asyncio.FIRST_COMPLETED)
        return doing.result() if doing.done() else None
    finally:
        for task in (doing, told):
            task.cancel()
        await asyncio.gather(doing, told, return_exceptions=True)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where the extra ``fast`` is installed: cheaper small reads and writes, the same behaviour."""
    try:
        import uvloop  # noqa: PLC0415 - optional
    except ImportError:
        return None
    return uvloop.new_event_loop


def _collect_rarely() -> None:
    """A poll makes tens of thousands of short-lived lists and tuples, none of them in a cycle; at the default thresholds
    the collector walks them several times per poll, a fifth of all time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 50)


def main() -> None:
    """Entry point of the command: a StreamerError becomes one sentence and its exit code."""
    try:
        app()
    except StreamerError as error:
        print(f"streamer: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
