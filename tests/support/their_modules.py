"""Modules as people write them, for whole sequences; each small, none of them knows of streamer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class SentenceClassifier(nn.Module):
    """Embedding, stacked LSTM, linear layer on the last step; zeros as initial states, as in many tutorials."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 8, padding_idx=0)
        self.lstm = nn.LSTM(8, 6, num_layers=2, batch_first=True, dropout=0.3)
        self.fc = nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        zeros = torch.zeros(2, tokens.size(0), 6).to(tokens.device)
        out, _ = self.lstm(self.embedding(tokens), (zeros, zeros))
        return self.fc(out[:, -1, :])


class Tagger(nn.Module):
    """Bidirectional, packed inside, one answer per word."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.dropout = nn.Embedding(40, 8), nn.Dropout(0.2)
        self.rnn, self.fc = nn.LSTM(8, 6, bidirectional=True, batch_first=True), nn.Linear(12, 4)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(
            self.dropout(self.embedding(tokens)), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        out, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return F.log_softmax(self.fc(out), dim=-1)


class Seq2SeqEncoder(nn.Module):
    """Time first, bidirectional GRU, its end squeezed into the first state of a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 6)
        self.rnn, self.fc = nn.GRU(6, 5, bidirectional=True), nn.Linear(10, 5)

    def forward(self, source: Tensor, source_len: Tensor) -> tuple[Tensor, Tensor]:
        packed = pack_padded_sequence(self.embedding(source), source_len.to("cpu"), enforce_sorted=False)
        outputs, hidden = self.rnn(packed)
        outputs, _ = pad_packed_sequence(outputs)
        return outputs, torch.tanh(self.fc(torch.cat((hidden[-2], hidden[-1]), dim=1)))


class NormedGru(nn.Module):
    """Two GRUs, one of them without bias, with layer norm between and around."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.GRU(3, 7, batch_first=True), nn.LayerNorm(7)
        self.second, self.fc = nn.GRU(7, 7, batch_first=True, bias=False), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.first(x)
        z, _ = self.second(self.norm(y))
        return self.fc(y + z)


class TimeFirst(nn.Module):
    """Plain RNN with relu, time first; the state is taken and returned."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.RNN(4, 6, 2, nonlinearity="relu"), nn.Linear(6, 2)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, hidden = self.rnn(x, hidden)
        return self.fc(y), hidden


class Projected(nn.Module):
    """LSTM with a projection, two layers, both directions, mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 8, 2, batch_first=True, proj_size=3, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0].mean(dim=1)


class ProjectedStep(nn.Module):
    """LSTM with a projection that cannot be called without its state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(4, 8, 2, batch_first=True, proj_size=3), nn.Linear(3, 1)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = self.lstm(x, state)
        return self.fc(y), state


class ResidualStack(nn.Module):
    """Residual LSTM layers from a learned first state; a dict of answers."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(3, 6)
        self.layers = nn.ModuleList([nn.LSTM(6, 6, batch_first=True) for _ in range(2)])
        self.start = nn.Parameter(torch.randn(1, 1, 6))
        self.out = nn.Linear(6, 2)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> dict[str, Tensor]:
        y = self.lift(x)
        for layer in self.layers:
            start = self.start.expand(-1, x.size(0), -1).contiguous()
            y = y + layer(y, (start, start))[0]
        return {"logits": self.out(y), "score": y.pow(2).mean(-1)}


class CellLoop(nn.Module):
    """An LSTMCell in a loop over time."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.fc = nn.LSTMCell(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(x.size(0), 5)
        out = []
        for step in range(x.size(1)):
            h, c = self.cell(x[:, step], (h, c))
            out.append(self.fc(h))
        return torch.stack(out, 1)


class OwnRecurrence(nn.Module):
    """No recurrent layer at all: a recurrence written by hand, with its state returned."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.fc = nn.Linear(7, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h = torch.zeros(x.size(0), 4) if state is None else state
        out = []
        for step in range(x.size(1)):
            h = torch.tanh(self.mix(torch.cat((x[:, step], h), -1)))
            out.append(h)
        return self.fc(torch.stack(out, 1)), h


class Attending(nn.Module):
    """Attention over time, maximum over time, and the last steps backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.attention = nn.GRU(3, 5, batch_first=True, bidirectional=True), nn.Linear(10, 1)
        self.backwards, self.fc = nn.GRU(3, 5, batch_first=True), nn.Linear(15, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(x)
        weights = torch.softmax(self.attention(y), dim=1)
        back, _ = self.backwards(x.flip(1))
        pooled = (
            (weights * y).sum(1) + y.max(1)[0] + y.amin(dim=1) + F.max_pool1d(y.transpose(1, 2), y.size(1)).squeeze(2)
        )
        return self.fc(torch.cat((pooled, back[:, -1]), -1))


class Translator(nn.Module):
    """A decoder that starts where the encoder ended; rows and steps are flattened before the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.LSTM(3, 5, batch_first=True), nn.LSTM(3, 5, batch_first=True)
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        _, state = self.encoder(x)
        return self.fc(self.decoder(x, state)[0].reshape(-1, 5))


class Convolved(nn.Module):
    """Looks at neighbours that padding would change."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.rnn = nn.Conv1d(3, 4, 3, padding=1), nn.GRU(4, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(self.conv(x.transpose(1, 2)).transpose(1, 2))[0]


class LastOfCells(nn.Module):
    """A loop of cells that answers once, at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.fc = nn.GRUCell(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(0), 5)
        for step in range(x.size(1)):
            h = self.cell(x[:, step], h)
        return self.fc(h)


class DataDependent(nn.Module):
    """What runs depends on what the events are."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 5, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(x)
        return y * 2 if float(y.sum()) > 0 else y


class OwnForward(nn.GRU):
    def forward(self, x: Tensor, hx: Tensor | None = None) -> Any:  # type: ignore[override]
        return super().forward(x * 2, hx)


class Disguised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.core = OwnForward(3, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.core(x)[0]


class RandomStart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x, torch.randn(1, x.size(0), 5))[0]


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 5, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.rnn(x)[0] * mask


class NeedsArguments(nn.Module):
    def __init__(self, vocabulary: int, hidden: int) -> None:
        super().__init__()
        self.fc = nn.Linear(vocabulary, hidden)


def raising() -> nn.Module:
    raise FileNotFoundError("vocab.json")


def plain_lstm() -> nn.Module:
    """The whole module is one of torch's layers."""
    return nn.LSTM(3, 4, batch_first=True)


def normed_weights() -> nn.Module:
    """Old and new weight_norm in one module."""
    module = NormedGru()
    torch.nn.utils.parametrizations.weight_norm(module.first, "weight_hh_l0")
    torch.nn.utils.weight_norm(module.fc)
    return module
