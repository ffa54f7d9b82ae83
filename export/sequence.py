"""One encoder, one recurrent core and one head, over ragged batches; and the forecaster that scores what it did not expect.

Shapes: B rows, T steps, F features, O outputs, L layers, D directions, H hidden.

The eager forward is the reference of the exported graph: what it returns inside a row's length, the graph returns
too. Scaling and post-processing are part of the model, so that nobody has to repeat them in another language.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from streamer.errors import ConfigurationError

from .cells import CELLS, KINDS, Category, WindowCore, over_padding
from .frontend import FrontEnd

REDUCTIONS = ("last", "mean", "max")
ACTIVATIONS = ("none", "softmax", "sigmoid")
SCORES = ("mean", "max")


@dataclass(frozen=True)
class ModelConfig:
    """All that is needed to build a model again, as plain values; the file NAME.pt carries it beside the weights."""

    features: int
    hidden: int
    task: str = "sequence"
    """sequence | forecast"""
    kind: str = "lstm"
    nonlinearity: str = "tanh"
    layers: int = 1
    directions: int = 1
    dropout: float = 0.0
    vocabulary: int = 0
    """Number of categories of a one-feature stream that an embedding encodes; 0: numeric features."""
    embedding: int = 0
    """Width of the embedding."""
    unknown: int | None = None
    """The category that every number outside of the vocabulary is; None: it is none, and its vector zero."""
    categories: tuple[Category, ...] = ()
    """Embeddings beside numbers: columns of words among the features."""
    embedding_dropout: float = 0.0
    """Share of the embedding's values that are dropped in training."""
    outputs: int = 0
    """Width of the linear head; 0: no head (a forecaster's is always F)."""
    head_hidden: int = 0
    """Width of one hidden ReLU layer in the head; 0: none."""
    reduce: str | None = None
    activation: str = "none"
    output: str = "y"
    labels: tuple[str, ...] | None = None
    score: str = "mean"
    skip: bool = False
    """A forecaster's head predicts the change from the current event instead of the next event itself."""
    forget_bias: float = 1.0
    """Initial bias of an LSTM's forget gate."""
    window: int = 8
    """Number of recent events that an ``mlp`` sees."""
    frontend: FrontEnd | None = None
    """The features are samples of sound."""


def _recurrent(
    kind: str, width: int, hidden: int, layers: int, directions: int, dropout: float, nonlinearity: str
) -> nn.Module:
    """The core of a kind that is no ``mlp``: ``width`` features in, ``hidden`` per direction out."""
    cell: Any = CELLS[kind]  # typed as its base class, whose own first argument is a mode
    options: dict[str, Any] = {"nonlinearity": nonlinearity} if kind == "rnn" else {}
    core: nn.Module = cell(
        width,
        hidden,
        num_layers=layers,
        batch_first=True,
        bidirectional=directions == 2,
        dropout=dropout if layers > 1 else 0.0,
        **options,
    )
    return core


class SequenceModel(nn.Module):
    """``head(core(encoder((x - mean) / std)))``, per event or reduced to one output per window.

    ``encoder`` and ``head`` work on the last axis only (they see one step). ``reduce`` makes one output per window:
    ``last`` (last valid step of each direction), ``mean`` or ``max`` over the valid steps.
    Raises ConfigurationError for sizes and names that no graph could be made of.
    """

    mean: Tensor
    std: Tensor
    trains_over_padding = False
    """For losses that want no next states, of rows that begin anew: training is faster, and what they see the same."""

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        kind: str = "lstm",
        nonlinearity: str = "tanh",
        layers: int = 1,
        directions: int = 1,
        dropout: float = 0.0,
        encoder: nn.Module | None = None,
        encoded: int | None = None,
        head: nn.Module | None = None,
        reduce: str | None = None,
        activation: str = "none",
        output: str = "y",
        labels: Sequence[str] | None = None,
        window: int = 8,
        proj_size: int = 0,
    ) -> None:
        """``encoded``: width of the encoder's result (required with an encoder). ``labels``: names of the O outputs.

        ``dropout`` acts in training only: on the core's output, and between its layers where there are several.
        ``window``: events that an ``mlp`` sees.
        """
        super().__init__()
        check_choice("kind", kind, KINDS)
        check_choice("activation", activation, ACTIVATIONS)
        check_choice("nonlinearity", nonlinearity, ("tanh", "relu"))
        if reduce is not None:
            check_choice("reduce", reduce, REDUCTIONS)
        if directions not in (1, 2):
            raise ConfigurationError(f"directions must be 1 or 2, not {directions}")
        if min(features, hidden, layers) < 1:
            raise ConfigurationError("features, hidden and layers must be at least 1")
        if not 0.0 <= dropout < 1.0:
            raise ConfigurationError(f"dropout must be in [0, 1), not {dropout}")
        if proj_size:
            raise ConfigurationError("proj_size is not supported: the ONNX LSTM has no projection; use a Linear head")
        if encoder is not None and encoded is None:
            raise ConfigurationError("an encoder needs `encoded`, the width of its result")
        self.features, self.hidden, self.kind, self.nonlinearity = features, hidden, kind, nonlinearity
        self.layers, self.directions, self.reduce, self.activation = layers, directions, reduce, activation
        self.output, self.labels = output, list(labels) if labels is not None else None
        self.config: ModelConfig | None = None
        self.encoder, self.head = encoder, head
        width = features if encoder is None or encoded is None else encoded
        self.state_width = hidden
        self.core: Any
        if kind == "mlp":
            if layers != 1 or directions != 1 or window < 2:
                raise ConfigurationError("an mlp has one layer, one direction and a window of at least 2 events")
            self.core = WindowCore(width, hidden, window)
            self.state_width = (window - 1) * width
        else:
            self.core = _recurrent(kind, width, hidden, layers, directions, dropout, nonlinearity)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))

    @property
    def mode(self) -> str:
        """``window`` if it has to wait for the end of a window, else ``step``."""
        return "window" if self.directions == 2 or self.reduce is not None else "step"

    @property
    def core_state_names(self) -> tuple[str, ...]:
        return ("h", "c") if self.kind == "lstm" else ("h",)

    @property
    def state_names(self) -> tuple[str, ...]:
        """States that the graph takes and gives back (as ``NAME`` and ``NAME_next``); none in window mode."""
        return self.core_state_names if self.mode == "step" else ()

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    @property
    def width(self) -> int:
        """Size of one output row O."""
        if self.head is None:
            return self.directions * self.hidden
        with torch.no_grad():
            probe: Tensor = self.head(torch.zeros(1, self.directions * self.hidden, device=self.mean.device))
        return int(probe.shape[-1])

    @property
    def kind_of_output(self) -> str:
        """``classes`` after a softmax, ``value`` for one number, else ``vector``."""
        if self.activation == "softmax":
            return "classes"
        return "value" if self.width == 1 else "vector"

    def initial_states(self, rows: int) -> tuple[Tensor, ...]:
        """Zero states of ``rows`` streams, the core's as [L*D, rows, H]."""
        shape = (self.layers * self.directions, rows, self.state_width)
        return tuple(torch.zeros(shape, device=self.mean.device) for _ in self.core_state_names)

    def scale(self, x: Tensor) -> Tensor:
        """Raw features to the standardised ones the core was trained on."""
        return (x - self.mean) / self.std

    def run_core(
        self, z: Tensor, lengths: Tensor | None, states: Sequence[Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Encoder and core over standardised z[B,T,F]: (y[B,T,D*H], zero beyond a row's length; next states)."""
        e = z if self.encoder is None else self.encoder(z)
        initial = tuple(states) if states else self.initial_states(z.shape[0])
        hx = initial if self.kind == "lstm" else initial[0]
        if self.kind == "mlp":
            y, last = self.core(e, hx, lengths)
        elif lengths is None:
            y, last = self.core(e, hx)
        elif self.training and self.trains_over_padding:
            y, last = over_padding(self.core, e, lengths), hx
        else:
            packed = pack_padded_sequence(e, lengths.cpu().to(torch.int64), batch_first=True, enforce_sorted=False)
            y, last = self.core(packed, hx)
            y, _ = pad_packed_sequence(y, batch_first=True, total_length=z.shape[1])
        return y, tuple(last) if self.kind == "lstm" else (last,)

    def reduce_steps(self, y: Tensor, lengths: Tensor | None, last_h: Tensor) -> Tensor:
        """y[B,T,D*H] and the core's final h[L*D,B,H] to one row per window [B,D*H]."""
        if self.reduce == "last" and self.kind == "mlp":
            ends = torch.full((y.shape[0],), y.shape[1]) if lengths is None else lengths
            return y[torch.arange(y.shape[0]), ends.to(torch.int64) - 1]
        if self.reduce == "last":
            return torch.cat(tuple(last_h[-self.directions :]), dim=-1)
        if lengths is None:
            return y.mean(dim=1) if self.reduce == "mean" else y.amax(dim=1)
        valid = (torch.arange(y.shape[1], device=y.device)[None, :] < lengths.to(y.device)[:, None])[..., None]
        if self.reduce == "mean":
            return (y * valid).sum(dim=1) / lengths.to(y)[:, None]
        return y.masked_fill(~valid, -torch.inf).amax(dim=1)

    def raw(self, x: Tensor, lengths: Tensor | None, *states: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The head's result before the activation (logits; what losses want): [B,T,O] or [B,O], and the next states."""
        y, next_states = self.run_core(self.scale(x), lengths, states)
        if self.reduce is not None:
            y = self.reduce_steps(y, lengths, next_states[0])
        y = self.dropout(y)
        return y if self.head is None else self.head(y), next_states

    def activate(self, y: Tensor) -> Tensor:
        """Post-processing of the head's result: class probabilities, or the values themselves."""
        if self.activation == "softmax":
            return torch.softmax(y, dim=-1)
        return torch.sigmoid(y) if self.activation == "sigmoid" else y

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, *states: Tensor
    ) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        """x[B,T,F], lengths[B] (1..T; None: all T), states in order of ``state_names`` (none: initial).

        Returns (output name -> [B,T,O], or [B,O] with ``reduce``; next states, none in window mode).
        """
        y, next_states = self.raw(x, lengths, *states)
        return {self.output: self.activate(y)}, next_states if self.mode == "step" else ()

    def output_fields(self) -> list[dict[str, Any]]:
        """Contract fields of the outputs, in the order of ``forward``."""
        per = "event" if self.reduce is None else "window"
        axes: list[str | int] = ["batch", "time"] if per == "event" else ["batch"]
        return [
            {
                "name": self.output,
                "shape": [*axes, self.width],
                "kind": self.kind_of_output,
                "labels": self.labels,
                "per": per,
            }
        ]

    def state_fields(self) -> list[dict[str, Any]]:
        """Contract fields of the states, in the order of ``state_names``."""
        shape: list[str | int] = [self.layers * self.directions, "batch", self.state_width]
        return [
            {"input": name, "output": f"{name}_next", "shape": shape, "initial": "zeros"}
            for name in self.core_state_names
            if self.mode == "step"
        ]

    def cell_fields(self) -> dict[str, Any]:
        """Contract fields for people."""
        return {
            "cell": self.kind,
            "layers": self.layers,
            "directions": self.directions,
            "hidden": self.hidden,
            "parameters": self.parameter_count,
        }


class Forecaster(SequenceModel):
    """Predicts the next event, and scores the current one by how far it is from what was predicted for it.

    One state tensor more than the core: ``previous`` [B, F+1], the standardised prediction for the coming event and
    a flag that there is one. With r = (z_t - prediction_t) / residual_scale the score is the mean (or the max) of
    r * r over the features; the first event of a stream scores 0. ``forecast`` is in the units of the input.
    With ``skip`` the head predicts the change from the current event.
    """

    residual_scale: Tensor

    def __init__(self, features: int, hidden: int, *, score: str = "mean", skip: bool = False, **options: Any) -> None:
        directions, reduce = options.get("directions", 1), options.get("reduce")
        if directions != 1 or reduce is not None or options.get("activation", "none") != "none":
            raise ConfigurationError("a forecaster is causal: one direction, no reduction, no activation")
        check_choice("score", score, SCORES)
        head = options.pop("head", None) or nn.Linear(hidden, features)
        super().__init__(features, hidden, head=head, **options)
        if self.width != features:
            raise ConfigurationError(f"a forecaster's head must give {features} features, not {self.width}")
        self.score, self.skip = score, skip
        self.register_buffer("residual_scale", torch.ones(features))

    @property
    def state_names(self) -> tuple[str, ...]:
        return (*self.core_state_names, "previous")

    def initial_states(self, rows: int) -> tuple[Tensor, ...]:
        previous = torch.zeros(rows, self.features + 1, device=self.mean.device)
        return (*super().initial_states(rows), previous)

    def predict(
        self, z: Tensor, lengths: Tensor | None, core_states: Sequence[Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Standardised z[B,T,F] -> standardised prediction of each next event [B,T,F], next core states."""
        initial = core_states or SequenceModel.initial_states(self, z.shape[0])
        y, next_states = self.run_core(z, lengths, initial)
        assert self.head is not None
        delta = self.head(self.dropout(y))
        return z + delta if self.skip else delta, next_states

    def residuals(self, z: Tensor, prediction: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """(r[B,T,F] in units of ``residual_scale``, seen[B,T,1]: 1 where there was a prediction for the event)."""
        expected = torch.cat((previous[:, None, :-1], prediction[:, :-1]), dim=1)
        seen = torch.cat((previous[:, None, -1:], torch.ones_like(prediction[:, :-1, :1])), dim=1)
        return (z - expected) / self.residual_scale, seen

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, *states: Tensor
    ) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        """As SequenceModel; outputs ``forecast`` [B,T,F] and ``score`` [B,T,1]."""
        states = states or self.initial_states(x.shape[0])
        z = self.scale(x)
        prediction, core_states = self.predict(z, lengths, states[:-1])
        r, seen = self.residuals(z, prediction, states[-1])
        squared = r * r
        score = squared.mean(dim=-1, keepdim=True) if self.score == "mean" else squared.amax(dim=-1, keepdim=True)
        steps = prediction.shape[1]
        end = torch.full((x.shape[0],), steps) if lengths is None else lengths
        last = prediction[torch.arange(x.shape[0]), end.to(torch.int64) - 1]
        previous = torch.cat((last, torch.ones_like(last[:, :1])), dim=-1)
        return {"forecast": prediction * self.std + self.mean, "score": score * seen}, (*core_states, previous)

    def output_fields(self) -> list[dict[str, Any]]:
        return [
            {
                "name": "forecast",
                "shape": ["batch", "time", self.features],
                "kind": "vector",
                "labels": self.labels,
                "per": "event",
            },
            {"name": "score", "shape": ["batch", "time", 1], "kind": "score", "labels": None, "per": "event"},
        ]

    def state_fields(self) -> list[dict[str, Any]]:
        previous = {"input": "previous", "output": "previous_next", "shape": ["batch", self.features + 1]}
        return [*super().state_fields(), {**previous, "initial": "zeros"}]


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """ConfigurationError for a value that is not one of the choices."""
    if value not in choices:
        raise ConfigurationError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
