"""What a contract declares about the second graph of a pair: the decoder, which writes a sequence from an encoder's outputs.

The file is the encoder's; the decoder's graph lies in its metadata, so that one file and one sha256 are the model.
Shapes: B rows, T steps of the encoder's input, V labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from streamer.errors import ModelError

DECODER_KEY = "streamer.decoder"
"""Key of the metadata that holds the decoder's ONNX file, in base64: metadata is text."""
MAX_STEPS = 10_000
MAX_WIDTH = 64
MAX_NORMALISATION = 10

Axis = int | Literal["batch", "time"]


class Memory(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the encoder made of a window, and every step of the decoder looks at."""

    output: str
    """Of the encoder's graph; its shape is declared in `outputs`. With `"time"` it is as long as the window."""
    input: str
    """Of the decoder's graph, of the same shape."""


class DecoderState(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One recurrent tensor of the decoder."""

    initial: str
    """Output of the encoder's graph that it starts from; its shape is declared in `outputs`."""
    input: str
    """Of the decoder's graph, of the same shape."""
    output: str
    """Of the decoder's graph: the next state."""


class Decoder(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a sequence is written: one symbol per step, until the end symbol."""

    labels: tuple[str, ...]
    """Names of the V symbols, those of begin and end among them."""
    begin: int
    """Index of the symbol that is put in first."""
    end: int
    """Index of the symbol that ends a sequence."""
    max_steps: int
    """Symbols that are written at most, the end not counted; what does not end before is told as truncated."""
    symbol: str = "symbol"
    """Input of the decoder's graph: int64 [batch], the symbol written last."""
    log_probabilities: str = "log_probabilities"
    """Output of the decoder's graph: float32 [batch, V]."""
    lengths: str | None = None
    """Input of the decoder's graph: int64 [batch], the valid steps of the memory; needed where rows share a call."""
    memory: tuple[Memory, ...] = ()
    """What every step looks at (below); none: the encoder's summary is in the states alone."""
    states: tuple[DecoderState, ...] = ()
    """What is carried from step to step (below)."""
    search: Literal["greedy", "beam"] = "greedy"
    """greedy: the likeliest symbol at every step; beam: the best of `width` sequences that grow side by side."""
    width: int = 1
    """Of the beam."""
    length_normalisation: float = 0.0
    """alpha of Wu et al. 2016: scores are divided by ((5 + steps) / 6) ** alpha; 0: not at all."""
    separator: str | None = None
    """Joins labels to a text. None: "" where every label but begin and end is one character, else there is no text."""

    @property
    def joint(self) -> str | None:
        """What stands between the labels of a text; None: there is no text."""
        if self.separator is not None:
            return self.separator
        plain = [label for number, label in enumerate(self.labels) if number not in (self.begin, self.end)]
        return "" if plain and all(len(label) == 1 for label in plain) else None


def check_decoder(declared: Decoder, shapes: Mapping[str, Sequence[Axis]]) -> None:
    """Everything that can be known without the graph. ``shapes``: of the encoder's outputs. ModelError names the field."""
    count = len(declared.labels)
    if count < 2:
        raise ModelError(f"decoder: labels has {count}: give one per symbol, begin and end among them")
    for name, index in (("begin", declared.begin), ("end", declared.end)):
        if not 0 <= index < count:
            raise ModelError(f"decoder: {name} is {index}, labels has {count}: give the index of a label")
    if not 1 <= declared.max_steps <= MAX_STEPS:
        raise ModelError(f"decoder: max_steps is {declared.max_steps}: it must be 1 to {MAX_STEPS}")
    most = 1 if declared.search == "greedy" else min(MAX_WIDTH, count)
    if not 1 <= declared.width <= most:
        raise ModelError(f"decoder: width is {declared.width}: with search {declared.search} it must be 1 to {most}")
    if not 0 <= declared.length_normalisation <= MAX_NORMALISATION:
        raise ModelError(f"decoder: length_normalisation must be 0 (none) to {MAX_NORMALISATION}; 0.6 to 1 is usual")
    if not declared.memory and not declared.states:
        raise ModelError("decoder: neither memory nor states are declared: it would write the same for every window")
    given = [*(each.output for each in declared.memory), *(each.initial for each in declared.states)]
    for output in given:
        if output not in shapes:
            raise ModelError(
                f"decoder: the encoder has no output {output!r}, declared are {', '.join(map(repr, shapes)) or 'none'}"
            )
    for output in shapes.keys() - set(given):
        raise ModelError(f"decoder: the output {output!r} is neither memory nor a state's initial: declare it as one")
    for state in declared.states:
        if "time" in shapes[state.initial]:
            raise ModelError(f"decoder: {state.initial!r} has a time axis, a state has none: is it memory?")
    if declared.lengths is not None and not any("time" in shapes[each.output] for each in declared.memory):
        raise ModelError("decoder: lengths are declared, but no memory has a time axis: leave them out")
    inputs = [declared.symbol, *([declared.lengths] if declared.lengths else [])]
    inputs += [*(each.input for each in declared.memory), *(each.input for each in declared.states)]
    outputs = [declared.log_probabilities, *(each.output for each in declared.states)]
    for names, what in ((inputs, "input"), (outputs, "output")):
        for name in names:
            if names.count(name) > 1:
                raise ModelError(f"decoder: the {what} {name!r} is declared twice: declare each once")
