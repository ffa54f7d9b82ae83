"""Encoder, attention and decoder in PyTorch: what is trained, and what the exported graphs are compared with.

Shapes: B rows, T steps and F features of the source, U symbols of the target, V symbols in all, D width of the
encoder's output, H width and L layers of the decoder, A width of the attention's keys.

What stands beyond a row's length never matters. Symbol 0 ends a sequence, and is what its first step is given.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from streamer.errors import ConfigurationError, ModelError

from ..cells import CELLS, initialise
from ..model import ModelConfig, build
from ..sequence import check_choice

END = 0
"""The symbol that ends a sequence; as nothing is before the first symbol, the first step is given it too."""
ATTENTIONS = ("bahdanau", "dot", "general", "none")
"""Bahdanau et al. 2015 (additive, before the cell); Luong et al. 2015 (after the cell, scores dot and general)."""

Memory = tuple[Tensor, ...]
States = tuple[Tensor, ...]


@dataclass(frozen=True)
class PairConfig:
    """All that is needed to build an encoder and its decoder again, as plain values."""

    encoder: ModelConfig
    """Reads the source; it has no head."""
    symbols: int
    """V, the end among them."""
    hidden: int
    """H."""
    layers: int = 1
    embedding: int = 32
    """Width of the embedding of a symbol."""
    attention: str = "general"
    dropout: float = 0.0
    labels: tuple[str, ...] | None = None
    """Names of the V symbols."""
    max_steps: int = 64
    """Symbols after which a sequence ends in any case."""


class Encoder(nn.Module):
    """``(x[B,T,F], lengths[B]) -> (memory, states)``: what the decoder looks at, and what it starts from.

    memory: () without attention, (values[B,T,D],) for dot, (values, keys[B,T,A]) else. states: [L,B,H] each (h, or h
    and c), from the last step of each direction.
    """

    def __init__(self, config: PairConfig) -> None:
        super().__init__()
        self.trunk = build(config.encoder)
        self.attention, self.layers, self.hidden = config.attention, config.layers, config.hidden
        width = self.trunk.directions * self.trunk.hidden
        self.keys: nn.Linear | None = None
        if config.attention in ("bahdanau", "general"):
            self.keys = nn.Linear(width, config.hidden, bias=False)
        self.bridge = nn.Linear(width, len(self.trunk.core_state_names) * config.layers * config.hidden)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Memory, States]:
        values, last = self.trunk.run_core(self.trunk.scale(x), lengths, ())
        values = self.trunk.dropout(values)
        ends = torch.cat(tuple(last[0][-self.trunk.directions :]), dim=-1)
        started = torch.tanh(self.bridge(ends)).view(x.shape[0], -1, self.layers, self.hidden)
        states = tuple(state.contiguous() for state in started.permute(1, 2, 0, 3))
        if self.attention == "none":
            return (), states
        return (values,) if self.keys is None else (values, self.keys(values)), states


class Attention(nn.Module):
    """``(query[B,U,H], memory, lengths[B]) -> context[B,U,D]``: the memory's steps, weighed by how they fit."""

    def __init__(self, kind: str, hidden: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "bahdanau":
            self.query = nn.Linear(hidden, hidden)
            self.energy = nn.Linear(hidden, 1, bias=False)

    def weights(self, query: Tensor, memory: Memory, lengths: Tensor) -> Tensor:
        """[B,U,T], 0 beyond a row's length, in sum 1."""
        keys = memory[-1]
        if self.kind == "bahdanau":
            score = self.energy(torch.tanh(keys[:, None] + self.query(query)[:, :, None])).squeeze(-1)
        else:
            score = query @ keys.transpose(1, 2)
        beyond = torch.arange(keys.shape[1], device=keys.device)[None, :] >= lengths.to(keys.device)[:, None]
        return torch.softmax(score.masked_fill(beyond[:, None], -torch.inf), dim=-1)

    def forward(self, query: Tensor, memory: Memory, lengths: Tensor) -> Tensor:
        return self.weights(query, memory, lengths) @ memory[0]


class Decoder(nn.Module):
    """``(symbol[B], states, memory, lengths[B]) -> (log_probs[B,V], states)``: one step from one symbol to the next."""

    def __init__(self, config: PairConfig) -> None:
        super().__init__()
        width = config.encoder.directions * config.encoder.hidden
        kind, hidden = config.encoder.kind, config.hidden
        self.kind, self.layers, self.hidden = kind, config.layers, hidden
        self.embedding = nn.Embedding(config.symbols, config.embedding)
        self.attention = None if config.attention == "none" else Attention(config.attention, hidden)
        self.feeds_context = config.attention == "bahdanau"
        cell: Any = CELLS[kind]  # typed as its base class, whose own first argument is a mode
        options: dict[str, Any] = {"nonlinearity": config.encoder.nonlinearity} if kind == "rnn" else {}
        self.core = cell(
            config.embedding + (width if self.feeds_context else 0),
            hidden,
            num_layers=config.layers,
            batch_first=True,
            dropout=config.dropout if config.layers > 1 else 0.0,
            **options,
        )
        initialise(self.core, kind, forget_bias=config.encoder.forget_bias)
        self.mix = None if self.attention is None else nn.Linear(hidden + width, hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(hidden, config.symbols)

    def forward(self, symbol: Tensor, states: States, memory: Memory, lengths: Tensor) -> tuple[Tensor, States]:
        log_probs, states = self._run(symbol[:, None], states, memory, lengths)
        return log_probs[:, 0], states

    def forced(self, symbols: Tensor, states: States, memory: Memory, lengths: Tensor) -> Tensor:
        """log_probs[B,U,V] after each of the symbols [B,U], which are what is true: teacher forcing.

        The same as U single steps; where the cell does not wait for the attention they run in one call.
        """
        if not self.feeds_context:
            return self._run(symbols, states, memory, lengths)[0]
        found = []
        for step in range(symbols.shape[1]):
            log_probs, states = self.forward(symbols[:, step], states, memory, lengths)
            found.append(log_probs)
        return torch.stack(found, dim=1)

    def _run(self, symbols: Tensor, states: States, memory: Memory, lengths: Tensor) -> tuple[Tensor, States]:
        embedded = self.dropout(self.embedding(symbols))
        context: Tensor | None = None
        if self.feeds_context and self.attention is not None:
            context = self.attention(states[0][-1][:, None], memory, lengths)
            embedded = torch.cat((embedded, context), dim=-1)
        y, last = self.core(embedded, states if self.kind == "lstm" else states[0])
        if self.attention is not None and self.mix is not None:
            context = self.attention(y, memory, lengths) if context is None else context
            y = torch.tanh(self.mix(torch.cat((y, context), dim=-1)))
        log_probs = torch.log_softmax(self.head(self.dropout(y)), dim=-1)
        return log_probs, tuple(last) if self.kind == "lstm" else (last,)


class EncoderDecoder(nn.Module):
    """Both parts, as trained together. ConfigurationError for sizes that do not fit."""

    def __init__(self, config: PairConfig) -> None:
        super().__init__()
        check_choice("attention", config.attention, ATTENTIONS)
        check_choice("kind", config.encoder.kind, tuple(CELLS))
        if min(config.hidden, config.layers, config.embedding, config.max_steps) < 1 or config.symbols < 2:
            raise ConfigurationError(
                "hidden, layers, embedding and max_steps of a decoder must be at least 1, symbols 2"
            )
        width = config.encoder.directions * config.encoder.hidden
        if config.attention == "dot" and width != config.hidden:
            raise ConfigurationError(
                f"attention dot multiplies both parts' outputs: the decoder's hidden ({config.hidden}) must be the"
                f" encoder's width ({width}); attention general takes any sizes"
            )
        if config.labels is not None and len(config.labels) != config.symbols:
            raise ConfigurationError(f"{len(config.labels)} labels for {config.symbols} symbols")
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, x: Tensor, lengths: Tensor, symbols: Tensor) -> Tensor:
        """log_probs[B,U,V] of each next symbol, for sources x[B,T,F] and the symbols [B,U] before each."""
        memory, states = self.encoder(x, lengths)
        return self.decoder.forced(symbols, states, memory, lengths)

    @torch.no_grad()
    def greedy(self, x: Tensor, lengths: Tensor) -> tuple[list[list[int]], Tensor]:
        """Free-running: each step is given the likeliest symbol of the step before, until END or ``max_steps``.

        Returns the symbols of every row without END, and the sum of their log-probabilities [B] (END's included).
        """
        memory, states = self.encoder(x, lengths)
        rows = x.shape[0]
        symbol = torch.full((rows,), END, dtype=torch.int64, device=x.device)
        done, score, steps = symbol != END, torch.zeros(rows, device=x.device), []
        for _ in range(self.config.max_steps):
            log_probs, states = self.decoder(symbol, states, memory, lengths)
            best, symbol = log_probs.max(dim=-1)
            score += best.masked_fill(done, 0.0)
            symbol = symbol.masked_fill(done, END)
            done = done | (symbol == END)
            steps.append(symbol)
            if bool(done.all()):
                break
        written = torch.stack(steps, dim=1).tolist()
        return [row[: row.index(END)] if END in row else row for row in written], score


def save_pair(model: EncoderDecoder, path: str | os.PathLike[str]) -> None:
    """Weights and configuration, atomically."""
    target = Path(path)
    temporary = target.with_name(target.name + ".part")
    torch.save({"format": 1, "pair": asdict(model.config), "weights": model.state_dict()}, temporary)
    os.replace(temporary, target)


def load_pair(path: str | os.PathLike[str]) -> EncoderDecoder:
    """The module that ``save_pair`` wrote, in evaluation mode. ModelError if the file is none of those."""
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
        fields = dict(document["pair"])
        model = EncoderDecoder(PairConfig(**{**fields, "encoder": ModelConfig(**fields["encoder"])}))
        model.load_state_dict(document["weights"])
    except FileNotFoundError as error:
        raise ModelError(f"no such file: {path}") from error
    except Exception as error:  # what a damaged file provokes depends on where it is damaged
        raise ModelError(f"{path} does not hold an encoder and a decoder of this version: {error}") from error
    return model.eval()
