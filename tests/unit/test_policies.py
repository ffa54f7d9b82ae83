"""What is asked of topics, as a table: configurations in, sentences out."""

from __future__ import annotations

import re
from typing import Any

import pytest
from serving import make_settings

from streamer.kafka.clocks import OwnClock, told
from streamer.kafka.policies import (
    CHANGELOG,
    DEAD_LETTER,
    INPUT,
    OUTPUT,
    Config,
    config_when_created,
    judge,
    topic_names,
    topic_needs,
)
from streamer.settings import Settings

DAY_MS = 86_400_000
FOREVER = str((1 << 63) - 1)
PLAIN = {
    "cleanup.policy": "delete",
    "retention.ms": str(7 * DAY_MS),
    "retention.bytes": "-1",
    "max.message.bytes": "1048588",
    "message.timestamp.type": "CreateTime",
    "message.timestamp.before.max.ms": FOREVER,
    "message.timestamp.after.max.ms": "3600000",
}
COMPACT = {**PLAIN, "cleanup.policy": "compact"}
GOOD = {INPUT: PLAIN, OUTPUT: PLAIN, DEAD_LETTER: PLAIN, CHANGELOG: COMPACT}


def settings(**sections: dict[str, Any]) -> Settings:
    return make_settings("127.0.0.1:9", "in", "g", **sections)


def judged(
    changes: dict[str, Config], windows: dict[str, int] | None = None, state_bytes: int = 100, **sections: Any
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    chosen = settings(**sections)
    configs = {what: {**GOOD[what], **changes.get(what, {})} for what in topic_names(chosen)}
    found = judge(chosen, configs, windows or {}, state_bytes)
    return found.errors, found.warnings


ERRORS: list[tuple[str, dict[str, Config], dict[str, Any], str]] = [
    (
        "compacted input",
        {INPUT: {"cleanup.policy": "compact"}},
        {},
        r"input topic 'in' \(input.topic\) is compacted \(cleanup.policy = compact\).*Set cleanup.policy = delete",
    ),
    ("compacted and deleted input", {INPUT: {"cleanup.policy": "compact,delete"}}, {}, r"compacted \(.*compact,delete"),
    (
        "at least once is durable too",
        {INPUT: {"cleanup.policy": "compact"}},
        {"delivery": {"mode": "at-least-once"}},
        "compacted",
    ),
    (
        "an input that forgets open windows",
        {INPUT: {"retention.ms": "1000"}},
        {"windows": {"w": 900}, "delivery": {"idle_ms": 101}},
        r"keeps records for 1000 ms \(retention.ms\), a window may be open for 1001 ms .* at least 1001",
    ),
    (
        "a changelog that deletes",
        {CHANGELOG: {"cleanup.policy": "compact,delete"}},
        {},
        "changelog .* compact,delete: .* compact.",
    ),
    (
        "dead letters without a key",
        {DEAD_LETTER: {"cleanup.policy": "compact"}},
        {},
        "dead-letter topic 'in.dlq' .* without a key",
    ),
    *(
        (f"batches do not fit {what}", {what: {"max.message.bytes": "500000"}}, {}, "500000 bytes .* 524288")
        for what in (OUTPUT, DEAD_LETTER, CHANGELOG)
    ),
    (
        "a state that fits no record",
        {},
        {"state_bytes": 1_048_000},
        r"changelog .* 1048588 bytes .* has 1048000: .* at least 1114560",
    ),
]
WARNINGS: list[tuple[str, dict[str, Config], dict[str, Any], str]] = [
    (
        "the output forgets sooner than the input",
        {OUTPUT: {"retention.ms": "1000"}},
        {},
        r"output topic 'in.out' \(output.topic\) keeps records for 1000 ms \(retention.ms\), the input for 604800000 ms: .* Set retention.ms",
    ),
    (
        "dead letters of an endless input",
        {INPUT: {"retention.ms": "-1"}, OUTPUT: {"retention.ms": "-1"}},
        {},
        "'in.dlq' .* for ever",
    ),
    (
        "an input that is compacted and keeps no state",
        {INPUT: {"cleanup.policy": "compact"}, OUTPUT: {"retention.ms": "-1"}},
        {"delivery": {"mode": "ephemeral"}},
        "'in.dlq' .* for ever",
    ),
    (
        "old times are refused",
        {OUTPUT: {"message.timestamp.before.max.ms": str(DAY_MS)}},
        {},
        r"refuses times older than 86400000 ms \(message.timestamp.before.max.ms\)",
    ),
    (
        "times ahead are refused",
        {INPUT: {"message.timestamp.after.max.ms": FOREVER}, DEAD_LETTER: {"message.timestamp.after.max.ms": FOREVER}},
        {},
        "'in.out' .* refuses times more than 3600000 ms ahead",
    ),
    ("compacted answers", {OUTPUT: {"cleanup.policy": "compact"}}, {}, "output topic .* only the newest answer"),
    (
        "bytes that may not last for a window",
        {INPUT: {"retention.bytes": "1000"}},
        {"windows": {"w": 900}},
        "1000 bytes per partition .* 30900 ms",
    ),
    ("long keys do not fit beside a state", {}, {"state_bytes": 1_000_000}, "keys of more than 47564 bytes"),
]


def test_topics_as_they_should_be_are_no_finding() -> None:
    assert judged({}) == ((), ())
    assert judged({}, {"w": 7 * DAY_MS - 30_000}) == ((), ())


@pytest.mark.parametrize(("changes", "more", "says"), [row[1:] for row in ERRORS], ids=[row[0] for row in ERRORS])
def test_what_would_lose_or_end_later_is_refused(changes: Any, more: dict[str, Any], says: str) -> None:
    errors, _ = judged(changes, **more)
    (error,) = errors
    assert re.search(says, error), error
    assert error.endswith(".")


@pytest.mark.parametrize(("changes", "more", "says"), [row[1:] for row in WARNINGS], ids=[row[0] for row in WARNINGS])
def test_what_may_be_meant_is_told(changes: Any, more: dict[str, Any], says: str) -> None:
    errors, warnings = judged(changes, **more)
    assert errors == ()
    (warning,) = warnings
    assert re.search(says, warning), warning
    assert warning.endswith(".")


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({OUTPUT: {"retention.ms": "1", "message.timestamp.type": "LogAppendTime"}}, {}),
        ({OUTPUT: {"retention.ms": "1"}}, {"output": {"timestamp": "now"}}),
        ({INPUT: {"message.timestamp.type": "LogAppendTime", "message.timestamp.after.max.ms": FOREVER}}, {}),
        (
            {INPUT: {"retention.ms": "1000", "cleanup.policy": "delete"}},
            {"delivery": {"mode": "ephemeral"}, "windows": {"w": 900}},
        ),
    ],
    ids=["broker's time", "now", "the input's limits bind nobody", "nothing is read again"],
)
def test_what_does_no_harm_is_not_told(changes: Any, more: dict[str, Any]) -> None:
    assert judged(changes, **more) == ((), ())


def test_a_configuration_that_cannot_be_read_is_told_and_nothing_is_made_up() -> None:
    found = judge(settings(), {INPUT: {}, OUTPUT: {}, DEAD_LETTER: PLAIN, CHANGELOG: COMPACT}, {"w": 900})
    assert found.errors == ()
    first, second = found.warnings
    assert re.search(
        r"input topic 'in' \(input.topic\): .* retention.ms must be at least 30900.*DESCRIBE_CONFIGS", first
    )
    assert re.search(r"output topic 'in.out' .output.topic.: .*DESCRIBE_CONFIGS", second)


def created(what: str, given: Config, replicas: int = 1, state_bytes: int = 0, **sections: Any) -> dict[str, str]:
    (need,) = [need for need in topic_needs(settings(**sections), state_bytes) if need.what == what]
    return config_when_created(need, given, replicas)


@pytest.mark.parametrize("what", [OUTPUT, DEAD_LETTER])
def test_created_topics_keep_answers_as_long_as_records_and_take_their_times(what: str) -> None:
    given = {**PLAIN, "retention.ms": "-1", "retention.bytes": "5"}
    times = {key: given[key] for key in given if "timestamp" in key}
    bounds = {"retention.ms": "-1", "retention.bytes": "5"}
    assert created(what, given) == bounds | times
    assert created(what, given, output={"timestamp": "now"}) == bounds
    assert created(what, {**given, "message.timestamp.type": "LogAppendTime"}) == {
        **bounds, "message.timestamp.type": "CreateTime",
    }  # fmt: skip
    assert created(what, {}) == {"message.timestamp.type": "CreateTime"}, "nothing is known of the input"


def test_a_created_topic_is_judged_good() -> None:
    for given in (PLAIN, {**PLAIN, "retention.ms": "-1"}, {**PLAIN, "message.timestamp.type": "LogAppendTime"}):
        for mode in ("record", "now"):
            options: dict[str, Any] = {"output": {"timestamp": mode, "max_batch_bytes": 2_000_000}}
            configs = {
                need.what: {**PLAIN, **config_when_created(need, given, 3)}
                for need in topic_needs(settings(**options), 3_000_000)
            }
            found = judge(settings(**options), {INPUT: given, **configs}, {}, 3_000_000)
            assert (found.errors, found.warnings) == ((), ())


def test_three_replicas_are_two_in_sync_and_the_changelog_keeps_the_brokers_time() -> None:
    for what in (OUTPUT, DEAD_LETTER, CHANGELOG):
        assert created(what, PLAIN, 3)["min.insync.replicas"] == "2"
        assert "min.insync.replicas" not in created(what, PLAIN, 2)
    changelog = created(CHANGELOG, {**PLAIN, "retention.ms": "-1"})
    assert changelog["cleanup.policy"] == "compact"
    assert changelog["message.timestamp.type"] == "LogAppendTime"
    assert "retention.ms" not in changelog


def test_the_changelog_has_its_own_replication_where_that_is_set() -> None:
    def factors(**sections: Any) -> dict[str, int]:
        return {need.what: need.replication_factor for need in topic_needs(settings(**sections))}

    assert set(factors().values()) == {-1}
    assert factors(topics={"replication_factor": 2}) == {OUTPUT: 2, DEAD_LETTER: 2, CHANGELOG: 2}
    assert factors(topics={"replication_factor": 2}, changelog={"replication_factor": 3})[CHANGELOG] == 3


def test_clocks_that_are_apart_are_told_once_with_the_direction() -> None:
    assert told(None) is told(60_000) is told(-60_000) is None
    assert "2:00:00 (hours:minutes:seconds) ahead of" in str(told(7_200_000))
    assert "behind" in str(told(-7_200_000))
    now = 10_000_000
    clock = OwnClock(lambda: now, None)
    assert clock.appended([]) is None
    assert clock.appended([now - 5]) is None
    assert "ahead of" in str(clock.appended([now - 7_200_000, now - 7_200_100]))
    assert clock.ahead_ms == 7_200_000
    assert clock.appended([now - 7_210_000]) is None, "told before"
    assert clock.appended([now]) is None, "it was set right"
    assert "behind" in str(clock.appended([now + 120_000]))
    assert OwnClock(lambda: now, 7_200_000).appended([now - 7_200_000]) is None, "told at start"
    assert "2:00:00" in OwnClock(lambda: now, 7_200_000).refused("log")
    assert "'log'" in OwnClock(lambda: now, None).refused("log")


def test_more_replicas_in_sync_than_there_are_is_told() -> None:
    configs = {OUTPUT: {**PLAIN, "min.insync.replicas": "2"}}
    found = judge(settings(), configs, {}, 0, {OUTPUT: 1})
    assert found.errors == ()
    (told,) = [each for each in found.warnings if "min.insync.replicas = 1" in each]
    assert "'in.out'" in told
    for enough in ({OUTPUT: 2}, {}):
        assert not [each for each in judge(settings(), configs, {}, 0, enough).warnings if "min.insync" in each]
