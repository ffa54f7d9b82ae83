"""Fixtures that all tests share: a real Kafka, names of topics, real data, how hard Hypothesis tries."""

from __future__ import annotations

import importlib.util
import os
import re
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from hypothesis import HealthCheck, settings
from local_kafka import LocalKafka
from tooling import require_tool, unavailable

ROOT = Path(__file__).resolve().parent.parent

_SLOW_IS_FINE = [HealthCheck.too_slow, HealthCheck.data_too_large]
# `ci` is the same on every run, so that a red build is the change's fault; `accept` searches further.
settings.register_profile(
    "ci", derandomize=True, max_examples=100, deadline=None, database=None, suppress_health_check=_SLOW_IS_FINE
)
settings.register_profile(
    "accept", max_examples=600, deadline=None, print_blob=True, suppress_health_check=_SLOW_IS_FINE
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

CreateTopics = Callable[..., Awaitable[None]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"kafka", "kafka_cluster"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("kafka")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("torch") and importlib.util.find_spec("torch") is None:
        unavailable("torch is not installed: pip install '.[export]'")


@pytest.fixture(scope="session")
def kafka() -> Iterator[str]:
    """Bootstrap address of a real Kafka that tests share (use own topics): one local node, or KAFKA_BOOTSTRAP."""
    existing = os.environ.get("KAFKA_BOOTSTRAP")
    if existing:
        yield existing
        return
    require_tool("java", "mvn")
    with LocalKafka() as local:
        yield local.bootstrap


@pytest.fixture(scope="module")
def _cluster() -> Iterator[LocalKafka]:
    require_tool("java", "mvn")
    with LocalKafka(nodes=3) as local:
        yield local


@pytest.fixture
def kafka_cluster(_cluster: LocalKafka) -> Iterator[LocalKafka]:
    """Three own nodes that a test may stop, kill and pause; afterwards all of them run again."""
    yield _cluster
    _cluster.restore()


@pytest.fixture
def topic_name(request: pytest.FixtureRequest) -> Callable[..., str]:
    """Unique names of topics and groups: ``topic_name("input")``; they tell which test made them."""
    test = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name)[:60].strip("-")

    def name(purpose: str = "topic") -> str:
        return f"{test}.{purpose}.{uuid.uuid4().hex[:8]}"

    return name


@pytest.fixture
def create_topics() -> CreateTopics:
    """``await create_topics(bootstrap, {name: partitions}, config={...})``: returns when all have leaders."""
    return _create_topics


async def _create_topics(bootstrap: str, topics: Mapping[str, int], config: Mapping[str, str] | None = None) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        replicas = min(3, len((await admin.describe_cluster())["brokers"]))
        new = [NewTopic(name, count, replicas, topic_configs=dict(config or {})) for name, count in topics.items()]
        answer = await admin.create_topics(new, timeout_ms=20_000)
        failed = [error for error in answer.topic_errors if error[1] != 0]
        assert not failed, f"topics were not created: {failed}"
        led: set[str] = set()
        while led != set(topics):
            described = await admin.describe_topics(list(topics))
            led = {
                topic["topic"]
                for topic in described
                if len(topic["partitions"]) == topics[topic["topic"]]
                and all(partition["leader"] >= 0 for partition in topic["partitions"])
            }
    finally:
        await admin.close()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Directory of the real data sets (STREAMER_TEST_DATA, by default ../shared/data beside the checkout)."""
    path = Path(os.environ.get("STREAMER_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not path.is_dir():
        pytest.skip(f"no data sets at {path}: set STREAMER_TEST_DATA to the directory that holds them")
    return path
