"""What is logged and what the status says, over a clock that the test moves: a line per round, rebalance, recovery and
error, a summary every minute, none per event."""

from __future__ import annotations

import json
import logging
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import structlog
from durable import begin, encoded, make_processor, settle
from simulated import ChainModel

from streamer.core import Epoch, EventBatch, Outgoing, RecordBatch, Reject, Report, Source
from streamer.engine.partition import Partition, Phase
from streamer.errors import ConfigurationError, FencedError, KafkaSilentError, KafkaUnavailableError
from streamer.observe.logs import Repeats, configure_logs, rounded
from streamer.observe.telemetry import Telemetry
from streamer.observe.view import Member, PartitionView, Siblings, View
from streamer.service.clock import Times
from streamer.service.takeover import RestoreProgress
from streamer.words import Outcome, Reason


class Watch:
    """A clock in seconds."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


class Bench:
    """A telemetry, and the parts of a service that it looks at: a real processor, and a log whose end is told."""

    def __init__(self, partitions: int = 2) -> None:
        self.watch = Watch()
        self.telemetry = Telemetry([("chain", "1", "ab" * 32)], "0", monotonic=self.watch, wall=self.watch)
        self.processor = make_processor([("chain", ChainModel(), None)], checkpoint_interval_ms=10_000)
        self.heard_s = self.watch.now_s
        self.ends: dict[int, int] = {}
        self.blocked_s = 0.0
        self.ready = True
        self.newest_s = 0.0
        self.clock_ahead_ms: int | None = None
        self.other_machines: dict[int, str] = {}
        self.telemetry.assigned(list(range(partitions)))
        for partition in range(partitions):
            begin(self.processor, partition)
        self.telemetry.recovered(list(range(partitions)), [], 0.5)
        self.pass_time(0.25)

    def pass_time(self, seconds: float, *, heard: bool = True) -> None:
        """The loop turns and its timer beats, four times a second."""
        for _ in range(round(seconds * 4)):
            self.watch.now_s += 0.25
            if heard:
                self.heard_s = self.watch.now_s
            self.telemetry.tick(self.look)
            self.telemetry.beat(0.0)

    def look(self) -> View:
        partitions = {number: self.view(number, each) for number, each in self.processor.partitions.items()}
        used = self.processor.lanes.slots.used
        return View(
            self.ready,
            False,
            "in",
            6,
            partitions,
            pending_events=self.processor.open_events,
            streams=used,
            clock_ahead_ms=self.clock_ahead_ms,
            other_machines=self.other_machines,
        )

    def view(self, number: int, partition: Partition, **other: Any) -> PartitionView:
        known: dict[str, Any] = {
            "phase": partition.phase,
            "position": partition.position,
            "next_offset": partition.next_offset,
            "live_from": partition.live_from,
            "replay_point": partition.checkpoint.replay_point.offset,
            "checkpointed": partition.checkpoint.complete.offset,
            "round_open": partition.checkpoint.open,
            "log_end": self.ends.get(number),
            "confirmed_s": self.heard_s,
            "blocked_s": self.blocked_s,
            "newest_s": self.newest_s,
        }
        return PartitionView(**{**known, **other})

    def drop(self, *numbers: int) -> None:
        for number in numbers or list(self.processor.partitions):
            self.processor.drop(number)

    def events(self, count: int, *, commit: bool = True) -> None:
        """``count`` events on every partition, through to the commit."""
        for partition, each in self.processor.partitions.items():
            first, stamp = each.next_offset, int(self.watch.now_s * 1000)
            offsets = list(range(first, first + count))
            keys = [b"s%d" % (offset % 5) for offset in offsets]
            records = RecordBatch(partition, offsets, [stamp] * count, list(keys), [b""] * count)
            times = np.full(count, stamp, np.int64)
            x = np.ones((count, 1), np.float32)
            stamps = [stamp] * count
            settle(
                self.processor,
                EventBatch(partition, np.array(offsets), times, stamps, keys, x, None, records, first + count),
            )
        if not commit:
            return
        self.telemetry.ran([0.001])
        epoch = self.processor.seal(int(self.watch.now_s * 1000))
        assert epoch is not None
        self.processor.committed(epoch, {})
        self.telemetry.committed(Outcome.COMMITTED, epoch, Times(commit=0.01), 1_000)
        self.telemetry.published(encoded(self.processor, epoch), int(self.watch.now_s * 1000) + 12)


def named(lines: list[Any], event: str) -> list[Any]:
    return [line for line in lines if line["event"] == event]


def test_a_summary_every_minute_and_no_line_per_event() -> None:
    bench = Bench()
    with structlog.testing.capture_logs() as lines:
        for _ in range(5 * 60):
            bench.events(20)
            bench.pass_time(1)
    summaries = named(lines, "summary")
    assert len(summaries) == 5
    assert [(line["health"], line["predictions"], line["per_second"]) for line in summaries] == [
        ("live", 2_400, 40.0)
    ] * 5
    assert summaries[0]["streams_resident"] == 10
    assert 0.01 < summaries[0]["latency_s"]["step"]["p50"] <= 0.02
    assert len(named(lines, "checkpoint")) == 30
    assert len(lines) == 35


def test_a_round_is_one_line_however_many_partitions_it_covers() -> None:
    bench = Bench(partitions=3)
    bench.pass_time(1)
    with structlog.testing.capture_logs() as lines:
        bench.events(4)
        bench.pass_time(11)
        bench.events(4)
        bench.pass_time(1)
    (line,) = named(lines, "checkpoint")[-1:]
    assert line["partitions"] == [0, 1, 2]
    assert line["bytes"] > 0
    assert line["longest_replay_records"] <= 8


def test_a_round_is_told_when_its_partitions_have_gone_meanwhile() -> None:
    """Seen with a broker that went away: one partition's round had ended, then all of them were given up."""
    bench = Bench()
    bench.events(4)
    bench.pass_time(1)
    one, other = (bench.view(number, each) for number, each in bench.processor.partitions.items())
    seen = {0: replace(one, checkpointed=one.checkpointed + 1), 1: replace(other, round_open=True)}
    bench.look = lambda: View(True, False, "in", 6, seen)  # type: ignore[method-assign]
    with structlog.testing.capture_logs() as lines:
        bench.pass_time(1)
        assert named(lines, "checkpoint") == []
        seen.clear()
        bench.pass_time(1)
    (line,) = named(lines, "checkpoint")
    assert (line["partitions"], line["longest_replay_records"]) == ([0], 0)


def test_rebalance_and_recovery_are_a_line_each() -> None:
    bench = Bench()
    with structlog.testing.capture_logs() as lines:
        bench.telemetry.assigned([0, 3])
        bench.telemetry.restoring(3, RestoreProgress(begin=0, done=50, end=100, bytes_read=700))
        bench.telemetry.restoring(3, RestoreProgress(begin=0, done=100, end=100, bytes_read=1_400))
        bench.telemetry.recovered([3], [0], 1.25)
    assert [line["event"] for line in lines] == ["rebalance", "live"]
    assert lines[0]["partitions"] == [0, 3]
    assert {key: lines[1][key] for key in ("restored", "kept", "seconds", "changelog_bytes")} == {
        "restored": [3], "kept": [0], "seconds": 1.25, "changelog_bytes": 1_400,
    }  # fmt: skip


def test_an_error_that_repeats_is_counted_and_logged_once_a_minute() -> None:
    bench = Bench()
    with structlog.testing.capture_logs() as lines:
        for _ in range(300):
            bench.telemetry.failed(KafkaUnavailableError("no broker answers"))
            bench.watch.now_s += 0.5
        bench.telemetry.failed(FencedError("refused"))
    assert [(line["error"], line["times"]) for line in named(lines, "failed")] == [
        ("no broker answers", 1), ("no broker answers", 121), ("no broker answers", 241), ("refused", 1),
    ]  # fmt: skip
    errors = bench.telemetry.status()["errors"]
    assert [(error["text"], error["count"]) for error in errors] == [("no broker answers", 300), ("refused", 1)]
    assert [error["s_ago"] for error in errors] == [0.5, 0.0]


def test_errors_that_all_differ_stay_bounded() -> None:
    bench = Bench()
    for number in range(1_000):
        bench.telemetry.failed(FencedError(f"refused {number}"))
    assert len(bench.telemetry.status()["errors"]) == 20
    assert len(bench.telemetry.errors.logged) == 20


def test_a_restore_tells_how_far_it_is_and_how_long_it_takes() -> None:
    bench = Bench()
    bench.drop()
    bench.ready = False
    bench.telemetry.assigned([0, 1])
    assert bench.telemetry.status()["health"] == "restoring"
    assert bench.telemetry.status()["lag"] is None
    for done in (0, 150, 315):
        bench.telemetry.restoring(0, RestoreProgress(begin=0, done=done, end=500))
        bench.watch.now_s += 1
    found = bench.telemetry.status()["partitions"]
    assert found["0"]["share"] == pytest.approx(0.63)
    assert found["0"]["eta_s"] == pytest.approx(185 / (315 / 3)), (
        "315 records in 3 s until now, also if nothing comes now"
    )
    assert found["1"] == {"state": "waiting"}
    bench.telemetry.restoring(0, RestoreProgress(begin=0, done=500, end=500))
    assert bench.telemetry.status()["partitions"]["0"]["state"] == "restored"
    begin(bench.processor)
    bench.pass_time(1)
    found = bench.telemetry.status()
    assert found["health"] == "restoring", "one runs already, the other is still to come"
    assert [found["partitions"][name]["state"] for name in "01"] == ["live", "waiting"]
    assert found["lag"] is None
    assert found["restore"]["share"] == 0.5
    assert found["restore"]["eta_s"] == pytest.approx(4), "half of it took 4 s"


def test_a_replay_tells_how_far_it_is() -> None:
    bench = Bench(partitions=1)
    bench.ends[0] = 230
    (partition,) = bench.processor.partitions.values()
    for reached in (100, 125):
        replaying = bench.view(
            0, partition, phase=Phase.REPLAYING, position=200, next_offset=reached, live_from=200, replay_point=100
        )
        bench.look = lambda seen=replaying: View(True, False, "in", 6, {0: seen})  # type: ignore[method-assign, misc]
        bench.pass_time(1)
    status = bench.telemetry.status()
    assert status["health"] == "replaying"
    assert status["partitions"]["0"]["share"] == pytest.approx(0.25)
    assert status["partitions"]["0"]["eta_s"] == pytest.approx(75 / (25 / 1.5)), (
        "25 of 100 in the 1.5 s since it was first seen"
    )
    assert status["lag"] == 105


def test_kafka_that_does_not_answer_is_told_before_anything_fails() -> None:
    bench = Bench()
    bench.pass_time(5)
    assert bench.telemetry.status()["health"] == "live"
    bench.pass_time(11, heard=False)
    status = bench.telemetry.status()
    assert status["health"] == "outage"
    assert status["outage_s"] == pytest.approx(11, abs=0.3)
    assert status["lag"] is None
    assert [each["state"] for each in status["partitions"].values()] == ["outage", "outage"], "the table agrees"
    assert status["outage_cause"] is None
    assert bench.telemetry.unready() == f"Kafka cannot be used for {status['outage_s']} s: it does not answer"
    shown = bench.telemetry.metrics().decode()
    assert f"streamer_outage_seconds {status['outage_s']}" in shown
    assert "streamer_ready 0.0" in shown
    bench.pass_time(1)
    assert bench.telemetry.status()["health"] == "live"
    assert bench.telemetry.unready() is None
    assert "streamer_outage_seconds 0.0" in bench.telemetry.metrics().decode()


def test_what_kafka_answers_is_told_and_not_that_it_is_silent() -> None:
    bench = Bench()
    bench.telemetry.failed(KafkaUnavailableError("too few replicas are in sync"))
    assert bench.telemetry.status()["outage_cause"] == "too few replicas are in sync"
    assert (bench.telemetry.unready() or "").endswith("too few replicas are in sync")
    bench.telemetry.failed(KafkaSilentError("no broker answers"))
    assert bench.telemetry.status()["outage_cause"] is None, "the newest counts"


def test_what_ends_the_process_is_told_by_its_name() -> None:
    bench = Bench()
    bench.telemetry.failed(ConfigurationError("compressed with zstd"))
    status = bench.telemetry.status()
    assert (status["health"], status["ending"]) == ("ending", "compressed with zstd")
    assert {each["state"] for each in status["partitions"].values()} == {"ending"}
    assert bench.telemetry.unready() == "ending: compressed with zstd"


def test_a_take_over_that_is_tried_again_is_no_rebalance() -> None:
    bench = Bench()
    with structlog.testing.capture_logs() as lines:
        for _ in range(50):
            bench.telemetry.failed(KafkaUnavailableError("gone"))
            bench.telemetry.assigned([0, 1])
        bench.telemetry.assigned([0])
        bench.telemetry.recovered([0], [], 0.1)
        bench.telemetry.assigned([0])
    assert [line["partitions"] for line in named(lines, "rebalance")] == [[0], [0]]
    assert b"streamer_rebalances_total 3.0" in bench.telemetry.metrics()


def test_the_lag_in_seconds_is_how_long_the_oldest_record_can_have_waited() -> None:
    bench = Bench(partitions=1)

    def waits_s() -> float | None:
        return bench.telemetry.status()["lag_s"]

    bench.ends[0] = 10  # a backlog, and nothing is taken of it yet
    bench.pass_time(1)
    assert waits_s() is None
    assert b"streamer_partition_lag_seconds{" not in bench.telemetry.metrics()
    bench.newest_s = bench.watch.now_s - 3600
    bench.pass_time(1)
    assert waits_s() == pytest.approx(3601, abs=0.3)
    bench.events(10)
    bench.pass_time(1)
    assert waits_s() == 0, "nothing is left"
    bench.pass_time(7200)
    bench.ends[0] = 11
    bench.pass_time(1)
    assert waits_s() == pytest.approx(1, abs=0.6), (
        "after two hours without a record the first one has not waited for hours"
    )
    assert b'streamer_partition_lag_seconds{partition="0",topic="in"}' in bench.telemetry.metrics()


def test_partitions_are_counted_by_where_they_are() -> None:
    bench = Bench()

    def held() -> tuple[int, ...]:
        found = bench.telemetry.status()["partitions_held"]
        return tuple(found[name] for name in ("owned", "restoring", "elsewhere", "unowned"))

    assert held() == (2, 0, 4, 0), "as far as is known"
    others = [Member("b", "10.0.0.2", [2, 3]), Member("a", "10.0.0.1", [0, 1], here=True)]
    bench.telemetry.siblings(Siblings(others))
    assert held() == (2, 0, 2, 2)
    assert [each["name"] for each in bench.telemetry.status()["members"]] == ["a", "b"]
    assert b'streamer_partitions{state="unowned"} 2.0' in bench.telemetry.metrics()
    bench.telemetry.siblings(Siblings([], moving=True))
    assert held() == (2, 0, 0, 4)
    bench.telemetry.siblings(None)
    assert held() == (2, 0, 4, 0)
    bench.drop(1)
    bench.pass_time(1)
    assert held() == (1, 1, 4, 0)


def test_another_machine_before_us_is_told_once_and_shown() -> None:
    bench = Bench()
    bench.other_machines = {0: "x86_64 avx2; onnxruntime 1.20.0", 1: "x86_64 avx2; onnxruntime 1.20.0"}
    with structlog.testing.capture_logs() as lines:
        bench.pass_time(5)
    (line,) = named(lines, "another_machine")
    assert (line["before"], line["partitions"]) == ("x86_64 avx2; onnxruntime 1.20.0", [0, 1])
    assert bench.telemetry.status()["other_machines"]["1"] == "x86_64 avx2; onnxruntime 1.20.0"


def test_a_clock_that_is_known_to_be_apart_is_shown() -> None:
    bench = Bench()
    assert bench.telemetry.status()["clock_ahead_s"] is None
    assert "streamer_clock_ahead_seconds" not in bench.telemetry.metrics().decode()
    bench.clock_ahead_ms = -7_200_500
    bench.pass_time(1)
    assert bench.telemetry.status()["clock_ahead_s"] == -7200.5
    assert "streamer_clock_ahead_seconds -7200.5" in bench.telemetry.metrics().decode()


def rejecting(bench: Bench, detail: str, *, early: bool) -> None:
    """One record that is refused, through to the commit. ``early``: dead letters are sent before it, as at least once."""
    (partition,) = bench.processor.partitions.values()
    at = partition.next_offset
    batch = EventBatch.empty(0, at + 1, bench.processor.no_events)
    batch.records = RecordBatch(0, [at], [1], [b"k"], [b"{"])
    batch.rejects = [Reject(0, at, Reason.UNDECODABLE, detail, b"k", b"{", (), 1)]
    settle(bench.processor, batch)
    if early:
        assert len(bench.processor.results()[1]) == 1
    epoch = bench.processor.seal(int(bench.watch.now_s * 1000))
    assert epoch is not None
    bench.processor.committed(epoch, {})
    bench.telemetry.committed(Outcome.COMMITTED, epoch, Times(commit=0.01), 10)


@pytest.mark.parametrize("early", [False, True], ids=["exactly-once", "at-least-once"])
def test_rejects_are_an_example_per_reason_and_minute(early: bool) -> None:
    bench = Bench(partitions=1)
    with structlog.testing.capture_logs() as lines:
        for number in range(130):
            rejecting(bench, f"{number} " + "x" * 10_000, early=early)
            bench.pass_time(1)
        bench.pass_time(60)
    lines = named(lines, "rejected")
    assert [(line["reason"], line["count"], line["offset"]) for line in lines] == [
        ("undecodable", 1, 0), ("undecodable", 59, 59), ("undecodable", 60, 119), ("undecodable", 10, 129),
    ], "the first at once, then the newest; all are counted"  # fmt: skip
    assert all(len(line["detail"]) == 300 and line["partition"] == 0 for line in lines)


def test_each_reason_has_its_own_line() -> None:
    bench = Bench(partitions=1)
    found = {reason: Source(0, number, "why") for number, reason in enumerate(Reason)}
    report = Report(rejects=dict.fromkeys(Reason, 7), examples=found)
    with structlog.testing.capture_logs() as lines:
        bench.telemetry.committed(Outcome.FENCED, Epoch({0: 1}, [], [], [], report), Times(), 0)
        assert named(lines, "rejected") == [], "what failed comes again"
        bench.telemetry.committed(Outcome.COMMITTED, Epoch({0: 1}, [], [], [], report), Times(), 0)
    assert [(line["reason"], line["count"]) for line in named(lines, "rejected")] == [(str(each), 7) for each in Reason]


def test_an_open_transaction_of_somebody_else_is_told_once_and_when_it_is_over() -> None:
    bench = Bench(partitions=1)
    with structlog.testing.capture_logs() as lines:
        for bench.blocked_s in (1.0, 4.0, 6.0, 7.0, 0.0, 0.0):
            bench.pass_time(1)
    assert [line["event"] for line in lines] == ["blocked", "unblocked"]
    bench.blocked_s = 12.5
    bench.pass_time(1)
    assert bench.telemetry.status()["partitions"]["0"]["blocked_s"] == 12.5
    assert b'streamer_partition_blocked_seconds{partition="0",topic="in"} 12.5' in bench.telemetry.metrics()


def test_an_outage_ends_with_the_recovery() -> None:
    bench = Bench()
    bench.pass_time(1)
    bench.watch.now_s += 8
    bench.telemetry.failed(KafkaUnavailableError("gone"))
    assert bench.telemetry.status()["outage_s"] == 8, "it began when Kafka was last heard, not when a commit timed out"
    bench.events(3, commit=False)
    bench.drop()
    bench.ready = False
    bench.pass_time(3, heard=False)
    assert bench.telemetry.status()["health"] == "outage"
    assert bench.telemetry.status()["pending_events"] == 0
    bench.telemetry.assigned([0, 1])
    assert bench.telemetry.status()["health"] == "outage"
    for partition in range(2):
        begin(bench.processor, partition)
    bench.telemetry.recovered([0, 1], [], 0.1)
    bench.ready = True
    assert bench.telemetry.status()["health"] == "restoring", "what runs is shown when it was looked at"
    bench.pass_time(0.25)
    assert bench.telemetry.status()["health"] == "live"


def test_health_before_the_first_partitions_and_without_any() -> None:
    telemetry = Telemetry([], "0")
    assert telemetry.status()["health"] == "starting"
    telemetry.assigned([])
    telemetry.recovered([], [], 0.0)
    assert telemetry.status()["health"] == "waiting"
    telemetry.siblings(None, KafkaSilentError("no broker answers"))
    assert telemetry.status()["health"] == "outage", "who stands by fetches nothing, and hears of it all the same"
    assert telemetry.unready() is not None
    telemetry.siblings(Siblings([]))
    assert telemetry.status()["health"] == "waiting"


def test_a_failed_commit_is_a_line() -> None:
    bench = Bench()
    with structlog.testing.capture_logs() as lines:
        bench.telemetry.committed(Outcome.FENCED, Epoch({0: 3}, [], [], [], Report(events=3)), Times(), 0)
        bench.telemetry.published([Outgoing(0, [], [], [], [])], 0)
    assert [(line["event"], line["outcome"], line["events"]) for line in lines] == [("commit_not_done", "fenced", 3)]


def test_floats_are_logged_as_people_read_them() -> None:
    line = {"p": {"p50": 0.012345678, "p99": 12.3456789}, "list": [0.1 + 0.2, 3], "big": 1234567.8912, "none": None}
    assert rounded(line) == {"p": {"p50": 0.01235, "p99": 12.346}, "list": [0.3, 3], "big": 1234567.891, "none": None}


@pytest.fixture
def logs(capsys: pytest.CaptureFixture[str]):
    """Logs as ``streamer run`` sets them up; afterwards as they were."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level

    def lines(style: str) -> list[str]:
        configure_logs("info", style)
        structlog.stdlib.get_logger("streamer").info("summary", predictions=3, seconds=1 / 3)
        logging.getLogger("streamer").info("http on %s", "http://127.0.0.1:1")
        logging.getLogger("asyncio").error("first line\nsecond line")
        warnings.warn("overflow", RuntimeWarning, stacklevel=1)
        try:
            raise RuntimeError("broken")
        except RuntimeError:
            structlog.stdlib.get_logger("streamer").exception("crashed")
        return capsys.readouterr().err.splitlines()

    yield lines
    root.handlers[:], root.level = before, level
    logging.captureWarnings(False)
    structlog.reset_defaults()


def test_logs_are_one_json_object_per_line_where_no_terminal_reads_them(logs) -> None:
    documents = [json.loads(line) for line in logs("auto")]
    assert [document["event"] for document in documents] == [
        "summary", "http on http://127.0.0.1:1", "first line\nsecond line", documents[3]["event"], "crashed",
    ]  # fmt: skip
    assert "RuntimeWarning: overflow" in documents[3]["event"]
    assert [document["level"] for document in documents] == ["info", "info", "error", "warning", "error"]
    assert documents[0]["predictions"] == 3
    assert documents[0]["seconds"] == 0.3333
    assert "RuntimeError: broken" in documents[4]["exception"]
    assert all(document["timestamp"].endswith("Z") and document["logger"] for document in documents)


def test_a_terminal_gets_text(logs) -> None:
    first = logs("console")[0]
    assert "summary" in first
    with pytest.raises(ValueError, match=r"Expecting|Extra"):
        json.loads(first)


def test_what_the_kafka_client_repeats_is_said_once_a_minute() -> None:
    watch = Watch()
    repeats = Repeats(watch)

    def passes(name: str, text: str, *values: object) -> bool:
        return repeats.filter(logging.LogRecord(name, logging.ERROR, "", 0, text, values, None))

    assert passes("aiokafka.consumer.fetcher", "Failed fetch messages from %s: %s", 1, "gone")
    assert not passes("aiokafka.consumer.fetcher", "Failed fetch messages from %s: %s", 2, "gone")
    assert passes("aiokafka.consumer.fetcher", "other")
    assert passes("streamer", "ours")
    assert passes("streamer", "ours")
    watch.now_s += 60
    assert passes("aiokafka.consumer.fetcher", "Failed fetch messages from %s: %s", 1, "gone")
