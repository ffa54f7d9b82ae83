"""``streamer dlq show | replay``: rejects as people work on them.

``replay`` writes rejected records to the end of the input, to the partition that they came from: they are new events, behind
all that their streams had since. Once the cause is gone (a setting, a model, a producer's schema) they are served.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter, deque
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from streamer.core import UNREADABLE_HEADER, Headers
from streamer.errors import ConfigurationError
from streamer.kafka.client import KafkaError
from streamer.kafka.input import Input
from streamer.kafka.rows import DeadLetter, read_dead_letter
from streamer.kafka.tails import read_span
from streamer.kafka.topics import Topics
from streamer.records.keys import Keys
from streamer.records.unusable import Unusable
from streamer.service.wiring import connection
from streamer.settings import Settings, load_settings, moment_text
from streamer.settings.times import check_moment, parse_moment
from streamer.tools.locate import input_partitions
from streamer.words import KeyForm, Reason

dlq_app = typer.Typer(no_args_is_help=True, help="Look at rejected records, and send them again.")

REDRIVE_HEADER = "streamer-redrive"
"""How often a record was replayed"""
_FETCH_BYTES = 8_388_608
_SHOWN_BYTES = 200
_LARGEST_BYTES = 104_857_600
_OF_ANSWERS = (Reason.MODEL_REFUSED, Reason.TOO_LARGE_ANSWER)
"""Without a value they tell of an answer or of a window, not of a record."""

Config = Annotated[Path | None, typer.Option("--config", "-c", help="Settings, TOML")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="section.key=value")]
Reasons = Annotated[list[str] | None, typer.Option("--reason", help="Only this reason; repeatable")]
Since = Annotated[
    str | None, typer.Option(help="Only records with this timestamp or later: ISO 8601, or ms since 1970")
]
Until = Annotated[str | None, typer.Option(help="Only records with an earlier timestamp")]
From = Annotated[
    str | None, typer.Option("--source", help="Only from TOPIC, TOPIC/PARTITION or TOPIC/PARTITION/OFFSET")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object")]


@dataclass(frozen=True)
class Letter:
    """A record of the dead-letter topic. ``partition``, ``offset``: there."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    told: DeadLetter


@dataclass(frozen=True)
class Filter:
    """Which dead letters. ``source``: TOPIC, TOPIC/PARTITION or TOPIC/PARTITION/OFFSET."""

    reasons: Collection[str] = ()
    since_ms: int | None = None
    until_ms: int | None = None
    source: str | None = None

    @classmethod
    def of(cls, reasons: Sequence[str] | None, since: str | None, until: str | None, source: str | None) -> Filter:
        """ConfigurationError for what can match nothing."""
        unknown = [reason for reason in reasons or () if reason not in set(Reason)]
        if unknown:
            raise ConfigurationError(f"--reason {unknown[0]!r}: one of {', '.join(Reason)}")
        try:
            begin = None if since is None else check_moment(since, "--since")
            end = None if until is None else parse_moment(until, "--until")
        except ValueError as error:
            raise ConfigurationError(str(error)) from None
        return cls(frozenset(reasons or ()), begin, end, source)

    def takes(self, letter: Letter) -> bool:
        if self.reasons and letter.told.reason not in self.reasons:
            return False
        if self.since_ms is not None and letter.timestamp_ms < self.since_ms:
            return False
        if self.until_ms is not None and letter.timestamp_ms >= self.until_ms:
            return False
        return self.source is None or f"{letter.told.source}/".startswith(f"{self.source.rstrip('/')}/")


@dlq_app.command()
def show(
    config: Config = None,
    overrides: Overrides = None,
    reason: Reasons = None,
    since: Since = None,
    until: Until = None,
    source: From = None,
    examples: Annotated[int, typer.Option("-n", min=0, max=1_000, help="Newest examples of each reason")] = 3,
    as_json: AsJson = False,
) -> None:
    """Why records were rejected: reasons, how many of each, and the newest examples."""
    settings, _ = load_settings(config, overrides or (), os.environ)
    found = asyncio.run(summary(settings, Filter.of(reason, since, until, source), examples))
    if as_json:
        print(json.dumps(found))
        return
    table = Table(title=f"{found['records']} dead letters in {found['topic']}")
    for name in ("reason", "records", "newest"):
        table.add_column(name, overflow="fold", justify="right" if name == "records" else "left")
    for name, each in found["reasons"].items():
        lines = [
            f"{e['source']}  {e['time']}  key {e['key']}\n  {e['detail']}\n  {e['value']}" for e in each["examples"]
        ]
        table.add_row(name, f"{each['records']:,}", Text("\n".join(lines)))  # their brackets are no markup
    Console().print(table)


@dlq_app.command()
def replay(
    config: Config = None,
    overrides: Overrides = None,
    reason: Reasons = None,
    since: Since = None,
    until: Until = None,
    source: From = None,
    max_redrives: Annotated[
        int,
        typer.Option(min=1, max=1_000, help="A record that was replayed so often stays: it would go round for ever"),
    ] = 3,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would be sent; send nothing")] = False,
) -> None:
    """Send rejected records again: as new events at the end of the input, behind what their streams had since.

    Key, value, timestamp and other headers are the original ones, the partition too. What is replayed stays in the
    dead-letter topic; who replays twice sends twice (--since, --until and --source narrow it down)."""
    settings, _ = load_settings(config, overrides or (), os.environ)
    told = Replayed(settings.input.topic, dry_run)
    try:
        asyncio.run(send_again(settings, Filter.of(reason, since, until, source), max_redrives, told))
    finally:
        print(json.dumps(told.as_dict()))


async def letters(
    settings: Settings, wanted: Filter, strange: Counter[str] | None = None
) -> AsyncIterator[list[Letter]]:
    """Dead letters up to the present end of their topic, by the fetch. ``strange`` counts records that are none."""
    topic = settings.dead_letter_topic
    if topic is None:
        raise ConfigurationError("dead_letter.enabled = false: rejects were counted, and not kept")
    link = connection(settings)
    async with Topics(link) as topics:
        partitions = await topics.partitions(topic)
    reader = Input.of_log(link, topic, fetch_bytes=_FETCH_BYTES)
    await reader.start()
    try:
        begins, ends = await reader.beginnings(partitions), await reader.ends(partitions)
        async for batch in read_span(reader, {part: (begins[part], ends[part]) for part in partitions}):
            found = []
            for row, offset in enumerate(batch.offsets):
                told = read_dead_letter(batch.headers.get(row, ()))
                if told is None:
                    if strange is not None:
                        strange["no dead letter"] += 1
                    continue
                key, value, time_ms = batch.keys[row], batch.values[row], batch.timestamps_ms[row]
                letter = Letter(batch.partition, offset, time_ms, key, value, told)
                if wanted.takes(letter):
                    found.append(letter)
            yield found
    finally:
        await reader.stop()


async def summary(settings: Settings, wanted: Filter, examples: int) -> dict[str, Any]:
    """Counts by reason, and the ``examples`` newest of each by their timestamps."""
    counts: Counter[str] = Counter()
    newest: dict[str, deque[Letter]] = {}
    async for found in letters(settings, wanted):
        for letter in found:
            counts[letter.told.reason] += 1
            kept = newest.setdefault(letter.told.reason, deque())
            kept.append(letter)
            if len(kept) > examples:
                kept.remove(min(kept, key=_age))
    keys = Keys(KeyForm(settings.input.key))
    reasons = {
        reason: {
            "records": count,
            "examples": [_example(letter, keys) for letter in sorted(newest[reason], key=_age, reverse=True)],
        }
        for reason, count in counts.most_common()
    }
    return {"topic": settings.dead_letter_topic, "records": counts.total(), "reasons": reasons}


def _age(letter: Letter) -> tuple[int, int]:
    return letter.timestamp_ms, letter.offset


def _example(letter: Letter, keys: Keys) -> dict[str, Any]:
    told = letter.told
    return {
        "source": told.source,
        "time": moment_text(letter.timestamp_ms),
        "key": _key_text(letter.key, keys),
        "detail": told.detail,
        "value": _text(letter.value),
        "value_bytes": None if letter.value is None else len(letter.value),
        "headers": [[name, _text(value)] for name, value in told.headers],
        "whole": told.whole,
        "offset": f"{letter.partition}/{letter.offset}",
    }


def _key_text(key: bytes | None, keys: Keys) -> str | None:
    """As ``streamer stream`` takes it, where it is a key of the declared form."""
    try:
        return keys.text(key).decode() if key and len(key) <= _SHOWN_BYTES else _text(key)
    except Unusable:
        return _text(key)


def _text(value: bytes | None) -> str | None:
    """The beginning, for people."""
    return None if value is None else value[:_SHOWN_BYTES].decode("utf-8", "backslashreplace")


@dataclass
class Replayed:
    """What was done, exactly: ``sent`` counts what the cluster has acknowledged."""

    topic: str
    dry_run: bool
    sent: Counter[str] = field(default_factory=Counter)
    """By reason"""
    partitions: Counter[int] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    """Not sent, by why"""
    unknown: int = 0
    """Sent, and not acknowledged: they may be there or not"""

    def as_dict(self) -> dict[str, Any]:
        done = "would_send" if self.dry_run else "sent"
        return {
            "topic": self.topic,
            "as": "new events at the end of the input",
            done: self.sent.total(),
            "by_reason": dict(self.sent),
            "by_partition": {str(number): count for number, count in sorted(self.partitions.items())},
            "not_sent": dict(self.kept),
            **({"unknown": self.unknown} if self.unknown else {}),
        }


async def send_again(settings: Settings, wanted: Filter, max_redrives: int, told: Replayed) -> None:
    """``told`` is right whatever happens. KafkaUnavailableError where the cluster did not acknowledge something: the rest
    was not sent."""
    link = connection(settings)
    partitions = await input_partitions(link, settings)
    producer = None
    if not told.dry_run:
        producer = await link.started(
            link.producer(acks="all", enable_idempotence=True, max_request_size=_LARGEST_BYTES)
        )
    try:
        async for found in letters(settings, wanted, told.kept):
            chosen = []
            for letter in found:
                why = why_not(letter, settings.input.topic, partitions, max_redrives)
                if why is None:
                    chosen.append(letter)
                else:
                    told.kept[why] += 1
            results: list[Any] = [None] * len(chosen)
            if producer is not None:
                results = await _send(producer, settings.input.topic, chosen)
            for letter, result in zip(chosen, results, strict=True):
                if result is None:
                    told.sent[letter.told.reason] += 1
                    told.partitions[letter.told.place[0]] += 1
            failed = [result for result in results if result is not None]
            if failed:
                told.unknown = len(failed)
                raise link.explain(failed[0], f"writing to {settings.input.topic!r}", right="WRITE") from failed[0]
    finally:
        if producer is not None:
            await producer.stop()


async def _send(producer: Any, topic: str, chosen: Sequence[Letter]) -> list[Exception | None]:
    """In order; per record what kept it from being acknowledged."""
    futures: list[Any] = []
    for letter in chosen:
        try:
            futures.append(
                await producer.send(
                    topic,
                    letter.value,
                    key=letter.key,
                    partition=letter.told.place[0],
                    timestamp_ms=letter.timestamp_ms if letter.timestamp_ms >= 0 else None,
                    headers=redriven(letter.told.headers),
                )
            )
        except (KafkaError, OSError, TimeoutError) as error:
            futures += [_failed(error)] * (len(chosen) - len(futures))
            break
    results = await asyncio.gather(*futures, return_exceptions=True)
    return [result if isinstance(result, Exception) else None for result in results]


async def _failed(error: Exception) -> None:
    raise error


def why_not(letter: Letter, topic: str, partitions: Collection[int], max_redrives: int) -> str | None:
    """Why a dead letter is not sent again; None: it is."""
    told = letter.told
    if not told.whole:
        return "not whole: value, headers or key did not fit the dead letter"
    if letter.value is None and told.reason in _OF_ANSWERS:
        return "of an answer or a window: there is no record to send"
    if letter.value is None and any(name == UNREADABLE_HEADER for name, _ in told.headers):
        return "of a batch that nobody can read: there is no record to send"
    try:
        partition, _ = told.place
    except ValueError:
        return "no source"
    if told.topic != topic:
        return f"of another input: {told.topic}"
    if partition not in partitions:
        return "its partition is gone"
    if redrives(told.headers) >= max_redrives:
        return f"replayed {max_redrives} times already"
    return None


def redrives(headers: Headers) -> int:
    """How often a record was replayed. Foreign text in the header counts as the bound itself: nothing may go round."""
    values = [value or b"" for name, value in headers if name == REDRIVE_HEADER]
    if not values:
        return 0
    return int(values[-1]) if values[-1].isdigit() and len(values[-1]) < 9 else 1_000_000


def redriven(headers: Headers) -> list[tuple[str, bytes | None]]:
    """The record's own headers, and the count of its replays."""
    kept = [header for header in headers if header[0] != REDRIVE_HEADER]
    return [*kept, (REDRIVE_HEADER, b"%d" % (redrives(headers) + 1))]
