"""The parts of a contract: the input, the states, the outputs, and what is fed back. See ``streamer.modelfile.contract``."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Literal

import msgspec
import numpy as np

from streamer.core import F32
from streamer.errors import ModelError
from streamer.modelfile.emit import Emit
from streamer.modelfile.feature import Feature

MAX_VALUES = 1 << 22
"""Of one event, state or output: beyond it a shape is a mistake, and would take the memory before anyone sees it."""
_MAX_AXES = 16

Axis = int | Literal["batch", "time"]


def size(shape: Sequence[Axis]) -> int:
    """Values of one event, state or output: the product of the numeric axes."""
    return prod(axis for axis in shape if isinstance(axis, int))


def check_shape(what: str, shape: Sequence[Axis], *, time: bool) -> None:
    """``what``: the part, for the message. ``time``: it may have a time axis. ModelError: the shape is none."""
    if shape.count("batch") != 1:
        raise ModelError(f'{what}: shape {list(shape)} needs "batch" exactly once, where the streams go')
    if shape.count("time") > int(time):
        reason = "at most once" if time else "not at all: a state has no time axis"
        raise ModelError(f'{what}: shape {list(shape)} may contain "time" {reason}')
    if any(isinstance(axis, int) and axis < 1 for axis in shape):
        raise ModelError(f"{what}: the sizes in shape {list(shape)} must be at least 1")
    if len(shape) > _MAX_AXES or size(shape) > MAX_VALUES:
        raise ModelError(
            f"{what}: shape {list(shape)[:_MAX_AXES]} has more than {MAX_VALUES} values or {_MAX_AXES} axes: correct it"
        )


class Input(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The tensor that takes the events. The numeric axes multiply to F, the features of one event."""

    name: str
    """Of the graph input."""
    shape: tuple[Axis, ...]
    """Each axis "batch" (the streams), "time" (the events of one call; none: one event per call), or a number."""
    features: tuple[str | Feature, ...] = ()
    """One per value of an event: a name (a number), or a table that says what the value means."""
    dtype: Literal["float32", "float64", "int32", "int64"] = "float32"
    """Of the graph input; whole numbers for ids of words."""
    steps: Literal["one", "many"] = "one"
    """Of a record: one: it is one step of its stream; many: T >= 1 steps of F features, in one call (a text always is)."""


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One recurrent tensor of a stream: graph input, graph output, and the shape with "batch" where the streams go.

    ``initial``: "zeros", one number for all elements, or one stream's values (nested or flat, batch axis left out).
    ``output`` may be missing in window mode only, where no state is carried on.
    """

    input: str
    """Graph input that takes the state."""
    shape: tuple[Axis, ...]
    """With "batch" where the streams go, numbers elsewhere."""
    output: str | None = None
    """Graph output that holds the next state; required in step mode."""
    initial: str | float | list[Any] = "zeros"
    """`"zeros"`, one number, or one stream's values, nested or flat."""

    @property
    def batch_axis(self) -> int:
        return self.shape.index("batch")

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one stream's tensor: without the batch axis."""
        return tuple(axis for axis in self.shape if isinstance(axis, int))

    def initial_row(self) -> F32:
        """The initial tensor of one stream, in the declared shape with a batch of one. ModelError: it does not fit."""
        if isinstance(self.initial, str):
            row = np.zeros(self.row_shape, np.float32)
        else:
            values = _floats(self.initial, f"state {self.input!r}: initial")
            if values.size not in (1, prod(self.row_shape)):
                raise ModelError(
                    f"state {self.input!r}: initial has {values.size} values, but one stream's state of shape"
                    f' {list(self.row_shape)} has {prod(self.row_shape)}: give all of them, one number, or "zeros"'
                )
            row = np.broadcast_to(values.reshape(-1), (prod(self.row_shape),)).reshape(self.row_shape)
        return np.ascontiguousarray(np.expand_dims(row, self.batch_axis), np.float32)


class Output(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One tensor of the prediction. The numeric axes multiply to O, the values of one event or of one window."""

    name: str
    """Of the graph output, and of the field in the prediction where there are several."""
    shape: tuple[Axis, ...]
    """`"batch"`, `"time"` where there is a value for every step of a call, and numbers."""
    kind: Literal["value", "vector", "classes", "score"] = "vector"
    """value and score: one number; classes: one per label, the largest wins."""
    labels: tuple[str, ...] | None = None
    """Names of the O values; the prediction then says which is the largest."""
    per: Literal["event", "window"] = "event"
    """In window mode "window" by default for an output without "time"."""
    emit: Emit | None = None
    """For models that recognise: the answer is what its labels spell (below)."""

    @property
    def size(self) -> int:
        return size(self.shape)


class Feedback(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How an output becomes the next input when a sequence is generated."""

    output: str
    """Name of the output that is fed back."""
    mode: Literal["sample", "argmax", "value"] = "value"
    """sample: a class by its probability; argmax: the likeliest; value: the numbers themselves."""
    encoding: Literal["value", "index", "one-hot"] = "value"
    """How a class is written into the next event. value: with mode value; with sample each output is drawn as 0 or 1 by
    itself, a set."""
    at: int = 0
    """First feature that the encoding fills; the others are 0."""


def _floats(values: Any, what: str) -> F32:
    try:
        return np.asarray(values, np.float32)
    except (ValueError, TypeError, OverflowError):
        raise ModelError(f"{what} is not a number, nor (nested) lists of numbers of equal length: correct it") from None
