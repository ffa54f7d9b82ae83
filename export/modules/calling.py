"""How a module's ``forward`` is called, and what it returns, as flat tensors with names for their axes.

Shapes: B rows, T steps.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from streamer.errors import ModelError
from streamer.modelfile.parts import Axis

SIGNATURES = {
    "forward(x)": 'a whole sequence, or one event (contract input without "time")',
    "forward(x, lengths)": "with the valid steps of each row, a parameter with `len` in its name",
    "forward(x, state)": "with a state: a tensor, or nested tuples of tensors; `state=None` if it has a default",
    "forward(x, lengths, state)": "with both, in any order",
    "forward(x, *states)": "one event or a sequence, with every state as an argument of its own",
}
"""Accepted signatures of a module. It returns a tensor, or a tuple, list, dict, dataclass or named tuple of tensors;
next states, where they are returned, come last."""

_LENGTHS = re.compile(r"len", re.I)
_STATES = re.compile(
    r"^(h|c|hs|cs|hx|cx|hc|h_?0|c_?0|h_?n|c_?n|s|rnn|lstm|gru)$|hidden|state|cell|memory|prev|carry", re.I
)

Path = tuple[str | int, ...]
Form = Any
"""Where the flat states go in the arguments: per parameter the number of a state, or nested tuples or lists of them."""


@dataclass(frozen=True)
class Arguments:
    """The parameters of ``forward`` beside the first: which takes lengths, which take states."""

    lengths: str | None = None
    states: tuple[str, ...] = ()
    required: bool = False
    """``forward`` cannot be called without its states."""
    variadic: bool = False

    @classmethod
    def of(cls, module: nn.Module, declared_states: int = 0) -> Arguments:
        """Reads the signature. ModelError for a parameter that nothing can be given for."""
        parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
        name = type(module).__name__
        if not parameters or parameters[0].kind in (parameters[0].KEYWORD_ONLY, parameters[0].VAR_KEYWORD):
            raise ModelError(f"{name}.forward takes no input: accepted are {', '.join(SIGNATURES)}")
        lengths, states, required, variadic = None, [], False, parameters[0].kind is parameters[0].VAR_POSITIONAL
        for each in parameters[1:]:
            needed = each.default is each.empty
            if each.kind is each.VAR_POSITIONAL:
                variadic = True
            elif each.kind is each.VAR_KEYWORD:
                continue
            elif lengths is None and _LENGTHS.search(each.name):
                lengths = each.name
            elif _STATES.search(each.name) or (needed and declared_states):
                states.append(each.name)
                required |= needed
            elif needed:
                raise ModelError(
                    f"{name}.forward needs {each.name!r}, which is neither lengths (`len` in its name) nor a state"
                    f" (`state`, `hidden`, `h`, `c`, ...): give it a default, or rename it; accepted are"
                    f" {', '.join(SIGNATURES)}"
                )
        return cls(lengths, tuple(states), required, variadic and bool(declared_states))

    def call(self, module: nn.Module, x: Tensor, lengths: Tensor, form: Form, states: Sequence[Tensor]) -> Any:
        """``forward`` with flat states put where they belong; ``form`` None: it is called without any."""
        named = {self.lengths: lengths} if self.lengths is not None else {}
        if form is None:
            return module(x, **named)
        given = [_filled(part, states) for part in form]
        if self.variadic and not self.states:
            return module(x, *given, **named)
        return module(x, **named, **dict(zip(self.states, given, strict=True)))

    def forms(self, count: int) -> Iterator[Form]:
        """Ways to pass ``count`` states, likeliest first."""
        places = tuple(range(count))
        parameters = count if self.variadic and not self.states else len(self.states)
        if parameters == count:
            yield places
        if parameters == 1 and count > 1:
            yield (places,)
        pairs = tuple((place, place + 1) for place in range(0, count - 1, 2))
        if count % 2 == 0 and len(pairs) == parameters:
            yield pairs
        if parameters == 1 and count > 1:
            yield (list(places),)
            if count % 2 == 0:
                yield (list(pairs),)
                yield ((places[::2], places[1::2]),)


def _filled(form: Form, states: Sequence[Tensor]) -> Any:
    if isinstance(form, int):
        return states[form]
    return type(form)(_filled(part, states) for part in form)


def form_of(value: Any, start: int = 0) -> tuple[Form, list[Tensor]]:
    """The form of a structure of tensors, and its tensors."""
    if isinstance(value, Tensor):
        return start, [value]
    if not isinstance(value, tuple | list):
        raise TypeError
    parts: list[Form] = []
    tensors: list[Tensor] = []
    for each in value:
        part, more = form_of(each, start + len(tensors))
        parts.append(part)
        tensors += more
    return type(value)(parts) if type(value) in (tuple, list) else tuple(parts), tensors


def leaves(value: Any, path: Path = ()) -> list[tuple[Path, Tensor]]:
    """All tensors of a result with the way to each. ModelError for a result that is still packed."""
    if isinstance(value, Tensor):
        return [(path, value)]
    if isinstance(value, PackedSequence):
        raise ModelError("forward returns a PackedSequence: return pad_packed_sequence(...)[0], padded again")
    items: list[tuple[str | int, Any]] = []
    if isinstance(value, Mapping):
        items = [(str(key), each) for key, each in value.items()]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = [(each.name, getattr(value, each.name)) for each in dataclasses.fields(value)]
    elif isinstance(value, tuple | list):
        items = list(zip(getattr(value, "_fields", range(len(value))), value, strict=True))
    return [found for key, each in items for found in leaves(each, (*path, key))]


def axes_of(shapes: Sequence[Sequence[int]], sizes: Sequence[tuple[int, int]]) -> list[Axis | None]:
    """Names of axes from the shapes that one tensor had at several (B, T); ``batch*time`` is told as "flat"."""
    if len({len(shape) for shape in shapes}) != 1:
        return [None]
    found: list[Any] = []
    for seen in zip(*shapes, strict=True):
        if len(set(seen)) == 1:
            found.append(seen[0])
        elif list(seen) == [rows for rows, _ in sizes]:
            found.append("batch")
        elif list(seen) == [steps for _, steps in sizes]:
            found.append("time")
        elif list(seen) == [rows * steps for rows, steps in sizes]:
            found.append("flat")
        else:
            found.append(None)
    return found


def example(shape: Sequence[Axis], dtype: str, rows: int, steps: int, vocabulary: int, seed: int) -> Tensor:
    """Made-up events in the shape of the contract's input; whole numbers where they may be looked up in a table."""
    sizes = [{"batch": rows, "time": steps}[axis] if isinstance(axis, str) else axis for axis in shape]
    chance = torch.Generator().manual_seed(seed)
    kind: torch.dtype = getattr(torch, dtype)
    if vocabulary or dtype.startswith("int"):
        return torch.randint(0, vocabulary or 2, sizes, generator=chance).to(kind)
    return torch.randn(sizes, generator=chance).to(kind)


def vocabulary(module: nn.Module) -> int:
    """How many ids every embedding of the module knows; 0 without one."""
    return min((each.num_embeddings for each in module.modules() if isinstance(each, nn.Embedding)), default=0)
