"""In which partition a stream lies. Where a producer puts a key is the producer's business, so it is looked up: in the
changelog, or else among the newest records of the input."""

from __future__ import annotations

from dataclasses import dataclass, field

from streamer.core import RecordBatch
from streamer.errors import ConfigurationError
from streamer.kafka.client import Connection
from streamer.kafka.input import Input
from streamer.kafka.partitioners import PARTITIONERS
from streamer.kafka.restore import Restorer
from streamer.kafka.tails import read_span
from streamer.kafka.topics import Topics
from streamer.records.changelog import Kind, StreamRecord, decode_progress, decode_stream, progress_key, split_key
from streamer.records.decode import OP_HEADER
from streamer.records.keys import Keys
from streamer.service.wiring import connection
from streamer.settings import Settings
from streamer.words import Delivery, KeyForm

_FETCH_BYTES = 8_388_608


@dataclass
class Known:
    """What the changelog holds of one stream, by partition."""

    states: dict[int, dict[str, StreamRecord]] = field(default_factory=dict)
    """Model -> its state"""
    traces: set[int] = field(default_factory=set)
    """Partitions where only the end of a state or of a window is told"""
    positions: dict[int, int] = field(default_factory=dict)
    """Of each partition that has a progress record"""

    @property
    def partitions(self) -> list[int]:
        """Those with a state; else those that knew the stream."""
        return sorted(self.states or self.traces)


@dataclass(frozen=True)
class Place:
    """A partition, and how it was found: partition, murmur2, crc32, instance, changelog, input."""

    partition: int
    found_by: str


async def input_partitions(link: Connection, settings: Settings) -> tuple[int, ...]:
    async with Topics(link) as topics:
        return await topics.partitions(settings.input.topic)


async def read_changelog(settings: Settings, stream: bytes) -> Known:
    """Reads all of the changelog: its newest records of a stream may be anywhere. ConfigurationError where there is none."""
    topic = settings.changelog_topic
    if topic is None:
        raise ConfigurationError('delivery.mode = "ephemeral" keeps no changelog: ask an instance, --url')
    link, known = connection(settings), Known()
    async with Topics(link) as topics:
        if not await topics.exists(topic):
            return known
        partitions = list(await topics.partitions(topic))

    def look(piece: RecordBatch, done: int, size: int) -> None:
        del done, size
        for key, value in zip(piece.keys, piece.values, strict=True):
            if key == progress_key() and value is not None:
                known.positions[piece.partition] = decode_progress(value).position
            elif key is not None and key[0] in (Kind.STATE, Kind.WINDOW) and split_key(key)[2] == stream:
                _note(known, piece.partition, key, value)

    async with Restorer(link, topic, own_ids=set(), fetch_bytes=_FETCH_BYTES) as restorer:
        async for _ in restorer.read(await restorer.stable_ends(partitions), on_piece=look):
            pass
    return known


def _note(known: Known, partition: int, key: bytes, value: bytes | None) -> None:
    kind, model, _ = split_key(key)
    record = None if value is None else decode_stream(key, value)
    if record is not None and record.state is not None and kind is Kind.STATE:
        known.states.setdefault(partition, {})[model] = record
        return
    if record is not None:
        known.traces.add(partition)
    if kind is Kind.STATE and partition in known.states:
        known.states[partition].pop(model, None)
        if not known.states[partition]:
            del known.states[partition]


async def locate(settings: Settings, stream: bytes, *, search: int) -> Place | None:
    """By the changelog, or by the newest ``search`` records of the input; None: the stream is in neither.

    ConfigurationError where it is in several partitions, since then only people know which is meant."""
    if settings.changelog_topic is not None:
        known = (await read_changelog(settings, stream)).partitions
        if known:
            return Place(_only(known, stream, f"changelog {settings.changelog_topic!r}"), "changelog")
    found = await _search(settings, raw_key(settings, stream), search)
    return Place(_only(found, stream, f"input {settings.input.topic!r}"), "input") if found else None


def _only(partitions: list[int], stream: bytes, where: str) -> int:
    if len(partitions) > 1:
        raise ConfigurationError(
            f"stream {stream.decode()!r} is in partitions {partitions} of {where}: producers with different partitioners, or "
            "an earlier command that went elsewhere. Say which is meant with --partition."
        )
    return partitions[0]


async def placed(settings: Settings, stream: bytes, partition: int | None, partitioner: str | None) -> Place | None:
    """Where the user says; None where that is nothing. ConfigurationError for a partition that is not there."""
    if partition is None and partitioner is None:
        return None
    if partition is not None and partitioner is not None:
        raise ConfigurationError("--partition and --partitioner say the same twice: give one")
    known = await input_partitions(connection(settings), settings)
    if partition is not None:
        if partition not in known:
            raise ConfigurationError(f"--partition {partition}: {settings.input.topic!r} has {len(known)} partitions")
        return Place(partition, "partition")
    assert partitioner is not None
    if partitioner not in PARTITIONERS:
        raise ConfigurationError(f"--partitioner {partitioner!r}: one of {', '.join(PARTITIONERS)}")
    return Place(PARTITIONERS[partitioner](raw_key(settings, stream), len(known)), partitioner)


def raw_key(settings: Settings, stream: bytes) -> bytes:
    """The bytes of the stream's key. ConfigurationError: no key of the declared form is written like this."""
    form = KeyForm(settings.input.key)
    try:
        return Keys(form).raw(stream)
    except ValueError as error:
        raise ConfigurationError(f"stream {stream.decode()!r}: {error} (input.key = {form.value!r})") from None


async def _search(settings: Settings, key: bytes, records: int) -> list[int]:
    """Partitions that hold events of ``key`` among their newest records, ``records`` in all. Commands do not count: one of
    them may have gone elsewhere."""
    link = connection(settings)
    partitions = await input_partitions(link, settings)
    ephemeral = settings.delivery.mode is Delivery.EPHEMERAL
    isolation = "read_uncommitted" if ephemeral else "read_committed"
    reader = Input.of_log(link, settings.input.topic, fetch_bytes=_FETCH_BYTES, isolation_level=isolation)
    await reader.start()
    try:
        begins, ends = await reader.beginnings(partitions), await reader.ends(partitions)
        share = -(-records // len(partitions))
        found: set[int] = set()
        async for batch in read_span(
            reader, {part: (max(begins[part], ends[part] - share), ends[part]) for part in partitions}
        ):
            for row, each in enumerate(batch.keys):
                if each == key and not any(name == OP_HEADER for name, _ in batch.headers.get(row, ())):
                    found.add(batch.partition)
        return sorted(found)
    finally:
        await reader.stop()
