"""Symbols and transcripts: the collapse, what may be declared, what is written, and what utterances do not do."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from durable import begin, encoded, make_processor, settle
from emitting import EMIT, LABELS, EmittingChain, contract
from serving import make_settings
from simulated import ChainModel, records
from windowing import timed

from streamer.core import ClosedWindow, EmittedAnswers, Op
from streamer.emission.ctc import collapse, spelled
from streamer.errors import ConfigurationError, ModelError
from streamer.library import Runner
from streamer.modelfile.contract import Contract
from streamer.modelfile.emit import Emit
from streamer.records.encode import Encoder
from streamer.service.prepare import fingerprint, state_bytes, utterances
from streamer.settings import UtteranceSection
from streamer.words import Closed
from tests.simulation.product import EmittingWindowModel

CTC = Emit("ctc")


def rows(*labels: int, size: int = 4) -> np.ndarray:
    """[1, T, O] with these labels likeliest, each with 0.5."""
    y = np.full((1, len(labels), size), 0.1, np.float32)
    y[0, np.arange(len(labels)), labels] = 0.5
    return y


@pytest.mark.parametrize(
    ("labels", "symbols"),
    [
        ([0, 0, 0], []),
        ([1], [1]),
        ([1, 1, 1], [1]),
        ([1, 0, 1], [1, 1]),
        ([0, 1, 2, 2, 0, 2, 1], [1, 2, 2, 1]),
    ],
)
def test_repeats_are_one_symbol_and_blanks_are_none(labels: list[int], symbols: list[int]) -> None:
    found, steps, score = spelled(CTC, rows(*labels)[0])
    assert found == symbols
    assert [labels[step] for step in steps] == symbols
    assert score == pytest.approx(len(labels) * np.log(0.5))


def test_another_blank() -> None:
    assert spelled(Emit("ctc", blank=2), rows(2, 1, 1, 2, 0)[0])[0] == [1, 0]


@pytest.mark.parametrize("cut", range(1, 7))
def test_a_sequence_may_be_cut_anywhere(cut: int) -> None:
    rng = np.random.default_rng(cut)
    y = rng.dirichlet(np.ones(4), size=(1, 7)).astype(np.float32)
    whole = collapse(CTC, y, np.array([7], np.int32), np.array([-1]))
    first = collapse(CTC, y[:, :cut], np.array([cut], np.int32), np.array([-1]))
    rest = collapse(CTC, y[:, cut:], np.array([7 - cut], np.int32), first.labels[:, -1])
    assert np.concatenate([first.emitted, rest.emitted], axis=1).tolist() == whole.emitted.tolist()
    score = rest.scores(first.scores(np.zeros(1))[:, -1])[0, -1]
    assert score == whole.scores(np.zeros(1))[0, -1], "bit by bit"


def test_rows_shorter_than_the_call_bring_nothing_beyond_their_length() -> None:
    y = np.concatenate([rows(1, 2, 3), rows(1, 2, 3)])
    found = collapse(CTC, y, np.array([3, 1], np.int32), np.array([-1, -1]))
    assert found.emitted.tolist() == [[True, True, True], [True, False, False]]


def test_logarithms_are_summed_as_they_are() -> None:
    assert spelled(Emit("ctc", scale="log"), np.log(rows(1, 2))[0])[2] == pytest.approx(2 * np.log(0.5))


def test_a_probability_of_zero_is_no_infinity() -> None:
    assert np.isfinite(spelled(CTC, np.zeros((3, 4), np.float32))[2])


# what may be declared


def output(**changes: Any) -> dict[str, Any]:
    shape = ["batch", "time", len(LABELS)]
    document = {"name": "p", "shape": shape, "kind": "classes", "labels": list(LABELS), "emit": EMIT, **changes}
    return {key: value for key, value in document.items() if value is not ...}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"outputs": [output(labels=...)]}, "emit needs labels"),
        ({"outputs": [output(kind="vector")]}, "emit needs labels and kind classes"),
        ({"outputs": [output(emit={**EMIT, "blank": 4})]}, "emit.blank is 4, but the labels are 0 to 3"),
        ({"outputs": [output(emit={"blank": 0})]}, "rule"),
        ({"outputs": [output(emit={"rule": "transducer"})]}, "transducer"),
        ({"outputs": [output(emit={**EMIT, "beam": 4})]}, "beam"),
        ({"outputs": [output(), output(name="q")]}, "more than one output"),
        ({"outputs": [output(), output(name="q", emit=...)]}, "it has one output"),
        ({"feedback": {"output": "p", "mode": "argmax", "encoding": "index"}}, "emit and feedback"),
    ],
)
def test_what_cannot_be_followed_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        contract(**changes)


def test_an_output_per_window_has_no_steps_to_collapse() -> None:
    with pytest.raises(ModelError, match="emit needs values per event"):
        contract("window", outputs=[output(shape=["batch", len(LABELS)])])


def test_the_table_survives_dump_and_parse() -> None:
    declared = contract(outputs=[output(emit={**EMIT, "separator": " ", "scale": "log"})])
    assert Contract.parse(declared.dump()) == declared


def service(**model: Any) -> Any:
    return make_settings("localhost:1", "in", "g", model={"chain": {"path": "unused.onnx", **model}})


def test_a_model_that_emits_has_a_rule_by_default() -> None:
    models: Any = [("chain", EmittingChain(), None)]
    assert utterances(service(), models) == {"chain": UtteranceSection()}
    assert state_bytes(service(), models) == 4 + 80 + 2 * 256
    chosen = service(utterance={"gap_ms": 5})
    assert utterances(chosen, models)["chain"].gap_ms == 5
    assert fingerprint(chosen, models) != fingerprint(service(), models), "it decides how a record is replayed"


def test_rules_that_do_not_belong_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="belongs to a step model with emit"):
        utterances(service(utterance={}), [("chain", ChainModel(), None)])  # type: ignore[list-item]
    settings = make_settings("localhost:1", "in", "g", state={"idle_ttl_ms": 10_000})
    with pytest.raises(ConfigurationError, match="idle_ttl_ms is 10000"):
        utterances(settings, [("chain", EmittingChain(), None)])  # type: ignore[list-item]


# what is written


def run(*batches: Any, **rule: Any) -> tuple[Any, list[dict[str, Any]]]:
    processor = make_processor([("chain", EmittingChain(), None)], utterances={"chain": UtteranceSection(**rule)})
    begin(processor)
    for batch in batches:
        settle(processor, batch)
    epoch = processor.seal(1)
    assert epoch is not None
    return epoch, [json.loads(value) for outgoing in encoded(processor, epoch) for value in outgoing.values]


def test_partials_and_the_transcript_spell_the_same() -> None:
    log: list[Any] = [(offset, "s", float(offset % 11)) for offset in range(60)] + [(60, "s", Op.END)]
    epoch, documents = run(records(log))
    *partials, final = documents
    assert final["final"]
    assert not any(each["final"] for each in partials)
    assert final["text"] == "".join(each["text"] for each in partials)
    assert len(final["text"]) > 5
    assert final["utterance"] == {
        "start": 1_000, "end": 1_059, "count": 60, "reason": "end", "part": 0, "offsets": [0, 59]
    }  # fmt: skip
    assert final["ts"] == 1_059
    assert final["score"] < 0
    assert len(documents) < epoch.report.events == 61, "an event that brings no symbol has no record"
    assert epoch.positions == {0: 61}


def test_an_end_without_an_utterance_and_a_reset_bring_no_spelled() -> None:
    log: list[Any] = [
        (0, "s", Op.END),
        *((at, "s", float(at)) for at in range(1, 9)),
        (9, "s", Op.RESET),
        (10, "s", Op.END),
    ]
    _, documents = run(records(log))
    assert not [each for each in documents if each["final"]]


def test_an_utterance_without_symbols_ends_with_an_empty_spelled() -> None:
    """Whoever waits for it is told."""
    silent = next(x for x in range(200) if not run(records([(0, "s", float(x))]))[1])
    _, documents = run(records([(0, "s", float(silent)), (1, "s", Op.END)]))
    assert [(each["text"], each["final"]) for each in documents] == [("", True)]


def test_the_clock_of_the_partition_ends_what_went_silent() -> None:
    first = timed([(offset, "s", 1_000 + offset, float(offset)) for offset in range(20)])
    epoch, documents = run(first, timed([(20, "t", 1_119, 1.0)]), gap_ms=100)
    assert not [each for each in documents if each["final"]]
    epoch, documents = run(first, timed([(20, "t", 1_120, 1.0)]), gap_ms=100)
    [final] = [each for each in documents if each["final"]]
    assert (final["stream"], final["utterance"]["reason"]) == ("s", "time")
    [answers] = [
        each
        for each in epoch.answers
        if isinstance(each, EmittedAnswers) and each.keys[-1] == b"s" and each.emitted[-1].final
    ]
    assert answers.timestamps_ms[-1] == 10_020, "the timestamp of the record with which the clock passed"
    assert answers.sources[-1] == 19


def test_a_stream_that_is_behind_as_a_whole_is_not_cut() -> None:
    log = []
    for at in range(0, 60, 2):
        log += [(at, "ahead", 100_000 + at, float(at)), (at + 1, "behind", 1_000 + at, float(at))]
    _, documents = run(timed(log), gap_ms=50)
    assert not [each for each in documents if each["final"]]


def test_an_idle_partition_ends_its_utterances_once() -> None:
    processor = make_processor([("chain", EmittingChain(), None)], utterances={"chain": UtteranceSection(gap_ms=100)})
    partition = begin(processor)
    settle(processor, records([(0, "s", 1.0)]))
    assert processor.seal(1) is not None
    processor.idle(0, 100)
    assert not partition.answers
    processor.idle(0, 101)
    [answers] = partition.answers
    assert isinstance(answers, EmittedAnswers)
    assert answers.timestamps_ms == [1_000 + 101]
    processor.idle(0, 5_000)
    assert len(partition.answers) == 1


def test_a_window_has_one_spelled() -> None:
    model = EmittingWindowModel(lambda _: None)
    x = np.arange(6, dtype=np.float32).reshape(1, 6, 1)
    [p], _ = model.run(x, np.array([6]), [])
    window = ClosedWindow(b"s", 0, 10, Closed.END, 0, x[0], np.arange(6), np.arange(6) * 10)
    text = spelled(CTC, p[0])
    document = json.loads(Encoder(model.contract, "m").window(window, [p[0]], None, text))
    labels, steps, score = text
    assert document["text"] == "".join(LABELS[label] for label in labels)
    assert [each["ts"] for each in document["symbols"]] == [10 * step for step in steps]
    assert document["score"] == float(f"{score:.9g}")
    assert document["final"]
    assert "p" not in document
    assert not Encoder(model.contract, "m").per_event, "a transcript cannot be written in slices"


def test_the_library_gives_the_numbers_themselves() -> None:
    """Arrays in, arrays out: whoever has the rows at hand collapses them as they like."""
    answered = Runner(EmittingChain()).feed(["s", "s"], [[1.0], [2.0]])  # type: ignore[arg-type]
    assert answered.y.shape == (2, len(LABELS))
