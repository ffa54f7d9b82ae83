"""The table ``emit`` of an output: zero to many symbols per event instead of one answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from streamer.errors import ModelError

MAX_LABELS = 1 << 16


class Emit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How labels per step become symbols, and symbols a text."""

    rule: Literal["ctc"]
    """ctc: of the likeliest label of each step, repeats are one symbol and the blank is none."""
    blank: int = 0
    """Index of the label that stands for no symbol."""
    separator: str = ""
    """Between the labels of a text: nothing for letters, a space for words."""
    scale: Literal["probability", "log"] = "probability"
    """What the values are: probabilities (a softmax), or their logarithms."""


def check_emit(emit: Emit, what: str, kind: str, labels: Sequence[str] | None, per: str) -> None:
    """``what``: names the output. ModelError: the table does not belong to this output, or cannot be followed."""
    if kind != "classes" or labels is None:
        raise ModelError(f'{what}: emit needs labels and kind classes, one label per value: declare kind = "classes"')
    if not 0 <= emit.blank < len(labels):
        raise ModelError(f"{what}: emit.blank is {emit.blank}, but the labels are 0 to {len(labels) - 1}: correct it")
    if len(labels) > MAX_LABELS:
        raise ModelError(f"{what}: emit takes at most {MAX_LABELS} labels, there are {len(labels)}: use fewer")
    if per != "event":
        raise ModelError(
            f'{what}: emit needs values per event, so shape with "time" in a window model: declare per = "event"'
        )


def check_emitting(emitting: int, outputs: int, *, step: bool, feedback: bool) -> None:
    """What must hold of a whole contract, ``emitting`` of whose ``outputs`` have the table."""
    if emitting > 1:
        raise ModelError(
            "emit stands in more than one output: one of them makes the transcript, leave it out of the others"
        )
    if emitting and step and outputs > 1:
        raise ModelError(
            "a step model with emit answers in symbols only, so it has one output: leave the others out of the contract"
        )
    if emitting and feedback:
        raise ModelError("emit and feedback do not go together: a model recognises or generates, leave one of them out")
