"""The processor in window mode: what a model call gets, what is published, and what is kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from durable import begin, encoded, make_processor, settle
from simulated import POISON, ChainModel
from windowing import FoldModel, Row, fold, timed

from streamer.core import Epoch, Op, RecordBatch
from streamer.engine.begin import Begin
from streamer.engine.checkpoint import ReplayPoint
from streamer.engine.partition import Phase
from streamer.engine.processor import Processor
from streamer.engine.tally import Tally
from streamer.engine.windowing import OpenWindows
from streamer.errors import ConfigurationError, ModelRunError
from streamer.records.changelog import NO_WATERMARK, decode_progress, progress_key
from streamer.records.decode import Codec
from streamer.windows import EachRecord, Traces, WindowRule
from streamer.words import Closed, Mode, Reason

END = WindowRule("end")


def make(rule: WindowRule = END, model: Any = None, *, replayed: int = 0, **limits: Any) -> Processor:
    """``replayed``: what lies below this offset was committed, and is replayed from the start."""
    limits = {"max_bytes": 1 << 16, "max_poll_records": 64, **limits}
    processor = make_processor([("fold", model or FoldModel(), rule)], **limits)
    if replayed:
        processor.open(0).begin(Begin(replayed, ReplayPoint(0, NO_WATERMARK), []))
    else:
        begin(processor)
    return processor


def feed(processor: Processor, *rows: Row) -> None:
    settle(processor, timed(rows))


def idle(processor: Processor, elapsed_ms: int) -> None:
    processor.idle(0, elapsed_ms)
    settle(processor)


def windows_of(processor: Processor) -> OpenWindows:
    windows = processor.partitions[0].windows
    assert windows is not None
    return windows


def seal(processor: Processor, now_ms: int = 0) -> Epoch:
    epoch = processor.seal(now_ms)
    assert epoch is not None
    processor.committed(epoch, {})
    return epoch


def predictions(processor: Processor) -> list[dict[str, Any]]:
    return read(processor, seal(processor))


def read(processor: Processor, epoch: Epoch) -> list[dict[str, Any]]:
    return [msgspec.json.decode(value) for out in encoded(processor, epoch) for value in out.values]


def value(offset: int) -> float:
    return offset + 20.0


def chain(*offsets: int) -> float:
    return fold(map(value, offsets))


def sequence(stream: str, length: int, first: int) -> list[Row]:
    events: list[Row] = [(first + at, stream, 100 + at, value(first + at)) for at in range(length)]
    return [*events, (first + length, stream, 0, Op.END)]


def test_a_closed_window_is_predicted_from_the_initial_state() -> None:
    processor = make()
    feed(processor, *sequence("a", 3, 0), *sequence("a", 2, 4))
    first, second = predictions(processor)
    assert first == {
        "stream": "a",
        "ts": 102,
        "y": chain(0, 1, 2),
        "window": {"start": 100, "end": 102, "count": 3, "reason": "end", "part": 0, "offsets": [0, 2]},
        "model": "fold@1",
    }
    assert second["y"] == chain(4, 5)


def test_one_answer_per_event_where_the_model_gives_one() -> None:
    processor = make(model=FoldModel(per="event"))
    feed(processor, *sequence("a", 1, 0), *sequence("b", 3, 2))
    found = {each["stream"]: each["y"] for each in predictions(processor)}
    assert found == {"a": [chain(0)], "b": [chain(2), chain(2, 3), chain(2, 3, 4)]}


def test_calls_are_bounded_in_rows_and_cells_and_padded_little() -> None:
    model = FoldModel()
    processor = make(model=model, max_rows=4, max_window_cells=24, max_poll_records=512)
    rows: list[Row] = []
    for stream, length in enumerate([1, 9, 30, 2, 8, 1, 1, 1, 1, 9]):
        rows += sequence(f"s{stream}", length, len(rows))
    feed(processor, *rows)
    assert len(predictions(processor)) == 10
    assert sum(count for count, _ in model.calls) == 10
    assert all(count <= 4 and (count * steps <= 24 or count == 1) for count, steps in model.calls)


def test_a_model_without_lengths_gets_windows_of_one_length_only() -> None:
    model = FoldModel()
    model.ragged = False
    processor = make(model=model, max_poll_records=512)
    rows: list[Row] = []
    for stream, length in enumerate([3, 2, 3, 2, 5]):
        rows += sequence(f"s{stream}", length, len(rows))
    feed(processor, *rows)
    assert sorted(model.calls) == [(1, 5), (2, 2), (2, 3)]


def test_a_poisoned_window_is_dead_lettered_alone() -> None:
    processor = make()
    rows = [*sequence("a", 3, 0), *sequence("b", 2, 4), *sequence("c", 1, 7)]
    rows[5] = (5, "b", 101, POISON)
    feed(processor, *rows)
    epoch = seal(processor)
    assert {each["stream"] for each in read(processor, epoch)} == {"a", "c"}
    (reject,) = epoch.rejects
    assert epoch.report.rejects == {Reason.MODEL_REFUSED: 1}
    assert (reject.offset, reject.reason, reject.key) == (5, "model_refused", b"b")
    assert "window 100 to 101 ms, offsets 4 to 5" in reject.detail


def test_predictions_of_a_stream_come_in_the_order_of_their_ends() -> None:
    processor = make(WindowRule("session", gap_ms=5, disorder_ms=20))
    feed(processor, (0, "a", 30, 1.0), (1, "a", 20, 1.0), (2, "a", 10, 1.0), (3, "b", 100, 1.0))
    assert [each["window"]["end"] for each in predictions(processor)] == [15, 25, 35]


def test_the_record_of_a_prediction_is_stamped_with_the_moment_of_closing() -> None:
    """A window's end may lie days ahead of what the broker accepts as a timestamp."""
    processor = make(WindowRule("tumbling", size_ms=10**9, max_events=2))
    feed(processor, (0, "a", 1, 1.0), (1, "a", 2, 1.0), (2, "a", 3, 1.0))
    (out,) = encoded(processor, seal(processor))
    assert (out.timestamps_ms, out.sources, out.mode) == ([10_001], [1], Mode.WINDOW)
    idle(processor, 10**9 + 7)
    (out,) = encoded(processor, seal(processor))
    assert (out.timestamps_ms, out.sources) == ([10_002 + 10**9 + 7], [2])


def test_short_windows_are_counted() -> None:
    processor = make(WindowRule("end", min_events=2))
    feed(processor, *sequence("a", 1, 0), *sequence("b", 2, 2))
    epoch = seal(processor)
    assert [each["stream"] for each in read(processor, epoch)] == ["b"]
    assert (epoch.report.closed, epoch.report.short) == ({Closed.END: 1}, 1)


def test_late_events_are_counted_and_dead_lettered_if_asked() -> None:
    rule = WindowRule("hopping", size_ms=10, hop_ms=5)
    rows: list[Row] = [(0, "a", 12, 1.0), (1, "a", 3, 1.0), (2, "a", 8, 1.0)]
    quiet, loud = make(rule), make(rule, late="dead-letter")
    for processor in (quiet, loud):
        feed(processor, *rows)
    told, epoch = seal(quiet), seal(loud)
    assert told.report.late == epoch.report.late == 3, "once per window"
    assert not told.rejects
    assert not told.report.rejects
    assert [(reject.offset, reject.reason) for reject in epoch.rejects] == [(1, "late"), (2, "late")]
    assert epoch.report.rejects == {Reason.LATE: 2}


def test_idleness_before_any_event_and_in_replay_does_nothing() -> None:
    processor = make(WindowRule("tumbling", size_ms=10))
    assert seal(processor).positions == {0: 0}, "only its start"
    idle(processor, 10**9)
    assert processor.seal(0) is None
    replaying = make(WindowRule("tumbling", size_ms=10), replayed=2)
    feed(replaying, (0, "a", 5, 1.0))
    idle(replaying, 10**9)
    assert windows_of(replaying).windows.open_windows == 1


def test_a_replay_that_ends_in_rejects_is_over() -> None:
    """Idle time closes windows afterwards, and what it closes is published."""
    processor = make(WindowRule("tumbling", size_ms=10), replayed=4)
    feed(processor, (0, "a", 5, 7.0))
    settle(processor, timed([], rejects=[2, 3]))
    assert not windows_of(processor).windows.replaying
    assert processor.partitions[0].phase is Phase.LIVE
    idle(processor, 50)
    assert [each["y"] for each in predictions(processor)] == [fold([7.0])]


def test_an_epoch_keeps_the_replay_point_at_the_oldest_open_window() -> None:
    processor = make(WindowRule("session", gap_ms=50), checkpoint_interval_ms=0)
    feed(processor, (0, "a", 1, 1.0), (1, "b", 40, 1.0), (2, "a", 45, 1.0))

    def progress(epoch: Epoch) -> tuple[int, int, int]:
        found = decode_progress(dict(epoch.changelog[0].records)[progress_key()] or b"")
        return found.position, found.replay_point, found.watermark

    assert progress(seal(processor))[:2] == (3, 0)
    feed(processor, (3, "c", 94, 1.0))  # closes b, whose last event was at 40
    assert progress(seal(processor))[:2] == (4, 0)
    feed(processor, (4, "c", 95, 1.0))  # closes a
    assert progress(seal(processor)) == (5, 3, 45)


def test_a_step_model_beside_it_answers_each_event_at_once() -> None:
    models: list[Any] = [("chain", ChainModel(), None), ("fold", FoldModel(), END)]
    processor = make_processor(models, max_bytes=1 << 16, max_poll_records=64)
    begin(processor)
    feed(processor, *sequence("a", 3, 0)[:3])
    early = predictions(processor)
    assert [each["model"] for each in early] == ["chain@1"] * 3
    feed(processor, sequence("a", 3, 0)[3])
    (final,) = predictions(processor)
    assert final["model"] == "fold@1"
    assert final["y"] == early[-1]["y"], "the same chain over the same events"
    assert final["window"]["offsets"] == [0, 2]


def test_without_a_changelog_nothing_is_kept_for_a_replay() -> None:
    processor = make(WindowRule("tumbling", size_ms=10, max_events=2), mode="ephemeral")
    for offset in range(0, 40, 2):
        feed(processor, (offset, "a", offset * 10, 1.0), (offset + 1, "a", offset * 10, 1.0))
        idle(processor, 1)
        assert not seal(processor).changelog
    windows = windows_of(processor)
    assert not windows.idle
    assert not windows.fresh_idle
    assert not windows.fresh_through
    assert not windows.through


def test_window_models_need_a_rule_and_only_one_may_have_one() -> None:
    with pytest.raises(ConfigurationError, match="looks ahead"):
        make_processor([("fold", FoldModel(), None)])
    with pytest.raises(ConfigurationError, match="only one"):
        make_processor([("one", FoldModel(), END), ("two", FoldModel(), END)])


# event times that do not behave


def decoded(codec: Codec, *rows: tuple[int | None, Any]) -> Any:
    """Rows (ts in the value, or raw bytes) of records stamped 10,000 ms."""
    values = [raw if isinstance(raw, bytes) else msgspec.json.encode({"x": [1.0], "ts": raw}) for _, raw in rows]
    count = len(rows)
    return codec.decode(RecordBatch(0, list(range(count)), [10_000] * count, [b"a"] * count, values))


def test_a_far_future_event_is_rejected_and_moves_no_watermark() -> None:
    codec = Codec(FoldModel().contract, "json", max_future_ms=1_000, min_time_ms=0)
    batch = decoded(codec, (None, 10_000), (None, 11_001), (None, 11_000), (None, 10**17), (None, 253_402_300_799_001))
    assert [(reject.offset, reject.reason) for reject in batch.rejects] == [
        (1, "bad_time"),
        (3, "bad_time"),
        (4, "bad_time"),
    ]
    processor = make(WindowRule("session", gap_ms=5_000))
    settle(processor, batch)
    assert windows_of(processor).windows.watermark == 11_000
    assert len(seal(processor).rejects) == 3


def test_events_without_a_time_take_the_records() -> None:
    codec = Codec(FoldModel().contract, "json", min_time_ms=0)
    batch = decoded(codec, (None, b'{"x":[1]}'), (None, None), (None, b'{"x":[1],"ts":0}'))
    assert batch.times_ms.tolist() == [10_000, 10_000, 0], "0 is a time like any other"


@pytest.mark.parametrize("ts", [b"-5", b'"soon"', b"true", b"1e400", b"[1]"])
def test_a_time_that_is_none_is_rejected(ts: bytes) -> None:
    codec = Codec(FoldModel().contract, "json", min_time_ms=0)
    batch = decoded(codec, (None, b'{"x":[1],"ts":' + ts + b"}"), (None, 10_000))
    assert len(batch) == 1
    assert [reject.offset for reject in batch.rejects] == [0]


def test_x_is_untouched_by_the_order_of_arrival() -> None:
    processor = make(WindowRule("count", count=3))
    feed(processor, (0, "a", 9, 1.0), (1, "a", 3, 2.0), (2, "a", 6, 3.0))
    (found,) = predictions(processor)
    assert found["y"] == fold([2.0, 3.0, 1.0])
    assert np.isfinite(found["y"])


def test_a_window_carries_the_trace_of_the_record_that_it_names_as_its_source() -> None:
    processor = make()
    rows: list[Row] = [*sequence("a", 3, 0), *sequence("b", 2, 4), *sequence("c", 2, 7)]
    rows[5] = (5, "b", 102, POISON)
    batch = timed(rows)
    # of "a" the last event in the log, of "b" too, of "c" another one; a command's own is nobody's
    batch.headers = {row: (("traceparent", b"%d" % row),) for row in (0, 2, 3, 5, 7)}
    settle(processor, batch)
    epoch = seal(processor)
    (out,) = encoded(processor, epoch)
    assert (out.keys, out.sources) == ([b"a", b"c"], [2, 8])
    assert out.headers == {0: (("traceparent", b"2"),)}
    (reject,) = epoch.rejects
    assert (reject.offset, reject.headers) == (5, (("traceparent", b"5"),))
    assert not windows_of(processor)._traces, "nothing is kept of windows that are closed"


def test_traces_of_open_windows_are_kept_and_rebuilt_by_a_replay() -> None:
    rule = WindowRule("session", gap_ms=100)
    batch = timed([(0, "a", 100, 1.0), (1, "b", 120, 1.0), (2, "a", 150, 1.0), (3, "b", 1_000, 1.0)])
    batch.headers = {row: (("traceparent", b"%d" % row),) for row in range(4)}

    def answers(processor: Processor) -> list[tuple[int, Any]]:
        (out,) = encoded(processor, seal(processor))
        return sorted((source, dict(out.headers[row])["traceparent"]) for row, source in enumerate(out.sources))

    whole = make(rule)
    settle(whole, batch)
    assert answers(whole) == [(1, b"1"), (2, b"2")]
    assert len(windows_of(whole)._traces) == 1, "of the session that is open"

    restarted = make(rule, replayed=3)  # the first three are replayed
    settle(restarted, batch)
    assert answers(restarted) == [(1, b"1"), (2, b"2")]


def test_traces_are_bounded() -> None:
    traces = Traces()
    count = 70_000
    for first in range(0, count, 10_000):
        offsets = np.arange(first, first + 10_000)
        traces.note(offsets, dict.fromkeys(range(10000), (("traceparent", b"x"),)))
        traces.bound()
    assert len(traces) == 65_536
    assert not traces.of(0)
    assert traces.of(count - 1)
    traces.drop_before(count - 10)
    assert len(traces) == 10
    traces.drop_before(None)
    assert not len(traces)


def test_the_length_multiple_that_a_probe_learned_reaches_the_windows() -> None:
    """Windows of a model that takes even lengths only lose their oldest event, and none is refused."""

    class Even(FoldModel):
        def run(self, x: Any, lengths: Any, states: Any) -> Any:
            if (lengths % 2).any():
                raise ModelRunError("odd")
            return super().run(x, lengths, states)

    model = Even()
    model.length_multiple = 2
    processor = make(model=model)
    feed(processor, *sequence("a", 5, 0), *sequence("b", 4, 6), *sequence("c", 1, 11))
    epoch = seal(processor)
    assert {each["stream"]: each["y"] for each in read(processor, epoch)} == {
        "a": chain(1, 2, 3, 4),
        "b": chain(6, 7, 8, 9),
    }
    assert not epoch.rejects
    assert (epoch.report.trimmed, epoch.report.short, epoch.report.closed) == (1, 1, {Closed.END: 2})


def test_every_reject_of_the_processor_and_of_the_codec_is_reported() -> None:
    models: list[Any] = [("chain", ChainModel(), None), ("fold", FoldModel(), WindowRule("tumbling", size_ms=10))]
    processor = make_processor(models, late="dead-letter", max_poll_records=64)
    begin(processor)
    rows: list[Row] = [(0, "a", 5, POISON), (1, "a", 25, 1.0), (2, "a", 5, 2.0), (4, "a", 6, 3.0)]
    settle(processor, timed(rows, rejects=[3, 5]))
    epoch = seal(processor)
    # by the step model, and by the window model with the window
    assert epoch.report.rejects == {Reason.MODEL_REFUSED: 2, Reason.LATE: 2, Reason.UNDECODABLE: 2}
    assert sorted(reject.offset for reject in epoch.rejects) == [0, 0, 2, 3, 4, 5]
    assert epoch.report.records == 6
    feed(processor, (6, "a", 26, 4.0))
    assert not seal(processor).report.rejects, "each epoch tells its own"


def test_each_record_of_a_large_fetch_keeps_what_goes_with_it() -> None:
    count, rule = 70_000, WindowRule("record")
    opened = OpenWindows(EachRecord(rule), {}, [])
    batch = replace(
        timed([(0, "s", 0, 1.0)]), offsets=np.arange(count), times_ms=np.zeros(count, np.int64), timestamps_ms=[0] * count,
        keys=[b"s"] * count, x=np.zeros((count, 1), np.float32), next_offset=count,
        headers={row: (("traceparent", b"%d" % row),) for row in range(count)},
    )  # fmt: skip
    closed, _ = opened.take(batch, 0, Tally())
    assert [each.headers for each in closed] == list(batch.headers.values())
    assert not opened._traces
