"""What no retry can cure ends the service with a sentence that names topic, right and remedy; what one may cure is retried,
with its cause named."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from administration import administrator
from local_kafka import LocalKafka
from onnx_models import lstm, lstm_fields, save
from serving import event, make_service, make_settings, one_by_one, produce, read_all, running, wait_for
from simulated import POISON
from tooling import require_tool

from streamer.errors import DataLossError, FencedError, KafkaRefusedError, KafkaUnavailableError
from streamer.service.check import Report, examine
from streamer.tools.broker import require_confluent_kafka

GOOD, BAD = (0, b"a", event([1.0]), []), (0, b"a", event([POISON]), [])
RIGHTS = {
    "in": ["READ", "DESCRIBE_CONFIGS"],
    "out": ["WRITE", "CREATE"],
    "dlq": ["WRITE", "CREATE"],
    "changelog": ["READ", "WRITE", "CREATE"],
}


@pytest.fixture(scope="module")
def guarded() -> Iterator[LocalKafka]:
    """A broker that lets user ``serving`` do on SASL_PLAINTEXT what is granted, and everybody everything on PLAINTEXT."""
    require_tool("java", "mvn")
    properties = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl_plaintext.plain.sasl.jaas.config": (
            'org.apache.kafka.common.security.plain.PlainLoginModule required user_serving="word";'
        ),
    }
    with LocalKafka(listeners=("SASL_PLAINTEXT",), properties=properties) as local:
        yield local


def grant(bootstrap: str, rights: list[tuple[str, str, str]]) -> None:
    """``rights``: (kind, name, right)"""
    require_confluent_kafka()
    from confluent_kafka import admin

    client = admin.AdminClient({"bootstrap.servers": bootstrap})
    literal, allow = admin.ResourcePatternType.LITERAL, admin.AclPermissionType.ALLOW
    prefixed = admin.ResourcePatternType.PREFIXED
    bindings = [
        admin.AclBinding(
            admin.ResourceType[kind],
            name,
            prefixed if kind == "TRANSACTIONAL_ID" else literal,
            "User:serving",
            "*",
            admin.AclOperation[right],
            allow,
        )
        for kind, name, right in rights
    ]
    for future in client.create_acls(bindings).values():
        future.result(30)


def guarded_settings(guarded: LocalKafka, topic: str, group: str, missing: tuple[str, str], **sections: Any) -> Any:
    """With every right but ``missing``: (topic, right)."""
    kafka = {
        "bootstrap": guarded.address("SASL_PLAINTEXT"), "security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN",
        "sasl_username": "serving", "sasl_password": "word",
    }  # fmt: skip
    settings = make_settings("", topic, group, kafka=kafka, **sections)
    names = {"in": topic, "out": f"{topic}.out", "dlq": f"{topic}.dlq", "changelog": str(settings.changelog_topic)}
    rights = [
        ("TOPIC", names[which], right)
        for which, every in RIGHTS.items()
        for right in every
        if (which, right) != missing
    ]
    rights.append(("TOPIC", names[missing[0]], "DESCRIBE"))
    rights += [("GROUP", group, "READ"), ("TRANSACTIONAL_ID", group, "WRITE")]
    grant(guarded.bootstrap, rights)
    return settings


@pytest.mark.parametrize("mode", ["exactly-once", "at-least-once"])
@pytest.mark.parametrize(
    "missing",
    [
        ("in", "READ"),
        ("out", "WRITE"),
        ("dlq", "WRITE"),
        ("changelog", "WRITE"),
        ("out", "CREATE"),
        ("changelog", "CREATE"),
    ],
    ids="-".join,
)
async def test_a_right_that_is_missing_is_named(
    guarded, topic_name, create_topics, missing: tuple[str, str], mode: str
) -> None:
    topic = topic_name("in")
    await create_topics(guarded.bootstrap, {topic: 1})
    await without(guarded, topic, topic_name("group"), missing, mode)


@pytest.mark.parametrize("which", ["out", "dlq", "changelog"])
async def test_a_right_that_is_missing_is_named_when_records_are_handed_over_slowly(
    guarded, topic_name, create_topics, monkeypatch, which: str
) -> None:
    """The transaction is refused before all of it is handed over; of the rest the client says that it is in none."""
    one_by_one(monkeypatch)
    topic = topic_name("in")
    await create_topics(guarded.bootstrap, {topic: 1})
    await without(guarded, topic, topic_name("group"), (which, "WRITE"), "exactly-once")


async def without(guarded: LocalKafka, topic: str, group: str, missing: tuple[str, str], mode: str) -> None:
    """What the service says when it lacks a right."""
    settings = guarded_settings(guarded, topic, group, missing, delivery={"mode": mode})
    names = {"in": topic, "out": f"{topic}.out", "dlq": f"{topic}.dlq", "changelog": str(settings.changelog_topic)}
    await produce(guarded.bootstrap, topic, [GOOD, BAD])

    async def serve() -> None:
        service, _ = await make_service(settings)
        async with asyncio.timeout(60):
            await service.run()

    with pytest.raises(KafkaRefusedError) as refused:
        await serve()
    told = str(refused.value)
    assert names[missing[0]] in told
    assert missing[1] in told
    assert "permission denied" in told
    assert "InvalidTxnState" not in told
    if missing[1] == "WRITE" and mode == "exactly-once" and missing[0] != "out":
        assert await read_all(guarded.bootstrap, f"{topic}.out") == [], "all or nothing"


async def test_check_names_rights_that_are_missing(guarded, topic_name, create_topics, tmp_path) -> None:
    """Of topics that are there; nothing is written for it."""
    topic, group = topic_name("in"), topic_name("group")
    save(lstm(1), tmp_path / "model.onnx", lstm_fields(1))
    model = {"chain": {"path": str(tmp_path / "model.onnx")}}
    await create_topics(guarded.bootstrap, {topic: 1, f"{topic}.out": 1})
    settings = guarded_settings(guarded, topic, group, ("out", "WRITE"), model=model)
    await create_topics(guarded.bootstrap, {str(settings.changelog_topic): 1}, {"cleanup.policy": "compact"})
    await produce(guarded.bootstrap, topic, [GOOD])
    report = Report()
    await examine(settings, report, sample=10)
    (problem,) = report.problems
    assert isinstance(problem, KafkaRefusedError)
    assert f"no right to WRITE topic '{topic}.out' (output.topic). Grant WRITE" in str(problem)
    assert report.sample["answers"] == 1
    assert [line for line in report.warnings if f"'{topic}.out'" in line and "DESCRIBE_CONFIGS" in line]


async def test_a_creation_that_the_cluster_refuses_names_topic_and_reason(kafka, topic_name, create_topics) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    settings = make_settings(kafka, topic, topic_name("group"), topics={"replication_factor": 7})
    with pytest.raises(
        KafkaRefusedError, match=rf"does not create topic '{topic}.out' \(output.topic\).*replication factor"
    ):
        await make_service(settings)


@pytest.mark.parametrize("mode", ["exactly-once", "at-least-once"])
@pytest.mark.parametrize("which", ["output", "changelog"])
async def test_a_topic_that_is_deleted_while_we_write_to_it_is_named(
    kafka, topic_name, create_topics, which: str, mode: str
) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    settings = make_settings(
        kafka,
        topic,
        topic_name("group"),
        delivery={"mode": mode, "commit_timeout_ms": 1500},
        kafka={"metadata_max_age_ms": 500},
    )
    service, recorder = await make_service(settings)
    deleted = {"output": settings.output.topic, "changelog": str(settings.changelog_topic)}[which]

    async def while_it_runs() -> None:
        async with running(service) as task:
            await produce(kafka, topic, [GOOD])
            await wait_for(lambda: recorder.committed_events >= 1, recorder)
            async with administrator(kafka) as admin:
                await admin.delete_topics([deleted])
            await produce(kafka, topic, [GOOD] * 5)
            await asyncio.wait_for(asyncio.shield(task), 60)

    error = {"output": KafkaRefusedError, "changelog": DataLossError}[which]
    with pytest.raises(error, match=f"{deleted}.*was deleted while the service runs"):
        await while_it_runs()


@pytest.mark.slow
async def test_what_a_retry_may_cure_is_told_with_its_cause(kafka_cluster, topic_name, create_topics) -> None:
    """Too few replicas in sync: the client tries again and again, and nobody would know why."""
    kafka, topic = kafka_cluster.bootstrap, topic_name("in")
    await create_topics(kafka, {topic: 1})
    await create_topics(kafka, {f"{topic}.out": 1}, config={"min.insync.replicas": "3"})
    settings = make_settings(kafka, topic, topic_name("group"), delivery={"commit_timeout_ms": 2000})
    service, recorder = await make_service(settings)
    async with running(service):
        await wait_for(lambda: bool(recorder.recoveries), recorder, seconds=60)
        await asyncio.to_thread(kafka_cluster.stop_node, 3)
        await produce(kafka, topic, [GOOD])
        async with asyncio.timeout(60):
            while not any("NotEnoughReplicas" in str(error) for error in recorder.errors):
                recorder.changed.clear()
                await recorder.changed.wait()
        assert all(isinstance(error, KafkaUnavailableError | FencedError) for error in recorder.errors)
        await asyncio.to_thread(kafka_cluster.start_node, 3)
        async with asyncio.timeout(60):
            while recorder.committed_events < 1:
                recorder.changed.clear()
                await recorder.changed.wait()
    assert len(await read_all(kafka, f"{topic}.out", at_least=1)) == 1
