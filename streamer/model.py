"""A model file, checked against its contract and run over ragged batches. The only place that knows ONNX Runtime.

    model = Model.load("model.onnx")
    outputs, states = model.run(x, lengths, model.initial_states(len(x)))

Letters for shapes: B rows, T steps, F features, O outputs. ``Model.run`` is right for every B, T and lengths, whatever
the graph can take at once; ``max_steps``, ``batched`` and ``ragged`` tell a scheduler what is done in one call.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime

from streamer.contract import METADATA_KEY, Axis, Contract, State, load_sidecar
from streamer.core import F32, I32
from streamer.errors import ModelError, ModelRunError
from streamer.graphfile import check, digest, external_files, scan
from streamer.probe import Array, Finding, Probe, Result

_DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a tensor with declared axes is read as [B, T, numbers...]: transposition and shape of the numbers."""

    to_graph: tuple[int, ...] | None
    to_rows: tuple[int, ...] | None
    numbers: tuple[int, ...]
    time: bool
    size: int

    @classmethod
    def of(cls, shape: Sequence[Axis], extra: int = 0) -> _Layout:
        numbers = tuple(axis + extra for axis in shape if isinstance(axis, int))
        time = "time" in shape
        logical = ["batch", *(["time"] if time else [])]
        order = [logical.index(axis) if isinstance(axis, str) else -1 for axis in shape]
        rest = iter(range(len(logical), len(shape)))
        order = [next(rest) if index < 0 else index for index in order]
        straight = order == list(range(len(order)))
        back = tuple(int(index) for index in np.argsort(order))
        return cls(None if straight else tuple(order), None if straight else back, numbers, time, prod(numbers))

    def feed(self, x: Array, dtype: type[np.generic]) -> Array:
        """x[B,T,F] as the graph wants it (T is 1 where it has no time axis)."""
        rows, steps = x.shape[:2]
        shaped = x.reshape((rows, steps, *self.numbers) if self.time else (rows, *self.numbers))
        if self.to_graph is not None:
            shaped = shaped.transpose(self.to_graph)
        return np.ascontiguousarray(shaped, dtype)

    def read(self, y: Array, rows: int, steps: int, *, per_event: bool) -> F32:
        """A graph output as [B,T,O], or [B,O] per window."""
        if self.to_rows is not None:
            y = y.transpose(self.to_rows)
        y = y.reshape((rows, steps, self.size) if per_event else (rows, self.size))
        return y if y.dtype == np.float32 else y.astype(np.float32)


class Model:
    """One loaded model. Invariant 3: a row's result depends neither on its neighbours nor on chunking (see ``probe``).

    ``states``: what must be held per stream, with ``context`` among them where the contract asks for it.
    ``batched``: several rows share a call (``rows_per_call``: exactly so many, None: any). ``max_steps``: steps of one
    call, None: any. ``ragged``: rows of different length share a call.
    """

    def __init__(self, session: onnxruntime.InferenceSession, contract: Contract, sha256: str, path: Path) -> None:
        self.contract = contract
        self.sha256 = sha256
        self.path = path
        self.output_sizes = contract.output_sizes
        self.findings: list[Finding] = []
        context = (State("context", ("batch", contract.context)),) if contract.context else ()
        self.states: tuple[State, ...] = (*contract.states, *context)
        self.max_steps: int | None = 1 if contract.single_step or contract.context else None
        self.rows_per_call: int | None = None
        self.false_batch = False
        """The graph declares a batch, but rows disturb each other in it (found by the probe)."""
        self.length_multiple = 1
        """Windows run in multiples of so many events (found by the probe)."""
        self._session = session
        self._quiet = onnxruntime.RunOptions()
        self._quiet.log_severity_level = 4
        self._options: onnxruntime.RunOptions | None = None
        self._initial = [state.initial_row() for state in self.states]
        self._layout = _Layout.of(contract.input.shape, contract.context)
        self._dtype = cast(type[np.generic], np.dtype(contract.input.dtype).type)
        self._read = [(_Layout.of(output.shape), output.per == "event") for output in contract.outputs]
        self._state_inputs = [state.input for state in contract.states]
        # A window starts from the initial state and carries nothing on.
        carried = [state.output for state in contract.states if state.output is not None and contract.mode == "step"]
        self._carried = len(self.states) if carried or context else 0
        self._fetch = [output.name for output in contract.outputs] + carried
        self._lengths_dtype: type[np.generic] = np.int32
        self._constants: dict[str, Array] = {}
        self._check_graph()
        self._direct = False
        self._settle()

    @classmethod
    def load(cls, path: str | Path, *, sha256: str | None = None, threads: int = 1, probe: bool = True) -> Model:
        """Reads, checks and (with ``probe``) tries a model file. ModelError, in one sentence, if it cannot be trusted.

        ``sha256``: the pinned digest in hex; ``threads``: of one call (more pay only for large models and batches).
        """
        path = Path(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ModelError(f"the model {path} cannot be read: {error.strerror}") from None
        try:
            found = scan(data)
            files = external_files(path, found.external)
            digested = digest(data, files)
            if sha256 is not None and digested != sha256.lower():
                raise ModelError(
                    f"sha256 is {digested}, but {sha256} is pinned: deploy the pinned file, or pin this one"
                )
            check(found)
            contract = _contract(path, found.metadata.get(METADATA_KEY))
            model = cls(_session(path if files else data, threads), contract, digested, path)
            if probe:
                model.probe()
        except ModelError as error:
            raise ModelError(f"the model {path}: {error}") from None
        return model

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
            reason = f"model {self.contract.name!r} failed on {rows} rows of {steps} steps: {_reason(error)}"
            raise ModelRunError(reason) from None
        return results

    def _call(self, x: F32, lengths: I32, states: Sequence[F32]) -> Result:
        rows, steps = x.shape[:2]
        kept: list[F32] = []
        if self.contract.context:
            x = np.concatenate((states[-1][:, None, :], x), axis=2)
            kept = [np.ascontiguousarray(x[:, 0, -self.contract.context :])]
        results = self._infer(self._feed(x, lengths, states), rows, steps)
        outputs = [
            layout.read(result, rows, steps, per_event=per_event)
            for result, (layout, per_event) in zip(results, self._read, strict=False)
        ]
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

    # checks at load

    def _check_graph(self) -> None:
        contract = self.contract
        inputs = {node.name: node for node in self._session.get_inputs()}
        outputs = {node.name: node for node in self._session.get_outputs()}
        fixed: dict[int, str] = {}
        declared = {contract.input.name: (contract.input.shape, contract.input.dtype)}
        declared |= {state.input: (state.shape, "float32") for state in contract.states}
        for name, (shape, dtype) in declared.items():
            node = _find(inputs, name, "input")
            _check_type(node, dtype)
            extra = contract.context if name == contract.input.name else 0
            batch = _check_axes(node, shape, extra, "input")
            if batch is not None:
                fixed[batch] = name
        for output in contract.outputs:
            _check_axes(_find(outputs, output.name, "output"), output.shape, 0, "output")
        for state in contract.states:
            if state.output is not None:
                node = _find(outputs, state.output, "output")
                _check_type(node, "float32")
                _check_axes(node, state.shape, 0, "output")
        rows = self._check_lengths(inputs)
        if rows is not None:
            fixed[rows] = cast(str, contract.lengths)
        if len(fixed) > 1:
            sizes = " and ".join(f"{name!r} takes {size}" for size, name in fixed.items())
            raise ModelError(
                f'the tensors disagree about the number of rows ({sizes}): correct where "batch" is in their shapes'
            )
        self.rows_per_call = next(iter(fixed), None)
        self._check_time(inputs[contract.input.name])
        self._check_constants(inputs)
        known = {*declared, *contract.constants, *([contract.lengths] if contract.lengths else [])}
        for name in inputs.keys() - known:
            raise ModelError(f"the graph input {name!r} is not declared: add it to states, constants or lengths")
        if any("time" not in output.shape for output in contract.outputs) and contract.mode == "step":
            self.max_steps = 1

    def _check_time(self, node: Any) -> None:
        shape = self.contract.input.shape
        steps = node.shape[shape.index("time")] if "time" in shape and len(node.shape) == len(shape) else None
        if not isinstance(steps, int) or steps < 1:
            return
        if steps == 1 and self.contract.mode == "step":
            self.max_steps = 1
        else:
            raise ModelError(
                f"the time axis of {node.name!r} is fixed to {steps} steps: export it with a dynamic time axis"
            )

    def _check_lengths(self, inputs: dict[str, Any]) -> int | None:
        """Returns the number of rows if the tensor fixes it."""
        name = self.contract.lengths
        if name is None:
            return None
        node = _find(inputs, name, "input")
        if node.type not in ("tensor(int32)", "tensor(int64)") or len(node.shape) != 1:
            raise ModelError(
                f"lengths {name!r} is a {node.type} of shape {node.shape}: it must be int32 or int64 of shape [batch]"
            )
        self._lengths_dtype = _DTYPES[node.type]
        return node.shape[0] if isinstance(node.shape[0], int) else None

    def _check_constants(self, inputs: dict[str, Any]) -> None:
        for name, value in self.contract.constants.items():
            node = _find(inputs, name, "input")
            if node.type not in _DTYPES:
                raise ModelError(f"the constant {name!r} is a {node.type}, which a contract cannot hold")
            try:
                array = np.asarray(value, _DTYPES[node.type])
            except (ValueError, TypeError, OverflowError):
                raise ModelError(f"the constant {name!r} is not a {node.type}: correct its value") from None
            sizes = [axis if isinstance(axis, int) else None for axis in node.shape]
            if array.size == 1 and array.ndim != len(sizes) and None not in sizes:
                array = array.reshape([1] * len(sizes))
            if array.ndim != len(sizes) or any(s not in (None, n) for s, n in zip(sizes, array.shape, strict=True)):
                raise ModelError(
                    f"the constant {name!r} has shape {list(array.shape)}, the graph wants {node.shape}:"
                    " correct its value"
                )
            self._constants[name] = array

    def _settle(self) -> None:
        plain = self.max_steps is None or self.contract.lengths is None
        self._direct = plain and self.rows_per_call is None

    # the probe

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

    def probe(self) -> list[Finding]:
        """Tries what the contract promises, on made-up events; where the batch axis is false, it falls back to one row.

        ModelError if the model does not run, gives other shapes than declared, depends on padding although it has
        lengths, or (step mode) gives another result for a sequence than step by step.
        """
        self._options = self._quiet
        try:
            self.findings = Probe(self).run()
        finally:
            self._options = None
        return self.findings


def _find(nodes: dict[str, Any], name: str, what: str) -> Any:
    if name not in nodes:
        raise ModelError(
            f"the graph has no {what} {name!r}, it has {', '.join(map(repr, nodes))}: correct the contract"
        )
    return nodes[name]


def _check_type(node: Any, dtype: str) -> None:
    if _DTYPES.get(node.type) is not np.dtype(dtype).type:
        raise ModelError(
            f"{node.name!r} is a {node.type} in the graph, but {dtype} is declared:"
            " correct the contract or cast in the graph"
        )


def _check_axes(node: Any, shape: Sequence[Axis], extra: int, what: str) -> int | None:
    """Compares declared axes with the graph's; returns the batch size if the graph fixes it."""
    if node.shape is None or len(node.shape) != len(shape):
        raise ModelError(
            f"the {what} {node.name!r} has shape {node.shape} in the graph, but {list(shape)} is declared:"
            " correct the contract"
        )
    batch = None
    for axis, real in zip(shape, node.shape, strict=True):
        if isinstance(axis, int):
            if isinstance(real, int) and real != axis + extra:
                note = f" (with context {extra}: {axis + extra})" if extra else ""
                raise ModelError(
                    f"the {what} {node.name!r} has shape {node.shape} in the graph,"
                    f" but {list(shape)} is declared{note}: correct the contract"
                )
        elif axis == "batch" and isinstance(real, int):
            batch = real
    return batch


def _contract(path: Path, embedded: bytes | None) -> Contract:
    sidecar = path.with_suffix(".toml")
    if embedded is not None and sidecar.exists():
        raise ModelError(f"it has a contract inside and the sidecar {sidecar.name} beside it: remove one of the two")
    if embedded is not None:
        return Contract.parse(embedded, source=f"metadata {METADATA_KEY}")
    if not sidecar.exists():
        raise ModelError(f"it has no contract: export it with `python -m export`, or write {sidecar.name} beside it")
    return load_sidecar(sidecar)


def _session(source: Path | bytes, threads: int) -> onnxruntime.InferenceSession:
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
            f"ONNX Runtime refuses it ({_reason(error)}): export it again, opset 20 and IR 10 fit"
        ) from None


def _reason(error: Exception) -> str:
    """ONNX Runtime's message without its prefixes, on one line."""
    text = " ".join(str(error).split())
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]
    return text[:400]
