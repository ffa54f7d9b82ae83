"""Words on a real broker: found where the settings say, answered as their places, and rejected with a reason of their own."""

from __future__ import annotations

import msgspec
import pytest
from serving import Row, make_service, make_settings, produce, read_all, running, wait_for
from simulated import ChainModel, advance
from tables import WORDS, category

from streamer.modelfile.contract import Contract


class WordsModel(ChainModel):
    """A chain of the places of words."""

    def __init__(self) -> None:
        super().__init__()
        fields = msgspec.to_builtins(self.contract)
        self.contract = Contract.from_fields({**fields, "input": {**fields["input"], "features": [category("c")]}})
        self.states = self.contract.states


@pytest.mark.parametrize("value_format", ["json-named", "msgpack"])
async def test_words_are_answered_and_unknown_ones_are_dead_letters(
    kafka, topic_name, create_topics, value_format
) -> None:
    topic = topic_name("in")
    await create_topics(kafka, {topic: 1})
    encode = msgspec.json.encode if value_format == "json-named" else msgspec.msgpack.encode
    words = ["run", "idle", 7, 7.0, "walk", 0.5, "Ünïcode", "run"]
    sent: list[Row] = [(0, b"s", encode({"host": {"tags": ["a", word]}}), []) for word in words]
    await produce(kafka, topic, sent)
    section = {"format": value_format, "fields": {"c": "host.tags[1]"}}
    settings = make_settings(kafka, topic, topic_name("group"), input=section)
    service, recorder = await make_service(settings, WordsModel())
    async with running(service) as task:
        await wait_for(lambda: recorder.committed_events >= len(words) - 1 or task.done(), recorder)
    state, expected = 0.0, []
    for word in words:
        if word != "walk":
            state = advance(state, WORDS.index("7" if word == 7 else str(word)))
            expected.append(state)
    assert [read.document["y"] for read in await read_all(kafka, f"{topic}.out", at_least=len(expected))] == expected
    (letter,) = await read_all(kafka, f"{topic}.dlq", at_least=1)
    assert letter.headers["streamer-error"] == b"unknown_category"
    assert b"'walk'" in letter.headers["streamer-error-detail"]
