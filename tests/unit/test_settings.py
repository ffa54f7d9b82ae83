"""Settings from file, environment and flags: who wins, what is refused, and that each refusal says what to write instead."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.errors import ConfigurationError
from streamer.settings import (
    GenerateSection,
    InputSection,
    Settings,
    WindowSection,
    describe,
    likely_unit,
    load_settings,
    settings_reference,
)
from streamer.settings.reference import sections
from streamer.tools.deadletters import Filter
from streamer.windows import WindowRule
from streamer.words import Delivery

FILE = """
[kafka]
bootstrap = "b:9092"
group = "g"
[input]
topic = "in"
[output]
topic = "out"
[model.lstm]
path = "model.onnx"
"""
FLAGS = ("kafka.bootstrap=b:9092", "kafka.group=g", "input.topic=in", "output.topic=out", "model.lstm.path=model.onnx")


def loaded(*flags: str, env: dict[str, str] | None = None) -> Settings:
    return load_settings(None, [*FLAGS, *flags], env)[0]


def refused(*flags: str, env: dict[str, str] | None = None) -> list[str]:
    """One sentence per problem."""
    with pytest.raises(ConfigurationError) as raised:
        loaded(*flags, env=env)
    first, *problems = str(raised.value).split("\n  ")
    assert first == "settings:"
    return problems


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "settings.toml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# sources


def test_a_flag_goes_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, FILE + "[batch]\nmax_rows = 1\nmax_steps = 1\nthreads = 1\n")
    env = {"STREAMER_BATCH__MAX_ROWS": "2", "STREAMER_BATCH__MAX_STEPS": "2", "OTHER__THING": "9"}
    settings, origins = load_settings(path, ["batch.max_rows=3"], env)
    assert (settings.batch.max_rows, settings.batch.max_steps, settings.batch.threads) == (3, 2, 1)
    told = {key: (value, origin) for key, value, origin in describe(settings, origins)}
    assert told["batch.max_rows"] == ("3", "flag --set")
    assert told["batch.max_steps"] == ("2", "environment STREAMER_BATCH__MAX_STEPS")
    assert told["batch.threads"] == ("1", f"file {path}")
    assert told["delivery.mode"] == ("exactly-once", "default")


def test_paths_in_the_file_are_beside_it_and_all_others_where_one_stands(tmp_path: Path) -> None:
    text = FILE.replace('group = "g"', 'group = "g"\nsecurity_protocol = "SSL"\nssl_cafile = "ca.pem"')
    settings, _ = load_settings(write(tmp_path, text), ["model.other.path=other.onnx"])
    assert settings.kafka.ssl_cafile == tmp_path / "ca.pem"
    assert settings.model["lstm"].path == tmp_path / "model.onnx"
    assert settings.model["other"].path == Path("other.onnx")


def test_all_problems_are_told_at_once_with_what_was_given_and_where() -> None:
    problems = refused("batch.max_rows=0", "nonsense", "kafka.group.x=1", env={"STREAMER_DELIVERY__MODE": "sometimes"})
    assert len(problems) == 4
    text = "\n".join(problems)
    assert "batch.max_rows: Input should be greater than or equal to 1, got '0' (flag --set)" in text
    assert "got 'sometimes' (environment STREAMER_DELIVERY__MODE)" in text
    assert "--set number 7: write --set section.key=value" in text
    assert "group is a value, not a section" in text
    with pytest.raises(ConfigurationError, match=r"kafka.bootstrap: required: .*STREAMER_KAFKA__BOOTSTRAP") as raised:
        load_settings(None)
    for key in ("kafka.group", "input.topic", "output.topic", "[model.NAME]"):
        assert key in str(raised.value)


@pytest.mark.parametrize("key", ["kafka.sasl_password", "kafka.ssl_key_password"])
def test_a_secret_is_never_a_flag_and_never_told(key: str) -> None:
    (problem,) = refused(f"{key}=open-sesame")
    assert f"use {key}_file or STREAMER_{key.upper().replace('.', '__')}" in problem
    assert "open-sesame" not in problem
    secured = ("kafka.security_protocol=SASL_SSL", "kafka.sasl_username=me")
    settings = loaded(*secured, env={"STREAMER_KAFKA__SASL_PASSWORD": "open-sesame"})
    assert "open-sesame" not in repr(settings) + str(describe(settings, {}))
    problems = refused(*secured, "kafka.sasl_pasword=open-sesame")
    assert "open-sesame" not in "".join(problems)


# files of all kinds


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    assert load_settings(write(tmp_path, b"\xef\xbb\xbf" + FILE.encode()))[0].kafka.group == "g"
    windows = load_settings(write(tmp_path, FILE.replace("\n", "\r\n")))[0]
    assert windows.kafka.group == "g"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (FILE.encode("utf-16"), "is UTF-16, TOML is UTF-8: save it as UTF-8"),
        (FILE.encode("utf-16-le"), "is UTF-16"),
        (b"\xfe\xff" + FILE.encode("utf-16-be"), "is UTF-16"),
        (FILE.encode("utf-32"), "is UTF-16"),
        (FILE.encode() + b'[log]\nlevel = "\xe4"\n', "line 12 is not UTF-8, as TOML must be"),
        (b"kafka.bootstrap: b", "not TOML"),
        (b"a = " + b"9" * 5_000, "not TOML"),
        (b"a = " + b"9" * 400, "not TOML: it has an integer of more than 64 bits: write"),
        (b"a = [{b = 0x" + b"f" * 5_000 + b"}]", "more than 64 bits"),
        (b"a = " + b"[" * 100_000, "nested too deep|not TOML"),
    ],
)
def test_a_file_that_is_not_toml_is_told_in_a_sentence(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        load_settings(write(tmp_path, content))


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file or directory: name a readable TOML file"):
        load_settings(tmp_path / "absent.toml")
    with pytest.raises(ConfigurationError, match="Is a directory"):
        load_settings(tmp_path)


@given(content=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)))
def test_whatever_a_file_holds_the_outcome_is_settings_or_a_refusal(tmp_path_factory: Any, content: bytes) -> None:
    path = write(tmp_path_factory.getbasetemp(), content)
    with pytest.raises(ConfigurationError):
        load_settings(path)


values = st.recursive(
    st.one_of(st.integers(), st.floats(), st.booleans(), st.text(max_size=5), st.datetimes(), st.dates(), st.times()),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=5), inner, max_size=2)),
    max_leaves=4,
)
keys = st.sampled_from([f"{section}.{key}" for section, fields in sections().items() for key in fields])


@given(key=st.one_of(keys, st.text(max_size=12)), value=values)
def test_whatever_a_key_holds_the_outcome_is_settings_or_a_refusal(key: str, value: Any) -> None:
    document: Any = {"kafka": {"bootstrap": "b", "group": "g"}, "input": {"topic": "i"}, "output": {"topic": "o"}}
    document["model"] = {"NAME": {"path": "m", "window": {"kind": "end"}}}
    table = document
    *parents, last = key.split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
    table[last] = value
    try:
        settings = Settings(**document)
    except ValueError:
        return
    assert describe(settings, {})


# did you mean


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("kafka.bootstrp=b", "kafka.bootstrp: unknown key: did you mean kafka.bootstrap? (flag --set)"),
        ("kafak.bootstrap=b", "kafak: unknown key: did you mean kafka? (flag --set)"),
        ("kafka.max_rows=1", "kafka.max_rows: unknown key: did you mean batch.max_rows or generate.max_rows or decode.max_rows? (flag --set)"),
        ("model.lstm.pth=b", "model.lstm.pth: unknown key: did you mean model.lstm.path? (flag --set)"),
        ("model.lstm.windw.kind=end", "model.lstm.windw: unknown key: did you mean model.lstm.window? (flag --set)"),
        ("delivery.transction_timeout=1", "delivery.transction_timeout: unknown key: did you mean delivery.transaction_timeout_ms? (flag --set)"),
        ("kafka.zzz=1", "kafka.zzz: unknown key: remove it or correct its name (flag --set)"),
    ],
)  # fmt: skip
def test_an_unknown_key_is_told_with_the_one_that_may_be_meant(flag: str, says: str) -> None:
    assert refused(flag) == [says]


def test_keys_of_windows_and_of_the_environment_are_guessed_too() -> None:
    (problem,) = refused("model.lstm.window.kind=end", "model.lstm.window.max_evnts=2")
    assert (
        problem == "model.lstm.window.max_evnts: unknown key: did you mean model.lstm.window.max_events? (flag --set)"
    )
    (problem,) = refused(env={"STREAMER_BATCH__MAXROWS": "2"})
    assert "did you mean batch.max_rows? (environment STREAMER_BATCH__MAXROWS)" in problem
    (problem,) = refused(env={"STREAMER_DEAD_LETTER_TOPIC": "x"})
    assert "write STREAMER_DEAD_LETTER__TOPIC, with two underscores" in problem
    assert loaded(env={"STREAMER_KAFKA_SERVICE_HOST": "10.0.0.1", "STREAMER_HTTP_PORT": "tcp://10.0.0.1:80"})


# times and numbers


@pytest.mark.parametrize(
    ("given_", "ms"),
    [
        ("2025-10-09T00:00:00Z", 1_759_968_000_000),
        ("2025-10-09T02:00+02:00", 1_759_968_000_000),
        ("1759968000000", 1_759_968_000_000),
        (1_759_968_000_000, 1_759_968_000_000),
        (datetime.datetime(2025, 10, 9, tzinfo=datetime.UTC), 1_759_968_000_000),
        ("2025-10-09T00:00:00.0019Z", 1_759_968_000_001),
    ],
)
def test_a_start_is_a_moment(given_: Any, ms: int) -> None:
    assert InputSection(topic="in", start=given_).start_position() == str(ms)


@pytest.mark.parametrize(
    ("start", "says"),
    [
        ("1759968000", "is 1970-01-21T08:52:48Z, before input.min_time = 2000-01-01T00:00:00Z: the number looks like "
         "seconds, write milliseconds (1759968000000) or 2025-10-09T00:00:00Z"),
        ("1759968000000000", "after the year 2100: the number looks like microseconds, write milliseconds (1759968000000)"),
        ("1759968000000000000", "after the year 2100: the number looks like nanoseconds"),
        ("20251009", "for a date write 2025-10-09T00:00:00Z"),
        ("1999-12-31T23:59:59Z", "before input.min_time = 2000-01-01T00:00:00Z"),
        ("9" * 400, "after the year 2100"),
        ("²", "is not a time"),
        ("-5", "is not a time"),
        ("yesterday", "is not a time: write it like 2025-10-09T00:00:00Z"),
    ],
)  # fmt: skip
def test_a_start_that_cannot_be_meant_names_what_it_looks_like(start: str, says: str) -> None:
    (problem,) = refused(f"input.start={start}")
    assert says in problem


@pytest.mark.parametrize(
    ("moment", "says"),
    [
        ("1759968000000000", "the number looks like microseconds, write milliseconds (1759968000000)"),
        ("1759968000000000000", "looks like nanoseconds, write milliseconds (1759968000000) or 2025-10-09T00:00:00Z"),
        ("2100-01-01T00:00:00Z", "after the year 2100"),
        ("9" * 400, "after the year 2100"),
        ("0" * 40 + "9" * 14, "after the year 2100"),
    ],
)
def test_no_event_is_refused_for_a_least_time_that_cannot_be_meant(moment: str, says: str) -> None:
    (problem,) = refused(f"input.min_time={moment}")
    assert problem.startswith("input: min_time = '")
    assert says in problem
    assert len(problem) < 300
    with pytest.raises(ConfigurationError, match=f"--since = .*{says.partition(',')[0]}"):
        Filter.of(None, moment, None, None)


@given(moment=st.one_of(st.datetimes(), st.dates()))
def test_the_hint_for_a_time_without_a_zone_is_itself_accepted(moment: datetime.date) -> None:
    with pytest.raises(ValueError, match="needs a time zone") as raised:
        InputSection(topic="in", min_time="0001-01-01T00:00:00Z", start=moment.isoformat())
    hint = str(raised.value).partition("for example ")[2].split()[0]
    if hint < "2100":
        InputSection(topic="in", min_time="0001-01-01T00:00:00Z", start=hint)
    assert datetime.datetime.fromisoformat(hint).tzinfo is datetime.UTC


def test_the_hint_for_a_date_begins_where_the_date_does() -> None:
    (problem,) = refused("input.start=2025-10-09")
    assert "needs a time zone, for example 2025-10-09T00:00:00Z" in problem
    assert loaded("input.start=2025-10-09T00:00:00Z").input.start_position() == "1759968000000"


def test_relative_times_are_allowed_by_who_says_so() -> None:
    assert loaded().input.min_time_ms == 946_684_800_000
    assert loaded("input.min_time=0").input.min_time_ms == 0
    assert (
        loaded("input.min_time=1970-01-01T00:00:00Z", "input.start=1759968000").input.start_position() == "1759968000"
    )
    assert loaded("input.min_time=0001-01-01T00:00:00Z").input.min_time_ms < 0
    assert "min_time = '2000' is" not in "".join(refused("input.min_time=soon"))
    assert "min_time = '2001-01-01' needs a time zone" in refused("input.min_time=2001-01-01")[0]


@pytest.mark.parametrize(
    "key",
    [
        "input.max_future_ms", "state.idle_ttl_ms", "delivery.idle_ms", "model.lstm.utterance.gap_ms", "model.lstm.utterance.max_span_ms",
        *(f"model.lstm.window.{name}_ms" for name in ("size", "hop", "gap", "max_span", "disorder")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", [2**63 - 1, 10**30])
def test_a_span_that_no_time_can_be_added_to_is_refused(key: str, value: int) -> None:
    kind = ["model.lstm.window.kind=session", "model.lstm.window.gap_ms=1"] if "window" in key else []
    assert f"{key}: Input should be less than or equal to 100000000000000, got" in "".join(
        refused(*kind, f"{key}={value}")
    )


@given(
    ms=st.integers(946_684_800_000, 4_102_444_799_999),
    unit=st.sampled_from([("s", 1e-3), ("ms", 1.0), ("us", 1e3), ("ns", 1e6)]),
)
def test_a_moment_is_known_by_its_unit(ms: int, unit: tuple[str, float]) -> None:
    ms -= ms % 1000
    assert likely_unit(round(ms * unit[1]), 946_684_800_000) == unit[0]


@pytest.mark.parametrize("missing", ["nan", "inf", "-inf", "1e39", "9" * 400, "true-ish", ""])
def test_missing_features_become_a_number_that_a_model_survives(missing: str) -> None:
    (problem,) = refused(f"input.missing={missing}")
    assert "is neither reject nor a finite float32: states that take NaN or infinity stay so" in problem
    assert "input.missing" in problem


@pytest.mark.parametrize(("missing", "value"), [("reject", "reject"), ("0", 0.0), ("-1.5", -1.5)])
def test_missing_features_are_rejected_or_a_number(missing: str, value: Any) -> None:
    assert loaded(f"input.missing={missing}").input.missing == value


def test_nan_is_no_number_for_any_key() -> None:
    floats = [f"{s}.{k}" for s, fields in sections().items() for k, each in fields.items() if each.annotation is float]
    assert floats
    for key in floats:
        assert key in refused(f"{key}=nan")[0]


# one home per truth


def test_new_keys_have_their_defaults_and_words() -> None:
    settings = loaded()
    assert (settings.input.key, settings.input.time_unit, settings.output.timestamp) == ("utf8", "ms", "record")
    problems = refused("input.key=utf16", "input.time_unit=minutes", "output.timestamp=event")
    assert len(problems) == 3


def test_an_answer_is_bounded_by_the_batch_that_carries_it() -> None:
    assert loaded().rollouts == GenerateSection()
    small = loaded("output.max_batch_bytes=16384")
    assert small.rollouts.max_answer_bytes == 8_192
    assert small.generate.max_answer_bytes == 500_000, "what is told is what was set"
    assert loaded("generate.max_answer_bytes=1024").rollouts.max_answer_bytes == 1_024


def test_the_section_is_the_rule() -> None:
    assert WindowRule is WindowSection
    rule = loaded("model.lstm.window.kind=session", "model.lstm.window.gap_ms=5").model["lstm"].window
    assert rule == WindowRule("session", gap_ms=5)
    assert dataclasses.replace(rule, max_events=9).fingerprint() == rule.fingerprint()
    assert dataclasses.replace(rule, gap_ms=6).fingerprint() != rule.fingerprint()
    # what changelogs of version 0.1 hold
    assert rule.fingerprint() == "26f735066aa95130"
    (problem,) = refused("model.lstm.window.kind=hopping", "model.lstm.window.size_ms=5")
    assert problem.startswith("model.lstm.window: hop_ms is 0, must be at least 1 for hopping windows")
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.gap_ms = 7


@pytest.mark.parametrize("mode", list(Delivery))
def test_what_is_durable_has_a_changelog(mode: Delivery) -> None:
    settings = loaded(f"delivery.mode={mode}")
    assert settings.delivery.mode is mode
    assert (settings.changelog_topic == "g.in.changelog") is mode.durable


def test_the_reference_tells_every_key_and_every_word() -> None:
    text = settings_reference()
    assert "| `mode` | `exactly-once`, `at-least-once`, `ephemeral` | `exactly-once` |" in text
    assert "| `missing` | number or `reject` | `reject` |" in text
    assert "| `time_unit` | `ms`, `s`, `us`, `ns`, `iso8601` | `ms` |" in text
    assert "| `kind` | `tumbling`, `hopping`, `session`, `count`, `end`, `record` | required |" in text
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == sum(map(len, sections().values()))
    for fields in sections().values():
        for key, info in fields.items():
            assert info.description, key


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["output.topic=a b"], r"output.topic would be topic 'a b' \(3 characters\).*Set output.topic"),
        (["output.topic=.."], "output.topic would be topic '..'"),
        (["input.topic=in/put"], "input.topic would be topic 'in/put'"),
        (["output.topic=" + "a" * 250], r"250 characters"),
        (["kafka.group=g/h"], r"changelog.topic would be topic 'g/h.in.changelog'.*Set changelog.topic"),
        (["kafka.group=" + "g" * 249], "changelog.topic would be topic 'ggg"),
        (["input.topic=" + "a" * 246, "changelog.topic=c"], "dead_letter.topic would be topic 'aaa"),
        (["output.topic=t\u00f6pic"], "output.topic would be"),
        (["output.topic=a\nb"], "output.topic would be"),
    ],
)
def test_a_topic_that_no_broker_can_have_is_refused_before_one_is_asked(sets: list[str], says: str) -> None:
    given = ["kafka.bootstrap=b:1", "kafka.group=g", "input.topic=in", "output.topic=out", "model.m.path=m.onnx"]
    with pytest.raises(ConfigurationError, match=says):
        load_settings(None, [*given, *sets])


def test_a_topic_of_the_longest_name_and_a_group_of_any_are_taken() -> None:
    longest = "a" * 249
    given = [
        "kafka.bootstrap=b:1",
        "kafka.group=g/h \u00fc",
        f"input.topic={longest}",
        "output.topic=out",
        "model.m.path=m",
    ]
    settings, _ = load_settings(None, [*given, "dead_letter.topic=d", "changelog.topic=c"])
    assert (settings.input.topic, settings.kafka.group) == (longest, "g/h \u00fc")


@pytest.mark.parametrize("name", ["", "a\nb", "a" * 101, "\u00fc" * 51, "\x00", "\udcff"])
def test_a_model_whose_name_cannot_be_written_is_refused(name: str) -> None:
    """The name is part of the changelog's keys, where it has one byte for its length; without one it would be nobody's."""
    [problem] = refused(f"model.{name}.path=m.onnx", "model.lstm.path=m.onnx")
    assert "a model is named with 1 to 100 bytes" in problem or "unicode" in problem


@pytest.mark.parametrize("name", ["a" * 100, "\u00fc", 'm"%s{}', "m x", "a/b"])
def test_a_model_of_any_other_name_is_taken(name: str) -> None:
    assert set(loaded(f"model.{name}.path=m.onnx").model) == {name, "lstm"}


@pytest.mark.parametrize(
    "brokers",
    [
        "b:99999",
        "b:0",
        "b:-1",
        "b:x",
        ":9092",
        "[::1",
        "kafka://b:1",
        "b:1,,c:2",
        "b:1,",
        ",",
        "a b:1",
        "b\n:1",
        "u:hunter2@b:1",
    ],
)
def test_brokers_that_cannot_be_meant_are_refused_and_not_told(brokers: str) -> None:
    [problem] = refused(f"kafka.bootstrap={brokers}")
    number = 2 if brokers.startswith("b:1,") else 1
    assert problem.startswith(f"kafka.bootstrap: broker number {number} is not HOST:PORT")
    assert "hunter2" not in problem


@pytest.mark.parametrize(
    "brokers", ["b", "b:1", "b-1.x_y:65535, c:2", "[::1]:9092", "[fe80::1%eth0]:1", "::1", "10.0.0.1:9092"]
)
def test_brokers_as_people_write_them_are_taken(brokers: str) -> None:
    assert loaded(f"kafka.bootstrap={brokers}").kafka.bootstrap == brokers
