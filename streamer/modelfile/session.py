"""A graph, run over ragged batches as its contract says. The only place that knows ONNX Runtime.

Letters for shapes: B rows, T steps, F features, O outputs. ``Session.run`` is right for every B, T and lengths, whatever
the graph can take at once; ``max_steps``, ``batched`` and ``ragged`` tell a scheduler what is done in one call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime

from streamer.core import F32, I32
from streamer.errors import ModelError, ModelRunError
from streamer.modelfile.contract import Contract
from streamer.modelfile.parts import State
from streamer.modelfile.signature import Array, Layout, Node, Signature

RUNTIME = f"onnxruntime {onnxruntime.__version__}"

Result = tuple[list[F32], list[F32]]


class Session:
    """One graph. Invariant 3: a row's result depends neither on its neighbours nor on chunking (see ``probe``).

    ``states``: what must be held per stream, with ``context`` among them where the contract asks for it.
    ``batched``: several rows share a call (``rows_per_call``: exactly so many, None: any). ``max_steps``: steps of one
    call, None: any. ``ragged``: rows of different length share a call.
    """

    def __init__(self, source: Path | bytes, contract: Contract, *, threads: int = 1) -> None:
        """``source``: the file, or its bytes when all tensors are in it. ModelError if ONNX Runtime refuses it."""
        self.contract = contract
        self.output_sizes = contract.output_sizes
        context = (State("context", ("batch", contract.context)),) if contract.context else ()
        self.states: tuple[State, ...] = (*contract.states, *context)
        self.max_steps: int | None = 1 if contract.single_step or contract.context else None
        self.false_batch = False
        """The graph declares a batch, but rows disturb each other in it (found by the probe)."""
        self.length_multiple = 1
        """Windows run in multiples of so many events (found by the probe)."""
        self._session = session = open_graph(source, threads)
        self._options: onnxruntime.RunOptions | None = None
        self._initial = [state.initial_row() for state in self.states]
        self._layout = Layout.of(contract.input.shape, contract.context)
        self._dtype = cast(type[np.generic], np.dtype(contract.input.dtype).type)
        self._read = [(Layout.of(output.shape), output.per == "event") for output in contract.outputs]
        self._state_inputs = [state.input for state in contract.states]
        # A window starts from the initial state and carries nothing on.
        carried = [state.output for state in contract.states if state.output is not None and contract.mode == "step"]
        self._carried = len(self.states) if carried or context else 0
        self._fetch = [output.name for output in contract.outputs] + carried
        signature = Signature.of(contract, session.get_inputs(), session.get_outputs())
        self.rows_per_call = signature.rows_per_call
        self._lengths_dtype, self._constants = signature.lengths_dtype, signature.constants
        if signature.single_step:
            self.max_steps = 1
        self._direct = False
        self._settle()

    @property
    def batched(self) -> bool:
        return self.rows_per_call != 1

    @property
    def ragged(self) -> bool:
        return self.contract.lengths is not None

    @property
    def state_bytes_per_stream(self) -> int:
        return sum(value.nbytes for value in self._initial)

    def initial_states(self, rows: int) -> list[F32]:
        """Initial states of ``rows`` streams, one fresh array per state in its declared shape."""
        return [
            np.repeat(value, rows, axis=state.batch_axis)
            for state, value in zip(self.states, self._initial, strict=True)
        ]

    def run(self, x: F32, lengths: I32, states: Sequence[F32]) -> Result:
        """x[B,T,F], lengths[B] in 1..T, states as ``initial_states`` gives them; nothing of it is changed.

        Returns (per output [B,T,O], or [B,O] per window; next states, none in window mode). Beyond a row's length
        outputs are undefined.
        ModelRunError if the call fails.
        """
        rows, steps = x.shape[:2]
        if rows < 1 or steps < 1:
            # ONNX Runtime aborts the whole process on recurrent operators with no rows or no steps.
            raise ModelRunError(f"a call needs at least one row and one step, not {rows} and {steps}")
        if self._direct and (steps == 1 or self.contract.lengths is not None):
            return self._call(x, lengths, states)
        if self.max_steps is not None and steps > self.max_steps:
            return self._one_step_at_a_time(x, lengths, states)
        if self.contract.lengths is None and steps > 1 and int(lengths.min()) != int(lengths.max()):
            return self._by_length(x, lengths, states)
        if self.contract.lengths is None and int(lengths[0]) < steps:
            return self._shorter(x, lengths, states)
        if self.rows_per_call is not None and rows != self.rows_per_call:
            return self._in_chunks(x, lengths, states, self.rows_per_call)
        return self._call(x, lengths, states)

    def warm(self, rows: Iterable[int], steps: int = 1) -> None:
        """Runs each batch size once: the first run of a shape costs ten times the next."""
        for count in rows:
            x = np.zeros((count, steps, self.contract.features), np.float32)
            self.run(x, np.full(count, steps, np.int32), self.initial_states(count))

    # one call, and what makes several calls look like one

    def _feed(self, x: F32, lengths: I32, states: Sequence[F32]) -> dict[str, Array]:
        """The graph's inputs; ``x`` with the context already in front."""
        contract = self.contract
        feed: dict[str, Array] = {**self._constants, contract.input.name: self._layout.feed(x, self._dtype)}
        if contract.lengths is not None:
            feed[contract.lengths] = lengths.astype(self._lengths_dtype, copy=False)
        feed.update(zip(self._state_inputs, states, strict=False))
        return feed

    def _infer(self, feed: dict[str, Array], rows: int, steps: int) -> list[Any]:
        try:
            results: list[Any] = self._session.run(self._fetch, feed, self._options)
        except Exception as error:  # ONNX Runtime's errors have no common base but Exception
            reason = f"model {self.contract.name!r} failed on {rows} rows of {steps} steps: {reason_of(error)}"
            raise ModelRunError(reason) from None
        return results

    def _call(self, x: F32, lengths: I32, states: Sequence[F32]) -> Result:
        rows, steps = x.shape[:2]
        kept: list[F32] = []
        if self.contract.context:
            x = np.concatenate((states[-1][:, None, :], x), axis=2)
            kept = [np.ascontiguousarray(x[:, 0, -self.contract.context :])]
        results = self._infer(self._feed(x, lengths, states), rows, steps)
        try:
            outputs = [
                layout.read(result, rows, steps, per_event=per_event)
                for result, (layout, per_event) in zip(results, self._read, strict=False)
            ]
        except ValueError as error:
            raise ModelRunError(f"model {self.contract.name!r} gave an output of another shape: {error}") from None
        return outputs, results[len(outputs) :] + kept

    def _subset(self, x: F32, lengths: I32, states: Sequence[F32], rows: Array, steps: int) -> Result:
        taken = [value.take(rows, axis=state.batch_axis) for state, value in zip(self.states, states, strict=True)]
        return self.run(x[rows, :steps], lengths[rows], taken)

    def _assemble(self, x: F32, states: Sequence[F32], parts: Iterable[tuple[Array, slice, Result]]) -> Result:
        """Puts the results of rows (and steps) where they belong."""
        rows, steps = x.shape[:2]
        outputs = [
            np.zeros((rows, steps, layout.size) if per_event else (rows, layout.size), np.float32)
            for layout, per_event in self._read
        ]
        nexts = [value.copy() for value in states[: self._carried]]
        for index, span, (part, part_states) in parts:
            for output, value in zip(outputs, part, strict=True):
                if output.ndim == 3:
                    output[index, span] = value
                else:
                    output[index] = value
            for state, target, value in zip(self.states, nexts, part_states, strict=False):
                target[(slice(None),) * state.batch_axis + (index,)] = value
        return outputs, nexts

    def _one_step_at_a_time(self, x: F32, lengths: I32, states: Sequence[F32]) -> Result:
        assert self.contract.mode == "step"
        outputs = [np.zeros((*x.shape[:2], size), np.float32) for size in self.output_sizes]
        nexts = [value.copy() for value in states]
        for step in range(x.shape[1]):
            rows = np.flatnonzero(lengths > step)
            if not len(rows):
                break
            part, advanced = self._subset(x[:, step : step + 1], np.ones_like(lengths), nexts, rows, 1)
            for output, value in zip(outputs, part, strict=True):
                output[rows, step] = value[:, 0]
            for state, target, value in zip(self.states, nexts, advanced, strict=True):
                target[(slice(None),) * state.batch_axis + (rows,)] = value
        return outputs, nexts

    def _by_length(self, x: F32, lengths: I32, states: Sequence[F32]) -> Result:
        """Without a lengths tensor only rows of equal length may share a call: padding would change results."""
        parts = []
        for length in np.unique(lengths).tolist():
            rows = np.flatnonzero(lengths == length)
            parts.append((rows, slice(0, length), self._subset(x, lengths, states, rows, length)))
        return self._assemble(x, states, parts)

    def _shorter(self, x: F32, lengths: I32, states: Sequence[F32]) -> Result:
        """All rows end before the padding does: the padding is cut off."""
        length, rows = int(lengths[0]), np.arange(len(x))
        return self._assemble(x, states, [(rows, slice(0, length), self.run(x[:, :length], lengths, states))])

    def _in_chunks(self, x: F32, lengths: I32, states: Sequence[F32], size: int) -> Result:
        """The graph takes exactly ``size`` rows: the last chunk is filled up with copies of its first row."""
        parts = []
        for begin in range(0, len(x), size):
            rows = np.arange(begin, min(begin + size, len(x)))
            filled = np.concatenate((rows, np.repeat(rows[:1], size - len(rows))))
            outputs, nexts = self._subset(x, lengths, states, filled, x.shape[1])
            real = np.arange(len(rows))
            cut = [value.take(real, axis=s.batch_axis) for s, value in zip(self.states, nexts, strict=False)]
            parts.append((rows, slice(0, x.shape[1]), ([output[: len(rows)] for output in outputs], cut)))
        return self._assemble(x, states, parts)

    def _settle(self) -> None:
        plain = self.max_steps is None or self.contract.lengths is None
        self._direct = plain and self.rows_per_call is None

    # what a probe asks and tells

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """While a graph is tried ONNX Runtime logs no failures: they are told as findings."""
        self._options = onnxruntime.RunOptions()
        self._options.log_severity_level = 4
        try:
            yield
        finally:
            self._options = None

    def check_shapes(self, steps: int) -> None:
        """One call of ``steps`` steps: ModelRunError if it fails, ModelError if an output is not shaped as declared."""
        contract, rows = self.contract, self.rows_per_call or 1
        x = np.full((rows, steps, contract.features + contract.context), 0.5, np.float32)
        lengths = np.full(rows, steps, np.int32)
        results = self._infer(self._feed(x, lengths, self.initial_states(rows)), rows, steps)
        shapes = {output.name: output.shape for output in contract.outputs}
        shapes |= {state.output: state.shape for state in contract.states if state.output is not None}
        sizes = {"batch": rows, "time": steps}
        for name, result in zip(self._fetch, results, strict=True):
            expected = [sizes[axis] if isinstance(axis, str) else axis for axis in shapes[name]]
            if list(result.shape) != expected:
                raise ModelError(
                    f"the output {name!r} came out with shape {list(result.shape)} for {rows} rows of {steps} steps,"
                    f" but {list(shapes[name])} is declared: correct the contract"
                )

    def one_row_per_call(self) -> None:
        """What the batch axis promised does not hold."""
        self.false_batch = True
        self.rows_per_call = 1
        self._settle()

    def one_step_per_call(self) -> None:
        """What the time axis promised does not hold."""
        self.max_steps = 1
        self._settle()


def nodes(source: Path | bytes) -> tuple[list[Node], list[Node]]:
    """Inputs and outputs of a graph as ONNX Runtime describes them. ModelError if it refuses the file."""
    session = open_graph(source, 1)
    return list(session.get_inputs()), list(session.get_outputs())


def open_graph(source: Path | bytes, threads: int) -> onnxruntime.InferenceSession:
    """A graph that can be run. ModelError if ONNX Runtime refuses it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # Spinning threads would burn most of a core while the service is idle.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(
            str(source) if isinstance(source, Path) else source, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's errors have no common base but Exception
        raise ModelError(
            f"ONNX Runtime refuses it ({reason_of(error)}): export it again, opset 20 and IR 10 fit"
        ) from None


def reason_of(error: Exception) -> str:
    """ONNX Runtime's message without its prefixes, on one line."""
    text = " ".join(str(error).split())
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]
    return text[:400]
