"""A real schema registry: records that Confluent's serializers wrote are events, and nothing is lost while it is away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec
import pytest
from confluent_kafka.schema_registry import Schema as Registered
from confluent_kafka.schema_registry import SchemaRegistryClient, header_schema_id_serializer
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.schema_registry.confluent import meta_pb2
from confluent_kafka.schema_registry.confluent.type import decimal_pb2
from confluent_kafka.schema_registry.json_schema import JSONDeserializer, JSONSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2
from google.type import date_pb2
from registry import GuidsBefore, LocalRegistry, local_registry
from serving import Recorder, Row, make_settings, produce, read_all, running, wait_for
from simulated import ChainModel, advance
from tables import WORDS, category

from streamer.errors import DataLossError, RegistryUnavailableError
from streamer.modelfile.contract import Contract
from streamer.service.check import Report, examine
from streamer.service.loop import Service
from streamer.service.wiring import build, prepare
from streamer.settings import Settings
from streamer.words import AnswerFormat

AT_MS = 1_760_000_000_000
FIELDS = {"cpu": "readings.cpu", "word": "tags[1]"}
V1 = {
    "type": "record", "name": "Event", "namespace": "company.iot", "fields": [
        {"name": "readings", "type": {"type": "record", "name": "Readings", "fields": [
            {"name": "cpu", "type": "double"}]}},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
    ],
}  # fmt: skip
V2 = {
    "type": "record", "name": "Event", "namespace": "company.iot", "fields": [
        {"name": "site", "type": ["null", "string"], "default": None},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "readings", "type": ["null", {"type": "record", "name": "Readings", "fields": [
            {"name": "mem", "type": ["null", "long"], "default": None}, {"name": "cpu", "type": ["null", "float"]}]}]},
        {"name": "tags", "type": {"type": "array", "items": ["null", "string"]}},
    ],
}  # fmt: skip
JSON = {
    "$schema": "http://json-schema.org/draft-07/schema#", "title": "Event", "type": "object",
    "properties": {"readings": {"type": "object"}, "tags": {"type": "array"}, "at": {"type": "integer"}},
}  # fmt: skip


class MixedModel(ChainModel):
    """A chain of a number and the place of a word."""

    def __init__(self) -> None:
        super().__init__()
        fields = msgspec.to_builtins(self.contract)
        features = [{"name": "cpu"}, category("word")]
        shape = ["batch", "time", 2]
        self.contract = Contract.from_fields({**fields, "input": {"name": "x", "shape": shape, "features": features}})
        self.states = self.contract.states

    def run(self, x: Any, lengths: Any, states: Any) -> Any:
        return super().run(x[:, :, :1] * 10 + x[:, :, 1:], lengths, states)


class Patient(Recorder):
    """Keeps apart what is said of a registry that is away."""

    def __init__(self) -> None:
        super().__init__()
        self.away: list[BaseException] = []

    def failed(self, error: BaseException) -> None:
        if isinstance(error, RegistryUnavailableError):
            self.away.append(error)
            self._tell()
        else:
            super().failed(error)

    def tick(self, *_: object) -> None:
        self._tell()


@pytest.fixture(scope="module")
def registry() -> Iterator[LocalRegistry]:
    with local_registry() as found:
        yield found


def event(number: int) -> dict[str, Any]:
    return {"readings": {"cpu": number / 2}, "tags": ["x", WORDS[number % len(WORDS)]], "at": AT_MS + number}


def answered(numbers: list[int]) -> list[float]:
    """What the model answers to a stream of these events."""
    state, found = 0.0, []
    for number in numbers:
        state = advance(state, number / 2 * 10 + number % len(WORDS))
        found.append(state)
    return found


def protobuf_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="event.proto", package="company", syntax="proto3")
    known = [
        timestamp_pb2.DESCRIPTOR,
        descriptor_pb2.DESCRIPTOR,
        meta_pb2.DESCRIPTOR,
        decimal_pb2.DESCRIPTOR,
        date_pb2.DESCRIPTOR,
    ]
    file.dependency.extend(each.name for each in known)  # the serializer takes them for built in
    file.message_type.add(name="Other").field.add(name="x", number=1, type=1, label=1)
    message = file.message_type.add(name="Event")
    inner = message.nested_type.add(name="Readings")
    inner.field.add(name="cpu", number=3, type=1, label=1)
    message.field.add(name="readings", number=1, type=11, type_name=".company.Event.Readings", label=1)
    message.field.add(name="tags", number=2, type=9, label=3)
    message.field.add(name="at", number=4, type=11, type_name=".google.protobuf.Timestamp", label=1)
    message.field.add(name="price", number=5, type=11, type_name=".confluent.type.Decimal", label=1)
    message.field.add(name="day", number=6, type=11, type_name=".google.type.Date", label=1)
    pool = descriptor_pool.DescriptorPool()
    for each in known:
        pool.AddSerializedFile(each.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("company.Event"))


def writer(
    value_format: str, client: SchemaRegistryClient, topic: str, headers: list[tuple[str, bytes]] | None = None
) -> Callable[[int], bytes]:
    """Confluent's own serializer, given the number of an event. ``headers``: where it puts the schema's GUID; None: its id is
    in front of the value."""
    where = SerializationContext(topic, MessageField.VALUE, headers)
    more = {} if headers is None else {"schema.id.serializer": header_schema_id_serializer}
    if value_format == "avro":
        avro = AvroSerializer(client, json.dumps(V1), conf=more)
        return lambda number: avro({**event(number), "at": (AT_MS + number) * 1000}, where)
    if value_format == "json-schema":
        plain = JSONSerializer(json.dumps(JSON), client, conf=more)
        return lambda number: plain(event(number), where)
    kind = protobuf_class()
    made = ProtobufSerializer(kind, client, {"use.deprecated.format": False, **more})

    def protobuf(number: int) -> bytes:
        message = kind(tags=event(number)["tags"])
        message.readings.cpu = number / 2
        message.at.FromMilliseconds(AT_MS + number)
        found: bytes = made(message, where)
        return found

    return protobuf


def settings_of(kafka: str, topic: str, registry: LocalRegistry, value_format: str, group: str) -> Settings:
    section = {"format": value_format, "fields": FIELDS, "time": "at"}
    return make_settings(kafka, topic, group, input=section, registry={"url": registry.url, "timeout_ms": 1000})


async def service_of(settings: Settings, instance: str = "a") -> tuple[Service, Patient]:
    parts = await prepare(settings, [("chain", MixedModel(), None)])  # type: ignore[list-item]
    recorder = Patient()
    return build(parts, recorder, instance=instance), recorder


@contextlib.asynccontextmanager
async def crashing(service: Service) -> AsyncIterator[None]:
    """Ends without a drain."""
    task = asyncio.create_task(service.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("value_format", ["avro", "protobuf", "json-schema"])
async def test_what_confluents_serializers_write_is_read(
    kafka, topic_name, create_topics, registry, value_format
) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    write = writer(value_format, SchemaRegistryClient({"url": registry.url}), topic)
    good = [write(number) for number in range(30)]
    bad = {
        "unknown_schema": b"\0\x7f\xff\xff\xff" + good[0][5:],
        "undecodable": b"\5" + good[0],
        "unknown_category": write(0).replace(WORDS[0].encode(), b"x" * len(WORDS[0])),
    }
    rows: list[Row] = [(0, b"s", value, []) for value in [*good[:20], *bad.values(), *good[20:]]]
    await produce(kafka, topic, rows)
    settings = settings_of(kafka, topic, registry, value_format, topic_name("group"))
    service, recorder = await service_of(settings)
    async with running(service):
        await wait_for(lambda: recorder.committed_events >= 30, recorder)
    answers = [read.document for read in await read_all(kafka, f"{topic}.out", at_least=30)]
    assert [each["y"] for each in answers] == answered(list(range(30)))
    assert [each["ts"] for each in answers] == [AT_MS + number for number in range(30)]
    letters = await read_all(kafka, f"{topic}.dlq", at_least=3)
    assert [each.headers["streamer-error"].decode() for each in letters] == list(bad)
    assert [each.value for each in letters] == list(bad.values())
    assert b"2147483647" in letters[0].headers["streamer-error-detail"]


async def test_a_registry_that_is_away_delays_and_nothing_is_lost(kafka, topic_name, create_topics, registry) -> None:
    """Also not over a crash in between; partitions whose schemas are known go on."""
    topic = topic_name("in")
    await create_topics(kafka, {topic: 2})
    registry.kill()
    registry.start()  # so that ids begin at 1
    client = SchemaRegistryClient({"url": registry.url})
    write = writer("avro", client, topic)
    where = SerializationContext(topic, MessageField.VALUE)
    later = AvroSerializer(client, json.dumps(V2), conf={"auto.register.schemas": True})
    first = [write(number) for number in range(20)]
    second = [later({**event(number), "site": "here"}, where) for number in range(20, 40)]
    assert {value[:5] for value in second}.isdisjoint({value[:5] for value in first})
    settings = settings_of(kafka, topic, registry, "avro", topic_name("group"))
    service, recorder = await service_of(settings)
    async with running(service):
        await produce(kafka, topic, [(n % 2, b"s%d" % (n % 2), value, []) for n, value in enumerate(first[:10])])
        await wait_for(lambda: recorder.committed_events >= 10, recorder)
        registry.kill()
        rows = [(1, b"s1", value, []) for value in second[:10]] + [(0, b"s0", value, []) for value in first[10:]]
        await produce(kafka, topic, rows)
        await wait_for(lambda: recorder.committed_events >= 20 and recorder.away, recorder)
        assert "does not answer" in str(recorder.away[0])
        view = service.view()
        assert view.waits_for == str(recorder.away[-1])
        assert 0 < view.waiting_records <= 10
        assert view.partitions[1].next_offset == 5
        assert view.partitions[1].position == 5
    service, recorder = await service_of(settings, "b")  # who comes next finds the registry away, too
    async with running(service):
        await wait_for(lambda: recorder.away, recorder)
        await produce(kafka, topic, [(1, b"s1", value, []) for value in second[10:]])
        registry.start()
        ids = [client_id(registry, topic, V1), client_id(registry, topic, V2)]
        assert ids == [int.from_bytes(first[0][1:5]), int.from_bytes(second[0][1:5])]
        await wait_for(lambda: recorder.committed_events >= 20, recorder)
        assert service.view().waits_for is None
        assert service.view().waiting_records == 0
    answers = await read_all(kafka, f"{topic}.out", at_least=40)
    found = {key: [each.document["y"] for each in answers if each.key == key] for key in (b"s0", b"s1")}
    assert found[b"s0"] == answered([0, 2, 4, 6, 8, *range(10, 20)])
    assert found[b"s1"] == answered([1, 3, 5, 7, 9, *range(20, 40)])
    assert await read_all(kafka, f"{topic}.dlq") == []


async def test_a_replay_decides_as_before_whatever_the_registry_says_by_then(
    kafka, topic_name, create_topics, registry, monkeypatch
) -> None:
    """An id that nobody had registered stays a dead letter; a schema that is gone ends the service before states change."""
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    registry.kill()
    registry.start()
    write = writer("avro", SchemaRegistryClient({"url": registry.url}), topic)
    good = [write(number) for number in range(6)]
    assert good[0][:5] == b"\0\0\0\0\1"
    later = b"\0\0\0\0\2"
    settings = settings_of(kafka, topic, registry, "avro", topic_name("group"))
    never = settings.delivery.model_copy(update={"checkpoint_interval_ms": 3_600_000})
    settings = settings.model_copy(update={"delivery": never})
    service, recorder = await service_of(settings)
    async with crashing(service):
        await produce(kafka, topic, [(0, b"s", good[0], [])])
        await wait_for(lambda: recorder.committed_events >= 1, recorder)  # the one round, behind which all is replayed
        values = [*good[1:3], later + good[3][5:]]
        await produce(kafka, topic, [(0, b"s", value, []) for value in values])
        await read_all(kafka, f"{topic}.dlq", at_least=1)
        await wait_for(lambda: recorder.committed_events >= 3, recorder)
    assert client_id(registry, topic, {**V1, "doc": "registered later"}) == 2
    service, recorder = await service_of(settings, "b")
    decode, decoded = service._decoding._codec.decode, []
    monkeypatch.setattr(
        service._decoding._codec, "decode", lambda batch: decoded.extend(batch.offsets) or decode(batch)
    )
    async with crashing(service):
        await produce(kafka, topic, [(0, b"s", later + good[4][5:], [])])
        await wait_for(lambda: recorder.committed_events >= 1, recorder)
        await produce(kafka, topic, [(0, b"s", good[5], [])])
        await wait_for(lambda: recorder.committed_events >= 2, recorder)
    answers = await read_all(kafka, f"{topic}.out", at_least=5)
    assert [each.document["y"] for each in answers] == answered([0, 1, 2, 4, 5])
    assert 3 in decoded, "what was decided was decided again"
    assert len(await read_all(kafka, f"{topic}.dlq", at_least=1)) == 1
    registry.kill()
    registry.start()
    service, recorder = await service_of(settings, "c")
    with pytest.raises(DataLossError, match="schema id 1"):
        async with asyncio.timeout(60):
            await service.run()


@pytest.mark.parametrize("value_format", ["avro", "protobuf", "json-schema"])
async def test_schemas_are_named_by_guids_in_headers(kafka, topic_name, create_topics, registry, value_format) -> None:
    """Apicurio has no GUIDs, so a server in front of it answers that one question."""
    topic, guids = topic_name("in"), GuidsBefore(registry.url)
    await create_topics(kafka, {topic: 1})
    named: list[tuple[str, bytes]] = []
    write = writer(value_format, SchemaRegistryClient({"url": guids.url}), topic, named)
    rows: list[Row] = []
    for number in range(30):
        value = write(number)
        rows.append((0, b"s", value, [("other", b"x"), named.pop()]))
    (_, (name, frame)) = rows[0][3]
    assert (name, frame[0]) == ("__value_schema_id", 1)
    unknown = (0, b"s", rows[0][2], [(name, frame[:1] + bytes(16) + frame[17:])])
    cut = (0, b"s", rows[0][2], [(name, frame[:9])])
    settings = make_settings(
        kafka, topic, topic_name("group"), input={"format": value_format, "fields": FIELDS, "time": "at"},
        registry={"url": guids.url}, delivery={"checkpoint_interval_ms": 3_600_000},
        output={"fields": {"y": "y", "at": "ts", "word": "input.tags[1]", "other": "header:other"}},
    )  # fmt: skip
    sent = [[*rows[:20], unknown, cut], rows[20:]]
    total = 0
    for instance, each in enumerate(sent):  # the second replays all of the first, whose schemas it has to learn anew
        total += len(each)
        await produce(kafka, topic, each)
        service, recorder = await service_of(settings, str(instance))
        async with crashing(service):
            answers = await read_all(kafka, f"{topic}.out", at_least=total - 2)
            assert not recorder.errors
    guids.close()
    documents = [read.document for read in answers]
    assert [each["y"] for each in documents] == answered(list(range(30)))
    assert [each["at"] for each in documents] == [AT_MS + number for number in range(30)]
    assert [each["word"] for each in documents] == [event(number)["tags"][1] for number in range(30)]
    assert {each["other"] for each in documents} == {"x"}
    letters = await read_all(kafka, f"{topic}.dlq", at_least=2)
    assert [each.headers["streamer-error"] for each in letters] == [b"unknown_schema", b"undecodable"]
    assert b"00000000-0000-0000-0000-000000000000" in letters[0].headers["streamer-error-detail"]
    assert b"__value_schema_id ends within" in letters[1].headers["streamer-error-detail"]
    assert letters[0].value == rows[0][2]


async def test_a_registry_without_guids_makes_dead_letters_and_holds_nobody_up(
    kafka, topic_name, create_topics, registry
) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    write = writer("avro", SchemaRegistryClient({"url": registry.url}), topic)
    other = (0, b"s", write(0)[5:], [("__value_schema_id", b"\1" * 17)])
    await produce(kafka, topic, [other, *((0, b"s", write(number), []) for number in range(5))])
    service, recorder = await service_of(settings_of(kafka, topic, registry, "avro", topic_name("group")))
    async with running(service):
        await wait_for(lambda: recorder.committed_events >= 5, recorder)
    assert not recorder.away
    [letter] = await read_all(kafka, f"{topic}.dlq", at_least=1)
    assert letter.headers["streamer-error"] == b"unknown_schema"
    assert b"01010101-0101-0101-0101-010101010101" in letter.headers["streamer-error-detail"]


@pytest.mark.parametrize("written", ["avro", "json-schema", "float32"])
async def test_predictions_are_read_by_confluents_deserializers(
    kafka, topic_name, create_topics, registry, written
) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    client = SchemaRegistryClient({"url": registry.url})
    write = writer("avro", client, topic)
    settings = settings_of(kafka, topic, registry, "avro", topic_name("group"))
    output = settings.output.model_copy(update={"format": AnswerFormat(written)})
    settings = settings.model_copy(update={"output": output})
    for instance, rows, count in (
        ("a", range(10), 10),
        ("b", [10], 1),
    ):  # the schema is there already when the second starts
        await produce(kafka, topic, [(0, b"s", write(number), []) for number in rows])
        service, recorder = await service_of(settings, instance)
        async with running(service):
            await wait_for(lambda who=recorder, most=count: who.committed_events >= most, recorder)
    values = [read.value for read in await read_all(kafka, f"{topic}.out", at_least=11)]
    if written == "float32":
        assert [struct.unpack("<f", value)[0] for value in values] == answered(list(range(11)))
        return
    where = SerializationContext(f"{topic}.out", MessageField.VALUE)
    read = AvroDeserializer(client) if written == "avro" else JSONDeserializer(None, schema_registry_client=client)
    found = [read(value, where) for value in values]
    assert [each["y"] for each in found] == answered(list(range(11)))
    assert {(each["stream"], each["model"]) for each in found} == {("s", "chain@1")}
    moments = [round(each["ts"].timestamp() * 1000) if written == "avro" else each["ts"] for each in found]
    assert moments == [AT_MS + number for number in range(11)]
    assert client.get_latest_version(f"{topic}.out-value").schema_id == int.from_bytes(values[0][1:5])
    assert len(client.get_versions(f"{topic}.out-value")) == 1


def client_id(registry: LocalRegistry, topic: str, schema: dict[str, Any]) -> int:
    client = SchemaRegistryClient({"url": registry.url})
    return int(client.register_schema(f"{topic}-value", Registered(json.dumps(schema), "AVRO")))


async def test_check_shows_schemas_and_where_features_are(kafka, topic_name, create_topics, registry, tmp_path) -> None:
    from onnx_models import lstm, lstm_fields, save

    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    path = tmp_path / "model.onnx"
    save(lstm(3), path, lstm_fields(3))
    write = writer("avro", SchemaRegistryClient({"url": registry.url}), topic)
    await produce(kafka, topic, [(0, b"s", write(number), []) for number in range(5)])
    features = ["readings.cpu", "readings.cpu", {"constant": 2}]
    settings = settings_of(kafka, topic, registry, "avro", topic_name("group"))
    names = load_names(path)
    section = settings.input.model_copy(update={"fields": dict(zip(names, features, strict=True))})
    model = {"chain": settings.model["chain"].model_copy(update={"path": path})}
    settings = settings.model_copy(update={"input": section, "model": model})
    report = Report()
    await examine(settings, report, sample=100)
    assert report.problems == []
    assert report.sample["events"] == 5
    assert report.format["registry"] == registry.url
    assert list(report.format["schemas"].values()) == ["AVRO"]
    assert (report.features[0].name, report.features[0].place, report.features[0].found) == (
        names[0],
        "readings.cpu",
        5,
    )
    told = "\n".join(report.lines())
    assert "readings.cpu" in told
    assert registry.url in told
    away = settings.registry.model_copy(update={"url": "http://127.0.0.1:1", "timeout_ms": 500})
    report = Report()
    await examine(settings.model_copy(update={"registry": away}), report, sample=100)
    assert [type(each) for each in report.problems] == [RegistryUnavailableError]


def load_names(path: Any) -> list[str]:
    from streamer.modelfile.model import Model

    return [feature.name for feature in Model.load(path).contract.feature_tables]
