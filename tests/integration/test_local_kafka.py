"""The local Kafka itself: what other tests and the benchmark rely on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from local_kafka import LocalKafka, brokers_seen_by
from processes import until
from tooling import require_tool

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "kafka" / "local_kafka.py"


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


async def read(bootstrap: str, topic: str, count: int, isolation: str = "read_committed") -> list[bytes]:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, isolation_level=isolation, auto_offset_reset="earliest", fetch_max_wait_ms=50
    )
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, 0)])
        values: list[bytes] = []
        while len(values) < count:
            for records in (await consumer.getmany(timeout_ms=500)).values():
                values += [record.value for record in records]
        return values
    finally:
        await consumer.stop()


async def test_serves_transactions_and_hides_what_was_aborted(kafka, create_topics, topic_name):
    topic, group = topic_name(), topic_name("group")
    await create_topics(kafka, {topic: 1})
    producer = AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=topic_name("id"))
    await producer.start()
    try:
        async with producer.transaction():
            await producer.send_and_wait(topic, b"kept")
            await producer.send_offsets_to_transaction({TopicPartition(topic, 0): 1}, group)
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"aborted")
        await producer.abort_transaction()
        async with producer.transaction():
            await producer.send_and_wait(topic, b"last")
    finally:
        await producer.stop()
    assert await read(kafka, topic, 2) == [b"kept", b"last"]
    assert await read(kafka, topic, 3, "read_uncommitted") == [b"kept", b"aborted", b"last"]


async def test_topics_are_never_created_by_asking_for_them(kafka, topic_name):
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        name = topic_name()
        (described,) = await admin.describe_topics([name])
        assert described["error_code"] == 3  # unknown topic or partition
        assert name not in await admin.list_topics()
    finally:
        await admin.close()


async def test_three_nodes_lose_one_and_get_it_back(kafka_cluster, create_topics, topic_name):
    topic = topic_name()
    await create_topics(kafka_cluster.bootstrap, {topic: 1})
    ports = [int(address.rpartition(":")[2]) for address in kafka_cluster.bootstrap.split(",")]
    producer = AIOKafkaProducer(bootstrap_servers=kafka_cluster.bootstrap, acks="all")
    await producer.start()
    try:
        await producer.send_and_wait(topic, b"with three")
        for number, lose in enumerate((kafka_cluster.kill_node, kafka_cluster.stop_node), 1):
            lose(number)
            assert len(kafka_cluster.pids) == 2
            assert brokers_seen_by(ports[number - 1]) == set()
            await producer.send_and_wait(topic, f"without {number}".encode())
            kafka_cluster.start_node(number)
            assert brokers_seen_by(ports[number - 1]) == {1, 2, 3}
    finally:
        await producer.stop()
    assert await read(kafka_cluster.bootstrap, topic, 3) == [b"with three", b"without 1", b"without 2"]


def test_a_paused_node_accepts_connections_and_answers_when_resumed(kafka_cluster):
    port = int(kafka_cluster.bootstrap.split(",")[2].rpartition(":")[2])
    kafka_cluster.pause_node(3)
    assert brokers_seen_by(port) == set()
    kafka_cluster.resume_node(3)
    until(lambda: brokers_seen_by(port) == {1, 2, 3}, "the resumed node answers")


async def test_data_directory_is_kept_and_further_listeners_answer(tmp_path, create_topics, topic_name):
    require_tool("java", "mvn")
    topic = topic_name()
    extra = {"listeners": ("SASL_PLAINTEXT",), "properties": sasl_properties("secret")}
    with LocalKafka(data=tmp_path, **extra) as first:
        await create_topics(first.bootstrap, {topic: 1})
        producer = AIOKafkaProducer(bootstrap_servers=first.address("SASL_PLAINTEXT"), **sasl_client("secret"))
        await producer.start()
        await producer.send_and_wait(topic, b"before the restart")
        await producer.stop()
    with LocalKafka(data=tmp_path, **extra) as second:
        assert await read(second.bootstrap, topic, 1) == [b"before the restart"]


def sasl_properties(password: str) -> dict[str, str]:
    login = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_alice="{password}";'
    return {"sasl.enabled.mechanisms": "PLAIN", "listener.name.sasl_plaintext.plain.sasl.jaas.config": login}


def sasl_client(password: str) -> dict[str, str]:
    return {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "alice",
        "sasl_plain_password": password,
    }


def test_script_runs_a_command_and_returns_its_status():
    require_tool("java", "mvn")
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); import local_kafka as k\n"
        "port = int(os.environ['KAFKA_BOOTSTRAP'].rpartition(':')[2])\n"
        "print(k.brokers_seen_by(port), os.environ['KAFKA_PIDS']); sys.exit(7)"
    )
    done = subprocess.run(
        [sys.executable, SCRIPT, "--", sys.executable, "-c", code, SCRIPT.parent], capture_output=True, text=True
    )
    assert done.returncode == 7, done.stderr
    answer, pid = done.stdout.rsplit(maxsplit=1)
    assert answer == "{1}"
    assert not running(int(pid))


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_brokers_end_with_their_caller_however_it_ends(ending, tmp_path):
    require_tool("java", "mvn")
    caller = subprocess.Popen(
        [sys.executable, SCRIPT], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    pid = 0
    try:
        assert caller.stdout is not None
        lines = [caller.stdout.readline(), caller.stdout.readline()]
        assert lines[0].startswith("KAFKA_BOOTSTRAP=127.0.0.1:")
        pid = int(lines[1].partition("=")[2])
        assert running(pid)
        caller.send_signal(ending)
        assert caller.wait(timeout=30) == (0 if ending != signal.SIGKILL else -signal.SIGKILL)
        until(lambda: not running(pid), "the broker has ended")
        until(lambda: not list(tmp_path.glob("streamer-kafka-*")), "the temporary directory is gone")
    finally:
        caller.kill()
        caller.wait()
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
