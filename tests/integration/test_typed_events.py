"""Events as a company has them, from file to answer: a model trained from a CSV file by ``python -m export train``, and served
with Avro records of a real registry, through deaths of the process. The graph gets the bits that training read, and every
answer is that of the model file, run offline over them."""

from __future__ import annotations

import asyncio
import csv
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from confluent_kafka import Producer
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from processes import running as process
from registry import local_registry
from serving import read_all

from export.config import read_config
from export.data import Streams
from export.prepare import read_split
from streamer.core import RecordBatch
from streamer.kafka.registry import Registry
from streamer.library import Runner
from streamer.modelfile.model import Model
from streamer.service.prepare import codec_of, pasts
from streamer.settings import Settings, load_settings

pytestmark = pytest.mark.torch

ROOT = Path(__file__).parents[2]
BEGIN_MS = 1_772_000_000_000
MAPPING = """
temperature = {path = "readings.celsius", missing = "last"}
pressure = "readings.bar"
flow = "readings.flow"
mode = {path = "state.mode", missing = "last"}
product = "product"
"""
TRAIN = """
name = "pumps"
task = "classify"
[data]
path = "train.csv"
test_path = "test.csv"
stream = "pump"
time = "at"
categories = ["product"]
present = ["temperature", "flow"]
since_last = true
lags = {pressure = [1, 3], mode = [1], temperature = [2]}
[data.fields]
%s
[model]
kind = "gru"
hidden = 8
[training]
epochs = 1
"""
SERVE = """
[kafka]
bootstrap = "%(bootstrap)s"
group = "%(group)s"
session_timeout_ms = 6000
heartbeat_interval_ms = 500
[input]
topic = "%(topic)s"
format = "avro"
time = "at"
[registry]
url = "%(registry)s"
[input.fields]
%(mapping)s
[output]
topic = "%(topic)s.out"
compression = "lz4"
[model.pumps]
path = "out/model.onnx"
[delivery]
checkpoint_interval_ms = 200
[state]
max_bytes = 16_000_000
[http]
port = 0
"""
READINGS = [
    {"name": "celsius", "type": ["null", "double"]},
    {"name": "bar", "type": "double"},
    {"name": "flow", "type": ["double", "null"]},
]
MODES = ["run", "idle", "service"]
STATE = {"type": "record", "name": "State", "fields": [
    {"name": "mode", "type": ["null", {"type": "enum", "name": "Mode", "symbols": MODES}]}]}  # fmt: skip
AT = {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}}
V1 = {"type": "record", "name": "Event", "namespace": "company.iot", "fields": [
    AT, {"name": "product", "type": "int"}, {"name": "state", "type": STATE},
    {"name": "readings", "type": {"type": "record", "name": "Readings", "fields": READINGS}}]}  # fmt: skip
# the same fields in another order, behind one that is new; product has become wider
V2 = {"type": "record", "name": "Event", "namespace": "company.iot", "fields": [
    {"name": "readings", "type": {"type": "record", "name": "Readings", "fields": READINGS[::-1]}},
    {"name": "site", "type": ["null", "string"], "default": None}, {"name": "state", "type": ["null", STATE]},
    {"name": "product", "type": ["null", "long"]}, AT]}  # fmt: skip

Event = dict[str, Any]


def made(seed: int, streams: int, modes: list[str | None]) -> list[Event]:
    """Events in the order of a log: gaps from a millisecond to an hour, missing cells, two labels."""
    rng, found = np.random.default_rng(seed), []
    times = dict.fromkeys(range(streams), BEGIN_MS)
    for _ in range(25 * streams):
        stream, hot = int(rng.integers(streams)), bool(rng.random() < 0.4)
        times[stream] += int(rng.choice([1, 999, 20_000, 3_600_000]))
        celsius = None if rng.random() < 0.3 else 20 + 10 * hot + float(rng.normal())
        flow = None if rng.random() < 0.2 else float(rng.normal())
        readings = {"celsius": celsius, "bar": float(rng.normal()), "flow": flow}
        state = {"mode": modes[int(rng.integers(len(modes)))]}
        product, label = int(rng.choice([7, 12])), "fault" if hot else "ok"
        event = {"readings": readings, "state": state, "product": product, "at": times[stream]}
        found.append({**event, "pump": f"s{stream}", "label": label})
    return found


def write(path: Path, events: list[Event]) -> None:
    """As a table has it: a column per path, an empty cell where there is no value."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([
            "pump", "at", "readings.celsius", "readings.bar", "readings.flow", "state.mode", "product", "label",
        ])  # fmt: skip
        for each in events:
            cells = [*each["readings"].values(), each["state"]["mode"], each["product"]]
            rows.writerow([each["pump"], each["at"], *cells, each["label"]])


def train(config: Path, out: Path) -> None:
    command = [sys.executable, "-m", "export", "train", "--config", str(config), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def serialized(events: list[Event], url: str, topic: str) -> list[bytes]:
    """As Confluent's serializer writes them; the second half by the second schema."""
    client, where = SchemaRegistryClient({"url": url}), SerializationContext(topic, MessageField.VALUE)
    writers = [AvroSerializer(client, json.dumps(schema)) for schema in (V1, V2)]
    halves = [writers[2 * at // len(events)] for at in range(len(events))]
    names = ("readings", "state", "product", "at")
    return [write({name: each[name] for name in names}, where) for write, each in zip(halves, events, strict=True)]


def send(bootstrap: str, topic: str, keys: list[bytes], values: list[bytes]) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "compression.type": "lz4", "linger.ms": 20})
    failed: list[object] = []
    for key, value in zip(keys, values, strict=True):
        producer.produce(topic, value, key, on_delivery=lambda error, _: error and failed.append(error))
    assert producer.flush(30) == 0
    assert not failed


async def inputs(settings: Settings, keys: list[bytes], values: list[bytes]) -> dict[str, Any]:
    """Per stream what the service gives to the graph, [T, F]."""
    models: Any = [("pumps", Model.load(settings.model["pumps"].path), None)]
    codec = codec_of(settings, models)
    assert codec.schemas is not None
    registry = Registry(settings.registry)
    try:
        codec.schemas.learn(await registry.schemas(codec.schemas.wanted(values)))
    finally:
        registry.close()
    stamps = [BEGIN_MS + 10_000_000_000] * len(values)
    batch = codec.decode(RecordBatch(0, list(range(len(values))), stamps, list(keys), list(values)))
    assert not batch.rejects
    past = pasts(settings, models)["pumps"]
    rows = {key: [at for at, each in enumerate(batch.keys) if each == key] for key in set(batch.keys)}
    return {key.decode(): past.whole(batch.x[at], batch.times_ms[at]) for key, at in rows.items()}


def offline(path: Path, seen: Streams) -> dict[str, list[Any]]:
    """The answers to each stream, from the numbers that training read."""
    runner, answers = Runner.load(path), {}
    for name, x, times in zip(seen.names, seen.x, seen.times_ms, strict=True):
        answers[name] = list(runner.feed([name] * len(x), x, times).y)
    return answers


async def test_from_a_table_to_answers_through_deaths(kafka, topic_name, create_topics, tmp_path: Path) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 2})
    events = made(1, 6, ["run", "idle", "service", None])
    write(tmp_path / "train.csv", made(0, 12, ["run", "idle", None]))
    write(tmp_path / "test.csv", events)
    config = tmp_path / "train.toml"
    config.write_text(TRAIN % MAPPING)
    train(config, tmp_path / "out")
    model = tmp_path / "out" / "model.onnx"
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["verification"]["passed"]
    seen = read_split(read_config(config), tmp_path).test
    keys = [each["pump"].encode() for each in events]
    with local_registry() as registry:
        values = serialized(events, registry.url, topic)
        assert len({value[:5] for value in values}) == 2
        words = {"bootstrap": kafka, "group": topic_name("group"), "topic": topic, "registry": registry.url}
        written = (SERVE % {**words, "mapping": MAPPING}).replace("out/model.onnx", str(model))
        (tmp_path / "settings.toml").write_text(written)
        settings, _ = load_settings(tmp_path / "settings.toml", (), {})
        served = await inputs(settings, keys, values)
        assert served.keys() == set(seen.names)
        for name, x in zip(seen.names, seen.x, strict=True):
            assert served[name].tobytes() == x.tobytes(), name
        given = ["--config", str(tmp_path / "settings.toml")]
        for sent in (60, 120):
            send(kafka, topic, keys[sent - 60 : sent], values[sent - 60 : sent])
            with process(tmp_path, *given) as service:
                await read_all(kafka, f"{topic}.out", at_least=sent - 30, alive=service._ended)
                assert await asyncio.to_thread(service.stop, signal.SIGKILL) == -signal.SIGKILL
        send(kafka, topic, keys[120:], values[120:])
        with process(tmp_path, *given) as service:
            found = await read_all(kafka, f"{topic}.out", at_least=len(events), alive=service._ended)
    assert len({each.source for each in found}) == len(found) == len(events)
    for name, expected in offline(model, seen).items():
        mine = sorted((each for each in found if each.key == name.encode()), key=lambda each: each.source)
        assert [each.document["ts"] for each in mine] == seen.times_ms[seen.names.index(name)].tolist()
        got = np.array([each.document["y"] for each in mine], np.float32)
        assert got.tobytes() == np.stack(expected).tobytes(), name
