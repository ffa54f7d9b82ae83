"""The graph's signature against the contract: which tensors there are, of which type, shape and layout.

Letters for shapes: B rows, T steps, F features, O outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from streamer.core import F32
from streamer.errors import ModelError
from streamer.modelfile.contract import Contract
from streamer.modelfile.parts import Axis

Array = NDArray[Any]

DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


class Node(Protocol):
    """A graph input or output as the runtime describes it: sizes are numbers, names, or None."""

    name: str
    type: str
    shape: list[int | str | None]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a tensor with declared axes is read as [B, T, numbers...]: transposition and shape of the numbers."""

    to_graph: tuple[int, ...] | None
    to_rows: tuple[int, ...] | None
    numbers: tuple[int, ...]
    time: bool
    size: int

    @classmethod
    def of(cls, shape: Sequence[Axis], extra: int = 0) -> Layout:
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


@dataclass(frozen=True, slots=True)
class Signature:
    """What the graph's signature says about calls. ``rows_per_call``: rows that it always takes, None: any."""

    rows_per_call: int | None
    single_step: bool
    lengths_dtype: type[np.generic]
    constants: dict[str, Array]

    @classmethod
    def of(cls, contract: Contract, inputs: Iterable[Node], outputs: Iterable[Node]) -> Signature:
        """Compares names, types and shapes. ModelError names the tensor that is not as declared."""
        given, made = {node.name: node for node in inputs}, {node.name: node for node in outputs}
        rows = _check_inputs(contract, given)
        _check_outputs(contract, made)
        lengths_dtype: type[np.generic] = np.int32
        if contract.lengths is not None:
            node = _check_lengths(contract.lengths, given)
            lengths_dtype = DTYPES[node.type]
            if isinstance(node.shape[0], int):
                rows[node.shape[0]] = node.name
        if len(rows) > 1:
            sizes = " and ".join(f"{name!r} takes {size}" for size, name in rows.items())
            raise ModelError(
                f'the tensors disagree about the number of rows ({sizes}): correct where "batch" is in their shapes'
            )
        timeless = contract.mode == "step" and any("time" not in output.shape for output in contract.outputs)
        single_step = _time_is_fixed(contract, given[contract.input.name]) or timeless
        constants = {name: _constant(find(given, name, "input"), value) for name, value in contract.constants.items()}
        known = {contract.input.name, contract.lengths, *constants, *(state.input for state in contract.states)}
        for name in given.keys() - known:
            raise ModelError(f"the graph input {name!r} is not declared: add it to states, constants or lengths")
        return cls(next(iter(rows), None), single_step, lengths_dtype, constants)


def _check_inputs(contract: Contract, given: dict[str, Node]) -> dict[int, str]:
    """Returns the numbers of rows that the graph fixes, each with a tensor that fixes it."""
    rows: dict[int, str] = {}
    tensors: list[tuple[str, Sequence[Axis], str, int]] = [
        (contract.input.name, contract.input.shape, contract.input.dtype, contract.context)
    ]
    tensors += [(state.input, state.shape, "float32", 0) for state in contract.states]
    for name, shape, dtype, extra in tensors:
        node = find(given, name, "input")
        check_type(node, dtype)
        batch = check_axes(node, shape, extra, "input")
        if batch is not None:
            rows[batch] = name
    return rows


def _check_outputs(contract: Contract, made: dict[str, Node]) -> None:
    # Exporters may declare the example's batch and time for outputs: numbers are compared, the probe sees the rest.
    for output in contract.outputs:
        check_axes(find(made, output.name, "output"), output.shape, 0, "output")
    for state in contract.states:
        if state.output is not None:
            node = find(made, state.output, "output")
            check_type(node, "float32")
            check_axes(node, state.shape, 0, "output")


def _time_is_fixed(contract: Contract, node: Node) -> bool:
    """True where the graph takes exactly one step; another fixed number is refused."""
    shape = contract.input.shape
    steps = node.shape[shape.index("time")] if "time" in shape else None
    if not isinstance(steps, int):
        return False
    if steps == 1 and contract.mode == "step":
        return True
    raise ModelError(f"the time axis of {node.name!r} is fixed to {steps} steps: export it with a dynamic time axis")


def _check_lengths(name: str, given: dict[str, Node]) -> Node:
    node = find(given, name, "input")
    if node.type not in ("tensor(int32)", "tensor(int64)") or len(node.shape) != 1:
        raise ModelError(
            f"lengths {name!r} is a {node.type} of shape {node.shape}: it must be int32 or int64 of shape [batch]"
        )
    return node


def _constant(node: Node, value: Any) -> Array:
    if node.type not in DTYPES:
        raise ModelError(f"the constant {node.name!r} is a {node.type}, which a contract cannot hold")
    try:
        array = np.asarray(value, DTYPES[node.type])
    except (ValueError, TypeError, OverflowError):
        raise ModelError(f"the constant {node.name!r} is not a {node.type}: correct its value") from None
    sizes = [axis if isinstance(axis, int) else None for axis in node.shape]
    if array.size == 1 and array.ndim != len(sizes) and None not in sizes:
        array = array.reshape([1] * len(sizes))
    if array.ndim != len(sizes) or any(s not in (None, n) for s, n in zip(sizes, array.shape, strict=True)):
        raise ModelError(
            f"the constant {node.name!r} has shape {list(array.shape)}, the graph wants {node.shape}: correct its value"
        )
    return array


def find(nodes: dict[str, Node], name: str, what: str) -> Node:
    if name not in nodes:
        raise ModelError(
            f"the graph has no {what} {name!r}, it has {', '.join(map(repr, nodes))}: correct the contract"
        )
    return nodes[name]


def check_type(node: Node, dtype: str) -> None:
    if DTYPES.get(node.type) is not np.dtype(dtype).type:
        raise ModelError(
            f"{node.name!r} is a {node.type} in the graph, but {dtype} is declared:"
            " correct the contract or cast in the graph"
        )


def check_axes(node: Node, shape: Sequence[Axis], extra: int, what: str) -> int | None:
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
