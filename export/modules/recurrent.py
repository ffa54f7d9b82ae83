"""The recurrent submodules of a module: found, watched, fed with states, or taken over while its ``forward`` runs.

Shapes: B rows, T steps, L layers, D directions, H hidden (of ``h``: the projection's size where there is one).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import rnn

from streamer.errors import ModelError

SEQUENCES: dict[type[nn.Module], str] = {nn.LSTM: "lstm", nn.GRU: "gru", nn.RNN: "rnn"}
CELLS: dict[type[nn.Module], str] = {nn.LSTMCell: "lstm", nn.GRUCell: "gru", nn.RNNCell: "rnn"}

States = tuple[Tensor, ...]


@dataclass
class Call:
    """One call of a recurrent submodule: the ``count``-th of ``name`` within one ``forward``."""

    name: str
    count: int
    module: Any
    x: Any
    states: States | None
    """h, or h and c; None: the submodule starts from zeros."""

    @property
    def site(self) -> str:
        """A name for the call that is valid in a graph and in a contract."""
        stem = self.name.replace(".", "_") or "core"
        return stem if self.count == 0 else f"{stem}_{self.count + 1}"

    @property
    def kind(self) -> str:
        kinds = SEQUENCES | CELLS
        return next(kinds[each] for each in kinds if isinstance(self.module, each))

    @property
    def is_cell(self) -> bool:
        return isinstance(self.module, tuple(CELLS))

    @property
    def state_names(self) -> tuple[str, ...]:
        return (f"{self.site}_h", f"{self.site}_c") if self.kind == "lstm" else (f"{self.site}_h",)

    @property
    def bidirectional(self) -> bool:
        return bool(getattr(self.module, "bidirectional", False))

    def zeros(self) -> States:
        """The states from which torch starts when it is given none."""
        packed = isinstance(self.x, Padded)
        x = self.x.data if packed else self.x
        if self.is_cell:
            return (x.new_zeros(x.shape[0], self.module.hidden_size),) * len(self.state_names)
        batch_first = self.x.batch_first if packed else self.module.batch_first
        rows = x.shape[0 if batch_first else 1]
        layers = self.module.num_layers * (2 if self.bidirectional else 1)
        sizes = (self.module.proj_size or self.module.hidden_size, self.module.hidden_size)
        return tuple(x.new_zeros(layers, rows, size) for size, _ in zip(sizes, self.state_names, strict=False))


@dataclass
class Padded:
    """Stands for a PackedSequence while a graph is made: the same events, padded, with their lengths."""

    data: Tensor
    lengths: Tensor
    batch_first: bool
    sorted_indices: None = None
    unsorted_indices: None = None

    @property
    def batch_sizes(self) -> Padded:
        """Only to be handed on to the next PackedSequence."""
        return self

    def to(self, *_: Any, **__: Any) -> Padded:
        return self

    cpu = cuda = float = to


Answer = Callable[[Call, Callable[..., Any]], Any]


def recurrent(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Submodules that are torch's recurrent layers and cells, by their path. ModelError for one with its own forward."""
    found = []
    for name, each in module.named_modules():
        base = next((kind for kind in SEQUENCES | CELLS if isinstance(each, kind)), None)
        if base is None:
            continue
        if type(each).forward is not base.forward:
            raise ModelError(
                f"the submodule {name!r} ({type(each).__name__}) has a forward of its own in place of"
                f" {base.__name__}'s: put it beside a plain nn.{base.__name__}, or export one step of the module"
            )
        found.append((name, each))
    return found


@contextmanager
def intercepted(module: nn.Module, answer: Answer) -> Iterator[list[Call]]:
    """Every call of a recurrent submodule goes to ``answer(call, original)``; yields the calls of the last forward.

    ``answer`` returns what torch's layer would: (y, states) with a state or a pair, of a cell the state or the pair.
    """
    calls: list[Call] = []
    places = recurrent(module)

    def replacement(name: str, each: nn.Module) -> Callable[..., Any]:
        original = each.forward

        def forward(input: Any, hx: Any = None) -> Any:  # the names of torch's own arguments
            states = None if hx is None else (hx,) if isinstance(hx, Tensor) else tuple(hx)
            call = Call(name, sum(c.name == name for c in calls), each, input, states)
            calls.append(call)
            return answer(call, original)

        return forward

    def begin(*_: Any) -> None:
        calls.clear()

    handle = module.register_forward_pre_hook(begin)
    try:
        for name, each in places:
            each.forward = replacement(name, each)
        yield calls
    finally:
        handle.remove()
        for _, each in places:
            each.__dict__.pop("forward", None)


def watched(call: Call, original: Callable[..., Any]) -> Any:
    """An answer that changes nothing."""
    return original(call.x, _hx(call.states))


def with_states(call: Call, original: Callable[..., Any], states: States) -> Any:
    """The layer's own answer from other states than it was called with."""
    return original(call.x, _hx(states))


def finals(call: Call, result: Any) -> States:
    """The states in a layer's or a cell's result."""
    last = result if call.is_cell else result[1]
    return (last,) if isinstance(last, Tensor) else tuple(last)


def _hx(states: States | None) -> Any:
    return None if states is None else states[0] if len(states) == 1 else states


@contextmanager
def padded_packing() -> Iterator[None]:
    """In every loaded module ``pack_padded_sequence`` and its kin keep the padding, so that a graph can be made of them."""
    replacements: dict[int, Any] = {
        id(rnn.pack_padded_sequence): _pack,
        id(rnn.pad_packed_sequence): _pad,
        id(rnn.PackedSequence): _packed,
    }
    changed: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for each in list(sys.modules.values()):
            names = getattr(each, "__dict__", None)
            if names is None or getattr(each, "__name__", "").startswith(("torch.nn.modules", "torch._", __package__)):
                continue
            for name, value in list(names.items()):
                if id(value) in replacements:
                    changed.append((names, name, value))
                    names[name] = replacements[id(value)]
        yield
    finally:
        for names, name, value in changed:
            names[name] = value


def _pack(input: Any, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True) -> Padded:
    return Padded(input, torch.as_tensor(lengths).to(torch.int32), batch_first)


class _PackedMeta(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, Padded)


class _packed(metaclass=_PackedMeta):
    def __new__(cls, data: Any, batch_sizes: Any = None, *_: Any, **__: Any) -> Any:
        if not isinstance(batch_sizes, Padded):
            raise ModelError("a PackedSequence is made by hand: use pack_padded_sequence, which can become a graph")
        return Padded(data, batch_sizes.lengths, batch_sizes.batch_first)


def _pad(
    sequence: Padded, batch_first: bool = False, padding_value: float = 0.0, total_length: int | None = None
) -> tuple[Tensor, Tensor]:
    data = sequence.data if sequence.batch_first else sequence.data.transpose(0, 1)
    valid = torch.arange(data.shape[1], dtype=torch.int32) < sequence.lengths[:, None]
    data = torch.where(valid[..., None], data, torch.tensor(padding_value, dtype=data.dtype))
    return data if batch_first else data.transpose(0, 1), sequence.lengths.to(torch.int64)
