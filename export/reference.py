"""Writes the reference into export/README.md, from the code:  python -m export.reference"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec
import numpy as np

from streamer.core import ClosedWindow, Spelled, Symbols, Transcript, Written
from streamer.modelfile import parts as declared
from streamer.modelfile.contract import Contract
from streamer.modelfile.decoder import Decoder, DecoderState, Memory
from streamer.modelfile.emit import Emit
from streamer.modelfile.parts import Feedback, Input, Output, State
from streamer.records.encode import Encoder
from streamer.records.formats import user
from streamer.words import Closed

from .modules.calling import SIGNATURES
from .modules.checkpoints import WRAPPERS

GUIDE = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- reference: made by python -m export.reference -->\n", "<!-- end of reference -->\n"

_TABLES: dict[str, type[msgspec.Struct]] = {
    "the contract": Contract,
    "`input`": Input,
    "`states`, a list of": State,
    "`outputs`, a list of": Output,
    "`feedback`": Feedback,
    "`emit`, of an output": Emit,
    "`decoder`": Decoder,
    "`decoder.memory`, a list of": Memory,
    "`decoder.states`, a list of": DecoderState,
}


def reference() -> str:
    """Signatures, checkpoint wrappers, fields of contract and sidecar, prediction and window JSON, decoders, as Markdown."""
    parts = [
        "### Accepted signatures",
        _rows(("`forward`", "what it takes"), [(f"`{k}`", v) for k, v in SIGNATURES.items()]),
    ]
    parts.append(
        "It returns a tensor, or a tuple, list, dict, dataclass or named tuple of tensors; next states, where it returns"
        f" them, come last. Checkpoints hold their weights plainly, or under {', '.join(f'`{key}`' for key in WRAPPERS)}."
    )
    parts.append("### Fields of contract and sidecar")
    for title, struct in _TABLES.items():
        parts += [f"**{title[0].upper()}{title[1:]}**", _fields(struct)]
    parts += ["### Predictions", *_predictions(), "### Decoders", _decoder()]
    return "\n\n".join(parts) + "\n"


def with_reference(text: str) -> str:
    """The guide with the current reference between its two marks."""
    pattern = re.escape(BEGIN) + ".*?" + re.escape(END)
    return re.sub(pattern, lambda _: f"{BEGIN}\n{reference()}\n{END}", text, count=1, flags=re.S)


def meanings(struct: type[msgspec.Struct]) -> dict[str, str]:
    """The docstring under each field of a class."""
    body = ast.parse(textwrap.dedent(inspect.getsource(struct))).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for before, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name) and isinstance(after, ast.Expr):
            found[before.target.id] = " ".join(str(ast.literal_eval(after.value)).split())
    return found


def _fields(struct: type[msgspec.Struct]) -> str:
    told = meanings(struct)
    rows = []
    for each in msgspec.structs.fields(struct):
        default = "required" if each.required else f"`{_shown(each)}`"
        rows.append((f"`{each.name}`", _type(each.type), default, told[each.name]))
    return _rows(("field", "value", "default", "meaning"), rows)


def _shown(each: msgspec.structs.FieldInfo) -> str:
    value = each.default if each.default is not msgspec.NODEFAULT else each.default_factory()
    return "none" if value is None else "empty" if isinstance(value, tuple | dict) or value == "" else str(value)


def _type(annotation: Any) -> str:
    if annotation is declared.Axis:
        return "axis"
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    if get_origin(annotation) in (tuple, list):
        return f"list of {_type(kinds[0])}" if kinds and kinds[0] is not Any else "list"
    if get_origin(annotation) is dict:
        return "table"
    if kinds and all(isinstance(kind, str) for kind in kinds):
        return ", ".join(f"`{kind}`" for kind in kinds)
    if kinds:
        return " or ".join(_type(kind) for kind in kinds)
    names = {str: "text", int: "whole number", float: "number", Any: "anything"}
    return names.get(annotation, "table" if isinstance(annotation, type) else str(annotation))


def _rows(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)


def _contract(mode: str, *outputs: Mapping[str, Any]) -> Contract:
    given = {"name": "x", "shape": ["batch", "time", 2]}
    return Contract.from_fields(
        {"name": "demo", "mode": mode, "version": "3", "input": given, "outputs": list(outputs)}
    )


def _predictions() -> list[str]:
    """What the encoder writes for small contracts."""
    per_event: list[str | int] = ["batch", "time"]
    classes = {"name": "p", "shape": [*per_event, 2], "kind": "classes", "labels": ["ok", "bad"]}
    score = {"name": "score", "shape": [*per_event, 1], "kind": "score"}
    keys, times = [b"pump-7"], np.array([1_700_000_000_000])
    p, s = np.array([[0.25, 0.75]], np.float32), np.array([[3.5]], np.float32)
    one = Encoder(_contract("step", classes), "demo").steps(keys, times, [p])[0]
    two = Encoder(_contract("step", classes, score), "demo").steps(keys, times, [p, s])[0]
    window = ClosedWindow(
        b"pump-7", 1_700_000_000_000, 1_700_000_060_000, Closed.TIME, 0,
        np.zeros((2, 2), np.float32), np.array([40, 43]), np.array([1_700_000_001_000, 1_700_000_002_000]),
    )  # fmt: skip
    whole = {"name": "q", "shape": ["batch", 2], "kind": "classes", "labels": ["ok", "bad"]}
    closed = Encoder(_contract("window", whole, score), "demo").window(
        window, [p[0], np.array([[3.5], [0.5]], np.float32)]
    )
    summary = {"name": "h", "shape": ["batch", 4]}
    decoder = {
        "labels": ["<", ">", "n", "o"], "begin": 0, "end": 1, "max_steps": 40,
        "states": [{"initial": "h", "input": "h", "output": "h_next"}],
    }  # fmt: skip
    writes = Contract.from_fields({**msgspec.to_builtins(_contract("window", summary)), "decoder": decoder})
    written = Encoder(writes, "demo").written(window, Written((2, 3), -0.25, False))
    return [
        "One JSON object per prediction, with the key and the partition number of its input. `model` is NAME@VERSION. A"
        " single output is called `y` whatever its name, and its largest label `label`; of several outputs each has its"
        " own name, and `NAME_label`.",
        f"Step mode, one output:\n\n```json\n{one.decode()}\n```",
        f"Step mode, two outputs:\n\n```json\n{two.decode()}\n```",
        "Window mode, one output per window and one per event. `ts` is the window's end; `reason` why it closed (time,"
        " count, end, full, span, limit); `part` counts further windows with the same bounds; `offsets` are the first and"
        f" the last record in it:\n\n```json\n{closed.decode()}\n```",
        "A pair of encoder and decoder: `y` are the symbols that were written, `label` their names, `text` the names joined"
        " (where they are characters, or a separator is declared), `score` the sum of log-probabilities, normalised;"
        f" `truncated` says that `max_steps` were written without an end:\n\n```json\n{written.decode()}\n```",
        *_emitted(window),
    ]


def _emitted(window: ClosedWindow) -> list[str]:
    """Answers in symbols, of the same shapes."""
    letters = {"name": "p", "shape": ["batch", "time", 3], "kind": "classes", "labels": ["-", "h", "i"]}
    emitting = {**letters, "emit": {"rule": "ctc"}}
    step = Encoder(_contract("step", emitting), "demo")
    begin_ms = window.start_ms
    fresh = step.emitted(b"call-7", Symbols([1], begin_ms, 40, begin_ms + 320))
    final = Transcript(52, Closed.TIME, 0, 13, -0.75)
    ended = step.emitted(b"call-7", Symbols([1, 2], begin_ms, 40, begin_ms + 480, final=final))
    spelled = Spelled([1, 2], [0, 1], -1.5)
    whole = Encoder(_contract("window", emitting), "demo").window(window, [np.zeros((2, 3), np.float32)], None, spelled)
    return [
        "**Answers in symbols.** An output with `emit` is collapsed: of the likeliest label of each step, repeats are one symbol"
        " and the blank is none. A step model then writes a record only when symbols appear (`ts`: the event's), and at the end"
        " of the utterance its transcript with `final`. `score` is the logarithm of the probability of the likeliest labels of"
        " its `count` steps; `utterance.start` and the first of `offsets` name the utterance, `reason` says why it ended (end:"
        " the command; time: `gap_ms`; span: `max_span_ms`; full: `max_symbols`, then the utterance goes on with the next"
        " `part`). The header `streamer-source` of a transcript names its last event. The end of an utterance sets the model's"
        " state back; the command `reset`, `state.idle_ttl_ms` and the memory limit forget an utterance without a transcript."
        f" An event that brings no symbol has no record.\n\n```json\n{fresh.decode()}\n{ended.decode()}\n```",
        "A window model's answer has its transcript in place of the values; beside other outputs it is an object under its name."
        f" The collapse is greedy: there is no beam search.\n\n```json\n{whole.decode()}\n```",
    ]


def _decoder() -> str:
    text = " ".join((user.__doc__ or "").partition("\n")[2].split())
    return (
        '`input.format = "MODULE:FUNCTION"` names a function of your own:\n\n'
        "```\ndecode(values: Sequence[bytes]) -> (x[N, F], event times[N] or None, {row: reason})\n```\n\n" + text
    )


if __name__ == "__main__":
    GUIDE.write_text(with_reference(GUIDE.read_text(encoding="utf-8")), encoding="utf-8")
