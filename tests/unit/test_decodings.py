"""Sequences about closed windows, in the processor: bounds, refusals, order, and what a restart makes of what was open."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from durable import Changelog, begin, encoded, make_processor, settle
from simulated import ChainModel
from windowing import FoldModel, timed
from writing import UNWRITABLE, WritingModel, write

from streamer.core import PASSED_HEADER, Epoch, Op
from streamer.engine.processor import Processor
from streamer.records.changelog import Kind
from streamer.windows import WindowRule
from streamer.words import Reason

RULE = WindowRule("count", count=2)


def make(model: Any = None, *, fresh: bool = True, **decode: Any) -> Processor:
    processor = make_processor([("writer", model or WritingModel(), RULE)], decode=decode, max_poll_records=64)
    if fresh:
        begin(processor)
    return processor


def feed(processor: Processor, *windows: tuple[str, list[float]], first: int = 0) -> None:
    rows = [(stream, value) for stream, values in windows for value in values]
    settle(processor, timed([(first + at, stream, first + at, value) for at, (stream, value) in enumerate(rows)]))


def finish(processor: Processor) -> int:
    """How many steps it took."""
    steps = 0
    while processor.rolling:
        processor.roll()
        steps += 1
    return steps


def seal(processor: Processor, changelog: Changelog | None = None) -> Epoch:
    epoch = processor.seal(0)
    assert epoch is not None
    if changelog is not None:
        changelog.commit(epoch)
    processor.committed(epoch, {})
    return epoch


def told(processor: Processor, epoch: Epoch) -> list[dict[str, Any]]:
    return [msgspec.json.decode(value) for out in encoded(processor, epoch) for value in out.values]


def test_an_answer_says_what_was_written_about_which_window() -> None:
    processor = make()
    feed(processor, ("a", [1.0, 2.0]))
    finish(processor)
    symbols, score, truncated = write([1.0, 2.0])
    [answer] = told(processor, seal(processor))
    labels = ["<>abc"[symbol] for symbol in symbols]
    assert answer == {
        "stream": "a",
        "ts": 1,
        "y": symbols,
        "label": labels,
        "text": "".join(labels),
        "score": score,
        "truncated": truncated,
        "window": {"start": 0, "end": 1, "count": 2, "reason": "count", "part": 0, "offsets": [0, 1]},
        "model": "writer@1",
    }


def test_many_windows_share_a_call_and_no_call_has_more_rows_than_allowed() -> None:
    model = WritingModel()
    processor = make(model, max_rows=4)
    feed(processor, *((f"s{number}", [float(number), 3.0]) for number in range(11)))
    steps = finish(processor)
    assert len(told(processor, seal(processor))) == 11
    assert max(model.decoder.calls) == 4
    assert len(model.decoder.calls) == steps, "one call to a turn"
    assert max(rows for rows, _ in model.calls) <= 4


def test_memory_is_bounded_and_a_window_that_never_fits_is_refused() -> None:
    model = WritingModel()
    processor = make_processor(
        [("writer", model, WindowRule("end"))], decode={"max_memory_bytes": 64}, max_poll_records=64
    )
    begin(processor)
    rows: list[Any] = []
    for stream, count in (("a", 3), ("b", 16), ("c", 4), ("d", 5)):
        rows += [(len(rows) + at, stream, at, 1.0) for at in range(count)]
        rows.append((len(rows), stream, 0, Op.END))
    settle(processor, timed(rows))
    finish(processor)
    epoch = seal(processor)
    assert {each["stream"] for each in told(processor, epoch)} == {"a", "c", "d"}
    [reject] = epoch.rejects
    assert (reject.reason, reject.key) == (Reason.MODEL_REFUSED, b"b")
    assert "decode.max_memory_bytes" in reject.detail
    assert max(model.decoder.calls) <= 3


def test_what_cannot_be_written_about_is_refused_and_its_neighbours_are_not() -> None:
    processor = make()
    feed(processor, ("a", [1.0, 2.0]), ("b", [UNWRITABLE, 1.0]), ("c", [13.0, 1.0]), ("d", [4.0, 2.0]))
    finish(processor)
    epoch = seal(processor)
    assert {each["stream"]: each["y"] for each in told(processor, epoch)} == {
        "a": write([1.0, 2.0])[0],
        "d": write([4.0, 2.0])[0],
    }
    details = {reject.key: reject.detail for reject in epoch.rejects}
    assert "nobody can write about that" in details[b"b"], "by the decoder"
    assert "poisoned" in details[b"c"], "by the encoder"
    assert "offsets 2 to 3" in details[b"b"]


def test_answers_of_a_stream_keep_the_order_of_its_windows() -> None:
    lengths = {(x, y): len(write([x, y])[0]) for x in map(float, range(8)) for y in map(float, range(8))}
    slow, quick = max(lengths, key=lengths.__getitem__), min(lengths, key=lengths.__getitem__)
    assert lengths[slow] > lengths[quick]
    processor = make()
    feed(processor, ("a", list(slow)), ("a", list(quick)), ("b", list(quick)))
    for _ in range(lengths[quick] + 1):
        processor.roll()
    assert [each["stream"] for each in told(processor, seal(processor))] == ["b"], "a's second waits for its first"
    finish(processor)
    assert [each["window"]["part"] for each in told(processor, seal(processor))] == [0, 2]


def test_input_waits_while_too_many_windows_are_open() -> None:
    processor = make(max_open=3)
    assert processor.room == 3
    feed(processor, ("a", [1.0, 2.0]), ("b", [1.0, 2.0]))
    assert processor.room == 1
    feed(processor, ("c", [1.0, 2.0]), ("d", [1.0, 2.0]), first=10)
    assert processor.room == 0
    finish(processor)
    assert processor.room == 3


def test_what_is_open_holds_the_replay_point_and_is_written_by_the_next_process() -> None:
    changelog, first = Changelog(), make()
    feed(first, ("a", [1.0, 2.0]), ("b", [3.0, 4.0]), ("c", [5.0]))
    first.roll()
    epoch = seal(first, changelog)
    assert not epoch.answers
    assert changelog.count(Kind.DECODING) == 2
    assert changelog.progress is not None
    assert (changelog.progress.position, changelog.progress.replay_point) == (5, 0)

    second = make(fresh=False)
    partition = changelog.recover(second, random.Random(1))
    assert partition.next_offset == 0
    second.roll()
    assert partition.replaying
    assert not second.rolling, "what is replayed could not be committed yet"
    feed(second, ("a", [1.0, 2.0]), ("b", [3.0, 4.0]), ("c", [5.0, 6.0]))
    finish(second)
    answers = {each["stream"]: each["y"] for each in told(second, seal(second, changelog))}
    assert answers == {"a": write([1.0, 2.0])[0], "b": write([3.0, 4.0])[0], "c": write([5.0, 6.0])[0]}
    assert changelog.count(Kind.DECODING) == 0


def test_what_answers_carry_of_a_record_is_read_from_it_again() -> None:
    changelog, first = Changelog(), make()
    rows = timed([(0, "a", 0, 1.0), (1, "a", 1, 2.0)])
    rows.headers[1] = [("traceparent", b"00-1"), (PASSED_HEADER, b'["before"]')]
    settle(first, rows)
    seal(first, changelog)
    second = make(fresh=False)
    changelog.recover(second, random.Random(1))
    again = timed([(0, "a", 0, 1.0), (1, "a", 1, 2.0)])
    again.headers[1] = [("traceparent", b"00-1"), (PASSED_HEADER, b'["after", 7]')]  # by other settings
    settle(second, again)
    finish(second)
    [answers] = seal(second, changelog).answers
    assert answers.headers == {0: again.headers[1]}
    kept = [value for key, value in changelog.records if key[0] == Kind.DECODING and value]
    assert kept
    assert all(PASSED_HEADER.encode() not in value for value in kept)
    assert all(b"traceparent" in value for value in kept)


def test_events_that_are_gone_from_the_log_are_told() -> None:
    changelog, first = Changelog(), make()
    feed(first, ("a", [1.0, 2.0]))
    seal(first, changelog)
    second = make(fresh=False)
    changelog.recover(second, random.Random(1))
    settle(second, timed([(1, "a", 1, 2.0)]))
    settle(second, timed([(5, "b", 5, 2.0)]))
    finish(second)
    [reject] = seal(second, changelog).rejects
    assert (reject.key, reject.offset) == (b"a", 1)
    assert "1 of its events are not in the log any more" in reject.detail
    assert changelog.count(Kind.DECODING) == 0


def test_a_model_that_does_not_write_any_more_refuses_what_was_open() -> None:
    changelog, first = Changelog(), make()
    feed(first, ("a", [1.0, 2.0]))
    seal(first, changelog)
    for models in ([("writer", FoldModel(), RULE)], [("chain", ChainModel(), None)], [("w", WritingModel(), RULE)]):
        second: Processor = make_processor(models, model_changed="reset", max_poll_records=64)  # type: ignore[arg-type]
        copy = Changelog()
        copy.records = list(changelog.records)
        copy.recover(second, random.Random(1))
        feed(second, ("a", [1.0, 2.0]))
        finish(second)
        [reject] = seal(second, copy).rejects
        assert (reject.key, reject.reason) == (b"a", Reason.MODEL_REFUSED)
        assert "does not write any more" in reject.detail
        assert copy.count(Kind.DECODING) == 0


def test_a_partition_that_is_given_up_leaves_nothing() -> None:
    processor = make()
    feed(processor, *((f"s{number}", [float(number), 3.0]) for number in range(5)))
    processor.roll()
    decoder = processor.lanes.decoder
    assert decoder is not None
    processor.drop(0)
    assert (decoder.open, len(decoder._searches), len(decoder._under_way)) == (0, 0, 0)
    assert not processor.rolling


def test_without_a_changelog_the_position_waits() -> None:
    processor = make_processor([("writer", WritingModel(), RULE)], mode="ephemeral", max_poll_records=64)
    begin(processor)
    feed(processor, ("b", [1.0]), ("a", [1.0, 2.0]))
    epoch = seal(processor)
    assert epoch.positions == {0: 1}
    finish(processor)
    epoch = seal(processor)
    assert epoch.positions == {0: 3}
    assert len(epoch.answers) == 1


@pytest.mark.parametrize("rule", [RULE, WindowRule("session", gap_ms=10)])
def test_without_a_changelog_the_position_stays_where_first_events_of_a_window_were_passed(rule: WindowRule) -> None:
    """They were committed while the window was open; now it is written about, and the position does not go back."""
    processor = make_processor([("writer", WritingModel(), rule)], mode="ephemeral", max_poll_records=64)
    begin(processor)
    settle(processor, timed([(0, "a", 0, 1.0), (1, "c", 0, 5.0)]))
    assert seal(processor).positions == {0: 2}
    settle(processor, timed([(2, "a", 1, 2.0), (3, "c", 1, 2.0), (4, "b", 1_000, 1.0)]))
    positions, answers = [], []
    while processor.rolling:
        processor.roll()
        epoch = processor.seal(0)
        if epoch is not None:
            processor.committed(epoch, {})
            positions.append(epoch.positions[0])
            answers += told(processor, epoch)
    assert [answer["stream"] for answer in answers] in (["a", "c"], ["c", "a"])
    assert positions == sorted(positions)
    assert positions[-1] == 5


def test_without_a_changelog_time_alone_closes_a_window_whose_events_are_committed() -> None:
    rule = WindowRule("session", gap_ms=10)
    processor = make_processor([("writer", WritingModel(), rule)], mode="ephemeral", max_poll_records=64)
    begin(processor)
    settle(processor, timed([(0, "a", 0, 1.0)]))
    assert seal(processor).positions == {0: 1}
    processor.idle(0, 1_000)
    settle(processor)
    assert seal(processor).positions == {0: 1}, "told, and not yet answered"
    finish(processor)
    epoch = seal(processor)
    assert epoch.positions == {0: 1}
    assert len(told(processor, epoch)) == 1
