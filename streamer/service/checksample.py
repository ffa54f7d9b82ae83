"""What ``check`` finds out by running the newest records through the models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streamer.core import LogFacts, RecordBatch, Reject, WindowAnswers, WrittenAnswers
from streamer.engine.processor import Processor
from streamer.engine.restore import Found, Names, Restore
from streamer.kafka.policies import OUTPUT
from streamer.records.decode import Codec
from streamer.service.answerschemas import choices_of, encoders_of
from streamer.service.prepare import Parts, processor_of
from streamer.service.sink import Sink
from streamer.settings import Settings
from streamer.words import Delivery

_END = 1 << 62
_SHOWN = 400
"""Characters of an answer."""


def tried(given: Settings, parts: Parts, codec: Codec, batches: Sequence[RecordBatch]) -> dict[str, Any]:
    """How many events, streams, answers and rejects there were, for programs. Every stream from its initial state, and
    nothing is kept."""
    decoded = [codec.decode(batch) for batch in batches]
    streams = {key for batch in decoded for key in batch.keys}
    ephemeral = given.delivery.model_copy(update={"mode": Delivery.EPHEMERAL})
    settings = given.model_copy(update={"delivery": ephemeral})
    processor = processor_of(settings, parts.models, codec, "")
    _begin(processor, batches, Names(parts.input.name, ""))
    processor.ingest(decoded)
    for _ in processor.run():
        pass
    while any(len(each.decodings) for each in processor.partitions.values()) and processor.roll():
        pass
    answers, rejects = processor.results()
    max_bytes = min(settings.output.max_batch_bytes, parts.input.max_bytes(OUTPUT))
    sink = Sink(
        [(name, model) for name, model, _ in parts.models],
        codec.keys,
        max_bytes=max_bytes,
        encoders=encoders_of(given, parts.models, codec.keys, {}),
        choices=choices_of(given, parts.models, {}),
    )
    encoded, refused = sink.encode(answers)
    values = [value for outgoing in encoded for value in outgoing.values]
    sample: dict[str, Any] = {
        "records": sum(map(len, batches)),
        "events": sum(map(len, decoded)),
        "streams": len(streams),
        "answers": len(values),
        "rejected": _by_reason([*rejects, *refused], parts.input.name),
        "answer": values[-1].decode("utf-8", "backslashreplace")[:_SHOWN] if values else None,
    }
    if any(rule is not None for *_, rule in parts.models):
        closed = [each.windows for each in answers if isinstance(each, WindowAnswers | WrittenAnswers)]
        sample["windows"] = sum(map(len, closed))
    return sample


def _begin(processor: Processor, batches: Sequence[RecordBatch], names: Names) -> None:
    for batch in batches:
        if batch.partition not in processor.partitions:
            first = batch.offsets[0]
            Restore(processor, batch.partition, names).finish(Found(LogFacts("", first, _END, _END), None, first))


def _by_reason(rejects: Sequence[Reject], topic: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for reject in rejects:
        known = found.setdefault(
            str(reject.reason),
            {"count": 0, "example": f"{topic}/{reject.partition}/{reject.offset}", "detail": reject.detail[:_SHOWN]},
        )
        known["count"] += 1
    return dict(sorted(found.items(), key=lambda each: -each[1]["count"]))
