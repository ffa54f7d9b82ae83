"""Where producers put a key. Kafka has no rule: each client has its own, and a topic may have several."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping

from aiokafka.partitioner import murmur2


def _murmur2(key: bytes, partitions: int) -> int:
    return (int(murmur2(key)) & 0x7FFFFFFF) % partitions


def _crc32(key: bytes, partitions: int) -> int:
    return zlib.crc32(key) % partitions


PARTITIONERS: Mapping[str, Callable[[bytes, int], int]] = {"murmur2": _murmur2, "crc32": _crc32}
"""murmur2: Java clients, aiokafka, kafka-python, librdkafka's murmur2_random. crc32: the default of librdkafka
(consistent_random), and so of its children for Python, Go, C#, PHP, Ruby. Keys that are not empty."""
