"""librdkafka's in-process mock broker: a Kafka for the demo that needs neither Java nor Docker.

Good for plain produce and consume with one group member. Not a Kafka for anything else: topics appear when they are
asked for, always with four partitions; transactions isolate nothing; the oldest records go at 5 MiB per partition;
an empty fetch waits for its whole maximum (``fetch_max_wait_ms``), so consumers should set that low.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from streamer.errors import ConfigurationError, KafkaUnavailableError, install_hint

PARTITIONS = 4
_START_TIMEOUT_S = 10.0


def require_confluent_kafka() -> Any:
    """The module ``confluent_kafka``; ConfigurationError when the extra is not installed."""
    try:
        import confluent_kafka  # noqa: PLC0415 - optional
    except ImportError as error:
        raise ConfigurationError(
            f"this command needs confluent-kafka, which is not installed: {install_hint('demo')}"
        ) from error
    return confluent_kafka


class MockBroker:
    """A context manager; the broker lives in threads of this process until ``stop``. ``bootstrap`` is its address."""

    def __init__(self) -> None:
        self._client: Any = None
        self.bootstrap = ""

    def start(self) -> None:
        """Raises ConfigurationError without confluent-kafka, KafkaUnavailableError when the broker does not answer."""
        confluent_kafka = require_confluent_kafka()
        self._client = confluent_kafka.Producer({"test.mock.num.brokers": 1, "log_level": 0})
        try:
            brokers = self._client.list_topics(timeout=_START_TIMEOUT_S).brokers.values()
        except confluent_kafka.KafkaException as error:
            self.stop()
            raise KafkaUnavailableError(f"the in-process broker does not answer: {error.args[0].str()}") from error
        self.bootstrap = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)

    def stop(self) -> None:
        """End the broker; its records are gone."""
        self._client = None
        self.bootstrap = ""

    def __enter__(self) -> MockBroker:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
