"""The loop that people write by hand, as the documentation of its parts shows them: ``async for`` over the consumer, one
ONNX Runtime call and one ``send`` per event, keys partitioned by the producer, states in a dict.

What the service is compared with, in the same run. It answers correctly while nothing fails; a crash loses its states,
repeats predictions and may skip events. Run as ``python -m streamer.tools.bench.naive`` with a JSON document as argument.
"""

from __future__ import annotations

import asyncio
import io
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from streamer.modelfile.model import Model


async def serve(
    bootstrap: str,
    source: str,
    target: str,
    group: str,
    model_path: str,
    value_format: str,
    schema: str = "",
    *,
    stopping: asyncio.Event,
) -> None:
    """Long: it is the loop that people write by hand, and they write it in one piece.

    Until ``stopping``; ``value_format``: one of ``load.FORMATS``; ``schema``: the file of that of avro."""
    model = Model.load(model_path)
    names = [feature.name for feature in model.contract.feature_tables]
    decode = decoder_of(value_format, names, schema)
    name = f"{model.contract.name}@{model.contract.version}"
    states: dict[bytes, list[Any]] = {}
    one = np.ones(1, np.int32)
    consumer = AIOKafkaConsumer(
        source, bootstrap_servers=bootstrap, group_id=group, auto_offset_reset="earliest", enable_auto_commit=False
    )
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
    await consumer.start()
    await producer.start()
    committed = time.monotonic()

    async def loop() -> None:
        nonlocal committed
        async for record in consumer:
            x = decode(record.value)
            state = states.get(record.key) or model.initial_states(1)
            (y, *_), states[record.key] = model.run(x[None, None, :], one, state)
            answer = y[0, 0].tolist()
            value = {
                "stream": record.key.decode(),
                "ts": record.timestamp,
                "y": answer[0] if len(answer) == 1 else answer,
                "model": name,
            }
            await producer.send(
                target,
                json.dumps(value).encode(),
                key=record.key,
                timestamp_ms=record.timestamp,
                headers=[("streamer-source", f"{source}/{record.partition}/{record.offset}".encode())],
            )
            if time.monotonic() - committed > 1.0:
                await producer.flush()
                await consumer.commit()
                committed = time.monotonic()

    serving = asyncio.create_task(loop())
    stop = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({serving, stop}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
    finally:
        serving.cancel()
        stop.cancel()
        await asyncio.gather(serving, stop, return_exceptions=True)
        await producer.stop()
        await consumer.stop()


def decoder_of(value_format: str, names: list[str], schema: str) -> Callable[[bytes], Any]:
    """A value to float32 [F]."""
    if value_format == "json":
        return lambda value: np.array(json.loads(value)["x"], np.float32)
    if value_format == "float32":
        return lambda value: np.frombuffer(value, "<f4")
    if value_format == "avro":
        import fastavro  # noqa: PLC0415 - optional

        written = fastavro.parse_schema(json.loads(Path(schema).read_text()))
        read = fastavro.schemaless_reader
        return lambda value: _named(read(io.BytesIO(value), written, None), names)
    return lambda value: _named(json.loads(value), names)


def _named(event: Any, names: list[str]) -> Any:
    return np.array([event[name] for name in names], np.float32)


async def main() -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await serve(**json.loads(sys.argv[1]), stopping=stopping)


if __name__ == "__main__":
    asyncio.run(main())
