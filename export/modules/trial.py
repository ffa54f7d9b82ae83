"""A module of whole sequences run on made-up events, to see what it takes, gives and carries on.

Shapes: B rows, T steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from streamer.errors import ModelError
from streamer.modelfile.parts import Axis, State

from .calling import Arguments, Form, Path, axes_of, example, form_of, leaves, vocabulary
from .factory import told
from .plan import Lifted, Plan
from .recurrent import Call, States, finals, intercepted, recurrent, watched

SIZES = ((2, 5), (3, 5), (2, 7))
"""(B, T) of the runs from which the axes of results are told apart."""


@dataclass
class Seen:
    """One run on made-up events."""

    result: list[tuple[Path, Tensor]]
    calls: list[Call]
    finals: dict[str, States]
    whole: Any = None

    @property
    def sites(self) -> list[str]:
        return [call.site for call in self.calls]


class Trial:
    """The module with an input of the contract's shape. ModelError, with the place, where it does not run."""

    def __init__(self, module: nn.Module, fields: Mapping[str, Any]) -> None:
        self.module, self.fields, self.name = module, fields, type(module).__name__
        given = fields.get("input", {})
        self.shape: tuple[Axis, ...] = tuple(given["shape"])
        self.dtype = str(given.get("dtype", "float32"))
        self.declared: list[dict[str, Any]] = list(fields.get("states", ()))
        self.arguments = Arguments.of(module, len(self.declared))
        self.words = vocabulary(module)
        self.recurrent = recurrent(module)

    def seen(
        self, form: Form, explicit: Sequence[State], rows: int, steps: int, seed: int = 0, scale: float = 0.0
    ) -> Seen:
        """One run. ``scale``: of random explicit states instead of the initial ones."""
        x = example(self.shape, self.dtype, rows, steps, self.words, seed)
        states = [torch.from_numpy(np.repeat(s.initial_row(), rows, axis=s.batch_axis)) for s in explicit]
        states = [state + scale * torch.randn(state.shape) for state in states] if scale else states
        after: dict[str, States] = {}

        def answer(call: Call, original: Callable[..., Any]) -> Any:
            result = watched(call, original)
            after[call.site] = finals(call, result)
            return result

        try:
            with torch.no_grad(), intercepted(self.module, answer) as calls:
                lengths = torch.full((rows,), steps, dtype=torch.int64)
                whole = self.arguments.call(self.module, x, lengths, form, states)
        except ModelError:
            raise
        except Exception as error:  # whatever a foreign module raises
            where = f" in the submodule {calls[-1].name!r}" if calls and calls[-1].site not in after else ""
            raise ModelError(
                f"{self.name}.forward failed on {self.dtype} events of shape {list(x.shape)}, made as the contract's"
                f" input.shape {list(self.shape)} says{where}: {told(error)}: correct input (shape, dtype) or the module"
            ) from None
        return Seen(leaves(whole), list(calls), after, whole)

    def check_deterministic(self, one: Seen, other: Seen) -> None:
        for (path, a), (_, b) in zip(one.result, other.result, strict=True):
            if not torch.equal(torch.nan_to_num(a.float()), torch.nan_to_num(b.float())):
                where = ".".join(map(str, path)) or "its result"
                raise ModelError(
                    f"{self.name} gives different values for the same events ({where}): nothing in forward may be drawn"
                    " by chance once eval() is called, initial states and dropout included"
                )


class StateFinder:
    """Which tensors ``forward`` is given as states, and which starts of recurrent submodules become states."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial

    def explicit(self) -> tuple[Form, tuple[State, ...]]:
        """States that ``forward`` is given by the caller: those that are declared or that it cannot be called without."""
        wanted = self._trial.arguments.states or self._trial.arguments.variadic
        if not wanted or not (self._trial.arguments.required or (self._trial.declared and self._passes())):
            return None, ()
        candidates = [self.declared_states()] if self._trial.declared else self._guessed_states()
        failure: Exception | None = None
        for states in candidates:
            rows = 2
            x = example(self._trial.shape, self._trial.dtype, rows, 3, self._trial.words, 0)
            tensors = [torch.from_numpy(np.repeat(s.initial_row(), rows, axis=s.batch_axis)) for s in states]
            for form in self._trial.arguments.forms(len(states)):
                try:
                    with torch.no_grad():
                        lengths = torch.full((rows,), 3)
                        found = leaves(self._trial.arguments.call(self._trial.module, x, lengths, form, tensors))
                except Exception as error:  # a form that does not fit, in a foreign module
                    failure = failure or error
                    continue
                after = [tuple(tensor.shape) for _, tensor in found[-len(states) :]]
                if len(found) > len(states) and after == [tuple(tensor.shape) for tensor in tensors]:
                    return form, states
                failure = failure or ModelError("it does not return its next states, in their shapes, last")
        reason = (
            str(failure) if isinstance(failure, ModelError) else told(failure) if failure else "it has none to guess"
        )
        raise ModelError(
            f"{self._trial.name}.forward cannot be called with the states {', '.join(s.input for s in candidates[0])}"
            f" ({reason}): declare each state with its shape, in the order in which forward takes and returns them"
        )

    def _passes(self) -> bool:
        """Declared states go to ``forward`` unless they only rename those of its recurrent submodules."""
        return (
            not any(call.states is None for call in self._trial.seen(None, (), 2, 5).calls)
            or self._trial.arguments.required
        )

    def declared_states(self) -> tuple[State, ...]:
        for each in self._trial.declared:
            if not isinstance(each, dict) or "input" not in each or "batch" not in each.get("shape", ()):
                raise ModelError('a state needs input (its name) and shape with "batch" where the streams go')
        return tuple(
            State(each["input"], tuple(each["shape"]), each.get("output", f"{each['input']}_next"), each.get("initial", "zeros"))
            for each in self._trial.declared
        )  # fmt: skip

    def _guessed_states(self) -> list[tuple[State, ...]]:
        """What the recurrent submodules carry, in the order of their definition."""
        found: list[State] = []
        for name, each in self._trial.recurrent:
            call = Call(name, 0, each, torch.zeros(2, 2, 1), None)
            sizes = [value.shape for value in call.zeros()]
            stems = call.state_names if len(self._trial.recurrent) > 1 else ("h", "c")
            for stem, size in zip(stems, sizes, strict=False):
                shape: tuple[Axis, ...] = ("batch", size[1]) if call.is_cell else (size[0], "batch", size[2])
                found.append(State(stem, shape, f"{stem}_next"))
        return [tuple(found)]

    def returned_states(self) -> tuple[Form, tuple[State, ...]] | None:
        """States that the module made for itself and returned last, to be given to the parameter that takes them."""
        if not self._trial.arguments.states:
            return None
        seen = [self._trial.seen(None, (), rows, steps) for rows, steps in SIZES]
        whole, last = seen[0].whole, {id(state) for states in seen[0].finals.values() for state in states}
        if len(self._trial.arguments.states) != 1 or not isinstance(whole, tuple) or len(whole) < 2:
            return None
        try:
            form, tensors = form_of(whole[-1])
        except TypeError:
            return None
        if all(id(tensor) in last for tensor in tensors):
            return None  # those of the recurrent submodules, which are carried on anyway
        count, states = len(tensors), []
        for place in range(count):
            axes = axes_of([each.result[len(each.result) - count + place][1].shape for each in seen], SIZES)
            if None in axes or "time" in axes or axes.count("batch") != 1:
                return None
            name = self._trial.arguments.states[0] + (f"_{place}" if count > 1 else "")
            states.append(State(name, tuple(axes), f"{name}_next"))  # type: ignore[arg-type]
        return (form,), tuple(states)

    def lifted(self, plan: Plan, steps: int) -> tuple[Lifted, ...] | str:
        """The recurrent calls that start from nothing or from constants; their starts become states."""
        one = self._trial.seen(plan.form, plan.explicit, 2, steps, seed=1, scale=0.5)
        other = self._trial.seen(plan.form, plan.explicit, 2, steps, seed=2, scale=0.7)
        if one.sites != other.sites:
            return f"{self._trial.name} calls its recurrent submodules differently for different events"
        found = []
        for call, again in zip(one.calls, other.calls, strict=True):
            if call.states is None:
                starts: Sequence[Tensor] = call.zeros()
            elif all(torch.equal(a, b) for a, b in zip(call.states, again.states or (), strict=True)):
                starts = call.states
            else:
                continue  # it goes on from another one, or from a state that forward is given
            states = []
            for name, start in zip(call.state_names, starts, strict=True):
                axis = 0 if call.is_cell else 1
                if start.ndim != (2 if call.is_cell else 3):
                    return f"the submodule {call.name!r} is called without a batch axis"
                if not bool((start == start.select(axis, 0).unsqueeze(axis)).all()):
                    return f"the submodule {call.name!r} starts from other values in every row"
                shape = tuple("batch" if place == axis else size for place, size in enumerate(start.shape))
                row = start.select(axis, 0)
                initial: Any = row.tolist() if bool(row.any()) else "zeros"
                states.append(State(name, shape, f"{name}_next", initial))  # type: ignore[arg-type]
            found.append(Lifted(call.site, tuple(states)))
        return tuple(found)
