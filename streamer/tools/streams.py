"""``streamer stream show | reset | end | generate``: one stream, seen from outside.

``show`` asks the instance that owns the stream, or reads the changelog. ``reset``, ``end`` and ``generate`` are records in
the input topic, so they are ordered with the stream's events and replayed like them.
"""

from __future__ import annotations

import asyncio
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Annotated, Any

import typer

from streamer.core import RecordBatch
from streamer.errors import ConfigurationError, KafkaUnavailableError
from streamer.kafka.client import KafkaError
from streamer.kafka.restore import Restorer
from streamer.kafka.topics import Topics
from streamer.records.changelog import Kind, decode_progress, decode_stream, progress_key, split_key
from streamer.service.wiring import connection
from streamer.settings import Settings, load_settings

stream_app = typer.Typer(no_args_is_help=True, help="Look at one stream, reset it, end it.")

Key = Annotated[str, typer.Argument(help="The stream: the key of its records")]
Config = Annotated[Path | None, typer.Option("--config", "-c", help="Settings, TOML")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="section.key=value")]
Partition = Annotated[
    int | None, typer.Option(help="Partition of the stream; by default where Kafka's clients put its key")
]


@stream_app.command()
def show(
    key: Key,
    config: Config = None,
    overrides: Overrides = None,
    url: Annotated[str | None, typer.Option(help="Address of the owning instance, http://HOST:PORT")] = None,
) -> None:
    """State, last event and offset of a stream as JSON: live from its instance, or the last checkpoint's."""
    if url is not None:
        found = ask(url, key)
    else:
        settings, _ = load_settings(config, overrides or (), os.environ)
        found = asyncio.run(read_checkpoint(settings, key.encode()))
    print(json.dumps(found))


@stream_app.command()
def reset(key: Key, config: Config = None, overrides: Overrides = None, partition: Partition = None) -> None:
    """Back to the initial state, after the events that are in the log now."""
    _command(key, "reset", config, overrides, partition)


@stream_app.command()
def end(key: Key, config: Config = None, overrides: Overrides = None, partition: Partition = None) -> None:
    """Say that the stream's sequence ended: its window closes, its state is forgotten."""
    _command(key, "end", config, overrides, partition)


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
    partition: Partition = None,
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
    _command(key, "generate", config, overrides, partition, json.dumps(asked).encode())


def _command(
    key: str, what: str, config: Path | None, overrides: list[str] | None, partition: int | None, value: bytes = b""
) -> None:
    settings, _ = load_settings(config, overrides or (), os.environ)
    where, offset = asyncio.run(send_command(settings, key.encode(), what, partition, value))
    print(json.dumps({"topic": settings.input.topic, "partition": where, "offset": offset, "stream": key, "op": what}))


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
    topic = settings.changelog_topic
    if topic is None:
        raise ConfigurationError('delivery.mode = "ephemeral" keeps no changelog: ask an instance, --url')
    link = connection(settings)
    async with Topics(link) as topics:
        partitions = list(await topics.partitions(topic))
    models: dict[str, Any] = {}
    progress: dict[int, int] = {}
    at: int | None = None

    def look(piece: RecordBatch, done: int, size: int) -> None:
        nonlocal at
        del done, size
        for key, value in zip(piece.keys, piece.values, strict=True):
            if key == progress_key() and value is not None:
                progress[piece.partition] = decode_progress(value).position
            elif key is not None and key[0] == Kind.STATE and split_key(key)[2] == stream:
                record = None if value is None else decode_stream(key, value)
                if record is None or record.state is None:
                    models.pop(split_key(key)[1], None)
                else:
                    at = piece.partition
                    models[record.model] = {
                        "through_offset": record.through,
                        "last_event_ms": record.last_ms,
                        "state_bytes": len(record.state),
                        "model_id": record.model_id.hex(),
                    }

    async with Restorer(link, topic, own_ids=set(), fetch_bytes=8_388_608) as restorer:
        async for _ in restorer.read(await restorer.stable_ends(partitions), on_piece=look):
            pass
    if not models or at is None:
        raise ConfigurationError(
            f"stream {stream.decode()!r} has no state in {topic!r}: it is unknown, forgotten, or younger than a round"
        )
    return {"stream": stream.decode(), "partition": at, "position": progress.get(at), "models": models, "from": topic}


async def send_command(
    settings: Settings, stream: bytes, what: str, partition: int | None, value: bytes = b""
) -> tuple[int, int]:
    """Writes the record; (partition, offset) where it lies."""
    link = connection(settings)
    async with Topics(link) as topics:
        known = await topics.partitions(settings.input.topic)
    if partition is not None and partition not in known:
        raise ConfigurationError(f"--partition {partition}: {settings.input.topic!r} has {len(known)} partitions")
    producer = await link.started(link.producer(acks="all"))
    try:
        sent = await producer.send_and_wait(
            settings.input.topic, value, key=stream, partition=partition, headers=[("streamer-op", what.encode())]
        )
        return sent.partition, sent.offset
    except (KafkaError, OSError, TimeoutError) as error:
        raise link.explain(error, f"writing to {settings.input.topic!r}") from error
    finally:
        await producer.stop()
