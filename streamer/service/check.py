"""All that ``run`` does before it joins the group, without a trace: nothing is created, committed or joined.

Every step that can go on goes on, so one look finds as much as there is. The first problem is the one that ``run`` would end
with, and gives the exit code.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import nlargest
from typing import Any, TypeVar

from streamer.core import LogFacts, RecordBatch
from streamer.engine.lanes import check_models
from streamer.engine.restore import Found, Names, Restore
from streamer.errors import ConfigurationError, DataLossError, KafkaRefusedError, ModelError, StreamerError
from streamer.kafka.client import Connection
from streamer.kafka.input import Input
from streamer.kafka.policies import CHANGELOG, DEAD_LETTER, INPUT, OUTPUT, topic_names, topic_needs
from streamer.kafka.tails import chosen, newest_values, read_span
from streamer.kafka.topics import InputTopic, Topics
from streamer.records.changelog import Progress, decode_progress, progress_key
from streamer.records.decode import Codec
from streamer.service import mapping
from streamer.service.answerschemas import answer_schemas
from streamer.service.checkformat import format_lines, format_told, learned
from streamer.service.checksample import tried
from streamer.service.clock import SystemClock
from streamer.service.prepare import (
    Models,
    Parts,
    codec_of,
    connection,
    judged,
    load_model,
    processor_of,
    state_bytes,
    utterances,
)
from streamer.settings import Settings
from streamer.words import Delivery

T = TypeVar("T")

_FETCH_BYTES = 8_388_608
_TELL_S = 3.0
"""Between two signs of life while somebody does not answer."""
_RIGHTS: Mapping[str, tuple[str, ...]] = {
    INPUT: ("READ",),
    OUTPUT: ("WRITE",),
    DEAD_LETTER: ("WRITE",),
    CHANGELOG: ("READ", "WRITE"),
}


@dataclass
class Report:
    """What was found. ``settings``: key -> (value, origin)."""

    settings: dict[str, tuple[str, str]] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    topics: dict[str, dict[str, Any]] = field(default_factory=dict)
    group: dict[str, Any] = field(default_factory=dict)
    format: dict[str, Any] = field(default_factory=dict)
    features: list[mapping.Mapped] = field(default_factory=list)
    time: str = ""
    sample: dict[str, Any] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    """What predictions carry, where settings choose it"""
    decoder: str = ""
    """Which code reads records"""
    warnings: list[str] = field(default_factory=list)
    problems: list[StreamerError] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """As ``run`` would have."""
        return self.problems[0].exit_code if self.problems else 0

    @property
    def verdict(self) -> str:
        if self.problems:
            return f"check: {_counted(len(self.problems), 'problem')}"
        return "check: ok" + (f", {_counted(len(self.warnings), 'warning')}" if self.warnings else "")

    def as_dict(self) -> dict[str, Any]:
        return {
            "ok": not self.problems,
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "settings": {key: {"value": value, "origin": origin} for key, (value, origin) in self.settings.items()},
            "models": self.models,
            "topics": self.topics,
            "group": self.group,
            "format": self.format,
            "features": [each.as_dict() for each in self.features],
            "decoder": self.decoder,
            "answers": self.answers,
            "sample": self.sample,
            "warnings": self.warnings,
            "problems": [{"exit_code": each.exit_code, "error": str(each)} for each in self.problems],
        }

    def lines(self) -> Iterator[str]:
        """For people; settings and problems apart."""
        for name, model in self.models.items():
            yield f"model {name}: {model['mode']}, {model['state_bytes']} bytes of state per stream, sha256 {model['sha256']}"
        if self.decoder:
            yield f"records are read by {self.decoder}"
        for what, topic in self.topics.items():
            there = "" if topic["exists"] else ", would be created"
            yield f"{what} {topic['name']}: {_counted(topic['partitions'], 'partition')}{there}"
        if self.group:
            yield f"kafka.group {self.group['name']}: {self.group['says']}"
        if self.format:
            yield from format_lines(self.format)
        yield from mapping.lines(self.time, self.features)
        yield from mapping.answer_lines(self.answers)
        if self.sample:
            yield from self._sample_lines()
        yield from (f"warning: {each}" for each in self.warnings)

    def _sample_lines(self) -> Iterator[str]:
        sample = self.sample
        yield (
            f"newest {_counted(sample['records'], 'record')}: {_counted(sample['events'], 'event')} of "
            f"{_counted(sample['streams'], 'stream')}, {_counted(sample['answers'], 'answer')}"
            + (f" ({_counted(sample['windows'], 'closed window')})" if "windows" in sample else "")
        )
        for reason, found in sample["rejected"].items():
            yield f"  {found['count']} would be rejected as {reason}, like {found['example']}: {found['detail']}"
        if sample.get("answer"):
            yield f"  an answer: {sample['answer']}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


async def examine(
    settings: Settings, report: Report, *, sample: int, say: Callable[[str], None] = lambda _: None
) -> None:
    """Fills the report. ``sample``: how many of the newest records are tried; ``say``: told while somebody is waited for."""
    await _Check(settings, report, sample, say).run()


class _Check:
    def __init__(self, settings: Settings, report: Report, sample: int, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._report = report
        self._sample = min(sample, settings.batch.max_poll_records)
        self._say = say
        self._rights_missing: dict[str, list[str]] = {}
        self._id_denied = False
        self._committed: dict[int, int | None] = {}

    async def run(self) -> None:
        models = self._models()
        served = len(models) == len(self._settings.model)
        codec = self._fitting(models) if served else None
        try:
            link = connection(self._settings)
            found = await self._topics(link, models)
        except StreamerError as error:
            self._report.problems.append(error)
            return
        self._judge(models, found)
        parts = Parts(self._settings, models, link, found)
        if codec is not None and "READ" not in self._rights_missing[INPUT]:
            try:
                await self._patiently(self._logs(parts, codec), "records")
            except StreamerError as error:
                self._report.problems.append(error)

    def _models(self) -> Models:
        models: Models = []
        for name, section in self._settings.model.items():
            try:
                model = load_model(self._settings, name)
            except ModelError as error:
                self._report.problems.append(error)
                continue
            models.append((name, model, section.window))
            self._report.models[name] = {
                "sha256": model.sha256,
                "mode": "window" if section.window is not None else model.contract.mode,
                "state_bytes": self._bytes(models[-1:]),
                "findings": {finding.name: finding.detail for finding in model.findings if not finding.passed},
            }
            self._report.warnings += [
                f"model {name}: {finding.name}: {finding.detail}" for finding in model.findings if not finding.passed
            ]
        return models

    def _bytes(self, models: Models) -> int:
        """Of state per stream; what settings and contract do not agree about is told when they are fitted together."""
        try:
            return state_bytes(self._settings, models)
        except ConfigurationError:
            return max(model.state_bytes_per_stream for _, model, _ in models)

    def _fitting(self, models: Models) -> Codec | None:
        """The codec, when models, windows and format can be served together."""
        try:
            codec = codec_of(self._settings, models)
            self._report.decoder = codec.decoder
            check_models(models)
            answer_schemas(self._settings, models)
            utterances(self._settings, models)
        except ConfigurationError as error:
            self._report.problems.append(error)
            return None
        self._report.features = mapping.mapping(self._settings, models)
        self._report.time = mapping.time(self._settings)
        self._report.answers = self._settings.output.fields
        return codec

    # topics

    async def _topics(self, link: Connection, models: Models) -> InputTopic:
        """What is there; also which rights are missing, and where the group is."""
        settings = self._settings
        topics = Topics(link)
        at_most = f" (at most {link.connect_timeout_ms / 1000:.0f} s, kafka.connect_timeout_ms)"
        await self._patiently(topics.__aenter__(), f"Kafka at {link.bootstrap}{at_most}")
        try:
            work = topics.prepare(
                settings.input.topic,
                topic_needs(settings, state_bytes(settings, models)),
                create=settings.topics.create,
                dry=True,
                now_ms=SystemClock().now_ms,
            )
            found = await self._patiently(work, "topics")
            absent = {need.what for need in found.missing}
            names = topic_names(settings)
            for what, name in names.items():
                self._report.topics[what] = {
                    "name": name, "partitions": len(found.partitions), "exists": what not in absent,
                }  # fmt: skip
            self._rights_missing = {
                what: [] if what in absent else await topics.missing_rights(name, _RIGHTS[what])
                for what, name in names.items()
            }
            if settings.changelog_topic is not None:
                self._id_denied = await topics.transactional_id_denied(settings.kafka.group)
            work_offsets = topics.committed(settings.kafka.group, found.name, found.partitions)
            self._committed = await self._patiently(work_offsets, f"the coordinator of group {settings.kafka.group}")
            return found
        finally:
            await topics.__aexit__()

    def _judge(self, models: Models, found: InputTopic) -> None:
        judgement = judged(self._settings, models, found)
        self._report.problems += [ConfigurationError(each) for each in judgement.errors]
        self._report.warnings += judgement.warnings
        if self._id_denied:
            prefix = self._settings.kafka.group
            self._report.problems.append(
                KafkaRefusedError(
                    f"permission denied: no right to transactional ids that begin with {prefix!r}. Grant WRITE and DESCRIBE on "
                    "them to this client's principal."
                )
            )
        names = topic_names(self._settings)
        for what, rights in self._rights_missing.items():
            if rights:
                asked = " and ".join(rights)
                self._report.problems.append(
                    KafkaRefusedError(
                        f"permission denied: no right to {asked} topic {names[what]!r} ({what}). Grant {asked} to this "
                        "client's principal."
                    )
                )

    # logs

    async def _logs(self, parts: Parts, codec: Codec) -> None:
        """Judges the changelog's progress, then tries the newest records."""
        committed_only = self._settings.delivery.mode is not Delivery.EPHEMERAL
        reader = Input.of_log(
            parts.connection,
            parts.input.name,
            fetch_bytes=max(_FETCH_BYTES, self._settings.kafka.max_partition_fetch_bytes),
            isolation_level="read_committed" if committed_only else "read_uncommitted",
        )
        await reader.start()
        try:
            changelog = parts.input.configs.get(CHANGELOG)
            progress: dict[int, Progress] = {}
            if changelog is not None and "READ" not in self._rights_missing[CHANGELOG]:
                progress = await self._progress(parts)
            facts = await reader.facts(parts.input.partitions)
            self._states(parts, codec, facts, progress)
            if self._sample:
                batches = await self._newest(reader, facts)
                known = await learned(self._settings, codec, batches)
                self._report.format = format_told(self._settings, known)
                if self._report.features:
                    mapping.try_on(self._settings, parts.models, batches, self._report.features, known)
                self._report.sample = sample = tried(self._settings, parts, codec, batches)
                if batches and not sample["streams"]:
                    self._report.warnings.append(
                        f"none of the newest {sample['records']} records of {parts.input.name!r} is an event: check "
                        "input.format, input.key and input.time_unit"
                    )
        finally:
            await reader.stop()

    async def _progress(self, parts: Parts) -> dict[int, Progress]:
        topic = self._settings.changelog_topic
        assert topic is not None
        reader = Input.of_log(parts.connection, topic, fetch_bytes=_FETCH_BYTES)
        await reader.start()
        try:
            found = await newest_values(reader, parts.input.partitions, progress_key())
        finally:
            await reader.stop()
        return {partition: decode_progress(value) for partition, value in found.items()}

    def _states(
        self, parts: Parts, codec: Codec, facts: Mapping[int, LogFacts], progress: Mapping[int, Progress]
    ) -> None:
        """Judged by what restores them, from their progress records alone."""
        settings = self._settings
        processor = processor_of(settings, parts.models, codec, parts.input.topic_id)
        names = Names(settings.input.topic, settings.changelog_topic or "")
        refused: list[DataLossError] = []
        for number in parts.input.partitions:
            restore = Restore(processor, number, names)
            restore.collected.progress = progress.get(number)
            try:
                restore.finish(Found(facts[number], self._committed[number], facts[number].begin))
            except DataLossError as error:
                refused.append(error)
            processor.drop(number)
        if refused:
            more = f" ({len(refused)} partitions are like this)" if len(refused) > 1 else ""
            self._report.problems.append(DataLossError(f"{refused[0]}{more}"))
        known = {number: each.position for number, each in progress.items()} or {
            number: offset for number, offset in self._committed.items() if offset is not None
        }
        behind = sum(max(facts[number].stable - position, 0) for number, position in known.items())
        says = f"{_counted(behind, 'record')} behind in {_counted(len(known), 'partition')}"
        self._report.group = {
            "name": settings.kafka.group,
            "positions": known,
            "behind": behind,
            "says": says if known else f"new, begins at input.start = {settings.input.start}",
        }

    async def _newest(self, reader: Input, facts: Mapping[int, LogFacts]) -> list[RecordBatch]:
        """The newest records of all partitions together, per partition in order."""
        ends = await reader.ends(facts)
        spans = {number: (max(facts[number].begin, end - self._sample), end) for number, end in ends.items()}
        batches = [batch async for batch in read_span(reader, spans)]
        rows = ((stamp, at, row) for at, batch in enumerate(batches) for row, stamp in enumerate(batch.timestamps_ms))
        taken: dict[int, list[int]] = {}
        for _, at, row in nlargest(self._sample, rows):
            taken.setdefault(at, []).append(row)
        return [chosen(batches[at], sorted(rows)) for at, rows in sorted(taken.items())]

    async def _patiently(self, work: Coroutine[Any, Any, T], what: str) -> T:
        """The work's result, with a sign of life every few seconds."""
        task, waited_s = asyncio.create_task(work), 0.0
        try:
            while not (await asyncio.wait((task,), timeout=_TELL_S))[0]:
                waited_s += _TELL_S
                self._say(f"waiting for {what}: {waited_s:.0f} s")
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
