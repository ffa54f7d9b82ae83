"""The parts of a model beside torch's own cells, and how all of them start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

CELLS: dict[str, type[nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
KINDS = (*CELLS, "mlp")
"""``mlp`` is the feed-forward baseline: it sees a fixed number of recent events and remembers nothing else."""


Category = tuple[int, int, int, int | None]
"""A column of words: (column, size of its vocabulary, width of its embedding, place of the unknown or None)."""


class TokenEmbedding(nn.Module):
    """Encoder for streams of categories: x[..., 1] is an index 0..vocabulary-1 as a float; gives [..., size].

    Every other number is the category ``unknown``; without one it is no category at all, and its vector is zero. So
    the graph never reads outside of its table, and no number is taken for a word that it is not.
    """

    def __init__(self, vocabulary: int, size: int, *, unknown: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.vocabulary, self.unknown = vocabulary, unknown
        self.table = nn.Embedding(vocabulary, size)
        self.dropout = nn.Dropout(dropout)

    @property
    def other(self) -> int:
        """Row of ``rows`` for what is not in the vocabulary."""
        return self.vocabulary if self.unknown is None else self.unknown

    @property
    def rows(self) -> Tensor:
        """The table that is read: where nothing stands for the unknown, one row of zeros more."""
        weight: Tensor = self.table.weight
        return weight if self.unknown is not None else torch.cat((weight, torch.zeros_like(weight[:1])))

    def forward(self, x: Tensor) -> Tensor:
        number = x.squeeze(-1)
        known = (number > -1) & (number < self.vocabulary)  # as numbers: a cast of a huge one could give any index
        index = torch.where(known, number, float(self.other)).to(torch.int64)
        embedded: Tensor = self.dropout(nn.functional.embedding(index, self.rows))
        return embedded


class ColumnEncoder(nn.Module):
    """Encoder for events with numbers and categories: the numbers as they are, an embedding for each category.

    ``categories``: (column, vocabulary, size, unknown) each; x[..., F] gives [..., numbers + sum of sizes].
    """

    def __init__(self, features: int, categories: Sequence[Category], *, dropout: float = 0.0) -> None:
        super().__init__()
        self.columns = [column for column, *_ in categories]
        self.numbers = [column for column in range(features) if column not in self.columns]
        self.tables = nn.ModuleList(
            TokenEmbedding(vocabulary, size, unknown=unknown, dropout=dropout)
            for _, vocabulary, size, unknown in categories
        )
        self.width = len(self.numbers) + sum(size for _, _, size, _ in categories)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[..., self.numbers]] if self.numbers else []
        parts += [table(x[..., column : column + 1]) for column, table in zip(self.columns, self.tables, strict=True)]
        return torch.cat(parts, dim=-1)


def categories(encoder: nn.Module | None) -> dict[int, int]:
    """Column of the event -> size of its vocabulary."""
    if isinstance(encoder, TokenEmbedding):
        return {0: encoder.vocabulary}
    if isinstance(encoder, ColumnEncoder):
        sizes = [table.vocabulary for table in encoder.tables if isinstance(table, TokenEmbedding)]
        return dict(zip(encoder.columns, sizes, strict=True))
    return {}


def settle_unknown(encoder: nn.Module | None, xs: Sequence[NDArray[np.float32]]) -> None:
    """An unknown word that training never saw is like the average word of its events, not like noise.

    ``xs``: the training events, [T, F] each.
    """
    tables = {0: encoder} if isinstance(encoder, TokenEmbedding) else {}
    if isinstance(encoder, ColumnEncoder):
        tables = {column: cast(TokenEmbedding, encoder.tables[at]) for at, column in enumerate(encoder.columns)}
    for column, table in tables.items():
        seen = np.concatenate([x[:, column] for x in xs]).astype(np.int64)
        counts = np.bincount(seen, minlength=table.vocabulary)
        if table.unknown is not None and counts[table.unknown] == 0:
            share = torch.from_numpy((counts / counts.sum()).astype(np.float32))
            with torch.no_grad():
                table.table.weight[table.unknown] = share @ table.table.weight


class WindowCore(nn.Module):
    """One hidden ReLU layer over the last ``window`` events; its state is the ``window - 1`` events before this one.

    Takes the place of a recurrent core: y[B,T,H] and the state [1, B, (window-1)*E], oldest event first.
    """

    def __init__(self, encoded: int, hidden: int, window: int) -> None:
        super().__init__()
        self.encoded, self.window = encoded, window
        self.layer = nn.Linear(encoded * window, hidden)

    def forward(self, e: Tensor, h: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        rows, steps, _ = e.shape
        joined = torch.cat((h[0].view(rows, self.window - 1, self.encoded), e), dim=1)
        seen = joined.unfold(1, self.window, 1).transpose(2, 3).reshape(rows, steps, -1)
        ends = torch.full((rows,), steps, device=e.device) if lengths is None else lengths.to(e.device)
        places = ends.to(torch.int64)[:, None] + torch.arange(self.window - 1, device=e.device)
        last = joined.gather(1, places[..., None].expand(-1, -1, self.encoded))
        return torch.relu(self.layer(seen)), last.reshape(1, rows, -1)


def over_padding(core: Any, x: Tensor, lengths: Tensor) -> Tensor:
    """y[B,T,D*H] of a torch cell from zero states, as over packed rows within ``lengths`` [B], whatever beyond them.

    On a CPU rows that are padded are several times faster than packed ones, of which oneDNN knows nothing.
    """
    if not core.bidirectional:
        causal: Tensor = core(x)[0]
        return causal
    step = torch.arange(x.shape[1])[None].expand(x.shape[:2])
    mirrored = lengths[:, None] - 1 - step  # every row backwards by itself; its padding stays where it is
    order = torch.where(mirrored >= 0, mirrored, step)[..., None]

    def turn(each: Tensor) -> Tensor:
        return each.gather(1, order.expand(-1, -1, each.shape[-1]))

    for layer in range(core.num_layers):
        forward, backward = _one_way(core, x, layer, ""), turn(_one_way(core, turn(x), layer, "_reverse"))
        x = torch.cat((forward, backward), dim=-1)
        if layer + 1 < core.num_layers:
            x = nn.functional.dropout(x, core.dropout, core.training)
    return x


def _one_way(core: Any, x: Tensor, layer: int, suffix: str) -> Tensor:
    """One layer of one direction: y[B,T,H]."""
    parts = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    weights = [getattr(core, f"{part}_l{layer}{suffix}") for part in parts]
    zero = x.new_zeros(1, x.shape[0], core.hidden_size)
    if isinstance(core, nn.LSTM):
        return torch.lstm(x, (zero, zero), weights, True, 1, 0.0, core.training, False, True)[0]
    run = torch.gru if isinstance(core, nn.GRU) else getattr(torch, f"rnn_{core.nonlinearity}")
    y: Tensor = run(x, zero, weights, True, 1, 0.0, core.training, False, True)[0]
    return y


def initialise(core: Any, kind: str, *, forget_bias: float = 1.0) -> None:
    """Orthogonal recurrent weights per gate (norm kept over many steps), Xavier input weights, zero biases.

    ``forget_bias`` goes to an LSTM's forget gate, so that it remembers before it has learnt what to forget. A plain
    RNN(relu) gets the identity instead of a random orthogonal matrix, which keeps its activations bounded.
    """
    if kind == "mlp":
        return  # its own initialisation suits it
    size = core.hidden_size
    with torch.no_grad():
        for name, parameter in core.named_parameters():
            if name.startswith("weight_hh"):
                for gate in torch.split(parameter, size):
                    if kind == "rnn" and core.nonlinearity == "relu":
                        nn.init.eye_(gate)
                    else:
                        nn.init.orthogonal_(gate)
            elif name.startswith("weight_ih"):
                for gate in torch.split(parameter, size):
                    nn.init.xavier_uniform_(gate)
            else:
                nn.init.zeros_(parameter)
                if kind == "lstm" and name.startswith("bias_ih"):
                    parameter[size : 2 * size] = forget_bias


def zero_last_linear(head: nn.Module | None) -> None:
    """A forecaster then starts from "no change" (or from the mean) instead of from noise."""
    last = [module for module in head.modules() if isinstance(module, nn.Linear)][-1] if head is not None else None
    if last is not None:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
