"""Tries a loaded model on made-up events: does it keep what its contract promises?

Letters for shapes: B rows, T steps, F features, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from streamer.core import F32
from streamer.errors import ModelError, ModelRunError
from streamer.modelfile.session import Session
from streamer.modelfile.signature import Array

TOLERANCE = 1e-5
"""What rows and chunks may differ by, absolute and relative: other kernels round differently."""

_SUM_TOLERANCE = 1e-3
"""What probabilities may miss one by: float32, and exporters that round."""

_ROWS, _STEPS = 3, 3
_LENGTH_MULTIPLES = (1, 2, 4, 8, 16, 32, 64)

Result = tuple[list[F32], list[F32]]


@dataclass(frozen=True, slots=True)
class Finding:
    """What the probe saw. ``passed`` is False for a shortcoming that was worked around; worse is refused."""

    name: str
    passed: bool
    detail: str


class Probe:
    """One walk through the promises. Values are made up, deterministic, different in every row and step."""

    def __init__(self, model: Session) -> None:
        self.model = model
        self.findings: list[Finding] = []
        self._worst = 0.0
        self._finite = True
        self._stepping = model.contract.mode == "step"

    def run(self) -> list[Finding]:
        """All findings; tells the model what it cannot do. ModelError for a promise that cannot be done without."""
        contract = self.model.contract
        unit = self._length_multiple()
        steps = _STEPS * unit
        count = _ROWS * steps * contract.features
        pattern = np.sin(np.arange(1, count + 1) * 12.9898) * 1.5
        if contract.input.dtype.startswith("int"):
            pattern = np.abs(np.trunc(pattern))
        self.x: F32 = pattern.astype(np.float32).reshape(_ROWS, steps, contract.features)
        for place, feature in enumerate(contract.feature_tables):
            if feature.vocabulary:  # words that it has, or every row would look the same to the graph
                self.x[..., place] = np.trunc(np.abs(self.x[..., place]) / 1.5001 * len(feature.vocabulary))
        try:
            if self._stepping:
                self._steps()
            else:
                self._windows(unit)
        except ModelRunError as error:
            raise ModelError(f"a trial run failed: {error}: correct the contract or the graph") from None
        self._classes()
        detail = (
            "every comparison is bit-equal" if self._worst == 0 else f"equal up to {self._worst:.1e}, not bit by bit"
        )
        self.findings.append(Finding("bit_equality", True, detail))
        if not self._finite:
            detail = "it gives NaN or infinity for ordinary events, which are rejected when it serves"
            self.findings.append(Finding("finite", False, detail))
        return self.findings

    def _classes(self) -> None:
        """Rows of an output of kind classes are probabilities: they sum to one."""
        model, steps = self.model, self.x.shape[1]
        declared = [(at, each) for at, each in enumerate(model.contract.outputs) if each.kind == "classes"]
        chosen = [(at, each.name) for at, each in declared if each.emit is None or each.emit.scale == "probability"]
        if not chosen:
            return
        outputs = [output for row in range(_ROWS) for output, _ in self._alone(row, [slice(0, steps)])]
        name = "classes_sum_to_one"
        for at, output in chosen:
            values = np.concatenate([each[at].reshape(-1, each[at].shape[-1]) for each in outputs]).astype(np.float64)
            sums = values.sum(axis=1)
            if (values < -_SUM_TOLERANCE).any() or not np.allclose(sums, 1, rtol=0, atol=_SUM_TOLERANCE):
                detail = (
                    f"rows of {output!r} sum to {sums.min():.3g} to {sums.max():.3g}: these are no probabilities (logits?), "
                    "and they are published as they are. Add a softmax, or declare another kind"
                )
                self.findings.append(Finding(name, False, detail))
            else:
                self.findings.append(Finding(name, True, f"rows of {output!r} are probabilities"))

    def _length_multiple(self) -> int:
        """Smallest number of steps whose multiples run; the shapes of what comes out are checked on the way."""
        if self._stepping:
            try:
                self.model.check_shapes(1)
            except ModelRunError as error:
                raise ModelError(f"a trial run failed: {error}: correct the contract or the graph") from None
            return 1
        failure: ModelRunError | None = None
        for unit in _LENGTH_MULTIPLES:
            try:
                for times in range(1, _STEPS + 1):
                    self.model.check_shapes(unit * times)
            except ModelRunError as error:
                failure = failure or error
                continue
            self.model.length_multiple = unit
            if unit > 1:
                detail = f"windows of {unit}, {2 * unit} and {3 * unit} events run, not all shorter ones"
                self.findings.append(Finding("length_multiple", False, detail))
            return unit
        raise ModelError(f"a trial run failed: {failure}: correct the contract or the graph")

    def _equal(self, one: Sequence[Array], other: Sequence[Array]) -> bool:
        """All close, and what is not finite the same at the same places; remembers the largest difference."""
        worst = 0.0
        for a, b in zip(one, other, strict=True):
            if a.shape != b.shape or not np.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
                return False
            finite = np.isfinite(a) & np.isfinite(b)
            self._finite &= bool(finite.all())
            if finite.any():
                worst = max(worst, float(np.max(np.abs(a[finite].astype(np.float64) - b[finite]))))
        self._worst = max(self._worst, worst)
        return True

    def _row(self, values: Sequence[F32], row: int) -> list[F32]:
        return [
            value.take([row], axis=state.batch_axis) for state, value in zip(self.model.states, values, strict=False)
        ]

    def _alone(self, row: int, spans: Sequence[slice]) -> list[Result]:
        """Results of one row by itself, one call per span; in step mode with the state carried on."""
        states, results = self.model.initial_states(1), []
        for span in spans:
            x = self.x[row : row + 1, span]
            outputs, nexts = self.model.run(x, np.full(1, x.shape[1], np.int32), states)
            results.append((outputs, nexts))
            states = nexts if self._stepping else states
        return results

    def _batch(self, together: Callable[[], bool]) -> None:
        """Rows together against each alone; a batch axis that does not hold is never used again."""
        name, size = "batch_independence", self.model.rows_per_call
        if size == 1:
            self.findings.append(Finding(name, False, "the batch axis is fixed to 1: rows are run one at a time"))
            return
        try:
            held, reason = together(), "rows that run together influence each other"
        except (ModelRunError, ValueError) as error:
            held, reason = False, f"several rows cannot run together ({error})"
        if held:
            note = "" if size is None else f" (the batch axis is fixed: always {size} to a call)"
            self.findings.append(Finding(name, True, f"rows that run together equal each alone{note}"))
            return
        if size is not None:
            raise ModelError(f"{reason}, and the batch axis is fixed to {size}: export it with a dynamic batch axis")
        self.model.one_row_per_call()
        self.findings.append(Finding(name, False, f"the batch axis is false, {reason}: rows are run one at a time"))

    # step mode

    def _steps(self) -> None:
        spans = [slice(step, step + 1) for step in range(_STEPS)]
        alone = [self._alone(row, spans) for row in range(_ROWS)]
        self._batch(lambda: self._steps_together(alone, spans))
        if self.model.max_steps is None:
            self._sequence(alone)
        if self.model.max_steps is None and self.model.ragged:
            self._padded_steps(alone)

    def _steps_together(self, alone: list[list[Result]], spans: Sequence[slice]) -> bool:
        states = self.model.initial_states(_ROWS)
        for step, span in enumerate(spans):
            outputs, states = self.model.run(self.x[:, span], np.ones(_ROWS, np.int32), states)
            for row in range(_ROWS):
                expected, nexts = alone[row][step]
                if not self._equal([output[row : row + 1] for output in outputs], expected):
                    return False
                if not self._equal(self._row(states, row), nexts):
                    return False
        return True

    def _sequence(self, alone: list[list[Result]]) -> None:
        name = "sequence_equals_steps"
        for row in range(_ROWS):
            try:
                outputs, nexts = self._alone(row, [slice(0, _STEPS)])[0]
            except (ModelRunError, ValueError) as error:
                self.model.one_step_per_call()
                detail = f"several steps in one call do not run ({error}): one step per call"
                self.findings.append(Finding(name, False, detail))
                return
            if not self._equal(outputs, _joined(alone[row])) or not self._equal(nexts, alone[row][-1][1]):
                raise ModelError(
                    "a sequence in one call gives another result than step by step, so the model looks ahead, or a"
                    " state is missing or mispaired: declare every state with its own output, or mode window"
                )
        self.findings.append(Finding(name, True, "a sequence in one call equals it step by step"))

    def _padded_steps(self, alone: list[list[Result]]) -> None:
        """Rows of 3, 1 and 2 steps padded to 3 with other events, and the states after them."""
        lengths = np.array([3, 1, 2], np.int32)
        outputs, nexts = self.model.run(self.x, lengths, self.model.initial_states(_ROWS))
        for row, length in enumerate(lengths.tolist()):
            got = [output[row : row + 1, :length] for output in outputs]
            state = alone[row][length - 1][1]
            self._expect_padding(
                self._equal(got, _joined(alone[row][:length])) and self._equal(self._row(nexts, row), state)
            )
        self.findings.append(Finding("padding_independence", True, "a padded row equals it unpadded"))

    # window mode

    def _windows(self, unit: int) -> None:
        model, longest = self.model, _STEPS * unit
        whole = [self._alone(row, [slice(0, longest)])[0][0] for row in range(_ROWS)]

        def together() -> bool:
            outputs, _ = model.run(self.x, np.full(_ROWS, longest, np.int32), model.initial_states(_ROWS))
            return all(self._equal([output[row : row + 1] for output in outputs], whole[row]) for row in range(_ROWS))

        self._batch(together)
        if not model.ragged:
            detail = "no lengths are declared: only windows of equal length share a call"
            self.findings.append(Finding("padding_independence", True, detail))
            return
        lengths = np.array([longest, unit, 2 * unit], np.int32)
        outputs, _ = model.run(self.x, lengths, model.initial_states(_ROWS))
        for row, length in enumerate(lengths.tolist()):
            expected = self._alone(row, [slice(0, length)])[0][0]
            got = [output[row : row + 1, :length] if output.ndim == 3 else output[row : row + 1] for output in outputs]
            self._expect_padding(self._equal(got, expected))
        self.findings.append(Finding("padding_independence", True, "a padded window equals it unpadded"))

    def _expect_padding(self, held: bool) -> None:
        if not held:
            raise ModelError(
                f"padding changes the result of a row although lengths {self.model.contract.lengths!r} is given: use it"
                " in the graph (sequence_lens), or leave lengths out, so that only rows of equal length share a call"
            )


def _joined(steps: Sequence[Result]) -> list[F32]:
    """Outputs of single steps [1,1,O] as one sequence [1,T,O] each."""
    return [np.concatenate(values, axis=1) for values in zip(*(outputs for outputs, _ in steps), strict=True)]
