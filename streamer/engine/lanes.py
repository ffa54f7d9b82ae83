"""What the partitions of a process share: a lane per model, made from the models and their settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from streamer.engine.emitting import Emitting
from streamer.engine.lane import StepLane
from streamer.engine.windowlane import WindowLane
from streamer.errors import ConfigurationError
from streamer.generate.decodings import Decoder
from streamer.generate.rollouts import Generators
from streamer.modelfile.carried import Carried
from streamer.modelfile.model import Model
from streamer.modelfile.past import Past
from streamer.records.changelog import Identity
from streamer.records.keys import Keys
from streamer.settings import (
    BatchSection,
    DecodeSection,
    DeliverySection,
    GenerateSection,
    StateSection,
    UtteranceSection,
)
from streamer.state.table import STREAM_OVERHEAD_BYTES, Slots
from streamer.windows import WindowRule

RESTORE_STREAMS = 2_000
"""Most streams that one chunk of a restore may bring, beside the records of one poll."""
Served = tuple[str, Model, WindowRule | None]
"""Name, model, and the window rule; None: step mode"""


@dataclass(frozen=True, slots=True)
class Lanes:
    """What the partitions of a process share."""

    stepping: Sequence[StepLane]
    windowing: WindowLane | None
    slots: Slots
    generators: Generators
    decoder: Decoder | None
    """The window model, where it writes sequences"""
    keys: Keys
    identity: Identity
    late_to_dead_letter: bool = False
    durable: bool = True
    idle_ttl_ms: int = 0
    """An event that is later than its stream's newest by more than this begins anew; 0: never"""

    @property
    def timed(self) -> bool:
        """Time alone brings answers: windows close, utterances end."""
        return self.windowing is not None or any(lane.emitting for lane in self.stepping)


def lanes_of(
    models: Sequence[Served],
    batch: BatchSection,
    state: StateSection,
    generate: GenerateSection,
    decode: DecodeSection,
    delivery: DeliverySection,
    *,
    late: str,
    identity: Identity,
    keys: Keys,
    pasts: Mapping[str, Past],
    utterances: Mapping[str, UtteranceSection],
) -> tuple[Lanes, int]:
    """The lanes, and how many streams memory has room for. Arguments as of ``Processor``; ConfigurationError as of
    ``check_models``."""
    check_models(models)
    emitting = {name: Emitting(model.contract, utterances[name]) for name, model, _ in models if name in utterances}
    carried = {
        name: Carried(model, pasts.get(name), emitting[name].layout if name in emitting else None)
        for name, model, rule in models
        if rule is None
    }
    per_stream = sum(each.bytes_per_stream for each in carried.values()) + STREAM_OVERHEAD_BYTES
    max_streams = max(state.max_bytes // per_stream, 1)
    capacity = max_streams + batch.max_poll_records + RESTORE_STREAMS if carried else 1
    stepping = [StepLane(name, each, capacity, emitting=emitting.get(name)) for name, each in carried.items()]
    windowed = [(name, model, rule, pasts.get(name)) for name, model, rule in models if rule is not None]
    windowing = [WindowLane(name, model, rule, keys, past) for name, model, rule, past in windowed]
    decoder = [
        Decoder(name, model, decode, keys, max_cells=batch.max_window_cells, past=past)
        for name, model, _, past in windowed
        if model.contract.decoder
    ]
    lanes = Lanes(
        stepping=stepping,
        windowing=windowing[0] if windowing else None,
        slots=Slots([lane.arena for lane in stepping], capacity),
        generators=Generators(carried.items(), generate, keys),
        decoder=decoder[0] if decoder else None,
        keys=keys,
        identity=identity,
        late_to_dead_letter=late == "dead-letter",
        durable=delivery.mode != "ephemeral",
        idle_ttl_ms=state.idle_ttl_ms,
    )
    return lanes, max_streams


def check_models(models: Sequence[Served]) -> None:
    """Raises ConfigurationError for models that cannot be served together, or need a window."""
    if not 1 <= len(models) <= 2:
        raise ConfigurationError("name one or two models: [model.NAME]")
    if sum(rule is not None for _, _, rule in models) > 1:
        raise ConfigurationError("only one of two models may have a window: run the other as its own service")
    widths = {name: model.contract.features for name, model, _ in models}
    if len(set(widths.values())) > 1:
        raise ConfigurationError(f"models on one input must take the same features, these take {widths}")
    dtypes = {name: model.contract.input.dtype for name, model, _ in models}
    if len(set(dtypes.values())) > 1:
        raise ConfigurationError(f"models on one input must take the same dtype, these take {dtypes}")
    if len({model.contract.many_steps for _, model, _ in models}) > 1:
        raise ConfigurationError(
            'models on one input must take records of the same kind, but only one has input.steps = "many" in its '
            "contract: export them alike"
        )
    for name, model, rule in models:
        if rule is None and model.contract.mode == "window":
            raise ConfigurationError(
                f"model {name!r} looks ahead (mode window): give it a [model.{name}.window] section"
            )
