"""What an administrator does to a cluster while a service runs on it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, ClassVar

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import CompactArray, CompactString, Int16, Int32, Int64, Schema, TaggedFields


@contextlib.asynccontextmanager
async def administrator(kafka: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


class _Listed(Response):
    API_KEY = 66
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("unknown_states", CompactArray(CompactString("utf-8"))),
        (
            "transactions",
            CompactArray(
                ("transactional_id", CompactString("utf-8")),
                ("producer_id", Int64),
                ("state", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _ListStruct(RequestStruct):
    API_KEY = 66
    API_VERSION = 0
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _Listed
    SCHEMA = Schema(
        ("states", CompactArray(CompactString("utf-8"))), ("producer_ids", CompactArray(Int64)), ("tags", TaggedFields)
    )


class _ListTransactions(Request[_ListStruct]):
    API_KEY: ClassVar[int] = 66

    def build(self, request_struct_class: type[_ListStruct]) -> Any:
        return request_struct_class([], [], {})


async def forgotten(bootstrap: str, transactional_id: str) -> None:
    """Returns when the coordinator (of one node) does not know the id any more."""
    async with administrator(bootstrap) as admin, asyncio.timeout(60):
        client = admin._client
        while True:
            answer = await client.send(client.get_random_node(), _ListTransactions())
            assert answer.error_code == 0
            if transactional_id not in {each[0] for each in answer.transactions}:
                return
            await asyncio.sleep(0.1)
