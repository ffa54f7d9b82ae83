"""Raw requests to a cluster, so that a scenario sees what a broker says and not what a client makes of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import GroupCoordinatorNotAvailableError
from aiokafka.protocol.admin import CreatePartitionsRequest, DeleteRecordsRequest, DeleteTopicsRequest
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.group import HeartbeatRequest, JoinGroupRequest, LeaveGroupRequest, SyncGroupRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import (
    AddOffsetsToTxnRequest,
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    InitProducerIdRequest,
)
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.memory_records import MemoryRecords

from streamer.kafka.requests import TopicMetadata
from tests.simulation import codecs, product
from tests.simulation.logs import Record, build

TRANSIENT = (14, 15, 16)
CONCURRENT = 51
GROUP, TRANSACTION = 0, 1


class Talk:
    """One client of a cluster. ``unique``: put into every name, since scenarios share a real cluster."""

    def __init__(self, bootstrap: str, unique: str) -> None:
        self.bootstrap, self.unique = bootstrap, unique
        self._client = AIOKafkaClient(bootstrap_servers=bootstrap, client_id="talk")
        self._group_clients: list[AIOKafkaClient] = []

    async def __aenter__(self) -> Talk:
        await self._client.bootstrap()
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in (self._client, *self._group_clients):
            await client.close()

    async def another(self) -> Talk:
        """Another connection: a broker answers the requests of one connection in order."""
        other = Talk(self.bootstrap, self.unique)
        await other._client.bootstrap()
        self._group_clients.append(other._client)
        return other

    def name(self, purpose: str) -> str:
        return f"{purpose}-{self.unique}"

    async def _node(self) -> int:
        return int(self._client.get_random_node())

    async def ask(self, request: Any, *, coordinator: tuple[int, str] | None = None) -> Any:
        node = await self._node()
        while coordinator is not None:
            try:
                node = await self._client.coordinator_lookup(*coordinator)
                break
            except GroupCoordinatorNotAvailableError:  # a fresh cluster makes its internal topics first
                await asyncio.sleep(0.1)
        return await self._client.send(node, request)

    # topics

    async def create(self, topic: str, partitions: int = 1, config: dict[str, str] | None = None) -> int:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        await admin.start()
        try:
            answer = await admin.create_topics([NewTopic(topic, partitions, 1, topic_configs=config or {})])
            while True:
                found = (await admin.describe_topics([topic]))[0]
                if len(found["partitions"]) >= partitions and all(p["leader"] >= 0 for p in found["partitions"]):
                    return int(answer.topic_errors[0][1])
                await asyncio.sleep(0.05)
        finally:
            await admin.close()

    async def delete(self, topic: str) -> int:
        answer = await self.ask(DeleteTopicsRequest([topic], 10_000))
        while (await self.topic_id(topic))[0] == 0:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)
        return int(answer.topic_error_codes[0][1])

    async def topic_id(self, topic: str) -> tuple[int, tuple[int, int], int]:
        """(error code, id, partitions)"""
        found = (await self.ask(TopicMetadata(topic))).topics[0]
        return found[0], (found[2], found[3]), len(found[5])

    async def delete_records(self, topic: str, offset: int) -> tuple[int, int]:
        """(error code, where the log begins)"""
        answer = await self.ask(DeleteRecordsRequest([(topic, [(0, offset)])], 10_000))
        _, ((_, low, code, *_),), *_ = answer.topics[0]
        return code, low

    async def add_partitions(self, topic: str, total: int) -> int:
        answer = await self.ask(CreatePartitionsRequest([(topic, (total, None))], 10_000, False))
        return int(answer.topic_errors[0][1])

    # records

    async def produce(
        self,
        topic: str,
        values: Sequence[tuple[bytes | None, bytes | None]],
        *,
        producer: tuple[int, int] = (-1, -1),
        sequence: int = -1,
        name: str | None = None,
        partition: int = 0,
        stamps_ms: Sequence[int] | None = None,
    ) -> tuple[int, int]:
        """(error code, base offset) of one batch."""
        now = int(time.time() * 1000)
        records = [
            Record(i, stamps_ms[i] if stamps_ms else now, key, value, ()) for i, (key, value) in enumerate(values)
        ]
        raw = build(records, 0, *producer, sequence, name is not None)
        while True:
            request = ProduceRequest(
                transactional_id=name, required_acks=-1, timeout=5_000, topics=[(topic, [(partition, raw)])]
            )
            code, offset = (await self.ask(request)).topics[0][1][0][1:3]
            if code != 6 and not (
                code == 19 and name is not None
            ):  # leader not there yet; transaction not verified yet
                return code, offset
            await asyncio.sleep(0.05)

    async def fetch(
        self,
        topic: str,
        offset: int,
        *,
        committed: bool = True,
        partition: int = 0,
        max_bytes: int = 1 << 20,
        wait_ms: int = 10,
    ) -> dict[str, Any]:
        """Error code, ends, and what came: (offset, key, value), markers as (offset, "commit" | "abort")."""
        request = FetchRequest(wait_ms, 1, max_bytes, int(committed), [(topic, [(partition, offset, max_bytes)])])
        answer = await self.ask(request)
        row = codecs.named(answer.SCHEMA, [getattr(answer, n) for n in answer.SCHEMA.names])["topics"][0]["partitions"][
            0
        ]
        return {
            "code": row["error_code"],
            "end": row["highwater_offset"],
            "stable": row["last_stable_offset"],
            "start": row["log_start_offset"],
            "aborted": sorted(each["first_offset"] for each in row["aborted_transactions"] or ()),
            "records": parsed(row["message_set"]),
        }

    async def offset(self, topic: str, when: int, *, committed: bool = False, partition: int = 0) -> tuple[int, int]:
        """(error code, offset) at a timestamp, -1: end, -2: begin"""
        answer = await self.ask(OffsetRequest(-1, int(committed), [(topic, [(partition, when)])]))
        row = answer.topics[0][1][0]
        return row[1], row[3]

    # transactions

    async def init(self, name: str | None, timeout_ms: int = 60_000) -> tuple[int, tuple[int, int]]:
        while True:
            request = InitProducerIdRequest(name, timeout_ms)
            answer = await self.ask(request, coordinator=None if name is None else (TRANSACTION, name))
            if answer.error_code not in (*TRANSIENT, CONCURRENT):
                return answer.error_code, (answer.producer_id, answer.producer_epoch)
            await asyncio.sleep(0.05)

    async def add(
        self, name: str, producer: tuple[int, int], topic: str, partitions: Sequence[int] = (0,)
    ) -> list[int]:
        while True:
            request = AddPartitionsToTxnRequest(name, *producer, [(topic, list(partitions))])
            answer = await self.ask(request, coordinator=(TRANSACTION, name))
            codes = [code for _, parts in answer.errors for _, code in parts]
            if not set(codes) & {*TRANSIENT, CONCURRENT}:
                return codes
            await asyncio.sleep(0.02)

    async def add_group(self, name: str, producer: tuple[int, int], group: str) -> int:
        while True:
            request = AddOffsetsToTxnRequest(name, *producer, group)
            code = (await self.ask(request, coordinator=(TRANSACTION, name))).error_code
            if code not in (*TRANSIENT, CONCURRENT):
                return int(code)
            await asyncio.sleep(0.02)

    async def commit_in(
        self,
        name: str,
        producer: tuple[int, int],
        group: str,
        offsets: dict[int, int],
        topic: str,
        member: tuple[int, str, str | None] = (-1, "", None),
    ) -> list[int]:
        """Offsets in a transaction, with generation, member id and instance."""
        while True:
            request = product.txn_offset_commit(name, group, producer, member, topic, offsets)
            answer = await self.ask(request, coordinator=(GROUP, group))
            codes = [part[1] for row in answer.errors for part in row[1]]
            if not set(codes) & set(TRANSIENT):
                return codes
            await asyncio.sleep(0.02)

    async def end(self, name: str, producer: tuple[int, int], *, commit: bool) -> int:
        while True:
            code = (await self.ask(EndTxnRequest(name, *producer, commit), coordinator=(TRANSACTION, name))).error_code
            if code not in (*TRANSIENT, CONCURRENT):
                return int(code)
            await asyncio.sleep(0.02)

    async def until_stable(self, topic: str, end: int) -> None:
        """Returns when a reader of committed records could reach ``end``."""
        while (await self.offset(topic, -1, committed=True))[1] < end:  # noqa: ASYNC110 - another process writes
            await asyncio.sleep(0.05)

    # groups

    async def join(
        self,
        group: str,
        member: str = "",
        instance: str | None = None,
        *,
        rebalance_ms: int = 10_000,
        data: bytes = b"m",
    ) -> Any:
        while True:
            request = JoinGroupRequest(group, 6_000, rebalance_ms, member, instance, "consumer", [("plan", data)])
            answer = await self.ask(request, coordinator=(GROUP, group))
            if answer.error_code not in TRANSIENT:
                return answer
            await asyncio.sleep(0.05)

    async def joined(self, group: str, instance: str | None = None, *, data: bytes = b"m") -> Any:
        """With the detour over the member id that a broker hands out."""
        answer = await self.join(group, instance=instance, data=data)
        if answer.error_code == 79:
            answer = await self.join(group, answer.member_id, instance, data=data)
        return answer

    async def sync(
        self,
        group: str,
        generation: int,
        member: str,
        plan: dict[str, bytes] | None = None,
        instance: str | None = None,
    ) -> tuple[int, bytes]:
        request = SyncGroupRequest(group, generation, member, instance, list((plan or {}).items()))
        answer = await self.ask(request, coordinator=(GROUP, group))
        return answer.error_code, answer.member_assignment

    async def beat(self, group: str, generation: int, member: str) -> int:
        return int((await self.ask(HeartbeatRequest(group, generation, member), coordinator=(GROUP, group))).error_code)

    async def leave(self, group: str, member: str) -> int:
        return int((await self.ask(LeaveGroupRequest(group, member), coordinator=(GROUP, group))).error_code)

    async def commit(self, group: str, topic: str, offset: int, generation: int = -1, member: str = "") -> int:
        while True:
            request = OffsetCommitRequest(group, generation, member, -1, [(topic, [(0, offset, "")])])
            code = (await self.ask(request, coordinator=(GROUP, group))).topics[0][1][0][1]
            if code not in TRANSIENT:
                return int(code)
            await asyncio.sleep(0.05)

    async def committed(self, group: str, topic: str) -> int:
        while True:
            answer = await self.ask(OffsetFetchRequest(group, [(topic, [0])]), coordinator=(GROUP, group))
            if answer.topics:  # none: a coordinator that is not there yet
                _, offset, _, code = answer.topics[0][1][0]
                if code not in TRANSIENT and answer.error_code not in TRANSIENT:
                    return int(offset)
            await asyncio.sleep(0.05)


def parsed(data: bytes) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    records = MemoryRecords(bytes(data))
    while records.has_next():
        batch = records.next_batch()
        assert isinstance(batch, DefaultRecordBatch)
        if batch.is_control_batch:
            kinds = ["commit" if record.key[3] else "abort" for record in batch]
            found += [(batch.base_offset, kind) for kind in kinds or ["empty"]]
        else:
            found += [(record.offset, record.key, record.value) for record in batch]
    return found
