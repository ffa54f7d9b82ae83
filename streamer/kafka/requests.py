"""Requests of Kafka's protocol in the versions that the service needs and aiokafka does not have.

Two of them are part of every transaction. The client's way through its schemas costs more than all that an epoch of few
events costs otherwise, so these are written by hand or not twice, and an answer that was read before is not read again.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from io import BytesIO
from typing import Any, ClassVar

from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
    UnsignedVarInt32,
)

_KEPT = 64
"""Answers that are remembered by their bytes: those to transactions that went well are all alike."""
_PARTITION = struct.Struct(">iqi")
_PRODUCER = struct.Struct(">qhi")
_NO_TAGS = b"\x00"


class _Alike(Response):
    """An answer that mostly is the same as the one before, byte by byte."""

    @classmethod
    def decode(cls, data: BytesIO | bytes) -> Any:
        return cls(*_fields(cls.SCHEMA, data if isinstance(data, bytes) else data.read()))


@lru_cache(_KEPT)
def _fields(schema: Schema, raw: bytes) -> tuple[Any, ...]:
    data = BytesIO(raw)
    return tuple([field.decode(data) for field in schema.fields])


class TxnOffsetCommitResponse(_Alike):
    API_KEY = 28
    API_VERSION = 3
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "errors",
            CompactArray(
                ("topic", CompactString("utf-8")),
                (
                    "partition_errors",
                    CompactArray(("partition", Int32), ("error_code", Int16), ("tags", TaggedFields)),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _TxnOffsetCommitStruct(RequestStruct):
    transactional_id: str
    group_id: str
    producer_id: int
    producer_epoch: int
    generation_id: int
    member_id: str
    group_instance_id: str | None
    topics: list[tuple[str, list[tuple[int, int, int, str, dict[int, bytes]]], dict[int, bytes]]]

    API_KEY = 28
    API_VERSION = 3
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = TxnOffsetCommitResponse
    SCHEMA = Schema(
        ("transactional_id", CompactString("utf-8")),
        ("group_id", CompactString("utf-8")),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        ("generation_id", Int32),
        ("member_id", CompactString("utf-8")),
        ("group_instance_id", CompactString("utf-8")),
        (
            "topics",
            CompactArray(
                ("topic", CompactString("utf-8")),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("offset", Int64),
                        ("leader_epoch", Int32),
                        ("metadata", CompactString("utf-8")),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )

    def encode(self) -> bytes:
        """What the schema says."""
        topics = [
            b"".join(
                [
                    _text(topic),
                    UnsignedVarInt32.encode(len(partitions) + 1),
                    *[
                        _PARTITION.pack(number, offset, epoch) + _text(metadata) + _NO_TAGS
                        for number, offset, epoch, metadata, _ in partitions
                    ],
                    _NO_TAGS,
                ]
            )
            for topic, partitions, _ in self.topics
        ]
        return b"".join(
            [
                _text(self.transactional_id),
                _text(self.group_id),
                _PRODUCER.pack(self.producer_id, self.producer_epoch, self.generation_id),
                _text(self.member_id),
                _text(self.group_instance_id),
                UnsignedVarInt32.encode(len(topics) + 1),
                *topics,
                _NO_TAGS,
            ]
        )


@lru_cache(_KEPT)
def _text(value: str | None) -> bytes:
    return bytes(CompactString("utf-8").encode(value))


class TxnOffsetCommit(Request[_TxnOffsetCommitStruct]):
    API_KEY: ClassVar[int] = 28

    def __init__(self, *fields: Any) -> None:
        self._fields = fields

    def build(self, request_struct_class: type[_TxnOffsetCommitStruct]) -> _TxnOffsetCommitStruct:
        return request_struct_class(*self._fields, {})


_BROKERS = CompactArray(
    ("node_id", Int32),
    ("host", CompactString("utf-8")),
    ("port", Int32),
    ("rack", CompactString("utf-8")),
    ("tags", TaggedFields),
)


class _TopicIdResponse(_Alike):
    """Ends where what we want ends: partitions follow, and decoding them would cost more than the round trip."""

    API_KEY = 3
    API_VERSION = 12
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", _BROKERS),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        ("topics", UnsignedVarInt32),  # the array's length + 1: one topic was asked for
        ("error_code", Int16),
        ("topic", CompactString("utf-8")),
        ("id_high", Int64),
        ("id_low", Int64),
    )


class _TopicMetadataResponse(Response):
    API_KEY = 3
    API_VERSION = 12
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", _BROKERS),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString("utf-8")),
                ("id_high", Int64),
                ("id_low", Int64),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _TopicIdStruct(RequestStruct):
    topics: list[tuple[int, int, str, dict[int, bytes]]]
    include_topic_authorized_operations: bool

    API_KEY = 3
    API_VERSION = 12
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE: type[Response] = _TopicIdResponse
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(
                ("id_high", Int64),
                ("id_low", Int64),
                ("topic", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )

    def encode(self) -> bytes:
        return _topic_asked(self.topics[0][2], self.include_topic_authorized_operations)


@lru_cache(_KEPT)
def _topic_asked(topic: str, rights: bool) -> bytes:
    return bytes(_TopicIdStruct.SCHEMA.encode([[(0, 0, topic, {})], False, rights, {}]))


class _TopicMetadataStruct(_TopicIdStruct):
    RESPONSE_TYPE = _TopicMetadataResponse


class TopicId(Request[_TopicIdStruct]):
    """Metadata v12 of one topic: the version that tells topic ids, which aiokafka does not ask for."""

    API_KEY: ClassVar[int] = 3

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def build(self, request_struct_class: type[_TopicIdStruct]) -> _TopicIdStruct:
        return request_struct_class([(0, 0, self._topic, {})], False, False, {})


class TopicMetadata(Request[_TopicMetadataStruct]):
    """The same as a whole. ``rights``: with what this client may do to the topic."""

    API_KEY: ClassVar[int] = 3

    def __init__(self, topic: str, *, rights: bool = False) -> None:
        self._topic = topic
        self._rights = rights

    def build(self, request_struct_class: type[_TopicMetadataStruct]) -> _TopicMetadataStruct:
        return request_struct_class([(0, 0, self._topic, {})], False, self._rights, {})
