"""``streamer stream show | reset | end | generate``: one stream, seen from outside.

``show`` asks the instance that owns the stream, or reads the changelog. ``reset``, ``end`` and ``generate`` are records in
the input topic, so they are ordered with the stream's events and replayed like them. They reach the partition that holds
the stream (``streamer.tools.locate``), whatever put it there; a stream that is nowhere is refused.
"""

from __future__ import annotations

import asyncio
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from streamer.errors import ConfigurationError, KafkaUnavailableError
from streamer.generate.request import Refused, parse_request
from streamer.generate.rollouts import Generators
from streamer.kafka.client import KafkaError
from streamer.kafka.partitioners import PARTITIONERS
from streamer.modelfile.carried import Carried
from streamer.modelfile.model import Model
from streamer.records.decode import OP_HEADER
from streamer.records.keys import Keys
from streamer.service.wiring import connection
from streamer.settings import Settings, load_settings
from streamer.tools.locate import Place, locate, placed, raw_key, read_changelog

stream_app = typer.Typer(
    no_args_is_help=True, help="Look at one stream, reset it, end it, let the model go on from it."
)


def _as_stream(key: str) -> str:
    """As it is. What is no text on a command line comes as halves of surrogates, and no stream is called so."""
    try:
        key.encode()
    except UnicodeEncodeError:
        raise typer.BadParameter("it is not UTF-8, as all names of streams are: write it as input.key does") from None
    return key


Key = Annotated[
    str, typer.Argument(callback=_as_stream, help="The stream: the key of its records, as input.key writes it")
]
Config = Annotated[Path | None, typer.Option("--config", "-c", help="Settings, TOML")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="section.key=value")]
Url = Annotated[
    str | None, typer.Option(help="Address of the owning instance, http://HOST:PORT: it knows where the stream is")
]
Partition = Annotated[int | None, typer.Option(help="Partition of the stream; default: looked up")]
Partitioner = Annotated[
    str | None,
    typer.Option(help=f"How producers choose it: {' or '.join(PARTITIONERS)} (librdkafka); default: looked up"),
]
Search = Annotated[
    int, typer.Option(min=1, max=100_000_000, help="Newest records of the input to look through without state")
]
_SEARCH = 200_000


@dataclass(frozen=True)
class Where:
    """How a command finds the partition of its stream."""

    url: str | None = None
    partition: int | None = None
    partitioner: str | None = None
    search: int = _SEARCH


@stream_app.command()
def show(
    key: Key,
    config: Config = None,
    overrides: Overrides = None,
    url: Url = None,
) -> None:
    """State, last event and offset of a stream as JSON: live from its instance, or the last checkpoint's."""
    if url is not None:
        found = ask(url, key)
    else:
        settings, _ = load_settings(config, overrides or (), os.environ)
        found = asyncio.run(read_checkpoint(settings, key.encode()))
    print(json.dumps(found))


@stream_app.command()
def reset(
    key: Key,
    config: Config = None,
    overrides: Overrides = None,
    url: Url = None,
    partition: Partition = None,
    partitioner: Partitioner = None,
    search: Search = _SEARCH,
) -> None:
    """Back to the initial state, after the events that are in the log now."""
    settings, _ = load_settings(config, overrides or (), os.environ)
    _command(settings, key, "reset", Where(url, partition, partitioner, search))


@stream_app.command()
def end(
    key: Key,
    config: Config = None,
    overrides: Overrides = None,
    url: Url = None,
    partition: Partition = None,
    partitioner: Partitioner = None,
    search: Search = _SEARCH,
) -> None:
    """Say that the stream's sequence ended: its window closes, its state is forgotten."""
    settings, _ = load_settings(config, overrides or (), os.environ)
    _command(settings, key, "end", Where(url, partition, partitioner, search))


@stream_app.command()
def generate(
    key: Key,
    steps: Annotated[int, typer.Option("-n", "--steps", min=1, help="Steps to generate")] = 100,
    prompt: Annotated[str | None, typer.Option(help="Comes first: a text, or JSON: a list of labels or events")] = None,
    temperature: Annotated[float | None, typer.Option(help="0: the most probable; default: as the model says")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw among the k most probable only")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same sequence")] = 0,
    initial: Annotated[bool, typer.Option("--initial", help="From the initial state instead of the stream's")] = False,
    per_step: Annotated[bool, typer.Option("--per-step", help="One answer per step")] = False,
    config: Config = None,
    overrides: Overrides = None,
    url: Url = None,
    partition: Partition = None,
    partitioner: Partitioner = None,
    search: Search = _SEARCH,
) -> None:
    """Roll the model forward from the stream's state; the sequence comes in the output topic. The stream stays as it is."""
    asked: dict[str, Any] = {"n": steps, "seed": seed, "per_step": per_step}
    asked |= {"from": "initial"} if initial else {}
    asked |= {"temperature": temperature} if temperature is not None else {}
    asked |= {"top_k": top_k} if top_k is not None else {}
    if prompt is not None:
        try:
            asked["prompt"] = json.loads(prompt) if prompt.startswith("[") else prompt
        except ValueError as error:
            raise ConfigurationError(f"--prompt begins like a JSON list, but is none: {error}") from error
    settings, _ = load_settings(config, overrides or (), os.environ)
    value = json.dumps(asked).encode()
    check_request(settings, value)
    _command(settings, key, "generate", Where(url, partition, partitioner, search), value, anywhere=initial)


def check_request(settings: Settings, value: bytes) -> None:
    """Refuses at once what the service would refuse in the dead letters. ConfigurationError says why; ModelError where a
    model cannot be read."""
    models = [
        (name, Carried(Model.load(section.path, sha256=section.sha256, probe=False)))
        for name, section in settings.model.items()
        if section.window is None
    ]
    generators = Generators(models, settings.rollouts, Keys())
    if not generators.by_name:
        raise ConfigurationError(
            f"no model of this service can go on alone ({', '.join(settings.model)}): none declares feedback, or it has a "
            "window. The card of a model says whether it generates (streamer inspect)."
        )
    try:
        generators.by_name[generators.asked(value)].first_events(parse_request(value, settings.rollouts), None)
    except Refused as refused:
        raise ConfigurationError(f"the service would refuse this: {refused.detail} ({refused.reason})") from None


def _command(
    settings: Settings, key: str, what: str, where: Where, value: bytes = b"", *, anywhere: bool = False
) -> None:
    stream = key.encode()
    place, offset = asyncio.run(command(settings, stream, what, where, value, anywhere=anywhere))
    told = {"topic": settings.input.topic, "partition": place.partition, "offset": offset, "stream": key, "op": what}
    print(json.dumps({**told, "found_by": place.found_by}))


async def command(
    settings: Settings, stream: bytes, what: str, where: Where, value: bytes = b"", *, anywhere: bool = False
) -> tuple[Place, int]:
    """Finds the stream and writes the record behind its events: (where, offset). ``anywhere``: any partition serves, for
    who needs nothing of the stream. ConfigurationError: the stream is nowhere."""
    raw_key(settings, stream)
    place = await placed(settings, stream, where.partition, where.partitioner)
    stateful = any(section.window is None for section in settings.model.values())
    if place is None and where.url is not None and stateful:  # an instance tells of states only
        found = await asyncio.to_thread(ask, where.url, stream.decode())
        place = Place(int(found["partition"]), "instance")
    if place is None:
        place = await locate(settings, stream, search=where.search)
    if place is None and anywhere:
        place = await placed(settings, stream, None, "murmur2")
    if place is None:
        logs = "" if settings.changelog_topic is None else f"the changelog {settings.changelog_topic!r} nor in "
        raise ConfigurationError(
            f"stream {stream.decode()!r} is nowhere: not in {logs}the newest {where.search} records of "
            f"{settings.input.topic!r}. Is input.key right? Look further with --search, or say where it will be with "
            "--partition or --partitioner."
        )
    return place, await send_command(settings, stream, what, place.partition, value)


def ask(url: str, key: str) -> dict[str, Any]:
    """``/streams/KEY`` of a running instance. ConfigurationError when the stream is not there, KafkaUnavailableError
    when nobody answers."""
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"--url {url!r} is no address: give http://HOST:PORT of an instance")
    target = f"{url.rstrip('/')}/streams/{urllib.parse.quote(key, safe='')}"
    try:
        with urllib.request.urlopen(target, timeout=10) as answer:  # noqa: S310 - http(s) only, see above
            document: dict[str, Any] = json.load(answer)
            return document
    except urllib.error.HTTPError as error:
        raise ConfigurationError(
            f"stream {key!r} is not at {url} ({error.code}): ask the instance that owns its partition"
        ) from error
    except (OSError, ValueError) as error:
        raise KafkaUnavailableError(f"{url} does not answer: {error}") from error


async def read_checkpoint(settings: Settings, stream: bytes) -> dict[str, Any]:
    """What the changelog knows of a stream; its state there is as old as the last checkpoint round."""
    known, topic = await read_changelog(settings, stream), settings.changelog_topic
    if not known.states:
        raise ConfigurationError(
            f"stream {stream.decode()!r} has no state in {topic!r}: it is unknown, forgotten, or younger than a round"
        )
    at = max(known.states, key=lambda number: max(each.last_ms for each in known.states[number].values()))
    models = {
        model: {
            "through_offset": record.through,
            "last_event_ms": record.last_ms,
            "state_bytes": len(record.state or b""),
            "model_id": record.model_id.hex(),
        }
        for model, record in known.states[at].items()
    }
    found = {"stream": stream.decode(), "partition": at, "position": known.positions.get(at), "models": models}
    others = [number for number in known.partitions if number != at]
    return {**found, "from": topic, **({"also_in_partitions": others} if others else {})}


async def send_command(settings: Settings, stream: bytes, what: str, partition: int, value: bytes = b"") -> int:
    """Writes the record; the offset where it lies."""
    link = connection(settings)
    producer = await link.started(link.producer(acks="all"))
    try:
        sent = await producer.send_and_wait(
            settings.input.topic,
            value,
            key=raw_key(settings, stream),
            partition=partition,
            headers=[(OP_HEADER, what.encode())],
        )
        return int(sent.offset)
    except (KafkaError, OSError, TimeoutError) as error:
        raise link.explain(error, f"writing to {settings.input.topic!r}", right="WRITE") from error
    finally:
        await producer.stop()
