"""``streamer bench``: what the service does per second and per event, against the loop that people write by hand.

Every figure comes from processes of their own on a real cluster; both sides are measured in turns within one run, since
machines are noisy: compare ratios, not absolutes. An independent reader counts every answer and checks sampled streams.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from streamer.errors import ConfigurationError
from streamer.modelfile.model import Model
from streamer.tools.bench import windows as window_bench
from streamer.tools.bench.load import FORMATS, POOL, Plan, avro_schema, create_topics, delete_topics, preload
from streamer.tools.bench.measure import count_answers, cpu_seconds, read_latencies, rss_bytes, spread, watch_growth
from streamer.tools.bench.reference import lstm_outputs
from streamer.tools.bench.worker import STOP_TIMEOUT_S, Worker

MODEL = Path(__file__).with_name("model") / "model.onnx"
TOLERANCE = 1e-5
_SAMPLED = 32


@dataclass(frozen=True)
class Options:
    """``events``: of one throughput run, a twentieth for the naive loop. ``rate``: events per second of the latency run."""

    bootstrap: str
    model: Path = MODEL
    events: int = 1_500_000
    streams: int = 10_000
    partitions: int = 4
    repeats: int = 3
    workers: int = 1
    rate: float = 2_000.0
    rate_s: float = 30.0
    replication_factor: int = 1
    broker_pids: tuple[int, ...] = ()
    settings: tuple[str, ...] = ()
    broken_every: int = 0
    """Each throughput run once more with a record that is no event after so many events; 0: not"""


class _Case(NamedTuple):
    """What is measured."""

    delivery: str
    format: str
    broken_every: int


class Bench:
    """One run of the command: topics of its own, deleted at the end."""

    def __init__(self, options: Options, say: Callable[[str], None]) -> None:
        self.options = options
        self.say = say
        self._run = uuid.uuid4().hex[:8]
        self._topics: list[str] = []
        self._model = Model.load(options.model)
        self.features = self._model.contract.features
        self._names = [feature.name for feature in self._model.contract.feature_tables]

    def close(self) -> None:
        if self._topics:
            delete_topics(self.options.bootstrap, self._topics)

    def throughput(self, cases: Sequence[tuple[str, str]], *, naive: bool = True) -> list[dict[str, Any]]:
        """Results of every (delivery, format), then of the naive loop per format; ratios within each repeat. Where records
        are to be broken, each case is measured with them too, in turn."""
        options = self.options
        broken = (0, options.broken_every) if options.broken_every else (0,)
        formats = sorted({value_format for _, value_format in cases})
        loaded = {(kind, every): self._load(kind, options.events, every) for kind in formats for every in broken}
        few = {kind: self._load(kind, max(options.events // 20, 20_000)) for kind in formats if naive}
        spans: dict[_Case, list[dict[str, Any]]] = {}
        for repeat in range(options.repeats):
            for kind, load in few.items():
                spans.setdefault(_Case("naive", kind, 0), []).append(self._measure("naive", kind, *load))
            # close together, since their rates are compared with each other
            for kind in formats:
                for delivery, every in [(delivery, n) for delivery, wanted in cases if wanted == kind for n in broken]:
                    measured = self._measure(delivery, kind, *loaded[kind, every])
                    spans.setdefault(_Case(delivery, kind, every), []).append(measured)
            self.say(f"repeat {repeat + 1} of {options.repeats} done")
        return [self._summary(case, runs, spans) for case, runs in spans.items()]

    def latencies(self, deliveries: Sequence[str], value_format: str) -> dict[str, dict[str, Any]]:
        """``latency`` of each, in turn and ``repeats`` times, so that a bad minute of the machine hits them alike:
        medians, and the spread beside them."""
        runs: dict[str, list[dict[str, Any]]] = {delivery: [] for delivery in deliveries}
        for _ in range(self.options.repeats):
            for delivery, measured in runs.items():
                measured.append(self.latency(delivery, value_format))
                latency, cores = measured[-1]["latency_ms"], measured[-1]["cores_at_rate"]
                self.say(f"{delivery} at {self.options.rate:,.0f} events/s: {latency} at {cores:.2f} cores")
        return {delivery: typical_latency(measured) for delivery, measured in runs.items()}

    def latency(self, delivery: str, value_format: str) -> dict[str, Any]:
        """Open-loop latency at ``rate`` from the intended send time to a committed read, and the cores it takes."""
        options = self.options
        warm_up = int(options.rate * min(10.0, options.rate_s / 3))
        plan = self._plan(value_format, int(options.rate * options.rate_s) + warm_up)
        source, target = self.topic("in"), self.topic("out")
        create_topics(options.bootstrap, [source, target], options.partitions, options.replication_factor)
        mark: dict[str, float] = {}
        with self.serving(delivery, value_format, source, target) as worker:

            def begin() -> None:
                mark.update(at=time.monotonic(), cpu=cpu_seconds(worker.pids))

            worker.ready(options.bootstrap, target)
            sender = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", "streamer.tools.bench.sender", json.dumps(_sender(options, source, plan))]
            )
            try:
                found = read_latencies(
                    options.bootstrap, target, options.partitions, plan.events, warm_up=warm_up, began=begin,
                    alive=worker.alive, timeout_s=options.rate_s * 3 + 60,
                )  # fmt: skip
            finally:
                sender.terminate()
                sender.wait(STOP_TIMEOUT_S)
            cores = (cpu_seconds(worker.pids) - mark["cpu"]) / (time.monotonic() - mark["at"])
            rss = rss_bytes(worker.pids)
        p50, p95, p99 = np.percentile(found, [50, 95, 99]).tolist()
        latency = {"rate": options.rate, "p50": p50, "p95": p95, "p99": p99, "max": float(found.max())}
        return {"latency_ms": latency, "cores_at_rate": cores, "rss": rss}

    # one run

    def _measure(self, delivery: str, value_format: str, source: str, plan: Plan, sent_bytes: int) -> dict[str, Any]:
        options = self.options
        target = self.topic("out")
        create_topics(options.bootstrap, [target], options.partitions, options.replication_factor)
        with self.serving(delivery, value_format, source, target) as worker:
            span = watch_growth(
                options.bootstrap, target, options.partitions, plan.events, worker.pids, options.broker_pids,
                alive=worker.alive,
            )  # fmt: skip
            exported = worker.metrics()
        verified = self._verify(target, plan)
        if delivery != "naive" or verified["lost"] or verified["repeated"]:
            self.say(
                f"{delivery} {value_format}: {span.events_per_second:,.0f} events/s over {span.seconds:.1f} s, "
                f"{span.service_cpu_us_per_event:.2f} us CPU per event (broker {span.broker_cpu_us_per_event:.2f}), "
                f"lost {verified['lost']}, repeated {verified['repeated']}, largest error {verified['error']:.1e}"
            )
        changelog = exported.get("streamer_checkpoint_bytes_total", 0.0)
        stages = {
            name.partition('stage="')[2].rstrip('"}'): total / plan.events * 1e6
            for name, total in exported.items()
            if name.startswith("streamer_stage_seconds_sum")
        }
        delete_topics(options.bootstrap, [target])
        return {
            "events_per_second": span.events_per_second,
            "service": span.service_cpu_us_per_event,
            "broker": span.broker_cpu_us_per_event,
            "rss": span.rss_bytes,
            "changelog": changelog / sent_bytes,
            "stages": stages,
            **verified,
        }

    def _verify(self, target: str, plan: Plan) -> dict[str, Any]:
        streams_of = plan.streams_of()
        sampled = np.random.default_rng(plan.seed).choice(plan.streams, min(_SAMPLED, plan.streams), replace=False)
        keys = plan.keys()
        found = count_answers(self.options.bootstrap, target, plan.due(), {keys[stream] for stream in sampled.tolist()})
        worst = 0.0
        for stream in sampled.tolist():
            expected = self._expected(plan.sequence(stream, streams_of))
            got = [_numbers(json.loads(value)) for value in found.values.get(keys[stream], [])]
            same = len(got) == len(expected)
            worst = max(worst, float(np.abs(np.array(got) - expected).max(initial=0.0)) if same else float("inf"))
        return {"lost": found.lost, "repeated": found.repeated, "error": worst, "predictions": found.predictions}

    def _expected(self, x: Any) -> Any:
        weights = self.options.model.with_name("weights.npz")
        if self.options.model == MODEL:
            return lstm_outputs(weights, x)
        if not len(x):
            return np.empty((0, 0))
        outputs, _ = self._model.run(x[None], np.array([len(x)], np.int32), self._model.initial_states(1))
        return np.concatenate([output[0].reshape(len(x), -1) for output in outputs], axis=1)

    def _summary(
        self, case: _Case, runs: list[dict[str, Any]], all_runs: Mapping[_Case, list[dict[str, Any]]]
    ) -> dict[str, Any]:
        def ratios(to: _Case) -> dict[str, Any] | None:
            base = [run["events_per_second"] for run in all_runs.get(to, ())]
            return spread([mine / theirs for mine, theirs in zip(speeds, base, strict=True)]) if base else None

        delivery, value_format, broken_every = case
        speeds = [run["events_per_second"] for run in runs]
        middle = sorted(runs, key=lambda run: run["events_per_second"])[len(runs) // 2]
        result: dict[str, Any] = {
            "delivery": delivery,
            "format": value_format,
            "workers": 1 if delivery == "naive" else self.options.workers,
            "events_per_second": spread(speeds),
            "cpu_seconds_per_million": {"service": middle["service"], "broker": middle["broker"]},
            "rss_bytes": max(run["rss"] for run in runs),
            "verified": all(not run["lost"] and run["error"] <= TOLERANCE for run in runs),
            "lost": sum(run["lost"] for run in runs),
            "repeated": sum(run["repeated"] for run in runs),
            "largest_error": max(run["error"] for run in runs),
        }
        if delivery != "naive":
            result["stage_us"] = middle["stages"]
            result["changelog_bytes_per_input_byte"] = middle["changelog"]
            if (ratio := ratios(_Case("naive", value_format, 0))) is not None:
                result["ratio_to_naive"] = ratio
            if value_format != "json" and (ratio := ratios(_Case(delivery, "json", broken_every))) is not None:
                result["ratio_to_json"] = ratio
        if broken_every:
            result |= {"broken_every": broken_every, "ratio_to_unbroken": ratios(_Case(delivery, value_format, 0))}
        return result

    # pieces

    def _plan(self, value_format: str, events: int, broken_every: int = 0) -> Plan:
        options = self.options
        return Plan(
            events, options.streams, options.partitions, self.features, value_format, broken_every=broken_every,
            names=self._names,
        )  # fmt: skip

    def _load(self, value_format: str, events: int, broken_every: int = 0) -> tuple[str, Plan, int]:
        plan, topic = self._plan(value_format, events, broken_every), self.topic(value_format)
        create_topics(self.options.bootstrap, [topic], plan.partitions, self.options.replication_factor)
        self.say(f"loading {events:,} {value_format} events")
        return topic, plan, preload(self.options.bootstrap, topic, plan)

    def topic(self, purpose: str) -> str:
        name = f"bench-{self._run}-{purpose}-{len(self._topics)}"
        self._topics.append(name)
        return name

    @contextlib.contextmanager
    def serving(self, delivery: str, value_format: str, source: str, target: str) -> Iterator[Worker]:
        options = self.options
        with tempfile.TemporaryDirectory(prefix="streamer-bench-") as folder:
            schema = Path(folder) / "schema.avsc"
            schema.write_bytes(avro_schema(self._names))
            if delivery == "naive":
                arguments = {
                    "bootstrap": options.bootstrap, "source": source, "target": target, "group": target,
                    "model_path": str(options.model), "value_format": value_format, "schema": str(schema),
                }  # fmt: skip
                commands = [[sys.executable, "-m", "streamer.tools.bench.naive", json.dumps(arguments)]]
            else:
                command = [sys.executable, "-m", "streamer.cli", "run"]
                if value_format == "avro":
                    command += ["--set", f"input.schema_file={schema}"]
                for setting in (
                    f"kafka.bootstrap={options.bootstrap}", f"kafka.group={target}", f"input.topic={source}",
                    f"input.format={value_format}", f"output.topic={target}", f"delivery.mode={delivery}",
                    f"model.bench.path={options.model}", "http.port=0", "log.format=json",
                    f"topics.replication_factor={options.replication_factor}", *options.settings,
                ):  # fmt: skip
                    command += ["--set", setting]
                commands = [command] * options.workers
                self._topics += [f"{target}.{source}.changelog"]
            worker = Worker(commands, Path(folder))
            try:
                yield worker
            finally:
                worker.stop()


def _sender(options: Options, topic: str, plan: Plan) -> dict[str, Any]:
    return {"bootstrap": options.bootstrap, "topic": topic, "plan": vars(plan), "rate": options.rate}


def _numbers(document: dict[str, Any]) -> list[float]:
    values = [value for name, value in document.items() if name not in ("stream", "ts", "model", "label")]
    flat: list[float] = []
    for value in values:
        flat += value if isinstance(value, list) else [value]
    return flat


def typical_latency(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the runs of one delivery: the median of each figure (``max``: the largest), and min, median and max."""
    spreads = {name: spread([run["latency_ms"][name] for run in runs]) for name in ("p50", "p95", "p99", "max")}
    cores = spread([run["cores_at_rate"] for run in runs])
    typical = {name: found["median"] for name, found in spreads.items() if name != "max"}
    return {
        "latency_ms": {"rate": runs[0]["latency_ms"]["rate"], **typical, "max": spreads["max"]["max"]},
        "latency_spread_ms": spreads,
        "cores_at_rate": cores["median"],
        "cores_at_rate_spread": cores,
    }


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        cpu = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "unknown")
    names = ("onnxruntime", "numpy", "aiokafka", "msgspec")
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in names},
    }


def bench_command(
    bootstrap: Annotated[str, typer.Option(envvar="KAFKA_BOOTSTRAP", help="Address of the cluster.")] = "",
    model: Annotated[Path | None, typer.Option(help="A model of your own.")] = None,
    delivery: Annotated[str, typer.Option(help="Comma separated.")] = "exactly-once,at-least-once",
    value_format: Annotated[
        str, typer.Option("--format", help=f"{', '.join(FORMATS)}, comma separated.")
    ] = "json,float32",
    events: Annotated[int, typer.Option(help="Events of one throughput run.")] = 1_500_000,
    streams: Annotated[int, typer.Option(help="Streams.")] = 10_000,
    repeats: Annotated[int, typer.Option(help="Runs of each kind; medians are told, with their spread.")] = 3,
    workers: Annotated[int, typer.Option(help="Processes in one group.")] = 1,
    rate: Annotated[float, typer.Option(help="Events per second of the latency runs; 0: none.")] = 2_000.0,
    rate_s: Annotated[float, typer.Option(help="Seconds of a latency run.")] = 30.0,
    naive: Annotated[bool, typer.Option(help="Measure the naive loop beside it.")] = True,
    windows: Annotated[
        bool, typer.Option("--windows", help="Closed windows of a bidirectional model instead.")
    ] = False,
    broken_every: Annotated[
        int, typer.Option(help="Each throughput run once more with a broken record after so many events; 0: not.")
    ] = 0,
    settings: Annotated[list[str] | None, typer.Option("--set", help="section.key=value for the service.")] = None,
) -> None:
    """Throughput, cost and latency on a real cluster, against a naive loop in the same run."""
    if not bootstrap:
        raise ConfigurationError("give --bootstrap or KAFKA_BOOTSTRAP; make bench starts a local Kafka by itself")
    if events < 10_000 or repeats < 1 or workers < 1:
        raise ConfigurationError("at least 10,000 events, one repeat and one worker are needed")
    pids = tuple(int(pid) for pid in os.environ.get("KAFKA_PIDS", "").replace(",", " ").split())
    own = window_bench.settings() if windows else ()
    options = Options(
        bootstrap, model or (window_bench.MODEL if windows else MODEL), events, streams, repeats=repeats, workers=workers,
        rate=rate, rate_s=rate_s, broker_pids=pids, settings=(*own, *(settings or ())), broken_every=broken_every,
    )  # fmt: skip
    deliveries, formats = delivery.split(","), value_format.split(",")
    _check_formats(formats, naive=naive)
    lock = threading.Lock()

    def say(text: str) -> None:
        with lock:
            print(text, file=sys.stderr, flush=True)

    bench = Bench(options, say)
    if windows:
        try:
            plan = window_bench.WindowPlan(events, min(streams, 1_000), options.partitions, bench.features)
            print(json.dumps({**window_bench.bench_windows(bench, plan, repeats), "machine": machine()}))
        finally:
            bench.close()
        return
    try:
        found = bench.throughput([(each, kind) for each in deliveries for kind in formats], naive=naive)
        if rate:
            timed = bench.latencies([*deliveries, *(["naive"] if naive else [])], formats[0])
            for result in found:
                if result["format"] == formats[0] and "broken_every" not in result:
                    result.update(timed[result["delivery"]])
    finally:
        bench.close()
    print(json.dumps({**_document(found), "pool": POOL, "machine": machine()}))


def _check_formats(formats: Sequence[str], *, naive: bool) -> None:
    """Raises ConfigurationError for a format that is unknown, or that the naive loop could not read here."""
    if unknown := sorted(set(formats) - set(FORMATS)):
        raise ConfigurationError(f"--format {unknown[0]!r}: events are sent as {', '.join(FORMATS)}")
    if naive and "avro" in formats and importlib.util.find_spec("fastavro") is None:
        raise ConfigurationError("the naive loop reads Avro by fastavro: pip install fastavro, or give --no-naive")


def _document(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    results, baselines = ([each for each in found if (each["delivery"] == "naive") is naive] for naive in (False, True))
    return {"results": results, "naive": next(iter(baselines), None), "naive_by_format": baselines}
