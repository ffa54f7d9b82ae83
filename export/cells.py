"""The parts of a model beside torch's own cells, and how all of them start."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

CELLS: dict[str, type[nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
KINDS = (*CELLS, "mlp")
"""``mlp`` is the feed-forward baseline: it sees a fixed number of recent events and remembers nothing else."""


class TokenEmbedding(nn.Module):
    """Encoder for streams of categories: x[..., 1] is an index 0..vocabulary-1 as a float; gives [..., size].

    Indices outside of the vocabulary are clamped, so that the graph cannot read outside of its table.
    """

    def __init__(self, vocabulary: int, size: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.table = nn.Embedding(vocabulary, size)

    def forward(self, x: Tensor) -> Tensor:
        index = x.squeeze(-1).to(torch.int64).clamp(0, self.vocabulary - 1)
        embedded: Tensor = self.table(index)
        return embedded


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
