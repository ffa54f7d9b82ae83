"""What a module of whole sequences is: step or window, which states it carries, which tensors it gives.

Found by running it on made-up events, never by reading its code: the shapes for several B and T, which recurrent calls
start from states of their own, and whether a sequence cut in two gives what it gives in one piece.
Shapes: B rows, T steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from streamer.errors import ModelError
from streamer.modelfile.contract import Axis, State

from .calling import Arguments, Form, Path, axes_of, example, form_of, leaves, vocabulary
from .factory import told
from .recurrent import CELLS, Call, States, finals, intercepted, recurrent, watched, with_states

_SIZES = ((2, 5), (3, 5), (2, 7))
_LOOKS_AROUND = (
    nn.Conv1d, nn.Conv2d, nn.AvgPool1d, nn.MaxPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d,
    nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.BatchNorm1d, nn.GroupNorm, nn.InstanceNorm1d,
)  # fmt: skip
_CLOSE = 1e-5


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
        return (*self.explicit, *(state for each in self.lifted for state in each.states)) if self.mode == "step" else ()

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


class Planner:
    """Makes the plan of one module for one contract. ModelError says what cannot be, and names the submodule."""

    def __init__(self, module: nn.Module, fields: Mapping[str, Any]) -> None:
        self.module, self.fields, self.name = module, fields, type(module).__name__
        given = fields.get("input", {})
        self.shape: tuple[Axis, ...] = tuple(given["shape"])
        self.dtype = str(given.get("dtype", "float32"))
        self.declared: list[dict[str, Any]] = list(fields.get("states", ()))
        self.arguments = Arguments.of(module, len(self.declared))
        self.words = vocabulary(module)
        self.recurrent = recurrent(module)

    def plan(self) -> Plan:
        form, explicit = self._explicit()
        seen = [self._seen(form, explicit, rows, steps) for rows, steps in _SIZES]
        self._deterministic(seen[0], self._seen(form, explicit, *_SIZES[0]))
        looped = {call.name for call in seen[2].calls} if len(seen[0].calls) != len(seen[2].calls) else set()
        looped |= {call.name for call in seen[0].calls if call.is_cell}
        outputs = self._outputs(seen, len(explicit))
        plan = Plan(self.arguments, self.shape, self.dtype, "window", outputs, form, explicit)
        plan = replace(plan, cells=tuple(sorted(looped)))
        mode, per_event = self.fields.get("mode"), all("time" in leaf.axes for leaf in outputs)
        if mode == "window" or (mode is None and not per_event):
            return plan
        both = sorted({call.name or self.name for call in seen[0].calls if call.bidirectional})
        if both and mode is None:
            return plan
        if both:
            raise ModelError(
                f"the submodule {both[0]!r} is bidirectional, so an answer needs the whole window: declare mode window"
            )
        stepped = self._stepped(plan, one_step=bool(looped) or not per_event)
        if isinstance(stepped, Plan):
            return stepped
        if mode == "step":
            raise ModelError(f"{stepped}: declare mode window")
        return plan

    def _explicit(self) -> tuple[Form, tuple[State, ...]]:
        """States that ``forward`` is given by the caller: those that are declared or that it cannot be called without."""
        wanted = self.arguments.states or self.arguments.variadic
        if not wanted or not (self.arguments.required or (self.declared and self._passes())):
            return None, ()
        candidates = [self._declared_states()] if self.declared else self._guessed_states()
        failure: Exception | None = None
        for states in candidates:
            rows = 2
            x = example(self.shape, self.dtype, rows, 3, self.words, 0)
            tensors = [torch.from_numpy(np.repeat(s.initial_row(), rows, axis=s.batch_axis)) for s in states]
            for form in self.arguments.forms(len(states)):
                try:
                    with torch.no_grad():
                        lengths = torch.full((rows,), 3)
                        found = leaves(self.arguments.call(self.module, x, lengths, form, tensors))
                except Exception as error:  # a form that does not fit, in a foreign module
                    failure = failure or error
                    continue
                after = [tuple(tensor.shape) for _, tensor in found[-len(states) :]]
                if len(found) > len(states) and after == [tuple(tensor.shape) for tensor in tensors]:
                    return form, states
                failure = failure or ModelError("it does not return its next states, in their shapes, last")
        reason = str(failure) if isinstance(failure, ModelError) else told(failure) if failure else "it has none to guess"
        raise ModelError(
            f"{self.name}.forward cannot be called with the states {', '.join(s.input for s in candidates[0])}"
            f" ({reason}): declare each state with its shape, in the order in which forward takes and returns them"
        )

    def _passes(self) -> bool:
        """Declared states go to ``forward`` unless they only rename those of its recurrent submodules."""
        return not any(call.states is None for call in self._seen(None, (), 2, 5).calls) or self.arguments.required

    def _declared_states(self) -> tuple[State, ...]:
        for each in self.declared:
            if not isinstance(each, dict) or "input" not in each or "batch" not in each.get("shape", ()):
                raise ModelError('a state needs input (its name) and shape with "batch" where the streams go')
        return tuple(
            State(each["input"], tuple(each["shape"]), each.get("output", f"{each['input']}_next"), each.get("initial", "zeros"))
            for each in self.declared
        )  # fmt: skip

    def _guessed_states(self) -> list[tuple[State, ...]]:
        """What the recurrent submodules carry, in the order of their definition."""
        found: list[State] = []
        for name, each in self.recurrent:
            call = Call(name, 0, each, torch.zeros(2, 2, 1), None)
            sizes = [value.shape for value in call.zeros()]
            stems = call.state_names if len(self.recurrent) > 1 else ("h", "c")
            for stem, size in zip(stems, sizes, strict=False):
                shape: tuple[Axis, ...] = ("batch", size[1]) if call.is_cell else (size[0], "batch", size[2])
                found.append(State(stem, shape, f"{stem}_next"))
        return [tuple(found)]

    def _seen(
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

    def _deterministic(self, one: Seen, other: Seen) -> None:
        for (path, a), (_, b) in zip(one.result, other.result, strict=True):
            if not torch.equal(torch.nan_to_num(a.float()), torch.nan_to_num(b.float())):
                where = ".".join(map(str, path)) or "its result"
                raise ModelError(
                    f"{self.name} gives different values for the same events ({where}): nothing in forward may be drawn"
                    " by chance once eval() is called, initial states and dropout included"
                )

    def _outputs(self, seen: Sequence[Seen], explicit: int) -> tuple[Leaf, ...]:
        """The tensors that are answers: all that are declared, else all but those that are states."""
        first = seen[0]
        if not first.result:
            raise ModelError(f"{self.name}.forward returns no tensor: return one, or a tuple or dict of them")
        last = {id(state) for states in first.finals.values() for state in states}
        kept = first.result[: len(first.result) - explicit]
        plain = [(path, tensor) for path, tensor in kept if id(tensor) not in last] or kept
        declared = self.fields.get("outputs")
        names = [str(each.get("name", "")) for each in declared] if isinstance(declared, list) else None
        if names is not None and all(name in {_joined(path) for path, _ in kept} for name in names):
            chosen = [next(each for each in kept if _joined(each[0]) == name) for name in names]
        elif names is None or len(names) == len(plain):
            chosen = plain
        elif len(names) == len(kept):
            chosen = kept
        else:
            there = ", ".join(f"{_joined(path) or 'a tensor'} {list(tensor.shape)}" for path, tensor in kept)
            raise ModelError(
                f"the contract declares the outputs {', '.join(names)}, but {self.name}.forward returns {there}:"
                " declare them in its order, or by the keys of its dict"
            )
        found = []
        for number, (path, _) in enumerate(chosen):
            shapes = [tuple(dict(each.result)[path].shape) for each in seen]
            key = _joined(path) if isinstance(path[0] if path else 0, str) else ("y" if number == 0 else f"y_{number + 1}")
            leaf = self._leaf(path, names[number] if names else key, shapes)
            if leaf is not None:
                found.append(leaf)
            elif names is not None:
                raise ModelError(
                    f"the output {names[number]!r} has shape {list(shapes[0])} for 2 rows of 5 steps, {list(shapes[2])} for 2 of 7:"
                    ' an output needs the rows ("batch") once, "time" at most once, and fixed sizes beside them'
                )
        if not found:
            raise ModelError(
                f"{self.name}.forward returns nothing that has one row per stream (shapes {[list(t.shape) for _, t in kept]}):"
                " return the predictions, not their loss"
            )
        return tuple(found)

    def _leaf(self, path: Path, name: str, shapes: Sequence[Sequence[int]]) -> Leaf | None:
        axes = axes_of(shapes, _SIZES)
        flat = axes[:1] == ["flat"]
        if flat:
            axes = [*(axis for axis in self.shape if isinstance(axis, str)), *axes[1:]]
        if None in axes or "flat" in axes or axes.count("batch") != 1 or axes.count("time") > 1:
            return None
        return Leaf(path, name, tuple(axes), flat)  # type: ignore[arg-type]

    # step mode

    def _stepped(self, plan: Plan, *, one_step: bool) -> Plan | str:
        """The plan in step mode, or why it cannot be."""
        tries = [one_step] if one_step else [False]
        reason = ""
        for single in tries:
            steps = 1 if single else 5
            lifted = self._lifted(plan, steps)
            if isinstance(lifted, str):
                return lifted
            made = replace(plan, mode="step", lifted=lifted, one_step=single)
            if self._same_in_pieces(made):
                return self._renamed(made)
            reason = self._why_not(made)
        if not plan.explicit and self.arguments.states and plan.form is None:
            carried = self._returned_states()
            if carried is not None:
                form, explicit = carried
                again = self._stepped(replace(plan, form=form, explicit=explicit, outputs=self._outputs_with(form, explicit)), one_step=one_step)  # fmt: skip
                return again if isinstance(again, Plan) else reason
        return reason

    def _outputs_with(self, form: Form, explicit: Sequence[State]) -> tuple[Leaf, ...]:
        return self._outputs([self._seen(form, explicit, rows, steps) for rows, steps in _SIZES], len(explicit))

    def _returned_states(self) -> tuple[Form, tuple[State, ...]] | None:
        """States that the module made for itself and returned last, to be given to the parameter that takes them."""
        seen = [self._seen(None, (), rows, steps) for rows, steps in _SIZES]
        whole = seen[0].whole
        if len(self.arguments.states) != 1 or not isinstance(whole, tuple) or len(whole) < 2:
            return None
        try:
            form, tensors = form_of(whole[-1])
        except TypeError:
            return None
        count, states = len(tensors), []
        for place in range(count):
            axes = axes_of([each.result[len(each.result) - count + place][1].shape for each in seen], _SIZES)
            if None in axes or "time" in axes or axes.count("batch") != 1:
                return None
            name = self.arguments.states[0] + (f"_{place}" if count > 1 else "")
            states.append(State(name, tuple(axes), f"{name}_next"))  # type: ignore[arg-type]
        return (form,), tuple(states)

    def _lifted(self, plan: Plan, steps: int) -> tuple[Lifted, ...] | str:
        """The recurrent calls that start from nothing or from constants; their starts become states."""
        one = self._seen(plan.form, plan.explicit, 2, steps, seed=1, scale=0.5)
        other = self._seen(plan.form, plan.explicit, 2, steps, seed=2, scale=0.7)
        if one.sites != other.sites:
            return f"{self.name} calls its recurrent submodules differently for different events"
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

    def _renamed(self, plan: Plan) -> Plan:
        """Lifted states under their declared names; a single recurrent submodule's are simply h and c."""
        lifted = [state for each in plan.lifted for state in each.states]
        if not lifted:
            return plan
        if self.declared and not plan.explicit:
            names: Sequence[State] = self._declared_states()
            shapes = [(state.input, list(state.shape)) for state in lifted]
            if [list(state.shape) for state in names] != [shape for _, shape in shapes]:
                raise ModelError(
                    f"the contract declares the states {[list(s.shape) for s in names]}, the module carries"
                    f" {', '.join(f'{name} {shape}' for name, shape in shapes)}: correct them, or leave them out"
                )
        elif len(plan.lifted) == 1 and not {"h", "c"} & {state.input for state in plan.explicit}:
            names = [replace_state(s, name) for s, name in zip(lifted, ("h", "c"), strict=False)]
        else:
            return plan
        rest = iter(names)
        renamed = [
            Lifted(each.site, tuple(replace_state(s, (n := next(rest)).input, n.output) for s in each.states))
            for each in plan.lifted
        ]
        return replace(plan, lifted=tuple(renamed))

    def _same_in_pieces(self, plan: Plan) -> bool:
        """Six events in one call of the plain module, against pieces with the states carried on."""
        rows, steps = 2, 6
        time = self.shape.index("time")
        x = example(self.shape, self.dtype, rows, steps, self.words, 3)
        ends = range(1, steps + 1) if plan.one_step else (4, 6)
        states, begin = plan.initial(rows), 0
        try:
            with torch.no_grad():
                whole, _ = plan.run(self.module, x, plan.lengths(rows, steps), ())
                for end in ends:
                    piece = x.narrow(time, begin, end - begin)
                    outputs, states = plan.run(self.module, piece, plan.lengths(rows, end - begin), states)
                    if any("time" not in leaf.axes for leaf in plan.outputs):
                        whole, _ = plan.run(self.module, x.narrow(time, 0, end), plan.lengths(rows, end), ())
                    for leaf, expected, got in zip(plan.outputs, whole, outputs, strict=True):
                        if "time" in leaf.axes:
                            expected = expected.narrow(leaf.axes.index("time"), begin, end - begin)
                        if expected.shape != got.shape or not torch.allclose(expected, got, rtol=_CLOSE, atol=_CLOSE):
                            return False
                    begin = end
        except (RuntimeError, IndexError, KeyError, StopIteration, TypeError, ValueError):
            return False
        return True

    def _why_not(self, plan: Plan) -> str:
        lifted = {each.site for each in plan.lifted}
        seen = self._seen(plan.form, plan.explicit, 2, 5)
        follows = [call.name for call in seen.calls if call.site not in lifted and not plan.explicit and not plan.one_step]
        around = [name for name, each in self.module.named_modules() if isinstance(each, _LOOKS_AROUND)]
        start = "a sequence in pieces, with the states carried on, gives another result than in one piece"
        if follows:
            return f"{start}: the submodule {follows[0]!r} starts from what another one ends with"
        if around:
            return f"{start}: the submodule {around[0]!r} looks at more than one step"
        names = ", ".join(repr(name) for name, _ in self.recurrent) or "no recurrent submodule"
        return f"{start}: forward of {self.name} looks at more than one step beside its recurrent submodules ({names})"


def replace_state(state: State, name: str, output: str | None = None) -> State:
    """The same state under other names."""
    return State(name, state.shape, output or f"{name}_next", state.initial)


def _joined(path: Path) -> str:
    return "_".join(str(part) for part in path)


__all__ = ["CELLS", "Leaf", "Lifted", "Plan", "Planner"]
