"""What keeps a member that lost its partitions from writing: every rule of the commit, tried against a real broker."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from itertools import pairwise

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka_errors
from aiokafka.conn import AIOKafkaConnection
from chain import PARTITIONS, check, rows
from durable import begin, make_processor, settle
from serving import event, make_service, make_settings, open_transaction, produce, read_all, running, serve, wait_for
from simulated import ChainModel, advance, records

from streamer.core import Changelog, Epoch, Transaction
from streamer.errors import FencedError, KafkaSilentError
from streamer.kafka.group import Ownership
from streamer.kafka.writes import TRANSACTION_HEADER
from streamer.records.changelog import Kind, encode_stream, stream_key

REQUESTS = [
    "AddPartitionsToTxnRequest",
    "ProduceRequest",
    "AddOffsetsToTxnRequest",
    "TxnOffsetCommit",
    "EndTxnRequest",
]
KEY = stream_key(Kind.STATE, "chain", b"zombie")


def slice_of_an_unfinished_round(partition: int, position: int) -> Transaction:
    """No event, no prediction, an unmoved position: all that would be left of a transaction without offsets."""
    changelog = Changelog(partition, [(KEY, encode_stream(KEY, 0, 0, b"12345678", b"1234"))])
    return Transaction({partition: position}, [], [], [changelog])


@contextlib.asynccontextmanager
async def two_members(kafka, topic: str, group: str):
    """The first with the ownership that it had before the second came."""
    settings = make_settings(kafka, topic, group)
    first, one = await make_service(settings, instance="one")
    second, two = await make_service(settings, instance="two")
    async with running(first):
        await produce(kafka, topic, rows(0, 400))
        await wait_for(lambda: one.committed_events >= 400, one)
        before = first._membership.ownership
        assert before is not None
        async with running(second):
            await wait_for(lambda: bool(two.recoveries) and len(one.recoveries) >= 2, one, two)
            yield first, one, second, two, before


@pytest.mark.parametrize("partition", [0, PARTITIONS - 1])
async def test_a_stale_member_writes_nothing_not_even_an_unmoved_slice(
    kafka, topic_name, create_topics, partition: int
) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: PARTITIONS})
    async with two_members(kafka, topic, topic_name("group")) as (first, one, _, two, before):
        position, used = 100, first._committer.transactional_id
        with pytest.raises(FencedError, match="illegal generation"):
            await first._committer.commit(slice_of_an_unfinished_round(partition, position), before)
        # the member itself is not harmed: it goes on with what is its own now
        await produce(kafka, topic, rows(400, 400))
        await wait_for(lambda: one.committed_events + two.committed_events >= 800, one, two)
        assert first._committer.transactional_id != used, (
            "a producer id whose records were refused must not commit again"
        )
        changelog = await read_all(kafka, str(first._committer._settings.changelog_topic))
        assert KEY not in {read.key for read in changelog}
    check(await read_all(kafka, f"{topic}.out", at_least=800), 800)


async def test_a_member_without_a_generation_commits_nothing(kafka, topic_name, create_topics) -> None:
    """After an eviction the client's generation is -1 and its member id empty: the broker would let that through."""
    topic = topic_name("in")
    await create_topics(kafka, {topic: PARTITIONS})
    async with two_members(kafka, topic, topic_name("group")) as (first, *_):
        nobody = Ownership(-1, "", frozenset(range(PARTITIONS)))
        with pytest.raises(FencedError):
            await first._committer.commit(slice_of_an_unfinished_round(0, 0), nobody)


async def test_offsets_go_last_and_for_every_partition(kafka, topic_name, create_topics, monkeypatch) -> None:
    """Sent before the last record is acknowledged, a transaction could commit after its partitions had moved."""
    topic = topic_name("in")
    await create_topics(kafka, {topic: PARTITIONS})
    order: list[str] = []
    touched: list[tuple[set[int], set[int]]] = []
    send, offsets = AIOKafkaProducer.send_batch, AIOKafkaProducer.send_offsets_to_transaction
    partitions: set[int] = set()

    async def send_batch(self, batch, to, *, partition):
        future = await send(self, batch, to, partition=partition)
        order.append("sent")
        partitions.add(partition)
        future.add_done_callback(lambda _: order.append("acknowledged"))
        return future

    async def send_offsets(self, positions, group):
        assert order.count("sent") == order.count("acknowledged") > 0
        touched.append((set(partitions), {tp.partition for tp in positions}))
        partitions.clear()
        return await offsets(self, positions, group)

    monkeypatch.setattr(AIOKafkaProducer, "send_batch", send_batch)
    monkeypatch.setattr(AIOKafkaProducer, "send_offsets_to_transaction", send_offsets)
    service, recorder = await make_service(make_settings(kafka, topic, topic_name("group")))
    async with running(service):
        producing = AIOKafkaProducer(bootstrap_servers=kafka)
        await producing.start()
        for index in range(400):
            await producing.send(topic, event([float(index % 11)]), key=b"s%d" % (index % 8), partition=index % 2)
        await producing.stop()
        # rounds of partitions that got nothing new are written too
        await wait_for(lambda: recorder.committed_events >= 400, recorder)
    assert touched
    assert all(written <= committed for written, committed in touched)


async def test_the_undecided_transactions_owner_is_ended_and_no_other(kafka, topic_name, create_topics) -> None:
    """Not the one that the newest committed record names: that may be a live owner, or oneself."""
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    settings = make_settings(kafka, topic, topic_name("group"))
    await serve(settings, [(0, b"a", event([1.0]), [])])
    changelog = settings.changelog_topic
    assert changelog
    alive = AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=topic_name("alive"))
    await alive.start()
    try:
        key = stream_key(Kind.STATE, "gone", b"b")
        header = [(TRANSACTION_HEADER, alive._txn_manager.transactional_id.encode())]
        async with alive.transaction():  # the newest committed record is the live one's
            value = encode_stream(key, 0, 0, b"12345678", b"1234")
            await alive.send_and_wait(changelog, value, key=key, partition=0, headers=header)
        async with open_transaction(kafka, topic_name("dead"), changelog, 0, named=True) as dead:
            service, recorder = await make_service(settings, instance="b")
            async with running(service):
                await wait_for(lambda: bool(recorder.recoveries), recorder)
            with pytest.raises((kafka_errors.KafkaError, AssertionError)):
                await dead.commit_transaction()
        async with alive.transaction():  # nobody has fenced it
            await alive.send_and_wait(topic, event([2.0]), key=b"a", partition=0)
    finally:
        await alive.stop()
    service, recorder = await make_service(settings, instance="c")
    async with running(service):
        await wait_for(lambda: recorder.committed_events >= 1, recorder)
    found = await read_all(kafka, f"{topic}.out", at_least=2)
    assert [read.document["y"] for read in found] == [advance(0, 1), advance(advance(0, 1), 2)]


def test_what_is_sealed_does_not_change_with_the_next_run() -> None:
    """A slice that is encoded later, when the next run has changed the arena, holds a state beyond its position."""
    processor = make_processor([("chain", ChainModel(), None)], max_poll_records=16, checkpoint_interval_ms=0)
    begin(processor)

    def run(offset: int) -> Epoch:
        settle(processor, records([(offset, "a", 3.0)]))
        epoch = processor.seal(1_000 * offset)
        assert epoch is not None
        processor.committed(epoch, {})
        return epoch

    first = run(0)
    copied = [bytes(value or b"") for _, value in first.changelog[0].records]
    assert any(len(value) > 20 for value in copied)
    run(1)
    assert [value or b"" for _, value in first.changelog[0].records] == copied


@pytest.mark.parametrize("unanswered", REQUESTS)
async def test_a_broker_that_goes_away_inside_a_commit(kafka, topic_name, create_topics, unanswered: str) -> None:
    """At each of its requests: the events are committed by a successor, once, and nothing is left behind that asyncio
    complains of."""
    topic = topic_name("in")
    await create_topics(kafka, {topic: PARTITIONS})
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
    settings = make_settings(kafka, topic, topic_name("group"), delivery={"commit_timeout_ms": 4_000})
    service, recorder = await make_service(settings)
    async with running(service):
        await produce(kafka, topic, rows(0, 40))
        await wait_for(lambda: recorder.committed_events >= 40, recorder)
        client = service._committer.producers.committing.client
        send, asked = client.send, asyncio.Event()

        async def nobody_answers(node, request, **options):
            if type(request).__name__ != unanswered:
                return await send(node, request, **options)
            asked.set()
            client.ready = no_connection
            raise kafka_errors.NodeNotReadyError  # the client tries again until it is given up

        async def no_connection(*_, **__):
            return False

        client.send = nobody_answers
        await produce(kafka, topic, rows(40, 400))
        await asyncio.wait_for(asked.wait(), 30)
        async with asyncio.timeout(60):
            while recorder.committed_events < 440:
                recorder.changed.clear()
                await recorder.changed.wait()
        assert [type(error) for error in recorder.errors] == [KafkaSilentError]
    recorder.errors.clear()  # their tracebacks hold what was given up
    gc.collect()
    assert complaints == []
    check(await read_all(kafka, f"{topic}.out", at_least=440), 440)


async def test_a_commit_takes_five_requests(kafka, topic_name, create_topics, monkeypatch) -> None:
    """Partitions, records, group, offsets, end: each once, however many topics and partitions. The group goes with the
    records, not after them; the fence stays last."""
    topic = topic_name("in")
    await create_topics(kafka, {topic: PARTITIONS})
    sent: list[str] = []
    send = AIOKafkaConnection.send

    def noted(self, request, *args, **options):
        if self._client_id == "streamer" and type(request).__name__ in REQUESTS:
            sent.append(type(request).__name__)
        return send(self, request, *args, **options)

    service, recorder = await make_service(make_settings(kafka, topic, topic_name("group")))
    async with running(service):
        await wait_for(lambda: bool(recorder.recoveries), recorder)
        monkeypatch.setattr(AIOKafkaConnection, "send", noted)
        await produce(kafka, topic, rows(0, 400))
        await wait_for(lambda: recorder.committed_events >= 400, recorder)
    monkeypatch.undo()
    commits: list[list[str]] = [[]]
    for before, name in pairwise(["EndTxnRequest", *sent]):
        if before == "EndTxnRequest":
            commits.append([])
        # a broker that still writes the markers of the last transaction has the first request of the next one tried again
        if not before == name == REQUESTS[0]:
            commits[-1].append(name)
    whole = [commit for commit in commits if commit[:1] == REQUESTS[:1] and commit[-1:] == REQUESTS[-1:]]
    assert whole
    assert all(commit[-2:] == REQUESTS[-2:] for commit in whole)
    as_told = [REQUESTS[0], *sorted(REQUESTS[1:3]), *REQUESTS[3:]]
    found = [[commit[0], *sorted(commit[1:-2]), *commit[-2:]] for commit in whole]
    assert sum(commit == as_told for commit in found) > len(whole) / 2, "records may be sent again now and then"
    assert any(commit[1] == "AddOffsetsToTxnRequest" for commit in whole), (
        "asked for before the records are acknowledged"
    )
