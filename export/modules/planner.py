"""What a module of whole sequences is: step or window, which states it carries, which tensors it gives.

Found by running it on made-up events, never by reading its code: the shapes for several B and T, which recurrent calls
start from states of their own, and whether a sequence cut in two gives what it gives in one piece.
Shapes: B rows, T steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from streamer.errors import ModelError
from streamer.modelfile.parts import State

from .calling import Form, Path, axes_of, example
from .plan import Leaf, Lifted, Plan, replace_state
from .trial import SIZES, Seen, StateFinder, Trial

_LOOKS_AROUND = (
    nn.Conv1d, nn.Conv2d, nn.AvgPool1d, nn.MaxPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d,
    nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.BatchNorm1d, nn.GroupNorm, nn.InstanceNorm1d,
)  # fmt: skip
_CLOSE = 1e-5


class Planner:
    """Makes the plan of one module for one contract. ModelError says what cannot be, and names the submodule."""

    def __init__(self, module: nn.Module, fields: Mapping[str, Any]) -> None:
        self._trial = Trial(module, fields)
        self._states = StateFinder(self._trial)

    def plan(self) -> Plan:
        form, explicit = self._states.explicit()
        seen = [self._trial.seen(form, explicit, rows, steps) for rows, steps in SIZES]
        self._trial.check_deterministic(seen[0], self._trial.seen(form, explicit, *SIZES[0]))
        looped = {call.name for call in seen[2].calls} if len(seen[0].calls) != len(seen[2].calls) else set()
        outputs = self._outputs(seen, len(explicit))
        plan = Plan(
            self._trial.arguments,
            self._trial.shape,
            self._trial.dtype,
            "window",
            outputs,
            form,
            explicit,
            cells=tuple(sorted(looped)),
        )
        mode, per_event = self._trial.fields.get("mode"), all("time" in leaf.axes for leaf in outputs)
        returned = None if explicit or per_event or mode == "window" else self._states.returned_states()
        if returned is not None:
            again = self._outputs_with(*returned)
            if all("time" in leaf.axes for leaf in again):
                per_event = True
                plan = replace(plan, form=returned[0], explicit=returned[1], outputs=again)
        if mode == "window" or (mode is None and not per_event):
            return plan
        both = sorted({call.name or self._trial.name for call in seen[0].calls if call.bidirectional})
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

    # step mode

    def _stepped(self, plan: Plan, *, one_step: bool) -> Plan | str:
        """The plan in step mode, or why it cannot be."""
        lifted = self._states.lifted(plan, 1 if one_step else 5)
        if isinstance(lifted, str):
            return lifted
        made = replace(plan, mode="step", lifted=lifted, one_step=one_step)
        return self._renamed(made) if self._same_in_pieces(made) else self._why_not(made)

    def _renamed(self, plan: Plan) -> Plan:
        """Lifted states under their declared names; a single recurrent submodule's are simply h and c."""
        lifted = [state for each in plan.lifted for state in each.states]
        if not lifted:
            return plan
        if self._trial.declared and not plan.explicit:
            names: Sequence[State] = self._states.declared_states()
            shapes = [(state.input, list(state.shape)) for state in lifted]
            if [list(state.shape) for state in names] != [shape for _, shape in shapes]:
                raise ModelError(
                    f"the contract declares the states {[list(s.shape) for s in names]}, the module carries"
                    f" {', '.join(f'{name} {shape}' for name, shape in shapes)}: correct them, or leave them out"
                )
        elif len(plan.lifted) == 1 and not {"h", "c"} & {
            *(s.input for s in plan.explicit),
            *(o.name for o in plan.outputs),
        }:
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
        time = self._trial.shape.index("time")
        x = example(self._trial.shape, self._trial.dtype, rows, steps, self._trial.words, 3)
        ends = range(1, steps + 1) if plan.one_step else (4, 6)
        states, begin = plan.initial(rows), 0
        try:
            with torch.no_grad():
                whole, _ = plan.run(self._trial.module, x, plan.lengths(rows, steps), ())
                for end in ends:
                    piece = x.narrow(time, begin, end - begin)
                    outputs, states = plan.run(self._trial.module, piece, plan.lengths(rows, end - begin), states)
                    if any("time" not in leaf.axes for leaf in plan.outputs):
                        whole, _ = plan.run(self._trial.module, x.narrow(time, 0, end), plan.lengths(rows, end), ())
                    for leaf, expected, got in zip(plan.outputs, whole, outputs, strict=True):
                        now = expected
                        if "time" in leaf.axes:
                            now = expected.narrow(leaf.axes.index("time"), begin, end - begin)
                        if now.shape != got.shape or not torch.allclose(now, got, rtol=_CLOSE, atol=_CLOSE):
                            return False
                    begin = end
        except (RuntimeError, IndexError, KeyError, StopIteration, TypeError, ValueError):
            return False
        return True

    def _why_not(self, plan: Plan) -> str:
        lifted = {each.site for each in plan.lifted}
        seen = self._trial.seen(plan.form, plan.explicit, 2, 5)
        follows = [
            call.name for call in seen.calls if call.site not in lifted and not plan.explicit and not plan.one_step
        ]
        around = [name for name, each in self._trial.module.named_modules() if isinstance(each, _LOOKS_AROUND)]
        start = "a sequence in pieces, with the states carried on, gives another result than in one piece"
        if follows:
            return f"{start}: the submodule {follows[0]!r} starts from what another one ends with"
        if around:
            return f"{start}: the submodule {around[0]!r} looks at more than one step"
        names = ", ".join(repr(name) for name, _ in self._trial.recurrent) or "no recurrent submodule"
        return f"{start}: forward of {self._trial.name} looks at more than one step beside its recurrent submodules ({names})"

    def _outputs(self, seen: Sequence[Seen], explicit: int) -> tuple[Leaf, ...]:
        """The tensors that are answers: all that are declared, else all but those that are states."""
        first = seen[0]
        if not first.result:
            raise ModelError(f"{self._trial.name}.forward returns no tensor: return one, or a tuple or dict of them")
        last = {id(state) for states in first.finals.values() for state in states}
        kept = first.result[: len(first.result) - explicit]
        plain = [(path, tensor) for path, tensor in kept if id(tensor) not in last] or kept
        declared = self._trial.fields.get("outputs")
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
                f"the contract declares the outputs {', '.join(names)}, but {self._trial.name}.forward returns {there}:"
                " declare them in its order, or by the keys of its dict"
            )
        found = []
        for number, (path, _) in enumerate(chosen):
            shapes = [tuple(dict(each.result)[path].shape) for each in seen]
            key = (
                _joined(path)
                if isinstance(path[0] if path else 0, str)
                else ("y" if number == 0 else f"y_{number + 1}")
            )
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
                f"{self._trial.name}.forward returns nothing that has one row per stream (shapes {[list(t.shape) for _, t in kept]}):"
                " return the predictions, not their loss"
            )
        return tuple(found)

    def _leaf(self, path: Path, name: str, shapes: Sequence[Sequence[int]]) -> Leaf | None:
        axes = axes_of(shapes, SIZES)
        flat = axes[:1] == ["flat"]
        if flat:
            axes = [*(axis for axis in self._trial.shape if isinstance(axis, str)), *axes[1:]]
        if None in axes or "flat" in axes or axes.count("batch") != 1 or axes.count("time") > 1:
            return None
        return Leaf(path, name, tuple(axes), flat)  # type: ignore[arg-type]

    def _outputs_with(self, form: Form, explicit: Sequence[State]) -> tuple[Leaf, ...]:
        return self._outputs([self._trial.seen(form, explicit, rows, steps) for rows, steps in SIZES], len(explicit))


def _joined(path: Path) -> str:
    return "_".join(str(part) for part in path)
