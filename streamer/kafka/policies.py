"""What the service asks of topics: pure judgement over their configurations, as DescribeConfigs gives them.

Every sentence names topic, key, value and remedy. An error is what would lose or repeat data, or end the service later; a
warning is what may be meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from streamer.records.decode import MAX_KEY_BYTES
from streamer.settings import Settings

Config = Mapping[str, str]
"""Key -> value of one topic; empty: this client may not describe it."""

INPUT, OUTPUT, DEAD_LETTER, CHANGELOG = "input.topic", "output.topic", "dead_letter.topic", "changelog.topic"
"""Topics by the setting that names them."""

_WORDS = {INPUT: "input topic", OUTPUT: "output topic", DEAD_LETTER: "dead-letter topic", CHANGELOG: "changelog"}
_FOREVER = (1 << 63) - 1
_DEFAULT_MAX_BYTES = 1_048_588
_RECORD_OVERHEAD_BYTES = 1_024
"""Batch, framing, names of models and headers beside key and state."""
_BOUNDS = ("retention.ms", "retention.bytes")
_BEFORE, _AFTER = "message.timestamp.before.max.ms", "message.timestamp.after.max.ms"
TIMESTAMP_TYPE, APPEND_TIME = "message.timestamp.type", "LogAppendTime"


@dataclass(frozen=True, slots=True)
class TopicNeed:
    """A topic that the service writes."""

    name: str
    what: str
    """The setting that names it"""
    config: Config = field(default_factory=dict)
    """When created"""
    like_input: tuple[str, ...] = ()
    """When created: keys that take the input's values"""
    replication_factor: int = -1
    """When created; -1: as the input's"""


@dataclass(frozen=True, slots=True)
class Judgement:
    """One sentence each."""

    errors: tuple[str, ...]
    warnings: tuple[str, ...]


def topic_names(settings: Settings) -> dict[str, str]:
    """Setting -> name of the topic, of those that are used."""
    names = {
        INPUT: settings.input.topic,
        OUTPUT: settings.output.topic,
        DEAD_LETTER: settings.dead_letter_topic or "",
        CHANGELOG: settings.changelog_topic or "",
    }
    return {what: name for what, name in names.items() if name}


def topic_needs(settings: Settings, state_bytes: int = 0) -> list[TopicNeed]:
    """The topics that the service writes. ``state_bytes``: what is kept per stream, of the larger model."""
    factor = settings.topics.replication_factor
    needs = []
    for what, name in topic_names(settings).items():
        bytes_needed = _batch_bytes(what, settings, state_bytes)
        sized = {"max.message.bytes": str(bytes_needed)} if bytes_needed > _DEFAULT_MAX_BYTES else {}
        if what in (OUTPUT, DEAD_LETTER):
            by_record = settings.output.timestamp == "record"
            stamped = {TIMESTAMP_TYPE: "CreateTime"} if by_record else {}
            like = (*_BOUNDS, _BEFORE, _AFTER) if by_record else _BOUNDS
            needs.append(TopicNeed(name, what, {**stamped, **sized}, like, factor))
        elif what == CHANGELOG:
            own = settings.changelog.replication_factor
            needs.append(
                TopicNeed(name, what, {**_changelog_config(settings), **sized}, (), own if own > 0 else factor)
            )
    return needs


def _changelog_config(settings: Settings) -> dict[str, str]:
    log = settings.changelog
    return {
        "cleanup.policy": "compact",
        "segment.ms": str(log.segment_ms),
        "segment.bytes": str(log.segment_bytes),
        "min.cleanable.dirty.ratio": str(log.min_cleanable_dirty_ratio),
        "max.compaction.lag.ms": str(log.max_compaction_lag_ms),
        "delete.retention.ms": str(log.delete_retention_ms),
        # its records have no time of their own: the broker's clock keeps ours, which may be wrong, out of it
        TIMESTAMP_TYPE: APPEND_TIME,
    }


def config_when_created(need: TopicNeed, input_config: Config, replicas: int) -> dict[str, str]:
    """Answers live as long as the records that they answer, and their topic takes every time that the input takes."""
    config = {key: input_config[key] for key in need.like_input if key in input_config}
    if input_config.get(TIMESTAMP_TYPE) == APPEND_TIME:  # its limits bind nobody
        for key in (_BEFORE, _AFTER):
            config.pop(key, None)
    config |= need.config
    if replicas >= 3:
        config["min.insync.replicas"] = "2"
    return config


def max_message_bytes(config: Config) -> int:
    """The largest record batch in bytes that a topic of this configuration takes."""
    return int(config.get("max.message.bytes", _DEFAULT_MAX_BYTES))


def judge(
    settings: Settings,
    configs: Mapping[str, Config],
    windows: Mapping[str, int],
    state_bytes: int = 0,
    replicas: Mapping[str, int] | None = None,
) -> Judgement:
    """``configs``: setting -> configuration of each topic that is there. ``windows``: model -> how long one of its windows
    can be open in ms. ``state_bytes``: kept per stream, of the larger model. ``replicas``: setting -> replicas of each topic
    that is written."""
    names = topic_names(settings)
    errors: list[str] = []
    warnings: list[str] = []
    for what, config in configs.items():
        where = f"{_WORDS[what]} {names[what]!r} ({what})"
        if not config:
            warnings.append(
                f"{where}: its configuration cannot be read, so nothing of it is checked{_unchecked(what, settings, windows)}. "
                "Grant DESCRIBE_CONFIGS on it to this client's principal."
            )
            continue
        if (told := _too_few(where, config, (replicas or {}).get(what))) is not None:
            warnings.append(told)
        for fatal, sentence in _judged(settings, what, where, configs, windows, state_bytes):
            (errors if fatal else warnings).append(sentence)
    return Judgement(tuple(errors), tuple(warnings))


def _too_few(where: str, config: Config, replicas: int | None) -> str | None:
    """More replicas are asked for than there are: older brokers refuse every write, newer ones ask for as many as there are."""
    needed = int(config.get("min.insync.replicas", 1))
    if replicas is None or needed <= replicas:
        return None
    return (
        f"{where} needs {needed} replicas to take a record (min.insync.replicas) and has {replicas}: older brokers take "
        f"nothing there. Add replicas, or set min.insync.replicas = {replicas}."
    )


def _unchecked(what: str, settings: Settings, windows: Mapping[str, int]) -> str:
    if what != INPUT or not windows or not settings.changelog_topic:
        return ""
    needs_ms = max(windows.values()) + settings.delivery.idle_ms
    return f" (its retention.ms must be at least {needs_ms}, or windows may be lost)"


_Found = Iterator[tuple[bool, str]]
"""Is it an error, and the sentence"""


def _judged(
    settings: Settings,
    what: str,
    where: str,
    configs: Mapping[str, Config],
    windows: Mapping[str, int],
    state_bytes: int,
) -> _Found:
    config = configs[what]
    if what == INPUT:
        if settings.changelog_topic:
            yield from _input(settings, where, config, windows)
        return
    yield from _sizes(settings, what, where, config, state_bytes)
    if what == CHANGELOG:
        if (policy := config.get("cleanup.policy", "compact")) != "compact":
            yield (
                True,
                f"{where} has cleanup.policy = {policy}: it would forget states that are needed. Set cleanup.policy = compact.",
            )
        return
    policy = config.get("cleanup.policy", "delete")
    if "compact" in policy and what == DEAD_LETTER:
        yield (
            True,
            f"{where} has cleanup.policy = {policy}: such a topic refuses records without a key, and keeps one reject per "
            "stream. Set cleanup.policy = delete.",
        )
    elif "compact" in policy:
        yield (
            False,
            f"{where} has cleanup.policy = {policy}: only the newest answer of every stream is kept. Set cleanup.policy = "
            "delete, unless that is meant.",
        )
    if settings.output.timestamp == "record" and config.get(TIMESTAMP_TYPE) != APPEND_TIME:
        yield from _old_times(where, config, configs.get(INPUT, {}))


def _input(settings: Settings, where: str, config: Config, windows: Mapping[str, int]) -> _Found:
    """What is read again after a restart must still be there."""
    policy = config.get("cleanup.policy", "delete")
    if "compact" in policy:
        yield (
            True,
            f"{where} is compacted (cleanup.policy = {policy}): a restart reads events again, and those that compaction "
            "removed would be missing in states and windows. Set cleanup.policy = delete, or delivery.mode = "
            '"ephemeral", which keeps no state.',
        )
        return
    keeps_ms = _keeps_ms(config)
    for name, longest_ms in windows.items():
        needs_ms, window = longest_ms + settings.delivery.idle_ms, f"model.{name}.window"
        if keeps_ms < needs_ms:
            yield (
                True,
                f"{where} keeps records for {keeps_ms} ms (retention.ms), a window may be open for {needs_ms} ms ({window}: "
                f"{longest_ms}, and delivery.idle_ms): a restart could not rebuild it. Set retention.ms to at least "
                f"{needs_ms}, or lower {window}.max_span_ms.",
            )
        if int(config.get("retention.bytes", -1)) >= 0:
            yield (
                False,
                f"{where} keeps {config['retention.bytes']} bytes per partition (retention.bytes): make sure that they "
                f"last for {needs_ms} ms, or windows may be lost.",
            )


def _batch_bytes(what: str, settings: Settings, state_bytes: int) -> int:
    """The largest batch that the service writes there, with a key of any size that it serves."""
    largest = settings.output.max_batch_bytes
    if what == CHANGELOG:
        largest = max(largest, state_bytes + MAX_KEY_BYTES + _RECORD_OVERHEAD_BYTES)
    return largest


def _sizes(settings: Settings, what: str, where: str, config: Config, state_bytes: int) -> _Found:
    takes, batch_bytes = max_message_bytes(config), settings.output.max_batch_bytes
    limit = f"{where} takes batches of at most {takes} bytes (max.message.bytes)"
    if takes < batch_bytes:
        yield (
            True,
            f"{limit}, the service writes up to {batch_bytes} (output.max_batch_bytes). Raise max.message.bytes, or lower "
            "output.max_batch_bytes.",
        )
    if what != CHANGELOG:
        return
    room = takes - state_bytes - _RECORD_OVERHEAD_BYTES
    needed = _batch_bytes(what, settings, state_bytes)
    if room < 0:
        yield (
            True,
            f"{limit}, the state of one stream has {state_bytes}: it could not be kept. Raise max.message.bytes to at least {needed}.",
        )
    elif room < MAX_KEY_BYTES:
        yield (
            False,
            f"{limit}, the state of one stream has {state_bytes}: streams with keys of more than {room} bytes could not be "
            f"kept. Raise max.message.bytes to at least {needed}.",
        )


def _old_times(where: str, config: Config, given: Config) -> _Found:
    """Answers and dead letters carry the times of their records, however old those are. ``given``: the input's."""
    if not given:
        return
    kept_ms, input_ms = _keeps_ms(config), _keeps_ms(given)
    carries = "what is written carries the time of its record"
    remedy = f'set {TIMESTAMP_TYPE} = {APPEND_TIME} there, or output.timestamp = "now"'
    if kept_ms < input_ms:
        long = "for ever" if input_ms == _FOREVER else f"for {input_ms} ms"
        yield (
            False,
            f"{where} keeps records for {kept_ms} ms (retention.ms), the input {long}: {carries}, so what answers older "
            f"records is deleted as soon as it is written. Set retention.ms as the input's, {remedy}.",
        )
    before_ms = int(config.get(_BEFORE, _FOREVER))
    if before_ms < min(input_ms, kept_ms):
        yield (
            False,
            f"{where} refuses times older than {before_ms} ms ({_BEFORE}): {carries}, and the input has older ones. Raise "
            f"it, {remedy}.",
        )
    after_ms, input_after_ms = int(config.get(_AFTER, _FOREVER)), int(given.get(_AFTER, _FOREVER))
    if given.get(TIMESTAMP_TYPE) != APPEND_TIME and after_ms < input_after_ms:
        yield (
            False,
            f"{where} refuses times more than {after_ms} ms ahead ({_AFTER}), the input takes {input_after_ms}: {carries}. "
            f"Raise it, {remedy}.",
        )


def _keeps_ms(config: Config) -> int:
    """How long records stay; a topic that deletes nothing by time keeps them for ever."""
    keeps_ms = int(config.get("retention.ms", -1))
    deletes = "delete" in config.get("cleanup.policy", "delete")
    return keeps_ms if keeps_ms >= 0 and deletes else _FOREVER
