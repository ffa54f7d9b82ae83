"""Requests and answers as dictionaries by field name, by the client's own structures: versions do not matter."""

from __future__ import annotations

import inspect
import struct
from functools import cache
from typing import Any

from aiokafka.protocol import (
    admin,
    commit,
    coordination,
    fetch,
    group,
    metadata,
    offset,
    produce,
    transaction,
)
from aiokafka.protocol.api import RequestStruct

from tests.simulation import codecs, product

API_VERSIONS = 18
RANGES = {
    0: (0, 13), 1: (4, 18), 2: (1, 11), 3: (0, 13), 8: (2, 10), 9: (1, 10), 10: (0, 6), 11: (0, 9), 12: (0, 4), 13: (0, 5),
    14: (0, 5), 15: (0, 6), 16: (0, 5), 17: (0, 1), 18: (0, 4), 19: (2, 7), 20: (1, 6), 21: (0, 2), 22: (0, 6), 24: (0, 5),
    25: (0, 4), 26: (0, 5), 28: (0, 5), 32: (1, 4), 33: (0, 2), 37: (0, 3),
}  # fmt: skip
"""What Apache Kafka 4.2 says that it takes; the client picks the newest that it knows."""
NAMES = {
    0: "Produce", 1: "Fetch", 2: "ListOffsets", 3: "Metadata", 8: "OffsetCommit", 9: "OffsetFetch", 10: "FindCoordinator",
    11: "JoinGroup", 12: "Heartbeat", 13: "LeaveGroup", 14: "SyncGroup", 15: "DescribeGroups", 16: "ListGroups",
    18: "ApiVersions", 19: "CreateTopics", 20: "DeleteTopics", 21: "DeleteRecords", 22: "InitProducerId",
    24: "AddPartitionsToTxn", 25: "AddOffsetsToTxn", 26: "EndTxn", 28: "TxnOffsetCommit", 32: "DescribeConfigs",
    33: "AlterConfigs", 37: "CreatePartitions",
}  # fmt: skip


@cache
def requests() -> dict[tuple[int, int], type[RequestStruct]]:
    """(API key, version) -> structure, the product's own ones too."""
    found: dict[tuple[int, int], type[RequestStruct]] = {}
    client = (admin, commit, coordination, fetch, group, metadata, offset, produce, transaction)
    for module in (*client, *product.request_modules()):
        for _, each in inspect.getmembers(module, inspect.isclass):
            if issubclass(each, RequestStruct) and each is not RequestStruct and hasattr(each, "API_KEY"):
                found[each.API_KEY, each.API_VERSION] = each
    return found


def decode(frame: bytes) -> tuple[type[RequestStruct], int, str, dict[str, Any]]:
    """(structure, correlation id, client id, fields)"""
    key, version, correlation, size = struct.unpack_from(">hhih", frame)
    kind = requests()[key, version]
    at = 10 + max(size, 0) + (1 if kind.FLEXIBLE_VERSION else 0)
    fields, _ = codecs.reader(kind.SCHEMA)(frame, at)
    return kind, correlation, frame[10 : 10 + max(size, 0)].decode(), fields


def encode(kind: type[RequestStruct], correlation: int, fields: dict[str, Any]) -> bytes:
    out = [struct.pack(">i", correlation)]
    if kind.FLEXIBLE_VERSION and kind.API_KEY != API_VERSIONS:
        out.append(b"\x00")
    codecs.writer(kind.RESPONSE_TYPE.SCHEMA)(fields, out)
    return b"".join(out)
