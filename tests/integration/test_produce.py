"""The load generator against a broker: the in-process one, and a real Kafka for what only that can show."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections import Counter

import pytest
import typer
from aiokafka.partitioner import murmur2
from typer.testing import CliRunner

from streamer.errors import ConfigurationError, KafkaUnavailableError
from streamer.tools import produce
from streamer.tools.broker import PARTITIONS, MockBroker
from streamer.tools.load import LoadOptions, TelemetrySource, blocks
from streamer.tools.produce import produce_command, run_load

confluent_kafka = pytest.importorskip("confluent_kafka", reason="the extra `demo` is not installed")


def read_all(bootstrap, topic, count, seconds=30.0):
    consumer = confluent_kafka.Consumer(
        {"bootstrap.servers": bootstrap, "group.id": "reader", "fetch.wait.max.ms": 10, "log_level": 0}
    )
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign([confluent_kafka.TopicPartition(topic, number, 0) for number in partitions])
    records, deadline = [], time.monotonic() + seconds
    try:
        while len(records) < count:
            assert time.monotonic() < deadline, f"{len(records)} of {count} records arrived"
            records += [record for record in consumer.consume(1_000, timeout=0.2) if record.error() is None]
    finally:
        consumer.close()
    return records


@pytest.fixture(scope="module")
def broker():
    with MockBroker() as running:
        yield running


def test_every_record_arrives_where_java_clients_would_put_it_in_order(broker, topic_name):
    options = LoadOptions(events=3_000, rate=3_000, broken=0.02, end_marks=10, streams=50)
    topic = topic_name()
    summary = run_load(broker.bootstrap, topic, options)
    records = read_all(broker.bootstrap, topic, summary.records)
    planned = [
        row
        for block in blocks(TelemetrySource(options), options, summary.start_ms)
        for row in zip(block.keys, block.values, block.headers, block.timestamps_ms, strict=True)
    ]
    assert (summary.events, summary.failed, len(records)) == (3_000, 0, len(planned))
    by_key: dict[bytes, list] = {}
    for record in records:
        by_key.setdefault(record.key(), []).append((record.value(), record.headers() or []))
        if record.key() is not None:
            assert record.partition() == (murmur2(record.key()) & 0x7FFFFFFF) % PARTITIONS
    assert {key for key in by_key if key} == {key for key, *_ in planned if key}
    for key in filter(None, by_key):
        assert by_key[key] == [(value, headers) for k, value, headers, _ in planned if k == key]
    assert Counter(record.timestamp()[1] for record in records) == Counter(row[3] for row in planned)


def test_summary_counts_what_was_sent(broker, topic_name):
    options = LoadOptions(events=2_000, rate=0, broken=0.1, end_marks=20, streams=10, anomaly_rate=0.08)
    summary = run_load(broker.bootstrap, topic_name(), options)
    values = summary.as_dict()
    assert values["events"] == 2_000
    assert values["end_marks"] == 100
    assert 100 < sum(values["broken"].values()) < 300
    assert 0 < values["anomalies"] < 2_000
    assert values["records"] == 2_100 + sum(values["broken"].values())
    json.dumps(values)


class Stalling:
    """A client on a clock of its own, whose queue is full for a while after the tenth record."""

    def __init__(self, clock):
        self.clock, self.sent, self.stall_until = clock, [], None

    def produce(self, topic, value, key, timestamp, headers):
        if len(self.sent) == 10:
            self.stall_until = self.stall_until or self.clock.now + 2.0
            if self.clock.now < self.stall_until:
                raise BufferError
        self.sent.append((self.clock.now, timestamp))

    def poll(self, seconds):
        self.clock.now += seconds


class Clock:
    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def test_a_stall_delays_sending_but_not_the_intended_times(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(produce, "time", clock)
    client, options = Stalling(clock), LoadOptions(events=100, rate=10, streams=5)
    plan = blocks(TelemetrySource(options), options, 1_000_000)
    summary = produce.Summary("t")
    produce._send(client, plan, summary, clock.now, float("inf"), paced=True, progress=None, stopped=lambda: False)
    at = [now - 100.0 for now, _ in client.sent]
    assert [stamp for _, stamp in client.sent] == [1_000_000 + 100 * n for n in range(100)]
    assert at[:10] == pytest.approx([n / 10 for n in range(10)])
    assert at[10:31] == pytest.approx([3.0] * 21, abs=0.06)  # what became due in the stall goes out at once
    assert at[31:] == pytest.approx([n / 10 for n in range(31, 100)])
    lag = summary.as_dict()["send_lag_ms"]
    assert lag["p50"] == 0
    assert 1_890 <= lag["max"] <= 2_000


def test_a_stopped_load_counts_only_what_it_sent(broker, topic_name):
    topic, asked = topic_name(), []

    def stopped():
        asked.append(None)
        return len(asked) > 500

    summary = run_load(broker.bootstrap, topic, LoadOptions(events=5_000, rate=0), stopped=stopped)
    assert summary.events == 500
    assert len(read_all(broker.bootstrap, topic, 500)) == 500


def test_duration_bounds_the_number_of_events(broker, topic_name):
    summary = run_load(broker.bootstrap, topic_name(), LoadOptions(events=None, rate=1_000), duration_s=0.5)
    assert summary.events == 500


def test_the_mock_broker_ends_with_its_context():
    with MockBroker() as running:
        host, _, port = running.bootstrap.partition(":")
        socket.create_connection((host, int(port)), timeout=5).close()
    with pytest.raises(OSError):  # noqa: PT011 - refused or reset
        socket.create_connection((host, int(port)), timeout=5).close()


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(ConfigurationError, match=r"pip install '\.\[demo\]' in the checkout"):
        MockBroker().start()
    with pytest.raises(ConfigurationError, match=r"pip install '\.\[demo\]' in the checkout"):
        run_load("127.0.0.1:1", "t", LoadOptions(events=1))


def test_an_unreachable_cluster_and_a_bad_setting_are_clear_errors(monkeypatch):
    monkeypatch.setattr(produce, "_CONNECT_TIMEOUT_S", 0.5)
    with pytest.raises(KafkaUnavailableError, match=r"127\.0\.0\.1:1: "):
        run_load("127.0.0.1:1", "t", LoadOptions(events=1))
    with pytest.raises(ConfigurationError, match=r"no\.such\.setting"):
        run_load("127.0.0.1:1", "t", LoadOptions(events=1), properties={"no.such.setting": "1"})
    with pytest.raises(ConfigurationError, match="number of events"):
        run_load("127.0.0.1:1", "t", LoadOptions(events=None, rate=0))


def test_a_missing_topic_is_refused_and_can_be_created(kafka, topic_name):
    topic = topic_name()
    with pytest.raises(KafkaUnavailableError, match="--create"):
        run_load(kafka, topic, LoadOptions(events=10))
    summary = run_load(kafka, topic, LoadOptions(events=400, rate=0, streams=20), create_partitions=3)
    assert summary.failed == 0
    records = read_all(kafka, topic, 400)
    assert {record.partition() for record in records} == {0, 1, 2}


def command(*arguments):
    app = typer.Typer()
    app.command()(produce_command)
    return CliRunner().invoke(app, list(arguments))


def test_command_sends_and_prints_one_json_object(broker, topic_name):
    topic = topic_name()
    sizes = ("--rate", "0", "--events", "200", "--streams", "10", "--format", "json-named")
    result = command("--topic", topic, "--bootstrap", broker.bootstrap, *sizes, "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout.splitlines()[-1])
    assert (summary["topic"], summary["events"], summary["failed"]) == (topic, 200, 0)
    assert len(read_all(broker.bootstrap, topic, 200)) == 200


def test_command_ends_after_its_duration(broker, topic_name):
    arguments = ("--rate", "200", "--duration-s", "0.5", "--json")
    done = command("--bootstrap", broker.bootstrap, "--topic", topic_name(), *arguments)
    assert done.exit_code == 0
    assert json.loads(done.stdout)["events"] == 100


def test_command_writes_a_training_file_without_a_broker(tmp_path):
    path = tmp_path / "train.npz"
    result = command("--out", str(path), "--events", "1000", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["events"] == 1_000
    again = command("--out", str(tmp_path / "again.csv"), "--file", str(path))
    assert again.exit_code == 0, again.output
    assert len((tmp_path / "again.csv").read_text().splitlines()) == 1_001


@pytest.mark.parametrize(
    ("arguments", "what"),
    [([], "--topic"), (["--out", "x.csv"], "--events"), (["--topic", "t", "--property", "a"], "KEY=VALUE")],
)
def test_command_refuses_what_it_cannot_do(arguments, what):
    result = command(*arguments)
    assert isinstance(result.exception, ConfigurationError)
    assert what in str(result.exception)
