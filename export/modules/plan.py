"""All that is known of a module of whole sequences, and how it is run by it, eagerly or while a graph is traced.

Shapes: B rows, T steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from streamer.modelfile.parts import Axis, State

from .calling import Arguments, Form, Path, leaves
from .recurrent import Call, States, finals, intercepted, watched, with_states


@dataclass(frozen=True)
class Leaf:
    """One tensor of the result: the way to it, its name, its axes; ``flat``: its first axis is batch and time in one."""

    path: Path
    name: str
    axes: tuple[Axis, ...]
    flat: bool = False


@dataclass(frozen=True)
class Lifted:
    """A recurrent call whose own start becomes a state that is carried on."""

    site: str
    states: tuple[State, ...]


@dataclass(frozen=True)
class Plan:
    """All that is needed to run the module, eagerly or as a graph. ``one_step``: it is called with a single step."""

    arguments: Arguments
    shape: tuple[Axis, ...]
    dtype: str
    mode: str
    outputs: tuple[Leaf, ...]
    form: Form = None
    explicit: tuple[State, ...] = ()
    lifted: tuple[Lifted, ...] = ()
    one_step: bool = False
    cells: tuple[str, ...] = field(default=())
    """Recurrent submodules that are called once per step, in a loop."""

    @property
    def states(self) -> tuple[State, ...]:
        return (
            (*self.explicit, *(state for each in self.lifted for state in each.states)) if self.mode == "step" else ()
        )

    def lengths(self, rows: int, steps: int) -> Tensor:
        return torch.full((rows,), steps, dtype=torch.int64)

    def initial(self, rows: int) -> list[Tensor]:
        """Initial values of the explicit states, and in step mode of the lifted ones."""
        states = self.states if self.mode == "step" else self.explicit
        return [torch.from_numpy(np.repeat(s.initial_row(), rows, axis=s.batch_axis)) for s in states]

    def run(
        self,
        module: nn.Module,
        x: Tensor,
        lengths: Tensor,
        states: Sequence[Tensor],
        answer: Callable[[Call, Callable[..., Any], States | None], Any] | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """One call of the module: (outputs, next states), from ``states`` in the order of ``self.states``.

        ``answer(call, original, states)`` takes the place of a recurrent submodule; by default torch's own runs.
        """
        count = len(self.explicit)
        explicit = list(states[:count]) if states else self.initial(x.shape[self.shape.index("batch")])[:count]
        rest = iter(states[count:])
        given = {each.site: tuple(next(rest) for _ in each.states) for each in self.lifted} if states else {}
        after: dict[str, States] = {}

        def answered(call: Call, original: Callable[..., Any]) -> Any:
            start = given.get(call.site, call.states)
            if answer is not None:
                result = answer(call, original, start)
            else:
                result = watched(call, original) if start is None else with_states(call, original, start)
            after[call.site] = finals(call, result)
            return result

        with intercepted(module, answered):
            found = leaves(self.arguments.call(module, x, lengths, self.form, explicit))
        by_path = dict(found)
        outputs = [_unflattened(by_path[leaf.path], leaf, x, self.shape) for leaf in self.outputs]
        if self.mode != "step":
            return outputs, []
        nexts = [tensor for _, tensor in found[len(found) - count :]] if count else []
        return outputs, [*nexts, *(state for each in self.lifted for state in after[each.site])]


def _unflattened(value: Tensor, leaf: Leaf, x: Tensor, shape: Sequence[Axis]) -> Tensor:
    if not leaf.flat:
        return value
    order = [x.shape[place] for place, axis in enumerate(shape) if isinstance(axis, str)]
    return value.reshape(*order, *value.shape[1:])


def replace_state(state: State, name: str, output: str | None = None) -> State:
    """The same state under other names."""
    return State(name, state.shape, output or f"{name}_next", state.initial)
