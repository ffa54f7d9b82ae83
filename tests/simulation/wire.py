"""Requests decoded and answers encoded by the client's own structures, as dictionaries by field name: versions do not matter."""

from __future__ import annotations

import inspect
import struct
from functools import cache
from io import BytesIO
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
    types,
)
from aiokafka.protocol.api import RequestHeader_v1, RequestHeader_v2, RequestStruct

from tests.simulation import product

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
    key, version, correlation = struct.unpack_from(">hhi", frame)
    kind = requests()[key, version]
    stream = BytesIO(frame)
    header = (RequestHeader_v2 if kind.FLEXIBLE_VERSION else RequestHeader_v1).SCHEMA.decode(stream)
    values = [field.decode(stream) for field in kind.SCHEMA.fields]
    return kind, correlation, header[3], named(kind.SCHEMA, values)


def encode(kind: type[RequestStruct], correlation: int, fields: dict[str, Any]) -> bytes:
    head = struct.pack(">i", correlation)
    if kind.FLEXIBLE_VERSION and kind.API_KEY != API_VERSIONS:
        head += b"\x00"
    schema = kind.RESPONSE_TYPE.SCHEMA
    return head + schema.encode(shaped(schema, fields))


def named(schema: Any, values: Any) -> dict[str, Any]:
    result = {}
    for name, field, value in zip(schema.names, schema.fields, values, strict=True):
        inner = getattr(field, "array_of", None)
        if isinstance(inner, types.Schema) and value is not None:
            value = [named(inner, each) for each in value]
        result[name] = value
    return result


def shaped(schema: Any, fields: dict[str, Any]) -> list[Any]:
    """Values in the order of the schema; what is not given is zero, empty or null."""
    result: list[Any] = []
    for name, field in zip(schema.names, schema.fields, strict=True):
        inner = getattr(field, "array_of", None)
        if inner is not None:
            value = fields.get(name) or []
            result.append([shaped(inner, each) for each in value] if isinstance(inner, types.Schema) else value)
        elif name in fields:
            result.append(fields[name])
        else:
            result.append(_default(field))
    return result


def _default(field: Any) -> Any:
    if field is types.TaggedFields:
        return {}
    if isinstance(field, types.String):
        return None
    return b"" if field is types.Bytes else field is types.Boolean and False
