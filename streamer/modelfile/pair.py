"""The decoder of a pair: one step for many rows. Loaded from the encoder's file, checked against the contract, and tried.

Shapes: N rows, T steps of memory, V labels, O values of one memory step or one state. States and memory are kept with the
row first, [N, O] and [N, T, O] (or [N, O] without a time axis), whatever axes the graph has.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from streamer.core import F32, I32, I64
from streamer.errors import ModelError, ModelRunError
from streamer.modelfile.contract import Contract
from streamer.modelfile.decoder import DECODER_KEY, Decoder
from streamer.modelfile.graph import check, scan
from streamer.modelfile.probe import TOLERANCE, Finding
from streamer.modelfile.session import Session, open_graph, reason_of
from streamer.modelfile.signature import Array, Layout, Node, check_axes, check_type, find

_ROWS, _STEPS = 3, 3
_LENGTHS = (3, 1, 2)
_SUM_TOLERANCE = 1e-3

Stepped = tuple[F32, list[F32]]
"""Log-probabilities [N, V] and next states, each [N, O]."""


def decoder_bytes(contract: Contract, metadata: Mapping[str, bytes]) -> bytes | None:
    """The decoder's ONNX file in the encoder's metadata. ModelError where contract and file disagree about having one."""
    text = metadata.get(DECODER_KEY)
    if contract.decoder is None and text is None:
        return None
    if contract.decoder is None:
        raise ModelError(
            f"it holds a decoder (metadata {DECODER_KEY}), but the contract declares none: declare decoder"
        )
    if text is None:
        raise ModelError(
            f"the contract declares a decoder, but there is none in metadata {DECODER_KEY}: export the pair as one file"
        )
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ModelError(f"metadata {DECODER_KEY} is not base64: export the pair again") from None


class DecoderGraph:
    """One decoder. Invariant 3 holds as for any model: a row depends neither on its neighbours nor on padding of memory."""

    def __init__(self, graph: bytes, contract: Contract, *, threads: int = 1) -> None:
        """ModelError if the graph is not what the contract says."""
        assert contract.decoder is not None
        self.declared: Decoder = contract.decoder
        outputs = {output.name: output for output in contract.outputs}
        names = list(outputs)
        declared = self.declared
        self.memory_outputs = [names.index(each.output) for each in declared.memory]
        """Which of the encoder's outputs are memory, in the contract's order"""
        self.state_outputs = [names.index(each.initial) for each in declared.states]
        self._memory = [Layout.of(outputs[each.output].shape) for each in declared.memory]
        self._states = [Layout.of(outputs[each.initial].shape) for each in declared.states]
        self.bytes_per_step = 4 * sum(layout.size for layout in self._memory if layout.time)
        """Of memory, per step of a window"""
        self.bytes_per_row = 4 * sum(layout.size for layout in [*self._memory, *self._states] if not layout.time)
        """Of memory without a time axis, and states"""
        self._model = contract.name
        try:
            found = scan(graph)
            if found.external:
                raise ModelError("its tensors lie in other files: export the pair as one file")
            check(found)
            self._session = open_graph(graph, threads)
            self._check(contract, self._session.get_inputs(), self._session.get_outputs())
        except ModelError as error:
            raise ModelError(f"the decoder: {error}") from None
        self._fetch = [declared.log_probabilities, *(each.output for each in declared.states)]

    def _check(self, contract: Contract, inputs: Sequence[Node], outputs: Sequence[Node]) -> None:
        declared, given, made = (
            self.declared,
            {each.name: each for each in inputs},
            {each.name: each for each in outputs},
        )
        shapes = {output.name: output.shape for output in contract.outputs}
        fixed = []
        symbol = find(given, declared.symbol, "input")
        check_type(symbol, "int64")
        fixed.append(check_axes(symbol, ("batch",), 0, "input"))
        if declared.lengths is not None:
            lengths = find(given, declared.lengths, "input")
            check_type(lengths, "int64")
            fixed.append(check_axes(lengths, ("batch",), 0, "input"))
        tensors = [(each.input, each.output) for each in declared.memory]
        tensors += [(each.input, each.initial) for each in declared.states]
        for name, output in tensors:
            node = find(given, name, "input")
            check_type(node, "float32")
            fixed.append(check_axes(node, shapes[output], 0, "input"))
        log_probabilities = find(made, declared.log_probabilities, "output")
        check_type(log_probabilities, "float32")
        check_axes(log_probabilities, ("batch", len(declared.labels)), 0, "output")
        for state in declared.states:
            node = find(made, state.output, "output")
            check_type(node, "float32")
            check_axes(node, shapes[state.initial], 0, "output")
        if any(size is not None for size in fixed):
            raise ModelError("its batch axis is fixed: export it with a dynamic batch axis")
        known = {declared.symbol, declared.lengths, *(name for name, _ in tensors)}
        for name in given.keys() - known:
            raise ModelError(f"the graph input {name!r} is not declared: add it to memory, states or lengths")

    def step(self, symbols: I64, states: Sequence[F32], memory: Sequence[F32], lengths: I64) -> Stepped:
        """One step of N rows; nothing of the arguments is changed. ModelRunError if the call fails."""
        declared, rows = self.declared, len(symbols)
        feed: dict[str, Array] = {declared.symbol: symbols}
        if declared.lengths is not None:
            feed[declared.lengths] = lengths
        for each, layout, value in zip(declared.memory, self._memory, memory, strict=True):
            feed[each.input] = layout.feed(value if layout.time else value[:, None, :], np.float32)
        for state, layout, value in zip(declared.states, self._states, states, strict=True):
            feed[state.input] = layout.feed(value[:, None, :], np.float32)
        try:
            results: list[Any] = self._session.run(self._fetch, feed)
            nexts = [
                layout.read(result, rows, 1, per_event=False)
                for layout, result in zip(self._states, results[1:], strict=True)
            ]
            log_probabilities: F32 = results[0].reshape(rows, len(declared.labels))
        except Exception as error:  # ONNX Runtime's errors have no common base but Exception
            raise ModelRunError(f"the decoder of {self._model!r} failed on {rows} rows: {reason_of(error)}") from None
        return log_probabilities, nexts

    # its promises

    def probe(self, encoder: Session) -> list[Finding]:
        """Tries it on what the encoder makes of made-up events, three steps with given symbols.

        ModelError if it does not run, or if a row depends on its neighbours or on the padding of its memory."""
        unit = encoder.length_multiple
        steps, contract = _STEPS * unit, encoder.contract
        x = np.sin(np.arange(1, _ROWS * steps * contract.features + 1) * 7.1).astype(np.float32)
        x = x.reshape(_ROWS, steps, contract.features)
        if contract.input.dtype.startswith("int") or any(each.vocabulary for each in contract.feature_tables):
            x = np.round(np.abs(x))
        lengths = np.array(_LENGTHS, np.int32) * unit
        try:
            alone = [
                self._written(encoder, x[row : row + 1, :length], lengths[row : row + 1], row)
                for row, length in enumerate(lengths.tolist())
            ]
            outputs, _ = encoder.run(x, lengths, encoder.initial_states(_ROWS))
            together = self._forced(outputs, lengths.astype(np.int64), [0, 1, 2], padding=3.0)
        except ModelRunError as error:
            raise ModelError(f"a trial run failed: {error}: correct the contract or the graph") from None
        findings = []
        worst = 0.0
        for row, expected in enumerate(alone):
            got = together[:, row : row + 1]
            if not np.allclose(expected, got, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
                raise ModelError(
                    "a row of the decoder gives something else among others, with padded memory, than alone:"
                    " use lengths in the graph (mask what lies beyond them), and nothing of other rows"
                )
            both = np.isfinite(expected) & np.isfinite(got)
            worst = max(worst, float(np.abs(expected[both] - got[both]).max(initial=0)))
        detail = "bit by bit" if worst == 0 else f"up to {worst:.1e}"
        findings.append(Finding("decoder_rows", True, f"rows with padded memory equal each alone, {detail}"))
        sums = np.exp(together.astype(np.float64)).sum(-1)
        if np.isfinite(sums).all() and np.allclose(sums, 1, rtol=0, atol=_SUM_TOLERANCE):
            findings.append(Finding("decoder_log_probabilities", True, "rows are log-probabilities"))
        else:
            note = (
                f"exp of the rows sums to {sums.min():.3g} to {sums.max():.3g}: scores mean nothing. Add a log_softmax"
            )
            findings.append(Finding("decoder_log_probabilities", False, note))
        return findings

    def _written(self, encoder: Session, x: F32, lengths: I32, row: int) -> F32:
        outputs, _ = encoder.run(x, lengths, encoder.initial_states(1))
        return self._forced(outputs, lengths.astype(np.int64), [row])

    def _forced(self, outputs: Sequence[F32], lengths: I64, rows: Sequence[int], padding: float | None = None) -> F32:
        """[steps, N, V] log-probabilities with given symbols; ``padding``: what stands in memory beyond the lengths."""
        memory, states = self.given(outputs)
        if padding is not None:
            memory = [each.copy() for each in memory]
            for each in memory:
                if each.ndim == 3:
                    each[np.arange(each.shape[1]) >= lengths[:, None]] = padding
        found = []
        for step in range(_STEPS):
            last = [(5 * row + 3 * step) % len(self.declared.labels) if step else self.declared.begin for row in rows]
            log_probabilities, states = self.step(np.array(last, np.int64), states, memory, lengths)
            found.append(log_probabilities)
        return np.stack(found)

    def given(self, outputs: Sequence[F32]) -> tuple[list[F32], list[F32]]:
        """Memory and initial states among the encoder's outputs."""
        return [outputs[at] for at in self.memory_outputs], [outputs[at] for at in self.state_outputs]
