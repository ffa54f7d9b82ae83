"""What a model file declares about itself: names, shapes, states and outputs, as plain data.

One JSON document in the ONNX file's ``metadata_props["streamer.contract"]``, or the same fields as TOML in a sidecar
NAME.toml beside NAME.onnx. Nothing is guessed from the graph: what is not declared is an error that says what
to declare.
Whether the declarations are true is checked by ``streamer.modelfile.model`` against the real graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec

from streamer.errors import ModelError
from streamer.modelfile.decoder import Decoder, check_decoder
from streamer.modelfile.emit import check_emit, check_emitting
from streamer.modelfile.feature import Feature, as_feature, check_features
from streamer.modelfile.parts import MAX_VALUES, Feedback, Input, Output, State, check_shape, size
from streamer.toml import parse_toml

METADATA_KEY = "streamer.contract"
FORMAT = 1


class Contract(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, dict=True):
    """All that is needed to run a model, and what people want to know about it."""

    name: str
    """Of the model, for people and metrics."""
    mode: Literal["step", "window"]
    """step: an answer for every event, states are carried on; window: an answer per closed window."""
    input: Input
    """The tensor that takes the events (below)."""
    outputs: tuple[Output, ...]
    """The tensors of the prediction (below)."""
    format: int = FORMAT
    """Of the contract itself."""
    version: str = "1"
    """Of the model; predictions carry it."""
    lengths: str | None = None
    """Name of the tensor that takes the valid steps per row; None: rows of one call are equally long."""
    states: tuple[State, ...] = ()
    """What is carried from event to event, in any order (below)."""
    constants: dict[str, Any] = {}
    """Graph input -> value (a number or nested lists), fed with every call."""
    context: int = 0
    """How many trailing values of the previous event are put in front of the next one."""
    feedback: Feedback | None = None
    """For models that generate (below)."""
    decoder: Decoder | None = None
    """For models that write a sequence about a window (below); `outputs` are then what it is given, and are not published."""
    cell: str | None = None
    """For people: rnn, lstm, gru, ..."""
    layers: int | None = None
    """For people."""
    directions: int | None = None
    """For people: 1 or 2."""
    hidden: int | None = None
    """For people: size of the hidden state."""
    parameters: int | None = None
    """For people: number of weights."""
    trained_on: Any = None
    """For people: anything that says on which data."""
    metrics: dict[str, Any] = {}
    """For people: name -> value on held-out data."""

    @cached_property
    def features(self) -> int:
        """F, the values of one event."""
        return size(self.input.shape)

    @cached_property
    def feature_names(self) -> tuple[str, ...]:
        """One name per feature: the declared ones, else x0, x1, ..."""
        return tuple(feature.name for feature in self.feature_tables)

    @cached_property
    def feature_tables(self) -> tuple[Feature, ...]:
        """What each of the F values of an event means; where only names are declared, or nothing: numbers."""
        return tuple(as_feature(each) for each in self.input.features or [f"x{i}" for i in range(self.features)])

    @cached_property
    def many_steps(self) -> bool:
        """A record holds several steps of its stream: said, or one is a text."""
        return self.input.steps == "many" or any(feature.kind == "text" for feature in self.feature_tables)

    @property
    def output_sizes(self) -> tuple[int, ...]:
        """O of each output, in order."""
        return tuple(output.size for output in self.outputs)

    @property
    def emitting(self) -> int | None:
        """Index of the output that emits symbols; None: every event or window has an answer of numbers."""
        return next((at for at, output in enumerate(self.outputs) if output.emit is not None), None)

    @property
    def single_step(self) -> bool:
        """The input has no time axis: one call takes one event per row."""
        return "time" not in self.input.shape

    @classmethod
    def parse(cls, document: bytes, *, source: str = "the contract") -> Contract:
        """A contract from JSON. ModelError, in one sentence that names the field, for anything that is not one."""
        try:
            fields = msgspec.json.decode(document)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ModelError(f"{source} is not JSON ({error}): export the model again") from None
        return cls.from_fields(fields, source=source)

    @classmethod
    def from_fields(cls, fields: Any, *, source: str = "the contract") -> Contract:
        """A contract from plain values, checked for everything that can be known without the graph."""
        if isinstance(fields, dict) and isinstance(fields.get("format", FORMAT), int):
            declared = fields.get("format", FORMAT)
            if declared != FORMAT:
                raise ModelError(
                    f"{source}: format is {declared}, this version of streamer reads {FORMAT}: use one that fits"
                )
        missing = list(_missing(fields, cls))
        if missing:
            raise ModelError(
                f"{source}: missing {'is' if len(missing) == 1 else 'are'} {', '.join(missing)}: declare"
                f" {'it' if len(missing) == 1 else 'them'}; `streamer inspect MODEL --draft` proposes a contract"
            )
        try:
            contract = msgspec.convert(_with_defaults(fields), cls)
        except msgspec.ValidationError as error:
            message, _, where = str(error).partition(" - at `$")
            field = where.rstrip("`").lstrip(".")
            remedy = "correct it"
            if "unknown field" in message:
                remedy += ", or use the version of streamer that the model was exported with, or a later one"
            raise ModelError(f"{source}: {f'field {field}: ' if field else ''}{message}: {remedy}") from None
        try:
            _check(contract)
        except ModelError as error:
            raise ModelError(f"{source}: {error}") from None
        return contract

    def dump(self) -> bytes:
        """The JSON that ``parse`` reads."""
        return msgspec.json.encode({"format": self.format, **msgspec.to_builtins(self)})


_OF_EVERY_ANSWER = ("stream", "ts", "window", "slice", "model")
"""Fields beside the outputs"""
_PARTS: dict[str, type[msgspec.Struct]] = {"input": Input, "states": State, "outputs": Output, "feedback": Feedback}


def load_sidecar(path: str | Path) -> Contract:
    """The contract in a sidecar NAME.toml. ModelError if the file is missing, is not TOML, or declares nonsense."""
    try:
        text = Path(path).read_bytes().decode()
        fields = parse_toml(text)
    except OSError as error:
        raise ModelError(f"the sidecar {path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # not UTF-8, or not TOML
        raise ModelError(f"the sidecar {path} is not TOML: {error}") from None
    return Contract.from_fields(fields, source=f"the sidecar {path}")


def _with_defaults(fields: Any) -> Any:
    """An output that does not say so is per window where a window model's output has no time axis."""
    if not isinstance(fields, dict) or fields.get("mode") != "window" or not isinstance(fields.get("outputs"), list):
        return fields
    outputs = [
        {"per": "event" if "time" in output["shape"] else "window", **output}
        if isinstance(output, dict) and isinstance(output.get("shape"), list)
        else output
        for output in fields["outputs"]
    ]
    return {**fields, "outputs": outputs}


def _missing(fields: Any, of: type[msgspec.Struct], where: str = "") -> Iterator[str]:
    """The required fields that are not there, inner ones too, so that one message names them all."""
    if not isinstance(fields, dict):
        return
    for each in msgspec.structs.fields(of):
        name = f"{where}{each.name}"
        if each.name not in fields:
            inner = _PARTS.get(each.name) if each.required else None
            needed = [part.name for part in msgspec.structs.fields(inner) if part.required] if inner else []
            if each.required:
                yield name + (" (step or window)" if name == "mode" else f" ({' and '.join(needed)})" if needed else "")
        elif each.name in _PARTS:
            value = fields[each.name]
            if isinstance(value, list | tuple):
                for index, part in enumerate(value):
                    yield from _missing(part, _PARTS[each.name], f"{name}[{index}].")
            else:
                yield from _missing(value, _PARTS[each.name], f"{name}.")


def _check(contract: Contract) -> None:
    if not contract.name:
        raise ModelError("name is empty: name the model")
    _check_input(contract)
    _check_states(contract)
    _check_outputs(contract)
    names = [contract.input.name, *([contract.lengths] if contract.lengths else []), *contract.constants]
    names += [state.input for state in contract.states]
    for name in names:
        if names.count(name) > 1:
            raise ModelError(f"the graph input {name!r} is declared twice: declare each input once")
    produced = [output.name for output in contract.outputs] + [s.output for s in contract.states if s.output]
    for name in produced:
        if produced.count(name) > 1:
            raise ModelError(f"the graph output {name!r} is declared twice: declare each output once")


def _check_input(contract: Contract) -> None:
    declared = contract.input
    check_shape(f"input {declared.name!r}", declared.shape, time=True)
    check_features(declared.features, contract.features, f"input {declared.name!r}")
    if contract.mode == "window" and contract.single_step:
        raise ModelError(f'input {declared.name!r}: a window model needs a "time" axis in shape {list(declared.shape)}')
    if contract.lengths is not None and contract.single_step:
        raise ModelError(
            f'lengths {contract.lengths!r} make no sense for an input without a "time" axis: leave them out'
        )
    if not 0 <= contract.context <= MAX_VALUES:
        raise ModelError("context must be 0 or the number of values to repeat")
    if contract.context:
        if declared.dtype != "float32":
            raise ModelError(
                f"input {declared.name!r}: context is kept as float32, which does not hold every {declared.dtype}: "
                "export the model with the context among its states"
            )
        if contract.mode == "window":
            raise ModelError("context belongs to step models: a window model sees its whole window")
        if sum(isinstance(axis, int) for axis in declared.shape) != 1:
            raise ModelError(
                f"input {declared.name!r}: context needs exactly one numeric axis in shape {list(declared.shape)}"
            )


def _check_states(contract: Contract) -> None:
    for state in contract.states:
        what = f"state {state.input!r}"
        check_shape(what, state.shape, time=False)
        if isinstance(state.initial, str) and state.initial != "zeros":
            raise ModelError(f'{what}: initial is {state.initial!r}: use "zeros" or the values')
        state.initial_row()
        if contract.mode == "step" and state.output is None:
            raise ModelError(f"{what}: output is missing: name the graph output that holds the next state")
    if contract.context and any(state.input == "context" for state in contract.states):
        raise ModelError("a state may not be called 'context' where context is used: rename the tensor")


def _check_outputs(contract: Contract) -> None:
    if not contract.outputs:
        raise ModelError("outputs is empty: declare at least one output")
    for output in contract.outputs:
        what = f"output {output.name!r}"
        check_shape(what, output.shape, time=True)
        if contract.mode == "step" and output.per == "window":
            raise ModelError(
                f"{what}: per is window, but a step model answers per event: declare mode window or per event"
            )
        if output.per == "window" and "time" in output.shape:
            raise ModelError(f'{what}: per is window, so shape {list(output.shape)} may not contain "time"')
        if output.per == "event" and contract.mode == "window" and "time" not in output.shape:
            raise ModelError(f'{what}: per is event, so shape {list(output.shape)} needs a "time" axis')
        if output.labels is not None and len(output.labels) != output.size:
            raise ModelError(f"{what}: {len(output.labels)} labels for {output.size} values: give one per value")
        if output.kind in ("value", "score") and output.size != 1:
            raise ModelError(
                f"{what}: kind {output.kind} is one number, but shape {list(output.shape)} has {output.size}:"
                " use vector"
            )
        if output.emit is not None:
            check_emit(output.emit, what, output.kind, output.labels, output.per)
    if len(contract.outputs) > 1:
        _check_written(contract.outputs)
    emitting = sum(output.emit is not None for output in contract.outputs)
    step, feedback = contract.mode == "step", contract.feedback is not None
    check_emitting(emitting, len(contract.outputs), step=step, feedback=feedback)
    if contract.feedback is not None:
        _check_feedback(contract, contract.feedback)
    if contract.decoder is not None:
        if contract.mode != "window":
            raise ModelError("decoder: a sequence is written about a window: declare mode window")
        check_decoder(contract.decoder, {output.name: output.shape for output in contract.outputs})


def _check_written(outputs: Sequence[Output]) -> None:
    """Several outputs are fields of an answer, each by its name: none may hide another."""
    fields = [*_OF_EVERY_ANSWER, *(output.name for output in outputs)]
    fields += [f"{output.name}_label" for output in outputs if output.labels is not None]
    for field in fields:
        if fields.count(field) > 1:
            raise ModelError(
                f"an answer would have two fields {field!r}: rename the output in the graph (every answer has "
                f"{', '.join(_OF_EVERY_ANSWER)}, and an output with labels NAME_label, too)"
            )


def _check_feedback(contract: Contract, feedback: Feedback) -> None:
    output = next((output for output in contract.outputs if output.name == feedback.output), None)
    if output is None:
        raise ModelError(f"feedback: there is no output {feedback.output!r}: name a declared output")
    if contract.mode != "step":
        raise ModelError("feedback belongs to step models: a window model cannot be rolled forward, leave it out")
    if (feedback.mode == "argmax" and feedback.encoding == "value") or (
        feedback.mode == "value" and feedback.encoding != "value"
    ):
        raise ModelError(
            f"feedback: mode {feedback.mode} and encoding {feedback.encoding} do not go together: argmax picks a class"
            " (index, one-hot), value feeds numbers back (value)"
        )
    if feedback.mode == "value" and contract.input.dtype.startswith("int"):
        raise ModelError(
            f"feedback: an output is no {contract.input.dtype}: feed classes back, or take floats as input"
        )
    width = 1 if feedback.encoding == "index" else output.size
    if feedback.at < 0 or feedback.at + width > contract.features:
        raise ModelError(
            f"feedback: {width} values from feature {feedback.at} on do not fit an event of {contract.features} features:"
            " correct at, output or encoding"
        )
