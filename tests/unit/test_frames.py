"""Records of several steps, and texts: what they mean, what is refused and why, how they are answered."""

from __future__ import annotations

import json
import sys
import types
from typing import Any

import msgspec
import numpy as np
import pytest
from decoding import NOW_MS, records
from durable import begin, make_processor, settle
from hypothesis import given
from hypothesis import strategies as st
from serving import make_settings
from simulated import POISON, ChainModel, advance
from windowing import FoldModel, fold, several, timed

from streamer.core import EventBatch, Op, RecordBatch, StepAnswers
from streamer.errors import ConfigurationError
from streamer.library import Runner
from streamer.modelfile.contract import Contract
from streamer.modelfile.past import Past
from streamer.records.decode import Codec
from streamer.records.encode import Encoder
from streamer.records.exact import Exact
from streamer.records.formats import Fields, as_found
from streamer.records.keys import Keys
from streamer.records.spelling import Spelling
from streamer.service.prepare import codec_of, fingerprint
from streamer.service.sink import Sink
from streamer.settings.fields import parse_place
from streamer.windows import EachRecord, WindowRule


def contract(features: int = 2, dtype: str = "float32", **changes: Any) -> Contract:
    return Contract.from_fields(
        {
            "name": "m",
            "mode": "step",
            "input": {
                "name": "x", "shape": ["batch", "time", features], "dtype": dtype, "steps": "many", **changes,
            },
            "outputs": [{"name": "y", "shape": ["batch", "time", 1]}],
        }
    )  # fmt: skip


def text_contract(vocabulary: list[str], unknown: int | None = None, dtype: str = "float32") -> Contract:
    feature: dict[str, Any] = {"name": "query", "kind": "text", "vocabulary": vocabulary}
    if unknown is not None:
        feature["unknown"] = unknown
    fields = msgspec.to_builtins(contract(1, dtype))
    del fields["input"]["steps"]
    return Contract.from_fields({**fields, "input": {**fields["input"], "features": [feature]}})


def meant(batch: EventBatch) -> dict[int, Any]:
    """Offset -> its steps, or why there are none."""
    assert batch.steps is not None
    found: dict[int, Any] = {reject.offset: (str(reject.reason), reject.detail) for reject in batch.rejects}
    at = 0
    for offset, count in zip(batch.offsets.tolist(), batch.steps.tolist(), strict=True):
        found[offset] = batch.x[at : at + count].tolist()
        at += count
    assert at == len(batch.x)
    return found


def decoded(codec: Codec, values: list[bytes | None], **more: Any) -> dict[int, Any]:
    return meant(codec.decode(records(values, **more)))


WIRES = {"json": json.dumps, "msgpack": msgspec.msgpack.encode}


@pytest.mark.parametrize("value_format", WIRES)
@pytest.mark.parametrize("careful", [False, True])
def test_lists_of_steps(value_format: str, careful: bool) -> None:
    wire = WIRES[value_format]
    codec = Codec(contract(), value_format, max_record_steps=3, careful=careful)

    def value(x: Any) -> bytes:
        made = wire({"x": x})
        return made.encode() if isinstance(made, str) else made

    found = decoded(
        codec,
        [
            value([[1, 2.5]]),
            value([[1, 2], [3, 4], [5, 6]]),
            value([]),
            value([[0, 0]] * 4),
            value([[1, 2], [3]]),
            value([[1, 2], 3]),
            value([[1, "2"]]),
            value([[1, True]]),
            value([[1, None]]),
            value([[1, 1e300]]),
            value([[1, 2**24 + 1]]),
            value("text"),
            b"\x00{",
        ],
    )
    assert found[0] == [[1.0, 2.5]]
    assert found[1] == [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    reasons = {offset: told[0] for offset, told in found.items() if isinstance(told, tuple)}
    assert reasons == {
        2: "wrong_width",
        3: "too_large",
        4: "wrong_width",
        5: "undecodable",
        6: "undecodable",
        7: "undecodable",
        8: "missing_feature",
        9: "not_finite",
        10: "not_exact",
        11: "undecodable",
        12: "undecodable",
    }
    assert "4 steps, input.max_record_steps is 3" in found[3][1]
    assert "step 1 of x has 1 values" in found[4][1]
    assert "0 of step" not in found[8][1]
    assert "'1 of step 0'" in found[8][1]


def test_a_number_alone_is_a_step_of_one_feature() -> None:
    codec = Codec(contract(1), "json", missing=9.0)
    found = decoded(codec, [b'{"x":[1,2,3]}', b'{"x":[[1],[2]]}', b'{"x":[1,[2],null,[null]]}'])
    assert list(found.values()) == [[[1.0], [2.0], [3.0]], [[1.0], [2.0]], [[1.0], [2.0], [9.0], [9.0]]]


def test_raw_floats_are_whole_steps() -> None:
    codec = Codec(contract(), "float32", max_record_steps=2)
    good = np.array([[1, 2], [3, 4]], "<f4")
    bad = np.array([[1, np.nan]], "<f4")
    found = decoded(
        codec, [good.tobytes(), good[:1].tobytes(), b"", good.tobytes()[:12], good.tobytes() * 2, bad.tobytes()]
    )
    assert found[0] == good.tolist()
    assert found[1] == good[:1].tolist()
    assert [found[row][0] for row in (2, 3, 4, 5)] == ["wrong_width", "wrong_width", "too_large", "not_finite"]


def test_commands_have_no_steps_and_bad_keys_no_say() -> None:
    codec = Codec(contract(1), "json")
    headers = {1: [("streamer-op", b"reset")]}
    batch = codec.decode(
        records([b'{"x":[1,2]}', b"", b'{"x":[3]}', b'{"x":[4]}'], keys=[b"a", b"a", b"", b"b"], headers=headers)
    )
    assert batch.steps is not None
    assert batch.steps.tolist() == [2, 0, 1]
    assert batch.x.tolist() == [[1.0], [2.0], [4.0]]
    assert batch.ops is not None
    assert batch.ops.tolist() == [0, 1, 0]
    assert [reject.offset for reject in batch.rejects] == [2]
    rest = batch.since(2)
    assert rest is not None
    assert rest.x.tolist() == [[4.0]]


cells = st.one_of(
    st.floats(width=32, allow_nan=False),
    st.integers(-(2**26), 2**26),
    st.sampled_from([None, True, "1", [], 1e300, 2**60]),
)
lists = st.one_of(st.lists(st.lists(cells, min_size=1, max_size=3), max_size=4), st.lists(cells, max_size=4))


@given(
    features=st.integers(1, 2),
    dtype=st.sampled_from(["float32", "float64", "int32", "int64"]),
    value_format=st.sampled_from(["json", "msgpack"]),
    rows=st.lists(lists, min_size=1, max_size=6),
    missing=st.sampled_from([None, 1.0]),
)
def test_a_record_means_the_same_alone_and_by_both_paths(
    features: int, dtype: str, value_format: str, rows: list[Any], missing: float | None
) -> None:
    encode = msgspec.json.encode if value_format == "json" else msgspec.msgpack.encode
    values: list[bytes | None] = [encode({"x": row, "ts": NOW_MS + at}) for at, row in enumerate(rows)]
    known = contract(features, dtype)
    fast = Codec(known, value_format, max_record_steps=3, missing=missing)
    slow = Codec(known, value_format, max_record_steps=3, missing=missing, careful=True)
    together = decoded(fast, values)
    assert together == decoded(slow, values)
    for at, value in enumerate(values):
        assert decoded(fast, [value], first=at) == {at: together[at]}


@given(st.lists(st.binary(max_size=24), min_size=1, max_size=5), st.sampled_from(["float32", "json", "msgpack"]))
def test_any_bytes_are_an_event_or_a_reject(values: list[bytes], value_format: str) -> None:
    found = decoded(Codec(contract(), value_format, max_record_steps=2), list(values))
    assert found == decoded(Codec(contract(), value_format, max_record_steps=2, careful=True), list(values))
    assert set(found) == set(range(len(values)))


def test_a_users_decoder_gives_an_array_for_each_value() -> None:
    module = types.ModuleType("users_frames")

    def decode(values: list[bytes]) -> Any:
        lies = {b"!": np.zeros((2, 3)), b"?": [["a", "b"]], b"-": np.zeros((0, 2))}
        x = [lies.get(value, np.arange(2 * len(value)).reshape(-1, 2)) for value in values]
        return x, [NOW_MS] * len(values), {row: "odd" for row, value in enumerate(values) if value == b"x"}

    module.decode = decode  # type: ignore[attr-defined]
    sys.modules["users_frames"] = module
    found = decoded(
        Codec(contract(), "users_frames:decode", max_record_steps=3), [b"ab", b"!", b"?", b"-", b"x", b"abcd"]
    )
    assert found[0] == [[0.0, 1.0], [2.0, 3.0]]
    assert [found[row][0] for row in range(1, 6)] == [
        "undecodable", "undecodable", "wrong_width", "undecodable", "too_large"
    ]  # fmt: skip


# texts


def test_pieces_are_found_the_longest_first() -> None:
    spelling = Spelling(["a", "b", "ab", "abc", "ä", "<unk>"], unknown=5)
    assert spelling.places("abcab") == [3, 2]
    assert spelling.places("aab") == [0, 2]
    assert spelling.places("abd") == [2, 5]
    assert spelling.places("ä") == [4]
    assert spelling.places("<unk>x") == [5, 5]
    with pytest.raises(KeyError, match="x"):
        Spelling(["a"]).places("ax")


def test_words_are_what_is_between_blanks() -> None:
    spelling = Spelling(["<unk>", "nine", "nineteen", "of"], unknown=0, words=True)
    assert spelling.places("  nineteen of\tnine ninety ") == [2, 3, 1, 0]
    assert spelling.places(" ") == []
    with pytest.raises(KeyError, match="ninety"):
        Spelling(["nine"], words=True).places("nine ninety")


@given(st.text(alphabet="abcx", max_size=12))
def test_spelling_is_greedy_by_definition(text: str) -> None:
    vocabulary = ["a", "b", "c", "ab", "bca", "abcab"]
    wanted, at = [], 0
    while at < len(text):
        fits = [piece for piece in vocabulary if text.startswith(piece, at)]
        longest = max(fits, key=len, default="?")
        wanted.append(vocabulary.index(longest) if fits else 6)
        at += len(longest)
    assert Spelling([*vocabulary, "<other>"], 6).places(text) == wanted


@pytest.mark.parametrize(("value_format", "name"), [("json", "x"), ("json-named", "query"), ("msgpack", "query")])
@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_a_text_is_a_step_for_each_character(value_format: str, name: str, dtype: str) -> None:
    encode = msgspec.msgpack.encode if value_format == "msgpack" else msgspec.json.encode
    codec = Codec(text_contract(list("abc"), dtype=dtype), value_format, max_record_steps=4)
    cells = ["cab", "", "abd", None, 7, ["a"], "aaaaa", "a"]
    values: list[bytes | None] = [encode({name: cell, "ts": NOW_MS + at}) for at, cell in enumerate(cells)]
    batch = codec.decode(records([*values, encode({}), b"\xff"]))
    assert batch.x.dtype == dtype
    assert batch.times_ms.tolist() == [NOW_MS, NOW_MS + 7]
    found = meant(batch)
    assert (found[0], found[7]) == ([[2], [0], [1]], [[0]])
    reasons = [found[row][0] for row in (1, 2, 3, 4, 5, 6, 8, 9)]
    assert reasons == [
        "missing_feature", "unknown_category", "missing_feature", "undecodable", "undecodable", "too_large",
        "missing_feature", "undecodable",
    ]  # fmt: skip
    assert "'d'" in found[2][1]


def test_a_text_is_where_the_settings_say() -> None:
    known = text_contract(list("abc"))
    codec = Codec(
        known, "json-named", fields=Fields({"query": parse_place("search.words[0]")}, parse_place("header:at"))
    )
    batch = codec.decode(records([b'{"search":{"words":["ba"]}}'], headers={0: [("at", b"%d" % NOW_MS)]}))
    assert (batch.x.tolist(), batch.times_ms.tolist()) == ([[1.0], [0.0]], [NOW_MS])
    codec = Codec(known, "json-named", fields=Fields({"query": parse_place("header:q")}))
    assert decoded(codec, [b"{}"], headers={0: [("q", b"ab")]}) == {0: [[0.0], [1.0]]}


@pytest.mark.parametrize(
    ("value_format", "fields", "text"),
    [
        ("json", Fields({"query": parse_place("q")}), True),
        ("json-named", Fields({"other": parse_place("q")}), True),
        ("json-named", Fields({"query": parse_place({"constant": "a"})}), True),
        ("json-named", Fields(), False),
        ("msgpack", Fields({"x0": parse_place("q")}), False),
        ("no-such", Fields(), False),
    ],
)
def test_what_cannot_be_read_is_said_at_once(value_format: str, fields: Fields, text: bool) -> None:
    with pytest.raises(ConfigurationError, match="input"):
        Codec(text_contract(["a"]) if text else contract(), value_format, fields=fields)


# answers


def encoder(**output: Any) -> Encoder:
    fields = msgspec.to_builtins(contract())
    return Encoder(Contract.from_fields({**fields, "outputs": [{"name": "y", **output}]}), "m%n")


def test_an_answer_lists_what_each_step_would_have_had() -> None:
    y = np.array([[0.1, 0.9], [0.75, 0.25]], np.float32)
    made = encoder(shape=["batch", "time", 2], kind="classes", labels=['a"%', "b"])
    document = json.loads(made.several(b'k"', 5, [y]))
    one_by_one = [json.loads(each) for each in made.steps([b"k", b"k"], np.array([1, 2]), [y])]
    assert document["y"] == [each["y"] for each in one_by_one]
    assert document["label"] == [each["label"] for each in one_by_one] == ["b", 'a"%']
    assert (document["stream"], document["ts"], document["model"]) == ('k"', 5, "m%n@1")
    number = encoder(shape=["batch", "time", 1], kind="value")
    assert json.loads(number.several(b"k", 5, [y[:, :1]]))["y"] == [0.100000001, 0.75]


def answers(steps: list[int]) -> StepAnswers:
    total = sum(steps)
    return StepAnswers(
        partition=0,
        model="m",
        keys=[b"s%d" % row for row in range(len(steps))],
        timestamps_ms=[1] * len(steps),
        sources=list(range(len(steps))),
        times_ms=np.arange(len(steps)),
        y=[np.arange(total, dtype=np.float32).reshape(total, 1)],
        steps=np.array(steps, np.int64),
    )


class Named:
    def __init__(self) -> None:
        self.contract, self.sha256 = contract(), "ab" * 32


@pytest.mark.parametrize("max_bytes", [700, 900, 2_000])
def test_an_answer_that_fits_no_record_becomes_slices(max_bytes: int) -> None:
    model: Any = Named()
    sink = Sink([("m", model)], Keys(), max_bytes=max_bytes)
    (outgoing,), refused = sink.encode([answers([2, 300, 1])])
    assert not refused
    found: dict[int, list[Any]] = {}
    slices: dict[int, list[Any]] = {}
    for source, value in zip(outgoing.sources, outgoing.values, strict=True):
        document = json.loads(value)
        assert document["ts"] == source
        found.setdefault(source, []).extend(document["y"])
        slices.setdefault(source, []).append(document.get("slice"))
    assert found == {0: [[0.0], [1.0]], 1: [[float(at)] for at in range(2, 302)], 2: [[302.0]]}
    assert slices[0] == [None]
    count = len(slices[1])
    assert count > 1
    assert slices[1] == [[at, count] for at in range(count)]


def test_a_step_that_fits_no_record_is_refused() -> None:
    model: Any = Named()
    (outgoing,), refused = Sink([("m", model)], Keys(), max_bytes=500).encode([answers([3])])
    assert not len(outgoing)
    assert [str(reject.reason) for reject in refused] == ["too_large_answer"]


# models


def test_the_library_takes_arrays_and_answers_with_arrays() -> None:
    model: Any = ChainModel(steps="many")
    first, second = Runner(model).run(
        [(["a", "b", "a"], [[[1.0], [2.0]], [[3.0], [POISON]], [[4.0]]]), (["b", "a"], [[[5.0]], [[6.0]]])]
    )
    one, two = advance(0, 1), advance(advance(0, 1), 2)
    assert [y[:, 0].tolist() for y in first.y] == [[one, two], [advance(two, 4)]]
    assert first.rows.tolist() == [0, 2]
    assert list(first.refused) == [1]
    assert [y[:, 0].tolist() for y in second.y] == [[advance(0, 5)], [advance(advance(two, 4), 6)]]
    for x in ([[1.0]], [[[1.0, 2.0]]], [np.empty((0, 1))]):
        with pytest.raises(ValueError, match="shape"):
            Runner(model).feed(["a"], x)
    with pytest.raises(ValueError, match="one for each"):
        Runner(model).feed(["a"], [])


def test_models_on_one_input_agree_on_what_a_record_holds() -> None:
    one, many = ChainModel(), ChainModel(steps="many")
    with pytest.raises(ConfigurationError, match=r"input\.steps"):
        make_processor([("one", one, None), ("many", many, None)])


def test_few_calls_take_many_records() -> None:
    """Records of streams that are behind share calls, whole ones; calls stay within their bounds."""
    model: Any = ChainModel(steps="many")
    processor = make_processor([("chain", model, None)], max_steps=6, max_window_cells=100, max_rows=8)
    begin(processor)
    batch = several(timed([(at, "a", at, 1.0) for at in range(9)]), [2] * 9)
    settle(processor, batch)
    assert model.calls == [(1, 6)] * 3
    model.calls.clear()
    rows = [(10 + at, f"s{at}", at, 1.0) for at in range(40)]
    settle(processor, several(timed(rows), [1 + 9 * (at % 2) for at in range(40)]))
    assert sum(rows for rows, _ in model.calls) == 40
    assert all(rows <= 8 and rows * steps <= 100 for rows, steps in model.calls)
    assert {steps for _, steps in model.calls} == {1, 10}, "no record is padded to ten times its length"


# every record is a window


def test_every_record_is_a_window_at_once() -> None:
    windows = EachRecord(WindowRule("record", min_events=2))
    added = windows.add(
        several(timed([(5, "a", 70, 5.0), (6, "a", 0, Op.END), (7, "b", 60, 7.0), (9, "a", 80, 9.0)]), [2, 0, 1, 3])
    )
    told = [(w.stream, w.start_ms, w.end_ms, str(w.reason), w.part, w.x[:, 0].tolist()) for w in added.closed]
    assert told == [(b"a", 70, 70, "record", 5, [5.0, 5.0]), (b"a", 80, 80, "record", 9, [9.0] * 3)]
    assert [window.stream for window in added.short] == [b"b"]
    assert added.closed_at == [5, 9]
    assert not added.closed_through
    assert windows.watermark == 80
    assert windows.oldest() is None
    assert windows.next_close_ms() is None
    trimmed = EachRecord(WindowRule("record"), length_multiple=2).add(several(timed([(1, "a", 1, 1.0)]), [5]))
    assert (len(trimmed.closed[0].x), trimmed.trimmed) == (4, 1)


@pytest.mark.parametrize("per", ["window", "event"])
def test_a_record_is_answered_as_the_window_that_it_is(per: str) -> None:
    model: Any = FoldModel(per=per, steps="many")
    runner = Runner(model, window=WindowRule("record"))
    answered = runner.feed(["a", "b", "a"], [[[1.0], [2.0]], [[3.0]], [[POISON], [1.0]]], [7, 8, 9])
    assert answered.keys == ["a", "b"]
    last = [y[-1].tolist() if per == "event" else y.tolist() for y in answered.y]
    assert last == [[fold([1.0, 2.0])], [fold([3.0])]]
    assert list(answered.refused) == [2]
    plain: Any = FoldModel()
    assert Runner(plain, window=WindowRule("record")).feed(["a"], [[4.0]]).y[0].tolist() == [fold([4.0])]


def test_a_text_implies_many_steps() -> None:
    assert text_contract(["a"]).many_steps
    assert contract().many_steps
    assert not Contract.from_fields(
        {**msgspec.to_builtins(contract()), "input": {"name": "x", "shape": ["batch", 1]}}
    ).many_steps


def test_the_empty_fetch_moves_on() -> None:
    model: Any = ChainModel(steps="many")
    processor = make_processor([("chain", model, None)])
    partition = begin(processor)
    settle(processor, EventBatch.empty(0, 4, processor.no_events))
    assert partition.next_offset == 4
    raw = RecordBatch(0, [4], [1], [b"k"], [b"v"])
    only_rejects = EventBatch(
        0,
        np.empty(0, np.int64),
        np.empty(0, np.int64),
        [],
        [],
        processor.no_events,
        None,
        raw,
        5,
        steps=np.empty(0, np.int64),
    )
    settle(processor, only_rejects)
    assert partition.next_offset == 5


def test_the_bound_of_steps_decides_where_records_hold_several() -> None:
    """It may not change while events are in flight; what was written before there were such records is as it was."""
    few, many = (make_settings("h:1", "in", "g", input={"max_record_steps": most}) for most in (10, 20))
    one: Any = [("chain", ChainModel(), None)]
    several_steps: Any = [("chain", ChainModel(steps="many"), None)]
    assert fingerprint(few, one) == fingerprint(many, one)
    assert len({fingerprint(few, one), fingerprint(few, several_steps), fingerprint(many, several_steps)}) == 3
    codec = codec_of(few, several_steps)
    assert decoded(codec, [b'{"x":[%s1]}' % (b"1," * 10)])[0][0] == "too_large"


@pytest.mark.parametrize("words", [True, False])
@pytest.mark.parametrize("vocabulary", [["a", "b"], ["a", "b", "aaaa"]])
def test_a_text_that_is_too_long_is_not_spelled_to_its_end(vocabulary: list[str], words: bool) -> None:
    """With 200 pieces that begin alike, 1 MB of text took 20 seconds."""
    spelling = Spelling(vocabulary, words=words)
    between = " " if words else ""
    text = between.join("ab" * 5)
    for most in range(12):
        assert spelling.places(text, most) == spelling.places(text)[: most + 1]
    assert len(spelling.places(text + between + "?", 5)) == 6, "what has no place lies behind"
    with pytest.raises(KeyError):
        spelling.places(text + between + "?", 11)


def test_numbers_of_several_steps_are_what_the_graph_gets_in_every_format() -> None:
    """Also where the contract could make them of the stream's past: they are there."""
    declared = Contract.from_fields(
        {
            "name": "m", "mode": "step", "lengths": "l",
            "input": {
                "name": "x", "shape": ["batch", "time", 3], "steps": "many",
                "features": ["a", {"name": "a1", "source": "a", "lag": 1}, {"name": "gap", "kind": "since_last"}],
            },
            "outputs": [{"name": "y", "shape": ["batch", "time", 1]}],
        }
    )  # fmt: skip
    x = [[1, 10, 5], [2, 20, 6]]
    exact = Exact(declared.input.dtype)
    for value_format, encode in (("json", msgspec.json.encode), ("msgpack", msgspec.msgpack.encode)):
        batch = Codec(declared, value_format).decode(records([encode({"x": x})]))
        assert batch.x.tolist() == x
        found = as_found(value_format, declared.feature_tables, exact, Fields(), several=True)
        assert Past.of(found, "float32") is None


def test_a_null_in_a_step_of_integers_has_the_rule_of_the_setting_or_is_rejected() -> None:
    features = [{"name": "a", "missing": "last"}, "b"]
    for steps, value, found in (("one", b'{"x":[null,1]}', [[0, 1]]), ("many", b'{"x":[[null,1]]}', [[0, 1]])):
        fields = {"name": "x", "shape": ["batch", "time", 2], "features": features, "dtype": "int64", "steps": steps}
        outputs = [{"name": "y", "shape": ["batch", "time", 1]}]
        declared = Contract.from_fields(
            {"name": "m", "mode": "step", "lengths": "l", "input": fields, "outputs": outputs}
        )
        assert Codec(declared, "json", missing=0).decode(records([value])).x.tolist() == found
        assert [each.reason for each in Codec(declared, "json").decode(records([value])).rejects] == ["missing_feature"]


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ({"nonsense": 5.0}, "input.fields.nonsense: the contract has no such feature"),
        ({"text": 5.0}, "nothing stands for a missing text"),
        ({"text": "last"}, "nothing stands for a missing text"),
    ],
)
def test_nothing_stands_for_a_missing_text(rules: dict[str, Any], told: str) -> None:
    known = text_contract(["a", "b"])
    name = known.feature_tables[0].name
    given = {name if each == "text" else each: rule for each, rule in rules.items()}
    with pytest.raises(ConfigurationError, match=told):
        Codec(known, "json-named", fields=Fields({}, None, given))
    Codec(known, "json-named", fields=Fields({}, None, {name: "reject"}))
