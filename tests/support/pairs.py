"""Small encoder-decoder modules, untrained: all shapes that are promised to become one file."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

LABELS = ("<", ">", *"abcdefg")
"""Begin, end and seven symbols"""

Tensors = tuple[Tensor, ...]


class WordEncoder(nn.Module):
    """Ids through a bidirectional GRU, packed."""

    def __init__(self, words: int = 12, width: int = 8, *, remember: bool = True) -> None:
        super().__init__()
        self.remember = remember
        self.embed, self.core = nn.Embedding(words, width), nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.bridge = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensors, Tensors]:
        embedded = self.embed(x[..., 0])
        packed = pack_padded_sequence(embedded, lengths.cpu(), batch_first=True, enforce_sorted=False)
        y, h = self.core(packed)
        y, _ = pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])
        state = torch.tanh(self.bridge(torch.cat((h[0], h[1]), -1)))[None]
        return ((y,) if self.remember else ()), (state,)


class SignalEncoder(nn.Module):
    """Numbers through two layers of LSTM, not packed; two states, the last of each layer as they are."""

    def __init__(self, features: int = 4, width: int = 8) -> None:
        super().__init__()
        self.core = nn.LSTM(features, width, num_layers=2, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensors, Tensors]:
        y, (h, c) = self.core(x)
        return (y,), (h, c)


class LuongDecoder(nn.Module):
    """A GRUCell, multiplicative attention after it."""

    def __init__(self, symbols: int = len(LABELS), width: int = 8, memory: int = 16) -> None:
        super().__init__()
        self.embed, self.cell = nn.Embedding(symbols, width), nn.GRUCell(width, width)
        self.key, self.out = nn.Linear(memory, width), nn.Linear(width + memory, symbols)

    def forward(self, symbol: Tensor, states: Tensors, memory: Tensors, lengths: Tensor) -> tuple[Tensor, Tensors]:
        h = self.cell(self.embed(symbol), states[0][0])
        context = _attended((self.key(memory[0]) * h[:, None]).sum(-1), memory[0], lengths)
        return torch.log_softmax(self.out(torch.cat((h, context), -1)), -1), (h[None],)


class BahdanauDecoder(nn.Module):
    """Two layers of nn.LSTM with one step, additive attention before them."""

    def __init__(self, symbols: int = len(LABELS), width: int = 8, memory: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, width)
        self.query, self.key, self.energy = nn.Linear(width, width), nn.Linear(memory, width), nn.Linear(width, 1)
        self.core = nn.LSTM(width + memory, width, num_layers=2, batch_first=True)
        self.out = nn.Linear(width, symbols)

    def forward(self, symbol: Tensor, states: Tensors, memory: Tensors, lengths: Tensor) -> tuple[Tensor, Tensors]:
        energy = self.energy(torch.tanh(self.query(states[0][-1])[:, None] + self.key(memory[0])))[..., 0]
        context = _attended(energy, memory[0], lengths)
        y, last = self.core(torch.cat((self.embed(symbol), context), -1)[:, None], (states[0], states[1]))
        return torch.log_softmax(self.out(y[:, 0]), -1), tuple(last)


class PlainDecoder(nn.Module):
    """No attention: all that is known of the window is the state."""

    def __init__(self, symbols: int = len(LABELS), width: int = 8) -> None:
        super().__init__()
        self.embed, self.cell, self.out = (
            nn.Embedding(symbols, width),
            nn.GRUCell(width, width),
            nn.Linear(width, symbols),
        )

    def forward(self, symbol: Tensor, states: Tensors, memory: Tensors, lengths: Tensor) -> tuple[Tensor, Tensors]:
        h = self.cell(self.embed(symbol), states[0][0])
        return torch.log_softmax(self.out(h), -1), (h[None],)


class Pair(nn.Module):
    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder


def _attended(score: Tensor, memory: Tensor, lengths: Tensor) -> Tensor:
    valid = torch.arange(memory.shape[1])[None] < lengths[:, None]
    weight = torch.softmax(score.masked_fill(~valid, -1e9), -1)
    return (weight[..., None] * memory).sum(1)


def luong() -> Pair:
    return lively(Pair(WordEncoder(), LuongDecoder()))


def bahdanau() -> Pair:
    return lively(Pair(SignalEncoder(), BahdanauDecoder()))


def plain() -> Pair:
    return lively(Pair(WordEncoder(remember=False), PlainDecoder()))


WORDS = {"name": "x", "shape": ["batch", "time", 1], "dtype": "int64"}
SIGNAL = {"name": "x", "shape": ["batch", "time", 4]}
PAIRS: dict[str, tuple[Any, dict[str, Any]]] = {
    "luong": (luong, WORDS),
    "bahdanau": (bahdanau, SIGNAL),
    "plain": (plain, WORDS),
}


def fields(given: dict[str, Any], **decoder: Any) -> dict[str, Any]:
    table = {"labels": list(LABELS), "begin": 0, "end": ">", "max_steps": 12}
    return {"name": "pair", "input": given, "decoder": {**table, **decoder}}


def lively(pair: Pair) -> Pair:
    """Weights that are large enough for sequences that differ and end."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 1.2)
        pair.decoder.out.bias[1] -= 0.5
    return pair
