"""What predictions carry, on a real broker: the model that made them, always; what ``output.fields`` chooses, under its names,
and fields of their records, the same bytes whoever died between."""

from __future__ import annotations

import asyncio
import io
import json
import signal
from pathlib import Path
from typing import Any

import fastavro
import msgspec
import pytest
from emitting import EmittingChain
from members import Member, members
from onnx_models import lstm, lstm_fields, save
from serving import Read, Recorder, Row, event, make_settings, produce, read_all, running
from simulated import POISON, ChainModel
from windowing import FoldModel
from writing import WritingModel

from streamer.errors import ConfigurationError
from streamer.modelfile.contract import Contract
from streamer.service.answerschemas import answer_schemas
from streamer.service.check import Report, examine
from streamer.service.wiring import build, prepare
from streamer.windows import WindowRule
from streamer.words import Delivery

FEATURES = 3
SHA = "0123456789abcdef" * 4
PER_STEP = json.dumps({"n": 3, "per_step": True}).encode()


class Generating(ChainModel):
    def __init__(self, sha256: str) -> None:
        super().__init__(sha256)
        fields = msgspec.to_builtins(self.contract)
        self.contract = Contract.from_fields({**fields, "feedback": {"output": "y", "mode": "value"}})
        self.states = self.contract.states


def several(*numbers: float) -> bytes:
    return msgspec.json.encode({"x": [[each] for each in numbers]})


ONE = [(0, b"s", event([float(at % 7)]), []) for at in range(12)]
MANY = [(0, b"s", several(1.0, 2.0, float(at)), []) for at in range(4)]
REQUESTS = [(0, b"s", each, [("streamer-op", b"generate")]) for each in (b'{"n": 4}', PER_STEP)]
CASES: dict[str, tuple[Any, WindowRule | None, list[Row], int]] = {
    # what: model, rule of its windows, records, answers
    "events": (ChainModel(SHA), None, ONE, 12),
    "records of several steps": (ChainModel(SHA, steps="many"), None, MANY, 4),
    "rollouts": (Generating(SHA), None, [*ONE, *REQUESTS], 12 + 1 + 3),
    "symbols and transcripts": (EmittingChain(SHA), None, [*ONE, (0, b"s", None, [("streamer-op", b"end")])], 2),
    "windows": (FoldModel(SHA), WindowRule("count", count=3), ONE, 4),
    "windows in slices": (FoldModel(SHA, per="event"), WindowRule("count", count=3_000), ONE * 250, 2),
    "each record a window": (FoldModel(SHA, steps="many"), WindowRule("record"), MANY, 4),
    "written sequences": (WritingModel(SHA), WindowRule("count", count=2), ONE, 6),
}
FORMATS = {"events": ["json", "avro", "float32"], "windows": ["json", "avro", "float32"]}


async def answers_of(
    kafka: str,
    topic: str,
    model: Any,
    rule: WindowRule | None,
    rows: list[Row],
    count: int,
    *,
    mode: str = Delivery.EXACTLY_ONCE,
    **output: Any,
) -> tuple[list[Read], list[Read]]:
    """Answers and dead letters; one record is none that can be read."""
    sections = {"output": {"max_batch_bytes": 16_384, **output}, "delivery": {"mode": mode}, "decode": {"max_rows": 2}}
    settings = make_settings(kafka, topic, f"{topic}.group", **sections)
    parts = await prepare(settings, [("chain", model, rule)])
    recorder = Recorder()
    async with running(build(parts, recorder, instance="a")):
        await produce(kafka, topic, [*rows, (0, b"s", b"no event", [])])
        answers, dead = await asyncio.gather(
            read_all(kafka, f"{topic}.out", at_least=count), read_all(kafka, f"{topic}.dlq", at_least=1)
        )
    assert not recorder.errors
    return answers, dead


@pytest.mark.parametrize(
    ("what", "written"), [(what, each) for what in CASES for each in FORMATS.get(what, ["json", "chosen"])]
)
async def test_every_prediction_names_its_model(kafka, topic_name, create_topics, what: str, written: str) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    model, rule, rows, count = CASES[what]
    output: dict[str, Any] = {"format": written}
    if written == "chosen":
        output = {"fields": {"who": "stream", "when": "ts"} | ({"each": "y"} if "slices" in what else {})}
    answers, dead = await answers_of(kafka, topic, model, rule, rows, count, **output)
    assert len(answers) >= count
    expected = f"chain@{model.contract.version} {SHA[:16]}".encode()
    assert {read.headers["streamer-model"] for read in answers} == {expected}
    assert all(read.headers["streamer-source"].startswith(f"{topic}/0/".encode()) for read in answers)
    assert all("streamer-model" not in read.headers for read in dead)
    assert [read.value for read in dead] == [b"no event"]
    if written == "chosen":
        assert all(set(read.document) - {"slice"} == set(output["fields"]) for read in answers)
    if what == "windows in slices":
        assert len(answers) > 1
        assert all("slice" in read.document for read in answers)


FIELDS = {"risk": "y", "at": "ts", "unit": "input.unit", "cost": "input.more.cost", "id": "header:id", "from": "offset"}


def told(number: int) -> bytes:
    more = b', "unit": "U%d", "more": {"cost": %d.50}' % (number, number) if number % 3 else b""
    return b'{"x": [%d, 1, 2], "ts": %d%b}' % (number % 5, 1_000 + number, more)


async def test_fields_of_records_are_the_same_bytes_whoever_died(
    kafka, topic_name, create_topics, tmp_path: Path
) -> None:
    topic, count = topic_name("in"), 3_000
    await create_topics(kafka, {topic: 2})
    rows = [(number % 2, b"s%d" % (number % 6), told(number), [("id", b"%d" % number)]) for number in range(count)]
    path = save(lstm(FEATURES), tmp_path / "m.onnx", lstm_fields(FEATURES))
    chosen = [f"output.fields.{name}={place}" for name, place in FIELDS.items()]

    def member(group: str, number: int) -> Member:
        return Member(
            kafka, topic, tmp_path, number, f"model.m.path={path}", f"kafka.group={topic}.{group}",
            f"output.topic={topic}.{group}", "delivery.checkpoint_interval_ms=100", "input.min_time=1970-01-01T00:00:00Z",
            "batch.max_poll_records=40", *chosen,
        )  # fmt: skip

    found: dict[str, dict[tuple[int, int], bytes | None]] = {}
    with members() as group:
        for number, kills in (("killed", 2), ("calm", 0)):
            for kill in range(kills):
                group.append(member(number, kill))
                await produce(kafka, topic, rows[kill * 1_000 : (kill + 1) * 1_000])
                await read_all(kafka, f"{topic}.{number}", at_least=kill * 1_000 + 200, alive=group[-1].alive)
                group[-1].signal(signal.SIGKILL)
                group[-1].child.wait()
            if kills:
                await produce(kafka, topic, rows[kills * 1_000 :])
            group.append(member(number, 8 + kills))
            reads = await read_all(kafka, f"{topic}.{number}", at_least=count, alive=group[-1].alive)
            group[-1].signal(signal.SIGTERM)
            assert group[-1].child.wait(30) == 0
            assert len(reads) == count
            found[number] = {read.source: read.value for read in reads}
    assert found["killed"] == found["calm"]
    for (partition, offset), value in found["calm"].items():
        number = offset * 2 + partition  # records of a partition came in their order
        raw = msgspec.json.decode(value or b"", type=dict[str, msgspec.Raw])
        assert list(raw) == list(FIELDS)
        there = number % 3
        assert bytes(raw["unit"]) == (b'"U%d"' % number if there else b"null")
        assert bytes(raw["cost"]) == (b"%d.50" % number if there else b"null"), "as it was written"
        assert bytes(raw["id"]) == b'"%d"' % number
        assert (bytes(raw["at"]), bytes(raw["from"])) == (b"%d" % (1_000 + number), b"%d" % offset)


def told_of(at: int, x: Any) -> Row:
    return 0, b"s", msgspec.json.encode({"x": x, "unit": "C" if at else None, "level": at}), []


CARRIED = {"risk": "y", "unit": "input.unit", "level": "input.level", "partition": "partition"}
EXPECTED = [(None, 0, 0), ("C", 1, 0), ("C", 2, 0)]


async def test_events_carry_fields_in_avro(kafka, topic_name, create_topics) -> None:
    topic, model = topic_name("in"), ChainModel(SHA)
    await create_topics(kafka, {topic: 1})
    rows = [told_of(at, [float(at)]) for at in range(3)]
    answers, _ = await answers_of(kafka, topic, model, None, rows, 3, format="avro", fields=CARRIED)
    settings, models = (
        make_settings(kafka, topic, "g", output={"format": "avro", "fields": CARRIED}),
        [("chain", model, None)],
    )
    _, schema = answer_schemas(settings, models)["chain"]  # type: ignore[arg-type]
    parsed = fastavro.parse_schema(json.loads(schema.text))
    found = [fastavro.schemaless_reader(io.BytesIO(read.value or b""), parsed, None) for read in answers]
    assert [list(each) for each in found] == [list(CARRIED)] * 3
    assert [(each["unit"], each["level"], each["partition"]) for each in found] == EXPECTED


@pytest.mark.parametrize("mode", list(Delivery))
async def test_windows_of_one_record_carry_its_fields(kafka, topic_name, create_topics, mode: str) -> None:
    topic, fields = topic_name("in"), CARRIED | {"end": "window.end"}
    await create_topics(kafka, {topic: 1})
    rows = [told_of(at, [[1.0], [float(at)]]) for at in range(3)]
    model = FoldModel(SHA, steps="many")
    answers, dead = await answers_of(
        kafka, topic, model, WindowRule("record"), [told_of(3, [[POISON]]), *rows], 3, mode=mode, fields=fields
    )
    found = [read.document for read in answers]
    assert [list(each) for each in found] == [list(fields)] * 3
    assert [(each["unit"], each["level"], each["partition"]) for each in found] == EXPECTED
    assert [read.headers["streamer-error"] for read in dead][:1] == [b"model_refused"]
    assert all("streamer-passed" not in read.headers for read in [*answers, *dead])


@pytest.mark.parametrize(
    ("model", "rule", "output", "why"),
    [
        (ChainModel(), None, {"format": "float32", "fields": {"risk": "y"}}, "numbers without names"),
        (ChainModel(), None, {"fields": {"risk": "risk"}}, "no answer has that"),
        (ChainModel(), None, {"fields": {"n": "generate.n"}}, "no answer has that"),
        (ChainModel(), None, {"format": "avro", "fields": {"the risk": "y"}}, "letters, digits"),
        (FoldModel(), WindowRule("count", count=3), {"fields": {"u": "input.unit"}}, "windows of several records"),
        (EmittingChain(), None, {"fields": {"u": "header:id"}}, "transcripts"),
    ],
)  # fmt: skip
async def test_what_cannot_be_carried_is_said_before_anything_begins(
    model: Any, rule: WindowRule | None, output: dict[str, Any], why: str
) -> None:
    settings = make_settings("127.0.0.1:1", "t", "g", output=output)
    with pytest.raises(ConfigurationError, match=why):
        await prepare(settings, [("chain", model, rule)])


async def test_check_shows_and_tries_it(kafka, topic_name, create_topics, tmp_path: Path) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    await produce(kafka, topic, [(0, b"s", told(1), [("id", b"7")])])
    path = save(lstm(FEATURES), tmp_path / "m.onnx", lstm_fields(FEATURES))
    more: dict[str, Any] = {"output": {"fields": FIELDS}}
    settings = make_settings(kafka, topic, f"{topic}.group", **more)
    settings = settings.model_copy(update={"model": {"m": settings.model["chain"].model_copy(update={"path": path})}})
    report = Report()
    await examine(settings, report, sample=10)
    assert not report.problems
    assert report.as_dict()["answers"] == FIELDS
    lines = list(report.lines())
    assert "a prediction carries" in lines
    assert "  unit: input.unit" in lines
    answer = msgspec.json.decode(report.sample["answer"])
    assert (answer["unit"], answer["cost"], answer["id"], answer["at"]) == ("U1", 1.5, "7", 1_001)
