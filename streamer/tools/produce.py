"""Open-loop load generator: sends a plan's records at their intended times, however long answers take.

A record that is due is never put off: when the client's queue is full or the machine stalls, it goes out late and the
lag shows in the summary, while its timestamp remains the intended send time. So latency measured from the timestamp to
a consumer holds all the waiting that a real source would have seen.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from streamer.errors import ConfigurationError, KafkaUnavailableError
from streamer.tools.broker import require_confluent_kafka
from streamer.tools.eventfile import Columns
from streamer.tools.grouping import Grouped
from streamer.tools.load import (
    FORMATS,
    SKEWS,
    Block,
    FileSource,
    LoadOptions,
    Source,
    TelemetrySource,
    blocks,
    write_events,
)

FILE_START_MS = 1_735_689_600_000
"""2025-01-01: when the events of a written file begin"""
_PREPARED_EVENTS = 100_000
"""Plans up to this size are encoded before the first record is due, so that encoding delays none."""
_PREPARE_US_PER_EVENT = 25
_CONNECT_TIMEOUT_S = 15.0
_FLUSH_TIMEOUT_S = 60.0
_SERVE_EVERY = 1_000
_LAG_BINS = 60_000
_STEP_S = 0.05
_PRODUCER = {
    # The partitioner of Java clients: a key lands where every other Kafka client puts it.
    "partitioner": "murmur2_random",
    "enable.idempotence": True,
    "linger.ms": 2,
    "queue.buffering.max.messages": 100_000,
    "message.timeout.ms": 60_000,
    "delivery.report.only.error": True,
    "log_level": 0,
}


@dataclass
class Summary:
    """What was sent. ``failed``: records that the cluster did not acknowledge."""

    topic: str = ""
    events: int = 0
    anomalies: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    end_marks: int = 0
    failed: int = 0
    error: str = ""
    interrupted: bool = False
    start_ms: int = 0
    seconds: float = 0.0
    lags: list[int] = field(default_factory=lambda: [0] * (_LAG_BINS + 1), repr=False)
    """Number of records by how many ms after their intended time they were handed to the client"""

    @property
    def records(self) -> int:
        """Everything sent: events, broken records and end marks."""
        return self.events + self.broken.total() + self.end_marks

    def as_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "lags"}
        rate = self.events / self.seconds if self.seconds else 0.0
        lag = {name: self._lag(share) for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))}
        return {**values, "records": self.records, "events_per_second": round(rate, 1), "send_lag_ms": lag}

    def _lag(self, share: float) -> int:
        wanted, seen = share * sum(self.lags), 0
        for lag, number in enumerate(self.lags):
            seen += number
            if number and seen >= wanted:
                return lag
        return 0


def run_load(
    bootstrap: str,
    topic: str,
    options: LoadOptions,
    *,
    source: Source | None = None,
    duration_s: float | None = None,
    properties: Mapping[str, Any] | None = None,
    create_partitions: int | None = None,
    progress: Callable[[Summary], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Summary:
    """Send the plan and wait for the acknowledgements; blocks, so an asyncio program calls it in a thread.

    ``properties``: further librdkafka settings (security). ``progress`` is called about 20 times per second.
    ConfigurationError for contradictory options, KafkaUnavailableError when cluster or topic cannot be used.
    """
    if not options.rate and options.events is None and not isinstance(source, FileSource):
        raise ConfigurationError("with rate 0 the number of events must be given")
    if options.rate and duration_s is not None and not isinstance(source, FileSource):
        limit = round(options.rate * duration_s)
        options = dataclasses.replace(options, events=limit if options.events is None else min(limit, options.events))
        duration_s = None  # the plan ends by itself; what is due is sent, late or not
    kafka = require_confluent_kafka()
    summary = Summary(topic)

    def failed(error: Any, message: object) -> None:
        summary.failed += 1
        summary.error = summary.error or str(error.str())

    settings = {**_PRODUCER, "bootstrap.servers": bootstrap, "on_delivery": failed, **(properties or {})}
    try:
        producer = kafka.Producer(settings)
    except (kafka.KafkaException, TypeError, ValueError) as error:
        raise ConfigurationError(f"the Kafka client refuses its settings: {error}") from error
    _check_topic(kafka, producer, topic, create_partitions, settings)

    chosen = source or TelemetrySource(options)
    prepared = bool(options.rate) and options.events is not None and options.events <= _PREPARED_EVENTS
    now_ms = time.time() * 1_000
    if options.rate:
        ahead = 50 + (_PREPARE_US_PER_EVENT * (options.events or 0) / 1_000 if prepared else 0)
        summary.start_ms = round(now_ms + ahead)
    else:  # event times end now: brokers refuse timestamps from the future
        summary.start_ms = round(now_ms - (options.events or 0) * options.interval_ms)
    plan: Iterable[Block] = blocks(chosen, options, summary.start_ms, file_times=isinstance(source, FileSource))
    if prepared:
        plan = list(plan)
    began = time.perf_counter() + (max(0.0, summary.start_ms / 1_000 - time.time()) if options.rate else 0)
    deadline = began + duration_s if duration_s is not None else float("inf")
    try:
        _send(producer, plan, summary, began, deadline, paced=options.rate > 0, progress=progress, stopped=stopped)
    except KeyboardInterrupt:
        summary.interrupted = True
    summary.failed += producer.flush(_FLUSH_TIMEOUT_S)
    summary.seconds = round(max(0.0, time.perf_counter() - began), 3)
    return summary


def _send(
    producer: Any,
    plan: Iterable[Block],
    summary: Summary,
    began: float,
    deadline: float,
    *,
    paced: bool,
    progress: Callable[[Summary], None] | None,
    stopped: Callable[[], bool],
) -> None:
    clock, topic, lags = time.perf_counter, summary.topic, summary.lags
    next_report = 0.0
    served = 0
    for block in plan:
        rows = zip(block.due_ms, block.keys, block.values, block.timestamps_ms, block.headers, strict=True)
        sent = 0
        for due_ms, key, value, timestamp, headers in rows:
            now = clock()
            while paced and (wait := began + due_ms / 1_000 - now) > 0 and not stopped():
                producer.poll(0)
                time.sleep(min(wait, _STEP_S))
                now = clock()
            if now >= deadline or stopped():
                break
            if paced:
                lags[min(_LAG_BINS, int((now - began) * 1_000 - due_ms))] += 1
            while True:
                try:
                    producer.produce(topic, value, key, timestamp=timestamp, headers=headers)
                    break
                except BufferError:  # the client's queue is full: this is where a slow cluster shows
                    producer.poll(_STEP_S)
            sent += 1
            served += 1
            if served % _SERVE_EVERY == 0:
                producer.poll(0)
            if progress and now >= next_report:
                next_report = now + _STEP_S
                progress(summary)
        _count(summary, block.kinds[:sent])
        if sent < len(block):
            return
        if progress:
            progress(summary)


def _count(summary: Summary, kinds: list[str]) -> None:
    counts = Counter(kinds)
    summary.anomalies += counts["anomaly"]
    summary.events += counts.pop("event", 0) + counts.pop("anomaly", 0)
    summary.end_marks += counts.pop("end", 0)
    summary.broken.update(counts)


def _check_topic(kafka: Any, producer: Any, topic: str, partitions: int | None, settings: Mapping[str, Any]) -> None:
    """Create the topic if that was asked for; refuse one that does not exist."""
    try:
        if partitions is not None:
            kafka_admin: Any = importlib.import_module("confluent_kafka.admin")
            ignored = {"on_delivery", *_PRODUCER}
            admin = kafka_admin.AdminClient({**{k: v for k, v in settings.items() if k not in ignored}, "log_level": 0})
            if topic not in admin.list_topics(timeout=_CONNECT_TIMEOUT_S).topics:
                admin.create_topics([kafka_admin.NewTopic(topic, partitions)])[topic].result(_CONNECT_TIMEOUT_S)
        # A topic that was just created is not known to every broker at once.
        deadline = time.monotonic() + (_CONNECT_TIMEOUT_S if partitions is not None else 0)
        while True:
            found = producer.list_topics(topic, timeout=_CONNECT_TIMEOUT_S).topics[topic]
            if found.error is None and found.partitions:
                return
            if time.monotonic() >= deadline:
                raise KafkaUnavailableError(
                    f"topic {topic!r}: {found.error.str() if found.error else 'no partitions'}; create it, or give "
                    "--create PARTITIONS"
                )
            time.sleep(_STEP_S)
    except kafka.KafkaException as error:
        reason = error.args[0].str() if error.args and hasattr(error.args[0], "str") else error
        raise KafkaUnavailableError(f"{settings['bootstrap.servers']}: {reason}") from error


def produce_command(
    topic: Annotated[str | None, typer.Option(help="Input topic to send to.")] = None,
    bootstrap: Annotated[
        str, typer.Option(envvar="KAFKA_BOOTSTRAP", help="Address of the cluster.")
    ] = "localhost:9092",
    rate: Annotated[float, typer.Option(help="Events per second, open loop; 0: as fast as possible.")] = 100.0,
    events: Annotated[int | None, typer.Option(help="Stop after so many events.")] = None,
    duration_s: Annotated[float | None, typer.Option(help="Stop after so many seconds.")] = None,
    streams: Annotated[int, typer.Option(help="Number of streams (keys).")] = 200,
    skew: Annotated[str, typer.Option(help=f"Shares of the streams: {' or '.join(SKEWS)}.")] = "even",
    gaps: Annotated[float, typer.Option(help="Share of the time for which a stream is silent.")] = 0.0,
    gap_ms: Annotated[int, typer.Option(help="Length of such a silence.")] = 5_000,
    disorder_ms: Annotated[int, typer.Option(help="Event times are up to this much out of order.")] = 0,
    broken: Annotated[float, typer.Option(help="Broken records per event, sent besides the events.")] = 0.0,
    end_marks: Annotated[int, typer.Option(help="End a stream's sequence after every n-th event; 0: never.")] = 0,
    steps: Annotated[int, typer.Option(help="Events of a stream in one record, for models that take several.")] = 1,
    value_format: Annotated[str, typer.Option("--format", help=f"Values: {', '.join(FORMATS)}.")] = "json",
    features: Annotated[int, typer.Option(help="Metrics per event of the synthetic telemetry.")] = 8,
    anomaly_rate: Annotated[float, typer.Option(help="Share of events inside injected anomalies.")] = 0.02,
    seed: Annotated[int, typer.Option(help="The same seed gives the same events.")] = 0,
    file: Annotated[Path | None, typer.Option(help="Send the events of this CSV or NPZ file.")] = None,
    train: Annotated[
        Path | None,
        typer.Option(help="Of --file: the columns have the names and units that this train.toml gives them."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the events to this CSV or NPZ file; send nothing.")] = None,
    create: Annotated[int | None, typer.Option(help="Create the topic with so many partitions if missing.")] = None,
    client_property: Annotated[
        list[str] | None, typer.Option("--property", help="KEY=VALUE for librdkafka (security), repeatable.")
    ] = None,
    property_file: Annotated[
        Path | None, typer.Option(help="File with a KEY=VALUE for librdkafka per line: the place for passwords.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as one JSON object.")] = False,
) -> None:
    """Send synthetic telemetry with labelled anomalies, or a file's events, to a topic at a steady rate."""
    options = LoadOptions(
        streams=streams, events=events, rate=rate, skew=skew, gaps=gaps, gap_ms=gap_ms, disorder_ms=disorder_ms,
        broken=broken, end_marks=end_marks, format=value_format, features=features, anomaly_rate=anomaly_rate, seed=seed,
    )  # fmt: skip
    # Without a file run_load makes the source: of the plan as --duration-s bounds it.
    if train is not None and file is None:
        raise ConfigurationError("--train says what the columns of --file mean: give both")
    columns = None if train is None else Columns.of_training(train)
    source: Source | None = FileSource(file, options, columns) if file else None
    if steps != 1:
        source = _grouped(source, options, steps, duration_s, file=file, out=out)
    if out is not None:
        _write(out, source or TelemetrySource(options), options, as_json)
        return
    if topic is None:
        raise ConfigurationError("give a --topic to send to, or a file to write with --out")
    properties = _properties(client_property or [], property_file)
    total = events if events is not None else round(rate * duration_s) if duration_s and rate else None
    with _Bar(total) as bar:
        summary = run_load(
            bootstrap, topic, options, source=source, duration_s=duration_s, create_partitions=create,
            properties=properties, progress=bar,
        )  # fmt: skip
    _tell(summary, topic, as_json)


def _tell(summary: Summary, topic: str, as_json: bool) -> None:
    """Prints what was sent. KafkaUnavailableError: some of it was not acknowledged."""
    values = summary.as_dict()
    lag = values["send_lag_ms"]
    text = (
        f"{summary.records} records ({summary.events} events, {summary.anomalies} anomalous, "
        f"{summary.broken.total()} broken, {summary.end_marks} end marks) to {topic} in {summary.seconds:.1f} s: "
        f"{values['events_per_second']:.0f} events/s, sent {lag['p50']}/{lag['p99']} ms (p50/p99) after their time"
    )
    print(json.dumps(values) if as_json else text)
    if summary.failed:
        raise KafkaUnavailableError(f"{summary.failed} records were not acknowledged: {summary.error or 'timed out'}")


def _grouped(
    source: Source | None,
    options: LoadOptions,
    steps: int,
    duration_s: float | None,
    *,
    file: Path | None,
    out: Path | None,
) -> Source:
    """The source with ``steps`` of its events in a record. ConfigurationError: they have no such records."""
    wrong = [
        sentence
        for ok, sentence in (
            (steps >= 1, "--steps must be at least 1"),
            (options.format != "json-named", "--steps needs --format json or float32: named fields have no steps"),
            (file is None, "--steps groups events that are made up: a --file is sent event by event"),
            (out is None, "--steps makes records: a file that is written with --out has events"),
        )
        if not ok
    ]
    if wrong:
        raise ConfigurationError("; ".join(wrong))
    if options.events is None and options.rate and duration_s is not None:
        options = dataclasses.replace(options, events=round(options.rate * duration_s))
    return Grouped(source or TelemetrySource(options), steps)


def _properties(given: list[str], file: Path | None) -> dict[str, str]:
    """Settings of librdkafka. A password among the flags is refused: all users can read process arguments."""
    pairs = [text.partition("=") for text in given]
    if any(not equals for _, equals, _ in pairs):
        raise ConfigurationError("--property takes KEY=VALUE")
    public = [key for key, _, _ in pairs if "password" in key or key.endswith((".pem", ".secret"))]
    if public:
        raise ConfigurationError(f"--property {public[0]}: all users can read flags, write it into a --property-file")
    lines: list[str] = []
    if file is not None:
        try:
            lines = [line.strip() for line in file.read_text().splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"--property-file {file}: cannot be read as text") from error
    kept = [line.partition("=") for line in lines if line and not line.startswith("#")]
    if any(not equals for _, equals, _ in kept):
        raise ConfigurationError(f"--property-file {file}: every line is KEY=VALUE")
    return {key.strip(): value.strip() for key, _, value in [*kept, *pairs]}


def _write(out: Path, source: Source, options: LoadOptions, as_json: bool) -> None:
    if options.events is None and not isinstance(source, FileSource):
        raise ConfigurationError("--out needs the number of --events")
    # Written event times are those of rate 0 unless a rate was given: one event per stream and second.
    written, anomalies = write_events(out, source, FILE_START_MS)
    values = {"file": str(out), "events": written, "anomalies": anomalies, "features": list(source.feature_names)}
    print(json.dumps(values) if as_json else f"{out}: {written} events, {anomalies} anomalous")


class _Bar:
    """A progress bar with an ETA on stderr; silent when that is not a terminal or no end is known."""

    def __init__(self, total: int | None) -> None:
        columns = (TextColumn("{task.completed:.0f} events"), BarColumn(), TimeRemainingColumn())
        shown = sys.stderr.isatty()
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown)
        self._task = self._progress.add_task("send", total=total)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def __call__(self, summary: Summary) -> None:
        self._progress.update(self._task, completed=summary.events)
