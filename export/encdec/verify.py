"""A pair's file against the module that it came from: what the encoder passes on, forced and free decoding.

Every row of the module runs alone and unpadded; the file runs ragged batches. Shapes: N rows, V labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from streamer.core import F32, I32, I64
from streamer.generate.search import decode
from streamer.modelfile.model import Model
from streamer.modelfile.signature import Layout

from .emit import checked_parts, parts_of

_TRIALS = 6
_FORCED_STEPS = 12


class Batches(Protocol):
    """Where random batches come from."""

    def batch(self) -> tuple[F32, I32]: ...


Pairs = Sequence[tuple[F32, F32]]


@dataclass
class Compared:
    """Pairs of what was expected and what came, and what was compared. ``rounding``: the module's own pairs, of which the
    second is from inputs that are off by one rounding."""

    name: str
    pairs: Pairs
    detail: str
    rounding: Pairs = ()


class EagerSteps:
    """The decoder of the module, one row and its own memory at a time, in the place of the decoder's graph."""

    def __init__(self, module: nn.Module, model: Model) -> None:
        graph = model.decoder
        assert graph is not None, "the model has no decoder"
        self._decoder, self._graph = parts_of(module)[1], graph
        shapes = {output.name: output.shape for output in model.contract.outputs}
        declared = graph.declared
        self._memory = [shapes[each.output] for each in declared.memory]
        self._states = [shapes[each.initial] for each in declared.states]

    def step(self, symbols: I64, states: Sequence[F32], memory: Sequence[F32], lengths: I64) -> tuple[F32, list[F32]]:
        """As ``DecoderGraph.step``."""
        rows: list[F32] = []
        nexts: list[list[F32]] = []
        for row, length in enumerate(lengths.tolist()):
            looked_at = [
                _shaped(each[row, :length] if each.ndim == 3 else each[row], shape)
                for each, shape in zip(memory, self._memory, strict=True)
            ]
            before = [_shaped(each[row], shape) for each, shape in zip(states, self._states, strict=True)]
            with torch.no_grad():
                given = torch.tensor(symbols[row : row + 1]), tuple(before), tuple(looked_at), torch.tensor([length])
                log_probabilities, after = self._decoder(*given)
            rows.append(log_probabilities.numpy()[0])
            nexts.append([_row(each, shape) for each, shape in zip(after, self._states, strict=True)])
        return np.stack(rows), [np.stack(each) for each in zip(*nexts, strict=True)]


def pair_results(model: Model, module: nn.Module, draw: Batches) -> list[Compared]:
    """What is compared beside the encoder's own outputs: forced decoding, and the sequences that are written."""
    graph = model.decoder
    assert graph is not None, "the model has no decoder"
    eager = EagerSteps(module, model)
    forced: list[tuple[F32, F32]] = []
    rounding: list[tuple[F32, F32]] = []
    scores: list[tuple[F32, F32]] = []
    differing = 0
    for trial in range(_TRIALS):
        x, lengths = draw.batch()
        windows = [x[row, :length] for row, length in enumerate(lengths.tolist())]
        expected = _encoded_alone(module, model, windows)
        for file, nudged in _forced(model, eager, windows, expected, trial):
            forced += file
            rounding += nudged
        served, alone = decode(model, windows), decode(model, windows, eager)
        for one, other in zip(served, alone, strict=True):
            differing += one.symbols != other.symbols
            scores.append((np.array([other.score], np.float32), np.array([one.score], np.float32)))
    differ = np.array([float(differing)], np.float32)
    given = "log-probabilities with given symbols: file in padded batches, module row by row"
    free = "sequences that the served search writes with the file, against those with the module: how many differ"
    return [
        Compared("teacher_forced", forced, given, rounding),
        Compared("free_running", [(np.zeros(1, np.float32), differ), *scores], free),
    ]


def _forced(
    model: Model, eager: EagerSteps, windows: Sequence[F32], expected: Sequence[Any], seed: int
) -> Iterator[tuple[Pairs, Pairs]]:
    """Per step, over symbols that are drawn, (module, file) and (module, module with inputs off by one rounding).

    Each step begins from what the module has. Symbols that are drawn lead where training never was: there sharp attention
    and a recurrence enlarge what rounding left of the encoder and of many steps. ``parity`` has the encoder,
    ``free_running`` follows the file's own to the end."""
    graph = model.decoder
    assert graph is not None
    chance = np.random.default_rng(seed)
    lengths = np.array([len(each) for each in windows], np.int64)
    memory, states = _stacked(expected, int(lengths.max()))
    symbols = np.full(len(windows), graph.declared.begin, np.int64)
    for _ in range(_FORCED_STEPS):
        actual = graph.step(symbols, states, memory, lengths)
        moved, looked_at = ([_nudged(each, chance) for each in tensors] for tensors in (states, memory))
        nudged = eager.step(symbols, moved, looked_at, lengths)
        wanted = eager.step(symbols, states, memory, lengths)
        yield _beside(wanted, actual), _beside(wanted, nudged)
        states = wanted[1]
        symbols = chance.integers(0, len(graph.declared.labels), len(windows))


def _beside(wanted: tuple[F32, list[F32]], came: tuple[F32, list[F32]]) -> Pairs:
    return [(wanted[0], came[0]), *zip(wanted[1], came[1], strict=True)]


def _nudged(values: F32, chance: np.random.Generator) -> F32:
    """Each off by one rounding of its own size, up or down."""
    return np.nextafter(values, np.where(chance.random(values.shape) < 0.5, -np.inf, np.inf).astype(np.float32))


def _encoded_alone(module: nn.Module, model: Model, windows: Sequence[F32]) -> list[Any]:
    """Per window (memory, states, length) of the module's encoder, called with that window alone."""
    graph, contract = model.decoder, model.contract
    assert graph is not None
    layout = Layout.of(contract.input.shape)
    shapes = {output.name: output.shape for output in contract.outputs}
    encoder, found = parts_of(module)[0], []
    for window in windows:
        x = torch.from_numpy(layout.feed(window[None], np.dtype(contract.input.dtype).type))
        call = partial(encoder, x, torch.tensor([len(window)]))
        memory, states = checked_parts(call, list(x.shape))
        found.append(
            (
                [_row(t, shapes[each.output]) for t, each in zip(memory, graph.declared.memory, strict=True)],
                [_row(t, shapes[each.initial]) for t, each in zip(states, graph.declared.states, strict=True)],
                len(window),
            )
        )
    return found


def _stacked(parts: Sequence[Any], steps: int) -> tuple[list[F32], list[F32]]:
    """Memory, padded to ``steps``, and states of all windows."""
    memory = []
    for each in zip(*(memory for memory, _, _ in parts), strict=True):
        padded = [np.pad(one, ((0, steps - len(one)), (0, 0))) if one.ndim == 2 else one for one in each]
        memory.append(np.stack(padded))
    return memory, [np.stack(each) for each in zip(*(states for _, states, _ in parts), strict=True)]


def _row(tensor: torch.Tensor, shape: Sequence[Any]) -> F32:
    """One row's tensor of a declared shape as [T, O] or [O]."""
    value = tensor.numpy().take(0, axis=list(shape).index("batch"))
    rest = [axis for axis in shape if axis != "batch"]
    if "time" in rest:
        value = np.moveaxis(value, rest.index("time"), 0)
        return np.ascontiguousarray(value.reshape(len(value), -1), np.float32)
    return np.ascontiguousarray(value.reshape(-1), np.float32)


def _shaped(value: F32, shape: Sequence[Any]) -> torch.Tensor:
    """[T, O] or [O] as the tensor of one row of a declared shape."""
    numbers = [axis for axis in shape if isinstance(axis, int)]
    rest = [axis for axis in shape if axis != "batch"]
    timed = "time" in rest
    value = value.reshape(len(value), *numbers) if timed else value.reshape(numbers)
    value = np.moveaxis(value, 0, rest.index("time")) if timed else value
    return torch.from_numpy(np.ascontiguousarray(np.expand_dims(value, list(shape).index("batch"))))
