"""What is written by hand is what the protocol's schema says; what is remembered is what was read."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.kafka import requests
from streamer.kafka.requests import TopicId, TopicMetadata, TxnOffsetCommit, TxnOffsetCommitResponse

TEXT = st.text(max_size=300)
INT16, INT32, INT64 = (st.integers(-(2**bits), 2**bits - 1) for bits in (15, 31, 63))
PARTITIONS = st.lists(st.tuples(INT32, INT64, INT32, TEXT, st.just({})), max_size=5)
TOPICS = st.lists(st.tuples(TEXT, PARTITIONS, st.just({})), max_size=3)


def by_schema(built: Any) -> bytes:
    return bytes(built.SCHEMA.encode([built.get_item(name) for name in built.SCHEMA.names]))


@given(st.tuples(TEXT, TEXT, INT64, INT16, INT32, TEXT, st.none() | TEXT, TOPICS))
def test_offsets_of_a_transaction_are_written_as_the_schema_says(fields: tuple[Any, ...]) -> None:
    built = TxnOffsetCommit(*fields).build(requests._TxnOffsetCommitStruct)
    assert built.encode() == by_schema(built)


def test_more_than_127_partitions_need_two_bytes_for_their_number() -> None:
    rows = [(number, number, -1, "", {}) for number in range(200)]
    built = TxnOffsetCommit("id", "group", 1, 2, 3, "member", None, [("in", rows, {})]).build(
        requests._TxnOffsetCommitStruct
    )
    assert built.encode() == by_schema(built)


@pytest.mark.parametrize("topic", ["in", "other"])
def test_the_question_for_a_topic_is_the_schema_s_with_and_without_rights(topic: str) -> None:
    whole = [
        TopicMetadata(topic, rights=rights).build(requests._TopicMetadataStruct) for rights in (False, True, False)
    ]
    for built in (TopicId(topic).build(requests._TopicIdStruct), *whole):
        assert built.encode() == by_schema(built)
    assert len({built.encode() for built in whole}) == 2


def test_an_answer_that_was_read_before_is_read_as_the_first_time_whatever_became_of_that() -> None:
    raw = TxnOffsetCommitResponse(0, [("in", [(0, 0, {}), (1, 22, {})], {})], {}).encode()
    first = TxnOffsetCommitResponse.decode(BytesIO(raw))
    assert first.encode() == raw
    first.errors = []
    assert TxnOffsetCommitResponse.decode(BytesIO(raw)).encode() == raw
    other = TxnOffsetCommitResponse(0, [("in", [(0, 0, {}), (1, 0, {})], {})], {}).encode()
    assert TxnOffsetCommitResponse.decode(other).errors == [("in", [(0, 0, {}), (1, 0, {})], {})]
