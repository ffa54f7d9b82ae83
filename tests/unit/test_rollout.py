"""Generation without Kafka: requests, picks, answers, and what a real recurrent model gives step by step."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import msgspec
import numpy as np
import pytest
from durable import Changelog, begin, encoded, make_processor, settle
from simulated import records

from streamer.core import Epoch, Op, Outgoing, RecordBatch
from streamer.engine.partition import Phase
from streamer.errors import ModelError, ModelRunError
from streamer.generate.chance import draw, draw_sets, uniforms
from streamer.modelfile.contract import Contract
from streamer.records.changelog import Kind
from streamer.records.decode import Codec
from streamer.words import Mode

LETTERS = ("a", "b", "c", "d")


class Letters:
    """Probabilities of the next of four letters, which depend on the sum of all classes so far and on the last."""

    def __init__(self, encoding: str = "index", mode: str = "sample", **changes: Any) -> None:
        width = {"index": 1, "one-hot": 6, "value": 4}[encoding]
        output = {"name": "y", "shape": ["batch", "time", 4], "kind": "classes", "labels": list(LETTERS)}
        feedback = {"output": "y", "mode": mode, "encoding": encoding, "at": 2 if encoding == "one-hot" else 0}
        fields = {
            "name": "letters",
            "mode": "step",
            "input": {"name": "x", "shape": ["batch", "time", width]},
            "lengths": "lengths",
            "states": [{"input": "h", "output": "h_next", "shape": ["batch", 1]}],
            "outputs": [output],
            "feedback": feedback,
        }
        self.contract = Contract.from_fields({**fields, **changes})
        self.states, self.sha256 = self.contract.states, "ab" * 32
        self.max_steps: int | None = None
        self.ragged = True
        self.rows: list[int] = []
        self.seen: list[list[float]] = []
        self.fails_at: float | None = None

    def initial_states(self, rows: int) -> list[np.ndarray]:
        return [np.zeros((rows, 1), np.float32)]

    def run(self, x: np.ndarray, lengths: np.ndarray, states: list[np.ndarray]) -> Any:
        self.rows.append(len(x))
        self.seen += x[:, 0].tolist()
        if self.fails_at is not None and (x == self.fails_at).any():
            raise ModelRunError("that one")
        total = states[0] + x.sum(axis=2).cumsum(axis=1)
        place = (total[:, :, None] * 3 + np.arange(4) * 7) % 5 + 0.5
        return [(place / place.sum(axis=2, keepdims=True)).astype(np.float32)], [
            total[np.arange(len(x)), lengths - 1][:, None].astype(np.float32)
        ]


class Served:
    """A processor over one partition, asked and read like the service does."""

    def __init__(self, model: Any, *, changelog: Changelog | None = None, rule: str = "refuse", **limits: int) -> None:
        """``changelog``: that it takes over."""
        self.model, self.next, self.changelog = model, 0, changelog or Changelog()
        self.processor = make_processor(
            [("m", model, None)], max_poll_records=512, max_bytes=1 << 20, generate=limits, model_changed=rule
        )
        if changelog is None:
            begin(self.processor)
        else:
            self.next = changelog.recover(self.processor, random.Random(0)).position

    def put(self, *rows: tuple[str, float | Op | dict[str, Any] | bytes]) -> None:
        asked = {i: w for i, (_, w) in enumerate(rows) if isinstance(w, dict | bytes)}
        plain: Any = [(self.next + i, s, Op.GENERATE if i in asked else w) for i, (s, w) in enumerate(rows)]
        batch = records(plain)
        batch.x = np.repeat(batch.x, self.model.contract.features, axis=1)
        batch.commands = {i: w if isinstance(w, bytes) else msgspec.json.encode(w) for i, w in asked.items()}
        self.next += len(rows)
        settle(self.processor, batch)

    def seal(self) -> Epoch:
        epoch = self.processor.seal(0)
        assert epoch is not None
        self.changelog.commit(epoch)
        self.processor.committed(epoch, {})
        return epoch

    def answers(self) -> list[Outgoing]:
        return encoded(self.processor, self.seal())

    def rolled(self) -> tuple[list[dict[str, Any]], list[tuple[int, str, str]]]:
        """Answers and refusals (offset, reason, detail) when nothing is open any more."""
        for _ in range(2_000):
            self.processor.roll()
        assert not self.processor.rolling, "a rollout never ends"
        epoch = self.seal()
        told = Counter(reject.reason for reject in epoch.rejects)
        assert epoch.report.rejects == told, "each reject is counted under its reason"
        answers = [out for out in encoded(self.processor, epoch) if out.mode is Mode.GENERATE]
        found = [{"offset": out.sources[0], **msgspec.json.decode(out.values[0])} for out in answers]
        return found, [(reject.offset, reject.reason, reject.detail) for reject in epoch.rejects]

    def one(self, **request: Any) -> dict[str, Any]:
        self.put(("s", {"n": 6, **request}))
        (answer,), refused = self.rolled()
        assert not refused
        return answer


def test_an_answer_tells_classes_labels_and_text() -> None:
    answer = Served(Letters()).one(prompt="abca", seed=7)
    assert answer["stream"] == "s"
    assert len(answer["y"]) == 6
    assert answer["label"] == [LETTERS[number] for number in answer["y"]]
    assert answer["text"] == "".join(answer["label"])
    assert answer["generate"] == {"n": 6, "seed": 7}
    assert answer["model"] == "m@1"


def test_prompts_of_labels_classes_and_events_are_the_same_and_go_through_the_encoding() -> None:
    assert {
        tuple(Served(Letters()).one(prompt=prompt, seed=3)["y"])
        for prompt in ("bd", ["b", "d"], [1, 3], [[1.0], [3.0]], [1, "d"])
    } == {tuple(Served(Letters()).one(prompt="bd", seed=3)["y"])}
    model = Letters("one-hot", "argmax")
    Served(model).one(prompt=["c", [9, 9, 0, 0, 0, 1]], n=1)
    assert model.seen == [[0, 0, 0, 0, 1, 0], [9, 9, 0, 0, 0, 1]]


def test_the_same_seed_gives_the_same_and_another_gives_another_whoever_rolls_beside() -> None:
    def rolled(*beside: dict[str, Any]) -> list[int]:
        served = Served(Letters())
        served.put(*[("x", request) for request in beside], ("s", {"n": 40, "prompt": "ab", "seed": 5}))
        return next(a["y"] for a in served.rolled()[0] if a["stream"] == "s")

    alone = rolled()
    assert alone == rolled() == rolled({"n": 3, "seed": 5}, {"n": 50, "seed": 5, "temperature": 0.5})
    assert alone != Served(Letters()).one(n=40, prompt="ab", seed=6)["y"]
    assert len(set(alone)) > 1


def test_a_rollout_goes_on_from_the_stream_and_leaves_it_alone() -> None:
    served = Served(Letters(mode="argmax"))
    served.put(("s", 1.0), ("s", 3.0), ("s", {"n": 3}), ("s", {"n": 3, "from": "initial"}), ("s", 2.0))
    forked, initial = served.rolled()[0]
    with_prompt = Served(Letters(mode="argmax")).one(n=3, prompt=[1, 3])
    assert forked["y"] == with_prompt["y"]
    assert initial["y"] == Served(Letters(mode="argmax")).one(n=3, prompt=[0])["y"]
    served.put(("s", 2.0))
    (after,) = served.answers()
    quiet = Served(Letters(mode="argmax"))
    quiet.put(("s", 1.0), ("s", 3.0), ("s", 2.0), ("s", 2.0))
    assert msgspec.json.decode(after.values[0])["y"] == msgspec.json.decode(quiet.answers()[0].values[-1])["y"]


def test_a_sequence_ends_after_the_stop() -> None:
    plain = Served(Letters()).one(n=30, prompt="a", seed=1)["label"]
    stop = plain[10]
    short = Served(Letters()).one(n=30, prompt="a", seed=1, stop=stop)["label"]
    assert short == plain[: plain.index(stop) + 1]


def test_an_answer_per_step_is_the_sequence_in_pieces_with_its_headers() -> None:
    whole = Served(Letters()).one(prompt="a", seed=1)
    served = Served(Letters())
    served.put(("s", {"n": 6, "prompt": "a", "seed": 1, "per_step": True}))
    epochs = []
    while served.processor.rolling:
        served.processor.roll()
        epochs.append(served.seal())
    steps = [out for epoch in epochs for out in encoded(served.processor, epoch)]
    assert [msgspec.json.decode(step.values[0])["y"] for step in steps] == whole["y"]
    assert [dict(step.headers[0]) for step in steps] == [{"streamer-step": b"%d" % n} for n in range(1, 7)]
    assert all(epoch.positions == {0: 1} for epoch in epochs), "an answer must be committed with its partition's fence"


def test_sets_and_values_are_fed_back_as_they_are() -> None:
    chosen = Served(Letters("value")).one(n=5, seed=2, prompt=[[1, 0, 1, 0]])
    assert {number for notes in chosen["y"] for number in notes} == {0, 1}
    assert "label" not in chosen
    model = Letters("value", "value")
    values = Served(model).one(n=3, prompt=[[1, 0, 1, 0]])["y"]
    given, state = np.float32([[[1, 0, 1, 0]]]), model.initial_states(1)
    for row in values:
        (given,), state = model.run(given, np.ones(1, np.int32), state)
        assert np.float32(row).tolist() == given[0, 0].tolist()


@pytest.mark.parametrize(
    ("request_", "reason", "says"),
    [
        (b"{", "bad_request", "not a request"),
        (b"", "bad_request", "not a request"),
        (b"\xff", "bad_request", "not a request"),
        ({"steps": 3}, "bad_request", "n"),
        ({"n": 0}, "bad_request", "n must be at least 1"),
        ({"n": 3, "seed": -1}, "bad_request", "seed"),
        ({"n": 21}, "too_long", "generate.max_steps is 20"),
        ({"n": 18, "prompt": "abc"}, "too_long", "21 steps"),
        ({"n": 3, "prompt": "a" * 3000}, "too_long", "max_request_bytes is 2000"),
        ({"n": 3, "prompt": "xyz"}, "bad_request", "'x' is neither a class nor a label"),
        ({"n": 3, "prompt": [4]}, "bad_request", "4 is neither"),
        ({"n": 3, "prompt": [[1, 2]]}, "bad_request", "1 finite numbers"),
        ({"n": 3, "prompt": [[1e39]]}, "bad_request", "finite"),
        ({"n": 3, "temperature": -1}, "bad_request", "temperature"),
        ({"n": 3, "top_k": 0}, "bad_request", "top_k"),
        ({"n": 3, "stop": "z"}, "bad_request", "'z' is neither"),
        ({"n": 3, "model": "other"}, "bad_request", "those that generate are m"),
        ({"n": 3, "surprise": 1}, "bad_request", "surprise"),
    ],
)
def test_a_request_that_cannot_be_carried_out_is_refused_in_one_sentence(request_: Any, reason: str, says: str) -> None:
    served = Served(Letters(), max_steps=20, max_request_bytes=2000)
    served.put(("s", request_), ("s", {"n": 1}))
    answers, refused = served.rolled()
    assert len(answers) == 1, "its neighbour goes on"
    assert [(offset, why) for offset, why, _ in refused] == [(0, reason)]
    assert says in refused[0][2]


def test_what_does_not_fit_one_record_is_refused_unless_per_step() -> None:
    served = Served(Letters(), max_answer_bytes=1_024)
    served.put(("s", {"n": 200}), ("s", {"n": 200, "per_step": True}))
    answers, refused = served.rolled()
    assert len(answers) == 200
    assert [(offset, reason) for offset, reason, _ in refused] == [(0, "too_long")]


def test_more_than_may_be_open_are_refused_and_more_than_a_call_takes_wait() -> None:
    model = Letters()
    served = Served(model, max_open=5, max_rows=2)
    served.put(*[(f"s{i}", {"n": 4, "prompt": "a", "seed": i}) for i in range(8)])
    model.rows.clear()
    answers, refused = served.rolled()
    assert [answer["offset"] for answer in answers] == [0, 1, 2, 3, 4]
    assert [(offset, reason) for offset, reason, _ in refused] == [(n, "too_many_rollouts") for n in (5, 6, 7)]
    assert max(model.rows) == 2


def test_older_rollouts_that_join_late_do_not_stop_those_under_way() -> None:
    source = Served(Letters())
    source.put(("s", 1.0))
    source.seal()  # with a round: what follows is replayed
    source.put(*[("s", {"n": 4, "prompt": "a"}) for _ in range(3)])
    source.seal()
    model = Letters()
    served = Served(model, max_rows=2)
    older = source.changelog.recover(served.processor, random.Random(0), number=1)
    assert older.phase is Phase.REPLAYING
    assert len(older.rollouts) == 3
    served.put(*[("s", {"n": 4, "prompt": "a"}) for _ in range(2)])
    served.processor.roll()
    assert model.rows == [2], "what is still replayed waits"
    settle(served.processor, records([(at, "s", 1.0) for at in range(1, 4)], 1))
    assert older.phase is Phase.LIVE
    answers, refused = served.rolled()
    assert len(answers) == 5
    assert not refused


def test_the_rollout_that_fails_is_found_and_its_neighbours_go_on() -> None:
    model = Letters()
    served = Served(model)
    served.put(*[("s", {"n": 4, "prompt": [[float(i)]]}) for i in range(5)])
    model.fails_at = 3.0
    served.processor.roll()
    model.fails_at = None
    answers, refused = served.rolled()
    assert [answer["offset"] for answer in answers] == [0, 1, 2, 4]
    assert refused == [(3, "model_refused", "after 0 steps: that one")]


def restored(served: Served, model: Any, *, rule: str = "refuse") -> Served:
    """Another process that takes over what ``served`` committed."""
    served.seal()
    assert served.changelog.count(Kind.ROLLOUT)
    return Served(model, changelog=served.changelog, rule=rule)


def test_a_model_that_came_later_carries_on_or_begins_anew_or_refuses() -> None:
    def asked() -> Served:
        served = Served(Letters(mode="argmax"))
        served.put(("s", 3.0), ("s", 3.0), ("s", {"n": 4}))
        return served

    same = asked().rolled()[0][0]["y"]
    assert restored(asked(), Letters(mode="argmax")).rolled()[0][0]["y"] == same
    newer = Letters(mode="argmax")
    newer.sha256 = "cd" * 32
    reset = restored(asked(), newer, rule="reset").rolled()[0][0]["y"]
    assert reset == Served(Letters(mode="argmax")).one(n=4, prompt=[0])["y"]
    assert restored(asked(), newer, rule="keep").rolled()[0][0]["y"] == same
    silent = Letters(mode="argmax", feedback=None)
    silent.sha256 = "ef" * 32
    _, refused = restored(asked(), silent, rule="reset").rolled()
    assert refused == [(2, "model_refused", "after 0 steps: model 'm' is not served, or cannot generate any more")]


def test_the_command_is_known_only_where_a_model_generates() -> None:
    raw = RecordBatch(0, [0], [1_700_000_000_000], [b"s"], [b'{"n": 1}'], {0: [("streamer-op", b"generate")]})
    contract = Letters().contract
    known = Codec(contract, "json", generates=True).decode(raw)
    assert known.commands == {0: b'{"n": 1}'}
    unknown = Codec(contract, "json").decode(raw)
    assert [reject.reason for reject in unknown.rejects] == ["unknown_command"]


@pytest.mark.parametrize(
    "feedback",
    [
        {"output": "z"},
        {"output": "y", "mode": "argmax"},
        {"output": "y", "mode": "value", "encoding": "one-hot"},
        {"output": "y", "mode": "sample", "encoding": "one-hot"},
        {"output": "y", "mode": "sample", "encoding": "index", "at": 1},
    ],
)
def test_a_contract_whose_feedback_does_not_fit_is_refused(feedback: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="feedback"):
        Letters(feedback=feedback)


def test_draws_follow_the_probabilities() -> None:
    p = np.tile(np.float32([0.1, 0.2, 0.0, 0.7]), (20_000, 1))
    u = uniforms(np.arange(20_000, dtype=np.uint64), np.zeros(20_000, np.uint64), 1)[:, 0]
    assert 0 <= u.min() < 1e-3
    assert 1 - 1e-3 < u.max() < 1
    every = np.full(20_000, 4)

    def shares(temperature: float, top_k: int = 4) -> np.ndarray:
        found = draw(p, np.full(20_000, temperature), np.minimum(every, top_k), u)
        return np.bincount(found, minlength=4) / 20_000

    np.testing.assert_allclose(shares(1.0), [0.1, 0.2, 0, 0.7], atol=0.01)
    square = np.float64([0.01, 0.04, 0, 0.49])
    np.testing.assert_allclose(shares(0.5), square / square.sum(), atol=0.01)
    np.testing.assert_allclose(shares(1.0, 2), [0, 2 / 9, 0, 7 / 9], atol=0.01)
    assert shares(0.0).tolist() == [0, 0, 0, 1]
    assert shares(1e-3).tolist() == [0, 0, 0, 1]
    each = uniforms(np.arange(20_000, dtype=np.uint64), np.ones(20_000, np.uint64), 4)
    sets = draw_sets(p, np.ones(20_000), each)
    np.testing.assert_allclose(sets.mean(axis=0), [0.1, 0.2, 0, 0.7], atol=0.01)
    assert abs(np.corrcoef(sets[:, 0], sets[:, 1])[0, 1]) < 0.03
    assert draw_sets(p[:1], np.zeros(1), each[:1]).tolist() == [[0, 0, 0, 1]]


@pytest.mark.parametrize("temperature", [1e-12, 1e-5, 1e-4, 1e-3, 2e-3])
def test_near_temperature_0_a_set_has_what_is_more_probable(temperature: float) -> None:
    p = np.tile(np.float32([1.0, 0.9, 0.5, 0.3, 0.0]), (4_000, 1))
    u = uniforms(np.arange(4_000, dtype=np.uint64), np.zeros(4_000, np.uint64), 5)
    shares = draw_sets(p, np.full(4_000, temperature), u).mean(axis=0)
    assert shares[[0, 1, 3, 4]].tolist() == [1, 1, 0, 0]
    assert abs(shares[2] - 0.5) < 0.05


class Scores(Letters):
    """Scores instead of probabilities: nothing to draw from."""

    def run(self, x: np.ndarray, lengths: np.ndarray, states: list[np.ndarray]) -> Any:
        (y,), after = super().run(x, lengths, states)
        return [y - 1], after


def test_what_is_no_probability_is_not_drawn_from_whoever_asks_for_it() -> None:
    served = Served(Scores(mode="argmax"))
    served.put(("s", 1.0), ("s", {"n": 2, "temperature": 1}), ("s", {"n": 2, "temperature": 0.5, "prompt": "a"}))
    served.put(("s", {"n": 2}), ("s", {"n": 2, "temperature": 0}))
    answers, refused = served.rolled()
    assert [answer["offset"] for answer in answers] == [3, 4], "what does not draw is answered beside it"
    assert [(offset, reason) for offset, reason, _ in refused] == [(1, "model_refused"), (2, "model_refused")]
    assert all("is to be sampled, but has negative values" in detail for *_, detail in refused)


# requests of every kind


@pytest.mark.parametrize(
    "request_",
    [
        b'{"n":1,"prompt":[1' + b"0" * 400 + b"]}",
        b'{"n":1,"prompt":[[1' + b"0" * 400 + b"]]}",
        b'{"n":1' + b"0" * 400 + b"}",
        b'{"n":2,"seed":1' + b"0" * 400 + b"}",
        b'{"n":2,"stop":1' + b"0" * 400 + b"}",
        b'{"n":2,"prompt":' + b"[" * 1_200 + b"]" * 1_200 + b"}",
        b'{"n":2,"x":' + b"[" * 1_200 + b"]" * 1_200 + b"}",
        b'{"n":2,"model":"\\ud800"}',
        b"\xff",
        b"",
    ],
)
def test_whatever_a_request_holds_it_is_refused_with_a_sentence(request_: bytes) -> None:
    served = Served(Letters())
    served.put(("a", request_), ("a", 1.0))
    answers, refused = served.rolled()
    assert not answers
    ((offset, reason, detail),) = refused
    assert (offset, reason) in [(0, "bad_request"), (0, "too_long")]
    detail.encode()
    assert len(detail) <= 510


def test_a_long_prompt_is_refused_before_it_takes_memory() -> None:
    served = Served(Letters("one-hot"), max_steps=20)
    served.put(("a", {"n": 1, "prompt": "a" * 60_000}))
    assert [reason for _, reason, _ in served.rolled()[1]] == ["too_long"]


def test_a_null_header_is_no_reason_to_end() -> None:
    served = Served(Letters())
    batch = records([(0, "a", Op.GENERATE)])
    batch.x = np.repeat(batch.x, 1, axis=1)
    batch.commands = {0: b'{"n": 2}'}
    batch.records.headers = {0: (("note", None), ("traceparent", b"00-1"), ("tracestate", None))}
    settle(served.processor, batch)
    (kept,) = [value for part in served.seal().changelog for key, value in part.records if key[0] == Kind.ROLLOUT]
    assert kept is not None
    for _ in range(5):
        served.processor.roll()
    (answer,) = served.answers()
    assert answer.headers == {0: [("traceparent", b"00-1")]}
