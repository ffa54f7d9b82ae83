"""A changelog that was compacted until its transaction markers are gone, with aborted transactions in it, restores."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from chain import PARTITIONS, check, rows
from local_kafka import LocalKafka
from serving import make_settings, open_transaction, read_all, serve
from tooling import require_tool

pytestmark = pytest.mark.chaos


# offset, length, epoch, magic, crc, attributes, last delta, two times, producer, its epoch, sequence, count: KIP-98
BATCH = struct.Struct(">qiiBIhiqqqhii")
CONTROL = 0x20


def empty_control_batches(data: Path, changelog: str, partition: int) -> int:
    """Batches of markers that the cleaner has emptied: aiokafka stops at them."""
    found = 0
    for file in data.glob(f"**/{changelog}-{partition}/*.log"):
        content = file.read_bytes()
        at = 0
        while at + BATCH.size <= len(content):
            _, length, _, _, _, attributes, *_, count = BATCH.unpack_from(content, at)
            if not length:
                break
            found += bool(attributes & CONTROL) and count == 0
            at += 12 + length
    return found


async def aborted(bootstrap: str, changelog: str, transactional_id: str) -> None:
    """A transaction that its owner left open and that a successor ended: the marker bears a new epoch, and is all that
    the broker knows of that producer, so it stays as an empty batch."""
    async with open_transaction(bootstrap, transactional_id, changelog, 0, named=True):
        successor = AIOKafkaProducer(bootstrap_servers=bootstrap, transactional_id=transactional_id)
        await successor.start()
        await successor.stop()


async def test_a_compacted_changelog_without_markers_restores(create_topics, tmp_path: Path) -> None:
    require_tool("java", "mvn")
    cleaner = {
        "log.cleaner.backoff.ms": "100",
        "log.retention.check.interval.ms": "500",
        "log.cleaner.min.compaction.lag.ms": "0",
    }
    compaction = {
        "segment_ms": 1000, "delete_retention_ms": 100, "min_cleanable_dirty_ratio": 0.0, "max_compaction_lag_ms": 500,
    }  # fmt: skip
    with LocalKafka(data=tmp_path / "kafka", properties=cleaner) as local:
        await create_topics(local.bootstrap, {"in": PARTITIONS})
        settings = make_settings(local.bootstrap, "in", "group", changelog=compaction)
        sent, changelog = 0, str(settings.changelog_topic)
        async with asyncio.timeout(150):
            while not empty_control_batches(tmp_path / "kafka", changelog, 0):
                await serve(settings, list(rows(sent, 400)), instance=f"run{sent}")
                sent += 400
                await aborted(local.bootstrap, changelog, f"dead-{sent}")
        await serve(settings, list(rows(sent, 400)), instance="last")
        check(await read_all(local.bootstrap, "in.out", at_least=sent + 400), sent + 400)
